//! Tools that answer at once from what the process knows.

use super::arguments::{Argument, Kind};
use super::{Arguments, CHANGES, Failure, LOOKS, Reply, Tool, VARIES, time};
use crate::call::Call;
use crate::revision::{self, Revision};
use crate::stdio;
use rustix::rand::{GetRandomFlags, getrandom};
use serde_json::{Map, Value, json};
use std::fs;
use std::io::{self, Write};

/// The longest text of `big_reply`: longer than a message may be, so that the bound can be tested.
const BIGGEST_REPLY: i64 = 20 << 20;

pub const ECHO: Tool = Tool {
    name: "echo",
    title: "Echo",
    description: "Returns the message with the time of day.",
    arguments: &[Argument::required("message", Kind::Text, "What to return.")],
    hints: VARIES,
    slow: false,
    run: |_, arguments| {
        Ok(Reply::Json(json!({ "message": arguments.text("message"), "timestamp": time::now() })))
    },
};

pub const ADD: Tool = Tool {
    name: "add",
    title: "Add",
    description: "Adds two numbers.",
    arguments: &[
        Argument::required("a", Kind::Number, "The first number."),
        Argument::required("b", Kind::Number, "The second number."),
    ],
    hints: LOOKS,
    slow: false,
    run: add,
};

pub const GET_SERVER_INFO: Tool = Tool {
    name: "get_server_info",
    title: "Server information",
    description: "Says who serves whom: identity, client, requests so far, uptime, process, platform, versions.",
    arguments: &[],
    hints: VARIES,
    slow: false,
    run: get_server_info,
};

pub const ENV: Tool = Tool {
    name: "env",
    title: "Environment",
    description: "Returns one variable of the server's environment (null if it is not set), or all.",
    arguments: &[Argument::text("name", "The variable; all if absent.")],
    hints: LOOKS,
    slow: false,
    run: env,
};

pub const WHOAMI: Tool = Tool {
    name: "whoami",
    title: "Who am I",
    description: "Says as whom the server runs: user, groups, capabilities, no_new_privs, seccomp mode, \
                  host name, working folder.",
    arguments: &[],
    hints: LOOKS,
    slow: false,
    run: whoami,
};

pub const RANDOM: Tool = Tool {
    name: "random",
    title: "Random bytes",
    description: "Returns random bytes of the kernel in hexadecimal.",
    arguments: &[Argument::integer("bytes", (1, 1 << 20), 16, "How many.")],
    hints: VARIES,
    slow: false,
    run: random,
};

pub const COUNTER: Tool = Tool {
    name: "counter",
    title: "Counter",
    description: "Increments a counter in the server's memory and returns it with the process id: shows which \
                  process answered, and what it remembers.",
    arguments: &[],
    hints: CHANGES,
    slow: false,
    run: |call, _| {
        Ok(Reply::Json(json!({ "count": call.conversation.server.increment(), "pid": std::process::id() })))
    },
};

pub const LOG_TO_STDOUT: Tool = Tool {
    name: "log_to_stdout",
    title: "Log to stdout",
    description: "Prints a line on stdout, where only protocol messages belong, and then answers.",
    arguments: &[Argument::required("line", Kind::Text, "The line.")],
    hints: CHANGES,
    slow: false,
    run: |_, arguments| {
        stdio::write_line(arguments.text("line").as_bytes().to_vec());
        Ok(Reply::Text("printed".to_owned()))
    },
};

pub const LOG_TO_STDERR: Tool = Tool {
    name: "log_to_stderr",
    title: "Log to stderr",
    description: "Writes a text on stderr as it is, without the end of a line.",
    arguments: &[Argument::required("text", Kind::Text, "The text.")],
    hints: CHANGES,
    slow: false,
    run: |_, arguments| {
        let written = io::stderr().write_all(arguments.text("text").as_bytes());
        written.map_err(|error| Failure::system("write to stderr", error))?;
        Ok(Reply::Text("written".to_owned()))
    },
};

