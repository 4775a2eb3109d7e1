//! Volumes: what servers write outlives their machines, belongs to one at a time and stays where it is.

use crate::{
    home::{Finished, Home, casemate},
    live::{answer, call, json_of, launch, manifest, probe_home, process, stop, template},
    support::{eventually, is_alive, signal},
};
use casemate_testkit::LineClient;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{fs, path::Path, process::Command, thread, time::Duration};

/// By when what a server wrote is on the device, though it did not ask for that, in emulation on a busy host.
const WRITTEN_OUT: Duration = Duration::from_secs(5);

const VOLUME: [&str; 2] = ["--volume", "notes:/data:16MiB"];

fn write(home: &Home, machine: &str, path: &str, content: &str) -> Finished {
    call(home, machine, "write_file", &json!({"path": path, "content": content}).to_string())
}

fn read(home: &Home, machine: &str, path: &str) -> String {
    let read = answer(home, machine, "read_file", &json!({ "path": path }).to_string());
    read["content"].as_str().unwrap().to_owned()
}

/// What the only volume's file system looks like to its checker.
fn check(home: &Home) -> String {
    let image = home.path().join("volumes/notes/volume.ext4");
    let checked = Command::new("/usr/sbin/e2fsck").arg("-fn").arg(image).output().unwrap();
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(checked.status.success(), "{said}");
    said
}

#[test]
fn what_a_server_wrote_is_there_for_the_next_machine() {
    let home = probe_home();
    let first = launch(&home, "first", &VOLUME);
    // From a template that had no volume, but a device of its size.
    assert_eq!(first["start"], "restored", "{first}");
    assert!(first["template_reason"].as_str().unwrap().contains("it has a volume"), "{first}");
    assert_eq!(manifest(&template(&home))["ingredients"]["level"], "agent");
    // It is the server's, and empty.
    assert_eq!(write(&home, "first", "/data/file", "one").code, 0);
    let listed = json_of(&home, &["volume", "list", "--json"]);
    assert_eq!((&listed[0]["name"], &listed[0]["used_by"]), (&json!("notes"), &json!("machine first")));
    stop(&home, "first");
    // Unmounted before the end: there is nothing to be recovered.
    let said = check(&home);
    assert!(!said.contains("recover"), "{said}");

    launch(&home, "second", &["--volume", "notes:/elsewhere"]);
    assert_eq!(read(&home, "second", "/elsewhere/file"), "one");
    let mounts = read(&home, "second", "/proc/self/mountinfo");
    let line = mounts.lines().find(|line| line.contains(" /elsewhere ")).unwrap();
    assert!(line.contains("rw,nosuid,nodev"), "{line}");
    assert_eq!(json_of(&home, &["volume", "inspect", "notes"])["size_bytes"], 16 << 20);
}

#[test]
fn a_volume_survives_kills_and_is_free_when_nobody_can_write_to_it_any_more() {
    let home = probe_home();
    let machine = launch(&home, "one", &VOLUME);
    assert_eq!(write(&home, "one", "/data/kept", "kept").code, 0);
    stop(&home, "one");
    for (round, whom) in ["pid", "supervisor_pid"].into_iter().enumerate() {
        let name = format!("killed{round}");
        let machine = launch(&home, &name, &VOLUME);
        assert_eq!(write(&home, &name, "/data/new", "new").code, 0);
        thread::sleep(WRITTEN_OUT);
        let (victim, vmm) = (process(&machine, whom), process(&machine, "pid"));
        signal(victim, Signal::KILL);
        // A machine that starts at once is refused, or has it alone: the old VMM is gone then.
        let next = format!("next{round}");
        let launched = eventually("the volume is free", || {
            let line = [&["mcp", "microvm", "launch", &next][..], &VOLUME].concat();
            let launched = casemate(&home, &line);
            match launched.code {
                0 => Some(launched),
                _ => {
                    assert!(launched.stderr.contains("volume notes is used by"), "{launched:?}");
                    None
                }
            }
        });
        assert!(!is_alive(vmm), "two VMMs had the volume: {launched:?}");
        assert_eq!(read(&home, &next, "/data/kept"), "kept");
        assert_eq!(read(&home, &next, "/data/new"), "new");
        assert_eq!(write(&home, &next, "/data/kept", "kept").code, 0);
        stop(&home, &next);
        check(&home);
    }
    drop(machine);
}

