//! Every command line that the help or a document shows can be parsed, and every documented command exists.

use casemate::args::Cli;
use clap::{Command, CommandFactory, Parser};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// The commands of the design, built or refused.
const COMMANDS: &str = "doctor add remove list image kernel launch launch-many status stop logs tools call run test \
                        serve client-config import ssh-server load reliability verify report mcp";

/// Lines with these in them are patterns, not command lines.
const PATTERN: [&str; 4] = ["…", "|", "<", "["];

fn help_examples(command: &Command, found: &mut Vec<String>) {
    let help = command.clone().render_long_help().to_string();
    found.extend(help.lines().map(str::trim).filter(|line| line.starts_with("casemate ")).map(str::to_owned));
    command.get_subcommands().filter(|sub| !sub.is_hide_set()).for_each(|sub| help_examples(sub, found));
}

fn markdown(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        if path.is_dir() && !name.to_string_lossy().starts_with('.') && name != "target" {
            markdown(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
}

/// The commands in the fenced blocks of a document.
fn document_examples(path: &Path) -> Vec<String> {
    let mut fenced = false;
    let mut found = Vec::new();
    // A command may go on in the next line.
    let text = fs::read_to_string(path).unwrap().replace("\\\n", " ");
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        let line = line.trim().trim_start_matches("$ ").split(" #").next().unwrap_or_default().trim();
        if fenced && line.starts_with("casemate ") {
            found.extend(line.split(" && ").map(str::to_owned));
        }
    }
    found
}

#[test]
fn every_shown_command_line_parses() {
    let mut examples = Vec::new();
    help_examples(&Cli::command(), &mut examples);
    assert!(examples.len() > 25, "the help shows {} examples", examples.len());
    let mut documents = Vec::new();
    markdown(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."), &mut documents);
    let shown: Vec<String> = documents.iter().flat_map(|path| document_examples(path)).collect();
    assert!(shown.len() > 15, "the documents show {} examples", shown.len());
    // One that goes on in a second line is among them.
    assert!(shown.iter().any(|line| line.starts_with("casemate add memory ") && line.contains("--volume")));
    examples.extend(shown);
    for example in examples.iter().filter(|line| !PATTERN.iter().any(|sign| line.contains(sign))) {
        let words = shlex::split(example).unwrap_or_else(|| panic!("{example}: quotes"));
        if let Err(error) = Cli::try_parse_from(words) {
            let asked = [clap::error::ErrorKind::DisplayHelp, clap::error::ErrorKind::DisplayVersion];
            assert!(asked.contains(&error.kind()), "{example}: {error}");
        }
    }
}

#[test]
fn every_command_of_the_design_exists() {
    let cli = Cli::command();
    let known: BTreeSet<&str> = cli.get_subcommands().map(Command::get_name).collect();
    let missing: Vec<&str> = COMMANDS.split_whitespace().filter(|name| !known.contains(name)).collect();
    assert_eq!(missing, Vec::<&str>::new());
}

#[test]
fn the_seeds_spellings_are_the_same_commands() {
    let command = |line: &str| match Cli::try_parse_from(shlex::split(line).unwrap()).unwrap().command {
        casemate::args::Command::Mcp(alias) => alias.canonical(),
        own => own,
    };
    for (seed, own) in [
        (
            "casemate mcp microvm launch-many 100 --memory 128",
            "casemate launch-many 100 --memory 128 --isolation microvm",
        ),
        ("casemate mcp microvm status", "casemate status"),
        ("casemate mcp microvm stop my-secure-server", "casemate stop my-secure-server"),
        ("casemate mcp microvm test", "casemate test --isolation microvm"),
        (
            "casemate mcp add my-server --url stdio --isolation microvm",
            "casemate add my-server --url stdio --isolation microvm",
        ),
        (
            r#"casemate mcp call my-server my-tool '{"param": "value"}'"#,
            r#"casemate call my-server my-tool '{"param": "value"}'"#,
        ),
        ("casemate mcp tools my-server --json", "casemate tools my-server --json"),
        ("casemate mcp list", "casemate list"),
        ("casemate mcp remove my-server", "casemate remove my-server"),
    ] {
        assert_eq!(command(seed), command(own), "{seed}");
    }
    // A launch differs in one thing: what an unknown name means.
    for line in
        ["launch my-server --memory 512 --vcpus 2", "launch my-server --command 'cargo run --bin mcp-server'"]
    {
        let text = |spelling: &str| format!("{:?}", command(&format!("casemate {spelling}{line}")));
        let own = text("").replace("probe_if_unknown: false", "probe_if_unknown: true");
        assert_eq!(text("mcp microvm "), own.replace("isolation: None", "isolation: Some(Microvm)"));
    }
}
