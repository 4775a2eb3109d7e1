//! Whether a machine lives: its agent is asked again and again, and its server where the supervisor speaks
//! with it.

use super::{ending::Ending, shared::Shared};
use crate::{
    control::{Control, ControlError},
    spec::{Restart, Spec},
};
use casemate_link::ConnectError;
use casemate_mcp::client::RequestError;
use casemate_proto::{
    control::{Pong, Request},
    mux::ResetCode,
};
use std::{rc::Rc, time::Duration};
use tokio::time::{sleep, timeout};

/// What a ping told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sign {
    /// There is life.
    Well,
    /// There was none from this one.
    None(&'static str),
    /// The machine was suspended, paused or ended meanwhile, or its link is full: nothing can be told.
    Unknown,
}

pub(super) const AGENT: &str = "agent";
const SERVER: &str = "server";

/// Resolves when the machine is beyond hope. After the first silence the record says so; after the second a
/// machine whose agent is silent is over, and one whose server is silent where it is to be restarted: a
/// server may have much to do.
pub(super) async fn watch(spec: &Spec, shared: &Rc<Shared>) -> Ending {
    let interval = Duration::from_millis(spec.health_ms);
    // `marked`: the record says so.
    let (mut silent, mut last, mut marked) = (0, "", false);
    loop {
        sleep(interval).await;
        match ask(shared, interval).await {
            Sign::Unknown => silent = 0,
            Sign::Well if marked => {
                (silent, marked) = (0, false);
                shared.note("answers again");
                shared.recorder.update(|record| record.reason = None);
            }
            Sign::Well => silent = 0,
            Sign::None(what) => {
                // A silent server says nothing of its agent.
                silent = if what == last { silent + 1 } else { 1 };
                (last, marked) = (what, true);
                let reason = format!("{what} has not answered a ping for {} s", interval.as_secs_f32());
                shared.note(&reason);
                shared.recorder.update(|record| record.reason = Some(reason));
                let hopeless = what == AGENT || spec.restart == Restart::OnFailure;
                if silent > 1 && hopeless {
                    return Ending::Hung { what, patience: interval * silent };
                }
            }
        }
    }
}

async fn ask(shared: &Rc<Shared>, patience: Duration) -> Sign {
    // A suspended machine is not woken for this.
    let Some(link) = shared.link.borrow().clone().filter(|_| !shared.paused.get()) else {
        return Sign::Unknown;
    };
    let agent = async {
        let mut control = Control::open(&link.connector, &link.epoch, patience).await?;
        control.request::<Pong>("ping", Request::Ping, patience).await
    };
    let agent = timeout(patience, agent).await;
    let still_the_same = || {
        let now = shared.link.borrow();
        !shared.paused.get() && now.as_ref().is_some_and(|now| now.epoch == link.epoch)
    };
    match agent {
        Ok(Ok(_)) => {}
        // What cannot be asked is not silent.
        Ok(Err(ControlError::Connect(error))) if is_full(&error) => return Sign::Unknown,
        _ => return if still_the_same() { Sign::None(AGENT) } else { Sign::Unknown },
    }
    let Some(conversation) = shared.conversation.borrow().clone() else { return Sign::Well };
    // Not to be suspended with a ping on its way.
    shared.usage.begin();
    let answered = conversation.ping(patience).await;
    shared.usage.end_unnoticed();
    match answered {
        Err(RequestError::Timeout { .. }) if still_the_same() => Sign::None(SERVER),
        // Its end is seen elsewhere.
        Err(_) => Sign::Unknown,
        Ok(()) => Sign::Well,
    }
}

/// Whether a link has no room for another stream.
pub(super) fn is_full(error: &ConnectError) -> bool {
    matches!(error, ConnectError::TooMany | ConnectError::Refused { code: ResetCode::Busy, .. })
}

