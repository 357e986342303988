//! Text is plain text: what is sent is what is stored, shown and delivered, byte for byte, by every way in and out.

use axum::body::Body;
use eshaar_auth::Identity;
use eshaar_ingest::{Live, LiveMessage, Markup, Options};
use eshaar_model::limits::{
    COLLAPSE_KEY_BYTES, CONTENT_CHARS, IDEMPOTENCY_KEY_CHARS, LISTED_RECIPIENTS, REFERENCE_CHARS,
};
use eshaar_model::{Lane, Permission, Phone, StreamPosition, Timestamp};
use eshaar_schemas::Broadcast;
use eshaar_store::StreamRow;
use eshaar_topics::{Log as _, Topic, partitioner};
use http::Method;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::fixture::{Answer, Fixture, PHONE, options, request, submission, upload};

const ALL: [Permission; 4] =
    [Permission::MessagesSend, Permission::MessagesRead, Permission::Chat, Permission::BroadcastsSend];

/// What was cut, decoded or trimmed once, and what looks like it.
const SAMPLES: [&str; 8] = [
    "Balance <SAR 500. Top up now.",
    "Omar <omar@example.com>",
    "<b>Offer</b> https://shop.example/?id=1&copy=2",
    "<script>alert(1)</script>",
    "  two spaces, a tab\tand an end\r\n",
    "e\u{301} \u{e9} \u{feff}\u{200b}\u{2028}\u{2029}\u{200f}مرحبا",
    "&lt;&amp;lt;&#60;&nbsp;\u{a0}",
    "<!-- \" ' \\ \u{1f468}\u{200d}\u{1f469} -->",
];

/// Text of any Unicode characters but controls, with something to see.
fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        3 => proptest::sample::select(SAMPLES.to_vec()).prop_map(ToOwned::to_owned),
        2 => any::<String>(),
        2 => "[<>&a-z/!?;#0-9 ]{0,12}",
    ];
    let whole = proptest::collection::vec(piece, 1..5).prop_map(|pieces| pieces.concat());
    whole.prop_map(|text| {
        text.chars().filter(|char| !char.is_control() || "\t\r\n".contains(*char)).collect::<String>() + "x"
    })
}

/// A text cut to so many characters, without controls.
fn short(text: &str, chars: usize) -> String {
    text.chars().filter(|char| !char.is_control()).take(chars).collect()
}

fn phone_identity() -> Identity {
    Identity { principal: PHONE.parse().unwrap(), permissions: Vec::new(), expires_at: None, rate: None, key_id: None }
}

async fn broadcast(fixture: &Fixture, key: &str, body: String) -> Answer {
    let json = [("content-type", "application/json")];
    fixture.call(request(Method::POST, "/v1/broadcasts", key, &json, body)).await
}

/// Sends a text by every way in; returns the ids of the messages.
async fn send_every_way(fixture: &Fixture, key: &str, live: &Live, text: &str, number: usize) -> Vec<String> {
    let (reference, collapse_key) = (short(text, REFERENCE_CHARS), short(text, COLLAPSE_KEY_BYTES / 4));
    let fields = json!({ "to": PHONE, "content": text, "reference": reference, "collapse_key": collapse_key });
    let mut ids = Vec::new();
    let single = fixture.send(key, &fields).await;
    assert_eq!(single.status, 202, "{}", single.json());
    ids.push(single.json()["id"].clone());
    let bulk = fixture.call(upload(key, &[], format!("{fields}\n"))).await.lines();
    ids.push(bulk[0]["id"].clone());
    let mut chat = fields.clone();
    chat["type"] = json!("chat");
    ids.push(fixture.send(key, &chat).await.json()["id"].clone());
    let message = LiveMessage {
        reference: &format!("r-{number}"),
        to: Some("acme"),
        conversation_id: None,
        content: text,
        own_reference: Some(&reference),
        has_media: false,
    };
    ids.push(json!(live.send(&phone_identity(), message).await.unwrap().id.to_string()));
    let mut many = fields.clone();
    many["to"] = json!([PHONE]);
    assert_eq!(broadcast(fixture, key, many.to_string()).await.status, 202);
    ids.iter().map(|id| id.as_str().unwrap().to_owned()).collect()
}

