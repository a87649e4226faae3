//! From a connection to a WebSocket (RFC 6455 section 4.2).

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use http::header::{
    CACHE_CONTROL, CONNECTION, CONTENT_TYPE, ORIGIN, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::{TokioIo, TokioTimer};
use sortie_runtime::http::{HEAD_DEADLINE, MAX_HEADERS};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::gateway::Shared;

/// Largest head of the request, in bytes.
const MAX_HEAD: usize = 16 * 1024;

/// What was refused, and how that is answered.
struct Refusal {
    status: StatusCode,
    reason: &'static str,
}

const fn refusal(status: StatusCode, reason: &'static str) -> Refusal {
    Refusal { status, reason }
}

/// Answers the one request that makes a connection a WebSocket; what it refuses is told to the client, too.
pub(super) async fn upgrade(shared: &Arc<Shared>, stream: TcpStream) -> Result<TokioIo<Upgraded>, String> {
    let outcome: Mutex<Result<Option<OnUpgrade>, &'static str>> = Mutex::new(Ok(None));
    let service = service_fn(|mut request: Request<Incoming>| {
        let asserted = shared.served().asserted.is_some();
        let answer = match accept(&request, asserted) {
            Ok(answer) => {
                let upgrading = hyper::upgrade::on(&mut request);
                *outcome.lock().unwrap_or_else(PoisonError::into_inner) = Ok(Some(upgrading));
                answer
            }
            Err(refusal) => {
                *outcome.lock().unwrap_or_else(PoisonError::into_inner) = Err(refusal.reason);
                refused(&refusal)
            }
        };
        async { Ok::<_, Infallible>(answer) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_DEADLINE).max_buf_size(MAX_HEAD).max_headers(MAX_HEADERS);
    let served = builder.serve_connection(TokioIo::new(stream), service).with_upgrades().await;
    let outcome = outcome.into_inner().unwrap_or_else(PoisonError::into_inner)?;
    let Some(upgrading) = outcome else {
        return Err(
            served.map_or_else(|error| error.to_string(), |()| "it ended before it asked for anything".to_owned())
        );
    };
    upgrading.await.map(TokioIo::new).map_err(|error| error.to_string())
}

/// The answer that makes it a WebSocket.
fn accept(request: &Request<Incoming>, asserted: bool) -> Result<Response<Full<Bytes>>, Refusal> {
    let headers = request.headers();
    if !has_token(headers, &CONNECTION, "upgrade") || !has_token(headers, &UPGRADE, "websocket") {
        let reason = "here is no web server: this port takes WebSockets of the hosted service's connector only";
        return Err(refusal(StatusCode::UPGRADE_REQUIRED, reason));
    }
    if request.method() != Method::GET || request.version() != Version::HTTP_11 || !request.body().is_end_stream() {
        return Err(refusal(StatusCode::BAD_REQUEST, "a WebSocket begins with GET over HTTP/1.1 and without a body"));
    }
    // Only browsers send it. A page that somebody of this machine looks at must not become the one caller.
    if headers.contains_key(ORIGIN) {
        return Err(refusal(StatusCode::FORBIDDEN, "a browser's page (with Origin) is not served here"));
    }
    if one(headers, &SEC_WEBSOCKET_VERSION) != Some("13") {
        return Err(refusal(StatusCode::UPGRADE_REQUIRED, "the only version of WebSocket that is spoken here is 13"));
    }
    let key = one(headers, &SEC_WEBSOCKET_KEY).filter(|key| is_key(key));
    let key =
        key.ok_or(refusal(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key has to be there once, 16 bytes in base64"))?;
    let protocol = match headers.get(SEC_WEBSOCKET_PROTOCOL) {
        None => None,
        Some(offered) => Some(
            first_of(offered)
                .ok_or(refusal(StatusCode::BAD_REQUEST, "Sec-WebSocket-Protocol has to name sub-protocols"))?,
        ),
    };
    if !asserted {
        let reason = "the settings say no more who calls here ([listener.caller])";
        return Err(refusal(StatusCode::SERVICE_UNAVAILABLE, reason));
    }

    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes()));
    let accept = accept.map_err(|_| refusal(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key cannot be answered"))?;
    let answer = response.headers_mut();
    answer.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.insert(UPGRADE, HeaderValue::from_static("websocket"));
    answer.insert(SEC_WEBSOCKET_ACCEPT, accept);
    // Some clients fail when they have offered some and none is chosen; what they carry is the same bytes in any case.
    if let Some(protocol) = protocol {
        answer.insert(SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    Ok(response)
}

fn refused(refusal: &Refusal) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(format!("{}\n", refusal.reason)));
    *response.status_mut() = refusal.status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if refusal.status == StatusCode::UPGRADE_REQUIRED {
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade, close"));
    } else {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|one| one.trim().eq_ignore_ascii_case(token))
}

/// The value of a header that is there once.
fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next().filter(|_| values.next().is_none())?;
    value.to_str().ok().map(str::trim)
}

/// Whether it is the base64 of 16 bytes, as far as its form shows.
fn is_key(key: &str) -> bool {
    key.strip_suffix("==").is_some_and(|digits| {
        digits.len() == 22 && digits.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/'))
    })
}

/// The sub-protocol that the client prefers (a token of RFC 9110).
fn first_of(offered: &HeaderValue) -> Option<HeaderValue> {
    let first = offered.to_str().ok()?.split(',').next()?.trim();
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let good = !first.is_empty() && first.bytes().all(is_token);
    HeaderValue::from_str(first).ok().filter(|_| good)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_offered_sub_protocol_is_taken_if_it_is_one() {
        let first = |text: &'static str| first_of(&HeaderValue::from_static(text));
        assert_eq!(first("access, b").expect("token"), "access");
        assert_eq!(first(" a.b/ ".trim()), None);
        for bad in ["", " , a", "a b", "a;b"] {
            assert_eq!(first(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_key_is_sixteen_bytes() {
        assert!(is_key("dGhlIHNhbXBsZSBub25jZQ=="));
        for bad in ["", "==", "dGhlIHNhbXBsZSBub25jZQ=", "dGhlIHNhbXBsZSBub25jZ?==", "dGhlIHNhbXBsZSBub25jZQAA=="] {
            assert!(!is_key(bad), "{bad}");
        }
    }
}
