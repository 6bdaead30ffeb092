//! The stream to a manager: finds one, says hello, passes messages both ways, and starts over elsewhere
//! when it breaks. Owns no state but the list of addresses; the agent decides.

use std::sync::Arc;
use std::time::Duration;

use rswarm_base::id::IdGen;
use rswarm_base::{Chain, Scope};
use rswarm_proto::tls::{self, Identity};
use rswarm_proto::wire::dispatcher_client::DispatcherClient;
use rswarm_proto::wire::{
    AgentMessage, Heartbeat, Hello, ManagerMessage, TaskUsage, agent_message, manager_message,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

use crate::executor::Executor;
use crate::usage;

/// Messages to a manager that may wait; the agent coalesces what does not fit.
const OUTBOX: usize = 64;
/// First pause after a broken session, doubled up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// Longest pause between two tries.
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// A manager that does not answer within this time is given up: short at first, so that a node finds another
/// manager before it counts as down; doubled up to [`OPEN_TIMEOUT_MAX`] while none answers.
const OPEN_TIMEOUT_MIN: Duration = Duration::from_millis(1500);
/// The longest that a manager may take to answer.
const OPEN_TIMEOUT_MAX: Duration = Duration::from_secs(6);
/// Heartbeat periods without a word from the manager before the session is given up: two answers are missing,
/// and the next is half a period late. A node counts as down after five.
const SILENCE_PERIODS: f64 = 2.5;
/// The shortest silence that ends a session, however short the period.
const SILENCE_MIN: Duration = Duration::from_secs(1);

/// What the session tells the agent.
pub(crate) enum SessionEvent {
    /// A stream is about to open: what should be said first?
    Opening(oneshot::Sender<Hello>),
    /// The stream is open; this is its outbox.
    Open { outbox: mpsc::Sender<AgentMessage>, manager: String },
    /// The manager said something.
    Message(Box<ManagerMessage>),
    /// The stream is gone, for this reason.
    Closed(String),
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("manager `{0}` could not be reached")]
    Connect(String, #[source] tls::ConnectError),
    #[error("manager `{0}` did not answer in time")]
    Silent(String),
    #[error("manager `{0}` ended the session")]
    Ended(String, #[source] Box<tonic::Status>),
    #[error("manager `{0}` closed the stream")]
    Closed(String),
    #[error("the agent is stopping")]
    Stopping,
}

/// Where the session gets its addresses and its identity from.
pub(crate) struct Session {
    pub(crate) identity: Arc<Identity>,
    pub(crate) managers: watch::Receiver<Vec<String>>,
    pub(crate) events: mpsc::Sender<SessionEvent>,
    /// Told by the agent to end the stream at hand, e.g. after a gap.
    pub(crate) restart: mpsc::Receiver<()>,
    /// Who knows what tasks use.
    pub(crate) executor: Arc<dyn Executor>,
}

impl Session {
    pub(crate) async fn run(mut self, scope: Scope) {
        let mut ids = IdGen::from_system();
        let (mut backoff, mut patience) = (BACKOFF_MIN, OPEN_TIMEOUT_MIN);
        let mut last = String::new();
        loop {
            let manager = choose(&self.managers.borrow(), &last, ids.number());
            let opened = tokio::select! {
                biased;
                () = scope.cancelled() => return,
                ended = self.serve(&manager, patience, &scope) => ended,
            };
            let Err((error, opened)) = opened;
            last = manager;
            (backoff, patience) = match opened {
                true => (BACKOFF_MIN, OPEN_TIMEOUT_MIN),
                false => ((backoff * 2).min(BACKOFF_MAX), (patience * 2).min(OPEN_TIMEOUT_MAX)),
            };
            let reason = Chain(&error).to_string();
            tracing::debug!(reason, "session ended");
            if self.events.send(SessionEvent::Closed(reason)).await.is_err() {
                return;
            }
            tokio::select! {
                biased;
                () = scope.cancelled() => return,
                () = tokio::time::sleep(backoff) => {}
            }
        }
    }

    /// One session from dial to end. The flag says whether it ever opened.
    async fn serve(
        &mut self,
        manager: &str,
        patience: Duration,
        scope: &Scope,
    ) -> Result<std::convert::Infallible, (SessionError, bool)> {
        let open = tokio::time::timeout(patience, self.open(manager)).await;
        let (outbox, mut inbox) = open
            .unwrap_or_else(|_| Err(SessionError::Silent(manager.into())))
            .map_err(|error| (error, false))?;
        let started = SessionEvent::Open { outbox: outbox.clone(), manager: manager.into() };
        self.events.send(started).await.map_err(|_| (SessionError::Stopping, true))?;
        let session = scope.child("session");
        let ended = self.relay(manager, &mut inbox, outbox, &session).await;
        session.cancel();
        ended.map_err(|error| (error, true))
    }

    async fn open(
        &self,
        manager: &str,
    ) -> Result<(mpsc::Sender<AgentMessage>, tonic::Streaming<ManagerMessage>), SessionError> {
        let channel = tls::connect(manager, &self.identity)
            .await
            .map_err(|error| SessionError::Connect(manager.into(), error))?;
        let (ask, hello) = oneshot::channel();
        self.events.send(SessionEvent::Opening(ask)).await.map_err(|_| SessionError::Stopping)?;
        let hello = hello.await.map_err(|_| SessionError::Stopping)?;
        let (outbox, messages) = mpsc::channel(OUTBOX);
        // The outbox is empty and ours alone: the first message always fits.
        let _ = outbox.try_send(message(agent_message::Message::Hello(Box::new(hello))));
        let stream = DispatcherClient::new(channel)
            .max_decoding_message_size(MESSAGE_MAX)
            .session(ReceiverStream::new(messages))
            .await
            .map_err(|status| SessionError::Ended(manager.into(), Box::new(status)))?;
        Ok((outbox, stream.into_inner()))
    }

    /// Passes messages on until the stream ends, or the manager falls silent. Heartbeats start with the manager's
    /// welcome, and go as it says.
    async fn relay(
        &mut self,
        manager: &str,
        inbox: &mut tonic::Streaming<ManagerMessage>,
        outbox: mpsc::Sender<AgentMessage>,
        session: &Scope,
    ) -> Result<std::convert::Infallible, SessionError> {
        let mut period: Option<watch::Sender<Duration>> = None;
        let mut is_acknowledging = false;
        let mut heard = Instant::now();
        let (wanted, is_wanted) = watch::channel(false);
        let (latest, usage) = watch::channel(Vec::new());
        session.spawn(usage::watch(self.executor.clone(), is_wanted, latest, session.clone()));
        loop {
            let limit = period.as_ref().filter(|_| is_acknowledging).map(|period| silence(*period.borrow()));
            let received = tokio::select! {
                biased;
                _ = self.restart.recv() => return Err(SessionError::Closed(manager.into())),
                () = outbox.closed() => return Err(SessionError::Closed(manager.into())),
                // Before the silence: what has come in while the agent was busy was said in time.
                received = inbox.message() => received,
                () = until(limit.map(|limit| heard + limit)) => {
                    return Err(SessionError::Silent(manager.into()));
                }
            };
            heard = Instant::now();
            let message = received
                .map_err(|status| SessionError::Ended(manager.into(), Box::new(status)))?
                .ok_or_else(|| SessionError::Closed(manager.into()))?;
            match &message.message {
                Some(manager_message::Message::HeartbeatAck(ack)) => {
                    wanted.send_if_modified(|wanted| {
                        std::mem::replace(wanted, ack.usage_wanted) != ack.usage_wanted
                    });
                    // An older manager never answers; it is not left for that.
                    is_acknowledging = true;
                    continue;
                }
                Some(manager_message::Message::Welcome(welcome)) => {
                    set_period(&mut period, welcome.heartbeat_period, &outbox, &usage, session);
                }
                Some(manager_message::Message::Node(update)) if period.is_some() => {
                    set_period(&mut period, update.heartbeat_period, &outbox, &usage, session);
                }
                _ => {}
            }
            self.events
                .send(SessionEvent::Message(Box::new(message)))
                .await
                .map_err(|_| SessionError::Stopping)?;
        }
    }
}

/// Assignment sets of thousands of tasks fit; a manager is trusted with this much.
const MESSAGE_MAX: usize = 64 << 20;

/// Heartbeats have a task of their own, so that no amount of work makes this node look dead.
/// A new period begins at once, with a heartbeat.
async fn beat(
    mut period: watch::Receiver<Duration>,
    outbox: mpsc::Sender<AgentMessage>,
    usage: watch::Receiver<Vec<TaskUsage>>,
    session: Scope,
) {
    loop {
        let pause = *period.borrow_and_update();
        let heartbeat = Heartbeat { usage: usage.borrow().clone() };
        let sent = outbox.send(message(agent_message::Message::Heartbeat(heartbeat)));
        tokio::select! {
            biased;
            () = session.cancelled() => return,
            sent = sent => if sent.is_err() { return },
        }
        tokio::select! {
            biased;
            () = session.cancelled() => return,
            changed = period.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Heartbeats go with this period from now on; the first one starts them.
fn set_period(
    current: &mut Option<watch::Sender<Duration>>,
    ns: i64,
    outbox: &mpsc::Sender<AgentMessage>,
    usage: &watch::Receiver<Vec<TaskUsage>>,
    session: &Scope,
) {
    let wanted = Duration::from_nanos(u64::try_from(ns).unwrap_or(0)).max(BACKOFF_MIN);
    match current {
        Some(period) => {
            period.send_if_modified(|period| std::mem::replace(period, wanted) != wanted);
        }
        None => {
            let (period, changes) = watch::channel(wanted);
            session.spawn(beat(changes, outbox.clone(), usage.clone(), session.clone()));
            *current = Some(period);
        }
    }
}

/// How long a manager that answers heartbeats may be silent.
fn silence(period: Duration) -> Duration {
    period.mul_f64(SILENCE_PERIODS).max(SILENCE_MIN)
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

pub(crate) fn message(message: agent_message::Message) -> AgentMessage {
    AgentMessage { message: Some(message) }
}

/// Any manager but the one that just failed, if there is another.
fn choose(managers: &[String], last: &str, random: u64) -> String {
    let mut others: Vec<&String> = managers.iter().filter(|manager| *manager != last).collect();
    if others.is_empty() {
        others = managers.iter().collect();
    }
    let count = others.len().max(1) as u64;
    others.get((random % count) as usize).map_or_else(|| last.to_owned(), |manager| (*manager).clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_manager_is_another_one_if_there_is_one() {
        let managers = ["a".to_owned(), "b".to_owned()];
        assert!((0..10).all(|random| choose(&managers, "a", random) == "b"));
        assert_eq!(choose(&managers[..1], "a", 3), "a");
    }
}
