//! A bounded queue from async callers to threads that block.
//!
//! Bounded by weight (rows), so that a thousand small calls and ten large ones hold the same memory. A caller that finds
//! no room waits its turn, and is refused after a while: nothing here grows without end.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};

use crate::StoreError;

/// A job with the room it takes up; the room is free again when this is dropped.
pub(super) struct Queued<J> {
    pub(super) job: J,
    weight: u32,
    _room: OwnedSemaphorePermit,
}

pub(super) struct Queue<J> {
    state: Mutex<State<J>>,
    filled: Condvar,
    room: Arc<Semaphore>,
    bound: u32,
    patience: Duration,
}

struct State<J> {
    jobs: VecDeque<Queued<J>>,
    closed: bool,
}

impl<J> Queue<J> {
    /// At most `bound` of weight waits or is worked on; a caller waits for room no longer than `patience`.
    pub(super) fn new(bound: u32, patience: Duration) -> Self {
        let bound = bound.max(1);
        Self {
            state: Mutex::new(State { jobs: VecDeque::new(), closed: false }),
            filled: Condvar::new(),
            room: Arc::new(Semaphore::new(bound as usize)),
            bound,
            patience,
        }
    }

    /// Queues a job. One that is heavier than the whole bound waits until it has the queue to itself.
    pub(super) async fn push(&self, job: J, weight: usize) -> Result<(), StoreError> {
        let weight = u32::try_from(weight).unwrap_or(u32::MAX).clamp(1, self.bound);
        let room = self.room_for(weight).await?;
        let mut state = self.state.lock();
        if state.closed {
            return Err(StoreError::Closed);
        }
        state.jobs.push_back(Queued { job, weight, _room: room });
        drop(state);
        self.filled.notify_one();
        Ok(())
    }

    async fn room_for(&self, weight: u32) -> Result<OwnedSemaphorePermit, StoreError> {
        match Arc::clone(&self.room).try_acquire_many_owned(weight) {
            Ok(room) => return Ok(room),
            Err(TryAcquireError::Closed) => return Err(StoreError::Closed),
            Err(TryAcquireError::NoPermits) => {}
        }
        match tokio::time::timeout(self.patience, Arc::clone(&self.room).acquire_many_owned(weight)).await {
            Ok(room) => room.map_err(|_| StoreError::Closed),
            Err(_) => Err(StoreError::Overloaded { waiting: self.state.lock().jobs.len() }),
        }
    }

    /// Waits for the next job; `None` once the queue is closed and empty.
    pub(super) fn pop(&self) -> Option<Queued<J>> {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            if state.closed {
                return None;
            }
            self.filled.wait(&mut state);
        }
    }

    /// Waits for a job and takes with it all that wait behind it, up to `max_weight` together. Empty once the queue is
    /// closed and empty.
    pub(super) fn pop_group(&self, max_weight: u32) -> Vec<Queued<J>> {
        let Some(first) = self.pop() else { return Vec::new() };
        let mut weight = first.weight;
        let mut group = vec![first];
        let mut state = self.state.lock();
        while let Some(next) = state.jobs.front() {
            weight += next.weight;
            if weight > max_weight {
                break;
            }
            group.extend(state.jobs.pop_front());
        }
        group
    }

    /// Takes no more jobs; those that wait are still popped.
    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.room.close();
        self.filled.notify_all();
    }

    /// Takes no more jobs and drops those that wait: nobody is left to work on them.
    pub(super) fn abandon(&self) {
        self.close();
        let jobs = std::mem::take(&mut self.state.lock().jobs);
        drop(jobs);
    }
}

/// Abandons the queue when the thread that works on it ends, by a panic too: a caller must not wait for nobody.
pub(super) struct AbandonOnDrop<J>(pub(super) Arc<Queue<J>>);

impl<J> Drop for AbandonOnDrop<J> {
    fn drop(&mut self) {
        self.0.abandon();
    }
}
