//! Tools that read and write files.

use super::answers::hex;
use super::arguments::{Argument, Kind};
use super::{Arguments, BREAKS, Failure, LOOKS, Reply, Tool};
use crate::call::Call;
use serde_json::json;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};

/// The most that `read_file` returns: in hexadecimal it still fits a message.
const MOST_READ: i64 = 4 << 20;

pub const READ_FILE: Tool = Tool {
    name: "read_file",
    title: "Read a file",
    description: "Returns the beginning of a file: as text if it is UTF-8, else in hexadecimal.",
    arguments: &[
        Argument::required("path", Kind::Text, "The file."),
        Argument::integer("max_bytes", (0, MOST_READ), 64 << 10, "How much at most."),
    ],
    hints: LOOKS,
    slow: true,
    run: read_file,
};

pub const WRITE_FILE: Tool = Tool {
    name: "write_file",
    title: "Write a file",
    description: "Writes a text to a file, in place of what is there or after it.",
    arguments: &[
        Argument::required("path", Kind::Text, "The file; it is created if it does not exist."),
        Argument::required("content", Kind::Text, "The text."),
        Argument::flag("append", "Whether to add to the file."),
    ],
    hints: BREAKS,
    slow: true,
    run: write_file,
};

fn read_file(_: &Call, arguments: &Arguments) -> Result<Reply, Failure> {
    let path = arguments.text("path");
    let limit = arguments.size("max_bytes");
    let failed = |error| Failure::system(&format!("read {path}"), error);
    let mut bytes = Vec::new();
    // One more than wanted shows whether there is more.
    let mut file = File::open(path).map_err(failed)?.take(limit as u64 + 1);
    file.read_to_end(&mut bytes).map_err(failed)?;
    let truncated = bytes.len() > limit;
    bytes.truncate(limit);
    let (encoding, content) = match str::from_utf8(&bytes) {
        Ok(text) => ("utf-8", text.to_owned()),
        Err(_) => ("hex", hex(&bytes)),
    };
    Ok(Reply::Json(json!({
        "path": path,
        "bytes": bytes.len(),
        "truncated": truncated,
        "encoding": encoding,
        "content": content,
    })))
}

fn write_file(_: &Call, arguments: &Arguments) -> Result<Reply, Failure> {
    let path = arguments.text("path");
    let append = arguments.flag("append");
    let failed = |error| Failure::system(&format!("write {path}"), error);
    let content = arguments.text("content").as_bytes();
    let mut file = OpenOptions::new()
        .create(true)
        .write(true)
        .append(append)
        .truncate(!append)
        .open(path)
        .map_err(failed)?;
    file.write_all(content).map_err(failed)?;
    Ok(Reply::Json(json!({ "path": path, "bytes": content.len() })))
}
