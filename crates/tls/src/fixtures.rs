//! What the tests of several modules need: certificates that keep or break single rules, and real handshakes.

use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256,
};
use rustls::server::ResolvesServerCert;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::{Authority, ReloadingIdentity, ServerIdentity, Versions, server_config, unix_now};

pub(crate) const DAY: Duration = Duration::from_secs(86_400);
pub(crate) const HOST: &str = "files.abcd1234.sortie.localhost";

pub(crate) fn authority() -> Authority {
    Authority::generate("Test CA", 30).expect("authority")
}

pub(crate) fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

pub(crate) fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("key")
}

/// Parameters of a good CA certificate, for a test to break.
pub(crate) fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    within(&mut params, -3600, 86_400);
    params
}

/// Parameters of a good server certificate, for a test to break.
pub(crate) fn leaf_params() -> CertificateParams {
    let mut params = CertificateParams::new(names(&[HOST])).expect("names");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    within(&mut params, -3600, 86_400);
    params
}

/// Sets the validity in seconds from now.
pub(crate) fn within(params: &mut CertificateParams, from: i64, to: i64) {
    let at = |offset: i64| {
        let seconds = u64::try_from(unix_now() + offset).expect("after 1970");
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds)
    };
    params.not_before = at(from);
    params.not_after = at(to);
}

/// A server certificate from an authority's key, without the checks that the authority itself makes.
pub(crate) fn leaf(params: &CertificateParams, issuer: &Issuer<'_, KeyPair>) -> ServerIdentity {
    let key = key();
    let cert_pem = params.signed_by(&key, issuer).expect("leaf").pem();
    ServerIdentity { cert_pem, key_pem: crate::Secret::new(key.serialize_pem()) }
}

pub(crate) fn serve(identity: &ServerIdentity, alpn: &[&[u8]]) -> Arc<ServerConfig> {
    let identity = ReloadingIdentity::from_pem(&identity.cert_pem, identity.key_pem.expose()).expect("identity");
    serve_with(Arc::new(identity), alpn)
}

pub(crate) fn serve_with(identity: Arc<dyn ResolvesServerCert>, alpn: &[&[u8]]) -> Arc<ServerConfig> {
    server_config(identity, Versions::Tls13, alpn, None).expect("server")
}

/// A whole handshake in memory, with a byte each way after it; the error is the client's, or else the server's.
pub(crate) async fn handshake(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    host: &str,
) -> std::io::Result<tokio_rustls::client::TlsStream<DuplexStream>> {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let name = ServerName::try_from(host.to_owned()).expect("name");
    let client = async {
        let mut stream = TlsConnector::from(client).connect(name, near).await?;
        stream.write_all(b"?").await?;
        stream.flush().await?;
        let mut answer = [0];
        stream.read_exact(&mut answer).await?;
        Ok(stream)
    };
    let server = async {
        let mut stream = TlsAcceptor::from(server).accept(far).await?;
        let mut question = [0];
        stream.read_exact(&mut question).await?;
        stream.write_all(b"!").await?;
        stream.flush().await?;
        std::io::Result::Ok(stream)
    };
    let (client, _server) = tokio::join!(client, server);
    client
}

/// The error of a handshake that must fail, in words.
pub(crate) async fn refusal(client: Arc<ClientConfig>, server: Arc<ServerConfig>, host: &str) -> String {
    let error = handshake(client, server, host).await.expect_err("the handshake must fail");
    crate::explain_io(&error)
}
