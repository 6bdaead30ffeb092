//! Work that waits for a disk or takes long, off the threads that everything else runs on.

use tokio::task::{JoinError, spawn_blocking};

/// Runs `work` on a thread that may block. A panic in it goes on here. When the process's runtime ends before
/// it began, this never returns, like everything else then.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => gone(error).await,
    }
}

/// What becomes of whoever waits for work that did not end.
pub(crate) async fn gone<T>(error: JoinError) -> T {
    match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => std::future::pending().await,
    }
}
