//! JSON that stays harmless where a browser takes it for HTML or for a script: `<`, `>`, `&`, U+2028 and U+2029 are written
//! as `\uXXXX`. For a JSON parser nothing differs.
//!
//! Every JSON that leaves a process for a client is written here: answers, problems, frames, webhooks.

use std::io;

use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, Request};
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::ser::{CompactFormatter, Formatter};

/// Writes compact JSON with the escapes of this module.
#[derive(Clone, Copy, Debug, Default)]
pub struct Escaping;

impl Formatter for Escaping {
    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let bytes = fragment.as_bytes();
        let mut written = 0;
        let mut at = 0;
        while at < bytes.len() {
            let (escape, length) = match bytes[at] {
                b'<' => (&b"\\u003c"[..], 1),
                b'>' => (&b"\\u003e"[..], 1),
                b'&' => (&b"\\u0026"[..], 1),
                0xe2 if bytes[at..].starts_with("\u{2028}".as_bytes()) => (&b"\\u2028"[..], 3),
                0xe2 if bytes[at..].starts_with("\u{2029}".as_bytes()) => (&b"\\u2029"[..], 3),
                _ => {
                    at += 1;
                    continue;
                }
            };
            CompactFormatter.write_string_fragment(writer, &fragment[written..at])?;
            writer.write_all(escape)?;
            at += length;
            written = at;
        }
        CompactFormatter.write_string_fragment(writer, &fragment[written..])
    }
}

/// Appends the JSON of `value`. Fails where `value` does (such as a map whose keys are no strings), or the writer does.
pub fn to_writer<W: io::Write, T: ?Sized + Serialize>(writer: W, value: &T) -> serde_json::Result<()> {
    value.serialize(&mut serde_json::Serializer::with_formatter(writer, Escaping))
}

/// JSON that was written elsewhere, with the escapes of this module: outside of strings it has none of these characters.
pub fn escaped(json: &str) -> String {
    let mut bytes = Vec::with_capacity(json.len());
    // Writing to memory cannot fail.
    let _ = Escaping.write_string_fragment(&mut bytes, json);
    String::from_utf8(bytes).unwrap_or_default()
}

/// The JSON of `value`. Fails where `value` does.
pub fn to_vec<T: ?Sized + Serialize>(value: &T) -> serde_json::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(128);
    to_writer(&mut bytes, value)?;
    Ok(bytes)
}

/// An answer in JSON. To be used in place of `axum::Json`, which writes no such escapes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Json<T>(pub T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        match to_vec(&self.0) {
            Ok(body) => {
                let json = HeaderValue::from_static("application/json");
                ([(header::CONTENT_TYPE, json)], body).into_response()
            }
            Err(error) => {
                tracing::error!(%error, "an answer could not be written as JSON");
                StatusCode::INTERNAL_SERVER_ERROR.into_response()
            }
        }
    }
}

#[expect(clippy::disallowed_types, reason = "reading is as safe as any; only what is written needs escapes")]
impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = JsonRejection;

    async fn from_request(request: Request, state: &S) -> Result<Self, JsonRejection> {
        axum::Json::from_request(request, state).await.map(|axum::Json(value)| Self(value))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// Text with the characters that matter, and their neighbours.
    fn text() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            Just("<".to_owned()),
            Just(">".to_owned()),
            Just("&".to_owned()),
            Just("</script>".to_owned()),
            Just("\u{2027}\u{2028}\u{2029}\u{202a}".to_owned()),
            Just("\"\\\n\r\t\0\u{7f}".to_owned()),
            any::<String>(),
        ];
        proptest::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn a_text_is_read_back_as_it_was_and_holds_nothing_that_a_browser_acts_on(text in text(), name in text()) {
            let value = BTreeMap::from([(name, vec![text])]);
            let json = to_vec(&value).unwrap();
            prop_assert_eq!(serde_json::from_slice::<BTreeMap<String, Vec<String>>>(&json).unwrap(), value);
            let json = String::from_utf8(json).unwrap();
            prop_assert!(!json.contains(['<', '>', '&', '\u{2028}', '\u{2029}']), "{}", json);
        }

        #[test]
        fn everything_else_is_written_as_by_serde_json(text in "[^<>&\u{2028}\u{2029}]*") {
            prop_assert_eq!(to_vec(&text).unwrap(), serde_json::to_vec(&text).unwrap());
        }
    }

    #[test]
    fn text_that_is_formatted_in_parts_is_escaped_too() {
        struct Shown;
        impl Serialize for Shown {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(&format_args!("{}{}", '<', "\u{2028}"))
            }
        }
        assert_eq!(to_vec(&Shown).unwrap(), br#""\u003c\u2028""#);
    }

    #[test]
    fn json_of_others_is_escaped_within_its_strings() {
        assert_eq!(escaped(r#"{"a<": [1, "<&>"]}"#), r#"{"a\u003c": [1, "\u003c\u0026\u003e"]}"#);
    }

    #[tokio::test]
    async fn an_answer_is_json_by_its_type() {
        let response = Json("<b>").into_response();
        assert_eq!(response.headers()["content-type"], "application/json");
        let body = axum::body::to_bytes(response.into_body(), 100).await.unwrap();
        assert_eq!(&body[..], br#""\u003cb\u003e""#);
    }
}
