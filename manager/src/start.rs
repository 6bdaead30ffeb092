//! From a directory and a way to boot to a running manager.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rswarm_base::id::random_bytes;
use rswarm_base::{Chain, Classify, Clock, Kind, Scope, SystemClock};
use rswarm_manager_core::peer::{self, Config, Persist, RestoreError};
use rswarm_manager_core::{Author, Peer, Rejected, State, apply};
use rswarm_proto::status;
use rswarm_proto::tls::{ConnectError, Identity, UnlockKey, connect};
use rswarm_proto::wire::raft_client::RaftClient;
use rswarm_proto::wire::{
    Batch, Change, ManagerStatus, Object, RaftJoinRequest, RaftJoinResponse, Transaction, change,
};
use tokio::sync::watch;
use tonic::Status;
use tonic::service::Routes;

use crate::attachments::AttachmentsService;
use crate::backup::revived_state;
use crate::blocking::blocking;
use crate::ca::CaService;
use crate::config::{Boot, Founding, ManagerConfig};
use crate::control::{ControlService, Desk};
use crate::dispatcher::{DispatcherService, RelayService};
use crate::forward::Forward;
use crate::group::GroupService;
use crate::guard::Guard;
use crate::heartbeats::Heartbeats;
use crate::intake::{Intake, Writer};
use crate::leader::Leadership;
use crate::logs::LogsService;
use crate::manager::{Leader, Lock, Manager};
use crate::raft::{Ended, Raft, Start, StateError, decode_state, encode_state, mailbox};
use crate::replica::Replica;
use crate::store::StoreHandle;
use crate::transport::Transport;
use crate::wal::{Member, Opened, Seed, Wal, WalError, WrappingKey};

/// Docker's limit on a whole join.
const JOIN_TIMEOUT: Duration = Duration::from_secs(20);
/// Pause between two tries.
const RETRY: Duration = Duration::from_millis(500);

/// Why a manager does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its log cannot be used.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// There is a log where none may be.
    #[error("`{}` already holds a raft log", .0.display())]
    Exists(PathBuf),
    /// There is no log where one must be.
    #[error("`{}` holds no raft log", .0.display())]
    Absent(PathBuf),
    /// The log contradicts itself.
    #[error("the raft log in `{}` cannot be used", dir.display())]
    Restore {
        /// Where it is.
        dir: PathBuf,
        /// Why.
        #[source]
        source: RestoreError,
    },
    /// The raft snapshot holds no state.
    #[error(transparent)]
    State(#[from] StateError),
    /// The new cluster's first objects contradict one another.
    #[error("the first objects of the cluster cannot be stored")]
    Found(#[source] Rejected),
    /// It stopped while it took up what its log holds.
    #[error("the manager stopped while it started: {reason}")]
    Failed {
        /// Why.
        reason: String,
        /// As in [`Ended::Failed`].
        passing: bool,
    },
    /// No manager can be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// No manager lets the node in; its words.
    #[error("the node was not let into the managers: {}", .0.message())]
    Refused(Box<Status>),
    /// No manager answered in time.
    #[error("the node was not let into the managers within {} s", JOIN_TIMEOUT.as_secs())]
    Timeout,
    /// There are no managers to ask.
    #[error("there is no manager to join through")]
    NoManagers,
}

impl StartError {
    /// Whether the same start may succeed later: the disk could not be written, or the managers did not let the
    /// node in, which is theirs to change.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            StartError::Wal(error) => error.may_pass(),
            StartError::Failed { passing, .. } => *passing,
            StartError::Connect(_)
            | StartError::Refused(_)
            | StartError::Timeout
            | StartError::NoManagers => true,
            StartError::Exists(_)
            | StartError::Absent(_)
            | StartError::Restore { .. }
            | StartError::State(_)
            | StartError::Found(_) => false,
        }
    }
}

