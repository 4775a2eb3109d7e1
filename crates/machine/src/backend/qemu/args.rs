//! QEMU's command line. It holds no command and no secret: the agent is configured over the link.

use crate::disks;
use crate::spec::{Accelerator, Spec};
use casemate_proto::mount::Kind;
use std::os::fd::RawFd;

/// Translated code of a guest in emulation, in MiB: with 32 a Node server starts half as fast, more than
/// 64 only costs memory.
const TRANSLATION_CACHE_MB: u32 = 64;

/// Descriptor sets: 1 is KVM's.
const INCOMING_SET: u32 = 2;
const OUTGOING_SET: u32 = 3;
/// And those after it.
const FIRST_VOLUME_SET: u32 = 4;

/// What the state of devices is read from.
pub(super) fn incoming_uri() -> String {
    format!("file:/dev/fdset/{INCOMING_SET}")
}

/// What the state of devices is written to.
pub(super) fn outgoing_path() -> String {
    format!("/dev/fdset/{OUTGOING_SET}")
}

/// Descriptors that QEMU inherits, by number.
#[derive(Debug, Clone, Copy)]
pub(super) struct Descriptors<'a> {
    pub memory: RawFd,
    /// Whether the memory is a template's: read, and written to nowhere but in this VMM.
    pub memory_is_template: bool,
    /// The state of devices to begin with, where the machine does not boot.
    pub incoming: Option<RawFd>,
    /// Where the state of devices is written to, should the machine become a template or be suspended.
    pub outgoing: RawFd,
    pub kernel: RawFd,
    pub initramfs: RawFd,
    pub root: Option<RawFd>,
    pub overlay: Option<RawFd>,
    /// Images of folders, to be read.
    pub folders: &'a [RawFd],
    pub volumes: &'a [RawFd],
    pub monitor: RawFd,
    pub console: RawFd,
    pub link: RawFd,
    pub kvm: Option<RawFd>,
}

/// The arguments after the program's name. A kernel that boots in emulation is told the frequency of the counter.
pub(super) fn build(spec: &Spec, fds: &Descriptors<'_>, tsc_khz: Option<u64>) -> Vec<String> {
    let mut args = Vec::new();
    let mut option = |name: &str, value: String| args.extend([name.to_owned(), value]);
    let file = |fd: RawFd| format!("/proc/self/fd/{fd}");
    let memory_mb = spec.resources.memory_mb;

    // With a clock of the day: without one the kernel waits a second for it. Without PIC and PIT: the guest's ACPI tables declare neither, its kernel sets up neither, and an
    // interrupt of the timer that arrives at the unprogrammed controller is a division by zero to it.
    option(
        "-M",
        "microvm,acpi=on,pic=off,pit=off,rtc=on,suppress-vmdesc=on,memory-backend=memory".to_owned(),
    );
    match spec.accelerator {
        Some(Accelerator::Kvm) => {
            // The VMM's user may not open the device; it gets it opened.
            if let Some(kvm) = fds.kvm {
                option("-add-fd", format!("fd={kvm},set=1"));
            }
            option("-accel", "kvm,device=/dev/fdset/1".to_owned());
            option("-cpu", "host".to_owned());
        }
        Some(Accelerator::Tcg) | None => {
            option("-accel", format!("tcg,thread=multi,tb-size={TRANSLATION_CACHE_MB}"));
            let cpu = if spec.resources.full_cpu { FULL_CPU_IN_EMULATION } else { CPU_IN_EMULATION };
            option("-cpu", cpu.to_owned());
        }
    }
    option("-smp", spec.resources.vcpus.to_string());
    option("-m", format!("{memory_mb}M"));
    let sharing = if fds.memory_is_template { "share=off,readonly=on,rom=off" } else { "share=on" };
    option(
        "-object",
        format!("memory-backend-file,id=memory,mem-path={},size={memory_mb}M,{sharing}", file(fds.memory)),
    );
    // QEMU opens files of a descriptor set by what they were opened for.
    option("-add-fd", format!("fd={},set={OUTGOING_SET}", fds.outgoing));
    if let Some(incoming) = fds.incoming {
        option("-add-fd", format!("fd={incoming},set={INCOMING_SET}"));
        option("-incoming", "defer".to_owned());
        // The state is that of devices alone, which QEMU writes without its configuration.
        option("-global", "migration.send-configuration=off".to_owned());
    }
    args.extend(["-nodefaults", "-no-user-config", "-no-reboot"].map(str::to_owned));
    if fds.incoming.is_some() {
        args.push("-S".to_owned());
    }
    let mut option = |name: &str, value: String| args.extend([name.to_owned(), value]);
    option("-display", "none".to_owned());
    // Nothing that a VMM in the guest's hands could start or become.
    option("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".to_owned());

    option("-kernel", file(fds.kernel));
    option("-initrd", file(fds.initramfs));
    if fds.incoming.is_none() {
        option("-append", kernel_command_line(tsc_khz));
    }

    for (id, fd, read_only) in [("root", fds.root, true), ("overlay", fds.overlay, false)]
        .into_iter()
        .filter_map(|(id, fd, ro)| Some((id, fd?, ro)))
    {
        let mode = if read_only { "on" } else { "off" };
        option(
            "-drive",
            format!("id={id},if=none,format=raw,file.locking=off,readonly={mode},file={}", file(fd)),
        );
        option("-device", format!("virtio-blk-device,drive={id},serial=casemate-{id}"));
    }
    for (number, &fd) in fds.folders.iter().enumerate() {
        let (drive, serial) = (format!("folder{number}"), disks::serial(Kind::Folder, number));
        option(
            "-drive",
            format!("id={drive},if=none,format=raw,file.locking=off,readonly=on,file={}", file(fd)),
        );
        option("-device", format!("virtio-blk-device,drive={drive},serial={serial}"));
    }
    for (set, (number, &fd)) in (FIRST_VOLUME_SET..).zip(fds.volumes.iter().enumerate()) {
        let (drive, serial) = (format!("volume{number}"), disks::serial(Kind::Volume, number));
        // By a set: the VMM's user may not open the file a second time. What is removed in it makes room on the
        // host.
        option("-add-fd", format!("fd={fd},set={set}"));
        option(
            "-drive",
            format!(
                "id={drive},if=none,format=raw,file.locking=off,readonly=off,auto-read-only=off,discard=unmap,\
                 file=/dev/fdset/{set}"
            ),
        );
        // A host whose disk is full gives the guest an error, and does not stop it.
        option(
            "-device",
            format!("virtio-blk-device,drive={drive},serial={serial},werror=report,rerror=report"),
        );
    }
    option("-device", "virtio-serial-device,max_ports=2".to_owned());
    option("-chardev", format!("socket,id=link,fd={}", fds.link));
    option("-device", "virtserialport,chardev=link,name=casemate.link".to_owned());

    option("-chardev", format!("socket,id=console,fd={}", fds.console));
    option("-serial", "chardev:console".to_owned());
    option("-chardev", format!("socket,id=monitor,fd={}", fds.monitor));
    option("-mon", "chardev=monitor,mode=control".to_owned());
    args
}

