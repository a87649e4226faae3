//! The side that is dialled, with certificates from files that may change while it runs.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, SignatureScheme, SupportedProtocolVersion};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;
use zeroize::Zeroizing;

use crate::client::client_verifier;
use crate::registered::date;
use crate::{ServerIdentity, provider, unix_now};

/// Largest certificate or key file that is read, in bytes.
const MAX_FILE: u64 = 256 * 1024;

/// The versions of TLS that a side accepts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Versions {
    /// 1.3 only: everything of ours.
    #[default]
    Tls13,
    /// 1.2 as well, for clients and load balancers that we do not control.
    Legacy,
}

impl Versions {
    pub(crate) fn list(self) -> &'static [&'static SupportedProtocolVersion] {
        static TLS13: [&SupportedProtocolVersion; 1] = [&rustls::version::TLS13];
        static LEGACY: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];
        match self {
            Versions::Tls13 => &TLS13,
            Versions::Legacy => &LEGACY,
        }
    }
}

/// Why a configuration could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A trusted certificate that cannot be read or used.
    #[error("trusted certificate number {number} cannot be used: {reason}")]
    Root {
        /// Its place in the text, from 1.
        number: usize,
        /// Why not.
        reason: String,
    },
    /// Nothing would be trusted.
    #[error("no certificate to trust was given; name a CA file or use the system's certificates")]
    NoRoots,
    /// The CA for client certificates cannot be used.
    #[error("the CA for client certificates cannot be used: {0}")]
    ClientCa(String),
    /// Our own client certificate cannot be read.
    #[error("the client certificate or its key is not intact PEM")]
    ClientIdentity,
    /// The TLS library refused.
    #[error("the TLS configuration was refused: {0}")]
    Configuration(String),
}

impl TlsError {
    pub(crate) fn refused(error: rustls::Error) -> Self {
        Self::Configuration(error.to_string())
    }
}

/// A server's configuration. `identity` is a [`ReloadingIdentity`] or an [`EdgeIdentity`](crate::EdgeIdentity);
/// `alpn` is what to accept, most wanted first.
///
/// With `client_ca_pem` every client must present a certificate from there, and sessions are never resumed, so that
/// it is checked at each handshake.
pub fn server_config(
    identity: Arc<dyn ResolvesServerCert>,
    versions: Versions,
    alpn: &[&[u8]],
    client_ca_pem: Option<&str>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(versions.list())
        .map_err(TlsError::refused)?;
    let mut config = match client_ca_pem {
        None => builder.with_no_client_auth().with_cert_resolver(identity),
        Some(pem) => {
            let mut config = builder.with_client_cert_verifier(client_verifier(pem)?).with_cert_resolver(identity);
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
            config
        }
    };
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(Arc::new(config))
}

/// Why a certificate and its key cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file cannot be read.
    #[error("cannot read {path}: {cause}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// A file far larger than any certificate.
    #[error("{path} is larger than 256 KiB and cannot be a certificate or key", path = path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// No certificate, or a damaged one.
    #[error("{file} holds no intact certificate (PEM, BEGIN CERTIFICATE)")]
    NoCertificate {
        /// The file, or what stands for it.
        file: String,
    },
    /// No private key, or a damaged one.
    #[error("{file} holds no intact private key (PEM, PKCS#8, SEC1 or PKCS#1)")]
    NoKey {
        /// The file, or what stands for it.
        file: String,
    },
    /// The two do not belong together.
    #[error("the key in {key} does not belong to the certificate in {certificate}")]
    Mismatch {
        /// The certificate's file.
        certificate: String,
        /// The key's file.
        key: String,
    },
    /// The key is of a kind that TLS cannot use.
    #[error("the certificate in {certificate} cannot be used: {reason}")]
    Unusable {
        /// The certificate's file.
        certificate: String,
        /// Why.
        reason: String,
    },
    /// A new certificate that has already ended.
    #[error("the certificate in {certificate} expired on {date}; issue a new one")]
    Expired {
        /// The certificate's file.
        certificate: String,
        /// When.
        date: String,
    },
}

