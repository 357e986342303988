//! Configuration: commented defaults, then a file, then the environment, then flags. An unknown key is an error that names
//! it.
//!
//! Text from the environment and from `--set` is read by the type of its key in the defaults: the value of a text key is
//! taken as it is, whatever it looks like; only `--set` also takes a TOML string (`key="text"`). No error shows a value or a
//! part of a file: either may be a secret.

mod error;
mod typed;

use std::ffi::OsString;
use std::path::Path;

use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};
use serde::de::DeserializeOwned;

pub use self::error::ConfigError;
use self::typed::Types;

/// Prefix of environment variables. A double underscore separates a section from its key: `ESHAAR_INGEST__BODY_LIMIT_BYTES`.
pub const ENV_PREFIX: &str = "ESHAAR_";

/// Variables of the same prefix that are no keys: the command line reads them, or the scripts of the tests.
const NOT_KEYS: [&str; 8] = ["config", "url", "api_key", "token", "bin", "seed", "console_url", "engines_cache"];

/// The sources that come after the defaults, in the order of their precedence.
#[derive(Debug, Default)]
pub struct Sources<'a> {
    /// A TOML file.
    pub file: Option<&'a Path>,
    /// Variables of the environment; those without [`ENV_PREFIX`] are ignored.
    pub environment: Vec<(OsString, OsString)>,
    /// Dotted keys with text, read by the type of the key (`--set`).
    pub set: &'a [(String, String)],
    /// Dotted keys with values (flags of a command).
    pub flags: &'a [(String, toml::Value)],
}

/// Merges `defaults` (TOML) and `sources`, and reads them as `T`.
pub fn load<T: DeserializeOwned>(defaults: &str, sources: Sources<'_>) -> Result<T, ConfigError> {
    let types = Types::of(defaults);
    let mut figment = Figment::from(Layer::parse("the defaults", defaults)?);
    if let Some(path) = sources.file {
        figment = figment.merge(read(path)?);
    }
    for (name, value) in sources.environment {
        let Some(key) = key_of(&name) else { continue };
        let source = format!("${}", name.to_string_lossy());
        let value = value.into_string().map_err(|_| ConfigError::invalid(&source, &key, "the value is not UTF-8"))?;
        figment = figment.merge(Layer::of(&types, source, &key, &value)?);
    }
    for (key, text) in sources.set {
        let text = types.unquoted(key, text);
        figment = figment.merge(Layer::of(&types, format!("--set {key}"), key, &text)?);
    }
    for (key, value) in sources.flags {
        figment = figment.merge(Layer { source: "the command line".to_owned(), table: nested(key, value.clone()) });
    }
    figment.extract().map_err(|error| ConfigError::from_figment(&error))
}

fn read(path: &Path) -> Result<Layer, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => ConfigError::NoFile(path.display().to_string()),
        _ => ConfigError::Unreadable { file: path.display().to_string(), reason: error.to_string() },
    })?;
    Layer::parse(&path.display().to_string(), &text)
}

/// The key that an environment variable sets.
fn key_of(name: &OsString) -> Option<String> {
    let name = name.to_str()?;
    let has_prefix = name.get(..ENV_PREFIX.len())?.eq_ignore_ascii_case(ENV_PREFIX);
    let key = name.get(ENV_PREFIX.len()..)?.to_ascii_lowercase().replace("__", ".");
    (has_prefix && !key.is_empty() && !NOT_KEYS.contains(&key.as_str())).then_some(key)
}

/// A table with one value, at a dotted key.
fn nested(key: &str, value: toml::Value) -> toml::Table {
    let (first, rest) = match key.split_once('.') {
        Some((first, rest)) => (first, toml::Value::Table(nested(rest, value))),
        None => (key, value),
    };
    toml::Table::from_iter([(first.to_owned(), rest)])
}

/// The values of one source.
struct Layer {
    source: String,
    table: toml::Table,
}

impl Layer {
    fn parse(source: &str, text: &str) -> Result<Self, ConfigError> {
        let table = text.parse().map_err(|error| ConfigError::from_toml(source, text, &error))?;
        Ok(Self { source: source.to_owned(), table })
    }

    fn of(types: &Types, source: String, key: &str, text: &str) -> Result<Self, ConfigError> {
        let value = types.read(key, text).map_err(|expected| ConfigError::invalid(&source, key, &expected))?;
        Ok(Self { source, table: nested(key, value) })
    }
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.source.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let dict = Value::serialize(&self.table)?.into_dict().unwrap_or_default();
        Ok(Map::from_iter([(Profile::Default, dict)]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Options {
        listen: String,
        ingest: Section,
    }

    #[derive(Debug, serde::Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Section {
        limit: u32,
        is_open: bool,
        nodes: Vec<String>,
        mode: Mode,
        slot: Option<u32>,
        password: Option<String>,
    }

    #[derive(Debug, serde::Deserialize, PartialEq)]
    #[serde(rename_all = "lowercase")]
    enum Mode {
        Fast,
        Safe,
    }

    const DEFAULTS: &str = r#"
listen = "127.0.0.1:1"
[ingest]
limit = 5
is_open = false
nodes = ["a"]
mode = "fast"
# The slot.
# slot = 0
# password = ""
"#;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    fn from_environment(variables: &[(&str, &str)]) -> Result<Options, ConfigError> {
        let environment = variables.iter().map(|(name, value)| (name.into(), value.into())).collect();
        load(DEFAULTS, Sources { environment, ..Sources::default() })
    }

