//! Hub and gateway from the release build, set up as an operator would: through the command line and nothing else.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use sortie_testkit::{Process, Program};

const START: Duration = Duration::from_secs(20);

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
        let (hub_ready, gateway_ready, setup) = (dir.join("hub.json"), dir.join("gateway.json"), dir.join("setup"));
        let mut hub = Program::new(sortie)
            .args(["hub", "--api", "127.0.0.1:0", "--edge", "127.0.0.1:0", "--data-dir"])
            .arg(dir.join("hub"))
            .arg("--ready-file")
            .arg(&hub_ready)
            .spawn()?;
        let ready = hub.ready_file(&hub_ready, START).await?;
        let (api_url, api_key) = (text(&ready, "api_url")?, text(&ready, "api_key")?);

        let mut init = Program::new(sortie)
            .args(["setup", "init", "--api-url", &api_url, "--output"])
            .arg(format!("dir:{}", setup.display()))
            .env("API_TOKEN", &api_key)
            .spawn()?;
        let status = init.exit(START).await?;
        anyhow::ensure!(status.success(), "sortie setup init failed ({status}):\n{}", init.output());
        let domain_file = setup.join("tunnel-domain");
        let domain = fs::read_to_string(&domain_file).with_context(|| domain_file.display().to_string())?;
        let label = domain.trim().split('.').next().unwrap_or_default().to_owned();

        let config = dir.join("gateway.toml");
        let mut routes = format!(
            "[upstream]\nallowed_ips = [\"127.0.0.0/8\"]\n\n\
             [routes.small]\nupstream = \"http://{small}\"\n\n[routes.echo]\nupstream = \"http://{echo}\"\n"
        );
        for route in 0..further {
            routes.push_str(&format!("[routes.further-{route}]\nupstream = \"http://{small}\"\n"));
        }
        fs::write(&config, routes).with_context(|| config.display().to_string())?;
        let mut gateway = Program::new(sortie)
            .args(["gateway", "--config"])
            .arg(&config)
            .arg("--data-dir")
            .arg(dir.join("gateway"))
            .arg("--setup-dir")
            .arg(&setup)
            .arg("--ready-file")
            .arg(&gateway_ready)
            .spawn()?;
        gateway.ready_file(&gateway_ready, START).await?;
        let routes_url = format!("{}/t/{label}", api_url.trim_end_matches('/'));
        Ok(Self { hub, gateway, routes_url, api_key })
    }
}

fn text(ready: &Value, field: &str) -> Result<String> {
    let value = ready.get(field).and_then(Value::as_str);
    value.map(str::to_owned).with_context(|| format!("the hub's ready file has no `{field}`"))
}
