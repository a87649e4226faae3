//! What bounds a call that was let pass, until its answer has ended.

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use sortie_api::HopError;
use tokio::time::{Instant, Sleep};

use super::calls::Permit;
use super::{answer_too_large, too_long};
use crate::body::{BodyError, CallBody};

/// The narrowest bounds of all limits that a call falls under.
#[derive(Default)]
pub(crate) struct Bounds {
    permits: Vec<Permit>,
    /// In bytes.
    pub(crate) max_request_body: Option<u64>,
    max_response_body: Option<u64>,
    time: Option<Duration>,
}

/// An answer that a limit has cut.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Cut(String);

impl Bounds {
    pub(super) fn hold(&mut self, permit: Permit) {
        self.permits.push(permit);
    }

    pub(super) fn narrow(&mut self, request: Option<u64>, response: Option<u64>, time: Option<Duration>) {
        let narrower = |one: Option<u64>, two: Option<u64>| one.into_iter().chain(two).min();
        self.max_request_body = narrower(self.max_request_body, request);
        self.max_response_body = narrower(self.max_response_body, response);
        self.time = self.time.into_iter().chain(time).min();
    }

    /// Awaits an answer within its time, and bounds its body.
    ///
    /// # Errors
    /// Those of the answer; 504 when its time is over, 502 when it says that it is larger than it may be.
    pub(crate) async fn hold_to(
        self,
        answering: impl Future<Output = Result<Response<CallBody>, HopError>>,
    ) -> Result<Response<CallBody>, HopError> {
        if self.permits.is_empty() && self.max_response_body.is_none() && self.time.is_none() {
            return answering.await;
        }
        let until = self.time.map(|time| (Instant::now() + time, time));
        let response = match until {
            None => answering.await?,
            Some((at, time)) => tokio::time::timeout_at(at, answering).await.map_err(|_| too_long(time))??,
        };
        if let Some(limit) = self.max_response_body
            && response.body().size_hint().lower() > limit
        {
            return Err(answer_too_large(limit));
        }
        let (left, permits) = (self.max_response_body, self.permits);
        Ok(response.map(|body| Bounded { body, left, until, timer: None, ended: false, _permits: permits }.boxed()))
    }
}

/// An answer's body within its bounds.
struct Bounded {
    body: CallBody,
    left: Option<u64>,
    until: Option<(Instant, Duration)>,
    timer: Option<Pin<Box<Sleep>>>,
    ended: bool,
    /// Held until the answer has ended.
    _permits: Vec<Permit>,
}

impl Bounded {
    fn is_over(&mut self, cx: &mut Context<'_>) -> Option<Duration> {
        let (at, time) = self.until?;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
        timer.as_mut().poll(cx).is_ready().then_some(time)
    }

    fn cut(&mut self, error: &HopError) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        tracing::warn!(reason = error.reason, "answer cut");
        self.ended = true;
        Poll::Ready(Some(Err(Cut(error.reason.clone()).into())))
    }
}

impl Body for Bounded {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        // Asked before the body: one that always has more must not outrun its time.
        if let Some(time) = this.is_over(cx) {
            return this.cut(&too_long(time));
        }
        let frame = std::task::ready!(Pin::new(&mut this.body).poll_frame(cx));
        if let (Some(left), Some(Ok(frame))) = (this.left, &frame) {
            let length = frame.data_ref().map_or(0, |data| u64::try_from(data.len()).unwrap_or(u64::MAX));
            match left.checked_sub(length) {
                Some(left) => this.left = Some(left),
                None => {
                    let error = HopError::new(sortie_api::Hop::Policy, "the answer is larger than its limit");
                    return this.cut(&error);
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
