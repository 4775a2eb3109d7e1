//! Debian's archive: the real one, and one that is not Debian's.

use std::fs;
use std::path::Path;

use casemate_image::archive::{Limits, Tree};
use casemate_image::progress::Silent;
use casemate_image::registry::address::Registries;
use casemate_image::registry::debian::{Archive, DebianError, Suite, merged_usr, unpack};
use casemate_image::registry::http::Http;

use crate::home::{private_home, shared_home};
use crate::server::{Answer, Server};

#[test]
fn packages_of_trixie_are_resolved_fetched_and_unpacked() {
    let home = shared_home();
    let archive =
        Archive::open(&Http::new(), &Registries::default(), Suite::Trixie, home.path(), &Silent).unwrap();
    let packages = archive.resolve(&["libc6"], &[]).unwrap();
    let names: Vec<&str> = packages.iter().map(|package| package.name.as_str()).collect();
    assert_eq!(names[0], "libc6");
    assert!(names.contains(&"libgcc-s1") && names.contains(&"gcc-14-base"), "{names:?}");
    assert!(packages[0].version.starts_with("2.41-"), "{}", packages[0].version);
    let without = archive.resolve(&["libc6"], &["libgcc-s1"]).unwrap();
    assert!(without.iter().all(|package| package.name != "libgcc-s1"));

    let base = packages.iter().find(|package| package.name == "libgcc-s1").unwrap();
    let deb = archive.fetch(base, &Silent).unwrap();
    assert_eq!(fs::metadata(&deb).unwrap().len(), base.size);
    let root = home.path().join("root");
    fs::create_dir(&root).unwrap();
    let mut tree = Tree::open(&root, Limits::default()).unwrap();
    unpack(&deb, &mut tree, &merged_usr).unwrap();
    assert!(root.join("usr/lib/x86_64-linux-gnu/libgcc_s.so.1").is_file());
    assert!(!root.join("lib").exists());

    let missing = archive.package("no-such-package").unwrap_err();
    assert_eq!(missing.to_string(), "Debian trixie has no package no-such-package");
}

fn open(server: &Server, home: &Path) -> Result<Archive, DebianError> {
    let registries = Registries { debian: Some(server.url("/debian")), ..Registries::default() };
    Archive::open(&Http::new(), &registries, Suite::Trixie, home, &Silent)
}

fn signed(text: &str) -> Vec<u8> {
    format!(
        "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n{text}-----BEGIN PGP SIGNATURE-----\n\n\
         iHUEARYIAB0WIQ=\n-----END PGP SIGNATURE-----\n"
    )
    .into_bytes()
}

#[test]
fn an_archive_that_nobody_vouches_for_is_refused() {
    let text = "Codename: trixie\nSHA256:\n e3b0 1 main/binary-amd64/Packages.xz\n";
    let server = Server::start(&[("/debian/dists/trixie/InRelease", &[Answer::Body(signed(text))])]);
    let home = private_home();
    // With Debian's keyring the signature is wrong; without, plain http does not vouch for anything.
    let refused = open(&server, home.path());
    assert!(matches!(refused.err(), Some(DebianError::Signature { .. } | DebianError::Unverifiable { .. })));
    let requests = server.requests();
    assert_eq!(requests, ["/debian/dists/trixie/InRelease"], "no index of such an archive is fetched");
}

#[test]
fn what_is_no_archive_is_refused() {
    let home = private_home();
    let empty = Server::start(&[]);
    assert!(matches!(open(&empty, home.path()).err(), Some(DebianError::Fetch { .. })));
    let page = b"<html>please log in</html>".to_vec();
    let portal = Server::start(&[("/debian/dists/trixie/InRelease", &[Answer::Body(page)])]);
    assert!(matches!(open(&portal, home.path()).err(), Some(DebianError::Malformed { .. })));
}
