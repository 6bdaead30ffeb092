//! What agents say on its way to the state: gathered for a moment, then written by the leader, here or there.
//!
//! Heartbeats have a task of their own: they must not wait for a disk, or a busy node would pass for a dead one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rswarm_base::{Chain, Clock, IdGen, SystemClock, Timestamp};
use rswarm_manager_core::{Author, State, intake};
use rswarm_proto::model::object::Stored;
use rswarm_proto::model::task::TaskState;
use rswarm_proto::wire::relay_client::RelayClient;
use rswarm_proto::wire::{
    Change, NodeHello, NodeState, NodeTables, NodeTaskReport, NodeUsage, RelayReport, TaskUsage, Transaction,
};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::forward::Forward;
use crate::heartbeats::Heartbeats;
use crate::leader::LeaderHandle;
use crate::store::{ProposeError, StoreHandle};

/// Reports waiting: a moment's worth from every agent of a large cluster.
const REPORTS_MAX: usize = 4096;
/// How long reports gather (swarmkit's value): one write takes them all.
const GATHER: Duration = Duration::from_millis(100);
/// Task reports in one write (swarmkit's value).
const BATCH_MAX: usize = 10_000;
/// Pause before reports are sent again that no leader took.
const RETRY: Duration = Duration::from_millis(250);
/// What the leader may take for a report: heartbeats are only noted, others may wait for its disk.
const HEARTBEATS_PATIENCE: Duration = Duration::from_secs(1);
const OTHERS_PATIENCE: Duration = Duration::from_secs(10);
/// How long heartbeats that found no leader are worth repeating: they count from when the leader hears them.
const HEARTBEATS_KEPT: Duration = Duration::from_secs(2);
/// How long a follower believes that the leader wants to know what tasks use, at least, and in heartbeat periods: until
/// each of its agents was told, and longer than the leader's next answer takes.
const USAGE_KEPT_MIN: Duration = Duration::from_secs(5);
const USAGE_KEPT: u32 = 2;
/// How often reports on objects that others write at the same time are decided anew.
const CONFLICTS_MAX: usize = 8;

/// One thing that an agent said.
pub(crate) enum Report {
    /// The node lives.
    Heartbeat(String),
    /// What the tasks of a node use.
    Usage(String, Vec<TaskUsage>),
    /// The endpoint tables in its kernel, by network, with their versions.
    Tables(String, BTreeMap<String, u64>),
    /// How its tasks are; answered once that is stored.
    Statuses(Vec<NodeTaskReport>, oneshot::Sender<()>),
    /// What and where it is.
    Hello(Box<NodeHello>),
}

/// Where sessions bring their reports.
#[derive(Clone)]
pub(crate) struct IntakeHandle {
    heartbeats: mpsc::Sender<Report>,
    others: mpsc::Sender<Report>,
}

impl IntakeHandle {
    /// Brings a report; waits while the intake is behind, which slows the agents down.
    pub(crate) async fn report(&self, report: Report) {
        let intake = match &report {
            Report::Heartbeat(_) | Report::Tables(..) | Report::Usage(..) => &self.heartbeats,
            Report::Statuses(..) | Report::Hello(_) => &self.others,
        };
        // An intake that ended belongs to a manager that stops; sessions end with it.
        let _ = intake.send(report).await;
    }
}

/// The task that gathers and delivers.
pub(crate) struct Intake {
    reports: mpsc::Receiver<Report>,
    patience: Duration,
    forward: Forward,
    writer: Writer,
}

/// What has gathered.
#[derive(Default)]
struct Gathered {
    report: RelayReport,
    heartbeats: BTreeSet<String>,
    tables: BTreeMap<String, BTreeMap<String, u64>>,
    usage: BTreeMap<String, Vec<TaskUsage>>,
    waiting: Vec<oneshot::Sender<()>>,
}

impl Intake {
    /// The tasks, one for heartbeats and one for everything else, and the handle on both.
    pub(crate) fn new(forward: &Forward, writer: &Writer) -> ([Intake; 2], IntakeHandle) {
        let intake = |patience| {
            let (sender, reports) = mpsc::channel(REPORTS_MAX);
            (sender, Intake { reports, patience, forward: forward.clone(), writer: writer.clone() })
        };
        let (heartbeats, first) = intake(HEARTBEATS_PATIENCE);
        let (others, second) = intake(OTHERS_PATIENCE);
        ([first, second], IntakeHandle { heartbeats, others })
    }

    /// Runs until it is cancelled.
    pub(crate) async fn run(mut self, cancel: CancellationToken) {
        let work = async {
            while let Some(first) = self.reports.recv().await {
                let mut gathered = Gathered::default();
                gathered.take(first);
                self.gather(&mut gathered).await;
                self.deliver(gathered).await;
            }
        };
        cancel.run_until_cancelled(work).await;
    }

    async fn gather(&mut self, gathered: &mut Gathered) {
        let end = Instant::now() + GATHER;
        while gathered.report.statuses.len() < BATCH_MAX {
            tokio::select! {
                Some(report) = self.reports.recv() => gathered.take(report),
                () = sleep_until(end) => return,
            }
        }
    }

