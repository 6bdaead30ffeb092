//! Containers of this node's own on networks of the cluster: each asks the managers for a place, which comes back as
//! a task of this node, and is theirs until they leave the network.
//!
//! ```text
//!   engine ──place()──▶ Attachments ──Attach──▶ managers
//!      ▲                     ▲                      │ assignment: the network's table, then the task
//!      └──address, MAC───────┴──granted()◀──executor.prepare()◀── agent
//! ```
//!
//! While the container is on the network, the task runs; it ends when the place was given up, so that a manager need
//! not be there for that.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rswarm_base::Kind;
use rswarm_base::id::cluster_id;
use rswarm_engine::attach::{Attacher, Place, PlaceError, PlaceRequest};
use rswarm_engine::{Container, Engine};
use rswarm_proto::tls::Identity;
use rswarm_proto::wire::{AttachRequest, Attachment, ContainerStatus, NetworkAttachment, Task};
use rswarm_worker::{AgentHandle, ExecError, Started};
use tokio::sync::watch;
use tonic::Status;

use super::overlay::{address, mac};

/// How long a container waits for the network and the task (moby: 20 s).
const ATTACH_TIMEOUT: Duration = Duration::from_secs(20);

/// The places that containers of this daemon's own asked for and have not given up, by task.
#[derive(Debug)]
pub(super) struct Attachments {
    engine: Engine,
    managers: OnceLock<Managers>,
    leases: watch::Sender<BTreeMap<String, Lease>>,
}

/// How the managers are reached.
struct Managers {
    identity: Arc<Identity>,
    agent: AgentHandle,
}

impl std::fmt::Debug for Managers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Managers").field("known", &self.agent.managers()).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Lease {
    container_id: String,
    /// Once the managers have given it.
    place: Option<Place>,
}

/// Forgets a lease that was not granted, also when nobody waits for it any more.
struct Pending<'a> {
    attachments: &'a Attachments,
    task_id: Option<String>,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if let Some(task_id) = self.task_id.take() {
            self.attachments.release(&task_id);
        }
    }
}

impl Attachments {
    pub(super) fn new(engine: Engine) -> Arc<Attachments> {
        Arc::new(Attachments { engine, managers: OnceLock::new(), leases: watch::Sender::default() })
    }

    /// From now on containers may ask for places.
    pub(super) fn open(self: &Arc<Self>, identity: Arc<Identity>, agent: AgentHandle) {
        // Only the first agent of a membership is ever given.
        let _ = self.managers.set(Managers { identity, agent });
        self.engine.set_attacher(Some(self.clone()));
    }

    /// The node leaves its cluster: there is nobody to ask any more.
    pub(super) fn close(&self) {
        self.engine.set_attacher(None);
    }

    async fn ask(&self, wanted: PlaceRequest) -> Result<Place, PlaceError> {
        let network = wanted.network.clone();
        let managers =
            self.managers.get().ok_or_else(|| refused(&network, &Status::unavailable("no agent")))?;
        let task_id = cluster_id();
        let lease = Lease { container_id: wanted.container_id.clone(), place: None };
        self.leases.send_modify(|leases| drop(leases.insert(task_id.clone(), lease)));
        let mut pending = Pending { attachments: self, task_id: Some(task_id.clone()) };
        let request = AttachRequest {
            task_id: task_id.clone(),
            network: wanted.network,
            addresses: wanted.addresses.iter().map(ToString::to_string).collect(),
            attachment: Some(Attachment { container_id: wanted.container_id, names: wanted.names }),
        };
        rswarm_worker::attach::attach(&managers.identity, &managers.agent.managers(), request)
            .await
            .map_err(|status| refused(&network, &status))?;
        let place = self.granted(&task_id).await.ok_or_else(late)?;
        pending.task_id = None;
        Ok(place)
    }

    /// The place, once the network is on this node and the task has come.
    async fn granted(&self, task_id: &str) -> Option<Place> {
        let mut leases = self.leases.subscribe();
        let place =
            |leases: &BTreeMap<String, Lease>| leases.get(task_id).and_then(|lease| lease.place.clone());
        let granted = leases.wait_for(|leases| place(leases).is_some());
        let granted = tokio::time::timeout(ATTACH_TIMEOUT, granted).await.ok()?.ok()?;
        place(&granted)
    }

    /// The managers have given a place, and its network is here.
    pub(super) fn grant(&self, task: &Task) -> Result<(), ExecError> {
        if self.container(&task.id).is_some() {
            return Ok(());
        }
        let place = place_of(task)?;
        let mut waits = false;
        self.leases.send_if_modified(|leases| {
            let lease = leases.get_mut(&task.id);
            waits = lease.is_some();
            lease.is_some_and(|lease| lease.place.replace(place).is_none())
        });
        if waits { Ok(()) } else { Err(ExecError("the container does not wait for it any more".to_owned())) }
    }

