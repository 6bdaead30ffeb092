//! The node's side of the API's swarm calls: one actor owns whether this daemon is in a cluster.

mod enter;
mod leave;

use std::sync::{Arc, Weak};

use async_trait::async_trait;
use bytes::Bytes;
use rswarm_api::{
    ClusterError, ClusterInfo, ClusterNode, InitRequest, JoinRequest, LocalState, RemoteManager,
    RestoreRequest,
};
use rswarm_base::audit::Audit;
use rswarm_base::{Chain, Kind, Scope};
use rswarm_engine::Engine;
use rswarm_manager::{Boot, Calls, Manager};
use rswarm_manager_core::State;
use rswarm_proto::tls::{self, Identity, IdentityError};
use rswarm_proto::wire::GenericResource;
use rswarm_proto::wire::logs_client::LogsClient;
use rswarm_proto::wire::task_containers_client::TaskContainersClient;
use tokio::sync::{mpsc, oneshot, watch};
use tonic::transport::Channel;

use super::address::Addresses;
use super::executor::EngineExecutor;
use super::membership::{Entering, Membership, Paths, Record, Way};
use super::tunnel::OwnKey;

/// Requests that may wait for the actor: one at a time is usual.
const INBOX: usize = 16;

/// What the daemon gives its node.
pub struct NodeConfig {
    /// The engine that runs the tasks.
    pub engine: Engine,
    /// Where the cluster's files are.
    pub paths: Paths,
    /// This node's name in the cluster.
    pub hostname: String,
    /// The engine's labels.
    pub labels: Vec<(String, String)>,
    /// What the node has that services can reserve.
    pub generic: Vec<GenericResource>,
    /// The UDP port of encrypted networks.
    pub tunnel_port: u16,
    /// Address or interface to advertise when a request names none; empty is the only one there is.
    pub advertise_addr: String,
    /// What is kept of calls.
    pub record: Record,
}

enum Request {
    Init(InitRequest, oneshot::Sender<Result<String, ClusterError>>),
    Join(JoinRequest, oneshot::Sender<Result<(), ClusterError>>),
    Leave(bool, oneshot::Sender<Result<(), ClusterError>>),
    Restore(RestoreRequest, oneshot::Sender<Result<String, ClusterError>>),
    Unlock(String, oneshot::Sender<Result<(), ClusterError>>),
    Manager(oneshot::Sender<Result<Manager, ClusterError>>),
}

/// How control calls of the API reach the manager in this process: over its own port, as any other client.
#[derive(Clone)]
struct Access {
    identity: Arc<Identity>,
    addr: String,
    manager: Manager,
}

/// The API's handle on the node.
pub struct Node {
    requests: mpsc::Sender<Request>,
    info: watch::Receiver<ClusterInfo>,
    access: watch::Receiver<Option<Access>>,
    /// The channel to this node's own manager, with the identity that it was opened with.
    channel: arc_swap::ArcSwapOption<(Arc<Identity>, Channel)>,
    record: Record,
    generic: Vec<GenericResource>,
}

impl Node {
    /// Starts the actor; a node that was in a cluster goes on in it.
    ///
    /// # Errors
    /// When the cluster's files are damaged: the daemon must not serve a wrong state.
    pub async fn start(config: NodeConfig, scope: Scope) -> Result<Arc<Node>, ClusterError> {
        let (requests, inbox) = mpsc::channel(INBOX);
        let (info_sender, info) = watch::channel(ClusterInfo::default());
        let (access_sender, access) = watch::channel(None);
        let node = Arc::new(Node {
            requests,
            info,
            access,
            channel: arc_swap::ArcSwapOption::empty(),
            record: config.record.clone(),
            generic: config.generic.clone(),
        });
        let mut actor = NodeActor {
            config,
            node: Arc::downgrade(&node),
            membership: None,
            locked: None,
            info: info_sender,
            access: access_sender,
            scope: scope.clone(),
        };
        actor.resume().await?;
        scope.spawn(actor.run(inbox));
        Ok(node)
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, ClusterError>>) -> Request,
    ) -> Result<T, ClusterError> {
        let stopping = || ClusterError::new(Kind::Unavailable, "the daemon is stopping");
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())?
    }

    /// What is counted of the calls to this node.
    pub fn calls(&self) -> &Calls {
        &self.record.calls
    }

    /// This node's manager, while it is one.
    pub fn manager(&self) -> Option<Manager> {
        self.access.borrow().as_ref().map(|access| access.manager.clone())
    }

    /// Waits until this node has a manager other than the one of these states; `None` when the daemon stops.
    pub async fn next_manager(&self, last: Option<&watch::Receiver<Arc<State>>>) -> Option<Manager> {
        let is_other = |access: &Access| last.is_none_or(|last| !access.manager.state().same_channel(last));
        let mut access = self.access.clone();
        let next = access.wait_for(|access| access.as_ref().is_some_and(is_other)).await.ok()?;
        next.as_ref().map(|access| access.manager.clone())
    }

    /// A channel to this node's own manager, kept while the node stays one.
    async fn channel(&self) -> Result<Channel, ClusterError> {
        let Some(access) = self.access.borrow().clone() else {
            self.channel.store(None);
            return Err(ClusterError::no_control(self.info.borrow().state));
        };
        // A node that left and entered another cluster has another identity: the old channel is of no use.
        if let Some((_, channel)) = self
            .channel
            .load_full()
            .as_deref()
            .filter(|(identity, _)| Arc::ptr_eq(identity, &access.identity))
        {
            return Ok(channel.clone());
        }
        let channel = tls::connect(&access.addr, &access.identity).await.map_err(ClusterError::from_error)?;
        self.channel.store(Some(Arc::new((access.identity, channel.clone()))));
        Ok(channel)
    }
}