/// Puts what was accepted into the phone's stream, as `route` does.
async fn deliver(fixture: &Fixture) {
    let phone: Phone = PHONE.parse().unwrap();
    let partition = partitioner::partition_of(PHONE.as_bytes(), fixture.log.partitions(Topic::LaneNormal));
    for (offset, record) in fixture.accepted().await.iter().enumerate() {
        let message = fixture.message(record);
        let row = StreamRow {
            phone,
            position: StreamPosition { epoch: fixture.log.epoch(), lane: Lane::Normal, offset: offset as u64 },
            id: message.id,
            at: Timestamp::from_millis(message.created_at),
            expires_at: None,
            value: record.value.clone(),
        };
        fixture.store.streams.append(partition, vec![row]).await.unwrap();
    }
}

fn is_harmless(answer: &Answer) -> bool {
    let text = std::str::from_utf8(&answer.body).unwrap();
    !text.contains(['<', '>', '&', '\u{2028}', '\u{2029}'])
}

async fn comes_back(texts: Vec<String>) {
    let fixture = Fixture::new().await;
    let key = fixture.key("acme", &ALL).await;
    let live = Live::new(fixture.deps(), options());
    let mut sent = Vec::new();
    for (number, text) in texts.iter().enumerate() {
        for id in send_every_way(&fixture, &key, &live, text, number).await {
            sent.push((id, text.clone()));
        }
    }
    fixture.archive().await;
    deliver(&fixture).await;
    let accepted = fixture.accepted().await;
    for (id, text) in &sent {
        let record =
            accepted.iter().map(|record| fixture.message(record)).find(|message| message.id.to_string() == *id);
        let record = record.unwrap();
        assert_eq!((&record.content, record.reference), (text, Some(short(text, REFERENCE_CHARS))));
        let answer = fixture.get(&format!("/v1/messages/{id}"), &key).await;
        assert_eq!(answer.json()["content"], json!(text));
        assert_eq!(answer.json()["reference"], json!(short(text, REFERENCE_CHARS)));
        assert!(is_harmless(&answer));
    }
    let (mut after, mut streamed) = (String::new(), Vec::new());
    loop {
        let page = fixture.get(&format!("/v1/stream?limit=100{after}"), &fixture.token(PHONE)).await;
        assert!(is_harmless(&page));
        let page = page.json();
        streamed.extend(page["messages"].as_array().unwrap().clone());
        after = format!("&after={}", page["cursor"].as_str().unwrap());
        if page["more"] != true {
            break;
        }
    }
    for (id, text) in &sent {
        let message = streamed.iter().find(|message| message["id"] == json!(id)).unwrap();
        assert_eq!(message["content"], json!(text));
    }
    let broadcasts = fixture.records(Topic::BroadcastsRequested).await;
    let mut contents: Vec<String> =
        broadcasts.iter().map(|record| fixture.codecs.decode::<Broadcast>(&record.value).unwrap().content).collect();
    let mut expected = texts;
    contents.sort();
    expected.sort();
    assert_eq!(contents, expected);
    for path in ["/v1/messages?limit=100", "/v1/broadcasts?limit=100", "/v1/conversations"] {
        let answer = fixture.get(path, &key).await;
        assert_eq!(answer.status, 200);
        assert!(is_harmless(&answer), "{path}");
    }
}

#[tokio::test]
async fn text_that_was_altered_once_comes_back_as_it_was_written() {
    comes_back(SAMPLES.map(ToOwned::to_owned).to_vec()).await;
}

#[test]
fn any_text_comes_back_as_it_was_written() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let config = ProptestConfig { failure_persistence: None, max_shrink_iters: 20, ..ProptestConfig::with_cases(5) };
    proptest!(config, |(texts in proptest::collection::vec(text(), 20))| {
        runtime.block_on(comes_back(texts));
    });
}

/// Sends a body by every way that takes a text; returns the code of each refusal, with its field.
async fn refusals(fixture: &Fixture, fields: &Value) -> Vec<(String, String)> {
    let key = fixture.key("acme", &ALL).await;
    let named = |answer: &Value| {
        let text = |field: &str| answer[field].as_str().unwrap_or_default().to_owned();
        (text("code"), text("field"))
    };
    let with = |change: Value| {
        let mut body = fields.clone();
        body.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        body
    };
    let mut refused = vec![named(&fixture.send(&key, &with(json!({ "to": PHONE }))).await.json())];
    let line = fixture.call(upload(&key, &[], with(json!({ "to": PHONE })).to_string())).await.lines();
    refused.push(named(&line[0]["error"]));
    refused.push(named(&fixture.send(&key, &with(json!({ "to": PHONE, "type": "chat" }))).await.json()));
    refused.push(named(&broadcast(fixture, &key, with(json!({ "to": [PHONE] })).to_string()).await.json()));
    refused
}

