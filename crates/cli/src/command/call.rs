//! `casemate call`.

use super::options::{LaterOptions, MachineOptions, ServerOptions, StartOptions};
use crate::{
    context::Context,
    engine::{
        McpAnswer,
        asking::{Asking, Wish},
    },
    error::{Error, Kind, Outcome},
    render::{bytes, harmless},
};
use casemate_proto::ids::Name;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use std::{fmt::Write as _, time::Duration};

/// Call a tool of a server
///
/// Asks the running machine of that server, or one that is started for this call and stopped after it,
/// also where the tool has a table of its own that the running one does not satisfy.
/// Exits with 1 if the tool answers that it failed, with 5 if there is no answer.
///
/// Examples:
///   casemate call everything echo '{"message": "hi"}'
///   casemate call everything get-sum '{"a": 1, "b": 2}' --json --timeout 5
#[derive(Debug, Clone, PartialEq, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Call {
    /// A machine, or a server
    name: Name,
    /// The tool
    tool: String,
    /// The tool's arguments, a JSON object
    #[arg(value_name = "JSON", default_value = "{}", hide_default_value = true)]
    arguments: String,
    /// Print the result as the server sent it
    #[arg(long)]
    json: bool,
    /// How many seconds the server may take to answer, 1 to 86400
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86400))]
    timeout: u64,
    /// Leave a machine that had to be started running
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    server: ServerOptions,
    #[command(flatten)]
    machine: MachineOptions,
    #[command(flatten)]
    start: StartOptions,
    #[command(flatten)]
    later: LaterOptions,
}

#[derive(Serialize)]
struct Params<'a> {
    name: &'a str,
    arguments: &'a RawValue,
}

/// The result of a tool, as far as it is shown.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ToolResult {
    #[serde(default)]
    content: Vec<Content>,
    #[serde(default)]
    structured_content: Option<Box<RawValue>>,
    #[serde(default)]
    is_error: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Content {
    #[serde(default)]
    r#type: String,
    text: Option<String>,
    data: Option<String>,
    mime_type: Option<String>,
    uri: Option<String>,
    resource: Option<Box<Content>>,
}

/// Calls a tool and prints what it answered.
pub async fn run(args: Call, context: &Context) -> Result<Outcome, Error> {
    args.later.refuse()?;
    let arguments = object(&args.arguments)?;
    let params = to_raw_value(&Params { name: &args.tool, arguments })
        .map_err(|error| Error::usage("the tool's arguments cannot be sent").because(error))?;
    let wish = Wish {
        machine: &args.machine,
        server: &args.server,
        start: &args.start,
        keep: args.keep,
        tool: Some(&args.tool),
    };
    let mut asking = Asking::open(context, &args.name, wish).await?;
    let answer = asking.ask("tools/call", Some(params), Duration::from_secs(args.timeout)).await;
    asking.close(context).await;
    match answer? {
        McpAnswer::Error(error) => {
            if !args.json {
                return Err(refusal(&args.name, &error));
            }
            context.screen.line(&format!("{{\"error\":{}}}", error.get()))?;
            Ok(Outcome::Failed)
        }
        McpAnswer::Result(result) => {
            // A result of another shape is printed as it is, and is no failure of the tool's.
            let shown = serde_json::from_str::<ToolResult>(result.get()).ok();
            match &shown {
                Some(shown) if !args.json => context.screen.print(&readable(shown))?,
                _ => context.screen.line(result.get())?,
            }
            let failed = shown.is_some_and(|shown| shown.is_error);
            Ok(if failed { Outcome::Failed } else { Outcome::Done })
        }
    }
}

/// What a server says when it does not call the tool at all (JSON-RPC 2.0, 5.1).
pub(super) fn refusal(name: &Name, error: &RawValue) -> Error {
    #[derive(Deserialize)]
    struct Rpc {
        code: i64,
        message: String,
    }
    const INVALID_PARAMS: i64 = -32602;
    match serde_json::from_str::<Rpc>(error.get()) {
        Ok(Rpc { code, message }) => {
            let error = Error::new(Kind::Failed, format!("{name} refused the call: {message} (code {code})"));
            let hint = format!("casemate tools {name} lists its tools and what they take");
            error.maybe_hint((code == INVALID_PARAMS).then_some(hint))
        }
        // No error as it should be; what it is.
        Err(_) => Error::new(Kind::Failed, format!("{name} refused the call: {}", error.get())),
    }
}

