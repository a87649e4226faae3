//! The certificate of the edge port and of terminated routes: one name, one certificate, made when it is asked for.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::DnsName;

use crate::server::Loaded;
use crate::{Authority, IssueError, unix_now};

/// Most certificates that are kept; beyond it the one unused for longest is dropped and made again when needed.
const MAX_CACHED: usize = 1024;

/// Validity of what is minted, and how long before its end it is replaced.
const LIFETIME: Duration = Duration::from_secs(30 * 86_400);
const RENEW_BEFORE: i64 = 10 * 86_400;

/// Certificates minted from an authority, one per name that a client asks for.
///
/// Served are the base domain, the extra names, `<x>.<base>` and `<x>.<label>.<base>`; any other name gets no
/// certificate, which ends the handshake. A client that names no host (it dialled an address) gets the base
/// certificate. All of them share one key, so that a flood of names costs one signature each.
pub struct EdgeIdentity {
    authority: Authority,
    key: KeyPair,
    base: String,
    extra: Vec<String>,
    cache: Mutex<Cache>,
}

#[derive(Default)]
struct Cache {
    /// Certificates by the label that their wildcard stands under; the base certificate under the empty label.
    minted: HashMap<String, Minted>,
    /// Counts uses, so that the least recent one is known.
    uses: u64,
}

struct Minted {
    certified: Arc<CertifiedKey>,
    not_after: i64,
    last_use: u64,
}

impl EdgeIdentity {
    /// An identity for a base domain and further names (DNS names, wildcards or IP literals, such as `127.0.0.1`).
    ///
    /// Mints the base certificate at once, so that a name or an authority that cannot work is noticed here.
    pub fn new(authority: Authority, base_domain: &str, extra_names: &[String]) -> Result<Self, IssueError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(IssueError::Signing)?;
        let base = base_domain.to_ascii_lowercase();
        let extra = extra_names.iter().map(|name| name.to_ascii_lowercase()).collect();
        let identity = Self { authority, key, base, extra, cache: Mutex::default() };
        identity.mint("", unix_now())?;
        Ok(identity)
    }

    /// The authority's certificate in PEM: what those who dial must trust.
    pub fn ca_pem(&self) -> &str {
        self.authority.cert_pem()
    }

    fn certificate(&self, sni: Option<&str>, now: i64) -> Option<Arc<CertifiedKey>> {
        let host = sni.map(str::to_ascii_lowercase);
        let label = match &host {
            None => "",
            Some(host) => self.label_of(host)?,
        };
        if let Some(certified) = self.cached(label, now) {
            return Some(certified);
        }
        match self.mint(label, now) {
            Ok(certified) => Some(certified),
            Err(error) => {
                tracing::error!(%error, "no certificate could be made for the edge port");
                None
            }
        }
    }

    /// The label under which a host's certificate stands: empty for the base certificate, `None` for foreign names.
    fn label_of<'a>(&self, host: &'a str) -> Option<&'a str> {
        if host == self.base || self.extra.iter().any(|name| matches(name, host)) {
            return Some("");
        }
        let under = host.strip_suffix(self.base.as_str())?.strip_suffix('.')?;
        DnsName::try_from(under).ok()?;
        match under.split_once('.') {
            None => Some(""),
            Some((_, label)) if !label.contains('.') => Some(label),
            Some(_) => None,
        }
    }

    fn cached(&self, label: &str, now: i64) -> Option<Arc<CertifiedKey>> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.uses += 1;
        let uses = cache.uses;
        let minted = cache.minted.get_mut(label)?;
        if minted.not_after.saturating_sub(now) < RENEW_BEFORE.min(self.longest_left(now)) {
            return None;
        }
        minted.last_use = uses;
        Some(Arc::clone(&minted.certified))
    }

    /// An authority near its own end issues short certificates; half of what it has left is then early enough.
    fn longest_left(&self, now: i64) -> i64 {
        self.authority.certificate().not_after_unix().saturating_sub(now) / 2
    }

    fn mint(&self, label: &str, now: i64) -> Result<Arc<CertifiedKey>, IssueError> {
        let names = if label.is_empty() {
            let own = [self.base.clone(), format!("*.{}", self.base)];
            own.into_iter().chain(self.extra.iter().cloned()).collect()
        } else {
            vec![format!("*.{label}.{}", self.base)]
        };
        let identity = self.authority.issue_server_for(&self.key, &names, LIFETIME, now)?;
        let loaded =
            Loaded::issued(&identity).map_err(|_| IssueError::Signing(rcgen::Error::CouldNotParseCertificate))?;

        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.minted.len() >= MAX_CACHED && !cache.minted.contains_key(label) {
            // The base certificate is always wanted; it is never the one to go.
            let candidates = cache.minted.iter().filter(|(label, _)| !label.is_empty());
            if let Some(oldest) = candidates.min_by_key(|(_, minted)| minted.last_use).map(|(label, _)| label.clone()) {
                cache.minted.remove(&oldest);
            }
        }
        cache.uses += 1;
        let minted =
            Minted { certified: Arc::clone(&loaded.certified), not_after: loaded.not_after, last_use: cache.uses };
        cache.minted.insert(label.to_owned(), minted);
        Ok(loaded.certified)
    }
}

impl ResolvesServerCert for EdgeIdentity {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.certificate(hello.server_name(), unix_now())
    }
}

impl fmt::Debug for EdgeIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EdgeIdentity").field("base", &self.base).field("extra", &self.extra).finish_non_exhaustive()
    }
}

/// Whether a name of a certificate, perhaps a wildcard, covers a host.
fn matches(name: &str, host: &str) -> bool {
    match name.strip_prefix("*.") {
        Some(parent) => host.split_once('.').is_some_and(|(first, rest)| !first.is_empty() && rest == parent),
        None => name == host && name.parse::<IpAddr>().is_err(),
    }
}
