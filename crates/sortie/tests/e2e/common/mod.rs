//! One hub, one gateway and an MCP server behind it, all on loopback with homes of their own; and how to call them.

mod upstream;
mod wire;

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use sortie_testkit::{EchoServer, Process, Program, TempHome};

pub(crate) use upstream::{Seen, Upstream};
pub(crate) use wire::{raw, tls_to};

/// What anything on a loaded machine may take.
pub(crate) const SOON: Duration = Duration::from_secs(15);
/// What a failure that is noticed "at once" may take.
pub(crate) const AT_ONCE: Duration = Duration::from_secs(1);
/// The stateless protocol version.
pub(crate) const MODERN: &str = "2026-07-28";

/// The program under test, with a home of its own and nothing of ours in its environment.
pub(crate) fn sortie(home: &TempHome) -> Program {
    let program = home.apply(Program::new(env!("CARGO_BIN_EXE_sortie")));
    ["SORTIE_API_URL", "SORTIE_API_KEY", "SORTIE_API_CA", "SORTIE_LOG", "API_TOKEN", "API_URL", "TUNNEL_ID"]
        .into_iter()
        .fold(program, Program::without_env)
}

/// What a command that ends printed, and its exit code.
pub(crate) struct Done {
    pub(crate) code: i32,
    pub(crate) output: String,
}

impl Done {
    /// The output of a command that succeeded.
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, 0, "{}", self.output);
        self.output
    }

    /// The JSON that a command printed.
    pub(crate) fn json(self) -> Value {
        let text = self.ok();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// A command that failed with this exit code and said all of these.
    pub(crate) fn failed(self, code: i32, said: &[&str]) {
        assert_eq!(self.code, code, "{}", self.output);
        for part in said {
            assert!(self.output.contains(part), "`{part}` is not in: {}", self.output);
        }
    }
}

/// Runs a command to its end.
pub(crate) async fn run(program: Program) -> Done {
    let mut process = program.spawn().expect("start");
    let status = process.exit(SOON).await.expect("end");
    let output = process.output();
    Done { code: status.code().unwrap_or(-1), output }
}

/// The text at this place (RFC 6901).
pub(crate) fn text<'v>(value: &'v Value, pointer: &str) -> &'v str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("no text at {pointer} of {value}"))
}

