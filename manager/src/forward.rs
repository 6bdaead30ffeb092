//! The leader, wherever it is: a call is answered here when this manager leads, and passed on when not.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rswarm_proto::status::to_status;
use rswarm_proto::tls::{Identity, connect_node};
use tokio::time::{Instant, sleep, timeout_at};
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::Leader;
use crate::store::{NO_LEADER, ProposeError, StoreHandle};

/// How long a call waits for a leader: an election and a half.
const LEADER_WAIT: Duration = Duration::from_secs(2);
/// What a call that was passed on may still take once another leads: the old leader's answer may be on its way.
const LEFT_GRACE: Duration = Duration::from_millis(500);
/// Between two tries to reach a leader that is known and does not answer.
const RETRY: Duration = Duration::from_millis(50);
/// On a refusal: "not because of you; another leads".
const NOT_LEADER: &str = "rswarm-not-leader";
/// On a call: "passed on once, do not pass it on again".
const FORWARDED: &str = "rswarm-forwarded";

/// Finds the leader and talks to it.
#[derive(Clone)]
pub(crate) struct Forward {
    store: StoreHandle,
    identity: Arc<Identity>,
    /// The channel to the last leader that was talked to.
    channel: Arc<Mutex<Option<(Leader, Channel)>>>,
}

/// Where the leader is.
enum Target {
    Here,
    There(Leader, Channel),
}

/// Whether a call may be made twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// It changes nothing, or nothing more the second time.
    Safe,
    /// It is made again only when it was certainly not carried out.
    Unsafe,
}

impl Forward {
    /// For this manager.
    pub(crate) fn new(store: StoreHandle, identity: Arc<Identity>) -> Forward {
        Forward { store, identity, channel: Arc::default() }
    }

    /// Answers a call at the leader: with `here` when that is this manager, else with `there`.
    pub(crate) async fn at_leader<Q, A, H, HF, T, TF>(
        &self,
        request: Request<Q>,
        repeat: Repeat,
        here: H,
        there: T,
    ) -> Result<Response<A>, Status>
    where
        Q: Clone,
        H: Fn(Q) -> HF,
        HF: Future<Output = Result<A, Status>>,
        T: Fn(Channel, Request<Q>) -> TF,
        TF: Future<Output = Result<Response<A>, Status>>,
    {
        let deadline = Instant::now() + LEADER_WAIT;
        let was_forwarded = was_forwarded(&request);
        let (metadata, _, message) = request.into_parts();
        loop {
            let answer = match self.target(deadline, was_forwarded).await? {
                Target::Here => here(message.clone()).await.map(Response::new),
                Target::There(leader, channel) => {
                    let mut onward = Request::new(message.clone());
                    *onward.metadata_mut() = metadata.clone();
                    onward.metadata_mut().insert(FORWARDED, MetadataValue::from_static("1"));
                    tokio::select! {
                        answer = there(channel, onward) => {
                            answer.map_err(|status| self.note_broken(status, repeat))
                        }
                        () = self.abandoned(&leader) => Err(self.give_up(repeat)),
                    }
                }
            };
            match answer {
                Err(status) if may_repeat(&status, repeat) && Instant::now() < deadline && !was_forwarded => {
                    sleep(RETRY).await;
                }
                answer => return answer,
            }
        }
    }

    /// Makes a call of this manager's own, that may be made twice, at the leader: `Ok(None)` when that is this
    /// manager. Given up after `patience`, and as soon as another leads: a leader that was cut off does not
    /// answer, and its connection takes long to break.
    pub(crate) async fn relay<A, TF>(
        &self,
        patience: Duration,
        there: impl FnOnce(Channel) -> TF,
    ) -> Result<Option<A>, Status>
    where
        TF: Future<Output = Result<A, Status>>,
    {
        let (leader, channel) = match self.target(Instant::now() + LEADER_WAIT, false).await? {
            Target::Here => return Ok(None),
            Target::There(leader, channel) => (leader, channel),
        };
        tokio::select! {
            answer = there(channel) => {
                answer.map(Some).map_err(|status| self.note_broken(status, Repeat::Safe))
            }
            () = self.left(&leader) => Err(self.give_up(Repeat::Safe)),
            () = sleep(patience) => Err(self.give_up(Repeat::Safe)),
        }
    }

