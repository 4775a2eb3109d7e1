//! Images of PyPI packages, from the real index.

use std::path::Path;

use casemate_image::build::{BuildError, BuildErrorKind, build};
use casemate_image::store::{Runtime, Store};

use crate::home::shared_home;
use crate::image::{Heard, built, downloads_home, initialize, nowhere, output, request};

#[test]
fn a_real_server_answers_from_its_image() {
    let home = shared_home();
    let store = Store::open(home.path()).unwrap();
    let image = built(&store, &request("uvx mcp-server-time --local-timezone UTC")).unwrap();
    assert_eq!(image.meta.command[..2], ["/usr/bin/python3", "/usr/local/bin/mcp-server-time"]);
    assert_eq!(image.meta.command[2..], ["--local-timezone", "UTC"]);
    assert_eq!(image.meta.runtime, Runtime::Python);
    for name in ["mcp-server-time", "mcp", "libpython3.13-stdlib"] {
        let package = image.meta.packages.iter().find(|package| package.name == name).expect(name);
        assert!(package.integrity.contains("sha256:"), "{package:?}");
    }
    let answer = initialize(&store, &image);
    assert_eq!(answer["result"]["serverInfo"]["name"], "mcp-time", "{answer}");

    // Every library of the interpreter's modules is there.
    let script = "import ssl, sqlite3, ctypes, readline, bz2, lzma, zlib, uuid, zoneinfo, asyncio, curses, hashlib, \
                  decimal, multiprocessing, xml.parsers.expat, json, email, sys\n\
                  print(sys.version_info[:2], json.__cached__, zoneinfo.ZoneInfo('Europe/Zurich'))";
    let said = output(&store, &image, &["python", "-c", script], "");
    assert!(said.starts_with("(3, 13) /usr/lib/python3.13/json/__pycache__/"), "{said}");

    // Modules are compiled, and in the form that is not checked against its source (PEP 552: flags 1).
    let tree = store.unpacked(&image).unwrap();
    let compiled =
        tree.join("usr/local/lib/python3.13/dist-packages/mcp/__pycache__/__init__.cpython-313.pyc");
    let header = std::fs::read(compiled).unwrap();
    assert_eq!(header[4..8], [1, 0, 0, 0]);
    assert!(tree.join("usr/lib/python3.13/json/__pycache__/decoder.cpython-313.pyc").exists());
    assert!(!tree.join("opt").exists());
}

#[test]
fn the_same_lock_gives_the_same_bytes_in_another_home() {
    let digest = |home: &Path| {
        let store = Store::open(home).unwrap();
        let image = built(&store, &request("pypi:mcp-server-time")).unwrap();
        (image.digest, image.meta.lock_digest)
    };
    let (one, other) = (shared_home(), downloads_home());
    let first = digest(one.path());
    assert_eq!(first, digest(other.path()));
    // And a second build needs no network.
    let store = Store::open(one.path()).unwrap();
    let again = build(&store, &nowhere(), &request("uvx mcp-server-time"), &Heard::default()).unwrap();
    assert_eq!(again.digest, first.0);
}

#[test]
fn what_does_not_exist_or_fit_is_named() {
    let home = shared_home();
    let store = Store::open(home.path()).unwrap();
    let fails = |line: &str| {
        let error = built(&store, &request(line)).unwrap_err();
        assert_eq!(error.kind(), BuildErrorKind::Configuration, "{error}");
        error
    };
    let unknown = fails("pypi:casemate-has-no-such-package-5f1c");
    assert!(matches!(unknown, BuildError::UnknownPackage { .. }), "{unknown}");
    match fails("pypi:mcp-server-time@9999.0.1") {
        BuildError::UnknownVersion { nearest, .. } => assert!(!nearest.is_empty()),
        other => panic!("{other}"),
    }
    for line in ["pypi:mcp-server-time>=9999", "uvx --with mcp<0.1 mcp-server-time"] {
        match fails(line) {
            BuildError::Unresolvable { reason, log, .. } => {
                assert!(reason.contains("No solution found"), "{reason}");
                assert!(log.is_file());
            }
            other => panic!("{other}"),
        }
    }
    match fails("uvx --from mcp-server-time no-such-program") {
        BuildError::UnknownProgram { known, .. } => assert_eq!(known, ["mcp-server-time"]),
        other => panic!("{other}"),
    }
    let version = store.images().unwrap();
    assert!(version.len() <= 1, "{version:?}");
}
