//! Small things that the hub keeps beside its objects, by name.

use zeroize::Zeroizing;

use crate::db;
use crate::error::During as _;
use crate::open::secret_place;
use crate::store::to_the_end;
use crate::{Store, StoreError};

impl Store {
    /// The text under this name.
    ///
    /// # Errors
    /// Database errors.
    pub async fn get_meta(&self, name: &str) -> Result<Option<String>, StoreError> {
        let row = db::query("SELECT value FROM meta WHERE name = $1")
            .bind(name)
            .read_optional(&self.db())
            .await
            .during("reading a setting")?;
        row.as_ref().map(|row| row.text("value")).transpose()
    }

    /// Puts a text under a name, in place of one that is there. Not for secrets.
    ///
    /// # Errors
    /// Database errors.
    pub async fn put_meta(&self, name: &str, value: &str) -> Result<(), StoreError> {
        let (store, name, value) = (self.clone(), name.to_owned(), value.to_owned());
        to_the_end(async move {
            let mut transaction = store.begin().await?;
            db::query(
                "INSERT INTO meta (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            )
            .bind(name)
            .bind(value)
            .execute(transaction.on())
            .await
            .during("storing a setting")?;
            transaction.commit().await.during("committing")
        })
        .await
    }

    /// The secret under this name.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when it cannot be unsealed; database errors.
    pub async fn get_secret(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        let row = db::query("SELECT sealed FROM secrets WHERE name = $1")
            .bind(name)
            .read_optional(&self.db())
            .await
            .during("reading a secret")?;
        let Some(row) = row else { return Ok(None) };
        let secret = self.key().open(&secret_place(name), &row.bytes("sealed")?);
        secret.map(Some).ok_or(StoreError::Corrupt("secrets.sealed"))
    }

    /// Puts a secret under a name, sealed, in place of one that is there. Names that begin with `store.` are ours.
    ///
    /// # Errors
    /// Database errors.
    pub async fn put_secret(&self, name: &str, secret: &[u8]) -> Result<(), StoreError> {
        let sealed = self.key().seal(&secret_place(name), secret)?;
        let (store, name) = (self.clone(), name.to_owned());
        to_the_end(async move {
            let mut transaction = store.begin().await?;
            db::query(
                "INSERT INTO secrets (name, sealed) VALUES ($1, $2) \
                 ON CONFLICT (name) DO UPDATE SET sealed = excluded.sealed",
            )
            .bind(name)
            .bind(sealed)
            .execute(transaction.on())
            .await
            .during("storing a secret")?;
            transaction.commit().await.during("committing")
        })
        .await
    }
}
