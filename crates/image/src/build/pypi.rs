//! PyPI packages: resolved to a lock with `uv pip compile`, installed with `uv pip install`, wheels only.

pub(super) mod entry_points;
mod requirements;

use std::fs;
use std::path::Path;

use super::installer::{self, CACHE, Run};
use super::lock::Lock;
use super::{BuildError, Contents, Context, versions};
use crate::confine::Outcome;
use crate::files::{self, failed};
use crate::registry::pypi::{Project, normalised};
use crate::runtime::{APP, CERTIFICATES, RuntimeLock, python};
use crate::source::Source;
use crate::store::Runtime;

const UV: &str = "uv";
/// What was asked for.
const REQUEST: &str = "requirements.in";
/// The lock: every package with its version and digests.
const REQUIREMENTS: &str = "requirements.txt";
const REQUIREMENTS_BYTES: u64 = 32 << 20;

/// Resolves the package of a `pypi:` source and everything that it needs.
pub(super) fn resolve(context: &Context<'_>) -> Result<Lock, BuildError> {
    let Source::Pypi { name, version, with, .. } = &context.request.source else {
        unreachable!("called for PyPI sources")
    };
    let index = context.registries.pypi()?;
    context.progress.step(&format!("looking up {name}"));
    let project = Project::fetch(&context.http, &index, name)?
        .ok_or_else(|| BuildError::UnknownPackage { registry: "PyPI", name: name.clone() })?;
    let requirement = match version.as_deref() {
        None => name.clone(),
        Some(version) if version.starts_with(|c: char| "=<>!~".contains(c)) => format!("{name}{version}"),
        Some(version) => {
            if versions::is_exact(version) && !project.has(version) {
                let nearest = versions::nearest(version, project.wheel_versions());
                return Err(BuildError::UnknownVersion {
                    name: name.clone(),
                    version: version.to_owned(),
                    nearest,
                });
            }
            format!("{name}=={version}")
        }
    };
    let hosts = project.files.last().map(|file| file.url.clone()).into_iter().collect();
    let wanted = std::iter::once(requirement).chain(with.iter().cloned());
    let wanted: String = wanted.map(|requirement| requirement + "\n").collect();
    resolve_requirements(context, &wanted, hosts)
}

/// An address of the host that keeps the files of a project's first dependency: an index may keep them on
/// another host than itself.
pub(super) fn file_hosts(context: &Context<'_>, requirements: &str) -> Result<Vec<String>, BuildError> {
    let first = requirements.lines().next().unwrap_or_default();
    let end = first.find(|c: char| !c.is_ascii_alphanumeric() && !"-_.".contains(c)).unwrap_or(first.len());
    let project = Project::fetch(&context.http, &context.registries.pypi()?, &first[..end])?;
    Ok(project.and_then(|project| project.files.last().map(|file| file.url.clone())).into_iter().collect())
}

/// Resolves requirements to a lock.
pub(super) fn resolve_requirements(
    context: &Context<'_>,
    wanted: &str,
    hosts: Vec<String>,
) -> Result<Lock, BuildError> {
    let mut runtime = RuntimeLock::current(context, Runtime::Python)?;
    let work = context.work()?;
    fs::write(work.path().join(REQUEST), wanted).map_err(failed("write to", work.path()))?;
    runtime.root(context)?;
    context.progress.step("resolving Python packages");
    let arguments =
        ["compile", "--generate-hashes", "--no-header", "--no-annotate", "-o", REQUIREMENTS, REQUEST];
    let outcome = uv(context, &runtime, (work.path(), APP), &arguments, &hosts)?;
    if !outcome.status.success() {
        return Err(unresolved(context, &outcome));
    }
    let text = files::read_below(work.path(), Path::new(REQUIREMENTS), REQUIREMENTS_BYTES)?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let packages = requirements::parse(&text);
    python::add_called(context, &mut runtime, packages.iter().map(|pin| pin.name()))?;
    let contents = packages.iter().map(|pin| pin.identity()).collect();
    files::remove(work.path())?;
    let scripts = context.request.allow_scripts;
    Ok(Lock { runtime, contents, files: [(REQUIREMENTS.to_owned(), text)].into(), hosts, scripts })
}

