//! The folder `kernels/`: one folder for each kernel, which appears complete and never changes.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::modules::{Module, Selection};
use super::strip::without_tables;
use super::{Kernel, KernelError, ModuleError, Record, Source, initramfs};
use crate::lock;
use crate::partial::{self, Partial, PartialDir};
use crate::progress::Progress;
use crate::registry::digest::Hasher;
use crate::store::BUILD_TIME;

/// The form of `kernel.json` that this version writes and reads.
const FORMAT: u32 = 1;
/// How many initramfs files of other agents are kept for each kernel.
const OTHERS_KEPT: usize = 4;

/// The mode of what a VMM opens: it may run as another user, who is handed the open file.
const BOOTED: u32 = 0o444;

const VMLINUX: &str = "vmlinux";
const MODULES: &str = "modules";
const ORDER: &str = "order";
const RECORD: &str = "kernel.json";

/// The kernels that are stored in `home`, the one obtained last first.
///
/// Folders that this version cannot read are left out.
pub fn list(home: &Path) -> Result<Vec<Record>, KernelError> {
    let kernels = kernels(home);
    let entries = match fs::read_dir(&kernels) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(KernelError::Store { path: kernels, source }),
    };
    let mut records: Vec<Record> = entries.flatten().filter_map(|entry| read_record(&entry.path())).collect();
    records.sort_by(|a, b| (b.obtained_ms, &a.id).cmp(&(a.obtained_ms, &b.id)));
    Ok(records)
}

fn read_record(folder: &Path) -> Option<Record> {
    let text = fs::read(folder.join(RECORD)).ok()?;
    let record: Record = serde_json::from_slice(&text).ok()?;
    let size = fs::metadata(folder.join(VMLINUX)).ok()?.len();
    let is_complete = size == record.vmlinux_bytes && folder.file_name()? == record.id.as_str();
    (record.format == FORMAT && is_complete).then_some(record)
}

fn kernels(home: &Path) -> PathBuf {
    home.join("kernels")
}

/// The store, locked against other processes that change it.
pub(super) struct Store {
    kernels: PathBuf,
    _lock: File,
}

impl Store {
    /// Waits for the lock, and removes what killed processes left.
    pub fn lock(home: &Path, progress: &dyn Progress) -> Result<Store, KernelError> {
        Self::lock_within(home, progress, BUILD_TIME)
    }

    fn lock_within(home: &Path, progress: &dyn Progress, patience: Duration) -> Result<Store, KernelError> {
        let kernels = kernels(home);
        let error = |source| KernelError::Store { path: kernels.clone(), source };
        fs::create_dir_all(&kernels).map_err(error)?;
        let path = kernels.join(".lock");
        let mut options = OpenOptions::new();
        let lock = options.create(true).truncate(false).write(true).open(&path).map_err(error)?;
        let say = || progress.note("waiting for another casemate that is preparing a kernel");
        lock::within(&lock, patience, say).map_err(|source| KernelError::Store { path, source })?;
        partial::sweep(&kernels);
        Ok(Store { kernels, _lock: lock })
    }

    /// A folder that vanishes when dropped, on the same file system as the store.
    pub fn scratch(&self) -> Result<PartialDir, KernelError> {
        PartialDir::inside(&self.kernels).map_err(|source| self.error(source))
    }

    /// Stores a kernel, unless the same one is there, and says when it was obtained.
    pub fn add(
        &self,
        version: &str,
        vmlinux: &[u8],
        selection: &Selection,
        source: Source,
    ) -> Result<Record, KernelError> {
        let order = selection.order_file();
        let id = format!("{version}-{}", &content_digest(vmlinux, selection, &order)[..12]);
        let folder = self.kernels.join(&id);
        let record = Record {
            format: FORMAT,
            id,
            version: version.to_owned(),
            source,
            obtained_ms: now_ms(),
            vmlinux_bytes: vmlinux.len() as u64,
            unavailable: selection.unavailable.clone(),
        };
        if read_record(&folder).is_some() {
            self.write_record(&folder, &record)?;
            return Ok(record);
        }
        let making = self.scratch()?;
        let write = || -> io::Result<()> {
            // Left by a version whose record this one cannot read.
            if folder.exists() {
                fs::remove_dir_all(&folder)?;
            }
            let modules = making.path().join(MODULES);
            fs::create_dir(&modules)?;
            write_file(&making.path().join(VMLINUX), vmlinux, BOOTED)?;
            fs::write(modules.join(ORDER), &order)?;
            for module in &selection.modules {
                fs::write(modules.join(&module.file), &module.bytes)?;
            }
            Ok(())
        };
        write().map_err(|source| self.error(source))?;
        self.write_record(making.path(), &record)?;
        making.publish(&folder).map_err(|source| self.error(source))?;
        Ok(record)
    }

