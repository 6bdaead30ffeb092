//! The stream to a manager: finds one, says hello, passes messages both ways, and starts over elsewhere
//! when it breaks. Owns no state but the list of addresses; the agent decides.

use std::sync::Arc;
use std::time::Duration;

use rswarm_base::id::IdGen;
use rswarm_base::{Chain, Scope};
use rswarm_proto::tls::{self, Identity};
use rswarm_proto::wire::dispatcher_client::DispatcherClient;
use rswarm_proto::wire::{AgentMessage, Heartbeat, Hello, ManagerMessage, agent_message, manager_message};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;

/// Messages to a manager that may wait; the agent coalesces what does not fit.
const OUTBOX: usize = 64;
/// First pause after a broken session, doubled up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// Longest pause between two tries.
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// A manager that does not answer within this time is given up.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// Heartbeat periods without a word from the manager before the session is given up.
const SILENCE_PERIODS: u32 = 4;

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
}

impl Session {
    pub(crate) async fn run(mut self, scope: Scope) {
        let mut ids = IdGen::from_system();
        let mut backoff = BACKOFF_MIN;
        let mut last = String::new();
        loop {
            let manager = choose(&self.managers.borrow(), &last, ids.number());
            let opened = tokio::select! {
                biased;
                () = scope.cancelled() => return,
                ended = self.serve(&manager, &scope) => ended,
            };
            let Err((error, opened)) = opened;
            last = manager;
            backoff = if opened { BACKOFF_MIN } else { (backoff * 2).min(BACKOFF_MAX) };
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
        scope: &Scope,
    ) -> Result<std::convert::Infallible, (SessionError, bool)> {
        let open = tokio::time::timeout(OPEN_TIMEOUT, self.open(manager)).await;
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
        let _ = outbox.try_send(message(agent_message::Message::Hello(hello)));
        let stream = DispatcherClient::new(channel)
            .max_decoding_message_size(MESSAGE_MAX)
            .session(ReceiverStream::new(messages))
            .await
            .map_err(|status| SessionError::Ended(manager.into(), Box::new(status)))?;
        Ok((outbox, stream.into_inner()))
    }

    /// Passes messages on until the stream ends. Heartbeats start with the manager's welcome.
    async fn relay(
        &mut self,
        manager: &str,
        inbox: &mut tonic::Streaming<ManagerMessage>,
        outbox: mpsc::Sender<AgentMessage>,
        session: &Scope,
    ) -> Result<std::convert::Infallible, SessionError> {
        let mut beating = false;
        loop {
            let received = tokio::select! {
                biased;
                _ = self.restart.recv() => return Err(SessionError::Closed(manager.into())),
                () = outbox.closed() => return Err(SessionError::Closed(manager.into())),
                received = inbox.message() => received,
            };
            let message = received
                .map_err(|status| SessionError::Ended(manager.into(), Box::new(status)))?
                .ok_or_else(|| SessionError::Closed(manager.into()))?;
            if let Some(manager_message::Message::Welcome(welcome)) = &message.message
                && !std::mem::replace(&mut beating, true)
            {
                let period = Duration::from_nanos(u64::try_from(welcome.heartbeat_period).unwrap_or(0));
                session.spawn(beat(period.max(BACKOFF_MIN), outbox.clone(), session.clone()));
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
async fn beat(period: Duration, outbox: mpsc::Sender<AgentMessage>, session: Scope) {
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = session.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let sent = outbox.send(message(agent_message::Message::Heartbeat(Heartbeat {})));
        // A manager that takes no message for this long is gone, whatever TCP still believes.
        match tokio::time::timeout(period * SILENCE_PERIODS, sent).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return,
        }
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
