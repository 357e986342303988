//! What the stages failed on in a run. An outage is to leave no trace here: what is down pauses a stage, and spends no attempt.

use std::fmt;

use anyhow::Context as _;
use serde::Serialize;

/// The metric that counts what stages did with records, and the outcome that is a spent attempt.
const RETRIED: (&str, &str) = ("eshaar_stage_records_total{", "outcome=\"retried\"");

/// Totals of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Failed {
    /// Attempts spent, as far as the processes that run at the end have counted.
    pub attempts: u64,
    /// Records in retry topics: one for each time that a record waited, for its retry or behind another.
    pub waited: u64,
    /// Records in `dead-letters`.
    pub dead_letters: u64,
}

impl Failed {
    /// From what `eshaar topics list` prints, and what each process shows at `/metrics`.
    pub fn read(topics: &str, metrics: &[String]) -> anyhow::Result<Self> {
        let mut failed = Self::default();
        let mut lists_dead_letters = false;
        for line in topics.lines() {
            let mut columns = line.split_whitespace();
            let Some(name) = columns.next() else { continue };
            // Partitions, and how long it is kept, with its unit, stand between.
            let mut records = || columns.nth(3).and_then(|records| records.parse::<u64>().ok());
            if name.starts_with("retry.") {
                failed.waited += records().with_context(|| format!("records of {name}"))?;
            } else if name == "dead-letters" {
                failed.dead_letters = records().with_context(|| format!("records of {name}"))?;
                lists_dead_letters = true;
            }
        }
        anyhow::ensure!(lists_dead_letters, "the list of topics names no dead-letters");
        let samples = metrics.iter().flat_map(|shown| shown.lines());
        let retried = samples.filter(|line| line.starts_with(RETRIED.0) && line.contains(RETRIED.1));
        failed.attempts = retried.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum();
        Ok(failed)
    }

    /// Whether there was anything.
    pub fn any(self) -> bool {
        self != Self::default()
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { attempts, waited, dead_letters } = self;
        write!(f, "{attempts} attempts spent, {waited} waits in retry topics, {dead_letters} dead letters")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const TOPICS: &str = "\
topic                partitions   kept      records  value         from → to
lane.high                     6   48 h          900  Message       prioritize → route
retry.route.1s                6   24 h            7  any           route → route
retry.route.2s                6   24 h            2  any           route → route
dead-letters                  6  168 h            1  DeadLetter    any stage → dead_letter
";

    #[test]
    fn attempts_waits_and_dead_letters_are_counted_over_all_topics_and_processes() {
        let one = "eshaar_stage_records_total{stage=\"route\",outcome=\"retried\"} 3\n\
                   eshaar_stage_records_total{stage=\"route\",outcome=\"done\"} 70\n";
        let other = "eshaar_stage_records_total{outcome=\"retried\",stage=\"archive\"} 4\n";
        let failed = Failed::read(TOPICS, &[one.to_owned(), other.to_owned()]).unwrap();
        assert_eq!(failed, Failed { attempts: 7, waited: 9, dead_letters: 1 });
    }

    #[test]
    fn a_list_that_cannot_be_read_is_no_clean_slate() {
        assert!(Failed::read("", &[]).is_err());
        let unknown = TOPICS.replace("            1  DeadLetter", "            –  DeadLetter");
        assert!(Failed::read(&unknown, &[]).unwrap_err().to_string().contains("dead-letters"));
    }
}
