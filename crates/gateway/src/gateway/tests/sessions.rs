use crate::{Limits, OpenError, testing::*};
use hyper::StatusCode;
use serde_json::{Value, json};
use std::{collections::HashSet, time::Duration};
use tokio::{
    task::spawn_local,
    time::{Instant, sleep},
};

#[test]
fn a_session_begins_with_initialize_and_ends_with_delete() {
    local(async {
        let world = World::new();
        let begun = world.post(None, &initialize("2025-06-18")).await;
        assert_eq!((begun.status, begun.header("content-type")), (StatusCode::OK, "application/json"));
        assert_eq!(begun.json()["result"]["protocolVersion"], "2025-06-18");
        let session = begun.header("mcp-session-id");
        assert_eq!(session.len(), 40);
        let answer = world.post(Some(session), &request(1, "echo", json!({"x": 1}))).await;
        assert_eq!(answer.json(), json!({"jsonrpc": "2.0", "id": 1, "result": {"x": 1}}));
        assert!(!answer.headers.contains_key("mcp-session-id"));
        assert_eq!(world.live(), 1);

        let ended = world.ask(delete(session)).await;
        assert_eq!((ended.status, world.live()), (StatusCode::NO_CONTENT, 0));
        for request in
            [post(Some(session), &request(2, "echo", json!({}))), get(session, None), delete(session)]
        {
            assert_eq!(world.ask(request).await.status, StatusCode::NOT_FOUND);
        }
    });
}

#[test]
fn a_session_has_to_be_named_known_and_of_that_server() {
    local(async {
        let world = World::new();
        let session = world.begin().await;
        let ping = request(1, "ping", json!({}));
        assert_eq!(world.post(None, &ping).await.refused(), (400, -32000));
        assert_eq!(world.post(Some("00"), &ping).await.refused(), (404, -32000));
        assert_eq!(world.post(Some("00"), &ping).await.json()["id"], 1);
        let mut other = post(Some(&session), &ping);
        *other.uri_mut() = "/mcp/b".parse().unwrap();
        assert_eq!(world.ask(other).await.refused(), (404, -32000));
        assert_eq!(world.post(Some(&session), &initialize(LATEST)).await.refused(), (400, -32600));
        let mut twice = post(Some(&session), &ping);
        twice.headers_mut().append("mcp-session-id", "x".parse().unwrap());
        assert_eq!(world.ask(twice).await.refused(), (400, -32000));
        for method in ["GET", "DELETE"] {
            let mut nameless = get(&session, None);
            *nameless.method_mut() = method.parse().unwrap();
            nameless.headers_mut().remove("mcp-session-id");
            assert_eq!(world.ask(nameless).await.refused(), (400, -32000), "{method}");
        }
        assert_eq!(*world.servers.heard.borrow(), [initialize(LATEST)]);
    });
}

#[test]
fn ids_are_drawn_anew_each_time() {
    let ids: HashSet<String> = (0..1000).map(|_| crate::gateway::begin::session_id().unwrap()).collect();
    assert_eq!(ids.len(), 1000);
    let digits: HashSet<u8> = ids.iter().flat_map(|id| id.bytes()).collect();
    assert_eq!(digits.len(), 16);
}

#[test]
fn notifications_and_answers_are_accepted_and_passed_on() {
    local(async {
        let world = World::new();
        let session = world.begin().await;
        let said = [
            r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#,
            r#"{"jsonrpc":"2.0","id":"q9","result":{}}"#,
            r#"{"jsonrpc":"2.0","id":7,"error":{"code":-1,"message":"no"}}"#,
        ];
        for message in said {
            let answer = world.post(Some(&session), message).await;
            assert_eq!((answer.status, answer.body.as_str()), (StatusCode::ACCEPTED, ""));
        }
        world.post(Some(&session), &request(1, "echo", json!({}))).await;
        assert_eq!(world.servers.heard.borrow()[1..4], said);
    });
}

