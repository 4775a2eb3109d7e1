//! The servers that draw, and their images.

use crate::home::Home;
use casemate::embedded;
use casemate_image::{
    build::{BuildRequest, build},
    progress::Silent,
    registry::address::Registries,
    source::Source,
    store::{Image, Store},
};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// Their sources.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/clones").join(name)
}

/// Builds the static program and returns its path.
pub fn compile_openssl(home: &Home) -> String {
    let program = home.path().join("draws");
    let mut compiler = Command::new("cc");
    // The C library warns of functions that a static program has no use for.
    compiler.args(["-O1", "-static", "-w", "-o"]).arg(&program).arg(fixture("openssl.c")).arg("-lcrypto");
    let compiled = compiler.output().unwrap();
    let said = String::from_utf8_lossy(&compiled.stderr);
    assert!(compiled.status.success(), "is libssl-dev installed, as `make setup` does? {said}");
    program.to_string_lossy().into_owned()
}

/// The image of a server.
pub fn image(home: &Home, source: Source) -> Image {
    let store = Store::open(home.path()).unwrap();
    build(&store, &Registries::default(), &BuildRequest::new(source, embedded::PROBE), &Silent).unwrap()
}
