//! TLS from inside of a guest: on port 443 a client reaches the server that its handshake names, or none.

use super::{
    PROXY_PORT, egress_log, exchange, hex, launch_knowing,
    site::{Authority, Site},
};
use crate::home::Home;
use rustls::{ClientConfig, ClientConnection, RootCertStore, crypto::ring};
use serde_json::Value;
use std::{fs, sync::Arc};

/// What a handshake of TLS 1.2 or later is answered with first.
const SERVER_HELLO: &str = "160303";

/// What a client says first that wants this server.
fn client_hello(name: &'static str) -> Vec<u8> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    let config = builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    let mut client = ClientConnection::new(Arc::new(config), name.try_into().unwrap()).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}

#[test]
fn a_handshake_for_another_server_than_the_one_asked_for_reaches_none() {
    let home = Home::new();
    let site = Site::new("site.example.test", &Authority::new());
    let hosts = home.path().join("hosts");
    fs::write(&hosts, format!("127.0.0.1 localhost\n{}", site.line())).unwrap();
    let allowed = site.allowed();
    let allowed: Vec<&str> = allowed.iter().map(String::as_str).collect();
    let record = launch_knowing(&home, &hosts, &allowed);

    let tunnelled = |name| {
        let asked = format!("CONNECT {}:443 HTTP/1.1\r\n\r\n", site.name);
        exchange(&home, "127.0.0.1", PROXY_PORT, &[asked.as_bytes(), &client_hello(name)].concat())
    };
    let straight = |name| exchange(&home, site.name, 443, &client_hello(name));
    let text = |said: &Value| said["hex"].as_str().unwrap().to_owned();
    let opened = hex(b"HTTP/1.1 200 ");

    let own = text(&tunnelled(site.name));
    assert!(own.starts_with(&opened) && own.contains(SERVER_HELLO), "{own}");
    assert!(text(&straight(site.name)).starts_with(SERVER_HELLO));
    let other = text(&tunnelled("other.example.test"));
    assert!(other.starts_with(&opened) && !other.contains(SERVER_HELLO), "{other}");
    assert_eq!(text(&straight("other.example.test")), "");

    let log = egress_log(&home, &record);
    let refused: Vec<&Value> = log.iter().filter(|line| line["verdict"] == "refused").collect();
    let named = |line: &&Value| {
        line["reason"].as_str().unwrap().contains("its TLS handshake is for other.example.test")
    };
    assert!(refused.len() == 2 && refused.iter().all(named), "{log:#?}");
}
