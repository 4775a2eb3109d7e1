//! Runs the kernel's makefiles behind the wall that installers run behind.

use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Duration;

use super::{BuildRequest, KernelBuildError};
use crate::confine::{ConfineError, Confinement, Limits};
use crate::files;
use crate::progress::Progress;
use crate::store::BuildLog;

/// The file with what was asked for, in the folder that the build writes to.
pub(super) const FRAGMENT: &str = "kernel.config";
/// The finished configuration.
pub(super) const CONFIGURATION: &str = ".config";
/// The ELF file.
pub(super) const KERNEL: &str = "vmlinux";
/// The largest configuration that is read.
pub(super) const LARGEST_CONFIGURATION: u64 = 4 << 20;

/// Where the source is in the build's root.
pub(super) const SOURCE: &str = "/usr/src/linux";
/// Where the build's folder is in it.
pub(super) const OUT: &str = "/build";

/// Four minutes on two processors; hours on one that others use too.
const TIME: Duration = Duration::from_secs(4 * 3600);
/// Nothing of the builder and of the hour goes into the kernel: the same source gives the same bytes.
const ENVIRONMENT: [(&str, &str); 5] = [
    ("KBUILD_BUILD_TIMESTAMP", "Thu Jan  1 00:00:00 UTC 1970"),
    ("KBUILD_BUILD_USER", "casemate"),
    ("KBUILD_BUILD_HOST", "casemate"),
    ("KBUILD_BUILD_VERSION", "1"),
    ("LC_ALL", "C"),
];

/// The makefiles of one build.
pub(super) struct Make<'a> {
    pub root: &'a Path,
    pub out: &'a Path,
    pub request: &'a BuildRequest<'a>,
    pub log: &'a BuildLog<'a>,
    pub progress: &'a dyn Progress,
}

/// What turns the fragment into a configuration: everything that it does not name is off.
pub(super) fn configure() -> Vec<String> {
    vec![format!("KCONFIG_ALLCONFIG={OUT}/{FRAGMENT}"), "allnoconfig".to_owned()]
}

/// What makes the kernel.
pub(super) fn compile(jobs: NonZeroUsize) -> Vec<String> {
    vec![format!("-j{jobs}"), KERNEL.to_owned()]
}

impl Make<'_> {
    /// Makes one goal, to its end.
    pub fn run(&self, step: &'static str, arguments: &[String]) -> Result<(), KernelBuildError> {
        let fixed = ["/usr/bin/nice", "-n", "10", "/usr/bin/make", "-C", SOURCE];
        let mut argv: Vec<String> = fixed.map(str::to_owned).to_vec();
        argv.push(format!("O={OUT}"));
        argv.extend_from_slice(arguments);
        self.log.line(&argv.join(" "))?;
        let env = ENVIRONMENT.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let confinement = Confinement {
            root: self.root,
            folders: &[(self.out, OUT)],
            argv: &argv,
            env: &env,
            cwd: OUT,
            endpoints: &[],
            limits: Limits { time: TIME, ..Limits::default() },
        };
        let mut output =
            Output { log: self.log.writer()?, progress: self.progress, line: Vec::new(), files: 0 };
        let result = confinement.run_until(&mut output, &|| self.request.is_stopped());
        let log = || self.log.path().unwrap_or_default();
        let outcome = match result {
            Ok(outcome) => outcome,
            Err(ConfineError::Stopped) => return Err(KernelBuildError::Stopped),
            Err(source) => return Err(KernelBuildError::Confine { source, log: log() }),
        };
        self.log.line(&format!("it ended with {}", outcome.ending()))?;
        if outcome.status.success() {
            return Ok(());
        }
        Err(KernelBuildError::Failed { step, ending: outcome.ending(), log: log() })
    }

    /// Reads what the build left.
    pub fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>, KernelBuildError> {
        Ok(files::read_below(self.out, Path::new(name), limit)?)
    }
}

/// The longest line that is looked at for what is being compiled.
const LONGEST_LINE: usize = 256;

/// Writes to the log, and shows which file the compiler is at.
struct Output<'a, W> {
    log: W,
    progress: &'a dyn Progress,
    line: Vec<u8>,
    files: u32,
}

impl<W: Write> Write for Output<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for &byte in bytes {
            if byte == b'\n' {
                if let Some(file) = file_of(&self.line) {
                    self.files += 1;
                    self.progress.detail(&format!("{}, {file}", self.files));
                }
                self.line.clear();
            } else if self.line.len() < LONGEST_LINE {
                self.line.push(byte);
            }
        }
        self.log.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.log.flush()
    }
}

/// The file that a line such as `  CC      mm/slub.o` is about.
fn file_of(line: &[u8]) -> Option<&str> {
    let line = std::str::from_utf8(line).ok()?.strip_prefix("  ")?;
    let (action, file) = line.split_once(' ')?;
    let is_action = !action.is_empty() && action.bytes().all(|byte| byte.is_ascii_uppercase());
    let file = file.trim_start();
    (is_action && !file.is_empty() && file.bytes().all(|byte| byte.is_ascii_graphic())).then_some(file)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Details(Mutex<Vec<String>>);

    impl Progress for Details {
        fn step(&self, _what: &str) {}
        fn bytes(&self, _done: u64, _total: Option<u64>) {}
        fn note(&self, _message: &str) {}
        fn detail(&self, text: &str) {
            self.0.lock().unwrap().push(text.to_owned());
        }
    }

    #[test]
    fn what_is_compiled_is_shown_and_everything_is_logged() {
        let details = Details::default();
        let mut output = Output { log: Vec::new(), progress: &details, line: Vec::new(), files: 0 };
        let said = b"make[1]: Entering\n  CC      mm/slub.o\n  AS      a.o\nwarning: \x1b[31m\n  CC  \x1b[2J\n  CC      ";
        for part in said.chunks(3) {
            output.write_all(part).unwrap();
        }
        output.write_all(&[b'x'; 4 * LONGEST_LINE]).unwrap();
        output.write_all(b"\n").unwrap();
        assert!(output.log.starts_with(said));
        let details = details.0.into_inner().unwrap();
        assert_eq!(details[..2], ["1, mm/slub.o", "2, a.o"]);
        assert!(details.len() == 3 && details[2].len() < 2 * LONGEST_LINE, "{details:?}");
    }
}
