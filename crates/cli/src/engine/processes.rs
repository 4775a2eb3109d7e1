//! What a process started, as proc(5) tells it.

use std::fs;

/// The children of a process, whichever of its threads started them.
pub(super) fn children(pid: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = threads.map(|thread| fs::read_to_string(thread.path().join("children")).unwrap_or_default());
    let parse = |list: String| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>();
    lists.flat_map(parse).collect()
}

/// Whether a process was started by this one, and runs.
pub(super) fn is_running_child(pid: u32) -> bool {
    // After the name in brackets: state, parent.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let is_over = matches!(fields.next(), None | Some("Z" | "X"));
    !is_over && fields.next().and_then(|parent| parent.parse().ok()) == Some(std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_child_is_known_by_its_parent_as_long_as_it_runs() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let is_listed = children(std::process::id()).contains(&child.id());
        let found = is_running_child(child.id());
        child.kill().unwrap();
        // Dead, and nobody has asked how.
        while is_running_child(child.id()) {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(found && is_listed);
        assert!(!is_running_child(std::process::id()) && !is_running_child(u32::MAX));
    }
}
