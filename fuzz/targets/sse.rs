//! Where a comment may stand in an event stream: the same however its bytes arrive, and nothing that an event says is
//! changed by one that stands there.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sortie_gateway::fuzzing::between_events;

fuzz_target!(|input: &[u8]| {
    let single = between_events(input, 1);
    for piece in [2, 7, 100] {
        for (one, other) in single.iter().zip(between_events(input, piece)) {
            assert!(other.is_none() || *one == other, "pieces of {piece}");
        }
    }
    let events = events(input);
    for (at, between) in single.iter().enumerate() {
        if *between == Some(true) {
            let (before, after) = input.split_at(at + 1);
            let with = [before, b": keepalive\n\n", after].concat();
            assert_eq!(events, self::events(&with), "a comment at byte {}", at + 1);
        }
    }
});

/// The events of a stream, each as its lines without comments (the HTML standard, section 9.2.6). One that is not ended by
/// a blank line is none.
fn events(stream: &[u8]) -> Vec<Vec<Vec<u8>>> {
    let mut events = Vec::new();
    let mut event: Vec<Vec<u8>> = Vec::new();
    let mut rest = stream;
    while let Some(at) = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n')) {
        let line = &rest[..at];
        let two = rest[at..].starts_with(b"\r\n");
        rest = &rest[at + 1 + usize::from(two)..];
        if line.is_empty() {
            if !event.is_empty() {
                events.push(std::mem::take(&mut event));
            }
        } else if !line.starts_with(b":") {
            event.push(line.to_vec());
        }
    }
    events
}
