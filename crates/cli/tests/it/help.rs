//! The help of every command, as goldens. `INSTA_UPDATE=always` rewrites them.

use casemate::args::Cli;
use clap::{Command, CommandFactory};

fn snapshot(path: &str, command: &mut Command) {
    // Without a width clap takes the terminal's.
    let mut shown = command.clone().term_width(100);
    insta::assert_snapshot!(path.replace(' ', "-"), shown.render_long_help().to_string());
    for sub in command.get_subcommands_mut() {
        // `help` shows what is shown here anyway.
        if !sub.is_hide_set() && sub.get_name() != "help" {
            snapshot(&format!("{path} {}", sub.get_name()), sub);
        }
    }
}

#[test]
fn help_is_as_it_was_reviewed() {
    let mut cli = Cli::command();
    cli.build();
    snapshot("casemate", &mut cli);
}
