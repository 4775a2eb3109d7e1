//! Tools that strain or break the process that runs them.

use super::arguments::{Argument, Kind};
use super::{Arguments, BREAKS, CHANGES, Failure, Reply, Tool};
use crate::call::Call;
use crate::signal::Waited;
use crate::sys;
use rustix::process::{Pid, Resource, Rlimit, Signal, WaitOptions, kill_process, setrlimit, waitpid};
use serde_json::json;
use std::time::Duration;

/// The most memory that `allocate` takes, in MiB.
const MOST_MEMORY: i64 = 1 << 20;

const PAGE_BYTES: usize = 4096;

pub const CRASH: Tool = Tool {
    name: "crash",
    title: "Crash",
    description: "Ends the server by a signal, without an answer: SIGSEGV from a wild write, or SIGABRT.",
    arguments: &[Argument::choice("kind", &["segfault", "abort"], "How.")],
    hints: BREAKS,
    slow: false,
    run: |_, arguments| {
        // A core file would be litter, and inside a machine would fill a tmpfs.
        let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
        if arguments.text("kind") == "segfault" {
            sys::fault();
        }
        std::process::abort();
    },
};

pub const EXIT: Tool = Tool {
    name: "exit",
    title: "Exit",
    description: "Ends the server with that status, without an answer.",
    arguments: &[Argument::integer("code", (0, 255), 0, "The status.")],
    hints: BREAKS,
    slow: false,
    run: |_, arguments| std::process::exit(arguments.integer("code") as i32),
};

pub const ALLOCATE: Tool = Tool {
    name: "allocate",
    title: "Allocate memory",
    description: "Takes memory, writes to every page of it, holds it, gives it back.",
    arguments: &[
        Argument::required("mb", Kind::Integer(0, MOST_MEMORY), "How much, in MiB."),
        Argument::integer("hold_ms", (0, 600_000), 0, "For how long, in milliseconds."),
    ],
    hints: CHANGES,
    slow: true,
    run: allocate,
};

pub const FORK_BOMB: Tool = Tool {
    name: "fork_bomb",
    title: "Fork bomb",
    description: "Starts processes until that is refused or there are enough, then ends and reaps them all.",
    arguments: &[Argument::integer("limit", (0, 100_000), 1000, "How many at most.")],
    hints: BREAKS,
    slow: true,
    run: fork_bomb,
};

fn allocate(call: &Call, arguments: &Arguments) -> Result<Reply, Failure> {
    let (mb, hold_ms) = (arguments.size("mb"), arguments.size("hold_ms"));
    let mut memory: Vec<u8> = Vec::new();
    let bytes = mb << 20;
    memory.try_reserve_exact(bytes).map_err(|error| Failure::system(&format!("take {mb} MiB"), error))?;
    while memory.len() < bytes {
        if call.signal.is_cancelled() {
            return Err(Failure::Cancelled);
        }
        // Not zero, or the pages could be shared or never exist.
        memory.resize((memory.len() + (1 << 20)).min(bytes), 0x5a);
    }
    if matches!(call.signal.wait(Duration::from_millis(hold_ms as u64)), Waited::Cancelled) {
        return Err(Failure::Cancelled);
    }
    let touched = memory.iter().step_by(PAGE_BYTES).filter(|&&byte| byte == 0x5a).count();
    Ok(Reply::Json(json!({ "mb": mb, "pages": touched, "heldMs": hold_ms })))
}

fn fork_bomb(call: &Call, arguments: &Arguments) -> Result<Reply, Failure> {
    let limit = arguments.size("limit");
    let mut children: Vec<Pid> = Vec::new();
    let mut refused = None;
    while children.len() < limit && !call.signal.is_cancelled() {
        match sys::fork_idle() {
            Ok(child) => children.push(child),
            Err(error) => {
                refused = Some(error.to_string());
                break;
            }
        }
    }
    for &child in &children {
        // It cannot have ended and been reaped: only this function waits for it.
        let _ = kill_process(child, Signal::KILL);
    }
    let reaped = children.iter().filter(|&&child| reap(child)).count();
    Ok(Reply::Json(json!({ "forked": children.len(), "refused": refused, "reaped": reaped })))
}

fn reap(child: Pid) -> bool {
    loop {
        match waitpid(Some(child), WaitOptions::empty()) {
            Err(rustix::io::Errno::INTR) => {}
            waited => return matches!(waited, Ok(Some(_))),
        }
    }
}