async fn live_refusal(fixture: &Fixture, options: Options, content: &str, reference: Option<&str>) -> (String, String) {
    let message = LiveMessage {
        reference: "r",
        to: Some("acme"),
        conversation_id: None,
        content,
        own_reference: reference,
        has_media: false,
    };
    let problem = Live::new(fixture.deps(), options).send(&phone_identity(), message).await.unwrap_err();
    (problem.code.to_owned(), problem.field.unwrap_or_default())
}

#[tokio::test]
async fn text_that_nobody_can_see_is_refused_by_every_way() {
    let fixture = Fixture::new().await;
    let expected = ("content_empty".to_owned(), "content".to_owned());
    for text in [
        "",
        " ",
        "\t\r\n",
        "\u{200b}",
        "\u{2800}",
        "\u{3164}\u{115f}\u{1160}\u{ffa0}",
        "\u{34f}\u{180b}\u{fe0f}\u{e0041}",
        "\u{feff}\u{2060}\u{00ad}\u{200d}\u{200e}\u{202e}\u{2066}",
        "\u{a0}\u{2003}\u{3000}\u{2028}\u{2029}",
    ] {
        for refused in refusals(&fixture, &json!({ "content": text })).await {
            assert_eq!(refused, expected, "{text:?}");
        }
        assert_eq!(live_refusal(&fixture, options(), text, None).await, expected, "{text:?}");
    }
    assert!(fixture.accepted().await.is_empty());
    let key = fixture.sender().await;
    for text in ["\u{200f}ا", "🎉", "👍\u{1f3fd}", "\u{200b}x", "۝", "\u{301}", "."] {
        assert_eq!(fixture.send(&key, &json!({ "to": PHONE, "content": text })).await.status, 202, "{text:?}");
    }
}

#[tokio::test]
async fn markup_is_refused_by_every_way_where_the_operator_wants_that() {
    let refusing = || Options { markup: Markup::Refuse, ..options() };
    let fixture = Fixture::with(refusing()).await;
    let of = |field: &str| ("content_markup".to_owned(), field.to_owned());
    for (field, fields) in [
        ("content", json!({ "content": "<b>x</b>" })),
        ("reference", json!({ "content": "x", "reference": "<i>" })),
        ("collapse_key", json!({ "content": "x", "collapse_key": "</p" })),
    ] {
        for refused in refusals(&fixture, &fields).await {
            assert_eq!(refused, of(field));
        }
    }
    assert_eq!(live_refusal(&fixture, refusing(), "<script>", None).await, of("content"));
    assert_eq!(live_refusal(&fixture, refusing(), "x", Some("<!--")).await, of("reference"));
    assert!(fixture.accepted().await.is_empty());
    let key = fixture.sender().await;
    for text in ["a < b", "<3", "1<2 & 3>2", "&lt;b&gt; &copy;"] {
        assert_eq!(fixture.send(&key, &json!({ "to": PHONE, "content": text })).await.status, 202, "{text}");
    }
}

/// JSON with every character of every text and name as escapes, as a printer with indentation writes it.
fn escaped(fields: &[(&str, Value)]) -> String {
    let text = |text: &str| text.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect::<Vec<_>>().concat();
    let value = |value: &Value| match value {
        Value::String(string) => format!("\"{}\"", text(string)),
        Value::Array(items) => {
            let items = items.iter().map(|item| format!("\r\n        \"{}\"", text(item.as_str().unwrap())));
            format!("[{}\r\n    ]", items.collect::<Vec<_>>().join(","))
        }
        other => other.to_string(),
    };
    let fields = fields.iter().map(|(name, of)| format!("    \"{}\": {}", text(name), value(of)));
    format!("{{\r\n{}\r\n}}", fields.collect::<Vec<_>>().join(",\r\n"))
}

