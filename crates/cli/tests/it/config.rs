//! Configuration files: our own and the seeds', and what is said about mistakes in them.

use crate::home::{Home, casemate};
use casemate::{
    command::options::{MachineOptions, StartOptions},
    config::{
        Configuration, load,
        settings::{self, Flags},
        transport::Transport,
    },
    engine::{BackendKind, Isolation, Restart},
};
use serde_json::{Value, json};
use std::{fs, path::Path, time::Duration};

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");

fn data(name: &str) -> Configuration {
    load(Path::new("/nowhere"), Some(&Path::new(DATA).join(name))).unwrap()
}

fn server<'a>(configuration: &'a Configuration, name: &str) -> &'a casemate::config::Server {
    &configuration.servers[&name.parse().unwrap()]
}

/// The error about a file with this content, as it is printed.
fn mistake(name: &str, content: &str) -> String {
    let home = Home::isolated();
    home.write(name, content);
    let result = casemate(&home, &["list"]);
    assert_eq!(result.code, 3, "{}", result.stderr);
    assert_eq!(result.stdout, "");
    result.stderr.replace(&home.path().display().to_string(), "HOME")
}

#[test]
fn the_seeds_toml_means_what_it_says() {
    let configuration = data("isolation_config.toml");
    assert_eq!(configuration.defaults.memory_mb, Some(256));
    assert_eq!(configuration.defaults.vcpus, Some(1));
    let named: Vec<&str> = configuration.defaults.seed_files.iter().map(|file| file.key).collect();
    assert_eq!(named, ["kernel_path", "rootfs_path"]);
    let server = server(&configuration, "my-secure-server");
    assert_eq!(server.title.as_deref(), Some("My Secure MCP Server"));
    assert_eq!(server.isolation, Some(Isolation::Microvm));
    assert_eq!((server.memory_mb, server.vcpus), (Some(512), Some(2)));
    assert_eq!(server.tools.len(), 1);
    assert_eq!(server.tool("dangerous-tool").unwrap().isolation, Some(Isolation::Microvm));
    assert_eq!(server.unbuilt, []);
}

#[test]
fn the_seeds_json_means_what_it_says() {
    let configuration = data("isolation_config.json");
    let solana = server(&configuration, "solana");
    assert_eq!(solana.title.as_deref(), Some("μVM-1"));
    assert_eq!(solana.isolation, Some(Isolation::Microvm));
    assert_eq!((solana.memory_mb, solana.vcpus), (Some(512), Some(2)));
    assert_eq!(solana.source_text(), "npm:@modelcontextprotocol/server-solana");
    assert_eq!(solana.unbuilt, []);
}

#[test]
fn the_seeds_map_of_servers_alone_is_understood() {
    let configuration = data("github_server.json");
    let github = server(&configuration, "github");
    assert_eq!(github.source_text(), "npm:@modelcontextprotocol/server-github");
    assert_eq!(github.isolation, Some(Isolation::Microvm));
}

#[test]
fn the_whole_json_model_of_the_seeds_is_read() {
    let home = Home::isolated();
    home.write(
        "isolation_config.json",
        r#"{
            "default_execution_mode": "unikernel",
            "unikernel_dir": "/var/unikernels",
            "mcp_servers": {"s": {
                "microvm_id": "a", "use_microvm": false, "server_command": null,
                "microvm_config": {"memory_mb": 128, "vcpus": 1}, "transport": "http", "port": 8080, "path": "/x",
                "microvm_mounts": [{"host_path": "/a", "vm_path": "/b", "readonly": true}],
                "args": ["--root", "/b"], "env": {"LEVEL": "debug"}, "secrets": {"TOKEN": "env:T"},
                "volumes": ["v:/data"],
                "tools": {
                    "t": {"execution_mode": "unikernel", "unikernel_image": "/i", "mounts": [],
                          "memory_mb": 1024, "vcpus": 1},
                    "u": {"unikernel_image": null, "mounts": [{"host_path": "/k", "vm_path": "/keys"}]}
                }
            }}
        }"#,
    );
    let configuration = load(home.path(), None).unwrap();
    assert_eq!(configuration.defaults.isolation, Some(Isolation::Microvm));
    let server = server(&configuration, "s");
    assert_eq!(server.isolation, None);
    assert_eq!(server.transport, Transport::Http { port: 8080, path: "/x".to_owned() });
    assert_eq!(server.source_text(), "builtin:probe");
    assert_eq!(server.folders, ["/a:/b:ro".parse().unwrap()]);
    assert_eq!((&*server.args, &*server.env["LEVEL"]), (&["--root", "/b"].map(str::to_owned)[..], "debug"));
    assert_eq!((&*server.secrets[0].name, &server.volumes), ("TOKEN", &vec!["v:/data".parse().unwrap()]));
    assert_eq!(server.unbuilt, []);
    let (t, u) = (server.tool("t").unwrap(), server.tool("u").unwrap());
    assert_eq!((t.isolation, t.memory_mb, t.vcpus), (Some(Isolation::Microvm), Some(1024), Some(1)));
    assert_eq!((u.isolation, u.memory_mb, u.vcpus), (None, None, None));
    assert_eq!((&t.folders, &u.folders), (&vec![], &vec!["/k:/keys:rw".parse().unwrap()]));
    assert_eq!((t.unikernel_image.as_ref().map(|place| place.line), &u.unikernel_image), (Some(11), &None));
}

