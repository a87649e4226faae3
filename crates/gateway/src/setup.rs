//! What `sortie setup init` wrote: the gateway's key material and what it knows of its hub and edge.

use std::path::Path;
use std::sync::Arc;

use sortie_identity::{KeysError, Pinned};
use sortie_ids::{TunnelDomain, TunnelToken};
use sortie_tls::{ReloadingIdentity, ServerName, SetupDir, SetupError, SetupFile};

use crate::identity::IdentityKeys;

/// Why a set-up directory cannot serve. Every message names the file and the way out.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file is missing or cannot be read.
    #[error(transparent)]
    File(#[from] SetupError),
    /// A file does not hold what it should.
    #[error("{path}: {reason}; run sortie setup init with this directory as its output")]
    Content {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The keys of the hub cannot be used.
    #[error("{path}: {cause}; run sortie setup init with this directory as its output")]
    Keys {
        /// The file.
        path: String,
        /// What is wrong with it.
        cause: KeysError,
    },
}

/// A set-up directory, read.
#[derive(Debug)]
pub struct Setup {
    pub(crate) domain: TunnelDomain,
    pub(crate) edges: Vec<EdgeAddr>,
    pub(crate) edge_ca: String,
    pub(crate) edge_ca_path: String,
    pub(crate) keys: IdentityKeys,
    pub(crate) identity: Arc<ReloadingIdentity>,
    dir: SetupDir,
}

impl Setup {
    /// Reads a set-up directory. Blocks; changes nothing in it.
    ///
    /// # Errors
    /// A file is missing or broken: see [`LoadError`].
    pub fn load(dir: &Path) -> Result<Self, LoadError> {
        let dir = SetupDir::at(dir);
        let path = |file: SetupFile| dir.path(file).display().to_string();
        let content = |file: SetupFile, reason: String| LoadError::Content { path: path(file), reason };

        token_in(&dir)?;
        let domain = dir.require(SetupFile::TunnelDomain)?;
        let domain: TunnelDomain =
            domain.expose().parse().map_err(|error| content(SetupFile::TunnelDomain, format!("{error}")))?;
        let listed = dir.require(SetupFile::EdgeAddr)?;
        let edges: Vec<EdgeAddr> = listed
            .expose()
            .split([',', ' ', '\t', '\n', '\r'])
            .filter(|text| !text.is_empty())
            .map(|text| EdgeAddr::parse(text).map_err(|reason| content(SetupFile::EdgeAddr, reason)))
            .collect::<Result<_, _>>()?;
        if edges.is_empty() {
            return Err(content(SetupFile::EdgeAddr, "it names no edge".to_owned()));
        }
        let keys = dir.require(SetupFile::HubIdentity)?;
        let keys = Pinned::parse(keys.expose())
            .map_err(|cause| LoadError::Keys { path: path(SetupFile::HubIdentity), cause })?;
        let keys = IdentityKeys::new(keys, dir.clone());
        let edge_ca = dir.require(SetupFile::EdgeCa)?.expose().to_owned();
        let edge_ca_path = path(SetupFile::EdgeCa);
        let identity = Arc::new(dir.server_identity()?);
        Ok(Self { domain, edges, edge_ca, edge_ca_path, keys, identity, dir })
    }

    /// The tunnel's domain, `<label>.<base-domain>`.
    pub fn domain(&self) -> &TunnelDomain {
        &self.domain
    }

    /// Where tokens are read from at each dial, so that a rotated one is picked up.
    pub(crate) fn token_source(&self) -> TokenSource {
        TokenSource(self.dir.clone())
    }
}

/// The file with the tunnel token.
#[derive(Clone, Debug)]
pub(crate) struct TokenSource(SetupDir);

impl TokenSource {
    /// Reads the token. Blocks.
    pub(crate) fn read(&self) -> Result<TunnelToken, LoadError> {
        token_in(&self.0)
    }
}

fn token_in(dir: &SetupDir) -> Result<TunnelToken, LoadError> {
    let text = dir.require(SetupFile::TunnelToken)?;
    TunnelToken::parse(text.expose()).map_err(|error| LoadError::Content {
        path: dir.path(SetupFile::TunnelToken).display().to_string(),
        reason: format!("it is {error}"),
    })
}

/// Where an edge listens.
#[derive(Clone, Debug)]
pub(crate) struct EdgeAddr {
    /// `host:port`, for people.
    pub(crate) text: String,
    pub(crate) host: String,
    pub(crate) port: u16,
    /// What its certificate must cover.
    pub(crate) name: ServerName<'static>,
}

impl EdgeAddr {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not the address of an edge (host:port)");
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
        let name = ServerName::try_from(host.to_owned()).map_err(|_| wrong())?;
        Ok(Self { text: text.to_owned(), host: host.to_owned(), port, name })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::fixtures::Hub;

    fn complete() -> tempfile::TempDir {
        let temp = tempfile::tempdir().expect("dir");
        let dir = SetupDir::open(temp.path()).expect("setup");
        dir.ensure_authority().expect("authority");
        dir.issue_server_cert("abcd1234.sortie.localhost", Duration::from_secs(86_400)).expect("certificate");
        for (file, text) in [
            (SetupFile::TunnelDomain, "abcd1234.sortie.localhost".to_owned()),
            (SetupFile::TunnelToken, TunnelToken::random("org", "tnl").expose().to_owned()),
            (SetupFile::EdgeAddr, "127.0.0.1:4443\nedge.example.test:443".to_owned()),
            (SetupFile::EdgeCa, dir.ensure_authority().expect("authority").cert_pem().to_owned()),
            (SetupFile::HubIdentity, Hub::new().jwks()),
        ] {
            dir.write(file, &text).expect("write");
        }
        temp
    }

    #[test]
    fn a_complete_directory_is_read() {
        let temp = complete();
        let setup = Setup::load(temp.path()).expect("setup");
        assert_eq!(setup.domain().to_string(), "abcd1234.sortie.localhost");
        assert_eq!(setup.edges.iter().map(|edge| edge.port).collect::<Vec<_>>(), [4443, 443]);
        assert_eq!(setup.keys.len(), 1);
    }

    #[test]
    fn each_missing_or_broken_file_is_named_with_the_way_out() {
        use SetupFile::*;
        for file in [TunnelDomain, TunnelToken, EdgeAddr, EdgeCa, HubIdentity, TlsCert, TlsKey] {
            let temp = complete();
            std::fs::remove_file(temp.path().join(file.name())).expect("remove");
            let error = Setup::load(temp.path()).expect_err(file.name()).to_string();
            assert!(error.contains(file.name()) && error.contains("setup init"), "{error}");
        }
        for (file, text) in [
            (TunnelDomain, "not a domain"),
            (TunnelToken, "no token"),
            (EdgeAddr, "127.0.0.1"),
            (EdgeAddr, "127.0.0.1:0"),
            (EdgeAddr, "a b:1"),
            (HubIdentity, "{}"),
            (TlsCert, "no certificate"),
        ] {
            let temp = complete();
            std::fs::write(temp.path().join(file.name()), text).expect("write");
            let error = Setup::load(temp.path()).expect_err(file.name()).to_string();
            assert!(error.contains(file.name()) && error.contains("run "), "{error}");
        }
    }

    #[test]
    fn edges_are_named_or_numbered() {
        for (text, host, port) in [("edge.test:443", "edge.test", 443), ("[::1]:4443", "::1", 4443)] {
            let edge = EdgeAddr::parse(text).expect(text);
            assert_eq!((edge.host.as_str(), edge.port), (host, port));
        }
    }
}
