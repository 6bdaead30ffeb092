//! A node while it is in a cluster: its gRPC server, its agent and, when it is one, its manager.
//!
//! ```text
//!   Membership::enter ──▶ server (2377) ──▶ routes: TaskLogs [+ Raft, Ca, Dispatcher, Control, Logs]
//!                    ├──▶ Agent  ──role in the node object──▶ follow(): renew, start or stop the manager
//!                    └──▶ Manager (only with a manager's certificate)
//! ```

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use rswarm_base::audit::Audit;
use rswarm_base::id::IdGen;
use rswarm_base::{Chain, Classify, Kind, Scope, Timestamp, fsx};
use rswarm_manager::{Boot, Calls, Ended, Lock, Manager, ManagerConfig, StartError, TICK};
use rswarm_proto::tls::{self, Credentials, Identity};
use rswarm_proto::wire::NodeRole;
use rswarm_worker::disk::Disk;
use rswarm_worker::logs::TaskLogsService;
use rswarm_worker::{Agent, AgentConfig, AgentHandle, Executor};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;

use super::address::Addresses;
use super::executor::EngineExecutor;

/// Pause before a renewal that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How long the parts of a node may take to end.
const END_DEADLINE: Duration = Duration::from_secs(5);
/// How long a manager that hears of no leader goes on while the others do not count it as a member.
const DISOWNED_AFTER: Duration = Duration::from_secs(10);

/// Written before a node's first step into a cluster and removed after its last: a daemon that was killed
/// in between knows what it was about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Entering {
    /// Founding a cluster, which nobody has heard of yet.
    Founding,
    /// Joining one through these managers.
    Joining(Vec<String>),
}

/// Where a cluster's files are, under the daemon's data root.
#[derive(Debug, Clone)]
pub struct Paths {
    root: PathBuf,
}

impl Paths {
    /// Under `<data root>/swarm`.
    #[must_use]
    pub fn new(data_root: &Path) -> Paths {
        Paths { root: data_root.join("swarm") }
    }

    /// Key, certificate and trust bundle.
    #[must_use]
    pub fn certificates(&self) -> PathBuf {
        self.root.join("certificates")
    }

    fn raft(&self) -> PathBuf {
        self.root.join("raft")
    }

    fn worker(&self) -> PathBuf {
        self.root.join("worker")
    }

    /// This node's private key for encrypted networks.
    #[must_use]
    pub fn tunnel_key(&self) -> PathBuf {
        self.root.join("tunnel.json")
    }

    fn addresses(&self) -> PathBuf {
        self.root.join("addresses.json")
    }

    /// The addresses that were decided when the node entered the cluster.
    ///
    /// # Errors
    /// When the file cannot be read or parsed.
    pub fn load_addresses(&self) -> std::io::Result<Option<Addresses>> {
        fsx::read_json(&self.addresses())
    }

    fn entering(&self) -> PathBuf {
        self.root.join("entering.json")
    }

    /// Notes that the node is about to enter a cluster.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn begin(&self, entering: &Entering) -> std::io::Result<()> {
        std::fs::create_dir_all(&self.root)?;
        fsx::write_json(&self.entering(), entering)
    }

    /// Notes that it has entered.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn settle(&self) -> std::io::Result<()> {
        fsx::remove_all(&self.entering())
    }

    /// What the last daemon was about when it ended.
    ///
    /// # Errors
    /// When the file cannot be read or parsed.
    pub fn unfinished(&self) -> std::io::Result<Option<Entering>> {
        fsx::read_json(&self.entering())
    }

    /// Forgets the cluster.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn wipe(&self) -> std::io::Result<()> {
        fsx::remove_all(&self.root)
    }
}

