//! Connections for reading, shared by all readers: a bounded number, on blocking threads.

use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::file::File;
use crate::LogError;

/// Reads from the file off the async threads.
#[derive(Clone)]
pub(super) struct Pool(Arc<Inner>);

struct Inner {
    dir: PathBuf,
    idle: Mutex<Vec<File>>,
    places: Arc<Semaphore>,
}

impl Pool {
    pub fn new(dir: PathBuf, size: usize) -> Self {
        let places = Arc::new(Semaphore::new(size.max(1)));
        Self(Arc::new(Inner { dir, idle: Mutex::default(), places }))
    }

    /// Runs `work` with a connection. Waits while all of them are in use.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&File) -> Result<T, LogError> + Send + 'static,
    ) -> Result<T, LogError> {
        let place = Arc::clone(&self.0.places).acquire_owned().await.map_err(|_| LogError::Closed)?;
        let inner = Arc::clone(&self.0);
        let task = tokio::task::spawn_blocking(move || {
            let idle = inner.idle.lock().pop();
            let file = idle.map_or_else(|| File::open_read_only(&inner.dir), Ok)?;
            let result = work(&file);
            // One that failed is not used again.
            if result.is_ok() {
                inner.idle.lock().push(file);
            }
            drop(place);
            result
        });
        task.await.map_err(|error| LogError::Engine { action: "read", reason: error.to_string() })?
    }

    /// Closes the connections; whoever waits for one is told that the log is closed.
    pub fn close(&self) {
        self.0.places.close();
        self.0.idle.lock().clear();
    }
}
