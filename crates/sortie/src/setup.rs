//! `sortie setup`: what a gateway needs to be one end of a tunnel. Keys are made here and stay here.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use sortie_api::{CreateCertificate, CreateTunnel, Discovery, RotateToken, Tunnel, TunnelCertificate, TunnelToken};
use sortie_ids::{ApiKey, TunnelId};
use sortie_tls::{SetupDir, SetupError, SetupFile};

use crate::cli::{ExportArgs, HubAccess, InitArgs, Output, RenewArgs, RotateArgs, SetupCommand};
use crate::client::Hub;
use crate::error::Failure;
use crate::output::{self, Style};
use crate::profile;

/// Holds the last value of `--token-version`.
const TOKEN_VERSION: &str = "token-version";

pub(crate) async fn run(command: SetupCommand, access: &HubAccess, output: Option<Output>) -> Result<(), Failure> {
    if let SetupCommand::RotateIdentity(args) = &command {
        return rotate_identity(args);
    }
    let Some(Output::Dir(dir)) = output else {
        return Err(Failure::usage("say where the files go with --output dir:DIR"));
    };
    match command {
        SetupCommand::Init(args) => {
            let token = std::env::var("API_TOKEN");
            let token = token.map_err(|_| Failure::usage("set API_TOKEN to a manage key of the hub"))?;
            let key = ApiKey::parse(token.trim()).map_err(|_| Failure::usage("API_TOKEN is not an API key"))?;
            let url = access.api_url.clone().or_else(|| std::env::var("API_URL").ok());
            let url = url.ok_or_else(|| Failure::usage("say which hub with --api-url"))?;
            let hub = Hub::new(&url, key, access.api_ca.as_deref())?;
            init(&hub, &dir, &Init::from(args)).await?.print()
        }
        SetupCommand::RenewCert(args) => renew(&args, &dir),
        SetupCommand::ExportIssuer(args) => export_issuer(&args, access, &dir).await,
        SetupCommand::RotateIdentity(args) => rotate_identity(&args),
    }
}

/// What is asked for.
#[derive(Default)]
pub(crate) struct Init {
    pub(crate) tunnel_id: Option<TunnelId>,
    pub(crate) display_name: Option<String>,
    pub(crate) cert_duration: Duration,
    pub(crate) token_version: Option<String>,
}

impl From<InitArgs> for Init {
    fn from(args: InitArgs) -> Self {
        Self {
            tunnel_id: args.tunnel_id,
            display_name: args.display_name,
            cert_duration: args.cert_duration,
            token_version: args.token_version,
        }
    }
}

/// What was done.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) tunnel_id: TunnelId,
    pub(crate) domain: String,
    directory: PathBuf,
    created: bool,
    ca_registered: bool,
    token_rotated: bool,
}

impl Report {
    fn print(&self) -> Result<(), Failure> {
        let yes = |done: bool, yes: &str, no: &str| if done { yes } else { no }.to_owned();
        output::one(
            Style::Table,
            self,
            &[
                ("tunnel", format!("{} ({})", self.tunnel_id, yes(self.created, "created", "was there"))),
                ("domain", self.domain.clone()),
                ("CA certificate", yes(self.ca_registered, "registered", "was registered")),
                ("token", yes(self.token_rotated, "rotated", "fetched")),
                ("files", self.directory.display().to_string()),
            ],
        )
    }
}

fn file(error: SetupError) -> Failure {
    Failure::failed(error)
}

/// Makes a directory hold everything that a gateway needs; repeated, it changes only what must change.
pub(crate) async fn init(hub: &Hub, path: &Path, asked: &Init) -> Result<Report, Failure> {
    let dir = SetupDir::open(path).map_err(file)?;
    let stored = match dir.read(SetupFile::TunnelId).map_err(file)? {
        Some(text) => Some(text.expose().trim().parse::<TunnelId>().map_err(|error| {
            Failure::failed(format!(
                "{}: {error}; remove the file to begin anew",
                dir.path(SetupFile::TunnelId).display()
            ))
        })?),
        None => None,
    };
    let (tunnel, created) = tunnel(hub, &dir, stored.as_ref(), asked).await?;
    if let Some(archived) = tunnel.archived_at {
        return Err(Failure::failed(format!(
            "tunnel {} was archived at {archived}: remove {} to create a new one",
            tunnel.id,
            dir.path(SetupFile::TunnelId).display()
        )));
    }
    if stored.as_ref().is_some_and(|stored| *stored != tunnel.id) {
        dir.replace_authority().map_err(file)?;
    }
    dir.write(SetupFile::TunnelId, &line(tunnel.id.as_str())).map_err(file)?;
    dir.write(SetupFile::TunnelDomain, &line(&tunnel.domain)).map_err(file)?;

    let authority = dir.ensure_authority().map_err(file)?;
    let certificates = format!("/v1/tunnels/{}/certificates", tunnel.id);
    let registered: Vec<TunnelCertificate> = hub.all(&certificates).await?;
    let fingerprint = authority.certificate().fingerprint();
    let known = registered.iter().any(|one| one.fingerprint.to_string() == fingerprint);
    if !known {
        let body = CreateCertificate { ca_certificate_pem: authority.cert_pem().to_owned() };
        let _: TunnelCertificate = hub.post(&certificates, &body).await?;
    }

    let token_rotated = token(hub, &dir, &tunnel.id, asked.token_version.as_deref()).await?;
    dir.issue_server_cert(&tunnel.domain, asked.cert_duration).map_err(file)?;
    // The hosted service has no such page: its connector finds its edge by itself.
    if let Some(found) = hub.find::<Discovery>("/v1/sortie/discovery").await? {
        dir.write(SetupFile::EdgeAddr, &line(&found.edge_addr)).map_err(file)?;
        dir.write(SetupFile::EdgeCa, &found.edge_ca_pem).map_err(file)?;
        dir.write(SetupFile::HubIdentity, &line(&found.identity_jwks.to_string())).map_err(file)?;
    }
    Ok(Report {
        tunnel_id: tunnel.id,
        domain: tunnel.domain,
        directory: path.to_owned(),
        created,
        ca_registered: !known,
        token_rotated,
    })
}

