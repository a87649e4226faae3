//! Any HTTP endpoint: lines or an array of JSON; what is answered with 200 to 299 is taken.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::client::Client;
use crate::reader::Record;
use crate::spec::{Body, Format, HttpSpec};
use crate::transport::{Failure, Origin, Shown};

pub(crate) struct Http {
    pub(crate) client: Client,
    spec: HttpSpec,
    format: Format,
    headers: HeaderMap,
}

/// Says whose records these are.
const LOG: HeaderName = HeaderName::from_static("sortie-audit-log");

impl Http {
    pub(crate) fn new(client: Client, spec: HttpSpec, format: Format, origin: &Origin) -> Self {
        let log = HeaderValue::from_str(&origin.log).ok();
        let headers = log.into_iter().map(|log| (LOG, log)).collect();
        Self { client, spec, format, headers }
    }

    pub(crate) async fn send(&mut self, records: &[Record]) -> Result<(), Failure> {
        let (before, between, behind, kind): (&[u8], &[u8], &[u8], _) = match self.spec.body {
            Body::Lines => (b"", b"\n", b"\n", "application/x-ndjson"),
            Body::Array => (b"[", b",", b"]", "application/json"),
        };
        let mut body = before.to_vec();
        for (number, record) in records.iter().enumerate() {
            if number > 0 {
                body.extend_from_slice(between);
            }
            body.extend_from_slice(&Shown::of(record, self.format)?.body);
        }
        body.extend_from_slice(behind);
        let HttpSpec { method, url, .. } = &self.spec;
        let answer = self.client.ask(method.clone(), url.clone(), kind, self.headers.clone(), body).await?;
        if answer.status.is_success() { Ok(()) } else { Err(answer.failure()) }
    }
}
