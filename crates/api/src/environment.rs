//! Environments: where the sandbox tools of sessions run.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sortie_ids::EnvironmentId;

use crate::{ApiError, Metadata, Patch, check_metadata, patch_metadata};

/// Longest name, in characters.
const MAX_NAME: usize = 256;
/// Longest description, in characters.
const MAX_DESCRIPTION: usize = 2048;
/// Most hosts of a network, and most packages of one manager.
const MAX_ENTRIES: usize = 1024;
/// Longest name of a host, in characters.
const MAX_HOST: usize = 255;
/// Longest name of a package with its version, in characters.
const MAX_PACKAGE: usize = 512;

/// An environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename = "environment")]
#[schemars(rename = "Environment", transform = crate::schema::typed("environment"))]
pub struct Environment {
    /// Its id.
    pub id: EnvironmentId,
    /// What it is.
    #[serde(flatten)]
    pub definition: EnvironmentDefinition,
    /// When it was made, in whole seconds.
    #[serde(with = "crate::time")]
    #[schemars(with = "Timestamp")]
    pub created_at: Timestamp,
    /// When it changed last.
    #[serde(with = "crate::time")]
    #[schemars(with = "Timestamp")]
    pub updated_at: Timestamp,
    /// When it was archived; it never comes back.
    #[serde(with = "crate::time::optional")]
    #[schemars(with = "Option<Timestamp>")]
    pub archived_at: Option<Timestamp>,
}

/// What an environment is, checked and resolved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EnvironmentDefinition {
    /// Its name; no other active environment of the workspace has it.
    pub name: String,
    /// What people are told of it.
    pub description: Option<String>,
    /// What its owner wrote beside it.
    pub metadata: Metadata,
    /// Where its sandboxes are.
    pub config: EnvironmentConfig,
    /// Who sees it.
    pub scope: Scope,
}

/// Where the sandboxes of an environment are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum EnvironmentConfig {
    /// At workers, which ask for work.
    SelfHosted,
    /// At a service that runs them. Kept and shown; there is no such service here, so no sessions are made in it.
    Cloud {
        /// What they reach.
        networking: Networking,
        /// What is installed in them.
        packages: Packages,
    },
}

/// What a sandbox reaches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Networking {
    /// Everything.
    Unrestricted,
    /// What is named.
    Limited {
        /// Host names, or `*.` and one.
        allowed_hosts: Vec<String>,
        /// The MCP servers of the agent, too.
        allow_mcp_servers: bool,
        /// Public registries of packages, too.
        allow_package_managers: bool,
    },
}

/// Packages by their managers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename = "packages")]
#[schemars(rename = "Packages", transform = crate::schema::typed("packages"))]
#[allow(missing_docs, reason = "the names of the managers")]
pub struct Packages {
    pub apt: Vec<String>,
    pub cargo: Vec<String>,
    pub gem: Vec<String>,
    pub go: Vec<String>,
    pub npm: Vec<String>,
    pub pip: Vec<String>,
}

/// Who sees an environment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Whoever has a key of its workspace.
    #[default]
    Organization,
}

/// The body of `POST /v1/environments`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateEnvironment {
    /// 1 to 256 characters, which no other active environment of the workspace has.
    name: String,
    /// Where its sandboxes are; `self_hosted`, when left out.
    #[serde(default)]
    config: Option<SentConfig>,
    /// At most 2,048 characters.
    #[serde(default)]
    description: Option<String>,
    /// At most 16 pairs.
    #[serde(default)]
    metadata: Option<Metadata>,
    /// `organization`; `account` is not offered.
    #[serde(default)]
    scope: Option<SentScope>,
}

/// The body of `POST /v1/environments/{environment_id}`. What is left out stays.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UpdateEnvironment {
    /// 1 to 256 characters, which no other active environment of the workspace has.
    name: Option<String>,
    /// Of the same type as before. What is left out of it stays, too.
    config: Option<SentConfig>,
    /// `null` clears it.
    description: Patch<String>,
    /// Pairs: a text takes the place of what was there, `null` or an empty text takes it away.
    metadata: Patch<BTreeMap<String, Option<String>>>,
    /// `organization`; `account` is not offered.
    scope: Option<SentScope>,
}

/// Where sandboxes are, as it is sent.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
#[schemars(rename = "SentEnvironmentConfig")]
enum SentConfig {
    /// At workers.
    SelfHosted {},
    /// At a service that runs them.
    Cloud {
        /// What they reach; everything, when left out.
        #[serde(default)]
        networking: Option<SentNetworking>,
        /// What is installed in them.
        #[serde(default)]
        packages: Option<SentPackages>,
    },
}

