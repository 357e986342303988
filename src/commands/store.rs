//! `eshaar store`: the tables of the history store.

use crate::cli::{Settings, StoreCommand};
use crate::config;
use crate::engines::{self, Kind};
use crate::output::outln;

pub async fn run(settings: &Settings, command: &StoreCommand) -> anyhow::Result<()> {
    let config = config::load(settings)?;
    let StoreCommand::Apply { json } = command;
    let done = match config.engines {
        Kind::Distributed => engines::apply_store(&config).await?,
        Kind::Embedded => "nothing to do: the embedded store makes its tables when it is opened".to_owned(),
    };
    if *json {
        outln!("{}", serde_json::json!({ "done": done }))?;
    } else {
        outln!("{done}")?;
    }
    Ok(())
}
