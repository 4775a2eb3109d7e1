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

/// Memory of a machine where nobody says how much, in MiB.
const MEMORY_DEFAULT_MB: u32 = 256;

/// Virtual processors of a machine where nobody says how many.
const VCPUS_DEFAULT: u32 = 1;

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

/// Merges what was said about a start of a server's own machine, the first of flags, environment, server and
/// defaults deciding.
pub fn merge(
    flags: Flags<'_>,
    environment: &Environment,
    server: Option<&Server>,
    defaults: &Defaults,
) -> Result<Settings, Error> {
    merge_for(flags, environment, &MachineOptions::default(), server, defaults)
}

/// As [`merge`], for a machine that tools ask for: what they say stands between environment and server.
///
/// So the word of a tool overrules its server's, also one for a weaker wall. That makes no wall weaker where
/// a stronger backend works, because a level is the weakest that will do.
pub fn merge_for(
    flags: Flags<'_>,
    environment: &Environment,
    tools: &MachineOptions,
    server: Option<&Server>,
    defaults: &Defaults,
) -> Result<Settings, Error> {
    let (server_says, defaults_say) = (server.map(of_server).unwrap_or_default(), of_defaults(defaults));
    let layers = [flags.machine, &environment.machine, tools, &server_says, &defaults_say];
    let (isolation, backend) = wall(&layers, defaults)?;
    let lives = [flags.start.life, environment.life, server.map(|server| server.life).unwrap_or_default()];
    let lives = lives.into_iter().chain([defaults.life]);
    let home = environment.home.or(defaults.home);
    Ok(Settings {
        isolation,
        backend,
        memory_mb: layers.iter().find_map(|layer| layer.memory).unwrap_or(MEMORY_DEFAULT_MB),
        vcpus: layers.iter().find_map(|layer| layer.vcpus).unwrap_or(VCPUS_DEFAULT),
        full_cpu: environment.full_cpu,
        cold: flags.start.cold,
        idle: lives.clone().find_map(|life| life.idle).and_then(Idle::after),
        restart: lives.clone().find_map(|life| life.restart).unwrap_or_default(),
        health_interval: home.health_interval.map_or(Duration::from_millis(spec::HEALTH_MS), |it| it.0),
        suspend_disk: home.suspend_disk.map_or(spec::SUSPEND_DISK_BYTES, |size| size.0),
        memory_limit_mb: home.memory_limit_mb,
    })
}

/// What one machine has to be like in which all tools of a server are called: as strong and as large as the
/// server's own, and as any of its tools asks for.
pub fn for_all_tools(server: &Server, defaults: &Defaults) -> MachineOptions {
    let own = [of_server(server), of_defaults(defaults)];
    let own_level = own.iter().find_map(level).unwrap_or_else(|| unsaid(defaults));
    let tools = || server.tools.iter();
    let size = |wishes: Option<u32>, own: Option<u32>, default: u32| {
        wishes.map(|wish| wish.max(own.unwrap_or(default)))
    };
    MachineOptions {
        // A level that the server has anyway would part it from the backend beside it.
        isolation: tools().filter_map(|tool| tool.isolation).max().filter(|&wish| wish > own_level),
        backend: None,
        memory: size(
            tools().filter_map(|tool| tool.memory_mb).max(),
            own.iter().find_map(|layer| layer.memory),
            MEMORY_DEFAULT_MB,
        ),
        vcpus: size(
            tools().filter_map(|tool| tool.vcpus).max(),
            own.iter().find_map(|layer| layer.vcpus),
            VCPUS_DEFAULT,
        ),
    }
}

fn of_server(server: &Server) -> MachineOptions {
    MachineOptions {
        isolation: server.isolation,
        backend: server.backend,
        memory: server.memory_mb,
        vcpus: server.vcpus,
    }
}

fn of_defaults(defaults: &Defaults) -> MachineOptions {
    MachineOptions {
        isolation: defaults.isolation,
        backend: defaults.backend,
        memory: defaults.memory_mb,
        vcpus: defaults.vcpus,
    }
}

/// The level that a layer names, be it by a backend.
fn level(layer: &MachineOptions) -> Option<Isolation> {
    layer.isolation.or(layer.backend.map(BackendKind::isolation))
}

/// The level where nobody named one.
fn unsaid(defaults: &Defaults) -> Isolation {
    if defaults.microvm_disabled.is_some() { Isolation::Container } else { Isolation::Microvm }
}