/// A certificate and its key, of a server or of a client, replaced in place when their files change. Connections that exist keep what they
/// have.
pub struct ReloadingIdentity {
    files: Option<(PathBuf, PathBuf)>,
    current: ArcSwap<Loaded>,
    /// Held while files are read, so that two reloads cannot swap in the wrong order.
    reloading: Mutex<()>,
}

impl ReloadingIdentity {
    /// An identity that never changes.
    pub fn from_pem(cert: &str, key: &str) -> Result<Self, IdentityError> {
        let loaded = Loaded::parse(cert.as_bytes(), key.as_bytes(), "the given certificate", "the given key")?;
        Ok(Self { files: None, current: ArcSwap::from_pointee(loaded), reloading: Mutex::new(()) })
    }

    /// An identity from two PEM files: the certificate, with intermediates after it if there are any, and its key.
    ///
    /// An expired certificate is taken, since the peer's refusal says more than a server that does not start.
    pub fn from_files(cert_path: impl AsRef<Path>, key_path: impl AsRef<Path>) -> Result<Self, IdentityError> {
        let files = (cert_path.as_ref().to_owned(), key_path.as_ref().to_owned());
        let loaded = Loaded::read(&files.0, &files.1)?;
        Ok(Self { files: Some(files), current: ArcSwap::from_pointee(loaded), reloading: Mutex::new(()) })
    }

    /// Like [`ReloadingIdentity::from_files`], for the certificate of a client: an expired one is refused, since servers
    /// often do not say what they miss.
    pub fn client_from_files(cert_path: impl AsRef<Path>, key_path: impl AsRef<Path>) -> Result<Self, IdentityError> {
        let identity = Self::from_files(cert_path, key_path)?;
        let not_after = identity.not_after_unix();
        match &identity.files {
            Some((cert, _)) if not_after < unix_now() => {
                Err(IdentityError::Expired { certificate: cert.display().to_string(), date: date(not_after) })
            }
            _ => Ok(identity),
        }
    }

    /// Like [`ReloadingIdentity::from_pem`], for the certificate of a client: an expired one is refused.
    pub fn client_from_pem(cert: &str, key: &str) -> Result<Self, IdentityError> {
        let identity = Self::from_pem(cert, key)?;
        let not_after = identity.not_after_unix();
        if not_after < unix_now() {
            let certificate = "the given certificate".to_owned();
            return Err(IdentityError::Expired { certificate, date: date(not_after) });
        }
        Ok(identity)
    }

    /// Reads the files again; `true` when they hold something new, which is then in force.
    ///
    /// On any error (a file is gone, damaged, already expired, or does not fit the other) what was loaded before
    /// stays in force. Reads from disk: call it from where blocking is allowed.
    pub fn reload(&self) -> Result<bool, IdentityError> {
        let Some((cert_path, key_path)) = &self.files else { return Ok(false) };
        let _order = self.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = Loaded::read(cert_path, key_path)?;
        if loaded.digest == self.current.load().digest {
            return Ok(false);
        }
        if loaded.not_after < unix_now() {
            let certificate = cert_path.display().to_string();
            return Err(IdentityError::Expired { certificate, date: date(loaded.not_after) });
        }
        self.current.store(Arc::new(loaded));
        Ok(true)
    }

    /// The last second of the certificate's validity, since 1970.
    pub fn not_after_unix(&self) -> i64 {
        self.current.load().not_after
    }

    /// Whole days of validity left at `now_unix` (seconds); negative when it has ended.
    pub fn days_left(&self, now_unix: i64) -> i64 {
        self.not_after_unix().saturating_sub(now_unix).div_euclid(86_400)
    }

    /// The certificate that is in force, without its chain.
    pub fn leaf(&self) -> Option<CertificateDer<'static>> {
        self.current.load().certified.cert.first().cloned()
    }
}

impl ResolvesServerCert for ReloadingIdentity {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.load().certified))
    }
}

