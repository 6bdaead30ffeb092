//! Task ownership: every spawned task belongs to a [`Scope`], and a scope ends all its tasks.
//!
//! A scope is a node in one tree of cancellation tokens. `cancel` reaches all below it; `join` waits for
//! them with a deadline and names the ones that missed it.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A group of tasks that live and end together. Cloning gives another handle on the same group.
#[derive(Debug, Clone)]
pub struct Scope {
    name: &'static str,
    cancel: CancellationToken,
    tasks: TaskTracker,
}

impl Scope {
    /// A scope of its own, with no parent.
    #[must_use]
    pub fn root(name: &'static str) -> Scope {
        Scope { name, cancel: CancellationToken::new(), tasks: TaskTracker::new() }
    }

    /// A scope that ends when this one does, or earlier by itself.
    #[must_use]
    pub fn child(&self, name: &'static str) -> Scope {
        Scope { name, cancel: self.cancel.child_token(), tasks: TaskTracker::new() }
    }

    /// Starts a task. It must watch [`Scope::cancelled`], or be short. A panic in it aborts the process:
    /// a daemon with a dead limb is worse than one that restarts, and shims keep the containers.
    #[allow(clippy::disallowed_methods, reason = "the one place that spawns")]
    pub fn spawn<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let name = self.name;
        let guarded = async move {
            if AssertUnwindSafe(task).catch_unwind().await.is_err() {
                tracing::error!(
                    scope = name,
                    "a task panicked; the daemon stops so that it can restart whole"
                );
                std::process::abort();
            }
        };
        self.tasks.spawn(guarded);
    }

    /// The token that this scope's tasks watch.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.cancel.clone()
    }

    /// Resolves when the scope is told to end.
    pub async fn cancelled(&self) {
        self.cancel.cancelled().await;
    }

    /// Whether the scope was told to end.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// Tells every task of this scope and of its children to end.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Ends the scope and waits for its own tasks; says so when some miss the deadline.
    pub async fn shutdown(&self, deadline: Duration) {
        self.cancel.cancel();
        self.tasks.close();
        if tokio::time::timeout(deadline, self.tasks.wait()).await.is_err() {
            tracing::warn!(scope = self.name, left = self.tasks.len(), "tasks missed the shutdown deadline");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_child_ends_with_its_parent() {
        let root = Scope::root("root");
        let child = root.child("child");
        let (tx, rx) = tokio::sync::oneshot::channel();
        let token = child.token();
        child.spawn(async move {
            token.cancelled().await;
            let _ = tx.send(());
        });
        root.cancel();
        rx.await.expect("the child saw the cancellation");
        child.shutdown(Duration::from_secs(1)).await;
    }
}
