//! The task that owns a container. All changes go through its mailbox; all reads see the value that it published
//! last. When the daemon stops it lets go: the container lives on in its shim.

mod change;
mod end;
mod start;

use std::sync::Arc;
use std::time::Duration;

use rswarm_base::Chain;
use rswarm_shim::Exit;
use rswarm_shim::client::{AttachStream, CallError, Shim};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::health::Check;
use super::record::Record;
use super::restart::Backoff;
use super::{Container, Health, Probe, State, Status};
use crate::blocking::{Work, begin};
use crate::config::EndpointConfig;
use crate::engine::{Access, Attachment, ContainerUpdate, RemoveOptions};
use crate::error::{ControlError, ExecError, FileError, LookupError, NetworkError, RemoveError, StartError};
use crate::registry::{Handle, Reservation};
use crate::shared::Shared;

pub(crate) use end::stored_exit;

/// Requests that wait while one is served; more callers than this on one container wait in line.
const MAILBOX: usize = 64;
/// Clients that may use a container's files at one time; a start or a removal wants all of these.
const HOLDS_MAX: u32 = 1 << 16;
type Reply<T> = oneshot::Sender<T>;

/// What an actor is asked for.
#[derive(Debug)]
pub(crate) enum Request {
    Start(Reply<Result<(), StartError>>),
    Stop {
        timeout: Option<Duration>,
        signal: Option<i32>,
        reply: Reply<Result<(), ControlError>>,
    },
    Restart {
        timeout: Option<Duration>,
        signal: Option<i32>,
        reply: Reply<Result<(), ControlError>>,
    },
    Kill {
        signal: i32,
        reply: Reply<Result<(), ControlError>>,
    },
    Pause(Reply<Result<(), ControlError>>),
    Unpause(Reply<Result<(), ControlError>>),
    Rename {
        name: Reservation,
        reply: Reply<Result<(), ControlError>>,
    },
    Update {
        update: Box<ContainerUpdate>,
        reply: Reply<Result<Vec<String>, ControlError>>,
    },
    Attach(Reply<Result<Attachment, ControlError>>),
    Resize {
        width: u16,
        height: u16,
        reply: Reply<Result<(), ControlError>>,
    },
    Remove {
        options: RemoveOptions,
        reply: Reply<Result<(), RemoveError>>,
    },
    /// The shim of a running container, to exec in it.
    Shim(Reply<Result<Shim, ExecError>>),
    Connect {
        endpoint: EndpointConfig,
        reply: Reply<Result<(), NetworkError>>,
    },
    Disconnect {
        network: String,
        reply: Reply<Result<(), NetworkError>>,
    },
    /// Its files, for as long as the answer is held.
    Files(Reply<Access>),
    /// A health check's result.
    Probed(Probe),
}

/// A container that lives.
struct Run {
    shim: Shim,
    exit: oneshot::Receiver<Result<Exit, CallError>>,
    health: Option<Check>,
    /// Ends the health check.
    cancel: CancellationToken,
}

/// A stop in progress, and who waits for it.
#[derive(Default)]
struct Stopping {
    /// When SIGKILL follows.
    deadline: Option<Instant>,
    then: Vec<AfterExit>,
}

enum AfterExit {
    Stop(Reply<Result<(), ControlError>>),
    Kill(Reply<Result<(), ControlError>>),
    Restart(Reply<Result<(), ControlError>>),
    Remove(RemoveOptions, Reply<Result<(), RemoveError>>),
}

/// Whether the actor goes on.
#[derive(PartialEq, Eq)]
pub(crate) enum Next {
    Continue,
    /// The container is gone.
    End,
}

pub(crate) struct Actor {
    shared: Arc<Shared>,
    record: Record,
    published: watch::Sender<Arc<Container>>,
    mailbox: mpsc::Receiver<Request>,
    /// For the health check's results; weak, so that the mailbox closes with its last handle.
    own: mpsc::WeakSender<Request>,
    run: Option<Run>,
    stopping: Option<Stopping>,
    backoff: Backoff,
    next_start: Option<Instant>,
    clients: Vec<oneshot::Sender<AttachStream>>,
    /// Who uses its files.
    files: Arc<Semaphore>,
    /// A record on its way to the disk.
    storing: Option<Work<Result<(), FileError>>>,
}

