//! Two networks with a wall between them. Outside: the hub and whoever calls. Inside: a gateway and a private MCP
//! server, behind rules that let nothing in. A call crosses all the same, and nothing of it can be read on the line.

mod interop;
#[path = "interop_netns/network.rs"]
mod network;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use sortie_testkit::{Process, Program, TempHome, eventually, skip_tool, tool};

use base64::Engine as _;
use interop::{LATE, script, succeeds};
use network::{API_PORT, EDGE_PORT, GATEWAY, HUB, Network, PRIVATE, PROXY_PORT};

const SORTIE: &str = env!("CARGO_BIN_EXE_sortie");
/// What must not be seen on the line.
const CANARY: &str = "canary-4c1d-of-the-private-payload";
/// What must be seen there: the link's protocol is named in its first message, in the clear.
const LINK_PROTOCOL: &[u8] = b"sortie-link/1";

/// How the inside gets out.
enum Exit {
    /// It may dial the hub.
    Direct,
    /// It may dial a proxy only, which this Python runs.
    Proxy(PathBuf),
}

/// Who the proxy lets pass.
const PROXY_USER: &str = "gateway:way-out";

/// Everything that runs. Fields are dropped in this order: the processes first, their networks last.
struct Sites {
    gateway: Process,
    _server: Process,
    _hub: Process,
    proxy: Option<Process>,
    capture: Option<(Process, PathBuf)>,
    hub_ready: Value,
    gateway_ready: Value,
    server_port: u16,
    setup_dir: PathBuf,
    network: Network,
    home: TempHome,
}

impl Sites {
    async fn open(exit: Exit) -> Option<Self> {
        let echo = Path::new(SORTIE).with_file_name("mcp-echo");
        if !echo.exists() {
            skip_tool("mcp-echo is not built; `cargo xtask test` builds the whole workspace");
            return None;
        }
        let network = Network::build(match exit {
            Exit::Direct => &[API_PORT, EDGE_PORT],
            Exit::Proxy(_) => &[PROXY_PORT],
        })?;
        let home = TempHome::new().expect("home");
        let capture = capture(&network, &home).await;

        let program = network.outside(&home, SORTIE).args(["hub", "--api", &format!("{HUB}:{API_PORT}")]);
        let program = program.args(["--edge", &format!("{HUB}:{EDGE_PORT}")]).arg("--data-dir").arg(home.join("hub"));
        let (hub, hub_ready) = serving(&home, program, "hub").await;

        let proxy = match &exit {
            Exit::Direct => None,
            Exit::Proxy(python) => {
                let ready = home.join("proxy.json");
                let program = network.outside(&home, python).arg("-u").arg(script("connect_proxy.py")).arg(&ready);
                let mut proxy = program.args([HUB, &PROXY_PORT.to_string(), PROXY_USER]).spawn().expect("python");
                proxy.ready_file(&ready, LATE).await.expect("proxy");
                Some(proxy)
            }
        };

        let program = network.inside(&home, &echo).args(["--http", &format!("{PRIVATE}:0"), "--log"]);
        let program = program.arg(home.join("echo.log"));
        let (server, server_ready) = serving(&home, program, "server").await;
        let upstream = text(&server_ready, "addr").to_owned();
        let server_port = upstream.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).expect("port");

        let setup_dir = home.join("setup");
        let setup = || {
            let mut program = network.inside(&home, SORTIE);
            if proxy.is_some() {
                program = program.env("HTTPS_PROXY", format!("http://{PROXY_USER}@{HUB}:{PROXY_PORT}"));
            }
            let program = program.env("API_TOKEN", text(&hub_ready, "api_key"));
            let program = program.args(["setup", "init", "--api-url", text(&hub_ready, "api_url"), "--api-ca"]);
            let program = program.arg(text(&hub_ready, "api_ca_file"));
            succeeds(program.args(["--output", &format!("dir:{}", setup_dir.display())]))
        };
        setup().await;
        let first = std::fs::read_to_string(setup_dir.join("ca.crt")).expect("CA");
        setup().await;
        assert_eq!(
            std::fs::read_to_string(setup_dir.join("ca.crt")).expect("CA"),
            first,
            "repeated, setup keeps its CA"
        );

