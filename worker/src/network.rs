//! One actor per cluster network on this node: applies the newest table, again and again until it holds.
//! Versions that come while one is being applied are skipped but for the last. The actor outlives the network's
//! absence, so that a network that goes and comes back is never removed and applied at once.

use std::sync::Arc;
use std::time::Duration;

use rswarm_base::Scope;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::assignments::NetworkView;
use crate::executor::{ExecError, Executor};

/// Pause before a table that could not be applied is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// A table is applied again after this time even if nothing changed, so that the kernel cannot drift.
const RECONCILE: Duration = Duration::from_secs(30);

/// Tells the agent that the kernel holds a version of a network's table, or why it does not.
#[derive(Debug)]
pub(crate) struct Applied {
    pub(crate) network_id: String,
    pub(crate) version: Result<u64, ExecError>,
}

/// The agent's hold on one network's actor.
pub(crate) struct NetworkHandle {
    wanted: watch::Sender<Option<Arc<NetworkView>>>,
}

impl NetworkHandle {
    pub(crate) fn spawn(
        view: NetworkView,
        executor: Arc<dyn Executor>,
        applied: mpsc::Sender<Applied>,
        scope: &Scope,
    ) -> NetworkHandle {
        let network_id = view.network.id.clone();
        let (wanted, receiver) = watch::channel(Some(Arc::new(view)));
        scope.spawn(run(network_id, receiver, executor, applied, scope.token()));
        NetworkHandle { wanted }
    }

    /// A newer table; the actor goes to it when it is done with the one at hand.
    pub(crate) fn update(&self, view: NetworkView) {
        self.wanted.send_replace(Some(Arc::new(view)));
    }

    /// The network is no longer wanted: its actor removes it from the kernel.
    pub(crate) fn retire(&self) {
        self.wanted.send_replace(None);
    }
}

/// Ends when the daemon stops; the network stays as it is then.
async fn run(
    network_id: String,
    mut wanted: watch::Receiver<Option<Arc<NetworkView>>>,
    executor: Arc<dyn Executor>,
    applied: mpsc::Sender<Applied>,
    cancel: CancellationToken,
) {
    loop {
        let view = wanted.borrow_and_update().clone();
        let next_look = match &view {
            Some(view) => apply(view, executor.as_ref(), &applied).await,
            None => remove(&network_id, executor.as_ref()).await,
        };
        let pause = async {
            match next_look {
                Some(after) => tokio::time::sleep(after).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            changed = wanted.changed() => if changed.is_err() { return },
            () = pause => {}
        }
    }
}

/// When to look again, whether or not it worked.
async fn apply(
    view: &NetworkView,
    executor: &dyn Executor,
    applied: &mpsc::Sender<Applied>,
) -> Option<Duration> {
    let version = executor.apply_network(view).await.map(|()| view.version);
    let next_look = match &version {
        Ok(_) => RECONCILE,
        Err(error) => {
            tracing::warn!(network.id = view.network.id, %error, "network table could not be applied");
            RETRY
        }
    };
    // The agent is gone only when the daemon stops.
    let _ = applied.send(Applied { network_id: view.network.id.clone(), version }).await;
    Some(next_look)
}

/// When to try again; never, once the network is gone.
async fn remove(network_id: &str, executor: &dyn Executor) -> Option<Duration> {
    match executor.remove_network(network_id).await {
        Ok(()) => None,
        Err(error) => {
            tracing::warn!(network.id = network_id, %error, "network could not be removed");
            Some(RETRY)
        }
    }
}
