//! Files that are no configuration, or that nobody may write: one clear error, and nothing is changed.

use super::commands::User;
use crate::home::finish;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::{
    fs,
    os::unix::{
        fs::{PermissionsExt, chown, symlink},
        process::CommandExt,
    },
};

const SERVERS: &str = "[[servers]]\nid = \"one\"\nsource = \"npm:one\"\n";

#[test]
fn every_file_that_is_no_configuration_is_refused_at_once() {
    let user = User::new(SERVERS);
    let deep = format!("{{\"mcpServers\": {}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    user.write("deep.json", deep);
    user.write("binary.json", b"{\"a\": \"\xff\xfe\"}");
    user.write("utf16.json", b"\xff\xfe{\0}\0");
    user.write("half.json", "{\"mcpServers\": {");
    user.write("list.json", "[]");
    user.write("deep.toml", format!("a = {}1{}", "[".repeat(100_000), "]".repeat(100_000)));
    fs::File::create(user.path("huge.json")).unwrap().set_len(1 << 40).unwrap();
    fs::create_dir(user.path("folder.json")).unwrap();
    symlink("/dev/zero", user.path("device.json")).unwrap();
    symlink("nowhere", user.path("dangling.json")).unwrap();
    symlink("loop.json", user.path("loop.json")).unwrap();
    mknodat(CWD, user.path("pipe.json"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    let listed = |user: &User| fs::read_dir(user.path("")).unwrap().count();
    let before = listed(&user);
    for (file, said) in [
        ("deep.json", "nested deeper"),
        ("binary.json", "not UTF-8"),
        ("utf16.json", "not UTF-8"),
        ("half.json", "line 1: "),
        ("list.json", "a list, where a table is expected"),
        ("huge.json", "larger than"),
        ("folder.json", "no regular file"),
        ("device.json", "no regular file"),
        ("dangling.json", "does not exist"),
        ("loop.json", "cannot read"),
        ("pipe.json", "no regular file"),
    ] {
        for line in ["import cursor", "import cursor --write --no-build", "client-config cursor --write"] {
            let refused = user.run(&format!("{line} --file {file}"));
            assert_eq!((refused.code, refused.stdout.as_str()), (3, ""), "{file}: {}", refused.stderr);
            assert!(refused.stderr.contains(said), "{file}: {}", refused.stderr);
            assert!(refused.stderr.contains("hint: "), "{file}: {}", refused.stderr);
        }
    }
    let refused = user.run("import codex --file deep.toml");
    assert_eq!(refused.code, 3, "{}", refused.stderr);
    assert_eq!(listed(&user), before);
    let missing = user.run("import cursor");
    assert_eq!(missing.code, 3, "{}", missing.stderr);
    assert!(
        missing.stderr.contains("there is no") && missing.stderr.contains("--file"),
        "{}",
        missing.stderr
    );
}

#[test]
fn what_may_not_be_written_stays_whole() {
    let user = User::new(SERVERS);
    user.write("below/mcp.json", "{}");
    let mut command = user.home.command(&["client-config", "cursor", "--write", "--file", "below/mcp.json"]);
    command.current_dir(user.path("")).env("HOME", user.path(""));
    if rustix::process::geteuid().is_root() {
        // Root may write everything: somebody else asks, who owns the home but not the folder.
        let nobody = 65534;
        let program = user.path("casemate");
        fs::copy(env!("CARGO_BIN_EXE_casemate"), &program).unwrap();
        chown(user.home.path(), Some(nobody), Some(nobody)).unwrap();
        fs::set_permissions(user.path(""), fs::Permissions::from_mode(0o755)).unwrap();
        let mut other = std::process::Command::new(program);
        other.args(command.get_args()).current_dir(user.path("")).uid(nobody).gid(nobody);
        other.env_clear().env("HOME", user.path("")).env("CASEMATE_HOME", user.home.path());
        other.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        fs::set_permissions(user.home.path().join("config.toml"), fs::Permissions::from_mode(0o644)).unwrap();
        command = other;
    } else {
        fs::set_permissions(user.path("below"), fs::Permissions::from_mode(0o500)).unwrap();
    }
    let refused = finish(command, b"");
    if rustix::process::geteuid().is_root() {
        chown(user.home.path(), Some(0), Some(0)).unwrap();
    }
    fs::set_permissions(user.path("below"), fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!((refused.code, refused.stdout.as_str()), (3, ""), "{}", refused.stderr);
    assert!(
        refused.stderr.contains("cannot write") && refused.stderr.contains("hint: "),
        "{}",
        refused.stderr
    );
    assert_eq!(
        (user.read("below/mcp.json").as_str(), fs::read_dir(user.path("below")).unwrap().count()),
        ("{}", 1)
    );
}

#[test]
fn a_linked_file_is_edited_where_it_is() {
    let user = User::new(SERVERS);
    user.write("dotfiles/mcp.json", "{}\n");
    fs::create_dir(user.path(".cursor")).unwrap();
    symlink("../dotfiles/mcp.json", user.path(".cursor/mcp.json")).unwrap();
    assert_eq!(user.run("client-config cursor --write").code, 0);
    assert!(fs::symlink_metadata(user.path(".cursor/mcp.json")).unwrap().is_symlink());
    assert!(user.read("dotfiles/mcp.json").contains("\"run\", \"one\""));
    assert_eq!(user.run("client-config cursor --undo").code, 0);
    assert_eq!(user.read("dotfiles/mcp.json"), "{}\n");
}
