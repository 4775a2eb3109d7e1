//! Which shared libraries a program of this host needs, found as the dynamic linker would find them
//! (ld.so(8)), without running anything.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use object::Endianness;
use object::elf::{self, FileHeader64};
use object::read::elf::{Dyn, FileHeader, ProgramHeader};

/// The largest program or library that is read.
const FILE_BYTES: u64 = 1 << 30;

/// The most libraries of one program.
const LIBRARIES: usize = 512;

/// Where the linker looks at last, on the layouts of the usual distributions.
const DEFAULT_FOLDERS: [&str; 6] =
    ["/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib"];

/// What a program needs: files of the host, by the path under which the linker asks for each.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Needs {
    /// Path inside, and where the file is on the host.
    pub(super) files: BTreeMap<PathBuf, PathBuf>,
}

/// What an ELF file says about linking.
#[derive(Debug, Default, PartialEq, Eq)]
struct Linking {
    interpreter: Option<PathBuf>,
    needed: Vec<String>,
    /// `DT_RPATH` or `DT_RUNPATH`, with `$ORIGIN` resolved.
    folders: Vec<PathBuf>,
}

/// Finds everything that `program` (an absolute path) needs, the interpreter included.
pub(super) fn needs(program: &Path) -> Result<Needs, String> {
    let cached = cached_folders();
    let mut needs = Needs::default();
    let mut found: BTreeMap<String, PathBuf> = BTreeMap::new();
    let mut queue = VecDeque::from([(program.to_owned(), Vec::new())]);
    while let Some((file, inherited)) = queue.pop_front() {
        let linking = read(&file)?;
        if let Some(interpreter) = &linking.interpreter {
            needs.files.insert(interpreter.clone(), interpreter.clone());
        }
        // `DT_RPATH` of the program serves its libraries too; for `DT_RUNPATH` that is generous.
        let folders: Vec<PathBuf> = linking.folders.iter().chain(&inherited).cloned().collect();
        for name in &linking.needed {
            if found.contains_key(name) {
                continue;
            }
            let path = find(name, &folders, &cached).ok_or_else(|| {
                format!("{} needs the library {name}, which is not on this host", file.display())
            })?;
            found.insert(name.clone(), path.clone());
            needs.files.insert(path.clone(), path.clone());
            if found.len() > LIBRARIES {
                return Err(format!("it needs more than {LIBRARIES} libraries"));
            }
            queue.push_back((path, folders.clone()));
        }
    }
    Ok(needs)
}

/// Whether the first bytes of a file are those of an ELF file.
pub(super) fn is_elf(start: &[u8]) -> bool {
    start.starts_with(&elf::ELFMAG)
}

fn find(name: &str, folders: &[PathBuf], cached: &[PathBuf]) -> Option<PathBuf> {
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(|path| path.is_absolute() && path.is_file());
    }
    let defaults = DEFAULT_FOLDERS.map(PathBuf::from);
    let folders = folders.iter().chain(cached).chain(&defaults);
    // Libraries for other machines may stand in the same folders.
    folders.map(|folder| folder.join(name)).find(|path| path.is_file() && read(path).is_ok())
}

/// The folders that the linker's cache was made from: `/etc/ld.so.conf` and what it includes.
fn cached_folders() -> Vec<PathBuf> {
    let mut files = vec![PathBuf::from("/etc/ld.so.conf")];
    let included =
        fs::read_dir("/etc/ld.so.conf.d").into_iter().flatten().flatten().map(|entry| entry.path());
    let mut included: Vec<PathBuf> =
        included.filter(|path| path.extension() == Some(OsStr::new("conf"))).collect();
    included.sort();
    files.extend(included);
    let texts = files.iter().filter_map(|file| fs::read_to_string(file).ok()).collect::<Vec<_>>();
    let lines = texts.iter().flat_map(|text| text.lines());
    lines.map(str::trim).filter(|line| line.starts_with('/')).map(PathBuf::from).collect()
}

/// Reads what a 64-bit x86 ELF file says about linking.
fn read(file: &Path) -> Result<Linking, String> {
    let unreadable = |error: std::io::Error| format!("{} cannot be read: {error}", file.display());
    if fs::metadata(file).map_err(unreadable)?.len() > FILE_BYTES {
        return Err(format!("{} is larger than {FILE_BYTES} bytes", file.display()));
    }
    let data = fs::read(file).map_err(unreadable)?;
    let origin = file.parent().unwrap_or(Path::new("/"));
    parse(&data, origin).ok_or_else(|| format!("{} is no 64-bit x86 ELF program", file.display()))
}

