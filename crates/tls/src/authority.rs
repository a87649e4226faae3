//! A certificate authority of our own, and the certificates that it issues.

use std::fmt;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData as _, SanType, SerialNumber,
};
use rustls_pki_types::DnsName;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

use crate::registered::{CaError, RegisteredCa, date};
use crate::{Secret, unix_now};

/// Longest validity that is issued: a hundred years of 365 days.
pub const MAX_LIFETIME: Duration = Duration::from_secs(36_500 * DAY);

const DAY: u64 = 86_400;

/// How long before now a certificate begins, so that a peer whose clock is behind accepts it.
const BACKDATED: u64 = 5 * 60;

/// Longest common name (RFC 5280 appendix A, ub-common-name), in characters.
const MAX_COMMON_NAME: usize = 64;

/// Why a certificate could not be made, or an authority not be read.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// A common name that is empty or too long.
    #[error("a common name has 1 to 64 characters, not {0}")]
    CommonName(usize),
    /// Neither a DNS name, nor a wildcard, nor an IP address.
    #[error("`{0}` is not a DNS name, a wildcard (*.example.com) or an IP address")]
    Name(String),
    /// A server certificate for nothing.
    #[error("a server certificate needs at least one name")]
    NoNames,
    /// Zero, or more than [`MAX_LIFETIME`].
    #[error("a certificate is valid for 1 second to 36500 days, not for {} seconds", .0.as_secs())]
    Lifetime(Duration),
    /// The authority's own certificate is over.
    #[error("the CA expired on {0}; make a new one and register it")]
    AuthorityExpired(String),
    /// The CA certificate breaks a rule.
    #[error("the CA certificate is not usable: {0}")]
    Certificate(#[source] CaError),
    /// The CA key cannot be read.
    #[error("the CA key is not a private key in PEM that can be read: {0}")]
    Key(#[source] rcgen::Error),
    /// Certificate and key do not belong together.
    #[error("the CA certificate and the CA key do not belong together")]
    Mismatch,
    /// The cryptography failed.
    #[error("making the certificate failed: {0}")]
    Signing(#[source] rcgen::Error),
}

/// A CA certificate with its private key.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: RegisteredCa,
    cert_pem: String,
    key_pem: Secret,
}

impl Authority {
    /// A fresh authority: ECDSA P-256, self-signed, for end certificates only (path length 0), valid for `days`
    /// (1 to 36500) from now.
    pub fn generate(common_name: &str, days: u32) -> Result<Self, IssueError> {
        Self::generate_at(common_name, Duration::from_secs(u64::from(days) * DAY), unix_now())
    }

    pub(crate) fn generate_at(common_name: &str, lifetime: Duration, now: i64) -> Result<Self, IssueError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(IssueError::Signing)?;
        let mut params = base_params(common_name, lifetime, now)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let cert_pem = params.self_signed(&key).map_err(IssueError::Signing)?.pem();
        let key_pem = Secret::new(key.serialize_pem());
        let certificate = RegisteredCa::parse_any_time(&cert_pem).map_err(IssueError::Certificate)?;
        Ok(Self { issuer: Issuer::new(params, key), certificate, cert_pem, key_pem })
    }

    /// Reads an authority back. The certificate must meet the rules of [`RegisteredCa`], be valid now, and belong to
    /// the key (PKCS#8, SEC1 or PKCS#1 in PEM).
    pub fn from_pem(cert: &str, key: &str) -> Result<Self, IssueError> {
        let certificate = RegisteredCa::parse(cert, unix_now()).map_err(IssueError::Certificate)?;
        let pair = KeyPair::from_pem(key).map_err(IssueError::Key)?;
        let der = certificate.der();
        let (_, parsed) = X509Certificate::from_der(&der)
            .map_err(|error| IssueError::Certificate(CaError::Unreadable(error.to_string())))?;
        if parsed.public_key().raw != pair.subject_public_key_info() {
            return Err(IssueError::Mismatch);
        }
        let issuer = Issuer::from_ca_cert_der(&der, pair).map_err(IssueError::Signing)?;
        Ok(Self { issuer, certificate, cert_pem: cert.to_owned(), key_pem: Secret::new(key.to_owned()) })
    }

    /// The certificate in PEM.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// The private key in PEM.
    pub fn key_pem(&self) -> &Secret {
        &self.key_pem
    }

    /// The certificate as others register it.
    pub fn certificate(&self) -> &RegisteredCa {
        &self.certificate
    }

    /// A server certificate with a fresh ECDSA P-256 key for these names: DNS names, wildcards or IP literals.
    ///
    /// It begins five minutes ago and ends after `lifetime` (at most [`MAX_LIFETIME`]) or with the authority,
    /// whichever is first.
    pub fn issue_server(&self, names: &[String], lifetime: Duration) -> Result<ServerIdentity, IssueError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(IssueError::Signing)?;
        self.issue_server_for(&key, names, lifetime, unix_now())
    }

    /// A client certificate with a fresh ECDSA P-256 key; lifetime as for servers.
    pub fn issue_client(&self, common_name: &str, lifetime: Duration) -> Result<ServerIdentity, IssueError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(IssueError::Signing)?;
        let now = unix_now();
        let mut params = base_params(common_name, self.clipped(lifetime, now)?, now)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params, &key)
    }

    pub(crate) fn issue_server_for(
        &self,
        key: &KeyPair,
        names: &[String],
        lifetime: Duration,
        now: i64,
    ) -> Result<ServerIdentity, IssueError> {
        let first = names.first().ok_or(IssueError::NoNames)?;
        // The subject is for people only; a name too long for it stands among the alternative names.
        let common_name = if first.chars().count() <= MAX_COMMON_NAME { first.as_str() } else { "sortie" };
        let alternatives = names.iter().map(|name| alternative_name(name)).collect::<Result<_, _>>()?;
        let mut params = base_params(common_name, self.clipped(lifetime, now)?, now)?;
        params.subject_alt_names = alternatives;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params, key)
    }

    fn sign(&self, mut params: CertificateParams, key: &KeyPair) -> Result<ServerIdentity, IssueError> {
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(key, &self.issuer).map_err(IssueError::Signing)?;
        Ok(ServerIdentity { cert_pem: certificate.pem(), key_pem: Secret::new(key.serialize_pem()) })
    }

    /// No certificate outlives its authority.
    fn clipped(&self, lifetime: Duration, now: i64) -> Result<Duration, IssueError> {
        let not_after = self.certificate.not_after_unix();
        match u64::try_from(not_after.saturating_sub(now)) {
            Ok(left) if left > 0 => Ok(lifetime.min(Duration::from_secs(left))),
            _ => Err(IssueError::AuthorityExpired(date(not_after))),
        }
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("certificate", &self.certificate).field("key", &self.key_pem).finish()
    }
}

