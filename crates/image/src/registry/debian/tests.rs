use super::*;

fn archive(packages: &str) -> Archive {
    let registries = Registries { debian: Some("http://m.test/debian".to_owned()), ..Registries::default() };
    let mut index = Index::default();
    index.add(packages.as_bytes(), 0).unwrap();
    Archive {
        http: Http::new(),
        suite: Suite::Trixie,
        mirror: registries.debian().unwrap(),
        index,
        pools: vec!["http://m.test/debian/".to_owned()],
        debs: PathBuf::from("unused"),
    }
}

fn package(name: &str, more: &str) -> String {
    format!(
        "Package: {name}\nVersion: 1\nFilename: pool/{name}.deb\nSize: 3\nSHA256: {}\n{more}\n",
        "0".repeat(64)
    )
}

fn names(archive: &Archive, names: &[&str], exclude: &[&str]) -> Vec<String> {
    let packages = archive.resolve(names, exclude).unwrap();
    packages.into_iter().map(|package| package.name).collect()
}

#[test]
fn the_closure_follows_alternatives_and_virtual_packages_and_ends_in_cycles() {
    let archive = archive(
        &[
            package("app", "Depends: gone | libb (>= 2), awk, libc:any\nPre-Depends: pre\n"),
            package("libb", "Depends: app\n"),
            package("libc", ""),
            package("mawk", "Provides: awk\n"),
            package("gawk", "Provides: awk (= 1)\nDepends: libb\n"),
            package("pre", ""),
        ]
        .concat(),
    );
    assert_eq!(names(&archive, &["app"], &[]), ["app", "pre", "libb", "gawk", "libc"]);
    assert_eq!(names(&archive, &["mawk", "app"], &[]), ["mawk", "app", "pre", "libb", "libc"]);
    assert_eq!(names(&archive, &["app"], &["libb", "pre", "mawk"]), ["app", "libc"]);
    let app = archive.package("app").unwrap();
    assert_eq!(app.url, "http://m.test/debian/pool/app.deb");
}

#[test]
fn what_cannot_be_had_is_named() {
    let archive = archive(&package("app", "Depends: gone | lost\n"));
    let error = archive.resolve(&["app"], &[]).unwrap_err();
    assert_eq!(error.to_string(), "Debian trixie has no package gone | lost");
    let damaged = archive_with_a_path_out();
    assert!(matches!(damaged.package("app"), Err(DebianError::Malformed { .. })));
}

fn archive_with_a_path_out() -> Archive {
    archive(&package("app", "").replace("pool/", "../"))
}

#[test]
fn security_updates_are_looked_for_beside_the_main_archive() {
    let base = |url: &str| Base::parse(url, "test").unwrap();
    let suites: Vec<String> = pockets(&base("http://m.test/x/debian"), Suite::Bookworm)
        .into_iter()
        .map(|p| p.archive + &p.suite)
        .collect();
    assert_eq!(
        suites,
        [
            "http://m.test/x/debian/bookworm",
            "http://m.test/x/debian/bookworm-updates",
            "http://m.test/x/debian-security/bookworm-security"
        ]
    );
    assert_eq!(pockets(&base("http://m.test/mirror"), Suite::Trixie).len(), 2);
}

#[test]
fn files_move_below_usr() {
    for (path, moved) in [
        ("lib/x/y", Some("usr/lib/x/y")),
        ("bin/sh", Some("usr/bin/sh")),
        ("lib64", None),
        ("library/x", Some("library/x")),
        ("etc/x", Some("etc/x")),
    ] {
        assert_eq!(merged_usr(Path::new(path)).as_deref(), moved.map(Path::new), "{path}");
    }
    assert_eq!(merged_usr(Path::new("")), None);
}
