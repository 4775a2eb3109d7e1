//! Routing: which machine answers for a tool. The tool's own table is asked first, then the server's, then
//! the defaults.
//!
//! A call goes to a running machine that satisfies them ([`Need`]), else to one of its own. A conversation has
//! one machine for all tools ([`for_all`]), which therefore has everything that any of them asks for.

use super::{Record, Target, disks};
use crate::{
    command::options::{MachineOptions, ServerOptions},
    config::{Configuration, Server, Tool, settings},
    context::Context,
    engine::{BackendKind, Isolation},
    error::Error,
    mounts::FolderWish,
    render,
};
use casemate_machine::FolderMount;
use casemate_proto::{ids::Name, mount};
use std::{collections::BTreeSet, fmt};

/// What a machine that runs needs to answer a call.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Need {
    isolation: Option<Isolation>,
    backend: Option<BackendKind>,
    memory_mb: Option<u32>,
    vcpus: Option<u32>,
    /// The tool's own folders.
    folders: Vec<FolderWish>,
    /// Where folders are that belong to other tools alone.
    foreign: Vec<mount::Target>,
}

/// What a machine lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lack {
    /// Its wall is weaker.
    Wall {
        /// What makes it.
        has: BackendKind,
        /// The level that will do.
        level: Isolation,
    },
    /// Another backend was asked for.
    Backend {
        /// What made it.
        has: BackendKind,
        /// What was asked for.
        wanted: BackendKind,
    },
    /// It has less memory, in MiB.
    Memory {
        /// What it has.
        has: u32,
        /// What is asked for.
        least: u32,
    },
    /// It has fewer virtual processors.
    Processors {
        /// What it has.
        has: u32,
        /// What is asked for.
        least: u32,
    },
    /// A folder of the tool's is not there.
    Folder(mount::Target),
    /// A folder of the tool's has another content than there is on the host now.
    Stale(mount::Target),
    /// It has a folder that another tool alone is given.
    Foreign(mount::Target),
}

impl Need {
    /// What calls of a tool need. Flags and environment overrule the tool's table; what neither they nor the
    /// table ask for, a machine that runs may have as it likes.
    pub fn new(
        flags: &MachineOptions,
        environment: &MachineOptions,
        server: Option<&Server>,
        tool: Option<&str>,
    ) -> Self {
        let of_tool = server.zip(tool).and_then(|(server, tool)| server.tool(tool));
        let table = of_tool.map(Tool::machine).unwrap_or_default();
        let names_wall = |layer: &&MachineOptions| layer.isolation.is_some() || layer.backend.is_some();
        let wall = [flags, environment, &table].into_iter().find(names_wall).unwrap_or(&table);
        let size = |wish: Option<u32>, environment: Option<u32>| wish.map(|wish| environment.unwrap_or(wish));
        Self {
            isolation: wall.isolation,
            backend: wall.backend,
            memory_mb: size(table.memory, environment.memory),
            vcpus: size(table.vcpus, environment.vcpus),
            folders: server.zip(tool).map(|(server, tool)| folders(server, tool)).unwrap_or_default(),
            foreign: server.zip(tool).map(|(server, tool)| foreign(server, tool)).unwrap_or_default(),
        }
    }

    /// What a machine lacks, as far as its record tells; [`stale`](Self::stale) tells the rest.
    pub fn lack(&self, record: &Record) -> Option<Lack> {
        let has = record.backend;
        if let Some(level) = self.isolation.filter(|&level| has.isolation() < level) {
            return Some(Lack::Wall { has, level });
        }
        if let Some(wanted) = self.backend.filter(|&wanted| has != wanted) {
            return Some(Lack::Backend { has, wanted });
        }
        if let Some(least) = self.memory_mb.filter(|&least| record.memory_mb < least) {
            return Some(Lack::Memory { has: record.memory_mb, least });
        }
        if let Some(least) = self.vcpus.filter(|&least| record.vcpus < least) {
            return Some(Lack::Processors { has: record.vcpus, least });
        }
        let mounted = |target: &&mount::Target| record.folders.iter().any(|folder| folder.target == **target);
        let missing = |wish: &&FolderWish| wish.writable || !mounted(&&wish.target);
        if let Some(wish) = self.folders.iter().find(missing) {
            return Some(Lack::Folder(wish.target.clone()));
        }
        self.foreign.iter().find(mounted).cloned().map(Lack::Foreign)
    }

