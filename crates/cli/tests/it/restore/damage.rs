//! Templates that are not what they were when they were made, or were made elsewhere.

use crate::{
    home::{Home, casemate},
    live::{NONE, assert_answers, builders, launch, manifest, partial_templates, stop, template, templates},
};
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, PermissionsExt},
    path::Path,
};

/// What is done to a template, and in words.
type Damage<'a> = (&'a str, &'a dyn Fn(&Path));

/// The next start after a damage that is found before a machine is planned: it makes a new template.
fn assert_is_replaced(damages: &[Damage<'_>]) {
    let home = Home::new();
    launch(&home, "m", &[]);
    let path = template(&home);
    for (number, (what, damage)) in damages.iter().enumerate() {
        stop(&home, "m");
        damage(&path);
        let record = launch(&home, "m", &[]);
        assert_eq!(builders(&home), number + 2, "{what}: no new template was made");
        assert_eq!(record["start"], "restored", "{what}: {record}");
        assert_eq!(template(&home), path, "{what}");
        assert_answers(&home, "m");
    }
    assert_eq!(partial_templates(&home), NONE);
}

#[test]
fn a_template_of_another_version_processor_or_clock_is_not_used() {
    assert_is_replaced(&[
        ("another version", &|path| {
            edit(path, |manifest| manifest["ingredients"]["version"] = json!("0.0.1"))
        }),
        ("another processor", &|path| edit(path, |manifest| manifest["ingredients"]["cpu"] = json!("486"))),
        ("another clock", &|path| {
            edit(path, |manifest| {
                let khz = manifest["outcome"]["made"]["tsc_khz"].as_u64().unwrap();
                manifest["outcome"]["made"]["tsc_khz"] = json!(khz + khz / 100);
            });
            // Looked at once in a boot of the host, and another host has another.
            fs::remove_file(path.join("verified")).unwrap();
        }),
        ("no description", &|path| fs::write(path.join("template.json"), "{\"key\":").unwrap()),
    ]);
}

#[test]
fn memory_that_was_cut_short_or_changed_is_not_used() {
    assert_is_replaced(&[
        ("cut short", &|path| writable(&path.join("memory")).set_len(100 << 20).unwrap()),
        ("a bit flipped", &|path| {
            flip_in_the_middle(&path.join("memory"));
            // Compared once in a boot of the host: this is the next boot.
            fs::remove_file(path.join("verified")).unwrap();
        }),
        ("gone", &|path| fs::remove_file(path.join("memory")).unwrap()),
    ]);
}

/// The next start after a damage that only the machine's own supervisor or VMM finds: it is cold, says so,
/// and the one after it makes a new template.
fn assert_is_survived(what: &str, damage: impl Fn(&Path)) {
    let home = Home::new();
    launch(&home, "m", &[]);
    stop(&home, "m");
    damage(&template(&home));
    let launched = casemate(&home, &["mcp", "microvm", "launch", "m"]);
    assert_eq!(launched.code, 0, "{what}: {launched:?}");
    let warned = launched.stderr.lines().any(|line| line.contains("m was started cold: template "));
    assert!(warned, "{what}: no warning in {launched:?}");
    let record = home.machine_record("m");
    assert_eq!(record["start"], "cold", "{what}: {record}");
    let reason = record["template_reason"].as_str().unwrap();
    assert!(reason.contains("could not be restored"), "{what}: {reason}");
    assert_answers(&home, "m");
    assert_eq!(templates(&home), NONE, "{what}: what is of no use is still there");
    stop(&home, "m");
    assert_eq!(launch(&home, "m", &[])["start"], "restored", "{what}");
    assert_eq!(builders(&home), 2);
}

#[test]
fn a_state_that_was_cut_short() {
    assert_is_survived("cut short", |path| {
        let state = writable(&path.join("state"));
        state.set_len(state.metadata().unwrap().len() / 2).unwrap();
    });
}

#[test]
fn a_state_of_which_a_bit_was_flipped() {
    assert_is_survived("a bit flipped", |path| flip_in_the_middle(&path.join("state")));
}

#[test]
fn a_state_that_the_vmm_refuses() {
    assert_is_survived("refused", |path| {
        let state = fs::read(path.join("state")).unwrap();
        let cut = &state[..state.len() / 2];
        fs::write(path.join("state"), cut).unwrap();
        let digest = blake3::hash(cut).to_hex().to_string();
        edit(path, |manifest| manifest["outcome"]["made"]["state_digest"] = json!(digest));
    });
}

/// A guest that begins in the middle of nowhere.
#[test]
fn memory_that_fits_the_description_and_is_no_guest() {
    assert_is_survived("no guest", |path| {
        let memory = writable(&path.join("memory"));
        let bytes = memory.metadata().unwrap().len();
        memory.set_len(0).unwrap();
        memory.set_len(bytes).unwrap();
        // The digest of no pages at all.
        let digest = blake3::hash(b"").to_hex().to_string();
        edit(path, |manifest| manifest["outcome"]["made"]["memory_digest"] = json!(digest));
        fs::remove_file(path.join("verified")).unwrap();
    });
}

fn edit(template: &Path, change: impl FnOnce(&mut Value)) {
    let mut text = manifest(template);
    change(&mut text);
    fs::write(template.join("template.json"), text.to_string()).unwrap();
}

fn writable(path: &Path) -> File {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    File::options().read(true).write(true).open(path).unwrap()
}

fn flip_in_the_middle(path: &Path) {
    let file = writable(path);
    let middle = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], middle).unwrap();
}
