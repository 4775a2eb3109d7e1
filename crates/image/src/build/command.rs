//! A program of the host with the libraries that it is linked with, at the paths that it has here.
//!
//! Nothing is run to find them. What a program opens by itself while it runs (plug-ins, data, other programs)
//! is not known and not taken.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::lock::Lock;
use super::{BuildError, Contents, Context, elf};
use crate::files::failed;
use crate::registry::digest::{Digest, Hasher};
use crate::runtime::{self, RuntimeLock};
use crate::store::Runtime;

/// Programs that are of no use without files that an image of the program alone would not have.
const NEED_MORE: [&str; 18] = [
    "node", "nodejs", "deno", "bun", "bunx", "npm", "pnpm", "yarn", "python", "python2", "python3", "pip",
    "uv", "pipx", "ruby", "perl", "java", "docker",
];

/// Interpreters of scripts that bring everything they need, but for the programs that a script calls.
const SHELLS: [&str; 3] = ["sh", "dash", "bash"];

/// Folders that every machine has of its own: what an image has there is hidden.
const HIDDEN: [&str; 7] = ["/dev", "/home/casemate", "/proc", "/run", "/sys", "/tmp", "/var/tmp"];

/// Where programs go that lie in one of those folders on the host.
const ELSEWHERE: &str = "/opt/host";

/// The most of a file that is looked at for its kind and interpreter.
const HEAD_BYTES: usize = 256;

/// A host program and what has to be beside it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Program {
    /// What starts it.
    pub(super) argv: Vec<String>,
    /// Path inside, and the file on the host.
    pub(super) files: BTreeMap<PathBuf, PathBuf>,
    pub(super) runtime: Runtime,
}

pub(super) fn resolve(context: &Context<'_>, command: &[String]) -> Result<Lock, BuildError> {
    let program = Program::find(command)?;
    if program.argv.len() > 1 {
        context
            .progress
            .note("the image holds the script and its shell, but none of the programs that it may call");
    }
    Ok(Lock {
        runtime: RuntimeLock::bare(program.runtime),
        contents: program.identity()?,
        files: BTreeMap::new(),
        hosts: Vec::new(),
        scripts: false,
    })
}

pub(super) fn install(command: &[String], tree: &Path) -> Result<Contents, BuildError> {
    let program = Program::find(command)?;
    runtime::skeleton(tree)?;
    program.copy_into(tree)?;
    Ok(Contents { command: program.argv, ..contents() })
}

/// What images without a runtime have in common.
pub(super) fn contents() -> Contents {
    let env = [("PATH", "/usr/local/bin:/usr/bin:/bin"), ("HOME", "/home/casemate"), ("LANG", "C.UTF-8")];
    Contents {
        env: env.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        cwd: "/home/casemate".to_owned(),
        ..Contents::default()
    }
}

impl Program {
    /// Finds the program of a command as a shell would, and what it needs.
    fn find(command: &[String]) -> Result<Program, BuildError> {
        let name = command.first().map(String::as_str).unwrap_or_default();
        let base = name.rsplit('/').next().unwrap_or_default();
        if NEED_MORE.contains(&base) || base.starts_with("python3.") {
            return Err(refused(name, "it runs files that an image of the program alone would not have"));
        }
        let path = search(name).ok_or_else(|| refused(name, "there is no such program"))?;
        let program = Program::at(&path, &seen_inside(&path))?;
        match program.files.keys().find(|file| is_hidden(file)) {
            None => Ok(program),
            Some(library) => {
                let reason =
                    format!("it needs {}, and machines have that folder of their own", library.display());
                Err(refused(name, &reason))
            }
        }
    }

    /// What the program at `path` needs, if it is to be at `inside`.
    pub(super) fn at(path: &Path, inside: &Path) -> Result<Program, BuildError> {
        let name = path.display().to_string();
        let refuse = |reason: String| refused(&name, &reason);
        let mut head = Vec::new();
        File::open(path)
            .and_then(|file| file.take(HEAD_BYTES as u64).read_to_end(&mut head))
            .map_err(|error| refuse(format!("it cannot be read: {error}")))?;
        let inside_text =
            inside.to_str().ok_or_else(|| refuse("its path is no UTF-8".to_owned()))?.to_owned();
        if elf::is_elf(&head) {
            let needs = elf::needs(path).map_err(refuse)?;
            let runtime = if needs.files.is_empty() { Runtime::Static } else { Runtime::Native };
            let mut files = needs.files;
            files.insert(inside.to_owned(), path.to_owned());
            return Ok(Program { argv: vec![inside_text], files, runtime });
        }
        let shell = shell_of(&head).map_err(refuse)?;
        let mut program = Program::at(&shell, &shell)?;
        program.argv.push(inside_text);
        program.files.insert(inside.to_owned(), path.to_owned());
        Ok(program)
    }

