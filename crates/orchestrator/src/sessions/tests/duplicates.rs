//! What is sent twice, and what does not fit.

use serde_json::json;
use sortie_api::{EventBody, Verdict};
use sortie_ids::{EventId, SessionId};

use super::{Home, Refusal, message, reason, result_of, script};

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_counts_once() {
    let home = Home::new().await;
    let steps = json!([{"tools": [{"name": "bash"}, {"name": "pick"}, {"name": "write"}]}, {"text": "the end"}]);
    let id = home.create(vec![script(steps)]).await.id;
    let open = home.wait_for_open(&id).await;
    let events = home.events(&id).await;
    let used = |at: usize| events.iter().find(|event| event.id == open[at]).expect("listed").clone();
    let result = result_of(&used(0), "done");

    let first = home.post(&id, vec![result.clone()]).await.expect("taken");
    assert!(first[0].processed_at.is_some(), "an answer is processed on receipt");
    let again = home.post(&id, vec![result.clone()]).await.expect("echoed");
    assert_eq!(first, again, "the same answer is the same event");
    let other = home.post(&id, vec![result_of(&used(0), "something else")]).await;
    assert!(matches!(other, Err(Refusal::Conflict(_))), "{other:?}");

    let denied =
        |id: &EventId, result| EventBody::UserToolConfirmation { tool_use_id: id.clone(), result, deny_message: None };
    let early = home.post(&id, vec![result_of(&used(2), "early")]).await;
    assert!(matches!(early, Err(Refusal::Invalid(_))), "{early:?}");
    let word = home.post(&id, vec![denied(&open[2], Verdict::Deny)]).await.expect("taken");
    assert_eq!(home.post(&id, vec![denied(&open[2], Verdict::Deny)]).await.expect("echoed"), word);
    let other = home.post(&id, vec![denied(&open[2], Verdict::Allow)]).await;
    assert!(matches!(other, Err(Refusal::Conflict(_))), "{other:?}");
    let late = home.post(&id, vec![result_of(&used(2), "late")]).await;
    assert!(matches!(late, Err(Refusal::Conflict(_))), "{late:?}");

    let custom = EventBody::UserToolResult { tool_use_id: open[1].clone(), content: None, is_error: None };
    let wrong = home.post(&id, vec![custom]).await;
    assert!(matches!(wrong, Err(Refusal::Invalid(_))), "{wrong:?}");
    let twice = home.post(&id, vec![result_of(&used(1), "x"), result_of(&used(1), "x")]).await;
    assert!(matches!(twice, Err(Refusal::Invalid(_))), "twice in one request: {twice:?}");
    let unknown: EventId = "sevt_unknown".parse().expect("id");
    let body = EventBody::UserToolResult { tool_use_id: unknown, content: None, is_error: None };
    let both = home.post(&id, vec![result_of(&used(1), "x"), body]).await;
    assert!(matches!(both, Err(Refusal::Invalid(_))), "{both:?}");
    assert_eq!(super::answers(&home.events(&id).await, &open[1]), 0, "of a refused request nothing is taken");

    home.post(&id, vec![result_of(&used(1), "x")]).await.expect("taken");
    home.serve(&id).await;
    let after = home.post(&id, vec![result]).await.expect("echoed, also after the turn");
    assert_eq!(after, first);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_ends_what_waits_and_late_results_are_final() {
    let home = Home::new().await;
    let id = home.create(vec![script(json!([{"tools": [{"name": "bash"}]}, {"text": "never"}]))]).await.id;
    let open = home.wait_for_open(&id).await;
    let used = home.events(&id).await.into_iter().find(|event| event.id == open[0]).expect("listed");
    let interrupt = EventBody::UserInterrupt { session_thread_id: None };
    let echo = home.post(&id, vec![interrupt]).await.expect("taken");
    assert_eq!(echo[0].processed_at, None);
    let events = home.events(&id).await;
    assert!(super::open_uses(&events).is_empty());
    assert_eq!(reason(&events), Some(sortie_api::StopReason::EndTurn));
    let late = home.post(&id, vec![result_of(&used, "late")]).await;
    // Not a conflict: the official worker would try it again for minutes.
    assert!(matches!(late, Err(Refusal::Invalid(_))), "{late:?}");
    home.post(&id, vec![script(json!([{"text": "the end"}]))]).await.expect("taken");
    home.serve(&id).await;
    assert_eq!(super::said(&home.events(&id).await), ["the end"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_and_the_dead_take_nothing() {
    let home = Home::new().await;
    let id = home.create(Vec::new()).await.id;
    let nobody: SessionId = "sesn_nobody".parse().expect("id");
    let missing = home.post(&nobody, vec![message("hello")]).await;
    assert!(matches!(missing, Err(Refusal::NotFound)), "{missing:?}");
    let elsewhere = sortie_ids::WorkspaceId::random();
    let foreign = home.sessions().post(&elsewhere, &id, vec![message("hello")]).await;
    assert!(matches!(foreign, Err(Refusal::NotFound)), "{foreign:?}");
    let foreign = home.sessions().delete(&elsewhere, &id).await;
    assert!(matches!(foreign, Err(Refusal::NotFound)), "{foreign:?}");

    let archived = home.sessions().archive(&home.workspace, &id).await.expect("archived");
    assert_eq!(archived, home.sessions().archive(&home.workspace, &id).await.expect("still archived"));
    let dead = home.post(&id, vec![message("hello")]).await;
    assert!(matches!(dead, Err(Refusal::Terminated)), "{dead:?}");
    home.sessions().delete(&home.workspace, &id).await.expect("deleted");
    let gone = home.post(&id, vec![message("hello")]).await;
    assert!(matches!(gone, Err(Refusal::NotFound)), "{gone:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_at_work_is_neither_archived_nor_deleted() {
    let home = Home::new().await;
    let id = home.create(vec![script(json!([{"hang": true}]))]).await.id;
    let archived = home.sessions().archive(&home.workspace, &id).await;
    assert!(matches!(archived, Err(Refusal::Invalid(_))), "{archived:?}");
    let deleted = home.sessions().delete(&home.workspace, &id).await;
    assert!(matches!(deleted, Err(Refusal::Invalid(_))), "{deleted:?}");
    home.post(&id, vec![EventBody::UserInterrupt { session_thread_id: None }]).await.expect("taken");
    home.sessions().delete(&home.workspace, &id).await.expect("deleted");
}
