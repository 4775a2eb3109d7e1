//! Arguments of tools as data: one statement, from which schema and check are made.

use serde_json::{Map, Value, json};

/// One argument.
pub struct Argument {
    name: &'static str,
    kind: Kind,
    need: Need,
    description: &'static str,
}

/// What an argument may be.
pub enum Kind {
    /// A string.
    Text,
    /// An integer within bounds, both included.
    Integer(i64, i64),
    /// Any number.
    Number,
    /// True or false.
    Flag,
    /// One of some strings.
    Choice(&'static [&'static str]),
}

/// Whether an argument must be given.
enum Need {
    Required,
    Optional,
    Integer(i64),
    Choice(&'static str),
    Off,
}

impl Argument {
    /// An argument that must be given.
    pub const fn required(name: &'static str, kind: Kind, description: &'static str) -> Self {
        Self { name, kind, need: Need::Required, description }
    }

    /// A string that may be absent.
    pub const fn text(name: &'static str, description: &'static str) -> Self {
        Self { name, kind: Kind::Text, need: Need::Optional, description }
    }

    /// An integer from `bounds.0` to `bounds.1` with a default.
    pub const fn integer(
        name: &'static str,
        bounds: (i64, i64),
        default: i64,
        description: &'static str,
    ) -> Self {
        Self { name, kind: Kind::Integer(bounds.0, bounds.1), need: Need::Integer(default), description }
    }

    /// A choice whose default is the first.
    pub const fn choice(
        name: &'static str,
        choices: &'static [&'static str],
        description: &'static str,
    ) -> Self {
        Self { name, kind: Kind::Choice(choices), need: Need::Choice(choices[0]), description }
    }

    /// A flag that is off unless given.
    pub const fn flag(name: &'static str, description: &'static str) -> Self {
        Self { name, kind: Kind::Flag, need: Need::Off, description }
    }

    fn default(&self) -> Option<Value> {
        match self.need {
            Need::Required | Need::Optional => None,
            Need::Integer(number) => Some(number.into()),
            Need::Choice(choice) => Some(choice.into()),
            Need::Off => Some(false.into()),
        }
    }

    fn schema(&self) -> Value {
        let mut schema = match self.kind {
            Kind::Text => json!({ "type": "string" }),
            Kind::Integer(low, high) => json!({ "type": "integer", "minimum": low, "maximum": high }),
            Kind::Number => json!({ "type": "number" }),
            Kind::Flag => json!({ "type": "boolean" }),
            Kind::Choice(choices) => json!({ "type": "string", "enum": choices }),
        };
        schema["description"] = self.description.into();
        if let Some(default) = self.default() {
            schema["default"] = default;
        }
        schema
    }

    fn accepts(&self, value: &Value) -> bool {
        match self.kind {
            Kind::Text => value.is_string(),
            Kind::Integer(low, high) => whole(value).is_some_and(|number| (low..=high).contains(&number)),
            Kind::Number => value.is_number(),
            Kind::Flag => value.is_boolean(),
            Kind::Choice(choices) => value.as_str().is_some_and(|text| choices.contains(&text)),
        }
    }

    fn expected(&self) -> String {
        match self.kind {
            Kind::Text => "a string".to_owned(),
            Kind::Integer(low, high) => format!("an integer from {low} to {high}"),
            Kind::Number => "a number".to_owned(),
            Kind::Flag => "true or false".to_owned(),
            Kind::Choice(choices) => format!("one of {}", choices.join(", ")),
        }
    }
}

/// An integer as JSON Schema means it: `2.0` is one.
fn whole(value: &Value) -> Option<i64> {
    let fraction = || {
        let number = value.as_f64()?;
        // Beyond 2^53 a fraction cannot be told from an integer any more.
        (number.fract() == 0.0 && number.abs() <= 9_007_199_254_740_992.0).then_some(number as i64)
    };
    value.as_i64().or_else(fraction)
}

