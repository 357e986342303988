//! `eshaar-load`: sends what a scenario says, receives it as mobile apps would, and accounts for every message.

mod accounts;
mod backlog;
mod cancels;
mod cli;
mod clock;
mod cluster;
mod drive;
mod engines;
mod events;
mod failed;
mod frame;
mod history;
mod http_client;
mod idle;
mod ingest;
mod log_bench;
mod measure;
mod phones;
mod process;
mod procfs;
mod reads;
mod recipient;
mod reconnects;
mod reference;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod rehearsal;
mod report;
mod run;
mod scenario;
mod sender;
mod server;
mod session;
mod spawned;
mod store_bench;
mod talk;
mod token;
mod watch;
mod webhooks;

use std::process::ExitCode;

use clap::Parser as _;
use tokio::signal::unix::{SignalKind, signal};

fn main() -> anyhow::Result<ExitCode> {
    let cli = cli::Cli::parse();
    let runtime = cli.runtime()?;
    runtime.block_on(async {
        tokio::select! {
            passed = cli.execute() => Ok(if passed? { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
            stopped = told_to_stop() => {
                stopped?;
                // A spawned server is killed, and its data removed, when what is under way is dropped.
                anyhow::bail!("stopped by a signal")
            }
        }
    })
}

/// Returns at SIGINT or SIGTERM.
async fn told_to_stop() -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted,
        _ = terminate.recv() => Ok(()),
    }
}
