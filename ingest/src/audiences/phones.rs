//! A phone as people and spreadsheets write it. Pure.
//!
//! A phone is E.164: a plus and digits. Ignored: characters without a glyph (bidirectional marks, zero-width characters, byte
//! order marks) and white space anywhere; between the digits also hyphens, dashes, dots and brackets. Digits may be
//! Arabic-Indic. All of that leaves no doubt about the number. Everything else is refused, by the cause: a number is never
//! completed or corrected.

use std::borrow::Cow;

use eshaar_model::Phone;

/// A stable code, and the cause in words. Neither holds what was sent.
pub(super) type Wrong = (&'static str, Cow<'static, str>);

/// Longest text that is looked at, in characters: four times the longest phone, for all that may stand around it.
const MAX_CHARS: usize = 64;

/// The phone in a field, which may be in any encoding that has ASCII in it.
pub(super) fn parse_bytes(field: &[u8]) -> Result<Phone, Wrong> {
    match std::str::from_utf8(field) {
        Ok(text) => parse(text),
        Err(_) => parse(&field.iter().filter_map(|byte| of_one_byte(*byte)).collect::<String>()),
    }
}

/// A character of a one-byte encoding; of Windows-1252 and Windows-1256, what can stand around a phone is known.
fn of_one_byte(byte: u8) -> Option<char> {
    match byte {
        0..=0x7f => Some(byte as char),
        // No-break space.
        0xa0 => Some(' '),
        // Windows-1256: zero-width non-joiner and joiner, left-to-right and right-to-left marks.
        0x9d | 0x9e | 0xfd | 0xfe => None,
        _ => Some(char::REPLACEMENT_CHARACTER),
    }
}

/// The phone in a text.
pub(super) fn parse(text: &str) -> Result<Phone, Wrong> {
    let visible: String = text.chars().filter(|c| !has_no_glyph(*c)).map(ascii).take(MAX_CHARS + 1).collect();
    let compact: String = visible.chars().filter(|c| !is_separator(*c)).collect();
    if visible.chars().count() <= MAX_CHARS
        && compact.strip_prefix('+').is_some_and(|digits| !digits.is_empty() && is_digits(digits))
    {
        if visible.contains("(0)") {
            return wrong(
                "trunk_zero",
                "has a zero in brackets, which is not dialled behind a country code: leave it out",
            );
        }
        return Phone::parse_valid(&compact).map_err(|error| ("invalid_phone", error.to_string().into()));
    }
    Err(cause(&visible, &compact))
}

/// Why a text is no phone.
fn cause(visible: &str, compact: &str) -> Wrong {
    let (code, cause) = if visible.trim().is_empty() {
        ("phone_missing", "the field of the phone is empty")
    } else if is_scientific(visible.trim()) {
        ("scientific_notation", "is a number in scientific notation: format the column as text, and export it again")
    } else if compact.matches('+').count() > 1 {
        ("several_phones", "has more than one plus: give one phone a line")
    } else if compact.strip_suffix('+').is_some_and(is_digits) {
        ("plus_misplaced", "the plus stands behind the number: it must stand before the country code")
    } else if is_digits(compact) && compact.starts_with("00") {
        ("prefix_00", "begins with 00: write the plus in its place")
    } else if is_digits(compact) && compact.starts_with('0') {
        ("country_code_missing", "begins with 0: write the plus and the country code in its place")
    } else if is_digits(compact) {
        ("plus_missing", "the plus is missing: write it before the country code")
    } else {
        return other_cause(compact);
    };
    (code, cause.into())
}

fn other_cause(compact: &str) -> Wrong {
    let behind_phone = |separator: char| {
        let (first, _) = compact.split_once(separator)?;
        first.strip_prefix('+').filter(|digits| digits.len() > 6 && is_digits(digits))
    };
    for (separator, name) in [(';', "`;`"), (',', "`,`"), ('|', "`|`")] {
        if behind_phone(separator).is_some() {
            let detail = format!("the separator looks like {name}, which is not that of the header");
            return ("separator_mismatch", detail.into());
        }
    }
    let detail =
        format!("expected a phone as `+` and 7 to 15 digits, got {} other characters", compact.chars().count());
    ("invalid_phone", detail.into())
}