impl ResolvesClientCert for ReloadingIdentity {
    fn resolve(&self, _issuers: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.load().certified))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl fmt::Debug for ReloadingIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReloadingIdentity").field("files", &self.files).finish_non_exhaustive()
    }
}

/// A certificate and key as TLS uses them.
pub(crate) struct Loaded {
    pub(crate) certified: Arc<CertifiedKey>,
    pub(crate) not_after: i64,
    /// Of certificate and key file together, so that "unchanged" needs no key in memory twice.
    digest: [u8; 32],
}

impl Loaded {
    /// One that was issued a moment ago.
    pub(crate) fn issued(identity: &ServerIdentity) -> Result<Self, IdentityError> {
        let (cert, key) = (identity.cert_pem.as_bytes(), identity.key_pem.expose().as_bytes());
        Self::parse(cert, key, "the issued certificate", "the issued key")
    }

    fn read(cert_path: &Path, key_path: &Path) -> Result<Self, IdentityError> {
        let (cert, key) = (read_bounded(cert_path)?, read_bounded(key_path)?);
        Self::parse(&cert, &key, &cert_path.display().to_string(), &key_path.display().to_string())
    }

    fn parse(cert: &[u8], key: &[u8], cert_file: &str, key_file: &str) -> Result<Self, IdentityError> {
        let no_certificate = || IdentityError::NoCertificate { file: cert_file.to_owned() };
        let chain =
            CertificateDer::pem_slice_iter(cert).collect::<Result<Vec<_>, _>>().map_err(|_| no_certificate())?;
        let leaf = chain.first().ok_or_else(no_certificate)?;
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| no_certificate())?;
        let not_after = parsed.validity().not_after.timestamp();
        let private =
            PrivateKeyDer::from_pem_slice(key).map_err(|_| IdentityError::NoKey { file: key_file.to_owned() })?;

        let certified = CertifiedKey::from_der(chain, private, &provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                IdentityError::Mismatch { certificate: cert_file.to_owned(), key: key_file.to_owned() }
            }
            other => IdentityError::Unusable { certificate: cert_file.to_owned(), reason: other.to_string() },
        })?;
        let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        context.update(&(cert.len() as u64).to_be_bytes());
        context.update(cert);
        context.update(key);
        let mut digest = [0; 32];
        digest.copy_from_slice(context.finish().as_ref());
        Ok(Self { certified: Arc::new(certified), not_after, digest })
    }
}

fn read_bounded(path: &Path) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
    let failed = |cause| IdentityError::Read { path: path.to_owned(), cause };
    if fs::metadata(path).map_err(failed)?.len() > MAX_FILE {
        return Err(IdentityError::TooLarge { path: path.to_owned() });
    }
    fs::read(path).map(Zeroizing::new).map_err(failed)
}

#[cfg(test)]
mod tests {
    use rustls_pki_types::ServerName;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::fixtures::*;
    use crate::{Authority, client_config, client_config_with_identity, explain_io, write_private, write_public};

    struct Files {
        dir: tempfile::TempDir,
        ca: Authority,
    }

    impl Files {
        fn new() -> Self {
            let files = Self { dir: tempfile::tempdir().expect("dir"), ca: authority() };
            files.issue(DAY * 10);
            files
        }

        fn paths(&self) -> (PathBuf, PathBuf) {
            (self.dir.path().join("tls.crt"), self.dir.path().join("tls.key"))
        }

        fn issue(&self, lifetime: std::time::Duration) {
            let identity = self.ca.issue_server(&names(&[HOST, "127.0.0.1"]), lifetime).expect("certificate");
            self.write(&identity);
        }

        fn write(&self, identity: &ServerIdentity) {
            let (cert, key) = self.paths();
            write_public(cert, identity.cert_pem.as_bytes()).expect("write");
            write_private(key, identity.key_pem.expose().as_bytes()).expect("write");
        }

        fn load(&self) -> ReloadingIdentity {
            let (cert, key) = self.paths();
            ReloadingIdentity::from_files(cert, key).expect("identity")
        }
    }

