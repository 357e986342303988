//! Repeats: those that the window knows, those that are looked for in the stream, and what is not looked for.

use eshaar_topics::redrive::Redriven;

use super::*;

#[tokio::test]
async fn a_repeat_that_is_older_than_the_window_is_found_in_the_stream() {
    let mut rig = Rig::open(Options { window_ids: 1, ..Options::default() }).await;
    let sent = message(phones()[0]);
    rig.enqueue(&sent, Lane::Normal).await;
    for _ in 0..5 {
        rig.enqueue(&message(phones()[0]), Lane::Normal).await;
    }
    rig.finish().await;
    rig.enqueue(&sent, Lane::Normal).await;
    rig.crash().await;
    rig.finish().await;
    let ids: Vec<MessageId> = rig.stream(&sent.recipient, [0; 4]).await.iter().map(|(_, _, id)| *id).collect();
    assert_eq!((ids.len(), ids.iter().filter(|id| **id == sent.id).count()), (6, 1));
}

/// The lines of a bulk request with a key have ids that are as old as the key; the store is not asked of their first records.
#[tokio::test]
async fn the_store_is_not_asked_of_first_records_however_old_their_ids_are() {
    let mut rig = Rig::open(Options::default()).await;
    let phone = message(phones()[0]).recipient;
    // One record a second for ten minutes, while the window holds two.
    let mut lines = Vec::new();
    for second in 0..600 {
        let line = Message { id: MessageId::new(START), ..message(phones()[0]) };
        let record = flow::accepted(&line, Lane::Bulk, &rig.engines.codecs, &TraceContext::new()).unwrap();
        let (topic, timestamp) = (Topic::LaneBulk, rig.engines.clock.now());
        let key = Bytes::copy_from_slice(phone.as_bytes());
        let record = NewRecord { topic, key, timestamp, ..flow::first_at(record, timestamp) };
        rig.engines.log.append(vec![record.clone()]).await.unwrap();
        lines.push(record);
        rig.engines.clock.advance_millis(1_000);
        if second % 100 == 99 {
            rig.finish().await;
        }
    }
    assert_eq!(rig.stream(&phone, [0; 4]).await.len(), 600);
    assert_eq!(rig.flaky.questions.lock().len(), 0);
    // Repeats of them are found all the same, and each question is bounded by the age of its record.
    let repeated: Vec<_> = [&lines[10], &lines[200]].map(|line| flow::may_repeat(line.clone())).into();
    rig.engines.log.append(repeated).await.unwrap();
    rig.finish().await;
    assert_eq!(rig.stream(&phone, [0; 4]).await.len(), 600);
    let questions = rig.flaky.questions.lock().clone();
    assert_eq!(questions.len(), 2);
}

#[tokio::test]
async fn a_repeat_is_looked_for_among_records_of_its_own_age_alone() {
    let mut rig = Rig::open(Options { window_ids: 1, ..Options::default() }).await;
    for _ in 0..50 {
        rig.enqueue(&message(phones()[0]), Lane::Normal).await;
    }
    rig.engines.clock.advance_millis(600_000);
    let now = rig.engines.clock.now();
    let sent = Message { id: MessageId::new(now), created_at: now.as_millis(), ..message(phones()[0]) };
    for _ in 0..2 {
        rig.enqueue(&sent, Lane::Normal).await;
        rig.enqueue(&Message { id: MessageId::new(now), ..sent.clone() }, Lane::Normal).await;
        rig.finish().await;
    }
    assert_eq!(rig.stream(&sent.recipient, [0; 4]).await.len(), 53);
    let questions = rig.flaky.questions.lock().clone();
    let of_repeat = questions.iter().find(|asked| asked.id == sent.id && asked.position.offset > 50);
    assert_eq!(of_repeat.map(|asked| asked.from), Some(50), "{questions:?}");
}

#[tokio::test]
async fn a_redriven_record_is_appended_though_the_one_that_died_is_in_the_window_and_only_once() {
    let mut rig = Rig::open(Options::default()).await;
    let sent = message(phones()[0]);
    rig.enqueue(&sent, Lane::Normal).await;
    // It died: settled, and not in the stream. The next owner reads its record back into the window.
    rig.committed[Lane::Normal.index()] = 1;
    rig.crash().await;
    let [died] = &rig.records(Topic::LaneNormal, 0, 0, 10).await[..] else { panic!("not one record") };
    let redriven = Redriven {
        topic: Topic::LaneNormal,
        partition: 0,
        key: died.key.clone(),
        value: died.value.clone(),
        headers: died.headers.clone(),
        redrives: 0,
    };
    // Twice, as by one that died before it had written down that the log has it.
    for _ in 0..2 {
        rig.engines.log.append(vec![redriven.clone().record(START)]).await.unwrap();
        rig.finish().await;
    }
    assert_eq!(rig.stream(&sent.recipient, [0; 4]).await, [(Lane::Normal, 1, sent.id)]);
}
