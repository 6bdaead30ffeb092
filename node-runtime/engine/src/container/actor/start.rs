//! The way up: from a request or a policy to a running program and its health check.

use std::sync::Arc;

use rswarm_base::Chain;
use rswarm_shim::client::Shim;
use tokio::sync::oneshot;

use super::{Actor, Request, Run};
use crate::container::health::{self, Check};
use crate::container::launch::{self, Place};
use crate::container::restart::Backoff;
use crate::container::{Container, Health, Probe, Status, wiring};
use crate::error::StartError;

impl Actor {
    pub(super) async fn start_by_hand(&mut self) -> Result<(), StartError> {
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
    pub(super) async fn start(&mut self) -> Result<(), StartError> {
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
            // Whoever waits for its streams need not: there will be none.
            self.clients.clear();
            self.save_fact().await;
        }
        started
    }

    pub(super) async fn bring_up(&mut self) -> Result<(), StartError> {
        let _alone = self.alone().await;
        let place = launch::place(&self.shared, &self.record).await?;
        let shim = self.make(&place).await?;
        let clients = std::mem::take(&mut self.clients);
        let started = match self.stored().await {
            Ok(()) => launch::start(self.container(), &shim, clients).await,
            Err(error) => Err(error.into()),
        };
        let started = match started {
            Ok(started) => started,
            Err(error) => {
                launch::end(&self.shared, self.container(), &shim).await;
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
        self.save_soon().await;
        tracing::info!(container.id = self.container().id, pid = started.pid, "running");
        self.shared.network_events(self.container(), "connect");
        self.event("start", &[]);
        self.tell_linked();
        self.watch_run(shim);
        Ok(())
    }

    /// Makes the container, and beside it what is in its network namespace. After a failure nothing of both is left.
    async fn make(&mut self, place: &Place) -> Result<Shim, StartError> {
        let (shared, container) = (self.shared.clone(), self.container().clone());
        let create = launch::create(&shared, &container, place);
        let (filled, created) = if launch::needs_interfaces(&shared, &container) {
            self.fill(place).await?;
            (Ok(()), create.await)
        } else {
            tokio::join!(self.fill(place), create)
        };
        match (filled, created) {
            (Ok(()), Ok(shim)) => Ok(shim),
            (Ok(()), Err(error)) => {
                wiring::unwire(&shared, &container.id).await;
                Err(error)
            }
            (Err(error), Ok(shim)) => {
                launch::end(&shared, &container, &shim).await;
                Err(error)
            }
            (Err(error), Err(_)) => Err(error),
        }
    }

    /// On disk before the program runs: a daemon that dies now finds the endpoints of what it adopts.
    async fn fill(&mut self, place: &Place) -> Result<(), StartError> {
        let endpoints = wiring::fill(&self.shared, self.container(), &place.wired).await?;
        if *self.container().endpoints != endpoints {
            self.record.container.endpoints = Arc::new(endpoints);
            self.save_soon().await;
        }
        Ok(())
    }

    /// Tells those that link to this container that it may have other addresses.
    fn tell_linked(&self) {
        let own = Arc::new(self.container().clone());
        for parent in self.shared.registry.linked_to(&own.id) {
            let own = own.clone();
            // One that is busy hears it when it is not: nobody waits for it.
            self.shared.scope.spawn(async move { drop(parent.requests.send(Request::Linked(own)).await) });
        }
    }

    /// Takes note that a linked container came up.
    pub(super) async fn on_linked(&mut self, target: &Container) {
        if self.run.is_none() {
            return;
        }
        if let Err(error) = wiring::relink(&self.shared, self.container(), target).await {
            let id = &self.container().id;
            tracing::warn!(container.id = id, error = %Chain(&error), "a linked container is not found by its new address");
        }
    }

    /// Waits for the shim's exit from now on, and probes the container's health.
    pub(super) fn watch_run(&mut self, shim: Shim) {
        let cancel = self.shared.scope.token().child_token();
        let health = self.check();
        if let Some(check) = health.clone() {
            let (state, own) = (self.published.subscribe(), self.own.clone());
            let probes =
                health::probe_loop(self.shared.clone(), check, shim.clone(), state, own, cancel.clone());
            self.shared.scope.spawn(probes);
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

    pub(super) fn check(&self) -> Option<Check> {
        let container = self.container();
        container.config.spec.healthcheck.as_ref()?;
        let shell = self.shared.images.get(&container.image_id).map(|image| image.config.shell);
        Check::of(&container.config.spec, &shell.unwrap_or_default())
    }

    pub(super) async fn on_probe(&mut self, probe: Probe) {
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
}