#[test]
fn tools_are_described_in_every_spelling_and_listed() {
    let home = Home::isolated();
    home.write(
        "config.toml",
        r#"
        [[servers]]
        id = "plain"
        source = "npm:x"

        [[servers]]
        id = "s"
        source = "npm:x"

        [[servers.tools]]
        name = "ours"
        isolation = "container"
        memory_mb = 512
        vcpus = 2
        mounts = ["/srv/data:/data", { host_path = "/srv/keys", vm_path = "/keys", readonly = true }]

        [[servers.tools]]
        name = "theirs"
        execution_mode = "microvm"
        microvm_config = { memory_mb = 1024 }
        "#,
    );
    let listed: Value = serde_json::from_str(&casemate(&home, &["list", "--json"]).stdout).unwrap();
    assert_eq!(listed[0].get("tools"), None, "{listed}");
    let expected = json!([
        {"name": "ours", "isolation": "container", "memory_mb": 512, "vcpus": 2,
         "mounts": ["/srv/data:/data:ro", "/srv/keys:/keys:ro"]},
        {"name": "theirs", "isolation": "microvm", "memory_mb": 1024},
    ]);
    assert_eq!(listed[1]["tools"], expected, "{listed}");
}

#[test]
fn our_own_file_says_everything_that_the_seeds_say_and_more() {
    let home = Home::isolated();
    home.write(
        "config.toml",
        r#"
        [defaults]
        isolation = "sandbox"
        memory_mb = 128
        idle = "10m"
        restart = "on-failure"
        health_interval = "5s"
        suspend_disk = "2GiB"

        [limits]
        memory_mb = 8192

        [registries]
        npm = "http://127.0.0.1:4873"

        [[servers]]
        id = "a"
        name = "The A"
        source = "npm:@x/a@1"
        args = ["--flag", "two words"]
        env = { KEY = "value" }
        backend = "qemu"
        vcpus = 3
        transport = "stdio"
        idle = "never"
        version = "1.2.3"
        image = "sha256:00"

        [[servers]]
        id = "b"
        source = "npx -y @x/b /data"
        isolation = "microvm"
        allow = ["example.com:443"]
        transport = "http"
        port = 3001
        "#,
    );
    let configuration = load(home.path(), None).unwrap();
    assert_eq!(configuration.registries.npm.as_deref(), Some("http://127.0.0.1:4873"));
    let a = server(&configuration, "a");
    assert_eq!((a.source_text().as_str(), a.args.join("|").as_str()), ("npm:@x/a@1", "--flag|two words"));
    let flags = Flags { machine: &MachineOptions::default(), start: &StartOptions::default() };
    let environment = settings::Environment::default();
    let merged = settings::merge(flags, &environment, Some(a), &configuration.defaults).unwrap();
    assert_eq!((merged.isolation, merged.backend), (Isolation::Microvm, Some(BackendKind::Qemu)));
    assert_eq!((merged.memory_mb, merged.vcpus), (128, 3));
    assert_eq!((merged.idle, merged.restart), (None, Restart::OnFailure));
    assert_eq!(merged.health_interval, Duration::from_secs(5));
    assert_eq!((merged.suspend_disk, merged.memory_limit_mb), (2 << 30, Some(8192)));
    assert_eq!(a.transport, Transport::Stdio);
    let b = server(&configuration, "b");
    assert_eq!(b.transport, Transport::Http { port: 3001, path: "/mcp".to_owned() });
    let merged = settings::merge(flags, &environment, Some(b), &configuration.defaults).unwrap();
    assert_eq!(merged.idle, Some(Duration::from_secs(600)));
    assert_eq!((b.source_text().as_str(), b.args.join("|").as_str()), ("npm:@x/b", "/data"));
    assert_eq!(b.egress.allow[0].to_string(), "example.com:443");
}

