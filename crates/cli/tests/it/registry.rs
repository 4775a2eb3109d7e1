//! The server registry: `list` and `remove` on files that people wrote. `add` needs the network.

use crate::home::{Home, casemate};

const FILE: &str = "# my servers\n[[servers]]\nid = \"a\" # the first\nsource = \"npm:a\"\n\n[[servers]]\nid = \"b\"\n\
                    source = \"pypi:b\"\nargs = [\"--x\", \"y z\"]\nisolation = \"sandbox\"\nimage = \"sha256:00\"\nversion = \"1.0\"\n";

#[test]
fn servers_are_listed_as_promised() {
    let home = Home::isolated();
    assert_eq!(casemate(&home, &["list", "--json"]).stdout, "[]\n");
    home.write("config.toml", FILE);
    insta::assert_snapshot!("list-json", casemate(&home, &["list", "--json"]).stdout);
    insta::assert_snapshot!("list", casemate(&home, &["list"]).stdout);
}

#[test]
fn removing_a_server_keeps_everything_else() {
    let home = Home::isolated();
    home.write("config.toml", FILE);
    assert_eq!(casemate(&home, &["remove", "b"]).stdout, "Removed b\n");
    assert_eq!(
        home.read("config.toml"),
        "# my servers\n[[servers]]\nid = \"a\" # the first\nsource = \"npm:a\"\n"
    );
    assert_eq!(casemate(&home, &["remove", "b"]).code, 3);
}

#[test]
fn a_name_is_added_once() {
    let home = Home::isolated();
    home.write("config.toml", FILE);
    let again = casemate(&home, &["add", "a", "npm:other"]);
    assert_eq!(again.code, 3, "{}", again.stderr);
    assert!(again.stderr.contains("--replace"), "{}", again.stderr);
    assert_eq!(home.read("config.toml"), FILE);
}

#[test]
fn a_server_of_a_seeds_document_is_changed_where_it_is_written() {
    let home = Home::isolated();
    home.write("isolation_config.json", r#"{"mcp_servers": {"s": {"server_command": "npx s"}}}"#);
    for line in [vec!["remove", "s"], vec!["add", "s", "npm:x", "--replace"]] {
        let result = casemate(&home, &line);
        assert_eq!(result.code, 3, "{}", result.stderr);
        assert!(result.stderr.contains("isolation_config.json:1"), "{}", result.stderr);
    }
}
