use std::task::Poll;

use futures_util::FutureExt as _;
use sortie_identity::Assurance;

use super::*;
use crate::config::ApprovalSources;

const NOW: i64 = 1_800_000_000;

fn rules() -> ApprovalsConfig {
    ApprovalsConfig { timeout: Duration::from_secs(60), ..ApprovalsConfig::default() }
}

fn approvals() -> Approvals {
    Approvals::new(|| NOW, Audit::off())
}

fn asked(subject: &str, tool: &str, arguments: &str) -> Asked {
    Asked {
        caller: Arc::new(Caller::new("hub", subject, Assurance::Asserted, NOW + 60)),
        request_id: RequestId::random(),
        route: "bank".to_owned(),
        method: "tools/call".to_owned(),
        target: Some(tool.to_owned()),
        arguments: Some(summary(Some(arguments), false)),
        facts: BTreeMap::new(),
        policies: vec!["large-payments".to_owned()],
        reason: "large payment".to_owned(),
        request: ClientRequest { session: None, id: Some("7".to_owned()) },
    }
}

fn decide(decision: Choice, for_s: Option<u32>) -> DecideApproval {
    DecideApproval { decision, reason: Some("so it is".to_owned()), for_s }
}

fn ada() -> Approver {
    Approver::Local { uid: 1000, user: Some("ada".to_owned()) }
}

fn only(approvals: &Approvals) -> ApprovalId {
    let waiting = approvals.waiting();
    assert_eq!(waiting.len(), 1);
    waiting[0].id.clone()
}

