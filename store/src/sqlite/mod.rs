//! The embedded store: one SQLite file.
//!
//! `options` · `schema` (the tables) · `queue` (from async callers to threads) · `writer` (one thread, groups of calls in
//! one transaction) · `recent` (what is not yet in the streams' index) · then a file for each aggregate, with its SQL. Reads run on a few threads of their own and see every
//! write that has returned. Nothing that has returned is lost by a kill -9; what is said to be durable, by a power cut.

mod audiences;
mod audit;
mod broadcasts;
mod chat;
mod claims;
mod columns;
mod conversations;
mod dead_letters;
mod keys;
mod messages;
mod options;
mod queue;
mod recent;
mod schema;
mod stream;
mod tasks;
mod timers;
mod webhooks;
mod writer;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use async_trait::async_trait;
use eshaar_model::Clock;
use eshaar_service::metrics::STORE_SECONDS;
use eshaar_service::workers;
use metrics::histogram;
use parking_lot::Mutex;
use rusqlite::Connection;
use tokio::sync::oneshot;

use self::queue::{AbandonOnDrop, Queue};
use self::recent::{Index, Recent};
use self::writer::{Job, Tables, Writer};
use crate::{Store, StoreEngine, StoreError};

pub use self::options::Options;

type Read = Box<dyn FnOnce(&Connection) + Send>;

/// Opens the store, making it where it is not there yet. Blocks for some milliseconds. Another process may have it open
/// too (the command line does, to make keys): SQLite lets one write after the other. But streams belong to one process:
/// what another appended is seen only when the store is opened again.
pub fn open(options: Options, clock: Clock) -> Result<Store, StoreError> {
    let engine = Arc::new(Sqlite::open(options, clock).map_err(|reason| failed("open", &*reason))?);
    Ok(Store {
        streams: Arc::clone(&engine) as _,
        messages: Arc::clone(&engine) as _,
        claims: Arc::clone(&engine) as _,
        keys: Arc::clone(&engine) as _,
        dead_letters: Arc::clone(&engine) as _,
        tasks: Arc::clone(&engine) as _,
        audit: Arc::clone(&engine) as _,
        timers: Arc::clone(&engine) as _,
        webhooks: Arc::clone(&engine) as _,
        audiences: Arc::clone(&engine) as _,
        broadcasts: Arc::clone(&engine) as _,
        conversations: Arc::clone(&engine) as _,
        engine,
    })
}

/// Every port, on one file.
struct Sqlite {
    options: Options,
    clock: Clock,
    recent: Arc<Recent>,
    writes: Arc<Queue<Box<dyn Job>>>,
    reads: Arc<Queue<Read>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Sqlite {
    fn open(options: Options, clock: Clock) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let db = schema::open_writer(&options)?;
        let index = Index::load(&db, options.index_rows as usize)?;
        let recent = index.recent();
        let writer = Writer::new(Tables { db, index });
        let connections = (0..options.readers.max(1)).map(|_| schema::open_reader(&options));
        let connections = connections.collect::<Result<Vec<_>, _>>()?;
        let writes = Arc::new(Queue::new(options.queue_rows, options.queue_wait()));
        let reads = Arc::new(Queue::new(options.queue_reads, options.queue_wait()));
        // From here on a failure drops the engine, and with it ends the threads that were started.
        let engine = Self {
            options,
            clock,
            recent,
            writes: Arc::clone(&writes),
            reads: Arc::clone(&reads),
            threads: Mutex::default(),
        };
        engine.start("store-write".to_owned(), move || writer.run(&writes))?;
        for (number, db) in connections.into_iter().enumerate() {
            let reads = Arc::clone(&reads);
            engine.start(format!("store-read-{number}"), move || read_until_closed(&db, &reads))?;
        }
        Ok(engine)
    }

    fn start(&self, name: String, run: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
        let guarded = move || {
            let _guard = workers::guard("store");
            run();
        };
        self.threads.lock().push(std::thread::Builder::new().name(name).spawn(guarded)?);
        Ok(())
    }

