//! JSON to [`Node`].
//!
//! `serde_json` does not tell where a value stands, but a borrowed [`RawValue`] is a slice of the text, so
//! its address does.

use super::{
    error::{ConfigError, Place},
    node::{Entry, Node, Value, line_of},
};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;
use std::{fmt, path::Path, sync::Arc};

/// No document of this model nests deeper than 6.
const DEPTH: usize = 16;

pub(super) fn parse(path: &Arc<Path>, text: &str) -> Result<Node, ConfigError> {
    let reader = Reader { path, text };
    let root: &RawValue = serde_json::from_str(text).map_err(|error| reader.syntax(&error, 0))?;
    reader.node(root, DEPTH)
}

struct Reader<'a> {
    path: &'a Arc<Path>,
    text: &'a str,
}

impl Reader<'_> {
    fn node(&self, raw: &RawValue, depth: usize) -> Result<Node, ConfigError> {
        let text = raw.get();
        let offset = self.offset(raw);
        let line = line_of(self.text, offset);
        let error = |error: serde_json::Error| self.syntax(&error, offset);
        let value = match text.as_bytes().first() {
            Some(b'{' | b'[') if depth == 0 => {
                let place = Place { path: self.path.clone(), line };
                return Err(ConfigError::Syntax { place, message: format!("nested deeper than {DEPTH}") });
            }
            Some(b'{') => {
                let Object(entries) = serde_json::from_str(text).map_err(error)?;
                let entries = entries.into_iter().map(|(key, raw)| {
                    Ok(Entry { line: self.line_of_key(raw), key, node: self.node(raw, depth - 1)? })
                });
                Value::Table(entries.collect::<Result<_, ConfigError>>()?)
            }
            Some(b'[') => {
                let items: Vec<&RawValue> = serde_json::from_str(text).map_err(error)?;
                Value::List(items.into_iter().map(|raw| self.node(raw, depth - 1)).collect::<Result<_, _>>()?)
            }
            Some(b'"') => Value::Text(serde_json::from_str(text).map_err(error)?),
            Some(b't' | b'f') => Value::Bool(text == "true"),
            Some(b'n') => Value::Null,
            _ => text.parse().map_or(Value::Other, Value::Integer),
        };
        Ok(Node { line, value })
    }

    /// Where a value that borrows from the text begins in it.
    fn offset(&self, raw: &RawValue) -> usize {
        (raw.get().as_ptr() as usize).saturating_sub(self.text.as_ptr() as usize)
    }

    /// Between a key and its value stand a colon and space only.
    fn line_of_key(&self, raw: &RawValue) -> usize {
        let before = &self.text[..self.offset(raw)];
        line_of(self.text, before.trim_end_matches(|c: char| c == ':' || c.is_ascii_whitespace()).len())
    }

    fn syntax(&self, error: &serde_json::Error, offset: usize) -> ConfigError {
        let line = line_of(self.text, offset) + error.line().saturating_sub(1);
        let text = error.to_string();
        let message = text.rsplit_once(" at line ").map_or(text.as_str(), |(message, _)| message).to_owned();
        ConfigError::Syntax { place: Place { path: self.path.clone(), line }, message }
    }
}

/// An object whose keys keep their order, and of which none is dropped for being there twice.
struct Object<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Object<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Object<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object<'de>, A::Error> {
                let mut entries: Vec<(String, &RawValue)> = Vec::new();
                while let Some((key, value)) = map.next_entry::<String, &RawValue>()? {
                    if entries.iter().any(|(other, _)| *other == key) {
                        return Err(serde::de::Error::custom(format_args!("key {key:?} is there twice")));
                    }
                    entries.push((key, value));
                }
                Ok(Object(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Node, ConfigError> {
        parse(&Arc::from(Path::new("c.json")), text)
    }

    #[test]
    fn keys_and_values_know_their_lines() {
        let root = read("\n{\n  \"a\": 1,\n  \"b\"\n :\n  {\"c\": [true,\n \"x\"]}}").unwrap();
        let Value::Table(entries) = root.value else { panic!("no table") };
        assert_eq!((entries[0].line, entries[1].line, entries[1].node.line), (3, 4, 6));
        let Value::Table(inner) = &entries[1].node.value else { panic!("no table") };
        let Value::List(items) = &inner[0].node.value else { panic!("no list") };
        assert_eq!((items[0].line, items[1].line), (6, 7));
    }

    #[test]
    fn mistakes_are_told_with_their_line() {
        let message = |text: &str| read(text).unwrap_err().to_string();
        assert_eq!(message("{\n\"a\": }"), "c.json:2: expected value");
        assert!(
            message("{\n\"x\": {\n\"a\": 1,\n\"a\": 2}}").starts_with("c.json:4: key \"a\" is there twice")
        );
        assert!(message(&"[".repeat(200)).starts_with("c.json:1:"));
        assert!(message(&format!("{}1{}", "[".repeat(20), "]".repeat(20))).contains("nested deeper"));
    }
}