        // The strict server takes calls for a loopback name only: what it is called is the gateway's to say.
        let mut config = format!("[routes.echo]\nupstream = \"http://{upstream}\"\nhost = \"localhost\"\n");
        if proxy.is_some() {
            let authorization = base64::engine::general_purpose::STANDARD.encode(PROXY_USER);
            home.write("proxy-authorization", format!("Basic {authorization}\n")).expect("written");
            config.push_str(&format!("[link]\nproxy = \"http://{HUB}:{PROXY_PORT}\"\n"));
            config.push_str("proxy_authorization_file = \"proxy-authorization\"\n");
        }
        let config = home.write("gateway.toml", config).expect("settings");
        let program = network.inside(&home, SORTIE).args(["gateway", "--health", "127.0.0.1:0", "--config"]);
        let program =
            program.arg(config).arg("--setup-dir").arg(&setup_dir).arg("--data-dir").arg(home.join("gateway"));
        let (gateway, gateway_ready) = serving(&home, program, "gateway").await;
        Some(Self {
            gateway,
            _server: server,
            _hub: hub,
            proxy,
            capture,
            hub_ready,
            gateway_ready,
            server_port,
            setup_dir,
            network,
            home,
        })
    }

    /// An operator or an agent's client, outside.
    fn outside(&self, args: &[&str]) -> Program {
        let program = self.network.outside(&self.home, SORTIE).args(args);
        let program = program.env("SORTIE_API_URL", text(&self.hub_ready, "api_url"));
        let program = program.env("SORTIE_API_CA", text(&self.hub_ready, "api_ca_file"));
        program.env("SORTIE_API_KEY", text(&self.hub_ready, "api_key"))
    }

    fn call(&self, tool: &str, arguments: &str) -> Program {
        self.outside(&["mcp", "call", "echo", tool, arguments])
    }

    /// A counter of the gateway, by the beginning of its line.
    fn gateway_metric(&self, line: &str) -> u64 {
        let url = format!("{}/metrics", text(&self.gateway_ready, "health_url"));
        let output = self.network.ask_inside("curl", &["-sS", "--noproxy", "*", &url]);
        let metrics = String::from_utf8_lossy(&output.stdout);
        let value = metrics.lines().find_map(|found| found.strip_prefix(line)?.trim().parse().ok());
        value.unwrap_or(0)
    }
}

/// Starts a role and waits for its ready file.
async fn serving(home: &TempHome, program: Program, name: &str) -> (Process, Value) {
    let file = home.join(format!("{name}.json"));
    let mut process = program.arg("--ready-file").arg(&file).spawn().expect(name);
    let ready = process.ready_file(&file, LATE).await.expect(name);
    (process, ready)
}

/// Everything on the line, from before the first packet on.
async fn capture(network: &Network, home: &TempHome) -> Option<(Process, PathBuf)> {
    let file = home.join("line.pcap");
    let program =
        network.outside(home, "tcpdump").args(["-i", "line0", "-s", "0", "-U", "-Z", "root", "-w"]).arg(&file);
    let mut tcpdump = program.spawn().expect("ip");
    match tcpdump.ready_output("listening on", Duration::from_secs(10)).await {
        Ok(()) => Some((tcpdump, file)),
        Err(error) => {
            skip_tool(&format!("no tcpdump, so nobody looks at the line: {error}"));
            None
        }
    }
}

fn text<'v>(value: &'v Value, field: &str) -> &'v str {
    value.get(field).and_then(Value::as_str).unwrap_or_else(|| panic!("no {field} in {value}"))
}

