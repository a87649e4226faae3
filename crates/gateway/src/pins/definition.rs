//! What of a tool is pinned, in one form: canonical JSON (RFC 8785), and its SHA-256.

use serde_json::value::RawValue;
use serde_json::{Map, Value};
use sortie_ids::Digest;

/// The members that an agent, or the program around it, decides by.
const PINNED: [&str; 7] = ["name", "title", "description", "inputSchema", "outputSchema", "annotations", "icons"];
/// Longest canonical form of one definition, in bytes. A larger one cannot be pinned, and is held back.
pub(crate) const MAX_DEFINITION: usize = 256 * 1024;
/// Whole numbers beyond this are no numbers to every reader (RFC 7493, section 2.2).
const EXACT: u64 = 1 << 53;

/// A definition, as it is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Definition {
    pub(crate) digest: Digest,
    /// The canonical JSON that the digest is of.
    pub(crate) canonical: String,
}

/// A definition that has no canonical form.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unpinnable {
    /// JSON to us, but not to every reader: a number without a value, half a surrogate pair.
    #[error("it has no canonical form")]
    NoForm,
    #[error("it is larger than {MAX_DEFINITION} bytes")]
    TooLarge,
}

impl Definition {
    /// Of a tool, by its object as it was sent.
    pub(crate) fn of_tool(text: &str) -> Result<Self, Unpinnable> {
        let tool: Map<String, Value> = serde_json::from_str(text).map_err(|_| Unpinnable::NoForm)?;
        let pinned = tool.into_iter().filter(|(name, _)| PINNED.contains(&name.as_str()));
        Self::of(Value::Object(pinned.collect()))
    }

    /// Of a server's instructions, or of their absence.
    pub(crate) fn of_instructions(text: Option<&str>) -> Result<Self, Unpinnable> {
        Self::of(text.map_or(Value::Null, Value::from))
    }

    fn of(mut value: Value) -> Result<Self, Unpinnable> {
        keep_large_numbers_apart(&mut value);
        let canonical = serde_json_canonicalizer::to_string(&value).map_err(|_| Unpinnable::NoForm)?;
        if canonical.len() > MAX_DEFINITION {
            return Err(Unpinnable::TooLarge);
        }
        Ok(Self { digest: Digest::of(canonical.as_bytes()), canonical })
    }

    /// One that was kept, if it is what its digest says.
    pub(crate) fn kept(digest: &str, canonical: &RawValue) -> Option<Self> {
        let digest: Digest = digest.parse().ok()?;
        let canonical = canonical.get().to_owned();
        (Digest::of(canonical.as_bytes()) == digest).then_some(Self { digest, canonical })
    }

    /// The canonical form as JSON.
    pub(crate) fn raw(&self) -> Option<&RawValue> {
        serde_json::from_str(&self.canonical).ok()
    }
}