/// Installs a locked `pypi:` source into `tree`.
pub(super) fn install(context: &Context<'_>, lock: &Lock, tree: &Path) -> Result<Contents, BuildError> {
    let Source::Pypi { name, .. } = &context.request.source else { unreachable!("called for PyPI sources") };
    let installed = install_locked(context, lock, tree)?;
    let own = normalised(name);
    let programs = entry_points::of_package(tree, &own)?;
    for (program, script) in &programs {
        entry_points::write_script(tree, program, script)?;
    }
    let command = match programs.keys().find(|program| normalised(program) == own) {
        Some(program) => entry_points::command_of(program),
        None if programs.len() == 1 => {
            programs.keys().next().map(|program| entry_points::command_of(program)).unwrap_or_default()
        }
        // A package without scripts may still be a module that runs: `python -m`.
        None => entry_points::main_module(tree, &own)
            .map_or_else(Vec::new, |module| vec![python::PROGRAM.to_owned(), "-m".to_owned(), module]),
    };
    let programs =
        programs.keys().map(|program| (program.clone(), entry_points::command_of(program))).collect();
    Ok(Contents { programs, command, ..installed })
}

/// Installs the packages of a lock, and says what every Python image has in common.
pub(super) fn install_locked(
    context: &Context<'_>,
    lock: &Lock,
    tree: &Path,
) -> Result<Contents, BuildError> {
    let root = lock.runtime.root(context)?;
    lock.runtime.install(context, tree)?;
    let requirements = lock.files.get(REQUIREMENTS).map(String::as_str).unwrap_or_default();
    let packages = tree.join(python::PACKAGES_FOLDER.trim_start_matches('/'));
    fs::write(packages.join(REQUIREMENTS), requirements).map_err(failed("write to", &packages))?;
    context.progress.step("installing Python packages");
    let target = python::PACKAGES_FOLDER;
    let list = format!("{target}/{REQUIREMENTS}");
    let arguments = ["install", "--require-hashes", "--no-deps", "--target", target, "-r", &list];
    let outcome = uv(context, &lock.runtime, (&packages, target), &arguments, &lock.hosts)?;
    if !outcome.status.success() {
        return Err(installer::failure(context, UV, &outcome));
    }
    for leftover in [REQUIREMENTS, "bin", ".lock"] {
        files::remove(&packages.join(leftover))?;
    }
    context.progress.step("compiling Python packages");
    python::compile(context, &root, &packages, target)?;
    let env = [
        ("PATH", "/usr/local/bin:/usr/bin:/bin"),
        ("HOME", "/home/casemate"),
        ("LANG", "C.UTF-8"),
        ("PYTHONDONTWRITEBYTECODE", "1"),
        ("PYTHONNOUSERSITE", "1"),
    ];
    Ok(Contents {
        env: env.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        cwd: APP.to_owned(),
        packages: requirements::parse(requirements).into_iter().map(|pin| pin.package()).collect(),
        ..Contents::default()
    })
}

fn uv(
    context: &Context<'_>,
    runtime: &RuntimeLock,
    target: (&Path, &str),
    arguments: &[&str],
    hosts: &[String],
) -> Result<Outcome, BuildError> {
    let index = context.registries.pypi()?;
    let root = runtime.root(context)?;
    let cache = context.store.cache(UV)?;
    let settings = [
        ("UV_DEFAULT_INDEX", index.as_str()),
        ("UV_CACHE_DIR", CACHE),
        ("UV_NO_CONFIG", "1"),
        ("UV_NO_PROGRESS", "1"),
        ("UV_LINK_MODE", "copy"),
        ("UV_PYTHON_DOWNLOADS", "never"),
        ("SSL_CERT_FILE", CERTIFICATES),
        ("NO_COLOR", "1"),
    ];
    let env = settings.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let mut argv = vec![python::UV_PROGRAM.to_owned(), "pip".to_owned()];
    argv.extend(arguments.iter().map(|argument| argument.to_string()));
    argv.extend(["--python", "/usr/bin/python3.13", "--only-binary", ":all:"].map(str::to_owned));
    let mut addresses = vec![index.as_str().to_owned()];
    addresses.extend_from_slice(hosts);
    Run { root: &root, target, cache: &cache, argv, env, addresses }.run(context)
}

/// The error for a resolution that failed, in uv's words.
fn unresolved(context: &Context<'_>, outcome: &Outcome) -> BuildError {
    match outcome.tail.find("No solution found") {
        None => installer::failure(context, UV, outcome),
        Some(at) => BuildError::Unresolvable {
            installer: UV,
            source_text: context.request.source.to_string(),
            reason: outcome.tail[at..].split_whitespace().collect::<Vec<_>>().join(" "),
            log: context.log_path(),
        },
    }
}
