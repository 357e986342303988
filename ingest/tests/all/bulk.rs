use std::time::Duration;

use async_compression::tokio::bufread::{GzipEncoder, ZstdEncoder};
use axum::body::Body;
use bytes::Bytes;
use eshaar_model::Permission;
use eshaar_topics::headers;
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tower::ServiceExt as _;

use crate::fixture::{Fault, Fixture, OTHER_PHONE, PHONE, nonzero, options, upload};

fn line(content: &str) -> String {
    json!({ "to": PHONE, "content": content }).to_string()
}

fn lines(count: usize) -> String {
    (0..count).fold(String::new(), |text, number| text + &line(&number.to_string()) + "\n")
}

async fn gzip(text: &[u8]) -> Vec<u8> {
    let mut compressed = Vec::new();
    GzipEncoder::new(text).read_to_end(&mut compressed).await.unwrap();
    compressed
}

async fn zstd(text: &[u8]) -> Vec<u8> {
    let mut compressed = Vec::new();
    ZstdEncoder::new(text).read_to_end(&mut compressed).await.unwrap();
    compressed
}

/// An upload that the test goes on sending while it reads the answer.
fn open_upload() -> (mpsc::Sender<Result<Bytes, std::io::Error>>, Body) {
    let (sender, receiver) = mpsc::channel(1);
    (sender, Body::from_stream(ReceiverStream::new(receiver)))
}

fn contents(fixture: &Fixture, records: &[eshaar_topics::Record]) -> Vec<String> {
    records.iter().map(|record| fixture.message(record).content).collect()
}

#[tokio::test]
async fn every_line_has_its_result_in_order_and_a_bad_one_fails_alone() {
    let fixture = Fixture::new().await;
    let key = fixture.sender().await;
    let upload_text = [
        line("first"),
        "not json".to_owned(),
        String::new(),
        json!({ "to": "nobody", "content": "a" }).to_string(),
        json!({ "to": PHONE, "content": "a", "type": "chat" }).to_string(),
        line(&"x".repeat(140_000)),
        line("last"),
    ]
    .join("\n");
    let answer = fixture.call(upload(&key, &[], upload_text)).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("application/x-ndjson"));
    let lines = answer.lines();
    let summary: Vec<_> = lines
        .iter()
        .map(|line| (line["line"].as_u64(), line["status"].as_str(), line["error"]["code"].as_str()))
        .collect();
    assert_eq!(
        summary,
        [
            (Some(1), Some("sent"), None),
            (Some(2), None, Some("json_invalid")),
            (Some(4), None, Some("invalid_phone")),
            (Some(5), None, Some("one_way_only")),
            (Some(6), None, Some("line_too_long")),
            (Some(7), Some("sent"), None),
            (None, None, None),
        ]
    );
    assert_eq!(lines[2]["error"]["field"], "to");
    assert_eq!(lines[6], json!({ "accepted": 2, "rejected": 4 }));
    let records = fixture.accepted().await;
    assert_eq!(contents(&fixture, &records), ["first", "last"]);
    assert!(records.iter().all(|record| record.headers.text(headers::LANE) == Some("bulk")));
}

#[tokio::test]
async fn a_recipient_s_lines_keep_their_order_over_many_batches_and_lost_acknowledgements() {
    let fixture = Fixture::new().await;
    let key = fixture.sender().await;
    fixture.log.faults.lock().extend([Fault::Lost]);
    let answer = fixture.call(upload(&key, &[], lines(5_000))).await.lines();
    assert_eq!(answer.len(), 5_001);
    assert_eq!(answer[5_000], json!({ "accepted": 5_000, "rejected": 0 }));
    let mut seen = std::collections::HashSet::new();
    let records = fixture.accepted().await;
    let firsts: Vec<_> =
        records.iter().map(|record| fixture.message(record)).filter(|message| seen.insert(message.id)).collect();
    let expected: Vec<_> = (0..5_000).map(|number| number.to_string()).collect();
    assert_eq!(firsts.iter().map(|message| message.content.clone()).collect::<Vec<_>>(), expected);
    for (line, message) in answer.iter().zip(&firsts) {
        assert_eq!(line["id"], message.id.to_string());
    }
}

