//! What all counters must do. Each engine's tests run [`all`] against itself.

use std::sync::Arc;
use std::time::Duration;

use eshaar_model::{Phone, Rate};

use crate::limits::{Counted, Counters, Grant, Left, Limit, Limits};

/// Fresh counters, and a way to let time pass for them.
pub(crate) struct Subject {
    pub(crate) counters: Arc<dyn Counters>,
    pub(crate) pass: Box<dyn Fn(Duration) + Send + Sync>,
}

/// Every rule, each against fresh counters.
pub(crate) async fn all(fresh: impl AsyncFn() -> Subject) {
    what_is_beyond_the_rate_is_refused_until_it_says(fresh().await).await;
    any_window_has_at_most_the_rate(fresh().await).await;
    all_limits_of_a_caller_are_charged_or_none(fresh().await).await;
    as_many_are_granted_as_there_is_room_for(fresh().await).await;
    some_of_a_limit_can_be_kept_from_a_caller(fresh().await).await;
    nothing_wanted_is_nothing_charged(fresh().await).await;
    what_is_counted_is_counted_apart(fresh().await).await;
    concurrent_callers_get_no_more_than_there_is(fresh().await).await;
}

fn user(number: u64) -> Counted {
    Counted::User(Phone::from_digits(966_500_000_000 + number).unwrap())
}

fn limits(of: impl IntoIterator<Item = (Counted, &'static str)>) -> Limits {
    let limit = |(of, rate): (Counted, &str)| Limit { of, rate: rate.parse::<Rate>().unwrap(), kept: 0 };
    of.into_iter().map(limit).collect()
}

async fn take(subject: &Subject, limits: &Limits, wanted: u32) -> Grant {
    subject.counters.take(limits, wanted).await.unwrap()
}

/// Engines that cannot hold time still may be a little later than what was let pass.
const SLACK: Duration = Duration::from_secs(2);

/// R5.5: the 101st in a minute.
async fn what_is_beyond_the_rate_is_refused_until_it_says(subject: Subject) {
    let limits = limits([(user(1), "100/min")]);
    for count in 1..=100 {
        let grant = take(&subject, &limits, 1).await;
        assert_eq!((grant.granted, grant.retry_after, grant.left[0].remaining), (1, Duration::ZERO, 100 - count));
    }
    (subject.pass)(Duration::from_secs(30));
    let grant = take(&subject, &limits, 1).await;
    assert_eq!((grant.granted, grant.left[0].remaining), (0, 0));
    assert_eq!(grant.retry_after, grant.left[0].more_in);
    let expected = Duration::from_secs(31);
    assert!(grant.retry_after <= expected && grant.retry_after + SLACK >= Duration::from_secs(30), "{grant:?}");
    (subject.pass)(grant.retry_after.saturating_sub(SLACK));
    let early = take(&subject, &limits, 1).await;
    assert!(early.granted == 0 || early.left[0].remaining < 100);
    (subject.pass)(SLACK);
    assert_eq!(take(&subject, &limits, 1).await.granted, 1, "what it said was right");
}

async fn any_window_has_at_most_the_rate(subject: Subject) {
    let limits = limits([(user(1), "10/min")]);
    let (mut now, mut sent): (Duration, Vec<Duration>) = (Duration::ZERO, Vec::new());
    let mut seed = 7_u64;
    for _ in 0..300 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let step = Duration::from_millis((seed >> 33) % 12_000);
        (subject.pass)(step);
        now += step;
        let wanted = 1 + (seed >> 60) as u32 % 4;
        let granted = take(&subject, &limits, wanted).await.granted;
        sent.extend((0..granted).map(|_| now));
        let within = |time: Duration| sent.iter().filter(|at| **at + time > now).count() as u32;
        let minute = within(Duration::from_mins(1));
        assert!(minute <= 10, "{minute} within a minute");
        // The slot that leaves the window leaves it as a whole, a second late at most.
        let lately = within(Duration::from_secs(62) + SLACK) - granted;
        assert!(granted == wanted || lately + wanted > 10, "refused with room: {lately} of 10 and {wanted} wanted");
    }
}

