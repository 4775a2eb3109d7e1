//! The commands on files of a user who has nothing else.

use crate::home::{Finished, Home, finish};
use serde_json::{Value, json};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

const SERVERS: &str =
    "[[servers]]\nid = \"one\"\nsource = \"npm:one\"\n\n[[servers]]\nid = \"two\"\nsource = \"pypi:two\"\n";

const CURSOR: &str = "{\n  \"mcpServers\": {\n    \"everything\": {\n      \"command\": \"npx\",\n      \"args\": [\"-y\", \"@x/everything\"]\n    }\n  }\n}\n";

/// Occurs in no output and in no file of casemate's.
const SECRET: &str = "ghp_hunter2hunter2";

/// A user with a home folder of their own, in which casemate's home is not where it usually is.
pub(super) struct User {
    pub home: Home,
}

impl User {
    pub fn new(servers: &str) -> Self {
        let home = Home::isolated();
        fs::create_dir(home.path().join("user")).unwrap();
        home.write("config.toml", servers);
        Self { home }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join("user").join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), content).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    pub fn run(&self, line: &str) -> Finished {
        let mut command = self.home.command(&shlex::split(line).unwrap());
        command.env("HOME", self.path("")).current_dir(self.path(""));
        for name in ["XDG_CONFIG_HOME", "XDG_DATA_HOME", "CLAUDE_CONFIG_DIR", "CODEX_HOME"] {
            command.env_remove(name);
        }
        finish(command, b"")
    }

    /// Runs a command that has to end well, and takes its output for JSON.
    fn json(&self, line: &str) -> Value {
        let finished = self.run(line);
        assert_eq!(finished.code, 0, "{line}: {}", finished.stderr);
        serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{line}: {error}: {finished:?}"))
    }

    /// Output with what differs from run to run named.
    fn named(&self, text: &str) -> String {
        let backup = text.find("casemate-backup-").map(|at| text[at + 16..at + 32].to_owned());
        let text = text.replace(&self.home.path().display().to_string(), "HOME");
        let text = text.replace(env!("CARGO_BIN_EXE_casemate"), "CASEMATE");
        backup.map_or(text.clone(), |digest| text.replace(&digest, "DIGEST"))
    }

    fn files(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(folder)).unwrap().flatten();
        let mut names: Vec<String> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

#[test]
fn a_snippet_is_printed_and_nothing_is_written() {
    let user = User::new(SERVERS);
    let printed = user.run("client-config codex two");
    assert_eq!(printed.code, 0, "{}", printed.stderr);
    assert_eq!(
        user.named(&printed.stdout),
        "[mcp_servers.two]\ncommand = \"CASEMATE\"\nargs = [\"run\", \"two\"]\nenv = { CASEMATE_HOME = \"HOME\" }\nstartup_timeout_sec = 120\n"
    );
    assert!(printed.stderr.contains("user/.codex/config.toml; --write puts it there"), "{}", printed.stderr);
    assert_eq!(user.files(""), [""; 0]);
    let all = user.json("client-config zed --json");
    let entries: Value = serde_json::from_str(all["snippet"].as_str().unwrap()).unwrap();
    let program = env!("CARGO_BIN_EXE_casemate");
    let env = json!({"CASEMATE_HOME": user.home.path()});
    assert_eq!(
        entries,
        json!({"context_servers": {
            "one": {"command": program, "args": ["run", "one"], "env": env},
            "two": {"command": program, "args": ["run", "two"], "env": env},
        }})
    );
    insta::assert_snapshot!(
        "client-config-json",
        user.named(&user.run("client-config zed one --json").stdout)
    );
}

#[test]
fn a_home_in_its_usual_place_needs_no_variable_and_a_configuration_is_named() {
    let user = User::new(SERVERS);
    user.write(".local/share/casemate/config.toml", SERVERS);
    user.write("other.toml", SERVERS);
    let mut command =
        user.home.command(&["client-config", "cursor", "one", "--json", "--config", "other.toml"]);
    command.env_remove("CASEMATE_HOME").env_remove("XDG_DATA_HOME");
    command.env("HOME", user.path("")).current_dir(user.path(""));
    let printed: Value = serde_json::from_str(&finish(command, b"").stdout).unwrap();
    let server = &printed["servers"][0];
    assert_eq!((&server["env"], &server["args"][0]), (&json!({}), &json!("--config")));
    assert_eq!(server["args"][1], json!(user.path("other.toml")));
    assert_eq!(server["args"].as_array().unwrap()[2..], [json!("run"), json!("one")]);
}

