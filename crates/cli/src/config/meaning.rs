//! What a configuration means: names that are names, sizes within bounds, sources that exist as such.

use super::{
    error::{ConfigError, Place},
    tool::{self, Tool},
    transport::{Transport, TransportOptions},
    written::{self, At},
};
use crate::{
    command::options::{LifeOptions, MEMORY_LIMIT_MB, MEMORY_MB, VCPUS, check_variable},
    engine::{BackendKind, Isolation, Registries, Restart, Source},
    mounts::{FolderWish, InvalidMount, VolumeWish},
    secrets::SecretWish,
    units::{HealthInterval, Idle, Size},
};
use casemate_machine::Egress;
use casemate_proto::ids::Name;
use std::{collections::BTreeMap, error::Error as StdError, ops::RangeInclusive, path::PathBuf};

/// Everything that the files say.
#[derive(Debug, Clone, Default)]
pub struct Configuration {
    /// What holds for servers that say nothing else.
    pub defaults: Defaults,
    /// Where packages come from, if not from where this host's tools take them.
    pub registries: Registries,
    /// The servers by name.
    pub servers: BTreeMap<Name, Server>,
}

/// What holds for servers that say nothing else.
#[derive(Debug, Clone, Default)]
pub struct Defaults {
    /// The weakest wall that will do.
    pub isolation: Option<Isolation>,
    /// What makes machines.
    pub backend: Option<BackendKind>,
    /// Memory of a machine, in MiB.
    pub memory_mb: Option<u32>,
    /// Virtual processors of a machine.
    pub vcpus: Option<u32>,
    /// What becomes of a machine that is ready.
    pub life: LifeOptions,
    /// What holds for all machines together.
    pub home: HomeSettings,
    /// Where the file forbids microVMs, if it does.
    pub microvm_disabled: Option<Place>,
    /// Kernel and root file system that the seeds' document names.
    pub seed_files: Vec<SeedFile>,
}

/// What holds for all machines of a home together, as far as it was said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HomeSettings {
    /// How often a machine is asked for a sign of life.
    pub health_interval: Option<HealthInterval>,
    /// How much of the disk suspended machines may take.
    pub suspend_disk: Option<Size>,
    /// How much memory machines may be expected to use, in MiB.
    pub memory_limit_mb: Option<u32>,
}

impl HomeSettings {
    /// The same, and what `other` says where this says nothing.
    pub fn or(self, other: Self) -> Self {
        Self {
            health_interval: self.health_interval.or(other.health_interval),
            suspend_disk: self.suspend_disk.or(other.suspend_disk),
            memory_limit_mb: self.memory_limit_mb.or(other.memory_limit_mb),
        }
    }
}

/// A file of the program that the seeds describe, named in its configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeedFile {
    /// `kernel_path` or `rootfs_path`.
    pub key: &'static str,
    /// Where the document names it.
    pub place: Place,
    /// The file.
    pub path: PathBuf,
}

/// The definition of an MCP server.
#[derive(Debug, Clone)]
pub struct Server {
    /// Its name.
    pub name: Name,
    /// Its name for people.
    pub title: Option<String>,
    /// Where it is defined.
    pub place: Place,
    /// What its image is made from; nothing was named where the seeds' document defines a server without a
    /// command.
    pub source: Option<Source>,
    /// The command inside the image, where it is not the source's own.
    pub command: Option<Vec<String>>,
    /// Arguments after the command.
    pub args: Vec<String>,
    /// The weakest wall that will do.
    pub isolation: Option<Isolation>,
    /// What makes its machines.
    pub backend: Option<BackendKind>,
    /// Memory of its machines, in MiB.
    pub memory_mb: Option<u32>,
    /// Virtual processors of its machines.
    pub vcpus: Option<u32>,
    /// How it is reached.
    pub transport: Transport,
    /// What becomes of its machines once they are ready.
    pub life: LifeOptions,
    /// Its environment.
    pub env: BTreeMap<String, String>,
    /// Secrets that it is given.
    pub secrets: Vec<SecretWish>,
    /// What it may reach outside.
    pub egress: Egress,
    /// Folders of the host that it is given.
    pub folders: Vec<FolderWish>,
    /// Volumes that it is given.
    pub volumes: Vec<VolumeWish>,
    /// The image that `add` built.
    pub pinned: Option<Pinned>,
    /// Tools that ask for a machine unlike the server's.
    pub tools: Vec<Tool>,
    /// What the file asks for and this version cannot do yet.
    pub unbuilt: Vec<Unbuilt>,
}

/// The image that `add` built for a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pinned {
    /// Its digest.
    pub digest: String,
    /// The version that the source was resolved to.
    pub version: Option<String>,
}

/// Something that a file asks for and that this version cannot do: refused when the server is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unbuilt {
    /// What, such as `mounts`.
    pub what: String,
    /// Where.
    pub place: Place,
}

