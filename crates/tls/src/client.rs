//! The side that dials: gateways to an edge, clients to the API.

use std::sync::Arc;

use rustls::client::{Resumption, WantsClientCert};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::server::{ReloadingIdentity, TlsError, Versions};
use crate::{ServerIdentity, provider};

/// A configuration for dialling servers whose certificates chain to `roots_pem` (any number of certificates in PEM)
/// or, with `system_roots`, to what the machine trusts. `alpn` is what to offer, most wanted first.
///
/// Reads the machine's certificate store from disk when it is asked for; fails when nothing at all would be trusted.
pub fn client_config(
    roots_pem: &str,
    system_roots: bool,
    versions: Versions,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, TlsError> {
    build(roots_pem, system_roots, versions, alpn, None)
}

/// A configuration for clients of an API: trusts exactly the given CA, or what the machine trusts. For a URL without TLS
/// (`https` false) and without a CA, nothing is loaded and nobody would be trusted.
pub fn api_client_config(ca_pem: Option<&str>, https: bool) -> Result<Arc<ClientConfig>, TlsError> {
    match (ca_pem, https) {
        (Some(pem), _) => client_config(pem, false, Versions::Legacy, &[b"http/1.1"]),
        (None, true) => client_config("", true, Versions::Legacy, &[b"http/1.1"]),
        (None, false) => Ok(crate::inner_client_config(&[], &[])),
    }
}

/// Whether an error, or one of its causes, is that a peer's certificate was not acceptable.
pub fn is_certificate_refusal(error: &(dyn std::error::Error + 'static)) -> bool {
    comes_of(error, |error| matches!(error, rustls::Error::InvalidCertificate(_)))
}

/// Whether an error, or one of its causes, is that a server did not accept our certificate, or that we showed none.
pub fn is_client_refusal(error: &(dyn std::error::Error + 'static)) -> bool {
    use rustls::AlertDescription as Alert;
    comes_of(error, |error| {
        matches!(
            error,
            rustls::Error::AlertReceived(
                Alert::AccessDenied
                    | Alert::BadCertificate
                    | Alert::CertificateExpired
                    | Alert::CertificateRequired
                    | Alert::CertificateRevoked
                    | Alert::CertificateUnknown
                    | Alert::DecryptError
                    | Alert::NoCertificate
                    | Alert::UnknownCA
                    | Alert::UnsupportedCertificate
            )
        )
    })
}

fn comes_of(error: &(dyn std::error::Error + 'static), is: impl Fn(&rustls::Error) -> bool) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref().is_some_and(&is) {
            return true;
        }
        // An I/O error passes over what it wraps when asked for its source.
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        cause = match wrapped {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    false
}

/// Like [`client_config`], presenting a client certificate to servers that ask for one.
pub fn client_config_with_identity(
    roots_pem: &str,
    system_roots: bool,
    versions: Versions,
    alpn: &[&[u8]],
    identity: &ServerIdentity,
) -> Result<Arc<ClientConfig>, TlsError> {
    build(roots_pem, system_roots, versions, alpn, Some(identity))
}

/// A configuration for dialling servers of somebody else's: like [`client_config`], and with an identity shows its
/// certificate, as it is in force at each handshake, to servers that ask for one.
pub fn upstream_client_config(
    roots_pem: &str,
    system_roots: bool,
    alpn: &[&[u8]],
    identity: Option<Arc<ReloadingIdentity>>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let builder = trusting(roots_pem, system_roots, Versions::Legacy)?;
    let Some(identity) = identity else { return Ok(finished(builder.with_no_client_auth(), alpn)) };
    let mut config = builder.with_client_cert_resolver(identity);
    // A resumed session would go on under the certificate that it began with.
    config.resumption = Resumption::disabled();
    Ok(finished(config, alpn))
}

/// The same with a certificate of its own, which is shown to servers that ask for one.
pub fn with_client_identity(config: &ClientConfig, identity: Arc<ReloadingIdentity>) -> Arc<ClientConfig> {
    let mut config = config.clone();
    config.client_auth_cert_resolver = identity;
    // A session of the other configuration would go on under the certificate that it began with.
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

fn build(
    roots_pem: &str,
    system_roots: bool,
    versions: Versions,
    alpn: &[&[u8]],
    identity: Option<&ServerIdentity>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let builder = trusting(roots_pem, system_roots, versions)?;
    let config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let chain = CertificateDer::pem_slice_iter(identity.cert_pem.as_bytes())
                .collect::<Result<Vec<_>, _>>()
                .map_err(|_| TlsError::ClientIdentity)?;
            let key = PrivateKeyDer::from_pem_slice(identity.key_pem.expose().as_bytes())
                .map_err(|_| TlsError::ClientIdentity)?;
            builder.with_client_auth_cert(chain, key).map_err(TlsError::refused)?
        }
    };
    Ok(finished(config, alpn))
}

fn trusting(
    roots_pem: &str,
    system_roots: bool,
    versions: Versions,
) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, TlsError> {
    let mut roots = roots_from_pem(roots_pem)?;
    if system_roots {
        // Machines carry certificates that cannot be read; what can be is enough.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    if roots.is_empty() {
        return Err(TlsError::NoRoots);
    }
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions.list())
        .map_err(TlsError::refused)?;
    Ok(builder.with_root_certificates(roots))
}

fn finished(mut config: ClientConfig, alpn: &[&[u8]]) -> Arc<ClientConfig> {
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Arc::new(config)
}

/// Checks client certificates against the CAs in `pem`; every client must have one.
pub(crate) fn client_verifier(pem: &str) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, TlsError> {
    let roots = roots_from_pem(pem)?;
    if roots.is_empty() {
        return Err(TlsError::NoRoots);
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .map_err(|error| TlsError::ClientCa(error.to_string()))
}

/// Whether a server could demand certificates of these CAs (PEM) from its clients.
///
/// # Errors
/// A certificate cannot be read or used, or there is none.
pub fn check_client_ca(pem: &str) -> Result<(), TlsError> {
    client_verifier(pem).map(drop)
}

fn roots_from_pem(pem: &str) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for (index, certificate) in CertificateDer::pem_slice_iter(pem.as_bytes()).enumerate() {
        let number = index + 1;
        let certificate = certificate.map_err(|error| TlsError::Root { number, reason: error.to_string() })?;
        roots.add(certificate).map_err(|error| TlsError::Root { number, reason: error.to_string() })?;
    }
    Ok(roots)
}