fn parse(data: &[u8], origin: &Path) -> Option<Linking> {
    let header = FileHeader64::<Endianness>::parse(data).ok()?;
    let endian = header.endian().ok()?;
    if header.e_machine(endian) != elf::EM_X86_64 {
        return None;
    }
    let mut linking = Linking::default();
    let segments = header.program_headers(endian, data).ok()?;
    for segment in segments {
        if let Ok(Some(path)) = segment.interpreter(endian, data) {
            linking.interpreter = Some(PathBuf::from(OsStr::from_bytes(path)));
        }
    }
    let Some(dynamic) = segments.iter().find_map(|segment| segment.dynamic(endian, data).ok().flatten())
    else {
        return Some(linking);
    };
    let value = |tag: elf::DynamicTag| {
        dynamic.iter().find(|entry| entry.d_tag(endian) == tag).map(|entry| entry.d_val(endian))
    };
    let strings = bytes_at(segments, endian, data, value(elf::DT_STRTAB)?)?;
    let text = |offset: u64| {
        let rest = strings.get(usize::try_from(offset).ok()?..)?;
        std::str::from_utf8(rest.split(|&byte| byte == 0).next()?).ok().map(str::to_owned)
    };
    for entry in dynamic {
        match entry.d_tag(endian) {
            elf::DT_NULL => break,
            elf::DT_NEEDED => linking.needed.push(text(entry.d_val(endian))?),
            elf::DT_RPATH | elf::DT_RUNPATH => {
                let list = text(entry.d_val(endian))?;
                linking.folders.extend(list.split(':').filter_map(|folder| resolve_origin(folder, origin)));
            }
            _ => {}
        }
    }
    Some(linking)
}

/// The bytes of the file from a virtual address to its segment's end.
fn bytes_at<'d>(
    segments: &[elf::ProgramHeader64<Endianness>],
    endian: Endianness,
    data: &'d [u8],
    address: u64,
) -> Option<&'d [u8]> {
    segments.iter().filter(|segment| segment.p_type(endian) == elf::PT_LOAD).find_map(|segment| {
        let into = address.checked_sub(segment.p_vaddr(endian))?;
        segment.data(endian, data).ok()?.get(usize::try_from(into).ok()?..).filter(|rest| !rest.is_empty())
    })
}

fn resolve_origin(folder: &str, origin: &Path) -> Option<PathBuf> {
    let origin = origin.to_str()?;
    let path = PathBuf::from(folder.replace("${ORIGIN}", origin).replace("$ORIGIN", origin));
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(clean.pop()),
            Component::CurDir => {}
            part => clean.push(part),
        }
    }
    clean.is_absolute().then_some(clean)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_program_of_this_host_needs_its_interpreter_and_the_c_library() {
        let needs = needs(&fs::canonicalize("/bin/cat").unwrap()).unwrap();
        let names: Vec<_> =
            needs.files.keys().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
        assert!(names.contains(&"libc.so.6"), "{names:?}");
        assert!(names.iter().any(|name| name.starts_with("ld-linux")), "{names:?}");
        assert!(needs.files.values().all(|file| file.is_file()));
    }

    #[test]
    fn origins_are_resolved() {
        let origin = Path::new("/opt/x/bin");
        assert_eq!(resolve_origin("$ORIGIN/../lib", origin), Some("/opt/x/lib".into()));
        assert_eq!(resolve_origin("${ORIGIN}", origin), Some("/opt/x/bin".into()));
        assert_eq!(resolve_origin("lib", origin), None);
    }

    #[test]
    fn what_is_no_program_is_refused() {
        assert!(needs(Path::new("/etc/passwd")).unwrap_err().contains("no 64-bit x86 ELF"));
        assert_eq!(parse(b"\x7fELF", Path::new("/")), None);
    }

    proptest! {
        #[test]
        fn a_damaged_program_is_read_or_refused(at in 0_usize..4096, bytes in proptest::collection::vec(any::<u8>(), 1..64)) {
            let mut data = fs::read("/bin/cat").unwrap();
            data[at..at + bytes.len()].copy_from_slice(&bytes);
            let _ = parse(&data, Path::new("/"));
        }
    }
}
