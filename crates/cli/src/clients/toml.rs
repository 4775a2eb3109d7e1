//! Changes single entries of a TOML text.
//!
//! `toml_edit` keeps comments, order and spacing, but not line ends: they are taken off before and put back
//! afterwards. A text that it would not give back to the byte is not edited.

use super::{Entry, Mistake, Shape, json::line_of};
use std::collections::BTreeMap;
use toml_edit::{Array, DocumentMut, InlineTable, Item, Table, TableLike, Value};

/// How long Codex is to wait for a server, in seconds. Its own 10 are too few for the first start of a
/// machine in software emulation, which boots it twice to make a template.
const STARTUP_SECONDS: i64 = 120;

/// The keys that say so: the present one, and the former one, in milliseconds.
const PATIENCE: [&str; 2] = ["startup_timeout_sec", "startup_timeout_ms"];

/// A text whose layout survives an edit.
struct Text {
    document: DocumentMut,
    crlf: bool,
    /// The last line has no end, which `toml_edit` would give it.
    open_end: bool,
}

pub(super) fn entries(text: &str, shape: Shape) -> Result<BTreeMap<String, serde_json::Value>, Mistake> {
    let mut text = Text::read(text)?;
    let Some(servers) = text.servers(shape)? else { return Ok(BTreeMap::new()) };
    Ok(servers.iter().map(|(name, item)| (name.to_owned(), plain(item))).collect())
}

pub(super) fn put(text: &str, shape: Shape, name: &str, entry: &Entry) -> Result<String, Mistake> {
    let mut text = Text::read(text)?;
    if text.servers(shape)?.is_none() {
        let mut servers = Table::new();
        servers.set_implicit(true);
        text.document.insert(shape.container, Item::Table(servers));
    }
    let is_inline = text.document.get(shape.container).is_some_and(Item::is_inline_table);
    // It has just been seen to.
    let Some(servers) = text.servers(shape)? else { return Ok(text.write()) };
    let is_first = servers.is_empty();
    match servers.get_mut(name) {
        Some(item) => {
            let found = item.type_name();
            let present = item
                .as_table_like_mut()
                .ok_or(Mistake::NoTable { what: format!("server {name:?}"), found })?;
            set(present, "command", entry.command.as_str().into());
            set(present, "args", entry.args.iter().collect::<Array>().into());
            match entry.env.is_empty() {
                true => drop(present.remove("env")),
                false => {
                    // A table of its own has no place among values.
                    if present.get("env").is_some_and(|env| !env.is_value()) {
                        present.remove("env");
                    }
                    set(present, "env", entry.env.iter().collect::<InlineTable>().into());
                }
            }
            if !PATIENCE.iter().any(|key| present.contains_key(key)) {
                set(present, PATIENCE[0], STARTUP_SECONDS.into());
            }
        }
        None => {
            let mut table = Table::new();
            set(&mut table, "command", entry.command.as_str().into());
            set(&mut table, "args", entry.args.iter().collect::<Array>().into());
            if !entry.env.is_empty() {
                set(&mut table, "env", entry.env.iter().collect::<InlineTable>().into());
            }
            set(&mut table, PATIENCE[0], STARTUP_SECONDS.into());
            if is_first {
                // Behind all other tables.
                table.set_position(Some(isize::MAX));
            }
            let item = match is_inline {
                true => Item::Value(table.into_inline_table().into()),
                false => Item::Table(table),
            };
            servers.insert(name, item);
        }
    }
    Ok(text.write())
}

pub(super) fn remove(text: &str, shape: Shape, name: &str) -> Result<String, Mistake> {
    let mut text = Text::read(text)?;
    if let Some(servers) = text.servers(shape)? {
        servers.remove(name);
    }
    Ok(text.write())
}

pub(super) fn restore(text: &str, shape: Shape, name: &str, older: &str) -> Result<String, Mistake> {
    let (mut text, mut older) = (Text::read(text)?, Text::read(older)?);
    let then = older.servers(shape)?.and_then(|servers| servers.get(name)).cloned();
    if let (Some(then), Some(now)) = (then, text.servers(shape)?.and_then(|servers| servers.get_mut(name))) {
        let position = now.as_table().and_then(Table::position);
        *now = then;
        if let Some(table) = now.as_table_mut() {
            table.set_position(position);
        }
    }
    Ok(text.write())
}

impl Text {
    fn read(text: &str) -> Result<Self, Mistake> {
        let crlf = text.contains("\r\n");
        let plain = if crlf { text.replace("\r\n", "\n") } else { text.to_owned() };
        let document = plain.parse::<DocumentMut>().map_err(|error| Mistake::Syntax {
            line: line_of(&plain, error.span().map_or(0, |span| span.start)),
            message: error.message().lines().next().unwrap_or("no TOML").to_owned(),
        })?;
        let read = Self { document, crlf, open_end: !text.is_empty() && !text.ends_with('\n') };
        match read.write() == text {
            true => Ok(read),
            false => Err(Mistake::Layout),
        }
    }

    fn write(&self) -> String {
        let mut text = self.document.to_string();
        if self.open_end && text.ends_with('\n') {
            text.pop();
        }
        if self.crlf { text.replace('\n', "\r\n") } else { text }
    }

    fn servers(&mut self, shape: Shape) -> Result<Option<&mut dyn TableLike>, Mistake> {
        let Some(item) = self.document.get_mut(shape.container) else { return Ok(None) };
        let found = item.type_name();
        let servers = item.as_table_like_mut();
        servers.map(Some).ok_or(Mistake::NoTable { what: format!("{:?}", shape.container), found })
    }
}

/// Sets a value where the old one stood, with what is around it.
fn set(table: &mut dyn TableLike, key: &str, mut value: Value) {
    match table.get_mut(key).and_then(Item::as_value_mut) {
        Some(old) => {
            *value.decor_mut() = old.decor().clone();
            *old = value;
        }
        None => drop(table.insert(key, Item::Value(value))),
    }
}

fn plain(item: &Item) -> serde_json::Value {
    use serde_json::Value as Json;
    let table = |table: &dyn TableLike| -> Json {
        table.iter().map(|(key, item)| (key.to_owned(), plain(item))).collect()
    };
    match item {
        Item::None => Json::Null,
        Item::Table(inner) => table(inner),
        Item::Value(Value::InlineTable(inner)) => table(inner),
        Item::ArrayOfTables(tables) => tables.iter().map(|inner| table(inner)).collect(),
        Item::Value(Value::Array(items)) => {
            items.iter().map(|value| plain(&Item::Value(value.clone()))).collect()
        }
        Item::Value(Value::String(text)) => text.value().as_str().into(),
        Item::Value(Value::Integer(number)) => (*number.value()).into(),
        Item::Value(Value::Boolean(flag)) => (*flag.value()).into(),
        Item::Value(Value::Float(number)) => (*number.value()).into(),
        Item::Value(Value::Datetime(date)) => date.value().to_string().into(),
    }
}
