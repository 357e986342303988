//! The Rust types and the `.avsc` files, held together by an independent implementation of Avro (apache-avro): what ours
//! writes it reads field for field, and the reverse; and how versions of a contract live side by side.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::types::Value;
use apache_avro::writer::datum::GenericDatumWriter;
use bytes::Bytes;
use eshaar_model::{MessageId, MessageType, Priority, Status};
use eshaar_schemas::records::CONTRACTS;
use eshaar_schemas::registry::embedded::EmbeddedRegistry;
use eshaar_schemas::{
    Broadcast, Cancellation, Change, Codecs, Contract, ConversationChanged, ConversationHint, DeadLetter, DecodeError,
    Delivery, Hint, Media, Message, MessageHint, Registry, RegistryError, StatusChanged, StatusHint, schema_id,
};
use proptest::prelude::*;

use super::values::{AsValue, optional, text};

const PREFIX: usize = 5;

fn registry() -> Arc<EmbeddedRegistry> {
    Arc::new(EmbeddedRegistry::open(std::path::Path::new(":memory:")).unwrap())
}

async fn codecs() -> Codecs {
    let subjects: Vec<_> = CONTRACTS.iter().map(|(name, _)| (format!("{name}-value"), *name)).collect();
    Codecs::register(registry(), &subjects).await.unwrap()
}

fn id() -> MessageId {
    "0199c82c-c07b-700d-80b0-a879c8549d2a".parse().unwrap()
}

fn full_message() -> Message {
    Message {
        id: id(),
        r#type: MessageType::Chat,
        conversation_id: Some(id().to_string()),
        sender: "bank".into(),
        recipient: "+966500000001".into(),
        content: "رمزك 4711".into(),
        content_ciphertext: Some(Bytes::from_static(&[0, 255, 128])),
        content_key_id: Some("key-7".into()),
        media: vec![
            Media { id: "m1".into(), content_type: "image/jpeg".into(), size_bytes: 1 << 33, file_name: None },
            Media { id: "m2".into(), content_type: "a/b".into(), size_bytes: 0, file_name: Some("ملف.pdf".into()) },
        ],
        priority: Priority::Low,
        created_at: 1_760_000_000_123,
        expires_at: Some(1_760_000_100_000),
        reference: Some("order-1".into()),
        collapse_key: Some("otp".into()),
        correlation_id: "c-1".into(),
        broadcast_id: Some("b-1".into()),
    }
}

fn bare_message() -> Message {
    Message {
        conversation_id: None,
        content_ciphertext: None,
        content_key_id: None,
        media: Vec::new(),
        expires_at: None,
        reference: None,
        collapse_key: None,
        broadcast_id: None,
        ..full_message()
    }
}

/// Ours to theirs and theirs to ours.
fn holds_together<T: AsValue>(codecs: &Codecs, ours: &T) {
    let schema = apache_avro::Schema::parse_str(T::SCHEMA).unwrap();
    let value = ours.as_value();

    let encoded = codecs.encode(ours).unwrap();
    let mut datum = &encoded[PREFIX..];
    let theirs = GenericDatumReader::builder(&schema).build().unwrap().read_value(&mut datum).unwrap();
    assert_eq!(theirs, value, "{} written by ours", T::NAME);
    assert!(datum.is_empty());

    let mut framed = encoded[..PREFIX].to_vec();
    framed.extend(GenericDatumWriter::builder(&schema).build().unwrap().write_value_to_vec(value).unwrap());
    assert_eq!(codecs.decode::<T>(&framed).unwrap(), *ours, "{} written by theirs", T::NAME);
}

fn deliveries() -> [Delivery; 5] {
    let hint = |prev, in_conversation| {
        Hint::Message(MessageHint {
            epoch: 1,
            lane: 3,
            offset: 1 << 40,
            prev,
            message: Bytes::from_static(&[0, 9, 255]),
            in_conversation,
        })
    };
    let status = |conversation| {
        Hint::Status(StatusHint { id: id(), status: "read".into(), at: 1_760_000_000_999, conversation, of_chat: true })
    };
    let about = |up_to| Some(ConversationHint { with: "bank".into(), by: "+966500000001".into(), up_to });
    let hints = [
        hint(Some(-1), false),
        hint(None, true),
        status(None),
        status(about(None)),
        status(about(Some("AQAH".into()))),
    ];
    hints.map(|hint| Delivery { principal: "+966500000001".into(), hint })
}

