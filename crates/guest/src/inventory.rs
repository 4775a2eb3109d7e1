//! What exists inside a machine: files in the writable folders, processes, sockets.
//!
//! The server can change all of it at any moment, so links are never followed and everything is bounded.

use crate::root::WRITABLE;
use crate::{procfs, sys};
use casemate_proto::control::{FileEntry, Inventory, ProcessEntry, SocketEntry};
use casemate_proto::limits::{CONTROL_MESSAGE_BYTES, INVENTORY_ENTRIES};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, statat};
use serde::Serialize;
use std::ffi::CStr;
use std::fs;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

const COMMAND_BYTES: usize = 1024;
/// Open folders on the way down; deeper ones are left out.
const DEPTH: usize = 32;
/// The state of a TCP socket that listens, proc(5).
const LISTEN: &str = "0A";
/// How many bytes of a table of sockets are read.
const TABLE_BYTES: u64 = 1 << 20;
/// What the entries of one kind may take on the wire, so that the answer is a control message whatever names
/// the server chose, and no kind crowds out another.
const KIND_BYTES: usize = (CONTROL_MESSAGE_BYTES - 4096) / 3;

/// Looks; `root` is the machine's root as the agent sees it, empty if it is the agent's own.
pub fn take(root: &str) -> Inventory {
    let mut inventory = Inventory::default();
    let mut files = Entries::default();
    for folder in WRITABLE {
        let path = format!("{root}{folder}");
        if let Ok(opened) = openat(CWD, &*path, FOLDER, Mode::empty()) {
            list(opened, folder, DEPTH, &mut files);
        }
    }
    inventory.truncated = files.finish(&mut inventory.files)
        | list_processes().finish(&mut inventory.processes)
        | list_sockets().finish(&mut inventory.sockets);
    inventory
}

/// Entries of one kind, as many as fit.
#[derive(Debug)]
struct Entries<T> {
    entries: Vec<T>,
    bytes: usize,
    truncated: bool,
}

impl<T> Default for Entries<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), bytes: 0, truncated: false }
    }
}

impl<T: Serialize> Entries<T> {
    fn push(&mut self, entry: T) {
        let length = serde_json::to_vec(&entry).map_or(KIND_BYTES, |json| json.len() + 1);
        if self.entries.len() >= INVENTORY_ENTRIES || self.bytes + length > KIND_BYTES {
            self.truncated = true;
            return;
        }
        self.bytes += length;
        self.entries.push(entry);
    }

    fn finish(self, into: &mut Vec<T>) -> bool {
        *into = self.entries;
        self.truncated
    }
}

const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC)
    .union(OFlags::NONBLOCK);

fn list(folder: OwnedFd, path: &str, depth: usize, files: &mut Entries<FileEntry>) {
    let Ok(entries) = Dir::read_from(&folder) else { return };
    for entry in entries.flatten() {
        if files.truncated {
            return;
        }
        let name: &CStr = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let Ok(stat) = statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        let path = format!("{path}/{}", name.to_string_lossy());
        let is_folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        files.push(FileEntry {
            path: path.clone(),
            bytes: stat.st_size.max(0) as u64,
            mode: stat.st_mode,
            uid: stat.st_uid,
        });
        if is_folder {
            match openat(&folder, name, FOLDER, Mode::empty()) {
                Ok(inner) if depth > 0 => list(inner, &path, depth - 1, files),
                Ok(_) => files.truncated = true,
                // Gone meanwhile.
                Err(_) => {}
            }
        }
    }
}

fn list_processes() -> Entries<ProcessEntry> {
    let page_kb = sys::page_bytes() / 1024;
    let mut entries = Entries::default();
    for process in procfs::processes().filter(|process| !process.kernel) {
        let Ok(stat) = rustix::fs::stat(format!("/proc/{}", process.pid)) else { continue };
        entries.push(ProcessEntry {
            pid: process.pid as u32,
            parent: process.parent as u32,
            uid: stat.st_uid,
            command: command_line(process.pid),
            rss_kb: process.pages * page_kb,
        });
        if entries.truncated {
            break;
        }
    }
    entries
}

fn command_line(pid: i32) -> String {
    let mut bytes = read_bounded(&format!("/proc/{pid}/cmdline"), COMMAND_BYTES as u64);
    while bytes.last() == Some(&0) {
        bytes.pop();
    }
    bytes.iter_mut().filter(|byte| **byte == 0).for_each(|byte| *byte = b' ');
    let mut text = String::from_utf8_lossy(&bytes).into_owned();
    // A replaced byte is longer than the byte.
    text.truncate(text.floor_char_boundary(COMMAND_BYTES));
    text
}