    /// Resolves once `leader` no longer leads, as far as is known here.
    async fn left(&self, leader: &Leader) {
        let mut status = self.store.status.clone();
        // A raft task that ended tells nothing more; whoever calls here ends with it.
        let _ = status.wait_for(|status| status.leader.as_ref() != Some(leader)).await;
    }

    /// Resolves once an answer of `leader` need no longer be waited for.
    async fn abandoned(&self, leader: &Leader) {
        self.left(leader).await;
        sleep(LEFT_GRACE).await;
    }

    /// What becomes of a call whose answer is not waited for any longer. The connection may be dead.
    fn give_up(&self, repeat: Repeat) -> Status {
        self.forget_channel();
        match repeat {
            Repeat::Safe => not_leader(),
            Repeat::Unsafe => to_status(&ProposeError::Lost),
        }
    }

    fn forget_channel(&self) {
        *self.channel.lock().expect("no holder panics") = None;
    }

    async fn target(&self, deadline: Instant, was_forwarded: bool) -> Result<Target, Status> {
        let mut changes = self.store.status.clone();
        loop {
            let status = changes.borrow_and_update().clone();
            if status.is_leading() {
                return Ok(Target::Here);
            }
            let other = status.leader.clone().filter(|_| !status.role.is_leader);
            let wait = match other {
                Some(_) if was_forwarded => return Err(not_leader()),
                Some(leader) => {
                    let connecting = timeout_at(deadline, self.channel_to(leader.clone()));
                    let connected = tokio::select! {
                        connected = connecting => connected.ok().flatten(),
                        () = self.left(&leader) => continue,
                    };
                    match connected {
                        Some(channel) => return Ok(Target::There(leader, channel)),
                        None => deadline.min(Instant::now() + RETRY),
                    }
                }
                None => deadline,
            };
            match timeout_at(wait, changes.changed()).await {
                Ok(Err(_)) => return Err(to_status(&ProposeError::Stopped)),
                Ok(Ok(())) | Err(_) if Instant::now() < deadline => {}
                Ok(Ok(())) | Err(_) => return Err(Status::unavailable(NO_LEADER)),
            }
        }
    }

    async fn channel_to(&self, leader: Leader) -> Option<Channel> {
        let cached = self.channel.lock().expect("no holder panics").clone();
        if let Some((_, channel)) = cached.filter(|(cached, _)| *cached == leader) {
            return Some(channel);
        }
        match connect_node(&leader.addr, &leader.node_id, &self.identity).await {
            Ok(channel) => {
                *self.channel.lock().expect("no holder panics") = Some((leader, channel.clone()));
                Some(channel)
            }
            Err(error) => {
                tracing::debug!(leader = leader.addr, error = %rswarm_base::Chain(&error), "leader not reached");
                None
            }
        }
    }

    /// A call that broke off says nothing about what became of it.
    fn note_broken(&self, status: Status, repeat: Repeat) -> Status {
        if !is_broken(&status) {
            return status;
        }
        self.forget_channel();
        if never_sent(&status) || repeat == Repeat::Safe {
            not_leader()
        } else {
            to_status(&ProposeError::Lost)
        }
    }
}

/// Whether another manager passed the call on: that one goes on looking for the leader, and answers the caller.
pub(crate) fn was_forwarded<T>(request: &Request<T>) -> bool {
    request.metadata().contains_key(FORWARDED)
}

/// Whether a call failed because nobody leads.
pub(crate) fn is_leaderless(status: &Status) -> bool {
    status.code() == tonic::Code::Unavailable && status.message() == NO_LEADER
}

/// The refusal of a manager that does not lead.
pub(crate) fn not_leader() -> Status {
    let mut status = Status::unavailable(NO_LEADER);
    status.metadata_mut().insert(NOT_LEADER, MetadataValue::from_static("1"));
    status
}

/// A failed proposal as the caller sees it.
pub(crate) fn propose_status(error: &ProposeError) -> Status {
    if error.is_not_leader() { not_leader() } else { to_status(error) }
}

fn may_repeat(status: &Status, repeat: Repeat) -> bool {
    let lost = status.code() == tonic::Code::Unavailable && repeat == Repeat::Safe;
    status.metadata().contains_key(NOT_LEADER) || lost
}

/// Whether the status was made here because the connection failed, not sent by the other side.
fn is_broken(status: &Status) -> bool {
    use std::error::Error as _;
    status.source().is_some()
}

fn never_sent(status: &Status) -> bool {
    use std::error::Error as _;
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}
