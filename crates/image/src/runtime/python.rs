//! CPython, from Debian, and `uv` as its installer, from the package index.
//!
//! Why Debian's: it is the one interpreter that a registry of this project carries whole, with security
//! updates and a published digest. The index has no interpreter, and builds from elsewhere would be one more
//! party to trust. Why `uv` and not pip: one static program that resolves and installs without code of any
//! package, takes wheels only when told so, and writes and checks a lock with digests.
//!
//! Modules are compiled when the image is made: the root is read-only, so that every start would compile them
//! again, in emulation. The compiled files are not checked against their sources at run time (PEP 552).

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::pin::{HexDigest, Pin, Pins, plain_version};
use super::{RuntimeLock, debian};
use crate::archive::{Limits, Tree};
use crate::build::{BuildError, Context};
use crate::confine::{self, Confinement, Outcome};
use crate::files::failed;
use crate::registry::pypi::{Project, normalised};
use crate::store::Runtime;

/// The interpreter's packages and their libraries. Listed, not resolved: Debian's dependencies bring a
/// package manager's worth of what only an installation needs.
const PACKAGES: [&str; 20] = [
    "libc6",
    "libc-bin",
    "libgcc-s1",
    "libstdc++6",
    "python3.13-minimal",
    "libpython3.13-minimal",
    "libpython3.13-stdlib",
    "zlib1g",
    "libexpat1",
    "libssl3t64",
    "libsqlite3-0",
    "libffi8",
    "libbz2-1.0",
    "liblzma5",
    "libuuid1",
    "libreadline8t64",
    "libtinfo6",
    "libncursesw6",
    "libzstd1",
    "tzdata",
];

/// What packages call and cannot bring along: a package's normalised name, and what of Debian it needs beside
/// [`PACKAGES`].
const CALLED: [(&str, &[&str]); 1] = [("gitpython", &["libpcre2-8-0", GIT])];

/// Of it only the program with its built-in commands: no server over HTTP, mail or Perl.
const GIT: &str = "git";

const UV: &str = "uv";

/// The platform of the wheel that holds uv as a static program.
const UV_PLATFORM: &str = "musllinux_1_1_x86_64.whl";

/// The program that runs scripts, as a path inside.
pub(crate) const PROGRAM: &str = "/usr/bin/python3";

/// Where packages are installed, as a path inside: on the interpreter's own search path.
pub(crate) const PACKAGES_FOLDER: &str = "/usr/local/lib/python3.13/dist-packages";

/// Where uv is, as a path inside the build root.
pub(crate) const UV_PROGRAM: &str = "/opt/uv/uv";

/// How long compiling all modules of a folder may take.
const COMPILE_TIME: Duration = Duration::from_secs(300);

/// Parts of the standard library that no server imports.
const UNWANTED: [&str; 8] =
    ["test", "idlelib", "tkinter", "turtledemo", "ensurepip", "pydoc_data", "lib2to3", "__phello__"];

pub(crate) fn lock(context: &Context<'_>) -> Result<RuntimeLock, BuildError> {
    let archive = debian::archive(context)?;
    let mut packages = Vec::new();
    for name in PACKAGES {
        packages.push(archive.package(name)?);
    }
    Ok(RuntimeLock::new(Runtime::Python, debian::pins(packages), Pins(vec![newest_uv(context)?])))
}

/// Adds to a runtime the programs that these packages call.
pub(crate) fn add_called<'a>(
    context: &Context<'_>,
    runtime: &mut RuntimeLock,
    packages: impl Iterator<Item = &'a str>,
) -> Result<(), BuildError> {
    let called = called(packages);
    if called.is_empty() {
        return Ok(());
    }
    let archive = debian::archive(context)?;
    for name in called {
        runtime.parts.0.extend(debian::pins([archive.package(name)?]).0);
    }
    Ok(())
}

/// The packages of Debian with the programs that these packages call.
fn called<'a>(packages: impl Iterator<Item = &'a str>) -> Vec<&'static str> {
    let of_package = |name| CALLED.iter().find(|(package, _)| *package == normalised(name));
    let mut called: Vec<&str> =
        packages.filter_map(of_package).flat_map(|(_, called)| called.iter().copied()).collect();
    called.sort_unstable();
    called.dedup();
    called
}

