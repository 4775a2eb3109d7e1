//! What the kernel tells about processes, memory and sockets under `/proc`.
//!
//! The agent's own `/proc`: nothing inside the machine's root can change it. Names and command lines in it are
//! chosen by the server, so every field is taken by position from where no name can reach.

use std::fs;

/// One process, from `/proc/PID/stat`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// Its parent's id.
    pub parent: i32,
    /// Its session's id.
    pub session: i32,
    /// It ended and was not reaped yet.
    pub dead: bool,
    /// It is a thread of the kernel.
    pub kernel: bool,
    /// Resident pages.
    pub pages: u64,
}

/// The flag of the kernel's own threads, linux/sched.h.
const PF_KTHREAD: u64 = 0x0020_0000;

/// All processes; those that end meanwhile are left out.
pub fn processes() -> impl Iterator<Item = Process> {
    pids().filter_map(|pid| parse_stat(&fs::read(format!("/proc/{pid}/stat")).ok()?))
}

/// The ids of all processes.
fn pids() -> impl Iterator<Item = i32> {
    let folder = fs::read_dir("/proc").into_iter().flatten().flatten();
    folder.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Parses `pid (name) state parent group session …`, proc(5). The name may hold anything, even `)`.
fn parse_stat(stat: &[u8]) -> Option<Process> {
    let name_end = stat.iter().rposition(|&byte| byte == b')')?;
    let pid = std::str::from_utf8(&stat[..stat.iter().position(|&byte| byte == b' ')?]).ok()?.parse().ok()?;
    let rest = std::str::from_utf8(&stat[name_end + 1..]).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    let flags: u64 = fields.nth(2)?.parse().ok()?;
    // Field 24 of the whole line; nine have been taken.
    let pages = fields.nth(14)?.parse().ok()?;
    let (dead, kernel) = (matches!(state, "Z" | "X"), flags & PF_KTHREAD != 0);
    Some(Process { pid, parent, session, dead, kernel, pages })
}

/// Total and available memory in kilobytes.
pub fn memory_kb() -> (u64, u64) {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name))?;
        value.split_ascii_whitespace().next()?.parse().ok()
    };
    (field("MemTotal:").unwrap_or(0), field("MemAvailable:").unwrap_or(0))
}

/// Processor time used by everything, in milliseconds.
pub fn cpu_ms() -> u64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    parse_cpu_ms(&text).unwrap_or(0)
}

/// Sums user, nice, system, irq, softirq and steal of the first line, proc(5); ticks are of 10 ms.
fn parse_cpu_ms(stat: &str) -> Option<u64> {
    let fields = stat.lines().next()?.strip_prefix("cpu ")?.split_ascii_whitespace();
    let ticks: Vec<u64> = fields.map_while(|field| field.parse().ok()).collect();
    Some([0, 1, 2, 5, 6, 7].iter().filter_map(|&field| ticks.get(field)).sum::<u64>() * 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_cannot_name_itself_another_parent() {
        let stat = b"42 (evil) R 1 1 1) S 7 42 41 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 100 4096 33 18446744073709551615";
        let expected = Process { pid: 42, parent: 7, session: 41, dead: false, kernel: false, pages: 33 };
        assert_eq!(parse_stat(stat), Some(expected));
        assert_eq!(parse_stat(b"42 (cut"), None);
    }

    #[test]
    fn this_process_is_listed_with_its_parent() {
        let own = std::process::id() as i32;
        let listed = processes().find(|process| process.pid == own).unwrap();
        assert_eq!(listed.parent, std::os::unix::process::parent_id() as i32);
        assert!(listed.pages > 0 && !listed.dead);
    }

    #[test]
    fn idle_time_is_not_counted() {
        assert_eq!(parse_cpu_ms("cpu  1 2 3 1000 1000 4 5 6 0 0\ncpu0 1"), Some(210));
        let (total, available) = memory_kb();
        assert!(total > available && available > 0);
    }
}