#[test]
fn a_volume_is_one_machines_also_while_that_sleeps() {
    let home = probe_home();
    launch(&home, "sleeper", &[&VOLUME[..], &["--idle", "200ms"]].concat());
    assert_eq!(write(&home, "sleeper", "/data/file", "before").code, 0);
    eventually("the machine is suspended", || {
        (json_of(&home, &["status", "--json"])[0]["state"] == "suspended").then_some(())
    });
    let refused = casemate(&home, &["launch", "probe", "--volume", "notes:/data"]);
    assert_eq!(refused.code, 3, "{refused:?}");
    assert!(refused.stderr.contains("volume notes is used by machine sleeper"), "{}", refused.stderr);
    for line in [&["volume", "remove", "notes"][..], &["volume", "export", "notes", "/dev/shm/no.tar"]] {
        let refused = casemate(&home, line);
        assert!(refused.code == 3 && refused.stderr.contains("used by machine sleeper"), "{refused:?}");
    }
    assert_eq!(read(&home, "sleeper", "/data/file"), "before");
    assert_eq!(write(&home, "sleeper", "/data/file", "after").code, 0);
    stop(&home, "sleeper");
    check(&home);
}

#[test]
fn a_full_volume_is_an_error_to_the_server_and_nothing_worse() {
    let home = probe_home();
    let line = [&["run", "probe"][..], &VOLUME].concat();
    let patience = Duration::from_secs(120);
    let mut client = LineClient::spawn(&mut home.command(&line)).unwrap().with_patience(patience);
    client.initialize("2025-11-25", json!({})).unwrap();
    let content = "x".repeat(3 << 20);
    let mut write = |number: i32| {
        let arguments = json!({"path": format!("/data/{number}"), "content": content});
        client.call("write_file", arguments).unwrap()["result"].clone()
    };
    let full = (0..10).map(&mut write).find(|result| result["isError"] == true).expect("it is never full");
    assert!(full["content"][0]["text"].as_str().unwrap().contains("No space left on device"), "{full}");
    let emptied = client.call("write_file", json!({"path": "/data/0", "content": "small"})).unwrap();
    assert_ne!(emptied["result"]["isError"], true, "{emptied}");
    let again = client.call("write_file", json!({"path": "/data/again", "content": "x"})).unwrap();
    assert_ne!(again["result"]["isError"], true, "{again}");
    client.close_stdin();
    assert_eq!(client.wait().unwrap().code(), Some(0), "{}", client.stderr());
    check(&home);
}

#[test]
fn a_volume_is_exported_without_being_mounted_and_removed() {
    let home = probe_home();
    launch(&home, "m", &VOLUME);
    for (path, content) in [("/data/a", "first"), ("/data/b", "second")] {
        assert_eq!(write(&home, "m", path, content).code, 0);
    }
    stop(&home, "m");
    let archive = home.path().join("notes.tar");
    let exported = json_of(&home, &["volume", "export", "notes", archive.to_str().unwrap(), "--json"]);
    assert_eq!((&exported["entries"], &exported["bytes"]), (&json!(2), &json!(11)), "{exported}");
    let listed = Command::new("tar").arg("-xOf").arg(&archive).arg("a").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&listed.stdout), "first");
    // A file that is there is not replaced; standard output is an archive too.
    assert_eq!(casemate(&home, &["volume", "export", "notes", archive.to_str().unwrap()]).code, 3);
    let mut piped = home.command(&["volume", "export", "notes"]);
    let piped = piped.output().unwrap();
    assert_eq!(piped.stdout, fs::read(&archive).unwrap());

    let removed = casemate(&home, &["volume", "remove", "notes"]);
    assert_eq!((removed.code, removed.stdout.as_str()), (0, "Removed notes\n"), "{}", removed.stderr);
    assert_eq!(json_of(&home, &["volume", "list", "--json"]), json!([]));
}

