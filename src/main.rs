//! The `eshaar` command: parses the command line and starts what it names, no more.

mod cli;
mod client;
mod commands;
mod config;
mod engines;
mod first_start;
mod invocation;
mod output;
mod roles;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};
use crate::output::{OutputError, noteln};
use crate::roles::Role;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("eshaar-worker").build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&anyhow::Error::new(error).context("cannot start the runtime")),
    };
    let done = runtime.block_on(run(cli));
    runtime.shutdown_timeout(std::time::Duration::from_secs(5));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_output_closed(&error) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    // Both of rustls's providers may be compiled in by dependencies; it must be told which one to use, once.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match cli.command {
        Command::Serve(arguments) => Box::pin(roles::run(&cli.settings, &arguments.as_settings(), Role::All)).await,
        Command::Ingest(arguments) => Box::pin(roles::run(&cli.settings, &arguments.as_settings(), Role::Ingest)).await,
        Command::Processors(arguments) => {
            Box::pin(roles::run(&cli.settings, &arguments.as_settings(), Role::Processors)).await
        }
        Command::Gateway(arguments) => {
            Box::pin(roles::run(&cli.settings, &arguments.as_settings(), Role::Gateway)).await
        }
        Command::Send(arguments) => commands::send::run(&cli.settings, arguments).await,
        Command::Listen(arguments) => commands::listen::run(&cli.settings, &arguments).await,
        Command::Chat(arguments) => Box::pin(commands::chat::run(&cli.settings, &arguments)).await,
        Command::Keys(command) => commands::keys::run(&cli.settings, command).await,
        Command::Token(arguments) => commands::token::run(&cli.settings, &arguments).await,
        Command::Topics(command) => commands::topics::run(&cli.settings, command).await,
        Command::Store(command) => commands::store::run(&cli.settings, &command).await,
        Command::DeadLetters(command) => commands::dead_letters::run(&cli.settings, command).await,
        Command::Console(arguments) => commands::console::run(&cli.settings, &arguments),
        Command::Check(arguments) => commands::check::run(&cli.settings, &arguments).await,
        Command::Completions(arguments) => commands::completions::run(&arguments),
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    noteln!("eshaar: {error:#}");
    ExitCode::FAILURE
}

/// Returns true if the reader of standard output has closed its end, as in `eshaar topics tail … | head`: no failure.
fn is_output_closed(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.downcast_ref::<OutputError>().is_some_and(OutputError::is_closed))
}
