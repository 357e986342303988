//! Fingerprints of requests with an Idempotency-Key: SHA-256 of the meaning of a request, however its JSON is spelled.
//!
//! The canonical form (version 1) is the kind of the request, a zero byte, and then each field that says something, in the
//! order of its tag: the tag (1 byte), the length of the value (8 bytes, big-endian), the value. A field that is absent or
//! null is left out, and a default is written as if it had been given. Text is UTF-8, numbers are decimal text, times are
//! milliseconds since the Unix epoch, phones are E.164. Recipients of a broadcast are a set: sorted, each once. Tags are
//! never reused: a field that is added later gets a new one, so that fingerprints of requests without it stay the same.

use eshaar_model::{Phone, Priority, Timestamp};
use sha2::{Digest as _, Sha256};

use super::{BroadcastDraft, ChatDraft, Draft, Party, Submission};

/// Identifies a field. The order is that of the canonical form.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Tag {
    To = 1,
    Conversation = 2,
    Audience = 3,
    Content = 4,
    Priority = 5,
    Ttl = 6,
    SendAt = 7,
    Reference = 8,
    CollapseKey = 9,
    Rate = 10,
}

struct Canonical(Sha256);

impl Canonical {
    fn new(kind: &str) -> Self {
        Self(Sha256::new().chain_update(kind).chain_update([0]))
    }

    fn put(mut self, tag: Tag, value: &[u8]) -> Self {
        self.0.update([tag as u8]);
        self.0.update((value.len() as u64).to_be_bytes());
        self.0.update(value);
        self
    }

    fn text(self, tag: Tag, value: Option<&str>) -> Self {
        match value {
            Some(text) => self.put(tag, text.as_bytes()),
            None => self,
        }
    }

    fn number(self, tag: Tag, value: Option<u64>) -> Self {
        self.text(tag, value.map(|number| number.to_string()).as_deref())
    }

    fn time(self, tag: Tag, value: Option<Timestamp>) -> Self {
        self.text(tag, value.map(|time| time.as_millis().to_string()).as_deref())
    }

    fn end(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

const fn name(priority: Priority) -> &'static str {
    match priority {
        Priority::High => "high",
        Priority::Normal => "normal",
        Priority::Low => "low",
    }
}

/// The meaning of a one-way message. Its own Idempotency-Key, where it is a line with one, is no part of it.
pub(crate) fn of_one_way(kind: &str, draft: &Draft) -> [u8; 32] {
    Canonical::new(kind)
        .text(Tag::To, Some(&draft.to.to_string()))
        .text(Tag::Content, Some(draft.content.as_str()))
        .text(Tag::Priority, Some(name(draft.priority)))
        .number(Tag::Ttl, draft.ttl_s)
        .time(Tag::SendAt, draft.send_at)
        .text(Tag::Reference, draft.reference.as_deref())
        .text(Tag::CollapseKey, draft.collapse_key.as_deref())
        .end()
}

/// The meaning of a chat message.
pub(crate) fn of_chat(kind: &str, draft: &ChatDraft) -> [u8; 32] {
    let (to, conversation) = match &draft.party {
        Party::With(other) => (Some(other.to_string()), None),
        Party::Of(conversation) => (None, Some(conversation.to_string())),
    };
    Canonical::new(kind)
        .text(Tag::To, to.as_deref())
        .text(Tag::Conversation, conversation.as_deref())
        .text(Tag::Content, Some(draft.content.as_str()))
        .number(Tag::Ttl, draft.ttl_s)
        .text(Tag::Reference, draft.reference.as_deref())
        .text(Tag::CollapseKey, draft.collapse_key.as_deref())
        .end()
}

/// The meaning of a message of either type.
pub(crate) fn of_submission(kind: &str, submission: &Submission) -> [u8; 32] {
    match submission {
        Submission::OneWay(draft) => of_one_way(&format!("{kind} one_way"), draft),
        Submission::Chat(draft) => of_chat(&format!("{kind} chat"), draft),
    }
}

/// The meaning of a broadcast; `listed` are its recipients where it lists them.
pub(crate) fn of_broadcast(kind: &str, draft: &BroadcastDraft, listed: &[Phone]) -> [u8; 32] {
    let mut listed = listed.to_vec();
    listed.sort_unstable();
    listed.dedup();
    let to: Vec<u8> = listed.iter().flat_map(|phone| phone.digits().to_be_bytes()).collect();
    let canonical = Canonical::new(kind);
    let canonical = if draft.audience.is_some() { canonical } else { canonical.put(Tag::To, &to) };
    canonical
        .text(Tag::Audience, draft.audience.as_deref())
        .text(Tag::Content, Some(draft.content.as_str()))
        .text(Tag::Priority, Some(name(draft.priority)))
        .number(Tag::Ttl, draft.ttl_s)
        .text(Tag::Reference, draft.reference.as_deref())
        .text(Tag::CollapseKey, draft.collapse_key.as_deref())
        .number(Tag::Rate, draft.rate.map(u64::from))
        .end()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::submit::{Rules, parse, parse_line};

    const NOW: Timestamp = Timestamp::from_millis(1_767_225_600_000);

    fn meaning(json: &str) -> [u8; 32] {
        of_submission("test", &parse(json.as_bytes(), Rules::new(16), NOW).unwrap())
    }

    #[test]
    fn one_meaning_has_one_fingerprint_however_it_is_spelled() {
        let first = r#"{"to":"+966501234567","content":"a/é🎉","ttl_s":60,"send_at":"2026-01-01T03:00:00+03:00"}"#;
        for same in [
            r#" { "content" : "a/é🎉", "ttl_s" : 60, "send_at":"2026-01-01T03:00:00+03:00", "to":"+966501234567" } "#,
            r#"{"to":"\u002b966501234567","content":"a\/\u00e9\ud83c\udf89","ttl_s":60.0,"send_at":"2026-01-01T00:00:00Z"}"#,
            r#"{"to":"+966501234567","type":"one_way","content":"a/é🎉","ttl_s":6e1,"send_at":"2026-01-01T00:00:00.000Z"}"#,
            r#"{"to":"+966501234567","content":"a/é🎉","ttl_s":60,"send_at":"2026-01-01T00:00:00Z","priority":"normal",
                "reference":null,"collapse_key":null,"media":[],"type":null,"conversation_id":null}"#,
        ] {
            assert_eq!(meaning(same), meaning(first), "{same}");
        }
    }

