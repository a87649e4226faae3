//! TLS and certificates: the only crate that knows rustls, rcgen and the reading of X.509.
//!
//! It issues certificates at the customer and at a hub, checks what a customer registers, holds both ends of inner
//! TLS, and routes incoming connections by their ClientHello. The cryptography is always that of [`provider`], given
//! to every builder by name; nothing here reads or sets the process-wide default.
//!
//! It must never skip a check because a setting asks for it, print a private key, or write one to a file that others
//! may read. It spawns no task and applies no deadline: both belong to the caller.

mod authority;
mod client;
mod edge;
mod files;
#[cfg(test)]
mod fixtures;
mod hello;
mod inner;
mod registered;
mod seal;
mod secret;
mod server;
mod setup;

use std::sync::{Arc, LazyLock};

use rustls::crypto::CryptoProvider;

pub use authority::{Authority, IssueError, MAX_LIFETIME, ServerIdentity};
pub use client::{
    api_client_config, check_client_ca, client_config, client_config_with_identity, is_certificate_refusal,
    is_client_refusal, upstream_client_config, with_client_identity,
};
pub use edge::EdgeIdentity;
pub use files::{write_private, write_public};
pub use hello::{Hello, HelloError, MAX_HELLO, Prefixed, read_hello};
pub use inner::{covers, explain, explain_io, inner_client_config, issuer_fingerprint};
pub use registered::{CaError, MAX_CA_PEM, RegisteredCa};
pub use seal::{OpeningKey, SealError, Sealed, SealingKey};
pub use secret::Secret;
pub use server::{IdentityError, ReloadingIdentity, TlsError, Versions, server_config};
pub use setup::{SetupDir, SetupError, SetupFile};

pub use rustls::server::ResolvesServerCert;
pub use rustls::{ClientConfig, ServerConfig};
pub use rustls_pki_types::{CertificateDer, ServerName};
pub use tokio_rustls::client::TlsStream as ClientStream;
pub use tokio_rustls::server::TlsStream as ServerStream;
pub use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

/// The cryptography of every connection: aws-lc-rs, with the post-quantum hybrid X25519MLKEM768 offered first.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    Arc::clone(&PROVIDER)
}

/// Seconds since 1970; zero when the machine's clock is before that.
pub(crate) fn unix_now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
