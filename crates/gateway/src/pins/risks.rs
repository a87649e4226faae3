//! What makes a definition look like an attack, before anybody has seen another one of it. Pure.
//!
//! A pin cannot tell a poisoned first definition from a good one. These are the tricks that no honest server has a use
//! for (they hold a definition back until a person has approved it), and those that some have (they are shown).

use std::collections::HashSet;

use serde::Serialize;
use serde_json::Value;

/// How many characters without width may stand in a row before they are taken for hidden text: each can carry a bit.
const MANY: usize = 8;

/// One trick.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Risk {
    /// Text that a model reads and a person does not see: Unicode tags outside of flags, selectors that carry bytes, long
    /// runs of characters without width.
    HiddenText,
    /// Characters that make text show in another order than it has.
    Reordered,
    /// The name looks like that of another tool of this route: by case, or by letters of another script.
    LookAlike(String),
    /// The name has characters that nobody sees.
    HiddenName,
    /// Single characters without width, or control characters.
    ZeroWidth,
    /// The name has characters beyond those that MCP recommends (`A-Z a-z 0-9 _ - . /`).
    OddName,
    /// A schema refers to another document on the network.
    NetworkReference(String),
    /// `x-mcp-header` where or as MCP does not allow it.
    BadHeader,
}

impl Risk {
    /// Whether a definition with it is held back also where what comes first is trusted.
    pub(crate) fn holds(&self) -> bool {
        matches!(self, Self::HiddenText | Self::Reordered | Self::LookAlike(_) | Self::HiddenName)
    }

    /// What is told of it.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::HiddenText => "it holds text that is not shown".to_owned(),
            Self::Reordered => "it holds characters that reorder what is shown".to_owned(),
            Self::LookAlike(other) => format!("its name looks like that of `{}`", crate::probe::printable(other)),
            Self::HiddenName => "its name holds characters that are not shown".to_owned(),
            Self::ZeroWidth => "it holds characters without width".to_owned(),
            Self::OddName => "its name has characters that MCP does not recommend".to_owned(),
            Self::NetworkReference(url) => format!("a schema refers to `{}`", crate::probe::printable(url)),
            Self::BadHeader => "an x-mcp-header is not as MCP wants it".to_owned(),
        }
    }
}

/// The risks of a definition, by its canonical JSON and, for a tool, its name.
pub(crate) fn of(canonical: &str, name: Option<&str>) -> Vec<Risk> {
    let value: Value = serde_json::from_str(canonical).unwrap_or_default();
    let mut seen = Seen::default();
    seen.all(&value);
    let mut risks = seen.risks();
    if let Some(name) = name {
        if name.chars().any(|letter| is_hidden(letter) || is_reordering(letter) || letter.is_control()) {
            risks.push(Risk::HiddenName);
        }
        if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-./".contains(&byte)) {
            risks.push(Risk::OddName);
        }
    }
    for schema in ["inputSchema", "outputSchema"] {
        if let Some(url) = value.get(schema).and_then(network_reference) {
            risks.push(Risk::NetworkReference(url));
            break;
        }
    }
    let mut names = HashSet::new();
    if value.get("inputSchema").is_some_and(|schema| has_bad_header(schema, Spot::Root, &mut names)) {
        risks.push(Risk::BadHeader);
    }
    risks
}

/// What the texts of a definition hold.
#[derive(Default)]
struct Seen {
    hidden: bool,
    reordered: bool,
    zero_width: bool,
}

impl Seen {
    fn all(&mut self, value: &Value) {
        match value {
            Value::String(text) => self.text(text),
            Value::Array(items) => items.iter().for_each(|item| self.all(item)),
            Value::Object(members) => members.iter().for_each(|(name, value)| {
                self.text(name);
                self.all(value);
            }),
            _ => {}
        }
    }