/// What a sandbox reaches, as it is sent.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum SentNetworking {
    /// Everything.
    Unrestricted {},
    /// What is named.
    Limited {
        /// At most 1,024 host names, or `*.` and one.
        #[serde(default)]
        allowed_hosts: Option<Vec<String>>,
        /// The MCP servers of the agent, too; not, when left out.
        #[serde(default)]
        allow_mcp_servers: Option<bool>,
        /// Public registries of packages, too; not, when left out. Needed where packages are named.
        #[serde(default)]
        allow_package_managers: Option<bool>,
    },
}

/// Packages by their managers, as they are sent: at most 1,024 of each.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct SentPackages {
    /// `packages`, or nothing.
    #[serde(rename = "type")]
    kind: Option<PackagesType>,
    apt: Option<Vec<String>>,
    cargo: Option<Vec<String>>,
    gem: Option<Vec<String>>,
    go: Option<Vec<String>>,
    npm: Option<Vec<String>>,
    pip: Option<Vec<String>>,
}

/// The one type of packages.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum PackagesType {
    Packages,
}

/// Who sees an environment, as it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum SentScope {
    Organization,
    Account,
}

/// The answer to the deletion of an environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename = "environment_deleted")]
#[schemars(rename = "DeletedEnvironment", transform = crate::schema::typed("environment_deleted"))]
pub struct DeletedEnvironment {
    /// Its id.
    pub id: EnvironmentId,
}

impl EnvironmentConfig {
    /// The `type` on the wire.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::SelfHosted => "self_hosted",
            Self::Cloud { .. } => "cloud",
        }
    }
}

impl CreateEnvironment {
    /// What the new environment is.
    ///
    /// # Errors
    /// 400, naming the member that breaks a rule.
    pub fn define(self) -> Result<EnvironmentDefinition, ApiError> {
        let config = self.config.unwrap_or(SentConfig::SelfHosted {});
        Ok(EnvironmentDefinition {
            name: name(self.name)?,
            description: description(self.description)?,
            metadata: check_metadata(self.metadata.unwrap_or_default())?,
            config: config.resolve(None)?,
            scope: scope(self.scope)?,
        })
    }
}

impl UpdateEnvironment {
    /// What the environment is after this.
    ///
    /// # Errors
    /// 400, naming the member that breaks a rule; with `error_code` `invalid_config_type_change` for another type.
    pub fn apply(self, before: EnvironmentDefinition) -> Result<EnvironmentDefinition, ApiError> {
        let emptied = |pairs: BTreeMap<String, Option<String>>| {
            let kept = |value: Option<String>| value.filter(|value| !value.is_empty());
            Ok::<_, ApiError>(pairs.into_iter().map(|(key, value)| (key, kept(value))).collect())
        };
        scope(self.scope)?;
        Ok(EnvironmentDefinition {
            name: self.name.map_or(Ok(before.name), name)?,
            description: description(self.description.or(before.description))?,
            metadata: patch_metadata(before.metadata, self.metadata.try_map(emptied)?)?,
            config: match self.config {
                Some(config) => config.resolve(Some(before.config))?,
                None => before.config,
            },
            scope: before.scope,
        })
    }
}

impl SentConfig {
    fn resolve(self, before: Option<EnvironmentConfig>) -> Result<EnvironmentConfig, ApiError> {
        let (networking, packages) = match (self, before) {
            (Self::SelfHosted {}, None | Some(EnvironmentConfig::SelfHosted)) => {
                return Ok(EnvironmentConfig::SelfHosted);
            }
            (Self::Cloud { networking, packages }, None) => {
                (networked(networking, Networking::Unrestricted)?, packages.unwrap_or_default().resolve()?)
            }
            (
                Self::Cloud { networking, packages },
                Some(EnvironmentConfig::Cloud { networking: reached, packages: installed }),
            ) => {
                let packages = packages.map_or(Ok(installed), SentPackages::resolve)?;
                (networked(networking, reached)?, packages)
            }
            (_, Some(before)) => {
                let reason = format!("config.type: stays {}; make another environment instead", before.kind());
                let details = json!({"error_code": "invalid_config_type_change"});
                return Err(ApiError::invalid_request(reason).with_details(details));
            }
        };
        let closed = matches!(networking, Networking::Limited { allow_package_managers: false, .. });
        if closed && packages != Packages::default() {
            let reason = "config.packages: a limited network needs allow_package_managers to install packages";
            return Err(ApiError::invalid_request(reason));
        }
        Ok(EnvironmentConfig::Cloud { networking, packages })
    }
}

