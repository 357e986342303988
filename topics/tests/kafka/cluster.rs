//! Topics made, checked and changed.

use std::time::Instant;

use eshaar_topics::kafka::{self, Applied, Difference, KafkaLog, Options};
use eshaar_topics::partitioner::partition_of;
use eshaar_topics::{Headers, Log as _, NewRecord, Topic};
use rdkafka::admin::{AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication};

use crate::{Opened, PATIENCE, admin, options, prefix};

async fn applied(options: &Options, prefix: &str) -> Vec<Applied> {
    kafka::apply(options, prefix).await.unwrap().0.into_iter().map(|(_, applied)| applied).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the real engines: ./test"]
async fn what_is_missing_is_made_once_and_what_differs_is_set_back() {
    let opened = Opened::with(|_| {}).await;
    let (options, prefix) = (&opened.options, &opened.prefix);
    assert_eq!(kafka::check(options, prefix).await.unwrap(), []);
    assert_eq!(applied(options, prefix).await, vec![Applied::Unchanged; Topic::ALL.len()]);

    // Somebody changes a setting of ours and one that is theirs.
    let name = format!("{prefix}lane.high");
    let change = AlterConfig::new(ResourceSpecifier::Topic(&name))
        .set("retention.ms", "1000")
        .set("message.timestamp.after.max.ms", "9223372036854775807")
        .set("segment.bytes", "1234567");
    admin().alter_configs([&change], &AdminOptions::new()).await.unwrap();
    // The broker hears of it from the controller, a moment later.
    let deadline = Instant::now() + PATIENCE;
    let mut differences = Vec::new();
    while differences.len() < 3 && Instant::now() < deadline {
        differences = kafka::check(options, prefix).await.unwrap();
    }
    let retention = |difference: &Difference| {
        matches!(difference, Difference::Setting { topic, key, found: Some(found), wanted }
            if *topic == name && key == "retention.ms" && found == "1000" && wanted == "172800000")
    };
    assert!(differences.iter().any(retention), "{differences:?}");
    let error = KafkaLog::open(options.clone(), prefix).await.err().unwrap().to_string();
    for word in [&name, "retention.ms=1000", "not 172800000", "eshaar topics apply"] {
        assert!(error.contains(word), "{error}");
    }
    let report = kafka::apply(options, prefix).await.unwrap();
    assert!(report.is_complete() && report.to_string().contains(&format!("{name}: altered")), "{report}");
    assert_eq!(kafka::check(options, prefix).await.unwrap(), []);
    let theirs = admin().describe_configs([&ResourceSpecifier::Topic(&name)], &AdminOptions::new()).await.unwrap();
    let kept = theirs[0].as_ref().unwrap().get("segment.bytes").unwrap().value.clone();
    assert_eq!(kept.as_deref(), Some("1234567"), "what is not ours is left as it is");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the real engines: ./test"]
async fn another_number_of_partitions_is_named_and_never_changed() {
    let (options, prefix) = (options(), prefix());
    let name = format!("{prefix}dead-letters");
    let other = NewTopic::new(&name, 3, TopicReplication::Fixed(1));
    admin().create_topics([&other], &AdminOptions::new()).await.unwrap();
    let opened = KafkaLog::open(options.clone(), &prefix).await.err().unwrap().to_string();
    assert!(opened.contains(&format!("{name} has 3 partitions, not 6")), "{opened}");
    assert!(opened.contains(&format!("{prefix}messages.accepted is missing")), "{opened}");

    let report = kafka::apply(&options, &prefix).await.unwrap();
    assert!(!report.is_complete());
    for (topic, applied) in &report.0 {
        match applied {
            Applied::Refused(differences) if *topic == name => {
                let shape = Difference::Partitions { topic: name.clone(), found: 3, wanted: 6 };
                assert_eq!(*differences, [shape]);
            }
            applied => assert_eq!(*applied, Applied::Created, "{topic}"),
        }
    }
    let error = KafkaLog::open(options, &prefix).await.err().unwrap().to_string();
    assert!(error.contains("3 partitions, not 6") && !error.contains("missing"), "{error}");
    let names: Vec<String> = Topic::ALL.into_iter().map(|topic| format!("{prefix}{topic}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    admin().delete_topics(&names, &AdminOptions::new()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the real engines: ./test"]
async fn topics_have_as_many_partitions_as_the_options_say() {
    let opened = Opened::with(|options| (options.partitions, options.slots) = (3, 2)).await;
    for topic in Topic::ALL {
        let count = if topic == Topic::Deliveries { 2 } else { 3 };
        assert_eq!(opened.log.partitions(topic), count, "{topic}");
        assert!(opened.log.bounds(topic, count - 1).await.is_ok(), "{topic}");
        assert!(opened.log.bounds(topic, count).await.is_err(), "{topic}");
    }
    let key = (0..100)
        .map(|n: u32| n.to_string())
        .find(|key| partition_of(key.as_bytes(), 3) != partition_of(key.as_bytes(), 6));
    let key = key.unwrap();
    let record = NewRecord {
        topic: Topic::LaneHigh,
        partition: None,
        key: key.clone().into(),
        value: "a value".into(),
        headers: Headers::none(),
        timestamp: opened.clock.now(),
    };
    let stands = opened.log.append(vec![record]).await.unwrap()[0];
    assert_eq!(stands.partition, partition_of(key.as_bytes(), 3));
    let other = Options { partitions: 6, ..opened.options.clone() };
    let error = KafkaLog::open(other, &opened.prefix).await.err().unwrap().to_string();
    assert!(error.contains("lane.high has 3 partitions, not 6 (kafka.partitions"), "{error}");
}

#[tokio::test]
#[ignore = "needs the real engines: ./test"]
async fn a_cluster_that_does_not_answer_is_an_error_in_time() {
    let away = Options { bootstrap_servers: "127.0.0.1:1".to_owned(), request_timeout_ms: 300, ..options() };
    let begun = std::time::Instant::now();
    assert!(KafkaLog::open(away, "x.").await.is_err());
    assert!(begun.elapsed() < std::time::Duration::from_secs(5));
}
