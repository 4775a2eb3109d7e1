use crate::{Limits, connection, testing::*};
use serde_json::json;
use std::{rc::Rc, time::Duration};
use tokio::{
    io::{AsyncWriteExt, duplex},
    sync::watch,
    task::spawn_local,
    time::sleep,
};

/// What is written for a client that reads nothing of it.
fn raw_post(session: &str, accept: &str, body: &str) -> String {
    format!(
        "POST /mcp/a HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\naccept: {accept}\r\n\
         mcp-session-id: {session}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[test]
fn an_answer_that_is_not_read_keeps_neither_its_connection_nor_its_session() {
    for accept in ["application/json", "text/event-stream"] {
        local(async move {
            let limits = Limits { session_idle: Duration::from_secs(60), ..Limits::default() };
            let world = World::with(limits);
            let session = world.begin().await;
            let (mut near, far) = duplex(64 << 10);
            let (_close, closing) = watch::channel(false);
            let serving = spawn_local(connection::serve(Rc::clone(&world.gateway), far, closing));
            let body = request(1, "echo", json!({"x": "y".repeat(4_000_000)}));
            near.write_all(raw_post(&session, accept, &body).as_bytes()).await.unwrap();
            sleep(Duration::from_secs(30)).await;
            assert!(serving.is_finished(), "{accept}");
            assert_eq!(world.live(), 1);
            sleep(Duration::from_secs(60)).await;
            assert_eq!(world.live(), 0, "{accept}");
        });
    }
}
