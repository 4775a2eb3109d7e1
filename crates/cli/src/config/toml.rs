//! TOML to [`Node`].

use super::{
    error::{ConfigError, Place},
    node::{Entry, Node, Value, line_of},
};
use std::{ops::Range, path::Path, sync::Arc};
use toml_edit::{Document, Item, TableLike};

pub(super) fn parse(path: &Arc<Path>, text: &str) -> Result<Node, ConfigError> {
    let document = Document::parse(text).map_err(|error| ConfigError::Syntax {
        place: Place { path: path.clone(), line: line_of(text, error.span().map_or(0, |span| span.start)) },
        message: error.message().trim().replace('\n', "; "),
    })?;
    Ok(Node { line: 1, value: table(text, document.as_table()) })
}

fn table(text: &str, table: &dyn TableLike) -> Value {
    let entries = table.iter().map(|(name, item)| {
        let key_line = table.key(name).and_then(|key| key.span()).map(|span| line_of(text, span.start));
        let node = node(text, item, key_line.unwrap_or(1));
        // The key of a table header or of an array of tables may have no span of its own.
        Entry { key: name.to_owned(), line: key_line.unwrap_or(node.line), node }
    });
    Value::Table(entries.collect())
}

fn node(text: &str, item: &Item, fallback: usize) -> Node {
    let line = |span: Option<Range<usize>>| span.map_or(fallback, |span| line_of(text, span.start));
    match item {
        Item::None => Node { line: fallback, value: Value::Null },
        Item::Table(inner) => Node { line: line(inner.span()), value: table(text, inner) },
        Item::ArrayOfTables(tables) => {
            let nodes =
                tables.iter().map(|inner| Node { line: line(inner.span()), value: table(text, inner) });
            Node { line: line(tables.span()), value: Value::List(nodes.collect()) }
        }
        Item::Value(value) => scalar(text, value, line(value.span())),
    }
}

fn scalar(text: &str, value: &toml_edit::Value, line: usize) -> Node {
    let value = match value {
        toml_edit::Value::String(text) => Value::Text(text.value().clone()),
        toml_edit::Value::Integer(number) => Value::Integer(*number.value()),
        toml_edit::Value::Boolean(flag) => Value::Bool(*flag.value()),
        toml_edit::Value::Float(_) | toml_edit::Value::Datetime(_) => Value::Other,
        toml_edit::Value::Array(list) => {
            let line_of_item =
                |item: &toml_edit::Value| item.span().map_or(line, |span| line_of(text, span.start));
            Value::List(list.iter().map(|item| scalar(text, item, line_of_item(item))).collect())
        }
        toml_edit::Value::InlineTable(inner) => table(text, inner),
    };
    Node { line, value }
}
