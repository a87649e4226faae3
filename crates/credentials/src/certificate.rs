//! Certificates that are shown to servers: mutual TLS.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sortie_tls::{ClientConfig, IdentityError, ReloadingIdentity, Secret, with_client_identity};
use zeroize::Zeroizing;

use crate::problem::Problem;
use crate::source::MAX_SECRET;

const PUBLIC: &str = "its certificate file cannot be used";

/// Where the certificate of a client is, with the chain to its CA, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertificateAt {
    /// Beside the private key, in the same text.
    WithKey,
    /// In a file of its own, which is looked at whenever the key is.
    File(PathBuf),
    /// In this field, beside that of the key in a vault. What the vault says of the chain (`ca_chain`) is added.
    Field(String),
}

/// A certificate and its key, as they came together. Another one takes its place when they change; what was opened with
/// this one stays of this one.
pub struct Certificate(Arc<ReloadingIdentity>);

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Certificate").finish_non_exhaustive()
    }
}

impl Certificate {
    /// `beside` is the certificate, where it does not stand in the text of the key. What is wrong is told once for
    /// callers and once for operators; neither holds anything of the key.
    pub(crate) fn new(key: &Secret, beside: Option<&Secret>) -> Result<Self, (&'static str, String)> {
        let chain = beside.unwrap_or(key);
        match ReloadingIdentity::client_from_pem(chain.expose(), key.expose()) {
            Ok(identity) => Ok(Self(Arc::new(identity))),
            Err(IdentityError::Expired { date, .. }) => {
                Err(("its certificate has expired", format!("the certificate expired on {date}; issue a new one")))
            }
            Err(IdentityError::Mismatch { .. }) => {
                let public = "its key does not belong to its certificate";
                Err((public, "the private key does not belong to the certificate".to_owned()))
            }
            Err(IdentityError::NoKey { .. }) => {
                let told = "there is no intact private key (PEM, PKCS#8, SEC1 or PKCS#1)";
                Err(("it holds no private key", told.to_owned()))
            }
            Err(IdentityError::NoCertificate { .. }) => {
                let told = "there is no intact certificate (PEM, BEGIN CERTIFICATE)";
                Err(("it holds no certificate", told.to_owned()))
            }
            Err(other) => Err(("its certificate cannot be used", other.to_string())),
        }
    }

    /// The end of its validity, in seconds since 1970.
    pub fn not_after_unix(&self) -> i64 {
        self.0.not_after_unix()
    }

    /// What to dial with: as `config` says, showing this certificate.
    pub fn shown_by(&self, config: &ClientConfig) -> Arc<ClientConfig> {
        with_client_identity(config, self.0.clone())
    }
}

/// Reads the file of a certificate. Blocks.
pub(crate) fn read_certificate(path: &Path) -> Result<Secret, Problem> {
    use std::io::Read as _;
    let problem = |what: String| Problem::passing(PUBLIC, format!("{}: {what}", path.display()));
    let file = std::fs::File::open(path).map_err(|error| problem(error.to_string()))?;
    let mut text = Zeroizing::new(String::new());
    let bound = u64::try_from(MAX_SECRET + 1).unwrap_or(u64::MAX);
    file.take(bound).read_to_string(&mut text).map_err(|error| problem(error.to_string()))?;
    if text.len() > MAX_SECRET {
        return Err(problem(format!("it is larger than {MAX_SECRET} bytes")));
    }
    Ok(Secret::new(std::mem::take(&mut *text)))
}
