//! What is wrong with settings beyond their text: with the files that they name, and with the hosts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use rustix::fs::Access;
use sortie_credentials::{VaultAuth, VaultSpec};
use sortie_ids::RouteName;
use sortie_sinks::publish::{PlaceKind, PlaceSpec};
use sortie_sinks::{SinkKind, SinkSpec, Tls};
use sortie_tls::{ReloadingIdentity, SealingKey, TlsError, check_client_ca, covers, upstream_client_config};

use super::{GatewayConfig, Places, RouteTls, Server, Upstream};
use crate::guard::Guard;
use crate::served::{policies, read_policy, read_text};
use crate::upstream::judged;

/// How long one name may take to be resolved.
const RESOLVE: Duration = Duration::from_secs(5);

impl GatewayConfig {
    /// What is wrong with the files and directories that the settings name, each with file, line and setting. Reads them
    /// and changes nothing. Blocks.
    pub fn check_files(&self) -> Vec<String> {
        let mut problems = Problems::new(&self.places);
        let ca = problems.text("upstream.tls.ca_file", self.upstream.ca_file.as_deref());
        if ca.is_some() || self.upstream.include_system_cas {
            problems.note("upstream.tls.ca_file", trusting(ca.as_deref(), self.upstream.include_system_cas));
        }
        if let Some(path) = &self.link.proxy_authorization_file {
            let value = read_text(path).map_err(|error| format!("cannot read {}: {error}", path.display()));
            let usable = value.and_then(|text| {
                HeaderValue::from_str(text.trim()).map_err(|_| format!("{} is not a header's value", path.display()))
            });
            problems.note("link.proxy_authorization_file", usable.map(drop));
        }
        for (name, route) in &self.routes {
            let setting = format!("routes.{name}.client_ca_file");
            if let Some(pem) = problems.text(&setting, route.client_ca_file.as_deref()) {
                problems.note(&setting, check_client_ca(&pem));
            }
            self.check_tls(&mut problems, name, &route.tls);
            for (number, credential) in route.credentials.iter().enumerate() {
                let setting = format!("routes.{name}.credentials.{number}");
                problems.note(&format!("{setting}.secret"), credential.spec.check());
                if let Some(endpoint) = credential.spec.endpoint() {
                    problems.note(&format!("{setting}.tls.ca_file"), endpoint.trust.check());
                }
            }
            if let Some(root) = &route.root {
                let listed = std::fs::read_dir(root).map(drop);
                let listed = listed.map_err(|error| format!("the directory {}: {error}", root.display()));
                problems.note(&format!("routes.{name}.root"), listed);
            }
        }
        if let Some(path) = &self.control.policy_file {
            problems.note("policy_file", policies(self.control.policy, path, read_policy).map(drop));
        }
        check_sinks(&mut problems, "audit.sinks", &self.audit.sinks);
        check_places(&mut problems, "audit.publish", &self.audit.publish);
        if let Some(dir) = &self.audit.log.dir {
            problems.note("audit.dir", check_made(dir));
        }
        if let Some(payload) = &self.audit.payload
            && let Some(text) = problems.text("audit.payload.key_file", Some(&payload.key_file))
        {
            problems.note("audit.payload.key_file", text.parse::<SealingKey>().map(drop));
        }
        check_vaults(&mut problems, &self.vaults);
        if let Some(files) = &self.certificate {
            let loaded = ReloadingIdentity::from_files(&files.cert_file, &files.key_file).map(Arc::new);
            if let (Ok(identity), Some(domain)) = (&loaded, &self.tunnel_domain) {
                self.check_coverage(&mut problems, identity, domain);
            }
            let setting = loaded.as_ref().err().map_or("tls.cert_file", |error| files.blamed(error));
            problems.note(setting, loaded.map(drop));
        }
        problems.found
    }

    /// What is wrong with the hosts of upstreams: names that cannot be resolved, and such as lead only to addresses that
    /// may not be dialled. Asks the machine's resolver and dials nothing; each name may take five seconds.
    pub async fn check_hosts(&self) -> Vec<String> {
        let mut problems = Problems::new(&self.places);
        let guard = Guard::new(self.upstream.allowed_ips.clone());
        for (name, route) in &self.routes {
            let Upstream::Servers(servers) = &route.upstream else { continue };
            for server in servers {
                let Server::Tcp { host, port, .. } = server else { continue };
                let judged = match tokio::time::timeout(RESOLVE, judged(&guard, host, *port)).await {
                    Ok(judged) => judged.map(drop).map_err(|error| error.to_string()),
                    Err(_) => Err(format!("the name `{host}` was not resolved within {} s", RESOLVE.as_secs())),
                };
                problems.note(&format!("routes.{name}.upstream"), judged);
            }
        }
        problems.found
    }

