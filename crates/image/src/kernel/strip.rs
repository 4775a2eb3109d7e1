//! Takes debug information out of kernel modules, which makes some of them ten times as large, and tables that
//! only tracers and traces of the stack read.

use object::elf::{FileHeader64, SHT_NOBITS, SHT_NULL, SectionFlags, SectionHeader64};
use object::read::elf::{FileHeader as _, SectionHeader as _};
use object::{LittleEndian as LE, U32, U64, pod};

use super::ModuleError;

/// How sections are aligned in the file. What they ask for is about memory, where the kernel copies them.
const ALIGNMENT: usize = 16;

/// Types for BPF, tables for unwinding the stack, and where functions can be traced. In emulation the kernel takes
/// a quarter of a module's loading time to sort and check them. Functions keep their calls of a tracer, which
/// returns at once: sorting out what to overwrite costs more than a short life calls.
const TABLES: [&[u8]; 4] = [b".BTF", b".orc_unwind", b".orc_unwind_ip", b"__mcount_loc"];

/// The module without its debug sections; the same bytes if it has none.
pub(super) fn without_debug(module: Vec<u8>) -> Result<Vec<u8>, ModuleError> {
    without(module, |name| name.starts_with(b".debug_"))
}

/// The module without what only tracers and traces of the stack read. Not for kernels that insist on signatures.
pub(super) fn without_tables(module: Vec<u8>) -> Result<Vec<u8>, ModuleError> {
    without(module, |name| TABLES.contains(&name))
}

/// The module without some sections and their relocations; the same bytes if it has none of them.
///
/// The sections keep their numbers, so that symbols and relocations need no change: removed ones become
/// empty. A signature at the end of the file, which would no longer be right, is lost.
fn without(module: Vec<u8>, unwanted: impl Fn(&[u8]) -> bool) -> Result<Vec<u8>, ModuleError> {
    let header = FileHeader64::<LE>::parse(&*module).map_err(ModuleError::Elf)?;
    let sections = header.sections(LE, &*module).map_err(ModuleError::Elf)?;
    let is_unwanted = |section: &SectionHeader64<LE>| {
        let name = sections.section_name(LE, section).unwrap_or_default();
        unwanted(name.strip_prefix(b".rela").unwrap_or(name))
    };
    if !sections.iter().any(is_unwanted) {
        return Ok(module);
    }
    let mut header = *header;
    let mut stripped = vec![0; size_of::<FileHeader64<LE>>()];
    let mut table = Vec::new();
    let mut kept = 0;
    for section in sections.iter() {
        let mut entry = *section;
        if is_unwanted(section) {
            entry.sh_type = U32::new(LE, SHT_NULL);
            entry.sh_size = U64::new(LE, 0);
            entry.sh_flags = U64::new(LE, SectionFlags(0));
        }
        if entry.sh_type(LE) != SHT_NULL && entry.sh_type(LE) != SHT_NOBITS {
            let data = section.data(LE, &*module).map_err(ModuleError::Elf)?;
            kept += data.len();
            if kept > module.len() {
                return Err(ModuleError::Overlap);
            }
            stripped.resize(stripped.len().next_multiple_of(ALIGNMENT), 0);
            entry.sh_offset = U64::new(LE, stripped.len() as u64);
            stripped.extend_from_slice(data);
        }
        table.push(entry);
    }
    stripped.resize(stripped.len().next_multiple_of(ALIGNMENT), 0);
    header.e_shoff = U64::new(LE, stripped.len() as u64);
    stripped.extend_from_slice(pod::bytes_of_slice(&table));
    stripped[..size_of::<FileHeader64<LE>>()].copy_from_slice(pod::bytes_of(&header));
    Ok(stripped)
}

#[cfg(test)]
mod tests {
    use object::{Object, ObjectSection};
    use proptest::prelude::*;

    use super::*;
    use crate::kernel::modinfo::ModInfo;
    use crate::kernel::modules::tests::module_with;

    fn sections(module: &[u8]) -> Vec<(String, Vec<u8>)> {
        let file = object::File::parse(module).unwrap();
        let sections = file.sections();
        sections.map(|s| (s.name().unwrap().to_owned(), s.data().unwrap().to_vec())).collect()
    }

    #[test]
    fn debug_sections_become_empty_and_the_others_stay() {
        let debug = vec![7; 5000];
        let whole = module_with(&["depends=a"], &[(".debug_info", &debug), (".data", b"kept")]);
        let stripped = without_debug(whole.clone()).unwrap();
        assert!(stripped.len() < whole.len() - 4900);
        assert_eq!(ModInfo::of(&stripped).unwrap().depends, ["a"]);
        let of = |module: &[u8], name: &str| {
            sections(module).into_iter().find(|(found, _)| found == name).map(|(_, data)| data)
        };
        assert_eq!(of(&stripped, ".data").unwrap(), b"kept");
        assert_eq!(of(&stripped, ".debug_info").unwrap_or_default(), b"");
        assert_eq!(sections(&stripped).len(), sections(&whole).len(), "every section keeps its number");
    }

    #[test]
    fn what_has_no_debug_sections_stays_as_it_is() {
        let mut signed = module_with(&["name=x"], &[(".data", b"1")]);
        signed.extend(b"~Module signature appended~\n");
        assert_eq!(without_debug(signed.clone()).unwrap(), signed);
    }

    #[test]
    fn tables_for_tracing_go_with_their_relocations() {
        let gone = [".orc_unwind_ip", ".rela.orc_unwind_ip", "__mcount_loc", ".rela__mcount_loc", ".BTF"];
        let kept = [".BTF_ids", ".rela.text", ".symtab.x", "__versions", ".return_sites", ".rela"];
        let all: Vec<(&str, &[u8])> = gone.iter().chain(&kept).map(|&name| (name, name.as_bytes())).collect();
        let whole = module_with(&["name=x"], &all);
        let left = sections(&without_tables(whole.clone()).unwrap());
        let holds = |name: &str| left.iter().any(|(_, data)| data == name.as_bytes());
        assert!(kept.iter().all(|name| holds(name)) && !gone.iter().any(|name| holds(name)), "{left:?}");
        assert_eq!(without_debug(whole.clone()).unwrap(), whole);
    }

    proptest! {
        #[test]
        fn a_damaged_module_never_grows(position in 0usize..600, value: u8, second in 0usize..600, other: u8) {
            let mut module = module_with(&["name=x"], &[(".debug_info", b"12345678"), (".data", b"1")]);
            let length = module.len();
            module[position % length] = value;
            module[second % length] = other;
            if let Ok(stripped) = without_debug(module) {
                prop_assert!(stripped.len() <= length + 16 * 300);
            }
        }
    }
}