/// The JSON Schema (2020-12) of an object with these arguments.
pub fn schema(arguments: &[Argument]) -> Value {
    let properties: Map<String, Value> =
        arguments.iter().map(|argument| (argument.name.to_owned(), argument.schema())).collect();
    let required: Vec<&str> = arguments
        .iter()
        .filter(|argument| matches!(argument.need, Need::Required))
        .map(|argument| argument.name)
        .collect();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    })
}

/// Checks what was given against what is accepted, and fills in the defaults.
pub fn check(accepted: &[Argument], mut given: Map<String, Value>) -> Result<Arguments, String> {
    if let Some(name) = given.keys().find(|name| accepted.iter().all(|argument| argument.name != *name)) {
        return Err(format!("unknown argument {name:?}"));
    }
    for argument in accepted {
        match given.get(argument.name) {
            Some(value) if argument.accepts(value) => {}
            Some(_) => return Err(format!("argument {} must be {}", argument.name, argument.expected())),
            None => match (argument.default(), &argument.need) {
                (Some(default), _) => drop(given.insert(argument.name.to_owned(), default)),
                (None, Need::Required) => {
                    return Err(format!("argument {} ({}) is missing", argument.name, argument.expected()));
                }
                (None, _) => {}
            },
        }
    }
    Ok(Arguments(given))
}

/// Checked arguments. Asking for one that the tool does not declare gives the empty value of its type.
pub struct Arguments(Map<String, Value>);

impl Arguments {
    /// A string that must be there.
    pub fn text(&self, name: &str) -> &str {
        self.optional(name).unwrap_or_default()
    }

    /// A string that may be absent.
    pub fn optional(&self, name: &str) -> Option<&str> {
        self.0.get(name).and_then(Value::as_str)
    }

    /// An integer.
    pub fn integer(&self, name: &str) -> i64 {
        self.0.get(name).and_then(whole).unwrap_or_default()
    }

    /// An integer whose bounds exclude negative ones.
    pub fn size(&self, name: &str) -> usize {
        usize::try_from(self.integer(name)).unwrap_or_default()
    }

    /// A number.
    pub fn number(&self, name: &str) -> &Value {
        self.0.get(name).unwrap_or(&Value::Null)
    }

    /// A flag.
    pub fn flag(&self, name: &str) -> bool {
        self.0.get(name).and_then(Value::as_bool).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCEPTED: &[Argument] = &[
        Argument::required("path", Kind::Text, "p"),
        Argument::integer("ms", (0, 10), 5, "m"),
        Argument::choice("kind", &["a", "b"], "k"),
        Argument::flag("append", "a"),
    ];

    fn checked(given: Value) -> Result<Map<String, Value>, String> {
        let Value::Object(given) = given else { panic!("arguments are an object") };
        check(ACCEPTED, given).map(|arguments| arguments.0)
    }

    #[test]
    fn defaults_are_filled_in() {
        let all = json!({ "path": "/", "ms": 5, "kind": "a", "append": false });
        assert_eq!(checked(json!({ "path": "/" })).map(Value::Object), Ok(all));
    }

    #[test]
    fn what_the_schema_forbids_is_refused_by_name() {
        for (given, expected) in [
            (json!({}), "argument path (a string) is missing"),
            (json!({ "path": null }), "argument path must be a string"),
            (json!({ "path": "/", "ms": 11 }), "argument ms must be an integer from 0 to 10"),
            (json!({ "path": "/", "ms": 1.5 }), "argument ms must be an integer from 0 to 10"),
            (json!({ "path": "/", "kind": "c" }), "argument kind must be one of a, b"),
            (json!({ "path": "/", "append": 1 }), "argument append must be true or false"),
            (json!({ "path": "/", "more": 1 }), "unknown argument \"more\""),
        ] {
            assert_eq!(checked(given), Err(expected.to_owned()));
        }
        assert_eq!(
            check(ACCEPTED, checked(json!({ "path": "/", "ms": 2.0 })).unwrap()).unwrap().integer("ms"),
            2
        );
    }
}
