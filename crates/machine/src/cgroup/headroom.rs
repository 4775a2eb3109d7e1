//! How much memory the groups that this process is in leave.

use super::{
    Controller,
    find::{Place, System, Version},
};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// What the tightest limited group leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Headroom {
    /// That group.
    pub(crate) dir: PathBuf,
    /// Its limit, in bytes.
    pub(crate) limit: u64,
    /// What is left of it, in bytes.
    pub(crate) left: u64,
}

/// What is left of the memory limits above this process; `None` where there are none, or none can be seen.
pub(crate) fn headroom() -> Option<Headroom> {
    let place = System::read().ok()?.locate(Controller::Memory).ok()?;
    tightest(&place)
}

/// A limit binds a group and all beneath it, so all above it count.
pub(super) fn tightest(place: &Place) -> Option<Headroom> {
    let levels = place.dir.ancestors().take_while(|dir| dir.starts_with(&place.top));
    levels.filter_map(|dir| of_group(place.version, dir)).min_by_key(|headroom| headroom.left)
}

fn of_group(version: Version, dir: &Path) -> Option<Headroom> {
    let (limit, usage, inactive) = match version {
        Version::V1 => ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "),
        Version::V2 => ("memory.max", "memory.current", "inactive_file "),
    };
    let number = |file: &str| fs::read_to_string(dir.join(file)).ok()?.trim().parse::<u64>().ok();
    // Version 2 says `max` where there is none, version 1 a number near 2^63.
    let limit = number(limit).filter(|&bytes| bytes < 1 << 60)?;
    let usage = number(usage)?;
    let stat = fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
    // What was read from files and not lately: given back before anybody is refused memory.
    let reclaimable =
        stat.lines().find_map(|line| line.strip_prefix(inactive)?.trim().parse().ok()).unwrap_or(0);
    let left = limit.saturating_sub(usage.saturating_sub(reclaimable));
    Some(Headroom { dir: dir.to_owned(), limit, left })
}