    /// Resolves once the container is on the network.
    pub(super) async fn attached(&self, task: &Task) -> Result<Started, ExecError> {
        let container = self.changed_to(|| match self.container(&task.id) {
            Some(container) => Some(Ok(container)),
            None if self.is_leased(&task.id) => None,
            None => Some(Err(ExecError("the container did not come onto the network".to_owned()))),
        });
        let container = container.await?;
        let pid = container.state.pid.into();
        let container = ContainerStatus { container_id: container.id.clone(), pid, exit_code: 0 };
        Ok(Started { container, ports: Vec::new() })
    }

    /// Resolves once the container has left the network.
    pub(super) async fn detached(&self, task: &Task) {
        let gone = || (!self.is_leased(&task.id) && self.container(&task.id).is_none()).then_some(());
        self.changed_to(gone).await;
    }

    /// Takes the container off the network: the managers have ended its place.
    pub(super) async fn detach(&self, task_id: &str) {
        if let Some(container) = self.container(task_id) {
            let on = container.endpoints.iter().find(|endpoint| endpoint.place == task_id);
            let network = on.map_or("", |endpoint| &endpoint.network_id);
            if let Err(error) = self.engine.disconnect_network(&container.id, network).await {
                tracing::warn!(container.id = container.id, %error, "a container stays on a network");
            }
        }
        self.release(task_id);
    }

    /// The places that live containers have.
    pub(super) fn held(&self) -> Vec<String> {
        let live = self.engine.list().into_iter().filter(|container| container.state.status.is_live());
        let places = live.flat_map(|container| {
            container.endpoints.iter().map(|endpoint| endpoint.place.clone()).collect::<Vec<_>>()
        });
        places.filter(|place| !place.is_empty()).collect()
    }

    fn is_leased(&self, task_id: &str) -> bool {
        self.leases.borrow().contains_key(task_id)
    }

    /// The running container that has this place.
    fn container(&self, task_id: &str) -> Option<Arc<Container>> {
        let has = |container: &Arc<Container>| {
            container.state.status.is_live() && container.endpoints.iter().any(|e| e.place == task_id)
        };
        self.engine.list().into_iter().find(has)
    }

    /// Looks again whenever a lease or a container has changed.
    async fn changed_to<T>(&self, look: impl Fn() -> Option<T>) -> T {
        let (mut leases, mut events) = (self.leases.subscribe(), self.engine.events().live);
        loop {
            leases.mark_unchanged();
            if let Some(found) = look() {
                return found;
            }
            // One that lags behind the events looks again all the same; neither ends before the daemon does.
            tokio::select! {
                _ = leases.changed() => {}
                _ = events.recv() => {}
            }
        }
    }
}

impl Attacher for Attachments {
    fn place(&self, request: PlaceRequest) -> BoxFuture<'_, Result<Place, PlaceError>> {
        self.ask(request).boxed()
    }

    fn release(&self, place_id: &str) {
        self.leases.send_if_modified(|leases| leases.remove(place_id).is_some());
    }

    fn release_all(&self, container_id: &str) {
        self.leases.send_if_modified(|leases| {
            let before = leases.len();
            leases.retain(|_, lease| lease.container_id != container_id);
            leases.len() != before
        });
    }
}

fn place_of(task: &Task) -> Result<Place, ExecError> {
    let none = NetworkAttachment::default();
    let given = task.networks.first().unwrap_or(&none);
    let addresses: Vec<IpAddr> =
        given.addresses.iter().map(|cidr| address(cidr)).collect::<Result<_, _>>()?;
    let mac = if given.mac.is_empty() { None } else { Some(mac(&given.mac)?.0) };
    Ok(Place { id: task.id.clone(), network_id: given.network_id.clone(), addresses, mac })
}

/// Docker's words, around the managers'.
fn refused(network: &str, status: &Status) -> PlaceError {
    PlaceError {
        text: format!(
            "Could not attach to network {network}: rpc error: code = {:?} desc = {}",
            status.code(),
            status.message()
        ),
        kind: rswarm_proto::status::kind(status.code()),
        hint: status.metadata().get("hint").and_then(|hint| hint.to_str().ok()).map(str::to_owned),
    }
}

fn late() -> PlaceError {
    PlaceError {
        text:
            "attaching to network failed, make sure your network options are correct and check manager logs: \
               context deadline exceeded"
                .to_owned(),
        kind: Kind::DeadlineExceeded,
        hint: None,
    }
}
