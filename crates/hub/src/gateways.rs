//! What the hub asks gateways on its own: calls that wait for a person there.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use sortie_api::{APPROVALS_HEADER, Hop, HopError, IDENTITY_HEADER, REQUEST_ID_HEADER};
use sortie_ids::{RequestId, TunnelLabel};
use sortie_link::EdgeLink;
use sortie_store::KnownKey;

use crate::body::{GatewayBody, RequestBody, ResponseBody};
use crate::call::Calls;

/// How long one gateway may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// Largest answer of a gateway, in bytes: 10,000 approvals that show nothing of their arguments have less.
const MAX_ANSWER: usize = 32 * 1024 * 1024;

/// The way to the gateways. The default one leads to none.
#[derive(Clone, Default)]
pub struct Gateways(Option<Arc<Calls>>);

impl std::fmt::Debug for Gateways {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateways").finish_non_exhaustive()
    }
}

/// A question about approvals.
#[derive(Clone)]
pub(crate) struct Question {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) body: Bytes,
}

/// What one gateway answered.
pub(crate) type Reply = Result<(StatusCode, Bytes), HopError>;

impl Gateways {
    pub(crate) fn new(calls: Arc<Calls>) -> Self {
        Self(Some(calls))
    }

    /// Asks all connected gateways of a tunnel, for the holder of this key.
    pub(crate) async fn ask_all(&self, key: &KnownKey, label: &TunnelLabel, question: &Question) -> Vec<Reply> {
        let Some(calls) = &self.0 else { return Vec::new() };
        join_all(calls.pool.links(label).iter().map(|link| ask(calls, key, label, link, question))).await
    }

    /// Asks one after the other, until one does not answer 404.
    pub(crate) async fn ask_until_known(&self, key: &KnownKey, label: &TunnelLabel, question: &Question) -> Vec<Reply> {
        let Some(calls) = &self.0 else { return Vec::new() };
        let mut replies = Vec::new();
        for link in calls.pool.links(label) {
            let reply = ask(calls, key, label, &link, question).await;
            let known = matches!(&reply, Ok((status, _)) if *status != StatusCode::NOT_FOUND);
            replies.push(reply);
            if known {
                break;
            }
        }
        replies
    }
}

async fn ask(calls: &Arc<Calls>, key: &KnownKey, label: &TunnelLabel, link: &EdgeLink, question: &Question) -> Reply {
    let asking = tokio::time::timeout(DEADLINE, ask_through(calls, key, label, link, question));
    asking.await.unwrap_or_else(|_| {
        Err(HopError::new(Hop::Link, format!("a gateway did not answer within {} s", DEADLINE.as_secs())))
    })
}

async fn ask_through(
    calls: &Arc<Calls>,
    key: &KnownKey,
    label: &TunnelLabel,
    link: &EdgeLink,
    question: &Question,
) -> Reply {
    let tunnel = calls.tunnels.find(label).await?.ok_or_else(HopError::no_route)?;
    let routes = link.routes();
    let route = routes.first().ok_or_else(HopError::no_route)?;
    let host = tunnel.domain.route_host(&route.name);
    let identity = calls.signer.approver(key, &host, calls.store.now().as_second());
    let identity = identity.ok_or_else(|| HopError::new(Hop::Identity, "the approver's identity cannot be signed"))?;
    let mut inner = calls.pool.open(&tunnel, &host, Some(link)).await?;
    let request = Request::builder()
        .method(question.method.clone())
        .uri(&question.path)
        .header(header::HOST, &host)
        .header(IDENTITY_HEADER, identity)
        .header(REQUEST_ID_HEADER, RequestId::random().as_str())
        .header(APPROVALS_HEADER, "1")
        .body(RequestBody::own(question.body.clone()))
        .map_err(|_| HopError::new(Hop::Edge, "the question cannot be written"))?;
    let response = inner.send(request).await;
    let response = response.map_err(|_| HopError::new(Hop::Link, "the connection to the gateway broke"))?;
    let response = response.map(|body| ResponseBody::Gateway(GatewayBody::own(body, inner, calls.pool.clone())));
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    let body = body.map_err(|_| HopError::new(Hop::Link, "a gateway's answer broke off, or is too large"))?;
    Ok((status, body.to_bytes()))
}