#[tokio::test]
async fn compressed_uploads_are_read_whether_in_one_part_or_several() {
    let fixture = Fixture::new().await;
    let key = fixture.sender().await;
    let (first, second) = (lines(700), lines(300));
    let gzipped = [gzip(first.as_bytes()).await, gzip(second.as_bytes()).await].concat();
    let zstd = [zstd(first.as_bytes()).await, zstd(second.as_bytes()).await].concat();
    for (encoding, body) in [("gzip", gzipped), ("zstd", zstd)] {
        let answer = fixture.call(upload(&key, &[("content-encoding", encoding)], body)).await.lines();
        assert_eq!(answer[1_000], json!({ "accepted": 1_000, "rejected": 0 }), "{encoding}");
    }
}

#[tokio::test]
async fn a_bomb_is_stopped_by_its_ratio_and_a_large_upload_by_its_size() {
    let fixture = Fixture::new().await;
    let key = fixture.sender().await;
    let bomb = vec![b' '; 32 << 20];
    for (encoding, body) in [("gzip", gzip(&bomb).await), ("zstd", zstd(&bomb).await)] {
        assert!(body.len() < 100_000);
        let answer = fixture.call(upload(&key, &[("content-encoding", encoding)], body)).await.lines();
        assert_eq!(answer[0]["error"]["code"], "upload_too_large", "{encoding}");
    }
    let mut small = options();
    small.bulk.max_bytes = 1_000;
    let fixture = Fixture::with(small).await;
    let key = fixture.sender().await;
    let answer = fixture.call(upload(&key, &[], lines(100))).await.lines();
    assert_eq!(answer.last().unwrap()["error"]["code"], "upload_too_large");
}

#[tokio::test]
async fn an_upload_that_is_not_what_it_says_is_told_so() {
    let fixture = Fixture::new().await;
    let key = fixture.sender().await;
    let whole = gzip(lines(10).as_bytes()).await;
    for (encoding, body) in
        [("gzip", &whole[..whole.len() - 10]), ("zstd", &whole[..]), ("gzip", b"{\"to\": \"+966501234567\"}")]
    {
        let answer = fixture.call(upload(&key, &[("content-encoding", encoding)], body.to_vec())).await.lines();
        assert_eq!(answer.last().unwrap()["error"]["code"], "upload_broken", "{encoding}");
    }
    for encoding in ["br", "gzip, gzip", "deflate"] {
        let answer = fixture.call(upload(&key, &[("content-encoding", encoding)], "")).await;
        assert_eq!(answer.problem(415), "content_encoding_unsupported");
    }
}

#[tokio::test]
async fn more_lines_than_allowed_are_not_read() {
    let mut few = options();
    few.bulk.max_lines = 1_200;
    let fixture = Fixture::with(few).await;
    let key = fixture.sender().await;
    let answer = fixture.call(upload(&key, &[], lines(1_201))).await.lines();
    assert_eq!(answer.len(), 1_201);
    assert_eq!(answer[1_200]["accepted"], 1_200);
    assert_eq!(answer[1_200]["error"]["code"], "too_many_lines");
}

#[tokio::test]
async fn a_line_is_answered_while_the_upload_goes_on() {
    let fixture = Fixture::new().await;
    let key = fixture.sender().await;
    let (sender, body) = open_upload();
    let response = fixture.api.clone().oneshot(upload(&key, &[], body)).await.unwrap();
    let mut answers = response.into_body().into_data_stream();
    for number in 1..=3 {
        sender.send(Ok(Bytes::from(line("a") + "\n"))).await.unwrap();
        let answer: Value = serde_json::from_slice(&answers.next().await.unwrap().unwrap()).unwrap();
        assert_eq!(answer["line"], number);
    }
    drop(sender);
    let total: Value = serde_json::from_slice(&answers.next().await.unwrap().unwrap()).unwrap();
    assert_eq!(total, json!({ "accepted": 3, "rejected": 0 }));
}

