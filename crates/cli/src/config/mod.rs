//! Configuration, in three types: what was written ([`written`]), what it means ([`Configuration`]), and
//! what holds for one start ([`settings::Settings`]).
//!
//! ```text
//! config.toml ─────────┐                                        flags, environment
//! isolation_config.toml├─ node ─> written ─> Configuration ─────────────┴──> Settings
//! isolation_config.json┘  (lines)  (keys)     (checked)
//! ```
//!
//! Our own file and the two documents of the seeds are spellings of one model. A key that is not known is
//! an error with its line and the nearest key that is.

mod error;
mod files;
mod json;
mod meaning;
mod node;
pub mod settings;
pub mod store;
mod table;
mod toml;
pub mod tool;
pub mod transport;
pub mod written;

pub use error::{ConfigError, Place};
pub use files::load;
pub use meaning::{Configuration, Defaults, HomeSettings, Pinned, SeedFile, Server, Unbuilt};
pub use tool::Tool;
