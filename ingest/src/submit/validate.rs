//! What may be sent, decided in one place. Pure: the same for a single message and for a line of a bulk request.

use eshaar_model::limits::LISTED_RECIPIENTS;
use eshaar_model::{
    Content, ConversationId, IdError, MessageKindError, MessageType, Phone, Principal, Priority, Timestamp,
};
use eshaar_service::Problem;

use super::Form;
use super::fields::{
    chars, collapse_key, content, idempotency_key, not_text, optional_text, priority, rate, recipient, reference,
    send_at, text, time_to_live, wrong_kind,
};
use super::raw::Raw;
use crate::json::Field;
use crate::options::Markup;
use crate::problems;

/// A message that can be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Submission {
    OneWay(Draft),
    Chat(ChatDraft),
}

/// Whom a chat message is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Party {
    /// In the active conversation with them, which is started where there is none.
    With(Principal),
    /// The other side of this conversation.
    Of(ConversationId),
}

/// A chat message. It has no priority: a conversation has one. Nor is it sent later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ChatDraft {
    pub(crate) party: Party,
    pub(crate) content: Content,
    /// Time to live, in seconds.
    pub(crate) ttl_s: Option<u64>,
    pub(crate) reference: Option<String>,
    pub(crate) collapse_key: Option<String>,
}

impl ChatDraft {
    /// Whether it says itself where it goes: a repeat cannot go elsewhere, so that no answer need be kept for it.
    pub(crate) const fn names_conversation(&self) -> bool {
        matches!(self.party, Party::Of(_))
    }
}

/// A one-way message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Draft {
    pub(crate) to: Phone,
    pub(crate) content: Content,
    pub(crate) priority: Priority,
    /// Time to live, in seconds.
    pub(crate) ttl_s: Option<u64>,
    /// When it is to be sent; at once where that is past, or not said.
    pub(crate) send_at: Option<Timestamp>,
    pub(crate) reference: Option<String>,
    pub(crate) collapse_key: Option<String>,
    /// Of a bulk line.
    pub(crate) idempotency_key: Option<String>,
}

/// What a broadcast says, besides whom it goes to where it lists them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BroadcastDraft {
    pub(crate) content: Content,
    pub(crate) priority: Priority,
    /// Time to live, in seconds.
    pub(crate) ttl_s: Option<u64>,
    pub(crate) reference: Option<String>,
    pub(crate) collapse_key: Option<String>,
    /// Most messages in a second.
    pub(crate) rate: Option<u32>,
    /// `None`: the recipients are listed.
    pub(crate) audience: Option<String>,
}

/// Checks a broadcast; the first thing wrong with it is what is answered.
pub(super) fn validate_broadcast(raw: Raw<'_>, markup: Markup) -> Result<BroadcastDraft, Problem> {
    if let Some(name) = &raw.unknown {
        return Err(problems::unknown_field(name));
    }
    if let Some(name) = raw.repeated {
        return Err(problems::repeated_field(name));
    }
    if raw.idempotency_key != Field::Absent {
        return Err(problems::unknown_field("idempotency_key"));
    }
    if raw.send_at != Field::Absent {
        return Err(problems::unknown_field("send_at"));
    }
    if kind(&raw)? == MessageType::Chat {
        return Err(one_way_only());
    }
    let audience = optional_text("audience", raw.audience)?;
    match (&audience, &raw.to) {
        (Some(_), to) if to.is_none() => {}
        (Some(_), _) => {
            let detail = "give `audience` or `to`, not both";
            return Err(Problem::field("audience", "two_recipients", detail));
        }
        (None, Field::Array(1..=LISTED_RECIPIENTS)) => {}
        (None, Field::Array(count)) => {
            let detail = format!(
                "must list 1 to {LISTED_RECIPIENTS} phones, lists {count}; more of them are an audience to upload"
            );
            return Err(Problem::field("to", "recipients_count", detail));
        }
        (None, Field::Absent | Field::Null) => {
            return Err(Problem::field("to", "missing_field", "is required where there is no `audience`"));
        }
        (None, other) => return Err(wrong_kind("to", "an array of phones", other)),
    }
    Ok(BroadcastDraft {
        content: content(raw.content, markup)?,
        priority: priority(&raw.priority)?,
        ttl_s: time_to_live(&raw.ttl_s)?,
        reference: reference(raw.reference, markup)?,
        collapse_key: collapse_key(raw.collapse_key, markup)?,
        rate: rate(&raw.rate)?,
        audience,
    })
}

