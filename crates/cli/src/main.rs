//! The program: a supervisor when it is told so, a command otherwise.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Before anything else: a supervisor lives as long as its machine and should stay small.
    match casemate_machine::supervisor::main() {
        Some(code) => code,
        None => casemate::main(),
    }
}
