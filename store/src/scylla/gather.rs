//! Plain writes on their way to the nodes: what waits for the same node goes there together.
//!
//! A request costs a node, and us, several times what one more row in it costs. So a node is sent few of them at once, and
//! what comes meanwhile waits for the next: nothing waits that could go, and the more there is the more goes together. A
//! batch is unlogged and spans partitions: its writes have nothing to do with each other, each may be repeated, and a batch
//! that fails is written again by those whose writes were in it. They are grouped by the first replica of their token, so
//! that a batch is no detour for most of them.
//!
//! What can wait goes behind what somebody waits for: history is written in rows by the hundred, and the stream of a phone
//! must not stand behind it.
//!
//! Two writes of one call may be seen in any order. What must not be seen in part, such as rows of a stream of which a
//! reader would take the later for the last, is one write: its rows are of one partition, and go in one request, which
//! the cluster applies as one mutation.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;
use scylla::errors::{DbError, ExecutionError, RequestAttemptError};
use scylla::serialize::row::SerializeRow;
use scylla::statement::batch::{Batch, BatchType};
use scylla::statement::prepared::PreparedStatement;
use smallvec::SmallVec;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::Options;
use super::call::Link;

/// Keys and the rest of a row, roughly, in bytes.
const ROW_BYTES: usize = 100;

/// Of the requests to a node, one in so many begins with what can wait, so that it is never left for good.
const PATIENT_IN: usize = 4;

/// Whether somebody waits for writes. Where both wait for a node, those go first.
#[derive(Clone, Copy, Debug)]
pub(super) enum Haste {
    /// A message goes no further until they are written.
    Pressing,
    /// Only what is looked up later.
    Patient,
}

/// A row to be written.
struct Row {
    statement: PreparedStatement,
    values: Box<dyn SerializeRow + Send + Sync>,
}

/// Rows of one partition that become visible together; mostly one.
pub(super) struct Write {
    rows: SmallVec<[Row; 1]>,
    bytes: usize,
}

impl Write {
    /// One row. `bytes` is the size of what may be large in it.
    pub(super) fn new(
        statement: &PreparedStatement,
        values: impl SerializeRow + Send + Sync + 'static,
        bytes: usize,
    ) -> Self {
        let row = Row { statement: statement.clone(), values: Box::new(values) };
        Self { rows: SmallVec::from_buf([row]), bytes: bytes + ROW_BYTES }
    }

    /// Adds rows of the same partition, unless that would be more than `limits` allow; then they are given back.
    pub(super) fn join(&mut self, other: Self, limits: Limits) -> Option<Self> {
        if self.rows.len() + other.rows.len() > limits.rows || self.bytes + other.bytes > limits.bytes {
            return Some(other);
        }
        self.rows.extend(other.rows);
        self.bytes += other.bytes;
        None
    }
}

/// Writes that must become visible in their order, as rounds: each ends before the next begins. What comes one after the
/// other in a group and is of one partition goes together; what a request does not hold any more, in the next round.
/// Groups have nothing to do with each other.
pub(super) fn rounds<K: PartialEq>(
    groups: impl Iterator<Item = impl Iterator<Item = (K, Write)>>,
    limits: Limits,
) -> Vec<Vec<Write>> {
    let mut rounds: Vec<Vec<Write>> = Vec::new();
    for group in groups {
        let (mut round, mut together) = (0, None::<(K, Write)>);
        let mut put = |round: usize, write: Write| {
            rounds.resize_with(rounds.len().max(round + 1), Vec::new);
            rounds[round].push(write);
        };
        for (partition, write) in group {
            let Some((known, mut before)) = together else {
                together = Some((partition, write));
                continue;
            };
            let left = if known == partition { before.join(write, limits) } else { Some(write) };
            together = match left {
                None => Some((known, before)),
                Some(next) => {
                    put(round, before);
                    round += 1;
                    Some((partition, next))
                }
            };
        }
        if let Some((_, last)) = together {
            put(round, last);
        }
    }
    rounds
}

/// Why writes did not end well.
#[derive(Debug)]
pub(super) enum Failed {
    /// A request failed: whether the rows are there is not known.
    Request(String),
    /// The cluster will not take one of the rows, and said so.
    Refused(String),
    /// More waited than may; nothing of the call was written.
    Full(usize),
}

