//! The agent: one task that owns everything assigned to this node. It survives losing its managers, and
//! a restart finds everything on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rswarm_base::Scope;
use rswarm_proto::tls::Identity;
use rswarm_proto::wire::{
    Ack, AgentMessage, Assignments, Hello, ManagerMessage, NodeDescription, NodeUpdate, ObjectKind,
    TaskReport, TaskStatus, agent_message, assignments::Kind, manager_message,
};
use tokio::sync::{mpsc, watch};

use crate::assignments::{AssignmentSet, Changed};
use crate::content::Content;
use crate::disk::{Disk, StoredTask};
use crate::executor::{ExecError, Executor};
use crate::network::{Applied, NetworkHandle};
use crate::reporter::Reporter;
use crate::session::{Session, SessionEvent, message};
use crate::task::{Observed, TaskActor, TaskHandle, assigned};

/// Statuses of one burst travel together.
const REPORT_DELAY: Duration = Duration::from_millis(20);
/// How often the node describes itself again, should it have changed (swarmkit: 20 s).
const DESCRIBE_PERIOD: Duration = Duration::from_secs(20);
/// Events from task and network actors that may wait for the agent.
const INBOX: usize = 1024;

/// What an agent needs to know to begin.
pub struct AgentConfig {
    /// The node's certificate and trust roots.
    pub identity: Arc<Identity>,
    /// Managers to try first; those on disk and those that managers name later are added.
    pub managers: Vec<String>,
    /// Where assignments and statuses are kept.
    pub dir: PathBuf,
    /// `ADDRESS:PORT` of this node's own gRPC server, as it is announced.
    pub listen_addr: String,
    /// Where this node's VXLAN traffic goes; empty for the address that managers see.
    pub data_path_addr: String,
}

/// How this node stands with its managers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Membership {
    /// The node object, the managers and the trust bundle, as last heard.
    pub update: Option<NodeUpdate>,
    /// The manager that the session is with, while there is one.
    pub manager: Option<String>,
    /// Why there is no session, as last seen.
    pub error: String,
    /// The managers' words when they said that this node is no longer a member.
    pub removed: Option<String>,
}

/// A running agent, as the daemon sees it.
#[derive(Clone)]
pub struct AgentHandle {
    /// How this node stands with its managers; changes as it does.
    pub membership: watch::Receiver<Membership>,
    managers: watch::Sender<Vec<String>>,
}

impl AgentHandle {
    /// The addresses of managers that are known now, the one of the session first.
    #[must_use]
    pub fn managers(&self) -> Vec<String> {
        let mut managers = self.managers.borrow().clone();
        let membership = self.membership.borrow();
        managers.sort_by_key(|manager| Some(manager) != membership.manager.as_ref());
        managers
    }
}

