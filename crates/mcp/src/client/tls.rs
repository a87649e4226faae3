//! The one place that builds the client's TLS configuration.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

/// Why there is no TLS configuration.
#[derive(Debug, thiserror::Error)]
pub(super) enum RootsError {
    #[error("the CA certificate is no certificate in PEM form")]
    Pem,
    #[error("this machine has no trusted certificates: name the hub's CA certificate")]
    NoRoots,
    #[error("the TLS library refuses the configuration")]
    Rustls(#[source] rustls::Error),
}

/// Trusts the given CA and nothing else, or what the machine trusts. Where `https` is false no certificate will be
/// looked at, and none is loaded.
pub(super) fn tls_config(ca_pem: Option<&str>, https: bool) -> Result<ClientConfig, RootsError> {
    let mut roots = RootCertStore::empty();
    if let Some(pem) = ca_pem {
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let certificate = certificate.map_err(|_| RootsError::Pem)?;
            roots.add(certificate).map_err(|_| RootsError::Pem)?;
        }
        if roots.is_empty() {
            return Err(RootsError::Pem);
        }
    } else if https {
        // Machines carry certificates that cannot be read; what can be is enough.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            return Err(RootsError::NoRoots);
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(RootsError::Rustls)?
        .with_root_certificates(roots)
        .with_no_client_auth())
}
