//! What holds for one start: flags over environment over file over defaults, merged here and nowhere else.

use super::{Defaults, HomeSettings, Server};
use crate::{
    command::options::{LifeOptions, MEMORY_LIMIT_MB, MEMORY_MB, MachineOptions, StartOptions, VCPUS},
    engine::{BackendKind, Isolation, Restart},
    error::{Error, nearest},
    units::Idle,
};
use casemate_machine::spec;
use std::{error::Error as StdError, ops::RangeInclusive, str::FromStr, time::Duration};

/// What the environment asks for: `CASEMATE_ISOLATION`, `CASEMATE_BACKEND`, `CASEMATE_MEMORY`, `CASEMATE_CPU`,
/// `CASEMATE_VCPUS`, `CASEMATE_IDLE`, `CASEMATE_RESTART`; for all machines together
/// `CASEMATE_HEALTH_INTERVAL`, `CASEMATE_SUSPEND_DISK` and `CASEMATE_MEMORY_LIMIT`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Environment {
    /// What machines are like.
    pub machine: MachineOptions,
    /// What becomes of them.
    pub life: LifeOptions,
    /// What holds for all of them together.
    pub home: HomeSettings,
    /// `CASEMATE_CPU=full`: emulated processors have every instruction that can be emulated.
    pub full_cpu: bool,
}

impl Environment {
    /// Reads the variables through `get`; an empty one counts as not set.
    pub fn read(get: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let get = |name: &str| get(name).filter(|value| !value.is_empty());
        let machine = MachineOptions {
            isolation: word(&get, "CASEMATE_ISOLATION", Isolation::ALL.iter().map(|level| level.as_str()))?,
            backend: word(&get, "CASEMATE_BACKEND", BackendKind::ALL.iter().map(|kind| kind.as_str()))?,
            memory: number(&get, "CASEMATE_MEMORY", &MEMORY_MB)?,
            vcpus: number(&get, "CASEMATE_VCPUS", &VCPUS)?,
        };
        let life = LifeOptions {
            idle: quantity(&get, "CASEMATE_IDLE")?,
            restart: word(&get, "CASEMATE_RESTART", Restart::ALL.iter().map(|policy| policy.as_str()))?,
        };
        let home = HomeSettings {
            health_interval: quantity(&get, "CASEMATE_HEALTH_INTERVAL")?,
            suspend_disk: quantity(&get, "CASEMATE_SUSPEND_DISK")?,
            memory_limit_mb: number(&get, "CASEMATE_MEMORY_LIMIT", &MEMORY_LIMIT_MB)?,
        };
        let full_cpu = match get("CASEMATE_CPU").as_deref() {
            None | Some("fast") => false,
            Some("full") => true,
            Some(other) => {
                return Err(Error::configuration(format!(
                    "CASEMATE_CPU is {other:?}, which is nothing known"
                ))
                .hint("set CASEMATE_CPU to fast or full"));
            }
        };
        Ok(Self { machine, life, home, full_cpu })
    }
}

/// What the command line says about a start.
#[derive(Debug, Clone, Copy)]
pub struct Flags<'a> {
    /// The machine's wall and size.
    pub machine: &'a MachineOptions,
    /// How it is started, and what becomes of it.
    pub start: &'a StartOptions,
}

/// What holds for one start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// The weakest wall that will do.
    pub isolation: Isolation,
    /// What makes the machine, if that was said.
    pub backend: Option<BackendKind>,
    /// Memory in MiB.
    pub memory_mb: u32,
    /// Virtual processors.
    pub vcpus: u32,
    /// An emulated processor has every instruction that can be emulated.
    pub full_cpu: bool,
    /// Without a template.
    pub cold: bool,
    /// After how long without a request the machine is suspended.
    pub idle: Option<Duration>,
    /// What is done when it fails.
    pub restart: Restart,
    /// How often it is asked for a sign of life.
    pub health_interval: Duration,
    /// How much of the disk all suspended machines may take, in bytes.
    pub suspend_disk: u64,
    /// How much memory all machines may be expected to use, in MiB.
    pub memory_limit_mb: Option<u32>,
}

/// Merges what was said about a start, the first of flags, environment, server and defaults deciding.
pub fn merge(
    flags: Flags<'_>,
    environment: &Environment,
    server: Option<&Server>,
    defaults: &Defaults,
) -> Result<Settings, Error> {
    let server_says = server.map(|server| MachineOptions {
        isolation: server.isolation,
        backend: server.backend,
        memory: server.memory_mb,
        vcpus: server.vcpus,
    });
    let defaults_say = MachineOptions {
        isolation: defaults.isolation,
        backend: defaults.backend,
        memory: defaults.memory_mb,
        vcpus: defaults.vcpus,
    };
    let layers = [Some(flags.machine), Some(&environment.machine), server_says.as_ref(), Some(&defaults_say)];
    let layers: Vec<&MachineOptions> = layers.into_iter().flatten().collect();
    let (isolation, backend) = wall(&layers, defaults)?;
    let lives = [flags.start.life, environment.life, server.map(|server| server.life).unwrap_or_default()];
    let lives = lives.into_iter().chain([defaults.life]);
    let home = environment.home.or(defaults.home);
    Ok(Settings {
        isolation,
        backend,
        memory_mb: layers.iter().find_map(|layer| layer.memory).unwrap_or(256),
        vcpus: layers.iter().find_map(|layer| layer.vcpus).unwrap_or(1),
        full_cpu: environment.full_cpu,
        cold: flags.start.cold,
        idle: lives.clone().find_map(|life| life.idle).and_then(Idle::after),
        restart: lives.clone().find_map(|life| life.restart).unwrap_or_default(),
        health_interval: home.health_interval.map_or(Duration::from_millis(spec::HEALTH_MS), |it| it.0),
        suspend_disk: home.suspend_disk.map_or(spec::SUSPEND_DISK_BYTES, |size| size.0),
        memory_limit_mb: home.memory_limit_mb,
    })
}

