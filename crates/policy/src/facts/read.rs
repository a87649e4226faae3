//! Reads one JSON value as a typed one, or says why not.

use std::net::IpAddr;

use jiff::Timestamp;
use serde_json::value::RawValue;

use super::FactFault;

/// Most bytes of a text.
const MAX_TEXT: usize = 8192;
/// Most elements of a set.
const MAX_SET: usize = 256;
/// The largest integer that every JSON reader takes exactly (RFC 7493, section 2.2).
const MAX_LONG: i64 = (1 << 53) - 1;
/// Digits that every reader keeps who reads numbers as IEEE 754 doubles.
const EXACT_DIGITS: usize = 15;
/// Digits behind the point of a decimal.
pub(super) const DECIMALS: usize = 4;

/// A text, escapes undone.
pub(super) fn string(json: &str) -> Result<String, FactFault> {
    if !json.starts_with('"') {
        return Err(FactFault::Type("a string"));
    }
    let text: String = serde_json::from_str(json).map_err(|_| FactFault::Type("a string that has a value"))?;
    if text.len() > MAX_TEXT { Err(FactFault::Long("8192 bytes")) } else { Ok(text) }
}

/// `true` or `false`.
pub(super) fn bool(json: &str) -> Result<bool, FactFault> {
    match json {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(FactFault::Type("true or false")),
    }
}

/// An integer, written as one: `1.0`, `1e3` and `-0` are read as integers by some and not by others, and what lies beyond
/// 2^53 - 1 is rounded by some.
pub(super) fn long(json: &str) -> Result<i64, FactFault> {
    const FORM: &str = "an integer from -(2^53 - 1) to 2^53 - 1, without point or exponent";
    number(json, "a number")?;
    let digits = json.strip_prefix('-').unwrap_or(json);
    if json == "-0" || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(FactFault::Inexact(FORM));
    }
    let value = json.parse::<i64>().map_err(|_| FactFault::Inexact(FORM))?;
    if (-MAX_LONG..=MAX_LONG).contains(&value) { Ok(value) } else { Err(FactFault::Inexact(FORM)) }
}

/// A number in units of 10^-4, written without exponent.
pub(super) fn decimal(json: &str) -> Result<i64, FactFault> {
    const FORM: &str = "digits with at most four behind the point, 15 in all, without exponent";
    number(json, "a number")?;
    ten_thousandths(json).ok_or(FactFault::Inexact(FORM))
}

/// `-12.5` as -125000; `None` if it has no exact value here.
pub(super) fn ten_thousandths(text: &str) -> Option<i64> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    let part = part.trim_end_matches('0');
    let plain = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !plain(whole) || !plain(part) || part.len() > DECIMALS {
        return None;
    }
    if whole.trim_start_matches('0').len() + part.len() > EXACT_DIGITS {
        return None;
    }
    let value: i64 = format!("{whole}{part:0<DECIMALS$}").parse().ok()?;
    match (negative, value) {
        (true, 0) => None,
        (true, value) => Some(-value),
        (false, value) => Some(value),
    }
}

/// A decimal as Cedar writes it.
pub(super) fn decimal_text(value: i64) -> String {
    let sign = if value < 0 { "-" } else { "" };
    let value = value.unsigned_abs();
    format!("{sign}{}.{:04}", value / 10_000, value % 10_000)
}

/// The texts of an array, sorted, each once.
pub(super) fn strings(json: &str) -> Result<Vec<String>, FactFault> {
    let mut out = elements(json)?.iter().map(|raw| string(raw.get())).collect::<Result<Vec<_>, _>>()?;
    out.sort_unstable();
    out.dedup();
    Ok(out)
}

fn elements(json: &str) -> Result<Vec<&RawValue>, FactFault> {
    if !json.starts_with('[') {
        return Err(FactFault::Type("an array of strings"));
    }
    let all: Vec<&RawValue> = serde_json::from_str(json).map_err(|_| FactFault::NotJson)?;
    if all.len() > MAX_SET { Err(FactFault::Long("256 elements")) } else { Ok(all) }
}

/// How many elements an array has.
pub(super) fn count(json: &str) -> Result<i64, FactFault> {
    if !json.starts_with('[') {
        return Err(FactFault::Type("an array"));
    }
    let all: Vec<serde::de::IgnoredAny> = serde_json::from_str(json).map_err(|_| FactFault::NotJson)?;
    i64::try_from(all.len()).map_err(|_| FactFault::Long("an array may be"))
}

/// An IP address. An IPv4 address in the form of an IPv6 one would lie in no IPv4 net, and is refused.
pub(super) fn ip(json: &str) -> Result<IpAddr, FactFault> {
    let text = string(json).map_err(|_| FactFault::Type("a string with an IP address"))?;
    let ip: IpAddr = text.parse().map_err(|_| FactFault::Type("a string with an IP address"))?;
    match ip {
        IpAddr::V6(v6) if v6.to_ipv4().is_some_and(|v4| v4.octets()[0] != 0) || v6.to_ipv4_mapped().is_some() => {
            Err(FactFault::Ambiguous("it is an IPv4 address in the form of an IPv6 address"))
        }
        ip => Ok(ip),
    }
}

