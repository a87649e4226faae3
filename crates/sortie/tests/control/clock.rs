//! Clocks that are wrong, and clocks that jump: hub and gateway as they ship, under libfaketime.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use sortie_testkit::vault::ROLE_ID;
use sortie_testkit::{Process, TempHome, VaultServer, tool};

use crate::common::{Answer, SOON, World, run, sortie, until};
use crate::provider::{Provider, SECRET};
use crate::support::{Key, Point, grant, permit};

const HOUR: i64 = 3600;
/// A gateway that could not be linked tries again within a minute.
const AGAIN: Duration = Duration::from_secs(90);

/// The time of day of programs under test. Their monotonic clock goes on, as it does where somebody sets a real one.
struct Clock {
    library: String,
    file: PathBuf,
    _home: TempHome,
}

impl Clock {
    /// `None` where libfaketime is not installed.
    fn new() -> Option<Self> {
        let program = tool("SORTIE_TEST_FAKETIME")?;
        let shown = Command::new(program).args(["-m", "-f", "+0", "env"]).output().expect("faketime");
        let shown = String::from_utf8(shown.stdout).expect("text");
        let library = shown.lines().find_map(|line| line.strip_prefix("LD_PRELOAD=")).expect("its library").to_owned();
        let home = TempHome::new().expect("home");
        let clock = Self { library, file: home.join("clock"), _home: home };
        clock.set(0);
        Some(clock)
    }

    /// So many seconds ahead of the machine's.
    fn set(&self, ahead: i64) {
        let next = self.file.with_extension("next");
        std::fs::write(&next, format!("{ahead:+}\n")).expect("write");
        std::fs::rename(next, &self.file).expect("in place");
    }

