//! What a registry has answered, in a small JSON file: so that a role starts again while the registry is down.
//!
//! An id and its schema never change, so nothing here goes stale; the file of another registry is not used. The file may
//! be deleted at any time.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::SchemaId;

/// Most schemas that are kept. Past it those that no subject needs are forgotten.
const MAX_SCHEMAS: usize = 1_024;

/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 64 * 1024 * 1024;

#[derive(Clone, Default, Serialize, Deserialize)]
struct Known {
    /// The registry's URL.
    registry: String,
    /// Subject → id of what this build writes there.
    subjects: BTreeMap<String, SchemaId>,
    /// Id → Avro JSON, in the one layout that the client uses.
    schemas: BTreeMap<SchemaId, String>,
}

/// The file, and what is in it.
pub(super) struct Cache {
    path: PathBuf,
    known: Mutex<Known>,
}

impl Cache {
    /// Reads the file, if it is there, and of this registry.
    pub(super) async fn open(path: PathBuf, registry: &str) -> Self {
        let known = match read(&path).await {
            Ok(Some(known)) if known.registry == registry => known,
            Ok(_) => Known { registry: registry.to_owned(), ..Known::default() },
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the cache of schemas cannot be read; beginning another");
                Known { registry: registry.to_owned(), ..Known::default() }
            }
        };
        Self { path, known: Mutex::new(known) }
    }

    /// The id that `schema` had under `subject`.
    pub(super) async fn id(&self, subject: &str, schema: &str) -> Option<SchemaId> {
        let known = self.known.lock().await;
        let id = *known.subjects.get(subject)?;
        (known.schemas.get(&id)? == schema).then_some(id)
    }

    pub(super) async fn schema(&self, id: SchemaId) -> Option<String> {
        self.known.lock().await.schemas.get(&id).cloned()
    }

    /// Keeps an answer, in the file too if it is news.
    pub(super) async fn keep(&self, subject: Option<&str>, id: SchemaId, schema: &str) {
        let mut known = self.known.lock().await;
        let is_known = known.schemas.get(&id).is_some_and(|kept| kept == schema)
            && subject.is_none_or(|subject| known.subjects.get(subject) == Some(&id));
        if is_known {
            return;
        }
        if known.schemas.len() >= MAX_SCHEMAS {
            let Known { subjects, schemas, .. } = &mut *known;
            schemas.retain(|id, _| subjects.values().any(|needed| needed == id));
        }
        known.schemas.insert(id, schema.to_owned());
        if let Some(subject) = subject {
            known.subjects.insert(subject.to_owned(), id);
        }
        if let Err(error) = write(&self.path, &known).await {
            tracing::warn!(path = %self.path.display(), %error, "the cache of schemas cannot be written");
        }
    }
}

async fn read(path: &Path) -> io::Result<Option<Known>> {
    match tokio::fs::metadata(path).await {
        Ok(file) if file.len() > MAX_FILE => Err(io::Error::other("it is too large")),
        Ok(_) => Ok(Some(serde_json::from_slice(&tokio::fs::read(path).await?)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes the file whole: who reads it sees the one before or this one.
async fn write(path: &Path, known: &Known) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}", std::process::id()));
    tokio::fs::write(&beside, serde_json::to_vec_pretty(known)?).await?;
    tokio::fs::rename(&beside, path).await
}