#[test]
fn entries_are_written_once_and_taken_back() {
    let user = User::new(SERVERS);
    user.write(".cursor/mcp.json", CURSOR);
    let written = user.run("client-config cursor --write");
    assert_eq!(written.code, 0, "{}", written.stderr);
    assert_eq!(user.named(&written.stdout), "Wrote into HOME/user/.cursor/mcp.json: one, two\n");
    let after: Value = serde_json::from_str(&user.read(".cursor/mcp.json")).unwrap();
    assert_eq!(after["mcpServers"]["one"]["args"], json!(["run", "one"]));
    assert_eq!(after["mcpServers"]["everything"]["command"], "npx");
    let again = user.run("client-config cursor --write");
    assert!(again.stdout.ends_with("says so already\n"), "{again:?}");
    assert_eq!(user.files(".cursor").len(), 2);
    let undone = user.run("client-config cursor --undo");
    assert_eq!((undone.code, user.read(".cursor/mcp.json").as_str()), (0, CURSOR), "{}", undone.stderr);
    assert_eq!(user.files(".cursor"), ["mcp.json"]);
    let nothing = user.run("client-config cursor --undo");
    assert_eq!(nothing.code, 3, "{}", nothing.stderr);
    assert!(nothing.stderr.contains("no backup") && nothing.stderr.contains("hint: "), "{}", nothing.stderr);
}

#[test]
fn a_file_that_was_not_there_is_made_and_removed_again() {
    let user = User::new(SERVERS);
    let written = user.json("client-config vscode one --write --json");
    assert_eq!(
        (&written["written"], &written["file"]),
        (&json!(true), &json!(user.path(".config/Code/User/mcp.json")))
    );
    let path = user.path(".config/Code/User/mcp.json");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(user.json("import vscode --json")["servers"][0]["action"], "own");
    let undone = user.json("client-config vscode --undo --json");
    assert_eq!((&undone["restored"], path.exists()), (&json!("file"), false));
    assert_eq!(user.files(".config/Code/User"), [""; 0]);
}

#[test]
fn another_program_of_that_name_is_not_touched() {
    let user = User::new(SERVERS);
    for entry in [
        "{\"command\": \"npx\"}",
        "{\"url\": \"https://x\"}",
        "{\"command\": \"casemate\", \"args\": [\"run\", \"two\"]}",
    ] {
        user.write("mcp.json", format!("{{\"mcpServers\": {{\"one\": {entry}}}}}"));
        let before = user.read("mcp.json");
        let refused = user.run("client-config cursor one --write --file mcp.json");
        assert_eq!(refused.code, 3, "{}", refused.stderr);
        assert!(refused.stderr.contains("not casemate's one"), "{}", refused.stderr);
        assert_eq!((user.read("mcp.json"), user.files("")), (before, vec!["mcp.json".to_owned()]));
    }
}

#[test]
fn an_entry_of_casemates_own_is_renewed_under_its_name_there() {
    let user = User::new(SERVERS);
    let old = json!({"command": "/old/casemate", "args": ["run", "one"], "disabled": true,
                     "env": {"CASEMATE_HOME": "/old", "LEVEL": "2"}});
    user.write("mcp.json", json!({"mcpServers": {"mine": old}}).to_string());
    assert_eq!(user.run("client-config cursor one --write --file mcp.json").code, 0);
    let after: Value = serde_json::from_str(&user.read("mcp.json")).unwrap();
    let env = json!({"CASEMATE_HOME": user.home.path(), "LEVEL": "2"});
    let new = json!({"command": env!("CARGO_BIN_EXE_casemate"), "args": ["run", "one"], "disabled": true, "env": env});
    assert_eq!(after, json!({"mcpServers": {"mine": new}}));
}