#[test]
fn unknown_keys_are_told_with_line_and_nearest_key() {
    for (name, content, expected) in [
        (
            "config.toml",
            "[defaults]\nvcpus = 1\nmemroy_mb = 128\n",
            "error: HOME/config.toml:3: unknown key \"memroy_mb\" in \"defaults\" of the file\nhint: did you mean \"memory_mb\"?\n",
        ),
        (
            "config.toml",
            "[[servers]]\nid = \"x\"\nsource = \"npm:x\"\n\n[servers.microvm_config]\nvcpu = 2\n",
            "error: HOME/config.toml:6: unknown key \"vcpu\" in \"microvm_config\" of server \"x\"\nhint: did you mean \"vcpus\"?\n",
        ),
        (
            "config.toml",
            "\n[server]\nid = \"x\"\n",
            "error: HOME/config.toml:2: unknown key \"server\" in the file\nhint: did you mean \"servers\"?\n",
        ),
        (
            "isolation_config.json",
            "{\n \"mcp_servers\": {\n  \"x\": {\n   \"use_microvm\": true,\n   \"server_comand\": \"npx x\"\n}}}",
            "error: HOME/isolation_config.json:5: unknown key \"server_comand\" in server \"x\"\nhint: did you mean \"server_command\"?\n",
        ),
        (
            "isolation_config.json",
            "{\"mcp_servers\": {\"x\": {\"tools\": {\"t\": {\n\"zzz\": 1}}}}}",
            "error: HOME/isolation_config.json:2: unknown key \"zzz\" in tool \"t\"\n\
             hint: known keys there: isolation, memory_mb, vcpus, mounts, unikernel_image, isolation_mode, \
             execution_mode, microvm_config\n",
        ),
    ] {
        assert_eq!(mistake(name, content), expected);
    }
}

