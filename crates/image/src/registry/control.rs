//! Debian's control data (`deb822(5)`): stanzas of `Field: value` lines, separated by empty lines.

/// One stanza, borrowed from the text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stanza<'a> {
    text: &'a str,
}

impl<'a> Stanza<'a> {
    /// Takes text that holds a single stanza.
    pub fn new(text: &'a str) -> Stanza<'a> {
        Stanza { text }
    }

    /// The raw value of a field, continuation lines included; `None` if there is no such field.
    ///
    /// Names are compared without regard to case; of a repeated field the first counts.
    pub fn field(&self, name: &str) -> Option<&'a str> {
        let mut start = 0;
        let mut found: Option<usize> = None;
        for line in self.text.split_inclusive('\n') {
            let continues = line.starts_with([' ', '\t']);
            if let Some(from) = found
                && !continues
            {
                return Some(self.text[from..start].trim());
            }
            if found.is_none() && !continues && is_field(line, name) {
                found = Some(start + name.len() + 1);
            }
            start += line.len();
        }
        found.map(|from| self.text[from..].trim())
    }
}

fn is_field(line: &str, name: &str) -> bool {
    let bytes = line.as_bytes();
    bytes.len() > name.len()
        && bytes[name.len()] == b':'
        && bytes[..name.len()].eq_ignore_ascii_case(name.as_bytes())
}

/// The stanzas of a text. Lines of nothing but spaces separate them too.
pub(super) fn stanzas(text: &str) -> impl Iterator<Item = Stanza<'_>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        loop {
            let (stanza, after) = take_stanza(rest)?;
            rest = after;
            if !stanza.is_empty() {
                return Some(Stanza::new(stanza));
            }
        }
    })
}

fn take_stanza(text: &str) -> Option<(&str, &str)> {
    if text.is_empty() {
        return None;
    }
    let mut end = 0;
    for line in text.split_inclusive('\n') {
        if line.trim().is_empty() {
            return Some((&text[..end], &text[end + line.len()..]));
        }
        end += line.len();
    }
    Some((text, ""))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fields_and_continuations() {
        let text = "Package: a\nDepends: b,\n c (>= 1)\nempty:\nLast: x\n\n \nPackage: d";
        let all: Vec<_> = stanzas(text).collect();
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].field("package"), Some("a"));
        assert_eq!(all[0].field("Depends"), Some("b,\n c (>= 1)"));
        assert_eq!(all[0].field("Empty"), Some(""));
        assert_eq!(all[0].field("Last"), Some("x"));
        assert_eq!(all[0].field("Pack"), None);
        assert_eq!(all[1].field("Package"), Some("d"));
    }

    proptest! {
        #[test]
        fn any_text_ends_and_loses_no_line(text in "[a-c: \n\t\u{e9}]{0,60}") {
            let count: usize = stanzas(&text).map(|stanza| stanza.text.lines().count()).sum();
            let expected = text.lines().filter(|line| !line.trim().is_empty()).count();
            prop_assert_eq!(count, expected);
            for stanza in stanzas(&text) {
                let _ = (stanza.field("a"), stanza.field("b"), stanza.field(""));
            }
        }
    }
}
