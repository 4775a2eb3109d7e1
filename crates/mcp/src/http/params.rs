//! Parameters of tools that a server wants repeated in headers (2026-07-28, Streamable HTTP, custom headers
//! from tool parameters).
//!
//! Which they are stands in the schemas of `tools/list`. An annotation that is against the rules makes its tool
//! one without headers: what a server listed is passed on as it is.

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use hyper::header::HeaderName;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::headers::{Fields, VALUE_BYTES, value};
use crate::object;

/// The most tools that are remembered, and the most headers of one.
const TOOLS: usize = 4096;
const HEADERS: usize = 64;

/// The longest schema that is looked through, in bytes; a tool with a longer one has no headers.
const SCHEMA_BYTES: usize = 64 << 10;

/// What is remembered of all tools together, in bytes, and what one costs beside its texts.
const KEPT_BYTES: usize = 1 << 20;
const TOOL_BYTES: usize = 64;
const MIRROR_BYTES: usize = 64;
const KEY_BYTES: usize = 24;

/// How deep in a tool's schema annotations are looked for.
const DEPTH: usize = 16;

/// What an annotation is called, and what its header begins with.
const ANNOTATION: &str = "x-mcp-header";
const PREFIX: &str = "mcp-param-";

/// The largest integer that every reader of JSON takes for itself.
const SAFE_INTEGER: u64 = (1 << 53) - 1;

/// Which parameters of which tools go into headers.
#[derive(Debug, Default)]
pub(super) struct Mirrors {
    tools: HashMap<String, Vec<Mirror>>,
    /// What they cost together.
    bytes: usize,
}

#[derive(Debug, PartialEq, Eq)]
struct Mirror {
    header: HeaderName,
    /// The names of the properties that lead to the value.
    path: Vec<String>,
}

impl Mirrors {
    /// Learns from the result of `tools/list`.
    pub fn learn(&mut self, result: &str) {
        // Most servers have none, and lists are long.
        if self.tools.is_empty() && !result.contains(ANNOTATION) {
            return;
        }
        let Ok([Some(tools)]) = object::find(result, ["tools"]) else { return };
        // A tool at a time: a list is long, and as a tree much longer. Nothing of one that breaks off is wrong.
        let each = Each(|tool: &RawValue| self.learn_tool(tool.get()));
        let _ = serde_json::Deserializer::from_str(tools.get()).deserialize_seq(each);
    }

    fn learn_tool(&mut self, tool: &str) {
        let Ok([Some(name), schema]) = object::find(tool, ["name", "inputSchema"]) else { return };
        // A longer name fits in no header.
        if name.get().len() > VALUE_BYTES {
            return;
        }
        let Ok(name) = serde_json::from_str::<String>(name.get()) else { return };
        if let Some(forgotten) = self.tools.remove(&name) {
            self.bytes -= cost(&name, &forgotten);
        }
        let schema = schema.map(RawValue::get);
        let schema = schema.filter(|schema| schema.len() <= SCHEMA_BYTES && schema.contains(ANNOTATION));
        let schema = schema.and_then(|schema| serde_json::from_str::<Value>(schema).ok());
        let mirrors = schema.as_ref().and_then(annotated).unwrap_or_default();
        let bytes = self.bytes + cost(&name, &mirrors);
        if !mirrors.is_empty() && self.tools.len() < TOOLS && bytes <= KEPT_BYTES {
            self.bytes = bytes;
            self.tools.insert(name, mirrors);
        }
    }

    /// The headers of a call with these `params`.
    pub fn fields(&self, tool: &str, params: &str) -> Fields {
        let Some(mirrors) = self.tools.get(tool) else { return Vec::new() };
        let arguments = match object::find(params, ["arguments"]) {
            Ok([Some(arguments)]) => serde_json::from_str::<Value>(arguments.get()).unwrap_or_default(),
            _ => return Vec::new(),
        };
        let field = |mirror: &Mirror| {
            let found = mirror.path.iter().try_fold(&arguments, |inside, key| inside.get(key))?;
            Some((mirror.header.clone(), value(&shown(found)?)?))
        };
        mirrors.iter().filter_map(field).collect()
    }
}

