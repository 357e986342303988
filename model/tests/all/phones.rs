//! Phones: one form, one number, never shown in full.

use eshaar_model::{Phone, Principal};
use proptest::prelude::*;

use super::any::cases;

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