    /// Looks whether the tool's folders in a machine, which are as they were when it was started, are as they
    /// are now.
    pub async fn stale(&self, context: &Context, record: &Record) -> Result<Option<Lack>, Error> {
        for wish in &self.folders {
            let packed = disks::pack(context, wish).await?;
            let is_it = |folder: &FolderMount| folder.target == wish.target && folder.digest == packed.digest;
            if !record.folders.iter().any(is_it) {
                return Ok(Some(Lack::Stale(wish.target.clone())));
            }
        }
        Ok(None)
    }
}

/// The folders that a tool is called with, as far as a machine may have others in their place: its own, and those
/// of the server where another tool has one of its own instead.
fn folders(server: &Server, tool: &str) -> Vec<FolderWish> {
    let own: Vec<FolderWish> = server.tool(tool).map(|tool| tool.folders.clone()).unwrap_or_default();
    let others = server.tools.iter().filter(|other| other.name != tool).flat_map(|other| &other.folders);
    let others: Vec<&FolderWish> = others.collect();
    let is_contested = |wish: &&FolderWish| {
        others.iter().any(|other| other.target == wish.target && other != wish)
            && !own.iter().any(|own| own.target == wish.target)
    };
    let contested: Vec<FolderWish> = server.folders.iter().filter(is_contested).cloned().collect();
    [own, contested].concat()
}

/// Where a server's other tools have folders that neither the server nor this tool has there.
fn foreign(server: &Server, tool: &str) -> Vec<mount::Target> {
    let own = server.tool(tool).into_iter().flat_map(|tool| &tool.folders).chain(&server.folders);
    let own: BTreeSet<&mount::Target> = own.map(|wish| &wish.target).collect();
    let others = server.tools.iter().filter(|other| other.name != tool).flat_map(|other| &other.folders);
    others.map(|wish| &wish.target).filter(|target| !own.contains(target)).cloned().collect()
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wall { has, level } => {
                write!(f, "its wall is that of {has}, and isolation {level} is asked for")
            }
            Self::Backend { has, wanted } => write!(f, "{has} made it, and {wanted} is asked for"),
            Self::Memory { has, least } => write!(f, "it has {has} MiB of memory, and {least} are asked for"),
            Self::Processors { has, least } => {
                write!(f, "its virtual processors are {has}, and {least} are asked for")
            }
            Self::Folder(target) => write!(f, "it was started without the tool's folder {target}"),
            Self::Stale(target) => write!(f, "it has the tool's folder {target} as it was before a change"),
            Self::Foreign(target) => write!(f, "it has {target}, a folder of another tool"),
        }
    }
}

/// What a configuration says of a tool of a server. What it says and nothing here can do is refused.
pub fn tool<'a>(
    configuration: &'a Configuration,
    server: &Name,
    tool: &str,
) -> Result<Option<&'a Tool>, Error> {
    let tool = configuration.servers.get(server).and_then(|server| server.tool(tool));
    if let Some(tool) = tool {
        refuse_unikernel(tool)?;
    }
    Ok(tool)
}

fn refuse_unikernel(tool: &Tool) -> Result<(), Error> {
    let Some(place) = &tool.unikernel_image else { return Ok(()) };
    let message =
        format!("{place}: tool {:?} has a unikernel_image, and no unikernel can be booted", tool.name);
    Err(Error::unavailable(message).hint(
        "remove the line: the tool is then called in a microVM of its server, with a kernel of its own",
    ))
}

