//! Mails to the administrators how many records were given up on: one digest an interval, with counts and no content
//! (R4.4).
//!
//! Of all processes one sends: who holds the task `digest`. What has been told of is kept with the task as offsets of
//! `dead-letters`, and moves on only when the mail server has taken the mail; so no letter goes uncounted while the server,
//! or all of us, are down, and at worst a digest comes twice. It reads the topic by itself: the stage waits for nothing.

mod counts;
mod mail;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use eshaar_model::{Clock, Secret, Timestamp};
use eshaar_schemas::{Codecs, DeadLetter};
use eshaar_service::metrics::DIGESTS;
use eshaar_store::{Holder, Lease, Store, StoreError, Task};
use eshaar_topics::{Log, LogError, Record, Topic};
use metrics::counter;
use serde::{Deserialize, Serialize};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use self::counts::Counts;
use self::mail::{MailError, Mailer};
use crate::decode;

/// Kind and id of the task.
const TASK: &str = "digest";

/// How long the task is held without being saved: longer than one digest takes.
const LEASE_MS: i64 = 120_000;

/// Longest time between two looks at whether a digest is due.
const LOOK_EVERY: Duration = Duration::from_secs(15);

/// Most letters that one digest counts; the next one goes on there.
const MOST_LETTERS: u64 = 100_000;

/// Records read at once, and how long the log may take to give the next.
const PAGE: usize = 500;
const READ_LIMIT: Duration = Duration::from_secs(10);

/// Whom digests go to, and how.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Mail addresses of the administrators. Empty: no digests.
    pub to: Vec<String>,
    /// Who it is from.
    pub from: String,
    /// At most one digest in so many seconds; at least 1.
    pub interval_s: u64,
    /// The mail server.
    pub smtp: Smtp,
}

impl Default for Options {
    fn default() -> Self {
        Self { to: Vec::new(), from: "eshaar <eshaar@localhost>".to_owned(), interval_s: 300, smtp: Smtp::default() }
    }
}

/// The mail server.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Smtp {
    /// Its name.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// How the connection is encrypted.
    pub tls: Tls,
    /// Authorities that are trusted (PEM). Unset: the system's.
    pub ca_file: Option<PathBuf>,
    /// Who we are; empty where the server does not ask.
    pub username: String,
    /// The password; better in a file.
    pub password: Secret,
    /// A file that holds the password, in place of `password`.
    pub password_file: Option<PathBuf>,
    /// How long it may take to answer a command, in seconds.
    pub timeout_s: u64,
}

impl Default for Smtp {
    fn default() -> Self {
        Self {
            host: "localhost".to_owned(),
            port: 587,
            tls: Tls::Starttls,
            ca_file: None,
            username: String::new(),
            password: Secret::default(),
            password_file: None,
            timeout_s: 20,
        }
    }
}

/// How a connection to the mail server is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tls {
    /// Not at all: for a server on the same machine.
    None,
    /// By STARTTLS, or not at all used.
    Starttls,
    /// From the first byte on.
    Tls,
}

/// What digests rest on.
#[derive(Clone)]
pub struct Ports {
    /// Where letters are counted.
    pub log: Arc<dyn Log>,
    /// Where the task is.
    pub store: Store,
    /// How letters are read.
    pub codecs: Codecs,
    /// The present.
    pub clock: Clock,
}

/// What has been told of, as it is kept with the task.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Told {
    /// The log's life that the offsets belong to.
    epoch: u32,
    /// Of each partition the first offset that was not told of.
    offsets: Vec<u64>,
    /// When it was told, or there was nothing to tell.
    at: Timestamp,
}

/// A digest did not go out; the next look tries again.
#[derive(Debug, thiserror::Error)]
enum DigestError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("partition {0} of dead-letters gave no record in time")]
    Slow(u32),
    #[error("its task holds something else: {0}")]
    Task(#[from] serde_json::Error),
    #[error(transparent)]
    Mail(#[from] MailError),
    #[error("another process has taken it over")]
    TakenOver,
}

/// Sends digests until `shutdown`; returns at once where nobody is to get them.
pub async fn run(ports: Ports, options: Options, shutdown: CancellationToken) {
    if options.to.is_empty() {
        return;
    }
    let every = Duration::from_secs(options.interval_s.max(1));
    let digest = match Mailer::new(&options).await {
        Ok(mailer) => Digest { ports, mailer, holder: Holder::new(), every },
        Err(error) => return tracing::error!(%error, "no digests of dead letters will be sent"),
    };
    let mut looks = interval(every.min(LOOK_EVERY));
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            _ = looks.tick() => {}
        }
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            sent = digest.look() => match sent {
                Ok(0) => {}
                Ok(letters) => {
                    counter!(DIGESTS, "outcome" => "sent").increment(1);
                    tracing::info!(letters, "sent a digest of dead letters");
                }
                Err(error) => {
                    counter!(DIGESTS, "outcome" => "failed").increment(1);
                    tracing::warn!(%error, "a digest of dead letters was not sent; trying again");
                }
            },
        }
    }
}

