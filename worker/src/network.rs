//! One actor per cluster network on this node: applies the newest table, again and again until it holds.
//! Versions that come while one is being applied are skipped but for the last.

use std::sync::Arc;
use std::time::Duration;

use rswarm_base::Scope;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::assignments::NetworkView;
use crate::executor::Executor;

/// Pause before a table that could not be applied is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// A table is applied again after this time even if nothing changed, so that the kernel cannot drift.
const RECONCILE: Duration = Duration::from_secs(30);

/// Tells the agent that the kernel holds a version of a network's table.
#[derive(Debug)]
pub(crate) struct Applied {
    pub(crate) network_id: String,
    pub(crate) version: u64,
}

/// The agent's hold on one network's actor.
pub(crate) struct NetworkHandle {
    wanted: watch::Sender<Arc<NetworkView>>,
}

impl NetworkHandle {
    pub(crate) fn spawn(
        view: NetworkView,
        executor: Arc<dyn Executor>,
        applied: mpsc::Sender<Applied>,
        scope: &Scope,
    ) -> NetworkHandle {
        let (wanted, receiver) = watch::channel(Arc::new(view));
        scope.spawn(run(receiver, executor, applied, scope.token()));
        NetworkHandle { wanted }
    }

    /// A newer table; the actor goes to it when it is done with the one at hand.
    pub(crate) fn update(&self, view: NetworkView) {
        self.wanted.send_replace(Arc::new(view));
    }

    /// The network is no longer wanted: without its handle, its actor removes it from the kernel and ends.
    pub(crate) fn retire(self) {
        drop(self.wanted);
    }
}

/// Ends when the daemon stops (the network stays) or when its handle is dropped (the network goes).
async fn run(
    mut wanted: watch::Receiver<Arc<NetworkView>>,
    executor: Arc<dyn Executor>,
    applied: mpsc::Sender<Applied>,
    cancel: CancellationToken,
) {
    loop {
        let view = wanted.borrow_and_update().clone();
        let pause = match executor.apply_network(&view).await {
            Ok(()) => {
                let done = Applied { network_id: view.network.id.clone(), version: view.version };
                if applied.send(done).await.is_err() {
                    return;
                }
                RECONCILE
            }
            Err(error) => {
                tracing::warn!(network.id = view.network.id, %error, "network table could not be applied");
                RETRY
            }
        };
        tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            changed = wanted.changed() => if changed.is_err() {
                return remove(&view.network.id, executor.as_ref(), &cancel).await;
            },
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Containers of the network may still be going away: tries until the network is gone or the daemon stops.
async fn remove(network_id: &str, executor: &dyn Executor, cancel: &CancellationToken) {
    while let Err(error) = executor.remove_network(network_id).await {
        tracing::debug!(network.id = network_id, %error, "network is still in use");
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}
