//! Content: plain text, kept byte for byte, with something to see (R12.1).

use eshaar_model::limits::CONTENT_CHARS;
use eshaar_model::text::{has_markup, is_visible};
use eshaar_model::{Content, ContentError};
use proptest::prelude::*;

use super::any::cases;

/// Text with the pieces that markup and its disguises are made of, white space, and characters of every kind.
fn hostile() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("<script>alert(1)</script>".to_owned()),
        Just("<img src=x onerror=alert(1)>".to_owned()),
        Just("<b>Offer</b> https://shop.example/?id=1&copy=2".to_owned()),
        Just("Balance <SAR 500. Top up now.".to_owned()),
        Just("Omar <omar@example.com>".to_owned()),
        Just("<!--".to_owned()),
        Just("&lt;&#60;&amp;lt;&nbsp;".to_owned()),
        Just(" \t\r\n\u{a0}\u{200b}\u{feff}".to_owned()),
        Just("e\u{301}\u{e9}\u{1100}\u{1161}\u{ac00}".to_owned()),
        Just("\u{200f}\u{645}\u{631}\u{62d}\u{628}\u{627}\u{202e}".to_owned()),
        "\\PC{0,6}",
        any::<String>(),
    ];
    proptest::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn what_is_accepted_is_kept_byte_for_byte(text in hostile()) {
        let has_control = text.chars().any(|char| char.is_control() && !matches!(char, '\t' | '\n' | '\r'));
        match Content::parse(text.clone()) {
            Ok(content) => prop_assert_eq!(content.into_string(), text),
            Err(ContentError::Control { .. }) => prop_assert!(has_control),
            Err(ContentError::Empty) => prop_assert!(!text.chars().any(is_visible)),
            Err(ContentError::TooLong { length }) => prop_assert!(length > CONTENT_CHARS),
        }
    }

    #[test]
    fn one_visible_character_is_enough(before in "[ \u{200b}\u{3164}]{0,5}", char in any::<char>(), behind in "[\u{2800}\t]{0,5}") {
        prop_assume!(!char.is_control());
        let text = format!("{before}{char}{behind}");
        prop_assert_eq!(Content::parse(text).is_ok(), is_visible(char));
    }

    #[test]
    fn text_without_a_less_than_sign_is_no_markup(text in "[^<]{0,60}") {
        prop_assert!(!has_markup(&text));
    }

    #[test]
    fn length_is_counted_in_characters(char in "[aß漢🎉]", over in 0..3_usize) {
        let length = CONTENT_CHARS - 1 + over;
        prop_assert_eq!(Content::parse(char.repeat(length)).is_ok(), length <= CONTENT_CHARS);
    }
}