#[async_trait]
impl ClusterNode for Node {
    fn audit(&self) -> &Audit {
        &self.record.audit
    }

    fn info(&self) -> ClusterInfo {
        ClusterInfo { generic: self.generic.clone(), ..self.info.borrow().clone() }
    }

    async fn init(&self, request: InitRequest) -> Result<String, ClusterError> {
        self.ask(|reply| Request::Init(request, reply)).await
    }

    async fn join(&self, request: JoinRequest) -> Result<(), ClusterError> {
        self.ask(|reply| Request::Join(request, reply)).await
    }

    async fn leave(&self, force: bool) -> Result<(), ClusterError> {
        self.ask(|reply| Request::Leave(force, reply)).await
    }

    async fn unlock(&self, key: String) -> Result<(), ClusterError> {
        self.ask(|reply| Request::Unlock(key, reply)).await
    }

    async fn backup(&self) -> Result<Bytes, ClusterError> {
        let manager = self.ask(Request::Manager).await?;
        let refused = |status: tonic::Status| {
            ClusterError::new(rswarm_proto::status::kind(status.code()), status.message())
        };
        manager.backup().await.map(Bytes::from).map_err(refused)
    }

    async fn restore(&self, request: RestoreRequest) -> Result<String, ClusterError> {
        self.ask(|reply| Request::Restore(request, reply)).await
    }

    async fn control(&self) -> Result<Channel, ClusterError> {
        self.channel().await
    }

    async fn logs(&self) -> Result<LogsClient<Channel>, ClusterError> {
        Ok(LogsClient::new(self.channel().await?))
    }

    async fn containers(
        &self,
        node_id: &str,
        addr: &str,
    ) -> Result<TaskContainersClient<Channel>, ClusterError> {
        let Some(Access { identity, .. }) = self.access.borrow().clone() else {
            return Err(ClusterError::no_control(self.info.borrow().state));
        };
        let channel = tls::connect_node(addr, node_id, &identity).await.map_err(ClusterError::from_error)?;
        Ok(TaskContainersClient::new(channel))
    }
}

/// The owner of this daemon's place in a cluster.
struct NodeActor {
    config: NodeConfig,
    /// Itself, as the API sees it.
    node: Weak<Node>,
    membership: Option<Membership>,
    /// Where a manager was whose key waits to be unlocked.
    locked: Option<Addresses>,
    info: watch::Sender<ClusterInfo>,
    access: watch::Sender<Option<Access>>,
    scope: Scope,
}

impl NodeActor {
    async fn run(mut self, mut inbox: mpsc::Receiver<Request>) {
        let scope = self.scope.clone();
        loop {
            self.publish();
            tokio::select! {
                biased;
                () = scope.cancelled() => break,
                Some(request) = inbox.recv() => self.on_request(request).await,
                () = due(self.membership.as_mut()) => self.follow().await,
            }
        }
        if let Some(membership) = self.membership.take() {
            membership.detach().await;
        }
    }

    async fn on_request(&mut self, request: Request) {
        match request {
            Request::Init(request, reply) => {
                let _ = reply.send(self.init(request).await);
            }
            Request::Join(request, reply) => {
                let _ = reply.send(self.join(request).await);
            }
            Request::Leave(force, reply) => {
                let _ = reply.send(self.leave(force).await);
            }
            Request::Restore(request, reply) => {
                let _ = reply.send(self.restore(request).await);
            }
            Request::Unlock(key, reply) => {
                let _ = reply.send(self.unlock(&key).await);
            }
            Request::Manager(reply) => {
                let manager = self.membership.as_ref().and_then(|membership| membership.manager.clone());
                let missing = || ClusterError::no_control(self.info.borrow().state);
                let _ = reply.send(manager.ok_or_else(missing));
            }
        }
    }