#[tokio::test]
async fn a_sender_that_stalls_is_let_go_with_the_totals_so_far() {
    let fixture = Fixture::new().await;
    let key = fixture.sender().await;
    let (sender, body) = open_upload();
    sender.send(Ok(Bytes::from(line("a") + "\n" + &line("b")))).await.unwrap();
    let answer = fixture.call(upload(&key, &[], body)).await.lines();
    assert_eq!(answer[1]["accepted"], 1);
    assert_eq!((&answer[1]["error"]["code"], &answer[1]["last_line"]), (&json!("upload_stalled"), &json!(1)));
    drop(sender);
}

/// As many HTTP libraries do: the whole body is written before anything is read.
#[tokio::test]
async fn a_client_that_reads_nothing_before_it_has_sent_everything_gets_every_answer() {
    let fixture = Fixture::new().await;
    let key = fixture.sender().await;
    let (sender, body) = open_upload();
    let response = fixture.api.clone().oneshot(upload(&key, &[], body)).await.unwrap();
    for _ in 0..60 {
        sender.send(Ok(Bytes::from(lines(1_000)))).await.unwrap();
    }
    sender.send(Ok(Bytes::from("not json\n"))).await.unwrap();
    drop(sender);
    while fixture.accepted().await.len() < 60_000 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let answers = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    let answers: Vec<Value> =
        answers.split_inclusive(|byte| *byte == b'\n').map(|line| serde_json::from_slice(line).unwrap()).collect();
    assert_eq!(answers.len(), 60_002);
    assert!(answers[..60_001].iter().enumerate().all(|(place, line)| line["line"] == place + 1));
    assert_eq!(answers[60_000]["error"]["code"], "json_invalid");
    assert_eq!(answers[60_001], json!({ "accepted": 60_000, "rejected": 1 }));
}

#[tokio::test]
async fn where_there_is_no_memory_for_answers_nobody_reads_the_total_says_how_far_the_upload_came() {
    let mut narrow = options();
    (narrow.bulk.unread_answers_bytes, narrow.bulk.batch_lines) = (8_000, nonzero(10));
    let fixture = Fixture::with(narrow).await;
    let key = fixture.sender().await;
    let (sender, body) = open_upload();
    let response = fixture.api.clone().oneshot(upload(&key, &[("idempotency-key", "k")], body)).await.unwrap();
    // It is not stuck: what is not taken in any more is thrown away.
    for _ in 0..100 {
        let sent = tokio::time::timeout(Duration::from_secs(20), sender.send(Ok(Bytes::from(lines(10))))).await;
        sent.expect("the upload is stuck").unwrap();
    }
    drop(sender);
    let answers = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    let answers: Vec<Value> =
        answers.split_inclusive(|byte| *byte == b'\n').map(|line| serde_json::from_slice(line).unwrap()).collect();
    let total = answers.last().unwrap();
    assert_eq!(total["error"]["code"], "answers_unread", "{total}");
    let accepted = total["accepted"].as_u64().unwrap();
    assert!((10..=200).contains(&accepted), "{accepted}");
    assert_eq!(total["last_line"], accepted);
    assert_eq!(answers.len() as u64, accepted + 1, "each line that was taken in has its answer");
    assert_eq!(fixture.accepted().await.len() as u64, accepted);
    // The memory is free again, and with it the rest comes through.
    let again = fixture.call(upload(&key, &[("idempotency-key", "k")], lines(10).repeat(100))).await.lines();
    assert_eq!(again.last().unwrap(), &json!({ "accepted": 1_000, "rejected": 0 }));
}

