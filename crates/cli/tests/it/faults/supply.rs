//! Programs, kernels, images and packages that are not there.

use super::{add_probe, assert_fails, assert_nothing_left, echo};
use crate::home::{Finished, Home, casemate, finish};
use std::{fs, net::TcpListener};

#[test]
fn a_host_without_qemu() {
    let home = Home::new();
    let mut command = home.command(&["mcp", "microvm", "launch", "m"]);
    command.env("PATH", "/nonexistent");
    let why = ["qemu-system-x86_64 is not installed", "hint: install QEMU 8.2 or later"];
    assert_fails(&finish(command, b""), 4, &why);
    assert_nothing_left(&home);
}

/// Runs the program with every registry at a port of this host where nobody listens.
fn offline(home: &Home, args: &[&str]) -> Finished {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut command = home.command(args);
    for name in ["npm_config_registry", "PIP_INDEX_URL", "CASEMATE_DEBIAN_MIRROR"] {
        command.env(name, format!("http://{closed}/"));
    }
    for name in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"] {
        command.env_remove(name);
    }
    finish(command, b"")
}

#[test]
fn no_kernel_and_no_network_to_fetch_one() {
    let home = Home::isolated();
    let launched = offline(&home, &["mcp", "microvm", "launch", "m"]);
    let why =
        ["error: no guest kernel", "CASEMATE_DEBIAN_MIRROR", "Connection refused", "casemate kernel import"];
    assert_fails(&launched, 4, &why);
    let kernels = fs::read_dir(home.path().join("kernels")).unwrap().flatten();
    let partial: Vec<_> = kernels.filter(|entry| entry.file_name() != ".lock").collect();
    assert!(partial.is_empty(), "{partial:?}");
    assert_nothing_left(&home);
}

#[test]
fn no_network_to_fetch_a_package() {
    let home = Home::isolated();
    for (source, variable) in [("npm:left-pad", "npm_config_registry"), ("pypi:six", "PIP_INDEX_URL")] {
        let added = offline(&home, &["add", "x", source]);
        assert_fails(&added, 4, &["error: cannot build the image", variable, "Connection refused"]);
    }
    assert!(casemate(&home, &["list"]).stdout.starts_with("No servers yet"));
}

#[test]
fn packages_and_versions_that_do_not_exist() {
    let home = Home::new();
    for (source, says) in [
        ("npm:casemate-there-is-no-such-package", "npm has no package casemate-there-is-no-such-package"),
        ("pypi:casemate-there-is-no-such-package", "PyPI has no package casemate-there-is-no-such-package"),
        (
            "npm:@modelcontextprotocol/server-everything@99.99.99",
            "has no version 99.99.99; the nearest are 2",
        ),
        ("pypi:mcp-server-time@99.99", "has no version 99.99; the nearest are 2"),
        ("./no-such-program", "there is no such program"),
        ("dir:./no-such-folder", "no-such-folder"),
    ] {
        assert_fails(&casemate(&home, &["add", "x", source]), 3, &["error: cannot build the image", says]);
    }
    assert!(casemate(&home, &["list"]).stdout.starts_with("No servers yet"));
}

#[test]
fn an_image_that_is_gone() {
    let home = Home::new();
    // Images of its own, to be removed.
    fs::remove_file(home.path().join("images")).unwrap();
    fs::remove_file(home.path().join("cache")).unwrap();
    add_probe(&home, "p", &[]);
    fs::remove_dir_all(home.path().join("images")).unwrap();
    let why = ["no image ", "hint: ", "casemate add --replace p builds the server anew"];
    assert_fails(&echo(&home, "p"), 3, &why);
    assert_nothing_left(&home);
    assert_eq!(casemate(&home, &["add", "--replace", "p", &home.probe()]).code, 0);
}
