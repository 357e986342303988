//! What a side has not read, counted from the rows.

use eshaar_model::{ConversationId, MessageType, Side, Status, Timestamp};

use super::{SECOND, at, row, started};
use crate::conformance::{Subject, start};
use crate::conversations::UNREAD_COUNTED;
use crate::{ChatRow, MessageRow, ReadMark, Step, StoreError, Unread};

fn message_of(subject: &Subject, row: &ChatRow) -> MessageRow {
    MessageRow {
        id: row.id,
        message_type: MessageType::Chat,
        conversation: Some(row.conversation),
        sender: row.pair.principal(row.from),
        recipient: row.pair.principal(row.from.other()),
        created_at: row.at,
        expires_at: row.expires_at,
        accepted: (subject.space % 6, Some(row.position.offset)),
        may_repeat: false,
        value: row.value.clone(),
    }
}

pub(super) async fn what_is_unread_is_counted_from_the_rows(subject: &Subject) -> Result<(), StoreError> {
    let conversations = &subject.store.conversations;
    let (of, silent) = (started(subject, 1).await?, started(subject, 2).await?);
    let expires_at = Some(start().plus_millis(60 * SECOND));
    let from = |offset: u64| if offset.is_multiple_of(3) { Side::Phone } else { Side::Business };
    let rows: Vec<_> = (0..12)
        .map(|offset| ChatRow {
            expires_at: expires_at.filter(|_| offset == 10),
            ..row(subject, &of, from(offset), offset, offset as i64)
        })
        .collect();
    conversations.append(rows.clone()).await?;
    let now = start().plus_millis(59 * SECOND);
    let unread = async |now: Timestamp| {
        let of = [
            (of.id, Side::Business),
            (of.id, Side::Phone),
            (silent.id, Side::Phone),
            (ConversationId::new(now), Side::Phone),
        ];
        let all = conversations.unread(&of, now).await?;
        assert!(all.iter().all(|unread| !unread.more));
        assert_eq!(all[2..], [Unread::default(); 2]);
        Ok::<_, StoreError>((all[0].count, all[1].count))
    };
    // Of the business 1 2 4 5 7 8 10 11, of the phone 0 3 6 9; also before the messages themselves are written.
    assert_eq!(unread(now).await?, (4, 8));
    subject.store.messages.put(rows.iter().map(|row| message_of(subject, row)).collect()).await?;
    assert_eq!(unread(now).await?, (4, 8));
    // The tenth was not delivered in its time.
    assert_eq!(unread(now.plus_millis(SECOND)).await?, (4, 7));
    let step = |offset: usize, status| Step { id: rows[offset].id, status, at: now, reason: None };
    let steps = vec![
        step(1, Status::Cancelled),
        step(2, Status::Read),
        step(4, Status::Failed),
        step(5, Status::Delivered),
        step(10, Status::Delivered),
        step(3, Status::Expired),
    ];
    subject.store.messages.reach(steps).await?;
    assert_eq!(unread(now.plus_millis(SECOND)).await?, (3, 5));
    let mark = |side, offset| ReadMark { conversation: of.id, side, up_to: at(subject, 0, offset) };
    conversations.mark_read(vec![mark(Side::Business, 6), mark(Side::Phone, 7)]).await?;
    assert_eq!(unread(now).await?, (1, 3));
    conversations.mark_read(vec![mark(Side::Business, 11), mark(Side::Phone, 11)]).await?;
    assert_eq!(unread(now).await?, (0, 0));
    let mut newer = row(subject, &of, Side::Phone, 1, 70);
    newer.position = at(subject, 1, 1);
    conversations.append(vec![newer]).await?;
    assert_eq!(unread(now).await?, (1, 0));
    Ok(())
}

pub(super) async fn a_count_ends_at_its_bound(subject: &Subject) -> Result<(), StoreError> {
    let conversations = &subject.store.conversations;
    let of = started(subject, 1).await?;
    let rows: Vec<_> = (0..=UNREAD_COUNTED as u64).map(|offset| row(subject, &of, Side::Phone, offset, 0)).collect();
    conversations.append(rows).await?;
    let key = [(of.id, Side::Business)];
    assert_eq!(conversations.unread(&key, start()).await?, [Unread { count: UNREAD_COUNTED, more: true }]);
    conversations
        .mark_read(vec![ReadMark { conversation: of.id, side: Side::Business, up_to: at(subject, 0, 0) }])
        .await?;
    assert_eq!(conversations.unread(&key, start()).await?, [Unread { count: UNREAD_COUNTED, more: false }]);
    Ok(())
}