/// What it takes to remember a tool, in bytes.
fn cost(name: &str, mirrors: &[Mirror]) -> usize {
    let of = |mirror: &Mirror| {
        let path: usize = mirror.path.iter().map(|key| KEY_BYTES + key.len()).sum();
        MIRROR_BYTES + mirror.header.as_str().len() + path
    };
    TOOL_BYTES + name.len() + mirrors.iter().map(of).sum::<usize>()
}

/// Hands the elements of an array over, none of which is kept.
struct Each<F>(F);

impl<'de, F: FnMut(&'de RawValue)> Visitor<'de> for Each<F> {
    type Value = ();

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut elements: A) -> Result<(), A::Error> {
        while let Some(element) = elements.next_element()? {
            (self.0)(element);
        }
        Ok(())
    }
}

/// The annotations of a schema; nothing where one is against the rules.
fn annotated(schema: &Value) -> Option<Vec<Mirror>> {
    let mut found = Vec::new();
    collect(schema.as_object()?, &mut Vec::new(), &mut found)?;
    let unique: BTreeSet<&str> = found.iter().map(|mirror| mirror.header.as_str()).collect();
    (unique.len() == found.len()).then_some(found)
}

fn collect(schema: &Map<String, Value>, path: &mut Vec<String>, found: &mut Vec<Mirror>) -> Option<()> {
    if path.len() >= DEPTH {
        return Some(());
    }
    for (key, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let Some(property) = property.as_object() else { continue };
        path.push(key.clone());
        if let Some(annotation) = property.get(ANNOTATION) {
            let is_primitive = matches!(property.get("type")?.as_str()?, "string" | "integer" | "boolean");
            let name = annotation.as_str().filter(|name| !name.is_empty())?;
            // A name of a header ignores case: this one is in lower case.
            let header = HeaderName::from_bytes(format!("{PREFIX}{name}").as_bytes()).ok()?;
            if !is_primitive || found.len() >= HEADERS {
                return None;
            }
            found.push(Mirror { header, path: path.clone() });
        }
        collect(property, path, found)?;
        path.pop();
    }
    Some(())
}

