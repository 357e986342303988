//! R5.5: how much may be sent, and what is answered past it.

use eshaar_auth::keys;
use eshaar_model::Permission;
use eshaar_presence::limits::Options as Limits;
use serde_json::json;

use crate::fixture::{Fixture, NOW, PHONE, options, submission, upload};

impl Fixture {
    /// A key of `acme` that may send `rate`.
    pub async fn key_of(&self, rate: &str) -> String {
        let mut minted = keys::mint("acme".parse().unwrap(), "tests", vec![Permission::MessagesSend], None, NOW);
        minted.stored.rate = Some(rate.parse().unwrap());
        self.store.keys.put(minted.stored).await.unwrap();
        minted.text
    }
}

fn message(number: u32) -> String {
    json!({"to": PHONE, "content": format!("number {number}")}).to_string()
}

#[tokio::test]
async fn one_more_than_the_rate_is_told_when_to_come_back_and_is_let_in_then() {
    let fixture = Fixture::new().await;
    let key = fixture.key_of("100/min").await;
    for number in 0..100 {
        let answer = fixture.call(submission(&key, &[], message(number))).await;
        assert_eq!(answer.status, 202);
        assert_eq!(answer.header("ratelimit-policy"), Some(r#""key";q=100;w=60"#));
        let left = format!(r#""key";r={};t="#, 99 - number);
        assert!(answer.header("ratelimit").unwrap().starts_with(&left), "{:?}", answer.header("ratelimit"));
    }
    let refused = fixture.call(submission(&key, &[], message(100))).await;
    assert_eq!(refused.problem(429), "rate_limited");
    assert_eq!(refused.json()["detail"], "the limit `key` of 100/min is reached; nothing was accepted");
    let wait: i64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((60..=61).contains(&wait), "{wait}");
    fixture.clock.advance_millis(wait * 1_000);
    assert_eq!(fixture.call(submission(&key, &[], message(100))).await.status, 202);
    assert_eq!(fixture.accepted().await.len(), 101);
}

#[tokio::test]
async fn a_repeat_of_what_was_accepted_is_not_counted_and_a_refused_one_can_be_sent_again_with_its_key() {
    let fixture = Fixture::new().await;
    let key = fixture.key_of("2/min").await;
    let once = |idempotency: &'static str| submission(&key, &[("idempotency-key", idempotency)], message(1));
    assert_eq!(fixture.call(once("a")).await.status, 202);
    for _ in 0..5 {
        let repeat = fixture.call(once("a")).await;
        assert_eq!((repeat.status.as_u16(), repeat.header("idempotency-replayed")), (202, Some("true")));
    }
    assert_eq!(fixture.call(once("b")).await.status, 202);
    assert_eq!(fixture.call(once("c")).await.problem(429), "rate_limited");
    fixture.clock.advance_millis(61_000);
    assert_eq!(fixture.call(once("c")).await.status, 202);
    assert_eq!(fixture.accepted().await.len(), 3);
}

#[tokio::test]
async fn lines_past_the_rate_are_refused_one_by_one_once_the_upload_has_waited_long_enough() {
    let fixture = Fixture::new().await;
    let key = fixture.key_of("3/min").await;
    let lines: Vec<String> = (0..5).map(message).collect();
    let answer = fixture.call(upload(&key, &[], lines.join("\n"))).await;
    assert_eq!(answer.header("ratelimit-policy"), Some(r#""key";q=3;w=60"#));
    let answers = answer.lines();
    let accepted = answers.iter().filter(|line| line["status"] == "sent").count();
    let refused: Vec<_> = answers.iter().filter(|line| line["error"]["code"] == "rate_limited").collect();
    assert_eq!((accepted, refused.len()), (3, 2));
    assert_eq!((&refused[0]["line"], &refused[1]["line"]), (&json!(4), &json!(5)));
    assert_eq!(answers.last().unwrap(), &json!({"accepted": 3, "rejected": 2}));
    assert_eq!(fixture.accepted().await.len(), 3);
}

#[tokio::test]
async fn a_key_without_a_rate_has_the_rate_of_all_keys() {
    let fixture = Fixture::limited(options(), Limits { whole: None, key_per_s: 3, ..Limits::default() }).await;
    let (key, other) = (fixture.sender().await, fixture.sender().await);
    for number in 0..3 {
        let answer = fixture.call(submission(&key, &[], message(number))).await;
        assert_eq!((answer.status.as_u16(), answer.header("ratelimit-policy")), (202, Some(r#""key";q=3;w=1"#)));
    }
    let refused = fixture.call(submission(&key, &[], message(3))).await;
    assert_eq!(refused.problem(429), "rate_limited");
    assert_eq!(refused.json()["detail"], "the limit `key` of 3/s is reached; nothing was accepted");
    assert_eq!(fixture.call(submission(&other, &[], message(3))).await.status, 202);
    let without = Fixture::new().await;
    let key = without.sender().await;
    let answer = without.call(submission(&key, &[], message(1))).await;
    assert_eq!((answer.status.as_u16(), answer.header("ratelimit-policy")), (202, None), "0 is no limit");
}