    fn from_file(text: &str) -> Result<Options, ConfigError> {
        load(DEFAULTS, Sources { file: Some(file(text).path()), ..Sources::default() })
    }

    #[test]
    fn each_source_overrides_those_before_it() {
        let file = file("listen = \"file\"\n[ingest]\nlimit = 6\nmode = \"safe\"\n");
        let sources = Sources {
            file: Some(file.path()),
            environment: vec![("ESHAAR_INGEST__LIMIT".into(), "7".into()), ("ESHAAR_LISTEN".into(), "env".into())],
            set: &[("ingest.limit".to_owned(), "8".to_owned()), ("ingest.slot".to_owned(), "3".to_owned())],
            flags: &[("ingest.slot".to_owned(), toml::Value::Integer(4))],
        };
        let options: Options = load(DEFAULTS, sources).unwrap();
        assert_eq!((options.listen.as_str(), options.ingest.mode), ("env", Mode::Safe));
        assert_eq!((options.ingest.limit, options.ingest.slot), (8, Some(4)));
    }

    #[test]
    fn text_from_the_environment_is_taken_as_it_is() {
        for text in ["407408718192", "true", " spaced ", "\"quoted\"", "'", "[1, 2]", "{a}", "1.5e3", "", "a=b#c"] {
            let options = from_environment(&[("ESHAAR_LISTEN", text), ("ESHAAR_INGEST__PASSWORD", text)]).unwrap();
            assert_eq!((options.listen.as_str(), options.ingest.password.as_deref()), (text, Some(text)));
        }
    }

    #[test]
    fn a_setting_may_be_a_string_of_toml() {
        let set = |value: &str| {
            let set = [("listen".to_owned(), value.to_owned())];
            load::<Options>(DEFAULTS, Sources { set: &set, ..Sources::default() }).unwrap().listen
        };
        assert_eq!((set("\"a \\\"b\"").as_str(), set("'c'").as_str()), ("a \"b", "c"));
        assert_eq!((set("a\"b").as_str(), set("5").as_str(), set("\"").as_str()), ("a\"b", "5", "\""));
    }

    #[test]
    fn other_values_from_the_environment_are_read_by_the_type_of_their_key() {
        let options = from_environment(&[
            ("ESHAAR_INGEST__LIMIT", " 1_000 "),
            ("ESHAAR_INGEST__IS_OPEN", "true"),
            ("ESHAAR_INGEST__NODES", "[\"b:1\", \"407\"]"),
            ("eshaar_ingest__slot", "12"),
            ("ESHAAR_INGEST__MODE", "safe"),
            ("ESHAAR_URL", "http://no-key"),
            ("OTHER", "1"),
        ])
        .unwrap();
        assert_eq!((options.ingest.limit, options.ingest.is_open, options.ingest.slot), (1_000, true, Some(12)));
        assert_eq!(options.ingest.nodes, ["b:1", "407"]);
        let listed = from_environment(&[("ESHAAR_INGEST__NODES", "b:1, 407")]).unwrap();
        assert_eq!(listed.ingest.nodes, ["b:1", "407"]);
    }

    #[test]
    fn a_value_that_does_not_fit_names_the_variable_the_key_and_the_type_and_shows_no_value() {
        for (name, value, expected) in [
            ("ESHAAR_INGEST__LIMIT", "hunter2", "integer"),
            ("ESHAAR_INGEST__LIMIT", "-7777777", "ingest.limit"),
            ("ESHAAR_INGEST__LIMIT", "", "integer"),
            ("ESHAAR_INGEST__IS_OPEN", "hunter2", "true or false"),
            ("ESHAAR_INGEST__NODES", "[hunter2", "list"),
            ("ESHAAR_INGEST__MODE", "hunter2", "`fast`, `safe`"),
        ] {
            let error = from_environment(&[(name, value)]).unwrap_err().to_string();
            let hidden = value.is_empty() || !error.contains(value);
            assert!(error.contains(name) && error.contains(expected) && hidden, "{error}");
        }
    }

    #[test]
    fn an_unknown_key_is_named_with_its_source() {
        let error = from_file("[ingest]\nlimti = 6\n").unwrap_err().to_string();
        assert!(error.contains("ingest.limti") && error.contains("unknown"), "{error}");
        let error = from_environment(&[("ESHAAR_INGEST__LIMTI", "1")]).unwrap_err().to_string();
        assert!(error.contains("ingest.limti") && error.contains("ESHAAR_INGEST__LIMTI"), "{error}");
    }

    #[test]
    fn no_error_about_a_file_shows_a_value_or_a_line_of_it() {
        for text in [
            "[ingest]\npassword = \"hunter2\nlimit = 6\n",
            "[ingest]\npassword = hunter2\n",
            "[ingest]\npassword = \"hunter2\" limit = 6\n",
            "[ingest]\nlimit = \"hunter2\"\n",
            "[ingest]\nmode = \"hunter2\"\n",
            "[ingest]\npassword = [\"hunter2\"]\n",
            "[ingest]\npassword = \"hunter2\"\npassword = \"hunter2\"\n",
        ] {
            let error = from_file(text).unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(!shown.contains("hunter2"), "{shown}");
            assert!(shown.contains("line") || shown.contains("ingest."), "{shown}");
        }
    }
}
