//! Whose secret a call goes on with: the first of the route's credentials that is for its caller.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::{HeaderMap, StatusCode};
use sortie_api::{Hop, HopError};
use sortie_credentials::{Applied, Credential, StartError, Subject, Vault, VaultSpec};
use sortie_identity::Caller;
use sortie_ids::{Digest, RouteName};
use sortie_runtime::TaskSet;

use crate::config::{RouteCredential, SubjectToken};
use crate::upstream_identity::CallerTokens;

/// The credentials of one route, in the order of the settings.
pub(crate) struct RouteCredentials {
    route: RouteName,
    all: Vec<Ready>,
}

/// One credential of a route.
pub(crate) struct Ready {
    setting: RouteCredential,
    credential: Arc<Credential>,
    /// What says who is calling where a token is exchanged; `None` for the hub's word.
    subject: Option<CallerTokens>,
}

impl Ready {
    /// Its name, for records.
    pub(crate) fn name(&self) -> &Arc<str> {
        self.credential.name()
    }
}

impl RouteCredentials {
    /// Begins to keep them; what `before` keeps by the same settings is taken over. Blocks to look at files.
    ///
    /// # Errors
    /// What is missing, with the setting that it is about.
    pub(crate) fn start(
        route: &RouteName,
        settings: &[RouteCredential],
        vaults: &BTreeMap<String, Arc<Vault>>,
        signed: &dyn Fn(String) -> Option<CallerTokens>,
        before: Option<&Self>,
        tasks: &TaskSet,
    ) -> Result<Self, (String, String)> {
        let mut all = Vec::with_capacity(settings.len());
        for (number, setting) in settings.iter().enumerate() {
            let subject = match &setting.subject {
                SubjectToken::Hub => None,
                SubjectToken::Gateway { audience } => Some(signed(audience.clone()).ok_or_else(|| {
                    let what = "gateway needs a data directory for the gateway's key; name one with --data-dir";
                    (format!("routes.{route}.credentials.{number}.subject"), what.to_owned())
                })?),
            };
            let kept = before.and_then(|before| before.kept(setting, vaults));
            let credential = match kept {
                Some(credential) => credential,
                None => {
                    let started = Credential::start(setting.spec.clone(), vaults, tasks);
                    let place = format!("routes.{route}.credentials.{number}.secret");
                    Arc::new(started.map_err(|StartError::Missing(what)| (place, what))?)
                }
            };
            all.push(Ready { setting: setting.clone(), credential, subject });
        }
        Ok(Self { route: route.clone(), all })
    }

    fn kept(&self, setting: &RouteCredential, vaults: &BTreeMap<String, Arc<Vault>>) -> Option<Arc<Credential>> {
        let same = self.all.iter().find(|ready| ready.credential.is_as(&setting.spec, vaults));
        same.map(|ready| ready.credential.clone())
    }

    /// The credential that calls of this caller go on with; `None` where the route has none at all.
    ///
    /// # Errors
    /// 403 where the route has credentials, and none is for the caller.
    pub(crate) fn of(&self, caller: &Caller) -> Result<Option<&Ready>, HopError> {
        match self.all.iter().find(|ready| is_for(&ready.setting, caller)) {
            Some(ready) => Ok(Some(ready)),
            None if self.all.is_empty() => Ok(None),
            None => {
                let reason = format!("route `{}` has no credential for this caller", self.route);
                Err(HopError::new(Hop::Policy, reason))
            }
        }
    }

    /// Ends them, and waits until leases were given back.
    pub(crate) async fn close(&self) {
        futures_util::future::join_all(self.all.iter().map(|ready| ready.credential.close())).await;
    }
}

/// Puts a credential on the head of a call, in place of what the caller has sent by that name; the last thing before the
/// call is sent. `inbound` is the hub's word for the caller, for exchange; `now` in seconds since 1970. Waits only where a
/// secret or token is yet to come.
///
/// # Errors
/// 502 where its secret cannot be had.
pub(crate) async fn apply<'a>(
    ready: Option<&'a Ready>,
    caller: &Arc<Caller>,
    headers: &mut HeaderMap,
    inbound: Option<&str>,
    now: i64,
) -> Result<Option<Applied<'a>>, HopError> {
    let Some(Ready { credential, subject, .. }) = ready else { return Ok(None) };
    let signed = subject.as_ref().and_then(|tokens| tokens.of(caller, now));
    let token = match subject {
        Some(_) => signed.as_ref().and_then(|token| token.to_str().ok()),
        None => inbound,
    };
    let subject = match token {
        Some(token) if credential.spec().exchanges() => Some(Subject { key: principal(caller), token }),
        _ => None,
    };
    let applied = credential.apply(headers, subject).await;
    applied.map(Some).map_err(|error| HopError::new(Hop::UpstreamConnect, error.to_string()))
}

/// What is to be done with an answer: a secret that it repeats is taken out, and a refusal is noted.
pub(crate) fn answered(applied: &Applied<'_>, status: StatusCode, headers: &mut HeaderMap) {
    let repeated = applied.redact(headers);
    if repeated > 0 {
        metrics::counter!("sortie_gateway_credentials_redacted_total").increment(1);
        tracing::warn!(credential = %applied.name(), "the upstream's answer repeated the secret in its headers");
    }
    if status == StatusCode::UNAUTHORIZED {
        applied.refused();
    }
}

