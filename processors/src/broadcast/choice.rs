//! The choice of the broadcasts that this process takes on: a few of each business, and the business with the fewest first, so
//! that none waits for the many of another. Pure.

use std::collections::{BTreeMap, HashMap, VecDeque};

use eshaar_model::{BroadcastId, BusinessId};
use eshaar_store::OpenBroadcast;

/// How many broadcasts a process holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caps {
    /// In all.
    pub(super) all: usize,
    /// Of a business.
    pub(super) each: usize,
}

/// A choice.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Choice {
    /// Those to be taken on, in this order, while there is room.
    pub(super) candidates: Vec<OpenBroadcast>,
    /// Where there is no room: one that is to be let go of, for a business that has fewer.
    pub(super) release: Option<BroadcastId>,
}

/// Chooses among `open`, those that nobody is known to hold, the oldest first. `held` are those of this process.
pub(super) fn choose(open: Vec<OpenBroadcast>, held: &HashMap<BroadcastId, BusinessId>, caps: Caps) -> Choice {
    let mut counts: HashMap<BusinessId, usize> = HashMap::new();
    for business in held.values() {
        *counts.entry(business.clone()).or_default() += 1;
    }
    let mut waiting: BTreeMap<BusinessId, VecDeque<OpenBroadcast>> = BTreeMap::new();
    for one in open {
        waiting.entry(one.business.clone()).or_default().push_back(one);
    }
    let count_of =
        |counts: &HashMap<BusinessId, usize>, business: &BusinessId| counts.get(business).copied().unwrap_or(0);
    let fewest = waiting.keys().map(|business| count_of(&counts, business)).min();
    let release = fewest.filter(|_| held.len() >= caps.all).and_then(|fewest| {
        let (largest, most) = counts.iter().max_by_key(|(_, count)| **count)?;
        // Only where that makes it more even.
        let victim = held.iter().filter(|(_, business)| *business == largest).map(|(id, _)| *id).max()?;
        (*most > fewest + 1).then_some(victim)
    });
    let mut candidates = Vec::new();
    loop {
        let next = waiting.iter().filter(|(business, all)| !all.is_empty() && count_of(&counts, business) < caps.each);
        // Of those with equally many, the oldest broadcast.
        let next = next.min_by_key(|(business, all)| (count_of(&counts, business), all.front().map(|one| one.id)));
        let Some(business) = next.map(|(business, _)| business.clone()) else { break };
        let Some(one) = waiting.get_mut(&business).and_then(VecDeque::pop_front) else { break };
        *counts.entry(business).or_default() += 1;
        candidates.push(one);
    }
    Choice { candidates, release }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use eshaar_model::Timestamp;

    use super::*;

    fn open(business: &str, count: i64) -> Vec<OpenBroadcast> {
        let at = |number| Timestamp::from_millis(1_760_000_000_000 + number);
        let one = |number| OpenBroadcast { business: business.parse().unwrap(), id: BroadcastId::new(at(number)) };
        (0..count).map(one).collect()
    }

    fn names(choice: &Choice) -> Vec<&str> {
        choice.candidates.iter().map(|one| one.business.as_str()).collect()
    }

    #[test]
    fn one_of_each_business_comes_before_a_second_of_any() {
        let caps = Caps { all: 100, each: 3 };
        let all = [open("many", 50), open("few", 2), open("one", 1)].concat();
        let choice = choose(all, &HashMap::new(), caps);
        assert_eq!(choice.release, None);
        let mut first: Vec<_> = names(&choice)[..3].to_vec();
        first.sort_unstable();
        assert_eq!(first, ["few", "many", "one"]);
        assert_eq!(names(&choice).len(), 3 + 2 + 1, "no more than `each` of a business");
    }

    #[test]
    fn where_all_is_held_by_one_business_it_lets_go_of_one_for_another_that_has_none() {
        let caps = Caps { all: 4, each: 8 };
        let held: HashMap<_, _> = open("many", 4).into_iter().map(|one| (one.id, one.business)).collect();
        let choice = choose(open("other", 1), &held, caps);
        assert_eq!(choice.release, held.keys().max().copied(), "its newest");
        assert_eq!(choose(open("many", 9), &held, caps).release, None, "not for more of its own");
        let even: HashMap<_, _> =
            ["a", "b", "c", "d"].into_iter().flat_map(|name| open(name, 1)).map(|one| (one.id, one.business)).collect();
        assert_eq!(choose(open("other", 1), &even, caps).release, None, "not where each has one");
    }
}
