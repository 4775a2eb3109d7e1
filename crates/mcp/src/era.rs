//! The two eras of MCP and the revisions in them.

use std::fmt;

/// The newest revision that starts with `initialize`.
pub const NEWEST_LEGACY: &str = "2025-11-25";

/// The newest revision.
pub const NEWEST_MODERN: &str = "2026-07-28";

const LEGACY: [&str; 4] = ["2024-11-05", "2025-03-26", "2025-06-18", NEWEST_LEGACY];
const MODERN: [&str; 1] = [NEWEST_MODERN];

/// How a conversation is led. The version is one that this crate knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Era {
    /// With `initialize`, `ping` and requests of the server's own.
    Legacy {
        /// The revision that the server chose.
        version: &'static str,
    },
    /// Stateless: each request says version, client and capabilities in its `_meta`.
    Modern {
        /// The revision that requests name.
        version: &'static str,
    },
}

impl Era {
    /// The era of a revision; `None` where it is not known.
    pub fn of(version: &str) -> Option<Self> {
        let known = |versions: &[&'static str]| versions.iter().copied().find(|known| *known == version);
        known(&LEGACY)
            .map(|version| Self::Legacy { version })
            .or_else(|| known(&MODERN).map(|version| Self::Modern { version }))
    }

    /// The revision, such as `2025-11-25`.
    pub fn version(&self) -> &'static str {
        match self {
            Self::Legacy { version } | Self::Modern { version } => version,
        }
    }

    /// Whether requests need the `_meta` of the stateless revisions.
    pub fn is_modern(&self) -> bool {
        matches!(self, Self::Modern { .. })
    }
}

impl fmt::Display for Era {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.version())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions_belong_to_their_era() {
        assert_eq!(Era::of("2024-11-05"), Some(Era::Legacy { version: "2024-11-05" }));
        assert_eq!(Era::of(NEWEST_LEGACY), Some(Era::Legacy { version: NEWEST_LEGACY }));
        assert_eq!(Era::of(NEWEST_MODERN), Some(Era::Modern { version: NEWEST_MODERN }));
        assert_eq!(Era::of("2099-01-01"), None);
    }
}
