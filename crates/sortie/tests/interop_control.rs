//! The official clients as callers who may do some things and not others: what each of them sees of a list, of a call that
//! is refused, of one that a person has to approve, and of a secret that the gateway puts on calls.

mod interop;

use std::os::unix::fs::PermissionsExt as _;

use sortie_testkit::{EchoServer, Process, TempHome, tool};

use interop::walk::{Client, ended, node_clients, python_clients, step, transcript, ways};
use interop::{Hub, LATE, Tunnel, python, sortie, succeeds};

/// What all clients may do: two tools, and a third when somebody says yes.
const POLICY: &str = r#"
permit(principal, action in [Action::"base", Action::"list"], resource in Route::"echo");
permit(principal, action == Action::"tools/call", resource == Tool::"echo/echo");
permit(principal, action == Action::"tools/call", resource == Tool::"echo/headers");
@ask("it takes long")
permit(principal, action == Action::"tools/call", resource == Tool::"echo/slow");
"#;

/// What these clients printed, by path and by hostname.
async fn walked(clients: &[Client]) -> Vec<(String, Vec<String>)> {
    let home = TempHome::new().expect("home");
    let echo = EchoServer::start().await.expect("echo");
    let hub = Hub::start(&home).await;
    home.write("policy.cedar", POLICY).expect("policy");
    let secret = home.write("secret", "s3cret-4711").expect("secret");
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).expect("private");
    let settings = format!(
        "policy = \"enforce\"\npolicy_file = \"policy.cedar\"\n[upstream]\nallowed_ips = [\"127.0.0.1\"]\n\
         [routes.echo]\nupstream = \"http://{}\"\n[[routes.echo.credentials]]\nname = \"echo\"\nkind = \"bearer\"\n\
         secret = {{ file = {:?} }}\n",
        echo.addr(),
        secret
    );
    let tunnel = Tunnel::open(&home, &hub, &settings).await;
    let mut seen = Vec::new();
    for client in clients {
        let ways = ways(&hub, &tunnel, "echo");
        let running: Vec<Process> =
            ways.iter().map(|way| client.walk(&home, way, "controlled").spawn().expect("client")).collect();
        for (way, process) in ways.iter().zip(running) {
            let who = format!("{}, {}", client.name, way.name);
            let said = tokio::select! {
                said = ended(process, &who) => said,
                () = says_yes(&home) => String::new(),
            };
            seen.push((who, transcript(&said)));
        }
    }
    seen
}

/// Somebody at the gateway's machine who approves whatever waits.
async fn says_yes(home: &TempHome) {
    let approvals = |args: &[&str]| {
        let program = sortie(home).arg("approvals").args(args);
        program.arg("--data-dir").arg(home.join("gateway")).spawn().expect("sortie")
    };
    loop {
        let mut list = approvals(&["list", "--output", "json"]);
        assert!(list.exit(LATE).await.expect("a list").success(), "{}", list.output());
        for id in list.output().split('"').filter(|text| text.starts_with("apr_")) {
            let mut approve = approvals(&["approve", id]);
            assert!(approve.exit(LATE).await.expect("a decision").success(), "{}", approve.output());
        }
    }
}

/// What each of them has to show.
fn judged(who: &str, lines: &[String]) {
    for (name, said) in [("allowed", "hello"), ("still allowed", "again"), ("headers", "Bearer s3cret-4711")] {
        assert!(step(lines, name).contains(said), "{who}: {lines:#?}");
    }
    let tools = step(lines, "tools");
    assert!(tools.contains("\"echo\"") && tools.contains("\"headers\""), "{who}: {lines:#?}");
    assert!(tools.contains("\"slow\"") && !tools.contains("\"fail\""), "{who} sees what it may not use: {lines:#?}");
    // The official SDK for Python before 2 shows the status of a refusal and nothing else, and gives its connection up.
    let told = if who.starts_with("Python 1") { "403 Forbidden" } else { "no policy allows" };
    assert!(step(lines, "asked").contains("slow done"), "{who}: {lines:#?}");
    for name in ["denied", "unknown"] {
        assert!(step(lines, name).contains(told), "{who} is told why: {lines:#?}");
    }
}

#[tokio::test]
async fn the_python_clients_are_told_what_they_may_not() {
    let Some(clients) = python_clients() else { return };
    for (who, lines) in walked(&clients).await {
        judged(&who, &lines);
    }
}

#[tokio::test]
async fn the_typescript_clients_are_told_what_they_may_not() {
    let Some(clients) = node_clients() else { return };
    for (who, lines) in walked(&clients).await {
        judged(&who, &lines);
    }
}

/// What the tool runner may do: one tool, with two texts.
const TEXTS: &str = r#"
[[allow]]
id = "two texts"
routes = "echo"
tools = "echo"
where = [{ pointer = "/text", one_of = ["hello", "again"] }]
"#;

#[tokio::test]
async fn the_tool_runner_of_the_official_sdk_goes_on_after_what_it_may_not() {
    let (Some(mcp), Some(sdk)) = (tool("SORTIE_TEST_PYTHON_MCP2"), tool("SORTIE_TEST_PYTHON_ANTHROPIC")) else {
        return;
    };
    let home = TempHome::new().expect("home");
    let echo = EchoServer::start().await.expect("echo");
    let hub = Hub::start(&home).await;
    home.write("policy.toml", TEXTS).expect("policy");
    let settings = format!(
        "policy = \"enforce\"\npolicy_file = \"policy.toml\"\n[upstream]\nallowed_ips = [\"127.0.0.1\"]\n\
         [routes.echo]\nupstream = \"http://{}\"\n",
        echo.addr()
    );
    let tunnel = Tunnel::open(&home, &hub, &settings).await;
    let url = tunnel.path_url(&hub, "echo");
    let said = succeeds(python(&home, &mcp, "anthropic_mcp.py").args([&url, &tunnel.use_key]).arg(sdk)).await;
    let lines: Vec<String> = said.lines().filter(|line| line.starts_with("[\"")).map(ToOwned::to_owned).collect();
    assert_eq!(step(&lines, "tools"), "[\"tools\", [\"echo\"]]", "{said}");
    for (name, text) in [("allowed", "hello"), ("still allowed", "again")] {
        let line = step(&lines, name);
        assert!(line.contains("[false, ") && line.contains(text), "{said}");
    }
    for (name, told) in [("tool", "no policy allows it"), ("argument", "no policy allows it")] {
        let line = step(&lines, name);
        assert!(line.contains("[true, ") && line.contains(told) && !line.contains("canary"), "{said}");
    }
    assert_eq!(step(&lines, "end"), "[\"end\", \"end_turn\"]", "{said}");
}
