//! The HTTP client against a server that misbehaves.

use std::fs;
use std::net::TcpListener;
use std::path::Path;

use casemate_image::progress::Silent;
use casemate_image::registry::digest::{Digest, Hasher};
use casemate_image::registry::http::{Http, HttpError};

use crate::server::{Answer, Server};

const BODY: &[u8] = b"some bytes of a package";

fn digest_of(bytes: &[u8]) -> Digest {
    let mut hasher = Hasher::sha256();
    hasher.update(bytes);
    hasher.finish()
}

fn download(url: &str, to: &Path, expected: &[u8]) -> Result<(), HttpError> {
    Http::new().download(url, to, &digest_of(expected), 100, &Silent)
}

fn files(folder: &Path) -> usize {
    fs::read_dir(folder).unwrap().count()
}

#[test]
fn a_download_appears_under_its_name() {
    let server = Server::start(&[
        ("/old", &[Answer::Redirect("/new".to_owned())]),
        ("/new", &[Answer::Body(BODY.to_vec())]),
    ]);
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("file");
    download(&server.url("/old"), &to, BODY).unwrap();
    assert_eq!(fs::read(&to).unwrap(), BODY);
    assert_eq!(files(folder.path()), 1);
    assert_eq!(server.requests(), ["/old", "/new"]);
}

#[test]
fn transient_failures_are_tried_again() {
    let server = Server::start(&[(
        "/f",
        &[Answer::Status(503), Answer::Half(BODY.to_vec()), Answer::Body(BODY.to_vec())],
    )]);
    let folder = tempfile::tempdir().unwrap();
    download(&server.url("/f"), &folder.path().join("f"), BODY).unwrap();
    assert_eq!(server.requests().len(), 3);
    assert_eq!(files(folder.path()), 1);
}

#[test]
fn what_fails_leaves_nothing_and_says_why() {
    let server =
        Server::start(&[("/f", &[Answer::Body(BODY.to_vec())]), ("/big", &[Answer::Body(vec![0; 101])])]);
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("f");
    let wrong = download(&server.url("/f"), &to, b"other").unwrap_err();
    assert!(matches!(wrong, HttpError::Digest { .. }));
    assert!(wrong.to_string().contains("/f does not have the published digest"));
    assert!(matches!(download(&server.url("/big"), &to, b""), Err(HttpError::TooLarge { limit: 100, .. })));
    let absent = download(&server.url("/absent?secret"), &to, b"").unwrap_err();
    assert_eq!(absent.to_string(), format!("{} answered with status 404", server.url("/absent")));
    assert_eq!(
        server.requests(),
        ["/f", "/big", "/absent?secret"],
        "nothing of this is worth another attempt"
    );
    assert_eq!(files(folder.path()), 0);
    let nowhere = folder.path().join("no/folder");
    assert!(matches!(download(&server.url("/f"), &nowhere, BODY), Err(HttpError::Write { .. })));
}

#[test]
fn memory_is_bounded_too() {
    let server = Server::start(&[("/f", &[Answer::Body(BODY.to_vec())])]);
    let http = Http::new();
    assert_eq!(http.get(&server.url("/f"), Some("text/plain"), BODY.len() as u64).unwrap(), BODY);
    let refused = http.get(&server.url("/f"), None, BODY.len() as u64 - 1);
    assert!(matches!(refused, Err(HttpError::TooLarge { .. })));
}

#[test]
fn a_server_that_is_not_there_is_an_error_with_the_remedy() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = Http::new().get(&format!("http://user:secret@{address}/x"), None, 10).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, HttpError::Transport { .. }));
    assert!(text.contains(&format!("http://{address}/x")) && text.contains("check the network"), "{text}");
    assert!(!text.contains("secret"));
}