async fn tunnel(hub: &Hub, dir: &SetupDir, stored: Option<&TunnelId>, asked: &Init) -> Result<(Tunnel, bool), Failure> {
    if let Some(id) = asked.tunnel_id.as_ref().or(stored) {
        let found = hub.find(&format!("/v1/tunnels/{id}")).await?;
        let missing = || {
            let path = dir.path(SetupFile::TunnelId);
            let next = format!("another hub or workspace? Remove {} to create a new one", path.display());
            Failure::failed(format!("the hub has no tunnel {id}: {next}"))
        };
        return Ok((found.ok_or_else(missing)?, false));
    }
    let display_name = match &asked.display_name {
        Some(name) => Some(name.parse().map_err(Failure::usage)?),
        None => None,
    };
    let tunnel: Tunnel = hub.post("/v1/tunnels", &CreateTunnel { display_name }).await?;
    // First of all, so that a repetition after a failure attaches to this one.
    dir.write(SetupFile::TunnelId, &line(tunnel.id.as_str())).map_err(file)?;
    Ok((tunnel, true))
}

/// Puts the current token into its file; rotated when the version asked for is a new one.
async fn token(hub: &Hub, dir: &SetupDir, tunnel: &TunnelId, version: Option<&str>) -> Result<bool, Failure> {
    let path = dir.path(SetupFile::TunnelId).with_file_name(TOKEN_VERSION);
    let stored = std::fs::read_to_string(&path).ok();
    let stored = stored.as_deref().map(str::trim);
    let rotate = version.is_some() && stored.is_some() && version != stored;
    let token: TunnelToken = if rotate {
        let reason = version.map(|version| format!("setup init --token-version {version}"));
        hub.post(&format!("/v1/tunnels/{tunnel}/rotate_token"), &RotateToken { reason }).await?
    } else {
        hub.post(&format!("/v1/tunnels/{tunnel}/reveal_token"), &serde_json::json!({})).await?
    };
    dir.write(SetupFile::TunnelToken, &line(token.value.expose())).map_err(file)?;
    let version = version.or(stored).unwrap_or("1");
    sortie_tls::write_public(&path, line(version).as_bytes())
        .map_err(|error| Failure::failed(format!("cannot write {}: {error}", path.display())))?;
    Ok(rotate)
}

/// Writes what an issuer publishes, so that any web server can publish it.
async fn export_issuer(args: &ExportArgs, access: &HubAccess, dir: &Path) -> Result<(), Failure> {
    let hub = match &args.gateway {
        None => profile::hub(access)?,
        // What is published is for everybody: this key is none.
        Some(url) => Hub::new(url, ApiKey::parse("none").map_err(Failure::failed)?, None)?,
    };
    let folder = dir.join(".well-known");
    let failed = |path: &Path, error: std::io::Error| Failure::failed(format!("{}: {error}", path.display()));
    std::fs::create_dir_all(&folder).map_err(|error| failed(&folder, error))?;
    let mut issuer = String::new();
    for name in ["openid-configuration", "jwks.json"] {
        let document: serde_json::Value = hub.get(&format!("/.well-known/{name}")).await?;
        if let Some(named) = document.get("issuer").and_then(serde_json::Value::as_str) {
            issuer = named.to_owned();
        }
        let path = folder.join(name);
        let written = sortie_tls::write_public(&path, line(&document.to_string()).as_bytes());
        written.map_err(|error| failed(&path, error))?;
    }
    output::one(
        Style::Table,
        &serde_json::json!({"issuer": issuer, "directory": dir}),
        &[("issuer", issuer.clone()), ("files", folder.display().to_string())],
    )
}

fn rotate_identity(args: &RotateArgs) -> Result<(), Failure> {
    let now = jiff::Timestamp::now().as_second();
    let rotated = sortie_gateway::rotate_identity_keys(&args.data_dir, args.after, now).map_err(Failure::failed)?;
    let time = |seconds| jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::MAX).to_string();
    output::one(
        Style::Table,
        &rotated,
        &[
            ("new key", format!("{}, signs from {}", rotated.kid, time(rotated.begins))),
            ("old key", format!("{}, verifies until {}", rotated.old_kid, time(rotated.old_ends))),
        ],
    )
}

fn line(text: &str) -> String {
    let mut line = text.to_owned();
    let _ = line.write_char('\n');
    line
}

fn renew(args: &RenewArgs, path: &Path) -> Result<(), Failure> {
    let dir = SetupDir::at(path);
    let domain = dir.require(SetupFile::TunnelDomain).map_err(file)?;
    let due = args.renew_before.is_zero() || dir.renew_before(args.renew_before).map_err(file)?;
    if due {
        dir.issue_server_cert(domain.expose().trim(), args.cert_duration).map_err(file)?;
    }
    let done = if due { "renewed" } else { "not due" };
    output::one(
        Style::Table,
        &serde_json::json!({"renewed": due, "directory": path}),
        &[("certificate", done.to_owned()), ("files", path.display().to_string())],
    )
}
