//! What this host can run, found out by trying.
//!
//! A device that opens proves nothing, and neither does a processor that executes a few instructions: only a
//! boot of the real guest kernel up to the agent, within a deadline, does.

use crate::{
    backend::{BackendError, qemu},
    cgroup::{Group, Limits},
    client::{LaunchError, launch},
    home::{Home, HomeError, boot_id, write_atomically},
    leash::Culprit,
    secret::Secrets,
    spec::{Accelerator, BackendKind, Isolation, Resources, Spec},
    supervisor::chain,
};
use serde::{Deserialize, Serialize};
use std::{
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// How long a guest may take to boot under KVM before KVM counts as unusable.
const KVM_DEADLINE: Duration = Duration::from_secs(4);

/// How long a guest may take to boot in emulation, on a busy host.
const TCG_DEADLINE: Duration = Duration::from_secs(20);

/// Memory of a guest that only shows that it boots, in MiB.
const PROBE_MEMORY_MB: u32 = 128;

/// What boots: to be found by its files, and named in what is remembered about it.
#[derive(Debug, Clone)]
pub struct GuestKernel {
    /// Its name below `kernels/`.
    pub id: String,
    /// The uncompressed kernel.
    pub kernel: PathBuf,
    /// The initramfs with the agent.
    pub initramfs: PathBuf,
}

/// `doctor --json`.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Every backend, the strongest first.
    pub backends: Vec<Finding>,
    /// The strongest usable backend.
    pub default: Option<BackendKind>,
    /// What does not bound machines here from outside; their own walls do not depend on it.
    pub limits: Vec<Limit>,
}

/// A control group's limit that machines cannot be given on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Limit {
    /// Why not.
    pub reason: String,
    /// What the user may do about that.
    pub remedy: Option<String>,
}

/// What was found out about one backend.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// The backend.
    pub name: BackendKind,
    /// The strength of its wall.
    pub level: Isolation,
    /// Whether a machine of it just ran.
    pub usable: bool,
    /// What would execute its instructions.
    pub accelerator: Option<Accelerator>,
    /// Why it is unusable, or why it is slower than it could be.
    pub reason: Option<String>,
    /// What the user may do about that.
    pub remedy: Option<String>,
    /// How long it took to find out, in milliseconds.
    pub probe_ms: u64,
}

/// Whether guests run under KVM on this host, as it was last tried. True of one boot of the host, one
/// kernel and one QEMU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Verdict {
    key: String,
    /// Why not; nothing if they do.
    unusable: Option<Unusable>,
}

/// Why something cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unusable {
    /// Why.
    pub reason: String,
    /// What the user may do.
    pub remedy: Option<String>,
}

/// Tries every backend. KVM is tried anew, whatever is remembered.
pub async fn examine(home: &Home, kernel: &GuestKernel) -> Report {
    let (kvm, (tcg, tcg_ms)) = tokio::join!(try_kvm(home, kernel), try_tcg(home, kernel));
    let mut backends = vec![not_built(BackendKind::Firecracker)];
    if let Err(unusable) = &kvm {
        let first = unusable.reason.split(" (").next().unwrap_or_default();
        backends[0].reason = Some(format!("not built yet; and it needs KVM: {first}"));
    }
    backends.push(qemu_finding(kvm, tcg, tcg_ms));
    backends.extend([BackendKind::Docker, BackendKind::Sandbox, BackendKind::Process].map(not_built));
    let default = backends.iter().find(|finding| finding.usable).map(|finding| finding.name);
    let missing = Group::probe(home, &Limits::of_vmm(Resources::default()));
    let limits = missing
        .iter()
        .map(|missing| Limit { reason: chain(missing), remedy: missing.remedy().map(str::to_owned) });
    Report { backends, default, limits: limits.collect() }
}

