//! Changes single entries of a JSON text; every byte that is not part of a change stays.
//!
//! Each change reads the text anew: files are small, changes few, and no change has to know what the one
//! before it moved.

use super::{
    Entry, Mistake, Shape,
    json::{self, Kind, Member, Value},
};
use std::{collections::BTreeMap, ops::Range};

/// How a text is laid out.
struct Layout {
    newline: &'static str,
    /// What one level is indented by.
    unit: String,
    /// Members stand on lines of their own.
    block: bool,
}

/// A part of a text and what takes its place.
type Splice = (Range<usize>, String);

/// The entries below a key of the document.
pub(super) fn entries(text: &str, shape: Shape) -> Result<BTreeMap<String, serde_json::Value>, Mistake> {
    let mut found = BTreeMap::new();
    let Some(root) = json::parse(text)? else { return Ok(found) };
    let Some(container) = container(text, &root, shape)? else { return Ok(found) };
    for member in container.value.members().into_iter().flatten() {
        if found.insert(member.key.clone(), member.value.plain(text)).is_some() {
            let line = json::line_of(text, member.start);
            return Err(Mistake::Twice { line, key: member.key.clone() });
        }
    }
    Ok(found)
}

/// Writes an entry: anew if there is none of that name, else its command, arguments and environment, while
/// whatever else the entry says stays.
pub(super) fn put(text: &str, shape: Shape, name: &str, entry: &Entry) -> Result<String, Mistake> {
    let mut text = with_container(text, shape)?;
    let root = root(&text)?;
    let layout = Layout::of(&text, &root);
    // `with_container` has just seen to it.
    let Some(servers) = container(&text, &root, shape)? else { return Ok(text) };
    let Some(present) = servers.value.member(&text, name)? else {
        let fields = fields(entry, shape);
        let splices = insert(&text, &servers.value, &layout, name, |indent| layout.fields(&fields, indent));
        return Ok(splice(&text, splices));
    };
    if present.value.members().is_none() {
        return Err(Mistake::NoTable { what: format!("server {name:?}"), found: present.value.found() });
    }
    for (key, wanted) in settings(entry) {
        let root = self::root(&text)?;
        let Some(servers) = container(&text, &root, shape)? else { continue };
        let Some(present) = servers.value.member(&text, name)? else { continue };
        let splices = match present.value.member(&text, key)? {
            Some(member) if member.value.plain(&text) == wanted => continue,
            Some(member) => {
                let shown = layout.shown(&wanted, indentation(&text, member.start));
                vec![(member.value.span.clone(), shown)]
            }
            None if wanted == serde_json::json!({}) => continue,
            None => insert(&text, &present.value, &layout, key, |indent| layout.shown(&wanted, indent)),
        };
        text = splice(&text, splices);
    }
    Ok(text)
}

/// Takes an entry out, with its line; what its neighbours are separated by stays right.
pub(super) fn remove(text: &str, shape: Shape, name: &str) -> Result<String, Mistake> {
    let root = root(text)?;
    let Some(servers) = container(text, &root, shape)? else { return Ok(text.to_owned()) };
    let Some(gone) = servers.value.member(text, name)? else { return Ok(text.to_owned()) };
    let end = gone.comma.map_or(gone.value.span.end, |comma| comma + 1);
    let is_last_on_line = text[end..].trim_start_matches([' ', '\t']).starts_with(['\r', '\n']);
    let start = match indentation(text, gone.start) {
        // The end of the line before goes with it.
        Some(indent) if is_last_on_line => {
            let before = &text[..gone.start - indent.len()];
            before.strip_suffix("\r\n").or(before.strip_suffix('\n')).unwrap_or(before).len()
        }
        // It ends a comment, which what follows must not become part of.
        Some(_) => gone.start,
        None => text[..gone.start].trim_end_matches([' ', '\t']).len(),
    };
    let mut splices = vec![(start..end, String::new())];
    let previous =
        servers.value.members().into_iter().flatten().take_while(|member| member.key != name).last();
    // The comma before the last member would be one too many.
    if let (None, Some(comma)) = (gone.comma, previous.and_then(|member| member.comma)) {
        splices.insert(0, (comma..comma + 1, String::new()));
    }
    Ok(splice(text, splices))
}