/// Makes a target one that all tools of its server are called in, and says what its machine has to be like.
pub fn for_all(
    context: &Context,
    configuration: &Configuration,
    target: &mut Target<'_>,
    options: &ServerOptions,
) -> Result<MachineOptions, Error> {
    let Some(server) = target.server else { return Ok(MachineOptions::default()) };
    server.tools.iter().try_for_each(refuse_unikernel)?;
    let folders = union(server, &options.mount)?;
    if !folders.is_empty() {
        let targets: Vec<&mount::Target> = folders.iter().map(|wish| &wish.target).collect();
        context.screen.warn(&format!(
            "one machine serves this whole conversation: {} is for single tools of {}, and all of them see it",
            render::names(&targets),
            server.name
        ));
        target.add_folders(&folders, options);
    }
    Ok(settings::for_all_tools(server, &configuration.defaults))
}

/// The folders that tools have beside the server's own, but for those in whose place the command line puts
/// another.
fn union(server: &Server, said: &[FolderWish]) -> Result<Vec<FolderWish>, Error> {
    let is_said = |wish: &FolderWish| said.iter().any(|other| other.target == wish.target);
    let owned = server.folders.iter().map(|wish| (wish, None));
    let of_tools =
        server.tools.iter().flat_map(|tool| tool.folders.iter().map(move |wish| (wish, Some(tool))));
    let mut all: Vec<(&FolderWish, Option<&Tool>)> = Vec::new();
    for (wish, owner) in owned.chain(of_tools).filter(|(wish, _)| !is_said(wish)) {
        if all.iter().any(|(other, _)| *other == wish) {
            continue;
        }
        // What overlaps within the server's own table is told where it is told for every machine.
        let in_the_way = |(other, _): &&(&FolderWish, Option<&Tool>)| other.target.overlaps(&wish.target);
        if let Some(tool) = owner
            && let Some((other, first)) = all.iter().find(in_the_way)
        {
            let first = first.map_or_else(|| "the server".to_owned(), |tool| format!("tool {:?}", tool.name));
            let message = format!(
                "{}: tool {:?} of {} has {wish}, and {first} has {other}: one machine cannot have both",
                tool.place, tool.name, server.name
            );
            return Err(Error::configuration(message)
                .hint("give them different places, or call the tools one by one with casemate call"));
        }
        all.push((wish, owner));
    }
    Ok(all.into_iter().filter(|(_, owner)| owner.is_some()).map(|(wish, _)| wish.clone()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_is_not_called_where_another_tools_folder_stands_in_the_place_of_the_servers() {
        let text = "[[servers]]\nid = \"s\"\nsource = \"builtin:probe\"\nmounts = [\"/srv/public:/data\"]\n\
                    [[servers.tools]]\nname = \"admin\"\nmounts = [\"/srv/private:/data\"]\n";
        let folders = |tool: &str| {
            let mut configuration = Configuration::default();
            let document =
                crate::config::written::Document::parse(std::path::Path::new("x.toml"), text).unwrap();
            configuration.add(document).unwrap();
            let server = configuration.servers.values().next().unwrap();
            folders(server, tool).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(folders("other"), ["/srv/public:/data:ro"]);
        assert_eq!(folders("admin"), ["/srv/private:/data:ro"]);
    }
    use crate::config::written::Document;
    use serde_json::json;

    fn file(server: &str) -> Configuration {
        let text = format!("[[servers]]\nid = \"s\"\n{server}");
        let mut configuration = Configuration::default();
        configuration.add(Document::parse("config.toml".as_ref(), &text).unwrap()).unwrap();
        configuration
    }

    fn server(file: &Configuration) -> &Server {
        file.servers.values().next().unwrap()
    }

    fn target(text: &str) -> mount::Target {
        text.parse().unwrap()
    }

    fn folder(text: &str) -> FolderWish {
        text.parse().unwrap()
    }

    /// A machine that runs.
    fn record(backend: &str, memory_mb: u32, vcpus: u32, folders: &[&str]) -> Record {
        let folders: Vec<_> =
            folders.iter().map(|at| json!({"image": "/i", "digest": "sha256:00", "target": at})).collect();
        let record = json!({
            "id": "0", "name": "s", "server": "s", "backend": backend, "accelerator": null, "lifetime": "detached",
            "conversation": "held", "state": "ready", "reason": null, "pid": 1, "supervisor_pid": 1, "cid": 100,
            "memory_mb": memory_mb, "vcpus": vcpus, "image": null, "folders": folders,
            "started_at": "2026-01-01T00:00:00Z", "ended_at": null, "start": "cold", "start_ms": 1,
            "template": null, "template_reason": null,
        });
        serde_json::from_value(record).unwrap()
    }

    fn need(file: &Configuration, tool: &str) -> Need {
        let none = MachineOptions::default();
        Need::new(&none, &none, Some(server(file)), Some(tool))
    }

    const TABLES: &str = "mounts = [\"/srv:/srv\"]\n\
        [[servers.tools]]\nname = \"t\"\nisolation = \"container\"\nmemory_mb = 256\nvcpus = 2\n\
        [[servers.tools]]\nname = \"keys\"\nmounts = [\"/k:/keys\", \"/srv:/srv\"]\n\
        [[servers.tools]]\nname = \"rw\"\nmounts = [\"/k:/keys:rw\"]\n";

    #[test]
    fn a_machine_satisfies_a_tool_that_asks_for_no_more_than_it_has() {
        let file = file(TABLES);
        let need = need(&file, "t");
        let lack = |backend: &str, memory, vcpus| need.lack(&record(backend, memory, vcpus, &["/srv"]));
        let (docker, sandbox) = (BackendKind::Docker, BackendKind::Sandbox);
        assert_eq!(lack("docker", 256, 2), None);
        assert_eq!(lack("qemu", 512, 3), None);
        assert_eq!(lack("qemu", 255, 2), Some(Lack::Memory { has: 255, least: 256 }));
        assert_eq!(lack("qemu", 256, 1), Some(Lack::Processors { has: 1, least: 2 }));
        let level = Isolation::Container;
        assert_eq!(lack("sandbox", 256, 2), Some(Lack::Wall { has: sandbox, level }));
        // Of a tool without a table nothing is asked for, and nothing where no tool is called.
        let small = record("sandbox", 80, 1, &["/srv"]);
        assert_eq!(self::need(&file, "other").lack(&small), None);
        let none = MachineOptions::default();
        let listing = Need::new(&none, &none, Some(server(&file)), None);
        assert_eq!(listing.lack(&record("sandbox", 80, 1, &["/srv", "/keys"])), None);
        // Flags are asked first, then the environment.
        let backend = |backend| MachineOptions { backend: Some(backend), ..none.clone() };
        let of = |flags: &MachineOptions, environment: &MachineOptions| {
            Need::new(flags, environment, Some(server(&file)), Some("t"))
        };
        let wanted = Some(Lack::Backend { has: BackendKind::Qemu, wanted: docker });
        let large = record("qemu", 512, 2, &["/srv"]);
        assert_eq!(of(&backend(docker), &backend(BackendKind::Qemu)).lack(&large), wanted);
        assert_eq!(of(&none, &backend(docker)).lack(&large), wanted);
        let sized = MachineOptions { memory: Some(1024), ..none.clone() };
        assert_eq!(of(&none, &sized).lack(&large), Some(Lack::Memory { has: 512, least: 1024 }));
    }

    #[test]
    fn a_tools_folders_are_in_machines_that_were_started_for_it_and_no_other_tool_is_called_there() {
        let file = file(TABLES);
        let lack = |tool: &str, folders: &[&str]| need(&file, tool).lack(&record("qemu", 512, 2, folders));
        let (keys, none) = (|| target("/keys"), None);
        assert_eq!(lack("keys", &["/srv"]), Some(Lack::Folder(keys())));
        assert_eq!(lack("keys", &["/srv", "/keys"]), none);
        assert_eq!(lack("t", &["/srv", "/keys"]), Some(Lack::Foreign(keys())));
        assert_eq!(lack("unheard-of", &["/srv", "/keys"]), Some(Lack::Foreign(keys())));
        // The server's own folder is nobody's alone, and one of the command line is the user's matter.
        assert_eq!(lack("t", &["/srv", "/mine"]), none);
        // No machine has a folder that is packed and can be written to.
        assert_eq!(lack("rw", &["/srv", "/keys"]), Some(Lack::Folder(keys())));
    }

    #[test]
    fn one_machine_for_all_tools_has_all_their_folders_once() {
        let file = file(
            "mounts = [\"/srv:/srv\"]\n\
             [[servers.tools]]\nname = \"t\"\nmounts = [\"/srv:/srv\", \"/a:/a\"]\n\
             [[servers.tools]]\nname = \"u\"\nmounts = [\"/a:/a\", \"/b:/b\"]\n",
        );
        let said = |text: &str| vec![folder(text)];
        assert_eq!(union(server(&file), &[]).unwrap(), [folder("/a:/a"), folder("/b:/b")]);
        assert_eq!(union(server(&file), &said("/c:/a")).unwrap(), [folder("/b:/b")]);
    }

    #[test]
    fn folders_that_are_in_each_others_way_are_told_with_their_tools() {
        let tools = |one: &str, other: &str| {
            file(&format!(
                "mounts = [\"/srv:/srv\"]\n[[servers.tools]]\nname = \"t\"\nmounts = [\"{one}\"]\n\
                 [[servers.tools]]\nname = \"u\"\nmounts = [\"{other}\"]\n"
            ))
        };
        let refused = |file: &Configuration, said: &[FolderWish]| {
            let error = union(server(file), said).unwrap_err();
            assert_eq!(error.kind().exit_code(), 3);
            error.report().to_string()
        };
        let both = refused(&tools("/a:/x", "/b:/x"), &[]);
        assert!(both.contains("tool \"u\" of s has /b:/x:ro, and tool \"t\" has /a:/x:ro"), "{both}");
        let below = refused(&tools("/a:/x", "/b:/x/y"), &[]);
        assert!(below.contains("/b:/x/y:ro, and tool \"t\""), "{below}");
        let own = refused(&tools("/a:/srv", "/b:/b"), &[]);
        assert!(own.contains("tool \"t\" of s has /a:/srv:ro, and the server has /srv:/srv:ro"), "{own}");
        // Reading and writing the same folder are two things.
        refused(&tools("/a:/x", "/a:/x:rw"), &[]);
        // Whoever says on the command line what is there has decided.
        assert_eq!(union(server(&tools("/a:/x", "/b:/x")), &[folder("/c:/x")]).unwrap(), []);
    }

    #[test]
    fn an_image_of_a_unikernel_is_refused_where_it_would_be_used() {
        let file = file(
            "[[servers.tools]]\nname = \"t\"\nunikernel_image = \"/i\"\n[[servers.tools]]\nname = \"u\"\n",
        );
        let of = |name: &str| tool(&file, &"s".parse().unwrap(), name);
        let refused = of("t").unwrap_err();
        assert_eq!(refused.kind().exit_code(), 4);
        assert!(refused.report().to_string().contains("config.toml:5: tool \"t\""), "{}", refused.report());
        assert_eq!(of("u").unwrap().map(|tool| tool.name.as_str()), Some("u"));
        assert!(of("v").unwrap().is_none());
    }
}