#[tokio::test]
async fn a_summary_names_the_lines_that_were_refused_and_counts_the_others() {
    let fixture = Fixture::new().await;
    let key = fixture.sender().await;
    let text = lines(3) + "not json\n\n" + &line("last");
    let asked = |path: &str, headers: &[(&str, &str)]| {
        let headers: Vec<_> = headers.iter().copied().chain([("content-type", "application/x-ndjson")]).collect();
        crate::fixture::request(http::Method::POST, path, &key, &headers, text.clone())
    };
    let bulk = "/v1/messages/bulk";
    for request in
        [asked("/v1/messages/bulk?answers=summary", &[]), asked(bulk, &[("prefer", "respond-async, Return=Minimal")])]
    {
        let answer = fixture.call(request).await;
        assert_eq!(answer.header("preference-applied"), Some("return=minimal"));
        let lines = answer.lines();
        assert_eq!(
            (lines.len(), &lines[0]["line"], &lines[0]["error"]["code"]),
            (2, &json!(4), &json!("json_invalid"))
        );
        assert_eq!(lines[1], json!({ "accepted": 4, "rejected": 1, "last_line": 6 }));
    }
    for request in [asked(bulk, &[]), asked("/v1/messages/bulk?answers=all", &[("prefer", "return=minimal")])] {
        assert_eq!(fixture.call(request).await.lines().len(), 6);
    }
    assert_eq!(fixture.call(asked("/v1/messages/bulk?answers=some", &[])).await.problem(400), "invalid_parameter");
    assert_eq!(fixture.call(asked("/v1/messages/bulk?other=1", &[])).await.problem(400), "unknown_parameter");
}

#[tokio::test]
async fn an_upload_may_have_a_mark_carriage_returns_blank_lines_and_no_last_end() {
    let fixture = Fixture::new().await;
    let key = fixture.sender().await;
    let text = format!("\u{feff}{}\r\n\r\n{}\n  \n{}", line("a"), line("b"), line("c"));
    let utf16: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    for body in [text.into_bytes(), utf16] {
        let answer = fixture.call(upload(&key, &[], body)).await.lines();
        let numbers: Vec<_> = answer.iter().filter_map(|line| line["line"].as_u64()).collect();
        assert_eq!((numbers, &answer[3]), (vec![1, 3, 5], &json!({ "accepted": 3, "rejected": 0 })));
    }
    assert_eq!(contents(&fixture, &fixture.accepted().await), ["a", "b", "c", "a", "b", "c"]);
}

#[tokio::test]
async fn an_upload_that_goes_on_behind_a_line_has_the_numbers_and_ids_of_the_whole_file() {
    let fixture = Fixture::new().await;
    let key = fixture.sender().await;
    let text = lines(3) + "\nnot json\n" + &line("same") + "\n" + &line("same") + "\n";
    let send = async |query: &str, body: &str| {
        let headers = [("content-type", "application/x-ndjson"), ("idempotency-key", "k")];
        let path = format!("/v1/messages/bulk{query}");
        fixture.call(crate::fixture::request(http::Method::POST, &path, &key, &headers, body.to_owned())).await
    };
    let whole = send("", &text).await.lines();
    let numbers = |answer: &[Value]| answer.iter().filter_map(|line| line["line"].as_u64()).collect::<Vec<_>>();
    assert_eq!(numbers(&whole), [1, 2, 3, 5, 6, 7]);
    assert_ne!(whole[4]["id"], whole[5]["id"]);
    for (after, answered) in [(0, 6), (1, 5), (2, 4), (3, 3), (4, 3), (5, 2), (6, 1), (7, 0)] {
        let rest: String = text.split_inclusive('\n').skip(after).collect();
        let answer = send(&format!("?after_line={after}"), &rest).await.lines();
        assert_eq!(answer[..answered], whole[6 - answered..6], "after {after}");
        assert_eq!(answer.len(), answered + 1);
    }
    // The last settled line is the one before an upload that settled none.
    let total = send("?answers=summary&after_line=7", "").await.lines();
    assert_eq!(total, [json!({ "accepted": 0, "rejected": 0, "last_line": 7 })]);
    let ids: std::collections::HashSet<_> =
        fixture.accepted().await.iter().map(|record| fixture.message(record).id).collect();
    assert_eq!(ids.len(), 5);
}

