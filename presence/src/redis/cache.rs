//! The cache in Redis, shared by all processes.
//!
//! | key | what | lapses |
//! |---|---|---|
//! | `<prefix>cache:1:generation` | 8 bytes: values of another generation are shown to nobody | – |
//! | `<prefix>cache:1:<key>` | `V`, generation, value; or `L`, token: somebody reads the store | after 5 min; 2 s |
//!
//! The `1` is the version of the values' encoding. A hit is a plain GET; whoever misses asks for a lease by a second round
//! trip. What Redis could not be told of is owed: it is told before anything is looked up again, and by a task of its own
//! where nothing is. A process owes everything when it connects, and connects again: it may have died owing, and Redis may
//! have come back with what it held before.

use std::sync::Arc;
use std::time::Duration;

use ahash::AHashSet;
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use redis::{Cmd, Pipeline, Value};
use tokio::sync::Notify;

use super::link::{Link, engine};
use super::{RedisPresence, millis, unexpected};
use crate::PresenceError;
use crate::cache::{Cache, Fill, Key, LEASE_TTL, Lease, Lookup, MAX_VALUE, VALUE_TTL};

/// Keys that are owed one by one; past them everything is.
const OWED_KEYS: usize = 10_000;

/// How long it is until Redis is told again what it could not be told.
const TELL_AGAIN: Duration = Duration::from_millis(250);

/// What Redis has not been told.
#[derive(Default)]
pub(super) struct Debt {
    owed: Mutex<Owed>,
    incurred: Notify,
}

#[derive(Clone, Default)]
struct Owed {
    keys: AHashSet<Key>,
    /// Everything; raised each time, so that what is settled is told from what is owed since.
    everything: u64,
    settled: u64,
    /// The connection that everything was last owed for.
    connection: u64,
}

impl Owed {
    fn is_nothing(&self) -> bool {
        self.keys.is_empty() && self.everything == self.settled
    }

    fn owe(&mut self, keys: impl IntoIterator<Item = Key>) {
        self.keys.extend(keys);
        if self.keys.len() > OWED_KEYS {
            self.owe_everything();
        }
    }

    fn owe_everything(&mut self) {
        self.everything += 1;
        self.keys.clear();
    }
}

/// Tells Redis what it is owed, for as long as there is somebody who may owe.
pub(super) async fn keep_settling(link: Arc<Link>, debt: Arc<Debt>) {
    loop {
        debt.incurred.notified().await;
        while settle(&link, &debt, &[]).await.is_err() {
            tokio::time::sleep(TELL_AGAIN).await;
        }
    }
}

/// Tells Redis what it is owed, and that `keys` have changed; those are owed where it cannot be told. Answers with the
/// connection that this holds for.
async fn settle(link: &Link, debt: &Debt, keys: &[Key]) -> Result<u64, PresenceError> {
    let connection = link.connections();
    let told = {
        let mut owed = debt.owed.lock();
        if owed.connection != connection {
            owed.connection = connection;
            owed.owe_everything();
        }
        owed.owe(keys.iter().cloned());
        owed.clone()
    };
    if told.is_nothing() {
        return Ok(connection);
    }
    let mut pipeline = Pipeline::with_capacity(told.keys.len() + 1);
    if told.everything != told.settled {
        pipeline.cmd("SET").arg(generation_key(link)).arg(&rand::random::<u64>().to_be_bytes()[..]);
    }
    for key in &told.keys {
        pipeline.cmd("DEL").arg(place(link, key));
    }
    if let Err(error) = link.run("invalidate", &pipeline).await {
        // Another call may have told them meanwhile, before what changed here.
        debt.owed.lock().owe(told.keys);
        debt.incurred.notify_one();
        return Err(error);
    }
    let mut owed = debt.owed.lock();
    owed.settled = owed.settled.max(told.everything);
    owed.keys.retain(|key| !told.keys.contains(key));
    Ok(connection)
}

fn generation_key(link: &Link) -> String {
    format!("{}cache:1:generation", link.prefix())
}

fn place(link: &Link, key: &Key) -> String {
    format!("{}cache:1:{key}", link.prefix())
}

/// What Redis holds at a key.
enum Held {
    Value(Bytes),
    Lease,
}

/// What is held under `generation`; `None`: nothing, or a value of another one.
fn held(answer: Value, generation: u64) -> Option<Held> {
    let Value::BulkString(bytes) = answer else { return None };
    match bytes.first() {
        Some(b'L') => Some(Held::Lease),
        Some(b'V') if bytes.get(1..9) == Some(&generation.to_be_bytes()[..]) => {
            Some(Held::Value(Bytes::from(bytes).slice(9..)))
        }
        _ => None,
    }
}

