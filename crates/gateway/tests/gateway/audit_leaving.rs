//! Callers that go away while something of their call is still on its way into the log: nothing is left open there.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use serde_json::{Value, json};
use sortie_audit::{Faults, Step};
use sortie_gateway::GatewayOptions;
use sortie_runtime::TaskSet;

use crate::approvals::{answered, calling, decide, gone, one, pay};
use crate::audit::{decided, of, post, tool};
use crate::support::*;

/// A disk that answers nothing while it is held, so that records with `durability = "power"` are not kept yet.
#[derive(Clone, Default)]
struct Disk(Arc<(Mutex<bool>, Condvar)>);

/// Holds the disk while it lives.
struct Held(Disk);

impl Disk {
    fn hold(&self) -> Held {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        Held(self.clone())
    }

    fn options(&self) -> GatewayOptions {
        let disk = self.clone();
        let faults = Faults::new(move |step, _, bytes| {
            let (held, changed) = &*disk.0;
            let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
            while *held && step == Step::Sync {
                held = changed.wait(held).unwrap_or_else(PoisonError::into_inner);
            }
            Ok(bytes)
        });
        GatewayOptions { audit_faults: faults, ..GatewayOptions::default() }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let (held, changed) = &*self.0.0;
        *held.lock().unwrap_or_else(PoisonError::into_inner) = false;
        changed.notify_all();
    }
}

const POLICY: &str = r#"
@id("all")
permit (principal, action, resource in Route::"docs") unless { resource == Tool::"docs/pay" };
@id("careful") @ask("somebody pays")
permit (principal, action == Action::"tools/call", resource == Tool::"docs/pay");
"#;

/// A gateway on such a disk that asks for calls of `pay`, and whose waiting callers hear something after a second.
async fn world(tasks: &TaskSet, upstream: &Upstream, disk: &Disk) -> World {
    let config = upstream.config().replace("[upstream]", "keepalive = \"1s\"\n[upstream]");
    let config =
        format!("policy = \"enforce\"\npolicy_file = \"policy.cedar\"\n{config}[audit]\ndurability = \"power\"\n");
    let prepare = |setup: &sortie_tls::SetupDir| {
        std::fs::write(setup.path(sortie_tls::SetupFile::TunnelDomain).with_file_name("policy.cedar"), POLICY)
            .expect("policy");
    };
    let world = World::start_as(tasks, &config, disk.options(), prepare).await;
    world.link().await;
    world
}

fn outcomes(world: &World) -> Vec<Value> {
    decided(world).iter().map(|record| record.get("outcome").cloned().unwrap_or_default()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_before_the_record_is_kept_has_a_record_of_the_end() {
    let tasks = TaskSet::new();
    let (upstream, disk) = (Upstream::ok(&tasks).await, Disk::default());
    let world = world(&tasks, &upstream, &disk).await;
    assert_eq!(post(&world, &tool("search", json!({}))).await.status(), 200);
    until(|| of(&world, "call_done").len() == 1).await;

    let held = disk.hold();
    let answer = calling(&world, &tool("search", json!({})), "*/*");
    until(|| decided(&world).len() == 2).await;
    drop(answer);
    until(|| of(&world, "call_done").len() == 2).await;
    let (forwarded, done) = (decided(&world).remove(1), of(&world, "call_done").remove(1));
    assert_eq!((&done["decided"], &done["id"]), (&forwarded["seq"], &forwarded["id"]), "{done}");
    assert_eq!((&done["end"], &done["code"]), (&json!("caller left"), &json!("G1010W")), "{done}");
    assert!(done.get("status").is_none(), "{done}");
    drop(held);
    assert_eq!(upstream.count(), 1, "nothing of it reached the server");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_while_a_call_waits_has_a_record_that_it_did_not_go_on() {
    let tasks = TaskSet::new();
    let (upstream, disk) = (Upstream::ok(&tasks).await, Disk::default());
    let world = world(&tasks, &upstream, &disk).await;
    let refused = |count: usize| {
        let last = decided(&world).into_iter().filter(|record| record["outcome"] == "refused").nth(count);
        last.filter(|record| record["reason"].as_str().is_some_and(|reason| reason.contains("the caller went away")))
    };
    // While it waits, before and after the head of an answer was sent.
    let answer = calling(&world, &pay(5), "application/json");
    one(&world).await;
    drop(answer);
    until(|| refused(0).is_some()).await;
    let response = answered(calling(&world, &pay(6), "text/event-stream")).await;
    one(&world).await;
    drop(response);
    until(|| refused(1).is_some()).await;
    gone(&world).await;
    let all = crate::audit::records(world.gateway.audit_dir().expect("audit"));
    for number in 0..2 {
        let refused = refused(number).expect("refused");
        let of_call: Vec<_> = all.iter().filter(|record| record["id"] == refused["id"]).collect();
        let events: Vec<_> = of_call.iter().map(|record| record["event"].as_str().expect("event")).collect();
        assert_eq!(events, ["call_decided", "approval_decided", "call_decided"]);
        assert_eq!((&of_call[0]["outcome"], &of_call[1]["status"]), (&json!("waits"), &json!("withdrawn")));
        assert_eq!((&refused["hop"], &refused["code"]), (&json!("policy"), &json!("G1001W")));
    }
    // Before it is kept that it waits.
    let held = disk.hold();
    let answer = calling(&world, &pay(7), "application/json");
    until(|| outcomes(&world).last() == Some(&json!("waits"))).await;
    drop(answer);
    until(|| refused(2).is_some()).await;
    drop(held);
    assert_eq!(upstream.count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_when_an_approved_call_is_about_to_go_on_has_a_record_of_the_end() {
    let tasks = TaskSet::new();
    let (upstream, disk) = (Upstream::ok(&tasks).await, Disk::default());
    let world = world(&tasks, &upstream, &disk).await;
    for (number, accept) in ["application/json", "text/event-stream"].into_iter().enumerate() {
        let answer = calling(&world, &pay(5), accept);
        // The head of an event stream comes first; what follows is in its body.
        let (answer, response) = match accept {
            "text/event-stream" => (None, Some(answered(answer).await)),
            _ => (Some(answer), None),
        };
        let approval = one(&world).await;
        let held = disk.hold();
        assert_eq!(decide(&world, &approval, json!({"decision": "approve"})).await.0, 200);
        until(|| outcomes(&world).last() == Some(&json!("forwarded"))).await;
        drop((answer, response));
        until(|| of(&world, "call_done").len() == number + 1).await;
        drop(held);
        let done = of(&world, "call_done").remove(number);
        assert_eq!(
            (&done["end"], &done["decided"]),
            (&json!("caller left"), &decided(&world).last().expect("one")["seq"])
        );
        assert_eq!(outcomes(&world).len(), 2 * (number + 1), "waits, forwarded, and nothing more");
    }
    assert_eq!(upstream.count(), 0);
}
