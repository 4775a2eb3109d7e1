//! The ways out, with a host that is played: it hears what is asked for, and opens or refuses.

use crate::support::{Machine, Over, configuration, patiently};
use casemate_link::{Connector, MuxHandle};
use casemate_proto::control::{Configure, Egress, Request};
use casemate_proto::port;
use serde_json::Value;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// What a played server answers to whatever it hears.
const PAGE: &str = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\npage";

const POLL: Duration = Duration::from_millis(5);

/// A machine whose host opens ways to `open.example`, and to `silent.open.example`, which answers nothing, says that `gone.example` is unreachable, and refuses
/// the rest.
struct Played {
    _machine: Machine,
    proxy: u16,
    /// What was asked for, and what was said on ways that were opened.
    asked: Arc<Mutex<Vec<String>>>,
    said: Arc<Mutex<String>>,
}

impl Played {
    async fn new(forwards: &[u16]) -> Self {
        let machine = Machine::start(Over::Multiplexer).await;
        let Connector::Mux(link) = &machine.connector else { panic!("no multiplexer") };
        let (asked, said) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<Mutex<String>>::default());
        tokio::spawn(host(link.clone(), Arc::clone(&asked), Arc::clone(&said)));
        let proxy = free_port();
        let egress = Some(Egress { proxy: Some(proxy), forwards: forwards.to_vec(), names: Vec::new() });
        let config = Configure { egress, ..configuration(&["cat"]) };
        machine.control().await.done::<Value>(Request::Configure(Box::new(config))).await;
        Self { _machine: machine, proxy, asked, said }
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }

    fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }
}

async fn host(link: MuxHandle, asked: Arc<Mutex<Vec<String>>>, said: Arc<Mutex<String>>) {
    while let Ok(incoming) = link.accept().await {
        assert_eq!(incoming.port, port::EGRESS);
        let (asked, said) = (Arc::clone(&asked), Arc::clone(&said));
        tokio::spawn(async move {
            let mut stream = BufReader::new(incoming.accept());
            let mut line = String::new();
            stream.read_line(&mut line).await.unwrap();
            let answer = match line.as_str() {
                line if line.contains("open.example") || line.starts_with("FORWARD") => "OK\n",
                line if line.contains("gone.example") => "ERR unreachable it is gone\n",
                _ => "ERR denied not today\n",
            };
            asked.lock().unwrap().push(line.trim_end().to_owned());
            stream.write_all(answer.as_bytes()).await.unwrap();
            if answer != "OK\n" {
                return;
            }
            if line.contains("silent") {
                let mut heard = String::new();
                stream.read_to_string(&mut heard).await.unwrap();
                return said.lock().unwrap().push_str("the end");
            }
            let mut heard = vec![0; 4096];
            let length = stream.read(&mut heard).await.unwrap();
            said.lock().unwrap().push_str(&String::from_utf8_lossy(&heard[..length]));
            // Time for what may come after the first request.
            let more = tokio::time::timeout(std::time::Duration::from_millis(100), stream.read(&mut heard));
            if let Ok(Ok(length)) = more.await {
                said.lock().unwrap().push_str(&String::from_utf8_lossy(&heard[..length]));
            }
            let _ = stream.write_all(PAGE.as_bytes()).await;
            let _ = stream.shutdown().await;
        });
    }
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

async fn ask(port: u16, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    patiently(stream.read_to_end(&mut answer)).await.unwrap();
    answer
}

async fn ask_text(port: u16, text: &str) -> String {
    String::from_utf8(ask(port, text.as_bytes()).await).unwrap()
}

/// A request of SOCKS 5 for a name.
fn socks(name: &str, port: u16) -> Vec<u8> {
    let name = [&[name.len() as u8][..], name.as_bytes()].concat();
    [&[5, 2, 2, 0, 5, 1, 0, 3][..], &name, &port.to_be_bytes(), b"GET / HTTP/1.1\r\n\r\n"].concat()
}

#[tokio::test]
async fn every_protocol_asks_the_host_the_same() {
    let forward = free_port();
    let played = Played::new(&[forward]).await;
    let page = ask_text(played.proxy, "GET http://Open.Example/x HTTP/1.1\r\nHost: other\r\n\r\n").await;
    assert_eq!(page, PAGE);
    assert_eq!(played.said(), "GET /x HTTP/1.1\r\nHost: Open.Example\r\nConnection: close\r\n\r\n");
    let tunnel = ask_text(played.proxy, "CONNECT open.example:80 HTTP/1.1\r\n\r\nhello").await;
    assert_eq!(tunnel, format!("HTTP/1.1 200 Connection established\r\n\r\n{PAGE}"));
    let by_socks = ask(played.proxy, &socks("OPEN.example.", 80)).await;
    assert_eq!(by_socks, [&[5, 0, 5, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], PAGE.as_bytes()].concat());
    assert_eq!(played.asked(), ["CONNECT open.example:80"; 3]);
    assert_eq!(ask_text(forward, "hello").await, PAGE);
    assert_eq!(played.asked(), [format!("FORWARD {forward}")]);
}

#[tokio::test]
async fn a_refusal_is_told_in_each_protocol() {
    let played = Played::new(&[]).await;
    for (name, status, code) in [("shut.example", "403 Forbidden", 2), ("gone.example", "502 Bad Gateway", 4)]
    {
        for request in
            [format!("GET http://{name}/ HTTP/1.1\r\n\r\n"), format!("CONNECT {name}:80 HTTP/1.1\r\n\r\n")]
        {
            let answer = ask_text(played.proxy, &request).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{answer}");
            let reason = if code == 2 { "not today" } else { "it is gone" };
            assert!(answer.contains(&format!("X-Casemate-Refused: {reason}\r\n")), "{answer}");
            assert!(answer.ends_with(&format!("casemate: {reason}\n")), "{answer}");
        }
        assert_eq!(ask(played.proxy, &socks(name, 80)).await[..4], [5, 0, 5, code]);
    }
    for nonsense in ["GET / HTTP/1.1\r\n\r\n", "CONNECT open.example HTTP/1.1\r\n\r\n", "\u{1}\r\n\r\n"] {
        let answer = ask_text(played.proxy, nonsense).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{nonsense:?}: {answer}");
    }
    let long = ask_text(played.proxy, &"x".repeat(40 << 10)).await;
    assert!(long.starts_with("HTTP/1.1 431 "), "{long}");
    assert_eq!(ask(played.proxy, &[5, 1, 2]).await, [5, 0xff]);
}

#[tokio::test]
async fn a_client_that_has_gone_leaves_no_way_open() {
    let played = Played::new(&[]).await;
    let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, played.proxy)).await.unwrap();
    client.write_all(b"GET http://silent.open.example/ HTTP/1.1\r\n\r\n").await.unwrap();
    while played.asked().is_empty() {
        tokio::time::sleep(POLL).await;
    }
    drop(client);
    patiently(async {
        while played.said() != "the end" {
            tokio::time::sleep(POLL).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_second_request_behind_a_first_one_goes_nowhere() {
    let played = Played::new(&[]).await;
    let second = "GET http://open.example/second HTTP/1.1\r\n\r\n";
    for body in ["Content-Length: 2\r\n\r\nab", "Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"] {
        let first = format!("POST http://open.example/first HTTP/1.1\r\n{body}");
        assert_eq!(ask_text(played.proxy, &format!("{first}{second}")).await, PAGE);
        assert_eq!(played.asked().len(), 1);
    }
    assert!(
        played.said().matches("/first").count() == 2 && !played.said().contains("second"),
        "{}",
        played.said()
    );
}
