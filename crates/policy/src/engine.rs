//! Decides.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::str::FromStr as _;

use cedar_policy::{
    Authorizer, Context, Entities, Entity, EntityId, EntityTypeName, EntityUid, PolicySet, Request,
    RestrictedExpression, Schema, ValidationMode, Validator,
};

use crate::decision::{Decision, Effect, PolicyName};
use crate::error::PolicyError;
use crate::query::{Act, Query, Target};

const SCHEMA: &str = include_str!("policy.cedarschema");

/// A set of policies, ready to decide.
pub struct Engine {
    policies: PolicySet,
    schema: Schema,
    files: Vec<PathBuf>,
}

impl Engine {
    /// Loads a policy file (`.cedar`, or else TOML) and what it names. `read` gives the text of a file.
    ///
    /// # Errors
    /// A file cannot be read, is not what it should be, or speaks of what there is not.
    pub fn load(file: &Path, read: impl Fn(&Path) -> std::io::Result<String>) -> Result<Self, PolicyError> {
        let text = read(file).map_err(|error| PolicyError::one(format!("{}: {error}", file.display())))?;
        let fail = |error: &dyn std::fmt::Display| PolicyError::one(format!("{}: {error}", file.display()));
        let (schema, _) = Schema::from_cedarschema_str(SCHEMA).map_err(|error| fail(&error))?;
        let policies = PolicySet::from_str(&text).map_err(|error| fail(&error))?;
        let result = Validator::new(schema.clone()).validate(&policies, ValidationMode::Strict);
        if !result.validation_passed() {
            return Err(fail(&result));
        }
        Ok(Self { policies, schema, files: vec![file.to_owned()] })
    }

    /// The files that it was read from.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Whether a policy asks for [`Counts`](crate::Counts).
    pub fn counts(&self) -> bool {
        true
    }

    /// Whether what is asked for could be allowed with some arguments, at some time: what a list may show.
    pub fn may_see(&self, query: &Query<'_>) -> bool {
        self.decide(query).effect != Effect::Deny
    }

    /// Decides. An error of any kind denies.
    pub fn decide(&self, query: &Query<'_>) -> Decision {
        let deny = |reason: &str| Decision {
            effect: Effect::Deny,
            policies: Vec::new(),
            reason: reason.to_owned(),
            ask: Vec::new(),
            facts: Vec::new(),
        };
        let principal = uid("Caller", &format!("{}#{}", query.caller.issuer, query.caller.subject));
        let route = uid("Route", query.route);
        let resource = match query.act {
            Act::Mcp { target: Some(Target::Tool(name)), .. } => uid("Tool", &format!("{}/{name}", query.route)),
            _ => route.clone(),
        };
        let method = match query.act {
            Act::Mcp { method, .. } => method,
            _ => "other",
        };
        let entities = Entities::from_entities([Entity::new_no_attrs(resource.clone(), HashSet::from([route]))], None)
            .and_then(|entities| entities.add_entities(self.schema.action_entities()?, None))
            .and_then(|entities| {
                let attrs = HashMap::from([(
                    "subject".to_owned(),
                    RestrictedExpression::new_string(query.caller.subject.clone()),
                )]);
                let caller = Entity::new(principal.clone(), attrs, HashSet::new());
                entities.add_entities(caller, None)
            });
        let Ok(entities) = entities else { return deny("the policies cannot be evaluated") };
        let Ok(request) = Request::new(principal, uid("Action", method), resource, Context::empty(), None) else {
            return deny("the policies cannot be evaluated");
        };
        let response = Authorizer::new().is_authorized(&request, &self.policies, &entities);
        let policies = response.diagnostics().reason().map(|id| PolicyName(id.to_string().into())).collect();
        match response.decision() {
            cedar_policy::Decision::Allow => Decision { effect: Effect::Allow, policies, ..deny("allowed") },
            cedar_policy::Decision::Deny => Decision { policies, ..deny("no policy allows it") },
        }
    }
}

fn uid(kind: &str, id: &str) -> EntityUid {
    let kind = EntityTypeName::from_str(kind).expect("a name of the schema");
    EntityUid::from_type_name_and_id(kind, EntityId::new(id))
}
