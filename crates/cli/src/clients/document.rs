//! A client's configuration as text, and the changes that casemate makes to it.

use super::{Entry, Mistake, Shape, Syntax, json_edit, toml};
use std::collections::BTreeMap;

/// A text in the shape that a client reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    shape: Shape,
    text: String,
}

impl Document {
    /// Takes a text, which may be empty, if its servers can be read.
    pub fn new(shape: Shape, text: String) -> Result<Self, Mistake> {
        let document = Self { shape, text };
        document.entries()?;
        Ok(document)
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The servers that it names, as they are written.
    pub fn entries(&self) -> Result<BTreeMap<String, serde_json::Value>, Mistake> {
        match self.shape.syntax {
            Syntax::Json => json_edit::entries(&self.text, self.shape),
            Syntax::Toml => toml::entries(&self.text, self.shape),
        }
    }

    /// Writes how a server is started; what else is said about it stays.
    pub fn put(&mut self, name: &str, entry: &Entry) -> Result<(), Mistake> {
        self.text = match self.shape.syntax {
            Syntax::Json => json_edit::put(&self.text, self.shape, name, entry)?,
            Syntax::Toml => toml::put(&self.text, self.shape, name, entry)?,
        };
        Ok(())
    }

    /// Takes a server out.
    pub fn remove(&mut self, name: &str) -> Result<(), Mistake> {
        self.text = match self.shape.syntax {
            Syntax::Json => json_edit::remove(&self.text, self.shape, name)?,
            Syntax::Toml => toml::remove(&self.text, self.shape, name)?,
        };
        Ok(())
    }

    /// Makes a server again what it was in an older document.
    pub fn restore(&mut self, name: &str, older: &Document) -> Result<(), Mistake> {
        self.text = match self.shape.syntax {
            Syntax::Json => json_edit::restore(&self.text, self.shape, name, &older.text)?,
            Syntax::Toml => toml::restore(&self.text, self.shape, name, &older.text)?,
        };
        Ok(())
    }

    /// Makes every server that `is_own` what it was in an older document, or takes it out if it was not there;
    /// names those that this changed.
    pub fn revert(
        &mut self,
        older: &Document,
        is_own: impl Fn(&serde_json::Value) -> bool,
    ) -> Result<Vec<String>, Mistake> {
        let then = older.entries()?;
        let mut reverted = Vec::new();
        for (name, now) in self.entries()?.into_iter().filter(|(_, now)| is_own(now)) {
            match then.get(&name) {
                Some(then) if *then == now => continue,
                Some(_) => self.restore(&name, older)?,
                None => self.remove(&name)?,
            }
            reverted.push(name);
        }
        Ok(reverted)
    }
}
