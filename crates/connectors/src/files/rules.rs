//! What is never served, whoever asks and whatever else holds: hidden names, names of key files, and private keys
//! under any name. Pure: names and bytes in, a verdict out.

use std::sync::LazyLock;

use regex::bytes::Regex;

/// Why a name is never served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NameRule {
    /// It begins with a dot.
    Hidden,
    /// It is a name under which keys and passwords are kept.
    Key,
}

/// Endings of files that hold keys, with or without the certificate beside them.
const KEY_ENDINGS: &[&str] =
    &[".key", ".pem", ".p12", ".pfx", ".p8", ".jks", ".jceks", ".keystore", ".kdbx", ".kdb", ".ppk"];
/// Beginnings of such names.
const KEY_BEGINNINGS: &[&str] = &["id_rsa", "id_dsa", "id_ed25519", "id_ecdsa", "credentials"];

/// The rule that forbids a name (one component of a path), if there is one. Case does not matter, since some file
/// systems ignore it.
pub(crate) fn forbidden_name(name: &str) -> Option<NameRule> {
    if name.starts_with('.') {
        return Some(NameRule::Hidden);
    }
    let lower = name.to_lowercase();
    let key = KEY_ENDINGS.iter().any(|ending| lower.ends_with(ending))
        || KEY_BEGINNINGS.iter().any(|beginning| lower.starts_with(beginning));
    key.then_some(NameRule::Key)
}

/// The first line of a private key (RFC 7468 section 10 and the older forms: RSA, EC, DSA, OPENSSH, ENCRYPTED; PGP
/// adds the word BLOCK).
static PRIVATE_KEY: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?-u)-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----").expect("the pattern is well-formed")
});

/// Whether a private key begins somewhere in these bytes.
pub(crate) fn private_key_begins(bytes: &[u8]) -> bool {
    PRIVATE_KEY.is_match(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_and_key_names_are_forbidden_in_any_case() {
        for name in [".", "..", ".env", ".git", ".ssh"] {
            assert_eq!(forbidden_name(name), Some(NameRule::Hidden), "{name}");
        }
        for name in ["a.key", "A.PEM", "x.p12", "x.Pfx", "x.jks", "x.kdbx", "id_rsa", "ID_RSA.bak", "id_ed25519.pub"] {
            assert_eq!(forbidden_name(name), Some(NameRule::Key), "{name}");
        }
        for name in ["credentials", "credentials.json", "Credentials.csv", "id_ecdsa"] {
            assert_eq!(forbidden_name(name), Some(NameRule::Key), "{name}");
        }
        for name in ["a.crt", "keys.md", "monkey", "a.pem.txt", "readme", "…", "my credentials"] {
            assert_eq!(forbidden_name(name), None, "{name}");
        }
    }

    #[test]
    fn private_keys_are_seen_in_every_common_form() {
        for kind in ["", "RSA ", "EC ", "DSA ", "OPENSSH ", "ENCRYPTED "] {
            let text = format!("{{\"k\": \"-----BEGIN {kind}PRIVATE KEY-----\\nMII\"}}");
            assert!(private_key_begins(text.as_bytes()), "{kind}");
        }
        assert!(private_key_begins(b"\xff\xfe-----BEGIN PGP PRIVATE KEY BLOCK-----"));
        assert!(!private_key_begins(b"-----BEGIN CERTIFICATE-----"));
        assert!(!private_key_begins(b"-----BEGIN PUBLIC KEY-----"));
        assert!(!private_key_begins(b"a line about BEGIN PRIVATE KEY"));
    }
}
