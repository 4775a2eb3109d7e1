//! Versions as people write them, across the two registries.

/// How many versions a suggestion names.
const SUGGESTED: usize = 5;

/// Whether this names one version, not a range or a tag.
pub(super) fn is_exact(version: &str) -> bool {
    let version = version.strip_prefix('v').unwrap_or(version);
    let core = version.split(['-', '+']).next().unwrap_or_default();
    core.contains('.')
        && core.split('.').all(|part| !part.is_empty() && part.starts_with(|c: char| c.is_ascii_digit()))
        && core.chars().all(|c| c.is_ascii_alphanumeric() || c == '.')
        && !core.ends_with('x')
}

/// The versions nearest to the one that does not exist: those that begin with the same numbers, newest first.
pub(super) fn nearest<'a>(wanted: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let wanted = numbers(wanted);
    let shared = |version: &str| {
        let version = numbers(version);
        wanted.iter().zip(&version).take_while(|(a, b)| a == b).count()
    };
    let mut ranked: Vec<_> =
        known.into_iter().map(|version| (shared(version), numbers(version), version)).collect();
    ranked.sort();
    ranked.dedup();
    ranked.into_iter().rev().take(SUGGESTED).map(|(_, _, version)| version.to_owned()).collect()
}

fn numbers(version: &str) -> Vec<u64> {
    let digits = version.split(|c: char| !c.is_ascii_digit()).filter(|part| !part.is_empty());
    digits.map(|part| part.parse().unwrap_or(u64::MAX)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_version_is_told_from_a_range() {
        for exact in ["1.2.3", "v1.2.3", "2026.8.31", "1.0.0-rc.1", "1.0rc1", "0.1"] {
            assert!(is_exact(exact), "{exact}");
        }
        for moving in ["^1.2.3", ">=1,<2", "latest", "1", "1.x", "*", "1.*", "~1.2", "1 || 2", "next-1.0"] {
            assert!(!is_exact(moving), "{moving}");
        }
    }

    #[test]
    fn the_nearest_share_the_beginning_and_are_new() {
        let known = ["1.0.0", "1.2.0", "1.2.9", "1.2.10", "2.0.0"];
        assert_eq!(nearest("1.2.99", known), ["1.2.10", "1.2.9", "1.2.0", "1.0.0", "2.0.0"]);
        assert_eq!(nearest("x", []), Vec::<String>::new());
    }
}