impl Classify for StartError {
    fn kind(&self) -> Kind {
        match self {
            StartError::Wal(error) => error.kind(),
            StartError::Connect(error) => error.kind(),
            StartError::Refused(refused) => status::kind(refused.code()),
            StartError::Timeout => Kind::DeadlineExceeded,
            StartError::Exists(_) | StartError::NoManagers => Kind::FailedPrecondition,
            StartError::Absent(_)
            | StartError::Restore { .. }
            | StartError::Failed { .. }
            | StartError::State(_)
            | StartError::Found(_) => Kind::Internal,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            StartError::Wal(error) => error.hint(),
            StartError::Exists(_) => {
                Some("leave the cluster with `rswarm swarm leave --force` first".to_owned())
            }
            StartError::Refused(_)
            | StartError::Connect(_)
            | StartError::Timeout
            | StartError::NoManagers
            | StartError::Absent(_)
            | StartError::Restore { .. }
            | StartError::Failed { .. }
            | StartError::State(_)
            | StartError::Found(_) => None,
        }
    }
}

/// See [`Manager::start`].
pub(crate) async fn start(config: ManagerConfig, boot: Boot, scope: Scope) -> Result<Manager, StartError> {
    let opened = open(&config, boot).await?;
    let raft_id = opened.member.raft_id;
    let snapshot_index = opened.restored.snapshot.get_index();
    let committed = opened.restored.hard_state.get_commit();
    let has_state = snapshot_index > 0;
    let state = if has_state { decode_state(&opened.data)? } else { State::default() };
    let peer = Peer::restore(timing(raft_id, &state), opened.restored)
        .map_err(|source| StartError::Restore { dir: config.data_dir.clone(), source })?;
    let (commands, mailbox) = mailbox();
    let transport =
        Transport::new(raft_id, config.identity.clone(), commands.clone(), scope.child("raft streams"));
    let start = Start {
        peer,
        wal: opened.wal,
        state,
        snapshot_index,
        transport,
        seeds: opened.member.seeds,
        tick: config.tick,
    };
    let (raft, store) = Raft::new(start, commands, mailbox);
    let mut ended = run_raft(raft, &scope);
    // What is known to be decided is applied at once; the rest comes with the next leader.
    let mut status = store.status.clone();
    if status.wait_for(|status| status.applied >= committed).await.is_err() {
        check_failed(&mut ended).await?;
    }
    let manager = assemble(&config, store, ended, scope);
    if has_state {
        announce(&manager, config, raft_id);
    }
    Ok(manager)
}

/// Why the raft task is gone, if that is a failure.
async fn check_failed(ended: &mut watch::Receiver<Option<Ended>>) -> Result<(), StartError> {
    match ended.wait_for(Option::is_some).await.as_deref() {
        Ok(Some(Ended::Failed { reason, passing })) => {
            Err(StartError::Failed { reason: reason.clone(), passing: *passing })
        }
        Ok(Some(Ended::Removed) | None) | Err(_) => Ok(()),
    }
}

/// Elections and heartbeats as the cluster's spec has them.
fn timing(raft_id: u64, state: &State) -> Config {
    let mut timing = Config::new(raft_id, u64::from_le_bytes(random_bytes()));
    let spec = state.cluster().and_then(|cluster| cluster.spec.as_ref());
    if let Some(spec) =
        spec.filter(|spec| spec.heartbeat_tick > 0 && spec.election_tick > spec.heartbeat_tick)
    {
        timing.heartbeat_tick = spec.heartbeat_tick as usize;
        timing.election_tick = spec.election_tick as usize;
    }
    timing
}

fn run_raft(raft: Raft, scope: &Scope) -> watch::Receiver<Option<Ended>> {
    let (reason, ended) = watch::channel(None);
    let (token, all) = (scope.token(), scope.clone());
    scope.spawn(async move {
        if let Some(why) = raft.run(token).await {
            reason.send_replace(Some(why));
            // Without its log nothing here can be right.
            all.cancel();
        }
    });
    ended
}

