use serde_json::json;
use sortie_api::{CreateAgent, UpdateAgent};

use super::*;
use crate::testing::{Fixture, all, first, on_both};

on_both![
    each_change_makes_a_version,
    what_was_read_before_another_change_is_not_written,
    of_changes_at_the_same_time_each_has_its_version,
    an_archived_agent_stays_as_it_is,
    lists_go_page_by_page_and_by_time,
    agents_are_found_in_their_workspace_only,
];

fn definition(name: &str) -> AgentDefinition {
    let request: CreateAgent = serde_json::from_value(json!({"name": name, "model": "scripted"})).expect("request");
    request.define().expect("definition")
}

fn change(
    body: serde_json::Value,
) -> impl FnOnce(AgentDefinition) -> Result<AgentDefinition, ApiError> + Send + 'static {
    let request: UpdateAgent = serde_json::from_value(body).expect("request");
    move |before| request.apply(before)
}

/// The status and the words of a refusal.
fn refusal(error: StoreError) -> (u16, String) {
    match error {
        StoreError::Refused(error) => (error.status.as_u16(), error.message),
        other => panic!("{other}"),
    }
}

async fn each_change_makes_a_version(mut f: Fixture) {
    let made = f.store.create_agent(&f.home, definition("a")).await.expect("made");
    f.pass(10);
    let same = f.store.update_agent(&f.home, &made.id, Some(1), change(json!({"name": "a"}))).await.expect("same");
    assert_eq!((same.object, same.members), (made.clone(), Vec::new()));
    let change = change(json!({"name": "b", "system": "Be brief."}));
    let changed = f.store.update_agent(&f.home, &made.id, None, change).await.expect("changed");
    assert_eq!(changed.members, ["name", "system"]);
    let second = changed.object;
    assert_eq!((second.version, second.created_at), (2, made.created_at));
    assert_eq!(second.updated_at.as_second() - made.updated_at.as_second(), 10);

    f.reopen().await;
    assert_eq!(f.store.agent(&f.home, &made.id, None).await.expect("newest"), second);
    assert_eq!(f.store.agent(&f.home, &made.id, Some(2)).await.expect("second"), second);
    assert_eq!(f.store.agent(&f.home, &made.id, Some(1)).await.expect("first"), made);
    let none = f.store.agent(&f.home, &made.id, Some(3)).await.expect_err("no third");
    assert!(matches!(none, StoreError::NotFound(Object::Agent)));
    let versions = f.store.list_agent_versions(&f.home, &made.id, first(1)).await.expect("page");
    assert_eq!(versions.items, [second]);
    let rest = PageRequest { before: versions.next, ..first(1) };
    let versions = f.store.list_agent_versions(&f.home, &made.id, rest).await.expect("page");
    assert_eq!((versions.items, versions.next), (vec![made], None));
}

async fn what_was_read_before_another_change_is_not_written(f: Fixture) {
    let id = f.store.create_agent(&f.home, definition("a")).await.expect("made").id;
    f.store.update_agent(&f.home, &id, Some(1), change(json!({"name": "b"}))).await.expect("second");
    for body in [json!({"name": "c"}), json!({})] {
        let error = f.store.update_agent(&f.home, &id, Some(1), change(body)).await.expect_err("outdated");
        let (status, words) = refusal(error);
        assert_eq!(status, 409);
        assert!(words.contains("version 2"), "{words}");
    }
    let refused = f.store.update_agent(&f.home, &id, Some(2), change(json!({"name": ""}))).await.expect_err("refused");
    assert_eq!(refusal(refused).0, 400);
    assert_eq!(f.store.agent(&f.home, &id, None).await.expect("agent").definition.name, "b");
}

