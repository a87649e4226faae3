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
        // A CA that was made anew under its old name shows up here.
        CertificateError::BadSignature => "unknown certificate authority: the trusted CA has the right name, but \
                                           another key signed; trust the current CA certificate"
            .to_owned(),
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{BasicConstraints, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair};
    use rustls::HandshakeKind;
    use rustls_pki_types::pem::PemObject as _;

    use super::*;
    use crate::fixtures::*;
    use crate::{Authority, ReloadingIdentity, ServerIdentity, unix_now};

    fn der(pem: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(pem.as_bytes()).expect("certificate")
    }

    fn registered(pem: &str) -> RegisteredCa {
        RegisteredCa::parse_any_time(pem).expect("registered")
    }

    fn trusting(authority: &Authority) -> Arc<ClientConfig> {
        inner_client_config(&[authority.certificate().clone()], &[])
    }

    fn gateway(authority: &Authority) -> ServerIdentity {
        authority
            .issue_server(&names(&["*.abcd1234.sortie.localhost", "abcd1234.sortie.localhost"]), DAY)
            .expect("certificate")
    }

    /// A CA for tests that sign what our own would refuse to: its certificate and what signs with it.
    fn raw_ca(change: impl FnOnce(&mut rcgen::CertificateParams)) -> (RegisteredCa, Issuer<'static, KeyPair>) {
        let mut params = ca_params();
        change(&mut params);
        let key = key();
        let pem = params.self_signed(&key).expect("CA").pem();
        (registered(&pem), Issuer::new(params, key))
    }

    async fn refused(cas: &[RegisteredCa], identity: &ServerIdentity) -> String {
        refusal(inner_client_config(cas, &[]), serve(identity, &[]), HOST).await
    }

    #[tokio::test]
    async fn the_registered_ca_is_accepted_with_a_post_quantum_key_exchange_and_never_resumed() {
        let ca = authority();
        let (client, server) = (inner_client_config(&[ca.certificate().clone()], &[b"h2", b"http/1.1"]), gateway(&ca));
        let server = serve(&server, &[b"http/1.1"]);
        for _ in 0..2 {
            let stream = handshake(Arc::clone(&client), Arc::clone(&server), HOST).await.expect("handshake");
            let (_, connection) = stream.get_ref();
            assert_eq!(connection.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
            assert_eq!(connection.alpn_protocol(), Some(b"http/1.1".as_slice()));
            let group = connection.negotiated_key_exchange_group().expect("group").name();
            assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
            assert_eq!(connection.handshake_kind(), Some(HandshakeKind::Full));
        }
    }

    #[tokio::test]
    async fn another_ca_and_no_ca_are_refused() {
        let (ca, other) = (authority(), authority());
        let said = refusal(trusting(&other), serve(&gateway(&ca), &[]), HOST).await;
        assert!(said.starts_with("unknown certificate authority"), "{said}");
        let said = refused(&[], &gateway(&ca)).await;
        assert!(said.starts_with("unknown certificate authority"), "{said}");
    }

    #[tokio::test]
    async fn during_a_rotation_either_ca_is_accepted_although_their_names_are_equal() {
        let (old, new) = (authority(), authority());
        let cas = [old.certificate().clone(), new.certificate().clone()];
        for ca in [&old, &new] {
            let identity = gateway(ca);
            handshake(inner_client_config(&cas, &[]), serve(&identity, &[]), HOST).await.expect("handshake");
            let issuer = issuer_fingerprint(&der(&identity.cert_pem), &cas);
            assert_eq!(issuer.as_deref(), Some(ca.certificate().fingerprint()));
        }
        assert_eq!(issuer_fingerprint(&der(&gateway(&authority()).cert_pem), &cas), None);
    }

    #[tokio::test]
    async fn a_chain_through_an_intermediate_is_refused_even_when_presented() {
        let (root, root_issuer) = raw_ca(|params| params.distinguished_name.push(rcgen::DnType::CommonName, "root"));
        let mut params = ca_params();
        params.distinguished_name.push(rcgen::DnType::CommonName, "intermediate");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.use_authority_key_identifier_extension = true;
        let key = key();
        let intermediate_pem = params.signed_by(&key, &root_issuer).expect("intermediate").pem();
        let mut identity = leaf(&leaf_params(), &Issuer::new(params, key));
        identity.cert_pem.push_str(&intermediate_pem);

        let said = refused(&[root], &identity).await;
        assert!(said.starts_with("unknown certificate authority"), "{said}");
        // The same intermediate, once registered itself, is a direct signer.
        let client = inner_client_config(&[registered(&intermediate_pem)], &[]);
        handshake(client, serve(&identity, &[]), HOST).await.expect("handshake");
    }

    #[tokio::test]
    async fn validity_is_checked_for_the_certificate_and_for_the_ca() {
        let (ca, issuer) = raw_ca(|_| {});
        let mut params = leaf_params();
        within(&mut params, -7200, -3600);
        let said = refused(std::slice::from_ref(&ca), &leaf(&params, &issuer)).await;
        assert!(said.starts_with("certificate expired on "), "{said}");
        within(&mut params, 3600, 7200);
        let said = refused(std::slice::from_ref(&ca), &leaf(&params, &issuer)).await;
        assert!(said.starts_with("the certificate is not valid before "), "{said}");

        let (ca, issuer) = raw_ca(|params| within(params, -7200, -3600));
        let said = refused(&[ca], &leaf(&leaf_params(), &issuer)).await;
        assert!(said.contains("the CA that signed it is valid from"), "{said}");
    }

    #[tokio::test]
    async fn the_name_must_be_covered() {
        let ca = authority();
        let server = serve(&gateway(&ca), &[]);
        for host in ["files.other123.sortie.localhost", "a.files.abcd1234.sortie.localhost"] {
            let said = refusal(trusting(&ca), Arc::clone(&server), host).await;
            assert!(said.starts_with(&format!("bad certificate: it does not cover `{host}`")), "{said}");
        }
        let said = refusal(trusting(&ca), server, "127.0.0.1").await;
        assert!(said.contains("not for IP addresses"), "{said}");

        let leaf = der(&gateway(&ca).cert_pem);
        assert!(covers(&leaf, HOST) && covers(&leaf, "Files.ABCD1234.sortie.localhost."));
        assert!(!covers(&leaf, "files.other123.sortie.localhost") && !covers(&leaf, "127.0.0.1") && !covers(&leaf, ""));
        assert!(!covers(&CertificateDer::from(vec![0x30, 0]), HOST));
    }

    #[tokio::test]
    async fn the_authority_key_identifier_must_be_that_of_the_ca() {
        let (ca, issuer) = raw_ca(|_| {});
        let mut params = leaf_params();
        params.use_authority_key_identifier_extension = false;
        let said = refused(std::slice::from_ref(&ca), &leaf(&params, &issuer)).await;
        assert!(said.contains("must have the extension AuthorityKeyIdentifier"), "{said}");

        // The same key and name, but another identifier for them.
        let key = KeyPair::from_pem(&issuer.key().serialize_pem()).expect("key");
        let mut other = ca_params();
        other.key_identifier_method = KeyIdMethod::PreSpecified(vec![1; 20]);
        let identity = leaf(&leaf_params(), &Issuer::new(other, key));
        let said = refused(std::slice::from_ref(&ca), &identity).await;
        assert!(said.contains("is not the SubjectKeyIdentifier of the CA"), "{said}");
        assert_eq!(issuer_fingerprint(&der(&identity.cert_pem), &[ca]), None);
    }

    #[tokio::test]
    async fn a_restricted_use_must_include_servers() {
        let (ca, issuer) = raw_ca(|_| {});
        let mut params = leaf_params();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let said = refused(std::slice::from_ref(&ca), &leaf(&params, &issuer)).await;
        assert!(said.contains("ExtendedKeyUsage"), "{said}");
        params.extended_key_usages.clear();
        let server = serve(&leaf(&params, &issuer), &[]);
        handshake(inner_client_config(&[ca], &[]), server, HOST).await.expect("no restriction");
    }

    #[tokio::test]
    async fn a_key_outside_the_rules_is_refused() {
        let (ca, issuer) = raw_ca(|_| {});
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("key");
        let cert_pem = leaf_params().signed_by(&key, &issuer).expect("leaf").pem();
        let identity = ServerIdentity { cert_pem, key_pem: crate::Secret::new(key.serialize_pem()) };
        let said = refused(&[ca], &identity).await;
        assert!(said.contains("its key must be RSA"), "{said}");
    }

    #[tokio::test]
    async fn a_certificate_of_a_name_is_not_its_own_authority() {
        let key = key();
        let cert_pem = leaf_params().self_signed(&key).expect("self-signed").pem();
        let identity = ServerIdentity { cert_pem, key_pem: crate::Secret::new(key.serialize_pem()) };
        let said = refused(&[authority().certificate().clone()], &identity).await;
        assert!(said.starts_with("unknown certificate authority"), "{said}");
    }

    #[tokio::test]
    async fn tls_1_2_is_refused() {
        let ca = authority();
        let identity = gateway(&ca);
        let identity = ReloadingIdentity::from_pem(&identity.cert_pem, identity.key_pem.expose()).expect("identity");
        let server = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS12])
            .expect("version")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(identity));
        let said = refusal(trusting(&ca), Arc::new(server), HOST).await;
        assert!(said.contains("version"), "{said}");
    }

    #[test]
    fn what_a_peer_says_is_made_harmless() {
        let presented = vec!["a\u{1b}[31m\nb".to_owned(), "x".repeat(1000)];
        let expected = ServerName::try_from(HOST).expect("name");
        let reason = CertificateError::NotValidForNameContext { expected, presented };
        let said = explain(&rustls::Error::InvalidCertificate(reason));
        assert!(!said.chars().any(char::is_control) && said.len() < 500, "{said}");
    }

    #[test]
    fn an_issued_certificate_ends_with_its_authority_at_the_latest() {
        let ca = Authority::generate_at("Test CA", Duration::from_secs(3600), unix_now()).expect("authority");
        let identity = gateway(&ca);
        let identity = ReloadingIdentity::from_pem(&identity.cert_pem, identity.key_pem.expose()).expect("identity");
        assert_eq!(identity.not_after_unix(), ca.certificate().not_after_unix());
    }
}
