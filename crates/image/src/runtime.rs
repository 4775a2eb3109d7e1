//! Runtimes that casemate supplies, and the installers that fill images: never the host's own.
//!
//! A runtime is first *locked* (which packages, in which versions, with which digests), then unpacked once
//! into a read-only *root* in the cache. Installers run in that root; images start as a copy of it without
//! [`TOOLS`], the folder of the installers.
//!
//! ```text
//! Debian: C library ─┬─ npm registry: node, npm        ──> root of Node images
//!                    └─ Debian: python3.13; PyPI: uv   ──> root of Python images
//! ```

pub(crate) mod debian;
pub(crate) mod node;
pub(crate) mod pin;
pub(crate) mod python;

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub(crate) use pin::Pins;

use crate::archive::Tree;
use crate::build::{BuildError, Context};
use crate::files::{self, failed};
use crate::partial::PartialDir;
use crate::record;
use crate::store::Runtime;

/// Where installers are in a root, relative to it; images do not have it.
pub(crate) const TOOLS: &str = "opt";

/// Where the server's own files are in an image.
pub(crate) const APP: &str = "/app";

/// The certificates that installers trust, as a path inside.
pub(crate) const CERTIFICATES: &str = "/opt/certificates.pem";

/// Changes whenever other packages are taken, or the same ones are unpacked differently.
const LAYOUT: u32 = 1;

/// The parts of a runtime and its installer, pinned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RuntimeLock {
    pub(crate) layout: u32,
    pub(crate) runtime: Runtime,
    /// What images are made of.
    pub(crate) parts: Pins,
    /// What installs into them.
    pub(crate) tools: Pins,
}

impl RuntimeLock {
    pub(crate) fn new(runtime: Runtime, parts: Pins, tools: Pins) -> Self {
        Self { layout: LAYOUT, runtime, parts, tools }
    }

    /// Whether this version of casemate would unpack it in the same way.
    pub(crate) fn is_current_layout(&self) -> bool {
        self.layout == LAYOUT
    }

    /// A runtime that brings nothing: the server's own files are all there is.
    pub(crate) fn bare(runtime: Runtime) -> Self {
        Self::new(runtime, Pins::default(), Pins::default())
    }

    /// The newest versions of a runtime's parts, or those that were the newest within the last day.
    pub(crate) fn current(context: &Context<'_>, runtime: Runtime) -> Result<Self, BuildError> {
        let name = match runtime {
            Runtime::Node => "node",
            Runtime::Python => "python",
            Runtime::Static | Runtime::Native => return Ok(Self::bare(runtime)),
        };
        let _lock = context.wait_for(&format!("runtime-{name}"), "looks for the same runtime")?;
        let record = context.store.cache("runtimes")?.join(format!("{name}.json"));
        let known = record::read_recent::<Self>(&record, record::REUSE);
        if let Some(lock) = known.filter(|lock| lock.is_current_layout() && !context.request.refresh) {
            return Ok(lock);
        }
        let lock = if runtime == Runtime::Node { node::lock(context)? } else { python::lock(context)? };
        record::write(&record, &lock)?;
        Ok(lock)
    }

    /// The unpacked root of this runtime, made at the first call.
    pub(crate) fn root(&self, context: &Context<'_>) -> Result<PathBuf, BuildError> {
        let digest = self.parts.digest_with(&self.tools, self.layout).to_hex();
        let roots = context.store.cache("roots")?;
        let root = roots.join(&digest);
        let _lock = context.wait_for(&format!("root-{digest}"), "unpacks the same runtime")?;
        if !root.exists() {
            let unfinished = PartialDir::inside(&roots).map_err(failed("write to", &roots))?;
            let path = unfinished.path();
            skeleton(path)?;
            let downloads = self.parts.fetch(context)?.into_iter().chain(self.tools.fetch(context)?);
            context.progress.step("unpacking the runtime");
            let limits = crate::archive::Limits::default();
            let mut tree = Tree::open(path, limits).map_err(|source| context.unpack_error(path, source))?;
            for (pin, file) in downloads {
                match self.runtime {
                    Runtime::Node => node::unpack(context, pin, &file, &mut tree)?,
                    Runtime::Python => python::unpack(context, pin, &file, &mut tree)?,
                    Runtime::Static | Runtime::Native => {}
                }
            }
            drop(tree);
            fs::create_dir_all(path.join(TOOLS).join("cache")).map_err(failed("create", path))?;
            if self.runtime == Runtime::Python {
                python::finish(context, path)?;
            }
            files::seal(path)?;
            unfinished.publish(&root).map_err(failed("create", &root))?;
        }
        // The host may have changed its certificates since.
        let certificates = root.join(CERTIFICATES.trim_start_matches('/'));
        crate::partial::write_atomically(&certificates, &context.certificates()?)
            .and_then(|()| {
                fs::set_permissions(&certificates, std::os::unix::fs::PermissionsExt::from_mode(0o644))
            })
            .map_err(failed("write", &certificates))?;
        Ok(root)
    }

    /// Puts the runtime into the tree of an image, whose files are the root's: they must stay as they are.
    pub(crate) fn install(&self, context: &Context<'_>, tree: &Path) -> Result<(), BuildError> {
        let root = self.root(context)?;
        files::link(&root, tree, &|path, _| path != Path::new(TOOLS))?;
        Ok(())
    }
}

/// Makes the folders, links and accounts that every root has.
pub(crate) fn skeleton(root: &Path) -> Result<(), files::FilesError> {
    let folders = [
        "usr/bin",
        "usr/lib",
        "usr/lib64",
        "usr/local/bin",
        "etc",
        "proc",
        "sys",
        "dev",
        "tmp",
        "run",
        "home/casemate",
        "app",
        "root",
        "var",
    ];
    for folder in folders {
        fs::create_dir_all(root.join(folder)).map_err(failed("create", root))?;
    }
    for (link, target) in [
        ("bin", "usr/bin"),
        ("sbin", "usr/bin"),
        ("lib", "usr/lib"),
        ("lib64", "usr/lib64"),
        ("usr/sbin", "bin"),
        ("var/tmp", "../tmp"),
    ] {
        std::os::unix::fs::symlink(target, root.join(link)).map_err(failed("create", &root.join(link)))?;
    }
    for (file, content) in [
        (
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\ncasemate:x:1000:1000:casemate:/home/casemate:/bin/sh\n\
             nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
        ),
        ("etc/group", "root:x:0:\ncasemate:x:1000:\nnogroup:x:65534:\n"),
        ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
        ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
        ("etc/resolv.conf", ""),
    ] {
        fs::write(root.join(file), content).map_err(failed("write", &root.join(file)))?;
    }
    Ok(())
}
