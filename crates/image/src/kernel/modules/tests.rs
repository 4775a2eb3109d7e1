use std::io::Write;

use proptest::prelude::*;

use super::*;

/// A relocatable ELF object for x86-64 with nothing but `.modinfo`.
fn module(attributes: &[&str]) -> Vec<u8> {
    module_with(attributes, &[])
}

/// The same with further sections.
pub(in crate::kernel) fn module_with(attributes: &[&str], more: &[(&str, &[u8])]) -> Vec<u8> {
    let info: Vec<u8> = attributes.iter().flat_map(|text| text.bytes().chain([0])).collect();
    let mut sections: Vec<(&str, &[u8])> = vec![(".modinfo", &info)];
    sections.extend(more);
    let mut names = vec![0];
    let mut name_offsets = Vec::new();
    for name in sections.iter().map(|(name, _)| *name).chain([".shstrtab"]) {
        name_offsets.push(names.len() as u32);
        names.extend(name.bytes().chain([0]));
    }
    let names_copy = names.clone();
    sections.push((".shstrtab", &names_copy));

    let mut elf = vec![0; 64];
    let mut table = vec![0; 64];
    for ((name, data), name_offset) in sections.iter().zip(name_offsets) {
        let kind = if *name == ".shstrtab" { 3u32 } else { 1 };
        table.extend(name_offset.to_le_bytes());
        table.extend(kind.to_le_bytes());
        // Flags, address, offset, size, link and info, alignment, entry size.
        for wide in [0, 0, elf.len() as u64, data.len() as u64, 0, 1, 0] {
            table.extend(wide.to_le_bytes());
        }
        elf.extend_from_slice(data);
    }
    elf.resize(elf.len().next_multiple_of(8), 0);
    let table_at = elf.len() as u64;
    elf.extend(table);
    let count = sections.len() as u16 + 1;
    let mut header = b"\x7fELF\x02\x01\x01".to_vec();
    header.resize(16, 0);
    header.extend([1, 0, 62, 0, 1, 0, 0, 0]);
    for wide in [0u64, 0, table_at] {
        header.extend(wide.to_le_bytes());
    }
    header.extend(0u32.to_le_bytes());
    for half in [64u16, 0, 0, 64, count, count - 1] {
        header.extend(half.to_le_bytes());
    }
    elf[..64].copy_from_slice(&header);
    elf
}

fn folder(files: &[(&str, Vec<u8>)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    folder
}

/// All modules that a machine needs at boot, scattered and compressed in every way.
fn boot_files() -> Vec<(&'static str, Vec<u8>)> {
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(&module(&["depends=virtio,virtio_ring", "name=virtio_mmio"])).unwrap();
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 0);
    xz.write_all(&module(&["depends=virtio", "name=virtio_blk"])).unwrap();
    let zst = zstd::encode_all(&module(&["depends=libcrc32c", "name=erofs"])[..], 1).unwrap();
    vec![
        ("kernel/drivers/virtio/virtio.ko", module(&["depends=virtio_ring", "name=virtio"])),
        ("kernel/drivers/virtio/virtio_ring.ko", module(&["depends=", "name=virtio_ring"])),
        ("kernel/drivers/virtio/virtio_mmio.ko.gz", gz.finish().unwrap()),
        ("kernel/drivers/block/virtio_blk.ko.xz", xz.finish().unwrap()),
        ("kernel/fs/erofs/erofs.ko.zst", zst),
        ("kernel/lib/libcrc32c.ko", module(&["depends=", "softdep=pre: crc32c"])),
        ("kernel/arch/x86/crypto/crc32c-intel.ko", module(&["alias=crypto-crc32c", "alias=crc32c"])),
        ("kernel/crypto/crc32c_generic.ko", module(&["alias=crypto-crc32c"])),
        ("modules.builtin", b"kernel/drivers/char/virtio_console.ko\n".to_vec()),
    ]
}

fn order(selection: &Selection) -> Vec<&str> {
    selection.order.iter().map(|(_, file)| file.as_str()).collect()
}

#[test]
fn the_boot_set_comes_in_order_whatever_the_compression() {
    let selection = select(folder(&boot_files()).path()).unwrap();
    let expected = [
        "virtio_ring.ko",
        "virtio.ko",
        "virtio_mmio.ko",
        "virtio_blk.ko",
        "crc32c_generic.ko",
        "libcrc32c.ko",
        "erofs.ko",
    ];
    assert_eq!(order(&selection), expected);
    assert!(selection.order.iter().all(|(set, _)| set == "boot"));
    assert!(selection.modules.iter().all(|module| module.bytes.starts_with(b"\x7fELF")));
    assert_eq!(selection.modules.len(), expected.len());
    assert!(selection.order_file().starts_with("boot /modules/virtio_ring.ko\nboot /modules/virtio.ko\n"));
    let missing: Vec<_> =
        selection.unavailable.iter().map(|(set, name)| (set.as_str(), name.as_str())).collect();
    assert_eq!(missing, [("vsock", "vsock"), ("overlay", "overlay"), ("netem", "sch_netem")]);
}

