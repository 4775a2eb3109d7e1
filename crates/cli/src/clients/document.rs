//! A client's configuration as text, and the changes that casemate makes to it.

use super::{Entry, Launcher, Mistake, Shape, Syntax, json_edit, toml};
use std::collections::BTreeMap;

/// A text in the shape that a client reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    shape: Shape,
    text: String,
}

/// What became of the servers of an older document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reverted {
    /// Those that were put back, or taken out.
    pub changed: Vec<String>,
    /// Those that are not what they were: the older document alone still says it.
    pub missing: Vec<String>,
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

    /// How it is written.
    pub fn shape(&self) -> Shape {
        self.shape
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

    /// Makes every server of casemate's what it was in an older document, and takes out those that casemate added.
    /// Other entries stay: somebody wrote or renamed them since.
    pub fn revert(&mut self, older: &Document, launcher: &Launcher) -> Result<Reverted, Mistake> {
        let then = older.entries()?;
        let mut changed = Vec::new();
        for (name, now) in self.entries()?.into_iter().filter(|(_, now)| launcher.is_own(now)) {
            match then.get(&name) {
                Some(then) if *then == now => continue,
                Some(_) => self.restore(&name, older)?,
                None if launcher.is_written(&name, &now) => self.remove(&name)?,
                None => continue,
            }
            changed.push(name);
        }
        let now = self.entries()?;
        let missing = then.into_iter().filter(|(name, then)| now.get(name) != Some(then));
        Ok(Reverted { changed, missing: missing.map(|(name, _)| name).collect() })
    }
}