impl Configuration {
    /// Adds a file. What an earlier file said about defaults stays; a server may be defined once.
    pub fn add(&mut self, document: written::Document) -> Result<(), ConfigError> {
        let defaults = Defaults::new(document.defaults, document.limits)?;
        let old = &mut self.defaults;
        old.isolation = old.isolation.or(defaults.isolation);
        old.backend = old.backend.or(defaults.backend);
        old.memory_mb = old.memory_mb.or(defaults.memory_mb);
        old.vcpus = old.vcpus.or(defaults.vcpus);
        old.life.idle = old.life.idle.or(defaults.life.idle);
        old.life.restart = old.life.restart.or(defaults.life.restart);
        old.home = old.home.or(defaults.home);
        old.microvm_disabled = old.microvm_disabled.take().or(defaults.microvm_disabled);
        old.seed_files.extend(defaults.seed_files);
        for (slot, address) in [
            (&mut self.registries.npm, document.registries.npm),
            (&mut self.registries.pypi, document.registries.pypi),
            (&mut self.registries.debian, document.registries.debian),
        ] {
            *slot = slot.take().or(address.map(|address| address.value));
        }
        for server in document.servers {
            let server = Server::new(server)?;
            if let Some(first) = self.servers.get(&server.name) {
                let (place, first) = (server.place, first.place.clone());
                return Err(ConfigError::Duplicate { place, name: server.name.to_string(), first });
            }
            self.servers.insert(server.name.clone(), server);
        }
        Ok(())
    }
}

impl Defaults {
    fn new(written: written::Defaults, limits: written::Limits) -> Result<Self, ConfigError> {
        let seed_file = |key, at: Option<At<String>>| {
            at.map(|At { place, value }| SeedFile { key, place, path: PathBuf::from(value) })
        };
        let kernel = seed_file("kernel_path", written.kernel_path);
        let unikernels = seed_file("unikernel_dir", written.unikernel_dir);
        let files = [kernel, seed_file("rootfs_path", written.rootfs_path), unikernels];
        Ok(Self {
            isolation: written.isolation.map(isolation).transpose()?,
            backend: parse(written.backend, "backend")?,
            memory_mb: sized(written.memory_mb, "memory_mb", &MEMORY_MB)?,
            vcpus: sized(written.vcpus, "vcpus", &VCPUS)?,
            life: life(written.idle, written.restart)?,
            home: HomeSettings {
                health_interval: parse(written.health_interval, "health_interval")?,
                suspend_disk: parse(written.suspend_disk, "suspend_disk")?,
                memory_limit_mb: sized(limits.memory_mb, "memory_mb", &MEMORY_LIMIT_MB)?,
            },
            microvm_disabled: written.microvm.filter(|enabled| !enabled.value).map(|enabled| enabled.place),
            seed_files: files.into_iter().flatten().collect(),
        })
    }
}

impl Server {
    fn new(written: written::Server) -> Result<Self, ConfigError> {
        let place = written.place;
        let name: Name = parse_one(written.id, "id")?;
        let mut args = written.args.map(|args| args.value).unwrap_or_default();
        let command = written.command.map(command).transpose()?;
        let source = match written.source {
            Some(At { place, value }) => {
                let (source, more) = Source::parse(&value).map_err(|error| at(place, "source", error))?;
                args.splice(0..0, more);
                Some(source)
            }
            None => None,
        };
        // A command without a source is the source.
        let (source, command) = match (source, command) {
            (None, Some(At { place, value: words })) => {
                let (source, more) =
                    Source::from_command(&words).map_err(|error| at(place, "command", error))?;
                args.splice(0..0, more);
                (Some(source), None)
            }
            (source, command) => (source, command.map(|command| command.value)),
        };
        let isolation = written.isolation.map(isolation).transpose()?;
        let unbuilt: Vec<Unbuilt> = written.later.into_iter().map(Unbuilt::key).collect();
        let transport = transport(written.transport, written.port, written.path)?;
        let memory_mb = sized(written.memory_mb, "memory_mb", &MEMORY_MB)?;
        let vcpus = sized(written.vcpus, "vcpus", &VCPUS)?;
        let mut env = BTreeMap::new();
        for (key, value) in written.env {
            check_variable(&key.value, &value).map_err(|error| at(key.place, &key.value, error))?;
            env.insert(key.value, value);
        }
        let mut secrets = Vec::new();
        for (key, said) in written.secrets {
            let wish = SecretWish::new(&key.value, &said);
            secrets.push(wish.map_err(|error| at(key.place, &format!("secrets.{}", key.value), error))?);
        }
        let folders = written.folders.into_iter().map(folder).collect::<Result<_, _>>()?;
        let volumes = written.volumes.map(volumes).transpose()?.unwrap_or_default();
        let egress =
            Egress { allow: listed(written.allow, "allow")?, forward: listed(written.forward, "forward")? };
        let version = written.version.map(|version| version.value);
        let pinned = written.image.map(|image| Pinned { digest: image.value, version });
        Ok(Self {
            name,
            title: written.title,
            place,
            source,
            command,
            args,
            isolation,
            backend: parse(written.backend, "backend")?,
            memory_mb,
            vcpus,
            transport,
            life: life(written.idle, written.restart)?,
            env,
            secrets,
            egress,
            folders,
            volumes,
            pinned,
            tools: tool::tools(written.tools)?,
            unbuilt,
        })
    }
}

