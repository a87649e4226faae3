//! Durations as settings have them.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A duration as people write it: a whole number followed by `ms`, `s`, `m` or `h`; not zero, at most 24 h.
#[derive(Clone, Copy, Deserialize, Serialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(rename = "Duration", extend("pattern" = "^[0-9]+(ms|s|m|h)$"))]
pub(super) struct Span(pub(super) Duration);

impl From<Span> for String {
    fn from(span: Span) -> String {
        span_text(span.0)
    }
}

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let unit = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => 0,
        };
        let millis = number.parse().ok().and_then(|number: u64| number.checked_mul(unit)).unwrap_or(0);
        if (1..=86_400_000).contains(&millis) {
            Ok(Self(Duration::from_millis(millis)))
        } else {
            Err(format!("`{text}` is not a duration such as 500ms, 30s, 5m or 1h, above zero and at most 24h"))
        }
    }
}

/// A duration of at least a millisecond, in the largest unit that says it as a whole number.
pub(super) fn span_text(span: Duration) -> String {
    let millis = span.as_millis();
    match [(3_600_000, "h"), (60_000, "m"), (1_000, "s")].into_iter().find(|(unit, _)| millis.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{}{name}", millis / unit),
        None => format!("{millis}ms"),
    }
}
