//! `sortie policy replay`, `learn`, `who` and `what`, and their examples in docs/policy.md.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use sortie_audit::{Arguments, CallDecided, DecidedAct, Decision, Draft, Log, Options, Outcome, kinds};
use sortie_identity::{Assurance, Caller};
use sortie_ids::Digest;
use sortie_policy::{Act, Counts, Effect, Engine, Query, Target};
use sortie_testkit::{Program, TempHome};

use crate::common::{run, sortie, text};

const COOKBOOK: &str = include_str!("../../../../docs/policy.md");

/// A log of what an engine decides.
struct Past {
    home: TempHome,
    engine: Engine,
    log: Log,
    calls: u32,
}

impl Past {
    fn begin(policy: &str) -> Self {
        let home = TempHome::new().expect("home");
        let engine = Engine::load(Path::new("policy.toml"), |_| Ok(policy.to_owned())).expect("a policy");
        let (dir, key_file) = (home.join("audit"), home.join("audit.key"));
        let log = Log::open(Options { dir, key_file, origin: "test".to_owned(), ..Options::default() }).expect("open");
        home.write("gateway.pub", log.verifying_key().to_string()).expect("write");
        home.write("policy.toml", policy).expect("write");
        Self { home, engine, log, calls: 0 }
    }

    /// Records one call as a gateway would.
    fn call(&mut self, caller: &Caller, method: &str, tool: Option<&str>, arguments: Option<&str>) -> Effect {
        let counts = Counts::default();
        let act = Act::Mcp { method, target: tool.map(Target::Tool) };
        let query = Query { caller, route: "wiki", act, arguments, now: 1_767_614_400, region: None, counts };
        let decision = self.engine.decide(&query);
        let outcome = match decision.effect {
            Effect::Allow => Outcome::Forwarded,
            Effect::Ask => Outcome::Waits,
            Effect::Deny => Outcome::Refused,
        };
        let mut decided = self.decided(caller, method, tool, arguments, outcome);
        decided.decision = Some(recorded(&decision, self.engine.counts().then_some(counts)));
        self.append(&decided);
        decision.effect
    }

    fn decided(
        &mut self,
        caller: &Caller,
        method: &str,
        tool: Option<&str>,
        arguments: Option<&str>,
        outcome: Outcome,
    ) -> CallDecided {
        self.calls += 1;
        CallDecided {
            id: format!("req_{}", self.calls),
            message: None,
            route: "wiki".to_owned(),
            caller: caller.clone(),
            act: DecidedAct { method: method.to_owned(), tool: tool.map(ToOwned::to_owned), ..DecidedAct::default() },
            arguments: arguments.map(|text| Arguments {
                sha256: Digest::of(text.as_bytes()).to_string(),
                bytes: u64::try_from(text.len()).expect("short"),
                shown: None,
            }),
            outcome,
            hop: None,
            reason: None,
            decision: None,
            approval: None,
            credential: None,
            mcp_session: None,
            region: None,
            trace: None,
            payload: None,
        }
    }

    fn append(&self, decided: &CallDecided) {
        self.log.append_now(&Draft::new(kinds::CALL_ALLOWED, decided).expect("small")).expect("append");
    }

    /// The command, with the names of files as in the examples.
    fn command(&self, line: &str) -> Program {
        let word = |word: &str| match word {
            "policy.toml" | "next.toml" | "audit" | "gateway.pub" | "learned.toml" => {
                self.home.join(word).to_str().expect("path").to_owned()
            }
            word => word.to_owned(),
        };
        sortie(&self.home).arg("policy").args(line.split(' ').map(word))
    }

    async fn said(&self, line: &str) -> String {
        let place = self.home.path().to_str().expect("path");
        run(self.command(line)).await.ok().replace(&format!("{place}/"), "")
    }

    async fn json(&self, line: &str) -> Value {
        run(self.command(&format!("{line} --audit audit --key gateway.pub --output json"))).await.json()
    }
}

