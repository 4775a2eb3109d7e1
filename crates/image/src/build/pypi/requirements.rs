//! `requirements.txt` as `uv pip compile --generate-hashes` writes it.

use crate::store::Package;

/// One locked package.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Pinned {
    name: String,
    version: String,
    /// Digests of the files that may be installed, sorted.
    digests: Vec<String>,
}

/// Reads the packages; what is no `NAME==VERSION` is left out, and uv refuses it when it installs.
pub(super) fn parse(text: &str) -> Vec<Pinned> {
    let joined = text.replace("\\\n", " ");
    let line = |line: &str| {
        let (requirement, options) = match line.split_once("--hash") {
            Some((requirement, _)) => (requirement, &line[requirement.len()..]),
            None => (line, ""),
        };
        let (name, rest) = requirement.split_once("==")?;
        let version = rest.split([' ', ';']).next()?;
        let mut digests: Vec<String> = options
            .split_whitespace()
            .filter_map(|option| option.strip_prefix("--hash="))
            .map(str::to_owned)
            .collect();
        digests.sort();
        Some(Pinned { name: name.trim().to_owned(), version: version.to_owned(), digests })
    };
    joined.lines().filter(|text| !text.trim_start().starts_with('#')).filter_map(line).collect()
}

impl Pinned {
    /// The package's name, as the index spells it.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// What decides the package's files.
    pub(super) fn identity(&self) -> String {
        format!("{}=={} {}", self.name, self.version, self.digests.join(" "))
    }

    pub(super) fn package(self) -> Package {
        let integrity = self.digests.join(" ");
        Package { name: self.name, version: self.version, integrity }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_read_with_their_digests() {
        let text = "anyio==4.1.0 \\\n    --hash=sha256:bb \\\n    --hash=sha256:aa\n# note==1\nmcp==1.2 ; python_version > '3' \\\n    --hash=sha256:cc\n";
        let pins = parse(text);
        assert_eq!(pins.len(), 2);
        assert_eq!(pins[0].identity(), "anyio==4.1.0 sha256:aa sha256:bb");
        assert_eq!(pins[1].identity(), "mcp==1.2 sha256:cc");
    }
}
