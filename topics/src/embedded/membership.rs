//! Who of a group owns which partition numbers: the rules, without time or waiting.
//!
//! Range assignment by number over the members in the order they joined. A partition moves in three steps: it is revoked
//! from its owner, released (or taken after the timeout), and only then assigned to the next. What was assigned and not
//! yet told to the member moves at once.

/// A member of a group.
pub(super) type MemberId = u64;

/// Where a partition number stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Nobody's.
    Free,
    /// Assigned; the member has not been told.
    Promised(MemberId),
    /// The member was told.
    Owned { by: MemberId, generation: u64 },
    /// On its way out.
    Leaving { by: MemberId, generation: u64, ticket: u64, told: bool },
}

/// What a member has to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum News {
    Assigned { generation: u64, partitions: Vec<u32> },
    Revoked { partitions: Vec<u32>, tickets: Vec<u64> },
}

/// The members of a group and what they own.
#[derive(Debug)]
pub(super) struct Membership {
    members: Vec<MemberId>,
    places: Vec<Place>,
    /// Taken from members before they were told: partition and ticket. Told before anything else.
    lost: Vec<(MemberId, u32, u64)>,
    generation: u64,
    last_member: MemberId,
    last_ticket: u64,
}

impl Membership {
    pub fn new(partitions: u32) -> Self {
        let places = vec![Place::Free; partitions as usize];
        Self { members: Vec::new(), places, lost: Vec::new(), generation: 0, last_member: 0, last_ticket: 0 }
    }

    /// Begins anew with another number of partitions, without members. Generations go on.
    pub fn restart(&mut self, partitions: u32) {
        self.members.clear();
        self.lost.clear();
        self.places = vec![Place::Free; partitions as usize];
    }

    pub const fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// A new member; returns the tickets of what others must give up for it.
    pub fn join(&mut self) -> (MemberId, Vec<u64>) {
        self.last_member += 1;
        self.members.push(self.last_member);
        (self.last_member, self.rebalance())
    }

    /// The member is gone; what it had is free at once. Returns the tickets of what moves between the others.
    pub fn leave(&mut self, member: MemberId) -> Vec<u64> {
        self.members.retain(|known| *known != member);
        self.lost.retain(|(by, ..)| *by != member);
        for place in &mut self.places {
            if place.holder() == Some(member) {
                *place = Place::Free;
            }
        }
        self.rebalance()
    }

    /// The partitions of these tickets were given up, or their time is over. Tickets that are settled do nothing.
    pub fn settle(&mut self, tickets: &[u64]) {
        for (number, place) in self.places.iter_mut().enumerate() {
            if let Place::Leaving { by, ticket, told, .. } = *place
                && tickets.contains(&ticket)
            {
                if !told {
                    self.lost.push((by, number as u32, ticket));
                }
                *place = Place::Free;
            }
        }
        // Nothing can be revoked by this: who is to own what has not changed.
        self.rebalance();
    }

    /// The next news for a member, once.
    pub fn news(&mut self, member: MemberId) -> Option<News> {
        let (mut partitions, mut tickets) = (Vec::new(), Vec::new());
        self.lost.retain(|(by, number, ticket)| {
            if *by == member {
                partitions.push(*number);
                tickets.push(*ticket);
            }
            *by != member
        });
        for (number, place) in self.places.iter_mut().enumerate() {
            if let Place::Leaving { by, ticket, told, .. } = place
                && *by == member
                && !*told
            {
                *told = true;
                partitions.push(number as u32);
                tickets.push(*ticket);
            }
        }
        if !partitions.is_empty() {
            return Some(News::Revoked { partitions, tickets });
        }
        let generation = self.generation + 1;
        for (number, place) in self.places.iter_mut().enumerate() {
            if *place == Place::Promised(member) {
                *place = Place::Owned { by: member, generation };
                partitions.push(number as u32);
            }
        }
        if partitions.is_empty() {
            return None;
        }
        self.generation = generation;
        Some(News::Assigned { generation, partitions })
    }

