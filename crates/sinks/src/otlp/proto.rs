//! OTLP in protobuf: the few fields of `opentelemetry/proto/collector/logs/v1` that are used, by their numbers.

use super::{Attribute, LogRecord};

/// Wire types.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;
const FIXED32: u64 = 5;

/// `ExportLogsServiceRequest`.
pub(super) fn request(resource: &[(&str, &str)], records: &[LogRecord<'_>]) -> Vec<u8> {
    let mut attributes = Message::default();
    for (name, value) in resource {
        attributes.message(1, &key_value(name, &text(value)));
    }
    let mut scope = Message::default();
    scope.bytes(1, b"sortie.audit");
    scope.bytes(2, env!("CARGO_PKG_VERSION").as_bytes());
    let mut scope_logs = Message::default();
    scope_logs.message(1, &scope);
    for one in records {
        scope_logs.message(2, &record(one));
    }
    let mut resource_logs = Message::default();
    resource_logs.message(1, &attributes);
    resource_logs.message(2, &scope_logs);
    let mut request = Message::default();
    request.message(1, &resource_logs);
    request.0
}

fn record(record: &LogRecord<'_>) -> Message {
    let mut message = Message::default();
    message.fixed64(1, record.time);
    message.varint(2, u64::from(record.severity.0));
    message.bytes(3, record.severity.1.as_bytes());
    message.message(5, &text(record.body));
    for (name, value) in &record.attributes {
        let value = match value {
            Attribute::Text(value) => text(value),
            Attribute::Truth(truth) => Message::of_varint(2, u64::from(*truth)),
            Attribute::Number(number) => Message::of_varint(3, number.cast_unsigned()),
        };
        message.message(6, &key_value(name, &value));
    }
    if let Some(trace) = &record.trace {
        message.bytes(9, trace);
    }
    message.fixed64(11, record.observed);
    message.bytes(12, record.event.as_bytes());
    message
}

fn key_value(name: &str, value: &Message) -> Message {
    let mut message = Message::default();
    message.bytes(1, name.as_bytes());
    message.message(2, value);
    message
}

/// An `AnyValue` of text.
fn text(value: &str) -> Message {
    let mut message = Message::default();
    message.bytes(1, value.as_bytes());
    message
}

/// How many records an answer (`ExportLogsServiceResponse`) says were refused; one that cannot be read says nothing.
pub(super) fn rejected(answer: &[u8]) -> u64 {
    let partial = Fields(answer).find_map(|(number, value)| match (number, value) {
        (1, Value::Bytes(partial)) => Some(partial),
        _ => None,
    });
    let mut within = Fields(partial.unwrap_or_default());
    let rejected = within.find_map(|(number, value)| match (number, value) {
        (1, Value::Number(rejected)) => Some(rejected),
        _ => None,
    });
    // A negative number, which no server sends, would be a huge one here.
    rejected.filter(|number| i64::try_from(*number).is_ok()).unwrap_or(0)
}

/// A message that is being written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn of_varint(field: u64, value: u64) -> Self {
        let mut message = Self::default();
        message.varint(field, value);
        message
    }

    fn varint(&mut self, field: u64, value: u64) {
        self.number(field << 3 | VARINT);
        self.number(value);
    }

    fn fixed64(&mut self, field: u64, value: u64) {
        self.number(field << 3 | FIXED64);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.number(field << 3 | BYTES);
        self.number(u64::try_from(value.len()).unwrap_or(u64::MAX));
        self.0.extend_from_slice(value);
    }

    fn message(&mut self, field: u64, value: &Self) {
        self.bytes(field, &value.0);
    }

    fn number(&mut self, mut value: u64) {
        loop {
            let [low, ..] = value.to_le_bytes();
            value >>= 7;
            if value == 0 {
                return self.0.push(low & 0x7f);
            }
            self.0.push(low | 0x80);
        }
    }
}

/// The fields of a message that is being read; ends at what is no field.
struct Fields<'a>(&'a [u8]);

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Other,
}

impl<'a> Iterator for Fields<'a> {
    type Item = (u64, Value<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let key = self.number()?;
        let value = match key & 7 {
            VARINT => Value::Number(self.number()?),
            BYTES => {
                let length = usize::try_from(self.number()?).ok()?;
                Value::Bytes(self.take(length)?)
            }
            FIXED64 => self.take(8).map(|_| Value::Other)?,
            FIXED32 => self.take(4).map(|_| Value::Other)?,
            _ => return None,
        };
        Some((key >> 3, value))
    }
}

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_read_and_nonsense_is_none() {
        let mut partial = Message::of_varint(1, 300);
        partial.bytes(2, b"why");
        let mut answer = Message::default();
        answer.message(1, &partial);
        assert_eq!(rejected(&answer.0), 300);
        for cut in 0..answer.0.len() {
            rejected(&answer.0[..cut]);
        }
        assert_eq!(rejected(b""), 0);
        assert_eq!(rejected(&[0xff; 40]), 0);
    }
}
