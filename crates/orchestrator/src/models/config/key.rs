//! Where a key is.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};
use sortie_credentials::{Command, Source};

const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);
const COMMAND_CACHE: Duration = Duration::from_secs(300);

/// One of file, env and command.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawKey {
    file: Option<PathBuf>,
    env: Option<String>,
    command: Option<Vec<String>>,
    #[serde(default)]
    environment: Vec<String>,
}

impl RawKey {
    pub(super) fn check(self, base: &Path) -> Result<Source, String> {
        match (self.file, self.env, self.command) {
            (Some(file), None, None) => Ok(Source::File(base.join(file))),
            (None, Some(name), None) if !name.is_empty() && !name.contains(['=', '\0']) => Ok(Source::Env(name)),
            (None, None, Some(argv)) if argv.first().is_some_and(|program| !program.is_empty()) => {
                let (timeout, cache, environment) = (COMMAND_TIMEOUT, COMMAND_CACHE, self.environment);
                Ok(Source::Command(Command { argv, timeout, cache, environment }))
            }
            _ => Err("a key is at one place: { file = \"x.key\" }, { env = \"X_API_KEY\" } or { command = [\"pass\", \
                      \"show\", \"x\"] }"
                .to_owned()),
        }
    }
}

/// Reads where a key is. Whoever has written the key itself is told so without it: errors end in logs.
pub(super) fn place<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<RawKey>, D::Error> {
    struct Place;

    impl<'de> Visitor<'de> for Place {
        type Value = RawKey;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("the place of a key, such as { file = \"x.key\" }, since no key is written into this file")
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawKey, A::Error> {
            RawKey::deserialize(MapAccessDeserializer::new(map))
        }

        fn visit_str<E: de::Error>(self, _: &str) -> Result<RawKey, E> {
            Err(E::invalid_type(Unexpected::Other("text"), &self))
        }
    }

    deserializer.deserialize_any(Place).map(Some)
}
