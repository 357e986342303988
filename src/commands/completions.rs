//! `eshaar completions`: a script that completes commands and flags in a shell.

use clap::CommandFactory as _;

use crate::cli::{Cli, CompletionsArguments};
use crate::output::OutputError;

pub fn run(arguments: &CompletionsArguments) -> anyhow::Result<()> {
    // The generator panics where it cannot write: it writes to memory.
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "eshaar", &mut script);
    std::io::Write::write_all(&mut std::io::stdout(), &script).map_err(OutputError)?;
    Ok(())
}
