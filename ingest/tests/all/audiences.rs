//! Audiences over HTTP: CSV as spreadsheets and libraries write it, and NDJSON.

use axum::body::Body;
use bytes::Bytes;
use eshaar_model::Permission;
use http::{Method, Request};
use proptest::prelude::*;
use serde_json::Value;
use tokio_stream::wrappers::ReceiverStream;

use crate::fixture::{Answer, Fixture, options, request};

fn audience(key: &str, content_type: &str, body: impl Into<Body>) -> Request<Body> {
    request(Method::PUT, "/v1/audiences/a", key, &[("content-type", content_type)], body)
}

async fn owner(fixture: &Fixture) -> String {
    fixture.key("acme", &[Permission::BroadcastsSend]).await
}

async fn put(file: impl Into<Body>, content_type: &str) -> (Fixture, Answer) {
    let fixture = Fixture::new().await;
    let key = owner(&fixture).await;
    let answer = fixture.call(audience(&key, content_type, file)).await;
    (fixture, answer)
}

async fn csv(file: impl Into<Body>) -> Answer {
    put(file, "text/csv").await.1
}

/// The phones of the audience `a`, in order.
async fn phones(fixture: &Fixture) -> Vec<String> {
    let audiences = &fixture.store.audiences;
    let found = audiences.get(&"acme".parse().unwrap(), "a").await.unwrap().unwrap();
    let mut all = Vec::new();
    for page in 0.. {
        let phones = audiences.page(found.recipients, page).await.unwrap();
        if phones.is_empty() {
            break;
        }
        all.extend(phones.iter().map(ToString::to_string));
    }
    all.sort_unstable();
    all
}

/// The lines that were refused, each with its code.
fn refused(answer: &Answer) -> Vec<(u64, String)> {
    let errors = answer.json()["errors"].as_array().cloned().unwrap_or_default();
    errors.iter().map(|error| (error["line"].as_u64().unwrap(), error["code"].as_str().unwrap().to_owned())).collect()
}

fn counts(answer: &Answer) -> (u64, u64) {
    let json = answer.json();
    (json["recipients"].as_u64().unwrap_or_default(), json["rejected"].as_u64().unwrap_or_default())
}

#[tokio::test]
async fn files_that_other_tools_wrote_have_the_same_phones_and_the_same_causes() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/audiences");
    let mut files = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.extension().is_none_or(|extension| extension != "csv") {
            continue;
        }
        files += 1;
        let file = std::fs::read(&path).unwrap();
        let before = u64::from(file.starts_with(b"sep="));
        let (fixture, answer) = put(file, "text/csv").await;
        assert_eq!(answer.status, 200, "{name}: {}", answer.json());
        let expected: Vec<_> = [61, 62, 63, 64, 65, 69].iter().map(|last| format!("+9665012345{last}")).collect();
        assert_eq!(phones(&fixture).await, expected, "{name}");
        let causes = [
            (9, "plus_missing"),
            (10, "country_code_missing"),
            (11, "prefix_00"),
            (12, "scientific_notation"),
            (13, "phone_missing"),
        ];
        let causes: Vec<_> = causes.iter().map(|(line, code)| (line + before, (*code).to_owned())).collect();
        assert_eq!(refused(&answer), causes, "{name}");
    }
    assert_eq!(files, 13);
}

#[tokio::test]
async fn a_line_break_in_quotes_is_no_new_recipient() {
    let file = "to,note\n+966501234561,\"call back on\n+966501234563,urgent\"\n";
    let (fixture, answer) = put(file, "text/csv").await;
    assert_eq!((counts(&answer), phones(&fixture).await), ((1, 0), vec!["+966501234561".to_owned()]));
}