    fn env(&self) -> Vec<(&'static str, String)> {
        let on = || "1".to_owned();
        vec![
            ("LD_PRELOAD", self.library.clone()),
            ("FAKETIME_TIMESTAMP_FILE", self.file.display().to_string()),
            ("FAKETIME_NO_CACHE", on()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", on()),
            ("NO_FAKE_STAT", on()),
        ]
    }
}

fn reads(keys: &[Key]) -> String {
    keys.iter().map(|key| grant(key, "up", &["read"]) + &grant(key, "twin", &["read"])).collect()
}

fn refused(answer: &Answer, said: &str) {
    assert_eq!((answer.status, answer.header("sortie-hop")), (401, Some("identity")), "{}", answer.text());
    assert!(answer.text().contains(said) && answer.text().contains("check the clocks"), "{}", answer.text());
}

fn unharmed(processes: &[&Process]) {
    for process in processes {
        assert!(!process.output().contains("panicked"), "{}", process.output());
    }
}

#[tokio::test]
async fn a_gateway_whose_clock_is_wrong_says_so_and_serves_when_it_is_right_again() {
    let Some(clock) = Clock::new() else { return };
    let mut world = World::start().await;
    world.env = clock.env();
    let point = Point::within(world, "policy.cedar", "", "", reads).await;
    let call = async || point.call(&point.keys[0], "up", "read", &json!({})).await;
    assert_eq!(call().await.status, 200);
    for (ahead, said) in [(HOUR, "expired"), (-HOUR, "not valid yet"), (24 * HOUR, "expired"), (-HOUR, "not valid yet")]
    {
        clock.set(ahead);
        for _ in 0..3 {
            refused(&call().await, said);
        }
        clock.set(0);
        assert_eq!(call().await.status, 200, "at once, after {ahead} s");
    }
    assert_eq!(point.server.ran().len(), 5, "nothing ran meanwhile");
    unharmed(&[&point.world.hub, &point.gateway.process]);
}

#[tokio::test]
async fn a_gateway_that_starts_long_before_its_certificates_begin_waits_for_its_clock() {
    let Some(clock) = Clock::new() else { return };
    let mut world = World::start().await;
    let tunnel = world.tunnel("setup").await;
    clock.set(-HOUR);
    world.env = clock.env();
    let settings = crate::common::routes(&[("up", "http://127.0.0.1:9")]);
    let (mut gateway, ready) = world.spawn_gateway(&tunnel.dir, &settings, &[]);
    until("it says why", SOON, async || gateway.output().contains("check the clocks")).await;
    assert!(!ready.exists(), "{}", gateway.output());
    clock.set(0);
    gateway.ready_file(&ready, AGAIN).await.expect("it serves by itself");
    unharmed(&[&world.hub, &gateway]);
}

#[tokio::test]
async fn what_lasts_outlives_a_jump_of_the_clock_both_ways() {
    let Some(clock) = Clock::new() else { return };
    let Some(provider) = Provider::start().await else { return };
    let vault = VaultServer::start().await.expect("vault");
    let secret_id = vault.state().secret_id.clone();
    let rest = format!(
        "\n[[routes.up.credentials]]\nname = \"database\"\nkind = \"basic\"\nusername_field = \"username\"\n\
         secret = {{ vault = \"corp\", path = \"database/creds/reader\", field = \"password\" }}\n\
         [[routes.twin.credentials]]\nname = \"crm\"\nkind = \"oauth\"\ntoken_url = \"{}/token\"\n\
         client_id = \"basic\"\nscope = \"read\"\nsecret = {{ command = [\"printf\", \"{SECRET}\"] }}\n\
         [vault.corp]\naddress = \"{}\"\n\
         approle = {{ role_id = \"{ROLE_ID}\", secret_id = {{ command = [\"printf\", \"{secret_id}\"] }} }}\n\
         [[limits]]\nroutes = [\"up\"]\ntools = [\"read\"]\nrate = \"2/h\"\n",
        provider.url,
        vault.url()
    );
    let policies = |keys: &[Key]| {
        let pays = permit(&keys[0], "== Action::\"tools/call\"", "== Tool::\"up/pay\"");
        format!("{}@ask(\"somebody pays\")\n{pays}", reads(keys))
    };
    // All certificates have begun two hours before.
    clock.set(2 * HOUR);
    let world = World::start_in(clock.env()).await;
    let point = Point::within(world, "policy.cedar", "approval_timeout = \"5m\"\n", &rest, policies).await;
    let key = &point.keys[0];
    let read = async |route: &str| point.call(key, route, "read", &json!({})).await.status;
    let session = point.session(key, "up").await;
    let listed = async || {
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {} });
        point.say(key, Some(&session), "2025-11-25", &body.to_string()).await.status
    };
    assert_eq!((read("up").await, read("up").await, read("up").await), (200, 200, 429));
    assert_eq!((read("twin").await, listed().await), (200, 200));
    let asked = || vault.state().requests.len();
    let (before, tokens) = (asked(), provider.seen().await.len());
    assert_eq!(tokens, 1);

    let pays = async { point.call(key, "up", "pay", &json!({ "amount": 1 })).await };
    let jumps = async {
        let approvals = |args: &[&str]| {
            let program = sortie(&point.world.home).arg("approvals").args(args);
            run(program.arg("--data-dir").arg(point.world.home.join("setup.data")))
        };
        let mut waiting = String::new();
        while !waiting.contains("apr_") {
            waiting = approvals(&["list", "--output", "json"]).await.ok();
        }
        let id = waiting.split('"').find(|text| text.starts_with("apr_")).expect("an id").to_owned();
        for ahead in [3 * HOUR, HOUR, 2 * HOUR] {
            clock.set(ahead);
            assert_eq!(read("up").await, 429, "a limit is not refilled by setting a clock: {ahead}");
            assert_eq!((read("twin").await, listed().await), (200, 200), "{ahead}");
            assert_eq!((asked(), provider.seen().await.len()), (before, tokens), "nothing is fetched anew: {ahead}");
            assert!(approvals(&["list", "--output", "json"]).await.ok().contains(&id), "it still waits: {ahead}");
        }
        approvals(&["approve", &id]).await.ok();
    };
    let (paid, ()) = tokio::join!(pays, jumps);
    assert_eq!(paid.status, 200, "{}", paid.text());
    assert_eq!(vault.state().live_leases().len(), 1);
    unharmed(&[&point.world.hub, &point.gateway.process]);
}