fn holds(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

#[tokio::test]
async fn a_call_crosses_a_wall_that_lets_nothing_in() {
    let Some(mut sites) = Sites::open(Exit::Direct).await else { return };
    let said = succeeds(sites.call("echo", &format!(r#"{{"text": "{CANARY}"}}"#))).await;
    assert!(said.contains(CANARY), "{said}");

    // Setup ran twice, and made one tunnel.
    let listed = succeeds(sites.outside(&["--output", "json", "tunnels", "list", "--include-archived"])).await;
    assert_eq!(listed.matches("\"tnl_").count(), 1, "{listed}");
    for name in ["tunnel-token", "ca.key", "tls.key"] {
        let mode = std::fs::metadata(sites.setup_dir.join(name)).expect(name).permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name} is secret");
    }

    // From outside nothing inside answers, neither what listens there nor anything else.
    assert_eq!(sites.network.counted("refused_inbound"), 0, "nobody has tried yet");
    let health = text(&sites.gateway_ready, "health_url").rsplit_once(':').expect("port").1.to_owned();
    let server = sites.server_port.to_string();
    let mut tried: Vec<(&str, &str)> = vec![(PRIVATE, &server), (GATEWAY, &server), (GATEWAY, &health)];
    tried.extend(["22", "80", "443", "4180", "4443", "8080", "8443"].map(|port| (GATEWAY, port)));
    let tries: Vec<String> = tried.iter().map(|(host, port)| format!("try {host} {port} &")).collect();
    let script = "try() { timeout 1 bash -c \"exec 3<>/dev/tcp/$1/$2\" 2>/dev/null && echo \"$1:$2 is open\"; }";
    let script = format!("{script}\n{}\nwait", tries.join("\n"));
    let found = sites.network.ask_outside("bash", &["-c", &script]);
    assert_eq!(String::from_utf8_lossy(&found.stdout), "", "nothing is open");
    assert!(sites.network.counted("refused_inbound") >= 10, "the tries came as far as the wall");
    assert_eq!(sites.network.counted("new_inbound"), 0, "nothing new was let in");
    assert_eq!(sites.network.counted("refused_outbound"), 0, "the gateway dials the hub and nothing else");

    if let Some((mut tcpdump, file)) = sites.capture.take() {
        tcpdump.stop(Duration::from_secs(10)).await.expect("tcpdump ends");
        let seen = std::fs::read(file).expect("capture");
        assert!(holds(&seen, LINK_PROTOCOL), "the line was looked at: {} bytes", seen.len());
        for secret in [CANARY, "tools/call", "jsonrpc", text(&sites.hub_ready, "api_key")] {
            assert!(!holds(&seen, secret.as_bytes()), "`{secret}` can be read on the line");
        }
    }
}

#[tokio::test]
async fn a_renewed_certificate_is_taken_up_while_calls_run() {
    let Some(mut sites) = Sites::open(Exit::Direct).await else { return };
    // Longer than it takes the gateway to look at its files.
    let progress = r#"{"count": 80, "interval_ms": 100}"#;
    let mut running = sites.call("progress", progress).spawn().expect("call");
    let before = std::fs::read(sites.setup_dir.join("tls.crt")).expect("certificate");
    let program = sites.network.inside(&sites.home, SORTIE);
    let dir = format!("dir:{}", sites.setup_dir.display());
    succeeds(program.args(["setup", "renew-cert", "--output", &dir])).await;
    assert_ne!(std::fs::read(sites.setup_dir.join("tls.crt")).expect("certificate"), before, "it is a new one");
    sites.gateway.ready_output("certificate renewed", Duration::from_secs(15)).await.expect("taken up");

    let status = running.exit(LATE).await.expect("the call ends");
    assert!(status.success(), "a call that runs is not cut: {}", running.output());
    succeeds(sites.call("echo", r#"{"text": "after"}"#)).await;
    assert_eq!(sites.gateway_metric("sortie_gateway_certificate_reloads_total{result=\"ok\"}"), 1);
    assert_eq!(
        sites.gateway_metric("sortie_gateway_link_attempts_total{result=\"established\"}"),
        1,
        "the first link still holds"
    );
}

#[tokio::test]
async fn a_cut_line_is_noticed_and_heals_by_itself() {
    let Some(sites) = Sites::open(Exit::Direct).await else { return };
    succeeds(sites.call("echo", r#"{"text": "before"}"#)).await;
    sites.network.line(false);
    let began = Instant::now();
    let mut failing = sites.call("echo", r#"{"text": "during"}"#).spawn().expect("call");
    let status = failing.exit(LATE).await.expect("the call ends");
    let took = began.elapsed();
    assert!(!status.success(), "nothing can have answered: {}", failing.output());
    failing.ready_output("`link`", Duration::from_secs(1)).await.expect("the failure names its hop");
    // Five seconds for the link, the rest for a program to start on a busy machine.
    assert!(took < Duration::from_secs(7), "{took:?}: {}", failing.output());

    sites.network.line(true);
    let end = Instant::now() + LATE;
    loop {
        let mut again = sites.call("echo", r#"{"text": "after"}"#).spawn().expect("call");
        if again.exit(LATE).await.expect("the call ends").success() {
            break;
        }
        assert!(Instant::now() < end, "still cut: {}{}", again.output(), sites.gateway.output());
        let settled = eventually(Duration::from_millis(200), || None::<()>).await;
        assert!(settled.is_none());
    }
    assert_eq!(sites.network.counted("new_inbound"), 0, "nothing new was let in");
}

/// A call that reports once and is then quiet for longer than any test waits; returns it once it runs.
async fn quiet_call(sites: &Sites) -> Process {
    let mut running = sites.call("progress", r#"{"count": 2, "interval_ms": 600000}"#).spawn().expect("call");
    let log = sites.home.join("echo.log");
    let begun = || std::fs::read_to_string(&log).is_ok_and(|log| log.contains("started")).then_some(());
    assert!(eventually(LATE, begun).await.is_some(), "{}", running.output());
    assert!(running.exit(Duration::from_millis(100)).await.is_err(), "it runs: {}", running.output());
    running
}

/// How long a peer that vanished may go unnoticed.
const ABSENCE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_client_that_vanished_is_noticed_and_its_call_ends_at_the_server() {
    let Some(sites) = Sites::open(Exit::Direct).await else { return };
    let running = quiet_call(&sites).await;
    sites.network.swallow_outside(API_PORT);
    let log = sites.home.join("echo.log");
    let left = || {
        let log = std::fs::read_to_string(&log).unwrap_or_default();
        (log.contains("cancelled") || log.contains("disconnected")).then_some(())
    };
    assert!(left().is_none(), "nobody has left yet");
    assert!(eventually(ABSENCE, left).await.is_some(), "the server still works for nobody: {}", running.output());
}

#[tokio::test]
async fn an_upstream_that_vanished_is_noticed_and_its_call_breaks() {
    let Some(sites) = Sites::open(Exit::Direct).await else { return };
    let mut running = quiet_call(&sites).await;
    sites.network.swallow_inside(sites.server_port);
    let status = running.exit(ABSENCE).await.expect("the call ends");
    assert!(!status.success(), "nothing can have answered: {}", running.output());
    assert_eq!(sites.gateway_metric("sortie_gateway_calls_total{route=\"echo\",status=\"2xx\",hop=\"upstream\"}"), 1);
}

#[tokio::test]
async fn a_proxy_may_be_the_only_way_out() {
    let Some(python) = tool("SORTIE_TEST_PYTHON_MCP1") else { return };
    let Some(sites) = Sites::open(Exit::Proxy(python)).await else { return };
    let said = succeeds(sites.call("echo", r#"{"text": "through a proxy"}"#)).await;
    assert!(said.contains("through a proxy"), "{said}");
    let seen = sites.proxy.as_ref().expect("proxy").output();
    for port in [API_PORT, EDGE_PORT] {
        assert!(seen.contains(&format!("CONNECT {HUB}:{port} known")), "{seen}");
    }
    assert!(!seen.contains("unknown"), "nobody asks without the password: {seen}");
    assert_eq!(sites.network.counted("refused_outbound"), 0, "with a proxy, nothing else is tried");
    assert_eq!(sites.network.counted("new_inbound"), 0, "nothing new was let in");
}

#[tokio::test]
async fn a_call_survives_a_short_interruption() {
    let Some(sites) = Sites::open(Exit::Direct).await else { return };
    let mut running = sites.call("progress", r#"{"count": 20, "interval_ms": 100}"#).spawn().expect("call");
    let log = sites.home.join("echo.log");
    let begun = || std::fs::read_to_string(&log).is_ok_and(|log| log.contains("started")).then_some(());
    assert!(eventually(LATE, begun).await.is_some(), "{}", running.output());
    sites.network.line(false);
    // Shorter than what makes a link count as dead, longer than what TCP repairs at once.
    let interruption = eventually(Duration::from_millis(500), || None::<()>).await;
    assert!(interruption.is_none());
    sites.network.line(true);
    let status = running.exit(LATE).await.expect("the call ends");
    assert!(status.success(), "{}{}", running.output(), sites.gateway.output());
    assert_eq!(sites.gateway_metric("sortie_gateway_link_attempts_total{result=\"established\"}"), 1, "the same link");
}
