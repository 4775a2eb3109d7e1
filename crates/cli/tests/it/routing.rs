//! Which machine answers for a tool: by the tool's table, then its server's, on real guests.

use crate::{
    home::{Finished, Home, casemate},
    live::{SMALL_PROBE, answer, call, json_of, number, stop},
};
use casemate_testkit::LineClient;
use serde_json::{Value, json};
use std::{fs, path::PathBuf, time::Duration};

/// A machine that has first to wait for a kernel that another test fetches.
const PATIENCE: Duration = Duration::from_secs(300);

const MEMINFO: &str = r#"{"path": "/proc/meminfo"}"#;
const FILE: &str = r#"{"path": "/data/file"}"#;
const NEW_FILE: &str = r#"{"path": "/data/new", "content": "x"}"#;

/// A folder of the host with a file in it.
fn folder(home: &Home) -> PathBuf {
    let folder = home.path().join("folder");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("file"), "first").unwrap();
    folder
}

fn launch(home: &Home, name: &str) -> Value {
    let launched = casemate(home, &["launch", name]);
    assert_eq!(launched.code, 0, "{launched:?}");
    for word in ["passed over", "conversation"] {
        assert!(!launched.stderr.contains(word), "{}", launched.stderr);
    }
    home.machine_record(name)
}

/// The memory that a guest's kernel found, in MiB.
fn memory_inside(meminfo: &str) -> u64 {
    let kib = meminfo.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok());
    kib.unwrap_or_else(|| panic!("no MemTotal in {meminfo}")) / 1024
}

/// The machines that are or were there, without those that became templates: name, memory and processors.
fn machines(home: &Home) -> Vec<(String, u64, u64)> {
    let of_server = |record: &Value| !record["name"].as_str().unwrap().starts_with("template.");
    let records = home.records().into_iter().filter(of_server);
    let told = records.map(|record| {
        (record["name"].as_str().unwrap().to_owned(), number(&record, "memory_mb"), number(&record, "vcpus"))
    });
    told.collect()
}

fn says_passed_over(finished: &Finished, why: &str) {
    let expected = format!("note: machine probe is passed over ({why}): another one is started\n");
    assert!(finished.stderr.contains(&expected), "{}", finished.stderr);
    assert_eq!(finished.stderr.matches("note: ").count(), 1, "{}", finished.stderr);
}

fn count(home: &Home) -> Value {
    let counted = call(home, "probe", "counter", "{}");
    assert_eq!((counted.code, counted.stderr.as_str()), (0, ""), "{counted:?}");
    serde_json::from_str::<Value>(&counted.stdout).unwrap()["count"].clone()
}