pub(crate) fn unpack(
    context: &Context<'_>,
    pin: &Pin,
    file: &Path,
    tree: &mut Tree,
) -> Result<(), BuildError> {
    if pin.name == UV {
        return unpack_uv(context, file, tree);
    }
    if pin.name == GIT {
        return debian::unpack(pin, file, tree, &|path| {
            path == Path::new("usr/bin/git") || path.starts_with("usr/share/git-core/templates")
        });
    }
    debian::unpack(pin, file, tree, &|path| {
        let Ok(library) = path.strip_prefix("usr/lib/python3.13") else {
            return path.starts_with("usr/lib")
                || path.starts_with("usr/lib64")
                || path.starts_with("usr/bin/python3.13")
                || path.starts_with("usr/share/zoneinfo")
                || path.starts_with("etc/python3.13");
        };
        !UNWANTED.iter().any(|name| library.starts_with(name)) && !library.starts_with("__pycache__")
    })
}

/// Makes the unpacked packages a working interpreter: its usual name, and compiled modules.
pub(crate) fn finish(context: &Context<'_>, root: &Path) -> Result<(), BuildError> {
    for name in ["usr/bin/python3", "usr/bin/python"] {
        let name = root.join(name);
        std::os::unix::fs::symlink("python3.13", &name).map_err(failed("create", &name))?;
    }
    let packages = root.join(PACKAGES_FOLDER.trim_start_matches('/'));
    fs::create_dir_all(&packages).map_err(failed("create", &packages))?;
    context.progress.step("compiling Python's library");
    let outcome = compile(context, root, &root.join("usr/lib/python3.13"), "/usr/lib/python3.13")?;
    if !outcome.status.success() {
        return Err(BuildError::Installer {
            installer: "python",
            ending: outcome.ending(),
            log: context.log_path(),
        });
    }
    Ok(())
}

/// Compiles all modules of a folder, which appears as `inside` in the root. That some do not compile is no
/// error here: packages carry modules for other versions of Python.
pub(crate) fn compile(
    context: &Context<'_>,
    root: &Path,
    folder: &Path,
    inside: &str,
) -> Result<Outcome, BuildError> {
    let argv = [
        "/usr/bin/python3.13",
        "-I",
        "-m",
        "compileall",
        "-q",
        "-f",
        "-j",
        "0",
        "--invalidation-mode",
        "unchecked-hash",
        inside,
    ];
    let argv = argv.map(str::to_owned);
    // The order of a set's members, which compiled code holds, must not change from run to run.
    let env = [("PYTHONHASHSEED".to_owned(), "0".to_owned())];
    let limits = confine::Limits { time: COMPILE_TIME, ..confine::Limits::default() };
    let confinement = Confinement {
        root,
        folders: &[(folder, inside)],
        argv: &argv,
        env: &env,
        cwd: "/",
        endpoints: &[],
        limits,
    };
    context.run(&confinement)
}

fn newest_uv(context: &Context<'_>) -> Result<Pin, BuildError> {
    context.progress.step("looking up uv");
    let missing = || BuildError::RuntimePart { name: UV, registry: "PyPI" };
    let project = Project::fetch(&context.http, &context.registries.pypi()?, UV)?.ok_or_else(missing)?;
    let wheels = project.files.into_iter().filter(|file| !file.yanked && file.name.ends_with(UV_PLATFORM));
    let (_, wheel) = wheels
        .filter_map(|file| Some((plain_version(file.version()?)?, file)))
        .max_by_key(|(version, _)| *version)
        .ok_or_else(missing)?;
    let digest = HexDigest(wheel.digest.ok_or_else(missing)?);
    let version = wheel.version().unwrap_or_default().to_owned();
    Ok(Pin { name: UV.to_owned(), version, url: wheel.url, digest })
}

fn unpack_uv(context: &Context<'_>, wheel: &Path, tree: &mut Tree) -> Result<(), BuildError> {
    let missing = || BuildError::RuntimePart { name: UV, registry: "PyPI" };
    let file = File::open(wheel).map_err(failed("open", wheel))?;
    let mut archive = zip::ZipArchive::new(file).map_err(|_| missing())?;
    let names = archive.file_names().filter_map(Result::ok);
    let name =
        names.map(|name| name.into_owned()).find(|name| name.ends_with("/scripts/uv")).ok_or_else(missing)?;
    let program = archive.by_name(&name).map_err(|_| missing())?;
    let mut bounded = program.take(Limits::default().bytes);
    let path = PathBuf::from(UV_PROGRAM.trim_start_matches('/'));
    tree.file(path.as_os_str().as_encoded_bytes(), 0o755, &mut bounded)
        .map_err(|source| context.unpack_error(wheel, source))
}

#[cfg(test)]
mod tests {
    use super::called;

    #[test]
    fn a_package_that_calls_a_program_gets_it_once_under_any_spelling_of_its_name() {
        assert_eq!(called(["mcp", "GitPython", "gitpython", "gitdb"].into_iter()), ["git", "libpcre2-8-0"]);
        assert!(called(["mcp", "gitdb"].into_iter()).is_empty());
    }
}
