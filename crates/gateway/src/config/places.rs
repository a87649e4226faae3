//! Where settings stand in their file, for what is found wrong after the text was read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

/// A file, and the line of each setting in it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    path: PathBuf,
    lines: BTreeMap<String, usize>,
}

/// Where a setting stands is not what it says.
impl PartialEq for Places {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Places {
    pub(crate) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), lines: BTreeMap::new() }
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// All settings of a TOML text that can be read; otherwise none.
    pub(super) fn of_toml(text: &str, path: &Path) -> Self {
        let mut places = Self::new(path);
        if let Ok(table) = DeTable::parse(text) {
            let starts: Vec<usize> = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
            places.walk(table.get_ref(), "", &starts);
        }
        places
    }

    /// Notes the line, from 1, of a setting.
    pub(super) fn note(&mut self, setting: impl Into<String>, line: usize) {
        self.lines.insert(setting.into(), line);
    }

    /// `file:line` of a setting, or of the nearest one around it; the file alone when there is none.
    pub(crate) fn of(&self, setting: &str) -> String {
        let mut name = setting;
        loop {
            if let Some(line) = self.lines.get(name) {
                return format!("{}:{line}", self.path.display());
            }
            match name.rsplit_once('.') {
                Some((outer, _)) => name = outer,
                None => return self.path.display().to_string(),
            }
        }
    }

    /// `starts` are the offsets at which lines begin.
    fn walk(&mut self, table: &DeTable<'_>, outer: &str, starts: &[usize]) {
        for (key, value) in table {
            let name = if outer.is_empty() { key.get_ref().to_string() } else { format!("{outer}.{}", key.get_ref()) };
            self.note(name.clone(), starts.partition_point(|start| *start <= key.span().start));
            match value.get_ref() {
                DeValue::Table(inner) => self.walk(inner, &name, starts),
                DeValue::Array(items) => {
                    for (number, item) in items.iter().enumerate() {
                        let DeValue::Table(inner) = item.get_ref() else { continue };
                        let name = format!("{name}.{number}");
                        self.note(name.clone(), starts.partition_point(|start| *start <= item.span().start));
                        self.walk(inner, &name, starts);
                    }
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_have_lines() {
        let text = "max_request_body = 1\n\n[routes.docs]\nupstream = \"http://a:80\"\n[upstream]\ntls.ca_file = \"x\"\n\
             [[routes.docs.credentials]]\nname = \"a\"\n[[routes.docs.credentials]]\nname = \"b\"\nsecret.env = \"X\"\n";
        let places = Places::of_toml(text, Path::new("/etc/gateway.toml"));
        for (setting, place) in [
            ("max_request_body", "/etc/gateway.toml:1"),
            ("routes.docs", "/etc/gateway.toml:3"),
            ("routes.docs.upstream", "/etc/gateway.toml:4"),
            ("routes.docs.root", "/etc/gateway.toml:3"),
            ("upstream.tls.ca_file", "/etc/gateway.toml:6"),
            ("link.proxy", "/etc/gateway.toml"),
            ("routes.docs.credentials.0", "/etc/gateway.toml:7"),
            ("routes.docs.credentials.1.name", "/etc/gateway.toml:10"),
            ("routes.docs.credentials.1.secret.env", "/etc/gateway.toml:11"),
        ] {
            assert_eq!(places.of(setting), place, "{setting}");
        }
        assert_eq!(Places::of_toml("[", Path::new("x")).of("routes"), "x");
    }
}