/// The wall and its maker. They belong together: a layer that names a backend has thereby named a level,
/// and overrules the levels of the layers below it.
fn wall(layers: &[&MachineOptions], defaults: &Defaults) -> Result<(Isolation, Option<BackendKind>), Error> {
    let said = layers.iter().position(|layer| layer.isolation.is_some() || layer.backend.is_some());
    let Some(first) = said else {
        let isolation =
            if defaults.microvm_disabled.is_some() { Isolation::Container } else { Isolation::Microvm };
        return Ok((isolation, None));
    };
    let (isolation, backend) = match (layers[first].isolation, layers[first].backend) {
        (Some(isolation), Some(backend)) if backend.isolation() < isolation => {
            let message = format!("backend {backend} builds a wall weaker than isolation {isolation}");
            let error = if first == 0 { Error::usage(message) } else { Error::configuration(message) };
            let hint = format!("leave one of the two out, or ask for isolation {}", backend.isolation());
            return Err(error.hint(hint));
        }
        (None, Some(backend)) => (backend.isolation(), Some(backend)),
        (Some(isolation), Some(backend)) => (isolation, Some(backend)),
        // A backend that was named further down is kept if its wall will do.
        (isolation, None) => {
            let isolation = isolation.unwrap_or(Isolation::Microvm);
            let named = layers[first..].iter().find_map(|layer| layer.backend);
            (isolation, named.filter(|backend| backend.isolation() >= isolation))
        }
    };
    match &defaults.microvm_disabled {
        Some(place) if isolation == Isolation::Microvm => {
            Err(Error::configuration(format!("isolation microvm is asked for, and {place} disables it"))
                .hint("remove \"enabled = false\", or ask for another --isolation"))
        }
        _ => Ok((isolation, backend)),
    }
}

fn word<T: FromStr>(
    get: &impl Fn(&str) -> Option<String>,
    name: &str,
    known: impl Iterator<Item = &'static str>,
) -> Result<Option<T>, Error> {
    let Some(text) = get(name) else { return Ok(None) };
    let known: Vec<&str> = known.collect();
    let hint = match nearest(&text, known.iter().copied()) {
        Some(nearest) => format!("did you mean {nearest:?}?"),
        None => format!("set {name} to one of {}", known.join(", ")),
    };
    let error = || Error::configuration(format!("{name} is {text:?}, which is nothing known")).hint(hint);
    text.parse().map(Some).map_err(|_| error())
}

fn quantity<T: FromStr<Err: StdError + Send + Sync + 'static>>(
    get: &impl Fn(&str) -> Option<String>,
    name: &str,
) -> Result<Option<T>, Error> {
    let Some(text) = get(name) else { return Ok(None) };
    text.parse().map(Some).map_err(|error: T::Err| {
        Error::configuration(format!("{name} is {text:?}, which cannot be used"))
            .because(error)
            .hint(format!("correct {name}, or unset it"))
    })
}

