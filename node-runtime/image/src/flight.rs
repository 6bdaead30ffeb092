//! One worker for each thing at a time: who comes second waits, and then finds the work done, or takes
//! it over when the first gave up.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::digest::Digest;

/// What is being worked on.
#[derive(Debug, Default)]
pub(crate) struct Flights(Mutex<HashMap<Digest, Weak<Semaphore>>>);

impl Flights {
    /// Waits for its turn with `key`; `waiting` is called when someone else has it.
    pub(crate) async fn take(&self, key: &Digest, waiting: impl FnOnce()) -> OwnedSemaphorePermit {
        let turn = self.turn(key);
        if let Ok(permit) = Arc::clone(&turn).try_acquire_owned() {
            return permit;
        }
        waiting();
        turn.acquire_owned().await.expect("the semaphore is never closed")
    }

    fn turn(&self, key: &Digest) -> Arc<Semaphore> {
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turn) = flights.get(key).and_then(Weak::upgrade) {
            return turn;
        }
        flights.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::new(Semaphore::new(1));
        flights.insert(key.clone(), Arc::downgrade(&turn));
        turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_second_gets_its_turn_when_the_first_is_gone() {
        let flights = Flights::default();
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let first = flights.take(&a, || panic!("nobody is there")).await;
        let _other = flights.take(&b, || panic!("another key")).await;
        let mut has_waited = false;
        let mut second = Box::pin(flights.take(&a, || has_waited = true));
        assert!(futures_util::poll!(&mut second).is_pending());
        drop(first);
        drop(second.await);
        assert!(has_waited);
    }
}