fn wrong(code: &'static str, cause: &'static str) -> Result<Phone, Wrong> {
    Err((code, cause.into()))
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// As in `9.66501E+11`, with either decimal separator.
fn is_scientific(text: &str) -> bool {
    let Some((mantissa, exponent)) = text.split_once(['e', 'E']) else { return false };
    let mantissa = mantissa.strip_prefix('+').unwrap_or(mantissa);
    let exponent = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
    let (whole, fraction) = mantissa.split_once(['.', ',', '\u{66b}']).unwrap_or((mantissa, "0"));
    is_digits(whole) && is_digits(fraction) && is_digits(exponent)
}

/// Characters that are seen nowhere, and say nothing: soft hyphen, marks of direction, zero-width characters.
fn has_no_glyph(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2064}'
        | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

fn is_separator(c: char) -> bool {
    c.is_whitespace() || matches!(c, '-' | '\u{2010}'..='\u{2015}' | '\u{2212}' | '.' | '(' | ')')
}

/// Arabic-Indic digits, and those of Persian and Urdu, as ASCII; so the wide forms of East Asia.
fn ascii(c: char) -> char {
    let digit = match c {
        '\u{660}'..='\u{669}' => c as u32 - 0x660,
        '\u{6f0}'..='\u{6f9}' => c as u32 - 0x6f0,
        '\u{ff10}'..='\u{ff19}' => c as u32 - 0xff10,
        '\u{ff0b}' => return '+',
        _ => return c,
    };
    char::from_digit(digit, 10).unwrap_or(c)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn code(text: &str) -> Result<String, &'static str> {
        parse(text).map(|phone| phone.to_string()).map_err(|(code, _)| code)
    }

    #[test]
    fn what_a_spreadsheet_writes_around_a_phone_and_between_its_digits_is_ignored() {
        for text in [
            "+966501234567",
            "  +966501234567\t",
            "\u{202a}+966501234567\u{202c}",
            "\u{200e}+966\u{a0}50\u{a0}123\u{a0}4567\u{200f}",
            "\u{feff}+966 50-123-4567",
            "+966 (50) 123.4567",
            "(+966) 50 1234567",
            "+\u{2066}966501234567\u{2069}",
            "+966\u{2011}50\u{2013}1234567",
            "+\u{669}\u{666}\u{666}\u{665}\u{660}\u{661}\u{662}\u{663}\u{664}\u{665}\u{666}\u{667}",
            "+\u{6f9}\u{6f6}\u{6f6}\u{6f5}\u{6f0}\u{6f1}\u{6f2}\u{6f3}\u{6f4}\u{6f5}\u{6f6}\u{6f7}",
            "\u{ff0b}966501234567",
        ] {
            assert_eq!(code(text), Ok("+966501234567".to_owned()), "{text:?}");
        }
        assert_eq!(parse_bytes(b"\xa0+966501234567\xfe").unwrap().to_string(), "+966501234567");
    }

    #[test]
    fn what_is_no_phone_is_refused_by_its_cause() {
        for (text, expected) in [
            ("", "phone_missing"),
            (" \u{200e}\u{a0}", "phone_missing"),
            ("966501234567", "plus_missing"),
            ("966 50 123 4567", "plus_missing"),
            ("00966501234567", "prefix_00"),
            ("0501234567", "country_code_missing"),
            ("050-123-4567", "country_code_missing"),
            ("966501234567+", "plus_misplaced"),
            ("9.66501E+11", "scientific_notation"),
            ("9,66501E+11", "scientific_notation"),
            ("9.66501e11", "scientific_notation"),
            ("+9.66501E+11", "scientific_notation"),
            ("+966501234567;+966501234568", "several_phones"),
            ("+966501234567 / +966501234568", "several_phones"),
            ("+966501234567;Sara", "separator_mismatch"),
            ("+966501234567|Sara", "separator_mismatch"),
            ("+49 (0)30 123456", "trunk_zero"),
            ("+", "invalid_phone"),
            ("Sara", "invalid_phone"),
            ("=\"+966501234567\"", "invalid_phone"),
            ("+966501234567x", "invalid_phone"),
            ("+9991234567", "invalid_phone"),
            ("+1", "invalid_phone"),
        ] {
            assert_eq!(code(text), Err(expected), "{text:?}");
        }
        assert_eq!(parse_bytes(b"\xd3\xc7\xd1\xc9").unwrap_err().0, "invalid_phone");
    }

    #[test]
    fn no_cause_repeats_what_was_sent() {
        for text in ["SECRET", "+966501234567;SECRET", "5417543010", "05417543010", "+5417543010SECRET"] {
            let (_, detail) = parse(text).unwrap_err();
            assert!(!detail.contains("SECRET") && !detail.contains("5417543010"), "{detail}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        /// Whatever stands between the characters, the digits decide.
        #[test]
        fn a_decorated_phone_is_the_phone(
            digits in "9665[0-9]{8}",
            between in prop::collection::vec("[ \u{a0}\u{200b}\u{200e}\u{202a}\u{2066}\u{feff}.-]{0,2}", 13),
        ) {
            let plain = format!("+{digits}");
            let decorated: String = plain.chars().zip(&between).flat_map(|(c, space)| space.chars().chain([c])).collect();
            prop_assert_eq!(parse(&decorated), parse(&plain));
        }

        /// Any text gives a phone of its own digits, or a cause.
        #[test]
        fn no_digit_is_invented(text in "\\PC{0,30}") {
            if let Ok(phone) = parse(&text) {
                let digits: String = text.chars().map(ascii).filter(char::is_ascii_digit).collect();
                prop_assert_eq!(phone.to_string(), format!("+{digits}"));
            }
        }
    }
}
