//! Secrets: who has them, and where they are looked for and not found.

mod keyring;
mod placeholder;

use crate::{
    home::{Finished, Home, casemate, finish},
    live::{answer, call, folder, process, server_log},
};
use memchr::memmem;
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// A value that stands nowhere else.
fn random_value() -> String {
    let mut bytes = [0; 16];
    File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("hunter-{hex}")
}

/// Starts a machine of the probe server with these variables in the command's environment.
fn launch(home: &Home, name: &str, variables: &[(&str, &str)], options: &[&str]) -> Value {
    let launched = run(home, variables, &[&["mcp", "microvm", "launch", name], options].concat());
    assert_eq!(launched.code, 0, "{launched:?}");
    home.machine_record(name)
}

fn run(home: &Home, variables: &[(&str, &str)], words: &[&str]) -> Finished {
    let mut command = home.command(words);
    command.envs(variables.iter().copied());
    finish(command, b"")
}

fn variable(home: &Home, machine: &str, name: &str) -> Value {
    answer(home, machine, "env", &json!({"name": name}).to_string())["value"].clone()
}

/// Files below a folder, links not followed, that hold these bytes.
fn files_with(folder: &Path, since: SystemTime, needle: &[u8]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, Ok(data)) = (entry.path(), entry.metadata()) else { continue };
        if data.is_dir() {
            found.extend(files_with(&path, since, needle));
        } else if data.is_file() && data.modified().is_ok_and(|at| at >= since) {
            let content = fs::read(&path).unwrap_or_default();
            found.extend(memmem::find(&content, needle).map(|_| path));
        }
    }
    found
}

/// Whether a process has one of these texts in its memory, its arguments or its environment.
fn holds(pid: u32, texts: &[&str]) -> bool {
    let longest = texts.iter().map(|text| text.len()).max().unwrap();
    let is_in = |bytes: &[u8]| texts.iter().any(|text| memmem::find(bytes, text.as_bytes()).is_some());
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let ranges = maps.lines().filter_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (from, to) = range.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        rest.starts_with('r').then_some((number(from)?, number(to)?))
    });
    let mut read = 0;
    let found = ranges.into_iter().any(|(from, to)| {
        let mut chunk = vec![0; 1 << 20];
        // Chunks overlap, so that nothing is cut in two.
        (from..to).step_by(chunk.len() - longest).any(|at| {
            let length = chunk.len().min((to - at) as usize);
            // Some pages cannot be read, such as the kernel's own.
            let length = memory.read_at(&mut chunk[..length], at).unwrap_or(0);
            read += length;
            is_in(&chunk[..length])
        })
    });
    let given = ["cmdline", "environ"].map(|file| fs::read(format!("/proc/{pid}/{file}")).unwrap());
    assert!(read > 1 << 20, "the memory of {pid} cannot be read");
    found || given.iter().any(|text| is_in(text))
}

