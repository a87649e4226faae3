use serde_json::{Value, json};
use sortie_api::{CreateCredential, Metadata, UpdateCredential, normalized_mcp_url};

use super::*;
use crate::testing::{Fixture, all, first, on_both};

on_both![
    secrets_are_sealed_and_read_by_their_users_only,
    the_first_vault_wins,
    a_vault_has_one_active_credential_for_a_place_and_twenty_at_most,
    archiving_removes_secrets,
    tokens_are_replaced_once_for_each_state,
    everything_is_found_in_its_workspace_only,
];

const CANARY: &str = "canary-of-a-credential";
const URL: &str = "https://mcp.example.com/mcp";

fn sent(auth: Value) -> (CredentialDefinition, CredentialSecrets) {
    let request: CreateCredential = serde_json::from_value(json!({"auth": auth})).expect("request");
    request.define(Timestamp::UNIX_EPOCH).expect("definition")
}

fn bearer(url: &str, token: &str) -> (CredentialDefinition, CredentialSecrets) {
    sent(json!({"type": "static_bearer", "mcp_server_url": url, "token": token}))
}

fn oauth() -> (CredentialDefinition, CredentialSecrets) {
    sent(json!({"type": "mcp_oauth", "mcp_server_url": URL, "access_token": "access-1", "refresh": {
        "token_endpoint": "https://auth.example.com/token", "client_id": "client", "refresh_token": "refresh-1",
        "token_endpoint_auth": {"type": "client_secret_basic", "client_secret": "client-1"},
    }}))
}

fn change(
    body: Value,
) -> impl FnOnce(CredentialDefinition, CredentialSecrets) -> Result<(CredentialDefinition, CredentialSecrets), ApiError>
+ Send
+ 'static {
    let request: UpdateCredential = serde_json::from_value(body).expect("request");
    move |definition, secrets| request.apply(definition, secrets, Timestamp::UNIX_EPOCH)
}

fn status(error: StoreError) -> u16 {
    let StoreError::Refused(error) = error else { panic!("{error}") };
    error.status.as_u16()
}

fn token(found: &FoundCredential) -> &str {
    match &found.secrets {
        CredentialSecrets::Bearer { token } => token.expose(),
        CredentialSecrets::Oauth { access_token, .. } => access_token.expose(),
        CredentialSecrets::Variable { value } => value.expose(),
    }
}

impl Fixture {
    async fn vault(&self) -> VaultId {
        let name = "vault".parse().expect("name");
        self.store.create_vault(&self.home, name, Metadata::new()).await.expect("vault").id
    }

    async fn keep(
        &self,
        vault: &VaultId,
        (definition, secrets): (CredentialDefinition, CredentialSecrets),
    ) -> Result<Credential, StoreError> {
        self.store.create_credential(&self.home, vault, definition, secrets).await
    }

    async fn find(&self, vaults: &[&VaultId], url: &str) -> Option<FoundCredential> {
        let vaults: Vec<VaultId> = vaults.iter().map(|vault| (*vault).clone()).collect();
        let place = normalized_mcp_url(url).expect("url");
        self.store.credentials_for(&self.home, &vaults, &place).await.expect("looked for")
    }
}

async fn secrets_are_sealed_and_read_by_their_users_only(mut f: Fixture) {
    let vault = f.vault().await;
    let made = f.keep(&vault, bearer("https://MCP.example.com:443/mcp/", CANARY)).await.expect("made");
    let found = f.find(&[&vault], URL).await.expect("found");
    assert_eq!((token(&found), &found.id, &found.vault, found.revision), (CANARY, &made.id, &vault, 1));
    assert!(!format!("{found:?} {made:?}").contains(CANARY));
    f.pass(5);
    let update = json!({"auth": {"type": "static_bearer", "token": format!("{CANARY}-2")}, "display_name": "mine"});
    let changed = f.store.update_credential(&f.home, &vault, &made.id, change(update)).await.expect("changed");
    assert_eq!(changed.members, ["display_name", "secrets"]);
    let same = f.store.update_credential(&f.home, &vault, &made.id, change(json!({}))).await.expect("same");
    assert_eq!((&same.object, same.members), (&changed.object, Vec::new()));

    f.reopen().await;
    let found = f.find(&[&vault], URL).await.expect("found");
    assert_eq!((token(&found), found.revision), ("canary-of-a-credential-2", 2));
    assert_eq!(f.store.credential(&f.home, &vault, &made.id).await.expect("shown"), changed.object);
    assert!(!f.lies_in_a_file(CANARY.as_bytes()), "only sealed");

    // What is sealed for one credential opens for no other.
    let other = f.keep(&vault, bearer("https://other.example.com", "other")).await.expect("made");
    let mut transaction = f.store.begin().await.expect("begin");
    query("UPDATE vault_credentials SET sealed = (SELECT sealed FROM vault_credentials WHERE id = $1) WHERE id = $2")
        .bind(made.id.as_str())
        .bind(other.id.as_str())
        .execute(transaction.on())
        .await
        .expect("moved");
    transaction.commit().await.expect("commit");
    let moved = f.store.open_credential(&f.home, &vault, &other.id).await.expect_err("moved");
    assert!(matches!(moved, StoreError::Corrupt("vault_credentials.sealed")));
}

