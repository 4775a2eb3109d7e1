//! What the measurements share: the program, the servers' images, and a VMM's command line, each made when
//! it is first asked for.

use crate::{
    casemate::{Casemate, Start, Talk},
    failure::{Failure, chain},
    process,
    server::{self, PROBE, Server},
    vmm::Blueprint,
    workspace::Layout,
};
use serde::Deserialize;
use std::{cell::OnceCell, collections::BTreeMap, fs, path::PathBuf, process::Command, time::Duration};

/// How long unpacking an image may take.
const UNPACKING: Duration = Duration::from_secs(120);

/// How long fetching and building may take.
const BUILDING: Duration = Duration::from_secs(1200);

/// `image.json`: what a server's image holds and how it is started.
#[derive(Debug, Clone, Deserialize)]
pub struct Image {
    /// Names its folder.
    digest: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Its whole environment.
    pub env: BTreeMap<String, String>,
    /// The folder that it starts in.
    pub cwd: String,
    /// What is installed.
    #[serde(default)]
    pub packages: Vec<Package>,
}

/// One installed package.
#[derive(Debug, Clone, Deserialize)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// What the measurements share.
#[derive(Debug)]
pub struct Bench {
    /// Where things are.
    pub layout: Layout,
    /// The program that is measured.
    pub casemate: Casemate,
    images: [OnceCell<Result<Image, String>>; server::ALL.len()],
    trees: [OnceCell<Result<PathBuf, String>>; server::ALL.len()],
    templates: [OnceCell<Result<(), String>>; server::ALL.len()],
    blueprint: OnceCell<Result<Blueprint, String>>,
    kernel: OnceCell<Result<(), String>>,
    /// Whether guests boot the kernel that casemate builds.
    built_kernel: bool,
}

impl Bench {
    /// Nothing is fetched yet.
    pub fn new(layout: Layout, built_kernel: bool) -> Result<Self, Failure> {
        let casemate = Casemate::new(&layout)?;
        Ok(Self {
            layout,
            casemate,
            images: Default::default(),
            trees: Default::default(),
            templates: Default::default(),
            blueprint: OnceCell::new(),
            kernel: OnceCell::new(),
            built_kernel,
        })
    }

    /// The image of a server, which casemate knows from then on.
    pub fn image(&self, server: &Server) -> Result<&Image, Failure> {
        once(&self.images[index(server)], || self.add(server))
    }

    /// The image, if it was needed.
    pub fn image_if_built(&self, server: &Server) -> Option<&Image> {
        self.images[index(server)].get()?.as_ref().ok()
    }

    /// The unpacked root file system of a server's image.
    pub fn tree(&self, server: &Server) -> Result<&PathBuf, Failure> {
        once(&self.trees[index(server)], || self.unpack(server))
    }

    /// The tree, if it was needed.
    pub fn tree_if_unpacked(&self, server: &Server) -> Option<&PathBuf> {
        self.trees[index(server)].get()?.as_ref().ok()
    }

    /// Sees to it that what is restored next does not have to make its template first.
    pub fn template(&self, server: &Server) -> Result<(), Failure> {
        let start = Start::Restored;
        once(&self.templates[index(server)], || {
            self.image(server)?;
            let mut talk = Talk::begin(self.casemate.run(server, start))?;
            talk.call(server, "a trial")?;
            self.casemate.machine_of(server.name)?.started(start)?;
            talk.end()?;
            // The supervisor holds the conversation of this one, which may be another template.
            self.casemate.launch(server, start)?;
            self.casemate.stop_all().map(drop)
        })
        .copied()
    }

    /// The command line of a VMM that casemate started.
    pub fn blueprint(&self) -> Result<&Blueprint, Failure> {
        once(&self.blueprint, || {
            self.image(&PROBE)?;
            let (machine, _) = self.casemate.launch(&PROBE, Start::Cold)?;
            let blueprint = Blueprint::of(&machine);
            self.casemate.stop_all()?;
            blueprint
        })
    }

    fn add(&self, server: &Server) -> Result<Image, Failure> {
        once(&self.kernel, || {
            let how = if self.built_kernel { "build" } else { "fetch" };
            eprintln!("  obtaining a guest kernel (kernel {how}), trying the backends");
            self.casemate.finish_within(&["kernel", how], BUILDING)?;
            // What is unusable here is no failure: the verdict on KVM is cached for the starts to come.
            process::output(&mut self.casemate.command(&["doctor"]), BUILDING).map(drop)
        })?;
        eprintln!("  building the image of {}", server.source);
        self.casemate.finish_within(&["add", server.name, server.source], BUILDING)?;
        let images = self.casemate.home().join("images");
        #[derive(Deserialize)]
        struct Listed {
            name: String,
            image: Option<String>,
        }
        let listed: Vec<Listed> = self.casemate.json(&["list", "--json"])?;
        let digest =
            listed.into_iter().find(|listed| listed.name == server.name).and_then(|listed| listed.image);
        let digest = digest.ok_or_else(|| Failure::Unavailable(format!("{} has no image", server.name)))?;
        let path = images.join(folder(&digest)).join("image.json");
        let text = fs::read(&path).map_err(Failure::file("read", &path))?;
        serde_json::from_slice(&text)
            .map_err(|source| Failure::Output { command: "image.json".to_owned(), source })
    }

    fn unpack(&self, server: &Server) -> Result<PathBuf, Failure> {
        let image = self.image(server)?;
        let erofs = self.casemate.home().join("images").join(folder(&image.digest)).join("rootfs.erofs");
        let tree = self.layout.tree(server.name);
        fs::create_dir_all(&tree).map_err(Failure::file("make the folder", &tree))?;
        let mut command = Command::new(process::find("fsck.erofs")?);
        command.arg(format!("--extract={}", tree.display())).arg("--overwrite").arg(erofs);
        process::run(&mut command, UNPACKING)?;
        Ok(tree)
    }
}

/// Makes something once; a failure is remembered too, so that it is not waited for again and again.
fn once<T>(
    cell: &OnceCell<Result<T, String>>,
    make: impl FnOnce() -> Result<T, Failure>,
) -> Result<&T, Failure> {
    let made = cell.get_or_init(|| make().map_err(|failure| chain(&failure)));
    made.as_ref().map_err(|reason| Failure::Unavailable(reason.clone()))
}

fn index(server: &Server) -> usize {
    server::ALL.iter().position(|one| one.name == server.name).unwrap_or_default()
}

fn folder(digest: &str) -> &str {
    digest.split_once(':').map_or(digest, |(_, hash)| hash)
}
