//! Phones: one form, one number, never shown in full.

use eshaar_model::phone::PhoneError;
use eshaar_model::{Phone, Principal};
use proptest::prelude::*;

use super::any::cases;

/// Numbers of every region, with what an independent implementation says of them (numbers/make.py).
const NUMBERS: &str = include_str!("numbers/numbers.tsv");

#[test]
fn numbers_of_every_region_are_judged_as_by_an_independent_implementation() {
    for (number, verdict) in NUMBERS.lines().map(|line| line.split_once('\t').unwrap()) {
        let judged = Phone::parse_valid(number);
        match verdict {
            "valid" | "room" => assert!(judged.is_ok(), "{number}: {judged:?}"),
            "trunk" => assert!(matches!(judged, Err(PhoneError::TrunkPrefix { .. })), "{number}: {judged:?}"),
            _ => assert!(judged.is_err(), "{number}: {judged:?}"),
        }
        // Rows and records with any of them stay readable, whatever the plans say by then.
        let stored: Phone = number.parse().unwrap();
        assert_eq!(stored.to_string(), number);
        assert_eq!(Phone::from_digits(stored.digits()), Some(stored));
        assert_eq!(number.parse(), Ok(Principal::Phone(stored)));
        assert_eq!(Principal::parse_valid(number).is_ok(), judged.is_ok());
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn a_phone_survives_its_text_and_its_digits(number in 500_000_000..600_000_000_u64) {
        let text = format!("+966{number}");
        let phone: Phone = text.parse().unwrap();
        prop_assert_eq!(phone.to_string(), text.clone());
        prop_assert_eq!(Phone::from_digits(phone.digits()), Some(phone));
        prop_assert_eq!(text.parse(), Ok(Principal::Phone(phone)));
    }

    #[test]
    fn what_is_accepted_is_e164_in_its_one_form(text in "\\+?[0-9]{0,17}") {
        if let Ok(phone) = text.parse::<Phone>() {
            prop_assert_eq!(phone.to_string(), text.clone());
            prop_assert!(text.starts_with('+') && (8..=16).contains(&text.len()));
        }
    }

    #[test]
    fn garbage_is_refused_and_never_panics(text in "\\PC{0,24}") {
        let _ = text.parse::<Phone>();
        let _ = text.parse::<Principal>();
    }

    #[test]
    fn debug_output_never_shows_the_number(number in 500_000_000..600_000_000_u64) {
        let phone: Phone = format!("+966{number}").parse().unwrap();
        let shown = format!("{phone:?}");
        prop_assert!(!shown.contains(&number.to_string()));
        prop_assert_eq!(shown.matches('*').count(), phone.to_string().len() - 5);
    }
}
