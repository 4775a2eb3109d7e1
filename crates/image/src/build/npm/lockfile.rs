//! `package-lock.json`, version 3: which packages, in which versions, where in the tree.

use std::path::Path;

use serde_json::{Map, Value};

use crate::build::{BuildError, Context};
use crate::files;
use crate::store::Package;

/// The largest lock file that is read.
const LOCKFILE_BYTES: u64 = 32 << 20;

/// The most packages of one server.
const PACKAGES: usize = 10_000;

/// A lock file of npm.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lockfile(Map<String, Value>);

impl Lockfile {
    /// Reads the lock file of `folder`.
    pub(crate) fn read(context: &Context<'_>, folder: &Path) -> Result<Self, BuildError> {
        let text = files::read_below(folder, Path::new(super::LOCKFILE), LOCKFILE_BYTES)?;
        Self::parse(&text).map_err(|reason| malformed(context, &reason))
    }

    pub(crate) fn parse(text: impl AsRef<[u8]>) -> Result<Self, String> {
        let lockfile: Map<String, Value> =
            serde_json::from_slice(text.as_ref()).map_err(|error| error.to_string())?;
        let packages = lockfile.get("packages").and_then(Value::as_object);
        match packages {
            None => Err("it has no packages; write it with npm 7 or later".to_owned()),
            Some(packages) if packages.len() > PACKAGES => {
                Err(format!("it has more than {PACKAGES} packages"))
            }
            Some(packages) => match packages.keys().find(|place| !is_place(place)) {
                Some(place) => Err(format!("{place:?} is no place of a package")),
                None => Ok(Self(lockfile)),
            },
        }
    }

    pub(crate) fn to_text(&self) -> String {
        Value::Object(self.0.clone()).to_string()
    }

    /// Makes the root ask for the version of `name` that was found, and returns it.
    pub(crate) fn pin_root(&mut self, name: &str) -> Option<String> {
        let packages = self.0.get_mut("packages")?.as_object_mut()?;
        let version = packages.get(&format!("node_modules/{name}"))?.get("version")?.as_str()?.to_owned();
        let root = packages.get_mut("")?.as_object_mut()?;
        root.insert("dependencies".to_owned(), serde_json::json!({ name: version }));
        Some(version)
    }

    /// What decides the tree: every place with its package's version and digest, but not where that was
    /// fetched.
    pub(crate) fn identity(&self) -> Vec<String> {
        let line = |(place, package): (&str, &Value)| {
            let field = |name| package.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
            format!("{place}\0{}\0{}\0{}", field("name"), field("version"), field("integrity"))
        };
        let mut lines: Vec<String> = self.entries().map(line).collect();
        lines.sort();
        lines
    }

    /// The packages that the image has, once each.
    pub(crate) fn packages(&self) -> Vec<Package> {
        let mut packages: Vec<Package> = self
            .entries()
            .filter(|(place, package)| place.contains("node_modules/") && !is_set(package, "dev"))
            .filter_map(|(place, package)| {
                let field = |name: &str| package.get(name).and_then(Value::as_str).map(str::to_owned);
                Some(Package {
                    name: field("name").or_else(|| name_of(place))?,
                    version: field("version")?,
                    integrity: field("integrity").unwrap_or_default(),
                })
            })
            .collect();
        packages.sort();
        packages.dedup();
        packages
    }

    /// The names of packages that want to run a script when they are installed.
    pub(crate) fn with_scripts(&self) -> Vec<String> {
        let wants = self
            .entries()
            .filter(|(_, package)| is_set(package, "hasInstallScript") && !is_set(package, "dev"));
        let mut names: Vec<String> = wants.filter_map(|(place, _)| name_of(place)).collect();
        names.sort();
        names.dedup();
        names
    }

    fn entries(&self) -> impl Iterator<Item = (&str, &Value)> {
        let packages = self.0.get("packages").and_then(Value::as_object);
        packages.into_iter().flatten().map(|(place, package)| (place.as_str(), package))
    }
}

/// The error for a lock file that is none.
pub(crate) fn malformed(context: &Context<'_>, reason: &str) -> BuildError {
    let (file, reason) = (super::LOCKFILE.to_owned(), reason.to_owned());
    BuildError::Malformed { file, reason, log: context.log_path() }
}

fn is_set(package: &Value, flag: &str) -> bool {
    package.get(flag).and_then(Value::as_bool).unwrap_or(false)
}

fn name_of(place: &str) -> Option<String> {
    place.rsplit_once("node_modules/").map(|(_, name)| name.to_owned())
}

/// Whether a key of `packages` is the root or a path inside the tree.
fn is_place(place: &str) -> bool {
    place.len() < 4096
        && !place.starts_with('/')
        && place.split('/').all(|part| part != ".." && !part.contains('\0'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LOCK: &str = r#"{"name":"server","lockfileVersion":3,"packages":{
        "":{"dependencies":{"@a/b":"latest"}},
        "node_modules/@a/b":{"version":"1.2.3","resolved":"http://one.test/b.tgz","integrity":"sha512-B"},
        "node_modules/@a/b/node_modules/c":{"version":"2.0.0","integrity":"sha512-C","hasInstallScript":true},
        "node_modules/d":{"version":"3.0.0","integrity":"sha512-D","dev":true,"hasInstallScript":true}}}"#;

    #[test]
    fn the_root_is_pinned_and_addresses_decide_nothing() {
        let mut one = Lockfile::parse(LOCK).unwrap();
        let other = Lockfile::parse(LOCK.replace("one.test", "two.test")).unwrap();
        assert_eq!(one.identity(), other.identity());
        assert_eq!(one.pin_root("@a/b"), Some("1.2.3".to_owned()));
        assert_eq!(one.pin_root("missing"), None);
        assert!(one.to_text().contains(r#""dependencies":{"@a/b":"1.2.3"}"#));
        assert_ne!(one.identity(), Lockfile::parse(LOCK.replace("sha512-C", "sha512-X")).unwrap().identity());
    }

    #[test]
    fn packages_are_listed_without_those_for_development() {
        let lockfile = Lockfile::parse(LOCK).unwrap();
        let names: Vec<_> = lockfile.packages().into_iter().map(|p| (p.name, p.version)).collect();
        assert_eq!(names, [("@a/b".into(), "1.2.3".into()), ("c".into(), "2.0.0".into())]);
        assert_eq!(lockfile.with_scripts(), ["c"]);
    }

    #[test]
    fn places_outside_are_refused() {
        for place in ["../x", "/etc", "node_modules/../../x"] {
            assert!(Lockfile::parse(format!(r#"{{"packages":{{"{place}":{{}}}}}}"#)).is_err(), "{place}");
        }
        assert!(Lockfile::parse("{}").is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,200}") {
            let _ = Lockfile::parse(&text);
        }
    }
}