#[cfg(test)]
mod tests {
    use super::{
        super::played::{Played, asked, reply, within_a_minute},
        *,
    };
    use casemate_mcp::{Conversation, Options};
    use casemate_proto::{
        control::{Reply, ServerState},
        port,
    };
    use serde_json::{Value, json};
    use tokio::{
        io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream, duplex, split},
        net::UnixListener,
        select,
    };

    /// Longer than a busy host takes for a sign of life.
    const INTERVAL_MS: u64 = 1000;
    const PATIENCE: Duration = Duration::from_secs(10);

    fn played() -> Played {
        let mut played = Played::new();
        played.spec.health_ms = INTERVAL_MS;
        played
    }

    fn mark(played: &Played) -> Option<String> {
        played.shared.recorder.get().reason
    }

    /// Watches a machine meanwhile, which is not given up.
    async fn watched(played: &Played, agent: impl Future<Output = ()>) {
        select! {
            ending = watch(&played.spec, &played.shared) => panic!("it was given up: {ending}"),
            () = agent => {}
        }
    }

    async fn is_well(control: &UnixListener) {
        let (mut stream, ping) = asked(control).await;
        assert!(matches!(ping.request, Request::Ping));
        let pong = Pong { uptime_ms: 1, server: ServerState::Idle };
        reply(&mut stream, &Reply::done(ping.id, &pong)).await;
    }

    async fn is_silent(control: &UnixListener) {
        drop(asked(control).await);
    }

    #[test]
    fn a_link_without_room_is_no_silent_agent() {
        within_a_minute(async {
            let played = played();
            let full = played.fill_link().await;
            assert_eq!(ask(&played.shared, PATIENCE).await, Sign::Unknown);
            drop(full);
            played.refuse_streams();
            assert_eq!(ask(&played.shared, PATIENCE).await, Sign::Unknown);
        });
    }

    /// It is asked when another life has begun.
    async fn is_elsewhere(control: &UnixListener, played: &Played, epoch: &str) {
        let ping = asked(control).await;
        *played.shared.link.borrow_mut() = Some(played.link(epoch));
        drop(ping);
    }

    #[test]
    fn a_mark_is_cleared_once_the_machine_answers_again() {
        within_a_minute(async {
            let played = played();
            let control = played.listen(port::CONTROL);
            watched(&played, async {
                is_silent(&control).await;
                is_well(&control).await;
                assert_eq!(mark(&played).unwrap(), "agent has not answered a ping for 1 s");
                // What was said last has been noted when the next is asked.
                is_well(&control).await;
                assert_eq!(mark(&played), None);
                is_silent(&control).await;
                is_well(&control).await;
                assert!(mark(&played).is_some());
            })
            .await;
            assert!(played.log().contains("answers again"));
        });
    }

    #[test]
    fn a_mark_is_cleared_after_a_suspension_too_and_silences_before_it_do_not_count() {
        within_a_minute(async {
            let played = played();
            let control = played.listen(port::CONTROL);
            watched(&played, async {
                is_silent(&control).await;
                is_elsewhere(&control, &played, "two").await;
                is_silent(&control).await;
                is_elsewhere(&control, &played, "three").await;
                is_well(&control).await;
                assert!(mark(&played).is_some());
                is_well(&control).await;
                assert_eq!(mark(&played), None);
            })
            .await;
        });
    }

    #[test]
    fn what_is_written_down_of_a_machine_that_was_never_silent_stays() {
        within_a_minute(async {
            let played = played();
            let control = played.listen(port::CONTROL);
            let told = Some("was started anew after: it failed".to_owned());
            played.shared.recorder.update(|record| record.reason = told.clone());
            watched(&played, async {
                is_well(&control).await;
                is_well(&control).await;
            })
            .await;
            assert_eq!(mark(&played), told);
        });
    }

    #[test]
    fn an_agent_that_is_silent_twice_is_given_up() {
        within_a_minute(async {
            let played = played();
            let control = played.listen(port::CONTROL);
            let silences = async {
                is_silent(&control).await;
                is_silent(&control).await;
            };
            let (ending, ()) = tokio::join!(watch(&played.spec, &played.shared), silences);
            assert!(matches!(ending, Ending::Hung { what: AGENT, .. }));
        });
    }

    /// A conversation with a server that answers nothing more.
    async fn silent_server() -> (Conversation, BufReader<DuplexStream>) {
        let (ours, server) = duplex(64 << 10);
        let mut server = BufReader::new(server);
        let (reader, writer) = split(ours);
        let opened = Conversation::open(reader, writer, Options::new("test", "1"));
        let negotiated = async {
            let mut line = String::new();
            server.read_line(&mut line).await.unwrap();
            let asked: Value = serde_json::from_str(&line).unwrap();
            let result = json!({ "protocolVersion": "2025-06-18", "capabilities": {} });
            let answer = json!({ "jsonrpc": "2.0", "id": asked["id"], "result": result });
            server.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
            server
        };
        let (opened, server) = tokio::join!(opened, negotiated);
        (opened.unwrap(), server)
    }

    #[test]
    fn a_silent_server_and_then_a_silent_agent_are_no_agent_that_was_silent_twice() {
        within_a_minute(async {
            let played = played();
            let control = played.listen(port::CONTROL);
            let (conversation, _server) = silent_server().await;
            *played.shared.conversation.borrow_mut() = Some(conversation);
            watched(&played, async {
                is_well(&control).await;
                is_silent(&control).await;
                drop(played.shared.conversation.take());
                is_well(&control).await;
                assert_eq!(mark(&played).unwrap(), "agent has not answered a ping for 1 s");
            })
            .await;
        });
    }
}