#[tokio::test]
async fn lines_before_an_upload_do_not_count_towards_its_limit_and_a_number_that_is_none_is_refused() {
    let mut few = options();
    few.bulk.max_lines = 3;
    let fixture = Fixture::with(few).await;
    let key = fixture.sender().await;
    let send = async |after: &str, count: usize| {
        let path = format!("/v1/messages/bulk?after_line={after}");
        let headers = [("content-type", "application/x-ndjson")];
        fixture.call(crate::fixture::request(http::Method::POST, &path, &key, &headers, lines(count))).await
    };
    let answer = send("15000000", 4).await.lines();
    assert_eq!(answer[2]["line"], 15_000_003);
    assert_eq!((&answer[3]["error"]["code"], &answer[3]["last_line"]), (&json!("too_many_lines"), &json!(15_000_003)));
    for bad in ["-1", "%2B1", "", "1.0", "x", "15000001", "99999999999999999999", "1&after_line=2"] {
        let answer = send(bad, 1).await;
        let code = if bad.contains('&') { "repeated_parameter" } else { "invalid_parameter" };
        assert_eq!(answer.problem(400), code, "{bad}");
        assert_eq!(answer.json()["field"], "after_line", "{bad}");
    }
    assert!(send("x", 1).await.json()["detail"].as_str().unwrap().ends_with("must be an integer from 0 to 15000000"));
}

#[tokio::test]
async fn when_the_log_refuses_the_lines_say_so_and_what_follows_is_not_sent() {
    let fixture = Fixture::new().await;
    let key = fixture.sender().await;
    fixture.log.faults.lock().push_back(Fault::Refused);
    let answer = fixture.call(upload(&key, &[], lines(1_200))).await.lines();
    assert_eq!(answer.len(), 501);
    assert!(answer[..500].iter().all(|line| line["error"]["code"] == "log_unavailable"));
    assert_eq!((&answer[500]["accepted"], &answer[500]["error"]["code"]), (&json!(0), &json!("log_unavailable")));
    assert!(fixture.accepted().await.is_empty());
}

#[tokio::test]
async fn more_requests_at_a_time_than_allowed_are_503_until_one_has_ended() {
    let fixture = Fixture::new().await;
    let key = fixture.sender().await;
    let open: Vec<_> = (0..2).map(|_| open_upload()).collect();
    let (mut senders, mut responses) = (Vec::new(), Vec::new());
    for (sender, body) in open {
        senders.push(sender);
        responses.push(fixture.api.clone().oneshot(upload(&key, &[], body)).await.unwrap());
    }
    let refused = fixture.call(upload(&key, &[], lines(1))).await;
    assert_eq!(refused.problem(503), "bulk_busy");
    assert!(refused.header("retry-after").is_some());
    drop(senders);
    for response in responses {
        axum::body::to_bytes(response.into_body(), 1_000).await.unwrap();
    }
    while fixture.call(upload(&key, &[], lines(1))).await.status != 200 {
        tokio::task::yield_now().await;
    }
}