fn number(
    get: &impl Fn(&str) -> Option<String>,
    name: &str,
    range: &RangeInclusive<u32>,
) -> Result<Option<u32>, Error> {
    let Some(text) = get(name) else { return Ok(None) };
    let number = text.parse().ok().filter(|number| range.contains(number));
    number.map(Some).ok_or_else(|| {
        let (least, most) = (range.start(), range.end());
        Error::configuration(format!("{name} is {text:?}, which is not a number from {least} to {most}"))
            .hint(format!("set {name} within that range, or unset it"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::HealthInterval;

    fn options(isolation: Option<Isolation>, backend: Option<BackendKind>) -> MachineOptions {
        MachineOptions { isolation, backend, ..MachineOptions::default() }
    }

    fn merged(
        flags: MachineOptions,
        environment: MachineOptions,
        file: MachineOptions,
    ) -> Result<Settings, Error> {
        let defaults = Defaults {
            isolation: file.isolation,
            backend: file.backend,
            memory_mb: file.memory,
            vcpus: file.vcpus,
            ..Defaults::default()
        };
        let environment = Environment { machine: environment, ..Environment::default() };
        merge(Flags { machine: &flags, start: &StartOptions::default() }, &environment, None, &defaults)
    }

    fn wall_of(result: Result<Settings, Error>) -> (Isolation, Option<BackendKind>) {
        let settings = result.unwrap();
        (settings.isolation, settings.backend)
    }

    #[test]
    fn nothing_said_is_a_microvm_of_256_mib() {
        let none = MachineOptions::default;
        let expected = Settings {
            isolation: Isolation::Microvm,
            backend: None,
            memory_mb: 256,
            vcpus: 1,
            full_cpu: false,
            cold: false,
            idle: None,
            restart: Restart::Never,
            health_interval: Duration::from_secs(10),
            suspend_disk: 10 << 30,
            memory_limit_mb: None,
        };
        assert_eq!(merged(none(), none(), none()).unwrap(), expected);
    }

    #[test]
    fn what_becomes_of_a_machine_is_said_in_the_same_order() {
        let after = |seconds| Some(Idle::After(Duration::from_secs(seconds)));
        let life = |idle, restart| LifeOptions { idle, restart };
        let merged = |flags: LifeOptions, environment: LifeOptions, file: LifeOptions| {
            let start = StartOptions { cold: true, life: flags };
            let environment = Environment { life: environment, ..Environment::default() };
            let defaults = Defaults { life: file, ..Defaults::default() };
            let flags = Flags { machine: &MachineOptions::default(), start: &start };
            let settings = merge(flags, &environment, None, &defaults).unwrap();
            assert!(settings.cold);
            (settings.idle, settings.restart)
        };
        let (never, often) = (Some(Restart::Never), Some(Restart::OnFailure));
        assert_eq!(
            merged(life(after(1), None), life(after(2), never), life(after(3), often)),
            (Some(Duration::from_secs(1)), Restart::Never)
        );
        assert_eq!(
            merged(life(Some(Idle::Never), None), life(None, None), life(after(3), often)),
            (None, Restart::OnFailure)
        );
    }

    #[test]
    fn what_holds_for_a_home_is_said_by_the_environment_before_the_file() {
        let environment = Environment::read(|name| match name {
            "CASEMATE_MEMORY_LIMIT" => Some("4096".to_owned()),
            "CASEMATE_SUSPEND_DISK" => Some("1GiB".to_owned()),
            _ => None,
        });
        let file = HomeSettings {
            memory_limit_mb: Some(1),
            health_interval: Some(HealthInterval(Duration::from_secs(2))),
            ..HomeSettings::default()
        };
        let defaults = Defaults { home: file, ..Defaults::default() };
        let flags = Flags { machine: &MachineOptions::default(), start: &StartOptions::default() };
        let settings = merge(flags, &environment.unwrap(), None, &defaults).unwrap();
        assert_eq!(settings.memory_limit_mb, Some(4096));
        assert_eq!(settings.suspend_disk, 1 << 30);
        assert_eq!(settings.health_interval, Duration::from_secs(2));
    }

    #[test]
    fn flags_overrule_the_environment_which_overrules_the_file() {
        let sized = |memory| MachineOptions { memory, ..MachineOptions::default() };
        let merged = |a, b, c| merged(sized(a), sized(b), sized(c)).unwrap().memory_mb;
        assert_eq!(merged(Some(1), Some(2), Some(3)), 1);
        assert_eq!(merged(None, Some(2), Some(3)), 2);
        assert_eq!(merged(None, None, Some(3)), 3);
    }

    #[test]
    fn a_backend_names_its_level_and_a_level_drops_weaker_backends() {
        use BackendKind::{Qemu, Sandbox};
        use Isolation::{Microvm, Process};
        let none = MachineOptions::default;
        let file = || options(Some(Microvm), Some(Qemu));
        assert_eq!(
            wall_of(merged(options(None, Some(Sandbox)), none(), file())),
            (Isolation::Sandbox, Some(Sandbox))
        );
        let weak_file = options(None, Some(Sandbox));
        assert_eq!(wall_of(merged(options(Some(Microvm), None), none(), weak_file)), (Microvm, None));
        assert_eq!(wall_of(merged(options(Some(Process), None), none(), file())), (Process, Some(Qemu)));
    }

    #[test]
    fn a_weaker_backend_than_the_level_beside_it_is_refused() {
        let both = || options(Some(Isolation::Microvm), Some(BackendKind::Docker));
        let none = MachineOptions::default;
        assert_eq!(merged(both(), none(), none()).unwrap_err().kind().exit_code(), 2);
        assert_eq!(merged(none(), none(), both()).unwrap_err().kind().exit_code(), 3);
    }

    #[test]
    fn a_wrong_variable_is_told_with_the_nearest_word() {
        let read = |name: &'static str, value: &'static str| {
            Environment::read(|asked| (asked == name).then(|| value.to_owned()))
        };
        let error = read("CASEMATE_ISOLATION", "microwm").unwrap_err();
        assert!(error.report().to_string().contains("did you mean \"microvm\""), "{}", error.report());
        assert_eq!(read("CASEMATE_IDLE", "10").unwrap_err().kind().exit_code(), 3);
        assert_eq!(read("CASEMATE_MEMORY", "79").unwrap_err().kind().exit_code(), 3);
        assert_eq!(read("CASEMATE_MEMORY", "").unwrap(), Environment::default());
    }
}
