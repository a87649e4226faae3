//! New tokens for old ones (RFC 6749, section 6).

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, StatusCode};
use serde::Deserialize;
use sortie_api::{CredentialAuth, CredentialSecrets, OauthRefresh, ProbedResponse, SecretText, TokenEndpointAuth};
use url::Url;
use url::form_urlencoded::{Serializer, byte_serialize};
use zeroize::Zeroizing;

use super::place::{Home, Place, PrivateHost};
use super::way::{Outside, told};

/// How long one exchange may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Largest answer that is read, in bytes.
const MAX_ANSWER: usize = 256 * 1024;

/// What new tokens are asked for with.
#[derive(Clone, Debug)]
pub(crate) struct Refresh {
    how: OauthRefresh,
    refresh_token: SecretText,
    /// Of clients that prove themselves.
    client_secret: Option<SecretText>,
}

/// What a token endpoint has given.
#[derive(Debug)]
pub(crate) struct Granted {
    pub(crate) access_token: SecretText,
    /// Its life, in seconds, where that is told.
    pub(crate) expires_in: Option<u64>,
    /// In place of the one that was used, where there is a new one.
    pub(crate) refresh_token: Option<SecretText>,
}

/// Why a token endpoint has given nothing. Holds no secret.
#[derive(Debug)]
pub(crate) enum NotGranted {
    /// There was no exchange.
    Unreachable(String),
    /// It says no, or nothing that can be understood.
    Refused {
        /// Its answer, without what is secret.
        answer: ProbedResponse,
        /// Its error code (RFC 6749, section 5.2), or what is wrong.
        reason: String,
    },
}

#[derive(Deserialize)]
struct Tokens {
    access_token: SecretText,
    token_type: Option<String>,
    expires_in: Option<serde_json::Value>,
    refresh_token: Option<SecretText>,
}

#[derive(Deserialize)]
struct Refusal {
    error: String,
}

impl Refresh {
    /// What this credential has for it; `None` where that is nothing.
    pub(crate) fn of(auth: &CredentialAuth, secrets: &CredentialSecrets) -> Option<Self> {
        let CredentialAuth::McpOauth { refresh: Some(how), .. } = auth else { return None };
        let CredentialSecrets::Oauth { refresh_token: Some(refresh_token), client_secret, .. } = secrets else {
            return None;
        };
        Some(Self { how: how.clone(), refresh_token: refresh_token.clone(), client_secret: client_secret.clone() })
    }

    fn secrets(&self) -> Vec<&SecretText> {
        self.client_secret.iter().chain([&self.refresh_token]).collect()
    }
}

/// Asks for new tokens, once.
pub(crate) async fn refresh(
    outside: &Outside,
    home: &Home,
    private: &[PrivateHost],
    refresh: &Refresh,
) -> Result<Granted, NotGranted> {
    let exchange = exchange(outside, home, private, refresh);
    let late = |_| Err(NotGranted::Unreachable(format!("no answer within {} s", TIMEOUT.as_secs())));
    tokio::time::timeout(TIMEOUT, exchange).await.unwrap_or_else(late)
}

