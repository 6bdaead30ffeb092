//! What only the leader does: run the reconcilers when the state changes or a time has come, and keep the
//! raft group's members to what the nodes' roles say.
//!
//! One task does both, so a node that is being let in is never taken for a leftover.

use std::sync::Arc;
use std::time::Duration;

use rswarm_base::id::random_bytes;
use rswarm_base::{Chain, Clock, IdGen, SystemClock, Timestamp};
use rswarm_manager_core::control::check_member_removal;
use rswarm_manager_core::peer::{MemberChange, Refused};
use rswarm_manager_core::{Author, Env, Pass, State, pass};
use rswarm_proto::status::to_status;
use rswarm_proto::wire::{
    Change, Cluster, ManagerStatus, Node, NodeRole, RaftJoinResponse, RaftMember, Transaction, change,
};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::Status as Refusal;

use crate::blocking::blocking;
use crate::forward::{not_leader, propose_status};
use crate::heartbeats::Heartbeats;
use crate::rotation::finished;
use crate::store::{ProposeError, Status, StoreHandle};

/// Joins waiting for the leader: more managers than any cluster has.
const ADMISSIONS_MAX: usize = 16;
/// Pause after a failed step of membership: what it waits for takes about this long.
const RETRY: Duration = Duration::from_millis(200);
/// How often a membership change is tried again while another one is in progress.
const BUSY_TRIES: usize = 50;

/// A node that asks to become, or says that it is, a raft member.
pub(crate) struct Admission {
    /// Which node, by its certificate.
    pub node_id: String,
    /// Where it is.
    pub addr: String,
    /// Its raft id, when it is a member and only tells its address; else zero.
    pub raft_id: u64,
    /// The answer.
    pub reply: oneshot::Sender<Result<RaftJoinResponse, Refusal>>,
}

/// What others can tell the task.
#[derive(Clone)]
pub(crate) struct LeaderHandle {
    admissions: mpsc::Sender<Admission>,
    wake: Arc<Notify>,
}

impl LeaderHandle {
    /// Runs the reconcilers soon although the state did not change: a node is heard again.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Lets a node in.
    pub(crate) async fn admit(
        &self,
        node_id: String,
        addr: String,
        raft_id: u64,
    ) -> Result<RaftJoinResponse, Refusal> {
        let (reply, answer) = oneshot::channel();
        let admission = Admission { node_id, addr, raft_id, reply };
        let stopped = || to_status(&ProposeError::Stopped);
        self.admissions.send(admission).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }
}

/// The task.
pub(crate) struct Leadership {
    store: StoreHandle,
    heartbeats: Heartbeats,
    admissions: mpsc::Receiver<Admission>,
    wake: Arc<Notify>,
    ids: IdGen,
}

impl Leadership {
    /// The task and its handle.
    pub(crate) fn new(store: StoreHandle, heartbeats: Heartbeats) -> (Leadership, LeaderHandle) {
        let (sender, admissions) = mpsc::channel(ADMISSIONS_MAX);
        let wake = Arc::new(Notify::new());
        let handle = LeaderHandle { admissions: sender, wake: wake.clone() };
        (Leadership { store, heartbeats, admissions, wake, ids: IdGen::from_system() }, handle)
    }

