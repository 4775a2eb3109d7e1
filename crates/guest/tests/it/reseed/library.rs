//! The library's `getpid`, asked from objects that look like OpenSSL's and from others.

use super::{Evaluator, Run};
use casemate_guest::reseed::Hooked;
use casemate_proto::control::Reseed;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Asks for the process id from inside of the object.
const ASK: &str = "#include <unistd.h>\nint ask(void) { volatile int pid = getpid(); return pid; }\n";
/// What only an object has that exports OpenSSL.
const EXPORTS: &str = "int RAND_bytes(void) { return 1; }\n";
/// What an object with OpenSSL inside has in its messages.
const CONTAINS: &str = "const char *const file = \"providers/implementations/rands/drbg.c\";\n";

/// An expression that asks in an object made of some source.
fn object(folder: &Path, name: &str, source: &str) -> String {
    let (input, output) = (folder.join(format!("{name}.c")), folder.join(format!("{name}.so")));
    fs::write(&input, source).unwrap();
    let mut compiler = Command::new("cc");
    compiler.args(["-O0", "-shared", "-fPIC", "-o"]).arg(&output).arg(&input);
    assert!(compiler.status().unwrap().success());
    format!("the('ctypes').CDLL({:?}).ask()", output.to_str().unwrap())
}

#[test]
fn openssl_alone_is_told_of_another_process_in_each_generation() {
    let run = Run::new(Reseed::Python);
    let system = object(run.path(), "system", &[ASK, EXPORTS].concat());
    let extension = object(run.path(), "extension", &[ASK, CONTAINS].concat());
    let stranger = object(run.path(), "stranger", ASK);
    let mut program = run.start(&[], &[]);
    let pid = i64::from(program.pid());
    for expression in [&stranger, &system] {
        assert_eq!(program.eval(expression), pid);
    }
    assert_eq!(run.state(&program), Hooked::Complete);
    let mut told = vec![pid];
    for _ in 0..3 {
        run.reseeder.bump().unwrap();
        assert_eq!(program.eval("the('os').getpid()"), pid);
        assert_eq!(program.eval(&stranger), pid);
        let own = program.eval(&system).as_i64().unwrap();
        assert!(!told.contains(&own), "{told:?} and {own}");
        assert_eq!(program.eval(&system), own, "the same in one generation");
        assert_eq!(program.eval(&extension), own);
        told.push(own);
    }
    assert_eq!(run.state(&program), Hooked::Complete, "what clones draw they do not share");

    // A program that is started in a clone has drawn nothing yet.
    let mut fresh = run.start(&[], &[]);
    assert_eq!(fresh.eval(&system), i64::from(fresh.pid()));
    // What an extension's OpenSSL draws, the program draws: nothing else uses it.
    assert_eq!(fresh.eval(&extension), i64::from(fresh.pid()));
    assert_eq!(run.state(&fresh), Hooked::Drawn(fresh.pid()));
}

#[test]
fn a_forked_child_is_another_process_than_its_parent_in_each_generation() {
    let run = Run::new(Reseed::Python);
    let system = object(run.path(), "system", &[ASK, EXPORTS].concat());
    let mut program = run.start(&[], &[]);
    let forked = format!(
        "(lambda r, w: (the('os').fork() == 0 and (the('os').write(w, str({system}).encode()), \
         the('os')._exit(0))) or (the('os').wait() and int(the('os').read(r, 99))))(*the('os').pipe())"
    );
    run.reseeder.bump().unwrap();
    let (parent, child) = (program.eval(&system), program.eval(&forked));
    assert!(child.is_i64() && parent != child, "{parent} and {child}");
}

#[test]
fn without_a_generation_everything_is_as_it_was() {
    for kind in [Reseed::Node, Reseed::Python] {
        let run = Run::new(kind);
        fs::remove_file(run.path().join("casemate/generation")).unwrap();
        let mut program = run.start(&[], &[]);
        let number = match kind {
            Reseed::Node => "require('crypto').randomInt(5, 6)",
            _ => "the('random').randrange(5, 6)",
        };
        assert_eq!(program.eval(number), 5);
        assert_eq!(run.state(&program), Hooked::Missing(Some(program.pid())));
        assert_eq!(program.end(), "");
    }
}

#[test]
fn programs_of_other_kinds_run_with_the_library() {
    let run = Run::new(Reseed::Python);
    let library = run.path().join("casemate/preload.so");
    for (program, args) in [("sh", &["-c", "echo $$"][..]), ("true", &[]), ("env", &["true"])] {
        let output = Command::new(program).args(args).env("LD_PRELOAD", &library).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{program}: {output:?}");
    }
    let evaluator = Evaluator::plain(Reseed::Python, &[("LD_PRELOAD", library.to_str().unwrap())]);
    assert_eq!(evaluator.end(), "");
}

/// Writes a byte to a file for each time that OpenSSL asks the kernel for numbers to start from.
const COUNT: &str = r#"
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>
int getentropy(void *bytes, size_t length) {
    int file = open(getenv("COUNT"), O_WRONLY | O_APPEND | O_CREAT, 0600);
    if (write(file, "x", 1) != 1) abort();
    close(file);
    return syscall(SYS_getrandom, bytes, length, 0) == (long)length ? 0 : -1;
}
"#;

#[test]
fn a_real_openssl_starts_anew_in_each_generation() {
    for (kind, draw) in [
        (Reseed::Node, "require('crypto').randomBytes(4).length"),
        (Reseed::Python, "len(the('ssl').RAND_bytes(4))"),
    ] {
        let run = Run::new(kind);
        object(run.path(), "count", COUNT);
        let (library, count) = (run.path().join("count.so"), run.path().join("count"));
        let env = [("LD_PRELOAD", library.to_str().unwrap()), ("COUNT", count.to_str().unwrap())];
        let mut program = run.start(&[], &env);
        assert_eq!(program.eval(draw), 4);
        for _ in 0..3 {
            let before = fs::read(&count).unwrap().len();
            assert_eq!(program.eval(draw), 4);
            assert_eq!(fs::read(&count).unwrap().len(), before, "{kind:?} in one generation");
            run.reseeder.bump().unwrap();
            assert_eq!(program.eval(draw), 4);
            assert!(fs::read(&count).unwrap().len() > before, "{kind:?} in the next generation");
        }
    }
}