pub const BIG_REPLY: Tool = Tool {
    name: "big_reply",
    title: "Big reply",
    description: "Returns a text of that many bytes.",
    arguments: &[Argument::required("bytes", Kind::Integer(0, BIGGEST_REPLY), "Length of the text.")],
    hints: LOOKS,
    slow: true,
    run: |_, arguments| Ok(Reply::Text("x".repeat(arguments.size("bytes")))),
};

fn add(_: &Call, arguments: &Arguments) -> Result<Reply, Failure> {
    let (a, b) = (arguments.number("a"), arguments.number("b"));
    let exact = a.as_i64().zip(b.as_i64()).and_then(|(a, b)| a.checked_add(b)).map(Value::from);
    let rounded = || a.as_f64().zip(b.as_f64()).map(|(a, b)| a + b).filter(|sum| sum.is_finite());
    let sum = exact
        .or_else(|| rounded().map(Value::from))
        .ok_or_else(|| Failure::Tool("the sum is no finite number".to_owned()))?;
    Ok(Reply::Json(json!({ "result": sum, "operation": format!("{a} + {b} = {sum}") })))
}

fn get_server_info(call: &Call, _: &Arguments) -> Result<Reply, Failure> {
    let server = &call.conversation.server;
    let revision = call.terms.revision;
    Ok(Reply::Json(json!({
        "server": revision::server_info(revision),
        "client": call.terms.client,
        "requestCount": server.requests(),
        "uptimeMs": server.uptime().as_millis() as u64,
        "pid": std::process::id(),
        "platform": format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH),
        "versions": {
            "probe": env!("CARGO_PKG_VERSION"),
            "kernel": rustix::system::uname().release().to_string_lossy(),
            "protocol": revision.name(),
            "protocols": revision::names(&[&Revision::LEGACY[..], &Revision::MODERN].concat()),
        },
    })))
}

fn env(_: &Call, arguments: &Arguments) -> Result<Reply, Failure> {
    let variables = std::env::vars_os()
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into()));
    let reply = match arguments.optional("name") {
        None => Value::Object(variables.collect::<Map<_, _>>()),
        Some(name) => {
            let value: Option<Value> =
                variables.into_iter().find(|(known, _)| known == name).map(|(_, value)| value);
            json!({ "name": name, "value": value })
        }
    };
    Ok(Reply::Json(reply))
}

fn whoami(_: &Call, _: &Arguments) -> Result<Reply, Failure> {
    let status = fs::read_to_string("/proc/self/status")
        .map_err(|error| Failure::system("read /proc/self/status", error))?;
    let field = |name: &str| {
        status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map_or("", str::trim)
    };
    let numbers = |name: &str| -> Vec<u32> {
        field(name).split_whitespace().filter_map(|number| number.parse().ok()).collect()
    };
    let (uids, gids) = (numbers("Uid"), numbers("Gid"));
    let cwd = std::env::current_dir().map_err(|error| Failure::system("find the working folder", error))?;
    Ok(Reply::Json(json!({
        "uid": uids.first(),
        "euid": uids.get(1),
        "gid": gids.first(),
        "egid": gids.get(1),
        "groups": numbers("Groups"),
        "capabilities": {
            "inheritable": field("CapInh"),
            "permitted": field("CapPrm"),
            "effective": field("CapEff"),
            "bounding": field("CapBnd"),
            "ambient": field("CapAmb"),
        },
        "no_new_privs": field("NoNewPrivs") == "1",
        "seccomp": numbers("Seccomp").first(),
        "hostname": rustix::system::uname().nodename().to_string_lossy(),
        "cwd": cwd.to_string_lossy(),
    })))
}

fn random(_: &Call, arguments: &Arguments) -> Result<Reply, Failure> {
    let mut bytes = vec![0; arguments.size("bytes")];
    fill_random(&mut bytes).map_err(|error| Failure::system("get random bytes", error))?;
    Ok(Reply::Json(json!({ "bytes": bytes.len(), "hex": hex(&bytes) })))
}

/// Fills `bytes` from the kernel.
pub fn fill_random(mut bytes: &mut [u8]) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        match getrandom(&mut *bytes, GetRandomFlags::empty()) {
            Ok(filled) => bytes = &mut bytes[filled..],
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(nibble.into(), 16).unwrap_or('0');
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}
