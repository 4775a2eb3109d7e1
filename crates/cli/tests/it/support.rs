//! Processes of machines from outside: found, watched, killed.

use rustix::process::{Pid, Signal, kill_process};
use std::{
    collections::HashSet,
    fs::{self, File},
    os::unix::fs::FileExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// The probe server, to be added as a command with arguments.
pub const PROBE: &str = env!("CASEMATE_EMBEDDED_PROBE");

/// Far beyond what any step takes; a test that reaches it hangs.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Waits for something to be seen.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < until, "{what}: not seen for {PATIENCE:?}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Starts a command whose output nobody reads.
pub fn start(mut command: Command) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Sends a signal; a process that is gone already does not get it.
pub fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    let _ = kill_process(pid, signal);
}

/// Whether a process runs, which one that is dead and not yet reaped does not.
pub fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next());
    state.is_some_and(|state| state != "Z" && state != "X")
}

/// Whether a process is a supervisor, and not another one that got the number of one that ended.
pub fn is_supervisor(pid: u32) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    is_alive(pid) && line.split(|&byte| byte == 0).any(|word| word == b"__supervisor")
}

/// The first child of a process' main thread.
pub fn child_of(pid: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().filter_map(|child| child.parse().ok()).find(|&child| is_alive(child))
}

/// Where the agent's program lies in the memory of a guest that has started it.
///
/// Nothing outside a guest can kill its process 1. What can be done is to overwrite that process's program
/// in the guest's memory: it dies of an illegal instruction or a wild jump as soon as it does anything, and
/// the kernel panics because process 1 is gone.
pub struct Agent {
    memory: File,
    pages: Vec<u64>,
}

impl Agent {
    /// Finds the agent; nothing where the VMM is gone or its guest has no agent yet.
    pub fn find(vmm: u32) -> Option<Self> {
        let memory = guest_memory(vmm)?;
        let program = fs::read(env!("CASEMATE_EMBEDDED_AGENT")).unwrap();
        // Pages of one byte are everybody's.
        let own: Vec<&[u8]> =
            program.chunks_exact(PAGE).filter(|page| page.iter().any(|b| *b != page[0])).collect();
        // A quarter of a gigabyte is looked through: a page is compared only where its beginning fits.
        let mut heads: Vec<[u8; 8]> = own.iter().filter_map(|page| page.first_chunk().copied()).collect();
        heads.sort_unstable();
        let own: HashSet<&[u8]> = own.into_iter().collect();
        let (mut pages, mut chunk) = (Vec::new(), vec![0; 1 << 20]);
        for start in (0..memory.metadata().ok()?.len()).step_by(chunk.len()) {
            memory.read_exact_at(&mut chunk, start).ok()?;
            for (number, page) in chunk.chunks_exact(PAGE).enumerate() {
                let fits = page.first_chunk().is_some_and(|head| heads.binary_search(head).is_ok());
                if fits && own.contains(page) {
                    pages.push(start + (number * PAGE) as u64);
                }
            }
        }
        // A part of it lies in the initramfs before it is started.
        (pages.len() > own.len() / 2).then_some(Self { memory, pages })
    }

    /// Kills it.
    pub fn kill(self) {
        for page in self.pages {
            // Memory of a VMM that has ended is still there as long as it is held open.
            self.memory.write_all_at(&[0xff; PAGE], page).unwrap();
        }
    }
}

const PAGE: usize = 4096;

fn guest_memory(vmm: u32) -> Option<File> {
    let descriptors = fs::read_dir(format!("/proc/{vmm}/fd")).ok()?.flatten();
    let is_memory = |path: &PathBuf| {
        fs::read_link(path).is_ok_and(|target| target.to_string_lossy().contains("memfd:casemate-memory"))
    };
    let path = descriptors.map(|entry| entry.path()).find(is_memory)?;
    File::options().read(true).write(true).open(path).ok()
}
