//! The servers that are measured.

use crate::{casemate::cut, failure::Failure};
use serde_json::{Value, json};

/// One server and one of its tools, whose answer shows that it was this call's.
#[derive(Debug)]
pub struct Server {
    /// As it is called here.
    pub name: &'static str,
    /// Where it comes from.
    pub source: &'static str,
    /// The tool that is called.
    pub tool: &'static str,
    /// The tool's arguments; what is given is to come back.
    pub arguments: fn(&str) -> Value,
    /// What comes back where the tool takes no text of the caller's.
    fixed: Option<&'static str>,
}

/// casemate's own small server, static, with no runtime below it.
pub static PROBE: Server = Server {
    name: "probe",
    source: "builtin:probe",
    tool: "echo",
    arguments: |word| json!({ "message": word }),
    fixed: None,
};

/// A Node server.
pub static EVERYTHING: Server = Server {
    name: "everything",
    source: "npm:@modelcontextprotocol/server-everything",
    tool: "echo",
    arguments: |word| json!({ "message": word }),
    fixed: None,
};

/// A Python server.
pub static TIME: Server = Server {
    name: "time",
    source: "pypi:mcp-server-time",
    tool: "get_current_time",
    arguments: |_| json!({ "timezone": "Europe/Paris" }),
    fixed: Some("Europe/Paris"),
};

/// All of them.
pub static ALL: [&Server; 3] = [&PROBE, &EVERYTHING, &TIME];

impl Server {
    /// Checks the result of a tool call for what was given.
    pub fn check(&self, word: &str, result: &Value) -> Result<(), Failure> {
        let expected = self.fixed.unwrap_or(word);
        let texts = result["content"].as_array().into_iter().flatten();
        let found = texts.filter_map(|part| part["text"].as_str()).any(|text| carries(text, expected));
        if found && result["isError"] != true {
            return Ok(());
        }
        Err(Failure::Answer { expected: format!("{expected} from {}", self.name), answer: cut(result) })
    }
}

/// Whether a text carries a word as a whole: the answer to "machine 1" is none to "machine 10".
fn carries(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        let next = text[at + word.len()..].chars().next();
        !next.is_some_and(|next| next.is_ascii_digit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(text: &str) -> Value {
        json!({ "content": [{ "type": "text", "text": text }] })
    }

    #[test]
    fn an_answer_carries_its_own_argument() {
        assert!(EVERYTHING.check("machine 1", &result("Echo: machine 1")).is_ok());
        assert!(EVERYTHING.check("machine 1", &result("Echo: machine 10")).is_err());
        assert!(EVERYTHING.check("machine 10", &result("Echo: machine 1")).is_err());
        assert!(TIME.check("anything", &result("{\"timezone\": \"Europe/Paris\"}")).is_ok());
    }

    #[test]
    fn an_error_is_no_answer() {
        let mut failed = result("Echo: machine 1");
        failed["isError"] = true.into();
        assert!(EVERYTHING.check("machine 1", &failed).is_err());
        assert!(EVERYTHING.check("machine 1", &json!({ "content": [] })).is_err());
        assert!(EVERYTHING.check("machine 1", &Value::Null).is_err());
    }
}
