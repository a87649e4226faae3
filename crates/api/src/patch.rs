//! Members of an update, and the metadata that owners write beside their objects.

use std::borrow::Cow;
use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer};
use serde_json::json;

use crate::{ApiError, Metadata};

/// Most pairs of an object's metadata.
const MAX_PAIRS: usize = 16;
/// Longest key of a pair, in characters.
const MAX_KEY: usize = 64;
/// Longest value of a pair, in characters.
const MAX_VALUE: usize = 512;

/// A member of an update. For `#[serde(default)]`: what is left out stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Patch<T> {
    /// It was left out.
    #[default]
    Keep,
    /// It was `null`.
    Clear,
    /// It has a new value.
    Set(T),
}

impl<T> Patch<T> {
    /// What holds after the update of something that may be absent.
    pub fn or(self, before: Option<T>) -> Option<T> {
        match self {
            Self::Keep => before,
            Self::Clear => None,
            Self::Set(value) => Some(value),
        }
    }

    /// What holds after the update of something whose absence is its default.
    pub fn or_default(self, before: T) -> T
    where
        T: Default,
    {
        self.or(Some(before)).unwrap_or_default()
    }

    /// What holds after the update of something that is always there.
    ///
    /// # Errors
    /// 400 for `null`; `member` is its name.
    pub fn or_required(self, member: &str, before: T) -> Result<T, ApiError> {
        self.or(Some(before)).ok_or_else(|| ApiError::invalid_request(format!("{member}: cannot be cleared")))
    }

    /// The same with its value made of another one.
    ///
    /// # Errors
    /// As `change`.
    pub fn try_map<U, E>(self, change: impl FnOnce(T) -> Result<U, E>) -> Result<Patch<U>, E> {
        Ok(match self {
            Self::Keep => Patch::Keep,
            Self::Clear => Patch::Clear,
            Self::Set(value) => Patch::Set(change(value)?),
        })
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Patch<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match Option::deserialize(deserializer)? {
            Some(value) => Self::Set(value),
            None => Self::Clear,
        })
    }
}

impl<T: JsonSchema> JsonSchema for Patch<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("Patch_{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        Option::<T>::json_schema(generator)
    }
}

/// Checks the metadata of a new object.
///
/// # Errors
/// 400 with `error_code` `invalid_metadata`.
pub fn check_metadata(metadata: Metadata) -> Result<Metadata, ApiError> {
    let refused = |reason: String| {
        let error = ApiError::invalid_request(format!("metadata: {reason}"));
        Err(error.with_details(json!({"error_code": "invalid_metadata"})))
    };
    if metadata.len() > MAX_PAIRS {
        return refused(format!("{} pairs, at most {MAX_PAIRS}", metadata.len()));
    }
    for (key, value) in &metadata {
        let (length, shown) = (key.chars().count(), key.chars().take(MAX_KEY).collect::<String>());
        if !(1..=MAX_KEY).contains(&length) {
            return refused(format!("the key `{shown}` has {length} characters; 1 to {MAX_KEY} are possible"));
        }
        let length = value.chars().count();
        if length > MAX_VALUE {
            return refused(format!("the value of `{shown}` has {length} characters, at most {MAX_VALUE}"));
        }
    }
    Ok(metadata)
}

/// Changes some pairs of an object's metadata: a text takes the place of what was there, `null` takes it away.
///
/// # Errors
/// As [`check_metadata`], for what comes of it.
pub fn patch_metadata(
    mut metadata: Metadata,
    patch: Patch<BTreeMap<String, Option<String>>>,
) -> Result<Metadata, ApiError> {
    let Patch::Set(pairs) = patch else { return Ok(metadata) };
    for (key, value) in pairs {
        match value {
            Some(value) => metadata.insert(key, value),
            None => metadata.remove(&key),
        };
    }
    check_metadata(metadata)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Update {
        #[serde(default)]
        name: Patch<String>,
    }

    #[test]
    fn what_is_left_out_is_not_what_is_null() {
        let read = |json| serde_json::from_value::<Update>(json).expect("update").name;
        let before = || Some("old".to_owned());
        assert_eq!(read(json!({})).or(before()), before());
        assert_eq!(read(json!({"name": null})).or(before()), None);
        assert_eq!(read(json!({"name": ""})).or(before()), Some(String::new()));
        assert_eq!(read(json!({"name": null})).or_default("old".to_owned()), "");
        let refused = read(json!({"name": null})).or_required("name", "old".to_owned()).expect_err("refused");
        assert_eq!(refused.message, "name: cannot be cleared");
        assert!(serde_json::from_value::<Update>(json!({"name": 1})).is_err());
    }

    #[test]
    fn metadata_is_patched_pair_by_pair() {
        let before = Metadata::from([("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())]);
        let patch = |json| Patch::Set(serde_json::from_value(json).expect("pairs"));
        let after = patch_metadata(before.clone(), patch(json!({"a": null, "c": "3", "none": null}))).expect("patched");
        assert_eq!(serde_json::to_value(after).expect("json"), json!({"b": "2", "c": "3"}));
        for kept in [Patch::Keep, Patch::Clear] {
            assert_eq!(patch_metadata(before.clone(), kept).expect("kept"), before);
        }
    }

    #[test]
    fn metadata_has_bounds() {
        let pairs = |count: usize| (0..count).map(|at| (at.to_string(), String::new())).collect::<Metadata>();
        assert!(check_metadata(pairs(16)).is_ok());
        let one = |key: &str, value: &str| Metadata::from([(key.to_owned(), value.to_owned())]);
        assert!(check_metadata(one(&"\u{e9}".repeat(64), &"\u{e9}".repeat(512))).is_ok());
        for refused in [pairs(17), one("", ""), one(&"k".repeat(65), ""), one("k", &"v".repeat(513))] {
            let error = check_metadata(refused).expect_err("refused");
            assert_eq!(error.details.expect("details")["error_code"], "invalid_metadata");
        }
    }
}
