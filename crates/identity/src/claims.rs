//! The claims of our own tokens: those of the hub for gateways, and those of a gateway for its upstreams.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sortie_ids::RequestId;

use crate::{Assurance, Caller};

/// Most actors in a chain (RFC 8693 section 4.1); a token with more is refused.
pub const MAX_ACTORS: usize = 8;

/// What a token of ours says. Receivers ignore claims that they do not know, as we do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Who signed.
    pub iss: String,
    /// The caller.
    pub sub: String,
    /// Whom it is for: the hostname of a route, or the URL of an upstream.
    pub aud: String,
    /// When it was issued, in seconds since 1970.
    pub iat: i64,
    /// When it begins, in seconds since 1970; when it was issued, where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nbf: Option<i64>,
    /// When it ends, in seconds since 1970.
    pub exp: i64,
    /// The token's own id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jti: Option<String>,
    /// The caller's organisation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub org: Option<String>,
    /// The caller's workspace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workspace: Option<String>,
    /// The id of the key that the caller called with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The person that the caller acts for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<Agent>,
    /// The session that the call is part of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// The use of a tool that the call is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_use: Option<String>,
    /// Where the call comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Who acts for the caller, nearest first, each inside the one before.
    #[serde(skip_serializing_if = "Option::is_none")]
    act: Option<Box<Actor>>,
    /// How far a gateway has proven the caller: `asserted` or `attested`. Of the hub's tokens it is not believed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub assurance: Option<String>,
    /// Who says who the caller is, where that is not who signed (RFC 9493 section 3.2.3, `iss_sub`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sub_id: Option<SubjectId>,
    /// What else is known, such as groups.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub claims: BTreeMap<String, Vec<String>>,
}

/// An agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agent {
    /// Its id or name.
    pub id: String,
    /// Its version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// A subject by its own issuer's name for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubjectId {
    format: String,
    iss: String,
    sub: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Actor {
    sub: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    act: Option<Box<Actor>>,
}

impl Claims {
    /// What `issuer` says of a caller to `audience`, with an id of its own, from `now` on for `lifetime` seconds; not
    /// beyond what is known of the caller itself.
    pub fn of(caller: &Caller, issuer: &str, audience: &str, now: i64, lifetime: i64) -> Self {
        let mut claims = Self {
            iss: issuer.to_owned(),
            sub: caller.subject.clone(),
            aud: audience.to_owned(),
            iat: now,
            nbf: None,
            exp: now.saturating_add(lifetime).min(caller.expires),
            jti: Some(RequestId::random().as_str().trim_start_matches(RequestId::PREFIX).to_owned()),
            org: caller.organization.clone(),
            workspace: caller.workspace.clone(),
            key: caller.key.clone(),
            user: caller.user.clone(),
            agent: caller.agent.clone().map(|id| Agent { id, version: caller.agent_version.clone() }),
            session: caller.session.clone(),
            tool_use: caller.tool_use.clone(),
            region: caller.region.clone(),
            act: None,
            assurance: None,
            sub_id: None,
            claims: caller.claims.clone(),
        };
        claims.set_actors(&caller.actors);
        claims
    }

    /// The same as a gateway says it: with how far the caller is proven, and who says who it is.
    pub fn of_proven(caller: &Caller, issuer: &str, audience: &str, now: i64, lifetime: i64) -> Self {
        Self {
            assurance: Some(caller.assurance.as_str().to_owned()),
            sub_id: Some(SubjectId {
                format: "iss_sub".to_owned(),
                iss: caller.issuer.clone(),
                sub: caller.subject.clone(),
            }),
            ..Self::of(caller, issuer, audience, now, lifetime)
        }
    }

    /// The chain of actors, nearest first; at most [`MAX_ACTORS`] of them.
    pub fn set_actors(&mut self, actors: &[String]) {
        self.act = actors
            .iter()
            .take(MAX_ACTORS)
            .rev()
            .fold(None, |inner, sub| Some(Box::new(Actor { sub: sub.clone(), act: inner })));
    }

    /// The chain of actors, nearest first; `None` when it is longer than [`MAX_ACTORS`].
    pub fn actors(&self) -> Option<Vec<String>> {
        let mut actors = Vec::new();
        let mut next = self.act.as_deref();
        while let Some(actor) = next {
            if actors.len() == MAX_ACTORS {
                return None;
            }
            actors.push(actor.sub.clone());
            next = actor.act.as_deref();
        }
        Some(actors)
    }

    /// The caller that the hub asserts; `None` when the chain of its actors is too long.
    pub(crate) fn asserted(self) -> Option<Caller> {
        let actors = self.actors()?;
        let (agent, agent_version) = self.agent.map_or((None, None), |agent| (Some(agent.id), agent.version));
        Some(Caller {
            issuer: self.iss,
            subject: self.sub,
            assurance: Assurance::Asserted,
            organization: self.org,
            workspace: self.workspace,
            key: self.key,
            user: self.user,
            agent,
            agent_version,
            session: self.session,
            tool_use: self.tool_use,
            region: self.region,
            actors,
            token_id: self.jti,
            expires: self.exp,
            claims: self.claims,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Caller {
        Caller {
            organization: Some("org_1".to_owned()),
            workspace: Some("wrkspc_1".to_owned()),
            key: Some("key_1".to_owned()),
            user: Some("ada".to_owned()),
            agent: Some("agent_1".to_owned()),
            agent_version: Some("3".to_owned()),
            session: Some("sesn_1".to_owned()),
            tool_use: Some("toolu_1".to_owned()),
            region: Some("eu-1".to_owned()),
            actors: vec!["near".to_owned(), "far".to_owned()],
            claims: [("groups".to_owned(), vec!["a".to_owned()])].into(),
            ..Caller::new("hub", "key:key_1", Assurance::Asserted, 1100)
        }
    }

    #[test]
    fn what_is_known_of_a_caller_survives_a_token() {
        let claims = Claims::of(&full(), "hub", "docs.test", 1000, 300);
        assert_eq!((claims.exp, claims.iat), (1100, 1000));
        let json = serde_json::to_value(&claims).expect("json");
        assert_eq!(json["agent"], serde_json::json!({"id": "agent_1", "version": "3"}));
        assert_eq!(json["act"], serde_json::json!({"sub": "near", "act": {"sub": "far"}}));
        let again: Claims = serde_json::from_value(json).expect("claims");
        let caller = again.asserted().expect("caller");
        assert_eq!(caller, Caller { token_id: claims.jti, ..full() });
    }

    #[test]
    fn a_gateway_says_how_far_the_caller_is_proven_and_by_whom() {
        let json = serde_json::to_value(Claims::of_proven(&full(), "gw", "http://up:1", 1000, 60)).expect("json");
        assert_eq!(json["assurance"], "asserted");
        assert_eq!(json["sub_id"], serde_json::json!({"format": "iss_sub", "iss": "hub", "sub": "key:key_1"}));
        assert_eq!((json["iss"].as_str(), json["exp"].as_i64()), (Some("gw"), Some(1060)));
    }

    #[test]
    fn chains_of_actors_are_bounded() {
        let mut claims = Claims::default();
        let chain = |most: usize| (0..most).map(|n| n.to_string()).collect::<Vec<_>>();
        claims.set_actors(&chain(MAX_ACTORS + 5));
        assert_eq!(claims.actors(), Some(chain(MAX_ACTORS)));
        let inner = claims.act.take();
        claims.act = Some(Box::new(Actor { sub: "one more".to_owned(), act: inner }));
        assert_eq!(claims.actors(), None);
        assert_eq!(claims.asserted(), None);
    }
}
