//! Text read by the type of its key: the type of its value in the commented defaults.

use std::borrow::Cow;

use toml::{Table, Value};

/// The type of each key.
pub(super) struct Types(Table);

impl Types {
    /// The types that `defaults` show. A key that has no default stands in a comment, `# key = value`, with an example.
    pub(super) fn of(defaults: &str) -> Self {
        let mut types: Table = defaults.parse().unwrap_or_default();
        let mut section = "";
        for line in defaults.lines() {
            if let Some(header) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                section = header;
            } else if let Some((key, value)) = example(line) {
                let mut names = section.split('.').filter(|name| !name.is_empty());
                let table = names.try_fold(&mut types, |table, name| table.get_mut(name)?.as_table_mut());
                if let Some(table) = table {
                    table.entry(key).or_insert(value);
                }
            }
        }
        Self(types)
    }

    /// The value that `text` is at `key`. The error says what is expected there.
    pub(super) fn read(&self, key: &str, text: &str) -> Result<Value, String> {
        match self.example_at(key) {
            Some(Value::Integer(_)) => {
                number(text).filter(Value::is_integer).ok_or_else(|| "expected an integer".into())
            }
            Some(Value::Float(_)) => number(text).map(as_float).ok_or_else(|| "expected a number".into()),
            Some(Value::Boolean(_)) => {
                text.trim().parse().map(Value::Boolean).map_err(|_| "expected true or false".into())
            }
            Some(Value::Array(_)) => list(text).ok_or_else(|| "expected a list: a, b or [\"a\", \"b\"]".into()),
            Some(Value::Table(_)) => toml(text).filter(Value::is_table).ok_or_else(|| "expected a table".into()),
            // Unknown keys are named when all is read.
            Some(Value::String(_) | Value::Datetime(_)) | None => Ok(Value::String(text.to_owned())),
        }
    }

    /// The text of a TOML string, where the key takes text; anything else as it is.
    pub(super) fn unquoted<'a>(&self, key: &str, text: &'a str) -> Cow<'a, str> {
        let takes_text = matches!(self.example_at(key), Some(Value::String(_)) | None);
        match toml(text) {
            Some(Value::String(string)) if takes_text => Cow::Owned(string),
            _ => Cow::Borrowed(text),
        }
    }

    fn example_at(&self, key: &str) -> Option<&Value> {
        let (sections, name) = key.rsplit_once('.').map_or((None, key), |(sections, name)| (Some(sections), name));
        let mut table = &self.0;
        for section in sections.into_iter().flat_map(|sections| sections.split('.')) {
            table = table.get(section)?.as_table()?;
        }
        table.get(name)
    }
}

/// The key and the value of a line such as `# slot = 0`.
fn example(line: &str) -> Option<(String, Value)> {
    let table: Table = line.strip_prefix("# ")?.parse().ok()?;
    table.into_iter().next()
}

fn toml(text: &str) -> Option<Value> {
    let document = format!("value = {text}");
    let table = document.parse::<Table>().ok().filter(|table| table.len() == 1)?;
    table.into_iter().next().map(|(_, value)| value)
}

fn number(text: &str) -> Option<Value> {
    toml(text.trim()).filter(|value| value.is_integer() || value.is_float())
}

fn as_float(value: Value) -> Value {
    value.as_integer().map_or(value, |integer| Value::Float(integer as f64))
}

/// A list as in TOML, or values of text between commas.
fn list(text: &str) -> Option<Value> {
    let text = text.trim();
    if text.starts_with('[') {
        return toml(text).filter(Value::is_array);
    }
    let values = text.split(',').map(str::trim).filter(|value| !value.is_empty());
    Some(Value::Array(values.map(|value| Value::String(value.to_owned())).collect()))
}
