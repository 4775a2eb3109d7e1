//! What a server tries against the folders and volumes that it was given, by system calls of its own.

use crate::{attack, home::Home};
use serde_json::{Value, json};
use std::fs;

#[test]
fn what_a_server_was_given_is_changed_by_none_of_its_system_calls() {
    const EPERM: i64 = 1;
    const ENOENT: i64 = 2;
    const EROFS: i64 = 30;
    let home = Home::new();
    let folder = home.path().join("folder");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("file"), "content").unwrap();
    let mount = format!("{}:/folder", folder.display());
    attack::add(&home, &["--mount", &mount, "--volume", "attacked:/volume:16MiB"]);
    let mut errors = attack::ask(&home, "given");

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
