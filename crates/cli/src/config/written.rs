//! What a configuration file says, before anybody asked what it means: text and numbers with their places.
//!
//! One model, several spellings: our own (`[defaults]`, `[[servers]]`), the TOML document of the seeds
//! (`[microvm]`, `[[servers]]`, `[[servers.tools]]`) and their JSON document (`mcp_servers`, or the map of
//! servers alone). Each works in both syntaxes.

use super::{
    error::{ConfigError, Place},
    json,
    node::{Node, Value},
    table::{Item, Table},
    toml,
};
use std::{path::Path, sync::Arc};

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct At<T> {
    /// File and line.
    pub place: Place,
    /// The value.
    pub value: T,
}

/// One file.
#[derive(Debug, Clone, Default)]
pub struct Document {
    /// What holds for servers that say nothing else.
    pub defaults: Defaults,
    /// What holds for all machines together.
    pub limits: Limits,
    /// Where packages come from, if not from where this host's tools take them.
    pub registries: Registries,
    /// The servers, in the order of the file.
    pub servers: Vec<Server>,
}

/// `[defaults]`, `[microvm]` and their JSON spelling.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)] // As in `Defaults` of the meaning, unchecked.
pub struct Defaults {
    pub microvm: Option<At<bool>>,
    pub isolation: Option<At<String>>,
    pub backend: Option<At<String>>,
    pub memory_mb: Option<At<i64>>,
    pub vcpus: Option<At<i64>>,
    pub idle: Option<At<String>>,
    pub restart: Option<At<String>>,
    pub health_interval: Option<At<String>>,
    pub suspend_disk: Option<At<String>>,
    pub kernel_path: Option<At<String>>,
    pub rootfs_path: Option<At<String>>,
    pub unikernel_dir: Option<At<String>>,
}

/// `[limits]`.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct Limits {
    pub memory_mb: Option<At<i64>>,
}

/// `[registries]`.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct Registries {
    pub npm: Option<At<String>>,
    pub pypi: Option<At<String>>,
    pub debian: Option<At<String>>,
}

/// A server of any spelling.
#[derive(Debug, Clone)]
#[allow(missing_docs)] // As in `Server` of the meaning, unchecked.
pub struct Server {
    pub place: Place,
    pub id: At<String>,
    pub title: Option<String>,
    pub source: Option<At<String>>,
    pub command: Option<At<String>>,
    pub args: Option<At<Vec<String>>>,
    pub isolation: Option<At<String>>,
    pub backend: Option<At<String>>,
    pub memory_mb: Option<At<i64>>,
    pub vcpus: Option<At<i64>>,
    pub idle: Option<At<String>>,
    pub restart: Option<At<String>>,
    pub env: Vec<(At<String>, String)>,
    pub secrets: Vec<(At<String>, String)>,
    pub folders: Vec<At<Folder>>,
    pub volumes: Option<At<Vec<String>>>,
    pub transport: Option<At<String>>,
    pub port: Option<At<i64>>,
    pub path: Option<At<String>>,
    pub allow: Option<At<Vec<String>>>,
    pub forward: Option<At<Vec<String>>>,
    pub version: Option<At<String>>,
    pub image: Option<At<String>>,
    pub tools: Vec<Tool>,
    /// Keys of later versions.
    pub later: Vec<At<&'static str>>,
}

/// A folder of the host, as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Folder {
    /// `HOST:GUEST[:ro|rw]`
    Line(String),
    /// The seeds' table, `{host_path, vm_path, readonly}`, writable unless it says otherwise.
    Parts {
        /// `host_path`
        host: String,
        /// `vm_path`
        target: String,
        /// Not `readonly`.
        writable: bool,
    },
}