#[test]
fn a_volume_whose_machine_was_killed_is_exported_with_what_its_journal_holds() {
    let home = probe_home();
    let machine = launch(&home, "m", &VOLUME);
    assert_eq!(write(&home, "m", "/data/kept", "written before the kill").code, 0);
    thread::sleep(WRITTEN_OUT);
    signal(process(&machine, "supervisor_pid"), Signal::KILL);
    eventually("the volume is free", || {
        json_of(&home, &["volume", "list", "--json"])[0]["used_by"].is_null().then_some(())
    });
    let image = home.path().join("volumes/notes/volume.ext4");
    let header = Command::new("/usr/sbin/dumpe2fs").arg("-h").arg(image).output().unwrap();
    let header = String::from_utf8_lossy(&header.stdout).into_owned();
    assert!(header.contains("needs_recovery"), "there is nothing to be recovered: {header}");
    let archive = home.path().join("notes.tar");
    let exported = json_of(&home, &["volume", "export", "notes", archive.to_str().unwrap(), "--json"]);
    assert_eq!((&exported["entries"], &exported["unread"]), (&json!(1), &json!(0)), "{exported}");
    let kept = Command::new("tar").arg("-xOf").arg(&archive).arg("kept").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&kept.stdout), "written before the kill");
}

#[test]
fn what_an_archive_lacks_is_said_and_the_rest_is_in_it() {
    let home = probe_home();
    launch(&home, "m", &VOLUME);
    for path in ["/data/lost", "/data/kept"] {
        assert_eq!(write(&home, "m", path, "content").code, 0);
    }
    stop(&home, "m");
    let image = home.path().join("volumes/notes/volume.ext4");
    let damaged = Command::new("/usr/sbin/debugfs").args(["-w", "-R", "clri /lost"]).arg(image).output();
    assert!(damaged.unwrap().status.success());
    let archive = home.path().join("notes.tar");
    let exported = casemate(&home, &["volume", "export", "notes", archive.to_str().unwrap(), "--json"]);
    assert_eq!(exported.code, 1, "{exported:?}");
    assert!(exported.stderr.contains("everything of volume notes but /lost ("), "{}", exported.stderr);
    let told: Value = serde_json::from_str(&exported.stdout).unwrap();
    assert_eq!((&told["unread"], &told["errors"][0]["path"]), (&json!(1), &json!("/lost")), "{told}");
    let listed = Command::new("tar").arg("-tf").arg(&archive).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&listed.stdout), "kept\n");
}

#[test]
fn links_in_a_volume_lead_to_nothing_of_the_agents_and_nothing_of_the_hosts() {
    let home = probe_home();
    let evil = tempfile::tempdir().unwrap();
    let secret = home.path().join("secret");
    fs::write(&secret, "DECOY!").unwrap();
    for (name, target) in
        [("host", secret.to_str().unwrap()), ("agent", "/../../modules/order"), ("root", "/")]
    {
        std::os::unix::fs::symlink(target, evil.path().join(name)).unwrap();
    }
    fs::write(evil.path().join("setuid"), "#!/bin/sh\n").unwrap();
    // As a server would have written it that took its guest's kernel over.
    assert_eq!(casemate(&home, &[&["call", "probe", "whoami"][..], &VOLUME].concat()).code, 0);
    let image = home.path().join("volumes/notes/volume.ext4");
    let filled = Command::new("/usr/sbin/mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-O", "^orphan_file", "-d"])
        .args([evil.path(), &image])
        .status()
        .unwrap();
    assert!(filled.success());
    // A link in the place of the one folder that the agent removes.
    for request in ["rmdir lost+found", "symlink lost+found /tmp"] {
        let debugfs = Command::new("/usr/sbin/debugfs").args(["-w", "-R", request]).arg(&image).output();
        assert!(debugfs.unwrap().status.success());
    }
    launch(&home, "m", &VOLUME);
    for link in ["host", "agent"] {
        let read = call(&home, "m", "read_file", &json!({"path": format!("/data/{link}")}).to_string());
        assert!(read.code == 1 && read.stdout.contains("No such file"), "{link}: {read:?}");
    }
    assert_eq!(write(&home, "m", "/data/root/etc/x", "x").code, 1);
    assert_eq!(write(&home, "m", "/tmp/x", "x").code, 0);
    stop(&home, "m");
    let archive = home.path().join("notes.tar");
    let exported = json_of(&home, &["volume", "export", "notes", archive.to_str().unwrap(), "--json"]);
    assert_eq!(exported["entries"], 5, "{exported}");
    let content = fs::read(&archive).unwrap();
    assert!(!content.windows(6).any(|window| window == b"DECOY!"), "a link was followed");
}

