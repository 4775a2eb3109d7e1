//! Messages between supervisor and agent on port 5253.
//!
//! Each stream is newline-delimited JSON-RPC 2.0, requests from the host, answers from the guest, one at a
//! time. The first request is `hello`; it states the protocol version and the machine's epoch, and a stream
//! whose epoch is not the agent's is closed. After the answer to `exec` or `watch` the stream carries
//! [frames](crate::frame) until it ends.
//!
//! ```text
//! host                                         agent
//!  {"id":0,"method":"hello","params":{…}}  ──>
//!                                          <── {"id":0,"result":{…}}
//!  {"id":1,"method":"start"}               ──>
//!                                          <── {"id":1,"result":{"pid":7}}
//! ```

use crate::{limits, mount::Mount};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::collections::BTreeMap;

/// The version of this protocol. A host and an agent of different versions do not talk.
pub const VERSION: u32 = 1;

/// One request, as it stands on the wire.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Envelope {
    /// Always `2.0`.
    pub jsonrpc: String,
    /// Chosen by the host; the answer repeats it.
    pub id: u64,
    /// What to do, within how long.
    #[serde(flatten)]
    pub request: Request,
    /// How long the host will wait, in milliseconds; the agent gives up by then too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
}

impl Envelope {
    /// A request that the host gives [`limits::CONTROL_TIMEOUT`].
    pub fn new(id: u64, request: Request) -> Self {
        let deadline_ms = Some(limits::CONTROL_TIMEOUT.as_millis() as u64);
        Self { jsonrpc: "2.0".to_owned(), id, request, deadline_ms }
    }
}

/// What the host may ask.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "method", content = "params", rename_all = "snake_case")]
pub enum Request {
    /// First on every stream.
    Hello(Hello),
    /// Makes the machine what it is: once an epoch, before `start` and `exec`.
    Configure(Box<Configure>),
    /// Starts the server, whose stdin and stdout wait for a conversation; does nothing if one waits already.
    Start,
    /// Starts a server that is reached by HTTP, should it not run, and waits until it listens on its port; refused
    /// in words where it does not.
    Listen {
        /// How long it may take, in milliseconds.
        patience_ms: u64,
    },
    /// Is the agent alive, and what is the server's state? Answered with [`Pong`].
    Ping,
    /// Memory, processor and counters. Answered with [`Stats`].
    Stats,
    /// Sends a signal to the server's process group.
    Signal {
        /// The signal's number.
        signal: i32,
    },
    /// Runs a program beside the server, as the server's user; then the stream is the program's.
    Exec(Exec),
    /// Lists what exists inside the machine. Answered with [`Inventory`].
    Inventory,
    /// Follows the server: its stderr and its [`Event`]s as frames, from the beginning; in a machine that was
    /// resumed, from where the last follower had come to.
    Watch,
    /// Ends the server and removes everything that it wrote and said, as if it had never been started: what
    /// stays is what its runtime keeps of compiled code, from now on unchangeable.
    Rinse,
    /// Waits until the server rests, then freezes it, so that the machine can become a template. Answered
    /// with [`Settled`].
    Settle,
    /// First in a machine that was restored from a template: fresh randomness, the clock and a name, before
    /// a frozen server goes on.
    Adopt(Adopt),
    /// Lets go of the conversation's stream without ending the server, so that the machine can be suspended:
    /// the next client of the conversation continues it.
    Park,
    /// Ends the server, then the machine. Answered before the power goes.
    Shutdown {
        /// How long the server may take to end by itself.
        grace_ms: u64,
    },
}

/// Parameters of `hello`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The host's [`VERSION`].
    pub protocol: u32,
    /// Names one life of a machine: a clone or a resumed machine gets a new one.
    pub epoch: String,
}

/// Answer to `hello`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The agent's [`VERSION`].
    pub protocol: u32,
    /// The agent's package version.
    pub agent: String,
}