async fn the_first_vault_wins(f: Fixture) {
    let (one, two, empty) = (f.vault().await, f.vault().await, f.vault().await);
    f.keep(&one, bearer(URL, "of-one")).await.expect("made");
    f.keep(&two, bearer(URL, "of-two")).await.expect("made");
    let gone = VaultId::random();
    assert_eq!(f.find(&[&empty, &gone, &two, &one], URL).await.as_ref().map(token), Some("of-two"));
    assert_eq!(f.find(&[&one, &two], URL).await.as_ref().map(token), Some("of-one"));
    assert!(f.find(&[&one, &two], "https://mcp.example.com/MCP").await.is_none());
    assert!(f.find(&[], URL).await.is_none());
    f.store.archive_vault(&f.home, &one).await.expect("archived");
    assert_eq!(f.find(&[&one, &two], URL).await.as_ref().map(token), Some("of-two"));
    let foreign = f.store.credentials_for(&f.foreign, &[two], URL).await.expect("looked for");
    assert!(foreign.is_none(), "another workspace's vault has nothing for us");
}

async fn a_vault_has_one_active_credential_for_a_place_and_twenty_at_most(f: Fixture) {
    let vault = f.vault().await;
    let each = (0..4).map(|_| f.keep(&vault, oauth()));
    let results = futures_util::future::join_all(each).await;
    let made: Vec<Credential> = results
        .into_iter()
        .filter_map(|result| match result {
            Ok(made) => Some(made),
            Err(error) => {
                assert_eq!(status(error), 409);
                None
            }
        })
        .collect();
    assert_eq!(made.len(), 1);
    f.store.archive_credential(&f.home, &vault, &made[0].id).await.expect("archived");
    f.keep(&vault, oauth()).await.expect("free again");
    for at in 0..19 {
        f.keep(&vault, bearer(&format!("https://s{at}.example.com"), "t")).await.expect("made");
    }
    let full = f.keep(&vault, bearer("https://one-more.example.com", "t")).await.expect_err("full");
    assert_eq!(status(full), 400);
    let page = f.store.list_credentials(&f.home, &vault, all()).await.expect("page");
    assert_eq!(page.items.len(), 21, "the archived one is listed, too");
    let page = f.store.list_credentials(&f.home, &vault, first(15)).await.expect("page");
    let rest = PageRequest { before: page.next, ..first(15) };
    assert_eq!(f.store.list_credentials(&f.home, &vault, rest).await.expect("page").items.len(), 5);
}

async fn archiving_removes_secrets(f: Fixture) {
    let vault = f.vault().await;
    let one = f.keep(&vault, bearer("https://one.example.com", "t")).await.expect("made");
    let two = f.keep(&vault, bearer("https://two.example.com", "t")).await.expect("made");
    let archived = f.store.archive_credential(&f.home, &vault, &one.id).await.expect("archived");
    let again = f.store.archive_credential(&f.home, &vault, &one.id).await.expect("archived");
    assert_eq!((again.object, again.members), (archived.object, Vec::new()));
    assert_eq!(status(f.store.open_credential(&f.home, &vault, &one.id).await.expect_err("gone")), 400);
    let late = f.store.update_credential(&f.home, &vault, &one.id, change(json!({}))).await.expect_err("archived");
    assert_eq!(status(late), 400);

    let archived = f.store.archive_vault(&f.home, &vault).await.expect("archived");
    assert_eq!((archived.fresh, archived.credentials), (true, vec![two.id.clone()]));
    let again = f.store.archive_vault(&f.home, &vault).await.expect("archived");
    assert_eq!((again.fresh, again.credentials, again.vault), (false, Vec::new(), archived.vault));
    let shown = f.store.credential(&f.home, &vault, &two.id).await.expect("its record stays");
    assert!(shown.archived_at.is_some());
    let left = query("SELECT id FROM vault_credentials WHERE sealed IS NOT NULL").read_all(&f.store.db()).await;
    assert!(left.expect("read").is_empty(), "no secret is left");
    assert_eq!(status(f.keep(&vault, bearer(URL, "t")).await.expect_err("archived")), 400);

    f.store.delete_vault(&f.home, &vault).await.expect("deleted");
    assert!(matches!(f.store.vault(&f.home, &vault).await.expect_err("gone"), StoreError::NotFound(Object::Vault)));
    let left = query("SELECT id FROM vault_credentials").read_all(&f.store.db()).await;
    assert!(left.expect("read").is_empty(), "nothing is left");
}

