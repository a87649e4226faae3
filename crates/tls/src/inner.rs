//! Inner TLS at the hub: the gateway's certificate counts only if a CA registered on the tunnel signed it directly.

use std::io;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, OtherError, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

use crate::provider;
use crate::registered::{RegisteredCa, authority_key_id, check_key, date, strong_signature};

/// The hub's side of inner TLS: version 1.3 only, trusting exactly these CAs; with none, every handshake is refused.
///
/// A gateway's certificate must be signed directly by one of them (intermediates that it presents are ignored), name
/// that CA's key in AuthorityKeyIdentifier, cover the host by a DNS name, be inside its validity as must be the CA,
/// allow serverAuth where it restricts its use, and have a key and signature as strong as a CA's. Sessions are never
/// resumed, so that all of this is checked at each handshake. `alpn` is what to offer, most wanted first.
pub fn inner_client_config(cas: &[RegisteredCa], alpn: &[&[u8]]) -> Arc<ClientConfig> {
    let verifier = DirectlySigned { cas: cas.to_vec(), provider: provider() };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has cipher suites for TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Arc::new(config)
}

/// Whether a certificate covers this DNS name, too, by itself or by a wildcard. Says nothing about trust.
pub fn covers(leaf: &CertificateDer<'_>, host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    match (ParsedCertificate::try_from(leaf), ServerName::try_from(host)) {
        (Ok(leaf), Ok(name @ ServerName::DnsName(_))) => verify_server_name(&leaf, &name).is_ok(),
        _ => false,
    }
}

/// The fingerprint of the registered CA that signed this certificate directly, whether or not it is valid now.
pub fn issuer_fingerprint(leaf: &CertificateDer<'_>, cas: &[RegisteredCa]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
    let begins = u64::try_from(certificate.validity().not_before.timestamp()).ok()?;
    let begins = UnixTime::since_unix_epoch(std::time::Duration::from_secs(begins));
    let parsed = ParsedCertificate::try_from(leaf).ok()?;
    let issuer = signer(&parsed, cas, begins, &provider()).ok()?;
    (authority_key_id(&certificate) == Some(issuer.subject_key_id())).then(|| issuer.fingerprint().to_owned())
}

/// What went wrong with a handshake, in one clear sentence for an operator or a caller.
pub fn explain(error: &rustls::Error) -> String {
    use rustls::Error;
    match error {
        Error::InvalidCertificate(reason) => explain_certificate(reason),
        Error::AlertReceived(alert) => format!("the peer refused the connection: {}", explain_alert(*alert)),
        Error::NoCertificatesPresented => "the peer presented no certificate".to_owned(),
        Error::PeerIncompatible(reason) => {
            format!("the peer speaks no TLS version or cipher that is accepted here ({reason:?})")
        }
        Error::NoApplicationProtocol => "the peer speaks none of the protocols that were offered (ALPN)".to_owned(),
        Error::InvalidMessage(_) | Error::InappropriateMessage { .. } => {
            "the peer does not speak TLS, or something changed its bytes on the way".to_owned()
        }
        Error::DecryptError => "the peer's bytes were changed on the way".to_owned(),
        other => format!("the TLS handshake failed: {}", printable(&other.to_string())),
    }
}

/// Like [`explain`] for the error that a TLS stream gave.
pub fn explain_io(error: &io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(tls) => explain(tls),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            "the peer closed the connection in the middle of TLS".to_owned()
        }
        None => format!("the connection failed: {error}"),
    }
}

/// A rule of ours that a certificate breaks, beyond those of the TLS library.
#[derive(Debug, thiserror::Error)]
enum BrokenRule {
    #[error("bad certificate: it must have the extension AuthorityKeyIdentifier")]
    NoAuthorityKeyId,
    #[error("bad certificate: its AuthorityKeyIdentifier is not the SubjectKeyIdentifier of the CA that signed it")]
    OtherAuthorityKeyId,
    #[error("bad certificate: the CA that signed it is valid from {from} to {to} only; register a new one")]
    CaNotValid { from: String, to: String },
    #[error("bad certificate: its key must be RSA of 2048 to 8192 bits or ECDSA on a NIST curve, but is {0}")]
    WeakKey(String),
    #[error("bad certificate: it must be signed with SHA-256 or better, by RSA or ECDSA")]
    WeakSignature,
    #[error("bad certificate: inner TLS is for DNS names, not for IP addresses")]
    NotDns,
}

impl From<BrokenRule> for rustls::Error {
    fn from(rule: BrokenRule) -> Self {
        CertificateError::Other(OtherError(Arc::new(rule))).into()
    }
}

