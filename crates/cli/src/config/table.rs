//! Reads the keys of one table. A key that nobody asked for is an error, so what is known cannot differ
//! from what is read.

use super::{
    error::{ConfigError, Place},
    node::{Entry, Node, Value},
    written::At,
};
use crate::error::nearest;
use std::{path::Path, sync::Arc};

pub(super) struct Table {
    path: Arc<Path>,
    line: usize,
    /// Such as `server "x"`, for messages.
    what: String,
    entries: Vec<Entry>,
    known: Vec<&'static str>,
}

/// An item of a list.
pub(super) enum Item {
    Text(String),
    Table(Table),
}

impl Table {
    pub(super) fn new(path: &Arc<Path>, what: impl Into<String>, node: Node) -> Result<Self, ConfigError> {
        let (what, line) = (what.into(), node.line);
        match node.value {
            Value::Table(entries) => Ok(Self { path: path.clone(), line, what, entries, known: Vec::new() }),
            other => Err(ConfigError::Type {
                place: Place { path: path.clone(), line },
                key: what,
                found: other.kind(),
                expected: "a table",
            }),
        }
    }

    pub(super) fn place(&self, line: usize) -> Place {
        Place { path: self.path.clone(), line }
    }

    pub(super) fn here(&self) -> Place {
        self.place(self.line)
    }

    /// Takes the value of a key; null says that there is none.
    pub(super) fn take(&mut self, key: &'static str) -> Option<At<Node>> {
        self.known.push(key);
        let index = self.entries.iter().position(|entry| entry.key == key)?;
        let entry = self.entries.remove(index);
        (entry.node.value != Value::Null).then(|| At { place: self.place(entry.line), value: entry.node })
    }

    fn typed<T>(
        &mut self,
        key: &'static str,
        expected: &'static str,
        read: impl FnOnce(Value) -> Result<T, Value>,
    ) -> Result<Option<At<T>>, ConfigError> {
        let Some(At { place, value: node }) = self.take(key) else { return Ok(None) };
        match read(node.value) {
            Ok(value) => Ok(Some(At { place, value })),
            Err(other) => {
                Err(ConfigError::Type { place, key: key.to_owned(), found: other.kind(), expected })
            }
        }
    }

    pub(super) fn text(&mut self, key: &'static str) -> Result<Option<At<String>>, ConfigError> {
        self.typed(key, "text", |value| match value {
            Value::Text(text) => Ok(text),
            other => Err(other),
        })
    }

    pub(super) fn flag(&mut self, key: &'static str) -> Result<Option<At<bool>>, ConfigError> {
        self.typed(key, "true or false", |value| match value {
            Value::Bool(flag) => Ok(flag),
            other => Err(other),
        })
    }

    pub(super) fn number(&mut self, key: &'static str) -> Result<Option<At<i64>>, ConfigError> {
        self.typed(key, "a whole number", |value| match value {
            Value::Integer(number) => Ok(number),
            other => Err(other),
        })
    }

    pub(super) fn texts(&mut self, key: &'static str) -> Result<Option<At<Vec<String>>>, ConfigError> {
        self.typed(key, "a list of text", |value| {
            let Value::List(items) = &value else { return Err(value) };
            let texts = items.iter().map(|item| match &item.value {
                Value::Text(text) => Some(text.clone()),
                _ => None,
            });
            texts.collect::<Option<_>>().ok_or(value)
        })
    }

    /// A table of a table.
    pub(super) fn table(&mut self, key: &'static str) -> Result<Option<Table>, ConfigError> {
        let Some(At { place, value }) = self.take(key) else { return Ok(None) };
        // A table that its own sub-tables imply begins where its key stands.
        Table::new(&self.path, format!("{:?} of {}", key, self.what), Node { line: place.line, ..value })
            .map(Some)
    }

    /// Each table of a list of tables.
    pub(super) fn tables(&mut self, key: &'static str) -> Result<Vec<Table>, ConfigError> {
        let Some(At { place, value }) = self.take(key) else { return Ok(Vec::new()) };
        let Value::List(items) = value.value else {
            let found = value.value.kind();
            return Err(ConfigError::Type {
                place,
                key: key.to_owned(),
                found,
                expected: "a list of tables",
            });
        };
        let what = format!("{key:?} of {}", self.what);
        items.into_iter().map(|item| Table::new(&self.path, what.clone(), item)).collect()
    }

    /// Each item of a list of texts and tables.
    pub(super) fn items(&mut self, key: &'static str) -> Result<Vec<At<Item>>, ConfigError> {
        let Some(At { place, value }) = self.take(key) else { return Ok(Vec::new()) };
        let expected = "a list of text or tables";
        let wrong = |place, found: Value| ConfigError::Type {
            place,
            key: key.to_owned(),
            found: found.kind(),
            expected,
        };
        let items = match value.value {
            Value::List(items) => items,
            other => return Err(wrong(place, other)),
        };
        let what = format!("{key:?} of {}", self.what);
        let read = items.into_iter().map(|item| {
            let place = self.place(item.line);
            let value = match item.value {
                Value::Text(text) => Item::Text(text),
                Value::Table(_) => Item::Table(Table::new(&self.path, what.clone(), item)?),
                other => return Err(wrong(place, other)),
            };
            Ok(At { place, value })
        });
        read.collect()
    }

    /// Every entry that is left, for tables whose keys are names.
    pub(super) fn rest(mut self) -> (Arc<Path>, Vec<Entry>) {
        (self.path, std::mem::take(&mut self.entries))
    }

    /// What the table is called in messages from now on.
    pub(super) fn rename(&mut self, what: String) {
        self.what = what;
    }

    pub(super) fn what(&self) -> &str {
        &self.what
    }

    /// Every key was asked for, or there is one too many.
    pub(super) fn finish(self) -> Result<(), ConfigError> {
        let Some(entry) = self.entries.first() else { return Ok(()) };
        Err(ConfigError::UnknownKey {
            place: self.place(entry.line),
            key: entry.key.clone(),
            nearest: nearest(&entry.key, self.known.iter().copied()).map(str::to_owned),
            table: self.what,
            known: self.known,
        })
    }
}