/// Parameters of `configure`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configure {
    /// The machine's host name.
    pub hostname: String,
    /// The server's program and its arguments; a program without a slash is searched in `PATH`.
    pub command: Vec<String>,
    /// The server's whole environment.
    pub env: BTreeMap<String, String>,
    /// The folder that the server starts in.
    pub cwd: String,
    /// Where the root file system comes from.
    pub root: Root,
    /// What is mounted into it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// Volumes are not mounted yet but by the next `configure`: in a machine that becomes a template, whose clones
    /// would write what it remembers of one over what came after.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hold_volumes: bool,
    /// How the server is reached.
    pub transport: Transport,
    /// Bounds on what runs inside.
    pub limits: Limits,
    /// The time of day, in nanoseconds since 1970; absent where host and guest share a clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_unix_ns: Option<u64>,
    /// Fresh randomness for the guest's kernel, 32 bytes in hexadecimal; absent where they share a kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entropy: Option<String>,
    /// How the server's runtime is made to draw new random numbers in a clone; absent where the machine is no
    /// template's, or is one that holds no server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reseed: Option<Reseed>,
    /// The ways out of the machine; absent where there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Egress>,
    /// Whom the programs inside are to trust; absent where that is whom they trust anyway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<Trust>,
}

/// Certificates of authorities, PEM (RFC 7468): files that the agent writes where any program can read them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trust {
    /// The machine's own authority, at [`AUTHORITY_PATH`].
    pub authority: String,
    /// That one and those that the host trusts, at [`AUTHORITIES_PATH`].
    pub authorities: String,
}

/// Where programs find [`Trust::authority`].
pub const AUTHORITY_PATH: &str = "/run/casemate/authority.pem";

/// Where programs find [`Trust::authorities`].
pub const AUTHORITIES_PATH: &str = "/run/casemate/authorities.pem";

/// Ways out of a machine, see [`egress`](crate::egress). Where each leads is the host's affair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Egress {
    /// The port of guest loopback at which the agent offers a proxy (HTTP and SOCKS 5).
    #[serde(default)]
    pub proxy: Option<u16>,
    /// Ports of guest loopback that the host forwards.
    #[serde(default)]
    pub forwards: Vec<u16>,
    /// Names that lead outside by themselves, for programs that heed no proxy.
    #[serde(default)]
    pub names: Vec<crate::egress::Allow>,
}

/// How a runtime is made to forget, in a clone, the random numbers that it had drawn ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reseed {
    /// The program asks the kernel for each random number, which is reseeded anyway.
    Kernel,
    /// Node.js: a preloaded library and a script that it requires.
    Node,
    /// Python: a preloaded library and a `sitecustomize` module.
    Python,
}

/// Parameters of `adopt`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adopt {
    /// The machine's host name.
    pub hostname: String,
    /// The time of day, in nanoseconds since 1970.
    pub clock_unix_ns: u64,
    /// Fresh randomness for the guest's kernel, 32 bytes in hexadecimal.
    pub entropy: String,
    /// The server's runtime is to forget what it drew: in a clone, not in a machine that is merely resumed.
    pub reseed: bool,
}

/// Answer to `settle`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settled {
    /// Processor time that the server has used so far, in milliseconds.
    pub cpu_ms: u64,
    /// What clones of it would do.
    pub clones: Clones,
}

/// Whether clones of a server that runs would draw the same random numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Clones {
    /// Each draws its own.
    Differ,
    /// They may repeat each other's: a process has not loaded what [`Configure::reseed`] names.
    Repeat,
    /// They share numbers that the server drew while it started.
    Share,
}

/// Where a machine's root file system comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Root {
    /// A block device with an EROFS file system, mounted read-only; with `overlay`, a block device with an
    /// ext4 file system above it that takes the writes, so that they can be compared from outside.
    Device {
        /// Such as `/dev/vda`.
        device: String,
        /// Such as `/dev/vdb`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        overlay: Option<String>,
    },
    /// The backend has set up the root already.
    Ready,
}

/// How a server is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Transport {
    /// On its stdin and stdout.
    Stdio,
    /// By HTTP on guest loopback.
    Http {
        /// The port it listens on.
        port: u16,
    },
}

