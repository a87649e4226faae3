//! The control stream of a link: lines are the same however they arrive, and a message that is understood can be said
//! again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sortie_link::fuzzing::lines;
use sortie_link::protos::{EdgeHello, FromEdge, FromGateway, GatewayHello, MAX_LINE};

fuzz_target!(|input: &[u8]| {
    let whole = lines(input, usize::MAX);
    for piece in [1, 13] {
        let pieces = lines(input, piece);
        if let (Ok(whole), Ok(pieces)) = (&whole, &pieces) {
            assert_eq!(whole, pieces);
        }
    }
    if input.len() <= MAX_LINE {
        let expected: Vec<&[u8]> = input.split(|byte| *byte == b'\n').collect();
        let whole = whole.expect("no line is too long");
        assert!(whole.iter().map(|line| &line[..]).eq(expected[..expected.len() - 1].iter().copied()));
    }
    for line in input.split(|byte| *byte == b'\n') {
        again::<EdgeHello>(line);
        again::<GatewayHello>(line);
        again::<FromEdge>(line);
        again::<FromGateway>(line);
    }
});

fn again<T: Serialize + DeserializeOwned>(line: &[u8]) {
    let Ok(message) = serde_json::from_slice::<T>(line) else { return };
    let said = serde_json::to_vec(&message).expect("what was read can be written");
    assert!(!said.contains(&b'\n'));
    // What a newer peer says is skipped, not said again.
    if let Ok(heard) = serde_json::from_slice::<T>(&said) {
        assert_eq!(serde_json::to_vec(&heard).expect("written"), said);
    }
}
