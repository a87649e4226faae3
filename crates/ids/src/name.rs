//! Hostnames of routes: `<route>.<label>.<base-domain>`, and `<route>--<label>.<base-domain>` so that one wildcard
//! certificate covers every tunnel.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A name that breaks a rule of its kind.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{given}` is not a {kind}: {rule}")]
pub struct NameError {
    given: String,
    kind: &'static str,
    rule: &'static str,
}

impl NameError {
    fn new(given: &str, kind: &'static str, rule: &'static str) -> Self {
        Self { given: given.chars().take(80).collect(), kind, rule }
    }
}

macro_rules! text_name {
    ($name:ident) => {
        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.to_string()
            }
        }
    };
}

/// The name of a route within its tunnel: one DNS label (RFC 1123) of at most 48 characters, without `--`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(inline, extend("pattern" = "^[a-z0-9]+(-[a-z0-9]+)*$", "maxLength" = 48))]
pub struct RouteName(Arc<str>);

text_name!(RouteName);

impl FromStr for RouteName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let bytes = text.as_bytes();
        let plain = !bytes.is_empty()
            && bytes.len() <= 48
            && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
            && !text.starts_with('-')
            && !text.ends_with('-')
            && !text.contains("--");
        if plain {
            Ok(Self(text.into()))
        } else {
            let rule = "1 to 48 of a-z, 0-9 and single dashes inside";
            Err(NameError::new(text, "route name", rule))
        }
    }
}

/// The random part of a tunnel's domain: 4 to 32 of `a-z0-9`. Never reused, also after the tunnel is archived.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(inline, extend("pattern" = "^[a-z0-9]{4,32}$"))]
pub struct TunnelLabel(Arc<str>);

text_name!(TunnelLabel);

impl TunnelLabel {
    /// A fresh label of 12 characters (60 bits).
    pub fn random() -> Self {
        const ALPHABET: &[u8; 32] = b"abcdefghjkmnpqrstuvwxyz023456789";
        let mut bytes = [0u8; 12];
        crate::secret::fill(&mut bytes);
        let text: String =
            bytes.iter().filter_map(|b| ALPHABET.get(usize::from(b & 31))).map(|b| char::from(*b)).collect();
        Self(text.into())
    }
}

impl FromStr for TunnelLabel {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let plain =
            (4..=32).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if plain { Ok(Self(text.into())) } else { Err(NameError::new(text, "tunnel label", "4 to 32 of a-z and 0-9")) }
    }
}

/// The domain that a hub hands out tunnel domains under, in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BaseDomain(Arc<str>);

text_name!(BaseDomain);

impl BaseDomain {
    /// The domain of the tunnel with this label.
    pub fn tunnel(&self, label: &TunnelLabel) -> TunnelDomain {
        TunnelDomain { label: label.clone(), base: self.clone() }
    }

    /// The route that a hostname names, in either form; upper case and one trailing dot are accepted, a port is not.
    /// `None` when the host is not under this domain or not of the form of a route.
    pub fn parse_host(&self, host: &str) -> Option<RouteHost> {
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let names = host.strip_suffix(self.as_str())?.strip_suffix('.')?;
        let (route, label) = match names.split_once('.') {
            Some(pair) => pair,
            None => names.rsplit_once("--")?,
        };
        Some(RouteHost { route: route.parse().ok()?, label: label.parse().ok()? })
    }
}

impl FromStr for BaseDomain {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let label_ok = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if text.len() <= 150 && text.split('.').all(label_ok) {
            Ok(Self(text.into()))
        } else {
            Err(NameError::new(text, "base domain", "lower-case DNS labels joined by dots, at most 150 characters"))
        }
    }
}

/// The domain of one tunnel: `<label>.<base-domain>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TunnelDomain {
    label: TunnelLabel,
    base: BaseDomain,
}

impl TunnelDomain {
    /// The random label.
    pub fn label(&self) -> &TunnelLabel {
        &self.label
    }

    /// The domain that the hub hands out.
    pub fn base(&self) -> &BaseDomain {
        &self.base
    }

    /// The hostname of a route, `<route>.<label>.<base-domain>`: the name in the gateway's certificate and the
    /// audience of the caller's identity.
    pub fn route_host(&self, route: &RouteName) -> String {
        format!("{route}.{self}")
    }
}

impl fmt::Display for TunnelDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.label, self.base)
    }
}

impl FromStr for TunnelDomain {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let (label, base) =
            text.split_once('.').ok_or_else(|| NameError::new(text, "tunnel domain", "<label>.<base-domain>"))?;
        Ok(Self { label: label.parse()?, base: base.parse()? })
    }
}

/// What a route's hostname says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RouteHost {
    /// The route.
    pub route: RouteName,
    /// The tunnel's label.
    pub label: TunnelLabel,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_hostname_name_the_same_route() {
        let base: BaseDomain = "sortie.localhost".parse().expect("base");
        let dotted = base.parse_host("my-files.abcd1234.sortie.localhost").expect("dotted");
        let dashed = base.parse_host("MY-files--abcd1234.Sortie.localhost.").expect("dashed");
        assert_eq!(dotted, dashed);
        assert_eq!(dotted.route.as_str(), "my-files");
        assert_eq!(base.tunnel(&dotted.label).route_host(&dotted.route), "my-files.abcd1234.sortie.localhost");
    }

    #[test]
    fn hosts_of_no_route_are_refused() {
        let base: BaseDomain = "sortie.localhost".parse().expect("base");
        for host in [
            "sortie.localhost",
            "abcd1234.sortie.localhost",
            "a.b.abcd1234.sortie.localhost",
            "files.abcd1234.sortie.localhost.evil.example",
            "files.abcd1234.xsortie.localhost",
            "-x.abcd1234.sortie.localhost",
            "files.ab_d.sortie.localhost",
            "files.abcd1234.sortie.localhost:443",
            "a--b--.sortie.localhost",
            "",
        ] {
            assert_eq!(base.parse_host(host), None, "{host}");
        }
    }

    #[test]
    fn route_names_fit_one_dns_label_with_any_label() {
        assert!("a".repeat(48).parse::<RouteName>().is_ok());
        for bad in ["", "-a", "a-", "a--b", "A", "a.b", "a_b", &"a".repeat(49)] {
            assert!(bad.parse::<RouteName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn random_labels_have_the_form_of_labels() {
        for _ in 0..100 {
            let label = TunnelLabel::random();
            assert_eq!(label.as_str().len(), 12);
            assert_eq!(label.as_str().parse(), Ok(label));
        }
    }
}
