//! The cluster that tests run on, and a keyspace of it for each test.

use std::sync::atomic::{AtomicU32, Ordering};

use ::scylla::client::session::Session;
use ::scylla::client::session_builder::SessionBuilder;
use eshaar_model::{Clock, MessageId};
use eshaar_store::conformance::{Subject, start};
use eshaar_store::scylla::{self, Options, Replication, Strategy};

/// What `./test` says of the cluster.
fn engine(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| panic!("{variable} is not set: run the tests with ./test"))
}

/// The address of a node.
pub(crate) fn node() -> String {
    engine("ENGINE_CQL")
}

/// Options for a keyspace of this name.
pub(crate) fn options(keyspace: &str) -> Options {
    let replication = Replication { strategy: Strategy::Simple, factor: 1 };
    Options {
        nodes: vec![node()],
        keyspace: keyspace.to_owned(),
        replication,
        username: engine("ENGINE_CQL_USER"),
        password: engine("ENGINE_CQL_PASSWORD").into(),
        ..Options::default()
    }
}

/// A name that nobody has had.
pub(crate) fn new_name() -> String {
    static MADE: AtomicU32 = AtomicU32::new(0);
    let unique = MessageId::new(Clock::system().now()).to_string().replace('-', "");
    format!("eshaar_test_{}_{}", &unique[..24], MADE.fetch_add(1, Ordering::Relaxed))
}

/// A keyspace with our tables. It stays when its test fails.
pub(crate) struct Keyspace(pub(crate) Options);

impl Keyspace {
    pub(crate) async fn make() -> Self {
        let options = options(&new_name());
        scylla::apply(&options).await.unwrap();
        Self(options)
    }

    /// A store, with a clock that stands still.
    pub(crate) async fn subject(&self, space: u32) -> Subject {
        let clock = Clock::manual(start());
        let store = scylla::open(self.0.clone(), clock.clone()).await.unwrap();
        Subject { store, clock, space }
    }

    /// A session that does not go through the store.
    pub(crate) async fn session(&self) -> Session {
        let session = session().await;
        session.use_keyspace(&self.0.keyspace, true).await.unwrap();
        session
    }

    pub(crate) async fn drop(self) {
        drop_keyspace(&self.0.keyspace).await;
    }
}

pub(crate) async fn drop_keyspace(name: &str) {
    let session = session().await;
    session.query_unpaged(format!("DROP KEYSPACE IF EXISTS {name}"), ()).await.unwrap();
}

async fn session() -> Session {
    let (user, password) = (engine("ENGINE_CQL_USER"), engine("ENGINE_CQL_PASSWORD"));
    SessionBuilder::new().known_node(node()).user(user, password).build().await.unwrap()
}