fn qemu_finding(kvm: Result<u64, Unusable>, tcg: Result<(), Unusable>, tcg_ms: u64) -> Finding {
    let mut finding = Finding {
        name: BackendKind::Qemu,
        level: BackendKind::Qemu.isolation(),
        usable: true,
        accelerator: Some(Accelerator::Kvm),
        reason: None,
        remedy: None,
        probe_ms: tcg_ms,
    };
    match (kvm, tcg) {
        (Ok(kvm_ms), _) => finding.probe_ms = kvm_ms,
        (Err(kvm), Ok(())) => {
            finding.accelerator = Some(Accelerator::Tcg);
            finding.reason =
                Some(format!("KVM is unusable: {}; guests run in software emulation", kvm.reason));
            finding.remedy = kvm.remedy;
        }
        (Err(_), Err(tcg)) => {
            finding.usable = false;
            finding.accelerator = None;
            finding.reason = Some(tcg.reason);
            finding.remedy = tcg.remedy;
        }
    }
    finding
}

fn not_built(name: BackendKind) -> Finding {
    Finding {
        name,
        level: name.isolation(),
        usable: false,
        accelerator: None,
        reason: Some("not built yet".to_owned()),
        remedy: None,
        probe_ms: 0,
    }
}

/// What executes guests' instructions on this host: KVM if it was seen to, else software. Tries KVM if it
/// was not tried since the host booted; that takes some four seconds.
pub async fn accelerator(home: &Home, kernel: &GuestKernel) -> Result<Accelerator, BackendError> {
    qemu::probe::find()?;
    if device().is_err() {
        return Ok(Accelerator::Tcg);
    }
    let usable = match remembered(home, kernel) {
        Some(verdict) => verdict.unusable.is_none(),
        None => try_kvm(home, kernel).await.is_ok(),
    };
    Ok(if usable { Accelerator::Kvm } else { Accelerator::Tcg })
}

/// Boots a guest under KVM and remembers whether that worked; returns how long it took, in milliseconds.
async fn try_kvm(home: &Home, kernel: &GuestKernel) -> Result<u64, Unusable> {
    device()?;
    let started = Instant::now();
    let booted = boot(home, kernel, Accelerator::Kvm, KVM_DEADLINE).await;
    let unusable = match &booted {
        Ok(()) => None,
        Err(LaunchError::Failed { reason, culprit: Culprit::Guest, .. }) => Some(Unusable {
            reason: format!("/dev/kvm opens, but a guest kernel does not boot under it ({})", gist(reason)),
            remedy: Some("use a host that offers hardware virtualisation, or go on in emulation".to_owned()),
        }),
        // Not KVM's fault, so nothing to remember.
        Err(error) => return Err(unusable(error)),
    };
    let verdict = Verdict { key: key(kernel), unusable };
    if let (Ok(path), Ok(text)) = (verdict_path(home), serde_json::to_vec_pretty(&verdict)) {
        // Not remembered: tried again the next time.
        let _ = write_atomically(&path, &text);
    }
    match verdict.unusable {
        None => Ok(started.elapsed().as_millis() as u64),
        Some(unusable) => Err(unusable),
    }
}

async fn try_tcg(home: &Home, kernel: &GuestKernel) -> (Result<(), Unusable>, u64) {
    let started = Instant::now();
    // On a thread of its own: a QEMU that hangs is to hold up nothing else.
    let asked = tokio::task::spawn_blocking(version).await;
    let asked = asked.unwrap_or_else(|error| Err(Unusable { reason: error.to_string(), remedy: None }));
    let tried = match asked {
        Ok(()) => boot(home, kernel, Accelerator::Tcg, TCG_DEADLINE).await.map_err(|error| unusable(&error)),
        Err(unusable) => Err(unusable),
    };
    (tried, started.elapsed().as_millis() as u64)
}

fn version() -> Result<(), Unusable> {
    let checked = qemu::probe::version().and_then(|(version, _)| version.check());
    checked.map_err(|error| {
        let remedy = match &error {
            BackendError::Missing { remedy, .. } | BackendError::TooOld { remedy, .. } => {
                Some((*remedy).to_owned())
            }
            _ => None,
        };
        Unusable { reason: chain(&error), remedy }
    })
}