/// Makes an entry again what it was in an older text, to the byte.
pub(super) fn restore(text: &str, shape: Shape, name: &str, older: &str) -> Result<String, Mistake> {
    let (Some(root), Some(older_root)) = (json::parse(text)?, json::parse(older)?) else {
        return Ok(text.to_owned());
    };
    let (Some(servers), Some(older_servers)) =
        (container(text, &root, shape)?, container(older, &older_root, shape)?)
    else {
        return Ok(text.to_owned());
    };
    match (servers.value.member(text, name)?, older_servers.value.member(older, name)?) {
        (Some(now), Some(then)) => {
            let then = older[then.value.span.clone()].to_owned();
            Ok(splice(text, vec![(now.value.span.clone(), then)]))
        }
        _ => Ok(text.to_owned()),
    }
}

/// A text that has a table of servers.
fn with_container(text: &str, shape: Shape) -> Result<String, Mistake> {
    let Some(root) = json::parse(text)? else {
        // A line comment would swallow what follows it.
        let newline = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
        return with_container(&format!("{text}{newline}{{}}\n"), shape);
    };
    let empty = "{}".to_owned();
    let splices = match container_or_null(text, &root, shape)? {
        Some(Member { value: Value { kind: Kind::Null, span }, .. }) => vec![(span.clone(), empty)],
        Some(_) => return Ok(text.to_owned()),
        None => insert(text, &root, &Layout::of(text, &root), shape.container, |_| empty),
    };
    Ok(splice(text, splices))
}

fn root(text: &str) -> Result<Value, Mistake> {
    let root = json::parse(text)?;
    root.ok_or_else(|| Mistake::Syntax { line: 1, message: "it holds no value".to_owned() })
}

fn container_or_null<'a>(text: &str, root: &'a Value, shape: Shape) -> Result<Option<&'a Member>, Mistake> {
    if root.members().is_none() {
        return Err(Mistake::NoTable { what: "the document".to_owned(), found: root.found() });
    }
    let Some(member) = root.member(text, shape.container)? else { return Ok(None) };
    match member.value.kind {
        Kind::Object(_) | Kind::Null => Ok(Some(member)),
        _ => {
            let what = format!("{:?}", shape.container);
            Err(Mistake::NoTable { what, found: member.value.found() })
        }
    }
}

fn container<'a>(text: &str, root: &'a Value, shape: Shape) -> Result<Option<&'a Member>, Mistake> {
    Ok(container_or_null(text, root, shape)?.filter(|member| member.value.kind != Kind::Null))
}