#[test]
fn wrong_values_are_told_with_line_and_reason() {
    for (content, expected) in [
        (
            "[defaults]\nmemory_mb = 79\n",
            "config.toml:2: memory_mb cannot be used\n  because: 79 is not in 80 to 65536",
        ),
        (
            "[defaults]\nmemory_mb = \"256\"\n",
            "config.toml:2: memory_mb is text, where a whole number is expected",
        ),
        (
            "[defaults]\n\nisolation = \"vm\"\n",
            "config.toml:3: isolation cannot be used\n  because: \"vm\" is none of",
        ),
        (
            "[defaults]\nidle = \"10\"\n",
            "config.toml:2: idle cannot be used\n  because: write a number and ms",
        ),
        (
            "[defaults]\nsuspend_disk = \"10\"\n",
            "config.toml:2: suspend_disk cannot be used\n  because: write",
        ),
        ("[limits]\nmemory_mb = 1\n", "config.toml:2: memory_mb cannot be used\n  because: 1 is not in 80"),
        (
            "[[servers]]\nid = \"x\"\nrestart = \"always\"\n",
            "config.toml:3: restart cannot be used\n  because: \"always\" is none of never, on-failure",
        ),
        ("servers = 1\n", "config.toml:1: servers is a whole number, where a list of tables is expected"),
        ("[[servers]]\nname = \"x\"\n", "config.toml:1: \"servers\" of the file has no \"id\""),
        ("[[servers]]\nid = \"../x\"\n", "config.toml:2: id cannot be used\n  because: invalid name"),
        ("[[servers]]\nid = \"x\"\nsource = \"nmp:x\"\n", "config.toml:3: source cannot be used"),
        ("[[servers]]\nid = \"x\"\ncommand = \"'a\"\n", "config.toml:3: command cannot be used"),
        ("[[servers]]\nid = \"x\"\ntransport = \"sse\"\n", "config.toml:3: transport cannot be used"),
        (
            "[[servers]]\nid = \"x\"\ntransport = \"http\"\n",
            "config.toml:3: transport cannot be used\n  because: transport http needs the port",
        ),
        (
            "[[servers]]\nid = \"x\"\nport = 80\n",
            "config.toml:3: transport cannot be used\n  because: a port is for servers with transport http",
        ),
        ("[[servers]]\nid = \"x\"\nport = 65536\n", "config.toml:3: port cannot be used"),
        (
            "[[servers]]\nid = \"x\"\ntransport = \"http\"\nport = 80\npath = \"x\"\n",
            "config.toml:5: transport cannot be used\n  because: \"x\" is no path",
        ),
        ("[[servers]]\nid = \"x\"\n[servers.env]\n\"a b\" = \"c\"\n", "config.toml:4: a b cannot be used"),
        (
            "[[servers]]\nid = \"x\"\nvcpus = 1\nmicrovm_config = { vcpus = 2 }\n",
            "config.toml:4: microvm_config is given beside vcpus",
        ),
        (
            "[[servers]]\nid = \"x\"\n[[servers]]\nid = \"x\"\n",
            "config.toml:3: server x is defined already at HOME/config.toml:1",
        ),
        (
            "[[servers]]\nid = \"x\"\n[[servers.tools]]\nname = \"t\"\n[[servers.tools]]\nname = \"t\"\n",
            "config.toml:5: tool \"t\" is described already at HOME/config.toml:3",
        ),
        (
            "[[servers]]\nid = \"x\"\n[[servers.tools]]\nname = \"t\"\nisolation = \"microvm\"\n\
             execution_mode = \"microvm\"\n",
            "config.toml:6: execution_mode is given beside isolation",
        ),
        (
            "[[servers]]\nid = \"x\"\n[[servers.tools]]\nvcpus = 1\n",
            "config.toml:3: \"tools\" of server \"x\" has no \"name\"",
        ),
        (
            "[[servers]]\nid = \"x\"\n[[servers.tools]]\nname = \"t\"\nmemory_mb = 79\n",
            "config.toml:5: memory_mb cannot be used",
        ),
        ("[defaults]\nmemory_mb = = 1\n", "config.toml:2: "),
        ("[defaults]\nvcpus = 1\nvcpus = 2\n", "config.toml:3: duplicate key"),
    ] {
        let said = mistake("config.toml", content);
        assert!(said.contains(expected), "{content}\n{said}");
        assert_eq!(said.matches("hint: ").count(), 1, "{said}");
    }
}

#[test]
fn a_server_is_defined_in_one_file_only() {
    let home = Home::isolated();
    fs::copy(Path::new(DATA).join("isolation_config.json"), home.path().join("isolation_config.json"))
        .unwrap();
    home.write("config.toml", "[[servers]]\nid = \"solana\"\nsource = \"npm:x\"\n");
    let result = casemate(&home, &["list"]);
    assert_eq!(result.code, 3);
    assert!(
        result.stderr.contains("isolation_config.json:3: server solana is defined already"),
        "{}",
        result.stderr
    );
}

#[test]
fn a_file_that_is_asked_for_replaces_those_of_the_home() {
    let home = Home::isolated();
    home.write("config.toml", "[[servers]]\nid = \"mine\"\nsource = \"npm:x\"\n");
    let json = format!("{DATA}/isolation_config.json");
    let listed = casemate(&home, &["list", "--json", "--config", &json]).stdout;
    assert!(listed.contains("solana") && !listed.contains("mine"), "{listed}");
    let missing = casemate(&home, &["list", "--config", "/nowhere/c.toml"]);
    assert_eq!(missing.code, 3, "{}", missing.stderr);
    let format = casemate(&home, &["list", "--config", "/etc/passwd"]);
    assert!(format.code == 3 && format.stderr.contains(".toml"), "{}", format.stderr);
}

#[test]
fn microvms_that_the_file_disables_are_not_started() {
    let home = Home::isolated();
    home.write("config.toml", "[microvm]\nenabled = false\n");
    let result = casemate(&home, &["launch", "x", "--command", "true", "--isolation", "microvm"]);
    assert_eq!(result.code, 3, "{}", result.stderr);
    assert!(result.stderr.contains("config.toml:2 disables it"), "{}", result.stderr);
}