/// The log, made or found.
async fn open(config: &ManagerConfig, boot: Boot) -> Result<Opened, StartError> {
    let dir = config.data_dir.clone();
    let exists = Wal::exists(&dir);
    let key = WrappingKey::derive(&config.identity.credentials().key_pem);
    match boot {
        Boot::Bootstrap(_) | Boot::Restore(_) if exists => Err(StartError::Exists(dir)),
        Boot::Restart | Boot::ForceNewCluster if !exists => Err(StartError::Absent(dir)),
        Boot::Bootstrap(founding) => {
            let member = Member { raft_id: random_raft_id(), seeds: Vec::new() };
            let state = first_state(*founding, member.raft_id, &config.advertise_addr)?;
            let first = peer::bootstrap(member.raft_id, encode_state(&state));
            create(dir, key, member, first).await
        }
        Boot::Restore(revival) => {
            let member = Member { raft_id: random_raft_id(), seeds: Vec::new() };
            let addr = &config.advertise_addr;
            let revived = revived_state(*revival, member.raft_id, addr, SystemClock.now());
            let (index, state) = revived.map_err(StartError::Found)?;
            let first = peer::bootstrap_at(member.raft_id, index, encode_state(&state));
            create(dir, key, member, first).await
        }
        Boot::Join { via } if !exists => {
            let joined = join(config, &via).await?;
            let seeds = joined.members.into_iter().filter(|member| member.raft_id != joined.raft_id);
            let seeds = seeds.map(|member| Seed {
                raft_id: member.raft_id,
                node_id: member.node_id,
                addr: member.addr,
            });
            let member = Member { raft_id: joined.raft_id, seeds: seeds.collect() };
            create(dir, key, member, Persist::default()).await
        }
        Boot::Join { .. } | Boot::Restart => Ok(blocking(move || Wal::open(&dir, &key)).await?),
        Boot::ForceNewCluster => Ok(blocking(move || force_single(Wal::open(&dir, &key)?)).await?),
    }
}

async fn create(
    dir: PathBuf,
    key: WrappingKey,
    member: Member,
    first: Persist,
) -> Result<Opened, StartError> {
    let job = move || {
        Wal::create(&dir, &key, &member, &first)?;
        // Read back, so that what is started is what a restart would find.
        Wal::open(&dir, &key)
    };
    Ok(blocking(job).await?)
}

fn force_single(mut opened: Opened) -> Result<Opened, WalError> {
    let persist = opened.restored.force_single(opened.member.raft_id);
    opened.wal.persist(&persist)?;
    tracing::warn!("this manager is now the only member of its raft group");
    Ok(opened)
}

/// Never zero, which stands for "none", and never one that was used before.
fn random_raft_id() -> u64 {
    u64::from_le_bytes(random_bytes()) | 1
}

/// The state that a new cluster begins with.
fn first_state(founding: Founding, raft_id: u64, addr: &str) -> Result<State, StartError> {
    let Founding { cluster, mut node } = founding;
    node.manager_status = Some(ManagerStatus { raft_id, addr: addr.to_owned(), ..ManagerStatus::default() });
    let create = |object: Object| Change {
        action: change::Action::Create.into(),
        object: Some(object),
        ..Change::default()
    };
    let transaction = Transaction {
        id: 1,
        author: Author::Bootstrap.name().to_owned(),
        changes: vec![create(cluster.into()), create(node.into())],
    };
    let batch = Batch { transactions: vec![transaction], now: SystemClock.now().0 };
    let applied = apply(&State::default(), peer::bootstrap_index(), batch);
    match applied.results.into_iter().next() {
        Some((_, Err(rejected))) => Err(StartError::Found(rejected)),
        Some((_, Ok(()))) | None => Ok(applied.state),
    }
}

/// Asks the managers in turn to be let in.
async fn join(config: &ManagerConfig, via: &[String]) -> Result<RaftJoinResponse, StartError> {
    let request = RaftJoinRequest { addr: config.advertise_addr.clone(), raft_id: 0 };
    let attempts = async {
        loop {
            let mut last = StartError::NoManagers;
            for addr in via {
                match ask(addr, &config.identity, request.clone()).await {
                    Ok(response) => return Ok(response),
                    Err(error) if !is_passing(&error) => return Err(error),
                    Err(error) => {
                        tracing::info!(addr, error = %Chain(&error), "not let in yet");
                        last = error;
                    }
                }
            }
            if via.is_empty() {
                return Err(last);
            }
            tokio::time::sleep(RETRY).await;
        }
    };
    tokio::time::timeout(JOIN_TIMEOUT, attempts).await.unwrap_or(Err(StartError::Timeout))
}

