//! Where the records and checkpoints of a log go, as a file of its own: for a hub, which has no file of settings.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use sortie_credentials::VaultSpec;
use sortie_sinks::SinkSpec;
use sortie_sinks::publish::PlaceSpec;
use toml::Spanned;

use super::check::{Problems, check_places, check_sinks, check_vaults};
use super::credentials::{self, RawVault};
use super::publish::{self, RawPublish};
use super::sinks::{self, RawSink};
use super::{ConfigError, Places, Source};
use crate::served::read_text;

/// Where the records and checkpoints of a log go, beside the log itself.
#[derive(Clone, Debug, PartialEq)]
pub struct AuditDestinations {
    /// `[[sinks]]`, as `[[audit.sinks]]` of a gateway. At most 16.
    pub sinks: Vec<SinkSpec>,
    /// `[[publish]]`, as `[[audit.publish]]` of a gateway. At most 16.
    pub publish: Vec<PlaceSpec>,
    /// `[vault.NAME]`, as of a gateway: where the sinks' secrets may be. At most 16.
    pub vaults: BTreeMap<String, VaultSpec>,
    places: Places,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    #[serde(default)]
    sinks: Vec<Spanned<RawSink>>,
    #[serde(default)]
    publish: Vec<Spanned<RawPublish>>,
    #[serde(default)]
    vault: BTreeMap<String, Spanned<RawVault>>,
}

impl AuditDestinations {
    /// Reads a file. Blocks. Paths in it are relative to the directory that the file is in.
    ///
    /// # Errors
    /// The file cannot be read, or a setting is unknown, missing or wrong.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = read_text(path).map_err(|cause| ConfigError::Read { path: path.to_owned(), cause })?;
        Self::parse(&text, path)
    }

    /// Reads settings from text; `path` is what errors name, and whose directory relative paths start from.
    ///
    /// # Errors
    /// A setting is unknown, missing or wrong.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let source = Source { text, path };
        let raw: Raw = toml::from_str(text).map_err(|error| source.unreadable(&error))?;
        let base = path.parent().unwrap_or(Path::new(""));
        Ok(Self {
            sinks: sinks::check(raw.sinks, &source, "sinks", base, &|name| raw.vault.contains_key(name))?,
            publish: publish::check(raw.publish, &source, "publish", base)?,
            vaults: credentials::check_vaults(raw.vault, &source, base)?,
            places: Places::of_toml(text, path),
        })
    }

    /// What is wrong with the files and directories that the settings name, each with file, line and setting. Reads them
    /// and changes nothing. Blocks.
    pub fn check_files(&self) -> Vec<String> {
        let mut problems = Problems::new(&self.places);
        check_sinks(&mut problems, "sinks", &self.sinks);
        check_places(&mut problems, "publish", &self.publish);
        check_vaults(&mut problems, &self.vaults);
        problems.found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<AuditDestinations, String> {
        AuditDestinations::parse(text, Path::new("/etc/sortie/hub-audit.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn the_tables_are_those_of_a_gateway() {
        let text = "[[sinks]]\nname = \"siem\"\nkind = \"splunk\"\nurl = \"https://s.example:8088\"\n\
                    tls.include_system_cas = true\n\
                    token = { vault = \"corp\", path = \"secret/data/x\", field = \"t\" }\n\
                    [[publish]]\nname = \"worm\"\nfile = \"worm\"\n\
                    [vault.corp]\naddress = \"https://vault.example:8200\"\ntoken = { file = \"t\" }\n\
                    tls.include_system_cas = true\n";
        let read = parse(text).expect("settings");
        assert_eq!((read.sinks.len(), read.publish.len(), read.vaults.len()), (1, 1, 1));
        assert_eq!(read.publish.first(), Some(&PlaceSpec::dir("worm", Path::new("/etc/sortie/worm"))));
        assert_eq!(parse("").expect("nothing").sinks, []);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, said) in [
            ("[[sinks]]\nname = \"a\"\nkind = \"http\"\nurl = \"x\"\n", ":1: sinks.0.url: "),
            ("\n[[publish]]\nname = \"a\"\n", ":2: publish.file: name exactly one of"),
            ("[[audit.sinks]]\n", "unknown field `audit`"),
            (
                "[[sinks]]\nname = \"a\"\nkind = \"http\"\nurl = \"https://a/\"\n\
                 credential.secret = { vault = \"v\", path = \"p\", field = \"f\" }\n",
                "there is no vault `v`",
            ),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn files_and_directories_that_are_not_there_are_named() {
        let home = tempfile::tempdir().expect("home");
        std::fs::write(home.path().join("no-dir"), "").expect("file");
        let text = "[[sinks]]\nname = \"a\"\nkind = \"http\"\nurl = \"https://a/\"\ntls.ca_file = \"absent.pem\"\n\
                    credential.secret = { file = \"absent-secret\" }\n\
                    [[publish]]\nname = \"worm\"\nfile = \"no-dir\"\n";
        let read = AuditDestinations::parse(text, &home.path().join("audit.toml")).expect("settings");
        let problems = read.check_files().join("\n");
        for said in ["audit.toml:6: sinks.0.credential.secret: ", ":5: sinks.0.tls.ca_file: ", ":9: publish.0.file: "] {
            assert!(problems.contains(said), "{said}: {problems}");
        }
    }
}