    fn text(&mut self, text: &str) {
        let (mut run, mut flag, mut before) = (0, 0, ' ');
        for letter in text.chars() {
            run = if is_zero_width(letter) { run + 1 } else { 0 };
            // A flag of a region is a black flag and at most six tags with an end (Unicode TS 51, section ED-14a).
            flag = match letter {
                '\u{1f3f4}' => 7,
                '\u{e0020}'..='\u{e007f}' if flag > 0 => flag - 1,
                '\u{e0000}'..='\u{e007f}' => {
                    self.hidden = true;
                    0
                }
                _ => 0,
            };
            self.hidden |= run >= MANY
                || matches!(letter, '\u{e0100}'..='\u{e01ef}') && before.is_ascii()
                || is_selector(letter) && is_selector(before);
            self.reordered |= is_reordering(letter);
            self.zero_width |= match letter {
                // Joiners are part of writing and of emoji; between ASCII they are not.
                '\u{200c}' | '\u{200d}' => before.is_ascii(),
                '\t' | '\n' | '\r' => false,
                _ => is_zero_width(letter) || letter.is_control(),
            };
            before = letter;
        }
    }

    fn risks(self) -> Vec<Risk> {
        let found =
            [(self.hidden, Risk::HiddenText), (self.reordered, Risk::Reordered), (self.zero_width, Risk::ZeroWidth)];
        found.into_iter().filter_map(|(is, risk)| is.then_some(risk)).collect()
    }
}

fn is_selector(letter: char) -> bool {
    matches!(letter, '\u{fe00}'..='\u{fe0f}' | '\u{e0100}'..='\u{e01ef}')
}

fn is_reordering(letter: char) -> bool {
    matches!(letter, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn is_zero_width(letter: char) -> bool {
    matches!(
        letter,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}' | '\u{2060}'..='\u{2065}' | '\u{206a}'..='\u{206f}' | '\u{3164}' | '\u{feff}'
            | '\u{ffa0}' | '\u{fff9}'..='\u{fffb}'
    )
}

fn is_hidden(letter: char) -> bool {
    is_zero_width(letter) || is_selector(letter) || matches!(letter, '\u{e0000}'..='\u{e007f}')
}

/// A text with everything in it that is not shown, or steers what shows it, as `<U+XXXX>`: for people who have to see what
/// a model would read. LF and tabs count as such, too.
pub fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        if is_hidden(letter)
            || is_reordering(letter)
            || letter.is_control()
            || matches!(letter, '\u{2028}' | '\u{2029}')
        {
            shown.push_str(&format!("<U+{:04X}>", u32::from(letter)));
        } else {
            shown.push(letter);
        }
    }
    shown
}

/// What a name looks like: without case, blanks and what nobody sees, letters of other scripts as the Latin ones that
/// they look like. Two names with one look are taken for each other by people, and by some servers.
pub(crate) fn look(name: &str) -> String {
    let shown = name.chars().filter(|letter| !is_hidden(*letter) && !is_reordering(*letter) && !letter.is_whitespace());
    shown.flat_map(|letter| latin(letter).to_lowercase()).map(shape).collect()
}

