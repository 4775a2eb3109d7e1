//! From a target and its settings to what a supervisor is told. A wall is chosen here, and refused rather
//! than weakened.

use super::{
    BackendKind, Conversation, Lifetime, Restart, Source, Target, check, disks, images, kernels, secrets,
};
use crate::{
    config::{Configuration, settings::Settings, transport::Transport},
    context::Context,
    error::Error,
};
use casemate_image::store::{Image, Runtime};
use casemate_machine::{Origin, Resources, Secrets, Spec, Workload, doctor, doctor::GuestKernel};
use casemate_proto::{
    control::{self, Reseed},
    ids::Name,
};
use std::{fs::File, sync::Arc, time::Duration};

/// How long a machine may take to be ready: a Node server on a busy host without KVM needs a third of it.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// Everything that machines of one server have in common.
#[derive(Debug, Clone)]
pub struct Plan {
    server: String,
    backend: BackendKind,
    accelerator: Option<casemate_machine::Accelerator>,
    kernel: GuestKernel,
    settings: Settings,
    workload: Workload,
    secrets: Secrets,
    /// Keeps the packed folders until a machine has them.
    _held: Vec<Arc<File>>,
}

/// Chooses the wall, and gets image and kernel.
pub async fn plan(
    context: &Context,
    configuration: &Configuration,
    target: &Target<'_>,
    settings: &Settings,
) -> Result<Plan, Error> {
    let backend = choose(settings)?;
    check(context, backend, target)?;
    // Before what takes long: somebody may be asked for a password.
    let secrets = secrets::find(context, &target.secrets, &target.egress).await?;
    let image = images::of_target(context, &configuration.registries, target).await?;
    if image.meta.command.is_empty() {
        return Err(Error::configuration(format!("{} does not say which program to start", target.source))
            .hint("say it with --command 'PROGRAM ARGUMENTS'"));
    }
    let kernel = kernels::guest(context, configuration).await?;
    let accelerator = Some(doctor::accelerator(&context.home, &kernel).await?);
    let given = disks::prepare(context, target).await?;
    Ok(Plan {
        server: target.name.clone(),
        backend,
        accelerator,
        kernel,
        settings: *settings,
        workload: Workload { folders: given.folders, volumes: given.volumes, ..workload(image, target) },
        secrets,
        _held: given.held,
    })
}

impl Plan {
    /// The name of the server that its machines run.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Why no template is used, where the user does not want one.
    pub fn cold(&self) -> Option<Origin> {
        self.settings.cold.then(|| Origin::Cold { reason: "a cold start was asked for".to_owned() })
    }

    /// What the supervisor of one machine is told beside that, and what is written down nowhere.
    pub fn secrets(&self) -> &Secrets {
        &self.secrets
    }

    /// What the supervisor of one machine is told.
    pub fn spec(&self, name: &Name, lifetime: Lifetime, conversation: Conversation) -> Spec {
        let settings = &self.settings;
        Spec {
            name: name.clone(),
            server: self.server.clone(),
            backend: self.backend,
            accelerator: self.accelerator,
            kernel: self.kernel.kernel.clone(),
            initramfs: self.kernel.initramfs.clone(),
            resources: Resources {
                memory_mb: settings.memory_mb,
                vcpus: settings.vcpus,
                full_cpu: settings.full_cpu,
            },
            lifetime,
            workload: Some(Workload { conversation, ..self.workload.clone() }),
            // Replaced by whoever knows of a template.
            origin: Origin::Cold { reason: "no template was looked for".to_owned() },
            idle_ms: settings.idle.map(|idle| idle.as_millis() as u64),
            suspend_disk_bytes: settings.suspend_disk,
            // A leased machine is one conversation: what was said to it is not said again.
            restart: match lifetime {
                Lifetime::Detached => settings.restart,
                Lifetime::Leased => Restart::Never,
            },
            health_ms: settings.health_interval.as_millis() as u64,
            memory_limit_mb: settings.memory_limit_mb.map(u64::from),
            deadline_ms: READY_TIMEOUT.as_millis() as u64,
        }
    }
}

fn workload(image: Image, target: &Target<'_>) -> Workload {
    let reseed = match (image.meta.runtime, &target.source) {
        (Runtime::Node, _) => Some(Reseed::Node),
        (Runtime::Python, _) => Some(Reseed::Python),
        // The probe server keeps no random numbers in store.
        (Runtime::Static, Source::Builtin) => Some(Reseed::Kernel),
        // What another program does with its random numbers is not known.
        (Runtime::Static | Runtime::Native, _) => None,
    };
    let mut env = image.meta.env;
    env.extend(target.env.clone());
    let (transport, http_path) = match &target.transport {
        Transport::Stdio => (control::Transport::Stdio, None),
        Transport::Http { port, path } => (control::Transport::Http { port: *port }, Some(path.clone())),
    };
    Workload {
        rootfs: image.rootfs,
        image: image.digest,
        command: image.meta.command,
        env,
        cwd: image.meta.cwd,
        transport,
        http_path,
        limits: control::Limits::default(),
        reseed,
        conversation: Conversation::Held,
        overlay: false,
        egress: target.egress.clone(),
        folders: Vec::new(),
        volumes: Vec::new(),
        secrets: target.secrets.iter().map(|wish| wish.name.clone()).collect(),
    }
}

/// The strongest backend that is built and whose wall is as strong as asked for, or stronger.
pub(super) fn choose(settings: &Settings) -> Result<BackendKind, Error> {
    match settings.backend {
        Some(BackendKind::Qemu) | None => Ok(BackendKind::Qemu),
        Some(other) => Err(Error::unavailable(format!("backend {other} is not built yet"))
            .hint("leave --backend out, or use --backend qemu: its wall is as strong or stronger")),
    }
}