    /// Makes a stored kernel the one obtained last.
    pub fn renew(&self, mut record: Record) -> Result<Record, KernelError> {
        record.obtained_ms = now_ms();
        self.write_record(&self.kernels.join(&record.id), &record)?;
        Ok(record)
    }

    fn write_record(&self, folder: &Path, record: &Record) -> Result<(), KernelError> {
        let path = folder.join(RECORD);
        let written = serde_json::to_vec_pretty(record)
            .map_err(io::Error::from)
            .and_then(|text| write_file(&path, &text, 0o600));
        written.map_err(|source| KernelError::Store { path, source })
    }

    /// Makes sure that the kernel has an initramfs with this agent.
    pub fn complete(&self, record: &Record, agent: &[u8]) -> Result<Kernel, KernelError> {
        let folder = self.kernels.join(&record.id);
        let kernel = describe(&folder, record, agent);
        if !is_filled(&kernel.initramfs) {
            partial::sweep(&folder);
            let build = || -> io::Result<()> {
                let (modules, order) = read_modules(&folder.join(MODULES))?;
                let modules = match record.source {
                    // A kernel of somebody else's may insist on signed modules.
                    Source::Imported { .. } => modules,
                    _ => lighten(modules).map_err(io::Error::other)?,
                };
                let archive = initramfs::build(agent, &modules, &order);
                write_file(&kernel.initramfs, &initramfs::pad(archive), BOOTED)?;
                remove_others(&folder, &kernel.initramfs)
            };
            build().map_err(|source| KernelError::Store { path: folder.clone(), source })?;
        }
        Ok(kernel)
    }

    fn error(&self, source: io::Error) -> KernelError {
        KernelError::Store { path: self.kernels.clone(), source }
    }
}

/// The kernel obtained last, if it is there with an initramfs for this agent. Takes no lock.
pub(super) fn ready(home: &Path, agent: &[u8]) -> Result<Option<Kernel>, KernelError> {
    let record = list(home)?.into_iter().next();
    let kernel = record.map(|record| describe(&kernels(home).join(&record.id), &record, agent));
    Ok(kernel.filter(|kernel| is_filled(&kernel.initramfs)))
}

fn describe(folder: &Path, record: &Record, agent: &[u8]) -> Kernel {
    let mut hasher = Hasher::sha256();
    hasher.update(&initramfs::LAYOUT.to_le_bytes());
    hasher.update(agent);
    let digest = hasher.finish().to_hex();
    Kernel {
        id: record.id.clone(),
        dir: folder.to_owned(),
        vmlinux: folder.join(VMLINUX),
        initramfs: folder.join(format!("initramfs-{}.cpio", &digest[..16])),
        version: record.version.clone(),
        source: record.source.clone(),
    }
}

/// Writes a file that appears complete.
///
/// It is not forced to the disk, which takes seconds where the disk is busy: what a power failure leaves
/// empty is recognised by its size and made again.
fn write_file(to: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = Partial::beside(to)?;
    file.write_all(bytes)?;
    file.as_file_mut().set_permissions(Permissions::from_mode(mode))?;
    file.publish(to)
}

fn is_filled(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.len() > 0)
}

fn read_modules(folder: &Path) -> io::Result<(Vec<Module>, String)> {
    let order = fs::read_to_string(folder.join(ORDER))?;
    let mut files: Vec<String> = Vec::new();
    for entry in fs::read_dir(folder)? {
        files.extend(entry?.file_name().into_string().ok().filter(|name| name.ends_with(".ko")));
    }
    files.sort();
    let modules = files.into_iter().map(|file| {
        let bytes = fs::read(folder.join(&file))?;
        Ok(Module { file, bytes })
    });
    Ok((modules.collect::<io::Result<_>>()?, order))
}

/// The modules as they load fastest.
fn lighten(modules: Vec<Module>) -> Result<Vec<Module>, ModuleError> {
    let lightened = modules
        .into_iter()
        .map(|Module { file, bytes }| without_tables(bytes).map(|bytes| Module { file, bytes }));
    lightened.collect()
}

/// Removes the oldest initramfs files, which belong to agents of other versions of casemate.
fn remove_others(folder: &Path, current: &Path) -> io::Result<()> {
    let mut others = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let is_initramfs = entry.file_name().to_str().is_some_and(|name| name.starts_with("initramfs-"));
        if is_initramfs && entry.path() != current {
            others.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    others.sort();
    let excess = others.len().saturating_sub(OTHERS_KEPT);
    others.iter().take(excess).try_for_each(|(_, path)| fs::remove_file(path))
}

fn content_digest(vmlinux: &[u8], selection: &Selection, order: &str) -> String {
    let mut hasher = Hasher::sha256();
    let mut add = |bytes: &[u8]| {
        // Lengths keep neighbouring parts apart.
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    add(vmlinux);
    add(order.as_bytes());
    for module in &selection.modules {
        add(module.file.as_bytes());
        add(&module.bytes);
    }
    hasher.finish().to_hex()
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
