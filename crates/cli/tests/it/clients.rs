//! `client-config` and `import`: goldens of every client's format, and the commands as their users meet them.

mod commands;
mod hostile;
mod real;

use casemate::clients::{
    Client, Document, Entry, Launcher, Mistake,
    adopt::{Known, Terms, Verdict, propose},
};
use casemate_proto::ids::Name;
use proptest::prelude::*;
use std::{fs, path::PathBuf};

fn launcher() -> Launcher {
    Launcher { program: "/usr/local/bin/casemate".to_owned(), home: None, config: None }
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// Compares with a file of `tests/data/clients`, to the byte. `CASEMATE_UPDATE_GOLDENS=1` rewrites it.
fn golden(file: &str, actual: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/clients").join(file);
    if std::env::var_os("CASEMATE_UPDATE_GOLDENS").is_some() {
        fs::write(&path, actual).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{file}: {error}"));
    assert!(expected == actual, "{file} differs:\n--- expected\n{expected}\n--- actual\n{actual}");
}

/// The name of a client's file.
fn named(client: Client, stage: &str) -> String {
    let extension = if client == Client::Codex { "toml" } else { "json" };
    format!("{client}.{stage}.{extension}")
}

/// A client's file as people have it.
fn before(client: Client) -> String {
    let file = named(client, "before");
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/clients").join(&file);
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// What `client-config --write` makes of a text: two servers, one with a variable.
fn configured(client: Client, text: &str) -> String {
    let mut document = Document::new(client.shape(), text.to_owned()).unwrap();
    let elsewhere = Launcher { home: Some("/srv/casemate \"1\"".to_owned()), ..launcher() };
    document.put("casemate-one", &launcher().entry(&name("one"))).unwrap();
    document.put("two", &elsewhere.entry(&name("two"))).unwrap();
    document.text().to_owned()
}

/// What `import --write` makes of a text, and what it says about each server.
fn imported(client: Client, text: &str) -> (String, String) {
    let document = Document::new(client.shape(), text.to_owned()).unwrap();
    let (mut rewritten, mut said) = (document.clone(), String::new());
    for proposal in propose(&document, &launcher(), &Known::default(), Terms::default()).unwrap() {
        let what = match &proposal.verdict {
            Verdict::Own => "own".to_owned(),
            Verdict::Known(name) => format!("known {name}"),
            Verdict::Left(obstacle) => format!("left: {obstacle}"),
            Verdict::New(name, taken) => {
                rewritten.put(&proposal.entry, &launcher().entry(name)).unwrap();
                format!("{name}: {} {:?} {:?}", taken.source, taken.args, taken.env)
            }
        };
        said.push_str(&format!("{}: {what}\n", proposal.entry));
        proposal.notes.iter().for_each(|note| said.push_str(&format!("{}: note: {note}\n", proposal.entry)));
    }
    (rewritten.text().to_owned(), said)
}

#[test]
fn every_clients_format_is_written_as_documented() {
    for client in Client::ALL {
        let before = before(client);
        golden(&named(client, "configured"), &configured(client, &before));
        golden(&named(client, "fresh"), &configured(client, ""));
    }
}

#[test]
fn every_clients_servers_are_taken_over() {
    for client in Client::ALL {
        let before = before(client);
        let (after, said) = imported(client, &before);
        golden(&named(client, "imported"), &after);
        assert!(!said.is_empty(), "{client} has no server to take over");
        golden(&format!("{client}.imported.txt"), &said);
    }
}

/// Gemini fills in `$NAME` in the middle of a text, the others do not.
#[test]
fn what_a_client_fills_in_is_not_taken_literally() {
    for (field, entry) in [
        ("args", r#"{"command": "npx", "args": ["-y", "a", "--root=$HOME/docs"]}"#),
        ("command", r#"{"command": "$BIN/npx", "args": ["-y", "a"]}"#),
        ("env", r#"{"command": "npx", "args": ["-y", "a"], "env": {"LEVEL": "x-$_LEVEL"}}"#),
    ] {
        let text = format!(r#"{{"mcpServers": {{"x": {entry}}}}}"#);
        let filled = imported(Client::Gemini, &text).1;
        assert_eq!(
            filled,
            format!("x: left: its {field} refers to a variable that only the client can fill in\n")
        );
        let literal = imported(Client::ClaudeDesktop, &text).1;
        assert!(!literal.contains("refers to a variable"), "{literal}");
    }
    let harmless = r#"{"mcpServers": {"x": {"command": "npx", "args": ["-y", "a", "$5", "^a$", "$"]}}}"#;
    assert!(imported(Client::Gemini, harmless).1.starts_with("x: x: npm:a"));
}

/// A client's file and what casemate makes of its first server, after which somebody goes on.
fn edited_after_import(edit: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>)) -> Document {
    let entry = launcher().entry(&name("github"));
    let entry = serde_json::json!({"command": entry.command, "args": entry.args});
    let mut servers = serde_json::Map::from_iter([("github".to_owned(), entry)]);
    edit(&mut servers);
    let text = serde_json::json!({"mcpServers": servers}).to_string();
    Document::new(Client::Cursor.shape(), text).unwrap()
}

#[test]
fn going_back_takes_out_what_casemate_added_and_says_what_is_not_back() {
    let text = r#"{"mcpServers": {"github": {"command": "npx", "args": ["-y", "github"]}}}"#;
    let then = Document::new(Client::Cursor.shape(), text.to_owned()).unwrap();
    let reverted = |mut document: Document| {
        let reverted = document.revert(&then, &launcher()).unwrap();
        (reverted.changed, reverted.missing, document.entries().unwrap().into_keys().collect::<Vec<_>>())
    };
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    // Nothing was done since, but to the rest of the file.
    let same = reverted(edited_after_import(|_| {}));
    assert_eq!(same, (names(&["github"]), names(&[]), names(&["github"])));
    let renamed = reverted(edited_after_import(|servers| {
        let entry = servers.remove("github").unwrap();
        servers.insert("gh".to_owned(), entry);
    }));
    assert_eq!(renamed, (names(&[]), names(&["github"]), names(&["gh"])));
    let removed = reverted(edited_after_import(|servers| drop(servers.remove("github"))));
    assert_eq!(removed, (names(&[]), names(&["github"]), names(&[])));
    // `client-config` added one, and somebody another one.
    let added = reverted(edited_after_import(|servers| {
        let written = launcher().entry(&name("notes"));
        servers.insert(
            "notes".to_owned(),
            serde_json::json!({"command": written.command, "args": written.args}),
        );
        servers
            .insert("mine".to_owned(), serde_json::json!({"command": "casemate", "args": ["run", "mine"]}));
    }));
    assert_eq!(added, (names(&["github", "notes"]), names(&[]), names(&["github", "mine"])));
}

#[test]
fn line_ends_stay_what_they_are() {
    for client in Client::ALL {
        let before = before(client);
        let dos = |text: &str| text.replace('\n', "\r\n");
        assert_eq!(configured(client, &dos(&before)), dos(&configured(client, &before)), "{client}");
        assert_eq!(imported(client, &dos(&before)).0, dos(&imported(client, &before).0), "{client}");
    }
    let mixed = "a = 1\r\nb = 2\n".to_owned();
    assert_eq!(Document::new(Client::Codex.shape(), mixed), Err(Mistake::Layout));
}

#[test]
fn what_is_written_twice_changes_nothing() {
    for client in Client::ALL {
        let once = configured(client, &before(client));
        assert_eq!(configured(client, &once), once, "{client}");
    }
}

#[test]
fn entries_that_were_put_are_taken_out_again() {
    for client in Client::ALL {
        let before = Document::new(client.shape(), before(client)).unwrap();
        let mut document = before.clone();
        for key in ["a", "b", "c"] {
            document.put(key, &launcher().entry(&name(key))).unwrap();
        }
        for key in ["c", "a", "b"] {
            document.remove(key).unwrap();
        }
        assert_eq!(document.entries(), before.entries(), "{client}");
        // A client that reads no comma after the last item still reads it.
        if serde_json::from_str::<serde_json::Value>(before.text()).is_ok() {
            serde_json::from_str::<serde_json::Value>(document.text()).unwrap();
        }
    }
}

#[test]
fn what_is_taken_out_leaves_comments_and_commas_right() {
    for (text, expected) in [
        ("{\"mcpServers\": { \"a\": {}, // a\n  \"x\": {} }}", "{\"mcpServers\": { \"a\": {} // a\n   }}"),
        ("{\"mcpServers\": { \"x\": {}, \"a\": {} }}", "{\"mcpServers\": { \"a\": {} }}"),
        ("{\"mcpServers\": { \"a\": {}, \"x\": {}, }}", "{\"mcpServers\": { \"a\": {}, }}"),
        ("{\"mcpServers\": {\r\n  \"x\": {}\r\n}}", "{\"mcpServers\": {\r\n}}"),
    ] {
        let mut document = Document::new(Client::Gemini.shape(), text.to_owned()).unwrap();
        document.remove("x").unwrap();
        assert_eq!(document.text(), expected, "{text}");
    }
}

#[test]
fn unusual_layouts_stay_valid() {
    let put = |client: Client, text: &str| {
        let mut document = Document::new(client.shape(), text.to_owned()).unwrap();
        document.put("x", &Entry { command: "c".to_owned(), ..Entry::default() }).unwrap();
        document.text().to_owned()
    };
    let gemini = |text: &str| put(Client::Gemini, text);
    let entry = "\"x\": { \"command\": \"c\", \"args\": [] }";
    let block = "\"x\": {\n      \"command\": \"c\",\n      \"args\": []\n    }";
    for (text, expected) in [
        ("{\"a\":1}", format!("{{\"a\":1, \"mcpServers\": {{{entry}}}}}")),
        ("{\"mcpServers\": null}", format!("{{\"mcpServers\": {{{entry}}}}}")),
        ("\n{}", format!("\n{{\n  \"mcpServers\": {{\n    {block}\n  }}\n}}")),
        ("// nothing yet", format!("// nothing yet\n{{\n  \"mcpServers\": {{\n    {block}\n  }}\n}}\n")),
        (
            "{\n  \"mcpServers\": {\n    // none\n  }\n}\n",
            format!("{{\n  \"mcpServers\": {{\n    // none\n    {block}\n  }}\n}}\n"),
        ),
        (
            "{\n  \"a\": 1 // one\n}",
            format!("{{\n  \"a\": 1, // one\n  \"mcpServers\": {{\n    {block}\n  }}\n}}"),
        ),
        (
            "{\n  \"a\": 1, /* one */   \n}",
            format!("{{\n  \"a\": 1, /* one */   \n  \"mcpServers\": {{\n    {block}\n  }},\n}}"),
        ),
        (
            "{\n  \"mcpServers\": {\"x\": {\"args\": [\"old\"], \"k\": 1}} }",
            "{\n  \"mcpServers\": {\"x\": {\"args\": [], \"k\": 1, \"command\": \"c\"}} }".to_owned(),
        ),
    ] {
        assert_eq!(gemini(text), expected, "{text}");
    }
    let codex = |text: &str| put(Client::Codex, text);
    let table = "[mcp_servers.x]\ncommand = \"c\"\nargs = []\nstartup_timeout_sec = 120\n";
    for (text, expected) in [
        ("a = 1", format!("a = 1\n\n{}", table.trim_end())),
        ("[z]\n[y]\n[z.w]\nv = 1\n", format!("[z]\n[y]\n[z.w]\nv = 1\n\n{table}")),
        ("mcp_servers.y.command = 'd'\n", format!("mcp_servers.y.command = 'd'\n\n{table}")),
        (
            "mcp_servers = { y = { command = 'd' } } # all\n",
            "mcp_servers = { y = { command = 'd' } , x = { command = \"c\", args = [], startup_timeout_sec = 120 } } # all\n".to_owned(),
        ),
        ("mcp_servers.x.env.A = '1'\nb = 2\n", "mcp_servers.x.command = \"c\"\nmcp_servers.x.args = []\nmcp_servers.x.startup_timeout_sec = 120\nb = 2\n".to_owned()),
    ] {
        assert_eq!(codex(text), expected, "{text}");
    }
}

#[test]
fn what_cannot_be_edited_is_refused_without_its_values() {
    for (client, text) in [
        (Client::Cursor, "[]"),
        (Client::Cursor, "{\"mcpServers\": \"hunter2\"}"),
        (Client::Cursor, "{\"mcpServers\": {\"x\": \"hunter2\"}}"),
        (Client::Cursor, "{\"mcpServers\": {}, \"mcpServers\": {\"a\": \"hunter2\"}}"),
        (Client::Cursor, "{\"mcpServers\": {\"x\": {\"args\": 1, \"args\": \"hunter2\"}}}"),
        (Client::Cursor, "{\"mcpServers\": {\"x\": {\"env\": hunter2}}}"),
        (Client::Codex, "mcp_servers = \"hunter2\""),
        (Client::Codex, "[mcp_servers]\nx = \"hunter2\""),
        (Client::Codex, "[mcp_servers.x.env]\nA = hunter2"),
    ] {
        let refused = Document::new(client.shape(), text.to_owned())
            .and_then(|mut document| document.put("x", &launcher().entry(&name("x"))));
        let said = refused.expect_err(text).to_string();
        assert!(!said.contains("hunter2"), "{said}");
    }
}

/// Space and comments as people put them between the parts of a document.
fn gap() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["", " ", "\n", "\n    ", "\t", " /* c , } */ ", " // c \" {\n", "\r\n  "])
}

/// A JSON text whose gaps are filled at random, and the same text without the table of servers.
fn json_text() -> impl Strategy<Value = String> {
    let member = |key: &'static str| {
        (gap(), gap(), gap(), "[a-z\"\\\\/{},é]{0,6}")
            .prop_map(move |(a, b, c, value)| format!("{a}{key:?}{b}:{c}{}", serde_json::Value::from(value)))
    };
    let entries = prop::sample::subsequence(vec!["p", "q", "r", "x"], 0..=4);
    let servers = (entries, gap(), gap(), gap(), any::<bool>()).prop_map(|(entries, a, b, end, comma)| {
        let entries: Vec<String> =
            entries.iter().map(|key| format!("{a}{key:?}: {{\"command\":{b}\"k\"{a}}}")).collect();
        let comma = if comma && !entries.is_empty() { "," } else { "" };
        format!("\"mcpServers\"{b}: {{{}{b}{comma}{end}}}", entries.join(","))
    });
    (gap(), member("one"), gap(), servers, member("two"), gap(), any::<bool>(), gap()).prop_map(
        |(a, one, b, servers, two, c, comma, d)| {
            format!("{a}{{{one}{b},{c}{servers}{b},{two}{c}{}{d}}}{a}", if comma { "," } else { "" })
        },
    )
}

proptest! {
    /// The entry reads back as it was meant, every other one and every other part stays, and taking it out
    /// again leaves the same servers.
    #[test]
    fn no_layout_breaks_an_edit(text in json_text()) {
        let before = Document::new(Client::Zed.shape(), text.replace("mcpServers", "context_servers")).unwrap();
        let mut document = before.clone();
        let entry = launcher().entry(&name("x"));
        document.put("x", &entry).unwrap();
        let mut entries = document.entries().unwrap();
        let shape = Client::Zed.shape();
        let read = Entry::read(&entries.remove("x").unwrap(), shape).unwrap();
        prop_assert_eq!(read, entry);
        let mut others = before.entries().unwrap();
        let was_there = others.remove("x").is_some();
        prop_assert_eq!(&entries, &others);
        for key in ["\"one\"", "\"two\""] {
            prop_assert!(document.text().contains(key));
        }
        for key in others.keys() {
            let mut without = before.clone();
            without.remove(key).unwrap();
            let mut rest = before.entries().unwrap();
            rest.remove(key);
            prop_assert_eq!(without.entries().unwrap(), rest);
        }
        let again = document.clone().text().to_owned();
        document.put("x", &launcher().entry(&name("x"))).unwrap();
        prop_assert_eq!(document.text(), again);
        if was_there {
            document.restore("x", &before).unwrap();
            prop_assert_eq!(document.entries().unwrap(), before.entries().unwrap());
        } else {
            document.remove("x").unwrap();
            prop_assert_eq!(document.entries().unwrap(), others);
        }
    }
}
