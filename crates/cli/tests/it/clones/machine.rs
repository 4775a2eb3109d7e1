//! Machines that are made and restored by hand: no supervisor between the test and the agent, so that a step
//! can be left out.

use crate::{
    home::Home,
    links::{
        boot::{self, Process},
        control::Control,
        guest::soon,
    },
};
use casemate_image::store::Image;
use casemate_link::{Connector, Stream, mux};
use casemate_proto::{
    control::{Adopt, Clones, Configure, Limits, Request, Reseed, Root, Settled, Started, Stats, Transport},
    port,
};
use serde_json::{Map, Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
    task::JoinHandle,
};

const MEMORY: &str = "256M";

/// Between two looks at something that is to happen.
const PAUSE: Duration = Duration::from_millis(50);

/// A machine that used less than this between two looks so far apart is quiet.
const QUIET: Duration = Duration::from_millis(500);
const QUIET_CPU_MS: u64 = 50;

/// What is done to a clone before its server sees a byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Treatment {
    Nothing,
    /// What is done to every clone.
    Adopted,
    /// The same, so many days later or earlier.
    AdoptedDaysLater(i64),
}

/// The memory and the devices of a machine whose server has drawn and waits for its first byte.
pub struct Template {
    folder: PathBuf,
    image: Image,
    home: Home,
}

impl Template {
    /// Starts the server of an image, with the hooks of a kind, and saves the machine.
    pub async fn of(home: Home, image: Image, reseed: Option<Reseed>) -> Self {
        let folder = home.path().join("machine");
        fs::create_dir(&folder).unwrap();
        let template = Self { folder, image, home };
        let mut guest = Guest::start(&template, "share=on", &[]).await;
        let mut control = guest.attach("template").await;
        let _: Value = control.done(Request::Configure(Box::new(template.configuration(reseed)))).await;
        let _: Started = control.done(Request::Start).await;
        let rests = async {
            let mut used = 0;
            loop {
                tokio::time::sleep(QUIET).await;
                let stats: Stats = control.done(Request::Stats).await;
                if used > 0 && stats.cpu_ms - used < QUIET_CPU_MS {
                    break;
                }
                used = stats.cpu_ms;
            }
        };
        soon("a server that rests", rests).await;
        if matches!(reseed, Some(Reseed::Node | Reseed::Python)) {
            // It has seen that the server drew, and so that the hooks are in effect.
            let settled: Settled = control.done(Request::Settle).await;
            assert_eq!(settled.clones, Clones::Share);
        }
        let mut monitor = guest.monitor().await;
        monitor.execute("stop", json!({})).await;
        let file = json!({ "filename": "state", "live": false });
        monitor.execute("xen-save-devices-state", file).await;
        template
    }

    fn configuration(&self, reseed: Option<Reseed>) -> Configure {
        let mut env = self.image.meta.env.clone();
        env.insert("PRIME".to_owned(), "1".to_owned());
        Configure {
            mounts: Vec::new(),
            hold_volumes: false,
            hostname: "template".to_owned(),
            command: self.image.meta.command.clone(),
            env,
            cwd: self.image.meta.cwd.clone(),
            root: Root::Device { device: "/dev/vda".to_owned(), overlay: None },
            transport: Transport::Stdio,
            limits: Limits::default(),
            clock_unix_ns: None,
            // Its generator is fresh, and does not become so by itself while the clones draw.
            entropy: Some("11".repeat(32)),
            reseed,
            egress: None,
            trust: None,
        }
    }
}

/// A machine that was restored.
pub struct Clone {
    guest: Guest,
}

impl Clone {
    pub async fn of(template: &Template, treatment: Treatment) -> Self {
        let options = ["-incoming", "defer", "-S", "-global", "migration.send-configuration=off"];
        let mut guest = Guest::start(template, "share=off,readonly=on,rom=off", &options).await;
        let mut monitor = guest.monitor().await;
        monitor.execute("migrate-incoming", json!({ "uri": "file:state" })).await;
        let restored = async {
            while monitor.execute("query-migrate", json!({})).await["status"] != "completed" {
                tokio::time::sleep(PAUSE).await;
            }
        };
        soon("a restored machine", restored).await;
        monitor.execute("cont", json!({})).await;
        let mut control = guest.attach("clone").await;
        let days = match treatment {
            Treatment::Nothing => None,
            Treatment::Adopted => Some(0),
            Treatment::AdoptedDaysLater(days) => Some(days),
        };
        if let Some(days) = days {
            let mut entropy = [0; 32];
            getrandom(&mut entropy);
            let adopt = Adopt {
                hostname: "clone".to_owned(),
                // OpenSSL starts anew of itself where some minutes seem to have gone by.
                clock_unix_ns: in_days(days).as_nanos() as u64,
                entropy: entropy.iter().map(|byte| format!("{byte:02x}")).collect(),
                reseed: true,
            };
            let _: Value = control.done(Request::Adopt(adopt)).await;
        }
        Self { guest }
    }