#[test]
fn what_changed_since_is_kept_unless_forced_and_even_then() {
    let user = User::new(SERVERS);
    user.write(".claude.json", CURSOR.replace("{\n  \"mcp", "{\n  \"numStartups\": 1,\n  \"mcp"));
    let before = user.read(".claude.json");
    assert_eq!(user.run("client-config claude-code one --write").code, 0);
    assert_eq!(user.run("import claude-code --write --no-build").code, 0);
    // The client counts its starts.
    let started = user.read(".claude.json").replace("\"numStartups\": 1", "\"numStartups\": 2");
    user.write(".claude.json", &started);
    let refused = user.run("import claude-code --undo");
    assert_eq!((refused.code, user.read(".claude.json")), (3, started), "{}", refused.stderr);
    assert!(refused.stderr.contains("--undo --force"), "{}", refused.stderr);
    let forced = user.run("import claude-code --undo --force");
    assert_eq!(forced.code, 0, "{}", forced.stderr);
    assert!(forced.stdout.ends_with(": everything\n"), "{}", forced.stdout);
    // One is the earlier write's.
    assert_eq!(user.run("client-config claude-code --undo --force").code, 0);
    assert_eq!(user.read(".claude.json"), before.replace("\"numStartups\": 1", "\"numStartups\": 2"));
    assert!(!user.files("").iter().any(|name| name.contains("casemate-")), "{:?}", user.files(""));
}

/// The backup is the only copy of a server whose entry is not there any more to be put back.
#[test]
fn a_backup_that_is_needed_is_not_removed() {
    for is_renamed in [true, false] {
        let user = User::new("");
        let entry = json!({"command": "npx", "args": ["-y", "github"], "env": {"MY_TOKEN": SECRET}});
        user.write("mcp.json", json!({"mcpServers": {"github": entry}}).to_string());
        assert_eq!(user.run("import cursor --file mcp.json --write --no-build --plain-env").code, 0);
        let mut present: Value = serde_json::from_str(&user.read("mcp.json")).unwrap();
        let entry = present["mcpServers"].as_object_mut().unwrap().remove("github").unwrap();
        assert_eq!(entry["args"], json!(["run", "github"]));
        if is_renamed {
            present["mcpServers"]["gh"] = entry;
        }
        let edited = present.to_string();
        user.write("mcp.json", &edited);
        let undo = "import cursor --file mcp.json --undo --force";
        let undone = user.run(undo);
        assert_eq!((undone.code, user.read("mcp.json")), (0, edited), "{undone:?}");
        let backup = user.files("").into_iter().find(|name| name.contains("backup")).unwrap();
        assert!(user.read(&backup).contains(SECRET));
        assert!(undone.stderr.contains(&format!("{backup} stays: it alone holds")), "{undone:?}");
        assert!(undone.stderr.contains("what was under github before"), "{undone:?}");
        let undone = user.json(&format!("{undo} --json"));
        assert_eq!((&undone["missing"], &undone["backup"]), (&json!(["github"]), &json!(user.path(&backup))));
    }
}

#[test]
fn a_dry_run_writes_nothing_and_a_write_can_be_taken_back() {
    let user = User::new("");
    user.write(".cursor/mcp.json", CURSOR);
    let shown = user.run("import cursor");
    assert_eq!(shown.code, 0, "{}", shown.stderr);
    assert_eq!(
        user.named(&shown.stdout),
        "Servers of Cursor in HOME/user/.cursor/mcp.json:\n  everything  would become everything: npm:@x/everything\n"
    );
    assert!(shown.stderr.contains("Nothing was written; --write does it"), "{}", shown.stderr);
    assert_eq!(
        (user.read(".cursor/mcp.json").as_str(), user.home.read("config.toml").as_str()),
        (CURSOR, "")
    );
    insta::assert_snapshot!("import-json", user.named(&user.run("import cursor --json").stdout));

    let written = user.json("import cursor --write --no-build --json");
    assert_eq!((&written["written"], &written["servers"][0]["action"]), (&json!(true), &json!("add")));
    assert_eq!(fs::read_to_string(written["backup"].as_str().unwrap()).unwrap(), CURSOR);
    let after: Value = serde_json::from_str(&user.read(".cursor/mcp.json")).unwrap();
    assert_eq!(after["mcpServers"]["everything"]["args"], json!(["run", "everything"]));
    assert_eq!(
        user.home.read("config.toml"),
        "[[servers]]\nid = \"everything\"\nsource = \"npm:@x/everything\"\n"
    );
    let again = user.json("import cursor --write --no-build --json");
    assert_eq!((&again["written"], &again["servers"][0]["action"]), (&json!(false), &json!("own")));
    assert_eq!(user.run("import cursor --undo").code, 0);
    assert_eq!(user.read(".cursor/mcp.json"), CURSOR);
    // The server is there from the first time.
    let known = user.json("import cursor --json");
    assert_eq!(
        (&known["servers"][0]["action"], &known["servers"][0]["server"]),
        (&json!("known"), &json!("everything"))
    );
}

