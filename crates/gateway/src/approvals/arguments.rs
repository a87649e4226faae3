//! What a person is shown of a call's arguments.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize as _;
use serde_json::value::RawValue;
use sortie_api::ApprovalArguments;
use sortie_ids::Digest;

/// Most members that are shown.
const MEMBERS: usize = 32;
/// Most characters of a name or a value that are shown.
const CHARACTERS: usize = 256;

/// What is told of arguments: their digest, and of each member its type and size, or with `values` what it holds.
/// `arguments` is their JSON exactly as sent, strictly parsed before; `None` counts as `{}`.
pub(crate) fn summary(arguments: Option<&str>, values: bool) -> ApprovalArguments {
    let text = arguments.unwrap_or("{}");
    let mut members = BTreeMap::new();
    let mut cut = false;
    match read(text) {
        Some(all) => {
            for (name, value) in &all {
                if members.len() == MEMBERS {
                    cut = true;
                    break;
                }
                let shown = if values { visible(value.get()) } else { kind(value.get()) };
                cut |= values && value.get().chars().nth(CHARACTERS).is_some();
                members.insert(visible(name), shown);
            }
        }
        None => {
            members.insert(String::new(), if values { visible(text) } else { kind(text) });
        }
    }
    ApprovalArguments {
        sha256: Digest::of(text.as_bytes()).to_string(),
        bytes: text.len(),
        shown: values,
        cut,
        members,
    }
}

/// The members of an object.
fn read(text: &str) -> Option<BTreeMap<Cow<'_, str>, &RawValue>> {
    let mut reader = serde_json::Deserializer::from_str(text);
    BTreeMap::deserialize(&mut reader).ok()
}

/// The type of a value, by the first byte of its JSON, and its size.
fn kind(json: &str) -> String {
    match json.bytes().next() {
        Some(b'"') => format!("string, {} bytes", json.len() - 2),
        Some(b'{') => format!("object, {} bytes", json.len()),
        Some(b'[') => format!("array, {} bytes", json.len()),
        Some(b't' | b'f') => "boolean".to_owned(),
        Some(b'n') => "null".to_owned(),
        _ => "number".to_owned(),
    }
}

/// Text of a caller as a person may see it: at most 256 characters, and none that is hidden, or moves others.
pub(crate) fn visible(text: &str) -> String {
    let mut shown = String::new();
    for (at, c) in text.chars().enumerate() {
        if at == CHARACTERS {
            shown.push('\u{2026}');
            break;
        }
        let hidden = c.is_control()
            || matches!(c, '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
                | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}'
                | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}');
        if hidden {
            shown.extend(c.escape_unicode());
        } else {
            shown.push(c);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_told_only_where_the_settings_say_so() {
        let text =
            r#"{"to": "eve@example", "amount": 100, "note": null, "list": [1,2], "deep": {"secret": 1}, "b": true}"#;
        let closed = summary(Some(text), false);
        assert_eq!((closed.bytes, closed.shown, closed.cut), (text.len(), false, false));
        assert_eq!(closed.sha256, Digest::of(text.as_bytes()).to_string());
        let told: Vec<_> = closed.members.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(
            told,
            [
                "amount=number",
                "b=boolean",
                "deep=object, 13 bytes",
                "list=array, 5 bytes",
                "note=null",
                "to=string, 11 bytes"
            ]
        );
        let open = summary(Some(text), true);
        assert_eq!((open.members["to"].as_str(), open.members["amount"].as_str()), ("\"eve@example\"", "100"));
        assert_eq!(summary(None, true).sha256, Digest::of(b"{}").to_string());
        assert_eq!(summary(Some("[1]"), false).members[""], "array, 3 bytes");
    }

    #[test]
    fn what_is_shown_is_bounded() {
        let many: BTreeMap<String, String> = (0..100).map(|n| (format!("k{n}"), "x".repeat(1000))).collect();
        let text = serde_json::to_string(&many).expect("json");
        let shown = summary(Some(&text), true);
        assert!(shown.cut && shown.members.len() == MEMBERS);
        assert!(shown.members.values().all(|value| value.chars().count() == CHARACTERS + 1));
        assert!(!summary(Some(&text.replace("xxxxx", "")), false).members.is_empty());
    }

    #[test]
    fn nothing_hides() {
        assert_eq!(visible("a\u{202e}b\u{200b}\u{e0041}\n"), "a\\u{202e}b\\u{200b}\\u{e0041}\\u{a}");
        assert_eq!(visible("plain – ü"), "plain – ü");
    }
}