    /// Has the server draw.
    pub async fn draw(self) -> Map<String, Value> {
        self.call("draw").await
    }

    /// What a tool of the server answers.
    pub async fn call(self, tool: &str) -> Map<String, Value> {
        let stream = self.guest.connector().connect(port::CONVERSATION).await.unwrap();
        let mut stream = BufReader::new(stream);
        let client = json!({ "name": "test", "version": "1" });
        let hello = json!({ "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": client });
        ask(&mut stream, 1, "initialize", hello).await;
        let answer = ask(&mut stream, 2, "tools/call", json!({ "name": tool, "arguments": {} })).await;
        let text = answer["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}"));
        serde_json::from_str(text).unwrap()
    }
}

/// The time that it will be, since 1970.
pub fn in_days(days: i64) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let shift = Duration::from_secs(days.unsigned_abs() * 24 * 60 * 60);
    if days < 0 { now - shift } else { now + shift }
}

fn getrandom(bytes: &mut [u8]) {
    rustix::rand::getrandom(bytes, rustix::rand::GetRandomFlags::empty()).unwrap();
}

async fn ask(stream: &mut BufReader<Stream>, id: u64, method: &str, params: Value) -> Value {
    let request = json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params });
    stream.write_all(format!("{request}\n").as_bytes()).await.unwrap();
    let mut line = String::new();
    soon("an answer", stream.read_line(&mut line)).await.unwrap();
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

/// A VMM and the way into its guest.
struct Guest {
    folder: PathBuf,
    connector: Option<Connector>,
    driver: Option<JoinHandle<()>>,
    _process: Process,
}

impl Guest {
    async fn start(template: &Template, sharing: &str, options: &[&str]) -> Self {
        let folder = template.folder.clone();
        for socket in ["port.sock", "monitor.sock"] {
            // The last guest's.
            let _ = fs::remove_file(folder.join(socket));
        }
        let memory = format!("memory-backend-file,id=memory,mem-path=memory,size={MEMORY},{sharing}");
        let monitor = ["-qmp", "unix:monitor.sock,server=on,wait=off"];
        let options = [&boot::SERIAL[..], &monitor, options].concat();
        let machine = boot::Machine { rootfs: &template.image.rootfs, memory: &memory, megabytes: MEMORY };
        let process = boot::qemu(&template.home, &folder, &machine, &options);
        Self { folder, connector: None, driver: None, _process: process }
    }

    async fn monitor(&self) -> Monitor {
        let mut monitor =
            Monitor { stream: BufReader::new(connect(&self.folder.join("monitor.sock")).await) };
        monitor.line().await;
        monitor.execute("qmp_capabilities", json!({})).await;
        monitor
    }

    /// Becomes the host of the guest.
    async fn attach(&mut self, epoch: &str) -> Control {
        let device = connect(&self.folder.join("port.sock")).await;
        let mut nonce = [0; 16];
        getrandom(&mut nonce);
        let (handle, driver) = mux::attach_host(device, nonce);
        self.driver = Some(tokio::spawn(async move { drop(driver.await) }));
        soon("the synchronisation", handle.synced()).await.unwrap();
        self.connector = Some(Connector::Mux(handle));
        let greeted = async {
            loop {
                if let Ok(stream) = self.connector().connect(port::CONTROL).await
                    && let Some(control) = Control::greet(stream, epoch).await
                {
                    return control;
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        soon("the agent's answer", greeted).await
    }

    fn connector(&self) -> &Connector {
        self.connector.as_ref().unwrap()
    }
}

/// QEMU's machine protocol.
struct Monitor {
    stream: BufReader<UnixStream>,
}

impl Monitor {
    async fn execute(&mut self, command: &str, arguments: Value) -> Value {
        let request = json!({ "execute": command, "arguments": arguments });
        self.stream.write_all(request.to_string().as_bytes()).await.unwrap();
        loop {
            let line = self.line().await;
            if let Some(answer) = line.get("return") {
                return answer.clone();
            }
            assert!(line.get("error").is_none(), "{command}: {line}");
        }
    }

    async fn line(&mut self) -> Value {
        let mut line = String::new();
        soon("the monitor", self.stream.read_line(&mut line)).await.unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }
}

async fn connect(path: &Path) -> UnixStream {
    let connected = async {
        loop {
            match UnixStream::connect(path).await {
                Ok(stream) => return stream,
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    };
    soon("a socket of the VMM", connected).await
}
