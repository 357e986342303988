//! Phones in a CSV file, as spreadsheets and libraries write it (RFC 4180): fields in quotes may hold separators, quotes and
//! line breaks. The separator is a comma, a semicolon or a tab; the header says which, or a line `sep=;` before it (Excel).
//!
//! The file is read a record at a time, and a record is bounded: a quote that is never closed ends the upload, and does not
//! make the rest of the file one field.

use bytes::{Buf as _, Bytes};
use csv_core::{ReadRecordResult, Reader, ReaderBuilder};
use eshaar_model::Phone;
use eshaar_service::Problem;
use http::StatusCode;

use super::phones::{self, Wrong};
use crate::bulk::source::Source;

/// The name of the column with the phone, in any case.
pub(super) const COLUMN: &str = "to";
/// Separators that a header may have.
const SEPARATORS: [u8; 3] = [b',', b';', b'\t'];
/// Most columns of a record.
const MAX_COLUMNS: usize = 1_024;
/// Records that are this many times longer than a line may be end the upload: a quote must be open.
const MAX_RECORD_LINES: usize = 16;

/// A record that may hold a phone: the line that it begins in, and the phone.
pub(super) type Row = (u64, Result<Phone, Wrong>);

/// Limits of a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) record_bytes: usize,
    pub(super) records: u64,
}

/// Reads the phones of a file.
pub(super) struct Csv {
    source: Source,
    limits: Limits,
    chunk: Bytes,
    /// The separator that the request declares.
    declared: Option<u8>,
    table: Option<Table>,
    lines: LineCount,
    records: u64,
}

/// A file whose header was read.
struct Table {
    reader: Reader,
    column: usize,
    columns: usize,
    record: Record,
}

/// The record that is being read.
struct Record {
    /// The bytes of its fields, and where each ends.
    bytes: Vec<u8>,
    ends: Vec<usize>,
    filled: usize,
    fields: usize,
    /// The line that it begins in; `None` between records.
    line: Option<u64>,
    /// Bytes that were dropped of a record that is too long.
    dropped: usize,
    too_many_columns: bool,
}

/// Counts lines by their ends: a line feed, a carriage return, or both.
#[derive(Default)]
struct LineCount {
    ended: u64,
    last: u8,
}

impl LineCount {
    fn pass(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.ended += u64::from(*byte == b'\r' || *byte == b'\n' && self.last != b'\r');
            self.last = *byte;
        }
    }

    const fn current(&self) -> u64 {
        self.ended + 1
    }
}

impl Csv {
    /// `declared` is the separator, where the request says it.
    pub(super) fn new(source: Source, declared: Option<u8>, limits: Limits) -> Self {
        let lines = LineCount::default();
        Self { source, limits, chunk: Bytes::new(), declared, table: None, lines, records: 0 }
    }

