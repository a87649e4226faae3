//! `sortie policy replay`, `learn`, `who` and `what`, and their examples in docs/policy.md.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use sortie_audit::{Arguments, CallDecided, DecidedAct, Decision, Draft, Log, Options, Outcome, kinds};
use sortie_identity::{Assurance, Caller};
use sortie_ids::Digest;
use sortie_policy::{Act, Counts, Effect, Engine, Query, Target};
use sortie_testkit::{EchoServer, Program, TempHome};

use crate::common::{SOON, World, echo_route, run, sortie, text};

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
        for command in block.split("$ ").skip(1) {
            let (command, expected) = command.split_once('\n').expect("an answer");
            let said = match command.strip_prefix("sortie policy ") {
                Some(command) => past.said(command).await,
                None => {
                    let file = command.strip_prefix("cat ").expect("a command that is known");
                    fs::read_to_string(past.home.join(file)).expect("file")
                }
            };
            // The time of the records is that of the test.
            let said: String = said.lines().map(|line| format!("{}\n", timeless(line))).collect();
            if said != expected {
                wrong.push_str(&format!("$ {command}\n{said}"));
            }
            commands += 1;
        }
    }
    assert!(wrong.is_empty(), "it prints:\n{wrong}");
    assert_eq!(commands, 5);
}

