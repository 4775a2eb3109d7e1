//! Which names an archive may use.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::UnpackError;

/// Names longer than this are refused (`PATH_MAX`).
const LONGEST: usize = 4096;

/// The path that an entry's name means, relative to the root: without `.`, never leading out.
///
/// The root itself is the empty path.
pub(crate) fn entry_path(name: &[u8]) -> Result<PathBuf, UnpackError> {
    let refused = || UnpackError::Path(String::from_utf8_lossy(name).chars().take(200).collect());
    if name.is_empty() || name.len() > LONGEST || name.contains(&0) {
        return Err(refused());
    }
    let mut clean = PathBuf::new();
    for component in Path::new(OsStr::from_bytes(name)).components() {
        match component {
            Component::Normal(part) => clean.push(part),
            Component::CurDir => {}
            Component::RootDir | Component::ParentDir | Component::Prefix(_) => return Err(refused()),
        }
    }
    Ok(clean)
}

/// What a symbolic link at `path` may hold so that it means `target` and stays within the root.
///
/// The answer is always relative, with `..` only at its beginning. As the parents of `path` are real
/// folders, following such links, one after the other, never leaves the root.
pub(crate) fn link_target(path: &Path, target: &[u8]) -> Result<PathBuf, UnpackError> {
    let refused = || UnpackError::Link {
        path: path.to_owned(),
        target: String::from_utf8_lossy(target).chars().take(200).collect(),
    };
    if target.is_empty() || target.len() > LONGEST || target.contains(&0) {
        return Err(refused());
    }
    let target = Path::new(OsStr::from_bytes(target));
    let folder: Vec<&OsStr> = path.parent().unwrap_or(Path::new("")).iter().collect();
    let mut wanted: Vec<&OsStr> = if target.is_absolute() { Vec::new() } else { folder.clone() };
    for component in target.components() {
        match component {
            Component::Normal(part) => wanted.push(part),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir if target.is_absolute() && wanted.is_empty() => {}
            Component::ParentDir => drop(wanted.pop().ok_or_else(refused)?),
            Component::Prefix(_) => return Err(refused()),
        }
    }
    let shared = folder.iter().zip(&wanted).take_while(|(a, b)| a == b).count();
    let up = std::iter::repeat_n(OsStr::new(".."), folder.len() - shared);
    let relative: PathBuf = up.chain(wanted[shared..].iter().copied()).collect();
    Ok(if relative.as_os_str().is_empty() { PathBuf::from(".") } else { relative })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names() {
        let good = [("a", "a"), ("./a/b", "a/b"), ("a//b/./c/", "a/b/c"), ("./", ""), ("a..b", "a..b")];
        for (name, path) in good {
            assert_eq!(entry_path(name.as_bytes()).unwrap(), Path::new(path), "{name}");
        }
        for name in ["", "/", "/a", "..", "a/..", "a/../../b", "./../a", "a\0b", &"a/".repeat(3000)] {
            assert!(matches!(entry_path(name.as_bytes()), Err(UnpackError::Path(_))), "{name}");
        }
    }

    #[test]
    fn targets() {
        let good = [
            ("a", "b", "b"),
            ("d/a", "b", "b"),
            ("d/a", "../b", "../b"),
            ("usr/bin/x", "/etc/alternatives/x", "../../etc/alternatives/x"),
            ("usr/lib/a", "/usr/lib/b", "b"),
            ("a", "d/../b", "b"),
            ("d/a", "..", ".."),
            ("d/a", ".", "."),
            ("a", "/../../b", "b"),
            ("a", "/", "."),
        ];
        for (path, target, kept) in good {
            let got = link_target(Path::new(path), target.as_bytes()).unwrap();
            assert_eq!(got, Path::new(kept), "{path} -> {target}");
        }
        for (path, target) in
            [("a", ".."), ("d/a", "../.."), ("d/a", "b/../../../c"), ("a", ""), ("a", "b\0")]
        {
            let refused = link_target(Path::new(path), target.as_bytes());
            assert!(matches!(refused, Err(UnpackError::Link { .. })), "{path} -> {target}");
        }
    }

    proptest! {
        #[test]
        fn an_accepted_name_never_leads_out(name in "[a./\u{e9}]{0,12}") {
            if let Ok(path) = entry_path(name.as_bytes()) {
                prop_assert!(path.components().all(|part| matches!(part, Component::Normal(_))));
            }
        }

        #[test]
        fn an_accepted_target_never_leads_out(path in "[ab]{1,2}(/[ab]{1,2}){0,3}", target in "[ab./]{0,12}") {
            let path = Path::new(&path);
            if let Ok(kept) = link_target(path, target.as_bytes()) {
                prop_assert!(kept.is_relative());
                let ups = kept.components().take_while(|part| *part == Component::ParentDir).count();
                prop_assert!(ups < path.components().count());
                prop_assert!(!kept.components().skip(ups).any(|part| part == Component::ParentDir));
            }
        }
    }
}
