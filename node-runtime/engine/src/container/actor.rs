//! The task that owns a container. All changes go through its mailbox; all reads see the value that it published
//! last. When the daemon stops it lets go: the container lives on in its shim.

use std::sync::Arc;
use std::time::Duration;

use rswarm_base::{Chain, Timestamp};
use rswarm_shim::Exit;
use rswarm_shim::client::{AttachStream, CallError, Shim};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::health::{self, Check};
use super::record::Record;
use super::restart::Backoff;
use super::wiring;
use super::{Container, Endpoint, Health, Probe, State, Status, launch};
use crate::blocking::blocking;
use crate::config::EndpointConfig;
use crate::engine::{Attachment, ContainerUpdate, RemoveOptions};
use crate::error::{
    Cause, ControlError, ExecError, FileError, LookupError, NetworkError, RemoveError, StartError,
};
use crate::registry::{Handle, Reservation};
use crate::shared::Shared;
use crate::signal;

/// Requests that wait while one is served; more callers than this on one container wait in line.
const MAILBOX: usize = 64;
/// The code of a container whose end nobody saw.
const UNKNOWN_EXIT: i32 = 255;

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
        };
        (actor, handle)
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
                () = cancelled.cancelled() => return,
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
    async fn save(&self) -> Result<(), FileError> {
        let record = self.record.clone();
        blocking(move || record.store()).await?;
        self.publish();
        Ok(())
    }

    /// [`Actor::save`] of something that has happened already: it is visible even if the disk fails.
    async fn save_fact(&self) {
        if let Err(error) = self.save().await {
            tracing::error!(container.id = self.container().id, error = %Chain(&error), "state could not be stored");
            self.publish();
        }
    }

    fn event(&self, action: &str, more: &[(&str, String)]) {
        self.shared.event(self.container(), action, more);
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
            Request::Probed(probe) => self.on_probe(probe).await,
        }
        Next::Continue
    }

    fn live_shim(&self) -> Result<&Shim, ControlError> {
        let not_running = || ControlError::NotRunning(self.container().id.clone());
        self.run.as_ref().map(|run| &run.shim).ok_or_else(not_running)
    }

    async fn pause(&mut self) -> Result<(), ControlError> {
        if self.container().state.status == Status::Paused {
            return Err(ControlError::Conflict(format!(
                "container {} is already paused",
                self.container().id
            )));
        }
        self.refuse_restarting()?;
        self.live_shim()?.pause().await.map_err(Cause::new)?;
        self.state().status = Status::Paused;
        self.save_fact().await;
        self.event("pause", &[]);
        Ok(())
    }

    async fn unpause(&mut self) -> Result<(), ControlError> {
        if self.container().state.status != Status::Paused {
            return Err(ControlError::Conflict(format!("container {} is not paused", self.container().id)));
        }
        self.live_shim()?.resume().await.map_err(Cause::new)?;
        self.state().status = Status::Running;
        self.save_fact().await;
        self.event("unpause", &[]);
        Ok(())
    }

    fn refuse_restarting(&self) -> Result<(), ControlError> {
        if self.container().state.status == Status::Restarting {
            return Err(ControlError::Conflict(format!(
                "container {} is restarting, wait until the container is running",
                self.container().id
            )));
        }
        Ok(())
    }

    async fn rename(&mut self, name: Reservation) -> Result<(), ControlError> {
        self.refuse_removing()?;
        let new = name.name.clone();
        let old = std::mem::replace(&mut self.record.container.name, new.clone());
        if let Err(error) = self.save().await {
            self.record.container.name = old;
            return Err(error.into());
        }
        name.keep();
        self.shared.registry.release(&old);
        let mut endpoints = self.container().endpoints.to_vec();
        for endpoint in &mut endpoints {
            let Ok(network) = self.shared.local.find(&endpoint.network_id) else { continue };
            let container = self.container();
            endpoint.names =
                wiring::names(&network, &container.id, &new, &container.config, &endpoint.config);
            if self.run.is_some() {
                let names = endpoint.names.clone();
                self.shared.networks.set_names(&container.id, network.kernel_id(), names).await;
            }
        }
        self.record.container.endpoints = Arc::new(endpoints);
        self.save_fact().await;
        self.event("rename", &[("oldName", format!("/{old}"))]);
        Ok(())
    }

    fn refuse_removing(&self) -> Result<(), ControlError> {
        let container = self.container();
        if matches!(container.state.status, Status::Removing | Status::Dead) {
            return Err(ControlError::Conflict(format!(
                "container {} is marked for removal and cannot be changed",
                container.id
            )));
        }
        Ok(())
    }

    async fn update(&mut self, update: ContainerUpdate) -> Result<Vec<String>, ControlError> {
        self.refuse_removing()?;
        let mut config = (*self.container().config).clone();
        config.resources =
            crate::spec::merge_resources(&config.resources, &update.resources, &self.shared.host)
                .map_err(ControlError::Invalid)?;
        if let Some(restart) = update.restart {
            if config.auto_remove && restart.name != crate::config::RestartName::No {
                return Err(ControlError::Conflict(
                    "Restart policy cannot be updated because AutoRemove is enabled for the container"
                        .to_owned(),
                ));
            }
            config.restart = restart;
        }
        if self.run.is_some() {
            self.apply_limits(&config.resources).await?;
        }
        self.record.container.config = Arc::new(config);
        self.save().await?;
        self.event("update", &[]);
        Ok(Vec::new())
    }

    async fn apply_limits(
        &self,
        limits: &rswarm_proto::model::container::ResourceLimits,
    ) -> Result<(), ControlError> {
        let resources = crate::spec::oci_resources(limits);
        let path = self.shared.cgroup(&self.container().id);
        let apply = move || rswarm_runtime::cgroup::Cgroup::at(path.as_ref())?.apply(&resources);
        Ok(blocking(apply).await.map_err(Cause::new)?)
    }

    async fn attach(&mut self) -> Result<Attachment, ControlError> {
        self.refuse_restarting()?;
        if self.container().state.status == Status::Paused {
            return Err(ControlError::Conflict(format!(
                "container {} is paused, unpause the container before attach",
                self.container().id
            )));
        }
        self.refuse_removing()?;
        let (client, attachment) = Attachment::new(self.container().config.spec.tty);
        if let Some(run) = &self.run {
            let stream = run.shim.attach().await.map_err(Cause::new)?;
            // The caller may have gone away.
            let _ = client.send(stream);
        } else {
            self.clients.retain(|client| !client.is_closed());
            self.clients.push(client);
        }
        self.event("attach", &[]);
        Ok(attachment)
    }

    async fn resize(&mut self, width: u16, height: u16) -> Result<(), ControlError> {
        self.live_shim()?.resize(width, height).await.map_err(Cause::new)?;
        self.event("resize", &[("height", height.to_string()), ("width", width.to_string())]);
        Ok(())
    }

    fn shim_for_exec(&self) -> Result<Shim, ExecError> {
        let container = self.container();
        let conflict = |why: &str| Err(ExecError::Conflict(format!("container {} is {why}", container.id)));
        match (&self.run, container.state.status) {
            (_, Status::Paused) => conflict("paused, unpause the container before exec"),
            (_, Status::Restarting) => conflict("restarting, wait until the container is running"),
            (Some(run), _) => Ok(run.shim.clone()),
            (None, _) => conflict("not running"),
        }
    }

    async fn connect(&mut self, asked: EndpointConfig) -> Result<(), NetworkError> {
        let container = self.container();
        let network = self.shared.local.find(&asked.network)?;
        if wiring::Mode::of(&container.config.network_mode) != wiring::Mode::Networks
            || network.driver == "host"
        {
            return Err(NetworkError::Forbidden(format!(
                "container {} cannot be connected to network {}: its network mode is {}",
                container.id, network.name, container.config.network_mode
            )));
        }
        if container.endpoints.iter().any(|endpoint| endpoint.network_id == network.id) {
            return Err(NetworkError::Forbidden(format!(
                "endpoint with name {} already exists in network {}",
                container.name, network.name
            )));
        }
        let mut endpoint =
            wiring::new_endpoint(&network, &container.id, &container.name, &container.config, asked)?;
        if self.run.is_some() {
            endpoint = wiring::connect(&self.shared, container, endpoint, &network)
                .await
                .map_err(|error| NetworkError::Below(Cause::new(error)))?;
        }
        let mut endpoints = container.endpoints.to_vec();
        endpoints.push(endpoint);
        self.record.container.endpoints = Arc::new(endpoints);
        self.save().await?;
        self.network_event(&network.id, &network.name, &network.driver, "connect");
        Ok(())
    }

    async fn disconnect(&mut self, reference: &str) -> Result<(), NetworkError> {
        let container = self.container();
        let network = self.shared.local.find(reference)?;
        if container.endpoints.iter().all(|endpoint| endpoint.network_id != network.id) {
            return Err(NetworkError::NotConnected {
                container: container.id.clone(),
                network: network.name.clone(),
            });
        }
        if self.run.is_some() {
            wiring::disconnect(&self.shared, container, &network)
                .await
                .map_err(|error| NetworkError::Below(Cause::new(error)))?;
        }
        let mut endpoints = container.endpoints.to_vec();
        endpoints.retain(|endpoint| endpoint.network_id != network.id);
        self.record.container.endpoints = Arc::new(endpoints);
        self.save().await?;
        self.network_event(&network.id, &network.name, &network.driver, "disconnect");
        Ok(())
    }

    fn network_event(&self, id: &str, name: &str, driver: &str, action: &str) {
        let attributes = [
            ("container".to_owned(), self.container().id.clone()),
            ("name".to_owned(), name.to_owned()),
            ("type".to_owned(), driver.to_owned()),
        ];
        self.shared.events.local("network", action, id, attributes.into());
    }

    // ---- start ----------------------------------------------------------------------------------------

    async fn start_by_hand(&mut self) -> Result<(), StartError> {
        let id = self.container().id.clone();
        match self.container().state.status {
            Status::Running | Status::Restarting => return Err(StartError::AlreadyRunning(id)),
            Status::Paused => {
                return Err(StartError::Conflict(
                    "cannot start a paused container, try unpause instead".to_owned(),
                ));
            }
            Status::Removing | Status::Dead => {
                return Err(StartError::Conflict(
                    "container is marked for removal and cannot be started".to_owned(),
                ));
            }
            Status::Created | Status::Exited => {}
        }
        self.backoff = Backoff::default();
        self.record.container.restart_count = 0;
        self.record.stopped_by_hand = false;
        self.record.started_by_hand = true;
        self.start().await
    }

    /// Brings the container up. After a failure everything is as before, but for the exit code and the reason.
    async fn start(&mut self) -> Result<(), StartError> {
        let started = self.bring_up().await;
        if let Err(error) = &started {
            let text = Chain(error).to_string();
            tracing::warn!(
                container.id = self.container().id,
                error = text,
                "container could not be started"
            );
            let never_ran = self.container().state.started_at.is_zero();
            let exit_code = error.exit_code();
            let state = self.state();
            state.status = if never_ran { Status::Created } else { Status::Exited };
            state.exit_code = exit_code;
            state.error = text;
            state.pid = 0;
            self.forget_addresses();
            self.save_fact().await;
        }
        started
    }

    async fn bring_up(&mut self) -> Result<(), StartError> {
        let created = launch::create(&self.shared, &self.record).await?;
        self.record.container.endpoints = Arc::new(created.endpoints.clone());
        // Durable before the program runs: a daemon that dies now finds the endpoints of what it adopts.
        let stored = self.save().await.map_err(StartError::from);
        let clients = std::mem::take(&mut self.clients);
        let started = match stored {
            Ok(()) => launch::start(self.container(), &created, clients).await,
            Err(error) => Err(error),
        };
        let started = match started {
            Ok(started) => started,
            Err(error) => {
                launch::end(&self.shared, &self.container().id, &created.shim).await;
                wiring::unwire(&self.shared, &self.container().id).await;
                return Err(error);
            }
        };
        let health = self.check().map(|_| Health::default());
        let state = self.state();
        state.status = Status::Running;
        state.pid = started.pid;
        state.exit_code = 0;
        state.error.clear();
        state.oom_killed = false;
        state.started_at = started.started_at;
        state.health = health;
        self.save_fact().await;
        tracing::info!(container.id = self.container().id, pid = started.pid, "running");
        self.shared.network_events(self.container(), "connect");
        self.event("start", &[]);
        self.watch_run(created.shim);
        Ok(())
    }

    /// Waits for the shim's exit from now on, and probes the container's health.
    fn watch_run(&mut self, shim: Shim) {
        let cancel = self.shared.scope.token().child_token();
        let health = self.check();
        if let Some(check) = health.clone() {
            let (state, own) = (self.published.subscribe(), self.own.clone());
            self.shared.scope.spawn(health::probe_loop(check, shim.clone(), state, own, cancel.clone()));
        }
        let (send, exit) = oneshot::channel();
        let (waiting, cancelled) = (shim.clone(), self.shared.scope.token());
        self.shared.scope.spawn(async move {
            tokio::select! {
                () = cancelled.cancelled() => {}
                // An actor that is gone has let go of its container.
                exit = waiting.wait() => drop(send.send(exit)),
            }
        });
        self.run = Some(Run { shim, exit, health, cancel });
    }

    fn check(&self) -> Option<Check> {
        let container = self.container();
        container.config.spec.healthcheck.as_ref()?;
        let shell = self.shared.images.get(&container.image_id).map(|image| image.config.shell);
        Check::of(&container.config.spec, &shell.unwrap_or_default())
    }

    async fn on_probe(&mut self, probe: Probe) {
        let Some(check) = self.run.as_ref().and_then(|run| run.health.clone()) else { return };
        let started_at = self.container().state.started_at;
        let before = self.container().state.health.clone().unwrap_or_default();
        let after = check.judge(&before, probe, started_at);
        let verdict = after.status;
        self.state().health = Some(after);
        self.publish();
        if verdict != before.status {
            self.event(&format!("health_status: {}", verdict.as_str()), &[]);
        }
    }

    // ---- stop -----------------------------------------------------------------------------------------

    async fn on_stop(&mut self, timeout: Option<Duration>, signal: Option<i32>, then: AfterExit) -> Next {
        if self.run.is_none() {
            return self.stop_without_run(then).await;
        }
        self.record.stopped_by_hand = true;
        let config = &self.container().config.spec;
        let own_grace =
            config.stop_grace.map(|nanos| u64::try_from(nanos).map_or(Duration::MAX, Duration::from_nanos));
        let grace = timeout.or(own_grace).unwrap_or(self.shared.config.stop_timeout);
        let signal = signal.unwrap_or_else(|| signal::parse(&config.stop_signal).unwrap_or(signal::TERM));
        // The later of two stops waits for the earlier one's end; the shorter patience counts.
        let deadline = Instant::now().checked_add(grace);
        let stopping = self.stopping.get_or_insert_default();
        stopping.deadline = match (stopping.deadline, deadline) {
            (Some(old), Some(new)) => Some(old.min(new)),
            (old, new) => old.or(new),
        };
        stopping.then.push(then);
        self.send_signal(signal).await;
        if self.container().state.status == Status::Paused
            && let Err(error) = self.unpause().await
        {
            tracing::warn!(container.id = self.container().id, error = %Chain(&error), "could not be thawed to stop");
        }
        Next::Continue
    }

    /// Nothing runs: a wait for the next start ends here.
    async fn stop_without_run(&mut self, then: AfterExit) -> Next {
        let was_waiting = self.cancel_next_start().await;
        let id = self.container().id.clone();
        match then {
            AfterExit::Stop(reply) | AfterExit::Kill(reply) if was_waiting => answer(reply, Ok(())),
            AfterExit::Stop(reply) => answer(reply, Err(ControlError::AlreadyStopped(id))),
            AfterExit::Kill(reply) => answer(reply, Err(ControlError::NotRunning(id))),
            AfterExit::Restart(reply) => self.restart_now(reply).await,
            AfterExit::Remove(options, reply) => return self.remove(options, Some(reply)).await,
        }
        Next::Continue
    }

    async fn cancel_next_start(&mut self) -> bool {
        if self.next_start.take().is_none() {
            return false;
        }
        self.record.stopped_by_hand = true;
        self.state().status = Status::Exited;
        self.save_fact().await;
        true
    }

    async fn restart_now(&mut self, reply: Reply<Result<(), ControlError>>) {
        let started = self.start_by_hand().await;
        if started.is_ok() {
            self.event("restart", &[]);
        }
        answer(reply, started.map_err(ControlError::from));
    }

    async fn on_kill(&mut self, number: i32, reply: Reply<Result<(), ControlError>>) {
        let stop_signal = signal::parse(&self.container().config.spec.stop_signal).unwrap_or(signal::TERM);
        let ends_it = number == signal::KILL || number == stop_signal;
        if self.run.is_none() {
            if ends_it {
                self.stop_without_run(AfterExit::Kill(reply)).await;
            } else {
                answer(reply, Err(ControlError::NotRunning(self.container().id.clone())));
            }
            return;
        }
        if ends_it {
            self.record.stopped_by_hand = true;
        }
        if number != signal::KILL {
            let sent = self.live_shim().map(Clone::clone);
            let sent = match sent {
                Ok(shim) => {
                    shim.kill(number, false).await.map_err(|error| ControlError::Below(Cause::new(error)))
                }
                Err(error) => Err(error),
            };
            if sent.is_ok() {
                self.event("kill", &[("signal", number.to_string())]);
            }
            return answer(reply, sent);
        }
        self.stopping.get_or_insert_default().then.push(AfterExit::Kill(reply));
        self.kill_now().await;
    }

    /// SIGKILL, also of a frozen container.
    async fn kill_now(&mut self) {
        self.send_signal(signal::KILL).await;
        if self.container().state.status == Status::Paused
            && let Some(run) = &self.run
        {
            // Version 1's freezer holds back even SIGKILL. That the shim refuses means: it has ended.
            let _ = run.shim.resume().await;
        }
    }

    /// A container that ends in this very moment needs no signal: its exit follows.
    async fn send_signal(&mut self, number: i32) {
        let Some(run) = &self.run else { return };
        match run.shim.kill(number, false).await {
            Ok(()) => self.event("kill", &[("signal", number.to_string())]),
            Err(error) => {
                tracing::debug!(container.id = self.container().id, error = %Chain(&error), "signal was not sent");
            }
        }
    }

    async fn on_deadline(&mut self) -> Next {
        if let Some(stopping) = &mut self.stopping {
            stopping.deadline = None;
        }
        self.kill_now().await;
        Next::Continue
    }

    // ---- exit -----------------------------------------------------------------------------------------

    async fn on_exit(&mut self, exit: Result<Exit, CallError>) -> Next {
        let Some(run) = self.run.take() else { return Next::Continue };
        run.cancel.cancel();
        let exit = match exit {
            Ok(exit) => exit,
            Err(error) => {
                tracing::warn!(container.id = self.container().id, error = %Chain(&error), "shim is gone");
                stored_exit(self.container()).await
            }
        };
        wiring::unwire(&self.shared, &self.container().id).await;
        launch::end(&self.shared, &self.container().id, &run.shim).await;
        self.settle(exit).await
    }

    /// Records an exit, says so, and does what follows from it.
    pub(crate) async fn settle(&mut self, exit: Exit) -> Next {
        let ran_for = exit.at.since(self.container().state.started_at);
        let left_networks = self.container().clone();
        self.record_exit(&exit);
        let stopping = self.stopping.take();
        let policy = self.container().config.restart;
        let delay = if self.record.stopped_by_hand || stopping.is_some() {
            None
        } else {
            self.backoff.after_exit(policy, exit.code, ran_for)
        };
        if let Some(delay) = delay {
            self.next_start = Some(Instant::now() + delay);
            self.record.container.restart_count = self.backoff.restarts;
            self.state().status = Status::Restarting;
        }
        self.save_fact().await;
        tracing::info!(container.id = self.container().id, exit_code = exit.code, "exited");
        if exit.oom_killed {
            self.event("oom", &[]);
        }
        self.event(
            "die",
            &[("exitCode", exit.code.to_string()), ("execDuration", ran_for.as_secs().to_string())],
        );
        self.shared.network_events(&left_networks, "disconnect");
        let mut next = Next::Continue;
        for then in stopping.map(|stopping| stopping.then).unwrap_or_default() {
            if next == Next::Continue {
                next = self.after_exit(then).await;
            }
        }
        let idle = delay.is_none() && self.run.is_none();
        if next == Next::Continue && idle && self.container().config.auto_remove {
            next = self.remove_self().await;
        }
        next
    }

    fn record_exit(&mut self, exit: &Exit) {
        let container = &mut self.record.container;
        container.exits += 1;
        container.last_exit_code = exit.code;
        container.state.status = Status::Exited;
        container.state.pid = 0;
        container.state.exit_code = exit.code;
        container.state.oom_killed = exit.oom_killed;
        container.state.finished_at = exit.at;
        self.forget_addresses();
    }

    /// What an endpoint has only while the container runs.
    fn forget_addresses(&mut self) {
        let bare = |endpoint: &Endpoint| Endpoint {
            network_id: endpoint.network_id.clone(),
            network_name: endpoint.network_name.clone(),
            names: endpoint.names.clone(),
            config: endpoint.config.clone(),
            ..Endpoint::default()
        };
        let endpoints = self.container().endpoints.iter().map(bare).collect();
        self.record.container.endpoints = Arc::new(endpoints);
    }

    async fn after_exit(&mut self, then: AfterExit) -> Next {
        match then {
            AfterExit::Stop(reply) => {
                self.event("stop", &[]);
                answer(reply, Ok(()));
            }
            AfterExit::Kill(reply) => answer(reply, Ok(())),
            AfterExit::Restart(reply) => {
                self.event("stop", &[]);
                self.restart_now(reply).await;
            }
            AfterExit::Remove(options, reply) => return self.remove(options, Some(reply)).await,
        }
        Next::Continue
    }

    async fn on_next_start(&mut self) -> Next {
        self.next_start = None;
        if self.start().await.is_err() && self.container().config.auto_remove {
            return self.remove_self().await;
        }
        Next::Continue
    }

    // ---- removal --------------------------------------------------------------------------------------

    async fn on_remove(&mut self, options: RemoveOptions, reply: Reply<Result<(), RemoveError>>) -> Next {
        let container = self.container();
        if container.state.status == Status::Removing {
            answer(reply, Err(RemoveError::InProgress(container.id.clone())));
            return Next::Continue;
        }
        if self.run.is_none() && self.next_start.is_none() {
            return self.remove(options, Some(reply)).await;
        }
        if !options.force {
            let (name, state) = (container.name.clone(), container.state.status.as_str());
            answer(reply, Err(RemoveError::Running { name, state }));
            return Next::Continue;
        }
        let removals = self.stopping.iter().flat_map(|stopping| &stopping.then);
        if removals.into_iter().any(|then| matches!(then, AfterExit::Remove(..))) {
            answer(reply, Err(RemoveError::InProgress(container.id.clone())));
            return Next::Continue;
        }
        if self.run.is_none() {
            return self.stop_without_run(AfterExit::Remove(options, reply)).await;
        }
        self.record.stopped_by_hand = true;
        self.stopping.get_or_insert_default().then.push(AfterExit::Remove(options, reply));
        self.kill_now().await;
        Next::Continue
    }

    /// `--rm`: with its anonymous volumes.
    pub(crate) async fn remove_self(&mut self) -> Next {
        self.remove(RemoveOptions { force: true, volumes: true }, None).await
    }

    async fn remove(
        &mut self,
        options: RemoveOptions,
        reply: Option<Reply<Result<(), RemoveError>>>,
    ) -> Next {
        let before = self.container().state.status;
        self.state().status = Status::Removing;
        self.publish();
        self.clients.clear();
        let removed = self.erase(options).await;
        let next = match &removed {
            Ok(()) => {
                tracing::info!(container.id = self.container().id, "removed");
                self.shared.registry.remove(&self.container().id, &self.container().name);
                self.event("destroy", &[]);
                self.record.container.removed = true;
                self.publish();
                Next::End
            }
            Err(error) => {
                tracing::error!(container.id = self.container().id, error = %Chain(error), "removal failed");
                self.state().status = if before == Status::Removing { before } else { Status::Dead };
                self.state().error = Chain(error).to_string();
                self.publish();
                Next::Continue
            }
        };
        if let Some(reply) = reply {
            answer(reply, removed);
        }
        next
    }

    async fn erase(&mut self, options: RemoveOptions) -> Result<(), RemoveError> {
        let id = self.container().id.clone();
        let failed = |source: Cause| RemoveError::Failed { id: id.clone(), source };
        wiring::unwire(&self.shared, &id).await;
        let dir = self.container().dir.clone();
        // The record goes first: from here on there is no way back, and a daemon that dies now cleans up.
        let erased = blocking(move || Record::erase(&dir)).await;
        erased.map_err(|error| failed(Cause::new(error)))?;
        launch::clean(&self.shared, &id).await;
        self.shared.images.release(&id).await.map_err(|error| failed(Cause::new(error)))?;
        self.shared.execs.forget(&id);
        self.release_volumes(options.volumes).await;
        Ok(())
    }

    async fn release_volumes(&self, remove_anonymous: bool) {
        let (shared, container) = (self.shared.clone(), self.container().clone());
        let release = move || {
            for mount in container.mounts.iter().filter(|mount| !mount.name.is_empty()) {
                shared.volumes.release(&mount.name, &container.id);
                if remove_anonymous && mount.anonymous {
                    // Another container may use it by now: then it stays.
                    let _ = shared.volumes.remove(&mount.name);
                }
            }
        };
        blocking(release).await;
    }
}

/// The exit that a shim left when it went, or that of a container whose end nobody saw.
pub(crate) async fn stored_exit(container: &Container) -> Exit {
    let path = launch::exit_file(container);
    let read = blocking(move || rswarm_base::fsx::read_json::<Exit>(&path));
    match read.await {
        Ok(Some(exit)) => exit,
        Ok(None) | Err(_) => Exit { code: UNKNOWN_EXIT, at: Timestamp::now(), oom_killed: false },
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
