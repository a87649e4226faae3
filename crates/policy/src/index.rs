//! Finds the policies whose scope fits, without looking at the others.

use std::collections::HashMap;

use cedar_policy::{EntityTypeName, EntityUid};

use crate::policy::Loaded;
use crate::schema::Action;

/// Policies by whom and what their scope names. `None` stands for any.
#[derive(Default)]
pub(crate) struct Index(HashMap<Option<EntityUid>, HashMap<Option<EntityUid>, Vec<usize>>>);

impl Index {
    pub(crate) fn of(policies: &[Loaded]) -> Self {
        let keys = |uids: &Option<Vec<EntityUid>>| match uids {
            None => vec![None],
            Some(uids) => uids.iter().cloned().map(Some).collect::<Vec<_>>(),
        };
        let mut index = Self::default();
        for (at, policy) in policies.iter().enumerate() {
            for principal in keys(&policy.principals) {
                let resources = index.0.entry(principal).or_default();
                keys(&policy.resources).into_iter().for_each(|key| resources.entry(key).or_default().push(at));
            }
        }
        index
    }

    /// The policies whose scope fits, in order. `principals` are the caller and all above it, `resources` the resource
    /// and its route.
    pub(crate) fn find(
        &self,
        policies: &[Loaded],
        principals: &[EntityUid],
        action: Action,
        resources: &[EntityUid],
        kind: &EntityTypeName,
        name: &str,
    ) -> Vec<usize> {
        let or_any = |uids: &[EntityUid]| -> Vec<Option<EntityUid>> {
            std::iter::once(None).chain(uids.iter().cloned().map(Some)).collect()
        };
        let resources = or_any(resources);
        let fits = |at: &usize| {
            policies.get(*at).is_some_and(|policy| {
                policy.actions & action.bit() != 0
                    && policy.resource_type.as_ref().is_none_or(|wanted| wanted == kind)
                    && policy.patterns.as_ref().is_none_or(|patterns| patterns.iter().any(|one| one.matches(name)))
            })
        };
        let mut found: Vec<usize> = or_any(principals)
            .iter()
            .filter_map(|principal| self.0.get(principal))
            .flat_map(|by_resource| resources.iter().filter_map(|resource| by_resource.get(resource)))
            .flatten()
            .copied()
            .filter(fits)
            .collect();
        found.sort_unstable();
        found.dedup();
        found
    }
}
