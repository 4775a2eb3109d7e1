use super::*;

/// A text, the code that answers it, and why it is refused.
type Case = (&'static str, i32, fn(&Invalid) -> bool);

fn parse(text: &str) -> Message {
    Message::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[test]
fn the_four_kinds_are_told_apart() {
    let message = parse(r#"{"jsonrpc":"2.0","id":"a\u0062","method":"tools/call","params":{"x":[1.0]}}"#);
    let id = Id::String("ab".into());
    let params = Some(r#"{"x":[1.0]}"#);
    assert_eq!(message.envelope(), Envelope::Request { id: &id, method: "tools/call", params });
    assert_eq!(message.raw_id(), Some(r#""a\u0062""#));

    let message = parse(r#"{"method":"notifications\/x","jsonrpc":"2.0"}"#);
    assert_eq!(message.envelope(), Envelope::Notification { method: "notifications/x", params: None });
    assert_eq!(message.id_span(), None);

    let message = parse(r#"{"result": null ,"jsonrpc":"2.0","id":-5}"#);
    let id = Id::Integer("-5".into());
    assert_eq!(message.envelope(), Envelope::Response { id: &id, result: "null" });

    let message = parse(r#"{"jsonrpc":"2.0","id":7,"error":{"code":1}}"#);
    let id = Id::Integer("7".into());
    assert_eq!(message.envelope(), Envelope::Error { id: Some(&id), error: r#"{"code":1}"# });
    for complaint in [r#"{"jsonrpc":"2.0","id":null,"error":{}}"#, r#"{"jsonrpc":"2.0","error":{}}"#] {
        let message = parse(complaint);
        assert_eq!(message.envelope(), Envelope::Error { id: None, error: "{}" });
        assert_eq!(message.raw_id(), None);
    }
}

#[test]
fn a_message_stays_as_it_was_written() {
    let text = " {\t\"jsonrpc\" :\"2.0\",\"extra\":{\"id\":1e400}, \"id\" : 12 ,\"method\":\"é\" }\r";
    let message = parse(text);
    assert_eq!(message.text(), text);
    assert_eq!(&text[message.id_span().unwrap()], "12");
}

#[test]
fn ids_are_strings_and_integers_of_any_size() {
    let integer = |digits: &str| Some(Id::Integer(digits.into()));
    assert_eq!(Id::parse("0"), integer("0"));
    assert_eq!(Id::parse("-0"), integer("0"));
    assert_eq!(Id::parse("123456789012345678901234567890"), integer("123456789012345678901234567890"));
    assert_eq!(Id::parse(r#""""#), Some(Id::String("".into())));
    assert_eq!(Id::parse(r#""\u00e9""#), Id::parse(r#""é""#));
    assert_ne!(Id::parse("1"), Id::parse(r#""1""#));
    for refused in ["null", "true", "1.0", "1e3", "[1]", "{}", "", "-", "01", "+1", r#""\ud800""#] {
        assert_eq!(Id::parse(refused), None, "{refused}");
    }
    let quoted = |length| format!("\"{}\"", "x".repeat(length));
    assert!(Id::parse(&quoted(MAX_ID_BYTES - 2)).is_some());
    assert!(Id::parse(&quoted(MAX_ID_BYTES - 1)).is_none());
    assert_eq!(Id::parse("18446744073709551615").and_then(|id| id.as_u64()), Some(u64::MAX));
    assert_eq!(Id::parse("18446744073709551616").and_then(|id| id.as_u64()), None);
    assert_eq!(Id::parse(r#""1""#).and_then(|id| id.as_u64()), None);
}

#[test]
fn what_is_no_message_is_refused_with_its_reason() {
    let refused = |text: &str| Message::parse(text).expect_err(text);
    let cases: [Case; 24] = [
        ("", -32700, |e| matches!(e, Invalid::NotJson(_))),
        ("Listening on port 3000", -32700, |e| matches!(e, Invalid::NotJson(_))),
        ("[INFO] ready", -32700, |e| matches!(e, Invalid::NotJson(_))),
        (r#"{"jsonrpc":"2.0","id":1,"method":"x"}}"#, -32700, |e| matches!(e, Invalid::NotJson(_))),
        (r#"{"jsonrpc":"2.0","id":1,"method":"x""#, -32700, |e| matches!(e, Invalid::NotJson(_))),
        ("{\"jsonrpc\":\"2.0\",\"method\":\"a\nb\"}", -32700, |e| matches!(e, Invalid::NotJson(_))),
        ("\u{feff}{}", -32700, |e| matches!(e, Invalid::NotJson(_))),
        ("7", -32600, |e| matches!(e, Invalid::NotObject)),
        ("[]", -32600, |e| matches!(e, Invalid::Batch)),
        (r#"[{"jsonrpc":"2.0","id":1,"method":"x"}]"#, -32600, |e| matches!(e, Invalid::Batch)),
        ("{}", -32600, |e| matches!(e, Invalid::Version)),
        (r#"{"jsonrpc":"1.0","id":1,"method":"x"}"#, -32600, |e| matches!(e, Invalid::Version)),
        (r#"{"jsonrpc":2.0,"id":1,"method":"x"}"#, -32600, |e| matches!(e, Invalid::Version)),
        (r#"{"jsonrpc":"2.0"}"#, -32600, |e| matches!(e, Invalid::Shape)),
        (r#"{"jsonrpc":"2.0","id":1,"result":{},"error":{}}"#, -32600, |e| matches!(e, Invalid::Shape)),
        (r#"{"jsonrpc":"2.0","id":1,"result":{},"method":"x"}"#, -32600, |e| matches!(e, Invalid::Shape)),
        (r#"{"jsonrpc":"2.0","id":null,"method":"x"}"#, -32600, |e| matches!(e, Invalid::Id)),
        (r#"{"jsonrpc":"2.0","id":1.5,"method":"x"}"#, -32600, |e| matches!(e, Invalid::Id)),
        (r#"{"jsonrpc":"2.0","result":{}}"#, -32600, |e| matches!(e, Invalid::Id)),
        (r#"{"jsonrpc":"2.0","id":null,"result":{}}"#, -32600, |e| matches!(e, Invalid::Id)),
        (r#"{"jsonrpc":"2.0","id":1,"method":7}"#, -32600, |e| matches!(e, Invalid::Method)),
        (r#"{"jsonrpc":"2.0","id":1,"method":"x","params":[1]}"#, -32602, |e| matches!(e, Invalid::Params)),
        (r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"x"}"#, -32600, |e| {
            matches!(e, Invalid::Ambiguous { name: "id" })
        }),
        (r#"{"jsonrpc":"2.0","id":1,"ID":2,"method":"x"}"#, -32600, |e| {
            matches!(e, Invalid::Ambiguous { name: "id" })
        }),
    ];
    for (text, code, expected) in cases {
        let error = refused(text);
        assert!(expected(&error), "{text}: {error:?}");
        assert_eq!(error.code(), code, "{text}");
    }
    assert!(matches!(Message::parse(&b"\xff{}"[..]), Err(Invalid::NotUtf8)));
    assert!(refused("ready").is_garbage());
    assert!(!refused("{}").is_garbage());
}

#[test]
fn null_params_are_absent_ones() {
    let message = parse(r#"{"jsonrpc":"2.0","method":"x","params":null}"#);
    assert_eq!(message.envelope(), Envelope::Notification { method: "x", params: None });
}

#[test]
fn nesting_is_bounded_and_what_passes_can_be_parsed() {
    let nested = |levels: usize| {
        let (open, close) = ("[".repeat(levels), "]".repeat(levels));
        format!(r#"{{"jsonrpc":"2.0","id":1,"result":{open}"]}}[["{close}}}"#)
    };
    let message = parse(&nested(MAX_DEPTH - 1));
    let Envelope::Response { result, .. } = message.envelope() else { panic!("no response") };
    serde_json::from_str::<serde_json::Value>(result).unwrap();
    assert!(matches!(Message::parse(nested(MAX_DEPTH)), Err(Invalid::TooDeep)));
    assert!(matches!(Message::parse("[".repeat(1 << 20)), Err(Invalid::TooDeep)));
    // Brackets in strings are no levels, wherever the string ends.
    let brackets = "[".repeat(2 * MAX_DEPTH);
    for string in [format!(r#""\"{brackets}""#), format!(r#""{brackets}\\""#)] {
        parse(&format!(r#"{{"jsonrpc":"2.0","id":1,"result":[{string},[]]}}"#));
    }
}
