//! What a server tries against the folders and volumes that it was given, by system calls of its own.

use crate::{
    home::{Home, casemate},
    live::json_of,
};
use serde_json::{Value, json};
use std::fs;

/// A server whose only tool makes each attempt and answers with the error number of each, 0 for success.
const SERVER: &str = r#"
import ctypes, json, os, stat, sys

libc = ctypes.CDLL(None, use_errno=True)
REMOUNT, BIND, DETACH = 32, 4096, 2

def call(name, *arguments):
    def attempt():
        if getattr(libc, name)(*arguments) != 0:
            raise OSError(ctypes.get_errno(), name)
    return attempt

def write(path):
    return lambda: open(path, "w").close()

attempts = {
    "write-folder": write("/folder/new"),
    "overwrite-folder": write("/folder/file"),
    "remove-folder": lambda: os.remove("/folder/file"),
    "chmod-folder": lambda: os.chmod("/folder/file", 0o777),
    "remount-folder": call("mount", None, b"/folder", None, REMOUNT, None),
    "remount-bind-folder": call("mount", None, b"/folder", None, REMOUNT | BIND, None),
    "remount-root": call("mount", None, b"/", None, REMOUNT, None),
    "cover-folder": call("mount", b"none", b"/folder", b"tmpfs", 0, None),
    "unmount-folder": call("umount2", b"/folder", DETACH),
    "unmount-volume": call("umount2", b"/volume", DETACH),
    "device-in-volume": lambda: os.mknod("/volume/disk", stat.S_IFBLK | 0o666, os.makedev(254, 0)),
    "give-away-volume": lambda: os.chown("/volume", 0, 0),
    "open-disk": lambda: os.open("/dev/vda", os.O_RDONLY),
    "open-volume-disk": lambda: os.open("/dev/vdc", os.O_RDWR),
    "replace-mount-point": lambda: os.rename("/volume", "/volume2"),
    "write-volume": write("/volume/file"),
}

def attempted(attempt):
    try:
        attempt()
        return 0
    except OSError as error:
        return error.errno

def answer(method, params):
    if method == "initialize":
        return {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}},
                "serverInfo": {"name": "attacker", "version": "1"}}
    if method == "tools/list":
        return {"tools": [{"name": "attack", "inputSchema": {"type": "object"}}]}
    if method == "tools/call":
        errors = {name: attempted(attempt) for name, attempt in attempts.items()}
        return {"content": [{"type": "text", "text": json.dumps(errors)}]}
    return {}

for line in sys.stdin:
    request = json.loads(line)
    if "id" in request:
        result = answer(request["method"], request.get("params") or {})
        print(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}), flush=True)
"#;

#[test]
fn what_a_server_was_given_is_changed_by_none_of_its_system_calls() {
    const EPERM: i64 = 1;
    const ENOENT: i64 = 2;
    const EROFS: i64 = 30;
    let home = Home::new();
    let (server, folder) = (home.path().join("server"), home.path().join("folder"));
    for (path, content) in [(server.join("server.py"), SERVER), (folder.join("file"), "content")] {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    let manifest = "[project]\nname = \"attacker\"\nversion = \"1\"\nrequires-python = \">=3.10\"\n";
    fs::write(server.join("pyproject.toml"), manifest).unwrap();
    let (source, mount) = (format!("dir:{}", server.display()), format!("{}:/folder", folder.display()));
    let command = ["--command", "python server.py"];
    let given = ["--mount", &mount, "--volume", "attacked:/volume:16MiB"];
    let added = casemate(&home, &[&["add", "attacker", &source][..], &command, &given].concat());
    assert_eq!(added.code, 0, "{}", added.stderr);
    let said = json_of(&home, &["call", "attacker", "attack", "--json"]);
    let mut errors: Value = serde_json::from_str(said["content"][0]["text"].as_str().unwrap()).unwrap();

    // The way to see that attempts can succeed.
    assert_eq!(errors["write-volume"].take(), 0);
    let replaced = errors["replace-mount-point"].take();
    assert!([EROFS, 16, 18].map(Value::from).contains(&replaced), "{replaced}");
    assert_eq!(
        errors,
        json!({
            "write-folder": EROFS, "overwrite-folder": EROFS, "remove-folder": EROFS, "chmod-folder": EROFS,
            "remount-folder": EPERM, "remount-bind-folder": EPERM, "remount-root": EPERM,
            "cover-folder": EPERM, "unmount-folder": EPERM, "unmount-volume": EPERM,
            "device-in-volume": EPERM, "give-away-volume": EPERM,
            "open-disk": ENOENT, "open-volume-disk": ENOENT,
            "replace-mount-point": null, "write-volume": null,
        })
    );
    assert_eq!(fs::read(folder.join("file")).unwrap(), b"content");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
}
