//! What waits for the writer thread. Bounded: appends by the room they take, commits by the partitions there are.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ahash::AHashMap;
use eshaar_model::Epoch;
use parking_lot::{Condvar, Mutex};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::batch::encoded_len;
use crate::{AppendError, LogError, LogPosition, NewRecord, Topic};

/// Room is counted in KiB; a request takes at least one, so its own memory is bounded too.
const ROOM_UNIT: usize = 1 << 10;

/// An append that waits to be committed.
pub(super) struct Append {
    /// Each with its partition chosen.
    pub records: Vec<NewRecord>,
    pub answer: oneshot::Sender<Result<Vec<LogPosition>, AppendError>>,
    pub since: Instant,
    /// Given back when the append is answered.
    _room: OwnedSemaphorePermit,
}

/// Whose position of what: group, topic, partition.
pub(super) type CommitKey = (Arc<str>, Topic, u32);

/// Something else the writer is asked for.
pub(super) enum Request {
    /// Answers when the writer has come round.
    Ping,
    /// Looks for records that are past their time, all of them.
    Sweep,
    /// Begins a new life of the log.
    Epoch(Epoch),
}

/// Everything that waits, taken at once: a group.
#[derive(Default)]
pub(super) struct Work {
    pub appends: Vec<Append>,
    pub commits: AHashMap<CommitKey, u64>,
    pub committers: Vec<oneshot::Sender<Result<(), LogError>>>,
    pub requests: Vec<(Request, oneshot::Sender<Result<(), LogError>>)>,
    /// Nothing comes after this.
    pub closed: bool,
}

impl Work {
    pub fn is_empty(&self) -> bool {
        self.appends.is_empty() && self.committers.is_empty() && self.requests.is_empty()
    }
}

/// The way to the writer thread.
pub(super) struct Queue {
    waiting: Mutex<Work>,
    came: Condvar,
    room: Arc<Semaphore>,
    capacity: u32,
}

impl Queue {
    pub fn new(bytes: u32) -> Self {
        let capacity = (bytes / ROOM_UNIT as u32).max(1);
        let room = Arc::new(Semaphore::new(capacity as usize));
        Self { waiting: Mutex::default(), came: Condvar::new(), room, capacity }
    }

    /// Waits for room, then for the commit. Dropped before there was room, nothing is written.
    pub async fn append(&self, records: Vec<NewRecord>) -> Result<Vec<LogPosition>, AppendError> {
        let since = Instant::now();
        let size = records.iter().map(encoded_len).sum::<usize>();
        // What is larger than the queue goes through it alone.
        let units = size.div_ceil(ROOM_UNIT).min(self.capacity as usize) as u32;
        let room = Arc::clone(&self.room).acquire_many_owned(units).await.map_err(|_| AppendError::Closed)?;
        let (answer, answered) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock();
            if waiting.closed {
                return Err(AppendError::Closed);
            }
            waiting.appends.push(Append { records, answer, since, _room: room });
        }
        self.came.notify_one();
        answered
            .await
            .unwrap_or_else(|_| Err(AppendError::Unknown { reason: "its writer ended before it answered".to_owned() }))
    }

    /// Queues commits; of the same partition the last counts. The order of calls is the order of commits.
    pub fn commit(
        &self,
        offsets: impl IntoIterator<Item = (CommitKey, u64)>,
    ) -> Result<oneshot::Receiver<Result<(), LogError>>, LogError> {
        let (answer, answered) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock();
            if waiting.closed {
                return Err(LogError::Closed);
            }
            waiting.commits.extend(offsets);
            waiting.committers.push(answer);
        }
        self.came.notify_one();
        Ok(answered)
    }

    /// Asks the writer for something else and waits for it.
    pub async fn request(&self, request: Request) -> Result<(), LogError> {
        let (answer, answered) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock();
            if waiting.closed {
                return Err(LogError::Closed);
            }
            waiting.requests.push((request, answer));
        }
        self.came.notify_one();
        answered.await.unwrap_or(Err(LogError::Closed))
    }

    /// Takes nothing more in. What waits is still done; appends that wait for room are refused.
    pub fn close(&self) {
        self.waiting.lock().closed = true;
        self.room.close();
        self.came.notify_one();
    }

    /// For the writer: takes everything that waits, once there is something or `patience` is over.
    pub fn take(&self, patience: Duration) -> Work {
        let mut waiting = self.waiting.lock();
        if waiting.is_empty() && !waiting.closed {
            self.came.wait_for(&mut waiting, patience);
        }
        let closed = waiting.closed;
        std::mem::replace(&mut *waiting, Work { closed, ..Work::default() })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use bytes::Bytes;
    use eshaar_model::Timestamp;
    use futures_util::FutureExt;

    use super::*;
    use crate::Headers;

    fn records(bytes: usize) -> Vec<NewRecord> {
        vec![NewRecord {
            topic: Topic::LaneHigh,
            partition: Some(0),
            key: Bytes::from_static(b"k"),
            value: Bytes::from(vec![0; bytes]),
            headers: Headers::none(),
            timestamp: Timestamp::from_millis(0),
        }]
    }

    #[test]
    fn an_append_that_finds_no_room_waits_until_there_is_some() {
        let queue = Queue::new(10 << 10);
        let mut first = Box::pin(queue.append(records(6 << 10)));
        let mut second = Box::pin(queue.append(records(6 << 10)));
        assert!(first.as_mut().now_or_never().is_none() && second.as_mut().now_or_never().is_none());
        let group = queue.take(Duration::ZERO);
        assert_eq!(group.appends.len(), 1);
        drop(group);
        assert!(first.now_or_never().unwrap().is_err(), "a writer that ended leaves the outcome unknown");
        assert!(second.now_or_never().is_none());
        assert_eq!(queue.take(Duration::ZERO).appends.len(), 1);
    }

    #[test]
    fn an_append_larger_than_the_queue_goes_through_it_alone() {
        let queue = Queue::new(10 << 10);
        let mut large = Box::pin(queue.append(records(100 << 10)));
        let mut small = Box::pin(queue.append(records(1)));
        assert!(large.as_mut().now_or_never().is_none() && small.as_mut().now_or_never().is_none());
        assert_eq!(queue.take(Duration::ZERO).appends.len(), 1);
    }

    #[test]
    fn a_closed_queue_still_gives_out_what_waits_and_refuses_the_rest() {
        let queue = Queue::new(10 << 10);
        let mut waiting = Box::pin(queue.append(records(10 << 10)));
        let mut without_room = Box::pin(queue.append(records(10 << 10)));
        assert!(waiting.as_mut().now_or_never().is_none() && without_room.as_mut().now_or_never().is_none());
        queue.close();
        assert!(matches!(without_room.now_or_never(), Some(Err(AppendError::Closed))));
        let work = queue.take(Duration::from_secs(1));
        assert!(work.closed && work.appends.len() == 1);
        assert!(queue.commit([]).is_err());
    }
}
