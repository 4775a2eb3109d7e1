use super::*;

type Mux = Multiplexer<char>;

fn mux() -> Mux {
    Multiplexer::new(Limits { open: 4, open_per_owner: 3 })
}

fn message(text: &str) -> Message {
    Message::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn ask(mux: &mut Mux, owner: char, text: &str) -> (u64, String) {
    match mux.send(owner, &message(text)) {
        Ok(ToServer::Request { wire, text }) => (wire, text),
        other => panic!("{text}: {other:?}"),
    }
}

fn call(mux: &mut Mux, owner: char, id: &str) -> u64 {
    ask(mux, owner, &format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call"}}"#)).0
}

fn answer(mux: &mut Mux, wire: u64) -> FromServer<char> {
    mux.receive(message(&format!(r#"{{"jsonrpc":"2.0","id":{wire},"result":{{}}}}"#)))
}

fn dropped(from: &FromServer<char>) -> bool {
    matches!(from, FromServer::Dropped)
}

#[test]
fn each_owner_gets_its_own_answer_under_its_own_id() {
    let mut mux = mux();
    let (a, text) = ask(&mut mux, 'a', r#"{ "id" : 1, "jsonrpc":"2.0","method":"x","params":{"id":1}}"#);
    assert_eq!(text, format!(r#"{{ "id" : {a}, "jsonrpc":"2.0","method":"x","params":{{"id":1}}}}"#));
    let b = call(&mut mux, 'b', "1");
    let c = call(&mut mux, 'b', r#""\u0031""#);
    for (wire, owner, own) in [(c, 'b', r#""\u0031""#), (a, 'a', "1"), (b, 'b', "1")] {
        let FromServer::Answer(delivery) = answer(&mut mux, wire) else { panic!("not delivered") };
        assert_eq!(delivery.owner, owner);
        assert_eq!(delivery.text(), format!(r#"{{"jsonrpc":"2.0","id":{own},"result":{{}}}}"#));
    }
    assert_eq!(mux.counters(), Counters::default());
}

#[test]
fn second_unknown_and_unreadable_answers_go_nowhere() {
    let mut mux = mux();
    let wire = call(&mut mux, 'a', "1");
    let FromServer::Answer(_) = answer(&mut mux, wire) else { panic!("not delivered") };
    assert!(dropped(&answer(&mut mux, wire)));
    assert!(dropped(&answer(&mut mux, wire + 1)));
    for id in [r#""1""#, "-1", "99999999999999999999999"] {
        let text = format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{}}}}"#);
        assert!(dropped(&mux.receive(message(&text))));
    }
    assert!(dropped(&mux.receive(message(r#"{"jsonrpc":"2.0","error":{}}"#))));
    assert_eq!(mux.counters(), Counters { stray_answers: 6, ..Counters::default() });
}

#[test]
fn a_cancellation_names_the_request_as_the_server_knows_it() {
    let mut mux = mux();
    let theirs = call(&mut mux, 'b', "7");
    let wire = call(&mut mux, 'a', "7");
    let cancel =
        r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"reason":"r","requestId": 7}}"#;
    let sent = mux.send('a', &message(cancel)).unwrap();
    assert_eq!(sent, ToServer::Notification(cancel.replace(": 7", &format!(": {wire}"))));
    assert_eq!(mux.send('a', &message(cancel)), Ok(ToServer::Nothing));
    assert_eq!(mux.send('c', &message(cancel)), Ok(ToServer::Nothing));
    assert!(dropped(&answer(&mut mux, wire)));
    assert!(dropped(&answer(&mut mux, wire)));
    assert_eq!(mux.counters(), Counters { late_answers: 1, stray_answers: 1, ..Counters::default() });
    assert!(matches!(answer(&mut mux, theirs), FromServer::Answer(Delivery { owner: 'b', .. })));
}

#[test]
fn a_cancellation_that_readers_could_read_differently_is_refused() {
    let mut mux = mux();
    call(&mut mux, 'a', "7");
    let params = |params: &str| {
        message(&format!(r#"{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{params}}}"#))
    };
    for ambiguous in [r#"{"requestId":7,"requestId":1}"#, r#"{"requestId":7,"requestid":1}"#] {
        let refused = mux.send('a', &params(ambiguous)).unwrap_err();
        assert_eq!(refused, Refused::Ambiguous { name: "requestId" });
    }
    assert_eq!(mux.send('a', &params(r#"{"requestId":7.0}"#)), Err(Refused::NoId { name: "requestId" }));
    assert_eq!(mux.send('a', &params("{}")), Ok(ToServer::Nothing));
    assert_eq!(mux.open(), 1);
}

#[test]
fn a_notification_with_an_id_is_refused() {
    let mut mux = mux();
    let wire = call(&mut mux, 'a', "1");
    let cancel = format!(
        r#"{{"jsonrpc":"2.0","id":2,"method":"notifications/cancelled","params":{{"requestId":{wire}}}}}"#
    );
    assert_eq!(mux.send('b', &message(&cancel)), Err(Refused::NotificationWithId));
}

#[test]
fn initialize_is_not_cancelled() {
    let mut mux = mux();
    let initialize = r#"{"jsonrpc":"2.0","id":0,"method":"initialize"}"#;
    let (wire, _) = ask(&mut mux, 'a', initialize);
    let cancel = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":0}}"#;
    assert_eq!(mux.send('a', &message(cancel)), Ok(ToServer::Nothing));
    assert!(mux.leave('a').is_empty());
    assert!(dropped(&answer(&mut mux, wire)));
    assert_eq!(mux.counters().late_answers, 1);
}

#[test]
fn an_owner_that_leaves_takes_its_requests_along() {
    let mut mux = mux();
    let (first, second) = (call(&mut mux, 'a', "1"), call(&mut mux, 'a', "2"));
    let theirs = call(&mut mux, 'b', "1");
    let mut told = mux.leave('a');
    told.sort();
    let cancellation = |wire| {
        format!(r#"{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{{"requestId":{wire}}}}}"#)
    };
    assert_eq!(told, [cancellation(first), cancellation(second)]);
    assert!(mux.leave('a').is_empty());
    assert!(dropped(&answer(&mut mux, first)));
    assert!(matches!(answer(&mut mux, theirs), FromServer::Answer(_)));
    assert_eq!(mux.open(), 0);
}

#[test]
fn open_requests_are_bounded_and_their_ids_distinct() {
    let mut mux = mux();
    let request = |id: u8| message(&format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"x"}}"#));
    let first = call(&mut mux, 'a', "1");
    assert_eq!(mux.send('a', &request(1)), Err(Refused::DuplicateId));
    call(&mut mux, 'a', "2");
    call(&mut mux, 'a', "3");
    assert_eq!(mux.send('a', &request(4)), Err(Refused::TooManyOpen));
    call(&mut mux, 'b', "1");
    assert_eq!(mux.send('c', &request(1)), Err(Refused::TooManyOpen));
    answer(&mut mux, first);
    let again = call(&mut mux, 'a', "1");
    assert!(again > first);
}

#[test]
fn progress_follows_its_request() {
    let mut mux = mux();
    let text = r#"{"jsonrpc":"2.0","id":5,"method":"x","params":{"_meta":{"a":1,"progressToken" : "p"}}}"#;
    let (wire, sent) = ask(&mut mux, 'a', text);
    assert_eq!(sent, text.replace("5", &wire.to_string()).replace("\"p\"", &wire.to_string()));
    let untold = call(&mut mux, 'b', "5");
    let progress = |token: &str| {
        let params = format!(r#"{{"progressToken":{token},"progress":5}}"#);
        message(&format!(r#"{{"jsonrpc":"2.0","method":"notifications/progress","params":{params}}}"#))
    };
    let FromServer::Notice(delivery) = mux.receive(progress(&wire.to_string())) else { panic!("lost") };
    assert_eq!((delivery.owner, delivery.text()), ('a', progress("\"p\"").into_text()));
    for stray in [&untold.to_string(), "\"p\"", "5.0", "null", "[]", "99"] {
        assert!(dropped(&mux.receive(progress(stray))), "{stray}");
    }
    answer(&mut mux, wire);
    assert!(dropped(&mux.receive(progress(&wire.to_string()))));
    assert_eq!(mux.counters().stray_notifications, 7);
}

#[test]
fn tokens_that_readers_could_read_differently_are_refused() {
    let mut mux = mux();
    let request = |meta: &str| {
        message(&format!(r#"{{"jsonrpc":"2.0","id":1,"method":"x","params":{{"_meta":{meta}}}}}"#))
    };
    let token = "progressToken";
    for (meta, refused) in [
        (r#"{"progressToken":1,"progressToken":2}"#, Refused::Ambiguous { name: token }),
        (r#"{"progressToken":1,"progresstoken":2}"#, Refused::Ambiguous { name: token }),
        (r#"{"progressToken":1.0}"#, Refused::NoId { name: token }),
        (r#"{"progressToken":null}"#, Refused::NoId { name: token }),
        (r#"{},"_Meta":{"progressToken":1}"#, Refused::Ambiguous { name: "_meta" }),
    ] {
        assert_eq!(mux.send('a', &request(meta)), Err(refused), "{meta}");
        assert_eq!(refused.code(), -32602);
    }
    for harmless in ["null", "7", r#"{"other":1.0}"#] {
        let (wire, text) = ask(&mut mux, 'a', request(harmless).text());
        assert_eq!(text, request(harmless).text().replace(r#""id":1"#, &format!(r#""id":{wire}"#)));
        answer(&mut mux, wire);
    }
}

#[test]
fn a_subscription_follows_its_owner_until_it_ends() {
    let mut mux = mux();
    let listen =
        r#"{"jsonrpc":"2.0","id":"l","method":"subscriptions/listen","params":{"notifications":{}}}"#;
    let (wire, _) = ask(&mut mux, 'a', listen);
    let (other, _) = ask(&mut mux, 'b', listen);
    let plain = call(&mut mux, 'c', "1");
    let changed = |id: &str| {
        let meta = format!(r#"{{"_meta":{{"io.modelcontextprotocol/subscriptionId":{id}}}}}"#);
        let method = "notifications/tools/list_changed";
        message(&format!(r#"{{"jsonrpc":"2.0","method":"{method}","params":{meta}}}"#))
    };
    let FromServer::Notice(delivery) = mux.receive(changed(&wire.to_string())) else { panic!("lost") };
    assert_eq!((delivery.owner, delivery.text()), ('a', changed("\"l\"").into_text()));
    for stray in [&plain.to_string(), "\"l\"", "null"] {
        assert!(dropped(&mux.receive(changed(stray))), "{stray}");
    }

    let meta = |id: &str| format!(r#"{{"_meta":{{"io.modelcontextprotocol/subscriptionId":{id}}}}}"#);
    let closed = |id: &str| format!(r#"{{"result":{},"id":{id},"jsonrpc":"2.0"}}"#, meta(id));
    let FromServer::Answer(delivery) = mux.receive(message(&closed(&wire.to_string()))) else {
        panic!("lost")
    };
    assert_eq!((delivery.owner, delivery.text()), ('a', closed("\"l\"")));
    assert!(dropped(&mux.receive(changed(&wire.to_string()))));

    let cancelled = |id: &str| {
        let params = format!(r#"{{"requestId":{id}}}"#);
        message(&format!(r#"{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{params}}}"#))
    };
    let FromServer::Ended(delivery) = mux.receive(cancelled(&other.to_string())) else { panic!("lost") };
    assert_eq!((delivery.owner, delivery.text()), ('b', cancelled("\"l\"").into_text()));
    assert!(dropped(&mux.receive(cancelled(&other.to_string()))));
    assert!(dropped(&mux.receive(cancelled(&plain.to_string()))));
    assert!(matches!(answer(&mut mux, plain), FromServer::Answer(_)));
}

#[test]
fn the_servers_own_requests_are_answered_here() {
    let mut mux = mux();
    let FromServer::Reply(text) = mux.receive(message(r#"{"jsonrpc":"2.0","id":"s\u0031","method":"ping"}"#))
    else {
        panic!("no reply")
    };
    assert_eq!(text, r#"{"jsonrpc":"2.0","id":"s\u0031","result":{}}"#);
    let request = r#"{"jsonrpc":"2.0","id":3,"method":"sampling/createMessage","params":{}}"#;
    let FromServer::Reply(text) = mux.receive(message(request)) else { panic!("no reply") };
    assert!(text.starts_with(r#"{"jsonrpc":"2.0","id":3,"error":{"code":-32601,"#), "{text}");
    assert_eq!(mux.counters().refused_requests, 1);
}

#[test]
fn notifications_that_are_nobodys_are_shared_and_the_handshake_is_not_repeated() {
    let mut mux = mux();
    let log = r#"{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info"}}"#;
    assert!(matches!(mux.receive(message(log)), FromServer::Shared(shared) if shared.text() == log));
    let own = r#"{"jsonrpc":"2.0","method":"notifications/custom"}"#;
    assert_eq!(mux.send('a', &message(own)), Ok(ToServer::Notification(own.to_owned())));
    for method in ["initialized", "roots/list_changed", "progress"] {
        let text = format!(r#"{{"jsonrpc":"2.0","method":"notifications/{method}"}}"#);
        assert_eq!(mux.send('a', &message(&text)), Ok(ToServer::Nothing));
    }
    let answer = r#"{"jsonrpc":"2.0","id":1,"result":{}}"#;
    assert_eq!(mux.send('a', &message(answer)), Ok(ToServer::Nothing));
}