/// A certificate with its private key, for one end of a connection.
#[derive(Debug)]
pub struct ServerIdentity {
    /// The certificate in PEM, without its authority's.
    pub cert_pem: String,
    /// The private key in PEM (PKCS#8).
    pub key_pem: Secret,
}

fn base_params(common_name: &str, lifetime: Duration, now: i64) -> Result<CertificateParams, IssueError> {
    let length = common_name.chars().count();
    if !(1..=MAX_COMMON_NAME).contains(&length) {
        return Err(IssueError::CommonName(length));
    }
    if lifetime.as_secs() == 0 || lifetime > MAX_LIFETIME {
        return Err(IssueError::Lifetime(lifetime));
    }
    let now = u64::try_from(now).unwrap_or(0);
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, common_name);
    let mut params = CertificateParams::default();
    params.distinguished_name = subject;
    params.not_before = epoch + Duration::from_secs(now.saturating_sub(BACKDATED));
    params.not_after = epoch + Duration::from_secs(now) + lifetime;
    params.serial_number = Some(serial()?);
    Ok(params)
}

/// A random serial number: 127 bits, positive and not zero (RFC 5280 section 4.1.2.2).
fn serial() -> Result<SerialNumber, IssueError> {
    let mut bytes = [0u8; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| IssueError::Signing(rcgen::Error::RingUnspecified))?;
    let [first, ..] = &mut bytes;
    *first = (*first & 0x7f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn alternative_name(name: &str) -> Result<SanType, IssueError> {
    if let Ok(address) = name.parse() {
        return Ok(SanType::IpAddress(address));
    }
    let wrong = || IssueError::Name(name.chars().take(80).collect());
    DnsName::try_from(name.strip_prefix("*.").unwrap_or(name)).map_err(|_| wrong())?;
    name.to_ascii_lowercase().try_into().map(SanType::DnsName).map_err(|_| wrong())
}
