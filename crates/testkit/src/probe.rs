//! Finds the program `casemate-probe` for tests of other crates, and builds it when it is missing or old:
//! cargo tells only this package's own tests where it is.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;

/// Names a probe to use instead of the one that would be built.
const OVERRIDE: &str = "CASEMATE_PROBE";

const PROGRAM: &str = "casemate-probe";

/// Why there is no probe.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The program does not run from a cargo target folder, so there is nowhere to build to.
    #[error("find the cargo target folder above {}", .0.display())]
    TargetFolder(PathBuf),
    /// cargo could not be started, or the path of the current program is unknown.
    #[error("build {PROGRAM}")]
    Start(#[source] io::Error),
    /// cargo failed.
    #[error("build {PROGRAM}: {0}")]
    Build(String),
}

/// The probe, built with the profile of the running test; panics with the reason if it cannot be built.
pub fn probe_path() -> &'static Path {
    static PROBE: OnceLock<PathBuf> = OnceLock::new();
    PROBE.get_or_init(|| match find_probe() {
        Ok(path) => path,
        Err(error) => {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
            panic!("{error}{}", cause.unwrap_or_default());
        }
    })
}

/// The probe, built with the profile of the running test.
///
/// `CASEMATE_PROBE` names another one to use. Processes that build at the same time wait for each other, as
/// cargo's do.
pub fn find_probe() -> Result<PathBuf, ProbeError> {
    if let Some(path) = std::env::var_os(OVERRIDE) {
        return Ok(path.into());
    }
    let this = std::env::current_exe().map_err(ProbeError::Start)?;
    let place = Place::of(&this).ok_or_else(|| ProbeError::TargetFolder(this.clone()))?;
    let probe = place.folder().join(PROGRAM);
    if !is_current(&probe) {
        build(&place)?;
    }
    Ok(probe)
}

/// Where cargo put the running program: `TARGET[/TRIPLE]/PROFILE[/deps]/program`.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    target: PathBuf,
    triple: Option<String>,
    /// The folder of the profile; `debug` is that of the profile `dev`.
    profile: String,
}

impl Place {
    fn of(program: &Path) -> Option<Self> {
        let target = program.ancestors().find(|folder| folder.join("CACHEDIR.TAG").is_file())?;
        Self::below(target, program)
    }

    fn below(target: &Path, program: &Path) -> Option<Self> {
        let parts: Vec<&str> =
            program.strip_prefix(target).ok()?.iter().map(|part| part.to_str()).collect::<Option<_>>()?;
        let (triple, profile) = match parts[..] {
            [profile, "deps" | "examples", _] | [profile, _] => (None, profile),
            [triple, profile, "deps" | "examples", _] | [triple, profile, _] => (Some(triple), profile),
            _ => return None,
        };
        Some(Self {
            target: target.to_owned(),
            triple: triple.map(str::to_owned),
            profile: profile.to_owned(),
        })
    }

    fn folder(&self) -> PathBuf {
        let mut folder = self.target.clone();
        folder.extend(&self.triple);
        folder.join(&self.profile)
    }
}

/// Whether the probe exists and is newer than everything that it is made of in this workspace.
fn is_current(probe: &Path) -> bool {
    let modified = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified()).ok();
    let Some(built) = modified(probe) else { return false };
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    ["src", "../proto/src"].iter().all(|part| is_older(&package.join(part), built))
}

fn is_older(path: &Path, than: SystemTime) -> bool {
    let Ok(meta) = fs::metadata(path) else { return true };
    if !meta.is_dir() {
        return meta.modified().is_ok_and(|modified| modified <= than);
    }
    let Ok(entries) = fs::read_dir(path) else { return true };
    entries.flatten().all(|entry| is_older(&entry.path(), than))
}

fn build(place: &Place) -> Result<(), ProbeError> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    command.args(["build", "--quiet", "--package", env!("CARGO_PKG_NAME"), "--bin", PROGRAM]);
    command.arg("--target-dir").arg(&place.target);
    command.args(["--profile", if place.profile == "debug" { "dev" } else { &place.profile }]);
    if let Some(triple) = &place.triple {
        command.args(["--target", triple]);
    }
    let output = command.output().map_err(ProbeError::Start)?;
    if output.status.success() {
        return Ok(());
    }
    Err(ProbeError::Build(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_a_program_tells_target_triple_and_profile() {
        let place = |path: &str| {
            let place = Place::below(Path::new("/t"), Path::new(path))?;
            Some((place.triple.unwrap_or_default(), place.profile))
        };
        let some = |triple: &str, profile: &str| Some((triple.to_owned(), profile.to_owned()));
        assert_eq!(place("/t/debug/deps/it-0a1b"), some("", "debug"));
        assert_eq!(place("/t/release/casemate"), some("", "release"));
        assert_eq!(place("/t/x86_64-linux/guest/deps/it"), some("x86_64-linux", "guest"));
        assert_eq!(place("/t/it"), None);
        assert_eq!(place("/elsewhere/debug/it"), None);
    }

    #[test]
    fn the_probe_is_found_from_here_and_runs() {
        let output = Command::new(probe_path()).arg("--version").output().unwrap();
        assert!(output.status.success());
        assert!(output.stdout.starts_with(b"casemate-probe "));
    }
}
