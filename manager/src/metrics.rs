//! A manager's figures: what its parts count, and what can be read off its state.
//!
//! Where dockerd, swarmkit or etcd have the same figure, it has their name, so that their dashboards work.

use rswarm_base::metrics::{Counter, Counters, DISK, Exposition, Gauge, Histogram};
use rswarm_manager_core::State;
use rswarm_manager_core::state::node_state;
use rswarm_proto::model::task::TaskState;
use rswarm_proto::wire::NodeState;

use crate::store::{ProposeError, Status};

/// What the parts of a manager count. Cloning gives another handle on the same instruments.
#[derive(Debug, Clone)]
pub(crate) struct Instruments {
    /// From a transaction's proposal to its answer.
    pub transaction: Histogram,
    /// How proposals ended.
    pub proposals: Counters<1>,
    /// From an entry that is committed to the state that has it.
    pub apply: Histogram,
    /// What the disk takes to make the log durable.
    pub fsync: Histogram,
    /// Making and writing a raft snapshot.
    pub snapshot: Histogram,
    /// One pass of all reconcilers, the scheduler's among them.
    pub pass: Histogram,
    /// From a task's creation until it runs.
    pub scheduling_delay: Histogram,
    /// Heartbeats of agents that have their session here.
    pub heartbeats: Counter,
    /// Those that were due and did not come.
    pub missed: Counter,
    /// Sessions here.
    pub sessions: Gauge,
    /// The last entry in the log, and the last that a majority has.
    pub last_index: Gauge,
    pub commit_index: Gauge,
}

impl Default for Instruments {
    fn default() -> Instruments {
        Instruments {
            transaction: Histogram::default(),
            proposals: Counters::new(["outcome"]),
            apply: Histogram::default(),
            fsync: Histogram::new(DISK),
            snapshot: Histogram::default(),
            pass: Histogram::default(),
            scheduling_delay: Histogram::default(),
            heartbeats: Counter::default(),
            missed: Counter::default(),
            sessions: Gauge::default(),
            last_index: Gauge::default(),
            commit_index: Gauge::default(),
        }
    }
}

impl Instruments {
    /// Counts a proposal by how it ended.
    pub(crate) fn proposed(&self, result: &Result<u64, ProposeError>) {
        self.proposals.one([match result {
            Ok(_) => "applied",
            Err(ProposeError::Rejected(_)) => "rejected",
            Err(ProposeError::Refused(_)) => "refused",
            Err(ProposeError::Lost | ProposeError::Stopped) => "lost",
        }]);
    }

    /// Writes them, and what `group` and `state` say.
    pub(crate) fn write(&self, group: &Status, state: &State, out: &mut Exposition) {
        self.write_raft(group, out);
        self.write_work(out);
        write_objects(state, out);
        write_nodes(state, out);
        write_tasks(state, out);
    }

    fn write_raft(&self, group: &Status, out: &mut Exposition) {
        let voters = group.members.iter().filter(|member| !member.learner).count();
        let leads = group.is_leading();
        out.gauge("swarm_manager_leader", "Indicates if this manager node is a leader", flag(leads));
        out.gauge(
            "rswarm_raft_has_leader",
            "Whether this manager knows of a leader",
            flag(group.leader.is_some()),
        );
        out.gauge("rswarm_raft_term", "The raft term", group.role.term as f64);
        out.gauge("rswarm_raft_voters", "Managers that vote", voters as f64);
        out.gauge("rswarm_raft_last_index", "The last entry in the raft log", self.last_index.value() as f64);
        out.gauge(
            "rswarm_raft_committed_index",
            "The last entry that is known to be on a majority's disks",
            self.commit_index.value() as f64,
        );
        out.gauge("rswarm_raft_applied_index", "The last entry that the state has", group.applied as f64);
        self.proposals.write(
            "rswarm_raft_proposals_total",
            "Transactions that were proposed here, by how that ended",
            out,
        );
        out.histogram(
            "swarm_raft_transaction_latency_seconds",
            "Raft transaction latency.",
            &self.transaction,
        );
        out.histogram("swarm_raft_snapshot_latency_seconds", "Raft snapshot create latency.", &self.snapshot);
        out.histogram(
            "etcd_disk_wal_fsync_duration_seconds",
            "The latency distributions of fsync called by wal.",
            &self.fsync,
        );
        out.histogram(
            "rswarm_store_apply_seconds",
            "Time to take a committed entry into the state",
            &self.apply,
        );
    }