/// What an entry says about starting its server.
fn settings(entry: &Entry) -> [(&'static str, serde_json::Value); 3] {
    [
        ("command", entry.command.as_str().into()),
        ("args", entry.args.as_slice().into()),
        (
            "env",
            entry
                .env
                .iter()
                .map(|(name, value)| (name.clone(), serde_json::Value::from(value.as_str())))
                .collect(),
        ),
    ]
}

/// What a new entry says.
fn fields(entry: &Entry, shape: Shape) -> Vec<(&'static str, serde_json::Value)> {
    let stdio = shape.typed.then(|| ("type", "stdio".into()));
    let settings = settings(entry).into_iter().filter(|(key, _)| *key != "env" || !entry.env.is_empty());
    stdio.into_iter().chain(settings).collect()
}

/// Adds a member after the last one of an object.
fn insert(
    text: &str,
    object: &Value,
    layout: &Layout,
    key: &str,
    shown: impl FnOnce(Option<&str>) -> String,
) -> Vec<Splice> {
    let (key, newline) = (quoted(key), layout.newline);
    let Some(last) = object.members().and_then(<[Member]>::last) else {
        return vec![insert_first(text, object, layout, &key, shown)];
    };
    let end = last.value.span.end;
    let Some(indent) = indentation(text, last.start) else {
        return vec![(end..end, format!(", {key}: {}", shown(None)))];
    };
    // Behind what is said about the last member on its line.
    let place = end_of_line(text, last.comma.map_or(end, |comma| comma + 1));
    let member = format!("{newline}{indent}{key}: {}", shown(Some(indent)));
    match last.comma {
        Some(_) => vec![(place..place, member + ",")],
        None => vec![(end..end, ",".to_owned()), (place..place, member)],
    }
}

/// Adds a member to an object without any, behind the comments that it may hold.
fn insert_first(
    text: &str,
    object: &Value,
    layout: &Layout,
    key: &str,
    shown: impl FnOnce(Option<&str>) -> String,
) -> Splice {
    let (start, end) = (object.span.start + 1, object.span.end - 1);
    let inside = text[start..end].trim_end();
    let place = start + inside.len()..end;
    if !layout.block && !inside.contains("//") {
        return (place, format!("{key}: {}", shown(None)));
    }
    let outer = &text[line_start(text, object.span.start)..];
    let outer = &outer[..outer.len() - outer.trim_start_matches([' ', '\t']).len()];
    let (newline, inner) = (layout.newline, format!("{outer}{}", layout.unit));
    (place, format!("{newline}{inner}{key}: {}{newline}{outer}", shown(Some(&inner))))
}

impl Layout {
    fn of(text: &str, root: &Value) -> Self {
        let first = root.members().and_then(<[Member]>::first);
        let unit = first.and_then(|member| indentation(text, member.start)).filter(|unit| !unit.is_empty());
        let newline = text.find('\n').is_some_and(|at| text[..at].ends_with('\r'));
        Self {
            newline: if newline { "\r\n" } else { "\n" },
            unit: unit.unwrap_or("  ").to_owned(),
            block: first.is_none() || text[root.span.clone()].contains('\n'),
        }
    }

    /// A table on lines of its own if it is told what they are indented by, else on one line.
    fn fields<K: AsRef<str>>(&self, fields: &[(K, serde_json::Value)], indent: Option<&str>) -> String {
        if fields.is_empty() {
            return "{}".to_owned();
        }
        let inner = indent.map(|indent| format!("{indent}{}", self.unit));
        let shown = fields
            .iter()
            .map(|(key, value)| format!("{}: {}", quoted(key.as_ref()), self.shown(value, inner.as_deref())));
        let shown: Vec<String> = shown.collect();
        match (indent, inner) {
            (Some(indent), Some(inner)) => {
                let newline = self.newline;
                let between = format!(",{newline}{inner}");
                format!("{{{newline}{inner}{}{newline}{indent}}}", shown.join(&between))
            }
            _ => format!("{{ {} }}", shown.join(", ")),
        }
    }

    fn shown(&self, value: &serde_json::Value, indent: Option<&str>) -> String {
        match value {
            serde_json::Value::Object(map) => {
                let fields: Vec<_> = map.iter().map(|(key, value)| (key, value.clone())).collect();
                self.fields(&fields, indent)
            }
            serde_json::Value::Array(items) => {
                let items: Vec<String> = items.iter().map(|item| self.shown(item, None)).collect();
                format!("[{}]", items.join(", "))
            }
            scalar => scalar.to_string(),
        }
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Replaces parts that do not overlap and stand in the order of the text.
fn splice(text: &str, splices: Vec<Splice>) -> String {
    let (mut result, mut at) = (String::with_capacity(text.len() + 256), 0);
    for (range, new) in splices {
        result.push_str(&text[at..range.start]);
        result.push_str(&new);
        at = range.end;
    }
    result.push_str(&text[at..]);
    result
}

fn line_start(text: &str, at: usize) -> usize {
    text[..at].rfind('\n').map_or(0, |newline| newline + 1)
}

/// The space before something that is the first on its line, which has to follow another line.
fn indentation(text: &str, at: usize) -> Option<&str> {
    let start = line_start(text, at);
    let before = &text[start..at];
    (start > 0 && before.chars().all(|c| c == ' ' || c == '\t')).then_some(before)
}

/// The end of a line on which nothing but space and comments follows; else the same place.
fn end_of_line(text: &str, from: usize) -> usize {
    let mut at = from;
    loop {
        let rest = &text[at..];
        let line = &rest[..rest.find('\n').unwrap_or(rest.len())];
        let line = line.strip_suffix('\r').unwrap_or(line);
        let next = line.trim_start_matches([' ', '\t']);
        if next.is_empty() || next.starts_with("//") {
            return at + line.len();
        }
        match next.strip_prefix("/*").and_then(|comment| comment.find("*/")) {
            Some(end) => at += line.len() - next.len() + end + 4,
            None => return from,
        }
    }
}