/// Bounds on what runs inside a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// The most processes and threads of the server's user.
    pub processes: u64,
    /// The most open files of one process.
    pub open_files: u64,
    /// Size of `/tmp`, in bytes.
    pub tmp_bytes: u64,
    /// Size of `/run`, in bytes.
    pub run_bytes: u64,
    /// Size of the home folder, in bytes.
    pub home_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            processes: 512,
            open_files: 4096,
            tmp_bytes: 64 << 20,
            run_bytes: 8 << 20,
            home_bytes: 64 << 20,
        }
    }
}

/// Parameters of `exec`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Added to the server's environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// The folder to start in; the server's if absent.
    #[serde(default)]
    pub cwd: Option<String>,
}

/// Answer to `start` and `exec`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// The process id inside the machine.
    pub pid: u32,
}

/// What the server does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum ServerState {
    /// `configure` is still to come.
    Unconfigured,
    /// Not started.
    Idle,
    /// Alive.
    Running {
        /// Its process id inside the machine.
        pid: u32,
    },
    /// It ended and no new conversation started another.
    Exited(Exit),
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Its exit code, if it ended by itself.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// The last of its stderr, at most [`limits::STDERR_TAIL_BYTES`], invalid UTF-8 replaced.
    #[serde(default)]
    pub stderr_tail: String,
}

/// Answer to `ping`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pong {
    /// Since the agent started, in milliseconds.
    pub uptime_ms: u64,
    /// What the server does.
    pub server: ServerState,
}

/// Answer to `stats`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Memory of the machine, in kilobytes, as the kernel inside counts it.
    pub memory_total_kb: u64,
    /// Of it, available.
    pub memory_available_kb: u64,
    /// Processes inside, the agent included.
    pub processes: u32,
    /// Processor time used by everything inside, in milliseconds.
    pub cpu_ms: u64,
    /// Children that the agent has reaped.
    pub reaped: u64,
    /// Servers started.
    pub starts: u64,
    /// Bytes of stderr that nobody took in time.
    pub stderr_dropped_bytes: u64,
}

/// Answer to `inventory`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// Files in the writable folders.
    pub files: Vec<FileEntry>,
    /// Processes.
    pub processes: Vec<ProcessEntry>,
    /// Sockets that listen or are connected.
    pub sockets: Vec<SocketEntry>,
    /// More existed than [`limits::INVENTORY_ENTRIES`] of a kind.
    pub truncated: bool,
}

/// A file in a writable folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its path, invalid UTF-8 replaced.
    pub path: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// Type and permission bits, as `st_mode`.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
}

/// A process inside a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessEntry {
    /// Its id.
    pub pid: u32,
    /// Its parent's id.
    pub parent: u32,
    /// Its user.
    pub uid: u32,
    /// The command line, arguments joined by spaces, at most 1024 bytes.
    pub command: String,
    /// Resident memory, in kilobytes.
    pub rss_kb: u64,
}

/// A socket inside a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketEntry {
    /// `tcp`, `tcp6`, `udp`, `udp6` or `unix`.
    pub family: String,
    /// The local address or path.
    pub local: String,
    /// The peer's address, if connected.
    pub peer: Option<String>,
    /// Whether it listens.
    pub listening: bool,
}

/// What a `watch` or `exec` stream tells in a frame of kind `Event`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A server was started (`watch`).
    Started(Started),
    /// The server (`watch`) or the program (`exec`) ended.
    Exited(Exit),
    /// So many bytes of stderr were dropped because they were not read in time.
    Dropped {
        /// How many.
        bytes: u64,
    },
}

/// The answer to a request, as it stands on the wire.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Reply {
    /// Always `2.0`.
    pub jsonrpc: String,
    /// The request's; null if it could not be read.
    pub id: Option<u64>,
    /// The answer, if it could be done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
}

impl Reply {
    /// A successful answer.
    pub fn done(id: u64, result: &impl Serialize) -> Self {
        // Every answer of this module serialises: string keys, no foreign `Serialize`.
        let result = serde_json::to_value(result).unwrap_or(Value::Null);
        Self { jsonrpc: "2.0".to_owned(), id: Some(id), result: Some(result), error: None }
    }

    /// A refusal.
    pub fn failed(id: Option<u64>, error: Failure) -> Self {
        Self { jsonrpc: "2.0".to_owned(), id, result: None, error: Some(error) }
    }