/// A business that sends a blank line now and then, in as many uploads as it gets, takes no place that others need.
#[tokio::test]
async fn a_business_that_holds_uploads_open_keeps_no_other_out_and_is_let_go() {
    let mut fair = options();
    (fair.bulk.concurrent, fair.bulk.concurrent_per_business) = (nonzero(32), nonzero(8));
    (fair.bulk.min_rate_window_s, fair.bulk.min_rate_bytes_per_s) = (1, 100);
    let fixture = Fixture::with(fair).await;
    let mut held = Vec::new();
    for number in 0..4 {
        let hostile = fixture.key(&format!("hostile-{number}"), &[Permission::Admin]).await;
        let mut refusals = Vec::new();
        for _ in 0..20 {
            let (sender, body) = open_upload();
            let response = fixture.api.clone().oneshot(upload(&hostile, &[], body)).await.unwrap();
            if response.status() == 200 {
                held.push((sender, response));
            } else {
                refusals.push(response.status().as_u16());
            }
        }
        assert!(refusals.iter().all(|status| *status == 503), "{refusals:?}");
    }
    // The fourth has one place of those that are kept for businesses which have none.
    assert_eq!(held.len(), 25);
    let refused = fixture.call(upload(&fixture.key("hostile-0", &[Permission::Admin]).await, &[], "")).await;
    assert_eq!(refused.problem(503), "bulk_busy");
    assert!(refused.json()["detail"].as_str().unwrap().starts_with("8 uploads of your business"));
    assert!(refused.header("retry-after").is_some());
    // Others have a place for uploads of lines and of audiences.
    let other = fixture.key("other", &[Permission::Admin]).await;
    let answer = fixture.call(upload(&other, &[], lines(3))).await.lines();
    assert_eq!(answer[3], json!({ "accepted": 3, "rejected": 0 }));
    let csv = [("content-type", "text/csv")];
    let audience = crate::fixture::request(http::Method::PUT, "/v1/audiences/a", &other, &csv, "to\n+966501234567\n");
    assert_eq!(fixture.call(audience).await.status, 200);
    // One line was taken; blank lines do not keep the place.
    let mut blank = Vec::new();
    for (sender, response) in held {
        sender.send(Ok(Bytes::from(line("a") + "\n"))).await.unwrap();
        blank.push(tokio::spawn(async move {
            while sender.send(Ok(Bytes::from_static(b"\n"))).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
        }));
        let text = axum::body::to_bytes(response.into_body(), usize::MAX);
        blank.push(tokio::spawn(async move {
            let text = text.await.unwrap();
            let total: Value = serde_json::from_slice(text.split(|byte| *byte == b'\n').nth(1).unwrap()).unwrap();
            assert_eq!(
                (&total["accepted"], &total["error"]["code"]),
                (&json!(1), &json!("upload_too_slow")),
                "{total}"
            );
            assert!(total["last_line"].as_u64() >= Some(1), "{total}");
        }));
    }
    for task in blank {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn an_upload_ends_at_its_deadline_with_the_totals_so_far() {
    let mut short = options();
    short.bulk.max_duration_s = 1;
    let fixture = Fixture::with(short).await;
    let key = fixture.sender().await;
    let (sender, body) = open_upload();
    let sending = tokio::spawn(async move {
        while sender.send(Ok(Bytes::from(line("a") + "\n"))).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let answer = fixture.call(upload(&key, &[], body)).await.lines();
    let total = answer.last().unwrap();
    assert_eq!(total["error"]["code"], "upload_deadline");
    assert_eq!(total["accepted"], fixture.accepted().await.len());
    sending.await.unwrap();
}

#[tokio::test]
async fn an_empty_upload_is_all_of_nothing() {
    let fixture = Fixture::new().await;
    let key = fixture.sender().await;
    for body in ["", "\n\n"] {
        let answer = fixture.call(upload(&key, &[], body)).await.lines();
        assert_eq!(answer, [json!({ "accepted": 0, "rejected": 0 })]);
    }
}

#[tokio::test]
async fn long_lines_make_smaller_batches() {
    let fixture = Fixture::new().await;
    let key = fixture.sender().await;
    let long = line(&"\u{1f54a}".repeat(10_000)) + "\n";
    let answer = fixture.call(upload(&key, &[], long.repeat(100))).await.lines();
    assert_eq!(answer[100], json!({ "accepted": 100, "rejected": 0 }));
    let appends = fixture.log.appends.load(std::sync::atomic::Ordering::SeqCst);
    assert!(appends >= 4, "{appends} appends for 4 MB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_lines_are_accepted_in_one_request() {
    let fixture = Fixture::new().await;
    let key = fixture.sender().await;
    let block: String = (0..1_000)
        .map(|number| {
            let to = if number % 2 == 0 { PHONE } else { OTHER_PHONE };
            json!({ "to": to, "type": "one_way", "content": "x".repeat(160), "reference": number.to_string() })
                .to_string()
                + "\n"
        })
        .collect();
    let block = Bytes::from(block);
    let body =
        Body::from_stream(futures_util::stream::iter((0..100).map(move |_| Ok::<_, std::io::Error>(block.clone()))));
    let response = fixture.api.clone().oneshot(upload(&key, &[], body)).await.unwrap();
    let mut answers = response.into_body().into_data_stream();
    let mut last = Bytes::new();
    while let Some(part) = answers.next().await {
        last = part.unwrap();
    }
    assert!(last.ends_with(b"{\"accepted\":100000,\"rejected\":0}\n"));
}
