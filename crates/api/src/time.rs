//! Timestamps as the API writes them: RFC 3339, whole seconds, `Z`. For `#[serde(with = "sortie_api::time")]`.

use jiff::Timestamp;
use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

/// The timestamp without its fraction of a second, since the API and the store know whole seconds only.
pub fn whole_seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

/// Writes `2026-11-22T13:00:00Z`.
pub fn serialize<S: Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&whole_seconds(*at))
}

/// Reads any RFC 3339 timestamp; a fraction of a second is dropped.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
    let text = String::deserialize(deserializer)?;
    let at: Timestamp = text.parse().map_err(|_| D::Error::custom("expected an RFC 3339 timestamp"))?;
    Ok(whole_seconds(at))
}

/// The same for a timestamp that may be absent (`null`). For `#[serde(with = "sortie_api::time::optional")]`.
pub mod optional {
    use jiff::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer};

    #[derive(Deserialize)]
    struct Wrapped(#[serde(with = "super")] Timestamp);

    /// Writes the timestamp or `null`.
    pub fn serialize<S: Serializer>(at: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
        match at {
            Some(at) => super::serialize(at, serializer),
            None => serializer.serialize_none(),
        }
    }

    /// Reads a timestamp or `null`.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
        Ok(Option::<Wrapped>::deserialize(deserializer)?.map(|wrapped| wrapped.0))
    }
}

/// Timestamps with microseconds, as events have them, which may be absent. For `#[serde(with = "sortie_api::time::exact")]`.
pub mod exact {
    use jiff::{Timestamp, Unit};
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    /// The timestamp to its microsecond, which is what the store knows.
    pub fn micros(at: Timestamp) -> Timestamp {
        Timestamp::from_microsecond(at.as_microsecond()).unwrap_or(at)
    }

    /// Writes `2026-11-22T13:00:00.123456Z`, or `null`.
    pub fn serialize<S: Serializer>(at: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
        match at {
            Some(at) => serializer.collect_str(&format_args!("{:.6}", micros(*at))),
            None => serializer.serialize_none(),
        }
    }

    /// Reads any RFC 3339 timestamp, or `null`.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        let parsed = text.map(|text| text.parse::<Timestamp>().and_then(|at| at.round(Unit::Microsecond)));
        parsed.transpose().map_err(|_| D::Error::custom("expected an RFC 3339 timestamp"))
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde::{Deserialize, Serialize};

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Times {
        #[serde(with = "super")]
        at: Timestamp,
        #[serde(with = "super::optional", default)]
        maybe: Option<Timestamp>,
    }

    #[test]
    fn whole_seconds_with_z() {
        let times = Times { at: Timestamp::new(1_700_000_000, 999_000_000).expect("time"), maybe: None };
        let json = serde_json::to_string(&times).expect("json");
        assert_eq!(json, r#"{"at":"2023-11-14T22:13:20Z","maybe":null}"#);
        let read: Times = serde_json::from_str(r#"{"at":"2023-11-14T23:13:20.5+01:00"}"#).expect("parsed");
        assert_eq!(read.at.as_second(), 1_700_000_000);
        assert_eq!(read.at.subsec_nanosecond(), 0);
    }

    #[test]
    fn other_text_is_refused() {
        for bad in [r#"{"at":"yesterday"}"#, r#"{"at":5}"#, r#"{"at":null}"#, r#"{"at":"2023-11-14T22:13:20"}"#] {
            assert!(serde_json::from_str::<Times>(bad).is_err(), "{bad}");
        }
    }
}