/// Checks a submission; the first thing wrong with it is what is answered.
pub(super) fn validate(raw: Raw<'_>, form: Form, markup: Markup, now: Timestamp) -> Result<Submission, Problem> {
    if let Some(name) = &raw.unknown {
        return Err(problems::unknown_field(name));
    }
    if let Some(name) = raw.repeated {
        return Err(problems::repeated_field(name));
    }
    if form == Form::Single && raw.idempotency_key != Field::Absent {
        return Err(problems::unknown_field("idempotency_key"));
    }
    for (name, field) in [("audience", &raw.audience), ("rate", &raw.rate)] {
        if *field != Field::Absent {
            return Err(problems::unknown_field(name));
        }
    }
    match kind(&raw)? {
        MessageType::Chat => chat(raw, markup).map(Submission::Chat),
        MessageType::OneWay => one_way(raw, markup, now).map(Submission::OneWay),
    }
}

fn one_way(raw: Raw<'_>, markup: Markup, now: Timestamp) -> Result<Draft, Problem> {
    Ok(Draft {
        to: recipient(raw.to)?,
        content: content(raw.content, markup)?,
        priority: priority(&raw.priority)?,
        ttl_s: time_to_live(&raw.ttl_s)?,
        send_at: send_at(&raw.send_at, now)?,
        reference: reference(raw.reference, markup)?,
        collapse_key: collapse_key(raw.collapse_key, markup)?,
        idempotency_key: idempotency_key(raw.idempotency_key)?,
    })
}

fn chat(raw: Raw<'_>, markup: Markup) -> Result<ChatDraft, Problem> {
    if priority(&raw.priority)? != Priority::Normal {
        let detail = "a conversation has one priority, `normal`, so that its messages stay in order; leave it out";
        return Err(Problem::field("priority", "chat_priority", detail));
    }
    if !raw.send_at.is_none() {
        return Err(Problem::field("send_at", "chat_not_scheduled", "a chat message is sent at once; leave it out"));
    }
    Ok(ChatDraft {
        party: party(raw.to, raw.conversation_id)?,
        content: content(raw.content, markup)?,
        ttl_s: time_to_live(&raw.ttl_s)?,
        reference: reference(raw.reference, markup)?,
        collapse_key: collapse_key(raw.collapse_key, markup)?,
    })
}

fn party(to: Field<'_>, conversation: Field<'_>) -> Result<Party, Problem> {
    match (to.is_none(), conversation.is_none()) {
        (false, true) => {
            let principal = Principal::parse_valid(&text("to", to)?);
            principal.map(Party::With).map_err(|error| Problem::field("to", "invalid_recipient", error.to_string()))
        }
        (true, false) => {
            let id = text("conversation_id", conversation)?.parse::<ConversationId>();
            let wrong =
                |error: IdError| Problem::field("conversation_id", "invalid_conversation_id", error.to_string());
            id.map(Party::Of).map_err(wrong)
        }
        (false, false) => {
            let detail = "give `to` or `conversation_id`, not both";
            Err(Problem::field("conversation_id", "two_recipients", detail))
        }
        (true, true) => Err(Problem::field("to", "missing_field", "is required where there is no `conversation_id`")),
    }
}

/// What is sent in bulk, and as broadcasts, is one_way.
pub(super) fn one_way_only() -> Problem {
    Problem::field("type", "one_way_only", "must be `one_way` here; chat messages are sent one by one")
}

/// The type of a message, which has a conversation if and only if it is chat; and no attachments yet.
fn kind(raw: &Raw<'_>) -> Result<MessageType, Problem> {
    let kind = match &raw.message_type {
        Field::Absent | Field::Null => MessageType::OneWay,
        Field::Text(text) if text == "one_way" => MessageType::OneWay,
        Field::Text(text) if text == "chat" => MessageType::Chat,
        Field::Text(text) => {
            let detail = format!("must be `one_way` or `chat`, has {} characters that are neither", chars(text));
            return Err(Problem::field("type", "invalid_type", detail));
        }
        other => return Err(not_text("type", other)),
    };
    if kind == MessageType::OneWay && !raw.conversation_id.is_none() {
        let detail = MessageKindError::OneWayInConversation.to_string();
        return Err(Problem::field("conversation_id", "one_way_in_conversation", detail));
    }
    match &raw.media {
        Field::Absent | Field::Null | Field::Array(0) => Ok(kind),
        Field::Array(_) => {
            Err(Problem::field("media", "media_unavailable", "attachments are not available yet; leave it out"))
        }
        other => Err(wrong_kind("media", "an array", other)),
    }
}

