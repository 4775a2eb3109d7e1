//! Runs an installer inside its wall, with what is the same for all of them.

use std::path::Path;
use std::time::Duration;

use super::{BuildError, Context};
use crate::confine::{Confinement, Endpoint, Limits, Outcome};
use crate::runtime::APP;

/// How long one run of an installer may take.
const TIME: Duration = Duration::from_secs(600);

/// Where an installer's cache appears inside.
pub(super) const CACHE: &str = "/opt/cache";

/// One run of an installer.
pub(super) struct Run<'a> {
    /// The build root.
    pub(super) root: &'a Path,
    /// The folder of the host that it installs into, and where that appears.
    pub(super) target: (&'a Path, &'a str),
    /// The folder of the host that it caches downloads in.
    pub(super) cache: &'a Path,
    pub(super) argv: Vec<String>,
    pub(super) env: Vec<(String, String)>,
    /// Addresses whose hosts it may reach.
    pub(super) addresses: Vec<String>,
}

impl Run<'_> {
    /// Runs it; an installer that fails is not an error here.
    pub(super) fn run(self, context: &Context<'_>) -> Result<Outcome, BuildError> {
        let mut endpoints: Vec<Endpoint> =
            self.addresses.iter().filter_map(|url| Endpoint::of_url(url)).collect();
        endpoints.sort();
        endpoints.dedup();
        context.run(&Confinement {
            root: self.root,
            folders: &[self.target, (self.cache, CACHE)],
            argv: &self.argv,
            env: &self.env,
            cwd: APP,
            endpoints: &endpoints,
            limits: Limits { time: TIME, ..Limits::default() },
        })
    }
}

/// The error for an installer that failed without a reason that is known.
pub(super) fn failure(context: &Context<'_>, name: &'static str, outcome: &Outcome) -> BuildError {
    BuildError::Installer { installer: name, ending: outcome.ending(), log: context.log_path() }
}