fn shown(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(flag) => Some(flag.to_string()),
        Value::Number(number) => {
            let size = number.as_u64().or_else(|| number.as_i64().map(i64::unsigned_abs))?;
            (size <= SAFE_INTEGER).then(|| number.to_string())
        }
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn learned(schema: Value) -> Mirrors {
        let mut mirrors = Mirrors::default();
        mirrors.learn(&json!({ "tools": [{ "name": "sql", "inputSchema": schema }] }).to_string());
        mirrors
    }

    fn fields(mirrors: &Mirrors, arguments: Value) -> Vec<String> {
        let params = json!({ "name": "sql", "arguments": arguments }).to_string();
        let show = |(name, value): &(HeaderName, _)| {
            let value: &hyper::header::HeaderValue = value;
            format!("{name}: {}", value.to_str().unwrap())
        };
        mirrors.fields("sql", &params).iter().map(show).collect()
    }

    #[test]
    fn annotated_parameters_are_repeated_wherever_they_stand() {
        let mirrors = learned(json!({ "type": "object", "properties": {
            "region": { "type": "string", "x-mcp-header": "Region" },
            "limit": { "type": "integer", "x-mcp-header": "Limit" },
            "query": { "type": "string" },
            "inner": { "type": "object", "properties": {
                "dry": { "type": "boolean", "x-mcp-header": "Dry" },
            }},
        }}));
        let given = json!({ "region": "us-west1", "limit": -7, "query": "x", "inner": { "dry": true } });
        let mut expected = ["mcp-param-region: us-west1", "mcp-param-limit: -7", "mcp-param-dry: true"];
        expected.sort_unstable();
        let mut found = fields(&mirrors, given);
        found.sort_unstable();
        assert_eq!(found, expected);
        // What is null, absent, of another type or too large for a number has no header.
        let given = json!({ "region": null, "limit": 9007199254740992_u64, "inner": "x" });
        assert_eq!(fields(&mirrors, given), [""; 0]);
        assert_eq!(mirrors.fields("other", "{}"), []);
    }

    #[test]
    fn an_annotation_against_the_rules_makes_a_tool_without_headers() {
        let property = |kind: &str, header: Value| json!({ "type": kind, "x-mcp-header": header });
        for wrong in [
            property("string", json!("")),
            property("string", json!(1)),
            property("string", json!("a b")),
            property("string", json!("a\r\nb: c")),
            property("number", json!("A")),
            property("object", json!("A")),
            json!({ "x-mcp-header": "A" }),
        ] {
            let right = property("string", json!("B"));
            let mirrors = learned(json!({ "properties": { "a": wrong.clone(), "b": right } }));
            assert_eq!(fields(&mirrors, json!({ "a": "1", "b": "2" })), [""; 0], "{wrong}");
        }
        let twice = json!({ "properties": { "a": property("string", json!("A")), "b": property("string", json!("a")) } });
        assert_eq!(fields(&learned(twice), json!({ "a": "1", "b": "2" })), [""; 0]);
    }

    #[test]
    fn what_is_remembered_of_a_server_is_bounded_in_bytes() {
        let schema = |key: &str, padding: usize| {
            let property = json!({ "type": "string", "x-mcp-header": "A" });
            json!({ "properties": { key: property }, "description": "x".repeat(padding) })
        };
        let list = |tools: Vec<Value>| json!({ "tools": tools }).to_string();
        let mut mirrors = Mirrors::default();
        // A name and a schema that are too long, beside one that is not.
        mirrors.learn(&list(vec![
            json!({ "name": "n".repeat(VALUE_BYTES), "inputSchema": schema("a", 0) }),
            json!({ "name": "long", "inputSchema": schema("a", SCHEMA_BYTES) }),
            json!({ "name": "sql", "inputSchema": schema("a", 0) }),
        ]));
        assert_eq!(mirrors.tools.keys().collect::<Vec<_>>(), ["sql"]);
        // Names and keys of a thousand tools, again and again.
        for round in 0..3 {
            let tool = |number: usize| {
                let name = format!("{round}-{number}-{}", "n".repeat(4000));
                json!({ "name": name, "inputSchema": schema(&"k".repeat(4000), 0) })
            };
            mirrors.learn(&list((0..1000).map(tool).collect()));
            let texts = |(name, mirrors): (&String, &Vec<Mirror>)| name.len() + mirrors[0].path[0].len();
            assert!(mirrors.tools.iter().map(texts).sum::<usize>() <= KEPT_BYTES);
            assert_eq!(
                mirrors.bytes,
                mirrors.tools.iter().map(|(name, mirrors)| cost(name, mirrors)).sum::<usize>()
            );
        }
        assert_eq!(fields(&mirrors, json!({ "a": "1" })), ["mcp-param-a: 1"]);
        // What is forgotten makes room.
        let forgotten: Vec<Value> = mirrors.tools.keys().map(|name| json!({ "name": name })).collect();
        mirrors.learn(&list(forgotten));
        assert_eq!((mirrors.bytes, mirrors.tools.len()), (0, 0));
    }

    #[test]
    fn a_list_is_forgotten_for_the_next() {
        let mut mirrors =
            learned(json!({ "properties": { "a": { "type": "string", "x-mcp-header": "A" } } }));
        assert_eq!(fields(&mirrors, json!({ "a": "1" })), ["mcp-param-a: 1"]);
        mirrors.learn(r#"{"tools":[{"name":"sql","inputSchema":{}}]}"#);
        assert_eq!(fields(&mirrors, json!({ "a": "1" })), [""; 0]);
        mirrors.learn("no JSON, x-mcp-header");
    }
}
