//! CA certificates that a customer registers on a tunnel, and the rules that they must meet.
//!
//! Nothing here trusts the text: it comes from whoever holds a key for the tunnel's workspace.

use std::fmt;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey;
use x509_parser::signature_algorithm::SignatureAlgorithm;
use x509_parser::x509::{AlgorithmIdentifier, SubjectPublicKeyInfo};

/// Longest PEM text of a CA certificate, in bytes.
pub const MAX_CA_PEM: usize = 8192;

/// The rule that a CA certificate breaks.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CaError {
    /// Longer than [`MAX_CA_PEM`].
    #[error("the certificate is longer than 8192 bytes")]
    TooLong,
    /// Private keys must never leave the customer.
    #[error("the text contains a private key; send only the certificate, and treat that key as exposed")]
    PrivateKey,
    /// None, or several.
    #[error("the text must hold exactly one PEM block (BEGIN CERTIFICATE), but holds {0}")]
    NotOneBlock(usize),
    /// Some other kind of block, or damaged base64.
    #[error("the PEM block is not a certificate (BEGIN CERTIFICATE) in intact base64")]
    NotACertificateBlock,
    /// Not DER of an X.509 certificate.
    #[error("the certificate cannot be read: {0}")]
    Unreadable(String),
    /// BasicConstraints (RFC 5280 section 4.2.1.9) missing, not critical or not a CA.
    #[error("the certificate must have the extension BasicConstraints, marked critical, with CA:TRUE")]
    NotCa,
    /// SubjectKeyIdentifier (RFC 5280 section 4.2.1.2) missing.
    #[error("the certificate must have the extension SubjectKeyIdentifier")]
    NoSubjectKeyIdentifier,
    /// KeyUsage (RFC 5280 section 4.2.1.3) missing or without keyCertSign.
    #[error("the certificate must have the extension KeyUsage with keyCertSign")]
    NoCertSign,
    /// Its validity has not begun.
    #[error("the certificate is not valid before {0}")]
    NotYetValid(String),
    /// Its validity is over.
    #[error("the certificate expired on {0}; register a new one")]
    Expired(String),
    /// A key that is too weak, or of a kind that inner TLS does not take.
    #[error("the certificate's key must be RSA of 2048 to 8192 bits or ECDSA on P-256, P-384 or P-521, but is {0}")]
    WeakKey(String),
    /// Signed with less than SHA-256.
    #[error("the certificate must be signed with SHA-256 or better, by RSA or ECDSA")]
    WeakSignature,
    /// Readable, but not usable as a trust anchor.
    #[error("the certificate cannot serve as a trust anchor: {0}")]
    NotAnAnchor(String),
}

/// A CA certificate that meets every rule of registration. Cheap to clone.
#[derive(Clone)]
pub struct RegisteredCa(Arc<Anchor>);

struct Anchor {
    der: CertificateDer<'static>,
    roots: Arc<RootCertStore>,
    fingerprint: String,
    subject_key_id: Vec<u8>,
    not_before: i64,
    not_after: i64,
}

impl RegisteredCa {
    /// Checks what a customer sent: one PEM block of at most [`MAX_CA_PEM`] bytes, valid at `now_unix` (seconds).
    ///
    /// Errors name the first rule that is broken.
    pub fn parse(pem: &str, now_unix: i64) -> Result<Self, CaError> {
        let ca = Self::parse_any_time(pem)?;
        if now_unix < ca.0.not_before {
            return Err(CaError::NotYetValid(date(ca.0.not_before)));
        }
        if now_unix > ca.0.not_after {
            return Err(CaError::Expired(date(ca.0.not_after)));
        }
        Ok(ca)
    }