#[tokio::test]
async fn the_longest_message_is_accepted_in_its_longest_encoding_by_every_way() {
    let fixture = Fixture::new().await;
    let key = fixture.key("acme", &ALL).await;
    let content = "🎉".repeat(CONTENT_CHARS);
    let longest = |more: &[(&'static str, Value)]| {
        let fields = [
            ("content", json!(content)),
            ("reference", json!("🎉".repeat(REFERENCE_CHARS))),
            ("collapse_key", json!("k".repeat(COLLAPSE_KEY_BYTES))),
            ("ttl_s", json!(2_592_000)),
        ];
        escaped(&[&fields[..], more].concat())
    };
    let single = longest(&[
        ("to", json!(PHONE)),
        ("priority", json!("normal")),
        ("send_at", json!("2026-01-02T03:00:00.000+03:00")),
    ]);
    assert_eq!(fixture.call(submission(&key, &[], single)).await.status, 202);
    let chat = longest(&[("to", json!(PHONE)), ("type", json!("chat"))]);
    assert_eq!(fixture.call(submission(&key, &[], chat)).await.status, 202);
    let line = longest(&[("to", json!(PHONE)), ("idempotency_key", json!("k".repeat(IDEMPOTENCY_KEY_CHARS)))]);
    let lines = fixture.call(upload(&key, &[], line.replace("\r\n", " "))).await.lines();
    assert_eq!(lines.last().unwrap(), &json!({ "accepted": 1, "rejected": 0 }), "{:?}", lines[0]);
    let phones: Vec<String> = (0..LISTED_RECIPIENTS).map(|number| format!("+9665{number:08}")).collect();
    let answer = broadcast(&fixture, &key, longest(&[("to", json!(phones))])).await;
    assert_eq!(
        (answer.status.as_u16(), &answer.json()["total"]),
        (202, &json!(LISTED_RECIPIENTS)),
        "{}",
        answer.json()
    );
    let one_more = json!({ "to": PHONE, "content": "🎉".repeat(CONTENT_CHARS + 1) });
    assert_eq!(fixture.send(&key, &one_more).await.problem(400), "content_too_long");
}

#[tokio::test]
async fn an_error_that_names_a_field_says_it_back_harmlessly() {
    let fixture = Fixture::new().await;
    let key = fixture.sender().await;
    let name = "<img src=x onerror=alert(1)>&\u{2028}";
    let answer = fixture.send(&key, &json!({ "to": PHONE, "content": "a", name: 1 })).await;
    assert_eq!((answer.problem(400).as_str(), &answer.json()["field"]), ("unknown_field", &json!(name)));
    assert!(is_harmless(&answer));
    let line = json!({ "to": PHONE, "content": "a", name: 1 }).to_string();
    let answer = fixture.call(upload(&key, &[], line)).await;
    assert_eq!(answer.lines()[0]["error"]["field"], json!(name));
    assert!(is_harmless(&answer));
    let query = fixture.get("/v1/messages?%3Cscript%3E=1", &key).await;
    assert!(query.status == 400 && is_harmless(&query));
    let document = fixture.call(request(Method::GET, "/openapi.json", "", &[], Body::empty())).await;
    assert!(document.status == 200 && is_harmless(&document));
}

#[tokio::test]
async fn a_number_that_keeps_its_trunk_prefix_is_refused_wherever_one_is_taken() {
    let fixture = Fixture::new().await;
    let key = fixture.key("acme", &ALL).await;
    for phone in ["+9660501234567", "+460736829291", "+96650123", "+99912345678"] {
        let single = fixture.send(&key, &json!({ "to": phone, "content": "a" })).await;
        assert_eq!((single.problem(400).as_str(), &single.json()["field"]), ("invalid_phone", &json!("to")), "{phone}");
        let chat = fixture.send(&key, &json!({ "to": phone, "type": "chat", "content": "a" })).await;
        assert_eq!(chat.problem(400), "invalid_recipient");
        let line = fixture.call(upload(&key, &[], json!({ "to": phone, "content": "a" }).to_string())).await;
        assert_eq!(line.lines()[0]["error"]["code"], "invalid_phone");
        let many = broadcast(&fixture, &key, json!({ "to": [PHONE, phone], "content": "a" }).to_string()).await;
        assert_eq!((many.problem(400).as_str(), &many.json()["field"]), ("invalid_phone", &json!("to[1]")));
        let with = fixture.post("/v1/conversations", &key, &json!({ "with": phone })).await;
        assert_eq!(with.problem(400), "invalid_recipient");
        let listed = fixture.get(&format!("/v1/messages?to={}", phone.replace('+', "%2B")), &key).await;
        assert_eq!(listed.problem(400), "invalid_parameter");
        assert_eq!(fixture.get("/v1/stream", &fixture.token(phone)).await.problem(401), "unauthenticated");
        let json = [("content-type", "text/csv")];
        let list = request(Method::PUT, "/v1/audiences/a", &key, &json, format!("to\n{PHONE}\n{phone}\n"));
        assert_eq!(fixture.call(list).await.json()["rejected"], 1);
    }
    let unencoded = fixture.get("/v1/messages?to=+966501234567", &key).await;
    assert_eq!((unencoded.problem(400).as_str(), &unencoded.json()["field"]), ("invalid_parameter", &json!("to")));
    assert!(unencoded.json()["detail"].as_str().unwrap().contains("%2B"));
}