/// A tool that wants a wall, a size or folders of its own.
#[derive(Debug, Clone)]
#[allow(missing_docs)] // As in `Tool` of the meaning, unchecked.
pub struct Tool {
    pub name: String,
    pub place: Place,
    pub isolation: Option<At<String>>,
    pub memory_mb: Option<At<i64>>,
    pub vcpus: Option<At<i64>>,
    pub folders: Vec<At<Folder>>,
    pub unikernel_image: Option<At<String>>,
}

/// Keys of a server's folders: our own, and the seeds'.
const FOLDERS: [&str; 2] = ["mounts", "microvm_mounts"];

/// Keys of a server that later versions read.
const LATER: [&str; 1] = ["sessions"];

impl Document {
    /// Reads a file's content; its name says which syntax it has.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let path: Arc<Path> = Arc::from(path);
        let root = match path.extension().and_then(|extension| extension.to_str()) {
            Some("toml") => toml::parse(&path, text)?,
            Some("json") => json::parse(&path, text)?,
            _ => return Err(ConfigError::Format { path: path.to_path_buf() }),
        };
        if is_map_of_servers(&root) {
            let servers = seed_servers(Table::new(&path, "the file", root)?)?;
            return Ok(Self { servers, ..Self::default() });
        }
        document(Table::new(&path, "the file", root)?)
    }
}

fn document(mut root: Table) -> Result<Document, ConfigError> {
    let mut document = Document::default();
    if let Some(table) = root.table("defaults")? {
        document.defaults = defaults(table)?;
    }
    if let Some(table) = root.table("microvm")? {
        microvm(table, &mut document.defaults)?;
    }
    if let Some(mode) = root.text("default_execution_mode")? {
        put(&mut document.defaults.isolation, Some(mode), "default_execution_mode", "isolation")?;
    }
    document.defaults.unikernel_dir = root.text("unikernel_dir")?;
    if let Some(mut table) = root.table("limits")? {
        document.limits = Limits { memory_mb: table.number("memory_mb")? };
        table.finish()?;
    }
    if let Some(mut table) = root.table("registries")? {
        document.registries =
            Registries { npm: table.text("npm")?, pypi: table.text("pypi")?, debian: table.text("debian")? };
        table.finish()?;
    }
    for table in root.tables("servers")? {
        document.servers.push(server(table)?);
    }
    if let Some(table) = root.table("mcp_servers")? {
        document.servers.extend(seed_servers(table)?);
    }
    root.finish()?;
    Ok(document)
}

fn defaults(mut table: Table) -> Result<Defaults, ConfigError> {
    let defaults = Defaults {
        isolation: table.text("isolation")?,
        backend: table.text("backend")?,
        memory_mb: table.number("memory_mb")?,
        vcpus: table.number("vcpus")?,
        idle: table.text("idle")?,
        restart: table.text("restart")?,
        health_interval: table.text("health_interval")?,
        suspend_disk: table.text("suspend_disk")?,
        ..Defaults::default()
    };
    table.finish()?;
    Ok(defaults)
}

fn microvm(mut table: Table, defaults: &mut Defaults) -> Result<(), ConfigError> {
    defaults.microvm = table.flag("enabled")?;
    put(&mut defaults.memory_mb, table.number("default_memory_mb")?, "default_memory_mb", "memory_mb")?;
    put(&mut defaults.vcpus, table.number("default_vcpus")?, "default_vcpus", "vcpus")?;
    defaults.rootfs_path = table.text("rootfs_path")?;
    defaults.kernel_path = table.text("kernel_path")?;
    table.finish()
}