/// A server that writes a last word: where its start fails, when it is ended, and when it is ended while its machine
/// is suspended.
#[test]
fn what_a_server_writes_last_is_kept_however_its_machine_ends() {
    let home = Home::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/last-words");
    let source = format!("dir:{}", folder.display());
    let add = |name: &str, command: &str| {
        let line = ["add", name, &source, "--command", command];
        let added = casemate(&home, &[&line[..], &["--volume", &format!("{name}:/data:16MiB")]].concat());
        assert_eq!(added.code, 0, "{added:?}");
    };
    add("fails", "python server.py fail");
    add("ends", "python server.py");
    add("sleeps", "python server.py");
    let failed = casemate(&home, &["launch", "fails"]);
    assert!(failed.code == 5 && failed.stderr.contains("it is over"), "{failed:?}");
    assert_eq!(casemate(&home, &["launch", "ends"]).code, 0);
    stop(&home, "ends");
    assert_eq!(casemate(&home, &["launch", "sleeps", "--idle", "200ms"]).code, 0);
    eventually("the machine is suspended", || {
        let machine = json_of(&home, &["status", "sleeps", "--json"]);
        (machine[0]["state"] == "suspended").then_some(())
    });
    stop(&home, "sleeps");
    for volume in ["fails", "ends", "sleeps"] {
        let exported = casemate(&home, &["volume", "export", volume]);
        assert_eq!(exported.code, 0, "{volume}: {exported:?}");
        assert!(exported.stdout.contains("written at the end"), "{volume}: what was written last is lost");
    }
}

#[test]
fn servers_from_npm_keep_their_state_in_a_volume() {
    let home = Home::new();
    let volume = ["--volume", "notes:/data:32MiB"];
    let files = ["add", "files", "npm:@modelcontextprotocol/server-filesystem"];
    let added = casemate(&home, &[&files[..], &volume, &["--", "/data"]].concat());
    assert_eq!(added.code, 0, "{}", added.stderr);
    // In a machine for this alone, then in another one.
    let note = json!({"path": "/data/note", "content": "from one machine to the next"}).to_string();
    let written = casemate(&home, &["call", "files", "write_file", &note]);
    assert_eq!(written.code, 0, "{written:?}");
    assert_eq!(casemate(&home, &["launch", "files"]).code, 0);
    let tree = casemate(&home, &["call", "files", "directory_tree", r#"{"path": "/data"}"#]);
    assert!(tree.code == 0 && tree.stdout.contains("\"note\""), "{tree:?}");
    let read = casemate(&home, &["call", "files", "read_text_file", r#"{"path": "/data/note"}"#]);
    assert!(read.code == 0 && read.stdout.contains("from one machine to the next"), "{read:?}");

    let memory = ["add", "memory", "npm:@modelcontextprotocol/server-memory"];
    let env = ["--env", "MEMORY_FILE_PATH=/data/memory.jsonl", "--volume", "memory:/data:32MiB"];
    let added = casemate(&home, &[&memory[..], &env].concat());
    assert_eq!(added.code, 0, "{}", added.stderr);
    let entity = json!({"entities": [{"name": "Ada", "entityType": "person", "observations": ["counts"]}]});
    let made = casemate(&home, &["call", "memory", "create_entities", &entity.to_string()]);
    assert_eq!(made.code, 0, "{made:?}");
    let graph: Value = json_of(&home, &["call", "memory", "read_graph", "--json"]);
    assert!(graph.to_string().contains("counts"), "{graph}");
}
