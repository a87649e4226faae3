//! `sortie up`: hub and gateway in one process, loopback only, with a tunnel of their own.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sortie_api::{
    CreateEnvironmentKey, CreateKey, CreatedKey, Environment, EnvironmentConfig, Grant, Key, KeyKind, Limits,
    WorkQueueStats,
};
use sortie_gateway::{Gateway, GatewayConfig, GatewayOptions, Setup};
use sortie_hub::{AuditConfig, Hub, HubConfig};
use sortie_ids::{ApiKey, EnvironmentId, KeyId, RouteName, TunnelId};
use sortie_runtime::{DEFAULT_SHARE, TaskSet};
use sortie_tls::{SetupDir, SetupFile};
use url::{Host, Url};

use super::{DataLock, ReadyFile, local_upstreams, stop_signal};
use crate::cli::UpArgs;
use crate::client;
use crate::error::Failure;
use crate::profile::{self, Profile};
use crate::setup::{self, Init};

/// How long the way through hub, edge and gateway may take to open at the start.
const READY_DEADLINE: Duration = Duration::from_secs(30);
/// How long calls that run may take to end after Ctrl-C.
const STOP_DEADLINE: Duration = Duration::from_secs(3);
/// The name of the environment that workers on this machine are for.
const ENVIRONMENT: &str = "default";
/// Life of the gateway's certificate; renewed at every start.
const CERT_DURATION: Duration = Duration::from_secs(90 * 24 * 3600);

#[derive(Serialize)]
struct Ready {
    api_url: String,
    api_key: String,
    use_key: String,
    edge_addr: String,
    edge_ca_file: PathBuf,
    tunnel: Tunnel,
    routes: Vec<Route>,
    environment: ReadyEnvironment,
    /// The directory of the gateway's audit log.
    #[serde(skip_serializing_if = "Option::is_none")]
    audit_dir: Option<PathBuf>,
}

#[derive(Serialize)]
struct Tunnel {
    id: TunnelId,
    domain: String,
    token_file: PathBuf,
}

/// The environment that workers on this machine are for.
#[derive(Serialize)]
struct ReadyEnvironment {
    id: EnvironmentId,
    key_file: PathBuf,
}

#[derive(Serialize)]
struct Route {
    name: RouteName,
    url: String,
    local_url: String,
}

/// A route as asked for on the command line.
struct Asked {
    served: Served,
    /// Its table in the gateway's configuration.
    table: toml::Table,
}

/// A route that is served.
struct Served {
    name: RouteName,
    /// The MCP server's path.
    path: String,
}

