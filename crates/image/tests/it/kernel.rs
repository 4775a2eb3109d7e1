//! The real kernel package of Debian, from the mirror to the files that boot.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use casemate_image::kernel::{self, ImageError, Kernel, KernelError, Source};
use casemate_image::progress::{Progress, Silent};
use casemate_image::registry::address::Registries;
use object::elf::{FileHeader64, NoteType, PT_NOTE};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{LittleEndian as LE, Object, ObjectSection};

use crate::home::{Home, private_home, shared_home};

const AGENT: &[u8] = b"the agent";

fn fetched(home: &Home) -> Kernel {
    kernel::fetch(home.path(), &Registries::default(), AGENT, &Silent).unwrap()
}

/// The order of loading as the agent sees it: pairs of set and module.
fn order(text: &[u8]) -> Vec<(String, String)> {
    let text = std::str::from_utf8(text).unwrap();
    let lines = text.lines().map(|line| {
        let (set, path) = line.split_once(' ').unwrap();
        (set.to_owned(), path.strip_prefix("/modules/").unwrap().to_owned())
    });
    lines.collect()
}

/// The entries of an initramfs that is padded with zeros to whole pages: mode and contents by name.
fn entries(cpio: &[u8]) -> HashMap<String, (u32, Vec<u8>)> {
    assert_eq!(cpio.len() % 4096, 0);
    let mut entries = HashMap::new();
    let mut at = 0;
    loop {
        let field = |n: usize| {
            let start = at + 6 + 8 * n;
            u32::from_str_radix(std::str::from_utf8(&cpio[start..start + 8]).unwrap(), 16).unwrap()
        };
        assert_eq!(&cpio[at..at + 6], b"070701");
        let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
        let name = String::from_utf8(cpio[at + 110..at + 110 + name_size - 1].to_vec()).unwrap();
        let data = (at + 110 + name_size).next_multiple_of(4);
        if name == "TRAILER!!!" {
            assert!(cpio[data..].iter().all(|&byte| byte == 0));
            return entries;
        }
        entries.insert(name, (mode, cpio[data..data + size].to_vec()));
        at = (data + size).next_multiple_of(4);
    }
}

#[test]
fn debians_kernel_is_fetched_and_can_be_booted() {
    let home = shared_home();
    let kernel = fetched(&home);
    assert!(kernel.version.starts_with("6.1.0-") && kernel.version.ends_with("-cloud-amd64"));
    assert!(kernel.id.starts_with(&kernel.version));
    assert_eq!(kernel.dir, home.path().join("kernels").join(&kernel.id));
    let Source::Debian { package, .. } = &kernel.source else { panic!("{:?}", kernel.source) };
    assert_eq!(*package, format!("linux-image-{}", kernel.version));

    check_vmlinux(&kernel);
    check_order(&kernel);
    check_that_nothing_is_made_twice(&home, &kernel);
    check_initramfs(&home, &kernel);
    let records = kernel::list(home.path()).unwrap();
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].id, kernel.id);
    assert_eq!(records[0].unavailable, []);
    let left: Vec<_> =
        fs::read_dir(home.path().join("kernels")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "only the kernel and the lock: {left:?}");
}

fn check_vmlinux(kernel: &Kernel) {
    let vmlinux = fs::read(&kernel.vmlinux).unwrap();
    let header = FileHeader64::<LE>::parse(&*vmlinux).unwrap();
    let segments = header.program_headers(LE, &*vmlinux).unwrap();
    let notes = segments.iter().filter(|segment| segment.p_type(LE) == PT_NOTE);
    let has_pvh = notes.into_iter().any(|segment| {
        let mut notes = segment.notes(LE, &*vmlinux).unwrap().unwrap();
        std::iter::from_fn(|| notes.next().unwrap())
            .any(|note| note.name() == b"Xen" && note.n_type(LE) == NoteType(18))
    });
    assert!(has_pvh);
    for segment in segments {
        assert!(segment.data(LE, &*vmlinux).is_ok());
    }
}

fn check_order(kernel: &Kernel) {
    let order = order(&fs::read(kernel.dir.join("modules/order")).unwrap());
    let boot: Vec<&str> =
        order.iter().filter(|(set, _)| set == "boot").map(|(_, file)| file.as_str()).collect();
    for file in ["virtio_mmio.ko", "virtio_blk.ko", "virtio_console.ko", "erofs.ko"] {
        assert!(boot.contains(&file), "{file} is not in {boot:?}");
    }
    for (set, file) in [
        ("lazy:vsock", "vmw_vsock_virtio_transport.ko"),
        ("lazy:overlay", "overlay.ko"),
        ("lazy:netem", "sch_netem.ko"),
    ] {
        assert!(order.contains(&(set.to_owned(), file.to_owned())), "{set} {file}");
    }
    for (at, (set, file)) in order.iter().enumerate() {
        let before: Vec<&String> =
            order[..at].iter().filter(|(other, _)| other == "boot" || other == set).map(|(_, f)| f).collect();
        for needed in depends(&fs::read(kernel.dir.join("modules").join(file)).unwrap()) {
            // Debian builds in what has no file; the package's own list says so.
            let needed = format!("{}.ko", needed.replace('-', "_"));
            if order.iter().any(|(_, file)| *file == needed) {
                assert!(before.contains(&&needed), "{file} is loaded before {needed}");
            }
        }
    }
}

