//! The seam to a cluster: containers that no service made come onto its networks, where no node chooses addresses.

use std::fmt::Debug;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use rswarm_base::Kind;
use tokio::sync::watch;

/// How long a container waits for its node to take its place in the cluster.
const ENTER_TIMEOUT: Duration = Duration::from_secs(20);

/// What a container asks of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlaceRequest {
    /// The container.
    pub container_id: String,
    /// The network, by identifier or name.
    pub network: String,
    /// Addresses that it wants; empty leaves them to the cluster.
    pub addresses: Vec<IpAddr>,
    /// The names by which others find it, the one for PTR answers first.
    pub names: Vec<String>,
}

/// A container's place on a network of the cluster, which is on this node by now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// What the cluster calls it; kept with the endpoint.
    pub id: String,
    /// The network.
    pub network_id: String,
    /// Its addresses there; none where each node gives them.
    pub addresses: Vec<IpAddr>,
    /// The MAC that goes with them.
    pub mac: Option<[u8; 6]>,
}

/// Why the cluster gave no place, in Docker's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct PlaceError {
    /// What is said.
    pub text: String,
    /// What kind of failure it is.
    pub kind: Kind,
    /// What to do about it.
    pub hint: Option<String>,
}

/// Whoever speaks with the cluster's managers for this node.
pub trait Attacher: Debug + Send + Sync + 'static {
    /// Gives a container a place on a network. It is held until it is given up with [`Attacher::release`]; after
    /// a restart of the daemon for as long as the container lives and has an endpoint with the place's id.
    fn place(&self, request: PlaceRequest) -> BoxFuture<'_, Result<Place, PlaceError>>;

    /// Gives up a place; one that is not held is fine.
    fn release(&self, place_id: &str);

    /// Gives up all places of a container.
    fn release_all(&self, container_id: &str);
}

/// The attacher while this node is in a cluster.
#[derive(Debug)]
pub(crate) struct Cluster(watch::Sender<Option<Arc<dyn Attacher>>>);

impl Default for Cluster {
    fn default() -> Cluster {
        Cluster(watch::channel(None).0)
    }
}

impl Cluster {
    pub(crate) fn set(&self, attacher: Option<Arc<dyn Attacher>>) {
        self.0.send_replace(attacher);
    }

    pub(crate) fn get(&self) -> Option<Arc<dyn Attacher>> {
        self.0.borrow().clone()
    }

    /// The attacher of a container that was on a network of a cluster before: after a start of the machine,
    /// containers come up before their node has taken its place.
    pub(crate) async fn wait(&self) -> Option<Arc<dyn Attacher>> {
        let mut changes = self.0.subscribe();
        let entered = tokio::time::timeout(ENTER_TIMEOUT, changes.wait_for(Option::is_some)).await;
        entered.ok()?.ok()?.clone()
    }

    pub(crate) fn release<'a>(&self, places: impl IntoIterator<Item = &'a String>) {
        if let Some(attacher) = self.get() {
            places.into_iter().filter(|place| !place.is_empty()).for_each(|place| attacher.release(place));
        }
    }
}
