//! The SQLite store against the conformance suite, properties, and kill -9.

#![allow(clippy::unwrap_used)]

use std::cell::Cell;

use eshaar_model::Clock;
use eshaar_store::conformance::{self, Subject};
use eshaar_store::sqlite::{self, Options};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let stores = Cell::new(0);
    let fresh = || {
        stores.set(stores.get() + 1);
        let options = Options::at(folder.path().join(format!("{}.db", stores.get())));
        let clock = Clock::manual(conformance::start());
        let store = sqlite::open(options, clock.clone()).unwrap();
        std::future::ready(Subject { store, clock })
    };
    conformance::run(fresh).await.unwrap();
}
