//! Numbering plans, by the metadata of Google's libphonenumber: a number must fit the outline of its country's plan, which is
//! what it may begin with and how long it then is. It need not be in a range that is assigned to a kind of service by now:
//! plans assign ranges all the time, and the metadata of a release is behind them. But one that begins with the trunk prefix
//! of its country, or with a zero, must be: otherwise the prefix was kept.
//!
//! The library's own check takes a lock and a cache of regular expressions for each number. Here the patterns of a country
//! code are compiled once, when its first number comes, and matched against the whole national number as it stands.

use std::sync::{LazyLock, OnceLock};

use phonenumber::Type;
use phonenumber::metadata::{DATABASE, Metadata};
use regex::{Regex, RegexBuilder};

/// Country codes have at most 3 digits.
const CODES: usize = 1_000;

/// Kinds of subscriber numbers. Short codes and emergency numbers are reached from within a country only.
const KINDS: [Type; 10] = [
    Type::Mobile,
    Type::FixedLine,
    Type::TollFree,
    Type::PremiumRate,
    Type::SharedCost,
    Type::PersonalNumber,
    Type::Voip,
    Type::Pager,
    Type::Uan,
    Type::Voicemail,
];

/// The plan of one country, or of a network without one.
struct Plan {
    /// Pattern of all numbers that it has or may get.
    outline: Regex,
    /// Patterns of the kinds of numbers that it has assigned, joined.
    assigned: Regex,
    /// Of countries that share a code: what their numbers begin with, where that tells them apart.
    leading: Option<Regex>,
    /// What is dialled before a number within the country only.
    trunk_prefix: Option<String>,
}

static PLANS: LazyLock<Vec<OnceLock<Vec<Plan>>>> =
    LazyLock::new(|| std::iter::repeat_with(OnceLock::new).take(CODES).collect());

/// What the plans say of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Valid,
    /// Valid once the trunk prefix behind the country code is left out.
    TrunkPrefix {
        code: u16,
    },
    Unknown,
}

/// Judges an E.164 number by its digits, without the `+`.
pub(super) fn judge(digits: &str) -> Verdict {
    let mut verdict = Verdict::Unknown;
    for length in 1..=3 {
        let Some((code, national)) = digits.split_at_checked(length) else { break };
        let Ok(code) = code.parse::<u16>() else { break };
        for plan in plans(code) {
            if plan.has(national) {
                return Verdict::Valid;
            }
            if plan.without_trunk_prefix(national).is_some_and(|national| plan.has(national)) {
                verdict = Verdict::TrunkPrefix { code };
            }
        }
    }
    verdict
}

/// The plans of a country code; none where there is no such code.
fn plans(code: u16) -> &'static [Plan] {
    let Some(place) = PLANS.get(usize::from(code)) else { return &[] };
    place.get_or_init(|| {
        let countries = DATABASE.by_code(&code).unwrap_or_default();
        countries.into_iter().filter_map(Plan::of).collect()
    })
}

impl Plan {
    /// `None` where the metadata has no pattern that can be compiled: such a country has no valid numbers.
    fn of(country: &Metadata) -> Option<Self> {
        let descriptors = country.descriptors();
        let kinds = KINDS.iter().filter_map(|kind| descriptors.get(*kind));
        let kinds: Vec<_> = kinds.map(|kind| format!("(?:{})", kind.national_number().as_str())).collect();
        Some(Self {
            outline: pattern(&format!("^(?:{})$", descriptors.general().national_number().as_str()))?,
            assigned: pattern(&format!("^(?:{})$", kinds.join("|")))?,
            leading: match country.leading_digits() {
                Some(leading) => Some(pattern(&format!("^(?:{})", leading.as_str()))?),
                None => None,
            },
            trunk_prefix: country.national_prefix().map(ToOwned::to_owned),
        })
    }

    fn has(&self, national: &str) -> bool {
        self.leading.as_ref().is_none_or(|leading| leading.is_match(national))
            && self.outline.is_match(national)
            && (self.assigned.is_match(national) || !self.begins_with_prefix(national))
    }

    /// Italy and others have numbers that begin with a zero; those are assigned.
    fn begins_with_prefix(&self, national: &str) -> bool {
        national.starts_with('0') || self.without_trunk_prefix(national).is_some()
    }

    fn without_trunk_prefix<'a>(&self, national: &'a str) -> Option<&'a str> {
        national.strip_prefix(self.trunk_prefix.as_deref()?)
    }
}

/// Digits are ASCII here, so `\d` need not know others.
fn pattern(text: &str) -> Option<Regex> {
    RegexBuilder::new(text).ignore_whitespace(true).unicode(false).build().ok()
}