fn generation(answer: &Value) -> Option<u64> {
    let Value::BulkString(bytes) = answer else { return None };
    Some(u64::from_be_bytes(bytes[..].try_into().ok()?))
}

impl RedisPresence {
    /// Asks for leave to put in what was not found.
    async fn lease(
        &self,
        keys: Vec<(usize, &Key)>,
        generation: u64,
        lookups: &mut [Lookup],
    ) -> Result<(), PresenceError> {
        const ACTION: &str = "lease a place in the cache";
        let mut pipeline = Pipeline::with_capacity(keys.len());
        let tokens: Vec<u64> = keys.iter().map(|_| rand::random()).collect();
        for ((_, key), token) in keys.iter().zip(&tokens) {
            let mut command = self.link.scripts().lease_value.call(place(&self.link, key), self.shift());
            command.arg(&token.to_be_bytes()[..]).arg(millis(LEASE_TTL)).arg(&generation.to_be_bytes()[..]);
            pipeline.add_command(command);
        }
        let answers = self.link.run(ACTION, &pipeline).await?;
        for (((at, _), token), answer) in keys.into_iter().zip(tokens).zip(answers) {
            lookups[at] = match answer {
                Value::Nil => Lookup::Miss(Lease { token, generation }),
                other => match held(other, generation) {
                    Some(Held::Value(value)) => Lookup::Hit(value),
                    Some(Held::Lease) => Lookup::Awaited,
                    None => return Err(unexpected(ACTION)),
                },
            };
        }
        Ok(())
    }

    fn put(&self, fill: &Fill) -> Cmd {
        let Fill { key, lease, value } = fill;
        let mut held = Vec::with_capacity(value.len() + 9);
        held.push(b'V');
        held.extend(lease.generation.to_be_bytes());
        held.extend(value);
        let mut command = self.link.scripts().put_value.call(place(&self.link, key), self.shift());
        command.arg(&lease.token.to_be_bytes()[..]).arg(millis(VALUE_TTL)).arg(held);
        command
    }

    async fn settled(&self, keys: &[Key]) -> Result<u64, PresenceError> {
        settle(&self.link, &self.debt, keys).await
    }
}

#[async_trait]
impl Cache for RedisPresence {
    async fn look_up(&self, keys: &[Key]) -> Result<Vec<Lookup>, PresenceError> {
        const ACTION: &str = "look up in the cache";
        let connection = self.settled(&[]).await?;
        let mut pipeline = Pipeline::with_capacity(keys.len() + 1);
        pipeline.cmd("GET").arg(generation_key(&self.link));
        for key in keys {
            pipeline.cmd("GET").arg(place(&self.link, key));
        }
        let mut answers = self.link.run(ACTION, &pipeline).await?.into_iter();
        let Some(generation) = answers.next().as_ref().and_then(generation) else {
            // It was evicted, or Redis began anew and nobody has noticed yet.
            self.debt.owed.lock().owe_everything();
            return Err(engine(ACTION, "it has no generation"));
        };
        if self.link.connections() != connection {
            return Err(engine(ACTION, "the connection is another one"));
        }
        let mut missed = Vec::new();
        let mut lookups = Vec::with_capacity(keys.len());
        for ((at, key), answer) in keys.iter().enumerate().zip(answers) {
            lookups.push(match held(answer, generation) {
                Some(Held::Value(value)) => Lookup::Hit(value),
                Some(Held::Lease) => Lookup::Awaited,
                None => {
                    missed.push((at, key));
                    Lookup::Awaited
                }
            });
        }
        if !missed.is_empty() {
            self.lease(missed, generation, &mut lookups).await?;
        }
        Ok(lookups)
    }

    async fn fill(&self, values: Vec<Fill>) -> Result<(), PresenceError> {
        let mut pipeline = Pipeline::with_capacity(values.len());
        for fill in values.iter().filter(|fill| fill.value.len() <= MAX_VALUE) {
            pipeline.add_command(self.put(fill));
        }
        if pipeline.is_empty() { Ok(()) } else { self.link.run("fill the cache", &pipeline).await.map(drop) }
    }

    async fn invalidate(&self, keys: Vec<Key>) {
        if let Err(error) = self.settled(&keys).await {
            tracing::debug!(%error, keys = keys.len(), "Redis is told later what has changed");
        }
    }

    async fn invalidate_all(&self) {
        self.debt.owed.lock().owe_everything();
        self.invalidate(Vec::new()).await;
    }
}
