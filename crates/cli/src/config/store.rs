//! Writes server definitions into `config.toml`, keeping what people wrote there: comments, order, spacing.

use super::{ConfigError, written::Document};
use crate::{clients::file::whole::replace, error::Error};
use casemate_image::lock;
use casemate_proto::ids::Name;
use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};
use toml_edit::{Array, ArrayOfTables, DocumentMut, InlineTable, Item, Table, value};

/// What others may do with the file: nothing, because it may hold secrets.
const MODE: u32 = 0o600;

/// How long one command may keep others from writing: each does so for milliseconds.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// A server as `add` writes it.
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)] // As in `Server` of the meaning, as text.
pub struct Definition {
    pub source: String,
    pub command: Option<String>,
    pub args: Vec<String>,
    pub isolation: Option<String>,
    pub backend: Option<String>,
    pub memory_mb: Option<u32>,
    pub vcpus: Option<u32>,
    pub idle: Option<String>,
    pub restart: Option<String>,
    pub env: BTreeMap<String, String>,
    pub secrets: BTreeMap<String, String>,
    pub mounts: Vec<String>,
    pub volumes: Vec<String>,
    pub transport: Option<String>,
    pub port: Option<u16>,
    pub path: Option<String>,
    pub allow: Vec<String>,
    pub forward: Vec<String>,
    pub version: Option<String>,
    pub image: Option<String>,
}

/// The configuration file, locked against other writers until this is dropped.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    _lock: File,
}

impl Store {
    /// Waits, for a bounded time, for the lock of a configuration file, which need not exist yet.
    pub fn open(path: &Path) -> Result<Self, ConfigError> {
        // A link, as those have who keep their configuration elsewhere, is followed and not replaced.
        let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        // A file beside it, because the configuration itself is replaced by a rename.
        let lock_path = beside(path, ".lock");
        let mut options = OpenOptions::new();
        let lock = options.write(true).create(true).truncate(false).mode(0o600).open(&lock_path);
        let lock = lock.and_then(|file| lock::within(&file, LOCK_TIMEOUT, || {}).map(|()| file));
        match lock {
            Ok(lock) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(source) if source.kind() == io::ErrorKind::TimedOut => {
                Err(ConfigError::Locked { path: path.to_owned(), source })
            }
            Err(source) => Err(ConfigError::Write { path: lock_path, source }),
        }
    }

    /// Writes a server, in place of the one of that name if there is one, whose tables of tools stay: people write
    /// them by hand.
    pub fn put(&self, name: &Name, definition: &Definition) -> Result<(), Error> {
        let mut document = self.read()?;
        let item = document.entry("servers").or_insert(Item::ArrayOfTables(ArrayOfTables::new()));
        let Some(servers) = item.as_array_of_tables_mut() else {
            return Err(Error::configuration(format!(
                "\"servers\" of {} is an inline list",
                self.path.display()
            ))
            .hint("write each server as a [[servers]] table"));
        };
        let mut table = table(name, definition);
        match position(servers, name) {
            Some(index) => {
                if let Some(old) = servers.get_mut(index) {
                    let (decor, at) = (old.decor().clone(), old.position());
                    if let Some(tools) = old.remove("tools") {
                        table["tools"] = tools;
                    }
                    *old = table;
                    *old.decor_mut() = decor;
                    old.set_position(at);
                }
            }
            None => servers.push(table),
        }
        self.write(&document)
    }

    /// Removes a server; `false` if this file does not define it as a `[[servers]]` table.
    pub fn remove(&self, name: &Name) -> Result<bool, Error> {
        let mut document = self.read()?;
        let servers = document.get_mut("servers").and_then(Item::as_array_of_tables_mut);
        let Some((servers, index)) = servers.and_then(|list| position(list, name).map(|index| (list, index)))
        else {
            return Ok(false);
        };
        servers.remove(index);
        if servers.is_empty() {
            document.remove("servers");
        }
        self.write(&document)?;
        Ok(true)
    }