#[tokio::test]
async fn a_header_decides_the_separator_and_says_what_is_wrong_with_it() {
    for file in [
        "to\n+966501234561\n",
        "\u{feff}TO;name\r\n+966501234561;x\r\n",
        "name\tTo\nx\t+966501234561",
        "\n\n  \r\n\"name, of\nthe person\";\" to \"\nx;+966501234561",
        "sep=;\r\nto;a,b\r\n+966501234561;x",
        "to,to be\r+966501234561,x\r",
    ] {
        assert_eq!(counts(&csv(file).await), (1, 0), "{file:?}");
    }
    let (_, tabs) = put("to\tx\n+966501234561\t1\n", "text/tab-separated-values").await;
    assert_eq!(counts(&tabs), (1, 0));
    for (file, code) in [
        ("", "missing_column"),
        ("\u{feff}\n\n", "missing_column"),
        ("phone,name\n+966501234561,x\n", "missing_column"),
        ("+966501234561,Sara\n", "missing_header"),
        ("0501234561\n", "missing_header"),
        ("name|to\nx|+966501234561\n", "separator_unsupported"),
        ("sep=|\nname|to\n", "separator_unsupported"),
        ("to,name,TO\n", "repeated_column"),
        ("to,note\n+966501234561,\"never closed\n+966501234562,x\n", "quote_open"),
        ("to\n\n\n", "audience_empty"),
        ("to\n966501234561\n", "audience_empty"),
    ] {
        assert_eq!(csv(file).await.problem(400), code, "{file:?}");
    }
}

#[tokio::test]
async fn a_record_that_cannot_be_used_says_its_line_and_why() {
    let file = [
        "to,note",
        "+966501234561,fine",
        "+966501234562;other separator",
        "",
        ",,,",
        ",no phone",
        "+966501234563,\"a stray quote,",
        "+966501234564,closes here\",x",
        "+966501234565,fine,too many",
        "966501234566",
        "+966501234567",
    ]
    .join("\r\n");
    let answer = csv(file).await;
    let expected = [(3, "separator_mismatch"), (6, "phone_missing"), (7, "wrong_field_count"), (10, "plus_missing")];
    assert_eq!(refused(&answer), expected.map(|(line, code)| (line, code.to_owned())));
    assert_eq!(counts(&answer), (3, 4));
    let told = answer.json().to_string();
    assert!(!told.contains("9665") && !told.contains("other separator"), "{told}");
    let short = csv("a,b,to\n1,2\n1,2,+966501234561\n").await;
    assert_eq!(refused(&short), [(2, "missing_field".to_owned())]);
}

#[tokio::test]
async fn a_record_is_bounded_and_a_quote_that_is_never_closed_ends_the_upload_early() {
    let mut small = options();
    small.bulk.line_limit_bytes = 1_000;
    let fixture = Fixture::with(small).await;
    let key = owner(&fixture).await;
    let long = format!("to,note\n+966501234561,{}\n+966501234562,\"{}\n\"\n", "x".repeat(1_001), "y".repeat(3_000));
    let columns = format!("{long}+966501234563{}\n+966501234564,x\n", ",".repeat(900));
    let answer = fixture.call(audience(&key, "text/csv", columns)).await;
    let codes = [(2, "line_too_long"), (3, "line_too_long")];
    assert_eq!(refused(&answer), codes.map(|(line, code)| (line, code.to_owned())));
    assert_eq!(counts(&answer), (2, 2));
    // An upload without end: it is refused while it still comes, and the audience stays what it was.
    let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Bytes, std::io::Error>>(1);
    let endless = tokio::spawn(async move {
        let mut sent = 0;
        let _ = sender.send(Ok(Bytes::from_static(b"to,note\n+966501234569,\"open\n"))).await;
        while sender.send(Ok(Bytes::from(vec![b'\n'; 1_000]))).await.is_ok() && sent < 20_000 {
            sent += 1;
        }
        sent
    });
    let answer = fixture.call(audience(&key, "text/csv", Body::from_stream(ReceiverStream::new(receiver)))).await;
    assert_eq!(answer.problem(400), "quote_open");
    assert!(answer.json()["detail"].as_str().unwrap().contains("line 2"), "{}", answer.json());
    drop(endless);
    let kept = fixture.get("/v1/audiences/a", &key).await.json();
    assert_eq!(kept["recipients"], 2);
}

