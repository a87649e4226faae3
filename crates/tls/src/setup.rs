//! The directory that `setup` writes at the customer: key material that never leaves it, and what the hub handed out.
//!
//! Writers may be killed at any point. Keys are written before their certificates, each file in one step, so that
//! what is left behind is either complete or recognised: a server certificate that does not fit its key is issued
//! again, and a CA certificate is never replaced unless the caller says so, since it is registered elsewhere.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use crate::authority::{Authority, IssueError};
use crate::server::{IdentityError, ReloadingIdentity};
use crate::{Secret, ServerIdentity, covers, issuer_fingerprint, unix_now, write_private, write_public};

/// Common name and validity (five years) of a tunnel's CA.
const CA_NAME: &str = "Sortie tunnel CA";
const CA_DAYS: u32 = 5 * 365 + 1;

/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 256 * 1024;

/// Taken by whoever makes key material, so that two runs at once cannot mix their pairs.
const LOCK: &str = ".lock";

/// The files of a set-up directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetupFile {
    /// The tunnel's id.
    TunnelId,
    /// The tunnel's domain, `<label>.<base-domain>`.
    TunnelDomain,
    /// The token with which gateways open links. Private.
    TunnelToken,
    /// Where the edge listens, `host:port`.
    EdgeAddr,
    /// The CA certificate of the edge, in PEM.
    EdgeCa,
    /// The keys with which the hub signs callers' identities (RFC 7517).
    HubIdentity,
    /// The CA certificate that is registered on the tunnel.
    CaCert,
    /// Its private key. Private.
    CaKey,
    /// The gateway's certificate for inner TLS.
    TlsCert,
    /// Its private key. Private.
    TlsKey,
}

impl SetupFile {
    /// The file's name in the directory.
    pub fn name(self) -> &'static str {
        match self {
            SetupFile::TunnelId => "tunnel-id",
            SetupFile::TunnelDomain => "tunnel-domain",
            SetupFile::TunnelToken => "tunnel-token",
            SetupFile::EdgeAddr => "edge-addr",
            SetupFile::EdgeCa => "edge-ca.crt",
            SetupFile::HubIdentity => "hub-identity.jwks",
            SetupFile::CaCert => "ca.crt",
            SetupFile::CaKey => "ca.key",
            SetupFile::TlsCert => "tls.crt",
            SetupFile::TlsKey => "tls.key",
        }
    }

    /// Whether only its owner may read it.
    pub fn is_private(self) -> bool {
        matches!(self, SetupFile::TunnelToken | SetupFile::CaKey | SetupFile::TlsKey)
    }
}

/// Why a set-up directory cannot be used as it is.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The directory cannot be made, or not be made private.
    #[error("cannot make {path} a directory that only you may read: {cause}", path = path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// A file cannot be read.
    #[error("cannot read {path}: {cause}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {path}: {cause}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// A file far larger than any of ours, or not text.
    #[error("{path} is not a text file of at most 256 KiB; restore it, or run setup init again", path = path.display())]
    NotText {
        /// The file.
        path: PathBuf,
    },
    /// A file that is needed is not there.
    #[error("{path} is missing or empty; run setup init with this directory as its output", path = path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The CA certificate is there without its key.
    #[error(
        "{path} is missing although the CA certificate beside it is there; restore the key, or delete ca.crt and \
         run the same command again for a new CA, which must then be registered or trusted anew",
        path = path.display()
    )]
    CaKeyLost {
        /// Where the key should be.
        path: PathBuf,
    },
    /// CA certificate and key cannot serve.
    #[error(
        "the CA in {path} cannot be used: {cause}; restore ca.crt and ca.key, or delete both and run the same \
         command again for a new CA, which must then be registered or trusted anew",
        path = path.display()
    )]
    Ca {
        /// The directory.
        path: PathBuf,
        /// Why.
        cause: IssueError,
    },
    /// No certificate could be made.
    #[error("no certificate could be issued: {0}")]
    Issue(IssueError),
    /// The server's certificate or key cannot serve.
    #[error("{0}; run setup renew-cert")]
    Server(IdentityError),
}