/// A moment (RFC 3339), in milliseconds since 1970.
pub(super) fn datetime(json: &str) -> Result<i64, FactFault> {
    const FORM: FactFault = FactFault::Type("a string with a date, a time and an offset (RFC 3339)");
    let text = string(json).map_err(|_| FORM)?;
    moment(&text).ok_or(FORM)
}

/// RFC 3339 with whole milliseconds, `T`, and an offset; no leap second, since programs differ about it.
pub(super) fn moment(text: &str) -> Option<i64> {
    let rest = text.get(19..)?;
    let second = text.get(17..19)?;
    let fraction = rest.strip_prefix('.').map_or(Some(0), |rest| {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if (1..=3).contains(&digits) { Some(digits + 1) } else { None }
    })?;
    let offset = rest.get(fraction..)?.as_bytes();
    let offset_is_plain = match offset {
        b"Z" => true,
        [b'+' | b'-', a, b, b':', c, d] => [a, b, c, d].iter().all(|b| b.is_ascii_digit()),
        _ => false,
    };
    if second == "60" || !offset_is_plain || text.as_bytes().get(10) != Some(&b'T') {
        return None;
    }
    text.parse::<Timestamp>().ok().map(Timestamp::as_millisecond)
}

/// Whether it is a number at all.
fn number(json: &str, what: &'static str) -> Result<(), FactFault> {
    if json.starts_with(|c: char| c == '-' || c.is_ascii_digit()) { Ok(()) } else { Err(FactFault::Type(what)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_written_as_integers() {
        for (json, value) in [("0", 0), ("-1", -1), ("9007199254740991", MAX_LONG), ("-9007199254740991", -MAX_LONG)] {
            assert_eq!(long(json), Ok(value));
        }
        for json in
            ["1.0", "1e3", "1E0", "-0", "9007199254740992", "9223372036854775808", "1e400", "99999999999999999999"]
        {
            assert!(matches!(long(json), Err(FactFault::Inexact(_))), "{json}");
        }
        for json in ["\"1\"", "null", "true", "[1]", "{}"] {
            assert!(matches!(long(json), Err(FactFault::Type(_))), "{json}");
        }
    }

    #[test]
    fn decimals_are_exact_or_no_fact() {
        for (json, value) in [
            ("0", 0),
            ("1", 10_000),
            ("1.5", 15_000),
            ("-0.0001", -1),
            ("1.50000000", 15_000),
            ("99999999999.9999", 999_999_999_999_999),
        ] {
            assert_eq!(decimal(json), Ok(value), "{json}");
            assert_eq!(ten_thousandths(&decimal_text(value)), Some(value));
        }
        for json in
            ["1.00000000001", "1.00001", "1e2", "1.5E0", "1e400", "-0", "-0.0", "999999999999.9999", "9007199254740993"]
        {
            assert!(matches!(decimal(json), Err(FactFault::Inexact(_))), "{json}");
        }
    }

    #[test]
    fn strings_have_a_value_and_a_bound() {
        assert_eq!(string(r#""a\u0062""#), Ok("ab".to_owned()));
        assert!(matches!(string(r#""\ud800""#), Err(FactFault::Type(_))));
        assert!(matches!(string("1"), Err(FactFault::Type(_))));
        assert_eq!(string(&format!("\"{}\"", "a".repeat(8193))), Err(FactFault::Long("8192 bytes")));
    }

    #[test]
    fn sets_hold_strings_only() {
        assert_eq!(strings(r#"["b","a","b"]"#), Ok(vec!["a".to_owned(), "b".to_owned()]));
        assert!(matches!(strings(r#"["b",1]"#), Err(FactFault::Type(_))));
        assert!(matches!(strings(r#""b""#), Err(FactFault::Type(_))));
        assert!(matches!(strings(&format!("[{}\"\"]", "\"a\",".repeat(256))), Err(FactFault::Long(_))));
        assert_eq!(count("[1,[2,3],{}]"), Ok(3));
    }

    #[test]
    fn addresses_have_one_form() {
        assert_eq!(ip("\"10.0.0.1\""), Ok("10.0.0.1".parse().expect("an address")));
        assert_eq!(ip("\"::1\""), Ok("::1".parse().expect("an address")));
        for text in ["\"::ffff:10.0.0.1\"", "\"::10.0.0.1\""] {
            assert!(matches!(ip(text), Err(FactFault::Ambiguous(_))), "{text}");
        }
        for text in ["\"010.0.0.1\"", "\"10.1\"", "\"10.0.0.1/8\"", "\"fe80::1%eth0\"", "1", "\"0x7f000001\""] {
            assert!(matches!(ip(text), Err(FactFault::Type(_))), "{text}");
        }
    }

    #[test]
    fn moments_have_an_offset_and_whole_milliseconds() {
        assert_eq!(datetime("\"1970-01-01T00:00:01.5Z\""), Ok(1500));
        assert_eq!(datetime("\"1970-01-01T01:00:00+01:00\""), Ok(0));
        for text in [
            "1970-01-01",
            "1970-01-01T00:00:00",
            "1970-01-01 00:00:00Z",
            "1970-01-01T00:00:60Z",
            "1970-01-01T00:00:00.0001Z",
            "1970-01-01T00:00:00+01",
            "1970-02-30T00:00:00Z",
        ] {
            assert!(matches!(datetime(&format!("\"{text}\"")), Err(FactFault::Type(_))), "{text}");
        }
    }
}
