//! What a tool of an MCP server answered, in blocks that the Messages API takes in a tool result.
//!
//! A block that the Messages API refuses would end the session with its next request, so nothing is passed on because a
//! server says that it is so: images and documents are told by their first bytes, and what is neither is described in
//! text. Pure.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use sortie_api::ContentBlock;

use super::McpAnswer;

/// Most text of one answer, in characters, over all its blocks; what is behind it is cut, and the model is told.
pub const MAX_TEXT: usize = 100_000;
/// Most blocks of one answer; what is behind them is left out, and the model is told.
pub const MAX_BLOCKS: usize = 100;
/// Largest image, in bytes.
pub const MAX_IMAGE: usize = 5 * 1024 * 1024;

/// The answer in a `result` of `tools/call`.
pub fn answer(result: &Value) -> McpAnswer {
    let mut blocks = Blocks { content: Vec::new(), left: MAX_TEXT, cut: 0 };
    let given = result.get("content").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    for block in given.iter().take(MAX_BLOCKS) {
        blocks.take(block);
    }
    if let Some(more) = given.len().checked_sub(MAX_BLOCKS).filter(|more| *more > 0) {
        blocks.note(format!("[{more} more blocks are left out]"));
    }
    if let Some(structured) = result.get("structuredContent").filter(|value| !value.is_null()) {
        let said = |block: &Value| {
            let text = block.get("text").and_then(Value::as_str);
            text.and_then(|text| serde_json::from_str::<Value>(text).ok()).is_some_and(|said| said == *structured)
        };
        if !given.iter().any(said) {
            blocks.text(&structured.to_string());
        }
    }
    if blocks.cut > 0 {
        let cut = blocks.cut;
        blocks.note(format!("[{cut} more characters are cut: ask for less]"));
    }
    if blocks.content.is_empty() {
        blocks.note("(no output)".to_owned());
    }
    let is_error = result.get("isError").and_then(Value::as_bool).unwrap_or(false);
    McpAnswer { content: blocks.content, is_error }
}

/// An answer in our own words, of a tool that has failed.
pub fn failed(text: impl Into<String>) -> McpAnswer {
    McpAnswer { content: vec![json!({"type": "text", "text": text.into()})], is_error: true }
}

struct Blocks {
    content: Vec<ContentBlock>,
    /// How many characters there is room for.
    left: usize,
    /// How many had no room.
    cut: usize,
}

impl Blocks {
    /// Takes a block as MCP has it.
    fn take(&mut self, block: &Value) {
        let text = |name: &str| block.get(name).and_then(Value::as_str);
        match text("type") {
            Some("text") => self.text(text("text").unwrap_or_default()),
            Some(kind @ ("image" | "audio")) => {
                self.binary(kind, text("mimeType"), text("data").unwrap_or_default(), None);
            }
            Some("resource") => match block.get("resource") {
                Some(resource) => self.resource(resource),
                None => self.text(&block.to_string()),
            },
            _ => self.text(&block.to_string()),
        }
    }

    fn resource(&mut self, resource: &Value) {
        let text = |name: &str| resource.get(name).and_then(Value::as_str);
        let uri = text("uri");
        if let Some(data) = text("blob") {
            return self.binary("resource", text("mimeType"), data, uri);
        }
        let Some(said) = text("text") else { return self.text(&resource.to_string()) };
        let before = self.content.len();
        self.text(said);
        if let (Some(block), Some(uri)) = (self.content.get_mut(before), uri) {
            let data = block.get("text").cloned().unwrap_or_default();
            *block = json!({"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": data}});
            title(block, uri);
        }
    }

    /// Bytes in base64. `kind` and `claimed` are what the server says of them.
    fn binary(&mut self, kind: &str, claimed: Option<&str>, data: &str, uri: Option<&str>) {
        let bytes = STANDARD.decode(data).ok();
        let seen = bytes.as_deref().and_then(media_type);
        let size = bytes.as_ref().map(Vec::len);
        match (seen, size) {
            (Some("application/pdf"), _) => {
                let mut block = json!({"type": "document", "source": {"type": "base64",
                                       "media_type": "application/pdf", "data": data}});
                title(&mut block, uri.unwrap_or_default());
                self.content.push(block);
            }
            (Some(image), Some(size)) if size <= MAX_IMAGE => {
                let source = json!({"type": "base64", "media_type": image, "data": data});
                self.content.push(json!({"type": "image", "source": source}));
            }
            _ => {
                let mut described = Map::from_iter([("type".to_owned(), json!(kind))]);
                described.extend(claimed.map(|claimed| ("mimeType".to_owned(), json!(claimed))));
                described.extend(uri.map(|uri| ("uri".to_owned(), json!(uri))));
                described.extend(size.map(|size| ("bytes".to_owned(), json!(size))));
                let why = match size {
                    None => "it is not valid base64",
                    Some(_) if seen.is_some() => "it is too large to be shown",
                    Some(_) => "it cannot be shown",
                };
                described.insert("left_out".to_owned(), json!(why));
                self.text(&Value::Object(described).to_string());
            }
        }
    }

    /// Text, as far as there is room.
    fn text(&mut self, text: &str) {
        if text.trim().is_empty() {
            return;
        }
        let (kept, cut) = match text.char_indices().nth(self.left) {
            None => (text, 0),
            Some((at, _)) => text.split_at_checked(at).map_or((text, 0), |(kept, cut)| (kept, cut.chars().count())),
        };
        self.left = self.left.saturating_sub(kept.chars().count());
        self.cut += cut;
        if !kept.trim().is_empty() {
            self.note(kept.to_owned());
        }
    }

    fn note(&mut self, text: String) {
        self.content.push(json!({"type": "text", "text": text}));
    }
}

