//! How topics and groups are called on the cluster.

use crate::Topic;

/// The names of one configured prefix.
#[derive(Clone, Debug)]
pub(super) struct Names {
    prefix: String,
    topics: [String; Topic::ALL.len()],
}

impl Names {
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), topics: Topic::ALL.map(|topic| format!("{prefix}{topic}")) }
    }

    pub fn of(&self, topic: Topic) -> &str {
        &self.topics[topic as usize]
    }

    /// The topic of that name, if it is one of ours.
    pub fn topic(&self, name: &str) -> Option<Topic> {
        Topic::ALL.into_iter().find(|topic| self.of(*topic) == name)
    }

    pub fn group(&self, stage: &str) -> String {
        format!("{}{stage}", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_and_groups_carry_the_prefix_and_are_found_by_it() {
        let names = Names::new("eshaar.");
        assert_eq!(names.of(Topic::MessagesAccepted), "eshaar.messages.accepted");
        assert_eq!(names.group("route"), "eshaar.route");
        for topic in Topic::ALL {
            assert_eq!(names.topic(names.of(topic)), Some(topic));
        }
        assert_eq!(names.topic("messages.accepted"), None);
    }
}