#[test]
fn names_that_are_taken_get_a_number() {
    let user = User::new("[[servers]]\nid = \"everything\"\nsource = \"npm:other\"\n");
    user.write(".cursor/mcp.json", CURSOR);
    let written = user.json("import cursor --write --no-build --json");
    assert_eq!(written["servers"][0]["server"], "everything-2");
    let after: Value = serde_json::from_str(&user.read(".cursor/mcp.json")).unwrap();
    assert_eq!(after["mcpServers"]["everything"]["args"], json!(["run", "everything-2"]));
    // The client's own name for it is found again.
    let same = user.run("client-config cursor everything-2 --write");
    assert!(same.stdout.ends_with("says so already\n"), "{same:?}");
}

#[test]
fn a_server_whose_arguments_name_paths_of_this_host_stays_unless_that_is_settled() {
    let user = User::new("");
    let folder = user.path("docs");
    fs::create_dir(&folder).unwrap();
    let folder = folder.to_str().unwrap();
    let entry = json!({"command": "npx", "args": ["-y", "files", folder, "/nowhere/else"], "cwd": "/srv"});
    user.write("mcp.json", json!({"mcpServers": {"files": entry}}).to_string());
    let import =
        |how: &str| user.run(&format!("import cursor --file mcp.json --json --write --no-build{how}"));
    let shown = |finished: &Finished| -> Value { serde_json::from_str(&finished.stdout).unwrap() };
    let left = shown(&import(""));
    assert_eq!(left["servers"][0]["action"], "skip", "{left}");
    let reason = left["servers"][0]["reason"].as_str().unwrap();
    assert!(reason.contains(folder) && reason.contains("--host-paths mount"), "{left}");
    assert!(!reason.contains("/nowhere"), "{left}");
    assert_eq!(left["written"], false);

    let told = user.run("import cursor --file mcp.json --host-paths mount").stdout;
    assert!(told.contains(&format!("would become files: npm:files, reads {folder}\n")), "{told}");
    let mounted = shown(&import(" --host-paths mount"));
    assert_eq!(mounted["servers"][0]["action"], "add", "{mounted}");
    assert_eq!(mounted["servers"][0]["mounts"], json!([format!("{folder}:{folder}:ro")]));
    assert!(mounted["servers"][0]["notes"][0].as_str().unwrap().contains("cwd"), "{mounted}");
    let written = fs::read_to_string(user.home.path().join("config.toml")).unwrap();
    assert!(written.contains(&format!("mounts = [\"{folder}:{folder}:ro\"]")), "{written}");
    let listed = user.json("list --json");
    assert_eq!(listed[0]["mounts"], json!([format!("{folder}:{folder}:ro")]));
}

/// A client's file full of secrets: in a variable, under a harmless name, in arguments, in an address.
fn secrets() -> String {
    let npx = |args: Value, env: Value| json!({"command": "npx", "args": args, "env": env});
    json!({"mcpServers": {
        "named": npx(json!(["-y", "a"]), json!({"MY_TOKEN": SECRET.replace("ghp_", ""), "PLAIN": "1"})),
        "prefixed": npx(json!(["-y", "b"]), json!({"VALUE": SECRET})),
        "argued": npx(json!(["-y", "c", "--api-key", SECRET.replace("ghp_", "")]), json!({})),
        "joined": npx(json!([format!("--registry=https://u:{SECRET}@x/"), "d"]), json!({})),
        "git": {"command": "uvx", "args": ["--from", format!("git+https://{SECRET}@h/x"), "e"]},
        "remote": {"url": format!("https://h/?key={SECRET}"), "headers": {"Authorization": SECRET}},
        "file": npx(json!(["-y", "f"]), json!({"A": {"nested": SECRET}})),
        "harmless": npx(json!(["-y", "g"]), json!({"PLAIN": "1"})),
    }})
    .to_string()
}

