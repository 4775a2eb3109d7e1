//! Folders of the host inside machines: read, never written, never left.

mod attack;
mod repository;

use crate::{
    home::{Home, casemate},
    live::{answer, call, json_of, launch, probe_home, templates},
};
use casemate_proto::mount::SERVER_ID;
use serde_json::{Value, json};
use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

/// A folder of the host, with a secret beside it that a link in it leads to.
fn folder(home: &Home) -> PathBuf {
    let folder = home.path().join("folder");
    fs::create_dir_all(folder.join("deep")).unwrap();
    fs::write(folder.join("deep/file"), "content").unwrap();
    fs::write(home.path().join("secret"), "secret").unwrap();
    symlink(home.path().join("secret"), folder.join("out")).unwrap();
    symlink("../secret", folder.join("up")).unwrap();
    folder
}

fn mount(folder: &Path, target: &str) -> String {
    format!("{}:{target}", folder.display())
}

fn read(home: &Home, machine: &str, path: &str) -> String {
    let read = answer(home, machine, "read_file", &json!({ "path": path }).to_string());
    read["content"].as_str().unwrap().to_owned()
}

/// What the server is told when it writes.
fn write(home: &Home, machine: &str, path: &str) -> (i32, String) {
    let written = call(home, machine, "write_file", &json!({"path": path, "content": "x"}).to_string());
    (written.code, written.stdout)
}

/// A state of a folder: names, contents and times.
fn state(folder: &Path) -> Vec<(PathBuf, std::time::SystemTime, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let (path, meta) = (entry.path(), entry.metadata().unwrap());
        let content = if meta.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        all.push((path.clone(), meta.modified().unwrap(), content));
        if meta.is_dir() {
            all.extend(state(&path));
        }
    }
    all.sort();
    all
}

/// How a path is mounted inside, as the guest's kernel says.
fn options(home: &Home, machine: &str, target: &str) -> Vec<String> {
    let table = read(home, machine, "/proc/self/mountinfo");
    let of_target = |line: &&str| line.split(' ').nth(4) == Some(target);
    let line = table.lines().find(of_target).unwrap_or_else(|| panic!("no {target} in {table}"));
    line.split(' ').nth(5).unwrap().split(',').map(str::to_owned).collect()
}

#[test]
fn a_folder_is_read_in_every_place_and_written_in_none() {
    let home = probe_home();
    let folder = folder(&home);
    let before = state(&folder);
    // Where the image has no folder, where it has one, and where one is made at every start.
    let targets = ["/data/of/mine", "/app/folder", "/home/casemate/in/it", "/tmp/folder"];
    let mounts: Vec<String> = targets.iter().map(|target| mount(&folder, target)).collect();
    let mut options_of_all = Vec::new();
    for mount in &mounts {
        options_of_all.extend(["--mount", mount]);
    }
    launch(&home, "m", &options_of_all);
    for target in targets {
        assert_eq!(read(&home, "m", &format!("{target}/deep/file")), "content");
        for path in ["deep/file", "new", "deep/new"] {
            let (code, said) = write(&home, "m", &format!("{target}/{path}"));
            assert!(code == 1 && said.contains("Read-only file system (os error 30)"), "{said}");
        }
        // Links are the guest's, where the host's files do not exist.
        for link in ["out", "up"] {
            let path = json!({ "path": format!("{target}/{link}") }).to_string();
            let read = call(&home, "m", "read_file", &path);
            assert!(read.code == 1 && read.stdout.contains("No such file"), "{read:?}");
        }
        let options = options(&home, "m", target);
        for option in ["ro", "nosuid", "nodev"] {
            assert!(options.iter().any(|found| found == option), "{target}: {options:?}");
        }
    }
    // The rest of the root is as it is without.
    assert_eq!(write(&home, "m", "/data/x").0, 1);
    assert_eq!(write(&home, "m", "/x").0, 1);
    assert_eq!(write(&home, "m", "/home/casemate/x").0, 0);
    assert_eq!(state(&folder), before);
}

#[test]
fn templates_are_of_one_content_and_a_changed_folder_is_seen() {
    let home = probe_home();
    let folder = folder(&home);
    let mount = mount(&folder, "/data");
    launch(&home, "one", &["--mount", &mount]);
    let second = launch(&home, "two", &["--mount", &mount]);
    assert_eq!(second["start"], "restored", "{second}");
    assert_eq!(read(&home, "two", "/data/deep/file"), "content");
    assert_eq!(templates(&home).len(), 1);
    fs::write(folder.join("deep/file"), "another").unwrap();
    launch(&home, "three", &["--mount", &mount]);
    // The same content in another place is another template: the server may have looked at the first.
    launch(&home, "four", &["--mount", &format!("{}:/other", folder.display())]);
    assert_eq!(read(&home, "three", "/data/deep/file"), "another");
    assert_eq!(read(&home, "four", "/other/deep/file"), "another");
    assert_eq!(read(&home, "one", "/data/deep/file"), "content", "a machine has its folder as it was");
    assert_eq!(templates(&home).len(), 3);
}