    /// A node that was in a cluster when its daemon ended goes on in it.
    async fn resume(&mut self) -> Result<(), ClusterError> {
        let damaged = |error: std::io::Error| {
            ClusterError::new(Kind::Internal, "the cluster's files cannot be read").because(error)
        };
        let paths = self.config.paths.clone();
        let unfinished = paths.unfinished().map_err(damaged)?;
        let addresses = paths.load_addresses().map_err(damaged)?;
        let identity = match Identity::load(&paths.certificates()) {
            Err(IdentityError::Locked) if addresses.is_some() => {
                tracing::warn!(
                    "this manager is locked: its containers go on, `rswarm swarm unlock` opens it"
                );
                self.locked = addresses;
                return Ok(());
            }
            loaded => loaded.map_err(ClusterError::from_error)?,
        };
        match (unfinished, identity, addresses) {
            (None, Some(identity), Some(addresses)) => {
                let way = Way { boot: Boot::Restart, managers: Vec::new(), lock: None };
                self.enter(identity, addresses, way).await
            }
            (None, ..) => Ok(()),
            (Some(Entering::Joining(via)), Some(identity), Some(addresses)) => {
                let way = Way { boot: Boot::Join { via: via.clone() }, managers: via, lock: None };
                if let Err(error) = self.enter_or_wipe(identity, addresses, way).await {
                    tracing::error!(error = %Chain(&error), "a join that was cut short could not be finished: this node is in no cluster");
                }
                Ok(())
            }
            // Nobody was told of it: there is nothing to go on with.
            (Some(_), ..) => {
                tracing::warn!("the last daemon ended while it entered a cluster: this node is in none");
                paths.wipe().map_err(damaged)
            }
        }
    }

    async fn enter(
        &mut self,
        identity: Arc<Identity>,
        addresses: Addresses,
        way: Way,
    ) -> Result<(), ClusterError> {
        let executor = self.executor(identity.subject().node_id, &addresses);
        let (paths, record) = (self.config.paths.clone(), self.config.record.clone());
        let scope = self.scope.child("membership");
        let entered = Membership::enter(identity, addresses, way, executor, paths, record, scope).await;
        self.membership = Some(entered.map_err(ClusterError::from_error)?);
        self.publish();
        Ok(())
    }

    fn executor(&self, node_id: String, addresses: &Addresses) -> Arc<EngineExecutor> {
        EngineExecutor::new(
            self.config.engine.clone(),
            node_id,
            self.config.hostname.clone(),
            (&self.config.labels, &self.config.generic),
            addresses.data_path,
            OwnKey::new(self.config.paths.tunnel_key(), self.config.tunnel_port),
            self.node.clone(),
        )
    }

    /// Whether this node is in a cluster, even if it waits to be unlocked.
    fn is_member(&self) -> bool {
        self.membership.is_some() || self.locked.is_some()
    }

    /// What is asked for, or else what the daemon was set up with.
    fn advertise<'a>(&'a self, asked: &'a str) -> &'a str {
        if asked.is_empty() { &self.config.advertise_addr } else { asked }
    }

    async fn follow(&mut self) {
        let Some(membership) = &mut self.membership else { return };
        membership.follow().await;
    }

    fn publish(&self) {
        let info = match (&self.membership, &self.locked) {
            (Some(membership), _) => info_of(membership),
            (None, Some(addresses)) => ClusterInfo {
                node_addr: addresses.advertise.ip().to_string(),
                state: LocalState::Locked,
                error: ClusterError::locked().message,
                ..ClusterInfo::default()
            },
            (None, None) => ClusterInfo::default(),
        };
        let access = self
            .membership
            .as_ref()
            .and_then(|membership| Some(access_of(membership, membership.manager.clone()?)));
        self.access.send_replace(access);
        self.info.send_replace(info);
    }
}

async fn due(membership: Option<&mut Membership>) {
    match membership {
        Some(membership) => membership.due().await,
        None => std::future::pending().await,
    }
}

fn access_of(membership: &Membership, manager: Manager) -> Access {
    Access { identity: membership.identity.clone(), addr: membership.addresses.local().to_string(), manager }
}

fn info_of(membership: &Membership) -> ClusterInfo {
    let subject = membership.identity.subject();
    let agent = membership.agent.membership.borrow();
    let is_manager = membership.manager.is_some();
    let state = match (agent.removed.as_ref().or(membership.failure.as_ref()), &agent.update) {
        (Some(_), _) => LocalState::Error,
        (None, None) if !is_manager => LocalState::Pending,
        (None, _) => LocalState::Active,
    };
    let managers = agent.update.iter().flat_map(|update| &update.managers);
    ClusterInfo {
        node_id: subject.node_id,
        node_addr: membership.addresses.advertise.ip().to_string(),
        state,
        control_available: is_manager,
        error: membership.failure.clone().or(agent.removed.clone()).unwrap_or_else(|| agent.error.clone()),
        cluster_id: subject.cluster_id,
        managers: managers
            .map(|manager| RemoteManager { node_id: manager.node_id.clone(), addr: manager.addr.clone() })
            .collect(),
        data_path_port: agent.update.as_ref().map_or(0, |update| update.data_path_port),
        generic: Vec::new(),
    }
}