/// RFC 8785 writes numbers as doubles, where two large whole numbers can be one. They become texts that no definition
/// has by accident, so that what differs for one reader differs here.
fn keep_large_numbers_apart(value: &mut Value) {
    match value {
        Value::Number(number) => {
            let size = number.as_i64().map(i64::unsigned_abs).or_else(|| number.as_u64());
            if size.is_some_and(|size| size > EXACT) {
                *value = Value::String(format!("\u{0}number {number}"));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(keep_large_numbers_apart),
        Value::Object(members) => members.values_mut().for_each(keep_large_numbers_apart),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool(text: &str) -> Definition {
        Definition::of_tool(text).expect(text)
    }

    /// RFC 8785, appendix B, and its example of section 3.2.3.
    #[test]
    fn canonical_json_is_that_of_the_standard() {
        for (bits, text) in [
            (0x0000_0000_0000_0000_u64, "0"),
            (0x8000_0000_0000_0000, "0"),
            (0x0000_0000_0000_0001, "5e-324"),
            (0x7fef_ffff_ffff_ffff, "1.7976931348623157e+308"),
            (0x4340_0000_0000_0000, "9007199254740992"),
            (0x4430_0000_0000_0000, "295147905179352830000"),
            (0x44b5_2d02_c7e1_4af6, "1e+23"),
            (0x444b_1ae4_d6e2_ef4f, "999999999999999900000"),
            (0x444b_1ae4_d6e2_ef50, "1e+21"),
            (0x3eb0_c6f7_a0b5_ed8c, "9.999999999999997e-7"),
            (0x3eb0_c6f7_a0b5_ed8d, "0.000001"),
            (0x41b3_de43_5555_5555, "333333333.3333333"),
            (0xbecb_f647_612f_3696, "-0.0000033333333333333333"),
        ] {
            assert_eq!(Definition::of(Value::from(f64::from_bits(bits))).expect("a number").canonical, text);
        }
        let example = r#"{"numbers":[333333333.33333329,1E30,4.50,2e-3,0.000000000000000000000000001],
            "string":"\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/","literals":[null,true,false]}"#;
        let value: Value = serde_json::from_str(example).expect("the example");
        let expected = "{\"literals\":[null,true,false],\"numbers\":[333333333.3333333,1e+30,4.5,0.002,1e-27],\
                        \"string\":\"\u{20ac}$\\u000f\\nA'B\\\"\\\\\\\\\\\"/\"}";
        assert_eq!(Definition::of(value).expect("the example").canonical, expected);
        // Keys in the order of their UTF-16 code units: section 3.2.3.
        let sorted = r#"{"\u20ac":1,"\r":2,"\ufb33":3,"1":4,"\ud83d\ude00":5,"\u0080":6,"\u00f6":7}"#;
        let canonical = Definition::of(serde_json::from_str(sorted).expect("keys")).expect("keys").canonical;
        assert_eq!(
            canonical,
            "{\"\\r\":2,\"1\":4,\"\u{80}\":6,\"\u{f6}\":7,\"\u{20ac}\":1,\"\u{1f600}\":5,\"\u{fb33}\":3}"
        );
    }

    #[test]
    fn what_an_agent_decides_by_counts_and_how_it_is_written_does_not() {
        let one = tool(r#"{"name":"a","description":"x","inputSchema":{"b":1,"a":[1.0,2]},"_meta":{"t":1}}"#);
        let same =
            tool("{ \"inputSchema\" : {\"a\":[1,2e0], \"b\":1.00}, \"description\":\"\\u0078\",\n\"name\":\"a\" }");
        assert_eq!(one, same);
        for other in [
            r#"{"name":"a","description":"x ","inputSchema":{"b":1,"a":[1.0,2]}}"#,
            r#"{"name":"a","description":"x","inputSchema":{"b":1,"a":[2,1]}}"#,
            r#"{"name":"a","description":"x","inputSchema":{"b":1,"a":[1,2]},"title":null}"#,
            r#"{"name":"a","description":"x","inputSchema":{"b":1,"a":[1,2]},"icons":[]}"#,
        ] {
            assert_ne!(one.digest, tool(other).digest, "{other}");
        }
        let large = |number: &str| tool(&format!(r#"{{"name":"a","inputSchema":{{"maximum":{number}}}}}"#)).digest;
        assert_ne!(large("9007199254740993"), large("9007199254740992"));
        assert_eq!(large("9007199254740992"), large("9007199254740992.0"));
    }

    #[test]
    fn what_has_no_form_is_not_pinned() {
        for text in
            [r#"{"name":"a","title":"\ud800"}"#, r#"{"name":"a","inputSchema":{"maximum":1e999}}"#, "{\"name\":"]
        {
            assert_eq!(Definition::of_tool(text), Err(Unpinnable::NoForm), "{text}");
        }
        let long = format!(r#"{{"name":"a","title":"{}"}}"#, "x".repeat(MAX_DEFINITION));
        assert_eq!(Definition::of_tool(&long), Err(Unpinnable::TooLarge));
    }

    #[test]
    fn what_was_kept_must_be_what_its_digest_says() {
        let one = tool(r#"{"name":"a"}"#);
        let raw = one.raw().expect("JSON").to_owned();
        assert_eq!(Definition::kept(&one.digest.to_string(), &raw), Some(one.clone()));
        assert_eq!(Definition::kept(&Digest::of(b"").to_string(), &raw), None);
        assert_eq!(Definition::kept("x", &raw), None);
    }
}