/// A line with the times in it as the examples have them.
fn timeless(line: &str) -> String {
    let word = |word: &str| {
        let is_time = word.len() == 27 && word.starts_with("20") && word.ends_with('Z');
        if is_time { "2026-01-05T12:00:00.000000Z".to_owned() } else { word.to_owned() }
    };
    line.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

const PAYMENTS: &str = "[[allow]]\nid = 'small'\nagents = ['a', 'b']\nroutes = 'wiki'\ntools = 'pay'\n\
    where = [{ pointer = '/amount', type = 'decimal', max = 100 }]\n\
    [[ask]]\nid = 'large'\nwhy = 'much'\nagents = 'a'\nroutes = 'wiki'\ntools = 'transfer'\n";

/// Payments, a transfer that was approved, a call before a policy was asked, and one without a policy.
fn payments() -> Past {
    let mut past = Past::begin(PAYMENTS);
    let (a, b) = (agent("a"), agent("b"));
    for amount in [1, 50, 100, 101] {
        past.call(&a, "tools/call", Some("pay"), Some(&format!("{{\"amount\":{amount}}}")));
    }
    past.call(&b, "tools/call", Some("pay"), Some("{\"amount\":7}"));
    assert_eq!(past.call(&a, "tools/call", Some("transfer"), None), Effect::Ask);
    let mut approved = past.decided(&a, "tools/call", Some("transfer"), None, Outcome::Forwarded);
    approved.id = format!("req_{}", past.calls - 1);
    approved.approval = Some("appr_1".to_owned());
    let asked = [("effect", "ask"), ("mode", "enforce"), ("reason", "much"), ("policy_sha256", "")];
    let mut asked: serde_json::Map<String, Value> =
        asked.map(|(name, text)| (name.to_owned(), text.into())).into_iter().collect();
    asked.insert("now".to_owned(), 1_767_614_400.into());
    approved.decision = Some(serde_json::from_value(asked.into()).expect("a decision"));
    past.append(&approved);
    let refused = past.decided(&b, "tools/call", Some("pay"), None, Outcome::Refused);
    past.append(&refused);
    let without = past.decided(&b, "tools/call", Some("look"), None, Outcome::Forwarded);
    past.append(&without);
    let name = format!("{}\u{2026} (9000 bytes, sha256:{})", "x".repeat(64), "0".repeat(64));
    let long = past.decided(&b, "tools/call", Some(&name), None, Outcome::Forwarded);
    past.append(&long);
    past.log.close().expect("close");
    past
}

#[tokio::test]
async fn a_replay_counts_each_call_once_and_says_what_is_not_known() {
    let past = payments();
    let same = past.json("replay policy.toml").await;
    let count = |report: &Value, name: &str| report[name].as_u64().expect("a number");
    // What went on without a policy, and what has a name that nobody kept.
    assert_eq!(["calls", "same", "changed", "unknown"].map(|name| count(&same, name)), [8, 6, 1, 1]);
    assert_eq!((count(&same, "left_out"), &same["verified"]), (1, &json!(true)));
    assert_eq!(text(&same, "/data/0/was"), "no policy");

    past.home.write("next.toml", PAYMENTS.replace("100", "50")).expect("write");
    let next = past.json("replay next.toml --caller agent=a").await;
    assert_eq!(["calls", "same", "changed", "unknown"].map(|name| count(&next, name)), [5, 1, 0, 4]);
    assert_eq!(text(&next, "/data/0/needs/0"), "the argument `/amount`");
    assert_eq!((count(&next["data"][0], "calls"), count(&next["data"][0], "example")), (3, 1));
    let failed = |line: &'static str, said: &'static [&'static str], code| {
        let command = past.command(line);
        async move { run(command).await.failed(code, said) }
    };
    failed("replay next.toml --audit audit --fail-on-change", &["not verified", "otherwise", "not known"], 1).await;
    failed("replay next.toml --audit audit --caller agents=a", &["agents=a", "write KEY=VALUE"], 2).await;
    failed("replay next.toml --audit audit --since yesterday", &["is not a moment"], 2).await;
    failed("replay next.toml --audit /nowhere", &["/nowhere"], 2).await;
    let none = past.json("replay next.toml --until 1d").await;
    assert_eq!(count(&none, "calls"), 0);
    assert_eq!(count(&past.json("replay next.toml --since 1d --caller agent=b").await, "calls"), 3);
    run(past.command("replay policy.toml --audit audit --caller subject=session_of_a --fail-on-change")).await.ok();

    // A log that was changed is not asked.
    let file = past.home.join("audit/log/00000000000000000000.jsonl");
    let log = fs::read_to_string(&file).expect("log");
    fs::write(&file, log.replacen("\"agent\":\"b\"", "\"agent\":\"c\"", 1)).expect("write");
    failed("replay next.toml --audit audit --key gateway.pub", &["NOT verified"], 1).await;
}

#[tokio::test]
async fn what_is_learned_is_a_policy_that_decides_as_before() {
    let past = payments();
    let learned = past.json("learn --caller agent=a").await;
    assert_eq!(
        (learned["calls"].as_u64(), learned["allowed"].as_u64(), learned["denied"].as_u64()),
        (Some(4), Some(4), Some(1))
    );
    past.said("learn --audit audit --write learned.toml").await;
    let policy = fs::read_to_string(past.home.join("learned.toml")).expect("learned");
    assert!(
        policy.contains(
            r#"where = [
    { pointer = "/amount", type = "decimal", max = 100 },
]"#
        ),
        "{policy}"
    );
    assert!(policy.contains("[[ask]]"), "{policy}");
    run(past.command("learn --audit audit --write learned.toml")).await.failed(2, &["not there yet"]);
    past.said("check learned.toml").await;
    let report = past.json("replay learned.toml --caller agent=a").await;
    assert_eq!((&report["changed"], &report["unknown"]), (&json!(0), &json!(0)));
    // Without a policy everything that went on is learned.
    assert!(policy.contains("tools = \"look\""), "{policy}");
}

