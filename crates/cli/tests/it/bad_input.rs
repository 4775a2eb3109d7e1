//! Wrong command lines and homes: one clear error, the right exit code, nothing started.

use crate::home::{Home, casemate};
use std::fs;

/// Exit code and a part of standard error for each command line; none of them starts anything.
#[test]
fn mistakes_have_their_exit_codes() {
    let home = Home::isolated();
    for (line, code, said) in [
        ("", 2, "Usage: casemate"),
        ("nonsense", 2, "unrecognized subcommand"),
        ("laumch x", 2, "launch"),
        ("launch", 2, "<NAME>"),
        ("launch ../x --command true", 2, "invalid name"),
        ("launch x --command true --memory 79", 2, "79 is not in 80..=65536"),
        ("launch x --command true --memory 65537", 2, "65537 is not in 80..=65536"),
        ("launch x --command true --memory lots", 2, "--memory"),
        ("launch x --command true --vcpus 0", 2, "0 is not in 1..=32"),
        ("launch x --command true --vcpus 33", 2, "33 is not in 1..=32"),
        ("launch x --command true --isolation microwm", 2, "microvm"),
        (
            "launch x --command true --backend xen",
            2,
            "possible values: firecracker, qemu, docker, sandbox, process",
        ),
        ("launch x --command true --env 1=2", 2, "no name of a variable"),
        ("launch x --command \"'\"", 2, "quotes"),
        ("launch x --command ''", 2, "empty"),
        ("launch-many 0", 2, "0 is not in 1..=1000"),
        ("launch-many 2 --batch 0", 2, "0 is not in 1..=100"),
        ("launch x --command true --isolation microvm --backend docker", 2, "weaker"),
        ("call x t []", 2, "no object"),
        ("call x t nonsense", 2, "no JSON"),
        ("call x t {} --timeout 0", 2, "--timeout"),
        ("call x", 2, "<TOOL>"),
        ("add x", 2, "no source given"),
        ("add x nmp:y", 2, "no kind of source"),
        ("add x --url ftp://y", 2, "neither"),
        ("stop", 2, "<NAMES>"),
        ("stop x --all", 2, "--all"),
        ("run", 2, "casemate run [OPTIONS] -- <COMMAND>..."),
        ("run x -- y", 2, "cannot be used with"),
        ("logs x --console --vmm", 2, "cannot be used with"),
        ("call x t", 3, "no server is named x"),
        ("tools x", 3, "casemate add x npm:PACKAGE"),
        ("launch x", 3, "no server is named x"),
        ("launch-many 2 --server x", 3, "no server is named x"),
        ("run x", 3, "no server is named x"),
        ("status x", 3, "no server is named x"),
        ("logs x", 3, "no server is named x"),
        ("remove x", 3, "no server is named x"),
        ("image inspect abcd", 3, "no image abcd"),
        ("kernel import /nowhere/vmlinux", 3, "/nowhere/vmlinux"),
        ("launch x --command true --mount /a", 2, "write HOST:GUEST"),
        ("launch x --command true --mount /a:b", 2, "no absolute path inside the machine"),
        ("launch x --command true --mount /a:/b/../c", 2, "no plain path"),
        ("launch x --command true --mount /a:/", 2, "is taken"),
        ("launch x --command true --mount /a:/proc/x", 2, "the machine's own /proc is there"),
        ("launch x --command true --mount /a:/dev", 2, "the machine's own /dev is there"),
        ("launch x --command true --mount /a:/run/casemate", 2, "the machine's own /run/casemate is there"),
        ("launch x --command true --mount /a:/b:rw", 4, "no folder is shared with the host"),
        ("launch x --command true --mount /a:/b:rw", 4, "hint: give the server a volume"),
        ("launch x --command true --mount /a:/b --mount /c:/b/d", 3, "one would hide the other"),
        ("launch x --command true --mount /a:/b --volume v:/b", 3, "one would hide the other"),
        ("launch x --command true --volume v:/a --volume v:/b", 3, "cannot be mounted twice"),
        (
            "launch x --command true --mount /a:/1 --mount /a:/2 --mount /a:/3 --volume v:/4 --volume w:/5 --volume u:/6",
            4,
            "6 folders and volumes are more than a machine can have",
        ),
        ("launch x --command true --volume ../v:/b", 2, "invalid name"),
        ("launch x --command true --volume v", 2, "write NAME:GUEST"),
        ("launch x --command true --volume v:/b:1", 2, "write a number and KiB"),
        ("volume", 2, "Usage: casemate volume"),
        ("volume inspect v", 3, "no volume is named v"),
        ("volume remove v", 3, "no volume is named v"),
        ("volume export v v.tar", 3, "no volume is named v"),
        ("volume export v --json", 2, "--json needs a FILE"),
        ("launch-many 2 --template k", 4, "--template is not built yet"),
        ("add x npm:y --secret A=hunter2", 2, "none of env:VARIABLE, file:PATH, cmd:COMMAND and keyring:KEY"),
        ("launch x --command true --idle 5", 2, "write a number and ms, s, m, h or d"),
        ("launch x --command true --idle 10ms", 2, "not in 100ms to 168h"),
        ("launch x --command true --restart always", 2, "possible values: never, on-failure"),
        ("template", 2, "Usage: casemate template"),
        ("template prune --size 10", 2, "write a number and KiB, MiB, GiB or TiB"),
        ("template prune --all --age 3d", 2, "cannot be used with"),
        ("template inspect abc", 2, "4 to 32 of its hexadecimal digits"),
        ("template inspect ../../x", 2, "4 to 32 of its hexadecimal digits"),
        ("template inspect abcd", 3, "no template abcd"),
        ("add x --url https://example.com/mcp", 4, "remote servers are not built yet"),
        ("call x t {} --allow h", 2, "write HOST:PORT"),
        ("call x t {} --allow https://h", 2, "it is a URL"),
        ("call x t {} --allow *.com:443", 2, "half of the Internet"),
        ("launch x --command true --allow 0.0.0.0:80", 2, "no single host"),
        ("run --forward h:1 -- true", 2, "write GUESTPORT=HOST:PORT"),
        ("add x npm:y --forward 1=h:1 --forward 1=h:2", 3, "forwarded twice"),
        ("add x npm:y --mount /tmp:/b:rw", 4, "no folder is shared with the host"),
        ("add x npm:y --mount /nowhere:/b", 3, "/nowhere is no folder"),
        ("add x npm:y --mount /etc/hostname:/b", 3, "/etc/hostname is no folder"),
        ("add x npm:y --mount /tmp:/b --volume v:/b/c", 3, "one would hide the other"),
        ("add x npm:y --volume v:/a:1MiB", 3, "a volume has 16 MiB to"),
        ("add x npm:y --secret A=env:B,placeholder", 3, "the server may reach nobody"),
        ("add x npm:y --secret A=env:B --env A=c", 3, "as a variable and as a secret"),
        ("add x npm:y --secret A=env:B --secret A=env:C", 3, "secret A is given twice"),
        ("launch x --command true --secret A=env:B --env A=c", 3, "as a variable and as a secret"),
        ("add x npm:y --backend firecracker", 4, "backend firecracker is not built yet"),
        ("run --restart on-failure -- true", 2, "lives for one conversation"),
        ("run --args \"'\" -- true", 2, "quotes"),
        ("run --forward 5254=h:1 -- true", 3, "casemate's proxy"),
        ("launch x --command true --backend firecracker", 4, "backend firecracker is not built yet"),
        ("serve --listen 127.0.0.1:0", 3, "there is no server to serve"),
        ("serve --listen localhost", 2, "invalid socket address"),
        ("serve --listen [::]:0", 2, "there is no authentication yet"),
        ("serve --allow-origin *", 2, "write scheme and host"),
        ("serve --session-idle 0s", 2, "longer than none"),
        ("serve --template k", 4, "--template is not built yet"),
        ("client-config", 2, "<CLIENT>"),
        ("client-config emacs", 2, "possible values: claude-code"),
        ("client-config cursor --write --undo", 2, "cannot be used with"),
        ("client-config cursor --file x", 2, "names a file to write to"),
        ("client-config cursor --force", 2, "--undo"),
        ("client-config cursor x", 3, "no server is named x"),
        ("client-config cursor", 3, "no server was added yet"),
        ("import", 2, "<CLIENT>"),
        ("import cursor --no-build", 2, "--write"),
        ("import cursor --file /nowhere/mcp.json", 3, "there is no /nowhere/mcp.json"),
        ("import cursor --undo --file /nowhere/mcp.json", 3, "no backup beside"),
        ("ssh-server", 4, "not built yet"),
        ("load s.toml", 4, "not built yet"),
        ("reliability s.toml", 4, "not built yet"),
        ("verify x --help", 4, "not built yet"),
        ("report d --html", 4, "not built yet"),
    ] {
        let words = shlex::split(line).unwrap();
        let result = casemate(&home, &words);
        assert_eq!(result.code, code, "casemate {line}\n{}", result.stderr);
        assert!(result.stderr.contains(said), "casemate {line}\n{}", result.stderr);
        assert_eq!(result.stdout, "", "casemate {line}");
    }
    let machines: Vec<_> = fs::read_dir(home.path().join("machines")).unwrap().flatten().collect();
    assert!(machines.iter().all(|entry| entry.path().is_file()), "{machines:?}");
}

