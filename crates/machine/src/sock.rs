//! Unix sockets below folders whose path is longer than a socket address may be (108 bytes).
//!
//! The folder is opened first, and the socket is named through its descriptor.

use rustix::fs::{Mode, OFlags};
use std::{
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::{Path, PathBuf},
};
use tokio::net::{UnixListener, UnixStream};

/// Makes a listening socket that nobody else may connect to. One that a killed process left is replaced.
pub(crate) fn bind(dir: &Path, name: &str) -> io::Result<UnixListener> {
    let (_dir, path) = through_descriptor(dir, name)?;
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Connects to a socket in a folder.
pub(crate) async fn connect(dir: &Path, name: &str) -> io::Result<UnixStream> {
    let (_dir, path) = through_descriptor(dir, name)?;
    UnixStream::connect(&path).await
}

fn through_descriptor(dir: &Path, name: &str) -> io::Result<(OwnedFd, PathBuf)> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(dir, flags, Mode::empty())?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name);
    Ok((dir, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_long_path_is_no_obstacle_and_a_stale_socket_neither() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("x".repeat(120)).join("y".repeat(120));
        std::fs::create_dir_all(&deep).unwrap();
        drop(bind(&deep, "s.sock").unwrap());
        let listener = bind(&deep, "s.sock").unwrap();
        let (client, server) = tokio::join!(connect(&deep, "s.sock"), listener.accept());
        assert!(client.is_ok() && server.is_ok());
        let mode = std::fs::metadata(deep.join("s.sock")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