#[tokio::test]
async fn access_is_reviewed_with_and_without_a_log() {
    let past = payments();
    let who = past.said("who --route wiki --tool transfer --policy policy.toml").await;
    assert!(who.contains("agent a  after approval  -   large"), "{who}");
    let nobody = past.said("who --route wiki --tool purge --policy policy.toml").await;
    assert_eq!(nobody, "nobody may call purge of wiki\n");
    let what = past.json("what --agent a --policy policy.toml").await;
    assert_eq!(what["verified"], true);
    let rows = what["data"].as_array().expect("rows");
    let used: Vec<_> =
        rows.iter().map(|row| (row["name"].clone(), row["used"].clone(), row["access"].clone())).collect();
    assert_eq!(
        used,
        [(json!("pay"), json!(3), json!("only if")), (json!("transfer"), json!(1), json!("after approval"))]
    );
    assert_eq!(rows[0]["conditions"], json!(["/amount: decimal, max 100"]));
    let config =
        "policy = \"enforce\"\npolicy_file = \"policy.toml\"\n[routes.wiki]\nupstream = \"http://127.0.0.1:9\"\n";
    past.home.write("next.toml", config).expect("write");
    let by_config = past.said("what --agent b --config next.toml").await;
    assert!(by_config.contains("tool pay  only if"), "{by_config}");
    assert_eq!(past.said("what --agent z --policy policy.toml").await, "no policy is for it: it may do nothing\n");
    for (line, said) in [
        ("what --agent a --policy policy.toml --since 1d", "--audit DIR"),
        ("what --agent a --policy policy.toml --caller subject=x", "needs issuer="),
        ("what --agent a --policy policy.toml --caller user=x", "write KEY=VALUE"),
        ("what --policy policy.toml", "--agent"),
        ("who --route wiki --tool pay", "--policy"),
    ] {
        run(past.command(line)).await.failed(2, &[said]);
    }
}

#[tokio::test]
async fn the_log_of_a_gateway_answers_for_other_policies() {
    let world = World::start().await;
    let tunnel = world.tunnel("setup").await;
    let echo = EchoServer::start().await.expect("echo");
    let write =
        |name: &str, text: &str| world.home.write(name, text).expect("write").to_str().expect("path").to_owned();
    write(
        "said.cedar",
        "permit(principal, action == Action::\"tools/call\", resource) when { context.facts.said != \"no\" };",
    );
    let facts = "[facts.said]\nroutes = 'echo'\ntools = 'echo'\npointer = '/text'\ntype = 'string'\n";
    let old = write("old.toml", &format!("cedar = ['said.cedar']\n{facts}"));
    let settings = format!("policy = \"enforce\"\npolicy_file = \"{old}\"\n{}", echo_route(&echo));
    let mut gateway = world.gateway(&tunnel.dir, &settings, &[]).await;
    world.serves(&tunnel, "echo").await;
    for (said, status) in [("world", 200), ("no", 403), ("world", 200)] {
        assert_eq!(world.echo(&tunnel, "echo", said).await.status, status, "{said}");
    }
    assert!(gateway.process.stop(SOON).await.expect("it stops").success());

    let audit = world.home.join("setup.data").join("audit");
    let key = audit.join("key.pub");
    let policy = |args: &[&str]| {
        let program = sortie(&world.home).arg("policy").args(args).arg("--audit").arg(&audit);
        program.arg("--key").arg(&key).args(["--output", "json"])
    };
    let one_of =
        |list: &str| format!("[[allow]]\nroutes='echo'\ntools='echo'\nwhere=[{{pointer='/text',one_of=[{list}]}}]\n");
    let next = write("next.toml", &one_of("'hello'"));
    let report = run(policy(&["replay", &next])).await.json();
    let counts = ["calls", "same", "changed", "unknown"].map(|name| report[name].as_u64());
    assert_eq!(counts, [Some(4), Some(2), Some(2), Some(0)], "{report}");
    assert_eq!((&report["data"][0]["was"], &report["data"][0]["now"]), (&json!("allow"), &json!("deny")));

    let learned = run(policy(&["learn"])).await.json();
    assert!(text(&learned, "/policy").contains("one_of = [\"hello\", \"world\"]"), "{learned}");
    let learned = write("learned.toml", text(&learned, "/policy"));
    let report = run(policy(&["replay", &learned, "--fail-on-change"])).await.json();
    assert_eq!(report["same"], 4, "{report}");
}
