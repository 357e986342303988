//! The SQLite store: the conformance suite, properties, kill -9, overload, and what is on disk.

#![allow(clippy::unwrap_used)]

mod crash;
mod limits;
mod properties;

use std::cell::Cell;
use std::path::Path;

use eshaar_model::Clock;
use eshaar_store::conformance::{self, Subject};
use eshaar_store::sqlite::{self, Options};

/// A store in `folder`, with a clock that stands still. Few index entries wait in memory, so that they are written often.
fn open(folder: &Path) -> Subject {
    open_with(Options { index_rows: 24, ..Options::at(folder.join("store.db")) })
}

fn open_with(options: Options) -> Subject {
    let clock = Clock::manual(conformance::start());
    let store = sqlite::open(options, clock.clone()).unwrap();
    Subject { store, clock }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_conforms() {
    for index_rows in [0, 5, Options::default().index_rows] {
        let folder = tempfile::tempdir().unwrap();
        let stores = Cell::new(0);
        let fresh = || {
            stores.set(stores.get() + 1);
            let options = Options::at(folder.path().join(format!("{}.db", stores.get())));
            std::future::ready(open_with(Options { index_rows, ..options }))
        };
        conformance::run(fresh).await.unwrap();
    }
}