pub(crate) async fn up(args: UpArgs) -> Result<(), Failure> {
    for (flag, addr) in [("api", args.api), ("edge", args.edge)] {
        if !addr.ip().is_loopback() {
            return Err(Failure::usage(format!(
                "--{flag} {addr}: `sortie up` listens on loopback only; use `sortie hub` for a network"
            )));
        }
    }
    let (config, served) = match &args.config {
        Some(file) => from_file(file)?,
        None => gateway_config(&args)?,
    };
    let data_dir = match args.data_dir {
        Some(dir) => dir,
        None => profile::data_dir()?,
    };
    let data_dir = std::path::absolute(&data_dir).map_err(Failure::usage)?;
    let _lock = DataLock::take(&data_dir)?;
    let ready_file = ReadyFile::prepare(args.ready_file)?;

    let (hub_tasks, gateway_tasks) = (TaskSet::new(), TaskSet::new());
    let hub_config = HubConfig {
        data_dir: data_dir.join("hub"),
        database: None,
        api: args.api,
        edge: args.edge,
        health: None,
        base_domain: "sortie.localhost".parse().map_err(Failure::failed)?,
        names: Vec::new(),
        advertised_edge: None,
        allowed_origins: Vec::new(),
        insecure_http: false,
        address_share: DEFAULT_SHARE,
        issuer: None,
        region: None,
        limits: Limits::default(),
        mcp: args.mcp.config(),
        models: args.models,
        audit: args.audit.put(AuditConfig::default())?,
    };
    let hub = Hub::start(hub_config, &hub_tasks).await.map_err(Failure::failed)?;
    let api = client::Hub::new(&hub.api_url, hub.api_key.clone(), None)?;
    let setup_dir = data_dir.join("setup");
    let init = Init { display_name: Some("sortie up".into()), cert_duration: CERT_DURATION, ..Init::default() };
    let report = setup::init(&api, &setup_dir, &init).await?;
    let setup = Setup::load(&setup_dir).map_err(Failure::failed)?;
    let options =
        GatewayOptions { local: local_upstreams(), data_dir: Some(data_dir.clone()), ..GatewayOptions::default() };
    let gateway = Gateway::start(config, setup, options, gateway_tasks.clone()).await;
    let gateway = gateway.map_err(Failure::failed)?;
    if let Some(file) = args.config {
        gateway.watch(file);
    }
    let use_key = use_key(&api, &data_dir, &report.tunnel_id).await?;
    let environment = environment(&api, &data_dir).await?;
    tokio::select! {
        stopped = stop_signal() => stopped?,
        opened = tokio::time::timeout(READY_DEADLINE, gateway.ready()) => {
            if opened.is_err() {
                let state = serde_json::to_string(&gateway.readiness()).unwrap_or_default();
                return Err(Failure::failed(format!("the way through did not open within 30 s: {state}")));
            }
            let profile = Profile {
                api_url: hub.api_url.clone(),
                api_key: hub.api_key.expose().to_owned(),
                api_ca_file: None,
                audit_dir: gateway.audit_dir().map(Path::to_owned),
            };
            profile.write()?;
            let routes: Vec<Route> = served.iter().map(|served| route(&hub, &report.domain, served)).collect();
            let token_file = SetupDir::at(&setup_dir).path(SetupFile::TunnelToken);
            let ready = Ready {
                api_url: hub.api_url.clone(),
                api_key: hub.api_key.expose().to_owned(),
                use_key: use_key.expose().to_owned(),
                edge_addr: hub.edge_addr.clone(),
                edge_ca_file: hub.edge_ca_file.clone(),
                tunnel: Tunnel { id: report.tunnel_id.clone(), domain: report.domain.clone(), token_file },
                routes,
                environment,
                audit_dir: gateway.audit_dir().map(Path::to_owned),
            };
            ready_file.write(&ready)?;
            print!("{}", banner(&ready, &data_dir));
            stop_signal().await?;
        }
    }
    drop(ready_file);
    // Calls end at the hub first; the gateway's last stream ends its link.
    tokio::join!(
        async {
            gateway.drain().await;
            gateway_tasks.shutdown(STOP_DEADLINE).await
        },
        hub_tasks.shutdown(STOP_DEADLINE),
    );
    gateway.close().await;
    hub.close().await;
    Ok(())
}

/// The routes of a file of settings, whose servers have the path that most have.
fn from_file(file: &Path) -> Result<(GatewayConfig, Vec<Served>), Failure> {
    let config = GatewayConfig::load(file).map_err(Failure::usage)?;
    let served = config.routes.keys().map(|name| Served { name: name.clone(), path: "/mcp".into() }).collect();
    Ok((config, served))
}

/// The routes of this command line, as the gateway's configuration file would have them.
fn gateway_config(args: &UpArgs) -> Result<(GatewayConfig, Vec<Served>), Failure> {
    let root = std::path::absolute(&args.files).map_err(Failure::usage)?;
    if !root.is_dir() {
        return Err(Failure::usage(format!("--files {}: not a directory", args.files.display())));
    }
    let root = root.to_str().ok_or_else(|| Failure::usage("--files: the path is not UTF-8"))?;
    let mut files = toml::Table::new();
    files.insert("upstream".into(), "builtin:files".into());
    files.insert("root".into(), root.into());
    let served = Served { name: "files".parse().map_err(Failure::failed)?, path: "/mcp".into() };
    let mut asked = vec![Asked { served, table: files }];
    let mut allowed: Vec<toml::Value> =
        ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"].into_iter().map(Into::into).collect();
    for text in &args.route {
        asked.push(parse_route(text, &mut allowed)?);
    }
    let mut routes = toml::Table::new();
    for one in &asked {
        if routes.insert(one.served.name.to_string(), one.table.clone().into()).is_some() {
            return Err(Failure::usage(format!("--route: the name `{}` is given twice", one.served.name)));
        }
    }
    let mut upstream = toml::Table::new();
    upstream.insert("allowed_ips".into(), allowed.into());
    let mut config = toml::Table::new();
    config.insert("routes".into(), routes.into());
    config.insert("upstream".into(), upstream.into());
    let text = toml::to_string(&config).map_err(Failure::failed)?;
    let config = GatewayConfig::parse(&text, Path::new("--route")).map_err(Failure::usage)?;
    Ok((config, asked.into_iter().map(|asked| asked.served).collect()))
}

