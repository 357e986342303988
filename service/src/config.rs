//! Configuration: commented defaults, then a file, then the environment, then flags; a key that nothing reads is an error
//! that names it.

use std::path::Path;

use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};
use serde::de::DeserializeOwned;

/// Prefix of environment variables; a double underscore goes a section down: `ESHAAR_INGEST__BODY_LIMIT_BYTES`.
pub const ENV_PREFIX: &str = "ESHAAR_";

/// Variables of the same prefix that are no keys: the command line reads them, or the scripts of the tests.
const NOT_KEYS: [&str; 8] = ["config", "url", "api_key", "token", "bin", "seed", "console_url", "engines_cache"];

/// The configuration cannot be used. It names the key and where it was set.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file named on the command line is not there.
    #[error("no configuration file at {0}")]
    NoFile(String),
    /// A key is unknown, missing or of the wrong type.
    #[error("configuration: {0}")]
    Invalid(Box<figment::Error>),
}

/// Merges `defaults` (TOML), the file, the environment and `flags` (dotted keys with values), and reads them as `T`.
pub fn load<T: DeserializeOwned>(
    defaults: &str,
    file: Option<&Path>,
    flags: &[(String, toml::Value)],
) -> Result<T, ConfigError> {
    let mut figment = Figment::from(Toml::string(defaults));
    if let Some(path) = file {
        if !path.is_file() {
            return Err(ConfigError::NoFile(path.display().to_string()));
        }
        figment = figment.merge(Toml::file_exact(path));
    }
    figment = figment.merge(Env::prefixed(ENV_PREFIX).ignore(&NOT_KEYS).split("__"));
    for (key, value) in flags {
        figment = figment.merge(Serialized::default(key, value));
    }
    figment.extract().map_err(|error| ConfigError::Invalid(Box::new(error)))
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
    }

    const DEFAULTS: &str = "listen = \"127.0.0.1:1\"\n[ingest]\nlimit = 5\n";

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn a_file_overrides_defaults_and_a_flag_overrides_the_file() {
        let file = file("listen = \"file\"\n[ingest]\nlimit = 6\n");
        let flags = [("ingest.limit".to_owned(), toml::Value::Integer(7))];
        let options: Options = load(DEFAULTS, Some(file.path()), &flags).unwrap();
        assert_eq!(options, Options { listen: "file".into(), ingest: Section { limit: 7 } });
    }

    #[test]
    fn a_wrong_key_is_an_error_that_names_it() {
        let file = file("[ingest]\nlimti = 6\n");
        let error = load::<Options>(DEFAULTS, Some(file.path()), &[]).unwrap_err().to_string();
        assert!(error.contains("limti") && error.contains("ingest"), "{error}");
    }

    #[test]
    fn a_value_of_the_wrong_type_is_an_error_that_names_its_key() {
        let file = file("[ingest]\nlimit = \"many\"\n");
        let error = load::<Options>(DEFAULTS, Some(file.path()), &[]).unwrap_err().to_string();
        assert!(error.contains("ingest.limit"), "{error}");
    }
}
