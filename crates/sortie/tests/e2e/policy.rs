//! `sortie policy`, and the commands of docs/policy.md.

use std::fs;

use sortie_testkit::{Program, TempHome};

use crate::common::{run, sortie, text};

const COOKBOOK: &str = include_str!("../../../../docs/policy.md");

fn policy(home: &TempHome, args: &[&str]) -> Program {
    sortie(home).arg("policy").args(args)
}

/// The text of the first fenced block of this kind.
fn block(kind: &str) -> &'static str {
    let begin = format!("```{kind}\n");
    let rest = COOKBOOK.split_once(begin.as_str()).expect(kind).1;
    rest.split_once("```").expect("an end").0
}

#[tokio::test]
async fn the_commands_of_the_cookbook_print_what_it_says() {
    let home = TempHome::new().expect("home");
    let file = home.write("policy.toml", block("toml policy")).expect("write");
    let file = file.to_str().expect("path");
    let mut commands = 0;
    for command in block("console").split("$ sortie policy ").skip(1) {
        let (command, expected) = command.split_once('\n').expect("an answer");
        let args: Vec<&str> = command.split(' ').map(|word| if word == "policy.toml" { file } else { word }).collect();
        let said = run(policy(&home, &args)).await.ok();
        assert_eq!(said.replace(file, "policy.toml"), expected, "{command}");
        commands += 1;
    }
    assert_eq!(commands, 3);
}

#[tokio::test]
async fn a_wrong_policy_file_ends_with_the_line_and_exit_code_2() {
    let home = TempHome::new().expect("home");
    let write = |name: &str, text: &str| home.write(name, text).expect("write").to_str().expect("path").to_owned();
    let wrong = write("wrong.toml", "[[allow]]\nroutes = 'a'\n\n[[allow]]\ntool = 'x'\n");
    run(policy(&home, &["check", &wrong])).await.failed(2, &["wrong.toml:5: unknown field `tool`"]);
    let done = run(policy(&home, &["check", &wrong, "--output", "json"])).await;
    done.failed(2, &["\"ok\": false", "wrong.toml:5: unknown field"]);
    run(policy(&home, &["test", &wrong])).await.failed(2, &["wrong.toml:5: "]);
    run(policy(&home, &["check", "/nowhere/policy.toml"])).await.failed(2, &["cannot be read"]);

    // What is surely not meant.
    let good = write("good.toml", "[[allow]]\nroutes = ['docs', 'dosc']\ntools = 'x'\n");
    let config = write("gateway.toml", "[routes.docs]\nupstream = \"http://127.0.0.1:9\"\n");
    let said = run(policy(&home, &["check", &good, "--config", &config, "--show-cedar"])).await.ok();
    assert!(said.contains("good.toml:1: the gateway has no route `dosc`"), "{said}");
    assert!(said.contains("resource in [Tool::\"docs/x\", Tool::\"dosc/x\"]"), "{said}");
    assert!(said.contains("good, 2 policies"), "{said}");
}

#[tokio::test]
async fn cases_beside_the_file_are_run_and_a_failed_one_ends_with_exit_code_1() {
    let home = TempHome::new().expect("home");
    let file = home.write("p.toml", "[[allow]]\nid = 'x'\nroutes = 'r'\ntools = 't'\n").expect("write");
    let file = file.to_str().expect("path").to_owned();
    run(policy(&home, &["test", &file])).await.failed(2, &["no cases: write [[test]] into"]);
    let cases = "[[test]]\nroute = 'r'\ntool = 't'\nexpect = 'allow'\n[[test]]\nname = 'no'\nroute = 'r'\ntool = 'u'\nexpect = 'ask'\n";
    let beside = home.write("p.test.toml", cases).expect("write");
    run(policy(&home, &["test", &file])).await.failed(
        1,
        &[
            " ask       deny   -   FAILED",
            "p.test.toml:5: no: expected ask, got deny: no policy allows it",
            "1 of 2 cases failed",
        ],
    );
    fs::write(&beside, cases.replace("'ask'", "'deny'")).expect("write");
    let report = run(policy(&home, &["test", &file, "--output", "json"])).await.json();
    assert_eq!((&report["ok"], &report["passed"]), (&true.into(), &2.into()), "{report}");
    assert_eq!(text(&report, "/data/0/policies/0"), "x");
}

#[tokio::test]
async fn an_explanation_says_what_is_missing() {
    let home = TempHome::new().expect("home");
    let toml = "[[allow]]\nid = 'small'\nroutes = 'r'\ntools = 't'\nwhere = [{ pointer = '/n', max = 3 }]\n";
    let file = home.write("p.toml", toml).expect("write");
    let file = file.to_str().expect("path");
    let explain = |arguments: &str| {
        policy(&home, &["explain", file, "--route", "r", "--tool", "t", "--output", "json", "--arguments", arguments])
    };
    let good = run(explain("{\"n\":3}")).await.json();
    assert_eq!(text(&good, "/decision"), "allow");
    assert_eq!(text(&good, "/looked_at/0/verdict"), "holds");
    let denied = run(explain("{\"n\":3.0}")).await.json();
    assert_eq!(text(&denied, "/decision"), "deny");
    assert!(text(&denied, "/reason").contains("`small` needs the argument `/n`"), "{denied}");
    run(explain("{")).await.failed(2, &["--arguments is not JSON"]);
    let args = ["explain", file, "--route", "r", "--tool", "t", "--caller", "name=x"];
    run(policy(&home, &args)).await.failed(2, &["--caller has no `name`"]);
}
