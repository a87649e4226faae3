//! Finds the value that a JSON pointer (RFC 6901) names in a JSON text, exactly as it is written there.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::FactFault;

/// Most bytes of a pointer.
const MAX_POINTER: usize = 1024;
/// Most steps of a pointer.
const MAX_STEPS: usize = 32;

/// A JSON pointer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pointer(Vec<String>);

impl Pointer {
    /// Reads a pointer: empty for the whole, else `/` before each step, with `~0` for `~` and `~1` for `/`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text.len() > MAX_POINTER {
            return Err(format!("a pointer has at most {MAX_POINTER} bytes"));
        }
        if text.is_empty() {
            return Ok(Self(Vec::new()));
        }
        let Some(rest) = text.strip_prefix('/') else {
            return Err(format!("the pointer `{text}` begins with `/` (RFC 6901): write `/{text}`"));
        };
        let steps = rest.split('/').map(step).collect::<Result<Vec<_>, _>>()?;
        if steps.len() > MAX_STEPS {
            return Err(format!("a pointer has at most {MAX_STEPS} steps"));
        }
        Ok(Self(steps))
    }

    /// The value in a JSON text; `None` if there is none.
    ///
    /// # Errors
    /// The text is not JSON, or has a key twice on the way.
    pub(crate) fn find<'de>(&self, json: &'de str) -> Result<Option<&'de str>, FactFault> {
        let mut deserializer = serde_json::Deserializer::from_str(json);
        let found = Walk(&self.0).deserialize(&mut deserializer).map_err(|error| {
            if error.to_string().starts_with(TWICE) { FactFault::Twice } else { FactFault::NotJson }
        })?;
        deserializer.end().map_err(|_| FactFault::NotJson)?;
        Ok(found.map(RawValue::get))
    }
}

const TWICE: &str = "a key comes twice";

fn step(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, if c == '~' { chars.next() } else { None }) {
            ('~', Some('0')) => out.push('~'),
            ('~', Some('1')) => out.push('/'),
            ('~', _) => return Err("in a pointer `~` is written `~0` and `/` is written `~1` (RFC 6901)".to_owned()),
            (c, _) => out.push(c),
        }
    }
    Ok(out)
}

struct Walk<'p>(&'p [String]);

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = Option<&'de RawValue>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        match self.0.split_first() {
            None => serde::Deserialize::deserialize(deserializer).map(Some),
            Some((first, rest)) => deserializer.deserialize_any(Step { first, rest }),
        }
    }
}

struct Step<'p> {
    first: &'p str,
    rest: &'p [String],
}

impl<'de> Visitor<'de> for Step<'_> {
    type Value = Option<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(key) = map.next_key::<Key<'de>>()? {
            if key.0 != self.first {
                map.next_value::<IgnoredAny>()?;
            } else if found.is_some() {
                return Err(A::Error::custom(TWICE));
            } else {
                found = Some(map.next_value_seed(Walk(self.rest))?);
            }
        }
        Ok(found.flatten())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let wanted = index(self.first);
        let mut at = 0usize;
        let mut found = None;
        loop {
            if wanted == Some(at) {
                match seq.next_element_seed(Walk(self.rest))? {
                    Some(value) => found = value,
                    None => break,
                }
            } else if seq.next_element::<IgnoredAny>()?.is_none() {
                break;
            }
            at += 1;
        }
        Ok(found)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
}

/// The place in an array that a step names: digits without leading zeros.
fn index(step: &str) -> Option<usize> {
    let plain = !step.is_empty() && step.bytes().all(|b| b.is_ascii_digit()) && (step == "0" || !step.starts_with('0'));
    if plain { step.parse().ok() } else { None }
}

/// A key of an object, escapes undone.
struct Key<'de>(Cow<'de, str>);

impl<'de> serde::Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Key<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Key(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Key(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find<'a>(pointer: &str, json: &'a str) -> Result<Option<&'a str>, FactFault> {
        Pointer::parse(pointer).expect(pointer).find(json)
    }

    #[test]
    fn the_examples_of_rfc_6901_are_found() {
        let json = r#"{"foo":["bar","baz"],"":0,"a/b":1,"c%d":2,"e^f":3,"g|h":4,"i\\j":5,"k\"l":6," ":7,"m~n":8}"#;
        for (pointer, value) in [
            ("", json),
            ("/foo", r#"["bar","baz"]"#),
            ("/foo/0", r#""bar""#),
            ("/", "0"),
            ("/a~1b", "1"),
            ("/c%d", "2"),
            ("/e^f", "3"),
            ("/g|h", "4"),
            ("/i\\j", "5"),
            ("/k\"l", "6"),
            ("/ ", "7"),
            ("/m~0n", "8"),
        ] {
            assert_eq!(find(pointer, json), Ok(Some(value)), "{pointer}");
        }
        for absent in ["/foo/2", "/foo/00", "/foo/-", "/foo/bar", "/bar", "/foo/0/x", "//x"] {
            assert_eq!(find(absent, json), Ok(None), "{absent}");
        }
    }

    #[test]
    fn numbers_stay_as_they_are_written() {
        assert_eq!(find("/a/b", r#" { "x": [1,{}], "a" : {"b" : 1.00e400 } } "#), Ok(Some("1.00e400")));
    }

    #[test]
    fn a_key_that_comes_twice_on_the_way_is_a_fault() {
        assert_eq!(find("/a", r#"{"a":1,"a":2}"#), Err(FactFault::Twice));
        assert_eq!(find("/a", r#"{"a":1,"\u0061":2}"#), Err(FactFault::Twice));
        assert_eq!(find("/a/b", r#"{"a":1,"a":{"b":2}}"#), Err(FactFault::Twice));
    }

    #[test]
    fn what_is_not_json_is_a_fault() {
        for json in ["", "{", "{\"a\":1}x", "{a:1}", "nul", "{\"a\":1,}", "{\"\\ud800\":1}"] {
            assert_eq!(find("/a", json), Err(FactFault::NotJson), "{json}");
        }
        let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(find("/a", &deep), Ok(None));
        assert_eq!(find("/0/0", &deep).map(|found| found.is_some()), Ok(true));
    }

    #[test]
    fn pointers_are_read_strictly() {
        for wrong in ["a", "/~", "/~2", "/a/~"] {
            Pointer::parse(wrong).expect_err(wrong);
        }
        Pointer::parse(&"/a".repeat(33)).expect_err("too many steps");
    }
}