#[derive(Debug)]
struct DirectlySigned {
    cas: Vec<RegisteredCa>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for DirectlySigned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if !matches!(server_name, ServerName::DnsName(_)) {
            return Err(BrokenRule::NotDns.into());
        }
        let leaf = ParsedCertificate::try_from(end_entity)?;
        let issuer = signer(&leaf, &self.cas, now, &self.provider)?;

        let (_, certificate) =
            X509Certificate::from_der(end_entity).map_err(|_| rustls::Error::from(CertificateError::BadEncoding))?;
        match authority_key_id(&certificate) {
            None => return Err(BrokenRule::NoAuthorityKeyId.into()),
            Some(id) if id != issuer.subject_key_id() => return Err(BrokenRule::OtherAuthorityKeyId.into()),
            Some(_) => {}
        }
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let (from, to) = (issuer.not_before_unix(), issuer.not_after_unix());
        if now < from || now > to {
            return Err(BrokenRule::CaNotValid { from: date(from), to: date(to) }.into());
        }
        check_key(certificate.public_key()).map_err(BrokenRule::WeakKey)?;
        if !strong_signature(&certificate.signature_algorithm) {
            return Err(BrokenRule::WeakSignature.into());
        }
        verify_server_name(&leaf, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The CA that signed a certificate without anything in between. Two registered CAs may share a name, so each is
/// tried alone.
fn signer<'a>(
    leaf: &ParsedCertificate<'_>,
    cas: &'a [RegisteredCa],
    now: UnixTime,
    provider: &CryptoProvider,
) -> Result<&'a RegisteredCa, rustls::Error> {
    let mut failure = CertificateError::UnknownIssuer;
    for ca in cas {
        let algorithms = provider.signature_verification_algorithms.all;
        match verify_server_cert_signed_by_trust_anchor(leaf, ca.roots(), &[], now, algorithms) {
            Ok(()) => return Ok(ca),
            // A CA of the same name but with another key is simply not the one.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::UnknownIssuer | CertificateError::BadSignature,
            )) => {}
            Err(rustls::Error::InvalidCertificate(reason)) => failure = reason,
            Err(other) => return Err(other),
        }
    }
    Err(failure.into())
}

fn explain_certificate(reason: &CertificateError) -> String {
    match reason {
        CertificateError::UnknownIssuer => {
            "unknown certificate authority: no CA that is registered or trusted here signed the certificate".to_owned()
        }
        CertificateError::Expired => "certificate expired; issue a new one".to_owned(),
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("certificate expired on {}; issue a new one", unix_date(*not_after))
        }
        CertificateError::NotValidYet => "the certificate is not valid yet; check the clocks".to_owned(),
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!("the certificate is not valid before {}; check the clocks", unix_date(*not_before))
        }
        CertificateError::NotValidForName => "bad certificate: it does not cover the host's name".to_owned(),
        CertificateError::NotValidForNameContext { expected, presented } => {
            let names: Vec<_> = presented.iter().take(4).map(String::as_str).collect();
            let names = if names.is_empty() { "no name".to_owned() } else { printable(&names.join(", ")) };
            format!("bad certificate: it does not cover `{}`, but {names}", expected.to_str())
        }
        CertificateError::BadEncoding => "bad certificate: it cannot be read".to_owned(),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "bad certificate: its ExtendedKeyUsage does not allow this use (a server's must include serverAuth)"
                .to_owned()
        }
        CertificateError::Other(OtherError(inner)) => printable(&inner.to_string()),
        other => format!("bad certificate: {}", printable(&other.to_string())),
    }
}

fn explain_alert(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::UnknownCA => {
            "unknown certificate authority (the CA of our certificate is not registered or trusted there)".to_owned()
        }
        AlertDescription::BadCertificate => "bad certificate (its names or its form)".to_owned(),
        AlertDescription::CertificateExpired => "certificate expired".to_owned(),
        AlertDescription::CertificateUnknown => "the certificate breaks a rule of the peer".to_owned(),
        AlertDescription::UnsupportedCertificate => "the certificate is not allowed for this use".to_owned(),
        AlertDescription::CertificateRequired => "it requires a client certificate".to_owned(),
        AlertDescription::UnrecognisedName => "it does not know the host's name".to_owned(),
        AlertDescription::NoApplicationProtocol => "it speaks none of the offered protocols (ALPN)".to_owned(),
        AlertDescription::ProtocolVersion => "it does not speak this version of TLS".to_owned(),
        other => format!("alert {other:?}"),
    }
}

fn unix_date(time: UnixTime) -> String {
    date(i64::try_from(time.as_secs()).unwrap_or(i64::MAX))
}

/// Text that may hold a peer's words: one line, no control characters, at most 300 characters.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect()
}