#[test]
fn lazy_sets_do_not_repeat_the_boot_set() {
    let mut files = boot_files();
    files.push(("o/overlay.ko", module(&["depends=virtio,virtio_ring"])));
    files.push(("e/ext4.ko", module(&[])));
    files.push(("v/vsock.ko", module(&[])));
    files.push(("v/vmw_vsock_virtio_transport.ko", module(&["depends=vsock,common_part"])));
    files.push(("v/common-part.ko", module(&["depends=vsock"])));
    let selection = select(folder(&files).path()).unwrap();
    let lazy: Vec<_> = selection.order.iter().filter(|(set, _)| set != "boot").collect();
    let lazy: Vec<_> = lazy.iter().map(|(set, file)| format!("{set} {file}")).collect();
    assert_eq!(
        lazy,
        [
            "lazy:vsock vsock.ko",
            "lazy:vsock common_part.ko",
            "lazy:vsock vmw_vsock_virtio_transport.ko",
            "lazy:overlay overlay.ko",
            "lazy:overlay ext4.ko",
        ]
    );
}

#[test]
fn a_missing_module_of_the_boot_set_is_named() {
    let files: Vec<_> = boot_files().into_iter().filter(|(name, _)| !name.contains("virtio_ring")).collect();
    let error = select(folder(&files).path()).unwrap_err();
    assert!(matches!(error, ModuleError::Missing { name, .. } if name == "virtio_ring"));
}

#[test]
fn modules_that_need_each_other_are_refused() {
    let mut files = boot_files();
    files[1].1 = module(&["depends=virtio"]);
    assert!(matches!(select(folder(&files).path()), Err(ModuleError::Cycle { .. })));
}

#[test]
fn damaged_modules_are_refused() {
    for bytes in [Vec::new(), b"text".to_vec(), module(&[])[..80].to_vec(), vec![0x1f, 0x8b, 8]] {
        let mut files = boot_files();
        files[1].1 = bytes;
        assert!(select(folder(&files).path()).is_err());
    }
}

#[test]
fn links_in_the_folder_are_not_followed() {
    let files = boot_files();
    let outside = folder(&files[1..2]);
    let inside =
        folder(&files.into_iter().filter(|(name, _)| !name.contains("virtio_ring")).collect::<Vec<_>>());
    std::os::unix::fs::symlink(outside.path(), inside.path().join("build")).unwrap();
    assert!(matches!(select(inside.path()), Err(ModuleError::Missing { .. })));
}

#[test]
fn names_of_files() {
    for (path, name) in [
        ("a/virtio-rng.ko", Some("virtio_rng")),
        ("x.ko.zst", Some("x")),
        (".ko", None),
        ("x.ko.bz2", None),
        ("x y.ko", None),
        ("modules.order", None),
    ] {
        assert_eq!(name_of_file(Path::new(path)).as_deref(), name, "{path}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_module_comes_after_what_it_needs(edges in proptest::collection::vec((0usize..8, 0usize..8), 0..16)) {
        // Edges point from higher to lower numbers only, so there is no cycle.
        let needs = |n: usize| -> Vec<usize> {
            edges.iter().map(|&(a, b)| (a.max(b), a.min(b))).filter(|&(a, b)| a == n && b != n).map(|(_, b)| b).collect()
        };
        let files: Vec<_> = (0..8).map(|n| {
            let depends = needs(n).iter().map(|m| format!("m{m}")).collect::<Vec<_>>().join(",");
            (["m0.ko", "m1.ko", "m2.ko", "m3.ko", "m4.ko", "m5.ko", "m6.ko", "m7.ko"][n], module(&[&format!("depends={depends}")]))
        }).collect();
        let home = folder(&files);
        let library = Library::open(home.path()).unwrap();
        let mut resolver = Resolver { library: &library, loaded: HashMap::new() };
        let order = resolver.closure(&["m7", "m3", "m5"]).unwrap();
        for (at, name) in order.iter().enumerate() {
            for needed in needs(name[1..].parse().unwrap()) {
                let needed = format!("m{needed}");
                prop_assert!(order[..at].contains(&needed));
            }
            prop_assert!(!order[..at].contains(name));
        }
    }
}
