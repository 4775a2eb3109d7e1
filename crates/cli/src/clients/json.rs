//! JSON with comments, read so that every part of it knows where it stands.
//!
//! Reads what the most lenient client reads: `//` and `/* */` comments, a comma after the last item, a byte
//! order mark. Strings are not decoded until somebody asks: those of other people's settings may hold what
//! is no Unicode.

use super::Mistake;
use serde::de::IgnoredAny;
use std::ops::Range;

/// Nothing is nested deeper than this.
const DEPTH: usize = 128;

/// Below this depth values are checked and forgotten: an entry's arguments stand at depth 5 at most.
const KEPT: usize = 6;

const BYTE_ORDER_MARK: char = '\u{feff}';

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Value {
    pub span: Range<usize>,
    pub kind: Kind,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    Object(Vec<Member>),
    Array(Vec<Value>),
    Text,
    /// A number, `true` or `false`.
    Scalar,
    Null,
}

/// A key and its value.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Member {
    pub key: String,
    /// Where the key begins.
    pub start: usize,
    pub value: Value,
    /// Where the comma after it stands.
    pub comma: Option<usize>,
}

/// Reads a text; nothing if it holds no value at all, but space and comments only.
pub(super) fn parse(text: &str) -> Result<Option<Value>, Mistake> {
    let mut parser = Parser { text, at: if text.starts_with(BYTE_ORDER_MARK) { 3 } else { 0 } };
    parser.space()?;
    if parser.peek().is_none() {
        return Ok(None);
    }
    let root = parser.value(0)?;
    parser.space()?;
    match parser.peek() {
        None => Ok(Some(root)),
        Some(_) => Err(parser.mistake("there is more after the end of the document")),
    }
}

/// The line of a byte offset, counted from 1.
pub(super) fn line_of(text: &str, offset: usize) -> usize {
    1 + text.as_bytes()[..offset.min(text.len())].iter().filter(|&&byte| byte == b'\n').count()
}

impl Value {
    /// The members of an object.
    pub fn members(&self) -> Option<&[Member]> {
        match &self.kind {
            Kind::Object(members) => Some(members),
            _ => None,
        }
    }

    /// The member of that name, of which there may be one only.
    pub fn member(&self, text: &str, key: &str) -> Result<Option<&Member>, Mistake> {
        let mut found = self.members().into_iter().flatten().filter(|member| member.key == key);
        let first = found.next();
        match found.next() {
            Some(second) => Err(Mistake::Twice { line: line_of(text, second.start), key: key.to_owned() }),
            None => Ok(first),
        }
    }