#[test]
fn messages_pass_as_they_were_written() {
    local(async {
        let world = World::new();
        let session = world.begin().await;
        let params =
            "{\"big\" : 123456789012345678901234567890,\t\"e\":1e400, \"e\":-0, \"\":\"\\u00e9 🏰\"}";
        let odd = format!(
            " {{\"id\": \"\\u0061\" ,\"method\":\"echo\",\"jsonrpc\":\"2.0\",\"x\":[],\"params\":{params}}}\n"
        );
        let answer = world.post(Some(&session), &odd).await;
        assert_eq!(answer.body, format!(r#"{{"jsonrpc":"2.0","id":"\u0061","result":{params}}}"#));
        // A line break ends a message on a byte stream, so it becomes a space.
        assert_eq!(world.servers.heard.borrow()[1], odd.replace('\n', " "));
    });
}

#[test]
fn clients_that_use_the_same_ids_get_their_own_answers() {
    local(async {
        let world = std::rc::Rc::new(World::new());
        let mut clients = Vec::new();
        for client in 0..16 {
            let world = std::rc::Rc::clone(&world);
            clients.push(spawn_local(async move {
                let session = world.begin_with(if client % 2 == 0 { "a" } else { "b" }, LATEST).await;
                let server = if client % 2 == 0 { "a" } else { "b" };
                let mut name = Value::Null;
                for id in 0..50 {
                    let ask = |method: &str, params| {
                        let mut request = post(Some(&session), &request(id, method, params));
                        *request.uri_mut() = format!("/mcp/{server}").parse().unwrap();
                        request
                    };
                    let own = json!({"client": client, "id": id});
                    let (echo, who) =
                        (world.ask(ask("echo", own.clone())).await, world.ask(ask("who", json!({}))).await);
                    assert_eq!((&echo.json()["id"], &echo.json()["result"]), (&json!(id), &own));
                    let now = who.json()["result"]["name"].clone();
                    assert!(id == 0 || now == name, "{now} {name}");
                    name = now;
                }
                name.to_string()
            }));
        }
        let mut names = HashSet::new();
        for client in clients {
            names.insert(client.await.unwrap());
        }
        assert_eq!((names.len(), world.live()), (16, 16));
    });
}

#[test]
fn a_refused_initialize_leaves_nothing() {
    local(async {
        let world = World::new();
        let body = request(0, "initialize", json!({"protocolVersion": LATEST, "fail": true}));
        let answer = world.post(None, &body).await;
        assert_eq!((answer.status.as_u16(), answer.json()["error"]["code"].as_i64()), (200, Some(-32602)));
        assert!(!answer.headers.contains_key("mcp-session-id"));
        sleep(Duration::from_secs(1)).await;
        assert_eq!((world.servers.started.get(), world.live()), (1, 0));
    });
}

#[test]
fn a_client_that_leaves_before_its_session_began_leaves_nothing() {
    local(async {
        let world = World::new();
        world.servers.delay.set(Duration::from_secs(5));
        let waiting = world.send(post(None, &initialize(LATEST)));
        assert!(tokio::time::timeout(Duration::from_secs(1), waiting).await.is_err());
        sleep(Duration::from_secs(60)).await;
        assert_eq!((world.servers.started.get(), world.live()), (1, 0));
        assert!(world.gateway.sessions.borrow().is_empty());
    });
}

#[test]
fn a_machine_for_which_there_is_no_room_is_asked_for_again_later() {
    local(async {
        let world = World::new();
        world.servers.refusal.replace(Some(OpenError::NoRoom("100 MiB are missing".to_owned())));
        let answer = world.post(None, &initialize(LATEST)).await;
        assert_eq!((answer.refused(), answer.header("retry-after")), ((503, -32000), "5"));
        assert!(answer.body.contains("100 MiB are missing") && answer.json()["id"] == 0, "{answer:?}");

        world.servers.refusal.replace(Some(OpenError::Failed("no such image".to_owned())));
        let answer = world.post(None, &initialize(LATEST)).await;
        assert_eq!(answer.refused(), (200, -32000));
        assert!(answer.body.contains("could not be started: no such image; the request was not delivered"));
        assert!(world.gateway.sessions.borrow().is_empty());
    });
}

#[test]
fn an_idle_session_ends_even_while_its_stream_is_open() {
    local(async {
        let world = World::new();
        let session = world.begin().await;
        let stream = world.send(get(&session, None)).await;
        sleep(Duration::from_secs(29 * 60)).await;
        assert_eq!(world.live(), 1);
        let answer = world.post(Some(&session), &request(1, "echo", json!({}))).await;
        assert_eq!(answer.status, StatusCode::OK);
        sleep(Duration::from_secs(29 * 60)).await;
        assert_eq!(world.live(), 1);
        sleep(Duration::from_secs(2 * 60)).await;
        assert_eq!(world.live(), 0);
        assert!(read(stream).await.body.contains(": still here"));
        assert_eq!(world.post(Some(&session), &request(1, "echo", json!({}))).await.refused(), (404, -32000));
    });
}

#[test]
fn a_session_of_which_its_client_may_not_have_heard_is_not_kept_for_long() {
    local(async {
        let world = World::new();
        let known = world.begin().await;
        world.begin().await;
        let initialized = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
        assert_eq!(world.post(Some(&known), initialized).await.status, StatusCode::ACCEPTED);
        sleep(Duration::from_secs(59)).await;
        assert_eq!(world.live(), 2);
        sleep(Duration::from_secs(2)).await;
        assert_eq!(world.live(), 1);
        let answer = world.post(Some(&known), &request(1, "echo", json!({}))).await;
        assert_eq!(answer.status, StatusCode::OK);
    });
}

#[test]
fn a_server_that_does_not_answer_initialize_is_not_waited_for_for_ever() {
    local(async {
        let world = World::new();
        let hang = request(0, "initialize", json!({"protocolVersion": LATEST, "hang": true}));
        let began = Instant::now();
        let answer = world.post(None, &hang).await;
        assert_eq!((answer.refused(), began.elapsed().as_secs()), ((200, -32000), 300));
        assert!(answer.body.contains("did not answer initialize within 300 s"), "{answer:?}");
        sleep(Duration::from_millis(1)).await;
        assert_eq!(world.live(), 0);
    });
}

#[test]
fn a_document_is_not_waited_for_for_ever() {
    local(async {
        let world = World::with(Limits { document: Duration::from_secs(600), ..Limits::default() });
        let session = world.begin().await;
        let mut hang = post(Some(&session), &request(1, "hang", json!({})));
        hang.headers_mut().insert("accept", "application/json".parse().unwrap());
        let began = Instant::now();
        let answer = world.ask(hang).await;
        assert_eq!((answer.refused(), answer.json()["id"].clone()), ((504, -32000), json!(1)));
        assert_eq!(began.elapsed().as_secs(), 600);
        sleep(Duration::from_secs(31 * 60)).await;
        assert_eq!(world.live(), 0);
    });
}

/// A day in which one client is at work, one waits for an answer, one only listens to what is said, and others
/// are gone.
#[test]
fn a_day_ends_the_sessions_that_nobody_uses_and_no_other() {
    local(async {
        let world = World::with(Limits { session_idle: Duration::from_secs(30 * 60), ..Limits::default() });
        let (working, waiting) = (world.begin().await, world.begin().await);
        for _ in 0..20 {
            world.begin().await;
        }
        let mut patient = world.send(post(Some(&waiting), &request(1, "hang", json!({})))).await;
        let listener = spawn_local(async move { while piece(&mut patient).await.is_some() {} });
        let listening = world.begin().await;
        let mut own = world.send(get(&listening, None)).await;
        world.post(Some(&listening), r#"{"jsonrpc":"2.0","method":"chatter"}"#).await;
        let heard = spawn_local(async move {
            let mut heard = 0;
            while let Some(piece) = piece(&mut own).await {
                heard += events(&piece).len();
            }
            heard
        });
        for _ in 0..24 * 6 {
            let answer = world.post(Some(&working), &request(1, "echo", json!({}))).await;
            assert_eq!(answer.status, StatusCode::OK);
            sleep(Duration::from_secs(600)).await;
        }
        // A server that talks by itself is used by nobody.
        let heard = tokio::time::timeout(Duration::from_secs(60), heard).await.unwrap();
        assert_eq!(heard.unwrap(), 3);
        assert_eq!(world.live(), 2);
        listener.abort();
        sleep(Duration::from_secs(31 * 60)).await;
        assert_eq!(world.live(), 0);
    });
}
