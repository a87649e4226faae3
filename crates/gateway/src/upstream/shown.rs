//! Connections to one server that have shown a caller's certificate: a pool for each certificate, and none for two.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use sortie_credentials::Certificate;
use sortie_runtime::TaskSet;

use super::dial::Dialer;
use super::pool::Pool;

/// The pools of one server, by the certificate that their connections have shown. There is one for each certificate that
/// a credential of the route holds or a call goes on with: a rotated one is another, and the old one's connections end
/// with the calls that they carry.
#[derive(Default)]
pub(crate) struct ShownPools(Mutex<Vec<(Weak<Certificate>, Arc<Pool>)>>);

impl ShownPools {
    /// The pool of a certificate.
    pub(crate) fn of(&self, certificate: &Arc<Certificate>, dialer: &Dialer, tasks: &TaskSet) -> Arc<Pool> {
        let mut pools = self.lock();
        // What is held weakly keeps its address, so that no later certificate is taken for this one.
        if let Some((_, pool)) = pools.iter().find(|(known, _)| is_of(known, certificate)) {
            return pool.clone();
        }
        pools.retain(|(known, _)| known.strong_count() > 0);
        let pool = Pool::new(dialer.showing(certificate), tasks.clone());
        pools.push((Arc::downgrade(certificate), pool.clone()));
        pool
    }

    /// Forgets the connections that have shown this certificate, since the server does not accept it any more.
    pub(crate) fn forget(&self, certificate: &Arc<Certificate>) {
        self.lock().retain(|(known, _)| !is_of(known, certificate));
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Weak<Certificate>, Arc<Pool>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_of(known: &Weak<Certificate>, certificate: &Arc<Certificate>) -> bool {
    std::ptr::eq(known.as_ptr(), Arc::as_ptr(certificate))
}