    /// Runs until it is cancelled or the raft task ends.
    pub(crate) async fn run(mut self, cancel: CancellationToken) {
        let mut status = self.store.status.clone();
        loop {
            let now = status.borrow_and_update().clone();
            if let Some(since) = now.leading_since {
                let heartbeats = self.heartbeats.clone();
                heartbeats.restart(since);
                tokio::select! {
                    // The pulse comes before decisions: they must not be made on what was heard before a standstill.
                    biased;
                    () = cancel.cancelled() => return,
                    never = heartbeats.watch_pulse() => match never {},
                    () = self.lead(since) => {}
                }
                continue;
            }
            tokio::select! {
                () = cancel.cancelled() => return,
                Some(admission) = self.admissions.recv() => drop(admission.reply.send(Err(not_leader()))),
                changed = status.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Leads until another does.
    async fn lead(&mut self, since: Timestamp) {
        let (mut state, mut status) = (self.store.state.clone(), self.store.status.clone());
        let mut decided_on: Option<Arc<State>> = None;
        let mut wake_at: Option<Timestamp> = None;
        loop {
            let (view, group) = (state.borrow_and_update().clone(), status.borrow_and_update().clone());
            if group.leading_since != Some(since) {
                return;
            }
            let pause = self.reconcile_members(&view, &group).await;
            self.finish_rotation(&view).await;
            let is_due = wake_at.is_some_and(|at| at <= SystemClock.now());
            if is_due || decided_on.as_ref().is_none_or(|decided| !Arc::ptr_eq(decided, &view)) {
                wake_at = self.reconcile(&view).await;
                decided_on = Some(view);
            }
            tokio::select! {
                changed = state.changed() => if changed.is_err() { return },
                changed = status.changed() => if changed.is_err() { return },
                () = self.wake.notified() => wake_at = Some(Timestamp::ZERO),
                () = sleep_until(wake_at) => {}
                () = tokio::time::sleep(RETRY), if pause => {}
                Some(admission) = self.admissions.recv() => {
                    let answer = self.admit(&admission).await;
                    // The node may have given up; then it asks again.
                    let _ = admission.reply.send(answer);
                }
            }
        }
    }

    /// Runs all reconcilers and proposes what they decide. Returns when to do so again at the latest.
    async fn reconcile(&mut self, view: &Arc<State>) -> Option<Timestamp> {
        self.heartbeats.retain(|node_id| view.node(node_id).is_some());
        // The time first: should this process stand still here, it is early, and no node seems silent.
        let now = SystemClock.now();
        self.heartbeats.check_clock(now);
        let (heartbeats, leader_since) = self.heartbeats.all();
        let tables = self.heartbeats.tables();
        let (view, mut ids) = (view.clone(), self.ids.clone());
        let timer = self.store.instruments.pass.timer();
        let job = move || {
            let mut env = Env {
                now,
                ids: &mut ids,
                heartbeats: &heartbeats,
                tables: &tables,
                leader_since,
                secret: random_bytes(),
            };
            let decided = pass(&view, &mut env);
            timer.stop();
            (decided, ids)
        };
        let (Pass { transactions, wake_at }, ids) = blocking(job).await;
        self.ids = ids;
        let proposals = transactions.into_iter().map(|transaction| self.store.propose(transaction));
        for result in futures_util::future::join_all(proposals).await {
            match result {
                Ok(_) => {}
                // Somebody else wrote the same object; the next pass decides on what it is now.
                Err(ProposeError::Rejected(rejected)) => {
                    tracing::debug!(%rejected, "a decision came too late")
                }
                Err(error) => tracing::debug!(error = %Chain(&error), "a decision was not applied"),
            }
        }
        wake_at
    }

    /// Takes one step towards the members that the nodes' roles ask for. Returns whether to try again soon.
    async fn reconcile_members(&mut self, view: &State, group: &Status) -> bool {
        let Some(step) = next_step(view, group) else { return false };
        let done = match step {
            Step::Change(change) => self.store.change_member(change).await,
            Step::Write(node) => self.write_node(*node).await,
            Step::HandOver => {
                tracing::info!("this manager is to be a worker; leadership goes to another");
                self.store.step_down().await;
                return true;
            }
        };
        if let Err(error) = &done {
            tracing::debug!(error = %Chain(error), "membership is not as it should be yet");
        }
        done.is_err()
    }

    /// Ends the replacement of the root certificate once every node has one by the new root.
    async fn finish_rotation(&mut self, view: &State) {
        let Some((root, cluster)) = finished(view).zip(view.cluster()) else { return };
        let cluster = Cluster { root_ca: Some(root), ..Cluster::clone(cluster) };
        let change = Change {
            action: change::Action::Update.into(),
            object: Some(cluster.into()),
            ..Change::default()
        };
        let author = Author::Ca.name().to_owned();
        let transaction = Transaction { id: self.ids.number(), author, changes: vec![change] };
        match self.store.propose(transaction).await {
            Ok(_) => {
                tracing::info!("the root certificate is replaced: all nodes have certificates by the new one")
            }
            // The next state is looked at again.
            Err(error) => tracing::debug!(error = %Chain(&error), "the new root is not the only one yet"),
        }
    }

    async fn write_node(&mut self, node: Node) -> Result<(), ProposeError> {
        let change =
            Change { action: change::Action::Update.into(), object: Some(node.into()), ..Change::default() };
        let author = Author::Membership.name().to_owned();
        let transaction = Transaction { id: self.ids.number(), author, changes: vec![change] };
        self.store.propose(transaction).await.map(drop)
    }

    async fn admit(&mut self, admission: &Admission) -> Result<RaftJoinResponse, Refusal> {
        let node = self.admissible(&admission.node_id)?;
        let known = node.manager_status.clone();
        let raft_id = match known {
            Some(status) if admission.raft_id == status.raft_id => status.raft_id,
            _ if admission.raft_id != 0 => {
                return Err(Refusal::failed_precondition(format!(
                    "node {} is no longer raft member {:x}",
                    node.id, admission.raft_id
                )));
            }
            // Its log is gone, so it must not pass for the member that it was.
            Some(status) => {
                self.remove_member(status.raft_id).await?;
                self.unused_raft_id()
            }
            None => self.unused_raft_id(),
        };
        self.announce(&admission.node_id, raft_id, &admission.addr).await?;
        if admission.raft_id == 0 {
            self.change_member(MemberChange::AddLearner(raft_id)).await?;
            tracing::info!(node.id = admission.node_id, addr = admission.addr, "a manager joined");
        }
        Ok(RaftJoinResponse { raft_id, members: self.members() })
    }

    /// The node, when it may be a raft member.
    fn admissible(&self, node_id: &str) -> Result<Node, Refusal> {
        let state = self.store.state();
        let node = state.node(node_id).ok_or_else(|| {
            Refusal::not_found(format!(
                "node {node_id} is not part of this cluster; let it join with a token"
            ))
        })?;
        let desired = node.spec.as_ref().map_or(NodeRole::Worker, |spec| spec.desired_role());
        if desired != NodeRole::Manager {
            return Err(Refusal::failed_precondition(format!("node {node_id} is to be a worker")));
        }
        Ok(Node::clone(node))
    }

    /// Writes where a member is; from then on all managers know.
    async fn announce(&mut self, node_id: &str, raft_id: u64, addr: &str) -> Result<(), Refusal> {
        loop {
            let mut node = self.admissible(node_id)?;
            let wanted = ManagerStatus { raft_id, addr: addr.to_owned(), ..ManagerStatus::default() };
            if node.manager_status.as_ref() == Some(&wanted) {
                return Ok(());
            }
            node.manager_status = Some(wanted);
            node.set_role(NodeRole::Manager);
            match self.write_node(node).await {
                Ok(()) => return Ok(()),
                // The node was written meanwhile: decide on what it is now.
                Err(ProposeError::Rejected(_)) => {}
                Err(error) => return Err(propose_status(&error)),
            }
        }
    }

    async fn remove_member(&mut self, raft_id: u64) -> Result<(), Refusal> {
        let group = self.store.status();
        if !group.members.iter().any(|member| member.id == raft_id) {
            return Ok(());
        }
        check_member_removal(&group.members, raft_id).map_err(|error| to_status(&error))?;
        self.change_member(MemberChange::Remove(raft_id)).await
    }

    async fn change_member(&mut self, change: MemberChange) -> Result<(), Refusal> {
        for _ in 0..BUSY_TRIES {
            match self.store.change_member(change).await {
                Err(ProposeError::Refused(Refused::Busy)) => tokio::time::sleep(RETRY / 4).await,
                done => return done.map_err(|error| propose_status(&error)),
            }
        }
        Err(propose_status(&ProposeError::Refused(Refused::Busy)))
    }

    /// Random, so that it was certainly never used in this cluster: zero stands for "none".
    fn unused_raft_id(&mut self) -> u64 {
        self.ids.number() | 1
    }

    fn members(&self) -> Vec<RaftMember> {
        let (state, group) = (self.store.state(), self.store.status());
        let is_learner = |id| group.members.iter().any(|member| member.id == id && member.learner);
        let members = state.nodes().filter_map(|node| {
            let status = node.manager_status.as_ref()?;
            Some(RaftMember {
                raft_id: status.raft_id,
                node_id: node.id.clone(),
                addr: status.addr.clone(),
                learner: is_learner(status.raft_id),
            })
        });
        members.collect()
    }
}

async fn sleep_until(at: Option<Timestamp>) {
    match at {
        Some(at) => tokio::time::sleep(at.since(SystemClock.now())).await,
        None => std::future::pending().await,
    }
}

/// One step of membership.
#[derive(Debug, PartialEq)]
enum Step {
    Change(MemberChange),
    /// Leadership goes to another, which then removes this member.
    HandOver,
    Write(Box<Node>),
}

/// What to do next so that the members are those nodes that shall be managers. One thing at a time: raft
/// changes one member at a time.
fn next_step(state: &State, group: &Status) -> Option<Step> {
    if let Some(id) = group.promotable.first() {
        return Some(Step::Change(MemberChange::Promote(*id)));
    }
    let is_member = |id: u64| group.members.iter().any(|member| member.id == id);
    let removable = |id: u64| check_member_removal(&group.members, id).is_ok();
    for node in state.nodes() {
        let desired = node.spec.as_ref().map_or(NodeRole::Worker, |spec| spec.desired_role());
        match &node.manager_status {
            Some(status) if !is_member(status.raft_id) => return Some(not_a_member(node, desired)),
            Some(status) if desired == NodeRole::Worker => {
                if status.raft_id == group.raft_id {
                    let others = group.members.iter().filter(|member| member.id != group.raft_id);
                    if others.filter(|member| !member.learner).any(|member| member.active) {
                        return Some(Step::HandOver);
                    }
                } else if removable(status.raft_id) {
                    return Some(Step::Change(MemberChange::Remove(status.raft_id)));
                }
            }
            None if node.role() != desired => return Some(not_a_member(node, desired)),
            Some(_) | None => {}
        }
    }
    let named = |id: u64| {
        let named =
            |node: &Arc<Node>| node.manager_status.as_ref().is_some_and(|status| status.raft_id == id);
        state.nodes().any(named)
    };
    let leftover = group
        .members
        .iter()
        .find(|member| member.id != group.raft_id && !named(member.id) && removable(member.id));
    leftover.map(|member| Step::Change(MemberChange::Remove(member.id)))
}

/// A node that is in no raft group has the role that it shall have: its next certificate says so, and with
/// that it joins, or has left.
fn not_a_member(node: &Node, desired: NodeRole) -> Step {
    let mut node = node.clone();
    node.manager_status = None;
    node.set_role(desired);
    Step::Write(Box::new(node))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rswarm_manager_core::apply;
    use rswarm_manager_core::peer::{Member, Role};
    use rswarm_proto::wire::{Batch, NodeSpec};

    /// Nodes as (id, desired role, role, raft id).
    fn state(nodes: &[(&str, NodeRole, NodeRole, Option<u64>)]) -> State {
        let node = |(id, desired, role, raft_id): &(&str, NodeRole, NodeRole, Option<u64>)| Node {
            id: (*id).to_owned(),
            spec: Some(NodeSpec { desired_role: (*desired).into(), ..NodeSpec::default() }),
            role: (*role).into(),
            manager_status: raft_id.map(|raft_id| ManagerStatus { raft_id, ..ManagerStatus::default() }),
            ..Node::default()
        };
        let change = |node: Node| Change {
            action: change::Action::Create.into(),
            object: Some(node.into()),
            ..Change::default()
        };
        let changes = nodes.iter().map(|listed| change(node(listed))).collect();
        let transaction = Transaction { id: 1, author: Author::Bootstrap.name().to_owned(), changes };
        let applied = apply(&State::default(), 1, Batch { transactions: vec![transaction], now: 1 });
        assert_eq!(applied.results, [(1, Ok(()))]);
        applied.state
    }

    /// The group as member 1 sees it, leading: members as (id, learner, active).
    fn group(members: &[(u64, bool, bool)]) -> Status {
        let member = |(id, learner, active): &(u64, bool, bool)| Member {
            id: *id,
            learner: *learner,
            matched: 9,
            active: *active,
        };
        let role = Role { term: 2, leader: Some(1), is_leader: true, removed: false };
        let members = members.iter().map(member).collect();
        Status { role, members, raft_id: 1, ..Status::default() }
    }

    use NodeRole::{Manager, Worker};

    #[test]
    fn a_group_that_is_as_it_shall_be_needs_no_step() {
        let state = state(&[("a", Manager, Manager, Some(1)), ("b", Worker, Worker, None)]);
        assert_eq!(next_step(&state, &group(&[(1, false, true)])), None);
    }

    #[test]
    fn a_demoted_manager_leaves_the_group_before_it_loses_its_role() {
        let nodes = [
            ("a", Manager, Manager, Some(1)),
            ("b", Worker, Manager, Some(2)),
            ("c", Manager, Manager, Some(3)),
        ];
        let state = state(&nodes);
        let members = [(1, false, true), (2, false, true), (3, false, true)];
        assert_eq!(next_step(&state, &group(&members)), Some(Step::Change(MemberChange::Remove(2))));
        let without = [(1, false, true), (3, false, true)];
        let Some(Step::Write(node)) = next_step(&state, &group(&without)) else { panic!("no write") };
        assert_eq!((node.id.as_str(), node.role(), &node.manager_status), ("b", Worker, &None));
    }

    #[test]
    fn a_demotion_waits_while_it_would_cost_the_quorum() {
        let nodes = [
            ("a", Manager, Manager, Some(1)),
            ("b", Worker, Manager, Some(2)),
            ("c", Manager, Manager, Some(3)),
        ];
        let members = [(1, false, true), (2, false, true), (3, false, false)];
        assert_eq!(next_step(&state(&nodes), &group(&members)), None);
    }

    #[test]
    fn a_leader_that_is_to_be_a_worker_hands_over_when_it_can() {
        let state = state(&[("a", Worker, Manager, Some(1)), ("b", Manager, Manager, Some(2))]);
        let step = |active| next_step(&state, &group(&[(1, false, true), (2, false, active)]));
        assert_eq!(step(true), Some(Step::HandOver));
        assert_eq!(step(false), None);
    }

    #[test]
    fn a_member_that_no_node_claims_is_removed() {
        let state = state(&[("a", Manager, Manager, Some(1))]);
        let members = [(1, false, true), (9, true, false)];
        assert_eq!(next_step(&state, &group(&members)), Some(Step::Change(MemberChange::Remove(9))));
    }

    #[test]
    fn a_promoted_worker_gets_the_role_that_lets_it_join() {
        let state = state(&[("a", Manager, Manager, Some(1)), ("b", Manager, Worker, None)]);
        let Some(Step::Write(node)) = next_step(&state, &group(&[(1, false, true)])) else {
            panic!("no write")
        };
        assert_eq!((node.id.as_str(), node.role()), ("b", Manager));
    }
}