/// What waits, by node.
pub(super) struct Gather {
    nodes: Mutex<HashMap<Option<Uuid>, Node>>,
    waiting: AtomicUsize,
    limits: Limits,
}

/// What bounds a request, and what waits.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    requests: usize,
    rows: usize,
    bytes: usize,
    waiting: usize,
}

#[derive(Default)]
struct Node {
    /// By [`Haste`].
    waiting: [VecDeque<(Write, Arc<Settling>)>; 2],
    /// Under way.
    requests: usize,
    /// Batches that were taken.
    taken: usize,
}

/// A call whose writes are under way.
struct Settling {
    left: AtomicUsize,
    error: Mutex<Option<Failed>>,
    done: Mutex<Option<oneshot::Sender<()>>>,
    /// Nobody waits any more: what has not gone yet need not.
    given_up: AtomicBool,
}

impl Settling {
    fn settle(&self, error: Option<&ExecutionError>) {
        if let Some(error) = error {
            let mut known = self.error.lock();
            // What is not known outweighs what is: only if all of the call is known, it is refused.
            if !matches!(*known, Some(Failed::Request(_))) {
                let reason = error.to_string();
                *known = Some(if is_refusal(error) { Failed::Refused(reason) } else { Failed::Request(reason) });
            }
        }
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1
            && let Some(done) = self.done.lock().take()
        {
            // Whoever gave up needs no answer.
            let _ = done.send(());
        }
    }
}

struct GiveUp(Arc<Settling>);

impl Drop for GiveUp {
    fn drop(&mut self) {
        self.0.given_up.store(true, Ordering::Relaxed);
    }
}

impl Gather {
    pub(super) fn new(options: &Options) -> Self {
        let limits = Limits {
            requests: options.writes_at_once.max(1),
            rows: options.batch_rows.clamp(1, 1_000),
            bytes: options.batch_bytes,
            waiting: options.queue_rows.max(1),
        };
        Self { nodes: Mutex::default(), waiting: AtomicUsize::new(0), limits }
    }

    pub(super) const fn limits(&self) -> Limits {
        self.limits
    }

    /// Writes all of it; ends when everything is written, or with the first error once all are settled.
    pub(super) async fn write(
        self: &Arc<Self>,
        link: &Arc<Link>,
        writes: Vec<Write>,
        haste: Haste,
    ) -> Result<(), Failed> {
        if writes.is_empty() {
            return Ok(());
        }
        let waiting = self.waiting.fetch_add(writes.len(), Ordering::Relaxed);
        if waiting > 0 && waiting + writes.len() > self.limits.waiting {
            self.waiting.fetch_sub(writes.len(), Ordering::Relaxed);
            return Err(Failed::Full(waiting));
        }
        let (done, settled) = oneshot::channel();
        let settling = Arc::new(Settling {
            left: AtomicUsize::new(writes.len()),
            error: Mutex::default(),
            done: Mutex::new(Some(done)),
            given_up: AtomicBool::new(false),
        });
        let _give_up = GiveUp(Arc::clone(&settling));
        for node in self.enqueue(link, writes, haste, &settling) {
            tokio::spawn(Arc::clone(self).send(Arc::clone(link), node));
        }
        // The sender lives in `settling`, so it cannot be gone.
        let _ = settled.await;
        let error = settling.error.lock().take();
        error.map_or(Ok(()), Err)
    }

    /// Puts writes where they wait; the nodes that a further request may go to, once for each.
    fn enqueue(&self, link: &Link, writes: Vec<Write>, haste: Haste, settling: &Arc<Settling>) -> Vec<Option<Uuid>> {
        let placed: Vec<_> = writes.into_iter().map(|write| (node_of(link, &write), write)).collect();
        let mut begin = Vec::new();
        let mut nodes = self.nodes.lock();
        for (id, write) in placed {
            let node = nodes.entry(id).or_default();
            node.waiting[haste as usize].push_back((write, Arc::clone(settling)));
            let waiting = node.waiting.iter().map(VecDeque::len).sum::<usize>();
            // A request takes what a batch holds: another one only for what is more.
            if node.requests < self.limits.requests && waiting > node.requests * self.limits.rows {
                node.requests += 1;
                begin.push(id);
            }
        }
        begin
    }

