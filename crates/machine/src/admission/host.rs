//! What the kernel says about memory: of the host, and of a process.

use std::fs;

/// Total and available memory of the host, in bytes.
pub(super) fn memory() -> Option<(u64, u64)> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    Some((field(&text, "MemTotal:")?, field(&text, "MemAvailable:")?))
}

/// The memory that a process alone has, with what it has of memory files, in bytes; `None` if it is gone.
///
/// Not what is mapped from files: that is the template, the image and the program, and shared.
pub(super) fn used_bytes(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some(field(&text, "RssAnon:")?.saturating_add(field(&text, "RssShmem:")?))
}

/// `Name:  123 kB`, in bytes.
fn field(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_read_in_kilobytes() {
        let text = "MemTotal:       24684084 kB\nMemFree:  1 kB\nMemAvailable:   24185896 kB\n";
        assert_eq!(field(text, "MemTotal:"), Some(24_684_084 << 10));
        assert_eq!(field(text, "MemAvailable:"), Some(24_185_896 << 10));
        assert_eq!(field(text, "Mem:"), None);
        assert_eq!(field("MemTotal: 99999999999999999999 kB", "MemTotal:"), None);
        assert_eq!(field("MemTotal: 18446744073709551615 kB", "MemTotal:"), None);
    }

    #[test]
    fn this_process_and_this_host_have_memory() {
        let (total, available) = memory().unwrap();
        assert!(total >= available && available > 0);
        let before = used_bytes(std::process::id()).unwrap();
        let filled = vec![1_u8; 32 << 20];
        let after = used_bytes(std::process::id()).unwrap();
        assert!(after >= before + (filled.len() as u64) / 2, "{before} then {after}");
        // Above the largest number that a process can have.
        assert_eq!(used_bytes(u32::MAX), None);
    }
}
