use sortie_api::{CreateEnvironment, UpdateEnvironment};

use super::*;
use crate::testing::{Fixture, all, first, on_both};

on_both![
    what_is_made_is_found_in_its_workspace,
    a_live_name_is_taken_once,
    an_archived_environment_stays_as_it_is,
    only_an_empty_environment_is_deleted,
];

fn definition(name: &str) -> EnvironmentDefinition {
    let request: CreateEnvironment = serde_json::from_value(json!({"name": name})).expect("request");
    request.define().expect("definition")
}

fn change(
    body: serde_json::Value,
) -> impl FnOnce(EnvironmentDefinition) -> Result<EnvironmentDefinition, ApiError> + Send + 'static {
    let request: UpdateEnvironment = serde_json::from_value(body).expect("request");
    move |before| request.apply(before)
}

fn refusal(error: StoreError) -> (u16, Option<String>) {
    let StoreError::Refused(error) = error else { panic!("{error}") };
    let code = error.details.as_ref().and_then(|details| details["error_code"].as_str().map(ToOwned::to_owned));
    (error.status.as_u16(), code)
}

async fn what_is_made_is_found_in_its_workspace(mut f: Fixture) {
    let made = f.store.create_environment(&f.home, definition("lab")).await.expect("made");
    let other = f.store.create_environment(&f.foreign, definition("lab")).await.expect("the same name elsewhere");
    f.pass(5);
    let changed =
        f.store.update_environment(&f.home, &made.id, change(json!({"description": "d"}))).await.expect("changed");
    assert_eq!(changed.members, ["description"]);
    assert_eq!(changed.object.updated_at.as_second() - made.created_at.as_second(), 5);
    let same = f.store.update_environment(&f.home, &made.id, change(json!({"description": "d"}))).await.expect("same");
    assert_eq!((same.object, same.members), (changed.object.clone(), Vec::new()));
    f.reopen().await;
    assert_eq!(f.store.environment(&f.home, &made.id).await.expect("found"), changed.object);
    let nobody = |error| matches!(error, StoreError::NotFound(Object::Environment));
    assert!(nobody(f.store.environment(&f.home, &other.id).await.expect_err("foreign")));
    assert!(nobody(f.store.update_environment(&f.home, &other.id, change(json!({}))).await.expect_err("foreign")));
    assert!(nobody(f.store.archive_environment(&f.home, &other.id).await.expect_err("foreign")));
    assert!(nobody(f.store.delete_environment(&f.home, &other.id).await.expect_err("foreign")));
    assert_eq!(f.store.list_environments(&f.home, all()).await.expect("page").items, [changed.object]);
}

async fn a_live_name_is_taken_once(f: Fixture) {
    let each = (0..4).map(|_| f.store.create_environment(&f.home, definition("lab")));
    let mut made = Vec::new();
    for result in futures_util::future::join_all(each).await {
        match result {
            Ok(environment) => made.push(environment),
            Err(error) => assert_eq!(refusal(error).0, 409),
        }
    }
    assert_eq!(made.len(), 1, "of those who ask at the same time one gets it");
    let other = f.store.create_environment(&f.home, definition("other")).await.expect("made");
    let taken =
        f.store.update_environment(&f.home, &other.id, change(json!({"name": "lab"}))).await.expect_err("taken");
    assert_eq!(refusal(taken).0, 409);
    f.store.archive_environment(&f.home, &made[0].id).await.expect("archived");
    f.store.update_environment(&f.home, &other.id, change(json!({"name": "lab"}))).await.expect("free again");
}

async fn an_archived_environment_stays_as_it_is(f: Fixture) {
    let made = f.store.create_environment(&f.home, definition("lab")).await.expect("made");
    f.pass(5);
    let archived = f.store.archive_environment(&f.home, &made.id).await.expect("archived");
    assert_eq!(archived.members, ["archived_at"]);
    let again = f.store.archive_environment(&f.home, &made.id).await.expect("archived");
    assert_eq!((again.object, again.members), (archived.object.clone(), Vec::new()));
    let late = f.store.update_environment(&f.home, &made.id, change(json!({"name": "b"}))).await.expect_err("archived");
    assert_eq!(refusal(late), (400, Some("environment_archived".to_owned())));
    assert!(f.store.list_environments(&f.home, first(9)).await.expect("page").items.is_empty());
    assert_eq!(f.store.list_environments(&f.home, all()).await.expect("page").items, [archived.object]);
}

async fn only_an_empty_environment_is_deleted(f: Fixture) {
    let id = f.store.create_environment(&f.home, definition("lab")).await.expect("made").id;
    let agent: sortie_api::CreateAgent = serde_json::from_value(json!({"name": "a", "model": "m"})).expect("agent");
    let agent = f.store.create_agent(&f.home, agent.define().expect("agent")).await.expect("agent").id;
    let name = "test".parse().expect("name");
    let new = sortie_api::CreateKey {
        kind: sortie_api::KeyKind::Manage,
        name,
        expires_at: None,
        grants: Vec::new(),
        agent: None,
        user: None,
        workspace_id: None,
        role: None,
    };
    let key = f.store.create_key(&f.home, new, &f.limits).await.expect("key").key.id;
    let mut transaction = f.store.begin().await.expect("begin");
    query(
        "INSERT INTO sessions (id, workspace_id, environment_id, agent_id, agent_version, key_id, thread_id, status, body, \
         state, revision, next_position, next_entry, created_at, updated_at) \
         VALUES ('sesn_1', $1, $2, $3, 1, $4, 'sthr_1', 'idle', '{}', '', 0, 0, 0, 0, 0)",
    )
    .bind(f.home.as_str())
    .bind(id.as_str())
    .bind(agent.as_str())
    .bind(key.as_str())
    .execute(transaction.on())
    .await
    .expect("session");
    transaction.commit().await.expect("commit");
    let held = f.store.delete_environment(&f.home, &id).await.expect_err("a session is in it");
    assert_eq!(refusal(held).0, 409);
    f.damage("DELETE FROM sessions").await;
    f.store.delete_environment(&f.home, &id).await.expect("deleted");
    assert!(f.store.environment(&f.home, &id).await.is_err());
}
