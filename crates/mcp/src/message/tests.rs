use serde_json::{Value, json};

use super::*;

fn fault(body: &str) -> Fault {
    parse(body.as_bytes()).expect_err(body).fault
}

fn single(body: &str) -> Message<'_> {
    match parse(body.as_bytes()) {
        Ok(Body::Single(message)) => message,
        other => panic!("{body}: {other:?}"),
    }
}

#[test]
fn messages_are_told_apart_and_seen_as_they_were_sent() {
    let body = r#" {"params" : {"_meta":{"progressToken": 1.50,"io.modelcontextprotocol/protocolVersion":"2026-07-28",
        "x":[{}]}, "n\u0061me":"r\u0065ad","arguments": {"b": 1.0 ,"a":"\ud800"},"later":1},
        "method":"tools/call","id":"\u0041","jsonrpc":"2.0","later":[null]} "#;
    let message = single(body);
    assert_eq!((message.kind, message.method.as_deref()), (MessageKind::Request, Some("tools/call")));
    assert_eq!(message.id.map(RawValue::get), Some(r#""\u0041""#));
    assert_eq!(message.name.as_deref(), Some("read"));
    assert_eq!(message.arguments().map(RawValue::get), Some(r#"{"b": 1.0 ,"a":"\ud800"}"#));
    assert_eq!(message.progress_token.map(RawValue::get), Some("1.50"));
    assert_eq!(message.protocol_version.as_deref(), Some("2026-07-28"));
    assert!(message.params().is_some_and(|params| params.get().starts_with("{\"_meta\"")));

    let message = single(r#"{"jsonrpc":"2.0","method":"resources/read","params":{"uri":"a:b","taskId":"t"},"id":0}"#);
    assert_eq!((message.uri.as_deref(), message.task_id.as_deref()), (Some("a:b"), Some("t")));
    assert!(matches!(message.method, Some(Cow::Borrowed(_))), "no copy");
    for (body, kind, id) in [
        (r#"{"jsonrpc":"2.0","method":"notifications/cancelled"}"#, MessageKind::Notification, None),
        (r#"{"jsonrpc":"2.0","method":"x","params":null}"#, MessageKind::Notification, None),
        (r#"{"jsonrpc":"2.0","id":7,"result":{"method":"x"}}"#, MessageKind::Response, Some("7")),
        (r#"{"jsonrpc":"2.0","id":7,"error":{"code":1}}"#, MessageKind::Response, Some("7")),
        (r#"{"jsonrpc":"2.0","id":null,"error":{"code":1}}"#, MessageKind::Response, None),
        (r#"{"jsonrpc":"2.0","error":{"code":1}}"#, MessageKind::Response, None),
    ] {
        let message = single(body);
        assert_eq!((message.kind, message.id.map(RawValue::get)), (kind, id), "{body}");
    }
}

#[test]
fn ids_come_back_as_they_were_sent_and_have_a_value() {
    for id in ["1", "-7", "1.0", "1e3", "123456789012345678901234567890", r#""a-1""#, r#""""#, r#""\u00e9 \" \n""#] {
        let body = format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"x","params":{{"id":9}}}}"#);
        assert_eq!(single(&body).id.map(RawValue::get), Some(id));
    }
    for id in ["null", "true", "[1]", "{}", "1e999", r#""\ud800""#] {
        let body = format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"x"}}"#);
        assert_eq!(fault(&body), Fault::NotAMessage("an id is a string or a number that has a value"), "{id}");
    }
}

#[test]
fn what_two_readers_may_read_differently_is_refused() {
    let inside = |text: &str| {
        let member = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"x",{text}}}"#);
        fault(&member)
    };
    // A key twice, at every depth and in every spelling.
    for text in [
        r#""id":2"#,
        r#""\u0069d":2"#,
        r#""x":1,"x":1"#,
        r#""params":{"name":"a","n\u0061me":"b"}"#,
        r#""params":{"arguments":{"a":[{"b":{"":0,"":0}}]}}"#,
        r#""x":{"\ud83d\ude00":1,"😀":2}"#,
        r#""x":{"a\/":1,"a/":2}"#,
    ] {
        assert_eq!(inside(text), Fault::DuplicateKey, "{text}");
    }
    for (text, name) in [
        (r#""Params":{}"#, "params"),
        (r#""param\u017f":{}"#, "params"),
        (r#""ID":2"#, "id"),
        (r#""Result":2"#, "result"),
        (r#""params":{"Name":"x"}"#, "name"),
        (r#""params":{"tas\u212aId":"x"}"#, "taskId"),
        (r#""params":{"taskid":"x"}"#, "taskId"),
        (r#""params":{"_META":{}}"#, "_meta"),
        (r#""params":{"_meta":{"io.modelcontextprotocol/ProtocolVersion":"x"}}"#, VERSION_KEY),
    ] {
        assert_eq!(inside(text), Fault::KeyCase(name), "{text}");
    }
    // Elsewhere such names mean nothing.
    single(r#"{"jsonrpc":"2.0","id":1,"method":"x","name":1,"params":{"method":1,"arguments":{"Name":1,"name":2}}}"#);

    let trailing = r#"{"jsonrpc":"2.0","id":1,"method":"x"} {}"#;
    assert_eq!(fault(trailing), Fault::Trailing);
    assert_eq!(fault("\u{feff}{}"), Fault::ByteOrderMark);
    assert_eq!(inside(r#""x":{"\udc00":1}"#), Fault::UnreadableKey);
    let bytes = b"{\"jsonrpc\":\"2.0\",\"method\":\"x\",\"x\":\"\xff\"}";
    let refused = parse(bytes).expect_err("not UTF-8");
    assert_eq!((refused.fault, refused.at, refused.speaks_jsonrpc), (Fault::NotUtf8, 35, true));
}

#[test]
fn what_is_no_message_is_told_with_the_code_of_servers() {
    for (body, code) in [
        ("", -32700),
        (" ", -32700),
        ("{", -32700),
        ("nul", -32700),
        ("{\"a\" 1}", -32700),
        ("{\"a\":1,}", -32700),
        ("[1,]", -32700),
        ("[1}", -32700),
        ("{1:2}", -32700),
        ("{\"a\":01}", -32700),
        ("{\"a\":NaN}", -32700),
        ("{\"a\":+1}", -32700),
        ("{\"a\":1.}", -32700),
        ("{\"a\":'x'}", -32700),
        ("{\"a\":\"\t\"}", -32700),
        ("{\"a\":\"\\x\"}", -32700),
        ("{\"a\":\"\\u00g0\"}", -32700),
        ("{} // x", -32700),
        ("null", -32600),
        ("7", -32600),
        ("{}", -32600),
        ("[]", -32600),
        ("[[]]", -32600),
        ("[1]", -32600),
        (r#"{"id":1,"method":"x"}"#, -32600),
        (r#"{"jsonrpc":"1.0","id":1,"method":"x"}"#, -32600),
        (r#"{"jsonrpc":2.0,"id":1,"method":"x"}"#, -32600),
        (r#"{"jsonrpc":"2.0","id":1}"#, -32600),
        (r#"{"jsonrpc":"2.0","id":1,"method":7}"#, -32600),
        (r#"{"jsonrpc":"2.0","id":1,"method":"x","result":{}}"#, -32600),
        (r#"{"jsonrpc":"2.0","id":1,"error":{},"result":{}}"#, -32600),
        (r#"{"jsonrpc":"2.0","result":{}}"#, -32600),
        (r#"{"jsonrpc":"2.0","id":1,"method":"x","params":["read",{}]}"#, -32600),
        (r#"{"jsonrpc":"2.0","id":1,"method":"\ud800"}"#, -32600),
        (r#"{"jsonrpc":"2.0","id":1,"method":"x","params":{"name":"\ud800"}}"#, -32600),
    ] {
        assert_eq!(fault(body).code(), code, "{body}");
    }
}

#[test]
fn batches_hold_one_to_a_thousand_messages() {
    let one = r#"{"jsonrpc":"2.0","method":"x"}"#;
    let batch = |count: usize| format!("[{}]", vec![one; count].join(","));
    for count in [1, 2, MAX_BATCH] {
        let body = batch(count);
        let parsed = parse(body.as_bytes()).expect("batch");
        assert!(matches!(&parsed, Body::Batch(messages) if messages.len() == count));
        assert!(parsed.request_id().is_none());
    }
    assert_eq!(fault("[ ]"), Fault::EmptyBatch);
    assert_eq!(fault(&batch(MAX_BATCH + 1)), Fault::LongBatch);
    assert_eq!(fault(&format!("[{one},{}]", one.replace("2.0", "1.0"))).code(), -32600);
    assert_eq!(fault(&format!("[{one},{}]", one.replace("method", "Method"))), Fault::KeyCase("method"));
}

#[test]
fn the_id_of_a_refused_message_is_told_where_it_is_clear() {
    let id = |body: &str| parse(body.as_bytes()).expect_err(body).id.map(|id| id.get().to_owned());
    for body in [
        r#"{"jsonrpc":"2.0","id":"a","method":"x","x":{"y":1,"y":1}}"#,
        r#"{"x":{"y":1,"y":1},"jsonrpc":"2.0","method":"x","id":"a"}"#,
        r#"{"jsonrpc":"2.0","id":"a","METHOD":"x"}"#,
        r#"{"jsonrpc":"2.0","id":"a"}"#,
        r#"{"jsonrpc":"2.0","id":"a","method":"x"} x"#,
        r#"{"jsonrpc":"2.0","id":"a","method":"x","params":{"cu"#,
    ] {
        assert_eq!(id(body).as_deref(), Some("\"a\""), "{body}");
    }
    for body in [
        r#"{"jsonrpc":"2.0","id":"a","id":"b","method":"x"}"#,
        r#"{"id":"a","method":"x"}"#,
        r#"{"jsonrpc":"2.0","id":"a","result":1,"x":1,"x":1}"#,
        r#"[{"jsonrpc":"2.0","id":"a","method":7}]"#,
    ] {
        assert_eq!(id(body), None, "{body}");
    }
    let part = |text: &[u8]| id_in_part(text).map(|id| id.get().to_owned());
    assert_eq!(part(br#"{"jsonrpc":"2.0","id":12,"params":{"#).as_deref(), Some("12"));
    assert_eq!(part(b"{\"jsonrpc\":\"2.0\",\"id\":12,\"params\":\"\xc3").as_deref(), Some("12"));
    assert_eq!(part(br#"{"jsonrpc":"2.0","id":12"#), None, "more digits may follow");
}

#[test]
fn json_rpc_is_known_in_every_disguise_and_nothing_else_is() {
    let speaks = |body: &[u8]| parse(body).expect_err("no message").speaks_jsonrpc;
    let wide = |text: &str| -> Vec<u8> { text.encode_utf16().flat_map(u16::to_le_bytes).collect() };
    for body in [
        br#"{"JSONRPC":"2.0"}"#.to_vec(),
        br#"{"jsonrpc":"2.0","x":1,"x":2}"#.to_vec(),
        br#"{"x":1,"x":2,"j\u017fonrpc":"2.0"}"#.to_vec(),
        br#"[1,{"\u004Asonrpc":1}]"#.to_vec(),
        "\u{feff}{\"jsonrpc\":1}".as_bytes().to_vec(),
        "{\"j\u{17f}onrpc\":1".as_bytes().to_vec(),
        format!("{}{{\"j\\u0073onrpc\":1}}", "[".repeat(200)).into_bytes(),
        wide(r#"{"jsonrpc":"2.0"}"#),
        wide(r#"{"\u006asonrpc":"2.0"}"#),
    ] {
        assert!(speaks(&body), "{}", String::from_utf8_lossy(&body));
        assert!(may_speak_jsonrpc(&body));
    }
    for body in [r#"{"id":1,"method":"x"}"#, "[1,2]", "{\"x\":1,\"x\":2}", "{", r#"{"page":{"jsonrpc":"2.0"}}"#, "7"] {
        assert!(!speaks(body.as_bytes()), "{body}");
    }
    assert!(!may_speak_jsonrpc(b"{\"jsonrp\":1,\"json rpc\":2,\"\\u006\":3,\"\\u"));
}

#[test]
fn depth_and_number_of_keys_do_no_harm() {
    let nested = |levels: usize| {
        format!(
            r#"{{"jsonrpc":"2.0","id":5,"method":"x","params":{{"arguments":{}{}}}}}"#,
            "[".repeat(levels),
            "]".repeat(levels)
        )
    };
    single(&nested(126));
    assert_eq!(fault(&nested(127)), Fault::TooDeep);
    let refused = parse(nested(500_000).as_bytes()).expect_err("deep").id;
    assert_eq!(refused.map(|id| id.get().to_owned()).as_deref(), Some("5"));

    let keys: Vec<String> = (0..MAX_MEMBERS).map(|index| format!("\"{index}\":0")).collect();
    let began = std::time::Instant::now();
    let many = format!(r#"{{"jsonrpc":"2.0","method":"x","params":{{{}}}}}"#, keys.join(","));
    single(&many);
    assert_eq!(fault(&many.replace("\"65535\"", "\"\\u0030\"")), Fault::DuplicateKey);
    assert_eq!(fault(&many.replace("\"65535\"", "\"x\":0,\"y\"")), Fault::LongObject);
    let few = "{\"a\":0},".repeat(200_000);
    single(&format!(r#"{{"jsonrpc":"2.0","method":"x","params":{{"x":[{few}0]}}}}"#));
    assert!(began.elapsed() < std::time::Duration::from_secs(20), "{:?}: not linear", began.elapsed());
}

/// What is accepted is JSON to others, too, and they see the same message in it.
fn check(body: &[u8]) {
    match parse(body) {
        Ok(parsed) => {
            let value: Value = serde_json::from_slice(body).expect("what is accepted is JSON");
            let values = value.as_array().cloned().unwrap_or_else(|| vec![value]);
            assert_eq!(values.len(), parsed.messages().len());
            for (message, value) in parsed.messages().iter().zip(&values) {
                assert_eq!(value["jsonrpc"], "2.0");
                assert_eq!(message.method.as_deref(), value["method"].as_str());
                assert_eq!(message.name.as_deref(), value["params"]["name"].as_str());
                let id = message.id.map(|id| serde_json::from_str::<Value>(id.get()).expect("an id is JSON"));
                assert_eq!(id.unwrap_or(Value::Null), value["id"]);
            }
        }
        Err(refused) => {
            assert!(refused.at <= body.len());
            if refused.fault.code() == -32700 && refused.fault != Fault::TooDeep {
                assert!(serde_json::from_slice::<Value>(body).is_err(), "{refused}: {}", String::from_utf8_lossy(body));
            }
        }
    }
}

#[test]
fn damaged_messages_are_read_as_others_read_them() {
    let meta = json!({"io.modelcontextprotocol/protocolVersion": "2026-07-28", "progressToken": "t"});
    let params = json!({"name": "read", "arguments": {"path": "\u{e9}\n", "deep": [[{"x": -1.5e3}]]}, "_meta": meta});
    let good = json!({"jsonrpc": "2.0", "id": "q-17", "method": "tools/call", "params": params}).to_string();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    check(good.as_bytes());
    for _ in 0..50_000 {
        let mut body = good.clone().into_bytes();
        for _ in 0..=(next() % 3) {
            let at = usize::try_from(next() % u64::try_from(body.len()).expect("small")).expect("small");
            let byte = if next() % 2 == 0 { next().to_le_bytes()[0] } else { b"{}[]\",:0\\"[at % 9] };
            match next() % 4 {
                0 => body[at] = byte,
                1 => body.insert(at, byte),
                2 => drop(body.remove(at)),
                _ => body.truncate(at.max(8)),
            }
        }
        check(&body);
    }
}

/// Debug builds on busy machines are slow; a pass that is not linear, or copies, is slower by far.
#[test]
fn a_kilobyte_costs_microseconds() {
    let body = format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"x","arguments":{{"text":"{}","n":[1,2,3]}}}}}}"#,
        "x".repeat(900)
    );
    let rounds = 2000;
    let began = std::time::Instant::now();
    for _ in 0..rounds {
        assert!(parse(std::hint::black_box(body.as_bytes())).is_ok());
    }
    let each = began.elapsed() / rounds;
    println!("{} bytes: {each:?}", body.len());
    assert!(each < std::time::Duration::from_micros(500), "{each:?}");
}