impl SentPackages {
    fn resolve(self) -> Result<Packages, ApiError> {
        let checked = |manager: &str, packages: Option<Vec<String>>| {
            let packages = packages.unwrap_or_default();
            let place = format!("config.packages.{manager}");
            let plain = |package: &String| {
                (1..=MAX_PACKAGE).contains(&package.chars().count()) && !package.chars().any(char::is_control)
            };
            entries(&place, packages, plain, &format!("each has 1 to {MAX_PACKAGE} visible characters"))
        };
        Ok(Packages {
            apt: checked("apt", self.apt)?,
            cargo: checked("cargo", self.cargo)?,
            gem: checked("gem", self.gem)?,
            go: checked("go", self.go)?,
            npm: checked("npm", self.npm)?,
            pip: checked("pip", self.pip)?,
        })
    }
}

/// Whether this is the name of a host, or `*.` and one: no scheme, port or path.
pub(crate) fn is_host(text: &str) -> bool {
    let name = text.strip_prefix("*.").unwrap_or(text);
    let plain = |label: &str| {
        let inner = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        (1..=63).contains(&label.len()) && inner && !label.starts_with('-') && !label.ends_with('-')
    };
    text.len() <= MAX_HOST && name.split('.').all(plain)
}

fn networked(sent: Option<SentNetworking>, before: Networking) -> Result<Networking, ApiError> {
    let (allowed_hosts, mcp, packages) = match sent {
        None => return Ok(before),
        Some(SentNetworking::Unrestricted {}) => return Ok(Networking::Unrestricted),
        Some(SentNetworking::Limited { allowed_hosts, allow_mcp_servers, allow_package_managers }) => {
            (allowed_hosts, allow_mcp_servers, allow_package_managers)
        }
    };
    let kept = match before {
        Networking::Limited { allowed_hosts, allow_mcp_servers, allow_package_managers } => {
            (allowed_hosts, allow_mcp_servers, allow_package_managers)
        }
        Networking::Unrestricted => (Vec::new(), false, false),
    };
    let rule = "each is a host name, such as api.example.com or *.example.com, without scheme, port or path";
    let allowed_hosts = allowed_hosts.unwrap_or(kept.0);
    Ok(Networking::Limited {
        allowed_hosts: entries("config.networking.allowed_hosts", allowed_hosts, |host| is_host(host), rule)?,
        allow_mcp_servers: mcp.unwrap_or(kept.1),
        allow_package_managers: packages.unwrap_or(kept.2),
    })
}

fn entries(
    place: &str,
    entries: Vec<String>,
    fits: impl Fn(&String) -> bool,
    rule: &str,
) -> Result<Vec<String>, ApiError> {
    let refused = |reason: String| Err(ApiError::invalid_request(format!("{place}: {reason}")));
    if entries.len() > MAX_ENTRIES {
        return refused(format!("{} entries, at most {MAX_ENTRIES}", entries.len()));
    }
    if entries.iter().all(fits) { Ok(entries) } else { refused(rule.to_owned()) }
}

fn name(name: String) -> Result<String, ApiError> {
    let length = name.chars().count();
    if (1..=MAX_NAME).contains(&length) {
        return Ok(name);
    }
    Err(ApiError::invalid_request(format!("name: {length} characters; 1 to {MAX_NAME} are possible")))
}

fn description(description: Option<String>) -> Result<Option<String>, ApiError> {
    let length = description.as_ref().map_or(0, |text| text.chars().count());
    if length <= MAX_DESCRIPTION {
        return Ok(description);
    }
    Err(ApiError::invalid_request(format!("description: {length} characters, at most {MAX_DESCRIPTION}")))
}

