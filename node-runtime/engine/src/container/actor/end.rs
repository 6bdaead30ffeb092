//! The way down: signals and patience, the exit and what follows from it, and removal.

use std::sync::Arc;
use std::time::Duration;

use rswarm_base::{Chain, Timestamp};
use rswarm_shim::Exit;
use rswarm_shim::client::CallError;
use rswarm_shim::launch::SOCKET;
use tokio::time::Instant;

use super::{Actor, AfterExit, Next, Reply, answer};
use crate::blocking::blocking;
use crate::container::record::Record;
use crate::container::{Container, Endpoint, Status, launch, wiring};
use crate::engine::RemoveOptions;
use crate::error::{Cause, ControlError, RemoveError};
use crate::shared::Shared;
use crate::signal;

/// The code of a container whose end nobody saw.
const UNKNOWN_EXIT: i32 = 255;
/// The code of a container that was killed because its shim was.
const KILLED_EXIT: i32 = 137;
/// What its state says then.
const SHIM_KILLED: &str = "the container's shim was killed, and the container with it";

impl Actor {
    pub(super) async fn on_stop(
        &mut self,
        timeout: Option<Duration>,
        signal: Option<i32>,
        then: AfterExit,
    ) -> Next {
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
    pub(super) async fn stop_without_run(&mut self, then: AfterExit) -> Next {
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

    pub(super) async fn cancel_next_start(&mut self) -> bool {
        if self.next_start.take().is_none() {
            return false;
        }
        self.record.stopped_by_hand = true;
        self.state().status = Status::Exited;
        self.save_fact().await;
        true
    }

    pub(super) async fn restart_now(&mut self, reply: Reply<Result<(), ControlError>>) {
        let started = self.start_by_hand().await;
        if started.is_ok() {
            self.event("restart", &[]);
        }
        answer(reply, started.map_err(ControlError::from));
    }

    pub(super) async fn on_kill(&mut self, number: i32, reply: Reply<Result<(), ControlError>>) {
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
            return answer(reply, self.signal(number).await);
        }
        self.stopping.get_or_insert_default().then.push(AfterExit::Kill(reply));
        self.kill_now().await;
    }

    async fn signal(&self, number: i32) -> Result<(), ControlError> {
        self.live_shim()?.kill(number, false).await.map_err(Cause::new)?;
        self.event("kill", &[("signal", number.to_string())]);
        Ok(())
    }

    /// SIGKILL, also of a frozen container.
    pub(super) async fn kill_now(&mut self) {
        self.send_signal(signal::KILL).await;
        if self.container().state.status == Status::Paused
            && let Some(run) = &self.run
        {
            // Version 1's freezer holds back even SIGKILL. That the shim refuses means: it has ended.
            let _ = run.shim.resume().await;
        }
    }

    /// A container that ends in this very moment needs no signal: its exit follows.
    async fn send_signal(&self, number: i32) {
        if let Err(error) = self.signal(number).await {
            tracing::debug!(container.id = self.container().id, error = %Chain(&error), "signal was not sent");
        }
    }

    pub(super) async fn on_deadline(&mut self) -> Next {
        if let Some(stopping) = &mut self.stopping {
            stopping.deadline = None;
        }
        self.kill_now().await;
        Next::Continue
    }

    pub(super) async fn on_exit(&mut self, exit: Result<Exit, CallError>) -> Next {
        let Some(run) = self.run.take() else { return Next::Continue };
        run.cancel.cancel();
        let exit = match exit {
            Ok(exit) => exit,
            Err(error) => {
                tracing::warn!(container.id = self.container().id, error = %Chain(&error), "shim is gone");
                stored_exit(&self.shared, self.container()).await
            }
        };
        wiring::unwire(&self.shared, &self.container().id).await;
        launch::end(&self.shared, self.container(), &run.shim).await;
        self.settle(exit).await
    }

    /// Records an exit, says so, and does what follows from it.
    pub(crate) async fn settle(&mut self, exit: Exit) -> Next {
        let ran_for = exit.at.since(self.container().state.started_at);
        let left_networks = self.container().clone();
        self.record_exit(&exit);
        self.shared.execs.forget_unstarted(&self.container().id);
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
        let goes = delay.is_none() && self.container().config.auto_remove;
        match stopping {
            // Its removal follows: nobody reads its record again.
            _ if goes => self.publish(),
            // Who asked for the end is told when it is on disk.
            Some(_) => self.save_fact().await,
            // The shim has put it there.
            None => self.save_soon().await,
        }
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

    pub(super) fn record_exit(&mut self, exit: &Exit) {
        let container = &mut self.record.container;
        container.exits += 1;
        container.last_exit_code = exit.code;
        container.state.status = Status::Exited;
        container.state.pid = 0;
        container.state.exit_code = exit.code;
        container.state.oom_killed = exit.oom_killed;
        if exit.shim_killed {
            SHIM_KILLED.clone_into(&mut container.state.error);
        }
        container.state.finished_at = exit.at;
        self.forget_addresses();
    }

    /// What an endpoint has only while the container runs.
    pub(super) fn forget_addresses(&mut self) {
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

    pub(super) async fn after_exit(&mut self, then: AfterExit) -> Next {
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

    pub(super) async fn on_next_start(&mut self) -> Next {
        self.next_start = None;
        if self.start().await.is_err() && self.container().config.auto_remove {
            return self.remove_self().await;
        }
        Next::Continue
    }

    pub(super) async fn on_remove(
        &mut self,
        options: RemoveOptions,
        reply: Reply<Result<(), RemoveError>>,
    ) -> Next {
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

    pub(super) async fn remove(
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

    pub(super) async fn erase(&mut self, options: RemoveOptions) -> Result<(), RemoveError> {
        let _alone = self.alone().await;
        let id = self.container().id.clone();
        let failed = |source: Cause| RemoveError::Failed { id: id.clone(), source };
        wiring::unwire(&self.shared, &id).await;
        let dir = self.container().dir.clone();
        self.finish_store().await;
        // The record goes first: from here on there is no way back, and a daemon that dies now cleans up.
        let erased = blocking(move || Record::erase(&dir)).await;
        erased.map_err(|error| failed(Cause::new(error)))?;
        launch::clean(&self.shared, &id, self.shared.cgroup(self.container())).await;
        self.shared.images.release(&id).await.map_err(|error| failed(Cause::new(error)))?;
        self.shared.execs.forget(&id);
        self.release_volumes(options.volumes).await;
        Ok(())
    }

    pub(super) async fn release_volumes(&self, remove_anonymous: bool) {
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

/// The exit that a shim left when it went, or that of a container whose end nobody saw. Called before the shim's
/// files are cleaned away: a socket without a shim says that it was killed, in this very boot.
pub(crate) async fn stored_exit(shared: &Shared, container: &Container) -> Exit {
    let path = launch::exit_file(container);
    let socket = shared.state_dir(&container.id).join(SOCKET);
    let read = blocking(move || (rswarm_base::fsx::read_json::<Exit>(&path), socket.exists()));
    let at = Timestamp::now();
    match read.await {
        (Ok(Some(exit)), _) => exit,
        (Ok(None) | Err(_), true) => Exit { code: KILLED_EXIT, at, oom_killed: false, shim_killed: true },
        (Ok(None) | Err(_), false) => Exit { code: UNKNOWN_EXIT, at, oom_killed: false, shim_killed: false },
    }
}
