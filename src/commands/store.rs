//! `eshaar store`: the tables of the history store.

use crate::cli::{Settings, StoreCommand};
use crate::config;
use crate::engines::{self, Kind};

pub async fn run(settings: &Settings, command: &StoreCommand) -> anyhow::Result<()> {
    let config = config::load(settings)?;
    match (command, config.engines) {
        (StoreCommand::Apply, Kind::Distributed) => println!("{}", engines::apply_store(&config).await?),
        (StoreCommand::Apply, Kind::Embedded) => {
            println!("nothing to do: the embedded store makes its tables when it is opened");
        }
    }
    Ok(())
}
