//! API keys as programs of earlier versions wrote them.

use eshaar_model::Permission;
use eshaar_store::ApiKey;
use eshaar_store::conformance::{Subject, start};

use super::cluster::Keyspace;

/// What a key had that was stored before reading needed a permission.
const EARLY: [Permission; 3] = [Permission::MediaUpload, Permission::MessagesRead, Permission::WebhooksManage];

async fn stored(subject: &Subject) -> String {
    let key = ApiKey {
        id: "early".to_owned(),
        business: "acme".parse().unwrap(),
        name: String::new(),
        secret_hash: [9; 32],
        permissions: vec![Permission::MediaUpload],
        rate: None,
        created_at: start(),
        expires_at: None,
        revoked_at: None,
    };
    subject.store.keys.put(key.clone()).await.unwrap();
    assert_eq!(subject.store.keys.get(&key.id).await.unwrap(), Some(key.clone()));
    key.id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_gives_early_keys_what_they_could_do_without_a_permission() {
    let folder = tempfile::tempdir().unwrap();
    let subject = super::open(folder.path());
    let id = stored(&subject).await;
    let db = rusqlite::Connection::open(folder.path().join("store.db")).unwrap();
    db.execute("UPDATE api_key SET permissions = 'media:upload'", []).unwrap();
    assert_eq!(subject.store.keys.get(&id).await.unwrap().unwrap().permissions, EARLY);
    assert_eq!(subject.store.keys.list(None).await.unwrap()[0].permissions, EARLY);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the real engines: ./test"]
async fn cql_gives_early_keys_what_they_could_do_without_a_permission() {
    let keyspace = Keyspace::make().await;
    let subject = keyspace.subject(0).await;
    let id = stored(&subject).await;
    let update = "UPDATE api_key SET permissions = 'media:upload' WHERE id = ? IF EXISTS";
    keyspace.session().await.query_unpaged(update, (&id,)).await.unwrap();
    assert_eq!(subject.store.keys.get(&id).await.unwrap().unwrap().permissions, EARLY);
    assert_eq!(subject.store.keys.list(None).await.unwrap()[0].permissions, EARLY);
    keyspace.drop().await;
}
