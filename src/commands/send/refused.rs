//! The lines of an upload that the server refused, copied to a file of their own, to be corrected and sent again.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tokio::fs::OpenOptions;
use tokio::io::AsyncWriteExt as _;

use super::file::{Lines, decoded, open};

/// Numbers of refused lines in the file, from 1.
#[derive(Default)]
pub struct Refused(BTreeSet<u64>);

impl Refused {
    /// Adds a line.
    pub fn add(&mut self, line: u64) {
        self.0.insert(line);
    }

    /// Forgets the lines behind `line`.
    pub fn forget_after(&mut self, line: u64) {
        self.0.split_off(&(line + 1));
    }

    /// The number of lines.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Copies the lines from `input` to `output`: behind what it has if `is_continued`, in its place otherwise. Where there are
    /// none, it makes no file. Returns true if lines were written.
    pub async fn copy(&self, input: &Path, output: &Path, is_continued: bool) -> anyhow::Result<bool> {
        let failed = || format!("cannot write the refused lines to {}", output.display());
        let mut options = OpenOptions::new();
        options.write(true).append(is_continued).truncate(!is_continued);
        let (Some(_), Some(last)) = (self.0.first(), self.0.last()) else {
            // Lines of an earlier upload are none of this one, which may be continued.
            if !is_continued && output.is_file() {
                options.open(output).await.with_context(failed)?;
            }
            return Ok(false);
        };
        let mut lines = Lines::new(decoded(open(input).await?, input)).await?;
        let mut file = options.create(true).open(output).await.with_context(failed)?;
        let (mut number, mut line) = (0, Vec::new());
        while number < *last && lines.next(&mut line).await? {
            number += 1;
            if self.0.contains(&number) {
                if !line.ends_with(lines.end()) {
                    line.extend_from_slice(lines.end());
                }
                file.write_all(&line).await.with_context(failed)?;
            }
        }
        file.flush().await.with_context(failed)?;
        Ok(true)
    }
}

/// The default name of that file.
pub fn default_path(input: &Path) -> PathBuf {
    let mut name = input.as_os_str().to_owned();
    name.push(".refused");
    name.into()
}