impl Actor {
    /// Prepares the actor of a container, and the handle by which others reach it.
    pub(crate) fn new(shared: Arc<Shared>, record: Record) -> (Actor, Handle) {
        let (requests, mailbox) = mpsc::channel(MAILBOX);
        let (published, state) = watch::channel(Arc::new(record.container.clone()));
        let handle = Handle { id: record.container.id.as_str().into(), requests: requests.clone(), state };
        let backoff = Backoff::resumed(record.container.restart_count);
        let own = requests.downgrade();
        let actor = Actor {
            shared,
            record,
            published,
            mailbox,
            own,
            run: None,
            stopping: None,
            backoff,
            next_start: None,
            clients: Vec::new(),
            files: Arc::new(Semaphore::new(HOLDS_MAX as usize)),
            storing: None,
        };
        (actor, handle)
    }

    /// What is to be corrected before [`Actor::run`].
    pub(crate) fn record_mut(&mut self) -> &mut Record {
        &mut self.record
    }

    /// Takes a living container over, before [`Actor::run`].
    pub(crate) fn adopt(&mut self, shim: Shim) {
        if self.container().state.health.is_none() {
            self.record.container.state.health = self.check().map(|_| Health::default());
        }
        self.watch_run(shim);
        self.publish();
    }

    /// Has the container started as its policy says, right after [`Actor::run`] begins.
    pub(crate) fn start_at_boot(&mut self) {
        self.next_start = Some(Instant::now());
        self.record.container.state.status = Status::Restarting;
        self.publish();
    }

    /// One that does not run and is not started: what a record of a start that never came says is corrected.
    pub(crate) fn rest(&mut self) {
        if self.record.container.state.status == Status::Restarting {
            self.record.container.state.status = Status::Exited;
        }
        self.record.container.state.pid = 0;
        self.forget_addresses();
        self.publish();
    }

    /// A container with `--rm` that has ended, or never came up.
    pub(crate) fn is_leftover(&self) -> bool {
        self.container().config.auto_remove
            && self.run.is_none()
            && self.next_start.is_none()
            && self.record.started_by_hand
    }

    /// Serves until the container is gone or the daemon stops.
    pub(crate) async fn run(mut self) {
        let cancelled = self.shared.scope.token();
        loop {
            let next = tokio::select! {
                biased;
                () = cancelled.cancelled() => return self.finish_store().await,
                exit = exit_of(&mut self.run) => self.on_exit(exit).await,
                () = at(self.stopping.as_ref().and_then(|stopping| stopping.deadline)) => self.on_deadline().await,
                () = at(self.next_start) => self.on_next_start().await,
                Some(request) = self.mailbox.recv() => self.on_request(request).await,
                else => return,
            };
            if next == Next::End {
                return;
            }
        }
    }

    // ---- publishing -----------------------------------------------------------------------------------

    fn container(&self) -> &Container {
        &self.record.container
    }

    fn state(&mut self) -> &mut State {
        &mut self.record.container.state
    }

    fn publish(&self) {
        self.published.send_replace(Arc::new(self.record.container.clone()));
    }

    /// Makes the present state durable, then visible.
    async fn save(&mut self) -> Result<(), FileError> {
        self.begin_store().await;
        self.stored().await?;
        self.publish();
        Ok(())
    }

    /// Makes the present state visible, and durable as soon as the disk can: for what the next daemon learns from
    /// the shim or from its exit file, should this one die before.
    async fn save_soon(&mut self) {
        self.begin_store().await;
        self.publish();
    }

    /// Begins to write the present state. An earlier one comes first: it must not overtake.
    async fn begin_store(&mut self) {
        self.finish_store().await;
        let record = self.record.clone();
        self.storing = Some(begin(move || record.store()));
    }