    /// The next record that is not blank; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Row>, Problem> {
        let mut table = match self.table.take() {
            Some(table) => table,
            None => self.header().await?,
        };
        let row = self.row(&mut table).await;
        self.table = Some(table);
        row
    }

    async fn row(&mut self, table: &mut Table) -> Result<Option<Row>, Problem> {
        loop {
            if self.chunk.is_empty() && !self.fetch().await? {
                return self.last(table);
            }
            if table.record.line.is_none() && !self.begin(&mut table.record) {
                continue;
            }
            let (done, read) = table.read(&self.chunk);
            self.lines.pass(&self.chunk[..read]);
            self.chunk.advance(read);
            if done {
                if let Some(row) = self.take(table)? {
                    return Ok(Some(row));
                }
            } else if table.record.dropped > MAX_RECORD_LINES * self.limits.record_bytes {
                return Err(quote_open(table.record.line));
            }
        }
    }

    /// Skips line ends before a record; false where there is nothing behind them yet.
    fn begin(&mut self, record: &mut Record) -> bool {
        let blank = self.chunk.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        self.lines.pass(&self.chunk[..blank]);
        self.chunk.advance(blank);
        if self.chunk.is_empty() {
            return false;
        }
        *record = Record::of(std::mem::take(&mut record.bytes), std::mem::take(&mut record.ends));
        record.line = Some(self.lines.current());
        true
    }

    /// The record that the end of the file ends, if it is a whole one.
    fn last(&mut self, table: &mut Table) -> Result<Option<Row>, Problem> {
        if table.record.line.is_none() {
            return Ok(None);
        }
        let (done, _) = table.read(b"\n");
        if done { self.take(table) } else { Err(quote_open(table.record.line)) }
    }

    /// What a record that was read says; `None` where it is blank.
    fn take(&mut self, table: &mut Table) -> Result<Option<Row>, Problem> {
        let Some(line) = table.record.line.take() else { return Ok(None) };
        let is_one_line = line + 1 >= self.lines.current();
        let row = table.phone(is_one_line, self.limits.record_bytes);
        self.records += u64::from(row.is_some());
        if self.records > self.limits.records {
            let detail = format!("an upload must have at most {} lines", self.limits.records);
            return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_many_lines", detail));
        }
        Ok(row.map(|phone| (line, phone)))
    }

    async fn fetch(&mut self) -> Result<bool, Problem> {
        // An upload whose chunks are always at hand must let others run, too.
        tokio::task::consume_budget().await;
        while self.chunk.is_empty() {
            match self.source.next().await? {
                Some(chunk) => self.chunk = chunk,
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Reads the header, and a line `sep=` before it.
    async fn header(&mut self) -> Result<Table, Problem> {
        let mut separator = self.declared;
        loop {
            let line = self.header_line().await?;
            match line.strip_prefix(b"sep=") {
                Some([declared]) if SEPARATORS.contains(declared) => separator = Some(*declared),
                Some(_) => {
                    let detail = "`sep=` must be followed by `,`, `;` or a tab";
                    return Err(Problem::new(StatusCode::BAD_REQUEST, "separator_unsupported", detail));
                }
                None => return table(&line, separator, self.limits.record_bytes),
            }
        }
    }

    /// The first line that is not blank, without its end; where a field in quotes has line breaks, up to the last of them.
    async fn header_line(&mut self) -> Result<Vec<u8>, Problem> {
        let (mut line, mut is_open) = (Vec::new(), false);
        loop {
            if self.chunk.is_empty() && !self.fetch().await? {
                return Ok(line);
            }
            let byte = self.chunk[0];
            let is_end = matches!(byte, b'\r' | b'\n') && !is_open;
            if is_end && !line.trim_ascii().is_empty() {
                return Ok(line);
            }
            self.lines.pass(&[byte]);
            self.chunk.advance(1);
            is_open ^= byte == b'"';
            if is_end {
                line.clear();
            } else {
                line.push(byte);
            }
            if line.len() > self.limits.record_bytes {
                let detail = format!("the header must have at most {} bytes", self.limits.record_bytes);
                return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "line_too_long", detail));
            }
        }
    }
}

impl Record {
    fn of(bytes: Vec<u8>, ends: Vec<usize>) -> Self {
        Self { bytes, ends, filled: 0, fields: 0, line: None, dropped: 0, too_many_columns: false }
    }

    fn field(&self, number: usize) -> &[u8] {
        let start = if number == 0 { 0 } else { self.ends[number - 1] };
        &self.bytes[start..self.ends[number]]
    }
}

impl Table {
    fn new(separator: u8, column: usize, columns: usize, record_bytes: usize) -> Self {
        let record = Record::of(vec![0; record_bytes], vec![0; MAX_COLUMNS]);
        Self { reader: ReaderBuilder::new().delimiter(separator).build(), column, columns, record }
    }

    /// Reads on in the record: true at its end, and how many bytes were read.
    fn read(&mut self, input: &[u8]) -> (bool, usize) {
        let Record { bytes, ends, filled, fields, dropped, too_many_columns, .. } = &mut self.record;
        let mut read = 0;
        loop {
            let (result, taken, written, ended) =
                self.reader.read_record(&input[read..], &mut bytes[*filled..], &mut ends[*fields..]);
            read += taken;
            *filled += written;
            *fields += ended;
            match result {
                ReadRecordResult::InputEmpty => return (false, read),
                ReadRecordResult::Record | ReadRecordResult::End => return (true, read),
                // What does not fit is dropped as it comes.
                ReadRecordResult::OutputFull => (*dropped, *filled) = (*dropped + (*filled).max(1), 0),
                ReadRecordResult::OutputEndsFull => (*too_many_columns, *fields) = (true, 0),
            }
            if *dropped > MAX_RECORD_LINES * bytes.len() {
                return (false, read);
            }
        }
    }