/// The arguments, byte for byte, if they are an object.
fn object(text: &str) -> Result<&RawValue, Error> {
    let hint = "give a JSON object, such as '{\"message\": \"hi\"}'";
    let raw: &RawValue = serde_json::from_str(text)
        .map_err(|error| Error::usage("the tool's arguments are no JSON").because(error).hint(hint))?;
    if raw.get().starts_with('{') {
        return Ok(raw);
    }
    Err(Error::usage("the tool's arguments are JSON, but no object").hint(hint))
}

fn readable(result: &ToolResult) -> String {
    let mut out = String::new();
    for content in &result.content {
        describe(content, &mut out);
    }
    if result.content.is_empty()
        && let Some(structured) = &result.structured_content
    {
        line(structured.get(), &mut out);
    }
    out
}

fn describe(content: &Content, out: &mut String) {
    let mime = content.mime_type.as_deref().unwrap_or("unknown type");
    match (&content.text, &content.data, &content.resource, &content.uri) {
        (Some(text), ..) => line(text, out),
        // Base64: four characters for three bytes.
        (_, Some(data), ..) => {
            let size = bytes(data.len() as u64 / 4 * 3);
            line(&format!("[{} of {size}, {mime}; use --json to get it]", content.r#type), out);
        }
        (_, _, Some(resource), _) => describe(resource, out),
        (_, _, _, Some(uri)) => line(&format!("[{uri}, {mime}]"), out),
        _ => line(&format!("[content of type {:?}; use --json to get it]", content.r#type), out),
    }
}

fn line(text: &str, out: &mut String) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{}", harmless(text.trim_end_matches('\n')));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_kept_byte_for_byte_or_refused() {
        let text = " {\"n\": 12345678901234567890123, \"x\": 1.50}";
        assert_eq!(object(text).unwrap().get(), text.trim());
        for wrong in ["", "[]", "1", "\"{}\"", "{", "{} {}", "{'a': 1}"] {
            assert_eq!(object(wrong).unwrap_err().kind().exit_code(), 2, "{wrong}");
        }
    }

    #[test]
    fn every_kind_of_content_can_be_read() {
        let result = r#"{"content": [
            {"type": "text", "text": "hi\u001b[0m\n"},
            {"type": "image", "data": "AAAA", "mimeType": "image/png"},
            {"type": "resource_link", "uri": "file:///x", "name": "x"},
            {"type": "resource", "resource": {"uri": "file:///y", "text": "inside"}},
            {"type": "new"}], "isError": true}"#;
        let result: ToolResult = serde_json::from_str(result).unwrap();
        let expected = "hi\u{fffd}[0m\n[image of 3 B, image/png; use --json to get it]\n[file:///x, unknown type]\n\
                        inside\n[content of type \"new\"; use --json to get it]\n";
        assert_eq!(readable(&result), expected);
        assert!(result.is_error);
    }

    #[test]
    fn a_refusal_is_said_in_words() {
        let say = |error: &str| {
            let raw = RawValue::from_string(error.to_owned()).unwrap();
            refusal(&"x".parse().unwrap(), &raw).report().to_string()
        };
        assert_eq!(
            say(r#"{"code": -32602, "message": "no tool y", "data": [1]}"#),
            "x refused the call: no tool y (code -32602)\n\
             hint: casemate tools x lists its tools and what they take\n"
        );
        assert_eq!(say(r#"{"code": 1, "message": "busy"}"#), "x refused the call: busy (code 1)\n");
        assert_eq!(say(r#""odd""#), "x refused the call: \"odd\"\n");
    }

    #[test]
    fn structured_content_alone_is_shown() {
        let result: ToolResult = serde_json::from_str(r#"{"structuredContent": {"a": 1}}"#).unwrap();
        assert_eq!(readable(&result), "{\"a\": 1}\n");
    }
}