/// The directory that `setup` wrote and a gateway reads.
#[derive(Clone, Debug)]
pub struct SetupDir {
    path: PathBuf,
}

impl SetupDir {
    /// The directory for writing: made if it is not there, and only its owner may enter it (mode 0700).
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, SetupError> {
        let path = dir.as_ref().to_owned();
        let failed = |cause| SetupError::Directory { path: path.clone(), cause };
        DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(failed)?;
        let mode = fs::metadata(&path).map_err(failed)?.permissions().mode() & 0o7777;
        if mode != 0o700 {
            fs::set_permissions(&path, Permissions::from_mode(0o700)).map_err(failed)?;
        }
        Ok(Self { path })
    }

    /// The directory for reading: touches nothing, and so works on read-only mounts. Missing files are noticed when
    /// they are read.
    pub fn at(dir: impl AsRef<Path>) -> Self {
        Self { path: dir.as_ref().to_owned() }
    }

    /// Where a file is, or would be.
    pub fn path(&self, file: SetupFile) -> PathBuf {
        self.path.join(file.name())
    }

    /// The text of a file without white space around it; `None` when it is missing or empty.
    pub fn read(&self, file: SetupFile) -> Result<Option<Secret>, SetupError> {
        let path = self.path(file);
        let failed = |cause| SetupError::Read { path: path.clone(), cause };
        match fs::metadata(&path) {
            Ok(found) if found.len() > MAX_FILE || !found.is_file() => return Err(SetupError::NotText { path }),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        }
        let bytes = Zeroizing::new(fs::read(&path).map_err(failed)?);
        match std::str::from_utf8(&bytes) {
            Ok(text) if text.trim().is_empty() => Ok(None),
            Ok(text) => Ok(Some(Secret::new(text.trim().to_owned()))),
            Err(_) => Err(SetupError::NotText { path }),
        }
    }

    /// Like [`SetupDir::read`], for a file that must be there.
    pub fn require(&self, file: SetupFile) -> Result<Secret, SetupError> {
        self.read(file)?.ok_or_else(|| SetupError::Missing { path: self.path(file) })
    }

    /// Writes a file in one step, with a newline at its end; private ones with mode 0600, others 0644.
    pub fn write(&self, file: SetupFile, text: &str) -> Result<(), SetupError> {
        let path = self.path(file);
        let line = Zeroizing::new(format!("{}\n", text.trim_end()));
        let written = if file.is_private() {
            write_private(&path, line.as_bytes())
        } else {
            write_public(&path, line.as_bytes())
        };
        written.map_err(|cause| SetupError::Write { path, cause })
    }

    /// The CA that is there, or a new one (ECDSA P-256, five years) in an output that has none.
    ///
    /// A key without a certificate is what a killed run leaves: it was never registered, and is replaced. Anything
    /// else that is incomplete, damaged, mismatched or expired is an error, since the CA is registered at the hub.
    pub fn ensure_authority(&self) -> Result<Authority, SetupError> {
        self.ensure_authority_named(CA_NAME, CA_DAYS)
    }

    /// Like [`SetupDir::ensure_authority`] for other CAs, such as that of an edge: what a new one is called, and its
    /// validity in days.
    pub fn ensure_authority_named(&self, common_name: &str, days: u32) -> Result<Authority, SetupError> {
        let _lock = self.lock()?;
        match (self.read(SetupFile::CaCert)?, self.read(SetupFile::CaKey)?) {
            (Some(cert), Some(key)) => Authority::from_pem(cert.expose(), key.expose())
                .map_err(|cause| SetupError::Ca { path: self.path.clone(), cause }),
            (Some(_), None) => Err(SetupError::CaKeyLost { path: self.path(SetupFile::CaKey) }),
            (None, _) => self.new_authority(common_name, days),
        }
    }

