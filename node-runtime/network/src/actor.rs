//! One task that owns one value. Callers hand it work; the work runs to its end, one piece after the
//! other, whether or not the caller still waits: an operation on the kernel is never left half done by an
//! aborted request.

use std::fmt;

use futures_util::future::BoxFuture;
use rswarm_base::Scope;
use tokio::sync::{mpsc, oneshot};

/// Callers beyond this wait their turn: one piece of work takes the kernel milliseconds, so a queue this
/// long is already a second of work.
const MAILBOX: usize = 64;

type Work<T> = Box<dyn for<'a> FnOnce(&'a mut T) -> BoxFuture<'a, ()> + Send>;

/// A handle that does not keep the task alive: for those that the value itself keeps.
pub struct WeakOwner<T>(mpsc::WeakSender<Work<T>>);

/// A handle on the task that owns a `T`.
pub struct Owner<T>(mpsc::Sender<Work<T>>);

/// The owner has ended: networking is being shut down, or the network was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

impl<T> Clone for Owner<T> {
    fn clone(&self) -> Owner<T> {
        Owner(self.0.clone())
    }
}

impl<T> WeakOwner<T> {
    /// The owner, if anybody else still has a handle on it.
    pub fn upgrade(&self) -> Option<Owner<T>> {
        self.0.upgrade().map(Owner)
    }
}

impl<T> Clone for WeakOwner<T> {
    fn clone(&self) -> WeakOwner<T> {
        WeakOwner(self.0.clone())
    }
}

impl<T> fmt::Debug for WeakOwner<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WeakOwner")
    }
}

impl<T> fmt::Debug for Owner<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Owner")
    }
}

impl<T: Send + 'static> Owner<T> {
    /// Starts the task. It ends with the scope, or when the last handle is dropped.
    pub fn spawn(scope: &Scope, value: T) -> Owner<T> {
        Owner::spawn_with(scope, |_| value)
    }

    /// The same, for a value that is told of its own owner.
    pub fn spawn_with(scope: &Scope, make: impl FnOnce(WeakOwner<T>) -> T) -> Owner<T> {
        let (sender, mut mailbox) = mpsc::channel::<Work<T>>(MAILBOX);
        let mut value = make(WeakOwner(sender.downgrade()));
        let cancel = scope.token();
        scope.spawn(async move {
            loop {
                let work = tokio::select! {
                    biased;
                    () = cancel.cancelled() => return,
                    work = mailbox.recv() => work,
                };
                let Some(work) = work else { return };
                work(&mut value).await;
            }
        });
        Owner(sender)
    }

    /// Has `work` done, and waits for what it yields.
    pub async fn call<R, F>(&self, work: F) -> Result<R, Gone>
    where
        R: Send + 'static,
        F: for<'a> FnOnce(&'a mut T) -> BoxFuture<'a, R> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let work: Work<T> = Box::new(move |value| {
            let future = work(value);
            Box::pin(async move {
                // The caller may have gone away; the work was done all the same.
                let _ = reply.send(future.await);
            })
        });
        self.0.send(work).await.map_err(|_| Gone)?;
        answer.await.map_err(|_| Gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_is_done_in_order_even_when_its_caller_left() {
        let scope = Scope::root("test");
        let owner = Owner::spawn(&scope, Vec::<u32>::new());
        let abandoned = owner.call(|list: &mut Vec<u32>| {
            Box::pin(async move {
                tokio::task::yield_now().await;
                list.push(1);
            })
        });
        // Polled once, so that the work is in the mailbox, and dropped.
        let _ = tokio::time::timeout(std::time::Duration::ZERO, abandoned).await;
        let seen = owner
            .call(|list: &mut Vec<u32>| {
                Box::pin(async move {
                    list.push(2);
                    list.clone()
                })
            })
            .await;
        assert_eq!(seen, Ok(vec![1, 2]));
        scope.shutdown(std::time::Duration::from_secs(1)).await;
        assert_eq!(owner.call(|_| Box::pin(async {})).await, Err(Gone));
    }
}
