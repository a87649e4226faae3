//! The HTTP Event Collector of Splunk. With indexer acknowledgement, records are delivered when the indexer says that it
//! has them; without it, when the collector has answered.

use std::collections::BTreeMap;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::{Instant, sleep};
use url::Url;

use crate::client::{Answer, Client};
use crate::reader::Record;
use crate::spec::{Format, SplunkSpec};
use crate::transport::{Failure, Origin, Sent, Shown};

/// How often the indexer is asked, and for how long.
const ASK_EVERY: Duration = Duration::from_millis(500);
const ASK_FOR: Duration = Duration::from_secs(120);
const CHANNEL: HeaderName = HeaderName::from_static("x-splunk-request-channel");

pub(crate) struct Splunk {
    pub(crate) client: Client,
    spec: SplunkSpec,
    format: Format,
    origin: Origin,
    channel: String,
    /// What the indexer has not yet acknowledged.
    open: Vec<u64>,
}

/// One event, as the collector wants it.
#[derive(Serialize)]
struct Event<'a> {
    /// Seconds since 1970.
    time: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    host: &'a str,
    source: &'a str,
    sourcetype: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<&'a str>,
    event: &'a RawValue,
    fields: Fields<'a>,
}

#[derive(Serialize)]
struct Fields<'a> {
    log: &'a str,
    seq: u64,
    code: &'a str,
}

/// What the collector says.
#[derive(Deserialize)]
struct Said {
    code: Option<u32>,
    #[serde(rename = "ackId")]
    ack_id: Option<u64>,
}

#[derive(Deserialize)]
struct Acks {
    acks: BTreeMap<String, bool>,
}

impl Splunk {
    pub(crate) fn new(client: Client, spec: SplunkSpec, format: Format, origin: &Origin) -> Self {
        let channel = uuid::Uuid::now_v7().to_string();
        Self { client, spec, format, origin: origin.clone(), channel, open: Vec::new() }
    }

    pub(crate) async fn send(&mut self, records: &[Record]) -> Result<Sent, Failure> {
        let mut body = Vec::new();
        for record in records {
            self.write(record, &mut body)?;
        }
        let answer = self.ask("services/collector/event", body).await?;
        if !answer.status.is_success() {
            return Err(refusal(&answer));
        }
        if !self.spec.acknowledge {
            return Ok(Sent::Taken);
        }
        let ack = serde_json::from_slice::<Said>(&answer.body).ok().and_then(|said| said.ack_id);
        let missing = "it gives no ackId; switch indexer acknowledgement on for its token, or set acknowledge = false";
        self.open.push(ack.ok_or_else(|| Failure::again(missing))?);
        Ok(Sent::Unconfirmed)
    }

    pub(crate) async fn confirm(&mut self) -> Result<(), Failure> {
        let until = Instant::now() + ASK_FOR;
        while !self.open.is_empty() {
            let body = serde_json::json!({"acks": self.open}).to_string().into_bytes();
            let answer = self.ask("services/collector/ack", body).await?;
            if !answer.status.is_success() {
                return Err(answer.again(refusal_text(&answer)));
            }
            let said = serde_json::from_slice::<Acks>(&answer.body);
            let acks = said.map_err(|_| Failure::again("it answers a question for acks with something else"))?.acks;
            self.open.retain(|id| acks.get(&id.to_string()) != Some(&true));
            if self.open.is_empty() {
                break;
            }
            if Instant::now() >= until {
                return Err(Failure::again(format!("the indexer acknowledged nothing in {} s", ASK_FOR.as_secs())));
            }
            sleep(ASK_EVERY).await;
        }
        Ok(())
    }

    pub(crate) fn forget(&mut self) {
        self.open.clear();
    }

    async fn ask(&self, path: &str, body: Vec<u8>) -> Result<Answer, Failure> {
        let mut headers = HeaderMap::new();
        if self.spec.acknowledge {
            let channel = HeaderValue::from_str(&self.channel).expect("a UUID is a value of a header");
            headers.insert(CHANNEL, channel);
        }
        self.client.ask(Method::POST, below(&self.spec.url, path), "application/json", headers, body).await
    }

    fn write(&self, record: &Record, out: &mut Vec<u8>) -> Result<(), Failure> {
        let shown = Shown::of(record, self.format)?;
        let time = shown.time();
        let event = Event {
            time: format!("{}.{:06}", time.as_second(), time.subsec_nanosecond() / 1000),
            host: &self.origin.host,
            source: self.spec.source.as_deref().unwrap_or(&self.origin.log),
            sourcetype: &self.spec.sourcetype,
            index: self.spec.index.as_deref(),
            event: serde_json::from_slice(&shown.body).map_err(|_| Failure::Refused("it is no record".to_owned()))?,
            fields: Fields { log: &self.origin.log, seq: record.seq, code: shown.head.code },
        };
        serde_json::to_writer(&mut *out, &event).map_err(|error| Failure::Refused(error.to_string()))?;
        out.push(b'\n');
        Ok(())
    }
}

/// A path behind a base URL.
fn below(base: &Url, path: &str) -> Url {
    let mut url = base.clone();
    url.set_path(&format!("{}/{path}", base.path().trim_end_matches('/')));
    url
}

/// What the collector's codes mean: those about the events themselves refuse them, all others may pass.
fn refusal(answer: &Answer) -> Failure {
    let why = refusal_text(answer);
    match (answer.status, code(answer)) {
        // No data, invalid data format, event field missing or blank, indexed fields that cannot be used.
        (StatusCode::BAD_REQUEST, Some(5 | 6 | 12 | 13 | 15)) | (StatusCode::PAYLOAD_TOO_LARGE, _) => {
            Failure::Refused(why)
        }
        _ => answer.again(why),
    }
}

fn refusal_text(answer: &Answer) -> String {
    match code(answer) {
        Some(code) => format!("it answers {} (code {code}: {})", answer.status, meaning(code)),
        None => format!("it answers {}", answer.status),
    }
}

fn code(answer: &Answer) -> Option<u32> {
    serde_json::from_slice::<Said>(&answer.body).ok()?.code
}

fn meaning(code: u32) -> &'static str {
    match code {
        1 => "the token is disabled",
        2 | 3 => "the token is missing or not sent as it should be",
        4 => "the token is unknown",
        5 => "no data",
        6 => "invalid data format",
        7 => "the token may not write to this index",
        8 => "an error of the collector",
        9 => "the collector is busy",
        10 | 11 => "the channel is missing or invalid",
        12 | 13 => "no event",
        14 => "acknowledgement is switched off for this token",
        15 => "indexed fields that it cannot use",
        _ => "see Splunk's documentation",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_go_behind_the_base() {
        for (base, whole) in [
            ("https://s:8088", "https://s:8088/services/collector/ack"),
            ("https://s:8088/", "https://s:8088/services/collector/ack"),
            ("https://s/hec/", "https://s/hec/services/collector/ack"),
        ] {
            assert_eq!(below(&base.parse().expect("url"), "services/collector/ack").as_str(), whole);
        }
    }
}
