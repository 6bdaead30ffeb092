//! Reads while nobody leads: what this manager knew last, and marked as that.
//!
//! Docker's managers answer no read without a leader. But then a user needs to see most what there is: the state is
//! whole and consistent, only perhaps not the latest.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rswarm_proto::status::REPLICA;
use tonic::metadata::MetadataValue;
use tonic::{Response, Status};

use crate::forward::is_leaderless;
use crate::store::StoreHandle;

/// Answers reads by the leader, or by this manager's own state when there is none.
#[derive(Clone)]
pub(crate) struct Replica {
    store: StoreHandle,
    /// Whether the last read waited for a leader in vain: the next one need not wait as well.
    leaderless: Arc<AtomicBool>,
}

impl Replica {
    /// Of this manager.
    pub(crate) fn new(store: StoreHandle) -> Replica {
        Replica { store, leaderless: Arc::default() }
    }

    /// The leader's answer, else what `here` says of this manager's state.
    pub(crate) async fn read<A>(
        &self,
        at_leader: impl Future<Output = Result<Response<A>, Status>>,
        here: impl FnOnce() -> Result<A, Status>,
    ) -> Result<Response<A>, Status> {
        if self.leaderless.load(Ordering::Relaxed) && self.store.status().leader.is_none() {
            return marked(here());
        }
        let answer = at_leader.await;
        let leaderless = answer.as_ref().is_err_and(is_leaderless);
        self.leaderless.store(leaderless, Ordering::Relaxed);
        if leaderless { marked(here()) } else { answer }
    }
}

/// That there is no such object may be old as well.
fn marked<A>(answer: Result<A, Status>) -> Result<Response<A>, Status> {
    let mut answer = answer.map(Response::new);
    let metadata = match &mut answer {
        Ok(response) => response.metadata_mut(),
        Err(status) => status.metadata_mut(),
    };
    metadata.insert(REPLICA, MetadataValue::from_static("1"));
    answer
}
