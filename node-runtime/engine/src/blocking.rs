//! Disk work on the threads that may wait for disks.

/// Does `work` there, and waits for it. When the process is being shut down there is no end to wait for: the
/// task that asked is dropped with all others.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => std::future::pending().await,
    }
}