    /// Sends what waits for a node, batch after batch, until nothing does.
    async fn send(self: Arc<Self>, link: Arc<Link>, node: Option<Uuid>) {
        loop {
            let batch = self.take(node);
            if batch.is_empty() {
                return;
            }
            let (writes, settling): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
            let error = execute(&link, &writes).await.err();
            match error {
                // One of them is at fault: each alone, so that it does not fail the others.
                Some(error) if writes.len() > 1 && is_refusal(&error) => {
                    for (write, settling) in writes.iter().zip(settling) {
                        let error = execute(&link, std::slice::from_ref(write)).await.err();
                        settling.settle(error.as_ref());
                    }
                }
                error => settling.iter().for_each(|settling| settling.settle(error.as_ref())),
            }
        }
    }

    /// The next batch for a node; empty when nothing waits, and then the request is over.
    fn take(&self, id: Option<Uuid>) -> Vec<(Write, Arc<Settling>)> {
        let mut nodes = self.nodes.lock();
        let Some(node) = nodes.get_mut(&id) else { return Vec::new() };
        let (mut batch, mut rows, mut bytes, mut gone) = (Vec::new(), 0, 0, 0);
        node.taken += 1;
        let order = if node.taken.is_multiple_of(PATIENT_IN) {
            [Haste::Patient, Haste::Pressing]
        } else {
            [Haste::Pressing, Haste::Patient]
        };
        'full: for haste in order {
            let waiting = &mut node.waiting[haste as usize];
            while let Some((write, settling)) = waiting.pop_front() {
                if settling.given_up.load(Ordering::Relaxed) {
                    settling.settle(None);
                    gone += 1;
                    continue;
                }
                rows += write.rows.len();
                bytes += write.bytes;
                if !batch.is_empty() && (rows > self.limits.rows || bytes > self.limits.bytes) {
                    waiting.push_front((write, settling));
                    break 'full;
                }
                batch.push((write, settling));
                gone += 1;
            }
        }
        self.waiting.fetch_sub(gone, Ordering::Relaxed);
        if batch.is_empty() {
            node.requests -= 1;
            if node.requests == 0 {
                nodes.remove(&id);
            }
        }
        batch
    }
}

/// The first replica of a row; `None` where there is only one node, or none is known.
fn node_of(link: &Link, write: &Write) -> Option<Uuid> {
    let cluster = link.session.get_cluster_state();
    if cluster.get_nodes_info().len() < 2 {
        return None;
    }
    let Row { statement, values } = write.rows.first()?;
    let token = statement.calculate_token(values).ok()??;
    let table = statement.get_table_spec()?;
    let replicas = cluster.get_token_endpoints(table.ks_name(), table.table_name(), token);
    replicas.first().map(|(node, _)| node.host_id)
}

/// Whether the cluster, or the driver before it, refused what was sent for what it is.
fn is_refusal(error: &ExecutionError) -> bool {
    use RequestAttemptError::{CqlRequestSerialization, SerializationError};
    match error {
        ExecutionError::BadQuery(_)
        | ExecutionError::LastAttemptError(SerializationError(_) | CqlRequestSerialization(_)) => true,
        ExecutionError::LastAttemptError(RequestAttemptError::DbError(error, _)) => {
            matches!(error, DbError::Invalid | DbError::SyntaxError)
        }
        _ => false,
    }
}

async fn execute(link: &Link, writes: &[Write]) -> Result<(), ExecutionError> {
    let rows: SmallVec<[&Row; 1]> = writes.iter().flat_map(|write| &write.rows).collect();
    if let [Row { statement, values }] = rows[..] {
        return link.session.execute_unpaged(statement, values).await.map(drop);
    }
    let mut batch = Batch::new(BatchType::Unlogged);
    batch.set_is_idempotent(true);
    let mut values = Vec::with_capacity(rows.len());
    for row in rows {
        batch.append_statement(row.statement.clone());
        values.push(&row.values);
    }
    link.session.batch(&batch, values).await.map(drop)
}
