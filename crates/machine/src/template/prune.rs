//! Which templates go: those that nothing has used for long, and the least recently used beyond a size.

use super::{Listed, Templates};
use crate::{home::HomeError, registry::Registry};
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeSet;

/// How many templates are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Those that were not used for longer go.
    pub age: SignedDuration,
    /// All together take no more of the disk, in bytes.
    pub bytes: u64,
}

impl Policy {
    /// All go that no live machine uses.
    pub const UNUSED: Self = Self { age: SignedDuration::MIN, bytes: 0 };
}

impl Default for Policy {
    /// Two weeks, 10 GiB.
    fn default() -> Self {
        Self { age: SignedDuration::from_hours(14 * 24), bytes: 10 << 30 }
    }
}

/// What pruning removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Their keys.
    pub keys: Vec<String>,
    /// What they took on disk, in bytes.
    pub bytes: u64,
}

impl Templates {
    /// Removes what the policy does not keep. A template of a live machine stays: a suspended one needs it.
    pub fn prune(&self, policy: &Policy) -> Result<Pruned, HomeError> {
        self.sweep();
        let listed = self.list()?;
        let live = Registry::new(&self.home).list()?;
        let used: BTreeSet<String> = live
            .into_iter()
            .filter(|record| !record.state.is_final())
            .filter_map(|record| record.template)
            .collect();
        let mut pruned = Pruned::default();
        for template in doomed(&listed, &used, policy, Timestamp::now()) {
            // Somebody builds or removes it just now: then it is not for pruning.
            let Ok(Some(lock)) = self.try_lock(&template.key) else { continue };
            // What cannot be removed now is tried again by the next pruning.
            if self.discard(&template.key).is_ok() {
                pruned.bytes += template.disk_bytes;
                pruned.keys.push(template.key.clone());
                // Whoever waits for it sees that it is gone and takes a new one.
                let _ = std::fs::remove_file(self.lock_path(&template.key));
            }
            drop(lock);
        }
        Ok(pruned)
    }
}

/// Those to remove; `listed` has the latest used last.
fn doomed<'a>(
    listed: &'a [Listed],
    used: &BTreeSet<String>,
    policy: &Policy,
    now: Timestamp,
) -> Vec<&'a Listed> {
    let mut bytes: u64 = listed.iter().map(|template| template.disk_bytes).sum();
    let mut doomed = Vec::new();
    for template in listed.iter().filter(|template| !used.contains(&template.key)) {
        let unreadable = template.manifest.is_none();
        let old = now.duration_since(template.used_at) > policy.age;
        if unreadable || old || bytes > policy.bytes {
            bytes -= template.disk_bytes;
            doomed.push(template);
        }
    }
    doomed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::template::{Ingredients, Level, Manifest, Outcome};

    fn listed(key: &str, hours: i64, bytes: u64, now: Timestamp) -> Listed {
        let ingredients = Ingredients {
            layout: 1,
            version: String::new(),
            protocol: 1,
            level: Level::Server,
            kernel: String::new(),
            initramfs: String::new(),
            vmm: String::new(),
            accelerator: None,
            cpu: String::new(),
            memory_mb: 1,
            vcpus: 1,
            image: String::new(),
            configuration: String::new(),
        };
        let outcome = Outcome::Refused { reason: "x".to_owned() };
        let manifest =
            Manifest { key: key.to_owned(), ingredients, server: "s".to_owned(), created_at: now, outcome };
        let used_at = now - SignedDuration::from_hours(hours);
        Listed { key: key.to_owned(), manifest: Some(manifest), used_at, disk_bytes: bytes }
    }

    #[test]
    fn the_old_go_and_then_the_least_recently_used_until_the_rest_fits() {
        let now = Timestamp::now();
        let all = [
            listed("old", 400, 1, now),
            listed("second", 5, 40, now),
            listed("used", 4, 40, now),
            listed("fresh", 0, 40, now),
        ];
        let used = BTreeSet::from(["used".to_owned()]);
        let policy = Policy { age: SignedDuration::from_hours(336), bytes: 100 };
        let keys = |policy: &Policy| -> Vec<&str> {
            doomed(&all, &used, policy, now).iter().map(|template| template.key.as_str()).collect()
        };
        assert_eq!(keys(&policy), ["old", "second"]);
        assert_eq!(keys(&Policy { bytes: 1000, ..policy }), ["old"]);
        assert_eq!(keys(&Policy { bytes: 0, ..policy }), ["old", "second", "fresh"]);
        assert_eq!(keys(&Policy::UNUSED), ["old", "second", "fresh"]);
    }
}