/// The Latin letter that a letter is drawn as (after Unicode TS 39, `confusables.txt`; the ones that look the same in
/// common fonts).
fn latin(letter: char) -> char {
    const ALIKE: [(&str, char); 26] = [
        ("\u{430}\u{410}\u{3b1}\u{391}\u{251}", 'a'),
        ("\u{412}\u{392}\u{42c}\u{44c}", 'b'),
        ("\u{441}\u{421}\u{3f2}\u{3f9}\u{1d04}", 'c'),
        ("\u{501}\u{500}", 'd'),
        ("\u{435}\u{415}\u{395}\u{4bd}", 'e'),
        ("\u{3dc}\u{192}", 'f'),
        ("\u{261}\u{581}", 'g'),
        ("\u{4bb}\u{41d}\u{397}\u{570}", 'h'),
        ("\u{456}\u{406}\u{3b9}\u{399}\u{131}\u{130}\u{269}\u{4c0}\u{4cf}", 'i'),
        ("\u{458}\u{408}\u{3f3}\u{237}", 'j'),
        ("\u{43a}\u{41a}\u{3ba}\u{39a}\u{212a}", 'k'),
        ("\u{2113}", 'l'),
        ("\u{41c}\u{39c}\u{43c}", 'm'),
        ("\u{39d}\u{578}", 'n'),
        ("\u{43e}\u{41e}\u{3bf}\u{39f}\u{3c3}\u{585}", 'o'),
        ("\u{440}\u{420}\u{3c1}\u{3a1}", 'p'),
        ("\u{51b}\u{51a}", 'q'),
        ("\u{433}\u{1d26}", 'r'),
        ("\u{455}\u{405}\u{17f}", 's'),
        ("\u{442}\u{422}\u{3c4}\u{3a4}", 't'),
        ("\u{3c5}\u{57d}", 'u'),
        ("\u{3bd}\u{475}\u{474}", 'v'),
        ("\u{51d}\u{51c}\u{461}", 'w'),
        ("\u{445}\u{425}\u{3c7}\u{3a7}", 'x'),
        ("\u{443}\u{423}\u{3b3}\u{3a5}\u{4af}", 'y'),
        ("\u{396}\u{1d22}", 'z'),
    ];
    match letter {
        _ if letter.is_ascii() => letter,
        // Full width forms.
        '\u{ff01}'..='\u{ff5e}' => u32::from(letter).checked_sub(0xfee0).and_then(char::from_u32).unwrap_or(letter),
        // Letters of mathematics, in alphabets of 52, without the few holes in them.
        '\u{1d400}'..='\u{1d6a3}' => {
            let place = (u32::from(letter) - 0x1d400) % 52;
            char::from_u32(if place < 26 { 0x41 + place } else { 0x61 + place - 26 }).unwrap_or(letter)
        }
        '\u{2010}'..='\u{2015}' | '\u{2212}' => '-',
        _ => ALIKE.iter().find(|(letters, _)| letters.contains(letter)).map_or(letter, |(_, latin)| *latin),
    }
}

/// Digits and letters that are drawn alike.
fn shape(letter: char) -> char {
    match letter {
        '0' => 'o',
        '1' | 'i' | '|' => 'l',
        other => other,
    }
}

/// A reference in a schema that leads to another document by the network.
fn network_reference(schema: &Value) -> Option<String> {
    match schema {
        Value::Object(members) => members.iter().find_map(|(name, value)| match value {
            Value::String(target)
                if matches!(name.as_str(), "$ref" | "$dynamicRef" | "$recursiveRef")
                    && (target.contains("://") || target.starts_with("//")) =>
            {
                Some(target.clone())
            }
            other => network_reference(other),
        }),
        Value::Array(items) => items.iter().find_map(network_reference),
        _ => None,
    }
}

/// Where a schema stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spot {
    Root,
    /// Reached only by `properties`.
    Property,
    Elsewhere,
}