    /// The phone of the record that was read; `None` where all of its fields are empty.
    fn phone(&self, is_one_line: bool, record_bytes: usize) -> Option<Result<Phone, Wrong>> {
        let Self { column, columns, record, .. } = self;
        if record.dropped > 0 {
            return Some(Err(super::lines::too_long(record_bytes)));
        }
        if record.too_many_columns {
            return Some(Err(("too_many_columns", format!("must have at most {MAX_COLUMNS} columns").into())));
        }
        if (0..record.fields).all(|number| record.field(number).trim_ascii().is_empty()) {
            return None;
        }
        // A stray quote makes several records one, whose fields are too many.
        if !is_one_line && record.fields != *columns {
            let detail = format!(
                "has {} fields over several lines, the header has {columns}: a quote may be missing or too many",
                record.fields
            );
            return Some(Err(("wrong_field_count", detail.into())));
        }
        if record.fields <= *column {
            let detail = format!("has {} fields; `{COLUMN}` is the one of number {}", record.fields, column + 1);
            return Some(Err(("missing_field", detail.into())));
        }
        Some(phones::parse_bytes(record.field(*column)))
    }
}

/// Finds the separator and the column in a header.
fn table(header: &[u8], separator: Option<u8>, record_bytes: usize) -> Result<Table, Problem> {
    let is_column = |field: &Vec<u8>| String::from_utf8_lossy(field).trim().eq_ignore_ascii_case(COLUMN);
    let candidates = separator.map_or(SEPARATORS.to_vec(), |declared| vec![declared]);
    let of_candidates = candidates.iter().map(|separator| (*separator, fields(header, *separator)));
    let best = of_candidates.filter(|(_, fields)| fields.iter().any(is_column)).max_by_key(|(_, fields)| fields.len());
    let Some((separator, fields)) = best else { return Err(no_column(header)) };
    if fields.iter().filter(|field| is_column(field)).count() > 1 {
        let detail = format!("the header names two columns `{COLUMN}`");
        return Err(Problem::new(StatusCode::BAD_REQUEST, "repeated_column", detail));
    }
    let column = fields.iter().position(is_column).unwrap_or_default();
    Ok(Table::new(separator, column, fields.len(), record_bytes))
}

/// Why a header is none.
fn no_column(header: &[u8]) -> Problem {
    let text = String::from_utf8_lossy(header);
    let refused = |code, detail: String| Problem::new(StatusCode::BAD_REQUEST, code, detail);
    if header.trim_ascii().is_empty() {
        return refused("missing_column", format!("the file is empty: its first line must name a column `{COLUMN}`"));
    }
    let words = |separator: char| text.split(separator).any(|word| word.trim().eq_ignore_ascii_case(COLUMN));
    if let Some(found) = ['|', ':'].into_iter().find(|separator| words(*separator)) {
        let detail = format!("the separator looks like `{found}`: it must be `,`, `;` or a tab");
        return refused("separator_unsupported", detail);
    }
    let is_data =
        SEPARATORS.iter().any(|separator| fields(header, *separator).iter().any(|field| is_phone_like(field)));
    if is_data {
        return refused(
            "missing_header",
            format!("the first line has a phone: put a header before it that names a column `{COLUMN}`"),
        );
    }
    refused("missing_column", format!("its first line must be a header that names a column `{COLUMN}`"))
}

fn is_phone_like(field: &[u8]) -> bool {
    match phones::parse_bytes(field) {
        Ok(_) => true,
        Err((code, _)) => matches!(
            code,
            "plus_missing"
                | "plus_misplaced"
                | "prefix_00"
                | "country_code_missing"
                | "scientific_notation"
                | "trunk_zero"
        ),
    }
}

/// The fields of one record.
fn fields(record: &[u8], separator: u8) -> Vec<Vec<u8>> {
    let mut reader = Table::new(separator, 0, 0, record.len() + 1);
    let done = reader.read(record).0 || reader.read(b"\n").0;
    // A quote that is open leaves its field without an end.
    let fields = if done { reader.record.fields } else { 0 };
    (0..fields).map(|number| reader.record.field(number).to_vec()).collect()
}

fn quote_open(line: Option<u64>) -> Problem {
    let detail = format!(
        "a field that opens with a quote in the record of line {} is not closed: nothing behind it can be read",
        line.unwrap_or_default()
    );
    Problem::new(StatusCode::BAD_REQUEST, "quote_open", detail)
}
