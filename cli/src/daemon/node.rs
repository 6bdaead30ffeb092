//! The node's side of the API's swarm calls: one actor owns whether this daemon is in a cluster.

use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rswarm_api::{
    ClusterError, ClusterInfo, ClusterNode, InitRequest, JoinRequest, LocalState, RemoteManager,
    RestoreRequest,
};
use rswarm_base::audit::Audit;
use rswarm_base::{Chain, Kind, Scope, Timestamp};
use rswarm_engine::Engine;
use rswarm_manager::{Backup, Boot, Calls, Lock, Manager, NewCluster, found};
use rswarm_manager_core::State;
use rswarm_proto::tls::{self, EnrollError, Enrollment, Identity, IdentityError, UnlockKey};
use rswarm_proto::token::JoinToken;
use rswarm_proto::wire::control_client::ControlClient;
use rswarm_proto::wire::logs_client::LogsClient;
use rswarm_proto::wire::task_containers_client::TaskContainersClient;
use rswarm_proto::wire::{
    GenericResource, LeaveManagerRequest, ListRequest, Node as NodeObject, NodeAvailability, NodeRole,
    ObjectKind,
};
use tokio::sync::{mpsc, oneshot, watch};
use tonic::transport::Channel;

use super::address::{Addresses, with_default_port};
use super::executor::EngineExecutor;
use super::membership::{Entering, Membership, Paths, Record, Way, clear};
use super::tunnel::OwnKey;