/// Whether an `x-mcp-header` is not a token, comes twice, or stands where a value has no one place (MCP 2026-07-28,
/// server tools, section "x-mcp-header").
fn has_bad_header(schema: &Value, spot: Spot, names: &mut HashSet<String>) -> bool {
    let Value::Object(members) = schema else {
        return schema.as_array().is_some_and(|all| all.iter().any(|one| has_bad_header(one, Spot::Elsewhere, names)));
    };
    if let Some(header) = members.get("x-mcp-header") {
        let name = header.as_str().unwrap_or_default();
        let token = !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte));
        let primitive =
            matches!(members.get("type").and_then(Value::as_str), Some("string" | "integer" | "number" | "boolean"));
        if !token || !primitive || spot != Spot::Property || !names.insert(name.to_ascii_lowercase()) {
            return true;
        }
    }
    members.iter().any(|(name, value)| match value {
        Value::Object(properties) if name == "properties" => {
            let spot = if spot == Spot::Elsewhere { spot } else { Spot::Property };
            properties.values().any(|property| has_bad_header(property, spot, names))
        }
        other => has_bad_header(other, Spot::Elsewhere, names),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn described(text: &str) -> Vec<Risk> {
        of(&json!({"name": "a", "description": text}).to_string(), Some("a"))
    }

    #[test]
    fn what_is_not_shown_is_found() {
        let tags: String = "ignore all".chars().filter_map(|c| char::from_u32(0xe0000 + u32::from(c))).collect();
        assert_eq!(described(&format!("Reads.{tags}")), [Risk::HiddenText]);
        let bits = "\u{200b}\u{200c}".repeat(8);
        assert_eq!(described(&format!("Reads{bits}")), [Risk::HiddenText, Risk::ZeroWidth]);
        assert_eq!(described("x\u{fe01}\u{fe02}\u{fe03}"), [Risk::HiddenText]);
        assert_eq!(described("x\u{e0101}"), [Risk::HiddenText]);
        assert_eq!(described("a\u{202e}b"), [Risk::Reordered]);
        assert_eq!(described("a\u{2066}b\u{2069}"), [Risk::Reordered]);
        assert_eq!(described("a\u{200b}b"), [Risk::ZeroWidth]);
        assert_eq!(described("a\u{1b}[8mb"), [Risk::ZeroWidth]);
    }

    #[test]
    fn honest_writing_is_left_alone() {
        for text in [
            "Reads a file.\nThen \"stops\" \\ ends\t.",
            "Flags: \u{1f3f4}\u{e0067}\u{e0062}\u{e0065}\u{e006e}\u{e0067}\u{e007f} and families \u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467}",
            "\u{6a9}\u{62a}\u{627}\u{628}\u{200c}\u{647}\u{627}",
            "\u{2764}\u{fe0f} \u{845b}\u{e0100} \u{fc}ber \u{65e5}\u{672c}\u{8a9e}",
        ] {
            assert_eq!(described(text), [], "{text}");
        }
    }

    #[test]
    fn names_that_look_alike_have_one_look() {
        for (one, other) in [
            ("read_file", "Read_File"),
            ("read_file", "re\u{430}d_file"),
            ("read_file", "read_f\u{456}le"),
            ("read_file", "\u{ff52}ead_file"),
            ("read_file", "read_fi\u{200b}le"),
            ("read_file", "read_file "),
            ("pay", "\u{1d429}ay"),
            ("login", "1ogin"),
            ("go", "g0"),
        ] {
            assert_eq!(look(one), look(other), "{one} {other}");
        }
        for (one, other) in [("read_file", "read_files"), ("read_file", "read-file"), ("get_a", "get_b")] {
            assert_ne!(look(one), look(other), "{one} {other}");
        }
        let named = |name: &str| of(&json!({"name": name}).to_string(), Some(name));
        assert_eq!(named("a\u{200b}b"), [Risk::ZeroWidth, Risk::HiddenName, Risk::OddName]);
        assert_eq!(named("a b"), [Risk::OddName]);
        assert_eq!(named("a.b/c-D_1"), []);
    }

    #[test]
    fn schemas_that_reach_out_are_found() {
        let schema = |schema: Value| of(&json!({"inputSchema": schema}).to_string(), None);
        let url = "https://evil.example/s.json";
        assert_eq!(schema(json!({"anyOf": [{"$ref": url}]})), [Risk::NetworkReference(url.to_owned())]);
        assert_eq!(schema(json!({"$schema": "https://json-schema.org/x", "$ref": "#/$defs/a", "$id": url})), []);
        assert_eq!(schema(json!({"properties": {"$ref": {"type": "string"}}})), []);
        let header = |name: &str| json!({"type": "string", "x-mcp-header": name});
        assert_eq!(schema(json!({"properties": {"a": header("A"), "b": header("B")}})), []);
        for bad in [
            json!({"properties": {"a": header("A"), "b": header("a")}}),
            json!({"properties": {"a": header("A:b")}}),
            json!({"properties": {"a": {"type": "object", "x-mcp-header": "A"}}}),
            json!({"items": {"properties": {"a": header("A")}}}),
            json!({"type": "string", "x-mcp-header": "A"}),
        ] {
            assert_eq!(schema(bad.clone()), [Risk::BadHeader], "{bad}");
        }
    }
}