/// Why an agent could not begin.
#[derive(Debug, thiserror::Error)]
#[error("assignments of this node could not be read")]
pub struct StartError(#[from] io::Error);

/// The owner of all that is assigned to this node.
pub struct Agent {
    executor: Arc<dyn Executor>,
    disk: Disk,
    config: AgentConfig,
    scope: Scope,
    set: AssignmentSet,
    statuses: BTreeMap<String, TaskStatus>,
    tasks: BTreeMap<String, TaskHandle>,
    networks: BTreeMap<String, NetworkHandle>,
    applied: watch::Sender<Arc<BTreeMap<String, u64>>>,
    /// A copy of the set's, for the tasks' actors.
    content: watch::Sender<Arc<Content>>,
    /// Why the newest table of a network could not be applied, by network.
    troubles: watch::Sender<BTreeMap<String, ExecError>>,
    description: NodeDescription,
    data_path_port: u32,
    reporter: Reporter,
    outbox: Option<mpsc::Sender<AgentMessage>>,
    ack_due: bool,
    membership: watch::Sender<Membership>,
    managers: watch::Sender<Vec<String>>,
    restart: mpsc::Sender<()>,
    observed: mpsc::Sender<Observed>,
    applied_events: mpsc::Sender<Applied>,
}

/// Where the agent's events come from.
struct Inbox {
    session: mpsc::Receiver<SessionEvent>,
    observed: mpsc::Receiver<Observed>,
    applied: mpsc::Receiver<Applied>,
}

impl Agent {
    /// Reads what is on disk, goes on with it, and begins to look for a manager.
    ///
    /// # Errors
    /// When the directory cannot be read, or holds something that is not ours.
    pub async fn start(
        config: AgentConfig,
        executor: Arc<dyn Executor>,
        scope: Scope,
    ) -> Result<AgentHandle, StartError> {
        let disk = Disk::open(&config.dir)?;
        let mut known = config.managers.clone();
        let stored = disk.managers()?;
        known.extend(stored.iter().filter(|address| !config.managers.contains(address)).cloned());
        if known != stored {
            // They may be all that there are: then no manager's word will ever differ from this.
            log_failure("managers", disk.put_managers(&known));
        }
        let (stored_tasks, stored_networks) = (disk.tasks()?, disk.networks()?);
        let content =
            Content { secrets: disk.content(&config.identity)?, configs: disk.content(&config.identity)? };

        let (session_events, session) = mpsc::channel(INBOX);
        let (observed_events, observed) = mpsc::channel(INBOX);
        let (applied_events, applied_inbox) = mpsc::channel(INBOX);
        let (restart, restarts) = mpsc::channel(1);
        let (managers, managers_seen) = watch::channel(known);
        let (membership, membership_seen) = watch::channel(Membership::default());
        let handle = AgentHandle { membership: membership_seen, managers: managers.clone() };
        let session_task = Session {
            identity: config.identity.clone(),
            managers: managers_seen,
            events: session_events,
            restart: restarts,
            executor: executor.clone(),
        };
        let mut agent = Agent {
            description: describe(executor.as_ref(), &config.identity).await,
            executor,
            disk,
            config,
            scope: scope.clone(),
            content: watch::channel(Arc::new(content.clone())).0,
            set: AssignmentSet { content, ..AssignmentSet::default() },
            statuses: BTreeMap::new(),
            tasks: BTreeMap::new(),
            networks: BTreeMap::new(),
            applied: watch::channel(Arc::default()).0,
            troubles: watch::channel(BTreeMap::new()).0,
            data_path_port: 0,
            reporter: Reporter::default(),
            outbox: None,
            ack_due: false,
            membership,
            managers,
            restart,
            observed: observed_events,
            applied_events,
        };
        for (id, view) in stored_networks {
            agent.data_path_port = view.data_path_port;
            agent.set.networks.insert(id.clone(), view);
            agent.put_network(&id);
        }
        for (id, stored) in stored_tasks {
            agent.statuses.insert(id.clone(), stored.status);
            agent.set.tasks.insert(id.clone(), stored.task);
            agent.put_task(&id);
        }
        scope.spawn(session_task.run(scope.clone()));
        scope.spawn(agent.run(Inbox { session, observed, applied: applied_inbox }));
        Ok(handle)
    }

    async fn run(mut self, mut inbox: Inbox) {
        let scope = self.scope.clone();
        let mut describe = tokio::time::interval(DESCRIBE_PERIOD);
        let mut flush = tokio::time::interval(REPORT_DELAY);
        let mut identity = self.config.identity.changes();
        flush.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let flush_due = self.outbox.is_some() && (self.ack_due || self.reporter.has_news());
            tokio::select! {
                biased;
                // Detach: containers and networks stay as they are.
                () = scope.cancelled() => return,
                // Before the inboxes: a stream of events must not hold back what it leads to.
                _ = flush.tick(), if flush_due => self.flush(),
                Some(event) = inbox.session.recv() => self.on_session(event).await,
                Some(observed) = inbox.observed.recv() => self.on_observed(observed),
                Some(applied) = inbox.applied.recv() => self.on_applied(applied).await,
                // Others wait for it while the root certificate is replaced.
                Ok(()) = identity.changed() => self.describe().await,
                _ = describe.tick() => self.describe().await,
            }
        }
    }

    // ---- session ----------------------------------------------------------------------------------

    async fn on_session(&mut self, event: SessionEvent) {
        match event {
            SessionEvent::Opening(hello) => {
                let _ = hello.send(self.hello());
            }
            SessionEvent::Open { outbox, manager } => {
                tracing::info!(manager, "session with a manager");
                self.outbox = Some(outbox);
                self.membership.send_modify(|membership| {
                    membership.manager = Some(manager);
                    membership.error.clear();
                });
            }
            SessionEvent::Message(message) => self.on_message(*message).await,
            SessionEvent::Closed(reason) => {
                self.outbox = None;
                self.reporter.resend();
                self.membership.send_modify(|membership| {
                    membership.manager = None;
                    membership.error = reason;
                });
            }
        }
    }

    fn hello(&self) -> Hello {
        let report = |(task_id, status): (&String, &TaskStatus)| TaskReport {
            task_id: task_id.clone(),
            status: Some(status.clone()),
        };
        Hello {
            description: Some(self.description.clone()),
            listen_addr: self.config.listen_addr.clone(),
            data_path_addr: self.config.data_path_addr.clone(),
            tasks: self.statuses.iter().map(report).collect(),
        }
    }

    async fn on_message(&mut self, message: ManagerMessage) {
        match message.message {
            Some(manager_message::Message::Welcome(welcome)) => self.on_update(welcome.node),
            Some(manager_message::Message::Node(update)) => self.on_update(Some(*update)),
            Some(manager_message::Message::Assignments(assignments)) => {
                self.on_assignments(&assignments).await;
            }
            Some(manager_message::Message::StatusAck(ack)) => self.reporter.confirm(ack.sequence),
            Some(manager_message::Message::Goodbye(goodbye)) => {
                tracing::info!(reason = ?goodbye.reason(), goodbye.message, "the manager says goodbye");
                if goodbye.reason() == rswarm_proto::wire::goodbye::Reason::Removed {
                    self.membership.send_modify(|membership| membership.removed = Some(goodbye.message));
                    self.give_up_everything();
                }
                self.restart_session();
            }
            // Heartbeats are the session's; and a newer manager may say things that this node does not know.
            Some(manager_message::Message::HeartbeatAck(_)) | None => {}
        }
    }

    fn on_update(&mut self, update: Option<NodeUpdate>) {
        let Some(update) = update else { return };
        let addresses: Vec<String> = update.managers.iter().map(|manager| manager.addr.clone()).collect();
        if !addresses.is_empty() && *self.managers.borrow() != addresses {
            log_failure("managers", self.disk.put_managers(&addresses));
            self.managers.send_replace(addresses);
        }
        self.data_path_port = update.data_path_port;
        self.membership.send_modify(|membership| membership.update = Some(update));
    }

    fn restart_session(&self) {
        self.outbox.as_ref().inspect(|_| {
            let _ = self.restart.try_send(());
        });
    }

    async fn on_assignments(&mut self, message: &Assignments) {
        // A complete set is taken whatever was applied before: managers read past all that any of them told
        // before they begin a session, and a cluster that came back from a backup counts from less.
        match self.set.apply(message) {
            Ok(changed) => {
                if message.kind() == Kind::Complete {
                    self.remove_ghosts().await;
                }
                self.act_on(&changed);
                self.ack_due = true;
            }
            Err(gap) => {
                tracing::warn!(%gap, "assignments do not add up; starting a new session");
                self.restart_session();
            }
        }
    }

    // ---- assignments ------------------------------------------------------------------------------

    /// The managers have removed this node and given its tasks to others: nothing of them may run twice.
    fn give_up_everything(&mut self) {
        let held = std::mem::take(&mut self.set);
        self.act_on(&Changed {
            removed_tasks: held.tasks.into_keys().collect(),
            removed_networks: held.networks.into_keys().collect(),
            removed_secrets: held.content.secrets.into_keys().collect(),
            removed_configs: held.content.configs.into_keys().collect(),
            ..Changed::default()
        });
    }

    fn act_on(&mut self, changed: &Changed) {
        self.put_content(changed);
        for id in &changed.networks {
            self.put_network(id);
        }
        for id in &changed.tasks {
            self.put_task(id);
        }
        for id in &changed.removed_tasks {
            self.remove_task(id);
        }
        for id in &changed.removed_networks {
            log_failure("network", self.disk.remove_network(id));
            self.applied.send_modify(|applied| {
                Arc::make_mut(applied).remove(id);
            });
            self.troubles.send_modify(|troubles| drop(troubles.remove(id)));
            if let Some(handle) = self.networks.get(id) {
                handle.retire();
            }
        }
    }

    /// Secrets and configs: on disk first, then to the tasks that wait for them.
    fn put_content(&self, changed: &Changed) {
        let content = &self.set.content;
        for secret in changed.secrets.iter().filter_map(|id| content.secrets.get(id)) {
            log_failure("secret", self.disk.put_content(&self.config.identity, secret.as_ref()));
        }
        for config in changed.configs.iter().filter_map(|id| content.configs.get(id)) {
            log_failure("config", self.disk.put_content(&self.config.identity, config.as_ref()));
        }
        for id in &changed.removed_secrets {
            log_failure("secret", self.disk.remove_content(ObjectKind::Secret, id));
        }
        for id in &changed.removed_configs {
            log_failure("config", self.disk.remove_content(ObjectKind::Config, id));
        }
        self.content.send_if_modified(|current| {
            let differs = **current != *content;
            if differs {
                *current = Arc::new(content.clone());
            }
            differs
        });
    }

    /// A new or changed task: on disk first, then to its actor.
    fn put_task(&mut self, id: &str) {
        let Some(task) = self.set.tasks.get(id).cloned() else { return };
        let status = self.statuses.entry(id.to_owned()).or_insert_with(|| assigned(&task)).clone();
        log_failure("task", self.disk.put_task(&StoredTask { task: task.clone(), status: status.clone() }));
        if let Some(handle) = self.tasks.get(id) {
            return handle.update(task);
        }
        let actor = TaskActor {
            task: Arc::new(task),
            status,
            executor: self.executor.clone(),
            tables: self.applied.subscribe(),
            content: self.content.subscribe(),
            troubles: self.troubles.subscribe(),
            observed: self.observed.clone(),
        };
        self.tasks.insert(id.to_owned(), TaskHandle::spawn(actor, &self.scope));
    }

    /// A task that the managers have forgotten: its container goes, running or not.
    fn remove_task(&mut self, id: &str) {
        self.statuses.remove(id);
        self.reporter.forget(id);
        let (handle, executor, disk) = (self.tasks.remove(id), self.executor.clone(), self.disk.clone());
        let id = id.to_owned();
        self.scope.spawn(async move {
            if let Some(handle) = handle {
                handle.detach().await;
            }
            match executor.remove(&id).await {
                // Only now is it forgotten: a restart before this point finds it on disk and tries again.
                Ok(()) => log_failure("task", disk.remove_task(&id)),
                Err(error) => tracing::warn!(task.id = id, %error, "container of a removed task stays"),
            }
        });
    }

    fn put_network(&mut self, id: &str) {
        let Some(view) = self.set.networks.get_mut(id) else { return };
        view.data_path_port = self.data_path_port;
        log_failure("network", self.disk.put_network(view));
        match self.networks.get(id) {
            Some(handle) => handle.update(view.clone()),
            None => {
                let applied = self.applied_events.clone();
                let handle = NetworkHandle::spawn(view.clone(), self.executor.clone(), applied, &self.scope);
                self.networks.insert(id.to_owned(), handle);
            }
        }
    }

    /// Containers and networks of the cluster that no assignment names are removed: there are no ghosts.
    async fn remove_ghosts(&mut self) {
        for id in self.executor.held_networks().await {
            if !self.set.networks.contains_key(&id)
                && !self.networks.contains_key(&id)
                && let Err(error) = self.executor.remove_network(&id).await
            {
                tracing::warn!(network.id = id, %error, "a network that is no longer assigned stays");
            }
        }
        let held: BTreeSet<String> = self.executor.held().await.into_iter().collect();
        for id in held {
            if !self.set.tasks.contains_key(&id) && !self.tasks.contains_key(&id) {
                tracing::info!(task.id = id, "removing the container of a task that is no longer assigned");
                self.remove_task(&id);
            }
        }
    }

    // ---- what actors say --------------------------------------------------------------------------

    fn on_observed(&mut self, observed: Observed) {
        let Some(task) = self.set.tasks.get(&observed.task_id) else { return };
        let stored = StoredTask { task: task.clone(), status: observed.status.clone() };
        log_failure("task", self.disk.put_task(&stored));
        self.statuses.insert(observed.task_id.clone(), observed.status.clone());
        self.reporter.put(&observed.task_id, observed.status);
    }

    async fn on_applied(&mut self, applied: Applied) {
        let Applied { network_id, version } = applied;
        if !self.set.networks.contains_key(&network_id) {
            return;
        }
        let version = match version {
            Ok(version) => version,
            Err(error) => {
                self.troubles.send_modify(|troubles| drop(troubles.insert(network_id, error)));
                return;
            }
        };
        self.troubles.send_if_modified(|troubles| troubles.remove(&network_id).is_some());
        let known = self.applied.borrow().get(&network_id) == Some(&version);
        if !known {
            self.applied.send_modify(|tables| {
                Arc::make_mut(tables).insert(network_id, version);
            });
            self.ack_due = true;
            // A table can lead to another key of this node, which others must hear of soon.
            self.describe().await;
        }
    }

    async fn describe(&mut self) {
        let description = describe(self.executor.as_ref(), &self.config.identity).await;
        if description != self.description {
            self.description = description.clone();
            self.send(agent_message::Message::Description(Box::new(description)));
        }
    }

    fn flush(&mut self) {
        while self.outbox.as_ref().is_some_and(|outbox| outbox.capacity() > 1) {
            let Some(report) = self.reporter.next_report() else { break };
            self.send(agent_message::Message::Statuses(report));
        }
        if self.ack_due {
            let tables = self.applied.borrow().as_ref().clone();
            self.ack_due = !self
                .send(agent_message::Message::Ack(Ack { assignment: self.set.sequence.clone(), tables }));
        }
    }

    /// Whether the message was taken; one that was not is said again by whoever keeps it.
    fn send(&self, body: agent_message::Message) -> bool {
        self.outbox.as_ref().is_some_and(|outbox| outbox.try_send(message(body)).is_ok())
    }
}

/// The node with its certificate, which is not the executor's to know.
async fn describe(executor: &dyn Executor, identity: &Identity) -> NodeDescription {
    NodeDescription { tls: Some(identity.tls_info()), ..executor.describe().await }
}

/// A full disk must not stop the node: what could not be kept is said, and lost only if the daemon dies too.
fn log_failure(what: &str, result: io::Result<()>) {
    if let Err(error) = result {
        tracing::error!(%error, "{what} could not be kept on disk");
    }
}
