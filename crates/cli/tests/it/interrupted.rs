//! Signals to commands that work long, and commands that wait for others.

use crate::{
    home::Home,
    support::{eventually, signal},
};
use rustix::process::Signal;
use std::{
    fs::{self, File},
    path::Path,
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

/// By when a command that was interrupted has ended, on a busy host.
const SOON: Duration = Duration::from_secs(20);

/// A volume with a file of so many bytes, all of them holes, as a server may have written it.
fn volume_of_holes(home: &Home, bytes: u64) {
    let folder = tempfile::tempdir().unwrap();
    File::create(folder.path().join("holes")).unwrap().set_len(bytes).unwrap();
    let volume = home.path().join("volumes/notes");
    fs::create_dir_all(&volume).unwrap();
    let image = volume.join("volume.ext4");
    File::create(&image).unwrap().set_len(1 << 30).unwrap();
    let made = Command::new("/usr/sbin/mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-O", "^orphan_file", "-d"])
        .args([folder.path(), &image])
        .status();
    assert!(made.unwrap().success());
}

fn names(folder: &Path) -> Vec<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// How a command ends that is interrupted now; it would go on for much longer.
fn interrupt(mut child: Child) -> Option<i32> {
    signal(child.id(), Signal::INT);
    let until = Instant::now() + SOON;
    while child.try_wait().unwrap().is_none() && Instant::now() < until {
        thread::sleep(Duration::from_millis(5));
    }
    // One that goes on is not left behind.
    let _ = child.kill();
    child.wait().unwrap().code()
}

#[test]
fn an_export_that_is_interrupted_ends_at_once_and_leaves_nothing() {
    let home = Home::isolated();
    volume_of_holes(&home, 15 << 30);
    let to = tempfile::tempdir().unwrap();
    let archive = to.path().join("notes.tar");
    let child = home.command(&["volume", "export", "notes", archive.to_str().unwrap()]).spawn().unwrap();
    // The archive has no name before it is whole.
    let counters = format!("/proc/{}/io", child.id());
    eventually("the archive is begun", || {
        let counters = fs::read_to_string(&counters).unwrap();
        let written: u64 = counters.lines().find_map(|line| line.strip_prefix("wchar: "))?.parse().unwrap();
        written.checked_sub(16 << 20)
    });
    assert_eq!(interrupt(child), Some(130));
    assert_eq!(names(to.path()), [""; 0]);
}

#[test]
fn an_export_into_a_pipe_that_nobody_reads_can_be_interrupted() {
    let home = Home::isolated();
    volume_of_holes(&home, 1 << 20);
    let child = home.command(&["volume", "export", "notes"]).spawn().unwrap();
    let stdout = child.stdout.as_ref().unwrap();
    eventually("it writes", || rustix::io::ioctl_fionread(stdout).unwrap().checked_sub(4096));
    assert_eq!(interrupt(child), Some(130));
}

#[test]
fn a_command_that_is_stopped_does_not_hold_up_others_for_ever() {
    let home = Home::isolated();
    volume_of_holes(&home, 1 << 20);
    let locks = ["config.toml.lock", "volumes/lock"].map(|name| home.path().join(name));
    let held = locks.map(|path| File::create(path).unwrap());
    held.iter().for_each(|file| file.lock().unwrap());
    let lines = [&["add", "x", "builtin:probe"][..], &["volume", "remove", "notes"]];
    let waiting = lines.map(|line| home.command(line).spawn().unwrap());
    for (child, line) in waiting.into_iter().zip(lines) {
        let ended = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(4), "{line:?}: {said}");
        let holder = format!("process {} has held it for", std::process::id());
        assert!(said.contains(&holder) && said.contains("kill -CONT"), "{line:?}: {said}");
    }
}