    /// Whether `member` may commit for a partition with what it began in `generation`: it has it, and has had it since.
    pub fn may_commit(&self, member: MemberId, generation: u64, partition: u32) -> bool {
        match self.places.get(partition as usize) {
            Some(Place::Owned { by, generation: since } | Place::Leaving { by, generation: since, .. }) => {
                *by == member && *since <= generation
            }
            _ => false,
        }
    }

    /// Who is to own a partition: the first members have one more where it does not come out even.
    fn target(&self, partition: usize) -> Option<MemberId> {
        let (members, partitions) = (self.members.len(), self.places.len());
        let share = partitions.checked_div(members)?;
        let larger = partitions % members;
        let member = if partition < larger * (share + 1) {
            partition / (share + 1)
        } else {
            larger + (partition - larger * (share + 1)) / share
        };
        self.members.get(member).copied()
    }

    fn rebalance(&mut self) -> Vec<u64> {
        let mut tickets = Vec::new();
        for number in 0..self.places.len() {
            let target = self.target(number);
            let place = &mut self.places[number];
            match (*place, target) {
                (Place::Free | Place::Promised(_), Some(member)) => *place = Place::Promised(member),
                (Place::Free | Place::Promised(_), None) => *place = Place::Free,
                (Place::Owned { by, generation }, target) if target != Some(by) => {
                    self.last_ticket += 1;
                    *place = Place::Leaving { by, generation, ticket: self.last_ticket, told: false };
                    tickets.push(self.last_ticket);
                }
                _ => {}
            }
        }
        tickets
    }
}

