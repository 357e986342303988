//! The lines of an upload that the server refused, copied to a file of their own, to be corrected and sent again.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};

use super::bulk::open_decoded;

/// Numbers of refused lines, from 1.
#[derive(Default)]
pub struct Refused(BTreeSet<u64>);

impl Refused {
    /// Adds a line.
    pub fn add(&mut self, line: u64) {
        self.0.insert(line);
    }

    /// Copies the lines from `input` to `output`. Does nothing where there are none; returns true if the file was written.
    pub async fn copy(&self, input: &Path, output: &Path) -> anyhow::Result<bool> {
        let (Some(_), Some(last)) = (self.0.first(), self.0.last()) else { return Ok(false) };
        let mut lines = BufReader::new(open_decoded(input).await?).split(b'\n');
        let failed = || format!("cannot write the refused lines to {}", output.display());
        let mut file = tokio::fs::File::create(output).await.with_context(failed)?;
        let mut number = 0;
        while let Some(mut line) = lines.next_segment().await? {
            number += 1;
            if self.0.contains(&number) {
                line.push(b'\n');
                file.write_all(&line).await.with_context(failed)?;
            }
            if number == *last {
                break;
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