#[test]
fn a_tool_that_needs_more_is_called_in_a_machine_of_that_size_and_others_in_the_one_that_runs() {
    let home = Home::new();
    let tables = "[[servers.tools]]\nname = \"read_file\"\nmemory_mb = 256\nvcpus = 2\n\
                  [[servers.tools]]\nname = \"counter\"\nisolation = \"microvm\"\nmemory_mb = 100\n";
    home.write("config.toml", &format!("{SMALL_PROBE}{tables}"));
    launch(&home, "probe");
    // A table that the running machine satisfies, and no table at all.
    assert_eq!([count(&home), count(&home)], [1, 2]);
    assert_eq!(answer(&home, "probe", "echo", r#"{"message": "hi"}"#)["message"], "hi");
    assert_eq!(machines(&home), [("probe".to_owned(), 128, 1)]);

    let read = call(&home, "probe", "read_file", MEMINFO);
    assert_eq!(read.code, 0, "{read:?}");
    says_passed_over(&read, "it has 128 MiB of memory, and 256 are asked for");
    let content =
        serde_json::from_str::<Value>(&read.stdout).unwrap()["content"].as_str().unwrap().to_owned();
    assert!((128..256).contains(&memory_inside(&content)), "{content}");
    let after = machines(&home);
    assert_eq!((after.len(), after[1].1, after[1].2), (2, 256, 2), "{after:?}");
    // That was for one call, and the server's machine is as it was.
    assert_eq!(json_of(&home, &["status", "--json"]).as_array().unwrap().len(), 1);
    assert_eq!(count(&home), 3);

    // Its list of tools is asked of any machine; a flag overrules the table.
    assert_eq!(casemate(&home, &["tools", "probe"]).stderr, "");
    let smaller = casemate(&home, &["call", "probe", "read_file", MEMINFO, "--memory", "160"]);
    assert_eq!(smaller.code, 0, "{smaller:?}");
    let last = machines(&home).pop().unwrap();
    assert_eq!((last.1, last.2), (160, 2));
}

#[test]
fn a_tools_folder_is_seen_by_that_tool_alone() {
    let home = Home::new();
    let folder = folder(&home);
    let mounts = format!("mounts = [\"{}:/data\"]", folder.display());
    home.write("config.toml", &format!("{SMALL_PROBE}[[servers.tools]]\nname = \"read_file\"\n{mounts}\n"));
    let content = |finished: &Finished| {
        assert_eq!(finished.code, 0, "{finished:?}");
        serde_json::from_str::<Value>(&finished.stdout).unwrap()["content"].clone()
    };
    // In a machine that has the folder it would be refused as a read-only file system.
    let other_sees_nothing = || {
        let written = call(&home, "probe", "write_file", NEW_FILE);
        assert!(written.code == 1 && written.stdout.contains("No such file"), "{written:?}");
        written
    };
    launch(&home, "probe");
    let beside = call(&home, "probe", "read_file", FILE);
    assert_eq!(content(&beside), "first");
    says_passed_over(&beside, "it was started without the tool's folder /data");
    assert!(!other_sees_nothing().stderr.contains("passed over"));
    stop(&home, "probe");

    // A machine that was started for the tool and stays serves it, and no other.
    let kept = casemate(&home, &["call", "probe", "read_file", FILE, "--keep"]);
    assert_eq!(content(&kept), "first");
    let before = machines(&home).len();
    let again = call(&home, "probe", "read_file", FILE);
    assert_eq!((content(&again), again.stderr.contains("passed over")), ("first".into(), false));
    assert_eq!(machines(&home).len(), before);
    says_passed_over(&other_sees_nothing(), "it has /data, a folder of another tool");
    fs::write(folder.join("file"), "second").unwrap();
    let changed = casemate(&home, &["call", "probe", "read_file", FILE, "--cold"]);
    assert_eq!(content(&changed), "second");
    says_passed_over(&changed, "it has the tool's folder /data as it was before a change");
}

#[test]
fn a_conversation_has_one_machine_with_all_that_its_tools_ask_for() {
    let home = Home::new();
    let folder = folder(&home);
    let tables = format!(
        "{SMALL_PROBE}[[servers.tools]]\nname = \"echo\"\nmemory_mb = 256\nisolation = \"sandbox\"\n\
         [[servers.tools]]\nname = \"add\"\nvcpus = 2\nmounts = [\"{0}:/data\"]\n\
         [[servers.tools]]\nname = \"random\"\nmemory_mb = 100\nmounts = [\"{0}:/data\", \"{0}:/more\"]\n",
        folder.display()
    );
    home.write("config.toml", &tables);
    let mut client = LineClient::spawn(&mut home.command(&["run", "probe"])).unwrap().with_patience(PATIENCE);
    client.initialize("2025-06-18", json!({})).unwrap();
    for path in ["/data/file", "/more/file"] {
        let read = client.call("read_file", json!({ "path": path })).unwrap();
        assert!(read["result"]["content"][0]["text"].as_str().unwrap().contains("first"), "{read}");
    }
    let told: Vec<String> =
        client.stderr().lines().filter(|line| line.contains("note: ")).map(str::to_owned).collect();
    let expected = "note: one machine serves this whole conversation: /data, /more is for single tools of probe, and \
                    all of them see it";
    assert_eq!(told, [expected]);
    let running = json_of(&home, &["status", "--json"])[0].clone();
    assert_eq!((number(&running, "memory_mb"), number(&running, "vcpus")), (256, 2), "{running}");
    assert_eq!(running["backend"], "qemu");
    client.close_stdin();
    assert_eq!(client.wait().unwrap().code(), Some(0));

    // What does not go together is told before anything is started.
    home.write("config.toml", &tables.replacen(":/data\"]", ":/data:rw\"]", 1));
    let refused = casemate(&home, &["run", "probe"]);
    assert_eq!(refused.code, 3, "{refused:?}");
    assert!(refused.stderr.contains("tool \"random\" of probe has"), "{}", refused.stderr);
    assert!(refused.stderr.contains("one machine cannot have both"), "{}", refused.stderr);
    // And what no microVM can be given, where the tool is called that asks for it.
    let refused = casemate(&home, &["call", "probe", "add", r#"{"a": 1, "b": 1}"#]);
    assert_eq!(refused.code, 4, "{refused:?}");
    assert!(refused.stderr.contains("--volume NAME:/data"), "{}", refused.stderr);
}

/// The document of the second guide, as it is written there: its files of another program do not exist.
#[test]
fn the_seeds_toml_works_as_it_is_written() {
    let home = Home::new();
    let seed = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/isolation_config.toml");
    fs::copy(seed, home.path().join("isolation_config.toml")).unwrap();
    let dangerous = casemate(&home, &["mcp", "call", "my-secure-server", "dangerous-tool", "{}"]);
    // The server that runs where none is named has no such tool, and says so.
    assert_eq!(dangerous.code, 1, "{dangerous:?}");
    assert!(
        dangerous.stderr.contains("unknown tool \"dangerous-tool\" (code -32602)"),
        "{}",
        dangerous.stderr
    );
    let machines = machines(&home);
    assert_eq!((machines.len(), machines[0].1, machines[0].2), (1, 512, 2), "{machines:?}");
    let record = launch(&home, "my-secure-server");
    assert_eq!((&record["backend"], number(&record, "memory_mb")), (&json!("qemu"), 512), "{record}");
    let dangerous = casemate(&home, &["mcp", "call", "my-secure-server", "dangerous-tool", "{}"]);
    assert_eq!((dangerous.code, dangerous.stderr.contains("passed over")), (1, false), "{dangerous:?}");
    assert_eq!(self::machines(&home).len(), 2);
}

/// The first guide's document with all keys that its program read, and folders that exist.
#[test]
fn the_seeds_json_works_with_tools_in_it() {
    let home = Home::new();
    let (folder, keys) = (folder(&home), home.path().join("keys"));
    fs::create_dir(&keys).unwrap();
    fs::write(keys.join("key"), "secret").unwrap();
    let mount = |host: &PathBuf, vm: &str| json!([{"host_path": host, "vm_path": vm, "readonly": true}]);
    let document = json!({
        "default_execution_mode": "microvm",
        "unikernel_dir": folder,
        "mcp_servers": {"solana": {
            "microvm_id": "μVM-1",
            "use_microvm": true,
            "microvm_config": {"memory_mb": 128, "vcpus": 1},
            "microvm_mounts": mount(&folder, "/mnt/osvm-config"),
            "tools": {
                "read_file": {"execution_mode": "unikernel", "mounts": mount(&keys, "/keys"), "vcpus": 1},
                "echo": {"execution_mode": "unikernel", "unikernel_image": "/var/osvm/echo.img"},
            },
        }},
    });
    home.write("isolation_config.json", &document.to_string());
    launch(&home, "solana");
    for (path, content) in [("/keys/key", "secret"), ("/mnt/osvm-config/file", "first")] {
        let read = answer(&home, "solana", "read_file", &json!({ "path": path }).to_string());
        assert_eq!(read["content"], content);
    }
    let other = call(&home, "solana", "write_file", r#"{"path": "/keys/new", "content": "x"}"#);
    assert!(other.code == 1 && other.stdout.contains("No such file"), "{other:?}");
    // The image of a unikernel is refused where it would be used, with its place.
    for command in [&["call", "solana", "echo", r#"{"message": "x"}"#][..], &["run", "solana"]] {
        let refused = casemate(&home, command);
        assert_eq!(refused.code, 4, "{refused:?}");
        assert!(
            refused.stderr.contains("isolation_config.json:1: tool \"echo\" has a unikernel_image"),
            "{}",
            refused.stderr
        );
        assert!(refused.stderr.contains("hint: remove the line"), "{}", refused.stderr);
    }
}
