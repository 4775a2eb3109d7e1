//! Parameters of tools that a server wants repeated in headers (2026-07-28, Streamable HTTP, custom headers
//! from tool parameters).
//!
//! Which they are stands in the schemas of `tools/list`. An annotation that is against the rules makes its tool
//! one without headers: what a server listed is passed on as it is.

use std::collections::{BTreeSet, HashMap};

use hyper::header::HeaderName;
use serde_json::{Map, Value};

use super::headers::{Fields, value};
use crate::object;

/// The most tools that are remembered, and the most headers of one.
const TOOLS: usize = 4096;
const HEADERS: usize = 64;

/// How deep in a tool's schema annotations are looked for.
const DEPTH: usize = 16;

/// What an annotation is called, and what its header begins with.
const ANNOTATION: &str = "x-mcp-header";
const PREFIX: &str = "mcp-param-";

/// The largest integer that every reader of JSON takes for itself.
const SAFE_INTEGER: u64 = (1 << 53) - 1;

/// Which parameters of which tools go into headers.
#[derive(Debug, Default)]
pub(super) struct Mirrors(HashMap<String, Vec<Mirror>>);

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
        if self.0.is_empty() && !result.contains(ANNOTATION) {
            return;
        }
        let Ok(result) = serde_json::from_str::<Value>(result) else { return };
        for tool in result.get("tools").and_then(Value::as_array).into_iter().flatten() {
            let Some(name) = tool.get("name").and_then(Value::as_str) else { continue };
            let mirrors = tool.get("inputSchema").and_then(annotated).unwrap_or_default();
            if mirrors.is_empty() {
                self.0.remove(name);
            } else if self.0.len() < TOOLS || self.0.contains_key(name) {
                self.0.insert(name.to_owned(), mirrors);
            }
        }
    }

    /// The headers of a call with these `params`.
    pub fn fields(&self, tool: &str, params: &str) -> Fields {
        let Some(mirrors) = self.0.get(tool) else { return Vec::new() };
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
    fn a_list_is_forgotten_for_the_next() {
        let mut mirrors =
            learned(json!({ "properties": { "a": { "type": "string", "x-mcp-header": "A" } } }));
        assert_eq!(fields(&mirrors, json!({ "a": "1" })), ["mcp-param-a: 1"]);
        mirrors.learn(r#"{"tools":[{"name":"sql","inputSchema":{}}]}"#);
        assert_eq!(fields(&mirrors, json!({ "a": "1" })), [""; 0]);
        mirrors.learn("no JSON, x-mcp-header");
    }
}