/// Reads NAME=URL. A loopback address written here is thereby named, and allowed: exactly that address.
fn parse_route(text: &str, allowed: &mut Vec<toml::Value>) -> Result<Asked, Failure> {
    let wrong = |why: String| Failure::usage(format!("--route {text}: {why}"));
    let (name, url) = text.split_once('=').ok_or_else(|| wrong("write NAME=http://HOST:PORT/PATH".into()))?;
    let name = name.parse().map_err(|error| wrong(format!("{error}")))?;
    let url = Url::parse(url).map_err(|error| wrong(error.to_string()))?;
    let port = url.port_or_known_default();
    let (Some(host), Some(port), "http" | "https") = (url.host(), port, url.scheme()) else {
        return Err(wrong("it needs http or https and a host".into()));
    };
    let loopback = match &host {
        Host::Ipv4(address) => address.is_loopback().then(|| vec![address.to_string()]),
        Host::Ipv6(address) => address.is_loopback().then(|| vec![address.to_string()]),
        Host::Domain(name) => (*name == "localhost").then(|| vec!["127.0.0.1".into(), "::1".into()]),
    };
    allowed.extend(loopback.unwrap_or_default().into_iter().map(toml::Value::from));
    let mut table = toml::Table::new();
    table.insert("upstream".into(), format!("{}://{host}:{port}", url.scheme()).into());
    let path = if url.path() == "/" { "/mcp".to_owned() } else { url.path().to_owned() };
    Ok(Asked { served: Served { name, path }, table })
}

fn route(hub: &Hub, domain: &str, Served { name, path }: &Served) -> Route {
    let label = domain.split('.').next().unwrap_or_default();
    Route {
        name: name.clone(),
        url: format!("https://{name}.{domain}:{}{path}", hub.edge_listener.port()),
        local_url: format!("{}/t/{label}/{name}{path}", hub.api_url),
    }
}

/// What is kept of the key that is printed for pasting.
#[derive(Deserialize, Serialize)]
struct KeptKey {
    id: KeyId,
    secret: String,
}

/// A `use` key for every route of the tunnel: the one from the last time, while it is good.
async fn use_key(api: &client::Hub, data_dir: &Path, tunnel: &TunnelId) -> Result<ApiKey, Failure> {
    let path = data_dir.join("use-key.json");
    let wanted = Grant { tunnel_id: tunnel.clone(), route: None };
    if let Ok(text) = std::fs::read(&path)
        && let Ok(kept) = serde_json::from_slice::<KeptKey>(&text)
        && let Ok(secret) = ApiKey::parse(&kept.secret)
        && let Some(key) = api.find::<Key>(&format!("/v1/sortie/keys/{}", kept.id)).await?
        && key.archived_at.is_none()
        && key.grants.contains(&wanted)
    {
        return Ok(secret);
    }
    let name = "sortie up".parse().map_err(Failure::failed)?;
    let body = CreateKey {
        role: None,
        kind: KeyKind::Use,
        name,
        expires_at: None,
        grants: vec![wanted],
        agent: None,
        user: None,
        workspace_id: None,
    };
    let made: CreatedKey = api.post("/v1/sortie/keys", &body).await?;
    let kept = KeptKey { id: made.key.id, secret: made.secret.expose().to_owned() };
    let text = serde_json::to_vec(&kept).map_err(Failure::failed)?;
    sortie_tls::write_private(&path, &text)
        .map_err(|error| Failure::failed(format!("cannot write {}: {error}", path.display())))?;
    Ok(made.secret)
}