async fn exchange(
    outside: &Outside,
    home: &Home,
    private: &[PrivateHost],
    refresh: &Refresh,
) -> Result<Granted, NotGranted> {
    let unreachable = NotGranted::Unreachable;
    let url: Url = refresh.how.token_endpoint.parse().map_err(|_| unreachable("its URL is none".to_owned()))?;
    let client = match home.place(&url, private).map_err(|error| unreachable(error.reason))? {
        Place::Elsewhere { private } => outside.client(private).map_err(unreachable)?,
        Place::Tunnel(_) => return Err(unreachable("token endpoints are not asked through tunnels".to_owned())),
    };
    let mut request = client
        .post(url)
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
        .header(ACCEPT, "application/json")
        .body(form(refresh).as_str().to_owned());
    if refresh.how.token_endpoint_auth == TokenEndpointAuth::ClientSecretBasic {
        let value = basic(refresh).ok_or_else(|| unreachable("its client cannot be named in a header".to_owned()))?;
        request = request.header(AUTHORIZATION, value);
    }
    let mut answer = request.send().await.map_err(|error| unreachable(told(error)))?;
    let status = answer.status();
    let content_type = answer.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let content_type = content_type.chars().take(200).collect::<String>();
    let mut body = Zeroizing::new(Vec::with_capacity(4096));
    while let Some(piece) = answer.chunk().await.map_err(|error| unreachable(told(error)))? {
        if body.len() + piece.len() > MAX_ANSWER {
            return Err(unreachable(format!("its answer is larger than {MAX_ANSWER} bytes")));
        }
        body.extend_from_slice(&piece);
    }
    granted(status, &body).map_err(|reason| {
        // What it says to a request that it took may hold tokens, however odd.
        let shown = if status.is_success() { "[not shown]".as_bytes() } else { &body };
        NotGranted::Refused { answer: shown_of(status, content_type, shown, &refresh.secrets()), reason }
    })
}

