//! Hub and gateways from the release build, set up as an operator would: through the command line and the API, and
//! nothing else.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sortie_testkit::{Load, Process, Program};

const START: Duration = Duration::from_secs(60);

/// A hub, with the files of all that is set up at it.
#[derive(Debug)]
pub(crate) struct Hub {
    pub(crate) process: Process,
    /// The key for `x-api-key` that may do everything.
    pub(crate) api_key: String,
    api_url: String,
    sortie: PathBuf,
    dir: PathBuf,
}

/// What `sortie setup init` made.
#[derive(Debug)]
pub(crate) struct Tunnel {
    id: String,
    /// Who signs for the hub's callers.
    pub(crate) issuer: String,
    /// The URL below which the routes answer, without a slash at its end.
    pub(crate) routes_url: String,
    /// Its folder, for what belongs to its gateway.
    pub(crate) dir: PathBuf,
}

/// A key that may call some tunnels.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) id: String,
    pub(crate) secret: String,
}

impl Hub {
    /// Starts one that takes as many tunnels and keys as a benchmark makes.
    pub(crate) async fn start(sortie: &Path, dir: &Path) -> Result<Self> {
        let ready_file = dir.join("hub.json");
        let mut process = Program::new(sortie)
            .args(["hub", "--api", "127.0.0.1:0", "--edge", "127.0.0.1:0"])
            .args(["--max-tunnels", "100", "--max-keys", "10000", "--data-dir"])
            .arg(dir.join("hub"))
            .arg("--ready-file")
            .arg(&ready_file)
            .spawn()?;
        let ready = process.ready_file(&ready_file, START).await?;
        let (api_url, api_key) = (text(&ready, "api_url")?, text(&ready, "api_key")?);
        let api_url = api_url.trim_end_matches('/').to_owned();
        Ok(Self { process, api_key, api_url, sortie: sortie.to_owned(), dir: dir.to_owned() })
    }

    /// Makes a tunnel and its set-up directory.
    pub(crate) async fn tunnel(&self, name: &str) -> Result<Tunnel> {
        let dir = self.dir.join(name);
        let setup = dir.join("setup");
        fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        let mut init = Program::new(&self.sortie)
            .args(["setup", "init", "--api-url", &self.api_url, "--output"])
            .arg(format!("dir:{}", setup.display()))
            .env("API_TOKEN", &self.api_key)
            .spawn()?;
        let status = init.exit(START).await?;
        ensure!(status.success(), "sortie setup init failed ({status}):\n{}", init.output());
        let read = |name: &str| {
            let file = setup.join(name);
            fs::read_to_string(&file).map(|text| text.trim().to_owned()).with_context(|| file.display().to_string())
        };
        let (id, domain) = (read("tunnel-id")?, read("tunnel-domain")?);
        let routes_url = format!("{}/t/{}", self.api_url, domain.split('.').next().unwrap_or_default());
        let keys = serde_json::from_str(&read("hub-identity.jwks")?).context("the hub's identity keys")?;
        Ok(Tunnel { id, issuer: text(&keys, "issuer")?, routes_url, dir })
    }

    /// Starts the gateway of a tunnel and waits until it can be reached.
    pub(crate) async fn gateway(&self, tunnel: &Tunnel, settings: &str) -> Result<Process> {
        let (config, ready_file) = (tunnel.dir.join("gateway.toml"), tunnel.dir.join("gateway.json"));
        fs::write(&config, settings).with_context(|| config.display().to_string())?;
        let gateway = Program::new(&self.sortie).args(["gateway", "--config"]).arg(&config);
        let gateway = gateway.arg("--data-dir").arg(tunnel.dir.join("data"));
        let gateway = gateway.arg("--setup-dir").arg(tunnel.dir.join("setup"));
        let mut process = gateway.arg("--ready-file").arg(&ready_file).spawn()?;
        process.ready_file(&ready_file, START).await?;
        Ok(process)
    }

    /// Makes a key that may call these tunnels.
    pub(crate) async fn key(&self, name: &str, tunnels: &[Tunnel]) -> Result<Key> {
        let grants: Vec<_> = tunnels.iter().map(|tunnel| json!({ "tunnel_id": tunnel.id })).collect();
        let wanted = json!({ "kind": "use", "name": name, "grants": grants });
        let create = Load::post_json(format!("{}/v1/sortie/keys", self.api_url), wanted.to_string());
        let answer = create.header("x-api-key", &self.api_key).once().await?;
        let said = String::from_utf8_lossy(answer.body());
        ensure!(answer.status().is_success(), "a key: {}: {said}", answer.status());
        let key = serde_json::from_str(&said).context("a key")?;
        Ok(Key { id: text(&key, "id")?, secret: text(&key, "secret")? })
    }
}

/// A hub and a gateway with two routes, `small` and `echo`.
#[derive(Debug)]
pub(crate) struct Ours {
    /// The hub.
    pub(crate) hub: Process,
    /// The gateway.
    pub(crate) gateway: Process,
    /// The URL below which the routes answer, without a slash at its end.
    pub(crate) routes_url: String,
    /// The key for `x-api-key`.
    pub(crate) api_key: String,
}

impl Ours {
    /// Starts both and waits until both serve; with so many further routes that nobody calls.
    pub(crate) async fn start(
        sortie: &Path,
        dir: &Path,
        (small, echo): (SocketAddr, SocketAddr),
        further: usize,
    ) -> Result<Self> {
        let hub = Hub::start(sortie, dir).await?;
        let tunnel = hub.tunnel("gateway").await?;
        let mut settings = LOOPBACK.to_owned() + &route("small", small) + &route("echo", echo);
        for number in 0..further {
            settings.push_str(&route(&format!("further-{number}"), small));
        }
        let gateway = hub.gateway(&tunnel, &settings).await?;
        Ok(Self { gateway, routes_url: tunnel.routes_url, api_key: hub.api_key, hub: hub.process })
    }
}

/// The settings that let upstreams be on loopback.
pub(crate) const LOOPBACK: &str = "[upstream]\nallowed_ips = [\"127.0.0.0/8\"]\n\n";

/// The settings of a route and nothing else of it.
pub(crate) fn route(name: &str, upstream: SocketAddr) -> String {
    format!("[routes.{name}]\nupstream = \"http://{upstream}\"\n")
}

fn text(answer: &Value, field: &str) -> Result<String> {
    let value = answer.get(field).and_then(Value::as_str);
    value.map(str::to_owned).with_context(|| format!("the hub's answer has no `{field}`"))
}
