//! The workspaces of an organisation. The one that was there first is the default.

use sortie_api::{DisplayName, Limits, PageRequest, Workspace};
use sortie_ids::{OrganizationId, WorkspaceId};

use crate::db::{self, Row};
use crate::error::During as _;
use crate::repeats::{Made, Once};
use crate::store::{Page, to_the_end};
use crate::{Object, Store, StoreError};

impl Store {
    /// Makes a workspace, once for each idempotency key.
    ///
    /// # Errors
    /// [`StoreError::TooManyWorkspaces`]; [`StoreError::IdempotencyKeyReused`] or
    /// [`StoreError::TooManyIdempotencyKeys`]; database errors.
    pub async fn create_workspace(
        &self,
        organization: &OrganizationId,
        name: DisplayName,
        limits: &Limits,
        once: Option<Once<Workspace>>,
    ) -> Result<Made<Workspace>, StoreError> {
        let (store, organization) = (self.clone(), organization.clone());
        let limit = limits.workspaces_per_organization;
        to_the_end(async move {
            let mut transaction = store.begin_alone().await?;
            // Answers are kept per workspace; those about the organisation, in its default one.
            let home = store.default_workspace().clone();
            if let Some(once) = &once
                && let Some(answered) = store.answered(&mut transaction, &home, once).await?
            {
                return Ok(answered);
            }
            let row = db::query("SELECT count(*) AS count FROM workspaces WHERE organization_id = $1")
                .bind(organization.as_str())
                .one(transaction.on())
                .await
                .during("counting workspaces")?;
            if row.integer("count")? >= i64::from(limit) {
                return Err(StoreError::TooManyWorkspaces(limit));
            }
            let made = Workspace { id: WorkspaceId::random(), name, is_default: false, created_at: store.now() };
            db::query("INSERT INTO workspaces (id, organization_id, name, created_at) VALUES ($1, $2, $3, $4)")
                .bind(made.id.as_str())
                .bind(organization.as_str())
                .bind(made.name.as_str())
                .bind(made.created_at.as_second())
                .execute(transaction.on())
                .await
                .during("storing a workspace")?;
            if let Some(once) = once {
                store.keep_answer(&mut transaction, &home, once, &made).await?;
            }
            transaction.commit().await.during("committing")?;
            Ok(Made::Now(made))
        })
        .await
    }

    /// The organisation's workspaces, newest first.
    ///
    /// # Errors
    /// Database errors.
    pub async fn list_workspaces(
        &self,
        organization: &OrganizationId,
        page: PageRequest,
    ) -> Result<Page<Workspace>, StoreError> {
        // No row is ever deleted, so that row ids are the order of creation.
        let rows = db::query(
            "SELECT rowid AS seq, id, name, created_at FROM workspaces \
             WHERE organization_id = $1 AND rowid < $2 ORDER BY rowid DESC LIMIT $3",
        )
        .bind(organization.as_str())
        .bind(page.before.unwrap_or(i64::MAX))
        .bind(i64::from(page.limit).saturating_add(1))
        .read_all(&self.db())
        .await
        .during("listing workspaces")?;
        let items = rows.iter().map(|row| Ok((row.integer("seq")?, self.workspace(row)?)));
        Ok(Page::of(items.collect::<Result<_, StoreError>>()?, page.limit))
    }

    /// Checks that the organisation has this workspace.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; database errors.
    pub async fn check_workspace(
        &self,
        organization: &OrganizationId,
        workspace: &WorkspaceId,
    ) -> Result<(), StoreError> {
        if self.organization_of(workspace).await? == *organization {
            return Ok(());
        }
        Err(StoreError::NotFound(Object::Workspace))
    }

    fn workspace(&self, row: &Row) -> Result<Workspace, StoreError> {
        let id: WorkspaceId = row.parsed("id")?;
        Ok(Workspace {
            is_default: id == *self.default_workspace(),
            name: row.parsed("name")?,
            created_at: row.time("created_at")?,
            id,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Fixture, all, first, on_both};

    on_both![workspaces_are_listed_newest_first_up_to_their_limit,];

    async fn workspaces_are_listed_newest_first_up_to_their_limit(mut f: Fixture) {
        f.limits.workspaces_per_organization = 3;
        let organization = f.store.organization_of(&f.home).await.expect("organisation");
        let make = async |name: &str| {
            let name = name.parse().expect("name");
            match f.store.create_workspace(&organization, name, &f.limits, None).await {
                Ok(Made::Now(made)) => Ok(made),
                Ok(other) => panic!("{other:?}"),
                Err(error) => Err(error),
            }
        };
        let (one, two) = (make("one").await.expect("made"), make("two").await.expect("made"));
        assert!(matches!(make("three").await, Err(StoreError::TooManyWorkspaces(3))));
        let page = f.store.list_workspaces(&organization, first(2)).await.expect("page");
        assert_eq!(page.items, [two.clone(), one.clone()]);
        let rest = PageRequest { before: page.next, ..all() };
        let rest = f.store.list_workspaces(&organization, rest).await.expect("page").items;
        assert_eq!(rest.iter().map(|one| (&one.id, one.is_default)).collect::<Vec<_>>(), [(&f.home, true)]);
        f.store.check_workspace(&organization, &one.id).await.expect("ours");
        let foreign = f.store.check_workspace(&organization, &f.foreign).await;
        assert!(matches!(foreign, Err(StoreError::NotFound(Object::Workspace))));
        f.reopen().await;
        assert_eq!(*f.store.default_workspace(), f.home, "the first one stays the default");
    }
}
