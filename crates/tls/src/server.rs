//! The side that is dialled, with certificates from files that may change while it runs.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, SupportedProtocolVersion};
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
    Configuration(#[source] rustls::Error),
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
        .map_err(TlsError::Configuration)?;
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
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
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

/// A server's certificate and key, replaced in place when their files change. Connections that exist keep what they
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
    let failed = |source| IdentityError::Read { path: path.to_owned(), source };
    if fs::metadata(path).map_err(failed)?.len() > MAX_FILE {
        return Err(IdentityError::TooLarge { path: path.to_owned() });
    }
    fs::read(path).map(Zeroizing::new).map_err(failed)
}
