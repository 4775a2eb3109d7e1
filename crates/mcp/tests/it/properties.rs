//! Whatever the bytes and whatever the order: nothing but names changes, and nobody reads what is another's.

use std::collections::HashMap;

use casemate_mcp::framing::{Incoming, MessageReader};
use casemate_mcp::multiplex::{FromServer, Limits, Multiplexer, ToServer};
use casemate_mcp::{Envelope, Message};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::Value;

fn space() -> impl Strategy<Value = String> {
    "[ \t\r\n]{0,2}"
}

/// A string without the marks of [`template`].
fn string() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>().prop_map(|text| Value::from(text.replace(['@', '#'], "")).to_string()),
        // What a reader that stops at the first quote or counts brackets would take for something else.
        select(vec![r#""\"id\":1""#, r#""\\""#, r#""{[\u0022""#, r#""\ud83d\ude00""#, r#""2.0""#])
            .prop_map(str::to_owned),
    ]
}

fn number() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<i64>().prop_map(|n| n.to_string()),
        "-?(0|[1-9][0-9]{0,30})(\\.[0-9]{1,9})?([eE][+-]?[0-9]{1,4})?"
    ]
}

/// Any JSON, as text.
fn json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![select(vec!["null", "true", "false"]).prop_map(str::to_owned), number(), string()];
    leaf.prop_recursive(4, 24, 5, |inner| {
        let array = vec(inner.clone(), 0..5).prop_map(|items| format!("[{}]", items.join(" ,")));
        prop_oneof![array, members(inner).prop_map(|members| format!("{{{}}}", members.join(",")))]
    })
}