    fn read(&self) -> Result<DocumentMut, Error> {
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(ConfigError::Read { path: self.path.clone(), source }.into()),
        };
        // What could not be read back must not be written to.
        Document::parse(&self.path, &text)?;
        let error = |error: toml_edit::TomlError| Error::configuration(error.message().to_owned());
        text.parse::<DocumentMut>().map_err(error)
    }

    fn write(&self, document: &DocumentMut) -> Result<(), Error> {
        let written = replace(&self.path, MODE, &document.to_string());
        written.map_err(|source| ConfigError::Write { path: self.path.clone(), source }.into())
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn position(servers: &ArrayOfTables, name: &Name) -> Option<usize> {
    servers.iter().position(|table| table.get("id").and_then(Item::as_str) == Some(name.as_str()))
}

fn table(name: &Name, definition: &Definition) -> Table {
    let mut table = Table::new();
    table["id"] = value(name.as_str());
    table["source"] = value(&definition.source);
    let mut text = |key: &str, text: &Option<String>| {
        if let Some(text) = text {
            table[key] = value(text);
        }
    };
    text("command", &definition.command);
    text("isolation", &definition.isolation);
    text("backend", &definition.backend);
    text("idle", &definition.idle);
    text("restart", &definition.restart);
    text("transport", &definition.transport);
    text("path", &definition.path);
    text("version", &definition.version);
    text("image", &definition.image);
    let port = definition.port.map(u32::from);
    for (key, number) in [("memory_mb", definition.memory_mb), ("vcpus", definition.vcpus), ("port", port)] {
        if let Some(number) = number {
            table[key] = value(i64::from(number));
        }
    }
    for (key, texts) in [
        ("args", &definition.args),
        ("mounts", &definition.mounts),
        ("volumes", &definition.volumes),
        ("allow", &definition.allow),
        ("forward", &definition.forward),
    ] {
        if !texts.is_empty() {
            table[key] = value(texts.iter().collect::<Array>());
        }
    }
    for (key, pairs) in [("env", &definition.env), ("secrets", &definition.secrets)] {
        if !pairs.is_empty() {
            table[key] = value(pairs.iter().collect::<InlineTable>());
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{load, transport::Transport};

    const WRITTEN: &str = "# mine\n[defaults]\nmemory_mb = 128 # small\n\n# the first\n[[servers]]\nid = \"a\"\n\
                           source = \"npm:a\"\n\n# the second\n[[servers]]\nid = \"b\"\nsource = \"npm:b\"\n";

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn definition() -> Definition {
        Definition {
            source: "npm:@s/n".into(),
            command: Some("node x".into()),
            args: vec!["--flag".into(), "with \"quotes\"".into()],
            isolation: Some("microvm".into()),
            backend: Some("qemu".into()),
            memory_mb: Some(512),
            vcpus: Some(2),
            idle: Some("10m".into()),
            restart: Some("on-failure".into()),
            env: BTreeMap::from([("K".into(), "v\nw".into())]),
            secrets: BTreeMap::from([("T".into(), "cmd:pass 'a b',placeholder=a.example.com:443".into())]),
            mounts: vec!["/srv/data:/data:ro".into()],
            volumes: vec!["notes:/notes:64MiB".into()],
            allow: vec!["*.example.com:443".into(), "[::1]:80".into()],
            forward: vec!["22=a.example:2222".into()],
            transport: Some("http".into()),
            port: Some(3001),
            path: Some("/x".into()),
            version: Some("1.2.3".into()),
            image: Some("sha256:ab".into()),
        }
    }

    #[test]
    fn what_is_put_reads_back_with_its_meaning() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        Store::open(&path).unwrap().put(&name("x"), &definition()).unwrap();
        let configuration = load(dir.path(), None).unwrap();
        let server = &configuration.servers[&name("x")];
        assert_eq!(server.source.as_ref().unwrap().to_string(), "npm:@s/n");
        assert_eq!(server.command.as_ref().unwrap(), &["node", "x"]);
        assert_eq!(server.args, ["--flag", "with \"quotes\""]);
        assert_eq!((server.memory_mb, server.vcpus), (Some(512), Some(2)));
        assert_eq!(server.life.idle.map(|idle| idle.to_string()).as_deref(), Some("10m"));
        assert_eq!(server.life.restart, Some(crate::engine::Restart::OnFailure));
        assert_eq!(server.env["K"], "v\nw");
        assert_eq!(server.secrets[0].said(), definition().secrets["T"]);
        assert_eq!(server.folders[0].to_string(), "/srv/data:/data:ro");
        assert_eq!(server.volumes[0].target.as_str(), "/notes");
        let allow: Vec<String> = server.egress.allow.iter().map(ToString::to_string).collect();
        assert_eq!(allow, ["*.example.com:443", "[::1]:80"]);
        assert_eq!(server.egress.forward[0].to_string(), "22=a.example:2222");
        assert_eq!(server.transport, Transport::Http { port: 3001, path: "/x".into() });
        assert_eq!(server.pinned.as_ref().unwrap().digest, "sha256:ab");
    }

    #[test]
    fn comments_and_order_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        fs::write(&path, WRITTEN).unwrap();
        let store = Store::open(&path).unwrap();
        let plain = |source: &str| Definition { source: source.into(), ..Definition::default() };
        store.put(&name("c"), &plain("npm:c")).unwrap();
        store.put(&name("a"), &plain("npm:a2")).unwrap();
        assert!(store.remove(&name("b")).unwrap());
        assert!(!store.remove(&name("b")).unwrap());
        let expected = "# mine\n[defaults]\nmemory_mb = 128 # small\n\n# the first\n[[servers]]\nid = \"a\"\n\
                        source = \"npm:a2\"\n\n[[servers]]\nid = \"c\"\nsource = \"npm:c\"\n";
        assert_eq!(fs::read_to_string(&path).unwrap(), expected);
    }

    #[test]
    fn the_tables_of_tools_stay_with_a_server_that_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        let tools = "[[servers.tools]]\nname = \"sign\" # mine\nmemory_mb = 512\n";
        fs::write(&path, format!("{WRITTEN}{tools}")).unwrap();
        let changed = Definition { source: "npm:b2".into(), ..Definition::default() };
        Store::open(&path).unwrap().put(&name("b"), &changed).unwrap();
        assert!(fs::read_to_string(&path).unwrap().ends_with(tools));
        let server = &load(dir.path(), None).unwrap().servers[&name("b")];
        assert_eq!((server.source_text().as_str(), server.tools.len()), ("npm:b2", 1));
    }

    #[test]
    fn a_linked_file_stays_linked() {
        let dir = tempfile::tempdir().unwrap();
        let (path, target) = (dir.path().join("config.toml"), dir.path().join("elsewhere.toml"));
        fs::write(&target, WRITTEN).unwrap();
        std::os::unix::fs::symlink(&target, &path).unwrap();
        assert!(Store::open(&path).unwrap().remove(&name("a")).unwrap());
        assert_eq!(fs::read_link(&path).unwrap(), target);
        assert!(!fs::read_to_string(&target).unwrap().contains("npm:a"));
    }

    #[test]
    fn a_file_is_replaced_with_its_owner_and_through_no_planted_link() {
        use std::os::unix::fs::{MetadataExt, chown, symlink};
        let dir = tempfile::tempdir().unwrap();
        let (path, victim) = (dir.path().join("config.toml"), dir.path().join("victim"));
        fs::write(&path, WRITTEN).unwrap();
        fs::write(&victim, "precious").unwrap();
        let root = rustix::process::geteuid().is_root();
        // Who is not root can make nothing that is another's.
        let owner = if root { 54321 } else { rustix::process::geteuid().as_raw() };
        chown(&path, Some(owner), None).unwrap();
        let planted = [".new".to_owned(), format!(".casemate-new-{}", std::process::id())];
        planted.iter().for_each(|suffix| symlink(&victim, beside(&path, suffix)).unwrap());
        assert!(Store::open(&path).unwrap().remove(&name("a")).unwrap());
        assert_eq!(fs::read_to_string(victim).unwrap(), "precious");
        let meta = fs::symlink_metadata(&path).unwrap();
        assert!(meta.is_file());
        assert_eq!((meta.uid(), meta.mode() & 0o777), (owner, MODE));
        assert!(!fs::read_to_string(&path).unwrap().contains("npm:a"));
    }

    #[test]
    fn a_file_with_a_mistake_is_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        fs::write(&path, "[defaults]\nmemroy_mb = 1\n").unwrap();
        let error = Store::open(&path).unwrap().put(&name("x"), &definition()).unwrap_err();
        assert_eq!(error.kind().exit_code(), 3);
        assert_eq!(fs::read_to_string(&path).unwrap(), "[defaults]\nmemroy_mb = 1\n");
    }

    #[test]
    fn two_writers_lose_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        let put = |n: usize| Store::open(&path).unwrap().put(&name(&format!("s{n}")), &definition()).unwrap();
        std::thread::scope(|scope| (0..8).for_each(|n| drop(scope.spawn(move || put(n)))));
        assert_eq!(load(dir.path(), None).unwrap().servers.len(), 8);
    }
}
