//! `docs/security.md` is whole: each row is an attack, a barrier and a test that exists, and each attack that has
//! to be answered has a row.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// What the table has to answer, in the words of its first column.
const DEMANDED: [&str; 14] = [
    "write to the root",
    "remount, cover or unmount what is there",
    "raw sockets",
    "load a module",
    "trace the agent",
    "read decoy credentials",
    "links in a volume towards agent or host",
    "control messages forged by the server process",
    "DNS rebinding",
    "SNI that differs from CONNECT",
    "redirect to a private address",
    "a second request smuggled",
    "exhausting egress streams",
    "secrets searched for in every file of the home",
];

/// The modules of the machine tests whose every test is an attack.
const ATTACKS: [&str; 2] = ["attack", "mounts::attack"];

struct Row {
    attack: String,
    barrier: String,
    test: String,
}

fn crates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The rows of all tables, without their heads.
fn rows() -> Vec<Row> {
    let text = fs::read_to_string(crates().join("../docs/security.md")).unwrap();
    let is_head = |line: &str| line == "| attack | barrier | test |" || line == "| --- | --- | --- |";
    let lines = text.lines().filter(|line| line.starts_with('|') && !is_head(line));
    lines
        .map(|line| {
            let inner = line.strip_prefix("| ").and_then(|line| line.strip_suffix(" |"));
            let cells: Vec<&str> = inner.unwrap_or_default().split(" | ").map(str::trim).collect();
            let [attack, barrier, test] = cells[..] else { panic!("no row of three cells: {line}") };
            let test = test.strip_prefix('`').and_then(|test| test.strip_suffix('`'));
            let test = test.unwrap_or_else(|| panic!("no test in {line}")).to_owned();
            assert!(!attack.is_empty() && !barrier.is_empty(), "{line}");
            Row { attack: attack.to_owned(), barrier: barrier.to_owned(), test }
        })
        .collect()
}

/// Looks for a test by its name as nextest prints it: `PACKAGE[::it] MODULE::FUNCTION`.
fn find(name: &str) -> Result<(), String> {
    let (binary, path) = name.split_once(' ').ok_or("no name of a binary and of a test")?;
    let (package, is_integration) =
        binary.strip_suffix("::it").map_or((binary, false), |package| (package, true));
    let folder = match package {
        "casemate" => "cli",
        package => package.strip_prefix("casemate-").ok_or("no crate of this workspace")?,
    };
    let (part, root) = if is_integration { ("tests/it", "main.rs") } else { ("src", "lib.rs") };
    let mut folder = crates().join(folder).join(part);
    let mut text = read(&folder.join(root))?;
    let mut modules: Vec<&str> = path.split("::").collect();
    let function = modules.pop().unwrap_or_default();
    for module in modules {
        let declares = |text: &str, end: &str| {
            text.lines().any(|line| {
                line.trim_start_matches("pub ")
                    .trim_start_matches("pub(crate) ")
                    .trim_start_matches("pub(super) ")
                    == format!("mod {module}{end}")
            })
        };
        if declares(&text, ";") {
            let file = folder.join(module).with_extension("rs");
            folder.push(module);
            text = read(&file).or_else(|_| read(&folder.join("mod.rs")))?;
        } else if declares(&text, " {") {
            text = text
                .split_once(&format!("mod {module} {{\n"))
                .map(|(_, inner)| inner.to_owned())
                .unwrap_or_default();
        } else {
            return Err(format!("no module {module}"));
        }
    }
    if tests(&text).contains(function) { Ok(()) } else { Err(format!("no test {function}")) }
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// The functions of a source that are tests.
fn tests(source: &str) -> BTreeSet<&str> {
    let (mut tests, mut is_test) = (BTreeSet::new(), false);
    for line in source.lines().map(str::trim) {
        let line = line.strip_prefix("async ").unwrap_or(line);
        match line.strip_prefix("fn ") {
            Some(function) if is_test => {
                tests.extend(function.split('(').next());
                is_test = false;
            }
            _ if line == "#[test]" || line.starts_with("#[tokio::test") => is_test = true,
            // What else stands between the mark and the function.
            _ => is_test &= line.starts_with("#[") || line.starts_with("//"),
        }
    }
    tests
}

#[test]
fn each_row_names_an_attack_a_barrier_and_a_test_that_exists() {
    let rows = rows();
    assert!(rows.len() >= 30, "only {} rows", rows.len());
    let wrong: Vec<String> = rows
        .iter()
        .filter_map(|row| Some(format!("{} ({}): {}", row.attack, row.test, find(&row.test).err()?)))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    let attacks: BTreeSet<&str> = rows.iter().map(|row| row.attack.as_str()).collect();
    assert_eq!(attacks.len(), rows.len(), "an attack stands there twice");
    assert!(rows.iter().all(|row| row.barrier.len() > 3));
}

#[test]
fn each_attack_that_has_to_be_answered_has_a_row() {
    let rows = rows();
    let answers = |demanded: &str| rows.iter().any(|row| row.attack.starts_with(demanded));
    let missing: Vec<&str> = DEMANDED.into_iter().filter(|demanded| !answers(demanded)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn each_test_that_attacks_is_named() {
    let named: BTreeSet<String> = rows().into_iter().map(|row| row.test).collect();
    for module in ATTACKS {
        let file = crates().join("cli/tests/it").join(module.replace("::", "/")).with_extension("rs");
        let source = read(&file).unwrap();
        let tests = tests(&source);
        assert!(!tests.is_empty(), "{module}");
        for test in tests {
            assert!(named.contains(&format!("casemate::it {module}::{test}")), "{module}::{test}");
        }
    }
}

#[test]
fn a_test_that_is_not_there_is_missed() {
    let real = "casemate::it security::a_test_that_is_not_there_is_missed";
    assert_eq!(find(real), Ok(()));
    for (name, reason) in [
        ("casemate::it security::no_such_test", "no test no_such_test"),
        // A function that is no test.
        ("casemate::it security::find", "no test find"),
        ("casemate::it nowhere::x", "no module nowhere"),
        ("casemate-nowhere x", "No such file"),
        ("security::find", "no name of a binary"),
    ] {
        let said = find(name).unwrap_err();
        assert!(said.contains(reason), "{name}: {said}");
    }
}
