//! The gateway's slot: the partition of `deliveries` that is its address. It is leased in presence, announced while it
//! lives, and read from the end, without a group or commits: what is in it are hints.
//!
//! No socket is taken before that end is known. A gateway that loses its slot closes its sessions and leases another.

use std::sync::Arc;
use std::time::Duration;

use eshaar_model::{ConversationPosition, Epoch, Lane, Phone, Principal, StreamPosition, Timestamp};
use eshaar_presence::{Announced, Node, PresenceError};
use eshaar_schemas::{Delivery, Hint as Told, Message, MessageHint, StatusHint};
use eshaar_topics::{LogError, Reader, Record, Topic};
use tokio_util::sync::CancellationToken;

use crate::StartError;
use crate::close::Close;
use crate::hub::{About, Hint};
use crate::message::{self, Before, Follows, Ready, Said};
use crate::protocol::Reply;
use crate::shared::Shared;
use crate::typing;

/// Most records taken at once.
const BATCH: usize = 512;

/// Wait before reading, or leasing, is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// A slot that is ours, and the reader that stands at its end.
pub(crate) struct Slot {
    node: Node,
    reader: Box<dyn Reader>,
}

/// Leases a slot and finds its end.
pub(crate) async fn lease(shared: &Shared) -> Result<Slot, StartError> {
    let incarnation = rand::random();
    let slots = shared.log.partitions(Topic::Deliveries);
    let options = &shared.options;
    let slot = shared.presence.lease_slot(incarnation, options.slot, slots, &options.address).await?;
    let end = shared.log.bounds(Topic::Deliveries, slot).await?.end;
    let reader = shared.log.read(Topic::Deliveries, slot, end).await?;
    let node = Node { slot, incarnation, address: options.address.clone() };
    tracing::info!(slot, offset = end, "leased a slot; reading its deliveries");
    shared.set_node(Some(node.clone()));
    Ok(Slot { node, reader })
}

/// Serves the slot, and another one when it is lost, until `shutdown`.
pub(crate) async fn run(shared: Arc<Shared>, mut slot: Slot, shutdown: CancellationToken) {
    loop {
        let node = slot.node.clone();
        tokio::select! {
            () = announce(&shared, &node) => {}
            () = read(&shared, &mut slot) => {}
            () = typing::listen(&shared, node.slot) => {}
            () = shutdown.cancelled() => return,
        }
        tracing::warn!(slot = node.slot, "the gateway lost its slot to another; its sessions go elsewhere");
        shared.set_node(None);
        shared.hub.close_all(Close::PresenceLost);
        slot = loop {
            let leased = tokio::select! {
                leased = lease(&shared) => leased,
                () = shutdown.cancelled() => return,
            };
            match leased {
                Ok(slot) => break slot,
                Err(error) => tracing::warn!(%error, "no slot yet; trying again"),
            }
            tokio::time::sleep(RETRY).await;
        };
    }
}

/// Says that the node lives, until the slot has another owner. An announcement that fails, or is late, changes nothing by itself.
/// Where presence had forgotten the node, or looked for it while it had lapsed, hints for any session may have gone nowhere:
/// all are entered again, and then read their streams.
async fn announce(shared: &Shared, node: &Node) {
    let every = Duration::from_secs(shared.options.announce_every_s);
    let (mut known, mut impaired) = (None, false);
    loop {
        match shared.presence.announce(node).await {
            Ok(Announced::Live { since }) => {
                if std::mem::take(&mut impaired) {
                    // What is in no stream is not sent while presence does not answer.
                    shared.hub.each(|handle| handle.miss());
                }
                if known.replace(since).is_some_and(|known| known != since) {
                    tracing::warn!(slot = node.slot, "presence had lost the gateway; every session is entered again");
                    shared.enter_all_again();
                }
                tokio::time::sleep(every).await;
            }
            Ok(Announced::Lost) => return,
            Err(error) => {
                impaired = true;
                tracing::warn!(%error, "the gateway could not announce itself; trying again");
                tokio::time::sleep(RETRY.min(every)).await;
            }
        }
    }
}

/// Reads the slot for ever. Where it jumps, every session reads its stream.
async fn read(shared: &Shared, slot: &mut Slot) {
    let mut expected = slot.reader.next_offset();
    loop {
        if let Err(error) = slot.reader.ready().await {
            tracing::warn!(%error, slot = slot.node.slot, "the slot cannot be read; trying again");
            tokio::time::sleep(RETRY).await;
            if let Ok(reader) = shared.log.read(Topic::Deliveries, slot.node.slot, slot.reader.next_offset()).await {
                slot.reader = reader;
            }
            continue;
        }
        let records = slot.reader.take(BATCH);
        if records.first().is_some_and(|first| first.position.offset > expected) {
            shared.hub.begin_rescue(shared.ticks());
        }
        expected = records.last().map_or(expected, |last| last.position.offset + 1);
        for record in records {
            deliver(shared, &record).await;
        }
    }
}

