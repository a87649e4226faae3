//! A hub in this process, what a session says of itself, and a gateway as a program.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use serde_json::{Map, Value};
use sortie_api::McpServer;
use sortie_hub::{AuditConfig, Hub, HubConfig, McpConfig};
use sortie_ids::{AgentId, EventId, KeyId, SessionId};
use sortie_orchestrator::mcp::{McpAnswer, McpContext, McpFailure, McpServers, McpTool};
use sortie_runtime::TaskSet;
use sortie_testkit::{Process, TempHome};

use crate::interop::{LATE, sortie, succeeds};

pub(crate) struct World {
    pub(crate) hub: Hub,
    pub(crate) mcp: Arc<dyn McpServers>,
    pub(crate) home: TempHome,
    pub(crate) tasks: TaskSet,
}

pub(crate) struct Gateway {
    pub(crate) process: Process,
    pub(crate) domain: String,
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::allowing(&[]).await
    }

    /// A hub whose sessions may reach these hosts.
    pub(crate) async fn allowing(hosts: &[&str]) -> Self {
        let allow_private = hosts.iter().map(|host| host.parse().expect("a host")).collect();
        Self::with(McpConfig { allow_private, ..McpConfig::default() }).await
    }

    pub(crate) async fn with(mcp: McpConfig) -> Self {
        let home = TempHome::new().expect("home");
        let tasks = TaskSet::new();
        let free = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let config = HubConfig {
            data_dir: home.join("hub"),
            database: None,
            api: free,
            edge: free,
            health: None,
            base_domain: "sortie.localhost".parse().expect("domain"),
            names: Vec::new(),
            advertised_edge: None,
            allowed_origins: Vec::new(),
            insecure_http: false,
            address_share: 100,
            issuer: None,
            region: None,
            limits: sortie_api::Limits::default(),
            audit: AuditConfig::default(),
            mcp,
            models: None,
        };
        let hub = Hub::start(config, &tasks).await.expect("hub");
        Self { mcp: hub.mcp.clone(), hub, home, tasks }
    }

    /// A gateway on a tunnel of its own, with these settings and this policy.
    pub(crate) async fn gateway(&self, config: &str, policy: &str) -> Gateway {
        let dir = self.home.join("setup");
        let init = sortie(&self.home).env("API_TOKEN", self.hub.api_key.expose());
        let output = format!("dir:{}", dir.display());
        succeeds(init.args(["setup", "init", "--api-url", &self.hub.api_url, "--output", &output])).await;
        let domain = std::fs::read_to_string(dir.join("tunnel-domain")).expect("domain").trim().to_owned();
        self.home.write("policy.toml", policy).expect("policy");
        let config = self.home.write("gateway.toml", config).expect("settings");
        let ready_file = self.home.join("gateway.json");
        let program = sortie(&self.home).arg("gateway").arg("--config").arg(config).arg("--setup-dir").arg(&dir);
        let program = program.arg("--data-dir").arg(self.home.join("gateway")).arg("--ready-file").arg(&ready_file);
        let mut process = program.spawn().expect("gateway");
        process.ready_file(&ready_file, LATE).await.expect("gateway");
        Gateway { process, domain }
    }

    /// A session of the default workspace, of a new agent.
    pub(crate) async fn session(&self) -> McpContext {
        let url = format!("{}/v1/tunnels", self.hub.api_url);
        let tls = sortie_tls::api_client_config(None, false).expect("TLS");
        let http = reqwest::Client::builder().tls_backend_preconfigured((*tls).clone()).no_proxy().build();
        let asked = http.expect("client").get(url).header("x-api-key", self.hub.api_key.expose()).send().await;
        let asked = asked.expect("an answer");
        let header = |name: &str| asked.headers()[name].to_str().expect("text").to_owned();
        McpContext {
            organization: header("anthropic-organization-id").parse().expect("id"),
            workspace: header("anthropic-workspace-id").parse().expect("id"),
            key: KeyId::random(),
            agent: AgentId::random(),
            agent_name: "reader".to_owned(),
            agent_version: 3,
            session: SessionId::random(),
            vaults: Vec::new(),
        }
    }

    pub(crate) async fn list(&self, session: &McpContext, server: &McpServer) -> Result<Arc<[McpTool]>, McpFailure> {
        tokio::time::timeout(LATE, self.mcp.list(session, server)).await.expect("in time")
    }

    pub(crate) async fn call(
        &self,
        session: &McpContext,
        server: &McpServer,
        tool: &str,
        input: Value,
    ) -> Result<McpAnswer, McpFailure> {
        self.call_as(session, server, tool, input, &EventId::random()).await
    }

    pub(crate) async fn call_as(
        &self,
        session: &McpContext,
        server: &McpServer,
        tool: &str,
        input: Value,
        tool_use: &EventId,
    ) -> Result<McpAnswer, McpFailure> {
        let input: Map<String, Value> = input.as_object().expect("an object").clone();
        let call = self.mcp.call(session, server, tool, &input, tool_use);
        tokio::time::timeout(LATE, call).await.expect("in time")
    }

    /// Ends the hub.
    pub(crate) async fn end(self) {
        assert!(self.tasks.shutdown(LATE).await, "nothing is left running");
        self.hub.close().await;
    }
}

pub(crate) fn server(url: impl Into<String>) -> McpServer {
    McpServer { name: "docs".to_owned(), url: url.into() }
}

/// The texts of an answer, in lines.
pub(crate) fn texts(answer: &McpAnswer) -> String {
    let texts = answer.content.iter().filter_map(|block| block["text"].as_str());
    texts.collect::<Vec<_>>().join("\n")
}