    /// Each file with its digest.
    pub(super) fn identity(&self) -> Result<Vec<String>, BuildError> {
        let line =
            |(inside, file): (&PathBuf, &PathBuf)| Ok(format!("{} {}", inside.display(), digest(file)?));
        let files = self.files.iter().map(line);
        std::iter::once(Ok(self.argv.join("\0"))).chain(files).collect()
    }

    /// Copies the files into a tree that has its skeleton.
    pub(super) fn copy_into(&self, tree: &Path) -> Result<(), BuildError> {
        for (inside, file) in &self.files {
            let to = tree.join(inside.strip_prefix("/").unwrap_or(inside));
            let folder = to.parent().unwrap_or(tree);
            fs::create_dir_all(folder).map_err(failed("create", folder))?;
            fs::copy(file, &to).map_err(failed("copy", file))?;
            fs::set_permissions(&to, fs::Permissions::from_mode(0o755))
                .map_err(failed("change the mode of", &to))?;
        }
        Ok(())
    }
}

fn is_hidden(path: &Path) -> bool {
    HIDDEN.iter().any(|folder| path.starts_with(folder))
}

/// The path of a host's program inside a machine: its own, where a machine shows it.
fn seen_inside(path: &Path) -> PathBuf {
    if !is_hidden(path) {
        return path.to_owned();
    }
    Path::new(ELSEWHERE).join(path.strip_prefix("/").unwrap_or(path))
}

/// The absolute path of a program, found as a shell finds it.
fn search(name: &str) -> Option<PathBuf> {
    let is_program = |path: &Path| {
        fs::metadata(path)
            .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    };
    if name.contains('/') {
        let path = std::path::absolute(name).ok()?;
        // Names inside an image have no `..` and no `.`.
        let path = fs::canonicalize(path.parent()?).ok()?.join(path.file_name()?);
        return is_program(&path).then_some(path);
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(name))
        .find(|path| is_program(path))
}

/// The shell that a script's first line names, if it is one.
fn shell_of(head: &[u8]) -> Result<PathBuf, String> {
    let line = head.strip_prefix(b"#!").and_then(|rest| rest.split(|&byte| byte == b'\n').next());
    let line = line
        .and_then(|line| std::str::from_utf8(line).ok())
        .ok_or("it is neither an ELF program nor a script")?;
    let mut words = line.split_whitespace().filter(|word| !word.starts_with('-'));
    let first = words.next().unwrap_or_default();
    let interpreter = if first.ends_with("/env") { words.next().unwrap_or_default() } else { first };
    let name = interpreter.rsplit('/').next().unwrap_or_default();
    if !SHELLS.contains(&name) {
        return Err(format!("it is a script for {interpreter:?}, which needs more than the script"));
    }
    search(interpreter)
        .ok_or_else(|| format!("it is a script for {interpreter:?}, which is not on this host"))
}

fn refused(program: &str, reason: &str) -> BuildError {
    BuildError::Program { program: program.to_owned(), reason: reason.to_owned() }
}

fn digest(path: &Path) -> Result<Digest, BuildError> {
    let mut hasher = Hasher::sha256();
    let mut file = File::open(path).map_err(failed("read", path))?;
    std::io::copy(&mut file, &mut hasher).map_err(failed("read", path))?;
    Ok(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(text: &str) -> (tempfile::TempDir, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("script");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let path = path.to_str().unwrap().to_owned();
        (folder, path)
    }

    #[test]
    fn a_shell_script_brings_its_shell() {
        let (_folder, path) = script("#!/bin/sh -e\necho x\n");
        let program = Program::find(&[path]).unwrap();
        assert_eq!(program.runtime, Runtime::Native);
        assert!(
            program.argv[0].ends_with("/sh") && program.argv[1].ends_with("/script"),
            "{:?}",
            program.argv
        );
        assert!(program.files.keys().any(|file| file.ends_with("sh")));
    }

    #[test]
    fn a_program_in_a_folder_that_machines_hide_is_put_elsewhere() {
        assert_eq!(seen_inside(Path::new("/tmp/a/b")), Path::new("/opt/host/tmp/a/b"));
        assert_eq!(seen_inside(Path::new("/var/tmp/a")), Path::new("/opt/host/var/tmp/a"));
        assert_eq!(seen_inside(Path::new("/tmpfiles/b")), Path::new("/tmpfiles/b"));
        assert_eq!(seen_inside(Path::new("/usr/bin/b")), Path::new("/usr/bin/b"));
    }

    #[test]
    fn what_needs_more_is_refused_with_the_remedy() {
        let (_one, perl) = script("#!/usr/bin/env perl\n");
        let (_two, text) = script("hello");
        for name in [
            perl.as_str(),
            text.as_str(),
            "node",
            "/usr/bin/python3",
            "no-such-program-here",
            "/etc/passwd",
            "",
        ] {
            let error = Program::find(&[name.to_owned()]).unwrap_err();
            assert!(error.to_string().contains("use npm:, pypi:, dir:"), "{error}");
        }
    }
}
