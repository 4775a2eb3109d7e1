//! Builds what goes into machines (the agent and the probe server) as static programs, so that the one
//! program that users have carries them.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

const TARGET: &str = "x86_64-unknown-linux-gnu";
const PROFILE: &str = "guest";

/// Packages whose sources decide what is embedded.
const SOURCES: [&str; 5] = ["guest", "testkit", "proto", "link", "mcp"];

fn main() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf);
    let crates = crates.unwrap_or_else(|| fail("the package is not inside the workspace"));
    let workspace = crates.parent().unwrap_or_else(|| fail("the package is not inside the workspace"));
    for file in ["Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", workspace.join(file).display());
    }
    for package in SOURCES {
        for part in ["src", "Cargo.toml"] {
            println!("cargo::rerun-if-changed={}", crates.join(package).join(part).display());
        }
    }
    for part in ["build.rs", "reseed"] {
        println!("cargo::rerun-if-changed={}", crates.join("guest").join(part).display());
    }
    let built = build(workspace);
    for (variable, program) in
        [("CASEMATE_EMBEDDED_AGENT", "casemate-guest"), ("CASEMATE_EMBEDDED_PROBE", "casemate-probe")]
    {
        let path = built.join(program);
        println!("cargo::rerun-if-changed={}", path.display());
        println!("cargo::rustc-env={variable}={}", path.display());
    }
}

/// Builds both programs and returns the folder that they are in.
fn build(workspace: &Path) -> PathBuf {
    // A folder of its own: the build that runs this script holds the lock of the other.
    let target = workspace.join("target/embedded");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace).args(["build", "--quiet", "--profile", PROFILE, "--target", TARGET]);
    cargo.args([
        "-p",
        "casemate-guest",
        "-p",
        "casemate-testkit",
        "--bin",
        "casemate-guest",
        "--bin",
        "casemate-probe",
    ]);
    cargo.arg("--target-dir").arg(&target);
    if workspace.join("Cargo.lock").exists() {
        cargo.arg("--locked");
    }
    // What the outer build says about itself (flags, features, wrappers, targets) is not true of this one;
    // what the user says about registries and the network is.
    const USERS: [&str; 5] =
        ["CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTRIES_", "CARGO_SOURCE_"];
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let starts_with = |list: &[&str]| list.iter().any(|prefix| text.starts_with(prefix));
        if starts_with(&["CARGO_", "RUSTC", "RUSTFLAGS"]) && !starts_with(&USERS) {
            cargo.env_remove(&name);
        }
    }
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static");
    match cargo.status() {
        Ok(status) if status.success() => target.join(TARGET).join(PROFILE),
        Ok(status) => fail(&format!("building the guest's programs ended with {status}")),
        Err(error) => fail(&format!("cannot run cargo: {error}")),
    }
}

fn fail(message: &str) -> ! {
    println!("cargo::error={message}");
    std::process::exit(1)
}