async fn of_changes_at_the_same_time_each_has_its_version(f: Fixture) {
    let id = f.store.create_agent(&f.home, definition("a")).await.expect("made").id;
    let each = (0..8).map(|at| f.store.update_agent(&f.home, &id, None, change(json!({"name": at.to_string()}))));
    let mut versions = Vec::new();
    for changed in futures_util::future::join_all(each).await {
        versions.push(changed.expect("changed").object.version);
    }
    versions.sort_unstable();
    assert_eq!(versions, [2, 3, 4, 5, 6, 7, 8, 9]);
    let one = (0..4).map(|at| f.store.update_agent(&f.home, &id, Some(9), change(json!({"system": at.to_string()}))));
    let won = futures_util::future::join_all(one).await.into_iter().filter(Result::is_ok).count();
    assert_eq!(won, 1, "of those who read the same version one wins");
}

async fn an_archived_agent_stays_as_it_is(f: Fixture) {
    let made = f.store.create_agent(&f.home, definition("a")).await.expect("made");
    f.pass(5);
    let archived = f.store.archive_agent(&f.home, &made.id).await.expect("archived");
    assert_eq!(archived.members, ["archived_at"]);
    f.pass(5);
    let again = f.store.archive_agent(&f.home, &made.id).await.expect("archived");
    assert_eq!((again.object, again.members), (archived.object.clone(), Vec::new()));
    let late = f.store.update_agent(&f.home, &made.id, None, change(json!({"name": "b"}))).await.expect_err("archived");
    assert_eq!(refusal(late).0, 400);
    assert_eq!(f.store.agent(&f.home, &made.id, None).await.expect("agent"), archived.object);
}

async fn lists_go_page_by_page_and_by_time(f: Fixture) {
    let mut made = Vec::new();
    for name in ["a", "b", "c"] {
        made.push(f.store.create_agent(&f.home, definition(name)).await.expect("made"));
        f.pass(10);
    }
    f.store.archive_agent(&f.home, &made[1].id).await.expect("archived");
    let names = |page: &Page<Agent>| page.items.iter().map(|agent| agent.definition.name.clone()).collect::<Vec<_>>();
    let list = async |created, page| f.store.list_agents(&f.home, created, page).await.expect("page");
    assert_eq!(names(&list(Created::default(), first(9)).await), ["c", "a"]);
    assert_eq!(names(&list(Created::default(), all()).await), ["c", "b", "a"]);
    let page = list(Created::default(), PageRequest { limit: 2, ..all() }).await;
    let rest = PageRequest { before: page.next, ..all() };
    assert_eq!(
        (names(&page), names(&list(Created::default(), rest).await)),
        (vec!["c".into(), "b".into()], vec!["a".into()])
    );

    let at = |index: usize| Some(made[index].created_at.as_second());
    assert_eq!(names(&list(Created { from: at(1), to: None }, all()).await), ["c", "b"]);
    assert_eq!(names(&list(Created { from: None, to: at(1) }, all()).await), ["b", "a"]);
    assert_eq!(names(&list(Created { from: at(1), to: at(1) }, all()).await), ["b"]);
    let outside = f.store.list_agents(&f.home, Created { from: at(2), to: None }, rest).await.expect_err("refused");
    assert_eq!(refusal(outside).0, 400);
}

async fn agents_are_found_in_their_workspace_only(f: Fixture) {
    let id = f.store.create_agent(&f.home, definition("a")).await.expect("made").id;
    let nobody = |error| matches!(error, StoreError::NotFound(Object::Agent));
    assert!(nobody(f.store.agent(&f.foreign, &id, None).await.expect_err("foreign")));
    assert!(nobody(f.store.update_agent(&f.foreign, &id, None, change(json!({}))).await.expect_err("foreign")));
    assert!(nobody(f.store.archive_agent(&f.foreign, &id).await.expect_err("foreign")));
    assert!(nobody(f.store.list_agent_versions(&f.foreign, &id, all()).await.expect_err("foreign")));
    assert!(f.store.list_agents(&f.foreign, Created::default(), all()).await.expect("page").items.is_empty());
}