/// Hands a hint to the sessions of its principal, decoded once for all of them.
async fn deliver(shared: &Shared, record: &Record) {
    // The key is the principal: most hints for somebody who has left in the meantime cost no more than this.
    let Some(principal) = std::str::from_utf8(&record.key).ok().and_then(principal) else { return };
    let sessions = shared.hub.of(&principal);
    if sessions.is_empty() {
        return;
    }
    let hint = match message::decode::<Delivery>(&shared.codecs, &record.value).await {
        Ok(Delivery { hint: Told::Message(hint), .. }) if hint.in_conversation => {
            said(shared, &hint).await.map(|said| Hint::Said(said.into()))
        }
        Ok(Delivery { hint: Told::Message(hint), .. }) => {
            ready(shared, &hint).await.map(|ready| Hint::Message(ready.into()))
        }
        Ok(Delivery { hint: Told::Status(hint), .. }) => Some(rendered(&hint)),
        Err(error) => {
            tracing::error!(offset = record.position.offset, %error, "a delivery cannot be decoded");
            None
        }
    };
    match &hint {
        Some(Hint::Message(ready)) => shared.typists.has_said(&ready.subject),
        Some(Hint::Said(said)) => shared.typists.has_said(&said.subject),
        _ => {}
    }
    for session in sessions {
        match &hint {
            Some(hint) => session.deliver(hint.clone(), shared.options.hints),
            // Whatever it was, the stream has it.
            None => session.fall_behind(),
        }
    }
}

/// Whose hint it is. The text was written from a principal: a phone's numbering plan is not looked at again.
fn principal(text: &str) -> Option<Principal> {
    match text.strip_prefix('+') {
        Some(digits) => digits.parse().ok().and_then(Phone::from_digits).map(Principal::Phone),
        None => text.parse().ok(),
    }
}

async fn ready(shared: &Shared, hint: &MessageHint) -> Option<Ready> {
    let position = StreamPosition {
        epoch: Epoch(u32::try_from(hint.epoch).ok()?),
        lane: Lane::from_index(usize::try_from(hint.lane).ok()?)?,
        offset: u64::try_from(hint.offset).ok()?,
    };
    let before = match hint.prev {
        None => Before::Unknown,
        Some(offset) => u64::try_from(offset).map_or(Before::Nothing, Before::Offset),
    };
    message_of(shared, hint).await.map(|message| Ready::new(message, position, before))
}

async fn said(shared: &Shared, hint: &MessageHint) -> Option<Said> {
    let epoch = Epoch(u32::try_from(hint.epoch).ok()?);
    let position = ConversationPosition { epoch, offset: u64::try_from(hint.offset).ok()? };
    let follows = match hint.prev {
        None => Follows::Unknown,
        Some(offset) => {
            u64::try_from(offset).map_or(Follows::Nothing, |offset| Follows::At(ConversationPosition { epoch, offset }))
        }
    };
    message_of(shared, hint).await.map(|message| Said::new(message, position, follows))
}

async fn message_of(shared: &Shared, hint: &MessageHint) -> Option<Message> {
    let message = message::decode::<Message>(&shared.codecs, &hint.message).await;
    message
        .inspect_err(|error| tracing::error!(offset = hint.offset, %error, "the message of a hint cannot be decoded"))
        .ok()
}

fn rendered(hint: &StatusHint) -> Hint {
    let mut json = Vec::with_capacity(128);
    let at = Timestamp::from_millis(hint.at);
    let about = match &hint.conversation {
        None => {
            Reply::Status { id: hint.id, status: &hint.status, at }.render(&mut json);
            if hint.of_chat { About::Chat } else { About::OneWay }
        }
        Some(told) => {
            let (with, by, up_to) = (told.with.as_str(), told.by.as_str(), told.up_to.as_deref());
            Reply::Conversation { conversation_id: hint.id, change: &hint.status, with, by, at, up_to }
                .render(&mut json);
            About::Conversation
        }
    };
    Hint::Frame(about, json.into())
}

impl From<PresenceError> for StartError {
    fn from(error: PresenceError) -> Self {
        Self::Presence(error)
    }
}

impl From<LogError> for StartError {
    fn from(error: LogError) -> Self {
        Self::Log(error)
    }
}