    /// What the answer says, checked against the request's id.
    pub fn into_result<T: DeserializeOwned>(self, id: u64) -> Result<T, ReplyError> {
        if let Some(error) = self.error {
            return Err(ReplyError::Failed(error));
        }
        if self.id != Some(id) {
            return Err(ReplyError::Id { expected: id, got: self.id });
        }
        serde_json::from_value(self.result.unwrap_or(Value::Null)).map_err(ReplyError::Shape)
    }
}

/// Why an answer gives no result.
#[derive(Debug, thiserror::Error)]
pub enum ReplyError {
    /// The agent refused or failed.
    #[error("{0}")]
    Failed(Failure),
    /// The answer belongs to another request.
    #[error("answer to request {got:?} where {expected} was expected")]
    Id {
        /// What was asked.
        expected: u64,
        /// What was answered.
        got: Option<u64>,
    },
    /// The answer has not the shape that the request promises.
    #[error("answer of the wrong shape")]
    Shape(#[source] serde_json::Error),
}

/// Why the agent did not do something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What kind of failure.
    pub code: FailureCode,
    /// Operation, object and cause, in words.
    pub message: String,
}

/// Kinds of failure; numbers of the JSON-RPC specification (section 5.1) where it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "i32", try_from = "i32")]
pub enum FailureCode {
    /// -32700: no JSON.
    Parse,
    /// -32600: no request.
    Request,
    /// -32601: no such method.
    Method,
    /// -32602: parameters of the wrong shape.
    Params,
    /// -32001: another protocol version or epoch, or no `hello` yet.
    Hello,
    /// -32002: not possible in this state (not configured, configured already, …).
    State,
    /// -32003: the operating system refused.
    System,
    /// -32004: the program was not found or could not be executed.
    Program,
    /// -32005: not done by the deadline.
    Deadline,
}

impl From<FailureCode> for i32 {
    fn from(code: FailureCode) -> i32 {
        match code {
            FailureCode::Parse => -32700,
            FailureCode::Request => -32600,
            FailureCode::Method => -32601,
            FailureCode::Params => -32602,
            FailureCode::Hello => -32001,
            FailureCode::State => -32002,
            FailureCode::System => -32003,
            FailureCode::Program => -32004,
            FailureCode::Deadline => -32005,
        }
    }
}

impl TryFrom<i32> for FailureCode {
    type Error = String;
    fn try_from(code: i32) -> Result<Self, String> {
        use FailureCode::*;
        [Parse, Request, Method, Params, Hello, State, System, Program, Deadline]
            .into_iter()
            .find(|&known| i32::from(known) == code)
            .ok_or_else(|| format!("unknown failure code {code}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn requests_have_the_documented_wire_form() {
        let hello = Envelope {
            deadline_ms: None,
            ..Envelope::new(0, Request::Hello(Hello { protocol: 1, epoch: "e".into() }))
        };
        assert_eq!(
            serde_json::to_value(&hello).unwrap(),
            json!({"jsonrpc": "2.0", "id": 0, "method": "hello", "params": {"protocol": 1, "epoch": "e"}})
        );
        let ping: Envelope =
            serde_json::from_str(r#"{"jsonrpc":"2.0","id":3,"method":"ping","deadline_ms":50}"#).unwrap();
        assert!(matches!(ping.request, Request::Ping));
        assert_eq!(ping.deadline_ms, Some(50));
    }

    #[test]
    fn an_answer_to_another_request_is_no_answer() {
        let reply = Reply::done(4, &Started { pid: 7 });
        assert!(matches!(reply.clone().into_result::<Started>(5), Err(ReplyError::Id { .. })));
        assert_eq!(reply.into_result::<Started>(4).unwrap(), Started { pid: 7 });
    }

    #[test]
    fn failure_codes_survive_the_wire() {
        let failure = Failure { code: FailureCode::State, message: "start: not configured".into() };
        let wire = serde_json::to_string(&Reply::failed(Some(1), failure.clone())).unwrap();
        let back: Reply = serde_json::from_str(&wire).unwrap();
        assert_eq!(back.error, Some(failure));
        assert!(serde_json::from_str::<FailureCode>("7").is_err());
    }
}
