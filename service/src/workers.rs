//! Long-lived threads and tasks whose panic leaves a process half alive: the writer of the log, say. Each holds a
//! [`Guard`] while it runs. After a panic of one of them `/health/live` answers 503, so that a supervisor starts the process
//! again. Nothing that was accepted is lost by that.
//!
//! A task whose panic is handled (a stage, a request) holds no guard. The state is one for the process, as a restart is.

use std::sync::OnceLock;

/// The first worker of this process that panicked.
static PANICKED: OnceLock<&'static str> = OnceLock::new();

/// Held by a worker while it runs.
#[must_use = "a guard that is dropped at once guards nothing"]
#[derive(Debug)]
pub struct Guard(&'static str);

/// Guards the worker `name`, until the guard is dropped without a panic.
pub const fn guard(name: &'static str) -> Guard {
    Guard(name)
}

/// Runs `work` as the worker `name`.
pub async fn guarded<T>(name: &'static str, work: impl Future<Output = T>) -> T {
    let _guard = guard(name);
    work.await
}

impl Drop for Guard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(worker = self.0, "a worker panicked; the process must be started again");
            let _ = PANICKED.set(self.0);
        }
    }
}

/// The first worker that panicked, if any did.
pub fn panicked() -> Option<&'static str> {
    PANICKED.get().copied()
}
