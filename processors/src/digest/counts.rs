//! What a digest says: how many letters, of which stage, with which code, of which business. No content.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use eshaar_model::Timestamp;

/// Most lines of a digest; what is beyond is one sum.
const MOST_LINES: usize = 100;

/// Letters by stage, code and business.
#[derive(Debug, Default)]
pub(super) struct Counts {
    by: BTreeMap<(String, String, String), u64>,
    total: u64,
    times: Option<(Timestamp, Timestamp)>,
}

impl Counts {
    pub(super) fn add(&mut self, stage: &str, code: &str, business: Option<&str>, at: Timestamp) {
        // Names come from records: none of them may begin a line of its own.
        let plain = |name: &str| name.replace(char::is_control, "\u{fffd}");
        let key = (plain(stage), plain(code), plain(business.unwrap_or("–")));
        *self.by.entry(key).or_default() += 1;
        self.total += 1;
        self.times = Some(self.times.map_or((at, at), |(first, last)| (first.min(at), last.max(at))));
    }

    pub(super) const fn total(&self) -> u64 {
        self.total
    }

    pub(super) fn subject(&self) -> String {
        let letters = if self.total == 1 { "dead letter" } else { "dead letters" };
        format!("eshaar: {} {letters}", self.total)
    }

    /// Plain text, the most frequent first.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |line: std::fmt::Arguments<'_>| {
            let _ = writeln!(text, "{line}");
        };
        if let Some((first, last)) = self.times {
            line(format_args!("{} records were given up on, from {first} to {last}.\n", self.total));
        }
        line(format_args!("{:>8}  {:<14} {:<20} business", "letters", "stage", "code"));
        let mut by: Vec<_> = self.by.iter().collect();
        by.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        for ((stage, code, business), count) in by.iter().take(MOST_LINES) {
            line(format_args!("{count:>8}  {stage:<14} {code:<20} {business}"));
        }
        let rest: u64 = by.iter().skip(MOST_LINES).map(|(_, count)| **count).sum();
        if rest > 0 {
            line(format_args!("{rest:>8}  others"));
        }
        line(format_args!(
            "\nLook into them with `eshaar dead-letters list`, or on the console's page of dead letters."
        ));
        line(format_args!("They are kept for 7 days."));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_begins_a_line_or_a_header() {
        let mut counts = Counts::default();
        counts.add("route\r\nBcc: x@example.com", "<script>\r\n\r\nx", Some("a\nb"), Timestamp::from_millis(0));
        assert_eq!(counts.subject(), "eshaar: 1 dead letter");
        assert!(
            !counts.text().lines().any(|line| line.starts_with("Bcc") || line == "x" || line == "b"),
            "{}",
            counts.text()
        );
    }

    #[test]
    fn a_digest_is_bounded_and_adds_up() {
        let mut counts = Counts::default();
        for number in 0..300 {
            counts.add("route", "undecodable", Some(&format!("acme-{number}")), Timestamp::from_millis(number));
        }
        counts.add("archive", "invalid", None, Timestamp::from_millis(7));
        counts.add("archive", "invalid", None, Timestamp::from_millis(8));
        let text = counts.text();
        assert_eq!((counts.total(), counts.subject().as_str()), (302, "eshaar: 302 dead letters"));
        assert!(text.lines().count() < MOST_LINES + 10, "{text}");
        assert!(
            text.contains("       2  archive        invalid              –") && text.contains("201  others"),
            "{text}"
        );
    }
}
