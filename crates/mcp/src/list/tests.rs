use serde_json::{Value, json};

use super::*;

fn edit(text: &str, private: bool, keep: &[&str], speak: bool) -> Option<String> {
    let document = Document::read(text.as_bytes()).unwrap_or_else(|fault| panic!("{fault:?}: {text}"));
    document.edited(private, |item| keep.contains(&item.name.as_ref()), |_| speak).0
}

fn fault(text: &str) -> Fault {
    Document::read(text.as_bytes()).expect_err(text).0
}

fn tools(items: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":1,"result":{{"tools":[{items}],"nextCursor":"x"}}}}"#)
}

#[test]
fn what_is_kept_stays_byte_for_byte() {
    let (a, b, c) = (
        r#"{"name":"a","x":1.50,"é":"\u00e9"}"#,
        r#"{ "inputSchema" : {"name":"deep","tools":[{"name":3}]}, "name":"\u0062" }"#,
        r#"{"name":"c"}"#,
    );
    let text = tools(&format!("\n {a} ,\t{b},{c} "));
    for (keep, left) in [
        (vec!["a", "b", "c"], None),
        (vec!["b", "c"], Some(format!("\n {b},{c} "))),
        (vec!["a", "c"], Some(format!("\n {a},{c} "))),
        (vec!["a", "b"], Some(format!("\n {a} ,\t{b} "))),
        (vec!["a"], Some(format!("\n {a} "))),
        (vec!["b"], Some(format!("\n {b} "))),
        (vec!["c"], Some(format!("\n {c} "))),
        (vec![], Some("\n  ".to_owned())),
    ] {
        assert_eq!(edit(&text, true, &keep, true), left.map(|items| tools(&items)), "{keep:?}");
    }
}

#[test]
fn every_kind_of_list_is_found_by_its_member_and_nothing_else_is() {
    for (member, key, kind) in [
        ("tools", "name", Kind::Tool),
        ("prompts", "name", Kind::Prompt),
        ("resources", "uri", Kind::Resource),
        ("resourceTemplates", "uriTemplate", Kind::Template),
    ] {
        let text = json!({"jsonrpc": "2.0", "id": "q", "result": {member: [{key: "one"}, {key: "two"}]}}).to_string();
        let document = Document::read(text.as_bytes()).expect("a list");
        let found: Vec<_> = document.items().map(|item| (item.kind, item.name.as_ref())).collect();
        assert_eq!(found, [(kind, "one"), (kind, "two")]);
        // A member that is written otherwise is still the member, and an item must say what it is.
        let escaped =
            text.replace(&format!("\"{member}\""), &format!("\"\\u{:04x}{}\"", member.as_bytes()[0], &member[1..]));
        assert_eq!(Document::read(escaped.as_bytes()).expect("a list").items().count(), 2);
        assert!(matches!(fault(&text.replace(member, &member.to_uppercase())), Fault::KeyCase(name) if name == member));
        assert_eq!(fault(&text.replace("\"one\"", "1")), NO_NAME);
        assert_eq!(fault(&text.replace(key, "other")), NO_NAME);
    }
    for other in [
        r#"{"jsonrpc":"2.0","id":1,"result":{"content":[],"structuredContent":{"tools":[{"name":"x"}]}}}"#,
        r#"{"jsonrpc":"2.0","id":1,"result":{"tools":{"name":"x"}}}"#,
        r#"{"jsonrpc":"2.0","method":"notifications/tools","params":{"tools":[{"name":"x"}]}}"#,
        r#"{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"m","data":{"tools":[{"name":"x"}]}}}"#,
    ] {
        assert_eq!(Document::read(other.as_bytes()).expect(other).items().count(), 0, "{other}");
    }
}