fn list_sockets() -> Entries<SocketEntry> {
    let mut entries = Entries::default();
    for family in ["tcp", "tcp6", "udp", "udp6", "unix"] {
        let table = read_bounded(&format!("/proc/net/{family}"), TABLE_BYTES);
        entries.truncated |= table.len() as u64 == TABLE_BYTES;
        let table = String::from_utf8_lossy(&table);
        for line in table.lines().skip(1) {
            let entry = if family == "unix" { parse_unix(line) } else { parse_inet(family, line) };
            if let Some(entry) = entry {
                entries.push(entry);
            }
        }
    }
    entries
}

/// Where TCP connections are taken.
pub fn listening() -> Vec<SocketAddr> {
    let lines = |family: &str| {
        let table = read_bounded(&format!("/proc/net/{family}"), TABLE_BYTES);
        String::from_utf8_lossy(&table).lines().skip(1).filter_map(listener).collect::<Vec<_>>()
    };
    [lines("tcp"), lines("tcp6")].concat()
}

/// The address of a socket that listens, of a line of `/proc/net/tcp` or `tcp6`.
fn listener(line: &str) -> Option<SocketAddr> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let local = parse_address(fields.next()?)?;
    (fields.nth(1)? == LISTEN).then_some(local)
}

fn read_bounded(path: &str, limit: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Ok(file) = fs::File::open(path) {
        // What could be read is what there is to tell.
        let _ = file.take(limit).read_to_end(&mut bytes);
    }
    bytes
}

/// A line of `/proc/net/tcp` and its like, proc(5): `sl local remote state …`, addresses in hexadecimal words
/// of the machine's byte order.
fn parse_inet(family: &str, line: &str) -> Option<SocketEntry> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let local = parse_address(fields.next()?)?;
    let peer = parse_address(fields.next()?)?;
    let listening = fields.next()? == LISTEN;
    let peer = (peer.port() != 0).then(|| peer.to_string());
    // A datagram socket without a peer takes whatever comes.
    let listening = listening || (family.starts_with("udp") && peer.is_none());
    Some(SocketEntry { family: family.to_owned(), local: local.to_string(), peer, listening })
}

fn parse_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let word = |at: usize| u32::from_str_radix(address.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    let address: IpAddr = match address.len() {
        8 => Ipv4Addr::from(word(0)?).into(),
        32 => {
            let mut bytes = [0; 16];
            for (number, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(number * 8)?);
            }
            Ipv6Addr::from(bytes).into()
        }
        _ => return None,
    };
    Some(SocketAddr::new(address, u16::from_str_radix(port, 16).ok()?))
}

/// A line of `/proc/net/unix`: `num refcount protocol flags type state inode path`. Only sockets that listen
/// or have a name are told.
fn parse_unix(line: &str) -> Option<SocketEntry> {
    /// `SO_ACCEPTCON`
    const LISTENS: u32 = 0x10000;
    let mut fields = line.split_ascii_whitespace();
    let flags = u32::from_str_radix(fields.nth(3)?, 16).ok()?;
    let path = fields.nth(3)?;
    Some(SocketEntry {
        family: "unix".to_owned(),
        local: path.to_owned(),
        peer: None,
        listening: flags & LISTENS != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_tables_are_read_as_the_kernel_writes_them() {
        let line =
            "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1";
        let entry = parse_inet("tcp", line).unwrap();
        assert_eq!((entry.local.as_str(), entry.peer, entry.listening), ("127.0.0.1:8080", None, true));
        assert_eq!(listener(line), "127.0.0.1:8080".parse().ok());
        let line = "1: 00000000000000000000000001000000:0050 00000000000000000000000001000000:C000 01 0";
        let entry = parse_inet("tcp6", line).unwrap();
        assert_eq!(entry.local, "[::1]:80");
        assert_eq!(listener(line), None);
        assert_eq!(
            (entry.peer.as_deref(), entry.listening),
            Some("[::1]:49152").map(|p| (Some(p), false)).unwrap()
        );
        let line = "0000000000000000: 00000002 00000000 00010000 0001 01 12345 /run/x.sock";
        assert!(parse_unix(line).unwrap().listening);
        assert_eq!(parse_inet("tcp", "0: 7F:1 x"), None);
    }

    #[test]
    fn links_are_listed_and_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let tmp = folder.path().join("tmp");
        fs::create_dir_all(tmp.join("inner")).unwrap();
        fs::write(tmp.join("inner/file"), "12345").unwrap();
        std::os::unix::fs::symlink("/", tmp.join("link")).unwrap();
        let inventory = take(folder.path().to_str().unwrap());
        let mut paths: Vec<_> = inventory.files.iter().map(|file| (file.path.as_str(), file.bytes)).collect();
        paths.sort_unstable();
        assert_eq!(
            paths.iter().map(|(path, _)| *path).collect::<Vec<_>>(),
            ["/tmp/inner", "/tmp/inner/file", "/tmp/link"]
        );
        assert_eq!(paths[1].1, 5);
        assert!(inventory.processes.iter().any(|process| process.pid == std::process::id()));
    }
}
