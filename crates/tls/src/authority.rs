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
    Certificate(CaError),
    /// The CA key cannot be read.
    #[error("the CA key is not a private key in PEM that can be read: {0}")]
    Key(String),
    /// Certificate and key do not belong together.
    #[error("the CA certificate and the CA key do not belong together")]
    Mismatch,
    /// The cryptography failed.
    #[error("making the certificate failed: {0}")]
    Signing(String),
}

impl IssueError {
    pub(crate) fn signing(error: rcgen::Error) -> Self {
        Self::Signing(error.to_string())
    }

    pub(crate) fn no_randomness() -> Self {
        Self::Signing("the operating system gives no random bytes".to_owned())
    }
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
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(IssueError::signing)?;
        let mut params = base_params(common_name, lifetime, now)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let cert_pem = params.self_signed(&key).map_err(IssueError::signing)?.pem();
        let key_pem = Secret::new(key.serialize_pem());
        let certificate = RegisteredCa::parse_any_time(&cert_pem).map_err(IssueError::Certificate)?;
        Ok(Self { issuer: Issuer::new(params, key), certificate, cert_pem, key_pem })
    }

    /// Reads an authority back. The certificate must meet the rules of [`RegisteredCa`], be valid now, and belong to
    /// the key (PKCS#8, SEC1 or PKCS#1 in PEM).
    pub fn from_pem(cert: &str, key: &str) -> Result<Self, IssueError> {
        let certificate = RegisteredCa::parse(cert, unix_now()).map_err(IssueError::Certificate)?;
        let pair = KeyPair::from_pem(key).map_err(|error| IssueError::Key(error.to_string()))?;
        let der = certificate.der();
        let (_, parsed) = X509Certificate::from_der(&der)
            .map_err(|error| IssueError::Certificate(CaError::Unreadable(error.to_string())))?;
        if parsed.public_key().raw != pair.subject_public_key_info() {
            return Err(IssueError::Mismatch);
        }
        let issuer = Issuer::from_ca_cert_der(&der, pair).map_err(IssueError::signing)?;
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
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(IssueError::signing)?;
        self.issue_server_for(&key, names, lifetime, unix_now())
    }

    /// A client certificate with a fresh ECDSA P-256 key; lifetime as for servers.
    pub fn issue_client(&self, common_name: &str, lifetime: Duration) -> Result<ServerIdentity, IssueError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(IssueError::signing)?;
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
        let certificate = params.signed_by(key, &self.issuer).map_err(IssueError::signing)?;
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
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| IssueError::no_randomness())?;
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

#[cfg(test)]
mod tests {
    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject as _;

    use super::*;
    use crate::fixtures::{DAY, HOST, authority, ca_params, key, names};
    use crate::{covers, issuer_fingerprint};

    #[test]
    fn an_authority_reads_back_and_issues_what_its_certificate_vouches_for() {
        let made = authority();
        let ca = Authority::from_pem(made.cert_pem(), made.key_pem().expose()).expect("read back");
        let identity = ca.issue_server(&names(&["*.example.test", "Example.TEST", "::1"]), DAY).expect("certificate");
        let leaf = CertificateDer::from_pem_slice(identity.cert_pem.as_bytes()).expect("leaf");
        assert!(covers(&leaf, "a.example.test") && covers(&leaf, "example.test"));
        let issuer = issuer_fingerprint(&leaf, &[made.certificate().clone()]);
        assert_eq!(issuer.as_deref(), Some(made.certificate().fingerprint()));
    }

    #[test]
    fn foreign_keys_of_other_kinds_serve_too() {
        for algorithm in [&rcgen::PKCS_RSA_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384] {
            let key = KeyPair::generate_for(algorithm).expect("key");
            let pem = ca_params().self_signed(&key).expect("certificate").pem();
            let ca = Authority::from_pem(&pem, &key.serialize_pem()).expect("authority");
            let identity = ca.issue_server(&names(&[HOST]), DAY).expect("certificate");
            let leaf = CertificateDer::from_pem_slice(identity.cert_pem.as_bytes()).expect("leaf");
            assert!(issuer_fingerprint(&leaf, &[ca.certificate().clone()]).is_some());
        }
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let (one, two) = (authority(), authority());
        let mixed = Authority::from_pem(one.cert_pem(), two.key_pem().expose());
        assert!(matches!(mixed, Err(IssueError::Mismatch)));
        assert!(matches!(Authority::from_pem(one.cert_pem(), "no key"), Err(IssueError::Key(_))));
        let leaf = one.issue_server(&names(&[HOST]), DAY).expect("certificate");
        let not_ca = Authority::from_pem(&leaf.cert_pem, leaf.key_pem.expose());
        assert!(matches!(not_ca, Err(IssueError::Certificate(CaError::NotCa))));
    }

    #[test]
    fn an_expired_authority_issues_nothing() {
        let ca = Authority::generate_at("Test CA", DAY, unix_now() - 10 * 86_400).expect("authority");
        assert!(matches!(ca.issue_server(&names(&[HOST]), DAY), Err(IssueError::AuthorityExpired(_))));
        let read = Authority::from_pem(ca.cert_pem(), ca.key_pem().expose());
        assert!(matches!(read, Err(IssueError::Certificate(CaError::Expired(_)))));
    }

    #[test]
    fn names_and_lifetimes_outside_the_bounds_are_refused() {
        let ca = authority();
        for bad in ["", "*.", "a b", "exa\u{e9}mple.test", "*.*.example.test", "http://example.test", "a..b"] {
            let refused = ca.issue_server(&names(&[bad]), DAY);
            assert!(matches!(refused, Err(IssueError::Name(_))), "{bad:?}: {refused:?}");
        }
        assert!(matches!(ca.issue_server(&[], DAY), Err(IssueError::NoNames)));
        assert!(matches!(ca.issue_server(&names(&[HOST]), Duration::ZERO), Err(IssueError::Lifetime(_))));
        assert!(ca.issue_server(&names(&[HOST]), Duration::MAX).is_ok(), "it ends with the authority");
        assert!(matches!(Authority::generate("", 1), Err(IssueError::CommonName(0))));
        assert!(matches!(Authority::generate(&"x".repeat(65), 1), Err(IssueError::CommonName(65))));
        assert!(matches!(Authority::generate("Test CA", 0), Err(IssueError::Lifetime(_))));
        assert!(matches!(Authority::generate("Test CA", u32::MAX), Err(IssueError::Lifetime(_))));
        let long = format!("{}.{}.example.test", "a".repeat(60), "b".repeat(60));
        assert!(ca.issue_server(&[long], DAY).is_ok(), "a name longer than a common name may be");
    }

    #[test]
    fn serial_numbers_differ_although_the_key_is_one() {
        let (ca, key) = (authority(), key());
        let issue = || ca.issue_server_for(&key, &names(&[HOST]), DAY, unix_now()).expect("certificate").cert_pem;
        let serial = |pem: String| {
            let der = CertificateDer::from_pem_slice(pem.as_bytes()).expect("leaf");
            let (_, leaf) = X509Certificate::from_der(&der).expect("leaf");
            leaf.raw_serial().to_vec()
        };
        assert_ne!(serial(issue()), serial(issue()));
    }
}
