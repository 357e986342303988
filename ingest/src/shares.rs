//! Something of which there is only so much, shared by businesses: places for uploads, memory for answers.
//!
//! No business holds more than its part. A reserve is kept for businesses that hold nothing, so that some businesses which
//! take all they can get do not keep others out.

use std::collections::HashMap;
use std::sync::Arc;

use eshaar_model::BusinessId;
use parking_lot::Mutex;

/// What there is, and who holds how much of it.
pub(crate) struct Shares {
    total: usize,
    /// Most that one business may hold.
    part: usize,
    /// Given only to businesses that hold nothing.
    reserve: usize,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    all: usize,
    /// Of those that hold something.
    by_business: HashMap<BusinessId, usize>,
}

/// Why nothing was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    /// The business holds its part.
    Part,
    /// There is no more, or no more than the reserve.
    Total,
}

/// So much is held until it is dropped.
pub(crate) struct Share {
    shares: Arc<Shares>,
    business: BusinessId,
    amount: usize,
}

impl Shares {
    /// A quarter of `total` is kept for businesses that hold nothing.
    pub(crate) fn new(total: usize, part: usize) -> Arc<Self> {
        Arc::new(Self { total, part: part.min(total), reserve: total / 4, held: Mutex::default() })
    }

    /// Takes `amount` for a business.
    pub(crate) fn take(self: &Arc<Self>, business: &BusinessId, amount: usize) -> Result<Share, Full> {
        let mut held = self.held.lock();
        let has = held.by_business.get(business).copied().unwrap_or(0);
        let all = held.all.saturating_add(amount);
        if all > self.total {
            return Err(Full::Total);
        }
        if has.saturating_add(amount) > self.part {
            return Err(Full::Part);
        }
        if has > 0 && all > self.total - self.reserve {
            return Err(Full::Total);
        }
        held.all += amount;
        held.by_business.insert(business.clone(), has + amount);
        Ok(Share { shares: Arc::clone(self), business: business.clone(), amount })
    }

    /// Most that one business may hold.
    pub(crate) const fn part(&self) -> usize {
        self.part
    }

    /// How much there is.
    pub(crate) const fn total(&self) -> usize {
        self.total
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = self.shares.held.lock();
        held.all -= self.amount;
        if let Some(has) = held.by_business.get_mut(&self.business) {
            *has -= self.amount;
            if *has == 0 {
                held.by_business.remove(&self.business);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn business(number: usize) -> BusinessId {
        format!("business-{number}").parse().unwrap()
    }

    #[test]
    fn a_business_gets_its_part_and_others_get_theirs() {
        let shares = Shares::new(32, 8);
        let mut held: Vec<_> = (0..8).map(|_| shares.take(&business(0), 1).unwrap()).collect();
        assert_eq!(shares.take(&business(0), 1).err(), Some(Full::Part));
        held.push(shares.take(&business(1), 8).unwrap());
        held.truncate(7);
        assert!(shares.take(&business(0), 1).is_ok());
        drop(held);
        assert_eq!(shares.held.lock().by_business.len(), 0);
    }

    #[test]
    fn businesses_that_take_all_they_get_leave_a_quarter_to_those_that_hold_nothing() {
        let shares = Shares::new(32, 8);
        let mut held = Vec::new();
        for greedy in 0..4 {
            held.extend(std::iter::from_fn(|| shares.take(&business(greedy), 1).ok()));
        }
        // The fourth held nothing when three had taken all but the reserve.
        assert_eq!(held.len(), 25);
        for other in 4..11 {
            held.push(shares.take(&business(other), 1).unwrap());
            assert_eq!(shares.take(&business(other), 1).err(), Some(Full::Total));
        }
        assert_eq!(shares.take(&business(12), 1).err(), Some(Full::Total));
    }

    #[test]
    fn where_there_is_little_nothing_is_reserved() {
        let shares = Shares::new(2, 8);
        let held = [shares.take(&business(0), 1).unwrap(), shares.take(&business(0), 1).unwrap()];
        assert_eq!(shares.take(&business(0), 1).err(), Some(Full::Total));
        assert_eq!(shares.take(&business(1), 1).err(), Some(Full::Total));
        drop(held);
    }

    proptest! {
        #[test]
        fn never_is_more_held_than_there_is(
            steps in prop::collection::vec((0_usize..6, 1_usize..6, any::<bool>()), 1..200),
        ) {
            let shares = Shares::new(20, 7);
            let mut held: Vec<Share> = Vec::new();
            for (who, amount, gives_back) in steps {
                if gives_back && !held.is_empty() {
                    held.swap_remove(who % held.len());
                } else if let Ok(share) = shares.take(&business(who), amount) {
                    held.push(share);
                }
                let of = |who: usize| -> usize {
                    let held = held.iter().filter(|share| share.business == business(who));
                    held.map(|share| share.amount).sum()
                };
                let all: usize = (0..6).map(of).sum();
                prop_assert!(all <= 20 && (0..6).all(|who| of(who) <= 7));
                prop_assert_eq!(shares.held.lock().all, all);
            }
        }
    }
}
