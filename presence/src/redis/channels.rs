//! Who listens to what, in this process. Redis pushes what is published over the one connection; here it is handed on.

use ahash::AHashMap;
use bytes::Bytes;
use parking_lot::Mutex;
use redis::{PushInfo, PushKind, Value};
use tokio::sync::broadcast;

/// What a listener may fall behind before it loses the oldest.
const CAPACITY: usize = 1024;

/// The channels that are listened to, by their names in Redis.
#[derive(Default)]
pub(super) struct Channels {
    senders: Mutex<AHashMap<String, broadcast::Sender<Bytes>>>,
}

impl Channels {
    /// Another listener of a channel that is listened to already.
    pub(super) fn join(&self, channel: &str) -> Option<broadcast::Receiver<Bytes>> {
        self.senders.lock().get(channel).map(broadcast::Sender::subscribe)
    }

    /// The first listener of a channel.
    pub(super) fn add(&self, channel: &str) -> broadcast::Receiver<Bytes> {
        let (sender, receiver) = broadcast::channel(CAPACITY);
        self.senders.lock().insert(channel.to_owned(), sender);
        receiver
    }

    pub(super) fn remove(&self, channel: &str) {
        self.senders.lock().remove(channel);
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.senders.lock().keys().cloned().collect()
    }

    /// Lets go of the channels that nobody listens to any more, and returns them.
    pub(super) fn take_deserted(&self) -> Vec<String> {
        let mut senders = self.senders.lock();
        senders.extract_if(|_, sender| sender.receiver_count() == 0).map(|(name, _)| name).collect()
    }

    /// Hands on what Redis pushed, if it was published.
    pub(super) fn hand_on(&self, push: PushInfo) {
        let PushInfo { kind: PushKind::Message, data } = push else { return };
        let Ok([Value::BulkString(channel), Value::BulkString(payload)]) = <[Value; 2]>::try_from(data) else { return };
        let Ok(channel) = std::str::from_utf8(&channel) else { return };
        if let Some(sender) = self.senders.lock().get(channel) {
            // Sending fails only where nobody listens any more: the channel is given up soon.
            let _ = sender.send(Bytes::from(payload));
        }
    }
}