#[cfg(test)]
mod tests {
    use eshaar_model::limits::SEND_AHEAD_MS;
    use serde_json::{Value, json};

    use super::*;
    use crate::submit::{Rules, parse, parse_line};

    fn submission(change: &Value) -> Vec<u8> {
        let mut body = json!({ "to": "+966501234567", "type": "one_way", "content": "hello" });
        for (name, value) in change.as_object().unwrap() {
            body[name] = value.clone();
        }
        serde_json::to_vec(&body).unwrap()
    }

    /// 2026-01-01T00:00:00Z.
    const NOW: Timestamp = Timestamp::from_millis(1_767_225_600_000);

    fn check(change: &Value) -> Result<Draft, Problem> {
        parse(&submission(change), Rules::new(16), NOW).map(|submission| match submission {
            Submission::OneWay(draft) => draft,
            Submission::Chat(_) => panic!("a chat message"),
        })
    }

    fn check_chat(change: &Value) -> Result<ChatDraft, Problem> {
        let mut body = json!({ "type": "chat", "content": "hello" });
        for (name, value) in change.as_object().unwrap() {
            body[name] = value.clone();
        }
        parse(&serde_json::to_vec(&body).unwrap(), Rules::new(16), NOW).map(|submission| match submission {
            Submission::Chat(draft) => draft,
            Submission::OneWay(_) => panic!("a one-way message"),
        })
    }

    fn refusal(change: &Value) -> (String, &'static str) {
        let problem = check(change).unwrap_err();
        (problem.field.unwrap_or_default(), problem.code)
    }

    #[test]
    fn a_submission_with_every_field_is_a_draft() {
        let every =
            json!({ "priority": "high", "ttl_s": 60, "reference": "tx-81", "collapse_key": "otp", "media": [] });
        let draft = check(&every).unwrap();
        assert_eq!(draft.to.to_string(), "+966501234567");
        assert_eq!((draft.content.as_str(), draft.priority, draft.ttl_s), ("hello", Priority::High, Some(60)));
        assert_eq!(draft.reference.as_deref(), Some("tx-81"));
        assert_eq!(draft.collapse_key.as_deref(), Some("otp"));
    }

    #[test]
    fn null_is_as_good_as_left_out_where_a_field_is_optional() {
        let nulls = json!({ "type": null, "priority": null, "ttl_s": null, "reference": null, "collapse_key": null,
            "media": null, "send_at": null, "conversation_id": null });
        assert_eq!(check(&nulls), check(&json!({})));
    }