#[test]
fn a_machine_that_slept_has_its_folder_though_images_were_pruned() {
    let home = probe_home();
    let folder = folder(&home);
    launch(&home, "m", &["--mount", &mount(&folder, "/data"), "--idle", "200ms"]);
    crate::support::eventually("the machine is suspended", || {
        (json_of(&home, &["status", "--json"])[0]["state"] == "suspended").then_some(())
    });
    let store = casemate_image::store::Store::open(home.path()).unwrap();
    // Held by this test until the end of the line, then by the machine alone.
    let image = casemate_image::folder::pack(&store, &folder, SERVER_ID, &casemate_image::progress::Silent)
        .unwrap()
        .image;
    casemate_image::folder::prune(&store).unwrap();
    assert!(image.exists(), "it was pruned, and would be missed by a machine that is started anew");
    assert_eq!(read(&home, "m", "/data/deep/file"), "content");
}

#[test]
fn what_cannot_be_given_is_refused_with_the_reason() {
    let home = probe_home();
    let folder = folder(&home);
    let refused = |mount: &str, code: i32, said: &str| {
        let launched = casemate(&home, &["launch", "probe", "--mount", mount]);
        assert_eq!(launched.code, code, "{mount}: {launched:?}");
        assert!(launched.stderr.contains(said), "{mount}: {}", launched.stderr);
    };
    refused("/no/such/folder:/data", 3, "/no/such/folder is no folder");
    refused("/etc/passwd:/data", 3, "/etc/passwd is no folder");
    // Links of the image: what is behind them may be in the way of something else.
    refused(&mount(&folder, "/bin"), 5, "in the image /bin is no folder");
    refused(&mount(&folder, "/lib/x"), 5, "in the image /lib is no folder");
    fs::File::create(folder.join("hole")).unwrap().set_len(2 << 30).unwrap();
    refused(&mount(&folder, "/data"), 3, "holds more than 1024 MiB");
    fs::remove_file(folder.join("hole")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(folder.join("s")).unwrap();
    refused(&mount(&folder, "/data"), 3, "is a socket, which cannot be packed");
    assert_eq!(json_of(&home, &["status", "--json"]), json!([]));
}

#[test]
fn files_say_it_in_every_spelling() {
    let home = Home::new();
    let folder = folder(&home);
    let toml = format!(
        "[[servers]]\nid = \"ours\"\nsource = \"builtin:probe\"\nmemory_mb = 128\nmounts = [\"{}:/data:ro\"]\n",
        folder.display()
    );
    home.write("config.toml", &toml);
    let seed = json!({"mcp_servers": {
        "seed": {"microvm_config": {"memory_mb": 128}, "microvm_mounts": [
            {"host_path": folder, "vm_path": "/data", "readonly": true},
        ]},
        "changing": {"microvm_mounts": [{"host_path": folder, "vm_path": "/data"}]},
    }});
    home.write("isolation_config.json", &seed.to_string());
    for name in ["ours", "seed"] {
        let read = json_of(&home, &["call", name, "read_file", r#"{"path": "/data/deep/file"}"#, "--json"]);
        assert!(read["content"][0]["text"].as_str().unwrap().contains("content"), "{read}");
    }
    // The seeds' mounts are written to unless they say otherwise.
    let refused = casemate(&home, &["launch", "changing"]);
    assert_eq!(refused.code, 4, "{}", refused.stderr);
    assert!(refused.stderr.contains("--volume NAME:/data"), "{}", refused.stderr);
}

#[test]
fn a_file_server_from_npm_is_refused_by_the_guests_kernel() {
    let home = Home::new();
    let folder = folder(&home);
    let before = state(&folder);
    let mount = mount(&folder, "/data");
    let source = "npm:@modelcontextprotocol/server-filesystem";
    let added = casemate(&home, &["add", "files", source, "--mount", &mount, "--", "/data"]);
    assert_eq!(added.code, 0, "{}", added.stderr);
    assert_eq!(casemate(&home, &["launch", "files"]).code, 0);
    let ask = |tool: &str, arguments: Value| {
        let called = casemate(&home, &["call", "files", tool, &arguments.to_string()]);
        (called.code, called.stdout)
    };
    let (code, read) = ask("read_text_file", json!({"path": "/data/deep/file"}));
    assert!(code == 0 && read.contains("content"), "{read}");
    for (tool, arguments) in [
        ("write_file", json!({"path": "/data/new", "content": "x"})),
        ("write_file", json!({"path": "/data/deep/file", "content": "x"})),
        ("move_file", json!({"source": "/data/deep/file", "destination": "/data/moved"})),
    ] {
        let (code, said) = ask(tool, arguments);
        assert!(code == 1 && said.contains("EROFS"), "{tool}: {said}");
    }
    assert_eq!(state(&folder), before);
}
