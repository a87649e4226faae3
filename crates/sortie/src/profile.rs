//! The profile: where operator commands find the hub when nothing else says so. Written by `sortie up`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sortie_ids::ApiKey;

use crate::cli::HubAccess;
use crate::client::Hub;
use crate::error::Failure;

/// What the profile file holds. It has a key in it, so it is private (mode 0600).
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Profile {
    pub(crate) api_url: String,
    pub(crate) api_key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) api_ca_file: Option<PathBuf>,
    /// Where the gateway of `sortie up` keeps its audit log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) audit_dir: Option<PathBuf>,
}

fn home(variable: &str, below: &str) -> Result<PathBuf, Failure> {
    if let Some(dir) = std::env::var_os(variable).map(PathBuf::from).filter(|dir| dir.is_absolute()) {
        return Ok(dir.join("sortie"));
    }
    let home = std::env::home_dir().ok_or_else(|| Failure::usage(format!("no home directory: set {variable}")))?;
    Ok(home.join(below).join("sortie"))
}

/// `$XDG_DATA_HOME/sortie`.
pub(crate) fn data_dir() -> Result<PathBuf, Failure> {
    home("XDG_DATA_HOME", ".local/share")
}

fn path() -> Result<PathBuf, Failure> {
    Ok(home("XDG_CONFIG_HOME", ".config")?.join("profile.toml"))
}

impl Profile {
    /// Puts the profile in place of the one that is there.
    pub(crate) fn write(&self) -> Result<PathBuf, Failure> {
        let path = path()?;
        let written = path.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| {
            let text = toml::to_string(self).map_err(std::io::Error::other)?;
            sortie_tls::write_private(&path, text.as_bytes())
        });
        written.map_err(|error| Failure::failed(format!("cannot write {}: {error}", path.display())))?;
        Ok(path)
    }

    fn read() -> Result<Option<Self>, Failure> {
        let path = path()?;
        match std::fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text)
                .map(Some)
                .map_err(|error| Failure::usage(format!("{} is damaged, remove it: {error}", path.display()))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Failure::failed(format!("cannot read {}: {error}", path.display()))),
        }
    }
}

/// The audit directory of the profile.
pub(crate) fn audit_dir() -> Result<Option<PathBuf>, Failure> {
    Ok(Profile::read()?.and_then(|profile| profile.audit_dir))
}

/// The hub that a command is for: flags and environment first, then the profile.
pub(crate) fn hub(access: &HubAccess) -> Result<Hub, Failure> {
    let key = std::env::var("SORTIE_API_KEY").ok();
    let profile = match (&access.api_url, &key) {
        (Some(_), Some(_)) => None,
        _ => Profile::read()?,
    };
    let missing = "no hub is known: run `sortie up`, or set SORTIE_API_URL and SORTIE_API_KEY";
    let url = access.api_url.clone().or_else(|| profile.as_ref().map(|profile| profile.api_url.clone()));
    let url = url.ok_or_else(|| Failure::usage(missing))?;
    // The profile's key is for the profile's hub only.
    let same = profile.filter(|profile| profile.api_url == url);
    let ca = access.api_ca.clone().or_else(|| same.as_ref().and_then(|profile| profile.api_ca_file.clone()));
    let key = key.or_else(|| same.map(|profile| profile.api_key));
    let key = key.ok_or_else(|| Failure::usage(format!("no key for {url}: set SORTIE_API_KEY")))?;
    let key = ApiKey::parse(key.trim()).map_err(|_| Failure::usage("SORTIE_API_KEY is not an API key"))?;
    Hub::new(&url, key, ca.as_deref())
}