    /// [`Actor::stored`], when nobody is left to be told of a failure.
    async fn finish_store(&mut self) {
        if let Err(error) = self.stored().await {
            tracing::error!(container.id = self.container().id, error = %Chain(&error), "state could not be stored");
        }
    }

    /// Waits until what was begun is durable.
    async fn stored(&mut self) -> Result<(), FileError> {
        match self.storing.take() {
            Some(storing) => storing.end().await,
            None => Ok(()),
        }
    }

    /// [`Actor::save`] of something that has happened already: it is visible even if the disk fails.
    async fn save_fact(&mut self) {
        if let Err(error) = self.save().await {
            tracing::error!(container.id = self.container().id, error = %Chain(&error), "state could not be stored");
            self.publish();
        }
    }

    fn event(&self, action: &str, more: &[(&str, String)]) {
        self.shared.event(self.container(), action, more);
    }

    // ---- files ----------------------------------------------------------------------------------------

    async fn access(&self) -> Access {
        let hold = self.files.clone().acquire_owned().await.expect("nobody closes it");
        Access { pid: self.run.as_ref().map(|_| self.container().state.pid), _hold: hold }
    }

    /// Waits until nobody uses the container's files, as Docker does: its layers must not be mounted twice, nor
    /// go away below a client.
    async fn alone(&self) -> OwnedSemaphorePermit {
        self.files.clone().acquire_many_owned(HOLDS_MAX).await.expect("nobody closes it")
    }

    // ---- requests -------------------------------------------------------------------------------------

    async fn on_request(&mut self, request: Request) -> Next {
        match request {
            Request::Start(reply) => {
                let started = self.start_by_hand().await;
                let failed = started.is_err();
                answer(reply, started);
                // A container with `--rm` that could not be started is removed; one that runs is not touched.
                if failed && self.container().config.auto_remove && self.run.is_none() {
                    return self.remove_self().await;
                }
            }
            Request::Stop { timeout, signal, reply } => {
                return self.on_stop(timeout, signal, AfterExit::Stop(reply)).await;
            }
            Request::Restart { timeout, signal, reply } => {
                return self.on_stop(timeout, signal, AfterExit::Restart(reply)).await;
            }
            Request::Kill { signal, reply } => self.on_kill(signal, reply).await,
            Request::Pause(reply) => answer(reply, self.pause().await),
            Request::Unpause(reply) => answer(reply, self.unpause().await),
            Request::Rename { name, reply } => answer(reply, self.rename(name).await),
            Request::Update { update, reply } => answer(reply, self.update(*update).await),
            Request::Attach(reply) => answer(reply, self.attach().await),
            Request::Resize { width, height, reply } => answer(reply, self.resize(width, height).await),
            Request::Remove { options, reply } => return self.on_remove(options, reply).await,
            Request::Shim(reply) => answer(reply, self.shim_for_exec()),
            Request::Connect { endpoint, reply } => answer(reply, self.connect(endpoint).await),
            Request::Disconnect { network, reply } => answer(reply, self.disconnect(&network).await),
            Request::Files(reply) => answer(reply, self.access().await),
            Request::Probed(probe) => self.on_probe(probe).await,
        }
        Next::Continue
    }
}

/// The caller may have gone away; the work is done all the same.
fn answer<T>(reply: Reply<T>, value: T) {
    let _ = reply.send(value);
}

async fn exit_of(run: &mut Option<Run>) -> Result<Exit, CallError> {
    let Some(run) = run else { return std::future::pending().await };
    match (&mut run.exit).await {
        Ok(exit) => exit,
        // The daemon stops: nobody waits for the shim any more, and the actor's own end follows.
        Err(_) => std::future::pending().await,
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

impl Handle {
    /// Asks the actor. One that is gone means that the container is.
    pub(crate) async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, LookupError> {
        let gone = || LookupError::NotFound(self.id.to_string());
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())
    }
}