#[test]
fn what_does_not_run_is_stopped_already() {
    let home = Home::isolated();
    for _ in 0..2 {
        let stopped = casemate(&home, &["stop", "x"]);
        assert_eq!((stopped.code, stopped.stdout.as_str()), (0, "x does not run\n"), "{}", stopped.stderr);
    }
    assert_eq!(casemate(&home, &["stop", "--all"]).stdout, "No machine runs\n");
}

#[test]
fn a_mistyped_server_is_recognised() {
    let home = Home::isolated();
    home.write("config.toml", "[[servers]]\nid = \"everything\"\nsource = \"npm:x\"\n");
    for line in [["launch", "everthing"], ["tools", "everthing"], ["remove", "everthing"]] {
        let result = casemate(&home, &line);
        assert_eq!(result.code, 3);
        assert!(result.stderr.contains("hint: did you mean everything?"), "{}", result.stderr);
    }
}

#[test]
fn homes_that_cannot_be_used_are_refused_with_a_remedy() {
    let home = Home::isolated();
    home.write("file", "");
    let file = home.path().join("file").display().to_string();
    for wrong in [file.clone(), format!("{file}/below"), "relative".to_owned(), "/proc/nowhere".to_owned()] {
        let mut command = home.command(&["status"]);
        command.env("CASEMATE_HOME", &wrong);
        let result = crate::home::finish(command, b"");
        assert_eq!(result.code, 3, "{wrong}: {}", result.stderr);
        assert!(result.stderr.contains("hint: "), "{wrong}: {}", result.stderr);
    }
}

#[test]
fn errors_are_said_once_and_quiet_keeps_them() {
    let home = Home::isolated();
    let loud = casemate(&home, &["launch", "x"]);
    let quiet = casemate(&home, &["--quiet", "launch", "x"]);
    assert_eq!((quiet.code, &quiet.stderr), (3, &loud.stderr));
    assert_eq!(loud.stderr.matches("no server is named x").count(), 1);
    assert!(!loud.stderr.contains('\u{1b}'), "colours without a terminal");
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let home = Home::isolated();
    let mut command = home.command(&["list", "--json"]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut child = command.stdout(writer).spawn().unwrap();
    let mut said = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut said).unwrap();
    assert_eq!((child.wait().unwrap().code(), said.as_str()), (Some(141), ""));
}