/// The wall and its maker. They belong together: a layer that names a backend has thereby named a level,
/// and overrules the levels of the layers below it.
fn wall(layers: &[&MachineOptions], defaults: &Defaults) -> Result<(Isolation, Option<BackendKind>), Error> {
    let said = layers.iter().position(|layer| level(layer).is_some());
    let Some(first) = said else { return Ok((unsaid(defaults), None)) };
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

    /// A server with tables of tools: its file, with the server alone.
    fn file(server: &str) -> crate::config::Configuration {
        let text = format!("[[servers]]\nid = \"s\"\n{server}");
        let document = crate::config::written::Document::parse("config.toml".as_ref(), &text).unwrap();
        let mut configuration = crate::config::Configuration::default();
        configuration.add(document).unwrap();
        configuration
    }

    /// Wall and sizes of a machine of the server of a file, for tools.
    fn for_tools(
        file: &crate::config::Configuration,
        flags: MachineOptions,
        environment: MachineOptions,
        tools: &MachineOptions,
    ) -> (Isolation, Option<BackendKind>, u32, u32) {
        let environment = Environment { machine: environment, ..Environment::default() };
        let flags = Flags { machine: &flags, start: &StartOptions::default() };
        let server = file.servers.values().next();
        let settings = merge_for(flags, &environment, tools, server, &file.defaults).unwrap();
        (settings.isolation, settings.backend, settings.memory_mb, settings.vcpus)
    }

    #[test]
    fn a_tool_overrules_its_server_and_flags_and_environment_overrule_both() {
        use BackendKind::Sandbox;
        let file = file(
            "backend = \"sandbox\"\nmemory_mb = 512\nvcpus = 2\n\
             [[servers.tools]]\nname = \"t\"\nisolation = \"microvm\"\nmemory_mb = 128\n",
        );
        let server = file.servers.values().next().unwrap();
        let (none, tool) = (MachineOptions::default, server.tool("t").unwrap().machine());
        let sized = |memory| MachineOptions { memory: Some(memory), ..none() };
        let weak = || options(Some(Isolation::Sandbox), None);
        assert_eq!(for_tools(&file, none(), none(), &none()), (Isolation::Sandbox, Some(Sandbox), 512, 2));
        assert_eq!(for_tools(&file, none(), none(), &tool), (Isolation::Microvm, None, 128, 2));
        assert_eq!(for_tools(&file, none(), sized(192), &tool), (Isolation::Microvm, None, 192, 2));
        assert_eq!(for_tools(&file, sized(320), sized(192), &tool), (Isolation::Microvm, None, 320, 2));
        assert_eq!(for_tools(&file, weak(), none(), &tool), (Isolation::Sandbox, Some(Sandbox), 128, 2));
        // What serves all of them is no smaller than what serves the server.
        let all = for_all_tools(server, &file.defaults);
        assert_eq!(for_tools(&file, none(), none(), &all), (Isolation::Microvm, None, 512, 2));
    }

    #[test]
    fn what_serves_all_tools_is_the_largest_and_the_strongest_and_never_weaker_than_the_server() {
        use BackendKind::Qemu;
        let none = MachineOptions::default;
        let weak = file(
            "isolation = \"container\"\nbackend = \"qemu\"\n\
             [[servers.tools]]\nname = \"t\"\nisolation = \"process\"\nmemory_mb = 100\n",
        );
        let server = weak.servers.values().next().unwrap();
        let (one, all) = (server.tool("t").unwrap().machine(), for_all_tools(server, &weak.defaults));
        assert_eq!(for_tools(&weak, none(), none(), &one), (Isolation::Process, Some(Qemu), 100, 1));
        assert_eq!(for_tools(&weak, none(), none(), &all), (Isolation::Container, Some(Qemu), 256, 1));
        let large = file(
            "isolation = \"sandbox\"\n\
             [[servers.tools]]\nname = \"t\"\nisolation = \"microvm\"\nmemory_mb = 300\nvcpus = 4\n\
             [[servers.tools]]\nname = \"u\"\nisolation = \"container\"\nmemory_mb = 600\nvcpus = 3\n",
        );
        let all = for_all_tools(large.servers.values().next().unwrap(), &large.defaults);
        assert_eq!(for_tools(&large, none(), none(), &all), (Isolation::Microvm, None, 600, 4));
        // Without tables nothing is said.
        let plain = file("vcpus = 3\n");
        assert_eq!(for_all_tools(plain.servers.values().next().unwrap(), &plain.defaults), none());
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