/// An entry of `[[servers]]`: our own spelling, and the seeds' TOML.
fn server(mut table: Table) -> Result<Server, ConfigError> {
    let place = table.here();
    let id = table.text("id")?;
    let id = id.ok_or_else(|| missing(&table, "id"))?;
    table.rename(format!("server {:?}", id.value));
    let mut server = Server {
        place,
        id,
        title: table.text("name")?.map(|title| title.value),
        source: table.text("source")?,
        command: table.text("command")?,
        args: table.texts("args")?,
        isolation: table.text("isolation")?,
        backend: table.text("backend")?,
        memory_mb: table.number("memory_mb")?,
        vcpus: table.number("vcpus")?,
        idle: table.text("idle")?,
        restart: table.text("restart")?,
        env: Vec::new(),
        secrets: Vec::new(),
        folders: Vec::new(),
        volumes: table.texts("volumes")?,
        transport: table.text("transport")?,
        port: table.number("port")?,
        path: table.text("path")?,
        allow: table.texts("allow")?,
        forward: table.texts("forward")?,
        version: table.text("version")?,
        image: table.text("image")?,
        tools: Vec::new(),
        later: Vec::new(),
    };
    put(&mut server.isolation, table.text("isolation_mode")?, "isolation_mode", "isolation")?;
    microvm_config(&mut table, &mut server.memory_mb, &mut server.vcpus)?;
    given(&mut table, &mut server)?;
    for mut tool in table.tables("tools")? {
        let name = tool.text("name")?.ok_or_else(|| missing(&tool, "name"))?;
        server.tools.push(self::tool(name.value, tool)?);
    }
    server.later = later(&mut table, &LATER);
    table.finish()?;
    Ok(server)
}

/// Environment, secrets and folders, which all documents spell alike.
fn given(table: &mut Table, server: &mut Server) -> Result<(), ConfigError> {
    if let Some(env) = table.table("env")? {
        server.env = variables(env)?;
    }
    if let Some(secrets) = table.table("secrets")? {
        server.secrets = variables(secrets)?;
    }
    for key in FOLDERS {
        server.folders.extend(folders(table, key)?);
    }
    Ok(())
}

/// A tool: our own spelling, and those of the seeds' two documents.
fn tool(name: String, mut table: Table) -> Result<Tool, ConfigError> {
    table.rename(format!("tool {name:?}"));
    let mut tool = Tool {
        name,
        place: table.here(),
        isolation: table.text("isolation")?,
        memory_mb: table.number("memory_mb")?,
        vcpus: table.number("vcpus")?,
        folders: folders(&mut table, "mounts")?,
        unikernel_image: table.text("unikernel_image")?,
    };
    for key in ["isolation_mode", "execution_mode"] {
        put(&mut tool.isolation, table.text(key)?, key, "isolation")?;
    }
    microvm_config(&mut table, &mut tool.memory_mb, &mut tool.vcpus)?;
    table.finish()?;
    Ok(tool)
}

/// The seeds' JSON: a map from id to server.
fn seed_servers(table: Table) -> Result<Vec<Server>, ConfigError> {
    let (path, entries) = table.rest();
    let servers = entries.into_iter().map(|entry| {
        let id = At { place: Place { path: path.clone(), line: entry.line }, value: entry.key };
        let node = Node { line: entry.line, ..entry.node };
        seed_server(Table::new(&path, format!("server {:?}", id.value), node)?, id)
    });
    servers.collect()
}

fn seed_server(mut table: Table, id: At<String>) -> Result<Server, ConfigError> {
    let mut server = Server {
        place: table.here(),
        id,
        title: table.text("microvm_id")?.map(|title| title.value),
        source: None,
        command: table.text("server_command")?,
        args: table.texts("args")?,
        // `false` asks for no wall in particular, which is the default one, never none.
        isolation: table
            .flag("use_microvm")?
            .filter(|wish| wish.value)
            .map(|wish| wish.map("microvm".to_owned())),
        backend: None,
        memory_mb: None,
        vcpus: None,
        idle: None,
        restart: None,
        env: Vec::new(),
        secrets: Vec::new(),
        folders: Vec::new(),
        volumes: table.texts("volumes")?,
        transport: table.text("transport")?,
        port: table.number("port")?,
        path: table.text("path")?,
        allow: table.texts("allow")?,
        forward: table.texts("forward")?,
        version: None,
        image: None,
        tools: Vec::new(),
        later: Vec::new(),
    };
    given(&mut table, &mut server)?;
    microvm_config(&mut table, &mut server.memory_mb, &mut server.vcpus)?;
    if let Some(tools) = table.table("tools")? {
        let (path, entries) = tools.rest();
        for entry in entries {
            let node = Node { line: entry.line, ..entry.node };
            let table = Table::new(&path, format!("tool {:?}", entry.key), node)?;
            server.tools.push(tool(entry.key, table)?);
        }
    }
    table.finish()?;
    Ok(server)
}