fn depends(module: &[u8]) -> Vec<String> {
    let file = object::File::parse(module).unwrap();
    let section = file.section_by_name(".modinfo").unwrap().data().unwrap();
    let text = String::from_utf8_lossy(section);
    let value = text.split('\0').find_map(|attribute| attribute.strip_prefix("depends=")).unwrap();
    value.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn check_initramfs(home: &Home, kernel: &Kernel) {
    let bytes = fs::read(&kernel.initramfs).unwrap();
    let entries = entries(&bytes);
    assert_eq!(entries["init"], (0o100_755, AGENT.to_vec()));
    assert_eq!(entries["dev/console"].0, 0o020_600);
    for folder in ["proc", "sys", "dev", "run", "tmp", "newroot", "modules"] {
        assert_eq!(entries[folder].0, 0o040_755, "{folder}");
    }
    for (_, file) in order(&entries["modules/order"].1) {
        let stored = fs::read(kernel.dir.join("modules").join(&file)).unwrap();
        let (mode, loaded) = &entries[&format!("modules/{file}")];
        assert_eq!((*mode, depends(loaded)), (0o100_644, depends(&stored)));
        let has = |module: &[u8], text: &[u8]| module.windows(text.len()).any(|window| window == text);
        assert!(has(&stored, b"~Module signature appended~") && !has(loaded, b"~Module signature appended~"));
        assert!(loaded.len() < stored.len(), "{file} has lost its tables");
    }

    let other = kernel::ensure(home.path(), &Registries::default(), b"newer agent", &Silent).unwrap();
    assert_eq!(other.id, kernel.id);
    assert_ne!(other.initramfs, kernel.initramfs);
    fs::remove_file(&kernel.initramfs).unwrap();
    let again = kernel::ensure(home.path(), &Registries::default(), AGENT, &Silent).unwrap();
    assert_eq!(again.initramfs, kernel.initramfs);
    assert_eq!(fs::read(&again.initramfs).unwrap(), bytes, "the same agent gives the same bytes");
}

#[test]
fn several_callers_share_one_kernel() {
    let home = shared_home();
    let ensure = || kernel::ensure(home.path(), &Registries::default(), AGENT, &Silent).unwrap();
    let kernels: Vec<Kernel> = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..3).map(|_| scope.spawn(ensure)).collect();
        callers.into_iter().map(|caller| caller.join().unwrap()).collect()
    });
    assert!(kernels.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(kernel::list(home.path()).unwrap().len(), 1);
}

#[test]
fn a_kernel_is_imported_with_its_modules_and_becomes_the_current_one() {
    let home = shared_home();
    let debian = fetched(&home);
    let own = home.path().join("own");
    fs::create_dir(&own).unwrap();
    // Another kernel, by a byte that nothing looks at.
    let mut bytes = fs::read(&debian.vmlinux).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(own.join("vmlinux"), &bytes).unwrap();
    let modules = debian.dir.join("modules");
    let import = |modules| kernel::import(home.path(), &own.join("vmlinux"), modules, AGENT, &Silent);

    let imported = import(Some(modules.as_path())).unwrap();
    assert_eq!(imported.version, debian.version);
    assert_ne!(imported.id, debian.id);
    assert_eq!(imported.source, Source::Imported { image: own.join("vmlinux") });
    let ensure = || kernel::ensure(home.path(), &Registries::default(), AGENT, &Silent).unwrap();
    assert_eq!(ensure().id, imported.id);
    let plain = import(None).unwrap();
    assert_eq!(fs::read(plain.dir.join("modules/order")).unwrap(), b"");
    assert_eq!(ensure().id, plain.id);
    assert_eq!(fetched(&home).id, debian.id);
    assert_eq!(ensure().id, debian.id, "what was fetched last is current");
    assert_eq!(kernel::list(home.path()).unwrap().len(), 3);
}

#[test]
fn what_is_no_kernel_is_refused_and_leaves_nothing() {
    let home = private_home();
    let image = home.path().join("image");
    fs::write(&image, "#!/bin/sh\n").unwrap();
    let import = |image: &Path| kernel::import(home.path(), image, None, AGENT, &Silent);
    let error = import(&image).unwrap_err();
    assert_eq!(error.to_string(), format!("{} is no kernel that can be booted here", image.display()));
    assert!(matches!(error, KernelError::Image { source: ImageError::Malformed { .. }, .. }));
    let absent = import(&home.path().join("absent"));
    assert!(matches!(absent, Err(KernelError::Image { source: ImageError::Read(_), .. })));
    assert_eq!(kernel::list(home.path()).unwrap(), []);
    let left = fs::read_dir(home.path().join("kernels")).unwrap().count();
    assert_eq!(left, 1, "only the lock is left");
}

#[test]
fn a_home_that_cannot_be_written_is_an_error() {
    let home = private_home();
    fs::write(home.path().join("kernels"), "a file").unwrap();
    let refused = kernel::ensure(home.path(), &Registries::default(), AGENT, &Silent);
    assert!(matches!(refused, Err(KernelError::Store { .. })));
}

#[derive(Default)]
struct Recorder(Mutex<Vec<String>>);

impl Recorder {
    fn steps(&self) -> MutexGuard<'_, Vec<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress for Recorder {
    fn step(&self, what: &str) {
        self.steps().push(what.to_owned());
    }
    fn bytes(&self, _done: u64, _total: Option<u64>) {}
    fn note(&self, _message: &str) {}
}

fn check_that_nothing_is_made_twice(home: &Home, kernel: &Kernel) {
    let recorder = Recorder::default();
    let again = kernel::ensure(home.path(), &Registries::default(), AGENT, &recorder).unwrap();
    assert_eq!(again, *kernel);
    assert!(recorder.steps().is_empty(), "{:?}", recorder.steps());
}
