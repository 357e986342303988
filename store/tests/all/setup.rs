//! Making the tables of the CQL store, and what is said where they are not fit.

use eshaar_model::Clock;
use eshaar_store::scylla::{self, Options, SetupError};

use super::cluster::{Keyspace, drop_keyspace, new_name, node, options};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the real engines: ./test"]
async fn of_two_that_apply_at_once_one_makes_the_tables() {
    let options = options(&new_name());
    let (one, other) = tokio::join!(scylla::apply(&options), scylla::apply(&options));
    let (one, other) = (one.unwrap(), other.unwrap());
    assert_eq!(one.steps.len() + other.steps.len(), one.now as usize, "{one}\n{other}");
    let again = scylla::apply(&options).await.unwrap();
    assert_eq!((again.made_keyspace, again.before, again.steps.len()), (false, again.now, 0));
    assert!(again.to_string().contains("nothing to do"));
    assert_eq!(scylla::check(&options).await.unwrap().version, again.now);
    drop_keyspace(&options.keyspace).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the real engines: ./test"]
async fn tables_of_another_version_are_refused_with_what_to_do() {
    let missing = options(&new_name());
    assert!(matches!(scylla::check(&missing).await, Err(SetupError::Missing(_))));
    let refused = scylla::open(missing, Clock::system()).await.err().unwrap().to_string();
    assert!(refused.contains("run `eshaar store apply`"), "{refused}");

    let keyspace = Keyspace::make().await;
    let version = scylla::check(&keyspace.0).await.unwrap().version;
    let session = keyspace.session().await;
    let newer = "INSERT INTO schema_version (name, version) VALUES ('eshaar', 99) IF NOT EXISTS";
    session.query_unpaged(newer, ()).await.unwrap();
    assert!(matches!(scylla::check(&keyspace.0).await, Err(SetupError::Newer { found: 99, .. })));
    assert!(matches!(scylla::apply(&keyspace.0).await, Err(SetupError::Newer { found: 99, .. })));
    let refused = scylla::open(keyspace.0.clone(), Clock::system()).await.err().unwrap().to_string();
    assert!(refused.contains("schema version 99"), "{refused}");

    // As it is after an `apply` that died between two steps.
    for version in [99].into_iter().chain(1..=version) {
        let forget = "DELETE FROM schema_version WHERE name = 'eshaar' AND version = ? IF EXISTS";
        session.query_unpaged(forget, (version,)).await.unwrap();
    }
    assert!(matches!(scylla::check(&keyspace.0).await, Err(SetupError::Missing(_))));
    assert_eq!(scylla::apply(&keyspace.0).await.unwrap().before, 0);
    scylla::check(&keyspace.0).await.unwrap();
    keyspace.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the real engines: ./test"]
async fn a_cluster_that_is_not_there_or_not_as_said_is_told_apart() {
    let keyspace = Keyspace::make().await;
    let elsewhere = Options { nodes: vec!["127.0.0.1:1".to_owned()], ..keyspace.0.clone() };
    assert!(matches!(scylla::check(&elsewhere).await, Err(SetupError::Connect { .. })));
    let stranger = Options { password: "wrong".to_owned().into(), ..keyspace.0.clone() };
    let refused = scylla::check(&stranger).await.unwrap_err();
    assert!(matches!(refused, SetupError::Credentials { .. }), "{refused}");
    assert!(!refused.to_string().contains("wrong"), "{refused}");
    let datacenter = "nowhere".to_owned();
    let nowhere = Options { datacenter, ..keyspace.0.clone() };
    let refused = scylla::check(&nowhere).await.unwrap_err();
    assert!(matches!(&refused, SetupError::Datacenter { there, .. } if !there.is_empty()), "{refused}");
    let no_name = Options { keyspace: "no-name".to_owned(), nodes: vec![node()], ..Options::default() };
    assert!(matches!(scylla::apply(&no_name).await, Err(SetupError::KeyspaceName(_))));
    keyspace.drop().await;
}
