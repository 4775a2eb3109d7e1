//! Bare QEMU: casemate's kernel and options, and the shortest userspace there can be.

use crate::{bench::Bench, cpio, failure::Failure, process, results::Samples};
use std::{fs, path::Path, process::Command, time::Duration};

/// Its source; built with the host's C compiler, without a C library.
const INIT: &str = include_str!("../../assets/init.c");

/// What it says; the terminal ends its line in its own way.
const MARKER: &[u8] = b"casemate-bench: userspace";

const COMPILING: Duration = Duration::from_secs(60);

pub fn measure(bench: &Bench, samples: &mut Samples<'_>) -> Result<(), Failure> {
    let folder = bench.layout.root().join("floor");
    let initramfs = folder.join("initramfs.cpio");
    if !initramfs.exists() {
        build(&folder, &initramfs)?;
    }
    let (userspace, ended) = bench.blueprint()?.boot(&initramfs, MARKER)?;
    samples.time("userspace", userspace);
    samples.time("ended", ended);
    Ok(())
}

fn build(folder: &Path, initramfs: &Path) -> Result<(), Failure> {
    fs::create_dir_all(folder).map_err(Failure::file("make the folder", folder))?;
    let (source, init) = (folder.join("init.c"), folder.join("init"));
    fs::write(&source, INIT).map_err(Failure::file("write", &source))?;
    let mut compile = Command::new(process::find("cc")?);
    compile.args(["-Os", "-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-fno-pie"]);
    compile.args(["-no-pie", "-Wl,--build-id=none", "-o"]).arg(&init).arg(&source);
    process::run(&mut compile, COMPILING)?;
    let program = fs::read(&init).map_err(Failure::file("read", &init))?;
    fs::write(initramfs, cpio::with_init(&program)).map_err(Failure::file("write", initramfs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_init_is_built_into_an_initramfs() {
        let folder = tempfile::tempdir().unwrap();
        let initramfs = folder.path().join("initramfs.cpio");
        build(folder.path(), &initramfs).unwrap();
        let archive = fs::read(initramfs).unwrap();
        assert!(archive.starts_with(b"070701"));
        assert!(archive.windows(MARKER.len()).any(|part| part == MARKER), "the init says the marker");
    }
}
