use sortie_mcp::list::Document;

use super::*;

fn board(dir: &std::path::Path) -> PinBoard {
    PinBoard::new(Some(dir.to_owned()))
}

fn docs() -> RouteName {
    "docs".parse().expect("a name")
}

fn list(description: &str) -> String {
    let tool = serde_json::json!({"name": "read", "description": description});
    serde_json::json!({"jsonrpc": "2.0", "id": 1, "result": {"tools": [tool], "instructions": "x"}}).to_string()
}

async fn see(pins: &Arc<RoutePins>, description: &str) -> (Vec<bool>, Vec<bool>) {
    let text = list(description);
    let document = Document::read(text.as_bytes()).expect("a list");
    let looking = Looking { pinning: Pinning::FirstUse, caller: Digest::of(b"1"), now: 1_800_000_000 };
    pins.look(&looking, &document, &[true]).await.expect("kept")
}

fn may_call(pins: &RoutePins) -> bool {
    pins.admit(Pinning::FirstUse, Digest::of(b"1"), Some("read")).is_ok()
}

#[tokio::test]
async fn what_was_shown_is_on_the_disk() {
    let dir = tempfile::tempdir().expect("dir");
    assert_eq!(see(&board(dir.path()).route(&docs()), "good").await, (vec![true], vec![true]));
    // As after a death at once: nothing was closed, nothing flushed later.
    let pins = board(dir.path()).route(&docs());
    assert_eq!((see(&pins, "good").await, may_call(&pins)), ((vec![true], vec![true]), true));
    assert_eq!(see(&pins, "evil").await, (vec![false], vec![true]));
    let pins = board(dir.path()).route(&docs());
    assert!(!may_call(&pins), "what is held is known after a death, too");
    assert_eq!(see(&pins, "evil").await.0, [false]);
}

#[tokio::test]
async fn a_file_that_is_not_believed_closes_its_route() {
    let dir = tempfile::tempdir().expect("dir");
    see(&board(dir.path()).route(&docs()), "good").await;
    let file = dir.path().join("pins/docs.json");
    let good = std::fs::read_to_string(&file).expect("kept");
    let half = &good[..good.len() / 2];
    let edited = good.replace("good", "evil");
    let other = good.replace("\"docs\"", "\"blog\"");
    let newer = good.replace("\"version\": 1", "\"version\": 2");
    for text in ["", "{}", half, &edited, &other, &newer] {
        std::fs::write(&file, text).expect("write");
        let pins = board(dir.path()).route(&docs());
        assert!(pins.read().damaged.is_some(), "{text}");
        assert_eq!((see(&pins, "good").await, may_call(&pins)), ((vec![false], vec![false]), false));
        assert_eq!(std::fs::read_to_string(&file).expect("read"), text, "it is not written over");
    }
    std::fs::write(&file, &good).expect("write");
    assert!(may_call(&board(dir.path()).route(&docs())));
}

/// A death between any two steps of a write leaves the old file or the new one, and at most a file beside it.
#[tokio::test]
async fn what_a_death_leaves_is_swept() {
    let dir = tempfile::tempdir().expect("dir");
    see(&board(dir.path()).route(&docs()), "good").await;
    let left = dir.path().join("pins/.docs.json.0123.tmp");
    std::fs::write(&left, "{\"ver").expect("write");
    let pins = board(dir.path()).route(&docs());
    assert!(may_call(&pins) && !left.exists());
}

#[tokio::test]
async fn what_cannot_be_kept_is_not_shown() {
    let dir = tempfile::tempdir().expect("dir");
    std::fs::write(dir.path().join("pins"), "no directory").expect("write");
    // Read as damaged: there is no telling what was there.
    let pins = board(dir.path()).route(&docs());
    assert_eq!(see(&pins, "good").await.0, [false]);

    let dir = tempfile::tempdir().expect("dir");
    let pins = board(dir.path()).route(&docs());
    std::fs::write(dir.path().join("pins"), "no directory").expect("write");
    let text = list("good");
    let document = Document::read(text.as_bytes()).expect("a list");
    let looking = Looking { pinning: Pinning::FirstUse, caller: Digest::of(b"1"), now: 1_800_000_000 };
    let error = pins.look(&looking, &document, &[true]).await.expect_err("not kept");
    assert_eq!((error.hop, error.status), (Hop::Policy, StatusCode::SERVICE_UNAVAILABLE));
    // And is, as soon as it can be.
    std::fs::remove_file(dir.path().join("pins")).expect("remove");
    assert_eq!(see(&pins, "good").await.0, [true]);
    assert!(dir.path().join("pins/docs.json").exists());
}

#[tokio::test]
async fn what_policy_hides_is_not_pinned() {
    let pins = PinBoard::new(None).route(&docs());
    let text = list("good");
    let document = Document::read(text.as_bytes()).expect("a list");
    let looking = Looking { pinning: Pinning::FirstUse, caller: Digest::of(b"1"), now: 0 };
    assert_eq!(pins.look(&looking, &document, &[false]).await.expect("looked").0, [false]);
    assert_eq!(see(&pins, "other").await.0, [true]);
}
