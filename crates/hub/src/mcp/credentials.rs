//! The credentials of vaults, at use.

use http::HeaderValue;
use sortie_ids::{CredentialId, VaultId};

/// What goes into `Authorization`.
#[derive(Clone)]
pub(crate) struct Bearer {
    /// Marked as sensitive.
    pub(crate) header: HeaderValue,
}

/// Why there is no credential although there should be one. Holds no secret.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    pub(crate) kind: &'static str,
    pub(crate) message: String,
    pub(crate) vault: VaultId,
    pub(crate) credential: CredentialId,
}

/// The credential for one server.
pub(crate) struct Bearers;

impl Bearers {
    pub(crate) async fn get(&self) -> Result<Option<Bearer>, Problem> {
        Ok(None)
    }

    pub(crate) async fn renewed(&self, _refused: &Bearer) -> Result<Option<Bearer>, Problem> {
        Ok(None)
    }
}