    /// Reads a certificate that was registered earlier and may have expired since; every other rule holds. The inner
    /// TLS verifier checks the validity anew at each handshake.
    pub fn parse_any_time(pem: &str) -> Result<Self, CaError> {
        let der = single_block(pem)?;
        let unreadable = |error: &dyn fmt::Display| CaError::Unreadable(error.to_string());
        let (rest, certificate) = X509Certificate::from_der(&der).map_err(|error| unreadable(&error))?;
        if !rest.is_empty() {
            return Err(CaError::Unreadable("bytes follow it".to_owned()));
        }
        // Fails on extensions that occur twice, before any single one is looked at.
        certificate.extensions_map().map_err(|error| unreadable(&error))?;

        let constraints = certificate.basic_constraints().map_err(|error| unreadable(&error))?;
        if !constraints.is_some_and(|found| found.critical && found.value.ca) {
            return Err(CaError::NotCa);
        }
        let subject_key_id = subject_key_id(&certificate).ok_or(CaError::NoSubjectKeyIdentifier)?.to_vec();
        let usage = certificate.key_usage().map_err(|error| unreadable(&error))?;
        if !usage.is_some_and(|found| found.value.key_cert_sign()) {
            return Err(CaError::NoCertSign);
        }
        check_key(certificate.public_key()).map_err(CaError::WeakKey)?;
        if !strong_signature(&certificate.signature_algorithm) {
            return Err(CaError::WeakSignature);
        }

        let not_before = certificate.validity().not_before.timestamp();
        let not_after = certificate.validity().not_after.timestamp();
        let fingerprint = hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &der));
        let mut roots = RootCertStore::empty();
        roots.add(der.clone()).map_err(|error| CaError::NotAnAnchor(error.to_string()))?;
        Ok(Self(Arc::new(Anchor { der, roots: Arc::new(roots), fingerprint, subject_key_id, not_before, not_after })))
    }

    /// SHA-256 over the DER, 64 lower-case hexadecimal digits.
    pub fn fingerprint(&self) -> &str {
        &self.0.fingerprint
    }

    /// The last second of its validity, since 1970.
    pub fn not_after_unix(&self) -> i64 {
        self.0.not_after
    }

    /// The first second of its validity, since 1970.
    pub fn not_before_unix(&self) -> i64 {
        self.0.not_before
    }

    /// The certificate itself.
    pub fn der(&self) -> CertificateDer<'static> {
        self.0.der.clone()
    }

    /// The key identifier that certificates signed by it must name.
    pub(crate) fn subject_key_id(&self) -> &[u8] {
        &self.0.subject_key_id
    }

    /// A store with this certificate alone.
    pub(crate) fn roots(&self) -> &RootCertStore {
        &self.0.roots
    }
}

impl fmt::Debug for RegisteredCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RegisteredCa({})", self.0.fingerprint)
    }
}

/// A time as people read it, such as `Nov 22 13:00:00 2026 +00:00`.
pub(crate) fn date(unix: i64) -> String {
    x509_parser::time::ASN1Time::from_timestamp(unix).map_or_else(|_| format!("second {unix}"), |time| time.to_string())
}

/// Whether a public key is strong enough for a CA or a server; the error says what it is.
pub(crate) fn check_key(key: &SubjectPublicKeyInfo<'_>) -> Result<(), String> {
    match key.parsed() {
        Ok(PublicKey::RSA(rsa)) => {
            let bits = bit_length(rsa.modulus);
            if (2048..=8192).contains(&bits) { Ok(()) } else { Err(format!("RSA of {bits} bits")) }
        }
        Ok(PublicKey::EC(_)) => {
            let curve = key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
            match curve.map(|oid| oid.to_id_string()).as_deref() {
                Some("1.2.840.10045.3.1.7" | "1.3.132.0.34" | "1.3.132.0.35") => Ok(()),
                Some(other) => Err(format!("ECDSA on the curve {other}")),
                None => Err("ECDSA on a curve without a name".to_owned()),
            }
        }
        _ => Err(format!("of the kind {}", key.algorithm.algorithm)),
    }
}

/// Whether a signature rests on SHA-256 or better (RSA with PKCS#1 or PSS, or ECDSA).
pub(crate) fn strong_signature(algorithm: &AlgorithmIdentifier<'_>) -> bool {
    match algorithm.algorithm.to_id_string().as_str() {
        // sha256, sha384 and sha512 WithRSAEncryption; ecdsa-with-SHA256, SHA384 and SHA512.
        "1.2.840.113549.1.1.11" | "1.2.840.113549.1.1.12" | "1.2.840.113549.1.1.13" => true,
        "1.2.840.10045.4.3.2" | "1.2.840.10045.4.3.3" | "1.2.840.10045.4.3.4" => true,
        _ => match SignatureAlgorithm::try_from(algorithm) {
            Ok(SignatureAlgorithm::RSASSA_PSS(parameters)) => {
                let hash = parameters.hash_algorithm_oid().to_id_string();
                // id-sha256, id-sha384, id-sha512
                matches!(hash.as_str(), "2.16.840.1.101.3.4.2.1" | "2.16.840.1.101.3.4.2.2" | "2.16.840.1.101.3.4.2.3")
            }
            _ => false,
        },
    }
}

/// The identifier of the key that a certificate says it was signed with (RFC 5280 section 4.2.1.1).
pub(crate) fn authority_key_id<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a [u8]> {
    certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(authority) => authority.key_identifier.as_ref().map(|id| id.0),
        _ => None,
    })
}

fn subject_key_id<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a [u8]> {
    certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) if !id.0.is_empty() => Some(id.0),
        _ => None,
    })
}

fn bit_length(number: &[u8]) -> usize {
    let significant = number.iter().position(|byte| *byte != 0).and_then(|first| number.get(first..)).unwrap_or(&[]);
    let unused = significant.first().map_or(0, |byte| byte.leading_zeros());
    (significant.len() * 8).saturating_sub(usize::try_from(unused).unwrap_or(0))
}