    fn write_work(&self, out: &mut Exposition) {
        out.histogram(
            "rswarm_scheduler_pass_seconds",
            "Time in which the leader decides once on everything that is due: tasks, addresses, nodes",
            &self.pass,
        );
        out.histogram(
            "swarm_dispatcher_scheduling_delay_seconds",
            "Scheduling delay is the time a task takes to go from NEW to RUNNING state.",
            &self.scheduling_delay,
        );
        out.gauge(
            "rswarm_dispatcher_sessions",
            "Agents that have their session at this manager",
            self.sessions.value() as f64,
        );
        out.counter("rswarm_dispatcher_heartbeats_total", "Heartbeats heard", &self.heartbeats);
        out.counter(
            "rswarm_dispatcher_heartbeats_missed_total",
            "Heartbeats that were due and did not come",
            &self.missed,
        );
    }
}

fn write_objects(state: &State, out: &mut Exposition) {
    for (name, what, count) in [
        ("swarm_manager_services_total", "services", state.services().count()),
        ("swarm_manager_networks_total", "networks", state.networks().count()),
        ("swarm_manager_secrets_total", "secrets", state.secrets().count()),
        ("swarm_manager_configs_total", "configs", state.configs().count()),
    ] {
        out.gauge(name, &format!("The number of {what} in the cluster object store"), count as f64);
    }
}

fn write_nodes(state: &State, out: &mut Exposition) {
    let mut family = out.family("swarm_manager_nodes", "The number of nodes", "gauge");
    for (name, wanted) in [
        ("ready", NodeState::ReadyNode),
        ("suspect", NodeState::Suspect),
        ("down", NodeState::Down),
        ("unknown", NodeState::Unknown),
    ] {
        let count = state.nodes().filter(|node| node_state(node) == wanted).count();
        family.sample(&[("state", name)], count as f64);
    }
}

const TASK_STATES: [TaskState; 15] = [
    TaskState::New,
    TaskState::Pending,
    TaskState::Assigned,
    TaskState::Accepted,
    TaskState::Preparing,
    TaskState::Ready,
    TaskState::Starting,
    TaskState::Running,
    TaskState::Draining,
    TaskState::Complete,
    TaskState::Shutdown,
    TaskState::Failed,
    TaskState::Rejected,
    TaskState::Remove,
    TaskState::Orphaned,
];

fn write_tasks(state: &State, out: &mut Exposition) {
    let mut counts = TASK_STATES.map(|_| 0_u64);
    let mut waiting = 0_u64;
    for task in state.tasks() {
        if let Some(place) = TASK_STATES.iter().position(|state| *state == task.observed()) {
            counts[place] += 1;
        }
        waiting += u64::from(task.is_live() && task.observed() == TaskState::Pending);
    }
    let help = "The number of tasks in the cluster object store";
    let mut family = out.family("swarm_manager_tasks_total", help, "gauge");
    for (state, count) in TASK_STATES.iter().zip(counts) {
        family.sample(&[("state", state.name())], count as f64);
    }
    out.gauge("rswarm_scheduler_pending_tasks", "Tasks that are wanted and wait for a node", waiting as f64);
}

fn flag(holds: bool) -> f64 {
    if holds { 1.0 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_written_with_every_kind_and_every_state_of_tasks() {
        let mut out = Exposition::default();
        let instruments = Instruments::default();
        instruments.proposed(&Ok(7));
        instruments.proposed(&Err(ProposeError::Lost));
        instruments.write(&Status::default(), &State::default(), &mut out);
        let text = out.into_text();
        for line in [
            "swarm_manager_leader 0",
            "rswarm_raft_term 0",
            "rswarm_raft_proposals_total{outcome=\"applied\"} 1",
            "rswarm_raft_proposals_total{outcome=\"lost\"} 1",
            "etcd_disk_wal_fsync_duration_seconds_bucket{le=\"0.001\"} 0",
            "swarm_manager_nodes{state=\"suspect\"} 0",
            "swarm_manager_tasks_total{state=\"draining\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing:\n{text}");
        }
        assert_eq!(text.matches("swarm_manager_tasks_total{").count(), TASK_STATES.len());
    }
}