/// Requests that may wait for the actor: one at a time is usual.
const INBOX: usize = 16;
/// How long `join` waits for the first session with a manager (moby: 20 s).
const JOIN_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a leaving manager tries to be removed from the members in good order.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

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

    // ---- init, join, leave ------------------------------------------------------------------------

    async fn init(&mut self, request: InitRequest) -> Result<String, ClusterError> {
        if request.force_new_cluster {
            return self.force_new_cluster(&request).await;
        }
        if self.is_member() {
            return Err(ClusterError::already_in_cluster());
        }
        let advertise = self.advertise(&request.advertise_addr);
        let addresses = Addresses::decide(&request.listen_addr, advertise, &request.data_path_addr, None)?;
        let cluster = NewCluster {
            spec: request.spec,
            address_pools: request.default_addr_pool,
            subnet_size: request.subnet_size,
            data_path_port: request.data_path_port,
            hostname: self.config.hostname.clone(),
            availability: request.availability,
        };
        let (founding, identity) = found(cluster, Timestamp::wall()).map_err(ClusterError::from_error)?;
        let node_id = identity.subject().node_id;
        let lock = UnlockKey::from_bytes(&founding.cluster.unlock_key);
        let way = Way { boot: Boot::Bootstrap(Box::new(founding)), managers: Vec::new(), lock };
        self.enter_or_wipe(identity, addresses, way).await?;
        Ok(node_id)
    }

    /// The only survivor of a cluster without quorum goes on alone, workloads untouched.
    async fn force_new_cluster(&mut self, request: &InitRequest) -> Result<String, ClusterError> {
        match self.membership.take() {
            Some(membership) if membership.role() == NodeRole::Manager => {
                let (identity, addresses) = (membership.identity.clone(), membership.addresses.clone());
                let addresses = match request.advertise_addr.as_str() {
                    // It goes on where it is.
                    "" => addresses,
                    elsewhere => {
                        let data_path = &request.data_path_addr;
                        match Addresses::decide(&request.listen_addr, elsewhere, data_path, None) {
                            Ok(addresses) => addresses,
                            Err(error) => {
                                self.membership = Some(membership);
                                return Err(error);
                            }
                        }
                    }
                };
                let lock = membership.lock();
                membership.detach().await;
                let way = Way { boot: Boot::ForceNewCluster, managers: Vec::new(), lock };
                self.enter(identity.clone(), addresses, way).await?;
                Ok(identity.subject().node_id)
            }
            Some(membership) => {
                self.membership = Some(membership);
                Err(ClusterError::not_a_manager())
            }
            None if self.locked.is_some() => Err(ClusterError::locked()),
            None => Err(ClusterError::new(
                Kind::FailedPrecondition,
                "--force-new-cluster goes on from this node's state, and it has none",
            )
            .hint("start a new cluster with `rswarm init`")),
        }
    }

    /// The cluster of a backup goes on with this node as a new one, and its only manager.
    async fn restore(&mut self, request: RestoreRequest) -> Result<String, ClusterError> {
        if self.is_member() {
            return Err(ClusterError::already_in_cluster());
        }
        let advertise = self.advertise(&request.advertise_addr);
        let addresses = Addresses::decide(&request.listen_addr, advertise, &request.data_path_addr, None)?;
        let key = match request.unlock_key.as_str() {
            "" => None,
            text => Some(UnlockKey::parse(text).map_err(ClusterError::from_error)?),
        };
        let backup = Backup::decode(&request.backup, key.as_ref()).map_err(ClusterError::from_error)?;
        let lock: Lock = backup.lock();
        let header = backup.header.clone();
        let hostname = self.config.hostname.clone();
        let (boot, identity) = backup
            .revive(hostname, NodeAvailability::Active, Timestamp::wall())
            .map_err(ClusterError::from_error)?;
        let node_id = identity.subject().node_id;
        self.enter_or_wipe(identity, addresses, Way { boot, managers: Vec::new(), lock }).await?;
        tracing::warn!(
            cluster.id = header.cluster,
            index = header.index,
            "the cluster goes on from a backup"
        );
        Ok(node_id)
    }

    async fn join(&mut self, request: JoinRequest) -> Result<(), ClusterError> {
        if self.is_member() {
            return Err(ClusterError::already_in_cluster());
        }
        let token = JoinToken::parse(&request.token).map_err(ClusterError::from_error)?;
        let managers: Vec<String> = request
            .remote_addrs
            .iter()
            .filter(|addr| !addr.is_empty())
            .map(|addr| with_default_port(addr))
            .collect();
        let Some(first) = managers.first() else {
            return Err(ClusterError::new(
                Kind::InvalidArgument,
                "at least 1 RemoteAddr is required to join",
            ));
        };
        let addresses = Addresses::decide(
            &request.listen_addr,
            self.advertise(&request.advertise_addr),
            &request.data_path_addr,
            Some(first),
        )?;
        let enrollment =
            Enrollment { hostname: self.config.hostname.clone(), availability: request.availability };
        let (identity, manager) = enroll(&managers, &token, enrollment).await?;
        // The manager that took us is the one to begin with; the others may not exist.
        let boot = Boot::Join { via: vec![manager.clone()] };
        self.enter_or_wipe(identity, addresses, Way { boot, managers: vec![manager], lock: None }).await?;
        self.first_session().await
    }

    /// A node that cannot take its place must not look like a member after the next start.
    async fn enter_or_wipe(
        &mut self,
        identity: Arc<Identity>,
        addresses: Addresses,
        way: Way,
    ) -> Result<(), ClusterError> {
        let paths = self.config.paths.clone();
        let unwritable = |error: std::io::Error| {
            ClusterError::new(Kind::Internal, "the cluster's files could not be written").because(error)
        };
        let entering = match way.managers.as_slice() {
            [] => Entering::Founding,
            managers => Entering::Joining(managers.to_vec()),
        };
        paths.begin(&entering).map_err(unwritable)?;
        let entered = match self.enter(identity, addresses, way).await {
            Ok(()) => paths.settle().map_err(unwritable),
            refused => refused,
        };
        if entered.is_err() {
            if let Some(membership) = self.membership.take() {
                membership.leave().await;
            }
            if let Err(error) = paths.wipe() {
                tracing::error!(%error, "the files of a cluster that was not entered could not be removed");
            }
        }
        entered
    }

    async fn first_session(&mut self) -> Result<(), ClusterError> {
        let Some(membership) = &self.membership else { return Ok(()) };
        let mut agent = membership.agent.membership.clone();
        let joined = agent.wait_for(|agent| agent.update.is_some() || agent.removed.is_some());
        match tokio::time::timeout(JOIN_TIMEOUT, joined).await {
            Ok(_) => Ok(()),
            Err(_) => Err(ClusterError::new(
                Kind::Unavailable,
                "Timeout was reached before node joined. The attempt to join the swarm will continue in the \
                 background. Use the \"docker info\" command to see the current swarm status of your node.",
            )),
        }
    }

    async fn leave(&mut self, force: bool) -> Result<(), ClusterError> {
        if let Some(addresses) = self.locked.clone() {
            return self.leave_locked(&addresses, force).await;
        }
        let Some(membership) = &self.membership else { return Err(ClusterError::not_part_of_cluster()) };
        if membership.manager.is_some() {
            if !force {
                return Err(ClusterError::new(
                    Kind::Unavailable,
                    leave_refusal(&managers_of(membership).await),
                ));
            }
            leave_members(membership).await;
        }
        if let Some(membership) = self.membership.take() {
            self.publish();
            membership.leave().await;
        }
        self.wipe()
    }

    /// The others are not told: nobody here can speak for a locked manager.
    async fn leave_locked(&mut self, addresses: &Addresses, force: bool) -> Result<(), ClusterError> {
        if !force {
            return Err(ClusterError::leave_locked());
        }
        self.locked = None;
        let executor = self.executor(String::new(), addresses);
        clear(&executor, &self.config.paths).await;
        self.wipe()
    }

    fn wipe(&self) -> Result<(), ClusterError> {
        self.config.paths.wipe().map_err(|error| {
            ClusterError::new(Kind::Internal, "the cluster's files could not be removed").because(error)
        })
    }

    /// A locked manager gets its key, and goes on.
    async fn unlock(&mut self, key: &str) -> Result<(), ClusterError> {
        let Some(addresses) = self.locked.clone() else {
            return Err(match &self.membership {
                Some(membership) if membership.manager.is_some() => ClusterError::not_locked(),
                Some(_) => ClusterError::not_a_manager(),
                None => ClusterError::not_in_cluster(),
            });
        };
        let key = UnlockKey::parse(key).map_err(ClusterError::from_error)?;
        let certificates = self.config.paths.certificates();
        let identity = Identity::unlock(&certificates, &key).map_err(ClusterError::from_error)?;
        let identity = identity.ok_or_else(ClusterError::not_part_of_cluster)?;
        let way = Way { boot: Boot::Restart, managers: Vec::new(), lock: Some(key) };
        self.enter(identity, addresses, way).await?;
        self.locked = None;
        tracing::info!("this manager is unlocked");
        Ok(())
    }

    // ---- following the managers -------------------------------------------------------------------

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