async fn tokens_are_replaced_once_for_each_state(f: Fixture) {
    let vault = f.vault().await;
    let made = f.keep(&vault, oauth()).await.expect("made");
    let end = Timestamp::from_second(1_900_000_000).expect("time");
    let new = |access: &str, refresh: Option<&str>| NewTokens {
        access_token: SecretText::new(access.to_owned()),
        refresh_token: refresh.map(|text| SecretText::new(text.to_owned())),
        expires_at: Some(end),
    };
    let each = (0..4).map(|at| f.store.replace_tokens(&made.id, 1, new(&format!("access-2-{at}"), None)));
    let won = futures_util::future::join_all(each).await;
    let won: Vec<_> = won.into_iter().map(|result| result.expect("asked")).collect();
    assert_eq!(won.iter().filter(|revision| **revision == Some(2)).count(), 1, "{won:?}");
    let winner = won.iter().position(Option::is_some).expect("one");
    let found = f.find(&[&vault], URL).await.expect("found");
    assert_eq!((token(&found), found.revision), (format!("access-2-{winner}").as_str(), 2));
    let CredentialSecrets::Oauth { refresh_token, client_secret, .. } = &found.secrets else { panic!("{found:?}") };
    let text = |secret: &Option<SecretText>| secret.as_ref().map(|secret| secret.expose().to_owned());
    assert_eq!((text(refresh_token).as_deref(), text(client_secret).as_deref()), (Some("refresh-1"), Some("client-1")));
    let shown = f.store.credential(&f.home, &vault, &made.id).await.expect("shown").definition.auth;
    assert!(matches!(shown, CredentialAuth::McpOauth { expires_at: Some(at), .. } if at == end));

    assert_eq!(f.store.replace_tokens(&made.id, 2, new("access-3", Some("refresh-3"))).await.expect("asked"), Some(3));
    let update = json!({"auth": {"type": "mcp_oauth", "access_token": "by-hand"}});
    f.store.update_credential(&f.home, &vault, &made.id, change(update)).await.expect("changed");
    let late = f.store.replace_tokens(&made.id, 3, new("access-4", None)).await.expect("asked");
    assert_eq!(late, None, "what was written by hand is not overwritten by an older refresh");
    assert_eq!(f.find(&[&vault], URL).await.as_ref().map(token), Some("by-hand"));
    f.store.archive_credential(&f.home, &vault, &made.id).await.expect("archived");
    assert_eq!(f.store.replace_tokens(&made.id, 5, new("access-5", None)).await.expect("asked"), None);
}

async fn everything_is_found_in_its_workspace_only(f: Fixture) {
    let vault = f.vault().await;
    let id = f.keep(&vault, oauth()).await.expect("made").id;
    let nobody = |error: StoreError| matches!(error, StoreError::NotFound(Object::Vault));
    let (store, foreign) = (&f.store, &f.foreign);
    assert!(nobody(store.vault(foreign, &vault).await.expect_err("foreign")));
    assert!(nobody(store.archive_vault(foreign, &vault).await.expect_err("foreign")));
    assert!(nobody(store.delete_vault(foreign, &vault).await.expect_err("foreign")));
    let rename = |name, metadata| Ok((name, metadata));
    assert!(nobody(store.update_vault(foreign, &vault, rename).await.expect_err("foreign")));
    assert!(nobody(store.credential(foreign, &vault, &id).await.expect_err("foreign")));
    assert!(nobody(store.open_credential(foreign, &vault, &id).await.expect_err("foreign")));
    assert!(nobody(store.list_credentials(foreign, &vault, all()).await.expect_err("foreign")));
    assert!(nobody(store.archive_credential(foreign, &vault, &id).await.expect_err("foreign")));
    assert!(nobody(store.delete_credential(foreign, &vault, &id).await.expect_err("foreign")));
    let update = store.update_credential(foreign, &vault, &id, change(json!({}))).await;
    assert!(nobody(update.expect_err("foreign")));
    let (definition, secrets) = bearer(URL, "t");
    assert!(nobody(store.create_credential(foreign, &vault, definition, secrets).await.expect_err("foreign")));
    assert!(store.list_vaults(foreign, all()).await.expect("page").items.is_empty());

    // A credential is in its own vault, not in another one of the workspace.
    let other = f.vault().await;
    let elsewhere = store.credential(&f.home, &other, &id).await.expect_err("another vault");
    assert!(matches!(elsewhere, StoreError::NotFound(Object::Credential)));
    store.delete_credential(&f.home, &vault, &id).await.expect("deleted");
    let gone = store.credential(&f.home, &vault, &id).await.expect_err("deleted");
    assert!(matches!(gone, StoreError::NotFound(Object::Credential)));
}