/// Sizes of a server or a tool, in the seeds' table.
fn microvm_config(
    table: &mut Table,
    memory_mb: &mut Option<At<i64>>,
    vcpus: &mut Option<At<i64>>,
) -> Result<(), ConfigError> {
    let Some(mut sizes) = table.table("microvm_config")? else { return Ok(()) };
    put(memory_mb, sizes.number("memory_mb")?, "microvm_config", "memory_mb")?;
    put(vcpus, sizes.number("vcpus")?, "microvm_config", "vcpus")?;
    sizes.finish()
}

/// Folders of the host, in one text or in the seeds' table.
fn folders(table: &mut Table, key: &'static str) -> Result<Vec<At<Folder>>, ConfigError> {
    let read = table.items(key)?.into_iter().map(|At { place, value }| {
        let value = match value {
            Item::Text(text) => Folder::Line(text),
            Item::Table(mut parts) => {
                let (host, target) = (parts.text("host_path")?, parts.text("vm_path")?);
                let read_only = parts.flag("readonly")?.is_some_and(|flag| flag.value);
                let host = host.ok_or_else(|| missing(&parts, "host_path"))?.value;
                let target = target.ok_or_else(|| missing(&parts, "vm_path"))?.value;
                parts.finish()?;
                Folder::Parts { host, target, writable: !read_only }
            }
        };
        Ok(At { place, value })
    });
    read.collect()
}

fn variables(table: Table) -> Result<Vec<(At<String>, String)>, ConfigError> {
    let (path, entries) = table.rest();
    let variables = entries.into_iter().map(|entry| {
        let place = Place { path: path.clone(), line: entry.line };
        match entry.node.value {
            Value::Text(value) => Ok((At { place, value: entry.key }, value)),
            other => Err(ConfigError::Type { place, key: entry.key, found: other.kind(), expected: "text" }),
        }
    });
    variables.collect()
}

/// Keys whose meaning is not built yet: what stands there is remembered, so that it can be refused.
fn later(table: &mut Table, keys: &[&'static str]) -> Vec<At<&'static str>> {
    let given = keys.iter().filter_map(|&key| Some(table.take(key)?.map(key)));
    given.collect()
}

/// Sets what another spelling may have set already.
fn put<T>(
    slot: &mut Option<At<T>>,
    value: Option<At<T>>,
    key: &'static str,
    other: &'static str,
) -> Result<(), ConfigError> {
    match (value, &slot) {
        (None, _) => Ok(()),
        (Some(value), Some(_)) => Err(ConfigError::Conflict { place: value.place, key, other }),
        (value, None) => {
            *slot = value;
            Ok(())
        }
    }
}

fn missing(table: &Table, key: &'static str) -> ConfigError {
    ConfigError::Missing { place: table.here(), key, table: table.what().to_owned() }
}

/// Whether a file is nothing but the inside of `mcp_servers`, as one of the seeds shows it.
fn is_map_of_servers(root: &Node) -> bool {
    let Value::Table(entries) = &root.value else { return false };
    let is_server = |node: &Node| {
        let Value::Table(keys) = &node.value else { return false };
        keys.iter().any(|entry| ["server_command", "use_microvm"].contains(&entry.key.as_str()))
    };
    !entries.is_empty() && entries.iter().all(|entry| is_server(&entry.node))
}

impl<T> At<T> {
    /// Another value in the same place.
    pub fn map<U>(self, value: U) -> At<U> {
        At { place: self.place, value }
    }
}
