//! Images of programs of this host, and of the probe server.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use casemate_image::build::{BuildError, BuildErrorKind, BuildRequest};
use casemate_image::source::Source;
use casemate_image::store::{Runtime, Store};

use crate::home::shared_home;
use crate::image::{built, output, request};

#[test]
fn a_host_program_runs_in_its_image() {
    let home = shared_home();
    let store = Store::open(home.path()).unwrap();
    for (line, input, said) in [("/bin/cat -", "hello", "hello"), ("sort -r", "a\nb\n", "b\na\n")] {
        let image = built(&store, &request(line)).unwrap();
        assert_eq!(image.meta.runtime, Runtime::Native);
        let argv: Vec<&str> = image.meta.command.iter().map(String::as_str).collect();
        assert_eq!(output(&store, &image, &argv, input), said);
    }
}

#[test]
fn a_shell_script_runs_with_its_shell() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("script");
    fs::write(&script, "#!/bin/sh\nread line; echo \"got $line $1\"\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let home = shared_home();
    let store = Store::open(home.path()).unwrap();
    let image = built(&store, &request(&format!("{} x", script.display()))).unwrap();
    let argv: Vec<&str> = image.meta.command.iter().map(String::as_str).collect();
    assert_eq!(output(&store, &image, &argv, "y\n"), "got y x\n");
}

#[test]
fn what_cannot_become_an_image_is_refused() {
    let home = shared_home();
    let store = Store::open(home.path()).unwrap();
    for line in ["node server.js", "python3 -m x", "/no/such/program", "/etc/passwd"] {
        let error = built(&store, &request(line)).unwrap_err();
        assert!(matches!(error, BuildError::Program { .. }), "{error}");
        assert_eq!(error.kind(), BuildErrorKind::Configuration);
    }
    let error = built(&store, &request("oci:ghcr.example/x")).unwrap_err();
    assert_eq!(error.kind(), BuildErrorKind::Unavailable);
    assert!(error.to_string().contains("not built yet"), "{error}");
    assert_eq!(store.images().unwrap().len(), 0);
}

#[test]
fn the_probe_server_is_one_file_in_an_image() {
    let home = shared_home();
    let store = Store::open(home.path()).unwrap();
    let program = fs::read("/bin/cat").unwrap();
    let image = built(&store, &BuildRequest::new(Source::Builtin, &program)).unwrap();
    assert_eq!(image.meta.command, ["/usr/bin/casemate-probe"]);
    let tree = store.unpacked(&image).unwrap();
    assert_eq!(fs::read(tree.join("usr/bin/casemate-probe")).unwrap(), program);
    assert!(tree.join("home/casemate").is_dir() && tree.join("proc").is_dir());
    let other = built(&store, &BuildRequest::new(Source::Builtin, b"another")).unwrap();
    assert_ne!(other.digest, image.digest);
}