fn recorded(decision: &sortie_policy::Decision, counts: Option<Counts>) -> Decision {
    let json = |value: &dyn Fn() -> serde_json::Result<Value>| value().expect("json");
    Decision {
        effect: decision.effect.to_string(),
        mode: "enforce".to_owned(),
        policies: decision.policies.iter().map(ToString::to_string).collect(),
        reason: decision.reason.clone(),
        policy_sha256: "0".repeat(64),
        facts: decision.facts.iter().map(|(name, fact)| (name.clone(), json(&|| serde_json::to_value(fact)))).collect(),
        fact_forms: decision.forms.iter().map(|(name, form)| (name.clone(), form.as_json().clone())).collect(),
        fact_faults: decision.faults.iter().map(|(name, fault)| (name.clone(), fault.code().to_owned())).collect(),
        now: 1_767_614_400,
        counts: counts.map(|counts| [counts.minute, counts.hour, counts.day]),
    }
}

fn agent(name: &str) -> Caller {
    let mut caller = Caller::new("hub", format!("session_of_{name}"), Assurance::Asserted, i64::MAX);
    caller.agent = Some(name.to_owned());
    caller
}

/// What the examples tell of.
fn cookbook() -> Past {
    let mut past = Past::begin(block("toml policy", 0));
    past.home.write("next.toml", example()).expect("write");
    let mut research = agent("research");
    research.workspace = Some("wrkspc_research".to_owned());
    let mut alice = Caller::new("https://idp.example.com", "alice", Assurance::Attested, i64::MAX);
    alice.claims.insert("groups".to_owned(), vec!["editors".to_owned()]);
    past.call(&research, "initialize", None, None);
    past.call(&research, "tools/list", None, None);
    for page in ["a", "b", "c"] {
        past.call(&research, "tools/call", Some("read_page"), Some(&json!({ "page": page }).to_string()));
    }
    past.call(&research, "tools/call", Some("search"), Some(r#"{"text":"x"}"#));
    past.call(&research, "tools/call", Some("write_page"), Some(r#"{"page":"a"}"#));
    past.call(&alice, "tools/call", Some("write_page"), Some(r#"{"page":"a","text":"new"}"#));
    past.call(&alice, "tools/call", Some("purge_page"), Some(r#"{"page":"a"}"#));
    past.log.close().expect("close");
    past
}

/// The text of the fenced block of this kind with this number.
fn block(kind: &str, number: usize) -> &'static str {
    let begin = format!("```{kind}\n");
    let rest = COOKBOOK.split(begin.as_str()).nth(number + 1).expect(kind);
    rest.split_once("```").expect("an end").0
}

/// The policy of the examples that is to come.
fn example() -> &'static str {
    let rest = COOKBOOK.split_once("## The recorded past").expect("the section").1;
    rest.split_once("```toml policy\n").expect("a policy").1.split_once("```").expect("an end").0
}

#[tokio::test]
async fn the_examples_about_the_past_print_what_they_say() {
    let past = cookbook();
    let section = COOKBOOK.split_once("## The recorded past").expect("the section").1;
    let section = section.split_once("## What lists show").expect("the next one").0;
    let (mut commands, mut wrong) = (0, String::new());
    for block in section.split("```console\n").skip(1) {
        let block = block.split_once("```").expect("an end").0;
        for command in block.split("$ sortie policy ").skip(1) {
            let (command, expected) = command.split_once('\n').expect("an answer");
            let said = past.said(command).await;
            // The time of the records is that of the test.
            let said: String = said.lines().map(|line| format!("{}\n", timeless(line))).collect();
            if said != expected {
                wrong.push_str(&format!("$ sortie policy {command}\n{said}"));
            }
            commands += 1;
        }
    }
    assert!(wrong.is_empty(), "it prints:\n{wrong}");
    assert_eq!(commands, 4);
}

/// A line with the times in it as the examples have them.
fn timeless(line: &str) -> String {
    let word = |word: &str| {
        let is_time = word.len() == 27 && word.starts_with("20") && word.ends_with('Z');
        if is_time { "2026-01-05T12:00:00.000000Z".to_owned() } else { word.to_owned() }
    };
    line.split(' ').map(word).collect::<Vec<_>>().join(" ")
}