/// Members of an object whose keys may look like those of an envelope.
fn members(value: impl Strategy<Value = String> + Clone) -> impl Strategy<Value = Vec<String>> {
    let names =
        vec![r#""id""#, r#""_meta""#, r#""progressToken""#, r#""method""#, r#""jsonrpc""#, r#""result""#];
    let key = prop_oneof![select(names).prop_map(str::to_owned), string()];
    vec(
        (space(), key, space(), value, space())
            .prop_map(|(a, key, b, value, c)| format!("{a}{key}{b}:{c}{value}")),
        0..5,
    )
}

fn id() -> impl Strategy<Value = String> {
    prop_oneof![any::<i64>().prop_map(|n| n.to_string()), "[1-9][0-9]{20,40}", string()]
}

/// The members of an object in some order, with spaces and with others that mean nothing to an envelope.
fn object(known: Vec<String>) -> impl Strategy<Value = String> {
    let unknown = vec((any::<u16>(), json()).prop_map(|(n, value)| format!(r#""x{n}":{value}"#)), 0..3);
    (unknown, space(), space())
        .prop_flat_map(move |(unknown, a, b)| {
            (Just([known.clone(), unknown].concat()).prop_shuffle(), Just(a), Just(b))
        })
        .prop_map(|(members, a, b)| format!("{a}{{{}{b}}}", members.join(&format!("{b},{a}"))))
}

/// A request in which `@` stands for its id and `#` for its progress token, if it has one.
fn template() -> impl Strategy<Value = String> {
    let token = prop_oneof![Just(vec![]), Just(vec![r#""progressToken" : #"#.to_owned()])];
    let params = token.prop_flat_map(object).prop_flat_map(|meta| object(vec![format!(r#""_meta":{meta}"#)]));
    (params, string(), space()).prop_flat_map(|(params, method, s)| {
        let method = format!(r#""method":{method}"#);
        let id = format!(r#""id"{s}:{s}@{s}"#);
        let params = format!(r#""params":{s}{params}"#);
        object(vec![r#""jsonrpc":"2.0""#.to_owned(), method, id, params])
    })
}

fn fill(template: &str, id: &str, token: &str) -> String {
    template.replace('@', id).replace('#', token)
}

proptest! {
    #[test]
    fn only_the_names_of_a_request_change(template in template(), id in id(), token in id()) {
        let mut multiplexer = Multiplexer::new(Limits::default());
        multiplexer.send(1, &Message::parse(r#"{"jsonrpc":"2.0","id":1,"method":"x"}"#).unwrap()).unwrap();
        let text = fill(&template, &id, &token);
        let message = Message::parse(text.as_str()).unwrap();
        let Ok(ToServer::Request { wire, text }) = multiplexer.send(2, &message) else { panic!("{text}") };
        let name = wire.to_string();
        prop_assert_eq!(text, fill(&template, &name, &name));

        let answer = format!(r#" {{"result": {{"id":{name}}} ,"id" :{name}, "jsonrpc":"2.0"}}"#);
        let FromServer::Answer(delivery) = multiplexer.receive(Message::parse(answer).unwrap()) else {
            panic!("lost")
        };
        prop_assert_eq!(delivery.owner, 2);
        let wanted = format!(r#" {{"result": {{"id":{name}}} ,"id" :{id}, "jsonrpc":"2.0"}}"#);
        prop_assert_eq!(delivery.text(), wanted);
    }

    #[test]
    fn results_reach_their_reader_as_they_were_written(result in json(), extra in json()) {
        let text = format!(r#"{{"jsonrpc":"2.0","extra":{extra},"id":3,"result":{result} }}"#);
        let message = Message::parse(text.as_str()).unwrap();
        prop_assert_eq!(message.text(), text.as_str());
        let Envelope::Response { id, result: read } = message.envelope() else { panic!("{text}") };
        prop_assert_eq!((id.as_u64(), read), (Some(3), result.as_str()));
    }

    #[test]
    fn any_bytes_are_a_message_or_refused(bytes in vec(any::<u8>(), 0..200)) {
        let _ = Message::parse(bytes);
    }

    #[test]
    fn damaged_messages_are_read_as_serde_json_reads_them(
        template in template(),
        id in id(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut bytes = fill(&template, &id, "7").into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(message) = Message::parse(bytes.clone()) {
            let value: Value = match serde_json::from_slice(&bytes) {
                Ok(value) => value,
                // A lone surrogate or a number beyond any float is JSON by its grammar.
                Err(_) => return Ok(()),
            };
            prop_assert_eq!(message.raw_id().is_some(), value.get("id").is_some());
            if let Envelope::Request { method, .. } | Envelope::Notification { method, .. } = message.envelope() {
                prop_assert_eq!(Some(method), value["method"].as_str());
            }
        }
    }

    #[test]
    fn a_stream_in_any_pieces_gives_the_same_lines(
        lines in vec(prop_oneof![Just(r#"{"jsonrpc":"2.0","method":"x"}"#.to_owned()), "[^\n]{0,40}"], 0..8),
        piece in 1usize..64,
    ) {
        let stream: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let seen = runtime.block_on(async {
            let mut mock = Pieces { bytes: stream.as_bytes(), piece };
            let mut reader = MessageReader::new(&mut mock);
            let mut seen = Vec::new();
            while let Some(line) = reader.next().await.unwrap() {
                seen.push(match line {
                    Incoming::Message(message) => message.into_text(),
                    Incoming::Rejected(line) => line.preview,
                });
            }
            seen
        });
        let wanted: Vec<_> = lines.iter().filter(|line| !line.trim_ascii().is_empty()).cloned().collect();
        prop_assert_eq!(seen, wanted);
    }
}

/// A stream that gives a few bytes at a time.
struct Pieces<'a> {
    bytes: &'a [u8],
    piece: usize,
}

impl tokio::io::AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        let (now, later) = self.bytes.split_at(self.piece.min(self.bytes.len()));
        buffer.put_slice(now);
        self.bytes = later;
        std::task::Poll::Ready(Ok(()))
    }
}

/// What happens to a shared conversation. Numbers pick among what there is by then.
#[derive(Debug, Clone)]
enum Step {
    Ask { owner: u8, id: u8, token: bool },
    Cancel { owner: u8, id: u8 },
    Leave { owner: u8 },
    Answer { which: usize, error: bool },
    AnswerUnknown { beyond: u64 },
    Progress { which: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let (owner, id) = (0..5_u8, 0..4_u8);
    prop_oneof![
        4 => (owner.clone(), id.clone(), any::<bool>()).prop_map(|(owner, id, token)| Step::Ask { owner, id, token }),
        1 => (owner.clone(), id).prop_map(|(owner, id)| Step::Cancel { owner, id }),
        1 => owner.prop_map(|owner| Step::Leave { owner }),
        4 => (any::<usize>(), any::<bool>()).prop_map(|(which, error)| Step::Answer { which, error }),
        1 => any::<u64>().prop_map(|beyond| Step::AnswerUnknown { beyond }),
        2 => any::<usize>().prop_map(|which| Step::Progress { which }),
    ]
}

struct Asked {
    wire: u64,
    owner: u8,
    id: u8,
    token: bool,
    open: bool,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn nobody_gets_what_is_anothers_and_nobody_gets_it_twice(steps in vec(step(), 0..120)) {
        let limits = Limits { open: 9, open_per_owner: 3 };
        let mut multiplexer: Multiplexer<u8> = Multiplexer::new(limits);
        let mut asked: Vec<Asked> = Vec::new();
        let mut delivered: HashMap<u64, u32> = HashMap::new();
        for step in steps {
            match step {
                Step::Ask { owner, id, token } => {
                    let meta = if token { format!(r#"{{"progressToken":"{owner}"}}"#) } else { "{}".into() };
                    let text =
                        format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"x","params":{{"_meta":{meta}}}}}"#);
                    let open: Vec<_> = asked.iter().filter(|asked| asked.open).collect();
                    let own = open.iter().filter(|asked| asked.owner == owner).count();
                    let twice = open.iter().any(|asked| asked.owner == owner && asked.id == id);
                    let allowed = !twice && own < limits.open_per_owner && open.len() < limits.open;
                    let last = asked.last().map_or(0, |asked| asked.wire);
                    match multiplexer.send(owner, &Message::parse(text).unwrap()) {
                        Ok(ToServer::Request { wire, .. }) => {
                            prop_assert!(allowed && wire > last);
                            asked.push(Asked { wire, owner, id, token, open: true });
                        }
                        other => prop_assert!(!allowed && other.is_err(), "{:?}", other),
                    }
                }
                Step::Cancel { owner, id } => {
                    let text = format!(
                        r#"{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{{"requestId":{id}}}}}"#
                    );
                    let sent = multiplexer.send(owner, &Message::parse(text).unwrap()).unwrap();
                    let open = asked.iter_mut().find(|asked| asked.open && asked.owner == owner && asked.id == id);
                    match (open, sent) {
                        (Some(open), ToServer::Notification(text)) => {
                            open.open = false;
                            let told: Value = serde_json::from_str(&text).unwrap();
                            prop_assert_eq!(told["params"]["requestId"].as_u64(), Some(open.wire));
                        }
                        (None, ToServer::Nothing) => {}
                        (_, sent) => prop_assert!(false, "{:?}", sent),
                    }
                }
                Step::Leave { owner } => {
                    let told = multiplexer.leave(owner).len();
                    let own = asked.iter_mut().filter(|asked| asked.open && asked.owner == owner);
                    prop_assert_eq!(told, own.map(|asked| asked.open = false).count());
                }
                Step::Answer { which, error } => {
                    if asked.is_empty() { continue; }
                    let index = which % asked.len();
                    let asked = &mut asked[index];
                    let body = if error { r#""error":{}"# } else { r#""result":{}"# };
                    let text = format!(r#"{{"jsonrpc":"2.0","id":{},{body}}}"#, asked.wire);
                    match multiplexer.receive(Message::parse(text).unwrap()) {
                        FromServer::Answer(delivery) => {
                            prop_assert!(asked.open);
                            asked.open = false;
                            *delivered.entry(asked.wire).or_default() += 1;
                            prop_assert_eq!(delivery.owner, asked.owner);
                            let wanted = format!(r#"{{"jsonrpc":"2.0","id":{},{body}}}"#, asked.id);
                            prop_assert_eq!(delivery.text(), wanted);
                        }
                        other => prop_assert!(!asked.open && matches!(other, FromServer::Dropped)),
                    }
                }
                Step::AnswerUnknown { beyond } => {
                    let last = asked.last().map_or(0, |asked| asked.wire);
                    let wire = last.saturating_add(1).saturating_add(beyond);
                    let text = format!(r#"{{"jsonrpc":"2.0","id":{wire},"result":{{}}}}"#);
                    let received = multiplexer.receive(Message::parse(text).unwrap());
                    prop_assert!(matches!(received, FromServer::Dropped));
                }
                Step::Progress { which } => {
                    if asked.is_empty() { continue; }
                    let asked = &asked[which % asked.len()];
                    let text = |token: &str| format!(
                        r#"{{"jsonrpc":"2.0","method":"notifications/progress","params":{{"progressToken":{token}}}}}"#
                    );
                    let message = Message::parse(text(&asked.wire.to_string())).unwrap();
                    match multiplexer.receive(message) {
                        FromServer::Notice(delivery) => {
                            prop_assert!(asked.open && asked.token);
                            prop_assert_eq!(delivery.owner, asked.owner);
                            prop_assert_eq!(delivery.text(), text(&format!("\"{}\"", asked.owner)));
                        }
                        other => {
                            prop_assert!(!(asked.open && asked.token) && matches!(other, FromServer::Dropped));
                        }
                    }
                }
            }
            prop_assert_eq!(multiplexer.open(), asked.iter().filter(|asked| asked.open).count());
        }
        prop_assert!(delivered.values().all(|times| *times == 1));
        let counters = multiplexer.counters();
        prop_assert_eq!(counters.refused_requests, 0);
    }
}
