//! What is put on a request, and what is taken out of answers that repeat it.

use http::{HeaderMap, HeaderName, HeaderValue};
use sortie_tls::Secret;

/// Shorter ones are only looked for as a whole value: within longer ones they would be found by chance.
const SHORTEST_PART: usize = 8;
const REDACTED: HeaderValue = HeaderValue::from_static("[redacted]");

/// A header, made ready once.
pub(crate) struct Prepared {
    pub(crate) header: HeaderName,
    /// Marked as sensitive, so that its `Debug` shows nothing.
    pub(crate) value: HeaderValue,
    /// What an answer must not repeat: the value, and the secrets within it.
    secrets: Vec<Secret>,
}

impl Prepared {
    /// `prefix` is put before `text`. The secrets within `text` are given apart where it is not itself one.
    ///
    /// # Errors
    /// Something is no value of a header; in words that hold nothing of it.
    pub(crate) fn new(
        header: HeaderName,
        prefix: &str,
        text: &Secret,
        within: &[&Secret],
    ) -> Result<Self, &'static str> {
        let whole = Secret::new(format!("{prefix}{}", text.expose()));
        let mut value = HeaderValue::from_str(whole.expose()).map_err(|_| "has characters that no header can have")?;
        value.set_sensitive(true);
        let secrets = std::iter::once(whole).chain([text].into_iter().chain(within.iter().copied()).cloned());
        Ok(Self { header, value, secrets: secrets.collect() })
    }

    /// Puts the header on a request, in place of whatever the caller has sent by its name, spelled with `_` or `-`:
    /// some servers read both as one.
    pub(crate) fn put(&self, headers: &mut HeaderMap) {
        let same = |name: &HeaderName| {
            let (one, other) = (name.as_str().bytes(), self.header.as_str().bytes());
            let plain = |byte: u8| if byte == b'_' { b'-' } else { byte };
            one.len() == other.len() && one.map(plain).eq(other.map(plain))
        };
        if headers.keys().any(|name| *name != self.header && same(name)) {
            let alike: Vec<HeaderName> = headers.keys().filter(|name| same(name)).cloned().collect();
            for name in alike {
                headers.remove(name);
            }
        }
        headers.insert(self.header.clone(), self.value.clone());
    }

    /// Whether this text repeats a secret.
    pub(crate) fn is_repeated_in(&self, text: &str) -> bool {
        self.secrets.iter().any(|secret| repeats(text.as_bytes(), secret.expose().as_bytes()))
    }

    /// Replaces each value that repeats a secret; how many there were.
    pub(crate) fn redact(&self, headers: &mut HeaderMap) -> usize {
        let mut found = 0;
        for value in headers.values_mut() {
            if self.secrets.iter().any(|secret| repeats(value.as_bytes(), secret.expose().as_bytes())) {
                *value = REDACTED;
                found += 1;
            }
        }
        found
    }
}

fn repeats(value: &[u8], secret: &[u8]) -> bool {
    let part = secret.len() >= SHORTEST_PART && value.len() > secret.len();
    value == secret || (part && value.windows(secret.len()).any(|window| window == secret))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    fn prepared() -> Prepared {
        let text = Secret::new("hush-hush-hush".to_owned());
        Prepared::new(HeaderName::from_static("x-api-key"), "Token ", &text, &[]).expect("prepared")
    }

    #[test]
    fn what_the_caller_sent_by_that_name_is_replaced() {
        let mut given =
            headers(&[("x-api-key", "mine"), ("x_api_key", "mine"), ("x-api_key", "mine"), ("x-api-keys", "1")]);
        given.append("x-api-key", HeaderValue::from_static("again"));
        prepared().put(&mut given);
        assert_eq!(given, headers(&[("x-api-key", "Token hush-hush-hush"), ("x-api-keys", "1")]));
        assert!(given["x-api-key"].is_sensitive());
        assert!(!format!("{given:?}").contains("hush"), "{given:?}");
    }

    #[test]
    fn what_an_answer_repeats_is_taken_out() {
        let mut answer = headers(&[
            ("x-whole", "Token hush-hush-hush"),
            ("x-bare", "hush-hush-hush"),
            ("www-authenticate", "Bearer error_description=\"hush-hush-hush is bad\""),
            ("x-part", "hush-hush"),
            ("x-other", "Token"),
        ]);
        assert_eq!(prepared().redact(&mut answer), 3);
        assert!(!format!("{answer:?}").contains("hush-hush-hush"), "{answer:?}");
        assert_eq!((&answer["x-part"], &answer["x-other"]), (&"hush-hush".parse().unwrap(), &"Token".parse().unwrap()));
        // A short one is not looked for in the middle of other values.
        let short =
            Prepared::new(HeaderName::from_static("x"), "", &Secret::new("abc".to_owned()), &[]).expect("short");
        let mut answer = headers(&[("x-a", "abc"), ("x-b", "abcd")]);
        assert_eq!(short.redact(&mut answer), 1);
    }

    #[test]
    fn no_line_ends_get_into_a_header() {
        let text = Secret::new("a\r\nx-evil: 1".to_owned());
        assert!(Prepared::new(HeaderName::from_static("x"), "", &text, &[]).is_err());
    }
}
