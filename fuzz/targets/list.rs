//! Lists in an answer: what is accepted is JSON to others, keeping everything changes nothing, and what is left when items
//! are dropped is what others find without them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use sortie_mcp::list::Document;

fuzz_target!(|body: &[u8]| {
    let Ok(document) = Document::read(body) else { return };
    assert!(document.edited(false, |_| true, |_| true).0.is_none());
    let keep = |name: &str| name.len() % 2 == 0;
    let kept: Vec<&str> = document.items().filter(|item| keep(&item.name)).map(|item| item.text).collect();
    let (edited, changes) = document.edited(true, |item| keep(&item.name), |_| false);
    let Some(edited) = edited else { return assert_eq!(changes.dropped, 0) };
    let again = Document::read(edited.as_bytes()).expect("what is left is read, too");
    assert_eq!(again.items().map(|item| item.text).collect::<Vec<_>>(), kept, "kept items stay byte for byte");
    assert!(again.introductions().all(|said| said.instructions.as_deref().unwrap_or_default().is_empty()));
    // Another reader finds the same items. One that knows no float this large reads neither.
    let Ok(value) = serde_json::from_str::<Value>(&edited) else { return };
    let messages = value.as_array().cloned().unwrap_or_else(|| vec![value]);
    let items = messages.iter().flat_map(|message| {
        ["tools", "prompts", "resources", "resourceTemplates"]
            .map(|list| message["result"][list].as_array().map_or(0, Vec::len))
    });
    assert_eq!(items.sum::<usize>(), kept.len());
});