    /// A new CA in place of the one that is there: for an output that is turned to another tunnel. The old one's
    /// private key is gone afterwards.
    pub fn replace_authority(&self) -> Result<Authority, SetupError> {
        let _lock = self.lock()?;
        // The certificate goes first: a run killed after this leaves what `ensure_authority` completes.
        let path = self.path(SetupFile::CaCert);
        match fs::remove_file(&path) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(SetupError::Write { path, cause }),
            _ => self.new_authority(CA_NAME, CA_DAYS),
        }
    }

    /// Issues the gateway's certificate for `<tunnel_domain>` and every name directly under it, replacing the one that
    /// is there. Needs the CA ([`SetupDir::ensure_authority`]), and no hub.
    pub fn issue_server_cert(&self, tunnel_domain: &str, lifetime: Duration) -> Result<ServerIdentity, SetupError> {
        let _lock = self.lock()?;
        let authority = self.authority()?;
        let names = [format!("*.{tunnel_domain}"), tunnel_domain.to_owned()];
        let identity = authority.issue_server(&names, lifetime).map_err(SetupError::Issue)?;
        self.write(SetupFile::TlsKey, identity.key_pem.expose())?;
        self.write(SetupFile::TlsCert, &identity.cert_pem)?;
        Ok(identity)
    }

    /// Whether the server certificate is to be issued again: always when `before` is zero, else when it has less than
    /// that left, is missing, damaged or not that of its key, was signed by another CA, or is not for the tunnel's
    /// domain.
    pub fn renew_before(&self, before: Duration) -> Result<bool, SetupError> {
        if before.is_zero() {
            return Ok(true);
        }
        let (Some(cert), Some(key)) = (self.read(SetupFile::TlsCert)?, self.read(SetupFile::TlsKey)?) else {
            return Ok(true);
        };
        let Ok(identity) = ReloadingIdentity::from_pem(cert.expose(), key.expose()) else { return Ok(true) };
        let before = i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
        if identity.not_after_unix().saturating_sub(unix_now()) < before {
            return Ok(true);
        }
        let Some(leaf) = identity.leaf() else { return Ok(true) };
        Ok(!self.fits(&leaf)?)
    }

    /// The gateway's certificate and key, to be reloaded when `setup renew-cert` has replaced them.
    pub fn server_identity(&self) -> Result<ReloadingIdentity, SetupError> {
        self.require(SetupFile::TlsCert)?;
        self.require(SetupFile::TlsKey)?;
        ReloadingIdentity::from_files(self.path(SetupFile::TlsCert), self.path(SetupFile::TlsKey))
            .map_err(SetupError::Server)
    }

    /// The CA that is there.
    fn authority(&self) -> Result<Authority, SetupError> {
        let (cert, key) = (self.require(SetupFile::CaCert)?, self.require(SetupFile::CaKey)?);
        Authority::from_pem(cert.expose(), key.expose())
            .map_err(|cause| SetupError::Ca { path: self.path.clone(), cause })
    }

    fn new_authority(&self, common_name: &str, days: u32) -> Result<Authority, SetupError> {
        // Two CAs of one name are told apart by their keys only, by TLS as by people; the suffix helps both.
        let mut suffix = [0u8; 4];
        aws_lc_rs::rand::fill(&mut suffix).map_err(|_| SetupError::Issue(IssueError::no_randomness()))?;
        let name = format!("{common_name} {}", hex::encode(suffix));
        let authority = Authority::generate(&name, days).map_err(SetupError::Issue)?;
        self.write(SetupFile::CaKey, authority.key_pem().expose())?;
        self.write(SetupFile::CaCert, authority.cert_pem())?;
        Ok(authority)
    }

    /// Whether a server certificate comes from the CA beside it and is for the tunnel beside it.
    fn fits(&self, leaf: &CertificateDer<'_>) -> Result<bool, SetupError> {
        let signed = issuer_fingerprint(leaf, &[self.authority()?.certificate().clone()]).is_some();
        let named = match self.read(SetupFile::TunnelDomain)? {
            Some(domain) => covers(leaf, &format!("any.{}", domain.expose())),
            None => true,
        };
        Ok(signed && named)
    }

    /// Held until dropped; waits for another run.
    fn lock(&self) -> Result<File, SetupError> {
        let path = self.path.join(LOCK);
        let failed = |cause| SetupError::Write { path: path.clone(), cause };
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(failed)?;
        file.lock().map_err(failed)?;
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{DAY, HOST, handshake, serve_with};
    use crate::inner_client_config;

    const DOMAIN: &str = "abcd1234.sortie.localhost";

    fn fresh() -> (tempfile::TempDir, SetupDir) {
        let dir = tempfile::tempdir().expect("dir");
        let setup = SetupDir::open(dir.path().join("data")).expect("open");
        (dir, setup)
    }

    fn mode(path: impl AsRef<Path>) -> u32 {
        fs::metadata(path).expect("metadata").permissions().mode() & 0o7777
    }

    fn complete() -> (tempfile::TempDir, SetupDir, Authority) {
        let (dir, setup) = fresh();
        let ca = setup.ensure_authority().expect("authority");
        setup.write(SetupFile::TunnelDomain, DOMAIN).expect("domain");
        setup.issue_server_cert(DOMAIN, DAY * 90).expect("certificate");
        (dir, setup, ca)
    }

    #[tokio::test]
    async fn what_setup_writes_serves_inner_tls_with_tight_modes() {
        let (_dir, setup, ca) = complete();
        assert_eq!(mode(&setup.path), 0o700);
        for file in [SetupFile::CaKey, SetupFile::TlsKey] {
            assert_eq!(mode(setup.path(file)), 0o600, "{file:?}");
        }
        for file in [SetupFile::CaCert, SetupFile::TlsCert, SetupFile::TunnelDomain] {
            assert_eq!(mode(setup.path(file)), 0o644, "{file:?}");
        }
        let client = inner_client_config(&[ca.certificate().clone()], &[]);
        let identity = SetupDir::at(&setup.path).server_identity().expect("identity");
        let server = serve_with(std::sync::Arc::new(identity), &[]);
        for host in [HOST, DOMAIN] {
            handshake(client.clone(), server.clone(), host).await.expect(host);
        }
    }

    #[test]
    fn an_open_directory_is_closed_and_a_file_in_its_place_is_an_error() {
        let dir = tempfile::tempdir().expect("dir");
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).expect("mode");
        SetupDir::open(dir.path()).expect("open");
        assert_eq!(mode(dir.path()), 0o700);
        let file = dir.path().join("file");
        fs::write(&file, "").expect("write");
        let said = SetupDir::open(&file).expect_err("a file").to_string();
        assert!(said.contains("file"), "{said}");
    }

    #[test]
    fn a_repeated_run_keeps_the_authority() {
        let (_dir, setup, ca) = complete();
        let again = SetupDir::open(&setup.path).expect("open").ensure_authority().expect("authority");
        assert_eq!(again.certificate().fingerprint(), ca.certificate().fingerprint());
        let replaced = setup.replace_authority().expect("replaced");
        assert_ne!(replaced.certificate().fingerprint(), ca.certificate().fingerprint());
        let again = setup.ensure_authority().expect("authority");
        assert_eq!(again.certificate().fingerprint(), replaced.certificate().fingerprint());
        assert!(setup.renew_before(DAY).expect("renew"), "the server certificate is of the old CA");
    }

    #[test]
    fn runs_at_the_same_time_agree_on_one_authority() {
        let (_dir, setup) = fresh();
        let prints: Vec<_> = std::thread::scope(|scope| {
            let run = || setup.ensure_authority().expect("authority").certificate().fingerprint().to_owned();
            let runs: Vec<_> = (0..8).map(|_| scope.spawn(run)).collect();
            runs.into_iter().map(|run| run.join().expect("run")).collect()
        });
        assert!(prints.iter().all(|print| print == &prints[0]), "{prints:?}");
    }

    #[test]
    fn a_run_killed_between_the_ca_files_is_completed() {
        let (_dir, setup, ca) = complete();
        fs::remove_file(setup.path(SetupFile::CaCert)).expect("killed before the certificate");
        let next = setup.ensure_authority().expect("authority");
        assert_ne!(next.certificate().fingerprint(), ca.certificate().fingerprint());
    }

    #[test]
    fn a_ca_that_lost_its_key_or_does_not_fit_it_is_an_error_with_a_way_out() {
        let (_dir, setup, _) = complete();
        let (_other_dir, _, other) = complete();
        setup.write(SetupFile::CaKey, other.key_pem().expose()).expect("write");
        let said = setup.ensure_authority().expect_err("mismatch").to_string();
        assert!(said.contains("do not belong together") && said.contains("delete both"), "{said}");
        setup.write(SetupFile::CaKey, "half a ke").expect("write");
        let said = setup.ensure_authority().expect_err("damaged").to_string();
        assert!(said.contains("CA key") && said.contains("delete both"), "{said}");
        fs::remove_file(setup.path(SetupFile::CaKey)).expect("remove");
        let said = setup.ensure_authority().expect_err("lost").to_string();
        assert!(said.contains("ca.key is missing") && said.contains("delete ca.crt"), "{said}");
        assert!(setup.issue_server_cert(DOMAIN, DAY).is_err());
    }

    #[test]
    fn renewal_is_due_for_every_reason_and_for_none_otherwise() {
        let (_dir, setup, _) = complete();
        assert!(setup.renew_before(Duration::ZERO).expect("always"));
        assert!(!setup.renew_before(DAY * 30).expect("fresh"));
        assert!(setup.renew_before(DAY * 91).expect("too short"));

        setup.write(SetupFile::TunnelDomain, "other567.sortie.localhost").expect("write");
        assert!(setup.renew_before(DAY * 30).expect("another domain"));
        setup.write(SetupFile::TunnelDomain, DOMAIN).expect("write");

        // Killed between the two files: the new key stands beside the old certificate.
        let old = setup.require(SetupFile::TlsCert).expect("old");
        setup.issue_server_cert(DOMAIN, DAY * 90).expect("certificate");
        setup.write(SetupFile::TlsCert, old.expose()).expect("write");
        assert!(setup.renew_before(DAY * 30).expect("mismatch"));
        let said = setup.server_identity().expect_err("mismatch").to_string();
        assert!(said.contains("does not belong") && said.contains("renew-cert"), "{said}");
        setup.issue_server_cert(DOMAIN, DAY * 90).expect("certificate");
        assert!(!setup.renew_before(DAY * 30).expect("repaired"));

        fs::remove_file(setup.path(SetupFile::TlsCert)).expect("remove");
        assert!(setup.renew_before(DAY * 30).expect("missing"));
        assert!(setup.issue_server_cert("not a domain", DAY).is_err());
    }

    #[test]
    fn a_running_gateway_takes_over_a_renewed_certificate() {
        let (_dir, setup, _) = complete();
        let identity = setup.server_identity().expect("identity");
        assert!(!identity.reload().expect("same"));
        setup.issue_server_cert(DOMAIN, DAY * 100).expect("certificate");
        assert!(identity.reload().expect("renewed"));
    }

    #[test]
    fn other_files_round_trip_and_absence_says_what_to_do() {
        let (_dir, setup) = fresh();
        assert!(setup.read(SetupFile::TunnelToken).expect("read").is_none());
        let said = setup.require(SetupFile::EdgeAddr).expect_err("missing").to_string();
        assert!(said.contains("edge-addr is missing") && said.contains("setup init"), "{said}");
        for file in [SetupFile::TunnelId, SetupFile::TunnelToken, SetupFile::EdgeAddr, SetupFile::HubIdentity] {
            setup.write(file, " value\n").expect("write");
            assert_eq!(setup.require(file).expect("read").expose(), "value");
            assert_eq!(mode(setup.path(file)), if file.is_private() { 0o600 } else { 0o644 });
        }
        setup.write(SetupFile::EdgeCa, "\n").expect("write");
        assert!(setup.read(SetupFile::EdgeCa).expect("empty").is_none());
        fs::write(setup.path(SetupFile::EdgeCa), [0xff; 10]).expect("write");
        assert!(matches!(setup.read(SetupFile::EdgeCa), Err(SetupError::NotText { .. })));
        fs::write(setup.path(SetupFile::EdgeCa), vec![b'a'; 300 * 1024]).expect("write");
        assert!(matches!(setup.read(SetupFile::EdgeCa), Err(SetupError::NotText { .. })));
    }
}
