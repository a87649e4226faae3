//! OTLP in JSON: the JSON of protobuf, but with trace ids in hexadecimal digits.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Attribute, LogRecord};

/// `ExportLogsServiceRequest`.
pub(super) fn request(resource: &[(&str, &str)], records: &[LogRecord<'_>]) -> Vec<u8> {
    let resource: Vec<Value> =
        resource.iter().map(|(name, value)| json!({"key": name, "value": {"stringValue": value}})).collect();
    let records: Vec<Value> = records.iter().map(record).collect();
    let scope = json!({"name": "sortie.audit", "version": env!("CARGO_PKG_VERSION")});
    let request = json!({"resourceLogs": [{
        "resource": {"attributes": resource},
        "scopeLogs": [{"scope": scope, "logRecords": records}],
    }]});
    request.to_string().into_bytes()
}

fn record(record: &LogRecord<'_>) -> Value {
    let attributes: Vec<Value> = record
        .attributes
        .iter()
        .map(|(name, value)| {
            let value = match value {
                Attribute::Text(text) => json!({"stringValue": text}),
                // Numbers of 64 bits are texts in the JSON of protobuf.
                Attribute::Number(number) => json!({"intValue": number.to_string()}),
                Attribute::Truth(truth) => json!({"boolValue": truth}),
            };
            json!({"key": name, "value": value})
        })
        .collect();
    let mut written = json!({
        "timeUnixNano": record.time.to_string(),
        "observedTimeUnixNano": record.observed.to_string(),
        "severityNumber": record.severity.0,
        "severityText": record.severity.1,
        "eventName": record.event,
        "body": {"stringValue": record.body},
        "attributes": attributes,
    });
    if let (Some(trace), Some(members)) = (record.trace, written.as_object_mut()) {
        members.insert("traceId".to_owned(), json!(format!("{:032x}", u128::from_be_bytes(trace))));
    }
    written
}

/// How many records an answer (`ExportLogsServiceResponse`) says were refused; one that cannot be read says nothing.
pub(super) fn rejected(answer: &[u8]) -> u64 {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Answer {
        partial_success: Option<Partial>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Partial {
        rejected_log_records: Option<Value>,
    }
    let answer: Option<Answer> = serde_json::from_slice(answer).ok();
    let rejected = answer.and_then(|answer| answer.partial_success?.rejected_log_records);
    rejected.and_then(|number| number.as_u64().or_else(|| number.as_str()?.parse().ok())).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_read_as_number_or_text() {
        assert_eq!(rejected(br#"{"partialSuccess":{"rejectedLogRecords":"3","errorMessage":"x"}}"#), 3);
        assert_eq!(rejected(br#"{"partialSuccess":{"rejectedLogRecords":3}}"#), 3);
        for none in [&b"{}"[..], b"", br#"{"partialSuccess":{}}"#, br#"{"partialSuccess":{"errorMessage":"slow"}}"#] {
            assert_eq!(rejected(none), 0);
        }
    }
}
