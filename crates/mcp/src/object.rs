//! Finds members of a JSON object without parsing what is in them, and edits the text in place.
//!
//! Readers of JSON disagree about objects in which a key occurs twice (the first wins, or the last), and
//! some match keys without regard to case. Whoever rewrites the value that *it* found would let a sender
//! smuggle another value past it to such a reader: another client's request id, for one. So the keys that
//! matter must occur at most once in any spelling that some reader accepts.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Why the members of an object cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// The text is no JSON object.
    #[error("not a JSON object")]
    Syntax(#[source] serde_json::Error),
    /// A key that matters occurs twice, or in a spelling that some readers take for it.
    #[error("key {name:?} is ambiguous")]
    Ambiguous {
        /// The key.
        name: &'static str,
    },
}

/// Finds the members called `names` in the JSON object `text`; each is `None` where there is none.
pub fn find<'a, const N: usize>(
    text: &'a str,
    names: [&'static str; N],
) -> Result<[Option<&'a RawValue>; N], ObjectError> {
    let mut found = [None; N];
    let mut ambiguous = None;
    let visit = |key: &str, value: &'a RawValue| {
        for (name, slot) in names.iter().zip(found.iter_mut()) {
            if key == *name && slot.is_none() {
                *slot = Some(value);
            } else if same_when_folded(key, name) {
                ambiguous = Some(*name);
            }
        }
    };
    let mut json = serde_json::Deserializer::from_str(text);
    json.deserialize_map(Members(visit)).and_then(|()| json.end()).map_err(ObjectError::Syntax)?;
    match ambiguous {
        Some(name) => Err(ObjectError::Ambiguous { name }),
        None => Ok(found),
    }
}

/// Where `part`, a slice of `text`, lies in it.
pub fn span(text: &str, part: &str) -> Range<usize> {
    let start = part.as_ptr().addr() - text.as_ptr().addr();
    start..start + part.len()
}

/// `text` with the bytes at each span replaced. The spans are in order and do not overlap.
pub fn splice(text: &str, edits: &[(Range<usize>, &str)]) -> String {
    let mut edited =
        String::with_capacity(text.len() + edits.iter().map(|(_, new)| new.len()).sum::<usize>());
    let mut rest = 0;
    for (span, new) in edits {
        edited.push_str(&text[rest..span.start]);
        edited.push_str(new);
        rest = span.end;
    }
    edited.push_str(&text[rest..]);
    edited
}

/// Whether a reader that ignores case (Go's `encoding/json` does, by Unicode's simple folding) takes `key`
/// for `name`. The long s and the Kelvin sign are the only letters outside ASCII that fold to ASCII ones.
fn same_when_folded(key: &str, name: &str) -> bool {
    let fold = |letter: char| match letter {
        'ſ' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    };
    key.chars().map(fold).eq(name.chars().map(fold))
}

struct Members<F>(F);

impl<'a, F: FnMut(&str, &'a RawValue)> Visitor<'a> for Members<F> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some((Key(key), value)) = map.next_entry::<Key<'a>, &'a RawValue>()? {
            (self.0)(&key, value);
        }
        Ok(())
    }
}

#[derive(serde::Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_members_whatever_their_spelling_in_json() {
        let text = r#" {"a" : [1, 2] ,"\u0062":{"a":3}, "c":null} "#;
        let [a, b, d] = find(text, ["a", "b", "d"]).unwrap();
        assert_eq!(a.unwrap().get(), "[1, 2]");
        assert_eq!(b.unwrap().get(), r#"{"a":3}"#);
        assert!(d.is_none());
    }

    #[test]
    fn a_key_that_readers_could_take_for_another_is_refused() {
        for text in [
            r#"{"id":1,"id":2}"#,
            r#"{"id":1,"\u0069d":2}"#,
            r#"{"id":1,"ID":2}"#,
            r#"{"Id":2}"#,
            r#"{"id":null,"id":2}"#,
        ] {
            assert!(matches!(find(text, ["id"]), Err(ObjectError::Ambiguous { name: "id" })), "{text}");
        }
        let folded = r#"{"progreſsTo\u212aen":2}"#;
        assert!(matches!(find(folded, ["progressToken"]), Err(ObjectError::Ambiguous { .. })));
        assert!(find(r#"{"idx":1,"i":2,"other":1,"other":2}"#, ["id"]).unwrap()[0].is_none());
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for text in ["", "[]", "{", r#"{"a":1,}"#, r#"{"a":1}x"#, r#"{"a":1}{}"#, "null", r#"{1:2}"#] {
            assert!(matches!(find(text, ["a"]), Err(ObjectError::Syntax(_))), "{text}");
        }
    }

    #[test]
    fn splicing_leaves_the_rest_alone() {
        let text = "aXbYc";
        assert_eq!(splice(text, &[(1..2, "11"), (3..4, "")]), "a11bc");
        assert_eq!(splice(text, &[]), text);
    }
}