    /// What it is, for messages.
    pub fn found(&self) -> &'static str {
        match self.kind {
            Kind::Object(_) => "a table",
            Kind::Array(_) => "a list",
            Kind::Text => "text",
            Kind::Scalar => "a number or a truth value",
            Kind::Null => "null",
        }
    }

    /// The value without its place; text that is no Unicode becomes null.
    pub fn plain(&self, text: &str) -> serde_json::Value {
        match &self.kind {
            Kind::Object(members) => {
                members.iter().map(|member| (member.key.clone(), member.value.plain(text))).collect()
            }
            Kind::Array(items) => items.iter().map(|item| item.plain(text)).collect(),
            Kind::Null => serde_json::Value::Null,
            Kind::Text | Kind::Scalar => serde_json::from_str(&text[self.span.clone()]).unwrap_or_default(),
        }
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn mistake(&self, message: &str) -> Mistake {
        Mistake::Syntax { line: line_of(self.text, self.at), message: message.to_owned() }
    }

    /// Skips space and comments.
    fn space(&mut self) -> Result<(), Mistake> {
        loop {
            let rest = &self.text[self.at..];
            if rest.starts_with([' ', '\t', '\r', '\n']) {
                self.at += 1;
            } else if rest.starts_with("//") {
                self.at += rest.find('\n').unwrap_or(rest.len());
            } else if let Some(comment) = rest.strip_prefix("/*") {
                let end = comment.find("*/").ok_or_else(|| self.mistake("a comment does not end"))?;
                self.at += end + 4;
            } else {
                return Ok(());
            }
        }
    }

    fn value(&mut self, depth: usize) -> Result<Value, Mistake> {
        let start = self.at;
        let kind = match self.peek() {
            Some(b'{' | b'[') if depth == DEPTH => {
                return Err(self.mistake(&format!("it is nested deeper than {DEPTH} levels")));
            }
            Some(b'{') => self.object(depth)?,
            Some(b'[') => self.array(depth)?,
            Some(b'"') => {
                self.string()?;
                Kind::Text
            }
            _ => self.scalar()?,
        };
        Ok(Value { span: start..self.at, kind })
    }

    fn object(&mut self, depth: usize) -> Result<Kind, Mistake> {
        let mut members: Vec<Member> = Vec::new();
        self.at += 1;
        loop {
            self.space()?;
            match self.peek() {
                Some(b'}') => break,
                Some(b'"') => {}
                _ => return Err(self.mistake("a key in quotes or } is expected")),
            }
            let start = self.at;
            let key = self.string()?;
            self.space()?;
            if self.peek() != Some(b':') {
                return Err(self.mistake("a colon is expected after a key"));
            }
            self.at += 1;
            self.space()?;
            let value = self.value(depth + 1)?;
            let comma = self.comma(b'}')?;
            if depth < KEPT {
                members.push(Member { key, start, value, comma });
            }
        }
        self.at += 1;
        Ok(Kind::Object(members))
    }

    fn array(&mut self, depth: usize) -> Result<Kind, Mistake> {
        let mut items = Vec::new();
        self.at += 1;
        loop {
            self.space()?;
            if self.peek() == Some(b']') {
                break;
            }
            let item = self.value(depth + 1)?;
            self.comma(b']')?;
            if depth < KEPT {
                items.push(item);
            }
        }
        self.at += 1;
        Ok(Kind::Array(items))
    }

    /// After an item: a comma, whose place is told, or what closes the list.
    fn comma(&mut self, close: u8) -> Result<Option<usize>, Mistake> {
        self.space()?;
        match self.peek() {
            Some(b',') => {
                self.at += 1;
                Ok(Some(self.at - 1))
            }
            Some(byte) if byte == close => Ok(None),
            _ => Err(self.mistake(&format!("a comma or {} is expected", char::from(close)))),
        }
    }

    fn string(&mut self) -> Result<String, Mistake> {
        let start = self.at;
        let mut escaped = false;
        for (offset, byte) in self.text.as_bytes()[start + 1..].iter().enumerate() {
            match byte {
                b'\n' => break,
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => {
                    self.at = start + offset + 2;
                    let slice = &self.text[start..self.at];
                    // What cannot be decoded is no key that is looked for.
                    return Ok(serde_json::from_str(slice).unwrap_or_else(|_| slice.to_owned()));
                }
                _ => {}
            }
        }
        Err(self.mistake("text in quotes does not end"))
    }

    fn scalar(&mut self) -> Result<Kind, Mistake> {
        let rest = &self.text[self.at..];
        let length =
            rest.bytes().take_while(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte)).count();
        let word = &rest[..length];
        if serde_json::from_str::<IgnoredAny>(word).is_err() {
            return Err(self.mistake("a value is expected"));
        }
        self.at += length;
        Ok(if word == "null" { Kind::Null } else { Kind::Scalar })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plain(text: &str) -> serde_json::Value {
        parse(text).unwrap().unwrap().plain(text)
    }

    #[test]
    fn what_lenient_clients_read_is_read() {
        let text = "\u{feff}// first\n{ /* a */ \"a\" /* b */ : [1, -2.5e3, true, null, \"x\\\"//\",], // c\n\"b\": {},}\n// end";
        assert_eq!(plain(text), serde_json::json!({"a": [1, -2.5e3, true, null, "x\"//"], "b": {}}));
        assert_eq!(parse(" // nothing\n"), Ok(None));
        assert_eq!(parse(""), Ok(None));
    }

    #[test]
    fn mistakes_are_told_with_their_line() {
        for (text, line) in [
            ("{\n\"a\": }", 2),
            ("{\n\n\"a\" 1}", 3),
            ("{\"a\": 1\n\"b\": 2}", 2),
            ("{} {}", 1),
            ("{\"a\": \"x\n\"}", 1),
            ("/* a", 1),
            ("[1,,2]", 1),
            ("{'a': 1}", 1),
            ("nulls", 1),
            ("{", 1),
            ("[\n[", 2),
        ] {
            let Err(Mistake::Syntax { line: told, .. }) = parse(text) else { panic!("{text:?} was read") };
            assert_eq!(told, line, "{text:?}");
        }
    }

    #[test]
    fn depth_is_bounded_and_what_lies_deep_is_not_kept() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse(&nested(DEPTH)).is_ok());
        assert!(parse(&nested(DEPTH + 1)).unwrap_err().to_string().contains("deeper"));
        assert!(parse(&"[".repeat(1 << 20)).is_err());
        assert_eq!(plain(&nested(20)).to_string(), nested(KEPT + 1));
    }

    #[test]
    fn text_that_is_no_unicode_does_not_stop_the_rest() {
        assert_eq!(plain(r#"{"a": "\ud800", "b": 1}"#), serde_json::json!({"a": null, "b": 1}));
    }

    proptest! {
        #[test]
        fn what_serde_reads_is_read_alike(value in value()) {
            let text = serde_json::to_string_pretty(&value).unwrap();
            prop_assert_eq!(plain(&text), value);
        }

        #[test]
        fn no_text_makes_it_panic(text in "[\\[\\]{},:\"/*\\\\ \na0-]{0,40}") {
            if let Ok(Some(root)) = parse(&text) {
                root.plain(&text);
            }
        }
    }

    fn value() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            ".{0,8}".prop_map(Into::into),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
                prop::collection::hash_map("[a-z]{1,4}", inner, 0..4)
                    .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
            ]
        })
    }
}