fn broadcast(priority: Priority) -> Broadcast {
    Broadcast {
        id: id().to_string().parse().unwrap(),
        sender: "bank".into(),
        audience: Some("cards".into()),
        recipients: id().to_string().parse().unwrap(),
        total: 10_000_000,
        content: "رمزك 4711".into(),
        priority,
        created_at: 1_760_000_000_123,
        expires_at: Some(1_760_000_100_000),
        reference: Some("spring".into()),
        collapse_key: Some("offer".into()),
        rate: Some(500),
        correlation_id: "c-1".into(),
        key_id: Some("k1".into()),
        key_rate: Some("100/min".into()),
    }
}

fn dead_letter() -> DeadLetter {
    DeadLetter {
        stage: "route".into(),
        topic: "lane.high".into(),
        partition: 5,
        offset: 1 << 40,
        key: Bytes::from_static(b"+966500000001"),
        value: Bytes::from_static(&[0, 1, 254, 255]),
        headers: BTreeMap::from([
            ("ce_id".to_owned(), Bytes::from_static(b"x")),
            ("raw".to_owned(), Bytes::from_static(&[200])),
        ]),
        code: "undecodable".into(),
        reason: "cut short".into(),
        attempts: 7,
        at: 1_760_000_000_000,
    }
}

#[tokio::test]
async fn every_field_and_symbol_is_read_alike_by_an_independent_implementation() {
    let codecs = codecs().await;
    for message in [full_message(), bare_message()] {
        for r#type in [MessageType::OneWay, MessageType::Chat] {
            for priority in [Priority::High, Priority::Normal, Priority::Low] {
                holds_together(&codecs, &Message { r#type, priority, ..message.clone() });
            }
        }
    }
    for delivery in &deliveries() {
        holds_together(&codecs, delivery);
    }
    for status in Status::ALL {
        let reason = (status == Status::Failed).then(|| "no_device".to_owned());
        let (sender, recipient) = ("bank".to_owned(), "+966500000001".to_owned());
        holds_together(&codecs, &StatusChanged { id: id(), status, at: 5, sender, recipient, reason });
    }
    holds_together(&codecs, &dead_letter());
    for priority in [Priority::High, Priority::Normal, Priority::Low] {
        let broadcast = broadcast(priority);
        let bare = Broadcast {
            audience: None,
            expires_at: None,
            reference: None,
            collapse_key: None,
            rate: None,
            key_id: None,
            key_rate: None,
            ..broadcast.clone()
        };
        holds_together(&codecs, &broadcast);
        holds_together(&codecs, &bare);
    }
    holds_together(&codecs, &Cancellation { id: id(), sender: "bank".into(), at: 1_760_000_000_000 });
    for change in [Change::Created, Change::TakenUp, Change::Archived, Change::Closed, Change::Read] {
        let up_to = (change == Change::Read).then(|| "AQAH".to_owned());
        let (business, phone) = ("bank".to_owned(), "+966500000001".to_owned());
        let id = id().to_string().parse().unwrap();
        holds_together(&codecs, &ConversationChanged { id, change, at: 5, by: phone.clone(), business, phone, up_to });
    }
}

#[test]
fn every_symbol_of_the_schemas_is_covered_above() {
    let count = |json: &str| json.matches("\"symbols\"").count();
    assert_eq!(
        CONTRACTS.iter().map(|(_, json)| count(json)).sum::<usize>(),
        5,
        "type, priority (twice), status and change"
    );
    let Value::Record(_) = full_message().as_value() else { panic!("a record") };
    assert!(Message::SCHEMA.contains(r#""symbols": ["one_way", "chat"]"#));
    assert!(Message::SCHEMA.contains(r#""symbols": ["high", "normal", "low"]"#));
    let statuses = Status::ALL.map(|status| format!("\"{status}\"")).join(", ");
    assert!(StatusChanged::SCHEMA.contains(&format!(r#""symbols": [{statuses}]"#)));
    assert!(
        ConversationChanged::SCHEMA.contains(r#""symbols": ["created", "taken_up", "archived", "closed", "read"]"#)
    );
}

#[tokio::test]
async fn a_record_begins_with_the_magic_byte_and_its_schemas_id() {
    let codecs = codecs().await;
    let value = codecs.encode(&full_message()).unwrap();
    assert_eq!(value[..PREFIX], [0, 0, 0, 0, 1]);
    assert_eq!(schema_id(&value).unwrap(), 1);
    assert!(matches!(schema_id(&value[..4]), Err(DecodeError::Frame { length: 4 })));
    assert!(matches!(codecs.decode::<Message>(&[1, 0, 0, 0, 1, 0]), Err(DecodeError::Frame { length: 6 })));
    assert!(matches!(codecs.decode::<Message>(&[]), Err(DecodeError::Frame { length: 0 })));
}

#[tokio::test]
async fn damaged_records_are_refused() {
    let codecs = codecs().await;
    let value = codecs.encode(&full_message()).unwrap();
    for cut in PREFIX..value.len() {
        assert!(codecs.decode::<Message>(&value[..cut]).is_err(), "cut to {cut} bytes");
    }
    let longer = [&value[..], &[0]].concat();
    let refused = codecs.decode::<Message>(&longer).unwrap_err().to_string();
    assert!(refused.contains("1 bytes are left over"), "{refused}");
    let other = codecs.encode(&dead_letter()).unwrap();
    let refused = codecs.decode::<Message>(&other).unwrap_err().to_string();
    assert!(refused.contains("it is an eshaar.DeadLetter"), "{refused}");
}

#[tokio::test]
async fn a_contract_under_several_subjects_has_one_id() {
    let registry = registry();
    let subjects = ["messages.accepted-value", "lane.high-value"].map(|subject| (subject.to_owned(), "Message"));
    let codecs = Codecs::register(registry.clone(), &subjects).await.unwrap();
    assert_eq!(schema_id(&codecs.encode(&full_message()).unwrap()).unwrap(), 1);
    assert_eq!(
        registry.uses(1).await.unwrap(),
        [("lane.high-value".to_owned(), 1), ("messages.accepted-value".to_owned(), 1)]
    );
    let refused = codecs.encode(&dead_letter()).unwrap_err();
    assert!(refused.reason.contains("not registered"), "{refused}");
}

/// `schema` with one part replaced, which must be there.
fn changed(schema: &str, from: &str, to: &str) -> String {
    assert!(schema.contains(from), "{from}");
    schema.replace(from, to)
}

#[tokio::test]
async fn incompatible_changes_of_a_contract_are_refused() {
    let registry = registry();
    let subjects = [("m-value".to_owned(), Message::NAME), ("s-value".to_owned(), StatusChanged::NAME)];
    Codecs::register(registry.clone(), &subjects).await.unwrap();
    let message = [
        (
            "a field without a default is removed",
            r#"    {"name": "sender", "type": "string""#,
            r#"    {"name": "other", "type": ["null", "string"], "default": null"#,
        ),
        (
            "a field without a default is added",
            r#"    {"name": "sender""#,
            "    {\"name\": \"new\", \"type\": \"string\"},\n    {\"name\": \"sender\"",
        ),
        ("a type is changed", r#""name": "size_bytes", "type": "long""#, r#""name": "size_bytes", "type": "string""#),
        ("a type is narrowed", r#""name": "size_bytes", "type": "long""#, r#""name": "size_bytes", "type": "int""#),
        ("a symbol is renamed", r#""high", "normal""#, r#""urgent", "normal""#),
        ("a symbol is added", r#""high", "normal""#, r#""urgent", "high", "normal""#),
        (
            "a default is removed",
            r#""name": "reference", "type": ["null", "string"], "default": null"#,
            r#""name": "reference", "type": "string""#,
        ),
        ("the record is renamed", r#""name": "Message","#, r#""name": "Letter","#),
    ];
    for (what, from, to) in message {
        let refused = registry.register("m-value", &changed(Message::SCHEMA, from, to)).await;
        assert!(matches!(refused, Err(RegistryError::Incompatible { .. })), "{what}: {refused:?}");
    }
    let refused = registry.register("s-value", &changed(StatusChanged::SCHEMA, r#", "read"]"#, "]")).await;
    assert!(matches!(refused, Err(RegistryError::Incompatible { .. })), "{refused:?}");
}

/// Message as a later version might be: one field more, one (optional) field less.
fn next_version() -> String {
    let more = changed(
        Message::SCHEMA,
        r#"    {"name": "sender""#,
        "    {\"name\": \"thread\", \"type\": [\"null\", \"string\"], \"default\": null},\n    {\"name\": \"sender\"",
    );
    changed(&more, r#"    {"name": "content_key_id", "type": ["null", "string"], "default": null},"#, "")
}

#[tokio::test]
async fn a_later_writers_record_is_read_once_its_schema_is_learned() {
    let registry = registry();
    let subjects = [("m-value".to_owned(), Message::NAME)];
    let codecs = Codecs::register(registry.clone(), &subjects).await.unwrap();
    let later = registry.register("m-value", &next_version()).await.unwrap();

    let schema = apache_avro::Schema::parse_str(&next_version()).unwrap();
    let Value::Record(mut fields) = full_message().as_value() else { panic!("a record") };
    fields.retain(|(name, _)| name != "content_key_id");
    fields.insert(3, ("thread".to_owned(), optional(Some(text("t-1")))));
    let mut value = vec![0];
    value.extend(later.to_be_bytes());
    let datum =
        GenericDatumWriter::builder(&schema).build().unwrap().write_value_to_vec(Value::Record(fields)).unwrap();
    value.extend(datum);

    assert!(matches!(codecs.decode::<Message>(&value), Err(DecodeError::UnknownSchema(id)) if id == later));
    codecs.learn(later).await.unwrap();
    let expected = Message { content_key_id: None, ..full_message() };
    assert_eq!(codecs.decode::<Message>(&value).unwrap(), expected);
    let unknown = codecs.learn(99).await;
    assert!(matches!(unknown, Err(RegistryError::NotFound { .. })), "{unknown:?}");
}

#[tokio::test]
async fn a_later_reader_reads_what_this_version_writes() {
    let codecs = codecs().await;
    let ours = apache_avro::Schema::parse_str(Message::SCHEMA).unwrap();
    let later = apache_avro::Schema::parse_str(&next_version()).unwrap();
    let encoded = codecs.encode(&full_message()).unwrap();
    let reader = GenericDatumReader::builder(&ours).reader_schema(&later).build().unwrap();
    let Value::Record(fields) = reader.read_value(&mut &encoded[PREFIX..]).unwrap() else { panic!("a record") };
    let fields: HashMap<_, _> = fields.into_iter().collect();
    assert_eq!(fields["thread"], optional(None));
    assert_eq!(fields["sender"], text("bank"));
    assert!(!fields.contains_key("content_key_id"));
}

#[tokio::test]
async fn any_record_can_be_shown_as_json() {
    let codecs = codecs().await;
    let shown = codecs.decode_json(&codecs.encode(&full_message()).unwrap()).unwrap();
    assert_eq!(shown["content"], "رمزك 4711");
    assert_eq!(shown["type"], "chat");
    assert_eq!(shown["content_ciphertext"], "AP+A");
    assert_eq!(shown["media"][0]["size_bytes"], 1_i64 << 33);
    let shown = codecs.decode_json(&codecs.encode(&dead_letter()).unwrap()).unwrap();
    assert_eq!((&shown["key"], &shown["headers"]["ce_id"]), (&"+966500000001".into(), &"x".into()));
    let shown = codecs.decode_json(&codecs.encode(&deliveries()[2]).unwrap()).unwrap();
    assert_eq!(shown["hint"]["status"], "read");
}

fn any_message() -> impl Strategy<Value = Message> {
    let media = (".*", ".*", any::<i64>(), any::<Option<String>>())
        .prop_map(|(id, content_type, size_bytes, file_name)| Media { id, content_type, size_bytes, file_name });
    let texts = (".*", ".*", ".*", ".*", any::<Option<String>>(), any::<Option<String>>(), any::<Option<String>>());
    let rest = (
        prop_oneof![Just(MessageType::OneWay), Just(MessageType::Chat)],
        prop_oneof![Just(Priority::High), Just(Priority::Normal), Just(Priority::Low)],
        proptest::option::of(proptest::collection::vec(any::<u8>(), 0..100)),
        proptest::collection::vec(media, 0..4),
        any::<i64>(),
        any::<Option<i64>>(),
    );
    (texts, rest).prop_map(|(texts, rest)| Message {
        r#type: rest.0,
        sender: texts.0,
        recipient: texts.1,
        content: texts.2,
        correlation_id: texts.3,
        reference: texts.4,
        collapse_key: texts.5,
        broadcast_id: texts.6,
        priority: rest.1,
        content_ciphertext: rest.2.map(Bytes::from),
        media: rest.3,
        created_at: rest.4,
        expires_at: rest.5,
        ..full_message()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn whatever_is_encoded_decodes_to_the_same(message in any_message(), junk in proptest::collection::vec(any::<u8>(), 0..200)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let codecs = runtime.block_on(codecs());
        let value = codecs.encode(&message).unwrap();
        prop_assert_eq!(codecs.decode::<Message>(&value).unwrap(), message);

        // and junk behind a good prefix ends in a record or an error, never in a panic
        let hostile = [&value[..PREFIX], &junk].concat();
        let _ = codecs.decode::<Message>(&hostile);
        let _ = codecs.decode_json(&hostile);
    }
}
