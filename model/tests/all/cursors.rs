//! Cursors: what a client gives back means what it was given, and moves only forward.

use eshaar_model::Cursor;
use proptest::collection::vec;
use proptest::prelude::*;

use super::any::{cases, cursor, position};

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn a_cursor_survives_its_text(cursor in cursor()) {
        let text = cursor.to_string();
        prop_assert!(text.len() <= 80);
        prop_assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'));
        prop_assert_eq!(text.parse(), Ok(cursor));
    }

    #[test]
    fn garbage_is_refused_and_never_panics(text in ".{0,120}") {
        // What happens to be a cursor must at least say so the same way again.
        if let Ok(cursor) = text.parse::<Cursor>() {
            prop_assert_eq!(cursor.to_string().parse(), Ok(cursor));
        }
    }

    #[test]
    fn a_damaged_cursor_never_panics(cursor in cursor(), place in 0..60_usize, with in any::<char>(), cut in 0..60_usize) {
        let mut text: Vec<char> = cursor.to_string().chars().collect();
        if let Some(char) = text.get_mut(place) {
            *char = with;
        }
        text.truncate(cut);
        let _ = text.into_iter().collect::<String>().parse::<Cursor>();
    }

    #[test]
    fn a_cursor_covers_what_it_was_advanced_to_and_still_all_it_covered(
        cursor in cursor(), to in position(), other in position()
    ) {
        let mut advanced = cursor;
        advanced.advance(to);
        prop_assert!(advanced.covers(to));
        prop_assert!(!cursor.covers(other) || advanced.covers(other));
        // Covered already: nothing moves.
        prop_assert!(!cursor.covers(to) || advanced == cursor);
    }

    #[test]
    fn the_order_of_advances_does_not_matter_and_a_repeat_changes_nothing(
        (positions, shuffled) in vec(position(), 0..8).prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle())),
        from in cursor(),
    ) {
        let advance = |mut cursor: Cursor, to: &[_]| {
            for position in to {
                cursor.advance(*position);
            }
            cursor
        };
        let once = advance(from, &positions);
        prop_assert_eq!(advance(from, &shuffled), once);
        prop_assert_eq!(advance(once, &positions), once);
    }

    #[test]
    fn the_further_of_two_covers_what_either_does(a in cursor(), b in cursor(), c in cursor(), position in position()) {
        let further = a.max(b);
        prop_assert_eq!(further, b.max(a));
        prop_assert_eq!(a.max(a), a);
        prop_assert_eq!(a.max(b).max(c), a.max(b.max(c)));
        if a.epoch == b.epoch {
            prop_assert_eq!(further.covers(position), a.covers(position) || b.covers(position));
        } else {
            prop_assert_eq!(further, if a.epoch > b.epoch { a } else { b });
        }
    }
}