/// Boots a guest up to its agent, and stops it.
async fn boot(
    home: &Home,
    kernel: &GuestKernel,
    accelerator: Accelerator,
    deadline: Duration,
) -> Result<(), LaunchError> {
    let name = format!("doctor-{accelerator}-{}", std::process::id());
    // Letters, digits and dashes.
    let name = name.parse().map_err(|_| LaunchError::Spawn(io::ErrorKind::InvalidInput.into()))?;
    let spec = Spec {
        server: "doctor".to_owned(),
        accelerator: Some(accelerator),
        resources: Resources { memory_mb: PROBE_MEMORY_MB, ..Resources::default() },
        deadline_ms: deadline.as_millis() as u64,
        ..Spec::bare(name, BackendKind::Qemu, kernel.kernel.clone(), kernel.initramfs.clone())
    };
    launch(home, &spec, &Secrets::default(), |_| {}).await?.stop().await;
    Ok(())
}

/// The line of a failure that says most: what the machine printed last, else the failure itself.
fn gist(reason: &str) -> &str {
    let mut lines = reason.lines();
    let first = lines.next().unwrap_or_default();
    lines.rfind(|line| !line.trim().is_empty()).unwrap_or(first).trim()
}

fn device() -> Result<(), Unusable> {
    match std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => Ok(()),
        Err(error) => Err(match error.kind() {
            io::ErrorKind::NotFound => Unusable {
                reason: "there is no /dev/kvm".to_owned(),
                remedy: Some("load kvm_intel or kvm_amd, or enable (nested) virtualisation".to_owned()),
            },
            io::ErrorKind::PermissionDenied => Unusable {
                reason: "/dev/kvm may not be opened by this user".to_owned(),
                remedy: Some("add the user to the group kvm and log in again".to_owned()),
            },
            _ => Unusable { reason: format!("/dev/kvm cannot be opened: {error}"), remedy: None },
        }),
    }
}

fn unusable(error: &LaunchError) -> Unusable {
    let mut reason = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        reason = format!("{reason}: {error}");
        source = error.source();
    }
    let remedy = if let LaunchError::Failed { hint, .. } = error { hint.clone() } else { None };
    Unusable { reason, remedy }
}

fn remembered(home: &Home, kernel: &GuestKernel) -> Option<Verdict> {
    let text = std::fs::read(verdict_path(home).ok()?).ok()?;
    let verdict: Verdict = serde_json::from_slice(&text).ok()?;
    (verdict.key == key(kernel)).then_some(verdict)
}

fn verdict_path(home: &Home) -> Result<PathBuf, HomeError> {
    Ok(home.cache()?.join("kvm.json"))
}

/// What a verdict is true of.
fn key(kernel: &GuestKernel) -> String {
    let boot = boot_id().unwrap_or_default();
    let program = qemu::probe::find().ok().and_then(|path| modified(&path)).unwrap_or_default();
    format!("{boot} {} {program}", kernel.id)
}

/// When a program was installed, in place of its version: that would take as long as starting it.
fn modified(path: &Path) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata(path).ok()?;
    Some(format!("{}:{}:{}", meta.len(), meta.mtime(), meta.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no(reason: &str) -> Unusable {
        Unusable { reason: reason.to_owned(), remedy: None }
    }

    #[test]
    fn kvm_that_fails_is_named_where_emulation_works() {
        let finding = qemu_finding(Err(no("it hangs")), Ok(()), 1500);
        assert!(finding.usable);
        assert_eq!(finding.accelerator, Some(Accelerator::Tcg));
        assert!(finding.reason.unwrap().contains("KVM is unusable: it hangs"));
    }

    #[test]
    fn without_either_qemu_is_unusable() {
        let finding = qemu_finding(Err(no("none")), Err(no("QEMU is not installed")), 1);
        assert!(!finding.usable);
        assert_eq!(finding.reason.as_deref(), Some("QEMU is not installed"));
    }
}