/// Why a node cannot take its place in a cluster.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    /// The port is taken or the address is not this host's.
    #[error("the node cannot listen on `{0}`")]
    Listen(SocketAddr, #[source] std::io::Error),
    /// A file of the cluster could not be written.
    #[error("the cluster's files could not be written")]
    Files(#[source] std::io::Error),
    /// Its certificate could not be kept.
    #[error(transparent)]
    Identity(#[from] tls::IdentityError),
    /// The manager does not start.
    #[error(transparent)]
    Manager(#[from] StartError),
    /// The agent does not start.
    #[error(transparent)]
    Agent(#[from] rswarm_worker::agent::StartError),
}

impl Classify for EnterError {
    fn kind(&self) -> Kind {
        match self {
            EnterError::Listen(..) => Kind::InvalidArgument,
            EnterError::Files(_) | EnterError::Agent(_) => Kind::Internal,
            EnterError::Identity(error) => error.kind(),
            EnterError::Manager(error) => error.kind(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            EnterError::Listen(address, _) => Some(format!(
                "is another daemon listening? choose an address with --listen-addr other than {address}"
            )),
            EnterError::Manager(error) => error.hint(),
            EnterError::Files(_) | EnterError::Identity(_) | EnterError::Agent(_) => None,
        }
    }
}

/// What is kept of calls: some are written down, all are counted.
#[derive(Clone)]
pub struct Record {
    /// Where control calls are written down.
    pub audit: Audit,
    /// The counts.
    pub calls: Calls,
}

/// The parts of a node in a cluster.
pub struct Membership {
    /// The node's certificate and trust roots.
    pub identity: Arc<Identity>,
    /// Its addresses.
    pub addresses: Addresses,
    /// Its agent.
    pub agent: AgentHandle,
    /// Its manager, while it is one.
    pub manager: Option<Manager>,
    executor: Arc<EngineExecutor>,
    routes: watch::Sender<Routes>,
    paths: Paths,
    record: Record,
    scope: Scope,
    renew_fraction: f64,
    disowned_since: Option<Instant>,
    /// What the node's own key is locked with on disk.
    lock: Lock,
    /// Why the manager gave up, if it did: this node serves no state that it cannot vouch for.
    pub failure: Option<String>,
}

impl Membership {
    /// Takes the node's place: keeps its identity and addresses, listens, starts the manager (if the certificate
    /// is a manager's) and the agent. On an error nothing runs.
    ///
    /// # Errors
    /// When a part does not start; the files stay for the caller to keep or wipe.
    pub async fn enter(
        identity: Arc<Identity>,
        addresses: Addresses,
        way: Way,
        executor: Arc<EngineExecutor>,
        paths: Paths,
        record: Record,
        scope: Scope,
    ) -> Result<Membership, EnterError> {
        let listener = TcpListener::bind(addresses.listen)
            .await
            .map_err(|error| EnterError::Listen(addresses.listen, error))?;
        std::fs::create_dir_all(paths.certificates()).map_err(EnterError::Files)?;
        identity.save(&paths.certificates(), way.lock.as_ref())?;
        fsx::write_json(&paths.addresses(), &addresses).map_err(EnterError::Files)?;
        let parts = Parts { identity, addresses, way, executor, paths, record, scope: scope.clone() };
        let started = parts.start(listener).await;
        if started.is_err() {
            scope.shutdown(END_DEADLINE).await;
        }
        started
    }

    /// The role that the certificate gives.
    #[must_use]
    pub fn role(&self) -> NodeRole {
        self.identity.subject().role
    }

    /// What the node's own key is locked with on disk.
    #[must_use]
    pub fn lock(&self) -> Lock {
        self.lock.clone()
    }

    /// Resolves when the node should look at itself again: its role, its trust roots, its certificate or its lock.
    pub async fn due(&mut self) {
        let has_ended = ended(self.manager.as_ref()).now_or_never().is_some();
        if has_ended || self.is_stale() || self.is_disowned() {
            return tokio::time::sleep(RETRY).await;
        }
        self.disowned_since = None;
        let until = self.identity.renew_at(self.renew_fraction).since(Timestamp::wall());
        tokio::select! {
            _ = self.agent.membership.changed() => {}
            _ = ended(self.manager.as_ref()) => {}
            () = lock_changed(self.manager.as_ref()) => {}
            () = tokio::time::sleep(until.max(RETRY)) => {}
        }
    }

    /// Whether the managers know this node under another role than its certificate, or the latter is old.
    fn is_stale(&self) -> bool {
        let membership = self.agent.membership.borrow();
        let node = membership.update.as_ref().and_then(|update| update.node.as_ref());
        let role_differs = node.is_some_and(|node| node.role() != self.role());
        let manager_differs =
            self.failure.is_none() && (self.role() == NodeRole::Manager) != self.manager.is_some();
        role_differs || manager_differs || self.is_renewal_due() || self.wanted_lock() != self.lock
    }

    /// Whether the certificate is old, or by a root that is being replaced.
    fn is_renewal_due(&self) -> bool {
        let is_old = self.identity.renew_at(self.renew_fraction) <= Timestamp::wall();
        is_old || !self.identity.is_by_latest_root()
    }

    /// What the node's key shall be locked with: a manager's as its cluster says, once it hears from the others.
    fn wanted_lock(&self) -> Lock {
        if self.role() == NodeRole::Worker {
            return None;
        }
        let manager = self.manager.as_ref().filter(|manager| manager.leader().borrow().is_some());
        let said = manager.and_then(|manager| manager.lock().borrow().clone());
        said.unwrap_or_else(|| self.lock.clone())
    }

    /// Keeps the identity on disk, locked as it shall be.
    fn save_identity(&mut self) -> Result<(), tls::IdentityError> {
        let lock = self.wanted_lock();
        self.identity.save(&self.paths.certificates(), lock.as_ref())?;
        if lock != self.lock {
            tracing::info!(locked = lock.is_some(), "the lock of this manager's key was changed");
        }
        self.lock = lock;
        Ok(())
    }

    /// Whether this manager hears of no leader, and the others say that it is not a member, or another one: it
    /// was removed from their group while it was away, and nobody there will ever tell it.
    fn is_disowned(&self) -> bool {
        let Some(manager) = self.manager.as_ref().filter(|manager| manager.leader().borrow().is_none())
        else {
            return false;
        };
        let membership = self.agent.membership.borrow();
        let Some(node) = membership.update.as_ref().and_then(|update| update.node.as_ref()) else {
            return false;
        };
        membership.manager.is_some()
            && node.manager_status.as_ref().is_none_or(|status| status.raft_id != manager.raft_id())
    }

    /// Brings the node in line with what its managers say: trust roots, certificate, manager or not.
    pub async fn follow(&mut self) {
        if let Err(error) = self.try_follow().await {
            tracing::warn!(error = %Chain(error.as_ref()), "the node could not follow its role; trying again");
        }
    }

    async fn try_follow(&mut self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.follow_manager().await?;
        if self.identity.is_expired() {
            self.renew_expired().await?;
        }
        let (update, manager) = {
            let membership = self.agent.membership.borrow();
            (membership.update.clone(), membership.manager.clone())
        };
        let Some(update) = update else {
            // A manager may be all the managers that there are: it does not wait to hear from one.
            if self.role() == NodeRole::Manager && self.manager.is_none() && self.failure.is_none() {
                self.become_manager().await?;
            }
            return Ok(());
        };
        if !update.root_pem.is_empty() && update.root_pem != self.identity.credentials().root_pem {
            self.identity.set_roots(&update.root_pem)?;
            self.save_identity()?;
        }
        if self.wanted_lock() != self.lock {
            self.save_identity()?;
        }
        if !self.is_stale() {
            return Ok(());
        }
        let wanted = update.node.as_ref().map_or(self.role(), rswarm_proto::wire::Node::role);
        if (wanted != self.role() || self.is_renewal_due())
            && let Some(manager) = manager
        {
            let channel = tls::connect(&manager, &self.identity).await?;
            self.identity.replace(tls::renew(channel, &self.identity).await?)?;
            self.save_identity()?;
            tracing::info!(role = ?self.role(), "new node certificate");
        }
        match (self.role(), self.manager.is_some(), self.failure.is_some()) {
            (NodeRole::Manager, false, false) => self.become_manager().await?,
            (NodeRole::Worker, true, _) | (NodeRole::Worker, _, true) => self.become_worker().await?,
            (NodeRole::Manager, true, _)
            | (NodeRole::Manager, _, true)
            | (NodeRole::Worker, false, false) => {}
        }
        Ok(())
    }

    /// A node that was off until its certificate had expired gets no session to hear from its managers in: it
    /// asks those that it knew; a manager, who may be all that there are, helps itself.
    async fn renew_expired(&mut self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let renewed = match &self.manager {
            Some(manager) => manager.renew_own(&self.identity)?,
            None => self.ask_for_renewal().await?,
        };
        self.identity.replace(renewed)?;
        self.save_identity()?;
        tracing::warn!("the node certificate had expired and was renewed");
        Ok(())
    }

    async fn ask_for_renewal(&self) -> Result<Credentials, Box<dyn std::error::Error + Send + Sync>> {
        let mut last = Err(StartError::NoManagers.into());
        for manager in self.agent.managers() {
            last = match tls::connect(&manager, &self.identity).await {
                Ok(channel) => tls::renew(channel, &self.identity).await.map_err(Into::into),
                Err(error) => Err(error.into()),
            };
            if last.is_ok() {
                break;
            }
        }
        last
    }

    /// Draws the line under a manager that has ended by itself, or that its group has left behind.
    async fn follow_manager(&mut self) -> std::io::Result<()> {
        match ended(self.manager.as_ref()).now_or_never().flatten() {
            Some(Ended::Failed { reason, passing }) => {
                tracing::error!(reason, passing, "the manager of this node cannot go on");
                self.routes.send_replace(routes(None, &self.executor, &self.record, &self.scope));
                // Without a failure on record it is started again: a full disk may have room by then.
                self.failure = (!passing).then_some(reason);
                self.manager = None;
                return Ok(());
            }
            Some(Ended::Removed) => return self.give_up_membership().await,
            None => {}
        }
        if !self.is_disowned() {
            return Ok(());
        }
        let since = *self.disowned_since.get_or_insert_with(Instant::now);
        if since.elapsed() < DISOWNED_AFTER {
            return Ok(());
        }
        tracing::warn!("the managers do not count this node's raft log among theirs any more");
        self.give_up_membership().await
    }

    /// A raft id is never used again: whoever lost its place joins anew, with an empty log.
    async fn give_up_membership(&mut self) -> std::io::Result<()> {
        self.disowned_since = None;
        self.failure = None;
        self.routes.send_replace(routes(None, &self.executor, &self.record, &self.scope));
        if let Some(manager) = self.manager.take() {
            manager.stop().await;
        }
        fsx::remove_all(&self.paths.raft())
    }

    async fn become_manager(&mut self) -> Result<(), StartError> {
        let own = self.addresses.advertise.to_string();
        let via = self.agent.managers().into_iter().filter(|manager| *manager != own).collect();
        let config = manager_config(&self.identity, &self.addresses, &self.paths, &self.record);
        let started = Manager::start(config, Boot::Join { via }, self.scope.child("manager")).await;
        let manager = started.inspect_err(|error| {
            // Trying again would only read the same damage.
            if !error.may_pass() {
                self.failure = Some(Chain(error).to_string());
            }
        })?;
        self.routes.send_replace(routes(Some(&manager), &self.executor, &self.record, &self.scope));
        self.manager = Some(manager);
        tracing::info!("this node is now a manager");
        Ok(())
    }

    async fn become_worker(&mut self) -> std::io::Result<()> {
        self.give_up_membership().await?;
        tracing::info!("this node is now a worker");
        Ok(())
    }

    /// Ends all parts and leaves containers and networks as they are: the daemon stops.
    pub async fn detach(mut self) {
        if let Some(manager) = self.manager.take() {
            manager.stop().await;
        }
        self.scope.shutdown(END_DEADLINE).await;
    }

    /// Ends all parts, then removes the tasks' containers and the networks: the node leaves the cluster.
    pub async fn leave(self) {
        let (executor, paths) = (self.executor.clone(), self.paths.clone());
        self.detach().await;
        clear(&executor, &paths).await;
    }
}

/// Removes what a cluster made on this node: the tasks' containers, and the networks.
pub async fn clear(executor: &EngineExecutor, paths: &Paths) {
    executor.attachments.close();
    let removals = executor.held().await;
    for task in &removals {
        if let Err(error) = executor.remove(task).await {
            tracing::warn!(task.id = task, %error, "the container of a task could not be removed");
        }
    }
    let networks = Disk::open(&paths.worker()).and_then(|disk| disk.networks()).unwrap_or_default();
    for network in networks.keys() {
        if let Err(error) = executor.remove_network(network).await {
            tracing::warn!(network.id = network, %error, "a network could not be removed");
        }
    }
}

/// How a node enters a cluster.
#[derive(Debug, Clone)]
pub struct Way {
    /// How its manager comes into being, if its certificate is a manager's.
    pub boot: Boot,
    /// Managers to begin with, beside those that the agent knows.
    pub managers: Vec<String>,
    /// What its key is locked with on disk.
    pub lock: Lock,
}

/// What [`Membership::enter`] was given, once the listener holds its port.
struct Parts {
    identity: Arc<Identity>,
    addresses: Addresses,
    way: Way,
    executor: Arc<EngineExecutor>,
    paths: Paths,
    record: Record,
    scope: Scope,
}

impl Parts {
    async fn start(self, listener: TcpListener) -> Result<Membership, EnterError> {
        let (sender, receiver) = watch::channel(routes(None, &self.executor, &self.record, &self.scope));
        let server_scope = self.scope.child("grpc");
        let identity = self.identity.clone();
        self.scope.spawn(async move {
            if let Err(error) = tls::serve(listener, identity, receiver, &server_scope).await {
                tracing::error!(error = %Chain(&error), "the node's gRPC server ended");
            }
        });
        let (manager, failure) = self.manager().await?;
        sender.send_replace(routes(manager.as_ref(), &self.executor, &self.record, &self.scope));
        let mut managers = self.way.managers;
        if manager.is_some() {
            managers.push(self.addresses.local().to_string());
        }
        let config = AgentConfig {
            identity: self.identity.clone(),
            managers,
            dir: self.paths.worker(),
            listen_addr: self.addresses.advertise.to_string(),
            data_path_addr: self.addresses.data_path.to_string(),
        };
        let agent = Agent::start(config, self.executor.clone(), self.scope.child("agent")).await?;
        self.executor.attachments.open(self.identity.clone(), agent.clone());
        Ok(Membership {
            identity: self.identity,
            addresses: self.addresses,
            agent,
            manager,
            executor: self.executor,
            routes: sender,
            paths: self.paths,
            record: self.record,
            scope: self.scope,
            renew_fraction: renew_fraction(),
            disowned_since: None,
            lock: self.way.lock,
            failure,
        })
    }

    /// The manager of a node that is one, or why it does not run: that must not keep the daemon from its
    /// containers when it comes back.
    async fn manager(&self) -> Result<(Option<Manager>, Option<String>), EnterError> {
        if self.identity.subject().role == NodeRole::Worker {
            // Left behind when a demotion was cut short.
            fsx::remove_all(&self.paths.raft()).map_err(EnterError::Files)?;
            return Ok((None, None));
        }
        let returns = matches!(self.way.boot, Boot::Restart);
        let config = manager_config(&self.identity, &self.addresses, &self.paths, &self.record);
        match Manager::start(config, self.way.boot.clone(), self.scope.child("manager")).await {
            Ok(manager) => Ok((Some(manager), None)),
            Err(StartError::Absent(_)) if returns => {
                tracing::warn!(
                    "this manager has no raft log, as when its promotion was cut short: it joins the others"
                );
                Ok((None, None))
            }
            Err(error) if returns => {
                tracing::error!(error = %Chain(&error), "the manager of this node does not start");
                // One that may pass is tried again as soon as the node has heard from its managers.
                Ok((None, (!error.may_pass()).then(|| Chain(&error).to_string())))
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Resolves when the cluster says something else about locking managers; never, when there is no manager.
async fn lock_changed(manager: Option<&Manager>) {
    match manager.map(Manager::lock) {
        Some(mut lock) => {
            // Where it ends, so does the manager, which is looked at for itself.
            if lock.changed().await.is_err() {
                std::future::pending().await
            }
        }
        None => std::future::pending().await,
    }
}

/// How the manager ended by itself; never, when there is none.
async fn ended(manager: Option<&Manager>) -> Option<Ended> {
    match manager {
        Some(manager) => Some(manager.ended().await),
        None => std::future::pending().await,
    }
}

fn manager_config(
    identity: &Arc<Identity>,
    addresses: &Addresses,
    paths: &Paths,
    record: &Record,
) -> ManagerConfig {
    ManagerConfig {
        identity: identity.clone(),
        data_dir: paths.raft(),
        advertise_addr: addresses.advertise.to_string(),
        tick: TICK,
        audit: record.audit.clone(),
        calls: record.calls.clone(),
    }
}

fn routes(
    manager: Option<&Manager>,
    executor: &Arc<EngineExecutor>,
    record: &Record,
    scope: &Scope,
) -> Routes {
    let (logs, containers) = (TaskLogsService::server(executor.clone()), executor.containers(scope));
    match manager {
        Some(manager) => manager.services(|services| services.add_service(logs).add_service(containers)),
        None => unmanaged(record.calls.counting(Routes::new(logs).add_service(containers))),
    }
}

/// tonic answers a call that nobody serves with a bare "unimplemented", which reads as final. Here it is not:
/// a node that is being promoted is known as a manager before it serves as one.
fn unmanaged(services: Routes) -> Routes {
    let refuse = async || Status::unavailable("no manager runs on this node").into_http::<Body>();
    Routes::from(services.into_axum_router().fallback(refuse))
}

/// For [`Identity::renew_at`]: between 0 and 1.
fn renew_fraction() -> f64 {
    (IdGen::from_system().number() % 1000) as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::codegen::{Service, http};

    #[tokio::test]
    async fn a_node_without_a_manager_says_so_in_a_way_that_is_tried_again() {
        let call = http::Request::post("/rswarm.v1.Raft/Join").body(Body::empty()).expect("a request");
        let answer = unmanaged(Routes::default()).call(call).await.expect("infallible");
        let status = Status::from_header_map(answer.headers()).expect("a gRPC status");
        assert_eq!(
            (status.code(), status.message()),
            (tonic::Code::Unavailable, "no manager runs on this node")
        );
    }
}