/// Gives a document its title, at most 500 characters.
fn title(block: &mut Value, text: &str) {
    if let (Some(block), false) = (block.as_object_mut(), text.is_empty()) {
        block.insert("title".to_owned(), json!(text.chars().take(500).collect::<String>()));
    }
}

/// What these bytes are, of the things that the Messages API takes.
fn media_type(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Some("image/png"),
        [0xff, 0xd8, 0xff, ..] => Some("image/jpeg"),
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some("image/gif"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some("image/webp"),
        [b'%', b'P', b'D', b'F', b'-', ..] => Some("application/pdf"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(given: &Value) -> Vec<Value> {
        answer(&json!({"content": given})).content
    }

    fn only_text(blocks: &[Value]) -> &str {
        assert_eq!(blocks.len(), 1, "{blocks:?}");
        blocks[0]["text"].as_str().expect("text")
    }

    #[test]
    fn images_and_documents_are_what_their_bytes_say() {
        let png = STANDARD.encode(b"\x89PNG\r\n\x1a\nrest");
        let blocks = content(&json!([{"type": "image", "mimeType": "image/jpeg", "data": png}]));
        assert_eq!(blocks[0]["source"], json!({"type": "base64", "media_type": "image/png", "data": png}));
        let pdf = STANDARD.encode(b"%PDF-1.7");
        let resource = json!({"type": "resource", "resource": {"uri": "file:///a.pdf", "blob": pdf}});
        let blocks = content(&json!([resource]));
        assert_eq!((&blocks[0]["type"], &blocks[0]["title"]), (&json!("document"), &json!("file:///a.pdf")));

        for (block, why) in [
            (json!({"type": "image", "mimeType": "image/png", "data": "not base64!"}), "not valid base64"),
            (json!({"type": "image", "mimeType": "image/png", "data": STANDARD.encode("<svg/>")}), "cannot be shown"),
            (json!({"type": "audio", "mimeType": "audio/wav", "data": STANDARD.encode("RIFFxxxxWAVE")}), "cannot be"),
        ] {
            let blocks = content(&json!([block]));
            assert!(only_text(&blocks).contains(why), "{blocks:?}");
        }
        let large = STANDARD.encode([b"\x89PNG\r\n\x1a\n".as_slice(), &vec![0; MAX_IMAGE]].concat());
        let blocks = content(&json!([{"type": "image", "mimeType": "image/png", "data": large}]));
        assert!(only_text(&blocks).contains("too large") && only_text(&blocks).len() < 200);
    }

    #[test]
    fn other_blocks_are_told_in_json() {
        let link = json!({"type": "resource_link", "uri": "https://docs.test/a", "name": "a"});
        assert_eq!(only_text(&content(&json!([link]))), link.to_string());
        let text = json!({"type": "resource", "resource": {"uri": "file:///a", "text": "hello"}});
        let blocks = content(&json!([text]));
        let source = json!({"type": "text", "media_type": "text/plain", "data": "hello"});
        assert_eq!(blocks, [json!({"type": "document", "source": source, "title": "file:///a"})]);
        for odd in [json!(7), json!({"type": 3}), json!({"type": "resource"}), json!({"type": "new", "x": {}})] {
            assert_eq!(only_text(&content(&json!([odd]))), odd.to_string());
        }
    }

    #[test]
    fn structured_content_is_told_once() {
        let same = json!({"content": [{"type": "text", "text": "{ \"n\": 1 }"}], "structuredContent": {"n": 1}});
        assert_eq!(only_text(&answer(&same).content), "{ \"n\": 1 }");
        let alone = json!({"structuredContent": {"n": 1}, "isError": true});
        assert_eq!(only_text(&answer(&alone).content), r#"{"n":1}"#);
        assert!(answer(&alone).is_error);
        let beside = json!({"content": [{"type": "text", "text": "one"}], "structuredContent": {"n": 1}});
        assert_eq!(answer(&beside).content.len(), 2);
    }

    #[test]
    fn an_answer_is_never_empty_and_never_too_long() {
        for nothing in [json!({}), json!({"content": []}), json!({"content": [{"type": "text", "text": " \n"}]})] {
            assert_eq!(only_text(&answer(&nothing).content), "(no output)");
        }
        let long = "é".repeat(MAX_TEXT - 1);
        let blocks = content(&json!([{"type": "text", "text": long}, {"type": "text", "text": "abc"},
                                     {"type": "text", "text": "de"}]));
        let texts: Vec<_> = blocks.iter().filter_map(|block| block["text"].as_str()).collect();
        assert_eq!(texts, [long.as_str(), "a", "[4 more characters are cut: ask for less]"]);
        let many: Vec<_> = (0..MAX_BLOCKS + 3).map(|n| json!({"type": "text", "text": n.to_string()})).collect();
        let blocks = content(&json!(many));
        assert_eq!(blocks.len(), MAX_BLOCKS + 1);
        assert_eq!(blocks[MAX_BLOCKS]["text"], "[3 more blocks are left out]");
    }
}