/// Everything that casemate wrote below its home, but for what belongs to the user.
fn written(folder: &Path, skip: &Path) -> String {
    let mut all = String::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() && path != skip {
            all.push_str(&written(&path, skip));
        } else if path.is_file() {
            all.push_str(&String::from_utf8_lossy(&fs::read(&path).unwrap()));
        }
    }
    all
}

#[test]
fn secrets_are_neither_shown_nor_copied() {
    let user = User::new("");
    user.write("mcp.json", secrets());
    for options in ["", " --json", " --write --no-build", " --write --no-build --json"] {
        let ended = user.run(&format!("import cursor --file mcp.json{options}"));
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        for text in [&ended.stdout, &ended.stderr, &written(user.home.path(), &user.path(""))] {
            assert!(!text.contains("hunter2"), "{options}: {text}");
        }
    }
    let shown = user.json("import cursor --file mcp.json --json");
    let actions: Vec<_> = shown["servers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|shown| (&shown["entry"], &shown["action"]))
        .collect();
    assert_eq!(
        json!(actions.iter().filter(|(_, action)| **action == "own").collect::<Vec<_>>()),
        json!([["harmless", "own"]])
    );
    assert!(actions.iter().all(|(entry, action)| **entry == "harmless" || **action == "skip"), "{actions:?}");
    let reason = shown["servers"].as_array().unwrap().iter().find(|shown| shown["entry"] == "named").unwrap();
    assert_eq!(reason["variables"], json!(["MY_TOKEN", "PLAIN"]));
    assert!(reason["reason"].as_str().unwrap().starts_with("MY_TOKEN is probably a secret"), "{reason}");
    // What was left stays as it was, to the byte.
    assert!(user.read("mcp.json").contains(SECRET));
}

#[test]
fn secrets_are_copied_in_clear_where_that_is_asked_for_and_said() {
    let user = User::new("");
    user.write("mcp.json", secrets());
    let ended = user.run("import cursor --file mcp.json --write --no-build --plain-env");
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(ended.stderr.contains("secrets in clear"), "{}", ended.stderr);
    assert!(ended.stderr.contains("casemate import cursor --undo --file mcp.json takes"), "{}", ended.stderr);
    for text in [&ended.stdout, &ended.stderr] {
        assert!(!text.contains("hunter2"), "{text}");
    }
    let config = user.home.read("config.toml");
    assert!(config.contains("MY_TOKEN = \"hunter2hunter2\"") && config.contains(SECRET), "{config}");
    let mode = fs::metadata(user.home.path().join("config.toml")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // The client needs them no longer.
    let after: Value = serde_json::from_str(&user.read("mcp.json")).unwrap();
    assert_eq!(after["mcpServers"]["named"]["env"], json!({"CASEMATE_HOME": user.home.path()}));
    assert_eq!(user.run("import cursor --file mcp.json --undo").code, 0);
    assert_eq!(user.read("mcp.json"), secrets());
}

#[test]
fn a_server_that_cannot_be_built_stays_with_its_client() {
    let user = User::new("");
    user.write("mcp.json", "{\"mcpServers\": {\"x\": {\"command\": \"/nowhere/program\"}}}");
    let before = user.read("mcp.json");
    let failed = user.run("import cursor --file mcp.json --write --json");
    assert_eq!(failed.code, 1, "{}", failed.stderr);
    let report: Value = serde_json::from_str(&failed.stdout).unwrap();
    assert_eq!((&report["servers"][0]["action"], &report["written"]), (&json!("failed"), &json!(false)));
    assert_eq!((user.read("mcp.json"), user.home.read("config.toml").as_str()), (before, ""));
}
