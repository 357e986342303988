//! Properties of text: visible characters, and markup. Pure; nothing here alters a text.

use icu_properties::CodePointMapData;
use icu_properties::CodePointSetData;
use icu_properties::props::{
    DefaultIgnorableCodePoint, GeneralCategory, GeneralCategoryGroup, PrependedConcatenationMark,
};

/// Characters that Unicode counts as symbols and that show nothing: BRAILLE PATTERN BLANK, MUSICAL SYMBOL NULL NOTEHEAD.
const BLANK_SYMBOLS: [char; 2] = ['\u{2800}', '\u{1d159}'];

/// Returns true if a reader can see the character: by Unicode's properties it is no white space, no control or format
/// character, and not ignored where it is displayed (such as U+200B, U+3164, variation selectors and tags).
///
/// Combining marks, emoji and characters of a private use are visible. So is a character that Unicode has not assigned yet:
/// a later version may.
pub fn is_visible(char: char) -> bool {
    if char.is_ascii() {
        return char.is_ascii_graphic();
    }
    if BLANK_SYMBOLS.contains(&char) || is_noncharacter(char) {
        return false;
    }
    if CodePointSetData::new::<DefaultIgnorableCodePoint>().contains(char) {
        return false;
    }
    let category = CodePointMapData::<GeneralCategory>::new().get(char);
    if category == GeneralCategory::Format {
        // Signs that enclose the digits behind them, such as ARABIC END OF AYAH, have a shape of their own.
        return CodePointSetData::new::<PrependedConcatenationMark>().contains(char);
    }
    let invisible = GeneralCategoryGroup::Separator.union(GeneralCategoryGroup::Control);
    !invisible.contains(category)
}

/// Code points that will never be characters (Unicode, 23.7).
const fn is_noncharacter(char: char) -> bool {
    let code = char as u32;
    code & 0xfffe == 0xfffe || matches!(code, 0xfdd0..=0xfdef)
}

/// Returns true if the text holds markup: a `<` directly followed by an ASCII letter, `/`, `!` or `?`.
///
/// There, and only there, an HTML parser leaves text and begins a tag, a comment or a declaration (WHATWG HTML, 13.2.5.6,
/// "tag open state"), with or without a closing `>`. So `a < b`, `<3` and `1<2` are text; `<b>`, `</p`, `<!--`, `<SAR 500`
/// and `<omar@example.com>` are markup. Character references (`&copy;`, `&#60;`) are text: a parser never makes a tag of one.
pub fn has_markup(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes
        .windows(2)
        .any(|pair| pair[0] == b'<' && (pair[1].is_ascii_alphabetic() || matches!(pair[1], b'/' | b'!' | b'?')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_and_characters_without_a_shape_are_invisible() {
        let invisible = [
            ' ',
            '\t',
            '\n',
            '\r',
            '\0',
            '\u{7f}',
            '\u{85}',
            '\u{a0}',
            '\u{ad}',
            '\u{34f}',
            '\u{61c}',
            '\u{115f}',
            '\u{1160}',
            '\u{1680}',
            '\u{17b4}',
            '\u{17b5}',
            '\u{180b}',
            '\u{180e}',
            '\u{180f}',
            '\u{2000}',
            '\u{200a}',
            '\u{200b}',
            '\u{200c}',
            '\u{200d}',
            '\u{200e}',
            '\u{200f}',
            '\u{2028}',
            '\u{2029}',
            '\u{202a}',
            '\u{202e}',
            '\u{202f}',
            '\u{205f}',
            '\u{2060}',
            '\u{2064}',
            '\u{2065}',
            '\u{2066}',
            '\u{206f}',
            '\u{2800}',
            '\u{3000}',
            '\u{3164}',
            '\u{fe00}',
            '\u{fe0f}',
            '\u{feff}',
            '\u{ffa0}',
            '\u{fff0}',
            '\u{fff9}',
            '\u{fffb}',
            '\u{fdd0}',
            '\u{ffff}',
            '\u{13430}',
            '\u{1bca0}',
            '\u{1d159}',
            '\u{1d173}',
            '\u{e0001}',
            '\u{e0020}',
            '\u{e007f}',
            '\u{e0100}',
            '\u{e01ef}',
            '\u{10ffff}',
        ];
        for char in invisible {
            assert!(!is_visible(char), "U+{:04X}", char as u32);
        }
    }

    #[test]
    fn letters_marks_emoji_and_symbols_are_visible() {
        let visible = [
            'a',
            '0',
            '.',
            '<',
            'é',
            'ß',
            'ع',
            '۱',
            '۝',
            '\u{600}',
            '\u{64b}',
            'א',
            '\u{5b0}',
            '漢',
            'あ',
            '한',
            'ไ',
            'क',
            '\u{93e}',
            '\u{301}',
            '\u{20e3}',
            '🎉',
            '👍',
            '\u{1f3fd}',
            '\u{1f1f8}',
            '€',
            '✓',
            '\u{2801}',
            '\u{fffc}',
            '\u{fffd}',
            '\u{e000}',
            '\u{378}',
            '\u{1fbff}',
        ];
        for char in visible {
            assert!(is_visible(char), "U+{:04X}", char as u32);
        }
    }

    #[test]
    fn markup_is_what_an_html_parser_takes_for_a_tag() {
        for text in [
            "<b>",
            "</p",
            "<!--",
            "<!DOCTYPE",
            "<?xml",
            "a<svg/onload=x>",
            "<Script",
            "Balance <SAR 500",
            "Omar <omar@example.com>",
            "<<a",
            "x</",
        ] {
            assert!(has_markup(text), "{text}");
        }
        for text in [
            "",
            "<",
            "a < b",
            "<3",
            "1<2",
            "<=",
            "< b>",
            "a <",
            "<é>",
            "<\u{ad}b>",
            "＜b＞",
            "&lt;b&gt;",
            "&copy;",
            "Tom & Jerry",
            ">b<",
        ] {
            assert!(!has_markup(text), "{text}");
        }
    }
}