/// One who sends digests.
struct Digest {
    ports: Ports,
    mailer: Mailer,
    holder: Holder,
    every: Duration,
}

impl Digest {
    /// Sends a digest if one is due and nobody else is at it; returns how many letters it tells of.
    async fn look(&self) -> Result<u64, DigestError> {
        let now = self.ports.clock.now();
        let tasks = &self.ports.store.tasks;
        let lease = Lease { holder: self.holder, now, until: now.plus_millis(LEASE_MS) };
        let mut taken = tasks.take(TASK, TASK, lease).await?;
        if taken.is_none() {
            let first = serde_json::to_vec(&Told::default())?.into();
            let (kind, id) = (TASK.to_owned(), TASK.to_owned());
            tasks.make(Task { kind, id, made_at: now, progress: first, finished: false }).await?;
            taken = tasks.take(TASK, TASK, lease).await?;
        }
        let Some(task) = taken else { return Ok(0) };
        let told: Told = serde_json::from_slice(&task.progress)?;
        let sent = self.send(&told, now).await;
        // Whatever came of it, the next look need not wait for the lease to lapse.
        let progress = match &sent {
            Ok(Some((told, _))) => serde_json::to_vec(told)?.into(),
            Ok(None) | Err(_) => task.progress.clone(),
        };
        if !tasks.save(Task { progress, ..task }, self.holder, None).await? {
            return Err(DigestError::TakenOver);
        }
        Ok(sent?.map_or(0, |(_, letters)| letters))
    }

    /// Sends a digest of what was not told of; `None` where none is due.
    async fn send(&self, told: &Told, now: Timestamp) -> Result<Option<(Told, u64)>, DigestError> {
        if now.millis_since(told.at) < self.every.as_millis() as i64 {
            return Ok(None);
        }
        let (offsets, counts) = self.count(told).await?;
        if counts.total() > 0 {
            self.mailer.send(&counts).await?;
        }
        Ok(Some((Told { epoch: self.ports.log.epoch().0, offsets, at: now }, counts.total())))
    }

    /// Counts what stands behind what was told of.
    async fn count(&self, told: &Told) -> Result<(Vec<u64>, Counts), DigestError> {
        let log = &self.ports.log;
        let (mut counts, mut offsets) = (Counts::default(), Vec::new());
        for partition in 0..log.partitions(Topic::DeadLetters) {
            let bounds = log.bounds(Topic::DeadLetters, partition).await?;
            let known = told.offsets.get(partition as usize).filter(|_| told.epoch == log.epoch().0);
            let mut next = known.map_or(bounds.start, |offset| (*offset).max(bounds.start)).min(bounds.end);
            if next < bounds.end {
                let mut reader = log.read(Topic::DeadLetters, partition, next).await?;
                while next < bounds.end && counts.total() < MOST_LETTERS {
                    timeout(READ_LIMIT, reader.ready()).await.map_err(|_| DigestError::Slow(partition))??;
                    for record in reader.take(PAGE).into_iter().filter(|record| record.position.offset < bounds.end) {
                        self.count_one(&record, &mut counts).await;
                    }
                    next = reader.next_offset().min(bounds.end);
                }
            }
            offsets.push(next);
        }
        Ok((offsets, counts))
    }

    async fn count_one(&self, record: &Record, counts: &mut Counts) {
        let business = record.headers.text(eshaar_topics::headers::FROM).filter(|from| !from.starts_with('+'));
        match decode::<DeadLetter>(&self.ports.codecs, &record.value).await {
            Ok(letter) => counts.add(&letter.stage, &letter.code, business, Timestamp::from_millis(letter.at)),
            Err(_) => counts.add("?", "undecodable", business, record.timestamp),
        }
    }
}