    /// Has `work` done in the next group, and waits until that is committed. `rows` is what it takes up in the queue.
    async fn write<T, F>(&self, operation: Operation, rows: usize, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnMut(&mut Tables) -> rusqlite::Result<T> + Send + 'static,
    {
        let started = Instant::now();
        let (reply, answer) = oneshot::channel();
        self.writes.push(Box::new(Call { operation, work, result: None, reply }), rows).await?;
        let answer = answer.await.map_err(|_| StoreError::Closed)?;
        operation.measure(started);
        answer
    }

    /// Has `query` done by a reading thread.
    async fn query<T, F>(&self, operation: Operation, query: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let started = Instant::now();
        let (reply, answer) = oneshot::channel();
        let read = move |db: &Connection| {
            // Whoever gave up waiting needs no answer.
            if !reply.is_closed() {
                let _ = reply.send(query(db));
            }
        };
        self.reads.push(Box::new(read), 1).await?;
        let answer = answer.await.map_err(|_| StoreError::Closed)?;
        operation.measure(started);
        answer.map_err(|error| failed(operation.name, &error))
    }
}

#[async_trait]
impl StoreEngine for Sqlite {
    async fn sync(&self) -> Result<(), StoreError> {
        self.write(Operation::durable("sync"), 1, |_| Ok(())).await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.query(Operation::new("ping"), |db| db.query_row("SELECT 1", [], |_| Ok(()))).await?;
        self.write(Operation::new("ping"), 1, |_| Ok(())).await
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.reads.close();
        self.writes.close();
        let threads = std::mem::take(&mut *self.threads.lock());
        let joined = tokio::task::spawn_blocking(move || threads.into_iter().try_for_each(JoinHandle::join));
        match joined.await {
            Ok(Ok(())) => Ok(()),
            _ => Err(failed("close", &"a thread of it had panicked")),
        }
    }
}

/// The threads finish what waits, then end.
impl Drop for Sqlite {
    fn drop(&mut self) {
        self.reads.close();
        self.writes.close();
    }
}

fn read_until_closed(db: &Connection, reads: &Arc<Queue<Read>>) {
    let _abandon = AbandonOnDrop(Arc::clone(reads));
    while let Some(read) = reads.pop() {
        (read.job)(db);
    }
}

/// A call, as metrics and errors name it.
#[derive(Clone, Copy)]
struct Operation {
    name: &'static str,
    durable: bool,
}

impl Operation {
    const fn new(name: &'static str) -> Self {
        Self { name, durable: false }
    }

    /// Fsynced before it returns.
    const fn durable(name: &'static str) -> Self {
        Self { name, durable: true }
    }

    fn measure(self, started: Instant) {
        histogram!(STORE_SECONDS, "operation" => self.name).record(started.elapsed().as_secs_f64());
    }
}

struct Call<T, F> {
    operation: Operation,
    work: F,
    result: Option<T>,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<T, F> Job for Call<T, F>
where
    T: Send,
    F: FnMut(&mut Tables) -> rusqlite::Result<T> + Send,
{
    fn durable(&self) -> bool {
        self.operation.durable
    }

    fn run(&mut self, tables: &mut Tables) -> rusqlite::Result<()> {
        self.result = Some((self.work)(tables)?);
        Ok(())
    }

    fn settle(self: Box<Self>, error: Option<&rusqlite::Error>) {
        let answer = match (error, self.result) {
            (Some(error), _) => Err(not_written(self.operation.name, error)),
            (None, Some(result)) => Ok(result),
            (None, None) => Err(StoreError::Closed),
        };
        // A caller that gave up learns nothing; its write stands.
        let _ = self.reply.send(answer);
    }
}

/// Why a write failed, its transaction rolled back. What is wrong with the values is wrong with them the next time, too.
fn not_written(action: &'static str, error: &rusqlite::Error) -> StoreError {
    use rusqlite::ErrorCode::{ConstraintViolation, TooBig, TypeMismatch};
    let of_values = match error {
        rusqlite::Error::SqliteFailure(failure, _) => {
            matches!(failure.code, ConstraintViolation | TooBig | TypeMismatch)
        }
        rusqlite::Error::ToSqlConversionFailure(_) => true,
        _ => false,
    };
    if of_values { StoreError::Refused { action, reason: error.to_string() } } else { failed(action, error) }
}

fn failed(action: &'static str, reason: &(impl std::fmt::Display + ?Sized)) -> StoreError {
    StoreError::Engine { action, reason: reason.to_string() }
}
