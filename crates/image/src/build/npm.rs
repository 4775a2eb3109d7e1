//! npm packages: resolved to a lock with `npm install --package-lock-only`, installed with `npm ci`.

mod lockfile;
mod manifest;

use std::fs;
use std::path::Path;

use serde_json::json;

use super::installer::{self, CACHE, Run};
use super::lock::Lock;
use super::{BuildError, Contents, Context, versions};
use crate::confine::Outcome;
use crate::files::{self, failed};
use crate::registry::npm::Packument;
use crate::runtime::{APP, CERTIFICATES, RuntimeLock, node};
use crate::source::Source;
use crate::store::Runtime;

pub(super) use lockfile::Lockfile;
pub(super) use manifest::{Manifest, start_of};

const NPM: &str = "npm";
pub(super) const MANIFEST: &str = "package.json";
pub(super) const LOCKFILE: &str = "package-lock.json";

/// Resolves the package of an `npm:` source and everything that it needs.
pub(super) fn resolve(context: &Context<'_>) -> Result<Lock, BuildError> {
    let Source::Npm { name, version, .. } = &context.request.source else {
        unreachable!("called for npm sources")
    };
    let registry = context.registries.npm()?;
    context.progress.step(&format!("looking up {name}"));
    let packument = Packument::fetch(&context.http, &registry, name)?
        .ok_or_else(|| BuildError::UnknownPackage { registry: NPM, name: name.clone() })?;
    if let Some(version) = version
        && versions::is_exact(version)
        && !packument.has(version.trim_start_matches('v'))
    {
        return Err(unknown_version(name, version, &packument));
    }
    let wanted = version.as_deref().unwrap_or("latest");
    let manifest =
        json!({ "name": "server", "version": "0.0.0", "private": true, "dependencies": { name: wanted } });
    // Archives may be kept on another host than their descriptions.
    let hosts: Vec<String> =
        packument.versions().last().map(|(_, dist)| dist.tarball.clone()).into_iter().collect();
    let runtime = RuntimeLock::current(context, Runtime::Node)?;

    let work = context.work()?;
    fs::write(work.path().join(MANIFEST), manifest.to_string()).map_err(failed("write to", work.path()))?;
    let outcome = lock_folder(context, &runtime, work.path(), &hosts)?;
    if !outcome.status.success() {
        if outcome.tail.contains("code ETARGET") && outcome.tail.contains(name.as_str()) {
            return Err(unknown_version(name, wanted, &packument));
        }
        return Err(unresolved(context, &outcome));
    }
    let mut lockfile = Lockfile::read(context, work.path())?;
    let exact =
        lockfile.pin_root(name).ok_or_else(|| lockfile::malformed(context, "the package is not in it"))?;
    let manifest =
        json!({ "name": "server", "version": "0.0.0", "private": true, "dependencies": { name: exact } });
    files::remove(work.path())?;
    Ok(lock(context, runtime, manifest.to_string(), &lockfile, hosts))
}

/// Installs a locked `npm:` source into `tree`.
pub(super) fn install(context: &Context<'_>, lock: &Lock, tree: &Path) -> Result<Contents, BuildError> {
    let Source::Npm { name, .. } = &context.request.source else { unreachable!("called for npm sources") };
    let app = tree.join(APP.trim_start_matches('/'));
    lock.runtime.install(context, tree)?;
    install_locked(context, lock, &app)?;
    for file in [MANIFEST, LOCKFILE] {
        files::remove(&app.join(file))?;
    }
    let place = Path::new("node_modules").join(name);
    let manifest = Manifest::read(context, &app, &place.join(MANIFEST))?;
    let programs = manifest.programs(&app.join(place), &format!("{APP}/node_modules/{name}"));
    let command = manifest.default_program(name).and_then(|program| programs.get(&program).cloned());
    Ok(Contents { programs, command: command.unwrap_or_default(), ..contents(context, lock)? })
}

/// Runs `npm ci` for the lock's files in `app`, which keeps them.
pub(super) fn install_locked(context: &Context<'_>, lock: &Lock, app: &Path) -> Result<(), BuildError> {
    for (name, text) in &lock.files {
        fs::write(app.join(name), text).map_err(failed("write to", app))?;
    }
    context.progress.step("installing npm packages");
    let outcome = npm(context, &lock.runtime, app, &["ci"], &lock.hosts)?;
    if !outcome.status.success() {
        return Err(installer::failure(context, NPM, &outcome));
    }
    let modules = app.join("node_modules");
    if fs::symlink_metadata(&modules).is_ok_and(|metadata| !metadata.is_dir()) {
        let reason = "it is no folder".to_owned();
        return Err(BuildError::Malformed {
            file: "node_modules".to_owned(),
            reason,
            log: context.log_path(),
        });
    }
    // Names the files that npm laid out, for npm's next run, which never comes.
    files::remove(&modules.join(".package-lock.json"))?;
    Ok(())
}