fn scope(sent: Option<SentScope>) -> Result<Scope, ApiError> {
    if sent == Some(SentScope::Account) {
        let reason = "scope: `account` is not offered; leave it out, and give each team a workspace of its own";
        return Err(ApiError::invalid_request(reason));
    }
    Ok(Scope::Organization)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn define(body: Value) -> Result<EnvironmentDefinition, String> {
        let request: CreateEnvironment = serde_json::from_value(body).map_err(|error| error.to_string())?;
        request.define().map_err(|error| error.message)
    }

    fn update(before: &EnvironmentDefinition, body: Value) -> Result<EnvironmentDefinition, ApiError> {
        let request: UpdateEnvironment =
            serde_json::from_value(body).map_err(|error| ApiError::invalid_request(error.to_string()))?;
        request.apply(before.clone())
    }

    fn config(definition: &EnvironmentDefinition) -> Value {
        serde_json::to_value(&definition.config).expect("json")
    }

    #[test]
    fn the_least_that_is_sent_is_shown_in_full() {
        let expected = json!({
            "name": "lab", "description": null, "metadata": {}, "config": {"type": "self_hosted"}, "scope": "organization",
        });
        for sent in [
            json!({"name": "lab"}),
            json!({"name": "lab", "config": null, "description": null, "metadata": null, "scope": null}),
            json!({"name": "lab", "config": {"type": "self_hosted"}, "scope": "organization"}),
        ] {
            let made = define(sent).expect("made");
            assert_eq!(serde_json::to_value(&made).expect("json"), expected);
            assert_eq!(serde_json::from_value::<EnvironmentDefinition>(expected.clone()).expect("read"), made);
        }
    }

    #[test]
    fn clouds_are_resolved() {
        let none: [String; 0] = [];
        let packages = json!({
            "type": "packages", "apt": none, "cargo": none, "gem": none, "go": none, "npm": none, "pip": ["numpy==2.0"],
        });
        let made = define(json!({"name": "a", "config": {"type": "cloud", "packages": {"pip": ["numpy==2.0"]}}}));
        let networking = json!({"type": "unrestricted"});
        let made = made.expect("made");
        assert_eq!(config(&made), json!({"type": "cloud", "networking": networking, "packages": packages}));
        assert_eq!(serde_json::from_value::<EnvironmentConfig>(config(&made)).expect("read"), made.config);

        let limited = json!({"type": "limited", "allowed_hosts": ["*.example.com"], "allow_package_managers": true});
        let made = define(json!({"name": "a", "config": {
            "type": "cloud", "networking": limited, "packages": {"type": "packages", "pip": ["numpy==2.0"]},
        }}))
        .expect("made");
        assert_eq!(config(&made)["networking"]["allow_mcp_servers"], false);

        let again =
            update(&made, json!({"config": {"type": "cloud", "networking": {"type": "limited"}}})).expect("again");
        assert_eq!(again, made, "what is left out stays");
        let open = json!({"config": {"type": "cloud", "networking": {"type": "unrestricted"}, "packages": {}}});
        let open = update(&made, open).expect("open");
        assert_eq!(config(&open)["packages"]["pip"], json!([]));
        let closed =
            json!({"config": {"type": "cloud", "networking": {"type": "limited", "allow_package_managers": false}}});
        assert!(update(&made, closed).expect_err("packages are left").message.contains("allow_package_managers"));
    }

    #[test]
    fn the_type_stays() {
        let error = update(&define(json!({"name": "a"})).expect("made"), json!({"config": {"type": "cloud"}}));
        let error = error.expect_err("refused");
        assert_eq!(error.details.expect("details")["error_code"], "invalid_config_type_change");
    }

    #[test]
    fn updates_keep_what_they_leave_out() {
        let before = define(json!({"name": "a", "description": "d", "metadata": {"a": "1", "b": "2", "c": "3"}}));
        let before = before.expect("made");
        for nothing in [json!({}), json!({"name": null, "config": null, "scope": "organization"})] {
            assert_eq!(update(&before, nothing).expect("same"), before);
        }
        let after = update(&before, json!({"description": null, "metadata": {"a": null, "b": ""}, "name": "new"}));
        let after = after.expect("after");
        assert_eq!((after.name.as_str(), &after.description), ("new", &None));
        assert_eq!(serde_json::to_value(after.metadata).expect("json"), json!({"c": "3"}));
        let empty = update(&before, json!({"description": ""})).expect("empty");
        assert_eq!(empty.description.as_deref(), Some(""), "an empty text is one");
    }

    #[test]
    fn what_breaks_a_rule_is_named() {
        let limited = |hosts: Value| json!({"name": "a", "config": {"type": "cloud", "networking": {"type": "limited", "allowed_hosts": hosts}}});
        assert!(define(limited(json!(["api.example.com", "*.example.com", "10.0.0.1", "localhost"]))).is_ok());
        for (body, reason) in [
            (json!({}), "`name`"),
            (json!({"name": ""}), "name: 0 characters"),
            (json!({"name": "n".repeat(257)}), "name: 257 characters"),
            (json!({"name": "a", "description": "d".repeat(2049)}), "description: "),
            (json!({"name": "a", "scope": "account"}), "scope: `account` is not offered"),
            (json!({"name": "a", "config": {"type": "self_hosted", "pool": 3}}), "unknown field `pool`"),
            (json!({"name": "a", "config": {"type": "moon"}}), "unknown variant `moon`"),
            (json!({"name": "a", "metadata": {"": "x"}}), "metadata: "),
            (limited(json!(["https://example.com"])), "allowed_hosts: each is a host name"),
            (limited(json!(["example.com:443"])), "allowed_hosts: "),
            (limited(json!(["example.com/path"])), "allowed_hosts: "),
            (limited(json!(["a.*.example.com"])), "allowed_hosts: "),
            (limited(json!([""])), "allowed_hosts: "),
            (json!({"name": "a", "config": {"type": "cloud", "packages": {"pip": [""]}}}), "config.packages.pip: "),
            (json!({"name": "a", "config": {"type": "cloud", "packages": {"brew": []}}}), "unknown field `brew`"),
        ] {
            let error = define(body.clone()).expect_err("refused");
            assert!(error.contains(reason), "{body}: {error}");
        }
    }
}