/// The environment `default` with a key for its workers: those from the last time, while they are good.
async fn environment(api: &client::Hub, data_dir: &Path) -> Result<ReadyEnvironment, Failure> {
    let all: Vec<Environment> = api.all("/v1/environments").await?;
    let found = all.into_iter().find(|environment| {
        let found = &environment.definition;
        found.name == ENVIRONMENT && found.config == EnvironmentConfig::SelfHosted
    });
    let environment = match found {
        Some(environment) => environment,
        None => {
            let body = serde_json::json!({"name": ENVIRONMENT, "config": {"type": "self_hosted"}});
            api.post("/v1/environments", &body).await?
        }
    };
    let id = environment.id;
    let key_file = data_dir.join("environment-key");
    if let Ok(text) = std::fs::read_to_string(&key_file)
        && let Ok(key) = ApiKey::parse(text.trim())
        && let Ok(worker) = client::Hub::new(api.base(), key, None)
        && worker.get::<WorkQueueStats>(&format!("/v1/environments/{id}/work/stats")).await.is_ok()
    {
        return Ok(ReadyEnvironment { id, key_file });
    }
    let body = CreateEnvironmentKey { name: "sortie up".parse().map_err(Failure::failed)?, expires_at: None };
    let made: CreatedKey = api.post(&format!("/v1/sortie/environments/{id}/keys"), &body).await?;
    sortie_tls::write_private(&key_file, format!("{}\n", made.secret.expose()).as_bytes())
        .map_err(|error| Failure::failed(format!("cannot write {}: {error}", key_file.display())))?;
    Ok(ReadyEnvironment { id, key_file })
}

/// What a person sees: where the servers are, and lines to paste.
fn banner(ready: &Ready, data_dir: &Path) -> String {
    let mut text = String::new();
    let mut say = |line: &str| {
        let _ = writeln!(text, "{line}");
    };
    say("Sortie serves. Agents reach these MCP servers; nothing listens beyond loopback.");
    say("");
    for route in &ready.routes {
        say(&format!("  {:<12} {}", route.name, route.local_url));
        say(&format!("  {:<12} {}", "", route.url));
    }
    say("");
    say(&format!("  use key      {}", ready.use_key));
    say(&format!("  environment  {} (key in {})", ready.environment.id, ready.environment.key_file.display()));
    say(&format!("  CA file      {}", ready.edge_ca_file.display()));
    say(&format!("  data         {}", data_dir.display()));
    if let Some(dir) = &ready.audit_dir {
        say(&format!("  audit        {}", dir.display()));
    }
    let Some(first) = ready.routes.first() else { return text };
    let (name, url, key) = (&first.name, &first.local_url, &ready.use_key);
    let https = Url::parse(&first.url).ok();
    let (host, port) = https.as_ref().map_or(("", 0), |url| (url.host_str().unwrap_or(""), url.port().unwrap_or(443)));
    let ping = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"curl","version":"1"}}}"#;
    let headers = "-H 'content-type: application/json' -H 'accept: application/json, text/event-stream'";
    say("");
    say("Try it:");
    say("");
    say("  # this program, in another terminal");
    say("  sortie mcp list");
    say(&format!(r#"  sortie mcp call {name} search '{{"query": "TODO"}}'"#));
    say("");
    say("  # curl, by path");
    say(&format!("  curl -sS {url} -H 'x-api-key: {key}' {headers} \\"));
    say(&format!("    -d '{ping}'"));
    say("");
    say("  # curl, by hostname");
    say(&format!(
        "  curl -sS {} --resolve {host}:{port}:127.0.0.1 --cacert {} \\",
        first.url,
        ready.edge_ca_file.display()
    ));
    say(&format!("    -H 'x-api-key: {key}' {headers} -d '{ping}'"));
    say("");
    say("  # Claude Code");
    say(&format!("  claude mcp add --transport http sortie-{name} {url} --header 'x-api-key: {key}'"));
    say("");
    say("  # MCP Inspector");
    say(&format!(
        "  npx @modelcontextprotocol/inspector --cli {url} --transport http --method tools/list --header 'x-api-key: {key}'"
    ));
    say("");
    say("  # Python (pip install 'mcp<2')");
    say("  python3 - <<'END'");
    say("  import asyncio");
    say("  from mcp import ClientSession");
    say("  from mcp.client.streamable_http import streamablehttp_client");
    say("  async def main():");
    say(&format!("      async with streamablehttp_client('{url}', headers={{'x-api-key': '{key}'}}) as (r, w, _):"));
    say("          async with ClientSession(r, w) as session:");
    say("              await session.initialize()");
    say("              print([tool.name for tool in (await session.list_tools()).tools])");
    say("  asyncio.run(main())");
    say("  END");
    say("");
    say("Ctrl-C stops everything.");
    text
}