    #[test]
    fn an_expired_client_certificate_is_refused_from_the_start() {
        let files = Files::new();
        let (cert, key) = files.paths();
        assert!(ReloadingIdentity::client_from_files(&cert, &key).is_ok());
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("key");
        let day = std::time::Duration::from_secs(86_400);
        let old = files.ca.issue_server_for(&pair, &names(&[HOST]), day, unix_now() - 2 * 86_400).expect("certificate");
        files.write(&old);
        let error = ReloadingIdentity::client_from_files(&cert, &key).expect_err("expired");
        assert!(matches!(error, IdentityError::Expired { .. }), "{error}");
        assert!(ReloadingIdentity::from_files(&cert, &key).is_ok(), "a server starts with it all the same");
    }

    #[tokio::test]
    async fn new_files_serve_new_connections_without_a_restart() {
        let files = Files::new();
        let identity = Arc::new(files.load());
        let server = serve_with(Arc::clone(&identity) as Arc<dyn ResolvesServerCert>, &[]);
        let presented = async || {
            let client = client_config(files.ca.cert_pem(), false, Versions::Tls13, &[]).expect("client");
            let stream = handshake(client, Arc::clone(&server), HOST).await.expect("handshake");
            stream.get_ref().1.peer_certificates().expect("certificates")[0].clone().into_owned()
        };
        assert!(!identity.reload().expect("unchanged"));
        let before = presented().await;
        files.issue(DAY * 20);
        assert_eq!(presented().await, before);
        assert!(identity.reload().expect("changed"));
        assert!(!identity.reload().expect("unchanged"));
        assert_ne!(presented().await, before);
        assert_eq!(identity.days_left(unix_now() + 60), 19);
        assert_eq!(identity.days_left(unix_now() + 86_400 * 20 + 60), -1);
    }

    #[test]
    fn broken_files_are_named_and_the_old_certificate_stays() {
        let files = Files::new();
        let identity = files.load();
        let (before, good) = (identity.leaf(), files.ca.issue_server(&names(&[HOST]), DAY).expect("certificate"));
        let (cert, key) = files.paths();
        let refused = |what: &str| {
            let said = identity.reload().expect_err(what).to_string();
            assert!(said.contains(files.dir.path().to_str().expect("path")), "{said}");
            assert_eq!(identity.leaf(), before);
            said
        };

        fs::write(&cert, "half of a certif").expect("write");
        assert!(refused("no PEM").contains("tls.crt holds no intact certificate"));
        fs::write(&cert, "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n").expect("write");
        assert!(refused("no DER").contains("tls.crt holds no intact certificate"));
        fs::write(&cert, good.cert_pem.as_bytes()).expect("write");
        assert!(refused("old key").contains("does not belong"));
        fs::write(&key, "").expect("write");
        assert!(refused("no key").contains("tls.key holds no intact private key"));
        fs::write(&key, vec![b' '; 300 * 1024]).expect("write");
        assert!(refused("huge").contains("larger"));
        fs::remove_file(&key).expect("remove");
        assert!(refused("gone").contains("cannot read"));

        let mut params = leaf_params();
        within(&mut params, -7200, -3600);
        files.write(&leaf(&params, &rcgen::Issuer::new(ca_params(), crate::fixtures::key())));
        assert!(refused("expired").contains("expired on"));

        files.write(&good);
        assert!(identity.reload().expect("good again"));
    }

