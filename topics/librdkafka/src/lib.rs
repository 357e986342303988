//! What librdkafka can do and rdkafka does not offer: one call, in a crate of its own, so that all others forbid `unsafe`. The
//! crate's build script mends a fault of librdkafka on the way (docs/adr/0017).

#[cfg(test)]
mod tests;

use std::ffi::CStr;

use rdkafka::bindings::rd_kafka_brokers_add;
use rdkafka::client::{Client, ClientContext};

/// Tells a client of brokers, `host:port` separated by commas, that it does not know or has let go of. What it already does
/// with brokers that it has goes on. Returns how many it took: those that could be read.
#[must_use = "none taken means that the list cannot be read"]
pub fn add_brokers<C: ClientContext>(client: &Client<C>, brokers: &CStr) -> usize {
    #[expect(unsafe_code, reason = "rdkafka does not wrap this call")]
    // SAFETY: the pointer is the client's own, which is borrowed for the whole call; the list ends with a zero byte and is
    // only read, and copied. librdkafka lets any thread call this at any time.
    let taken = unsafe { rd_kafka_brokers_add(client.native_ptr(), brokers.as_ptr()) };
    usize::try_from(taken).unwrap_or(0)
}