/// A channel to the manager on this node, over its own port.
async fn own_manager(membership: &Membership) -> Result<Channel, tls::ConnectError> {
    tls::connect(&membership.addresses.local().to_string(), &membership.identity).await
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

/// Asks the managers in turn for a certificate. A refusal is final; only an unreachable manager is passed over.
async fn enroll(
    managers: &[String],
    token: &JoinToken,
    enrollment: Enrollment,
) -> Result<(Arc<Identity>, String), ClusterError> {
    let mut last = None;
    for manager in managers {
        match tls::join(manager, token, enrollment.clone()).await {
            Ok(credentials) => {
                let identity = Identity::new(credentials).map_err(ClusterError::from_error)?;
                return Ok((identity, manager.clone()));
            }
            Err(error @ EnrollError::Refused(_)) => return Err(ClusterError::from_error(error)),
            Err(error) => {
                tracing::warn!(manager, error = %Chain(&error), "the manager gave no certificate");
                last = Some(error);
            }
        }
    }
    let error = last.map(ClusterError::from_error);
    Err(error.unwrap_or_else(|| ClusterError::new(Kind::InvalidArgument, "no manager was named")))
}

/// The managers as this one sees them, itself included; empty when it cannot say in time.
async fn managers_of(membership: &Membership) -> Vec<NodeObject> {
    let list = async {
        let channel = own_manager(membership).await.ok()?;
        let request = ListRequest { kind: ObjectKind::Node.into() };
        let nodes = ControlClient::new(channel).list(request).await.ok()?.into_inner().objects;
        let nodes = nodes.into_iter().filter_map(|object| NodeObject::try_from(object).ok());
        Some(nodes.filter(|node| node.manager_status.is_some()).collect())
    };
    tokio::time::timeout(LEAVE_TIMEOUT, list).await.ok().flatten().unwrap_or_default()
}

/// Docker's words for a manager that would leave without force (moby `daemon/cluster/swarm.go`).
fn leave_refusal(managers: &[NodeObject]) -> String {
    let is_reachable =
        |node: &&NodeObject| node.manager_status.as_ref().is_some_and(|status| status.reachable);
    let reachable = managers.iter().filter(is_reachable).count().max(1);
    let total = managers.len().max(1);
    let mut text =
        "You are attempting to leave the swarm on a node that is participating as a manager. ".to_owned();
    if total == 1 {
        text.push_str("Removing the last manager erases all current state of the swarm. Use `--force` to ignore this message. ");
        return text;
    }
    if reachable - 1 < total - reachable + 2 {
        text.push_str(&format!(
            "Removing this node leaves {} managers out of {total}. Without a Raft quorum your swarm will be inaccessible. ",
            reachable - 1
        ));
    } else {
        text.push_str("Doing so may lose the consensus of your swarm. ");
    }
    text.push_str("The only way to restore a swarm that has lost consensus is to reinitialize it with `--force-new-cluster`. Use `--force` to suppress this message.");
    text
}

/// Takes this manager out of the members in good order, if the others can still agree; else just goes.
async fn leave_members(membership: &Membership) {
    let call = async {
        let channel = own_manager(membership).await.map_err(|error| error.to_string())?;
        let request = LeaveManagerRequest { node_id: membership.identity.subject().node_id, force: true };
        ControlClient::new(channel).leave_manager(request).await.map_err(|status| status.message().to_owned())
    };
    match tokio::time::timeout(LEAVE_TIMEOUT, call).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::warn!(error, "leaving without the other managers' consent"),
        Err(_) => tracing::warn!("leaving without the other managers: they did not answer in time"),
    }
}

#[cfg(test)]
mod tests {
    use rswarm_proto::wire::ManagerStatus;

    use super::*;

    fn manager(reachable: bool) -> NodeObject {
        let manager_status = Some(ManagerStatus { reachable, ..ManagerStatus::default() });
        NodeObject { manager_status, ..NodeObject::default() }
    }

    #[test]
    fn the_last_manager_is_told_what_it_would_erase() {
        assert!(leave_refusal(&[manager(true)]).contains("Removing the last manager erases"));
    }

    #[test]
    fn a_manager_whose_leaving_breaks_the_quorum_is_told_the_numbers() {
        let refused =
            |reachable: &[bool]| leave_refusal(&reachable.iter().copied().map(manager).collect::<Vec<_>>());
        assert!(refused(&[true, true]).contains("leaves 1 managers out of 2"));
        assert!(refused(&[true, false, true]).contains("leaves 1 managers out of 3"));
        assert!(refused(&[true; 3]).contains("Doing so may lose the consensus"));
    }
}
