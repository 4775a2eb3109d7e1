//! Asks for the schemas of tools, where a call was refused for want of the headers that they name (2026-07-28,
//! Streamable HTTP, client behavior).

use casemate_proto::limits::MCP_MESSAGE_BYTES;

use super::Reach;
use super::answer::{self, Belongs};
use super::connections::Kind;
use super::exchange::{Asked, Talk};
use super::room::Room;
use super::sse::Decoder;
use crate::envelope::{Envelope, Message};
use crate::object;

/// The most pages of a list that are asked for.
const PAGES: usize = 50;

/// What this side's own request is called; in this era ids are told apart by their streams.
const ID: &str = "\"casemate-schemas\"";

/// Learns from the list of tools, asked for with the metadata of `message`. Without an answer nothing is learned.
pub(super) async fn learn<R: Reach>(talk: &Talk<R>, message: &Message) {
    let Envelope::Request { params: Some(params), .. } = message.envelope() else { return };
    let Ok([Some(meta)]) = object::find(params, ["_meta"]) else { return };
    let mut cursor = String::new();
    for _ in 0..PAGES {
        let params = format!(r#"{{"_meta":{}{cursor}}}"#, meta.get());
        let list = format!(r#"{{"jsonrpc":"2.0","id":{ID},"method":"tools/list","params":{params}}}"#);
        let Ok(list) = Message::parse(list) else { return };
        let mut room = None;
        let Some(answer) = fetch(talk, &list, &mut room).await else { return };
        let Envelope::Response { result, .. } = answer.envelope() else { return };
        talk.learn(result);
        match object::find(result, ["nextCursor"]) {
            Ok([Some(next)]) if next.get().starts_with('"') => {
                cursor = format!(r#","cursor":{}"#, next.get())
            }
            _ => return,
        }
    }
}

/// The answer to a request that the client does not know of, and the room that it takes.
async fn fetch<R: Reach>(talk: &Talk<R>, message: &Message, room: &mut Room) -> Option<Message> {
    let asked = Asked::of(message, true)?;
    let mut reply = talk.connections.post(message.text(), talk.heading(message).fields).await.ok()?;
    if reply.kind() == Kind::Whole {
        let status = reply.status();
        let body = talk.whole(&mut reply, room).await.ok()?;
        talk.connections.finish(reply);
        return answer::whole(status, body, &asked).ok();
    }
    let mut decoder = Decoder::new(MCP_MESSAGE_BYTES);
    while let Some(Ok(chunk)) = reply.chunk().await {
        talk.rooms.grow(room, decoder.held() + chunk.len()).await;
        decoder.push(&chunk).ok()?;
        while let Some(event) = decoder.next_event() {
            let said = Message::parse(event.data).ok();
            let answer = said.filter(|said| answer::belongs(said, Some(&asked.id)) == Belongs::Answer);
            if answer.is_some() {
                talk.connections.finish(reply);
                return answer;
            }
        }
    }
    None
}
