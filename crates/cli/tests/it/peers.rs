//! A supervisor's socket answers its user and root, whoever else comes to reach it.

use crate::{
    live::{folder, launch, probe_home},
    support::PATIENCE,
};
use casemate_testkit::cannot_run;
use rustix::process::Uid;
use std::{
    fs,
    io::{ErrorKind, Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::Path,
    thread,
};

/// What a thread of this user is told that asks for the conversation.
fn ask(socket: &Path, user: u32) -> String {
    let asking = || {
        // Of this thread alone, which is who connects.
        let user = Uid::from_raw(user);
        rustix::thread::set_thread_res_uid(user, user, user).unwrap();
        let mut stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // One that is closed at once may not take the question any more.
        let _ = stream.write_all(b"CONNECT 5252\n");
        let mut answer = String::new();
        match stream.read_to_string(&mut answer) {
            Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{error}"),
            _ => answer,
        }
    };
    thread::scope(|scope| scope.spawn(asking).join().unwrap())
}

#[test]
fn another_user_is_not_answered_though_the_folders_and_the_socket_let_it_in() {
    if !rustix::process::geteuid().is_root() {
        return cannot_run("only root can be another user");
    }
    let home = probe_home();
    let machine = folder(&home, &launch(&home, "m", &[]));
    let socket = machine.join("supervisor.sock");
    for (path, mode) in
        [(home.path(), 0o711), (&home.path().join("machines"), 0o711), (&machine, 0o711), (&socket, 0o666)]
    {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    assert_eq!(ask(&socket, 65534), "");
    // Who may is at least told why not.
    let told = ask(&socket, 0);
    assert!(told.contains("held by the machine's supervisor"), "{told}");
}