impl Place {
    const fn holder(&self) -> Option<MemberId> {
        match self {
            Self::Free => None,
            Self::Promised(by) | Self::Owned { by, .. } | Self::Leaving { by, .. } => Some(*by),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn assigned(group: &mut Membership, member: MemberId) -> Vec<u32> {
        match group.news(member) {
            Some(News::Assigned { partitions, .. }) => partitions,
            _ => Vec::new(),
        }
    }

    #[test]
    fn partitions_are_spread_evenly_in_ranges() {
        let mut group = Membership::new(7);
        let members: Vec<_> = (0..3).map(|_| group.join().0).collect();
        let owned: Vec<_> = members.iter().map(|member| assigned(&mut group, *member)).collect();
        assert_eq!(owned, [vec![0, 1, 2], vec![3, 4], vec![5, 6]]);
    }

    #[test]
    fn a_partition_is_assigned_only_after_its_owner_gave_it_up() {
        let mut group = Membership::new(2);
        let (first, _) = group.join();
        assert_eq!(assigned(&mut group, first), [0, 1]);
        let (second, tickets) = group.join();
        assert_eq!(tickets.len(), 1);
        assert_eq!(group.news(second), None);
        assert_eq!(group.news(first), Some(News::Revoked { partitions: vec![1], tickets: tickets.clone() }));
        assert_eq!(group.news(first), None);
        assert!(group.may_commit(first, 1, 1), "it drains and commits");
        group.settle(&tickets);
        assert!(!group.may_commit(first, 1, 1));
        assert_eq!(group.news(second), Some(News::Assigned { generation: 2, partitions: vec![1] }));
    }

    #[test]
    fn what_was_begun_under_an_earlier_assignment_is_not_committed_under_a_later_one() {
        let mut group = Membership::new(1);
        let (first, _) = group.join();
        assert_eq!(assigned(&mut group, first), [0]);
        group.leave(first);
        let (second, _) = group.join();
        assert_eq!(assigned(&mut group, second), [0]);
        assert!(!group.may_commit(first, 1, 0) && !group.may_commit(second, 1, 0));
        assert!(group.may_commit(second, 2, 0));
    }

    #[test]
    fn a_late_release_does_not_free_what_was_assigned_again() {
        let mut group = Membership::new(2);
        let (first, _) = group.join();
        assigned(&mut group, first);
        let (second, tickets) = group.join();
        group.news(first);
        group.settle(&tickets);
        assert_eq!(assigned(&mut group, second), [1]);
        group.settle(&tickets);
        assert!(group.may_commit(second, 2, 1));
    }

    #[test]
    fn a_member_that_did_not_listen_in_time_is_told_what_it_lost_before_it_gets_it_back() {
        let mut group = Membership::new(2);
        let (first, _) = group.join();
        assert_eq!(assigned(&mut group, first), [0, 1]);
        let (second, tickets) = group.join();
        group.settle(&tickets);
        group.leave(second);
        assert_eq!(group.news(first), Some(News::Revoked { partitions: vec![1], tickets }));
        assert_eq!(group.news(first), Some(News::Assigned { generation: 2, partitions: vec![1] }));
    }

    #[derive(Clone, Debug)]
    enum Act {
        Join,
        Leave(usize),
        Listen(usize),
        Settle(usize),
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            2 => Just(Act::Join),
            1 => any::<usize>().prop_map(Act::Leave),
            4 => any::<usize>().prop_map(Act::Listen),
            3 => any::<usize>().prop_map(Act::Settle),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn a_partition_has_one_owner_at_a_time_and_all_are_owned_in_the_end(
            partitions in 1_u32..9,
            acts in prop::collection::vec(act(), 1..60),
        ) {
            let mut group = Membership::new(partitions);
            let mut members: Vec<MemberId> = Vec::new();
            let mut owner: Vec<Option<MemberId>> = vec![None; partitions as usize];
            let mut told: Vec<(MemberId, Vec<u32>, Vec<u64>)> = Vec::new();
            let mut generation = 0;
            let mut listen = |group: &mut Membership, member, owner: &mut Vec<Option<MemberId>>, told: &mut Vec<_>| {
                match group.news(member) {
                    Some(News::Assigned { generation: new, partitions }) => {
                        assert!(new > generation);
                        generation = new;
                        for partition in partitions {
                            assert_eq!(owner[partition as usize].replace(member), None, "had an owner");
                        }
                    }
                    Some(News::Revoked { partitions, tickets }) => told.push((member, partitions, tickets)),
                    None => return false,
                }
                true
            };
            let settle = |group: &mut Membership, (member, partitions, tickets): (MemberId, Vec<u32>, Vec<u64>), owner: &mut Vec<Option<MemberId>>| {
                for partition in partitions {
                    if owner[partition as usize] == Some(member) {
                        owner[partition as usize] = None;
                    }
                }
                group.settle(&tickets);
            };
            for act in acts {
                match act {
                    Act::Join if members.len() < 6 => members.push(group.join().0),
                    Act::Leave(which) if !members.is_empty() => {
                        let member = members.remove(which % members.len());
                        told.retain(|(by, ..)| *by != member);
                        owner.iter_mut().filter(|by| **by == Some(member)).for_each(|by| *by = None);
                        group.leave(member);
                    }
                    Act::Listen(which) if !members.is_empty() => {
                        listen(&mut group, members[which % members.len()], &mut owner, &mut told);
                    }
                    Act::Settle(which) if !told.is_empty() => {
                        let ticket = told.remove(which % told.len());
                        settle(&mut group, ticket, &mut owner);
                    }
                    _ => {}
                }
            }
            if members.is_empty() {
                return Ok(());
            }
            loop {
                let mut heard = false;
                for member in members.clone() {
                    heard |= listen(&mut group, member, &mut owner, &mut told);
                }
                if !heard && told.is_empty() {
                    break;
                }
                for ticket in std::mem::take(&mut told) {
                    settle(&mut group, ticket, &mut owner);
                }
            }
            for member in &members {
                let share = owner.iter().filter(|by| **by == Some(*member)).count();
                prop_assert!(share.abs_diff(partitions as usize / members.len()) <= 1);
            }
            prop_assert!(owner.iter().all(Option::is_some));
        }
    }
}