    #[test]
    fn each_limit_has_its_error_that_names_the_field() {
        let long = |length| "x".repeat(length);
        let cases = [
            (json!({ "to": "0501234567" }), "to", "invalid_phone"),
            (json!({ "to": "+9991234567" }), "to", "invalid_phone"),
            (json!({ "to": "+9660501234567" }), "to", "invalid_phone"),
            (json!({ "to": "+460736829291" }), "to", "invalid_phone"),
            (json!({ "to": 966_501_234_567_u64 }), "to", "wrong_type"),
            (json!({ "content": "" }), "content", "content_empty"),
            (json!({ "content": " \t\r\n\u{a0}\u{200b}\u{2800}\u{3164}" }), "content", "content_empty"),
            (json!({ "content": long(10_001) }), "content", "content_too_long"),
            (json!({ "content": "a\u{0}b" }), "content", "content_control_character"),
            (json!({ "content": ["a"] }), "content", "wrong_type"),
            (json!({ "priority": "urgent" }), "priority", "invalid_priority"),
            (json!({ "priority": 1 }), "priority", "wrong_type"),
            (json!({ "ttl_s": 0 }), "ttl_s", "invalid_ttl"),
            (json!({ "ttl_s": -1 }), "ttl_s", "invalid_ttl"),
            (json!({ "ttl_s": 2_592_001 }), "ttl_s", "invalid_ttl"),
            (json!({ "ttl_s": 1.5 }), "ttl_s", "invalid_ttl"),
            (json!({ "ttl_s": 60.5 }), "ttl_s", "invalid_ttl"),
            (json!({ "ttl_s": 1e300 }), "ttl_s", "invalid_ttl"),
            (json!({ "ttl_s": u64::MAX }), "ttl_s", "invalid_ttl"),
            (json!({ "reference": "" }), "reference", "invalid_reference"),
            (json!({ "reference": long(129) }), "reference", "invalid_reference"),
            (json!({ "reference": "a\nb" }), "reference", "invalid_reference"),
            (json!({ "collapse_key": "é".repeat(33) }), "collapse_key", "invalid_collapse_key"),
            (json!({ "type": "sms" }), "type", "invalid_type"),
            (json!({ "type": true }), "type", "wrong_type"),
            (json!({ "conversation_id": "x" }), "conversation_id", "one_way_in_conversation"),
            (json!({ "send_at": "2026-01-31T00:00:00.001Z" }), "send_at", "invalid_send_at"),
            (json!({ "send_at": "2026-01-02T00:00:00" }), "send_at", "invalid_send_at"),
            (json!({ "send_at": "2026-01-02" }), "send_at", "invalid_send_at"),
            (json!({ "send_at": "2026-02-30T00:00:00Z" }), "send_at", "invalid_send_at"),
            (json!({ "send_at": "tomorrow" }), "send_at", "invalid_send_at"),
            (json!({ "send_at": "" }), "send_at", "invalid_send_at"),
            (json!({ "send_at": 1_767_225_600 }), "send_at", "wrong_type"),
            (json!({ "media": [{ "id": "x" }] }), "media", "media_unavailable"),
            (json!({ "media": {} }), "media", "wrong_type"),
            (json!({ "sender": "acme" }), "sender", "unknown_field"),
            (json!({ "idempotency_key": "x" }), "idempotency_key", "unknown_field"),
        ];
        for (change, field, code) in cases {
            assert_eq!(refusal(&change), (field.to_owned(), code), "{change}");
        }
    }

    #[test]
    fn a_chat_message_is_for_the_other_side_or_for_a_conversation() {
        let draft = check_chat(&json!({ "to": "+966501234567", "ttl_s": 5, "reference": "r", "media": [] })).unwrap();
        assert_eq!(draft.party, Party::With("+966501234567".parse().unwrap()));
        assert_eq!((draft.content.as_str(), draft.ttl_s, draft.reference.as_deref()), ("hello", Some(5), Some("r")));
        let draft = check_chat(&json!({ "to": "acme", "priority": "normal" })).unwrap();
        assert_eq!(draft.party, Party::With("acme".parse().unwrap()));
        let id = ConversationId::new(NOW);
        assert_eq!(check_chat(&json!({ "conversation_id": id, "to": null })).unwrap().party, Party::Of(id));
    }

    #[test]
    fn what_a_chat_message_cannot_have_is_named() {
        let id = ConversationId::new(NOW).to_string();
        let cases = [
            (json!({}), "to", "missing_field"),
            (json!({ "to": "acme", "conversation_id": id }), "conversation_id", "two_recipients"),
            (json!({ "to": "No Business" }), "to", "invalid_recipient"),
            (json!({ "to": "+999123" }), "to", "invalid_recipient"),
            (json!({ "to": "+9660501234567" }), "to", "invalid_recipient"),
            (json!({ "to": ["acme"] }), "to", "wrong_type"),
            (json!({ "conversation_id": "x" }), "conversation_id", "invalid_conversation_id"),
            (json!({ "conversation_id": 7 }), "conversation_id", "wrong_type"),
            (json!({ "to": "acme", "priority": "high" }), "priority", "chat_priority"),
            (json!({ "to": "acme", "priority": "urgent" }), "priority", "invalid_priority"),
            (json!({ "to": "acme", "send_at": "2026-01-02T00:00:00Z" }), "send_at", "chat_not_scheduled"),
            (json!({ "to": "acme", "content": "" }), "content", "content_empty"),
            (json!({ "to": "acme", "media": [{ "id": "x" }] }), "media", "media_unavailable"),
        ];
        for (change, field, code) in cases {
            let problem = check_chat(&change).unwrap_err();
            assert_eq!((problem.field.as_deref(), problem.code), (Some(field), code), "{change}");
        }
        let line = submission(&json!({ "type": "chat" }));
        assert_eq!(parse_line(&line, Rules::new(16), NOW).unwrap_err().code, "one_way_only");
    }

