//! Messages are checked against the specification's own schemas (`tests/schema/`).

use jsonschema::{Draft, Validator};
use serde_json::{Value, json};

/// Every revision with its schema.
pub const REVISIONS: [(&str, &str); 5] = [
    ("2024-11-05", include_str!("../schema/2024-11-05.json")),
    ("2025-03-26", include_str!("../schema/2025-03-26.json")),
    ("2025-06-18", include_str!("../schema/2025-06-18.json")),
    ("2025-11-25", include_str!("../schema/2025-11-25.json")),
    ("2026-07-28", include_str!("../schema/2026-07-28.json")),
];

/// Panics with every violation if `value` is no `definition` of the revision.
pub fn assert_valid(revision: &str, definition: &str, value: &Value) {
    let (_, text) = REVISIONS.iter().find(|(name, _)| *name == revision).unwrap();
    let mut schema: Value = serde_json::from_str(text).unwrap();
    let definitions = if schema.get("$defs").is_some() { "$defs" } else { "definitions" };
    assert!(schema[definitions].get(definition).is_some(), "{revision} has no {definition}");
    schema["$ref"] = json!(format!("#/{definitions}/{definition}"));
    let validator = validator(&schema);
    let violations: Vec<String> =
        validator.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(violations.is_empty(), "{value:#}\nis no {definition} of {revision}:\n{}", violations.join("\n"));
}

/// A validator of `schema`, in the dialect that it names.
pub fn validator(schema: &Value) -> Validator {
    let draft = match schema["$schema"].as_str() {
        Some("http://json-schema.org/draft-07/schema#") => Draft::Draft7,
        _ => Draft::Draft202012,
    };
    jsonschema::options().with_draft(draft).build(schema).unwrap()
}

#[test]
fn the_check_can_fail() {
    let wrong = json!({ "tools": [{ "name": 1 }] });
    for (revision, _) in REVISIONS {
        assert!(std::panic::catch_unwind(|| assert_valid(revision, "ListToolsResult", &wrong)).is_err());
    }
}