fn single_block(pem: &str) -> Result<CertificateDer<'static>, CaError> {
    // First of all, whatever else is wrong: the customer must learn that the key was exposed.
    if pem.contains("PRIVATE KEY") {
        return Err(CaError::PrivateKey);
    }
    if pem.len() > MAX_CA_PEM {
        return Err(CaError::TooLong);
    }
    match pem.matches("-----BEGIN ").count() {
        1 => CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| CaError::NotACertificateBlock),
        blocks => Err(CaError::NotOneBlock(blocks)),
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CustomExtension, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
        SignatureAlgorithm,
    };
    use rustls_pki_types::pem::PemObject as _;

    use super::*;
    use crate::fixtures::{authority, ca_params, key, within};
    use crate::unix_now;

    fn parse(pem: &str) -> Result<RegisteredCa, CaError> {
        RegisteredCa::parse(pem, unix_now())
    }

    fn signed(params: &CertificateParams) -> String {
        params.self_signed(&key()).expect("certificate").pem()
    }

    fn broken(params: &CertificateParams) -> CaError {
        parse(&signed(params)).expect_err("a rule is broken")
    }

    /// A CA certificate some of whose bytes are replaced; its signature no longer holds, which registration does not
    /// ask for.
    fn patched(pem: &str, from: &[u8], to: &[u8]) -> String {
        let mut der = CertificateDer::from_pem_slice(pem.as_bytes()).expect("der").to_vec();
        let found: Vec<_> =
            der.windows(from.len()).enumerate().filter(|(_, part)| part == &from).map(|(at, _)| at).collect();
        assert!(!found.is_empty(), "the bytes to replace are there");
        for at in found {
            der[at..at + to.len()].copy_from_slice(to);
        }
        armoured(&der)
    }

    fn armoured(der: &[u8]) -> String {
        // rcgen encodes PEM for certificates that it reads; here the bytes are arbitrary, so base64 is made by hand.
        const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
        for (line, chunk) in der.chunks(3).enumerate() {
            let bits = chunk.iter().fold(0u32, |bits, byte| (bits << 8) | u32::from(*byte)) << (8 * (3 - chunk.len()));
            for place in 0..4 {
                let index = usize::try_from((bits >> (18 - 6 * place)) & 63).expect("six bits");
                text.push(if place <= chunk.len() { char::from(ALPHABET[index]) } else { '=' });
            }
            if line % 16 == 15 {
                text.push('\n');
            }
        }
        text + "\n-----END CERTIFICATE-----\n"
    }

    #[test]
    fn a_good_certificate_is_taken_with_text_around_it() {
        let ca = authority();
        let text = format!("Subject: CN = Test CA\n{}\n", ca.cert_pem());
        let parsed = parse(&text).expect("good");
        assert_eq!(parsed.der(), ca.certificate().der());
        assert_eq!(parsed.fingerprint().len(), 64);
        assert!(parsed.not_after_unix() > unix_now() + 29 * 86_400);
        assert_eq!(format!("{parsed:?}"), format!("RegisteredCa({})", parsed.fingerprint()));
    }

    #[test]
    fn keys_of_every_allowed_kind_are_taken() {
        for algorithm in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ECDSA_P521_SHA512, &rcgen::PKCS_RSA_SHA256] {
            let key = KeyPair::generate_for(algorithm).expect("key");
            let pem = ca_params().self_signed(&key).expect("certificate").pem();
            assert!(parse(&pem).is_ok(), "{algorithm:?}");
        }
    }

    #[test]
    fn the_text_must_be_one_short_certificate_and_no_key() {
        let good = signed(&ca_params());
        assert_eq!(parse("").expect_err("empty"), CaError::NotOneBlock(0));
        assert_eq!(parse(&format!("{good}{good}")).expect_err("two"), CaError::NotOneBlock(2));
        assert_eq!(parse(&format!("{good}{}", key().serialize_pem())).expect_err("key"), CaError::PrivateKey);
        assert_eq!(parse(&key().serialize_pem()).expect_err("key"), CaError::PrivateKey);
        assert_eq!(parse(&format!("{}{good}", "#".repeat(MAX_CA_PEM))).expect_err("long"), CaError::TooLong);
        assert_eq!(parse(&good.replace("CERTIFICATE", "X509 CRL")).expect_err("crl"), CaError::NotACertificateBlock);
        assert_eq!(parse(&good.replace("MII", "M!!")).expect_err("base64"), CaError::NotACertificateBlock);
    }

    #[test]
    fn damaged_certificates_are_refused_or_read_but_never_panic() {
        let der = CertificateDer::from_pem_slice(signed(&ca_params()).as_bytes()).expect("der").to_vec();
        let mut longer = der.clone();
        longer.push(0);
        assert_eq!(parse(&armoured(&longer)).expect_err("longer"), CaError::Unreadable("bytes follow it".to_owned()));
        for at in 0..der.len() {
            assert!(parse(&armoured(&der[..at])).is_err(), "cut at {at}");
            for value in [0, 1, 0x30, 0x7f, 0x80, 0xff] {
                let mut damaged = der.clone();
                damaged[at] = value;
                let _ = parse(&armoured(&damaged));
            }
        }
    }

    #[test]
    fn basic_constraints_must_be_there_critical_and_true() {
        let mut params = ca_params();
        params.is_ca = IsCa::NoCa;
        assert_eq!(broken(&params), CaError::NotCa);
        params.is_ca = IsCa::ExplicitNoCa;
        assert_eq!(broken(&params), CaError::NotCa);
        params.is_ca = IsCa::NoCa;
        params.custom_extensions = vec![basic_constraints(false)];
        assert_eq!(broken(&params), CaError::NotCa);
    }

    #[test]
    fn a_subject_key_identifier_is_required_once() {
        let mut params = ca_params();
        params.is_ca = IsCa::NoCa;
        params.custom_extensions = vec![basic_constraints(true)];
        assert_eq!(broken(&params), CaError::NoSubjectKeyIdentifier);

        let mut params = ca_params();
        params.custom_extensions = vec![CustomExtension::from_oid_content(&[2, 5, 29, 14], vec![4, 2, 1, 2])];
        assert!(matches!(broken(&params), CaError::Unreadable(_)));
    }

    #[test]
    fn it_must_be_allowed_to_sign_certificates() {
        let mut params = ca_params();
        params.key_usages = vec![];
        assert_eq!(broken(&params), CaError::NoCertSign);
        params.key_usages = vec![KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        assert_eq!(broken(&params), CaError::NoCertSign);
    }

    #[test]
    fn it_must_be_inside_its_validity_when_registered() {
        let mut params = ca_params();
        within(&mut params, -7200, -3600);
        assert!(matches!(broken(&params), CaError::Expired(_)));
        assert!(RegisteredCa::parse_any_time(&signed(&params)).is_ok());
        within(&mut params, 3600, 7200);
        assert!(matches!(broken(&params), CaError::NotYetValid(_)));
    }

    #[test]
    fn weak_keys_are_refused() {
        let small = RsaOf1024Bits::new();
        let issuer = Issuer::new(ca_params(), key());
        let pem = ca_params().signed_by(&small, &issuer).expect("certificate").pem();
        assert_eq!(parse(&pem).expect_err("small"), CaError::WeakKey("RSA of 1024 bits".to_owned()));

        let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("key");
        let pem = ca_params().signed_by(&ed25519, &issuer).expect("certificate").pem();
        assert!(matches!(parse(&pem).expect_err("ed25519"), CaError::WeakKey(_)));

        let p256 = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
        let p192 = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x01];
        let pem = patched(&signed(&ca_params()), &p256, &p192);
        assert!(matches!(parse(&pem).expect_err("P-192"), CaError::WeakKey(_)));
    }

    #[test]
    fn weak_signatures_are_refused() {
        let sha256 = [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
        let sha224 = [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x01];
        let pem = patched(&signed(&ca_params()), &sha256, &sha224);
        assert_eq!(parse(&pem).expect_err("SHA-224"), CaError::WeakSignature);

        let rsa = KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).expect("key");
        let pem = ca_params().self_signed(&rsa).expect("certificate").pem();
        let sha256 = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b];
        let sha1 = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x05];
        assert_eq!(parse(&patched(&pem, &sha256, &sha1)).expect_err("SHA-1"), CaError::WeakSignature);
    }

    #[test]
    fn an_unconstrained_and_a_constrained_ca_are_both_fine() {
        let mut params = ca_params();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(3));
        assert!(parse(&signed(&params)).is_ok());
    }

    fn basic_constraints(critical: bool) -> CustomExtension {
        let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, 19], vec![0x30, 3, 1, 1, 0xff]);
        extension.set_criticality(critical);
        extension
    }

    /// A public key that no sane library generates any more.
    struct RsaOf1024Bits(Vec<u8>);

    impl RsaOf1024Bits {
        fn new() -> Self {
            let mut der = vec![0x30, 0x81, 0x89, 0x02, 0x81, 0x81, 0x00];
            der.extend([0xc5; 128]);
            der.extend([0x02, 0x03, 0x01, 0x00, 0x01]);
            Self(der)
        }
    }

    impl PublicKeyData for RsaOf1024Bits {
        fn der_bytes(&self) -> &[u8] {
            &self.0
        }

        fn algorithm(&self) -> &'static SignatureAlgorithm {
            &rcgen::PKCS_RSA_SHA256
        }
    }
}
