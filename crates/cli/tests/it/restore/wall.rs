//! A template's memory cannot be written by those who map it.

use crate::{
    home::Home,
    live::{launch, process, template},
};
use casemate_machine::backend::qemu::confine::{Confinement, vmm_uid};
use casemate_proto::ids::Cid;
use std::{
    fs::{self, File},
    os::{fd::AsRawFd, unix::fs::PermissionsExt},
    path::Path,
    process::{Command, Stdio},
};

/// Tries to change a file that it was given as a VMM is given memory. Perl is part of every Debian.
const INTRUDER: &str = r#"
my ($path, $number) = @ARGV;
sub attempt { my ($name, $done) = @_; print "$name ", ($done ? "yes" : "no"), "\n"; }
sub can_open { my ($mode, $path) = @_; my $ok = open(my $fh, $mode, $path); close $fh if $ok; return $ok; }
open(my $given, "<&=", $number) or die;
my $byte;
attempt("read", sysread($given, $byte, 1) == 1);
attempt("open-descriptor-to-write", can_open("+<", "/proc/self/fd/$number"));
attempt("open-path-to-write", can_open("+<", $path));
open(my $writable, "+<&=", $number);
attempt("write-descriptor", defined(syswrite($writable, "x", 1)));
attempt("truncate", truncate($given, 0));
attempt("change-mode", chmod(0666, $path) == 1 || chmod(0666, "/proc/self/fd/$number") == 1);
"#;

fn intrude(memory: &Path, confine: impl FnOnce(&mut Command, File)) -> Vec<String> {
    let opened = File::open(memory).unwrap();
    let mut command = Command::new("perl");
    command.args(["-e", INTRUDER]).arg(memory).arg(opened.as_raw_fd().to_string());
    confine(&mut command, opened);
    let output = command.env("PATH", "/usr/bin:/bin").stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text.lines().filter_map(|line| line.strip_suffix(" yes")).map(str::to_owned).collect()
}

#[test]
fn a_vmm_in_a_guests_hands_can_read_its_template_and_not_change_it() {
    let home = Home::new();
    let record = launch(&home, "m", &[]);
    let memory = template(&home).join("memory");
    assert_eq!(fs::metadata(&memory).unwrap().permissions().mode() & 0o777, 0o444);
    let before = blake3::hash(&fs::read(&memory).unwrap());

    // The real one has it open to read, and maps it for itself.
    let vmm = process(&record, "pid");
    let mut descriptors = 0;
    for entry in fs::read_dir(format!("/proc/{vmm}/fd")).unwrap().flatten() {
        if fs::read_link(entry.path()).is_ok_and(|target| target == memory) {
            let number = entry.file_name().into_string().unwrap();
            let info = fs::read_to_string(format!("/proc/{vmm}/fdinfo/{number}")).unwrap();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
            assert_eq!(u32::from_str_radix(flags.trim(), 8).unwrap() & 0b11, 0, "{info}");
            descriptors += 1;
        }
    }
    let maps = fs::read_to_string(format!("/proc/{vmm}/maps")).unwrap();
    let mapped: Vec<&str> = maps.lines().filter(|line| line.ends_with(memory.to_str().unwrap())).collect();
    let is_private = |line: &str| line.split_whitespace().nth(1).is_some_and(|access| access.ends_with('p'));
    assert!(!mapped.is_empty() && mapped.iter().all(|line| is_private(line)), "{descriptors} {mapped:?}");

    // One that a guest has taken over.
    let library = casemate_machine::Home::open(home.path()).unwrap();
    let uid = vmm_uid(&library, Cid(200));
    let did = intrude(&memory, |command, memory| {
        Confinement { uid, without_huge_pages: true, readable: vec![memory], inherit: vec![] }
            .apply(command)
            .unwrap();
    });
    assert_eq!(did, ["read"]);
    assert_eq!(blake3::hash(&fs::read(&memory).unwrap()), before);

    // Without the barrier it changes its mode, and as root writes.
    let copy = home.path().join("copy");
    fs::copy(&memory, &copy).unwrap();
    let did = intrude(&copy, |_, memory| {
        rustix::io::fcntl_setfd(&memory, rustix::io::FdFlags::empty()).unwrap();
        std::mem::forget(memory);
    });
    assert!(did.len() > 2, "the test proves nothing: {did:?}");
}
