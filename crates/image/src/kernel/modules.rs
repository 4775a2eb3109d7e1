//! Finds the modules that a machine needs, and the order in which they have to be loaded.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use super::ModuleError;
use super::modinfo::{ModInfo, module_name};
use super::strip::without_debug;
use crate::archive::{Compression, decoder};

/// Without these no machine starts: its devices, its link, its root file system.
const BOOT: &[&str] = &["virtio_mmio", "virtio_blk", "virtio_console", "erofs"];
/// What the agent loads when it is asked for it.
const LAZY: &[(&str, &[&str])] = &[
    ("vsock", &["vsock", "vmw_vsock_virtio_transport"]),
    ("overlay", &["overlay", "ext4"]),
    ("netem", &["sch_netem"]),
];

/// Limits of a folder of modules and of one module.
const MOST_FILES: usize = 100_000;
const DEEPEST: usize = 16;
const LARGEST_MODULE: u64 = 64 << 20;
const LARGEST_LIST: u64 = 16 << 20;

/// A module chosen for the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Module {
    /// Its file name, `NAME.ko`.
    pub file: String,
    /// The ELF object.
    pub bytes: Vec<u8>,
}

/// The modules of a machine and when to load them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Selection {
    /// All modules, each once.
    pub modules: Vec<Module>,
    /// For each set, `boot` or `lazy:NAME`, the files in the order of loading.
    pub order: Vec<(String, String)>,
    /// The sets that this kernel cannot provide, with the module that is missing.
    pub unavailable: Vec<(String, String)>,
}

impl Selection {
    /// The contents of `modules/order`: a line for each module, `SET /modules/FILE`.
    pub fn order_file(&self) -> String {
        self.order.iter().map(|(set, file)| format!("{set} /modules/{file}\n")).collect()
    }
}

/// Chooses from a folder of modules what a machine needs.
pub(super) fn select(folder: &Path) -> Result<Selection, ModuleError> {
    let library = Library::open(folder)?;
    let mut resolver = Resolver { library: &library, loaded: HashMap::new() };
    let mut selection = Selection::default();
    let boot = resolver.closure(BOOT)?;
    for name in &boot {
        selection.order.push(("boot".to_owned(), file_name(name)));
    }
    for (set, names) in LAZY {
        match resolver.closure(names) {
            Ok(order) => {
                for name in order.iter().filter(|name| !boot.contains(name)) {
                    selection.order.push((format!("lazy:{set}"), file_name(name)));
                }
            }
            Err(ModuleError::Missing { name, .. }) => {
                selection.unavailable.push(((*set).to_owned(), name));
            }
            Err(error) => return Err(error),
        }
    }
    let wanted: BTreeSet<&String> = selection.order.iter().map(|(_, file)| file).collect();
    for (name, (_, bytes)) in resolver.loaded {
        let file = file_name(&name);
        if wanted.contains(&file) {
            selection.modules.push(Module { file, bytes });
        }
    }
    selection.modules.sort_by(|a, b| a.file.cmp(&b.file));
    Ok(selection)
}

fn file_name(name: &str) -> String {
    format!("{name}.ko")
}

/// The modules of a kernel by name: those in files and those built in.
struct Library {
    folder: PathBuf,
    files: BTreeMap<String, PathBuf>,
    built_in: BTreeSet<String>,
}

impl Library {
    fn open(folder: &Path) -> Result<Library, ModuleError> {
        let mut library =
            Library { folder: folder.to_owned(), files: BTreeMap::new(), built_in: BTreeSet::new() };
        let mut lists = Vec::new();
        let mut count = 0;
        library.scan(folder, 0, &mut count, &mut lists)?;
        for list in lists {
            let text = read_limited(&list, LARGEST_LIST)?;
            let text = String::from_utf8_lossy(&text);
            library.built_in.extend(text.lines().filter_map(|line| name_of_file(Path::new(line))));
        }
        Ok(library)
    }

    /// Looks through a folder without following links: installed modules link to their sources.
    fn scan(
        &mut self,
        folder: &Path,
        depth: usize,
        count: &mut usize,
        lists: &mut Vec<PathBuf>,
    ) -> Result<(), ModuleError> {
        let cannot_read = |source| ModuleError::Read { path: folder.to_owned(), source };
        let mut paths = Vec::new();
        for entry in fs::read_dir(folder).map_err(cannot_read)? {
            paths.push(entry.map_err(cannot_read)?.path());
        }
        // The same folder gives the same choice, whatever order the file system has.
        paths.sort();
        for path in paths {
            *count += 1;
            if *count > MOST_FILES {
                return Err(ModuleError::TooMany { folder: self.folder.clone(), limit: MOST_FILES });
            }
            let kind = fs::symlink_metadata(&path).map_err(cannot_read)?.file_type();
            if kind.is_dir() && depth < DEEPEST {
                self.scan(&path, depth + 1, count, lists)?;
            } else if kind.is_file() {
                if path.file_name().is_some_and(|name| name == "modules.builtin") {
                    lists.push(path);
                } else if let Some(name) = name_of_file(&path) {
                    self.files.entry(name).or_insert(path);
                }
            }
        }
        Ok(())
    }

