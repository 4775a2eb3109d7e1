//! How long work tells whoever started it what it is doing.

/// A listener for the steps of a long operation. This crate never prints; the program draws.
///
/// Calls come from the thread that does the work, in order.
pub trait Progress: Send + Sync {
    /// A new step begins; it lasts until the next one or the end of the operation.
    fn step(&self, what: &str);

    /// The current step has handled `done` bytes, of `total` where that is known.
    fn bytes(&self, done: u64, total: Option<u64>);

    /// Where the current step is, in a few words that the next ones replace.
    fn detail(&self, _text: &str) {}

    /// Something that the user should know and that is no error.
    fn note(&self, message: &str);
}

/// Listens to nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn step(&self, _what: &str) {}
    fn bytes(&self, _done: u64, _total: Option<u64>) {}
    fn note(&self, _message: &str) {}
}