#[tokio::test(start_paused = true)]
async fn an_approved_call_goes_on_and_a_denied_one_is_told_why() {
    let approvals = approvals();
    let mut first = Box::pin(approvals.ask(&rules(), asked("a", "pay", r#"{"amount":5}"#)));
    assert!(first.as_mut().now_or_never().is_none());
    tokio::time::advance(Duration::from_secs(7)).await;
    let shown = approvals.waiting().remove(0);
    assert_eq!((shown.waiting_s, shown.reason.as_str()), (7, "large payment"));
    let ended = approvals.decide(&shown.id, ada(), decide(Choice::Approve, None)).expect("decided");
    assert_eq!((ended.status, ended.waiting_s), (ApprovalStatus::Approved, 7));
    let approved = first.await.expect("approved");
    assert_eq!((approved.id, approved.decision.by), (shown.id.clone(), ada()));
    assert!(approvals.waiting().is_empty());
    assert_eq!(approvals.find(&shown.id).expect("remembered").status, ApprovalStatus::Approved);

    let second = approvals.ask(&rules(), asked("a", "pay", r#"{"amount":5}"#));
    let id = only(&approvals);
    approvals.decide(&id, ada(), decide(Choice::Deny, None)).expect("decided");
    let error = second.await.expect_err("denied");
    assert_eq!((error.hop, error.status), (Hop::Policy, StatusCode::FORBIDDEN));
    assert_eq!(error.reason, format!("approval {id} was denied by ada: so it is"));
}

#[tokio::test(start_paused = true)]
async fn what_nobody_decides_is_refused() {
    let approvals = approvals();
    let began = Instant::now();
    let waiting = approvals.ask(&rules(), asked("a", "pay", "{}"));
    let id = only(&approvals);
    let error = waiting.await.expect_err("expired");
    assert_eq!((error.hop, error.status), (Hop::Policy, StatusCode::FORBIDDEN));
    assert!(error.reason.contains(id.as_str()), "{}", error.reason);
    assert_eq!(began.elapsed(), Duration::from_secs(60));
    let late = approvals.decide(&id, ada(), decide(Choice::Approve, None)).expect_err("too late");
    assert_eq!((late.status, late.message.contains("expired already")), (StatusCode::CONFLICT, true));
}

#[tokio::test(start_paused = true)]
async fn a_decision_in_the_last_moment_counts_once() {
    let approvals = approvals();
    let mut waiting = Box::pin(approvals.ask(&rules(), asked("a", "pay", "{}")));
    assert!(matches!(futures_util::poll!(waiting.as_mut()), Poll::Pending));
    let id = only(&approvals);
    // The time is over, and the call has not noticed.
    tokio::time::advance(Duration::from_secs(61)).await;
    approvals.decide(&id, ada(), decide(Choice::Approve, None)).expect("decided");
    waiting.await.expect("what the approver was told is what happens");
}

#[tokio::test]
async fn of_two_who_decide_the_first_wins_and_the_second_is_told() {
    let approvals = approvals();
    let waiting = approvals.ask(&rules(), asked("a", "pay", "{}"));
    let id = only(&approvals);
    approvals.decide(&id, ada(), decide(Choice::Deny, None)).expect("first");
    let bob = Approver::Local { uid: 1001, user: None };
    let second = approvals.decide(&id, bob, decide(Choice::Approve, None)).expect_err("second");
    assert_eq!(
        (second.status, second.message.contains("denied already: ada decided at ")),
        (StatusCode::CONFLICT, true)
    );
    assert!(waiting.await.is_err());
    let unknown = approvals.decide(&ApprovalId::random(), ada(), decide(Choice::Deny, None)).expect_err("unknown");
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn who_goes_away_waits_no_longer() {
    let approvals = approvals();
    let waiting = approvals.ask(&rules(), asked("a", "pay", "{}"));
    let id = only(&approvals);
    drop(waiting);
    assert!(!approvals.any());
    let late = approvals.decide(&id, ada(), decide(Choice::Approve, None)).expect_err("gone");
    assert!(late.message.contains("withdrawn already"), "{}", late.message);

    // By notification: the same caller, route, session and id, and no other.
    let waiting = approvals.ask(&rules(), asked("a", "pay", "{}"));
    let caller = |subject: &str| Caller::new("hub", subject, Assurance::Asserted, 0).digest();
    let request = |id: &str| ClientRequest { session: None, id: Some(id.to_owned()) };
    let session = ClientRequest { session: Some(Digest::of(b"s")), id: Some("7".to_owned()) };
    approvals.cancelled(&caller("b"), "bank", &request("7"));
    approvals.cancelled(&caller("a"), "docs", &request("7"));
    approvals.cancelled(&caller("a"), "bank", &request("\"7\""));
    approvals.cancelled(&caller("a"), "bank", &session);
    assert!(approvals.any());
    approvals.cancelled(&caller("a"), "bank", &request("7"));
    assert!(!approvals.any());
    assert!(waiting.await.expect_err("withdrawn").reason.contains("cancelled"));
}

#[tokio::test]
async fn a_stop_approves_nothing() {
    let approvals = approvals();
    let waiting = approvals.ask(&rules(), asked("a", "pay", "{}"));
    approvals.stop();
    assert_eq!(waiting.await.expect_err("stopped").status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(approvals.ask(&rules(), asked("a", "pay", "{}")).await.is_err());
}

/// The approval of a call is worth nothing for any other, unless it lasts, and then only for the very same.
#[tokio::test(start_paused = true)]
async fn an_approval_that_lasts_is_for_the_same_call_alone() {
    let approvals = approvals();
    let first = approvals.ask(&rules(), asked("a", "pay", r#"{"amount":5}"#));
    let id = only(&approvals);
    approvals.decide(&id, ada(), decide(Choice::Approve, Some(600))).expect("decided");
    first.await.expect("approved");
    let again = || asked("a", "pay", r#"{"amount":5}"#);
    assert_eq!(approvals.ask(&rules(), again()).await.expect("repeated").id, id);
    let mut other_policy = again();
    other_policy.policies.push("night".to_owned());
    let other_route = Asked { route: "docs".to_owned(), ..again() };
    let other_method = Asked { method: "prompts/get".to_owned(), ..again() };
    let unseen = Asked { arguments: None, ..again() };
    for other in [
        asked("b", "pay", r#"{"amount":5}"#),
        asked("a", "Pay", r#"{"amount":5}"#),
        asked("a", "pay", r#"{"amount":6}"#),
        asked("a", "pay", r#"{"amount": 5}"#),
        other_policy,
        other_route,
        other_method,
        unseen,
    ] {
        let name = format!("{other:?}");
        assert!(approvals.ask(&rules(), other).now_or_never().is_none(), "{name}");
    }
    tokio::time::advance(Duration::from_secs(601)).await;
    assert!(approvals.ask(&rules(), again()).now_or_never().is_none());
}

#[tokio::test]
async fn what_is_not_known_does_not_last() {
    let approvals = approvals();
    let waiting = approvals.ask(&rules(), Asked { arguments: None, ..asked("a", "POST /pay", "") });
    let id = only(&approvals);
    let refused = approvals.decide(&id, ada(), decide(Choice::Approve, Some(60))).expect_err("refused");
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    approvals.decide(&id, ada(), decide(Choice::Approve, None)).expect("this call alone");
    waiting.await.expect("approved");
}

#[tokio::test]
async fn one_caller_does_not_take_the_places_of_others() {
    let approvals = approvals();
    let rules = ApprovalsConfig { max_waiting: 5, max_waiting_per_caller: 2, ..rules() };
    let mut held = Vec::new();
    for _ in 0..2 {
        held.push(approvals.ask(&rules, asked("flood", "pay", "{}")));
    }
    let error = approvals.ask(&rules, asked("flood", "pay", "{}")).await.expect_err("its share");
    assert_eq!((error.hop, error.status), (Hop::Policy, StatusCode::TOO_MANY_REQUESTS));
    assert!(error.reason.contains("2 calls of this caller"), "{}", error.reason);
    for other in ["b", "c", "d"] {
        held.push(approvals.ask(&rules, asked(other, "pay", "{}")));
    }
    let error = approvals.ask(&rules, asked("e", "pay", "{}")).await.expect_err("full");
    assert!(error.reason.contains("5 calls wait"), "{}", error.reason);
    drop(held);
    let free = approvals.ask(&rules, asked("flood", "pay", "{}"));
    assert!(approvals.any());
    drop(free);
    assert!(approvals.lock().of_caller.is_empty(), "nothing is remembered of who left");
}

#[tokio::test]
async fn what_has_ended_is_remembered_within_bounds() {
    let approvals = approvals();
    for _ in 0..RECENT + 10 {
        drop(approvals.ask(&rules(), asked("a", "pay", "{}")));
    }
    assert_eq!(approvals.lock().ended.len(), RECENT);
}

#[test]
fn who_may_decide_is_a_setting() {
    assert!(ApprovalSources::default().local() && !ApprovalSources::default().hub());
}