/// What every Node image has in common.
pub(super) fn contents(context: &Context<'_>, lock: &Lock) -> Result<Contents, BuildError> {
    let lockfile = match lock.files.get(LOCKFILE) {
        Some(text) => Lockfile::parse(text).map_err(|reason| lockfile::malformed(context, &reason))?,
        None => Lockfile::default(),
    };
    for name in lockfile.with_scripts() {
        if !lock.scripts {
            context.progress.note(&format!(
                "{name} wants to run a script when it is installed, which was not done: the server may miss what that would have built"
            ));
        }
    }
    let env = [
        ("PATH", "/app/node_modules/.bin:/usr/local/bin:/usr/bin:/bin"),
        ("HOME", "/home/casemate"),
        ("LANG", "C.UTF-8"),
        ("NODE_ENV", "production"),
    ];
    Ok(Contents {
        env: env.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        cwd: APP.to_owned(),
        packages: lockfile.packages(),
        ..Contents::default()
    })
}

/// Makes a lock of what was resolved.
pub(super) fn lock(
    context: &Context<'_>,
    runtime: RuntimeLock,
    manifest: String,
    lockfile: &Lockfile,
    hosts: Vec<String>,
) -> Lock {
    let files = [(MANIFEST.to_owned(), manifest), (LOCKFILE.to_owned(), lockfile.to_text())].into();
    Lock { runtime, contents: lockfile.identity(), files, hosts, scripts: context.request.allow_scripts }
}

/// Lets npm write the lock file of the folder that `manifest` lies in.
pub(super) fn lock_folder(
    context: &Context<'_>,
    runtime: &RuntimeLock,
    folder: &Path,
    hosts: &[String],
) -> Result<Outcome, BuildError> {
    runtime.root(context)?;
    context.progress.step("resolving npm packages");
    // Scripts have no place in resolving, whoever allows them.
    npm(context, runtime, folder, &["install", "--package-lock-only", "--ignore-scripts"], hosts)
}

/// The error for a resolution that failed, in npm's words.
pub(super) fn unresolved(context: &Context<'_>, outcome: &Outcome) -> BuildError {
    let reason: Vec<&str> = outcome
        .tail
        .lines()
        .filter_map(|line| line.strip_prefix("npm error "))
        .filter(|line| !line.starts_with("A complete log"))
        .take(4)
        .collect();
    if reason.is_empty() || !outcome.tail.contains("npm error code E") {
        return installer::failure(context, NPM, outcome);
    }
    BuildError::Unresolvable {
        installer: NPM,
        source_text: context.request.source.to_string(),
        reason: reason.join("; "),
        log: context.log_path(),
    }
}

fn npm(
    context: &Context<'_>,
    runtime: &RuntimeLock,
    folder: &Path,
    arguments: &[&str],
    hosts: &[String],
) -> Result<Outcome, BuildError> {
    let registry = context.registries.npm()?;
    let root = runtime.root(context)?;
    // What a package's script writes must not reach the next build.
    let private_cache = context.request.allow_scripts.then(|| context.work()).transpose()?;
    let cache = match &private_cache {
        Some(folder) => folder.path().to_owned(),
        None => context.store.cache(NPM)?,
    };
    let scripts = if context.request.allow_scripts { "false" } else { "true" };
    let settings = [
        ("registry", registry.as_str()),
        ("cafile", CERTIFICATES),
        ("cache", CACHE),
        ("userconfig", "/dev/null"),
        ("globalconfig", "/opt/npmrc"),
        ("prefix", "/tmp/prefix"),
        ("ignore_scripts", scripts),
        ("script_shell", node::SHELL_PROGRAM),
        ("omit", "dev"),
        ("lockfile_version", "3"),
        ("fund", "false"),
        ("audit", "false"),
        ("update_notifier", "false"),
        ("progress", "false"),
        ("color", "false"),
        ("logs_max", "0"),
        ("fetch_retries", "3"),
    ];
    let env = settings.map(|(key, value)| (format!("npm_config_{key}"), value.to_owned())).into();
    let mut argv = vec![node::PROGRAM.to_owned(), node::NPM_SCRIPT.to_owned()];
    argv.extend(arguments.iter().map(|argument| argument.to_string()));
    let mut addresses = vec![registry.as_str().to_owned()];
    addresses.extend_from_slice(hosts);
    let run = Run { root: &root, target: (folder, APP), cache: &cache, argv, env, addresses };
    run.run(context)
}

fn unknown_version(name: &str, version: &str, packument: &Packument) -> BuildError {
    let nearest = versions::nearest(version, packument.versions().map(|(version, _)| version));
    BuildError::UnknownVersion { name: name.to_owned(), version: version.to_owned(), nearest }
}
