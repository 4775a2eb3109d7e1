//! The revisions of MCP, and what differs between them in the parts that the probe speaks.

use serde_json::{Value, json};

/// A revision of the specification, oldest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Revision {
    /// 2024-11-05.
    V2024_11_05,
    /// 2025-03-26: tool annotations, batches, Streamable HTTP.
    V2025_03_26,
    /// 2025-06-18: titles, elicitation; no batches.
    V2025_06_18,
    /// 2025-11-25.
    V2025_11_25,
    /// 2026-07-28: stateless.
    V2026_07_28,
}

impl Revision {
    /// Revisions with `initialize`.
    pub const LEGACY: [Self; 4] =
        [Self::V2024_11_05, Self::V2025_03_26, Self::V2025_06_18, Self::V2025_11_25];

    /// Revisions without.
    pub const MODERN: [Self; 1] = [Self::V2026_07_28];

    /// Its name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::V2024_11_05 => "2024-11-05",
            Self::V2025_03_26 => "2025-03-26",
            Self::V2025_06_18 => "2025-06-18",
            Self::V2025_11_25 => "2025-11-25",
            Self::V2026_07_28 => "2026-07-28",
        }
    }

    /// The legacy revision of that name.
    pub fn legacy(name: &str) -> Option<Self> {
        Self::LEGACY.into_iter().find(|revision| revision.name() == name)
    }

    /// The modern revision of that name.
    pub fn modern(name: &str) -> Option<Self> {
        Self::MODERN.into_iter().find(|revision| revision.name() == name)
    }

    /// What to answer to an `initialize` that asks for `name`: the same if it is spoken, else the latest
    /// (2025-11-25, lifecycle, version negotiation).
    pub fn negotiate(name: &str) -> Self {
        Self::legacy(name).unwrap_or(Self::V2025_11_25)
    }

    /// Whether it belongs to the modern era.
    pub fn is_modern(self) -> bool {
        self >= Self::V2026_07_28
    }

    /// Whether several messages may come as one array.
    pub fn has_batches(self) -> bool {
        self == Self::V2025_03_26
    }

    /// Adds what every result of this revision carries.
    pub fn complete(self, mut result: Value) -> Value {
        if self.is_modern()
            && let Some(fields) = result.as_object_mut()
        {
            fields.entry("resultType").or_insert_with(|| "complete".into());
            let meta = fields.entry("_meta").or_insert_with(|| json!({}));
            meta["io.modelcontextprotocol/serverInfo"] = server_info(self);
        }
        result
    }
}

/// The names of `revisions`, as a JSON array.
pub fn names(revisions: &[Revision]) -> Value {
    revisions.iter().map(|revision| revision.name()).collect()
}

/// Who the server says it is.
pub fn server_info(revision: Revision) -> Value {
    let mut info = json!({ "name": "casemate-probe", "version": env!("CARGO_PKG_VERSION") });
    if revision >= Revision::V2025_06_18 {
        info["title"] = "casemate probe".into();
    }
    info
}

/// What the server can do.
pub fn capabilities() -> Value {
    json!({ "tools": { "listChanged": true } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negotiation_repeats_what_is_spoken_and_else_offers_the_latest_with_a_handshake() {
        for revision in Revision::LEGACY {
            assert_eq!(Revision::negotiate(revision.name()), revision);
        }
        assert_eq!(Revision::negotiate("2026-07-28"), Revision::V2025_11_25);
        assert_eq!(Revision::negotiate("1.0"), Revision::V2025_11_25);
    }
}