#[tokio::test]
async fn ndjson_may_have_a_mark_blank_lines_carriage_returns_and_no_last_end() {
    let lines = "\u{feff}\"+966501234561\"\r\n\r\n{\"to\": \"\u{202a}+966 50 1234562\u{202c}\"}\n\"966501234563\"\n\"+966501234564\"";
    let utf16: Vec<u8> = lines.encode_utf16().flat_map(u16::to_le_bytes).collect();
    for body in [lines.as_bytes().to_vec(), utf16] {
        let (fixture, answer) = put(body, "application/x-ndjson").await;
        assert_eq!(refused(&answer), [(4, "plus_missing".to_owned())]);
        assert_eq!(phones(&fixture).await, ["+966501234561", "+966501234562", "+966501234564"]);
    }
}

/// A file as a spreadsheet writes it.
#[derive(Clone, Debug)]
struct Sheet {
    rows: Vec<(u32, String, String)>,
    separator: char,
    end: &'static str,
    quotes_all: bool,
    encoding: u8,
    chunk: usize,
}

impl Sheet {
    fn field(&self, text: &str) -> String {
        let must = text.contains([self.separator, '"', '\n', '\r']);
        if must || self.quotes_all { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
    }

    fn line(&self, fields: [&str; 3]) -> String {
        fields.map(|field| self.field(field)).join(&self.separator.to_string()) + self.end
    }

    fn file(&self) -> Vec<u8> {
        let mut text = self.line(["note", "to", "name"]);
        for (number, note, name) in &self.rows {
            text += &self.line([note, &format!("+9665{number:08}"), name]);
        }
        match self.encoding {
            0 => text.into_bytes(),
            1 => format!("\u{feff}{text}").into_bytes(),
            2 => format!("\u{feff}{text}").encode_utf16().flat_map(u16::to_le_bytes).collect(),
            _ => format!("\u{feff}{text}").encode_utf16().flat_map(u16::to_be_bytes).collect(),
        }
    }
}

fn sheet() -> impl Strategy<Value = Sheet> {
    let cell = || prop_oneof!["[a-z ,;\"\t\r\n+0-9]{0,20}", "\\PC{0,12}", Just("+966501234567\n".to_owned())];
    let row = (0_u32..10_000_000, cell(), cell());
    (
        prop::collection::vec(row, 1..12),
        prop_oneof![Just(','), Just(';'), Just('\t')],
        prop_oneof![Just("\n"), Just("\r\n")],
        any::<bool>(),
        0_u8..4,
        1_usize..40,
    )
        .prop_map(|(rows, separator, end, quotes_all, encoding, chunk)| Sheet {
            rows,
            separator,
            end,
            quotes_all,
            encoding,
            chunk,
        })
}

#[test]
fn property_any_sheet_gives_its_phones_and_no_others() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let fixture = runtime.block_on(Fixture::new());
    let key = runtime.block_on(owner(&fixture));
    proptest!(ProptestConfig::with_cases(150), |(sheet in sheet())| {
        let file = Bytes::from(sheet.file());
        let chunks: Vec<Result<Bytes, std::io::Error>> =
            file.chunks(sheet.chunk).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
        let body = Body::from_stream(futures_util::stream::iter(chunks));
        let answer = runtime.block_on(fixture.call(audience(&key, "text/csv", body)));
        prop_assert_eq!(answer.status.as_u16(), 200, "{}", answer.json());
        let mut expected: Vec<_> = sheet.rows.iter().map(|(number, ..)| format!("+9665{number:08}")).collect();
        expected.sort_unstable();
        expected.dedup();
        prop_assert_eq!(runtime.block_on(phones(&fixture)), expected);
        prop_assert_eq!(&answer.json()["rejected"], &Value::from(0));
    });
}

#[tokio::test]
async fn any_bytes_are_an_answer() {
    let fixture = Fixture::new().await;
    let key = owner(&fixture).await;
    let mut seed = 7_u32;
    for _ in 0..200 {
        let bytes: Vec<u8> = std::iter::repeat_with(|| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            b"to,;\t\"\n\r+966501234561\xff\xfe\x00"[(seed >> 16) as usize % 24]
        })
        .take(200)
        .collect();
        for file in [bytes.clone(), [b"to,note\n+966501234561,x\n", &bytes[..]].concat()] {
            let answer = fixture.call(audience(&key, "text/csv", file)).await;
            assert!(matches!(answer.status.as_u16(), 200 | 400), "{}", answer.json());
        }
    }
}
