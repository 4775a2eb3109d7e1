//! The program: a supervisor when it is told so, a command otherwise.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Before anything else: a supervisor lives as long as its machine and should stay small.
    match casemate_machine::supervisor::main() {
        Some(code) => code,
        None => {
            if let Err(error) = casemate_machine::seal_descriptors() {
                eprintln!("error: cannot close what the caller left open: {error}");
                return ExitCode::from(4);
            }
            casemate::main()
        }
    }
}