/// Secrets of every source, in a server that says them wherever it can.
#[test]
fn a_secret_is_in_its_server_and_in_nothing_that_is_written() {
    let home = Home::new();
    let since = SystemTime::now();
    let [env, file, command] = [(); 3].map(|()| random_value());
    let path = home.path().join("token");
    let outside = tempfile::tempdir().unwrap();
    let path = outside.path().join(path.file_name().unwrap());
    fs::write(&path, format!("{file}\n")).unwrap();
    let script = outside.path().join("script");
    fs::write(&script, format!("echo {command}\n")).unwrap();
    let words = [
        "A=env:SECRET_OF_A_TEST".to_owned(),
        format!("B=file:{}", path.display()),
        format!("C=cmd:sh {}", script.display()),
    ];
    let options = ["--secret", &words[0], "--secret", &words[1], "--secret", &words[2]];
    let other = launch(&home, "other", &[("SECRET_OF_A_TEST", &env)], &[]);
    let record = launch(&home, "m", &[("SECRET_OF_A_TEST", &env)], &options);
    assert_eq!((&record["start"], &other["start"]), (&json!("restored"), &json!("restored")));
    assert!(record["template_reason"].as_str().unwrap().contains("secrets"), "{record}");

    let values = [("A", &env), ("B", &file), ("C", &command)];
    for (name, value) in values {
        assert_eq!(variable(&home, "m", name), json!(value), "the server has its secret");
        assert_eq!(variable(&home, "other", name), Value::Null);
        // On its stderr in two pieces, on its stdout, and in what it asks for.
        let (begin, end) = value.split_at(9);
        for piece in [begin, end, "\n"] {
            assert_eq!(call(&home, "m", "log_to_stderr", &json!({"text": piece}).to_string()).code, 0);
        }
        call(&home, "m", "log_to_stdout", &json!({"line": value}).to_string());
    }
    let log = server_log(&home, &record);
    for (name, _) in values {
        assert_eq!(log.matches(&format!("[secret {name}]")).count(), 2, "{log}");
    }
    let shown = ["status", "list", "logs"].map(|word| match word {
        "logs" => casemate(&home, &["logs", "m"]),
        word => casemate(&home, &[word, "--json"]),
    });
    // It ends with the secret on its lips.
    call(&home, "m", "log_to_stderr", &json!({"text": format!("fatal: {env}\n")}).to_string());
    let ended = call(&home, "m", "exit", r#"{"code": 3}"#);
    assert!(ended.code != 0 && ended.stderr.contains("[secret A]"), "{ended:?}");

    for (name, value) in values {
        let needle = value.as_bytes();
        for said in shown.iter().chain([&ended]) {
            assert!(!said.stdout.contains(&**value) && !said.stderr.contains(&**value), "{name}: {said:?}");
        }
        for folder in [home.path().to_owned(), home.path().join("cache"), home.path().join("images")] {
            assert_eq!(
                files_with(&folder.canonicalize().unwrap(), since, needle),
                [""; 0].map(PathBuf::from)
            );
        }
    }
    for process in [process(&other, "pid"), process(&other, "supervisor_pid")] {
        assert!(!holds(process, &values.map(|(_, value)| &**value)), "a secret is in another machine");
    }
    assert!(folder(&home, &record).join("logs/supervisor.log").exists());
}

/// What a machine with a secret is searched with, finds it where it is.
#[test]
fn the_search_finds_what_is_there() {
    let home = Home::new();
    let (value, since) = (random_value(), SystemTime::now());
    let record = launch(&home, "m", &[("SECRET_OF_A_TEST", &value)], &["--secret", "A=env:SECRET_OF_A_TEST"]);
    assert!(holds(process(&record, "pid"), &[&value]), "its VMM has its memory");
    assert!(holds(process(&record, "supervisor_pid"), &[&value]), "its supervisor gave it");
    home.write("found", &format!("xx{value}yy"));
    assert_eq!(files_with(home.path(), since, value.as_bytes()), [home.path().join("found")]);
}

#[test]
fn a_secret_that_cannot_be_had_is_told_and_nothing_is_started() {
    let home = Home::new();
    let refused = |secret: &str, expected: &str, code: i32| {
        let said =
            run(&home, &[("NOT_TEXT", "hunter2")], &["mcp", "microvm", "launch", "m", "--secret", secret]);
        assert_eq!(said.code, code, "{said:?}");
        assert!(said.stderr.contains(expected), "{secret}: {}", said.stderr);
        assert!(!said.stderr.contains("hunter2"), "{}", said.stderr);
    };
    refused("A=env:UNSET_IN_A_TEST", "variable UNSET_IN_A_TEST is not set", 3);
    refused("A=file:/nowhere/token", "cannot read /nowhere/token", 3);
    refused("A=file:/dev/zero", "no regular file", 3);
    refused("A=cmd:sh -c 'echo hunter2; exit 7'", "exit status: 7", 3);
    refused("A=cmd:cat /dev/zero", "longer than 65536 bytes", 3);
    refused("A=cmd:true", "it is empty", 3);
    refused("A=cmd:/nowhere/program", "cannot start /nowhere/program", 3);
    refused("A=env:NOT_TEXT,placeholder", "--allow", 3);
    assert!(home.records().is_empty());
}

/// Who gives the secret itself is not shown it again: the errors of a command are in a client's log.
#[test]
fn a_secret_in_the_place_of_its_source_is_not_repeated() {
    let home = Home::new();
    for words in [
        &["add", "x", "builtin:probe", "--secret", "TOKEN=hunter2"][..],
        &["run", "--secret", "TOKEN=hunter2", "--", "true"],
        &["call", "x", "y", "--command", "true", "--secret=TOKEN=vault:hunter2"],
    ] {
        let said = casemate(&home, words);
        assert_eq!(said.code, 2, "{said:?}");
        assert!(said.stderr.contains("env:VARIABLE, file:PATH, cmd:COMMAND"), "{said:?}");
        assert!(!said.stderr.contains("hunter2") && !said.stdout.contains("hunter2"), "{said:?}");
    }
}

/// `add` writes where a secret is, and not what it is.
#[test]
fn a_definition_says_where_a_secret_is() {
    let home = Home::new();
    let value = random_value();
    let words = ["add", "probe", "builtin:probe", "--secret", "A=env:SECRET_OF_A_TEST"];
    assert_eq!(run(&home, &[("SECRET_OF_A_TEST", &value)], &words).code, 0);
    let written = home.read("config.toml");
    assert!(written.contains(r#"secrets = { A = "env:SECRET_OF_A_TEST" }"#), "{written}");
    assert!(!written.contains(&value));
    let called = run(&home, &[("SECRET_OF_A_TEST", &value)], &["call", "probe", "env", r#"{"name": "A"}"#]);
    assert!(called.stdout.contains(&value), "{called:?}");
    let called = casemate(&home, &["call", "probe", "env", r#"{"name": "A"}"#]);
    assert_eq!(called.code, 3, "{called:?}");
    assert!(called.stderr.contains("SECRET_OF_A_TEST is not set"), "{}", called.stderr);
}
