//! Content: harmless, and otherwise untouched (R12.1).

use eshaar_model::Content;
use eshaar_model::limits::CONTENT_CHARS;
use proptest::prelude::*;

use super::any::cases;

/// Text with the pieces that markup and its disguises are made of.
fn hostile() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("<script>".to_owned()),
        Just("</script>".to_owned()),
        Just("<img src=x onerror=alert(1)>".to_owned()),
        Just("<b>".to_owned()),
        Just("<!--".to_owned()),
        Just("-->".to_owned()),
        Just("<".to_owned()),
        Just(">".to_owned()),
        Just("&lt;".to_owned()),
        Just("&#60;".to_owned()),
        Just("&amp;lt;".to_owned()),
        Just("&amp;".to_owned()),
        Just("&".to_owned()),
        Just("<svg/onload=".to_owned()),
        Just("\"'".to_owned()),
        "[a-z/!? ]{0,4}",
        "\\PC{0,3}",
    ];
    proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

/// Where a browser begins a tag, a comment or a declaration: `<`, then a letter, `/`, `!` or `?`.
fn has_markup(text: &str) -> bool {
    let begins_tag = |next: char| next.is_ascii_alphabetic() || matches!(next, '/' | '!' | '?');
    text.split('<').skip(1).any(|rest| rest.starts_with(begins_tag))
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn what_is_accepted_holds_no_markup(text in hostile()) {
        if let Ok(content) = Content::parse(text) {
            prop_assert!(!has_markup(content.as_str()), "{}", content.as_str());
        }
    }

    #[test]
    fn cleaning_twice_changes_nothing(text in hostile()) {
        if let Ok(content) = Content::parse(text) {
            prop_assert_eq!(Content::parse(content.as_str().to_owned()), Ok(content));
        }
    }

    #[test]
    fn plain_text_is_kept_as_it_is(text in "[^<\\p{Cc}]{1,60}( < |<3|& |\t|\r\n)?[^<\\p{Cc}]{0,20}") {
        prop_assume!(!text.trim().is_empty());
        prop_assert_eq!(Content::parse(text.clone()).map(Content::into_string), Ok(text));
    }

    #[test]
    fn length_is_counted_in_characters(char in "[aß漢🎉]", over in 0..3_usize) {
        let length = CONTENT_CHARS - 1 + over;
        prop_assert_eq!(Content::parse(char.repeat(length)).is_ok(), length <= CONTENT_CHARS);
    }
}
