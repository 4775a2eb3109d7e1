//! A real server that fetches what it is told to, before a site that is allowed and one that is not.

use super::{
    egress_log, knowing,
    site::{Authority, Site},
    verdicts,
};
use crate::home::{Home, casemate, finish};
use serde_json::{Value, json};
use std::{fs, path::Path};

const SOURCE: &str = "pypi:mcp-server-fetch";

fn add(home: &Home, name: &str, site: &Site, options: &[&str]) {
    let allowed = site.allowed();
    let allowed: Vec<&str> = allowed.iter().map(String::as_str).collect();
    let added = casemate(home, &[&["add", name, SOURCE], &allowed[..], options].concat());
    assert_eq!(added.code, 0, "{}", added.stderr);
}

fn launch(home: &Home, hosts: &Path, words: &[&str]) {
    let launched = finish(knowing(home, hosts, words), b"");
    assert_eq!(launched.code, 0, "{launched:?}");
}

/// Exit code and text of the server's answer.
fn fetch(home: &Home, server: &str, url: &str) -> (i32, String) {
    let arguments = json!({"url": url, "raw": true}).to_string();
    let called = casemate(home, &["call", server, "fetch", &arguments]);
    (called.code, called.stdout + &called.stderr)
}

#[test]
fn pypis_fetch_server_reaches_the_site_that_is_allowed_and_no_other() {
    let home = Home::new();
    let authority = Authority::new();
    let (site, other) =
        (Site::new("site.example.test", &authority), Site::new("other.example.test", &authority));
    let hosts = home.path().join("hosts");
    fs::write(&hosts, format!("127.0.0.1 localhost\n{}{}", site.line(), other.line())).unwrap();
    let authorities = home.path().join("authorities");
    fs::create_dir(&authorities).unwrap();
    fs::write(authorities.join("test.pem"), authority.pem()).unwrap();
    let mount = format!("{}:/authorities", authorities.display());
    let trust = ["--mount", &mount, "--env", "SSL_CERT_FILE=/authorities/test.pem"];
    add(&home, "fetch", &site, &trust);
    launch(&home, &hosts, &["launch", "fetch"]);
    let record = home.machine_record("fetch");

    for scheme in ["http", "https"] {
        let (code, page) = fetch(&home, "fetch", &format!("{scheme}://site.example.test/page"));
        assert!(code == 0 && page.contains(&format!("/page by {scheme}, from outside")), "{page}");
    }
    // What robots may fetch, and the page.
    assert_eq!(site.accepted(), 4);
    let (code, closed) = fetch(&home, "fetch", "http://site.example.test/closed");
    assert!(code == 1 && closed.contains("robots.txt"), "{closed}");

    for url in ["http://other.example.test/", "https://other.example.test/", "http://site.example.test/moved"]
    {
        let (code, refused) = fetch(&home, "fetch", url);
        assert_eq!(code, 1, "{url}: {refused}");
    }
    assert_eq!(other.accepted(), 0);
    let log = egress_log(&home, &record);
    assert_eq!((verdicts(&log, "allowed"), verdicts(&log, "refused")), (site.accepted(), 3), "{log:#?}");
    let own = [80, 443].map(|port| json!(format!("{}:{port}", site.address)));
    let elsewhere = |line: &&Value| !line["address"].is_null() && !own.contains(&line["address"]);
    assert_eq!(log.iter().find(elsewhere), None);
    for port in [80, 443] {
        let asked = json!(format!("CONNECT other.example.test:{port}"));
        let refused = log.iter().find(|line| line["request"] == asked).unwrap_or_else(|| panic!("{log:#?}"));
        let reason = refused["reason"].as_str().unwrap_or_default();
        assert!(reason.starts_with("it is not on the allow list of this machine"), "{refused}");
    }

    // Whom nobody vouches for is not trusted: it was the authority that made the difference.
    add(&home, "wary", &site, &["--", "--ignore-robots-txt"]);
    launch(&home, &hosts, &["launch", "wary", "--cold"]);
    let (code, page) = fetch(&home, "wary", "http://site.example.test/page");
    assert!(code == 0 && page.contains("/page by http, from outside"), "{page}");
    let (code, refused) = fetch(&home, "wary", "https://site.example.test/page");
    assert!(code == 1 && refused.contains("CERTIFICATE_VERIFY_FAILED"), "{refused}");
}
