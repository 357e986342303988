//! Frames of every size: the longest message in its longest encoding, and what is larger than that.

use eshaar_model::limits::{CONTENT_CHARS, IDEMPOTENCY_KEY_CHARS, REFERENCE_CHARS};

use super::fakes::Asked;
use super::*;

const HELLO: &str = r#"{"op":"hello"}"#;

/// JSON of a text with every character as escapes.
fn escaped(text: &str) -> String {
    text.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect::<Vec<_>>().concat()
}

async fn greeted(world: &World) -> Client {
    let mut client = world.connect("+966501234567").await;
    client.send_text(HELLO).await;
    while client.next().await["op"] != "caught_up" {}
    client
}

#[tokio::test(start_paused = true)]
async fn the_longest_message_fits_a_frame_in_every_encoding() {
    let world = World::new().await;
    let mut client = greeted(&world).await;
    let (content, reference) = ("🎉".repeat(CONTENT_CHARS), "🎉".repeat(REFERENCE_CHARS));
    let r#ref = "r".repeat(IDEMPOTENCY_KEY_CHARS);
    let fields = [("op", "send"), ("ref", &r#ref), ("to", "acme"), ("content", &content), ("reference", &reference)];
    let fields = fields.map(|(name, text)| format!(r#"  "{}" : "{}""#, escaped(name), escaped(text)));
    let longest = format!("{{\r\n{}\r\n}}", fields.join(",\r\n"));
    client.send_text(&longest).await;
    client.expect("sent").await;
    let asked = world.conversations.asked.lock();
    let Asked::Send(_, message) = &asked[0] else { panic!("a message") };
    assert!(message.content == content && message.reference.as_ref() == Some(&reference) && message.r#ref == r#ref);
}

#[tokio::test(start_paused = true)]
async fn a_frame_that_is_too_large_is_answered_under_its_ref_and_the_session_lives_on() {
    let mut world = World::new().await;
    let mut client = greeted(&world).await;
    let large = "x".repeat(200_000);
    for (frame, reference) in [
        (json!({"op": "send", "ref": "r-1", "to": "acme", "content": large}).to_string(), json!("r-1")),
        (format!(r#"{{"op":"send","content":"{large}","to":"acme","ref":"r-2"}}"#), json!("r-2")),
        (format!(r#"{{"op":"ack","ids":["{large}"]}}"#), Value::Null),
    ] {
        client.send_text(&frame).await;
        let error = client.expect("error").await;
        assert_eq!(
            (&error["code"], &error["ref"], &error["temporary"]),
            (&json!("frame_too_large"), &reference, &json!(false))
        );
        assert!(error["detail"].as_str().unwrap().contains("131072"), "{error}");
    }
    // The same session goes on: it sends, receives and acknowledges.
    client.send(json!({"op": "send", "ref": "r-3", "to": "acme", "content": "short"})).await;
    assert_eq!(client.expect("sent").await["ref"], "r-3");
    let sent = world.deliver(Lane::Normal, "a").await;
    assert_eq!(client.messages(1).await, [sent.id]);
    assert_eq!(world.conversations.asked.lock().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn large_frames_count_as_many_so_that_passing_over_them_costs_no_more() {
    let world = World::with(Options { frames_burst: 20, frames_per_s: 0, ..Options::default() }).await;
    let mut client = greeted(&world).await;
    let large = format!(r#"{{"op":"ping","x":"{}"}}"#, "x".repeat(900_000));
    client.send_text(&large).await;
    client.expect("error").await;
    client.send_text(&large).await;
    client.expect("error").await;
    client.send_text(&large).await;
    assert_eq!(client.bye().await.0, Close::TooManyFrames);
}

/// Everything that a sender may write comes to a phone as it was written, and the frame holds nothing that HTML would act on.
#[tokio::test(start_paused = true)]
async fn text_comes_as_it_was_written_and_a_frame_holds_no_markup() {
    let mut world = World::new().await;
    let mut client = greeted(&world).await;
    for text in [
        "Balance <SAR 500. Top up now.",
        "<b>Offer</b> https://shop.example/?id=1&copy=2",
        "</script><script>alert(1)</script>\u{2028}\u{2029}",
        "  e\u{301} \u{e9} \u{feff}\u{200b}\r\n\t",
        "&lt;&amp;#60;\"'\\",
        "🎉\u{200f}مرحبا",
    ] {
        let message = Message { reference: Some(text.to_owned()), ..world.message(text) };
        let appended = world.append_message(Lane::Normal, message).await;
        world.tell(&[&appended.hint]).await;
        let frame = loop {
            if let Frame::Text(frame) = client.0.next().await.unwrap().unwrap() {
                break frame;
            }
        };
        assert!(!frame.contains(['<', '>', '&', '\u{2028}', '\u{2029}']), "{frame}");
        let frame: Value = serde_json::from_str(&frame).unwrap();
        assert_eq!((&frame["content"], &frame["reference"]), (&json!(text), &json!(text)));
    }
}
