//! The certificate of the edge port and of terminated routes: one name, one certificate, made when it is asked for.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

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
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(IssueError::signing)?;
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
        match under.split_once('.') {
            None => is_label(under).then_some(""),
            Some((route, label)) => (is_label(route) && is_label(label)).then_some(label),
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
        let loaded = Loaded::issued(&identity).map_err(|error| IssueError::Signing(error.to_string()))?;

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

/// Whether some text is one label of a hostname (RFC 1123 section 2.1), in lower case.
fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

/// Whether a name of a certificate, perhaps a wildcard, covers a host.
fn matches(name: &str, host: &str) -> bool {
    match name.strip_prefix("*.") {
        Some(parent) => host.split_once('.').is_some_and(|(first, rest)| !first.is_empty() && rest == parent),
        None => name == host && name.parse::<IpAddr>().is_err(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::*;
    use crate::{Versions, client_config, covers};

    const BASE: &str = "sortie.localhost";

    fn edge() -> EdgeIdentity {
        EdgeIdentity::new(authority(), BASE, &names(&["127.0.0.1", "edge.example.test", "*.alias.test"])).expect("edge")
    }

    fn cached(identity: &EdgeIdentity) -> usize {
        identity.cache.lock().expect("cache").minted.len()
    }

    #[test]
    fn each_host_gets_a_certificate_that_covers_it_and_foreign_ones_none() {
        let identity = edge();
        let now = unix_now();
        for host in [
            "sortie.localhost",
            "Abcd1234.Sortie.Localhost",
            "files--abcd1234.sortie.localhost",
            "files.abcd1234.sortie.localhost",
            "edge.example.test",
            "x.alias.test",
        ] {
            let certified = identity.certificate(Some(host), now).expect(host);
            assert!(covers(&certified.cert[0], host), "{host}");
        }
        assert_eq!(cached(&identity), 2, "the base certificate and one label's");
        for host in [
            "example.test",
            "a.b.abcd1234.sortie.localhost",
            "sortie.localhost.evil.test",
            "xsortie.localhost",
            "x.y.alias.test",
            ".sortie.localhost",
            "a..sortie.localhost",
            "127.0.0.1",
        ] {
            assert!(identity.certificate(Some(host), now).is_none(), "{host}");
        }
        assert_eq!(cached(&identity), 2);
    }

    #[test]
    fn a_certificate_is_made_once_and_again_before_it_ends() {
        let ca = Authority::generate("Test CA", 400).expect("authority");
        let identity = EdgeIdentity::new(ca, BASE, &[]).expect("edge");
        let now = unix_now();
        let at = |days: i64| identity.certificate(Some(HOST), now + days * 86_400).expect("certificate");
        let first = at(0);
        assert!(Arc::ptr_eq(&first, &at(19)));
        let second = at(21);
        assert!(!Arc::ptr_eq(&first, &second));
        assert!(Arc::ptr_eq(&second, &at(21)));
        // Near the authority's end its last certificate stays in use, and after it there is none.
        let last = at(399);
        assert!(Arc::ptr_eq(&last, &at(399)));
        assert!(identity.certificate(Some(HOST), now + 401 * 86_400).is_none());
    }

    #[test]
    fn the_cache_is_bounded_and_keeps_what_is_used() {
        let identity = edge();
        let now = unix_now();
        let base = identity.certificate(None, now).expect("base");
        let kept = identity.certificate(Some(HOST), now).expect("label");
        for index in 0..MAX_CACHED + 50 {
            let host = format!("files.label{index}.sortie.localhost");
            assert!(identity.certificate(Some(&host), now).is_some());
            if index % 500 == 0 {
                assert!(Arc::ptr_eq(&kept, &identity.certificate(Some(HOST), now).expect("label")));
            }
        }
        assert_eq!(cached(&identity), MAX_CACHED);
        assert!(Arc::ptr_eq(&base, &identity.certificate(None, now).expect("base")));
        assert!(Arc::ptr_eq(&kept, &identity.certificate(Some(HOST), now).expect("label")));
    }

    #[tokio::test]
    async fn real_clients_are_served_by_name_and_by_address() {
        let identity = Arc::new(edge());
        let client = client_config(identity.ca_pem(), false, Versions::Tls13, &[]).expect("client");
        let server = serve_with(identity, &[]);
        for host in [HOST, "sortie.localhost", "127.0.0.1"] {
            handshake(Arc::clone(&client), Arc::clone(&server), host).await.expect(host);
        }
        let said = refusal(client, server, "other.example").await;
        assert!(said.contains("refused"), "{said}");
    }

    #[test]
    fn names_that_cannot_work_are_refused_at_once() {
        assert!(matches!(EdgeIdentity::new(authority(), "not a domain", &[]), Err(IssueError::Name(_))));
        assert!(matches!(EdgeIdentity::new(authority(), BASE, &names(&["a b"])), Err(IssueError::Name(_))));
    }
}