    #[test]
    fn a_time_to_send_at_is_the_moment_that_it_names_wherever_it_is_written() {
        for (text, after_ms) in [
            ("2026-01-01T00:00:01Z", 1_000),
            ("2026-01-01T03:00:01+03:00", 1_000),
            ("2025-12-31T23:30:00.5-01:00", 1_800_500),
            ("2026-01-31T00:00:00Z", SEND_AHEAD_MS),
            ("2025-01-01T00:00:00Z", -365 * 24 * 3600 * 1000),
        ] {
            let draft = check(&json!({ "send_at": text })).unwrap();
            assert_eq!(draft.send_at, Some(NOW.plus_millis(after_ms)), "{text}");
        }
    }

    #[test]
    fn an_integer_is_one_however_it_is_spelled() {
        for spelled in ["60", "60.0", "6e1", "6.0E+1", "600e-1"] {
            let body = format!(r#"{{"to": "+966501234567", "content": "a", "ttl_s": {spelled}}}"#);
            let Ok(Submission::OneWay(draft)) = parse(body.as_bytes(), Rules::new(16), NOW) else {
                panic!("{spelled}")
            };
            assert_eq!(draft.ttl_s, Some(60), "{spelled}");
        }
    }

    #[test]
    fn markup_is_refused_in_every_text_where_the_operator_wants_that() {
        let rules = Rules { markup: Markup::Refuse, ..Rules::new(16) };
        for (field, text) in [("content", "<b>a</b>"), ("reference", "x<!--"), ("collapse_key", "</x")] {
            let body = submission(&json!({ field: text }));
            let problem = parse(&body, rules, NOW).unwrap_err();
            assert_eq!((problem.field.as_deref(), problem.code), (Some(field), "content_markup"));
            assert!(parse(&body, Rules::new(16), NOW).is_ok());
        }
        assert!(parse(&submission(&json!({ "content": "1 < 2 &lt;b&gt; <3" })), rules, NOW).is_ok());
    }

    #[test]
    fn the_longest_of_everything_is_accepted() {
        let longest = json!({ "content": "é".repeat(10_000), "reference": "é".repeat(128),
            "collapse_key": "x".repeat(64), "ttl_s": 2_592_000 });
        check(&longest).unwrap();
    }

    #[test]
    fn what_is_missing_or_given_twice_is_named() {
        let problem = parse(b"{}", Rules::new(16), NOW).unwrap_err();
        assert_eq!((problem.field.as_deref(), problem.code), (Some("to"), "missing_field"));
        let twice = br#"{"to": "+966501234567", "content": "a", "content": "b"}"#;
        let problem = parse(twice, Rules::new(16), NOW).unwrap_err();
        assert_eq!((problem.field.as_deref(), problem.code), (Some("content"), "repeated_field"));
    }

    #[test]
    fn no_error_says_what_was_sent() {
        for body in [
            r#"{"to": "SECRET", "content": "SECRET"}"#,
            r#"{"to": "+966501234567", "content": "a", "type": "SECRET"}"#,
            r#"{"to": "+966501234567", "content": "a", "priority": "SECRET"}"#,
            r#"{"to": "+966501234567", "content": "a", "media": "SECRET"}"#,
            r#"{"to": "+966501234567", "content": "a", "send_at": "SECRET"}"#,
            r#""SECRET""#,
            r#"["SECRET"]"#,
            r#"{"to": "SECRET"#,
            r#"{"to": SECRET}"#,
        ] {
            let problem = parse(body.as_bytes(), Rules::new(16), NOW).unwrap_err();
            assert!(!format!("{problem:?}").contains("SECRET"), "{problem:?}");
        }
    }

    #[test]
    fn a_name_with_escapes_is_the_field_it_spells() {
        let draft = parse_line(br#"{"t\u006f": "+966501234567", "content": "a\"b"}"#, Rules::new(16), NOW).unwrap();
        assert_eq!(draft.content.as_str(), "a\"b");
    }

    #[test]
    fn a_line_may_have_its_own_idempotency_key() {
        let draft = parse_line(&submission(&json!({ "idempotency_key": "k-1" })), Rules::new(16), NOW).unwrap();
        assert_eq!(draft.idempotency_key.as_deref(), Some("k-1"));
        let problem = parse_line(&submission(&json!({ "idempotency_key": "a b" })), Rules::new(16), NOW).unwrap_err();
        assert_eq!(problem.code, "invalid_idempotency_key");
    }
}