    fn load(&self, name: &str) -> Result<Vec<u8>, ModuleError> {
        let path = self.files.get(name).ok_or_else(|| self.missing(name))?;
        let packed = read_limited(path, LARGEST_MODULE)?;
        let cannot_read = |source| ModuleError::Read { path: path.clone(), source };
        let mut bytes = Vec::new();
        decoder(Compression::of_magic(&packed), BufReader::new(&packed[..]))
            .and_then(|reader| reader.take(LARGEST_MODULE + 1).read_to_end(&mut bytes))
            .map_err(cannot_read)?;
        if bytes.len() as u64 > LARGEST_MODULE {
            return Err(ModuleError::TooLarge { path: path.clone(), limit: LARGEST_MODULE });
        }
        Ok(bytes)
    }

    fn missing(&self, name: &str) -> ModuleError {
        ModuleError::Missing { name: name.to_owned(), folder: self.folder.clone() }
    }
}

/// The module that a path such as `kernel/fs/erofs/erofs.ko.xz` holds.
fn name_of_file(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let stem =
        ["", ".xz", ".zst", ".gz"].iter().find_map(|ending| file.strip_suffix(&format!(".ko{ending}")))?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    (!stem.is_empty() && stem.len() <= 64 && stem.bytes().all(allowed)).then(|| module_name(stem))
}

fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>, ModuleError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(limit + 1).read_to_end(&mut bytes))
        .map_err(|source| ModuleError::Read { path: path.to_owned(), source })?;
    if bytes.len() as u64 > limit {
        return Err(ModuleError::TooLarge { path: path.to_owned(), limit });
    }
    Ok(bytes)
}

struct Resolver<'a> {
    library: &'a Library,
    loaded: HashMap<String, (ModInfo, Vec<u8>)>,
}

impl Resolver<'_> {
    /// The named modules and what they need, each after what it needs. What is built in is left out.
    fn closure(&mut self, names: &[&str]) -> Result<Vec<String>, ModuleError> {
        let mut order = Vec::new();
        for name in names {
            self.visit(name, &mut Vec::new(), &mut order)?;
        }
        Ok(order)
    }

    fn visit(
        &mut self,
        name: &str,
        path: &mut Vec<String>,
        order: &mut Vec<String>,
    ) -> Result<(), ModuleError> {
        if order.iter().any(|done| done == name) || self.is_built_in(name) {
            return Ok(());
        }
        if path.iter().any(|open| open == name) {
            return Err(ModuleError::Cycle { name: name.to_owned() });
        }
        path.push(name.to_owned());
        let info = self.info(name)?;
        for needed in &info.depends {
            self.visit(needed, path, order)?;
        }
        for wanted in &info.soft_depends {
            if let Some(found) = self.find_soft(wanted)?
                && !path.contains(&found)
            {
                self.visit(&found, path, order)?;
            }
        }
        path.pop();
        order.push(name.to_owned());
        Ok(())
    }

    /// A module that is in a file is loaded from there, even if the list of built-in ones names it.
    fn is_built_in(&self, name: &str) -> bool {
        self.library.built_in.contains(name) && !self.library.files.contains_key(name)
    }

    fn info(&mut self, name: &str) -> Result<ModInfo, ModuleError> {
        if let Some((info, _)) = self.loaded.get(name) {
            return Ok(info.clone());
        }
        let bytes = without_debug(self.library.load(name)?)?;
        let info = ModInfo::of(&bytes)?;
        self.loaded.insert(name.to_owned(), (info.clone(), bytes));
        Ok(info)
    }

    /// The module that a soft dependency names: by name, else by alias, else none.
    ///
    /// An alias is looked for only among modules whose name contains it, as in `crc32c` and
    /// `crc32c_generic`; the generic one is preferred, because it needs no particular processor.
    fn find_soft(&mut self, wanted: &str) -> Result<Option<String>, ModuleError> {
        if self.is_built_in(wanted) {
            return Ok(None);
        }
        if self.library.files.contains_key(wanted) {
            return Ok(Some(wanted.to_owned()));
        }
        let similar: Vec<String> =
            self.library.files.keys().filter(|name| name.contains(wanted)).cloned().collect();
        let built_in = self.library.built_in.iter().any(|name| name.contains(wanted));
        let mut found: Option<String> = None;
        for name in similar.into_iter().filter(|_| !built_in) {
            let is_alias = |alias: &String| alias == wanted || alias.strip_prefix("crypto-") == Some(wanted);
            if self.info(&name)?.aliases.iter().any(is_alias)
                && (found.is_none() || name.ends_with("_generic"))
            {
                found = Some(name);
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
pub(super) mod tests;