/// QEMU's own model has no SSE3 and later, which Python wheels and Node are built for. With AVX a restored Node
/// server takes a third longer to answer: programs that look for it use it for every string that they copy,
/// and each such instruction is emulated by a call. Page tables of five levels are one level more to walk.
const CPU_IN_EMULATION: &str = "max,-avx,-avx2,-f16c,-fma,-vaes,-vpclmulqdq,-la57";

/// Everything that QEMU can emulate, for programs that do without nothing.
const FULL_CPU_IN_EMULATION: &str = "max";

/// With the frequency of the counter the kernel is one in emulation.
fn kernel_command_line(tsc_khz: Option<u64>) -> String {
    // Joining a control group waits for all processors to pass through the kernel's idle state, 16 ms, unless
    // they are told to (`rcu_expedited`).
    let mut line = "console=ttyS0 quiet reboot=t panic=-1 rdinit=/init rcupdate.rcu_expedited=1".to_owned();
    if let Some(khz) = tsc_khz {
        // The counter jumps when a clone goes on: a kernel that does not rely on it (`tsc=reliable`) finds it
        // faulty then, and ticks 250 times a second for ever. `lpj` and `no_timer_check` keep the kernel from
        // waiting for timer ticks that a busy host serves late. An emulated processor has none of the faults
        // that `mitigations` are against. Testing cryptography and patching locks took a fifth of the boot.
        line += &format!(
            " tsc_early_khz={khz} tsc=reliable lpj=4000000 no_timer_check mitigations=off \
             cryptomgr.notests noreplace-smp"
        );
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{BackendKind, Resources};
    use std::path::PathBuf;

    #[test]
    fn there_is_no_network_device_and_no_spawning() {
        let spec = Spec {
            accelerator: Some(Accelerator::Tcg),
            resources: Resources { memory_mb: 300, vcpus: 2, full_cpu: false },
            ..Spec::bare("m".parse().unwrap(), BackendKind::Qemu, PathBuf::from("/k"), PathBuf::from("/i"))
        };
        let fds = Descriptors {
            memory: 10,
            memory_is_template: false,
            incoming: None,
            outgoing: 17,
            kernel: 11,
            initramfs: 12,
            root: Some(13),
            overlay: None,
            folders: &[17],
            volumes: &[18, 19],
            monitor: 14,
            console: 15,
            link: 16,
            kvm: None,
        };
        let line = build(&spec, &fds, Some(2_000_000)).join(" ");
        assert!(!line.contains("net"), "{line}");
        for expected in [
            "spawn=deny",
            "-smp 2",
            "-m 300M",
            "readonly=on,file=/proc/self/fd/13",
            "readonly=on,file=/proc/self/fd/17",
            "-add-fd fd=19,set=5",
            "file=/dev/fdset/5",
            "serial=casemate-volume-1",
            "-nodefaults",
        ] {
            assert!(line.contains(expected), "no {expected} in {line}");
        }
    }
}
