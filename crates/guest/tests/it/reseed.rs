//! The hooks in real runtimes: Node and Python of the host, which `make setup` installs.
//!
//! That clones draw different numbers takes clones; it is tested where there are machines. Here: what the
//! hooks tell the agent, that they draw anew where that can be seen in one process, and that programs cannot
//! tell that they are there.

mod library;
mod node;
mod python;

use crate::support::PATIENCE;
use casemate_guest::reseed::{Hooked, Reseeder};
use casemate_proto::control::Reseed;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;
use tempfile::TempDir;

/// A folder in the place of `/run`, with the hooks for one kind of runtime.
struct Run {
    folder: TempDir,
    reseeder: Reseeder,
    kind: Reseed,
}

impl Run {
    fn new(kind: Reseed) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let reseeder = Reseeder::install(folder.path(), folder.path(), kind).unwrap();
        Self { folder, reseeder, kind }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A program that evaluates lines, with the hooks.
    fn start(&self, args: &[&str], env: &[(&str, &str)]) -> Evaluator {
        let mut whole = environment(env);
        self.reseeder.extend_environment(&mut whole);
        Evaluator::start(self.kind, args, &whole)
    }

    fn state(&self, program: &Evaluator) -> Hooked {
        self.reseeder.state(&[program.pid()])
    }
}

fn environment(more: &[(&str, &str)]) -> BTreeMap<String, String> {
    let path = std::env::var("PATH").unwrap();
    let own = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
    [("PATH", &*path)].iter().chain(more).map(own).collect()
}

/// Node or Python; each line that it is given is an expression, and what it answers is the value in JSON.
struct Evaluator {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

const NODE: &str = r#"
require('readline').createInterface({ input: process.stdin }).on('line', async (line) => {
  let value;
  try { value = await eval(line); } catch (error) { value = `${error.code}: ${error.message}`; }
  process.stdout.write(JSON.stringify(value ?? null) + '\n');
});
"#;

const PYTHON: &str = r#"
import json, sys
from importlib import import_module as the
for line in sys.stdin:
    try:
        value = eval(line)
    except Exception as error:
        value = repr(error)
    print(json.dumps(value, default=repr), flush=True)
"#;

impl Evaluator {
    fn start(kind: Reseed, args: &[&str], env: &BTreeMap<String, String>) -> Self {
        let (program, option, script) = match kind {
            Reseed::Node => ("node", "-e", NODE),
            Reseed::Python => ("python3", "-c", PYTHON),
            Reseed::Kernel => panic!("no runtime"),
        };
        let mut command = Command::new(resolve(program));
        command.args(args).args([option, script]).env_clear().envs(env);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Self { stdin: child.stdin.take(), stdout, child }
    }

    fn plain(kind: Reseed, env: &[(&str, &str)]) -> Self {
        Self::start(kind, &[], &environment(env))
    }

    fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    fn eval(&mut self, expression: &str) -> Value {
        assert!(!expression.contains('\n'));
        writeln!(self.stdin.as_mut().unwrap(), "{expression}").unwrap();
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{expression}: {line:?}: {error}"))
    }

    /// Lets it end; what it wrote to stderr.
    fn end(mut self) -> String {
        drop(self.stdin.take());
        let mut text = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        let until = Instant::now() + PATIENCE;
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < until, "the program does not end");
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        assert!(self.child.wait().unwrap().success(), "{text}");
        text
    }
}

impl Drop for Evaluator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program itself, not a script in its place that starts it (as version managers have).
fn resolve(program: &str) -> String {
    let (option, print) = match program {
        "node" => ("-p", "process.execPath"),
        _ => ("-c", "import os, sys; print(os.path.realpath(sys.executable))"),
    };
    let found = Command::new(program).args([option, print]).output();
    let found = found.unwrap_or_else(|error| panic!("{program}, which `make setup` installs: {error}"));
    assert!(found.status.success(), "{program}: {}", String::from_utf8_lossy(&found.stderr));
    String::from_utf8(found.stdout).unwrap().trim().to_owned()
}

/// Starts the runtime once for each expression: `drawn` says whether it counts as a draw by the program.
fn check_draws(kind: Reseed, expressions: &[(&str, bool)]) {
    let run = Run::new(kind);
    for &(expression, drawn) in expressions {
        let mut program = run.start(&[], &[]);
        program.eval("1");
        assert_eq!(run.state(&program), Hooked::Complete, "before {expression}");
        let value = program.eval(expression);
        let expected = if drawn { Hooked::Drawn(program.pid()) } else { Hooked::Complete };
        assert_eq!(run.state(&program), expected, "{expression} gave {value}");
    }
}

/// Compares what expressions give with and without the hooks.
fn check_transparent(kind: Reseed, env: &[(&str, &str)], expressions: &[&str]) {
    let run = Run::new(kind);
    let (mut plain, mut hooked) = (Evaluator::plain(kind, env), run.start(&[], env));
    for expression in expressions {
        assert_eq!(hooked.eval(expression), plain.eval(expression), "{expression}");
    }
    assert_ne!(run.state(&hooked), Hooked::Missing(Some(hooked.pid())));
    assert_eq!((hooked.end(), plain.end()), (String::new(), String::new()));
}

#[test]
fn a_process_without_the_hooks_is_missed_and_a_dead_one_is_not() {
    let run = Run::new(Reseed::Node);
    let mut sleeper = Command::new("sleep").arg("60").spawn().unwrap();
    let pid = sleeper.id() as i32;
    assert_eq!(run.reseeder.state(&[pid]), Hooked::Missing(Some(pid)));
    let mut server = run.start(&[], &[]);
    server.eval("1");
    assert_eq!(run.reseeder.state(&[server.pid(), pid]), Hooked::Missing(Some(pid)));
    sleeper.kill().unwrap();
    // Dead, not reaped.
    while fs::read_to_string(format!("/proc/{pid}/maps")).is_ok_and(|maps| !maps.is_empty()) {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    assert_eq!(run.reseeder.state(&[server.pid(), pid]), Hooked::Complete);
    sleeper.wait().unwrap();
    assert_eq!(run.reseeder.state(&[pid]), Hooked::Missing(None));
    assert_eq!(run.reseeder.state(&[]), Hooked::Missing(None));
}

#[test]
fn marks_of_another_installation_do_not_count() {
    let (one, other) = (Run::new(Reseed::Node), Run::new(Reseed::Node));
    let mut server = one.start(&[], &[]);
    server.eval("1");
    assert_eq!(one.state(&server), Hooked::Complete);
    assert_eq!(other.state(&server), Hooked::Missing(Some(server.pid())));
    // Nor do those of an earlier one in the same folder.
    let again = Reseeder::install(one.path(), one.path(), Reseed::Node).unwrap();
    assert_eq!(again.state(&[server.pid()]), Hooked::Missing(Some(server.pid())));
}
