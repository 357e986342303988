//! The stores: the conformance suite and the properties on each engine, and what is each engine's own: kill -9, overload,
//! what is on disk (SQLite); setting up, races, a cluster that does not answer (CQL).

#![allow(clippy::unwrap_used)]

mod cluster;
mod crash;
mod keys;
mod limits;
mod outage;
mod properties;
mod queues;
mod races;
mod setup;

use std::cell::Cell;
use std::path::Path;

use eshaar_model::Clock;
use eshaar_store::conformance::{self, Subject};
use eshaar_store::sqlite::{self, Options};

/// A store in `folder`, with a clock that stands still. Few index entries wait in memory, so that they are written often.
fn open(folder: &Path) -> Subject {
    open_with(Options { index_rows: 24, ..Options::at(folder.join("store.db")) }, 0)
}

fn open_with(options: Options, space: u32) -> Subject {
    let clock = Clock::manual(conformance::start());
    let store = sqlite::open(options, clock.clone()).unwrap();
    Subject { store, clock, space }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_conforms() {
    for index_rows in [0, 5, Options::default().index_rows] {
        let folder = tempfile::tempdir().unwrap();
        let stores = Cell::new(0);
        let fresh = || {
            stores.set(stores.get() + 1);
            let options = Options::at(folder.path().join(format!("{}.db", stores.get())));
            std::future::ready(open_with(Options { index_rows, ..options }, stores.get()))
        };
        conformance::run(fresh).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the real engines: ./test"]
async fn cql_conforms() {
    let keyspace = cluster::Keyspace::make().await;
    // Making tables takes seconds on a cluster, so all checks share them, each with keys of its own.
    let spaces = Cell::new(0);
    let fresh = || {
        spaces.set(spaces.get() + 1);
        keyspace.subject(spaces.get())
    };
    conformance::run(fresh).await.unwrap();
    keyspace.drop().await;
}
