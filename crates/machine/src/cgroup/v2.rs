//! Where in the unified hierarchy a group for a VMM may be made.
//!
//! A group with processes of its own cannot give controllers to its children (cgroups(7), "no internal
//! processes"), and this process's own group has at least one: itself. So the new group becomes a sibling
//! or a sibling of an ancestor, of the nearest one whose parent gives what is needed and may be written to.
//! Levels that are limited themselves are not left behind: whoever limited casemate limits its machines too.

use super::{Controller, Unavailable, find::Place};
use rustix::fs::Access;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Limits of a group that its processes must not leave; their first word is `max` where they are none.
const BINDING: [&str; 3] = ["memory.max", "memory.high", "cpu.max"];

/// The parent of the new group.
#[derive(Debug)]
pub(super) struct Chosen {
    pub(super) dir: PathBuf,
    /// What it gives its children, of what was wanted.
    pub(super) controllers: Vec<Controller>,
    /// Why the rest is missing.
    pub(super) missing: Vec<Unavailable>,
}

/// Chooses the parent; enables controllers for its children where none would do without.
pub(super) fn choose_parent(place: &Place, wanted: &[Controller]) -> Chosen {
    let mut obstacles = Vec::new();
    let usable = usable_ancestors(place, &mut obstacles);
    let given = |dir: &Path| -> Vec<Controller> {
        let names = words(&dir.join("cgroup.subtree_control"));
        wanted.iter().copied().filter(|c| names.iter().any(|name| name == c.as_str())).collect()
    };

    let complete = |dir: &&PathBuf| given(dir).len() == wanted.len();
    let chosen = usable.iter().find(complete).or_else(|| {
        for dir in usable.iter().filter(|dir| may_enable(dir, &mut obstacles)).collect::<Vec<_>>() {
            enable(dir, wanted, &mut obstacles);
            if complete(&dir) {
                return Some(dir);
            }
        }
        // The nearest of those that give most.
        usable.iter().rev().max_by_key(|dir| given(dir).len())
    });
    let dir = chosen.unwrap_or(&place.dir).clone();
    let controllers = chosen.map(|dir| given(dir)).unwrap_or_default();
    let mut missing = Vec::new();
    if controllers.len() < wanted.len() {
        missing = obstacles;
        if missing.is_empty() {
            let lacking = wanted.iter().filter(|controller| !controllers.contains(controller));
            missing.extend(
                lacking.map(|&controller| Unavailable::NotGiven { controller, dir: place.dir.clone() }),
            );
        }
    }
    Chosen { dir, controllers, missing }
}

/// The own group and those above it, nearest first, as far as this process may make children in them and
/// may move processes between them.
fn usable_ancestors(place: &Place, obstacles: &mut Vec<Unavailable>) -> Vec<PathBuf> {
    let mut usable = Vec::new();
    for dir in place.dir.ancestors().take_while(|dir| dir.starts_with(&place.top)) {
        let closed = [dir.to_owned(), dir.join("cgroup.procs")].into_iter().find_map(|path| {
            let errno = rustix::fs::access(&path, Access::WRITE_OK).err()?;
            Some(Unavailable::io("write to", &path)(errno.into()))
        });
        match closed {
            Some(obstacle) => obstacles.push(obstacle),
            None => usable.push(dir.to_owned()),
        }
        if let Some(file) = binding_limit(dir) {
            if dir != place.top {
                obstacles.push(Unavailable::WouldEscape { dir: dir.to_owned(), file });
            }
            break;
        }
    }
    usable
}

/// The limit that binds the processes of a group.
fn binding_limit(dir: &Path) -> Option<&'static str> {
    BINDING.into_iter().find(|file| {
        let value = fs::read_to_string(dir.join(file)).unwrap_or_default();
        value.split_whitespace().next().is_some_and(|word| word != "max")
    })
}

/// Whether a group may give its children controllers: one without processes, or the root, which has no type.
fn may_enable(dir: &Path, obstacles: &mut Vec<Unavailable>) -> bool {
    let is_root = !dir.join("cgroup.type").exists();
    let is_inner = fs::read(dir.join("cgroup.procs")).is_ok_and(|procs| !procs.is_empty());
    if is_inner && !is_root {
        obstacles.push(Unavailable::InnerProcesses { dir: dir.to_owned() });
    }
    is_root || !is_inner
}

/// Has a group give its children what is wanted, as far as it has it.
fn enable(dir: &Path, wanted: &[Controller], obstacles: &mut Vec<Unavailable>) {
    let offered = words(&dir.join("cgroup.controllers"));
    let path = dir.join("cgroup.subtree_control");
    for &controller in wanted {
        if !offered.iter().any(|name| name == controller.as_str()) {
            obstacles.push(Unavailable::NotGiven { controller, dir: dir.to_owned() });
            continue;
        }
        // One by one: the kernel takes all of a line or nothing.
        let written = fs::write(&path, format!("+{controller}"));
        obstacles.extend(written.err().map(Unavailable::io("write", &path)));
    }
}

fn words(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}