    /// Delivers until a leader has it: statuses must not get lost.
    async fn deliver(&self, mut gathered: Gathered) {
        gathered.report.heartbeats = std::mem::take(&mut gathered.heartbeats).into_iter().collect();
        let tables = std::mem::take(&mut gathered.tables).into_iter();
        gathered.report.tables = tables.map(|(node_id, tables)| NodeTables { node_id, tables }).collect();
        let usage = std::mem::take(&mut gathered.usage).into_iter();
        gathered.report.usage = usage.map(|(node_id, tasks)| NodeUsage { node_id, tasks }).collect();
        let kept_until = Instant::now() + HEARTBEATS_KEPT;
        loop {
            let report = &gathered.report;
            let there = |channel| async { RelayClient::new(channel).report(report.clone()).await };
            let delivered = match self.forward.relay(self.patience, there).await {
                Ok(Some(response)) => {
                    if response.get_ref().usage_wanted {
                        let period = self.writer.store.state().heartbeat_period();
                        let kept = period.saturating_mul(USAGE_KEPT).max(USAGE_KEPT_MIN);
                        self.writer.heartbeats.want_usage(SystemClock.now().after(kept));
                    }
                    Ok(())
                }
                Ok(None) => self.writer.write(report).await.map_err(|error| Chain(&error).to_string()),
                Err(status) => Err(status.message().to_owned()),
            };
            match delivered {
                Ok(()) => break,
                Err(error) => tracing::debug!(error, "reports of agents wait for a leader"),
            }
            if Instant::now() >= kept_until {
                gathered.report.heartbeats.clear();
                gathered.report.tables.clear();
                gathered.report.usage.clear();
            }
            if gathered.report == RelayReport::default() {
                break;
            }
            tokio::time::sleep(RETRY).await;
        }
        for waiting in gathered.waiting {
            // The session may have ended; its agent reports again in the next one.
            let _ = waiting.send(());
        }
    }
}

impl Gathered {
    fn take(&mut self, report: Report) {
        match report {
            Report::Heartbeat(node_id) => drop(self.heartbeats.insert(node_id)),
            Report::Usage(node_id, tasks) => drop(self.usage.insert(node_id, tasks)),
            Report::Tables(node_id, tables) => drop(self.tables.insert(node_id, tables)),
            Report::Statuses(statuses, waiting) => {
                self.report.statuses.extend(statuses);
                self.waiting.push(waiting);
            }
            Report::Hello(hello) => {
                self.heartbeats.insert(hello.node_id.clone());
                self.report.nodes.push(*hello);
            }
        }
    }
}

/// Writes reports; works on the leader only.
#[derive(Clone)]
pub(crate) struct Writer {
    /// The state.
    pub store: StoreHandle,
    /// Where heartbeats go.
    pub heartbeats: Heartbeats,
    /// Whom to wake when a node is back.
    pub leader: LeaderHandle,
}

impl Writer {
    /// Takes what agents said into the state.
    pub(crate) async fn write(&self, report: &RelayReport) -> Result<(), ProposeError> {
        let now = SystemClock.now();
        let state = self.store.state();
        for node_id in &report.heartbeats {
            self.heartbeats.beat(node_id, now);
        }
        for usage in &report.usage {
            self.heartbeats.use_of(&usage.node_id, &usage.tasks);
        }
        let heard = report.tables.iter().filter(|told| self.heartbeats.applied(&told.node_id, &told.tables));
        let is_news = heard.count() > 0 && state.stopping_tasks().next().is_some();
        if is_news || report.heartbeats.iter().any(|node_id| !is_ready(&state, node_id)) {
            self.leader.wake();
        }
        self.note_started(&state, report, now);
        self.settle(|state| intake::hellos(state, &report.nodes)).await?;
        self.settle(|state| intake::statuses(state, &report.statuses, now)).await
    }

    /// Notes how long the tasks took that run for the first time now.
    fn note_started(&self, state: &State, report: &RelayReport, now: Timestamp) {
        let reports = report.statuses.iter().filter_map(|status| status.report.as_ref());
        let running = reports.filter(|report| {
            report.status.as_ref().is_some_and(|status| status.state() == TaskState::Running)
        });
        let started =
            running.filter_map(|report| state.task(&report.task_id)).filter(|task| task.ran_at == 0);
        for task in started {
            let took = now.since(Timestamp(task.meta().created_at));
            self.store.instruments.scheduling_delay.observe(took);
        }
    }

    /// Writes changes, each for itself, so that one object that somebody else writes at the same time does
    /// not hold up the others; those are decided anew.
    async fn settle(&self, decide: impl Fn(&State) -> Vec<Change>) -> Result<(), ProposeError> {
        let mut ids = IdGen::from_system();
        for _ in 0..CONFLICTS_MAX {
            let changes = decide(&self.store.state());
            let proposals = changes.into_iter().map(|change| {
                let author = Author::Dispatcher.name().to_owned();
                self.store.propose(Transaction { id: ids.number(), author, changes: vec![change] })
            });
            let mut is_settled = true;
            for result in futures_util::future::join_all(proposals).await {
                match result {
                    Ok(_) => {}
                    Err(ProposeError::Rejected(rejected)) => {
                        tracing::debug!(%rejected, "a report is decided anew");
                        is_settled = false;
                    }
                    Err(error) => return Err(error),
                }
            }
            if is_settled {
                return Ok(());
            }
        }
        tracing::warn!("reports were rejected again and again; the agents repeat them in their next session");
        Ok(())
    }
}

fn is_ready(state: &Arc<State>, node_id: &str) -> bool {
    let status = state.node(node_id).and_then(|node| node.status.as_ref());
    status.is_some_and(|status| status.state() == NodeState::ReadyNode)
}