impl Server {
    /// The source as it is written.
    pub fn source_text(&self) -> String {
        self.source.as_ref().unwrap_or(&Source::Builtin).to_string()
    }

    /// What the file says of one of its tools, if it says anything.
    pub fn tool(&self, name: &str) -> Option<&Tool> {
        self.tools.iter().find(|tool| tool.name == name)
    }
}

impl Unbuilt {
    fn key(at: At<&'static str>) -> Self {
        Self { what: at.value.to_owned(), place: at.place }
    }
}

/// Splits a command into words as a shell does.
fn command(at: At<String>) -> Result<At<Vec<String>>, ConfigError> {
    let words = shlex::split(&at.value).filter(|words| !words.is_empty());
    match words {
        Some(value) => Ok(At { place: at.place, value }),
        None => Err(self::at(at.place, "command", "it is empty, or its quotes do not match")),
    }
}

pub(super) fn folder(at: At<written::Folder>) -> Result<FolderWish, ConfigError> {
    let wish = match at.value {
        written::Folder::Line(text) => text.parse(),
        written::Folder::Parts { host, target, writable } => FolderWish::new(&host, &target, writable),
    };
    wish.map_err(|error| self::at(at.place, "mounts", error))
}

fn volumes(at: At<Vec<String>>) -> Result<Vec<VolumeWish>, ConfigError> {
    let wishes = at.value.iter().map(|text| text.parse()).collect::<Result<_, InvalidMount>>();
    wishes.map_err(|error| self::at(at.place, "volumes", error))
}

/// A level of isolation; a unikernel is a guest with a kernel of its own.
pub(super) fn isolation(at: At<String>) -> Result<Isolation, ConfigError> {
    match at.value.as_str() {
        "unikernel" => Ok(Isolation::Microvm),
        _ => parse_one(at, "isolation"),
    }
}

/// How a server is reached. What is wrong is told with the last line that says something of it.
fn transport(
    kind: Option<At<String>>,
    port: Option<At<i64>>,
    path: Option<At<String>>,
) -> Result<Transport, ConfigError> {
    let of = |at: &At<String>| at.place.clone();
    let places = [path.as_ref().map(of), port.as_ref().map(|at| at.place.clone()), kind.as_ref().map(of)];
    let Some(place) = places.into_iter().flatten().max_by_key(|place| place.line) else {
        return Ok(Transport::Stdio);
    };
    let said = TransportOptions {
        transport: parse(kind, "transport")?,
        port: sized(port, "port", &(1..=u32::from(u16::MAX)))?.and_then(|port| u16::try_from(port).ok()),
        path: path.map(|path| path.value),
    };
    said.over(&Transport::Stdio).map_err(|error| at(place, "transport", error))
}

fn life(idle: Option<At<String>>, restart: Option<At<String>>) -> Result<LifeOptions, ConfigError> {
    Ok(LifeOptions { idle: parse::<Idle>(idle, "idle")?, restart: parse::<Restart>(restart, "restart")? })
}

fn parse<T>(value: Option<At<String>>, key: &str) -> Result<Option<T>, ConfigError>
where
    T: std::str::FromStr<Err: Into<Box<dyn StdError + Send + Sync>>>,
{
    value.map(|at| parse_one(at, key)).transpose()
}

/// Each text of a list.
fn listed<T>(list: Option<At<Vec<String>>>, key: &str) -> Result<Vec<T>, ConfigError>
where
    T: std::str::FromStr<Err: Into<Box<dyn StdError + Send + Sync>>>,
{
    let Some(At { place, value: texts }) = list else { return Ok(Vec::new()) };
    let parsed = texts.into_iter().map(|value| parse_one(At { place: place.clone(), value }, key));
    parsed.collect()
}

fn parse_one<T>(value: At<String>, key: &str) -> Result<T, ConfigError>
where
    T: std::str::FromStr<Err: Into<Box<dyn StdError + Send + Sync>>>,
{
    value.value.parse().map_err(|error| at(value.place, key, error))
}

pub(super) fn sized(
    value: Option<At<i64>>,
    key: &str,
    range: &RangeInclusive<u32>,
) -> Result<Option<u32>, ConfigError> {
    let Some(At { place, value }) = value else { return Ok(None) };
    match u32::try_from(value).ok().filter(|number| range.contains(number)) {
        Some(number) => Ok(Some(number)),
        None => Err(at(place, key, format!("{value} is not in {} to {}", range.start(), range.end()))),
    }
}

fn at(place: Place, key: &str, source: impl Into<Box<dyn StdError + Send + Sync>>) -> ConfigError {
    ConfigError::Value { place, key: key.to_owned(), source: source.into() }
}
