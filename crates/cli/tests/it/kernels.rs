//! Guest kernels as their users meet them. That a kernel of casemate's own builds and boots takes minutes:
//! `scripts/kernel.sh` finds it out.

use crate::home::{Home, casemate, finish};
use serde_json::Value;
use std::fs;

/// The path of a kernel that boots.
fn vmlinux(home: &Home) -> String {
    let fetched = casemate(home, &["kernel", "fetch"]);
    assert_eq!(fetched.code, 0, "{}", fetched.stderr);
    let path = home.path().join("kernels").join(fetched.stdout.trim()).join("vmlinux");
    path.to_str().unwrap().to_owned()
}

#[test]
fn the_kernel_that_machines_boot_is_marked() {
    let (shared, home) = (Home::new(), Home::isolated());
    let kernel = vmlinux(&shared);
    let other = home.path().join("other");
    let mut bytes = fs::read(&kernel).unwrap();
    // Another kernel, by a byte that nothing looks at.
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&other, bytes).unwrap();
    let import = |path: &str| {
        let imported = casemate(&home, &["kernel", "import", path, "--json"]);
        assert_eq!(imported.code, 0, "{}", imported.stderr);
        let imported: Value = serde_json::from_str(&imported.stdout).unwrap();
        assert_eq!(imported["default"], true, "{imported}");
        imported["id"].as_str().unwrap().to_owned()
    };
    let (first, second) = (import(&kernel), import(other.to_str().unwrap()));
    let listed = casemate(&home, &["kernel", "list", "--json"]);
    let listed: Vec<Value> = serde_json::from_str(&listed.stdout).unwrap();
    let marks: Vec<_> = listed.iter().map(|kernel| (&kernel["id"], &kernel["default"])).collect();
    assert_eq!(marks, [(&second.into(), &true.into()), (&first.into(), &false.into())]);
    let shown = casemate(&home, &["kernel", "list"]).stdout;
    assert_eq!(shown.lines().filter(|line| line.contains(" yes ")).count(), 1, "{shown}");
}

#[test]
fn a_build_without_its_source_is_refused_and_leaves_nothing() {
    let home = Home::isolated();
    let mut build = home.command(&["kernel", "build"]);
    build.env("CASEMATE_DEBIAN_MIRROR", "http://127.0.0.1:9/debian/");
    let refused = finish(build, b"");
    assert_eq!(refused.code, 4, "{}", refused.stderr);
    assert!(refused.stderr.contains("error: no kernel was built\n  because: "), "{}", refused.stderr);
    assert!(refused.stderr.contains("\nhint: "), "{}", refused.stderr);
    assert!(!home.path().join("kernels").exists());
    assert_eq!(casemate(&home, &["kernel", "build", "--jobs", "0"]).code, 2);
}
