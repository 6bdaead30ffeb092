//! Disk work on the threads that may wait for disks.

use tokio::task::JoinHandle;

/// Work that goes on, whether or not somebody waits for it.
pub(crate) struct Work<T>(JoinHandle<T>);

impl<T> Work<T> {
    /// Waits for it. When the process is being shut down there is no end to wait for: the task that asked is
    /// dropped with all others.
    pub(crate) async fn end(self) -> T {
        match self.0.await {
            Ok(value) => value,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => std::future::pending().await,
        }
    }
}

/// Begins `work` there.
pub(crate) fn begin<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Work<T> {
    Work(tokio::task::spawn_blocking(work))
}

/// Does `work` there, and waits for it.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    begin(work).end().await
}
