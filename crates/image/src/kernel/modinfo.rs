//! What a kernel module says of itself, in the section `.modinfo`: `key=value` strings, each ended by NUL.

use object::{Object, ObjectSection};

use super::ModuleError;

/// The attributes that deciding what to load takes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ModInfo {
    /// The name that the kernel knows the module by.
    pub name: Option<String>,
    /// Modules that must be loaded before.
    pub depends: Vec<String>,
    /// Modules that should be loaded before, if there are any of these names.
    pub soft_depends: Vec<String>,
    /// Other names of the module.
    pub aliases: Vec<String>,
}

impl ModInfo {
    /// Reads the attributes of a module, an ELF object file.
    pub fn of(module: &[u8]) -> Result<ModInfo, ModuleError> {
        let file = object::File::parse(module).map_err(ModuleError::Elf)?;
        let section = file.section_by_name(".modinfo").ok_or(ModuleError::NoModInfo)?;
        Ok(ModInfo::parse(section.data().map_err(ModuleError::Elf)?))
    }

    /// Reads the contents of `.modinfo`.
    pub fn parse(section: &[u8]) -> ModInfo {
        let mut info = ModInfo::default();
        for attribute in section.split(|&byte| byte == 0) {
            let Some((key, value)) =
                std::str::from_utf8(attribute).ok().and_then(|text| text.split_once('='))
            else {
                continue;
            };
            match key {
                "name" => info.name = Some(module_name(value)),
                "depends" => {
                    let names = value.split(',').filter(|name| !name.is_empty());
                    info.depends.extend(names.map(module_name));
                }
                "softdep" => info.soft_depends.extend(soft_before(value)),
                "alias" => info.aliases.push(value.to_owned()),
                _ => {}
            }
        }
        info
    }
}

/// The modules before: `pre: a b post: c`.
fn soft_before(value: &str) -> impl Iterator<Item = String> {
    let mut is_before = false;
    value.split_whitespace().filter_map(move |word| {
        match word {
            "pre:" => is_before = true,
            "post:" => is_before = false,
            name if is_before => return Some(module_name(name)),
            _ => {}
        }
        None
    })
}

/// The one spelling of a module's name: file names and attributes mix `-` and `_`.
pub(super) fn module_name(name: &str) -> String {
    name.trim().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn attributes() {
        let info = ModInfo::parse(
            b"license=GPL\0\0alias=fs-x\0depends=virtio,virtio-ring\0softdep=pre: crc32c a-b post: c\0name=virtio-x\0",
        );
        assert_eq!(info.name.as_deref(), Some("virtio_x"));
        assert_eq!(info.depends, ["virtio", "virtio_ring"]);
        assert_eq!(info.soft_depends, ["crc32c", "a_b"]);
        assert_eq!(info.aliases, ["fs-x"]);
        assert_eq!(ModInfo::parse(b"depends=\0"), ModInfo::default());
    }

    #[test]
    fn what_is_no_module_is_refused() {
        assert!(matches!(ModInfo::of(b""), Err(ModuleError::Elf(_))));
        assert!(matches!(ModInfo::of(b"#!/bin/sh\n"), Err(ModuleError::Elf(_))));
        let mut header = vec![0u8; 64];
        header[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        (header[16], header[18], header[20], header[52]) = (1, 62, 1, 64);
        assert!(ModInfo::of(&header).is_err());
    }

    proptest! {
        #[test]
        fn any_section_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = ModInfo::parse(&bytes);
            let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
            elf.extend(bytes);
            let _ = ModInfo::of(&elf);
        }
    }
}