    #[test]
    fn another_meaning_has_another_fingerprint() {
        let all = [
            r#"{"to":"+966501234567","content":"a"}"#,
            r#"{"to":"+966501234568","content":"a"}"#,
            r#"{"to":"+966501234567","content":"b"}"#,
            r#"{"to":"+966501234567","content":"a "}"#,
            r#"{"to":"+966501234567","content":"a","ttl_s":60}"#,
            r#"{"to":"+966501234567","content":"a","ttl_s":600}"#,
            r#"{"to":"+966501234567","content":"a","priority":"low"}"#,
            r#"{"to":"+966501234567","content":"a","reference":"a"}"#,
            r#"{"to":"+966501234567","content":"a","collapse_key":"a"}"#,
            r#"{"to":"+966501234567","content":"a","send_at":"2026-01-01T00:00:00Z"}"#,
            r#"{"to":"+966501234567","type":"chat","content":"a"}"#,
            r#"{"conversation_id":"019b7600-0000-7000-8000-000000000000","type":"chat","content":"a"}"#,
        ];
        for (place, one) in all.iter().enumerate() {
            for other in &all[place + 1..] {
                assert_ne!(meaning(one), meaning(other), "{one} {other}");
            }
        }
    }

    /// What is stored for 24 hours must be found again by a later version.
    #[test]
    fn the_canonical_form_is_what_it_was() {
        let line = r#"{"to":"+966501234567","content":"hi","ttl_s":60,"reference":"r","idempotency_key":"k"}"#;
        let draft = parse_line(line.as_bytes(), Rules::new(16), NOW).unwrap();
        let spelled = [
            &b"kind\0"[..],
            b"\x01\0\0\0\0\0\0\0\x0d+966501234567",
            b"\x04\0\0\0\0\0\0\0\x02hi",
            b"\x05\0\0\0\0\0\0\0\x06normal",
            b"\x06\0\0\0\0\0\0\0\x0260",
            b"\x08\0\0\0\0\0\0\0\x01r",
        ];
        let expected: [u8; 32] = Sha256::digest(spelled.concat()).into();
        assert_eq!(of_one_way("kind", &draft), expected);
    }
}