/// The vaults of the settings; those of `before` that are the same are taken over. Blocks to look at files.
///
/// # Errors
/// What is wrong, with the setting that it is about.
pub(crate) fn start_vaults(
    settings: &BTreeMap<String, VaultSpec>,
    before: Option<&BTreeMap<String, Arc<Vault>>>,
    tasks: &TaskSet,
) -> Result<BTreeMap<String, Arc<Vault>>, (String, String)> {
    let mut vaults = BTreeMap::new();
    for (name, spec) in settings {
        let kept = before.and_then(|before| before.get(name)).filter(|vault| vault.is_as(spec));
        let vault = match kept {
            Some(vault) => vault.clone(),
            None => Arc::new(Vault::start(spec.clone(), tasks).map_err(|what| (format!("vault.{name}"), what))?),
        };
        vaults.insert(name.clone(), vault);
    }
    Ok(vaults)
}

fn is_for(setting: &RouteCredential, caller: &Caller) -> bool {
    matches(setting.callers.as_deref(), Some(&caller.subject))
        && matches(setting.agents.as_deref(), caller.agent.as_deref())
        && matches(setting.workspaces.as_deref(), caller.workspace.as_deref())
}

/// Whether a text is one of these patterns; one that is not known is none of them.
fn matches(patterns: Option<&[String]>, text: Option<&str>) -> bool {
    let Some(patterns) = patterns else { return true };
    let one = |text: &str, pattern: &str| match pattern.strip_suffix('*') {
        Some(beginning) => text.starts_with(beginning),
        None => text == pattern,
    };
    text.is_some_and(|text| patterns.iter().any(|pattern| one(text, pattern)))
}

/// What decides which exchanged token a call gets: everything that the token may say. Calls of one session share one;
/// those of another agent or person do not.
fn principal(caller: &Caller) -> Digest {
    let mut whole = caller.digest().as_bytes().to_vec();
    let mut part = |text: Option<&str>| {
        let length = text.map_or(u64::MAX, |text| u64::try_from(text.len()).unwrap_or(u64::MAX - 1));
        whole.extend_from_slice(&length.to_be_bytes());
        whole.extend_from_slice(text.unwrap_or_default().as_bytes());
    };
    part(Some(caller.assurance.as_str()));
    for text in [&caller.key, &caller.user, &caller.agent, &caller.agent_version, &caller.session, &caller.region] {
        part(text.as_deref());
    }
    caller.actors.iter().for_each(|actor| part(Some(actor)));
    for (name, values) in &caller.claims {
        part(Some(name));
        values.iter().for_each(|value| part(Some(value)));
        part(None);
    }
    Digest::of(&whole)
}

#[cfg(test)]
mod tests {
    use sortie_credentials::{CredentialKind, CredentialSpec, Source};
    use sortie_identity::Assurance;

    use super::*;

    fn caller(subject: &str) -> Caller {
        Caller::new("hub", subject, Assurance::Asserted, 0)
    }

    fn for_whom(callers: Option<&[&str]>, agents: Option<&[&str]>, workspaces: Option<&[&str]>) -> RouteCredential {
        let list = |list: Option<&[&str]>| list.map(|list| list.iter().map(ToString::to_string).collect());
        let kind = CredentialKind::Bearer { secret: Source::Env("X".to_owned()) };
        let spec = CredentialSpec { name: "x".to_owned(), kind };
        let subject = SubjectToken::default();
        RouteCredential { spec, callers: list(callers), agents: list(agents), workspaces: list(workspaces), subject }
    }

    #[test]
    fn a_credential_is_for_whom_it_names() {
        let mut ann = caller("user:ann");
        ann.agent = Some("agent_1".to_owned());
        for (setting, is) in [
            (for_whom(None, None, None), true),
            (for_whom(Some(&["user:ann"]), None, None), true),
            (for_whom(Some(&["user:an"]), None, None), false),
            (for_whom(Some(&["user:annabel", "user:*"]), None, None), true),
            (for_whom(Some(&["*"]), Some(&["agent_1"]), None), true),
            (for_whom(None, Some(&["agent_2"]), None), false),
            // What is not known of a caller is nothing that a pattern could match.
            (for_whom(None, None, Some(&["*"])), false),
        ] {
            assert_eq!(is_for(&setting, &ann), is, "{setting:?}");
        }
    }

    #[test]
    fn tokens_are_shared_by_calls_of_which_the_same_is_known() {
        let ann = caller("user:ann");
        let with = |change: fn(&mut Caller)| {
            let mut other = ann.clone();
            change(&mut other);
            principal(&other)
        };
        assert_eq!(principal(&ann), with(|caller| caller.tool_use = Some("t".to_owned())));
        assert_eq!(principal(&ann), with(|caller| caller.token_id = Some("j".to_owned())));
        let others = [
            with(|caller| caller.agent = Some("a".to_owned())),
            with(|caller| caller.user = Some("a".to_owned())),
            with(|caller| caller.session = Some("s".to_owned())),
            with(|caller| caller.assurance = Assurance::Attested),
            with(|caller| caller.actors.push("a".to_owned())),
            with(|caller| drop(caller.claims.insert("a".to_owned(), vec!["b".to_owned()]))),
        ];
        for (number, other) in others.iter().enumerate() {
            assert_ne!(*other, principal(&ann), "{number}");
            assert!(others.iter().skip(number + 1).all(|third| third != other), "{number}");
        }
    }
}