#[test]
fn what_could_be_read_in_two_ways_is_refused() {
    assert_eq!(fault(&tools(r#"{"name":"good","name":"evil"}"#)), Fault::DuplicateKey);
    assert_eq!(fault(&tools(r#"{"name":"good","n\u0061me":"evil"}"#)), Fault::DuplicateKey);
    assert_eq!(fault(&tools(r#"{"name":"good","Name":"evil"}"#)), Fault::KeyCase("name"));
    assert_eq!(fault(&tools(r#"{"name":"good","Description":"evil"}"#)), Fault::KeyCase("description"));
    assert_eq!(fault(&tools(r#""good""#)), NO_ITEM);
    assert_eq!(fault(&tools(r#"["good"]"#)), NO_ITEM);
    let two = r#"{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"a"}],"tools":[{"name":"b"}]}}"#;
    assert_eq!(fault(two), Fault::DuplicateKey);
    let two = r#"{"jsonrpc":"2.0","id":1,"result":{"tools":[]},"Result":{"tools":[{"name":"b"}]}}"#;
    assert_eq!(fault(two), Fault::KeyCase("result"));
    assert_eq!(fault("\u{feff}{}"), Fault::ByteOrderMark);
    assert_eq!(fault(&(tools("") + "{}")), Fault::Trailing);
    assert_eq!(
        fault("{\"result\":{\"tools\":[]}}"),
        Fault::NotAMessage("a message has the member `jsonrpc` with the value \"2.0\"")
    );
    assert!(matches!(fault(r#"{"jsonrpc":"2.0","id":1}"#), Fault::NotAMessage(_)));
    assert!(matches!(fault(r#"{"jsonrpc":"2.0","method":"x","result":{"tools":[]}}"#), Fault::NotAMessage(_)));
    assert!(matches!(fault("[]"), Fault::EmptyBatch));
    assert!(matches!(fault("[[]]"), Fault::NotAMessage(_)));
    assert!(matches!(fault("7"), Fault::NotAMessage(_)));
    assert!(matches!(fault(r#"{"jsonrpc":"2.0","id":1,"result":{"instructions":["x"]}}"#), Fault::NotAMessage(_)));
}

#[test]
fn batches_are_edited_answer_by_answer() {
    let text = r#"[{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"a"},{"name":"b"}]}},
        {"jsonrpc":"2.0","id":2,"result":{"cacheScope":"public","prompts":[{"name":"p"}]}},{"jsonrpc":"2.0","method":"m"}]"#;
    let expected = text.replace(r#"{"name":"a"},"#, "");
    assert_eq!(edit(text, false, &["b", "p"], true), Some(expected.clone()));
    assert_eq!(edit(text, true, &["b", "p"], true), Some(expected.replace("public", "private")));
}

#[test]
fn what_was_cut_is_good_for_its_caller_only() {
    let list = |scope: &str| {
        format!(r#"{{"jsonrpc":"2.0","id":1,"result":{{"tools":[{{"name":"a"}}],"cacheScope":{scope}}}}}"#)
    };
    assert_eq!(edit(&list("\"public\""), false, &["a"], true), None);
    assert_eq!(edit(&list("\"public\""), true, &["a"], true), Some(list("\"private\"")));
    assert_eq!(edit(&list("\"private\""), true, &["a"], true), None);
    let cut = r#"{"jsonrpc":"2.0","id":1,"result":{"tools":[],"cacheScope":"private"}}"#;
    assert_eq!(edit(&list("\"pub\\u006cic\""), false, &[], true).as_deref(), Some(cut));
}

#[test]
fn instructions_are_found_and_made_empty() {
    let text =
        r#"{"jsonrpc":"2.0","id":1,"result":{"supportedVersions":["2026-07-28"],"instructions":"Be \u0067ood"}}"#;
    let document = Document::read(text.as_bytes()).expect("an introduction");
    let said: Vec<_> = document.introductions().map(|said| (said.greeting, said.instructions.as_deref())).collect();
    assert_eq!(said, [(Greeting::Discover, Some("Be good"))]);
    assert_eq!(edit(text, false, &[], true), None);
    assert_eq!(edit(text, false, &[], false), Some(text.replace(r#""Be \u0067ood""#, "\"\"")));
    let silent = r#"{"jsonrpc":"2.0","id":1,"result":{"protocolVersion":"2025-11-25","instructions":null}}"#;
    let document = Document::read(silent.as_bytes()).expect("an introduction");
    let said: Vec<_> = document.introductions().map(|said| (said.greeting, said.instructions.as_deref())).collect();
    assert_eq!(said, [(Greeting::Initialize, None)]);
    assert_eq!(edit(silent, false, &[], false), None);
}

struct Random(u64);

impl Random {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(below).expect("small")).expect("small")
    }
}

/// What is left after an edit is what another reader finds by dropping the same items; nothing dropped changes nothing.
pub(super) fn check(body: &[u8], keep: impl Fn(&str) -> bool) {
    let Ok(document) = Document::read(body) else { return };
    let before: Value = serde_json::from_slice(body).expect("what is accepted is JSON");
    assert!(document.edited(false, |_| true, |_| true).0.is_none());
    let kept: Vec<&str> = document.items().filter(|item| keep(&item.name)).map(|item| item.text).collect();
    let (edited, changes) = document.edited(false, |item| keep(&item.name), |_| true);
    assert_eq!(edited.is_some(), changes.dropped > 0);
    assert_eq!(kept.len() + changes.dropped, document.items().count());
    let edited = edited.unwrap_or_else(|| String::from_utf8(body.to_vec()).expect("text"));
    let mut at = 0;
    for item in &kept {
        at += edited[at..].find(item).expect("a kept item stands in the text, in order") + item.len();
    }
    let mut expected = before;
    let single = expected.is_object();
    let messages = if single { std::slice::from_mut(&mut expected) } else { expected.as_array_mut().expect("a batch") };
    for message in messages {
        for (member, key) in
            [("tools", "name"), ("prompts", "name"), ("resources", "uri"), ("resourceTemplates", "uriTemplate")]
        {
            let items =
                message.get_mut("result").and_then(|result| result.get_mut(member)).and_then(Value::as_array_mut);
            if let Some(items) = items {
                let (all, dropped) = (items.len(), changes.dropped);
                items.retain(|item| item[key].as_str().is_some_and(&keep));
                if items.len() < all && dropped > 0 {
                    let result = message["result"].as_object_mut().expect("an object");
                    if result.get("cacheScope").is_some_and(|scope| !scope.is_object() && !scope.is_array()) {
                        result.insert("cacheScope".to_owned(), "private".into());
                    }
                }
            }
        }
    }
    assert_eq!(serde_json::from_str::<Value>(&edited).expect("JSON"), expected, "{edited}");
    Document::read(edited.as_bytes()).expect("what is left is read, too");
}

#[test]
fn any_list_is_edited_as_another_reader_would() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let blanks = ["", " ", "\n", "\t ", "\r\n"];
    for _ in 0..3000 {
        let mut message = String::new();
        let blank = |text: &mut String, random: &mut Random| text.push_str(blanks[random.next(5)]);
        message.push_str(r#"{"jsonrpc":"2.0","id":7,"result":{"#);
        if random.next(2) == 0 {
            message.push_str(r#""cacheScope":"public","#);
        }
        let (member, key) =
            [("tools", "name"), ("prompts", "name"), ("resources", "uri"), ("resourceTemplates", "uriTemplate")]
                [random.next(4)];
        message.push_str(&format!("\"{member}\":["));
        for index in 0..random.next(6) {
            if index > 0 {
                message.push(',');
            }
            blank(&mut message, &mut random);
            let name = random.next(4);
            message.push_str(&format!(r#"{{"{key}":"n{name}","d":[{{}},"],}}{{[\"{index}"],"v":1e{index}}}"#));
            blank(&mut message, &mut random);
        }
        message.push_str("]}}");
        if random.next(3) == 0 {
            message = format!("[{message},{{\"jsonrpc\":\"2.0\",\"method\":\"m\"}}]");
        }
        let drop = random.next(16);
        let keep =
            |name: &str| name.strip_prefix('n').and_then(|n| n.parse::<u32>().ok()).is_none_or(|n| drop >> n & 1 == 0);
        check(message.as_bytes(), keep);
        let mut damaged = message.into_bytes();
        for _ in 0..=random.next(3) {
            let at = random.next(damaged.len());
            damaged[at] = b"{}[]\",:0\\n "[random.next(11)];
        }
        check(&damaged, keep);
    }
}