async fn all_limits_of_a_caller_are_charged_or_none(subject: Subject) {
    let wide = limits([(Counted::Whole, "10/min")]);
    let both = limits([(user(1), "3/min"), (Counted::Whole, "10/min")]);
    for _ in 0..3 {
        assert_eq!(take(&subject, &both, 1).await.granted, 1);
    }
    let refused = take(&subject, &both, 1).await;
    assert_eq!((refused.granted, refused.left[0].remaining, refused.left[1].remaining), (0, 0, 7));
    assert_eq!(refused.retry_after, refused.left[0].more_in);
    assert_eq!(take(&subject, &wide, 7).await.granted, 7, "what was refused was not charged elsewhere");
    assert_eq!(take(&subject, &limits([(user(2), "3/min"), (Counted::Whole, "10/min")]), 1).await.granted, 0);
}

async fn as_many_are_granted_as_there_is_room_for(subject: Subject) {
    let limits = limits([(Counted::Key("k1".to_owned()), "100/min"), (Counted::Whole, "1000/min")]);
    let grant = take(&subject, &limits, 250).await;
    assert_eq!((grant.granted, grant.left[0].remaining, grant.left[1].remaining), (100, 0, 900));
    assert!(grant.retry_after > Duration::from_secs(50), "{grant:?}");
    (subject.pass)(grant.retry_after);
    assert_eq!(take(&subject, &limits, 250).await.granted, 100);
}

async fn some_of_a_limit_can_be_kept_from_a_caller(subject: Subject) {
    let all = limits([(Counted::Whole, "10/min")]);
    let mut less = all.clone();
    less[0].kept = 4;
    let grant = take(&subject, &less, 8).await;
    assert_eq!((grant.granted, grant.left[0].remaining), (6, 0));
    assert!(grant.retry_after > Duration::from_secs(50), "{grant:?}");
    assert_eq!(take(&subject, &all, 8).await.granted, 4);
    let over = take(&subject, &less, 1).await;
    assert_eq!(over.granted, 0);
    (subject.pass)(over.retry_after);
    assert!(take(&subject, &less, 1).await.granted == 1, "also where more are used than it may have");
}

async fn nothing_wanted_is_nothing_charged(subject: Subject) {
    let limits = limits([(user(1), "2/min")]);
    let fresh = take(&subject, &limits, 0).await;
    assert_eq!((fresh.granted, fresh.left[0]), (0, Left { remaining: 2, more_in: Duration::ZERO }));
    assert_eq!(take(&subject, &limits, 2).await.granted, 2);
    let grant = take(&subject, &limits, 0).await;
    assert_eq!((grant.granted, grant.retry_after, grant.left[0].remaining), (0, Duration::ZERO, 0));
}

async fn what_is_counted_is_counted_apart(subject: Subject) {
    for of in [user(1), user(2), Counted::Key("1".to_owned()), Counted::Key("2".to_owned()), Counted::Whole] {
        assert_eq!(take(&subject, &limits([(of, "1/min")]), 1).await.granted, 1);
    }
    assert_eq!(take(&subject, &limits([(user(1), "1/min")]), 1).await.granted, 0);
    assert_eq!(take(&subject, &limits([(user(1), "1/h")]), 1).await.granted, 1, "another time is another count");
}

async fn concurrent_callers_get_no_more_than_there_is(subject: Subject) {
    let tasks: Vec<_> = (0..16_u64)
        .map(|task| {
            let counters = Arc::clone(&subject.counters);
            let limits = limits([(user(task % 2), "150/h"), (Counted::Whole, "200/h")]);
            tokio::spawn(async move {
                let mut granted = 0;
                for _ in 0..50 {
                    granted += counters.take(&limits, 1).await.unwrap().granted;
                }
                (task % 2, granted)
            })
        })
        .collect();
    let mut granted = [0, 0];
    for task in tasks {
        let (user, count) = task.await.unwrap();
        granted[user as usize] += count;
    }
    assert_eq!(granted.iter().sum::<u32>(), 200);
    assert!(granted.iter().all(|count| *count <= 150), "{granted:?}");
}