async fn ask(
    addr: &str,
    identity: &Arc<Identity>,
    request: RaftJoinRequest,
) -> Result<RaftJoinResponse, StartError> {
    let channel = connect(addr, identity).await?;
    let joined = RaftClient::new(channel).join(request).await;
    joined.map(tonic::Response::into_inner).map_err(|status| StartError::Refused(Box::new(status)))
}

/// Whether the next manager, or the same one a moment later, may say something else.
fn is_passing(error: &StartError) -> bool {
    matches!(error.kind(), Kind::Unavailable | Kind::DeadlineExceeded)
}

/// Starts everything around the raft task.
fn assemble(
    config: &ManagerConfig,
    store: StoreHandle,
    ended: watch::Receiver<Option<Ended>>,
    scope: Scope,
) -> Manager {
    let identity = config.identity.clone();
    let guard = Guard::new(store.state.clone());
    let forward = Forward::new(store.clone(), identity.clone());
    let heartbeats = Heartbeats::default();
    let (leadership, leadership_handle) = Leadership::new(store.clone(), heartbeats.clone());
    scope.spawn(leadership.run(scope.token()));
    let writer = Writer { store: store.clone(), heartbeats, leader: leadership_handle.clone() };
    let (intakes, intake) = Intake::new(&forward, &writer);
    for task in intakes {
        scope.spawn(task.run(scope.token()));
    }
    let cluster_id = identity.subject().cluster_id;
    let group = GroupService {
        guard: guard.clone(),
        forward: forward.clone(),
        store: store.clone(),
        leader: leadership_handle,
        cluster_id,
    };
    let ca = CaService {
        guard: guard.clone(),
        identity: identity.clone(),
        forward: forward.clone(),
        store: store.clone(),
        audit: config.audit.clone(),
    };
    let (leader, lock) = (watch_leader(&store, &scope), watch_lock(&store, &scope));
    let reachable = watch_reachable(&store, &scope);
    let dispatcher = DispatcherService {
        store: store.clone(),
        leader: leader.clone(),
        guard: guard.clone(),
        intake,
        heartbeats: writer.heartbeats.clone(),
        scope: scope.child("sessions"),
        sessions: Arc::new(Mutex::new(HashMap::new())),
    };
    let desk =
        Desk { store: store.clone(), heartbeats: writer.heartbeats.clone(), identity: identity.clone() };
    let relay = RelayService { guard: guard.clone(), writer };
    let attachments =
        AttachmentsService { guard: guard.clone(), forward: forward.clone(), desk: desk.clone() };
    let replica = Replica::new(store.clone());
    let control =
        ControlService { guard: guard.clone(), forward, desk, replica, audit: config.audit.clone() };
    let logs = LogsService { guard, store: store.clone(), identity, scope: scope.child("logs") };
    let calls = config.calls.clone();
    let services = Routes::new(group.server())
        .add_service(ca.server())
        .add_service(dispatcher.server())
        .add_service(relay.server())
        .add_service(control.server())
        .add_service(attachments.server())
        .add_service(logs.server());
    Manager { store, routes: services, calls, leader, reachable, lock, ended, scope }
}

/// The leader alone, out of all that changes in the group's status.
fn watch_leader(store: &StoreHandle, scope: &Scope) -> watch::Receiver<Option<Leader>> {
    watch_part(store.status.clone(), scope, |status| status.leader.clone())
}

/// Which members the leader hears of, out of all that changes in the group.
fn watch_reachable(store: &StoreHandle, scope: &Scope) -> watch::Receiver<Option<BTreeMap<u64, bool>>> {
    watch_part(store.status.clone(), scope, |status| {
        let members = status.members.iter().map(|member| (member.id, member.active));
        status.is_leading().then(|| members.collect())
    })
}