/// Waits until a condition that takes asking for holds.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, within: Duration, mut holds: impl FnMut() -> F) {
    let end = tokio::time::Instant::now() + within;
    while !holds().await {
        assert!(tokio::time::Instant::now() < end, "{what}: not within {within:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A client of plain HTTP on loopback that follows nothing and keeps no cookies.
pub(crate) fn client() -> reqwest::Client {
    let tls = sortie_tls::api_client_config(None, false).expect("TLS");
    let builder = reqwest::Client::builder().tls_backend_preconfigured((*tls).clone()).no_proxy();
    builder.redirect(reqwest::redirect::Policy::none()).build().expect("client")
}

/// An answer, read to its end.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// One of our own failures as the public error object: status, hop and a reason that holds `reason`.
    pub(crate) fn refused(&self, status: u16, hop: &str, reason: &str) {
        let body = self.json();
        assert_eq!((self.status, self.header("sortie-hop")), (status, Some(hop)), "{body}");
        assert_eq!(text(&body, "/type"), "error", "{body}");
        assert_eq!(text(&body, "/error/details/hop"), hop, "{body}");
        assert!(text(&body, "/error/details/reason").contains(reason), "`{reason}` is not in {body}");
        assert!(!text(&body, "/error/message").is_empty() && !text(&body, "/request_id").is_empty(), "{body}");
        self.retry();
    }

    /// The same for a caller that spoke JSON-RPC and gets the id of its request back.
    pub(crate) fn rpc_refused(&self, status: u16, hop: &str, reason: &str, id: &Value) {
        let body = self.json();
        assert_eq!((self.status, self.header("sortie-hop")), (status, Some(hop)), "{body}");
        assert_eq!(body.get("id"), Some(id), "{body}");
        assert_eq!(text(&body, "/error/data/hop"), hop, "{body}");
        assert!(text(&body, "/error/data/reason").contains(reason), "`{reason}` is not in {body}");
        let code = body.pointer("/error/code").and_then(Value::as_i64).expect("code");
        assert!(!(-32768..=-32000).contains(&code), "{body}");
        self.retry();
    }

    /// Only what may be better soon says when to come back.
    fn retry(&self) {
        assert_eq!(self.header("retry-after").is_some(), self.status == 503, "{}", self.text());
    }
}

/// Sends a request and reads the whole answer.
pub(crate) async fn send(request: RequestBuilder) -> Answer {
    let response = request.timeout(SOON).send().await.expect("an answer");
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let body = response.bytes().await.expect("a body").to_vec();
    Answer { status, headers, body }
}

/// A request of the stateless protocol for a tool.
pub(crate) fn modern(request: RequestBuilder, id: &Value, tool: &str, arguments: &Value) -> RequestBuilder {
    let meta = json!({ "io.modelcontextprotocol/protocolVersion": MODERN, "progressToken": "p" });
    let params = json!({ "name": tool, "arguments": arguments, "_meta": meta });
    let body = json!({ "jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params });
    request
        .header("accept", "application/json, text/event-stream")
        .header("content-type", "application/json")
        .header("mcp-protocol-version", MODERN)
        .header("mcp-method", "tools/call")
        .header("mcp-name", tool)
        .body(body.to_string())
}

/// A running hub, and the files of it and of its operators.
pub(crate) struct World {
    pub(crate) hub: Process,
    pub(crate) api_url: String,
    pub(crate) api_key: String,
    pub(crate) edge_addr: String,
    pub(crate) edge_ca: PathBuf,
    pub(crate) http: reqwest::Client,
    pub(crate) home: TempHome,
    /// What gateways get in their environment.
    pub(crate) env: Vec<(&'static str, String)>,
}

/// A running gateway.
pub(crate) struct GatewayProcess {
    pub(crate) process: Process,
    pub(crate) health: String,
    pub(crate) ready_file: PathBuf,
}

/// What `setup init` made.
#[derive(Clone, Debug)]
pub(crate) struct Tunnel {
    pub(crate) id: String,
    pub(crate) label: String,
    pub(crate) domain: String,
    pub(crate) dir: PathBuf,
}

impl World {
    /// A hub alone.
    pub(crate) async fn start() -> Self {
        Self::start_in(Vec::new()).await
    }

    /// A hub with this in its environment, and gateways later.
    pub(crate) async fn start_in(env: Vec<(&'static str, String)>) -> Self {
        let home = TempHome::new().expect("home");
        let (hub, ready) = start_hub(&home, "127.0.0.1:0", "127.0.0.1:0", &env).await;
        Self {
            env,
            api_url: text(&ready, "/api_url").to_owned(),
            api_key: text(&ready, "/api_key").to_owned(),
            edge_addr: text(&ready, "/edge_addr").to_owned(),
            edge_ca: text(&ready, "/edge_ca_file").into(),
            http: client(),
            hub,
            home,
        }
    }

    /// Starts the hub again on the same directory and ports.
    pub(crate) async fn restart_hub(&mut self) {
        let api = self.api_url.trim_start_matches("http://").to_owned();
        let (hub, ready) = start_hub(&self.home, &api, &self.edge_addr, &self.env).await;
        assert_eq!(text(&ready, "/api_url"), self.api_url);
        assert_eq!(text(&ready, "/api_key"), self.api_key);
        self.hub = hub;
    }

    /// An operator's command with the hub's own key.
    pub(crate) fn operator(&self, args: &[&str]) -> Program {
        let program = sortie(&self.home).env("SORTIE_API_URL", &self.api_url).env("SORTIE_API_KEY", &self.api_key);
        program.args(args)
    }

    /// `setup init` into a directory below the home.
    pub(crate) fn init(&self, dir: &Path) -> Program {
        sortie(&self.home)
            .env("API_TOKEN", &self.api_key)
            .args(["setup", "init", "--api-url", &self.api_url])
            .args(["--output".to_owned(), format!("dir:{}", dir.display())])
    }

    /// A tunnel with its set-up directory.
    pub(crate) async fn tunnel(&self, name: &str) -> Tunnel {
        let dir = self.home.join(name);
        run(self.init(&dir)).await.ok();
        tunnel_in(&dir)
    }

    /// Starts a gateway and does not wait for it.
    pub(crate) fn spawn_gateway(&self, setup: &Path, config: &str, more: &[&str]) -> (Process, PathBuf) {
        let name = setup.file_name().expect("name").to_string_lossy().into_owned();
        let config = self.home.write(format!("{name}.toml"), config).expect("config");
        let ready_file = self.home.join(format!("{name}.ready"));
        // One that was killed has left its own.
        let _none = std::fs::remove_file(&ready_file);
        let program = sortie(&self.home)
            .args(["gateway", "--health", "127.0.0.1:0", "--config"])
            .arg(&config)
            .arg("--data-dir")
            .arg(self.home.join(format!("{name}.data")))
            .arg("--setup-dir")
            .arg(setup)
            .arg("--ready-file")
            .arg(&ready_file)
            .args(more);
        let program = self.env.iter().fold(program, |program, (name, value)| program.env(name, value));
        (program.spawn().expect("gateway"), ready_file)
    }

    /// Starts a gateway and waits until calls come through.
    pub(crate) async fn gateway(&self, setup: &Path, config: &str, more: &[&str]) -> GatewayProcess {
        let (mut process, ready_file) = self.spawn_gateway(setup, config, more);
        let ready = process.ready_file(&ready_file, SOON).await.expect("gateway serves");
        GatewayProcess { process, health: text(&ready, "/health_url").to_owned(), ready_file }
    }

    /// The path form of a route's URL.
    pub(crate) fn url(&self, tunnel: &Tunnel, route: &str, path: &str) -> String {
        format!("{}/t/{}/{route}{path}", self.api_url, tunnel.label)
    }

    /// A request to a route with the hub's own key.
    pub(crate) fn request(&self, method: Method, tunnel: &Tunnel, route: &str, path: &str) -> RequestBuilder {
        self.http.request(method, self.url(tunnel, route, path)).header("x-api-key", &self.api_key)
    }

    /// Calls the tool `echo` through everything.
    pub(crate) async fn echo(&self, tunnel: &Tunnel, route: &str, said: &str) -> Answer {
        let post = self.request(Method::POST, tunnel, route, "/mcp");
        send(modern(post, &json!(1), "echo", &json!({ "text": said }))).await
    }

    /// Asserts that a call comes through.
    pub(crate) async fn serves(&self, tunnel: &Tunnel, route: &str) {
        let answer = self.echo(tunnel, route, "hello").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(text(&answer.json(), "/result/content/0/text"), "hello");
    }

    /// Waits until a call comes through again.
    pub(crate) async fn serves_again(&self, tunnel: &Tunnel, route: &str) {
        until("calls come through again", SOON, async || self.echo(tunnel, route, "hello").await.status == 200).await;
    }

    /// A request to the API itself with the hub's own key.
    pub(crate) fn api(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.api_url)).header("x-api-key", &self.api_key)
    }

    /// A fresh `use` key for these grants.
    pub(crate) async fn use_key(&self, grants: &[&str]) -> (String, String) {
        let mut args = vec!["keys", "create", "test", "--output", "json"];
        for grant in grants {
            args.extend(["--grant", grant]);
        }
        let made = run(self.operator(&args)).await.json();
        (text(&made, "/id").to_owned(), text(&made, "/secret").to_owned())
    }
}

async fn start_hub(home: &TempHome, api: &str, edge: &str, env: &[(&'static str, String)]) -> (Process, Value) {
    let ready_file = home.join("hub.ready");
    // One that was killed has left its own.
    let _none = std::fs::remove_file(&ready_file);
    let hub = sortie(home)
        .args(["hub", "--api", api, "--edge", edge, "--data-dir"])
        .arg(home.join("hub"))
        .arg("--ready-file")
        .arg(&ready_file);
    let mut hub = env.iter().fold(hub, |hub, (name, value)| hub.env(name, value)).spawn().expect("hub");
    let ready = hub.ready_file(&ready_file, SOON).await.expect("hub serves");
    (hub, ready)
}

/// What is known of the tunnel of a set-up directory.
pub(crate) fn tunnel_in(dir: &Path) -> Tunnel {
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).expect(name).trim().to_owned();
    let domain = read("tunnel-domain");
    let label = domain.split('.').next().expect("label").to_owned();
    Tunnel { id: read("tunnel-id"), label, domain, dir: dir.to_owned() }
}

/// A gateway's settings: routes by name and URL, and that loopback is meant.
pub(crate) fn routes(routes: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (name, upstream) in routes {
        text.push_str(&format!("[routes.{name}]\nupstream = \"{upstream}\"\n"));
    }
    text + "[upstream]\nallowed_ips = [\"127.0.0.0/8\"]\n"
}

/// The settings for one route `echo` to an echo server.
pub(crate) fn echo_route(echo: &EchoServer) -> String {
    routes(&[("echo", &format!("http://{}", echo.addr()))])
}

/// A hub, a gateway with the route `echo`, and the server behind it.
pub(crate) struct Serving {
    pub(crate) world: World,
    pub(crate) tunnel: Tunnel,
    pub(crate) gateway: GatewayProcess,
    pub(crate) echo: EchoServer,
}

/// Starts it all.
pub(crate) async fn serving() -> Serving {
    let echo = EchoServer::start().await.expect("echo");
    let world = World::start().await;
    let tunnel = world.tunnel("setup").await;
    let gateway = world.gateway(&tunnel.dir, &echo_route(&echo), &[]).await;
    Serving { world, tunnel, gateway, echo }
}
