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

/// A store in `folder`, with a clock that stands still.
fn open(folder: &Path) -> Subject {
    let clock = Clock::manual(conformance::start());
    let store = sqlite::open(Options::at(folder.join("store.db")), clock.clone()).unwrap();
    Subject { store, clock }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let stores = Cell::new(0);
    let fresh = || {
        stores.set(stores.get() + 1);
        let folder = folder.path().join(stores.get().to_string());
        std::fs::create_dir(&folder).unwrap();
        std::future::ready(open(&folder))
    };
    conformance::run(fresh).await.unwrap();
}
