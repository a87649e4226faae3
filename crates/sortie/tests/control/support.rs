//! A hub, a gateway that enforces policies, and callers by their keys.

use std::path::PathBuf;

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::common::{Answer, GatewayProcess, MODERN, Tunnel, World, modern, routes, send};
use crate::server::Server;

/// Both ends with the routes `up` and `twin` to one careless server, and a policy file.
pub(crate) struct Point {
    pub(crate) world: World,
    pub(crate) tunnel: Tunnel,
    pub(crate) gateway: GatewayProcess,
    pub(crate) server: Server,
    pub(crate) policy_file: PathBuf,
    /// One that a policy file may name.
    pub(crate) more_file: PathBuf,
    /// Keys of callers who may reach both routes at the hub: what is decided is decided at the gateway.
    pub(crate) keys: Vec<Key>,
}

/// A caller.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    pub(crate) id: String,
    pub(crate) secret: String,
}

impl Point {
    /// With two callers, and the policies that `policies` writes for them.
    pub(crate) async fn start(policies: impl FnOnce(&[Key]) -> String) -> Self {
        Self::with("", "", policies).await
    }

    /// With more settings: before the first table, and behind the last.
    pub(crate) async fn with(top: &str, rest: &str, policies: impl FnOnce(&[Key]) -> String) -> Self {
        Self::of("policy.cedar", top, rest, policies).await
    }

    /// With the policies in a file of this name.
    pub(crate) async fn of(file: &str, top: &str, rest: &str, policies: impl FnOnce(&[Key]) -> String) -> Self {
        Self::within(World::start().await, file, top, rest, policies).await
    }

    /// With this hub, and the gateway in its environment.
    pub(crate) async fn within(
        world: World,
        file: &str,
        top: &str,
        rest: &str,
        policies: impl FnOnce(&[Key]) -> String,
    ) -> Self {
        let server = Server::start().await;
        let tunnel = world.tunnel("setup").await;
        let mut keys = Vec::new();
        for _ in 0..2 {
            let (id, secret) = world.use_key(&[&tunnel.id]).await;
            keys.push(Key { id, secret });
        }
        let policy_file = world.home.write(file, policies(&keys)).expect("policies");
        let more_file = world.home.write("more.cedar", "forbid(principal, action, resource) when { false };\n");
        let more_file = more_file.expect("policies");
        let settings = settings(&server, top, rest).replace("policy.cedar", file);
        let gateway = world.gateway(&tunnel.dir, &settings, &[]).await;
        Self { world, tunnel, gateway, server, policy_file, more_file, keys }
    }

    /// A POST to a route by a caller.
    pub(crate) fn post(&self, key: &Key, route: &str) -> RequestBuilder {
        self.request(Method::POST, key, route)
    }

    /// A request to a route by a caller.
    pub(crate) fn request(&self, method: Method, key: &Key, route: &str) -> RequestBuilder {
        let url = self.world.url(&self.tunnel, route, "/mcp");
        self.world.http.request(method, url).header("x-api-key", &key.secret)
    }

    /// A call of a tool, in the stateless era.
    pub(crate) async fn call(&self, key: &Key, route: &str, tool: &str, arguments: &Value) -> Answer {
        send(modern(self.post(key, route), &json!("call"), tool, arguments)).await
    }

    /// A body in the era of sessions, as it stands.
    pub(crate) async fn say(&self, key: &Key, session: Option<&str>, version: &str, body: &str) -> Answer {
        let post = self.post(key, "up").header("content-type", "application/json");
        let post = post.header("accept", "application/json, text/event-stream").header("mcp-protocol-version", version);
        let post = session.iter().fold(post, |post, session| post.header("mcp-session-id", *session));
        send(post.body(body.to_owned())).await
    }

    /// The same body in the stateless era, with a head that names this tool.
    pub(crate) async fn say_modern(&self, key: &Key, tool: &str, body: &str) -> Answer {
        let post = self.post(key, "up").header("content-type", "application/json");
        let post = post.header("accept", "application/json, text/event-stream").header("mcp-protocol-version", MODERN);
        let post = post.header("mcp-method", "tools/call").header("mcp-name", tool);
        send(post.body(body.to_owned())).await
    }

    /// Opens a session of 2025-11-25.
    pub(crate) async fn session(&self, key: &Key, route: &str) -> String {
        let params = json!({ "protocolVersion": "2025-11-25", "capabilities": {},
            "clientInfo": { "name": "test", "version": "1" } });
        let body = json!({ "jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params });
        let post = self.post(key, route).header("content-type", "application/json");
        let post = post.header("accept", "application/json, text/event-stream").body(body.to_string());
        let answer = send(post).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.header("mcp-session-id").expect("a session").to_owned()
    }
}

/// The settings of a gateway that enforces.
pub(crate) fn settings(server: &Server, top: &str, rest: &str) -> String {
    let url = server.url();
    let head = format!("policy = \"enforce\"\npolicy_file = \"policy.cedar\"\n{top}\n");
    head + &routes(&[("up", &url), ("twin", &url)]) + rest
}

/// A policy that lets the caller with this key do this with that.
pub(crate) fn permit(key: &Key, action: &str, resource: &str) -> String {
    let caller = format!("principal.subject == \"key:{}\"", key.id);
    format!("permit(principal, action {action}, resource {resource}) when {{ {caller} }};\n")
}

/// What lets a caller of a route begin, list, and call these tools; nothing else.
pub(crate) fn grant(key: &Key, route: &str, tools: &[&str]) -> String {
    let on = format!("in Route::\"{route}\"");
    let begin = permit(key, "in [Action::\"base\", Action::\"list\"]", &on);
    let tools =
        tools.iter().map(|tool| permit(key, "== Action::\"tools/call\"", &format!("== Tool::\"{route}/{tool}\"")));
    begin + &tools.collect::<String>()
}