    fn check_tls(&self, problems: &mut Problems<'_>, name: &RouteName, tls: &RouteTls) {
        if let Some(trust) = &tls.trust {
            let setting = format!("routes.{name}.tls.ca_file");
            let ca = problems.text(&setting, trust.ca_file.as_deref());
            if ca.is_some() || trust.include_system_cas {
                problems.note(&setting, trusting(ca.as_deref(), trust.include_system_cas));
            }
        }
        if let Some((cert, key)) = &tls.client {
            let loaded = ReloadingIdentity::client_from_files(cert, key).map(drop);
            problems.note(&format!("routes.{name}.tls.client_cert_file"), loaded);
        }
    }

    fn check_coverage(&self, problems: &mut Problems<'_>, identity: &ReloadingIdentity, domain: &str) {
        let leaf = identity.leaf();
        let hosts: BTreeSet<String> = self.routes.keys().map(|name| format!("{name}.{domain}")).collect();
        for host in hosts {
            if !leaf.as_ref().is_some_and(|leaf| covers(leaf, &host)) {
                problems.note("tls.cert_file", Err::<(), _>(format!("the certificate does not cover `{host}`")));
            }
        }
    }
}

pub(super) fn check_sinks(problems: &mut Problems<'_>, table: &str, sinks: &[SinkSpec]) {
    for (number, sink) in sinks.iter().enumerate() {
        if let Some(credential) = sink.credential() {
            let setting = if matches!(sink.kind, SinkKind::Splunk(_)) { "token" } else { "credential.secret" };
            problems.note(&format!("{table}.{number}.{setting}"), credential.source().check());
        }
        if let Some(tls) = sink.tls() {
            check_shown(problems, &format!("{table}.{number}.tls."), tls);
        }
    }
}

pub(super) fn check_places(problems: &mut Problems<'_>, table: &str, places: &[PlaceSpec]) {
    for (number, place) in places.iter().enumerate() {
        let setting = format!("{table}.{number}.");
        match &place.kind {
            PlaceKind::File(dir) => problems.note(&format!("{setting}file"), check_writable(dir)),
            PlaceKind::Url { credential, tls, .. } => {
                if let Some(credential) = credential {
                    problems.note(&format!("{setting}secret_file"), credential.source().check());
                }
                check_shown(problems, &setting, tls);
            }
            PlaceKind::Witness { tls, .. } => check_shown(problems, &setting, tls),
        }
    }
}

pub(super) fn check_vaults(problems: &mut Problems<'_>, vaults: &BTreeMap<String, VaultSpec>) {
    for (name, vault) in vaults {
        let (setting, source) = match &vault.auth {
            VaultAuth::Token(source) => ("token", source),
            VaultAuth::AppRole { secret_id, .. } => ("approle.secret_id", secret_id),
        };
        problems.note(&format!("vault.{name}.{setting}"), source.check());
        problems.note(&format!("vault.{name}.tls.ca_file"), vault.trust.check());
    }
}

fn check_shown(problems: &mut Problems<'_>, setting: &str, tls: &Tls) {
    problems.note(&format!("{setting}ca_file"), tls.trust.check());
    if let Some((cert, key)) = &tls.client {
        let loaded = ReloadingIdentity::client_from_files(cert, key).map(drop);
        problems.note(&format!("{setting}client_cert_file"), loaded);
    }
}

/// Whether this is a directory that we may write into.
fn check_writable(dir: &Path) -> Result<(), String> {
    if !dir.is_dir() {
        return Err(format!("{} is no directory; make it, or mount what is to be there", dir.display()));
    }
    rustix::fs::access(dir, Access::WRITE_OK | Access::EXEC_OK)
        .map_err(|error| format!("the directory {} cannot be written: {error}", dir.display()))
}

/// The same for one that is made when it is missing.
fn check_made(dir: &Path) -> Result<(), String> {
    match dir.ancestors().find(|above| above.symlink_metadata().is_ok()) {
        Some(there) => check_writable(there),
        None => check_writable(Path::new(".")),
    }
}

/// Whether anybody can be trusted so.
fn trusting(ca_pem: Option<&str>, system: bool) -> Result<(), TlsError> {
    upstream_client_config(ca_pem.unwrap_or(""), system, &[], None).map(drop)
}

pub(super) struct Problems<'a> {
    places: &'a Places,
    pub(super) found: Vec<String>,
}

impl<'a> Problems<'a> {
    pub(super) fn new(places: &'a Places) -> Self {
        Self { places, found: Vec::new() }
    }

    fn note<E: std::fmt::Display>(&mut self, setting: &str, outcome: Result<(), E>) {
        if let Err(problem) = outcome {
            self.found.push(format!("{}: {setting}: {problem}", self.places.of(setting)));
        }
    }

    /// The text of a file that is named, if it can be read.
    fn text(&mut self, setting: &str, path: Option<&Path>) -> Option<String> {
        let path = path?;
        match read_text(path) {
            Ok(text) => Some(text),
            Err(error) => {
                self.note(setting, Err::<(), _>(format!("cannot read {}: {error}", path.display())));
                None
            }
        }
    }
}
