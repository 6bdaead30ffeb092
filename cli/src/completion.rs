//! `completion`: a script for a shell, made from the command line's own description.

use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::args::Cli;
use crate::terminal::Terminal;

/// `completion`
#[derive(Debug, Args)]
pub struct CompletionArgs {
    /// Which shell: bash, zsh, fish
    shell: Shell,
}

impl CompletionArgs {
    /// Prints the script.
    pub fn print(&self, terminal: Terminal) -> ExitCode {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "rswarm", &mut script);
        match terminal.print(&String::from_utf8_lossy(&script)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        }
    }
}
