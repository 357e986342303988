//! The `ref` of a frame that is not collected: found while its bytes go by, in memory that does not grow with them.
//!
//! It does not check the JSON. In what is no JSON it may find a `ref` that no parser would.

/// Longest `ref` as it may be written: 128 characters, each as an escape.
const WRITTEN: usize = 6 * eshaar_model::limits::IDEMPOTENCY_KEY_CHARS;

/// Where the scanner stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    /// Outside of strings.
    #[default]
    Between,
    /// In the name of a field of the outermost object.
    Name,
    /// In the value of its field `ref`.
    Ref,
    /// In any other string.
    Text,
}

/// Looks for the field `ref` of the outermost object.
#[derive(Debug, Default)]
pub(crate) struct RefFinder {
    at: At,
    depth: u32,
    /// The byte before was a backslash that escapes this one.
    escaped: bool,
    /// A name comes next in the outermost object, not a value.
    wants_name: bool,
    /// The last name of the outermost object was `ref`.
    is_ref: bool,
    /// What was written of a name or a `ref` so far, without quotes; no more than [`WRITTEN`] and one byte.
    written: Vec<u8>,
    found: Option<String>,
}

impl RefFinder {
    /// Takes the next bytes.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        if self.found.is_some() {
            return;
        }
        for byte in bytes {
            match self.at {
                At::Between => self.between(*byte),
                _ => self.within(*byte),
            }
        }
    }

    /// The first `ref`, as it was meant; `None` where there was none that a client may use.
    pub(crate) fn found(self) -> Option<String> {
        self.found
    }

    fn between(&mut self, byte: u8) {
        match byte {
            b'"' => {
                self.at = match (self.depth, self.wants_name, self.is_ref) {
                    (1, true, _) => At::Name,
                    (1, false, true) => At::Ref,
                    _ => At::Text,
                };
                self.written.clear();
            }
            b'{' | b'[' => {
                self.depth = self.depth.saturating_add(1);
                self.wants_name = self.depth == 1 && byte == b'{';
            }
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            b',' if self.depth == 1 => (self.wants_name, self.is_ref) = (true, false),
            b':' if self.depth == 1 => self.wants_name = false,
            _ => {}
        }
    }

    fn within(&mut self, byte: u8) {
        if !self.escaped && byte == b'"' {
            self.end();
            return;
        }
        self.escaped = !self.escaped && byte == b'\\';
        if self.at != At::Text && self.written.len() <= WRITTEN {
            self.written.push(byte);
        }
    }

    fn end(&mut self) {
        let meant = if self.at == At::Text { None } else { self.meant() };
        match self.at {
            At::Name => self.is_ref = meant.as_deref() == Some("ref"),
            At::Ref if self.found.is_none() => self.found = meant.filter(|text| is_usable(text)),
            _ => {}
        }
        self.at = At::Between;
        self.written = Vec::new();
    }

    /// What was written, with its escapes resolved.
    fn meant(&self) -> Option<String> {
        let quoted = [&b"\""[..], &self.written, b"\""].concat();
        serde_json::from_slice(&quoted).ok()
    }
}

/// Whether a text may be a `ref`: it is said back, so it is bounded and visible.
fn is_usable(text: &str) -> bool {
    (1..=eshaar_model::limits::IDEMPOTENCY_KEY_CHARS).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn find(text: &str, size: usize) -> Option<String> {
        let mut finder = RefFinder::default();
        for piece in text.as_bytes().chunks(size) {
            finder.feed(piece);
        }
        finder.found()
    }

    #[test]
    fn a_ref_is_found_wherever_it_stands_in_the_outermost_object() {
        let long = "r".repeat(128);
        let escaped = long.bytes().map(|byte| format!("\\u{byte:04x}")).collect::<Vec<_>>().concat();
        for (text, expected) in [
            (r#"{"op":"send","ref":"r-1","content":"x"}"#.to_owned(), Some("r-1")),
            (r#"{"content":"\"ref\":\"no\"\\","ref" : "r-1"}"#.to_owned(), Some("r-1")),
            (r#"{"a":{"ref":"no"},"b":["ref","no",{"ref":"no"}],"r\u0065f":"r-1"}"#.to_owned(), Some("r-1")),
            (r#"{"x":"ref","y":"no"}"#.to_owned(), None),
            (r#"{"ref":null,"y":"no"}"#.to_owned(), None),
            (r#"{"ref":["no"],"y":"no"}"#.to_owned(), None),
            (r#"{"ref":"a b"}"#.to_owned(), None),
            (r#"["ref","no"]"#.to_owned(), None),
            (r#"{"ref":"un"#.to_owned(), None),
            (format!(r#"{{"ref":"{long}"}}"#), Some(long.as_str())),
            (format!(r#"{{"ref":"{escaped}"}}"#), Some(long.as_str())),
            (format!(r#"{{"ref":"{long}r"}}"#), None),
        ] {
            for size in [1, 2, 3, 7, 1_000] {
                assert_eq!(find(&text, size).as_deref(), expected, "{text}");
            }
        }
    }

    proptest! {
        #[test]
        fn the_ref_of_any_object_is_the_one_that_a_parser_finds(
            texts in proptest::collection::vec(("[a-z\"\\\\{}\\[\\],: ]{0,6}", any::<String>()), 0..6),
            reference in proptest::option::of("[!-~]{1,12}"),
            size in 1..20_usize,
        ) {
            let mut object: serde_json::Map<String, Value> = texts
                .into_iter()
                .filter(|(name, _)| name != "ref")
                .map(|(name, text)| (name, json!([{ "ref": "no" }, text])))
                .collect();
            if let Some(reference) = &reference {
                object.insert("ref".to_owned(), json!(reference));
            }
            prop_assert_eq!(find(&Value::Object(object).to_string(), size), reference);
        }

        #[test]
        fn noise_is_taken_without_growing(bytes in proptest::collection::vec(any::<u8>(), 0..3_000)) {
            let mut finder = RefFinder::default();
            finder.feed(&bytes);
            prop_assert!(finder.written.capacity() <= 4 * WRITTEN);
        }
    }
}
