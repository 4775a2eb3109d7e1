//! From a whole HTTP answer to the one message that the client gets: decisions only.

use hyper::StatusCode;

use super::exchange::Asked;
use crate::compose::{self, ErrorObject};
use crate::envelope::{Envelope, Id, Message};

/// The code of a request that got no answer for reasons of the transport; JSON-RPC leaves it to servers.
const NO_ANSWER: i32 = -32000;

/// The code of a request whose headers do not say what its body does (2026-07-28, `HeaderMismatchError`).
const HEADER_MISMATCH: i64 = -32020;

/// How much of a body that is no message is shown, in characters.
const PREVIEW: usize = 200;

/// What a message on a request's own stream or in its body is to that request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Belongs {
    /// Its answer.
    Answer,
    /// An error without a name that can be its own alone.
    Unnamed,
    /// Another's answer.
    Stray,
    /// No answer.
    NoAnswer,
}

/// Tells an answer from everything else.
pub(super) fn belongs(message: &Message, id: Option<&Id>) -> Belongs {
    match message.envelope() {
        Envelope::Response { id: answered, .. } | Envelope::Error { id: Some(answered), .. } => {
            if id == Some(answered) { Belongs::Answer } else { Belongs::Stray }
        }
        Envelope::Error { id: None, .. } if id.is_some() => Belongs::Unnamed,
        Envelope::Error { .. } => Belongs::Stray,
        Envelope::Request { .. } | Envelope::Notification { .. } => Belongs::NoAnswer,
    }
}

/// Whether a request was refused for its headers.
pub(super) fn is_header_mismatch(message: &Message) -> bool {
    let Envelope::Error { error, .. } = message.envelope() else { return false };
    serde_json::from_str::<ErrorObject>(error).is_ok_and(|error| error.code == HEADER_MISMATCH)
}

/// The error of `message` as the answer to `asked`.
pub(super) fn named(message: &Message, asked: &Asked) -> String {
    match message.envelope() {
        Envelope::Error { error, .. } => {
            format!(r#"{{"jsonrpc":"2.0","id":{},"error":{error}}}"#, asked.raw_id)
        }
        _ => none(asked, "the server did not answer"),
    }
}

/// That there is no answer, as an answer.
pub(super) fn none(asked: &Asked, why: &str) -> String {
    compose::error(&asked.raw_id, NO_ANSWER, why)
}

/// The message that a body holds, if it is an answer to `asked`; otherwise what to tell instead.
pub(super) fn whole(status: StatusCode, body: Vec<u8>, asked: &Asked) -> Result<Message, String> {
    let preview = preview(&body);
    let nonsense = || match (status.is_success(), preview.as_str()) {
        (true, "") => none(asked, &format!("the server answered HTTP {status} without a message")),
        (true, shown) => none(asked, &format!("the server answered with no answer: {shown}")),
        (false, "") => none(asked, &format!("the server answered HTTP {status}")),
        (false, shown) => none(asked, &format!("the server answered HTTP {status}: {shown}")),
    };
    let Ok(message) = Message::parse(body) else { return Err(nonsense()) };
    match belongs(&message, Some(&asked.id)) {
        Belongs::Answer => Ok(message),
        Belongs::Unnamed => Err(named(&message, asked)),
        // Some servers name the errors of their transport by a word of their own.
        Belongs::Stray if !status.is_success() && matches!(message.envelope(), Envelope::Error { .. }) => {
            Err(named(&message, asked))
        }
        Belongs::Stray | Belongs::NoAnswer => Err(nonsense()),
    }
}

/// The beginning of a body on one line.
pub(super) fn preview(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(4 * PREVIEW)]);
    let words: Vec<&str> =
        text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|w| !w.is_empty()).collect();
    words.join(" ").chars().take(PREVIEW).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn asked() -> Asked {
        let message = Message::parse(r#"{"jsonrpc":"2.0","id":"a","method":"tools/list"}"#).unwrap();
        Asked::of(&message, false).unwrap()
    }

    fn told(status: u16, body: &str) -> Value {
        let status = StatusCode::from_u16(status).unwrap();
        let told = whole(status, body.as_bytes().to_vec(), &asked());
        let told = told.map_or_else(|instead| instead, Message::into_text);
        let told: Value = serde_json::from_str(&told).unwrap();
        assert_eq!((&told["jsonrpc"], &told["id"]), (&json!("2.0"), &json!("a")), "{told}");
        told
    }

    #[test]
    fn an_answer_passes_whatever_its_status() {
        assert_eq!(
            told(200, r#"{"jsonrpc":"2.0","id":"a","result":{"x":1.0}}"#)["result"],
            json!({"x": 1.0})
        );
        let error = r#"{"jsonrpc":"2.0","id":"a","error":{"code":-32601,"message":"m"}}"#;
        for status in [200, 404] {
            assert_eq!(told(status, error)["error"]["code"], -32601);
        }
    }

    #[test]
    fn an_error_that_can_be_no_others_is_this_requests() {
        for id in ["null", "\"server-error\"", "7"] {
            let body = format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":-32600,"message":"bad"}}}}"#);
            assert_eq!(told(400, &body)["error"], json!({"code": -32600, "message": "bad"}));
        }
        let body = r#"{"jsonrpc":"2.0","error":{"code":-32700,"message":"bad"}}"#;
        assert_eq!(told(200, body)["error"]["code"], -32700);
    }

    #[test]
    fn what_is_no_answer_is_told_in_words() {
        let said = |status, body: &str| told(status, body)["error"]["message"].as_str().unwrap().to_owned();
        assert_eq!(
            said(502, "<h1>\r\n\tBad\u{1b}[0m</h1>"),
            "the server answered HTTP 502 Bad Gateway: <h1> Bad [0m</h1>"
        );
        assert_eq!(said(500, ""), "the server answered HTTP 500 Internal Server Error");
        assert_eq!(said(202, ""), "the server answered HTTP 202 Accepted without a message");
        for body in [
            "hello",
            r#"{"jsonrpc":"2.0","id":"b","result":{}}"#,
            r#"{"jsonrpc":"2.0","id":"b","error":{"code":1,"message":""}}"#,
            r#"{"jsonrpc":"2.0","method":"notifications/x"}"#,
            r#"[{"jsonrpc":"2.0","id":"a","result":{}}]"#,
        ] {
            assert!(said(200, body).starts_with("the server answered with no answer: "), "{body}");
        }
        assert!(said(200, &"x".repeat(100_000)).len() < 300);
    }
}