fn granted(status: StatusCode, body: &[u8]) -> Result<Granted, String> {
    if !status.is_success() {
        let code = serde_json::from_slice::<Refusal>(body).ok().map(|refusal| refusal.error);
        // Only what the RFC lets a code be is repeated.
        let code = code.filter(|code| code.len() <= 64 && code.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'));
        return Err(code.unwrap_or_else(|| format!("HTTP {}", status.as_u16())));
    }
    let tokens: Tokens = serde_json::from_slice(body).map_err(|_| "its answer is not one of RFC 6749".to_owned())?;
    if tokens.token_type.is_some_and(|kind| !kind.eq_ignore_ascii_case("bearer")) {
        return Err("its token is no bearer token".to_owned());
    }
    if HeaderValue::from_str(tokens.access_token.expose()).is_err() || tokens.access_token.expose().is_empty() {
        return Err("its token cannot be sent".to_owned());
    }
    let seconds = |value: serde_json::Value| value.as_u64().or_else(|| value.as_str()?.parse().ok());
    Ok(Granted {
        access_token: tokens.access_token,
        expires_in: tokens.expires_in.and_then(seconds),
        refresh_token: tokens.refresh_token,
    })
}

fn form(refresh: &Refresh) -> Zeroizing<String> {
    let mut form = Zeroizing::new(String::with_capacity(4096));
    let mut pairs = Serializer::new(&mut *form);
    pairs.append_pair("grant_type", "refresh_token").append_pair("refresh_token", refresh.refresh_token.expose());
    if refresh.how.token_endpoint_auth != TokenEndpointAuth::ClientSecretBasic {
        pairs.append_pair("client_id", &refresh.how.client_id);
    }
    if let (TokenEndpointAuth::ClientSecretPost, Some(secret)) =
        (refresh.how.token_endpoint_auth, &refresh.client_secret)
    {
        pairs.append_pair("client_secret", secret.expose());
    }
    for (name, value) in [("scope", &refresh.how.scope), ("resource", &refresh.how.resource)] {
        if let Some(value) = value {
            pairs.append_pair(name, value);
        }
    }
    form
}

fn basic(refresh: &Refresh) -> Option<HeaderValue> {
    let secret = refresh.client_secret.as_ref().map_or("", SecretText::expose);
    let pair = Zeroizing::new(format!("{}:{}", encoded(&refresh.how.client_id), encoded(secret)));
    let text = Zeroizing::new(format!("Basic {}", STANDARD.encode(pair.as_bytes())));
    let mut value = HeaderValue::from_str(&text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn encoded(text: &str) -> String {
    byte_serialize(text.as_bytes()).collect()
}

/// Most of a body that is shown, in characters.
const MAX_SHOWN: usize = 4096;

/// An answer for people to look at, without these secrets, also as they are written in URLs.
pub(crate) fn shown_of(
    status: StatusCode,
    content_type: String,
    body: &[u8],
    secrets: &[&SecretText],
) -> ProbedResponse {
    let mut text = String::from_utf8_lossy(body).into_owned();
    for secret in secrets.iter().filter(|secret| !secret.expose().is_empty()) {
        for written in [secret.expose().to_owned(), encoded(secret.expose())] {
            text = text.replace(&written, "[redacted]");
        }
    }
    let body_truncated = text.chars().nth(MAX_SHOWN).is_some();
    let body = text.chars().take(MAX_SHOWN).collect();
    ProbedResponse { status_code: status.as_u16(), content_type, body, body_truncated }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_strictly_and_repeat_nothing() {
        let ok = |body: &str| granted(StatusCode::OK, body.as_bytes());
        let full =
            ok(r#"{"access_token":"a","token_type":"Bearer","expires_in":"60","refresh_token":"r"}"#).expect("good");
        assert_eq!((full.access_token.expose(), full.expires_in), ("a", Some(60)));
        assert_eq!(full.refresh_token.as_ref().map(SecretText::expose), Some("r"));
        assert_eq!(ok(r#"{"access_token":"a"}"#).expect("good").expires_in, None);
        for bad in [
            "",
            "[]",
            r#"{"access_token":""}"#,
            r#"{"access_token":"a\nb"}"#,
            r#"{"access_token":"a","token_type":"mac"}"#,
        ] {
            assert!(ok(bad).is_err(), "{bad}");
        }
        let refused = |body: &str| granted(StatusCode::BAD_REQUEST, body.as_bytes()).expect_err("refused");
        assert_eq!(refused(r#"{"error":"invalid_grant"}"#), "invalid_grant");
        assert_eq!(refused(r#"{"error":"SECRET TOKEN"}"#), "HTTP 400");
        assert_eq!(refused("no"), "HTTP 400");
    }

    #[test]
    fn what_is_shown_of_an_answer_holds_no_secret() {
        let secret = SecretText::new("s+cret/1".to_owned());
        let body = format!("you sent s+cret/1, that is s%2Bcret%2F1{}", "x".repeat(5000));
        let shown = shown_of(StatusCode::BAD_REQUEST, "text/plain".to_owned(), body.as_bytes(), &[&secret]);
        assert!(shown.body.starts_with("you sent [redacted], that is [redacted]"), "{}", shown.body);
        assert!(shown.body_truncated && shown.body.len() == MAX_SHOWN);
    }

    #[test]
    fn each_way_to_prove_a_client_has_its_form() {
        let with = |proof, secret: Option<&str>| Refresh {
            how: OauthRefresh {
                token_endpoint: "https://as.test/token".to_owned(),
                client_id: "me&".to_owned(),
                token_endpoint_auth: proof,
                scope: Some("a b".to_owned()),
                resource: None,
            },
            refresh_token: SecretText::new("r=1".to_owned()),
            client_secret: secret.map(|secret| SecretText::new(secret.to_owned())),
        };
        let public = with(TokenEndpointAuth::None, None);
        let basic = with(TokenEndpointAuth::ClientSecretBasic, Some("s"));
        let post = with(TokenEndpointAuth::ClientSecretPost, Some("s"));
        let head = "grant_type=refresh_token&refresh_token=r%3D1";
        assert_eq!(*form(&public), format!("{head}&client_id=me%26&scope=a+b"));
        assert_eq!(*form(&basic), format!("{head}&scope=a+b"));
        assert_eq!(super::basic(&basic).expect("a header"), format!("Basic {}", STANDARD.encode("me%26:s")));
        assert_eq!(*form(&post), format!("{head}&client_id=me%26&client_secret=s&scope=a+b"));
        assert!(!format!("{post:?}").contains("r=1"));
    }
}
