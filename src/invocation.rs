//! Commands as they are printed for a user to run in another terminal: the program as it was called, with the flags that
//! name the same configuration, data and server.

use std::fmt::Write as _;

use crate::cli::Settings;

/// The server's address where none is configured.
const DEFAULT_URL: &str = "http://127.0.0.1:8080";

/// How this process was called.
pub struct Invocation {
    program: String,
    flags: Vec<String>,
}

impl Invocation {
    /// Of this process.
    pub fn current(settings: &Settings) -> Self {
        let program = std::env::args_os()
            .next()
            .map_or_else(|| "eshaar".into(), |program| program.to_string_lossy().into_owned());
        let mut flags = Vec::new();
        if let Some(config) = &settings.config {
            flags.extend(["--config".to_owned(), config.display().to_string()]);
        }
        if let Some(data_dir) = &settings.data_dir {
            flags.extend(["--data-dir".to_owned(), data_dir.display().to_string()]);
        }
        for (key, value) in &settings.set {
            flags.extend(["--set".to_owned(), format!("{key}={value}")]);
        }
        Self { program, flags }
    }

    /// A command of these words, quoted for a shell.
    pub fn command<'a>(&'a self, words: impl IntoIterator<Item = &'a str>) -> String {
        let mut words = words.into_iter().peekable();
        let mut line = quoted(&self.program);
        // The subcommand and its operands stand first, as in the documents.
        let first: Vec<&str> = std::iter::from_fn(|| words.next_if(|word| !word.starts_with('-'))).collect();
        let all = first.into_iter().chain(self.flags.iter().map(String::as_str)).chain(words);
        for word in all {
            let _ = write!(line, " {}", quoted(word));
        }
        line
    }
}

/// The flag that names the server at `url`; nothing where it is the default.
pub fn url_flag(url: &str) -> Vec<&str> {
    if url == DEFAULT_URL { Vec::new() } else { vec!["--url", url] }
}

/// A word as a POSIX shell reads it.
fn quoted(word: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:=+,@%".contains(&byte);
    if !word.is_empty() && word.bytes().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_command_names_the_same_data_and_is_quoted() {
        let settings = Settings {
            config: Some("/etc/my eshaar.toml".into()),
            data_dir: Some("data".into()),
            set: vec![("topic_prefix".to_owned(), "it's".to_owned())],
        };
        let invocation = Invocation { program: "target/debug/eshaar".to_owned(), ..Invocation::current(&settings) };
        assert_eq!(
            invocation.command(["send", "--to", "+966500000001", "Hello there"]),
            r"target/debug/eshaar send --config '/etc/my eshaar.toml' --data-dir data --set 'topic_prefix=it'\''s' --to +966500000001 'Hello there'"
        );
    }
}