/// What managers are locked with, out of all that changes in the state.
fn watch_lock(store: &StoreHandle, scope: &Scope) -> watch::Receiver<Option<Lock>> {
    watch_part(store.state.clone(), scope, |state| {
        state.cluster().map(|cluster| UnlockKey::from_bytes(&cluster.unlock_key))
    })
}

/// One part of a value that changes often; `None` once there is nothing to follow any more.
fn watch_part<T: Send + Sync + 'static, P: PartialEq + Send + Sync + 'static>(
    mut whole: watch::Receiver<Arc<T>>,
    scope: &Scope,
    part: impl Fn(&T) -> Option<P> + Send + Sync + 'static,
) -> watch::Receiver<Option<P>> {
    let (published, receiver) = watch::channel(part(&whole.borrow_and_update()));
    let token = scope.token();
    scope.spawn(async move {
        let follow = async {
            while whole.changed().await.is_ok() {
                let current = part(&whole.borrow_and_update());
                published.send_if_modified(|published| {
                    let is_new = *published != current;
                    *published = current;
                    is_new
                });
            }
        };
        token.run_until_cancelled(follow).await;
        published.send_replace(None);
    });
    receiver
}

/// A member that starts again tells where it is now: its address may have changed while it was off.
fn announce(manager: &Manager, config: ManagerConfig, raft_id: u64) {
    let (store, token) = (manager.store.clone(), manager.scope.token());
    manager.scope.spawn(async move {
        let node_id = config.identity.subject().node_id;
        let is_known = |state: &State| {
            let manager = state.node(&node_id).and_then(|node| node.manager_status.as_ref());
            manager.is_none_or(|manager| manager.addr == config.advertise_addr)
        };
        let request = RaftJoinRequest { addr: config.advertise_addr.clone(), raft_id };
        let tell = async {
            while !is_known(&store.state()) {
                let state = store.state();
                let managers = state.nodes().filter_map(|node| node.manager_status.as_ref());
                let addrs: Vec<String> = managers.map(|manager| manager.addr.clone()).collect();
                for addr in addrs {
                    if let Err(error) = ask(&addr, &config.identity, request.clone()).await {
                        tracing::debug!(addr, error = %Chain(&error), "the new address is not known yet");
                    }
                }
                tokio::time::sleep(RETRY).await;
            }
        };
        token.run_until_cancelled(tell).await;
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calls::Calls;
    use crate::found::{NewCluster, found};
    use rswarm_base::audit::Audit;
    use rswarm_manager_core::peer::eraftpb::Entry;

    #[tokio::test]
    async fn a_log_that_cannot_be_applied_is_no_started_manager() {
        let dir = tempfile::tempdir().expect("tempdir");
        let request = NewCluster { hostname: "m1".to_owned(), ..NewCluster::default() };
        let (founding, identity) = found(request, SystemClock.now()).expect("founded");
        let data_dir = dir.path().join("raft");
        let advertise_addr = "127.0.0.1:1".to_owned();
        let config = ManagerConfig {
            identity,
            data_dir,
            advertise_addr,
            tick: crate::TICK,
            audit: Audit::default(),
            calls: Calls::default(),
        };
        let opened = open(&config, Boot::Bootstrap(Box::new(founding))).await.expect("made");
        let mut wal = opened.wal;
        let mut entry = Entry::default();
        (entry.index, entry.term, entry.data) = (2, 1, vec![0xff; 4].into());
        let mut hard_state = opened.restored.hard_state;
        hard_state.set_commit(2);
        let persist = Persist { entries: vec![entry], hard_state: Some(hard_state), ..Persist::default() };
        wal.persist(&persist).expect("written");
        drop(wal);
        let scope = Scope::root("test");
        let error = start(config, Boot::Restart, scope.clone()).await.err().expect("refused");
        assert!(matches!(&error, StartError::Failed { passing: false, .. }), "{}", Chain(&error));
        assert!(error.to_string().contains("entry 2"), "{error}");
        scope.shutdown(Duration::from_secs(5)).await;
    }
}
