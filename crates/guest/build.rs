//! Builds what the agent carries: the library that is preloaded into runtimes, and the filter of system calls.

#[path = "filter/rules.rs"]
mod rules;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

const TARGET: &str = "x86_64-unknown-linux-gnu";
const SOURCE: &str = "reseed/preload.rs";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={SOURCE}");
    println!("cargo::rerun-if-changed=filter/rules.rs");
    let variable = |name: &str| env::var_os(name).unwrap_or_else(|| fail(&format!("{name} is not set")));
    let folder = PathBuf::from(variable("OUT_DIR"));
    write_filter(&folder.join("filter.rs"));
    let library = folder.join("preload.so");
    // What the outer build says (a static C library, sanitizers) is not true of this one, which is for
    // programs of any C library; so it is a plain call of the compiler.
    let mut compiler = Command::new(variable("RUSTC"));
    compiler.args(["--crate-name", "preload", "--crate-type", "cdylib", "--edition", "2024"]);
    compiler.args(["--target", TARGET, "-C", "panic=abort", "-C", "opt-level=s", "-C", "strip=symbols"]);
    // Weak symbols are declared weak in assembly, which holds for the one object that it is in.
    compiler.args(["-C", "codegen-units=1"]);
    // Nothing of a C library is linked, so that no symbol's version is asked for.
    for argument in ["-nostdlib", "-Wl,--build-id=none"] {
        compiler.arg("-C").arg(format!("link-arg={argument}"));
    }
    compiler.arg(SOURCE).arg("-o").arg(&library);
    match compiler.status() {
        Ok(status) if status.success() => check(&library),
        Ok(status) => fail(&format!("compiling {SOURCE} ended with {status}")),
        Err(error) => fail(&format!("cannot run the compiler: {error}")),
    }
}

/// Writes the programs as the source of a constant.
fn write_filter(to: &Path) {
    if env::var("CARGO_CFG_TARGET_ARCH").as_deref() != Ok(env::consts::ARCH) {
        fail(
            "the numbers of system calls are those of this machine: build on one of the agent's architecture",
        );
    }
    let programs = rules::programs()
        .unwrap_or_else(|error| fail(&format!("cannot compile the filter of system calls: {error}")));
    let instruction = |one: &seccompiler::sock_filter| {
        format!("sock_filter{{code:{},jt:{},jf:{},k:{}}}", one.code, one.jt, one.jf, one.k)
    };
    let program = |program: &seccompiler::BpfProgram| {
        format!("&[{}]", program.iter().map(instruction).collect::<Vec<_>>().join(","))
    };
    let count = programs.len();
    let text = programs.iter().map(program).collect::<Vec<_>>().join(",");
    let source = format!("const PROGRAMS: [&[sock_filter]; {count}] = [{text}];\n");
    fs::write(to, source).unwrap_or_else(|error| fail(&format!("cannot write the filter: {error}")));
}

/// The library may need nothing: a program without it could not start.
fn check(library: &Path) {
    let bytes = fs::read(library).unwrap_or_else(|error| fail(&format!("cannot read the library: {error}")));
    let holds = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
    for text in [&b"rust_eh_personality"[..], b"libc.so", b"libgcc"] {
        if holds(text) {
            fail(&format!("the library asks for {}", String::from_utf8_lossy(text)));
        }
    }
}

fn fail(message: &str) -> ! {
    println!("cargo::error={message}");
    std::process::exit(1)
}