    #[tokio::test]
    async fn with_a_client_ca_a_client_certificate_is_mandatory() {
        let (ca, other) = (authority(), authority());
        let identity = ca.issue_server(&names(&[HOST]), DAY).expect("certificate");
        let identity = ReloadingIdentity::from_pem(&identity.cert_pem, identity.key_pem.expose()).expect("identity");
        let server = server_config(Arc::new(identity), Versions::Tls13, &[], Some(ca.cert_pem())).expect("server");

        let config = |client: Option<&ServerIdentity>| match client {
            None => client_config(ca.cert_pem(), false, Versions::Tls13, &[]),
            Some(identity) => client_config_with_identity(ca.cert_pem(), false, Versions::Tls13, &[], identity),
        };
        let said = refusal(config(None).expect("client"), Arc::clone(&server), HOST).await;
        assert!(said.contains("requires a client certificate"), "{said}");

        let stranger = other.issue_client("edge-2", DAY).expect("client");
        let said = refusal(config(Some(&stranger)).expect("client"), Arc::clone(&server), HOST).await;
        assert!(said.contains("refused"), "{said}");
        // A server's certificate is not a client's.
        let wrong_use = ca.issue_server(&names(&[HOST]), DAY).expect("server");
        refusal(config(Some(&wrong_use)).expect("client"), Arc::clone(&server), HOST).await;

        let known = ca.issue_client("edge-1", DAY).expect("client");
        let known = config(Some(&known)).expect("client");
        for _ in 0..2 {
            let stream = handshake(Arc::clone(&known), Arc::clone(&server), HOST).await.expect("handshake");
            assert_eq!(stream.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
        }
    }

    #[tokio::test]
    async fn tls_1_2_is_spoken_only_where_it_is_asked_for() {
        let files = Files::new();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(files.ca.certificate().der()).expect("root");
        let old_client = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS12])
            .expect("version")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let old_client = Arc::new(old_client);
        let config = |versions| server_config(Arc::new(files.load()), versions, &[], None).expect("server");
        refusal(Arc::clone(&old_client), config(Versions::default()), HOST).await;
        handshake(old_client, config(Versions::Legacy), HOST).await.expect("legacy");
    }

    #[tokio::test]
    async fn a_client_trusts_what_it_was_given_and_nothing_else() {
        let files = Files::new();
        let server = serve_with(Arc::new(files.load()), &[b"h2"]);
        let both = format!("{}{}", authority().cert_pem(), files.ca.cert_pem());
        let client = client_config(&both, false, Versions::Tls13, &[b"h2"]).expect("client");
        handshake(Arc::clone(&client), Arc::clone(&server), "127.0.0.1").await.expect("by address");
        let said = refusal(client, Arc::clone(&server), "other.example").await;
        assert!(said.contains("does not cover `other.example`"), "{said}");

        let other = client_config(authority().cert_pem(), false, Versions::Tls13, &[b"h2"]).expect("client");
        let said = refusal(other, server, HOST).await;
        assert!(said.starts_with("unknown certificate authority"), "{said}");

        assert!(matches!(client_config("", false, Versions::Tls13, &[]), Err(TlsError::NoRoots)));
        let damaged = files.ca.cert_pem().replace("MII", "M!!");
        let said = client_config(&damaged, false, Versions::Tls13, &[]).expect_err("damaged").to_string();
        assert!(said.starts_with("trusted certificate number 1 "), "{said}");
    }

    #[tokio::test]
    async fn plain_http_at_a_tls_port_is_explained() {
        let (near, far) = tokio::io::duplex(4096);
        let client = client_config(authority().cert_pem(), false, Versions::Tls13, &[]).expect("client");
        let name = ServerName::try_from(HOST).expect("name");
        let server = async {
            let (mut read, mut write) = tokio::io::split(far);
            write.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.expect("write");
            let mut seen = [0; 16];
            read.read_exact(&mut seen).await.expect("read");
        };
        let client = tokio_rustls::TlsConnector::from(client).connect(name, near);
        let (answer, ()) = tokio::join!(client, server);
        let said = explain_io(&answer.expect_err("not TLS"));
        assert!(said.contains("does not speak TLS"), "{said}");
    }

    #[test]
    fn keys_are_not_printed() {
        let files = Files::new();
        let (identity, loaded) = (files.ca.issue_server(&names(&[HOST]), DAY).expect("certificate"), files.load());
        let printed = format!("{identity:?} {loaded:?} {:?}", files.ca);
        assert!(printed.contains("redacted") && !printed.contains("PRIVATE KEY"), "{printed}");
    }
}
