//! The official SDKs' workers, unmodified, against a hub: sessions on the scripted model, served to their end.

#![allow(clippy::indexing_slicing, reason = "a missing field of an answer is a failure")]

mod interop;

use std::path::Path;

use serde_json::{Value, json};
use sortie_testkit::{Program, TempHome, tool};

use interop::{Hub, LATE, python, sortie, succeeds};

/// An environment with a key of it.
struct Environment {
    id: String,
    key: String,
}

impl Environment {
    fn make(home: &TempHome, hub: &Hub) -> Self {
        let made = hub.json(home, ["environments", "create", "workshop"]);
        let id = made["id"].as_str().expect("id").to_owned();
        let key = hub.json(home, ["environments", "keys", "create", &id, "worker"]);
        Self { id, key: key["secret"].as_str().expect("secret").to_owned() }
    }
}

#[tokio::test]
async fn the_official_worker_serves_sessions_unmodified() {
    parts(&["served"]).await;
}

#[tokio::test]
async fn items_go_to_other_processes_and_other_workers() {
    parts(&["handed", "lost", "archived"]).await;
}

async fn parts(parts: &[&str]) {
    let Some(sdk) = tool("SORTIE_TEST_PYTHON_ANTHROPIC") else { return };
    let home = TempHome::new().expect("home");
    let hub = Hub::start_with(&home, ["--work-lease", "5"]).await;
    let environment = Environment::make(&home, &hub);
    let directory = home.join("work");
    std::fs::create_dir(&directory).expect("directory");
    let program = python(&home, &sdk, "environment_worker.py").args([hub.text("api_url"), hub.text("api_key")]);
    let program = program.args([&environment.id, &environment.key]).arg(directory);
    let said = succeeds(program.args(parts)).await;
    assert!(said.contains("all as expected"), "{said}");
}

#[tokio::test]
async fn the_official_typescript_worker_does_the_same() {
    let Some(sdk) = tool("SORTIE_TEST_NODE_ANTHROPIC") else { return };
    let home = TempHome::new().expect("home");
    let hub = Hub::start(&home).await;
    let environment = Environment::make(&home, &hub);
    let directory = home.join("work");
    std::fs::create_dir(&directory).expect("directory");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/node/environment_worker.mjs");
    let program = home.apply(Program::new("node")).arg(script).arg(sdk);
    let program = program.args([hub.text("api_url"), hub.text("api_key"), &environment.id, &environment.key]);
    let said = succeeds(program.arg(directory)).await;
    assert!(said.contains("all as expected"), "{said}");
}

#[tokio::test]
async fn workers_answer_a_check() {
    let Some(sdk) = tool("SORTIE_TEST_PYTHON_ANTHROPIC") else { return };
    let home = TempHome::new().expect("home");
    let hub = Hub::start(&home).await;
    let environment = Environment::make(&home, &hub);
    let program = python(&home, &sdk, "environment_worker.py").args(["serve", hub.text("api_url")]);
    let mut worker = program.args([&environment.id, &environment.key]).arg(home.path()).spawn().expect("worker");
    worker.ready_output("serving", LATE).await.expect("worker");
    let check = hub.json(&home, ["environments", "check", &environment.id]);
    assert_eq!(check["outcome"], "passed", "{check}\n{}", worker.output());
}

#[tokio::test]
async fn up_has_an_environment_with_a_key() {
    let home = TempHome::new().expect("home");
    let mut seen: Option<Value> = None;
    for _ in 0..2 {
        let ready_file = home.join("up.json");
        let program = sortie(&home).args(["up", "--api", "127.0.0.1:0", "--edge", "127.0.0.1:0"]);
        let program = program.arg("--data-dir").arg(home.join("up")).arg("--ready-file").arg(&ready_file);
        let mut up = program.arg("--files").arg(home.path()).spawn().expect("up");
        let ready = up.ready_file(&ready_file, LATE).await.expect("up");
        let key = std::fs::read_to_string(ready["environment"]["key_file"].as_str().expect("file")).expect("key");
        let now = json!({"id": ready["environment"]["id"], "key": key});
        assert!(key.starts_with("sortie-environment-"), "the text of a key");
        assert_eq!(seen.get_or_insert_with(|| now.clone()), &now, "the same after a restart");
        assert!(up.stop(LATE).await.expect("stopped").success());
    }
}
