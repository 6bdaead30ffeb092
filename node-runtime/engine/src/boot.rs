//! Finds everything again after a daemon restart: containers that live in their shims, exits that happened
//! meanwhile, and what a crash left half made.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use rswarm_base::Chain;
use rswarm_shim::client::{ConnectError, Shim};
use rswarm_shim::{Exit, ShimState};
use tokio::sync::oneshot;

use crate::blocking::blocking;
use crate::container::actor::{self, Actor, Next};
use crate::container::record::{Loaded, Record};
use crate::container::{Container, Request, Status, launch, restart, wiring};
use crate::error::OpenError;
use crate::registry::Handle;
use crate::shared::Shared;

/// Containers that are found again at one time: each costs a connection and a few netlink calls.
const AT_ONCE: usize = 16;
/// How long the daemon's start waits for a shim's word: one that is stopped, say, holds up its own container only.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a container waits at boot for the one whose namespace it shares.
const TARGET_DEADLINE: Duration = Duration::from_secs(30);

/// What became of a container while no daemon watched.
enum Found {
    /// It lives.
    Alive(Shim),
    /// It ran when the last daemon went, and has exited.
    Exited(Exit),
    /// It did not run.
    Still,
}

/// Restores all containers and removes what belongs to none. On return all are visible.
pub(crate) async fn restore(shared: &Arc<Shared>) -> Result<(), OpenError> {
    let dir = shared.containers_dir();
    let load = blocking(move || Record::load_all(&dir));
    let Loaded { records, damaged } = load.await?;
    let ids = records.iter().map(|record| record.container.id.clone());
    let known: BTreeSet<String> = ids.chain(damaged).collect();
    remove_strays(shared, &known).await;
    let mut restored =
        stream::iter(records).map(|record| restore_one(shared, record)).buffer_unordered(AT_ONCE);
    let mut later = Vec::new();
    while let Some(result) = restored.next().await {
        later.extend(result);
    }
    for (handle, target) in later {
        shared.scope.spawn(start_after(shared.clone(), handle, target));
    }
    if let Err(error) = shared.networks.settle().await {
        tracing::warn!(error = %Chain(&error), "published ports of the last daemon may stay behind");
    }
    Ok(())
}

/// Starts a container that shares another one's namespace, once that one runs.
async fn start_after(shared: Arc<Shared>, handle: Handle, target: String) {
    let runs = async {
        let mut state = shared.registry.find(&target).ok()?.state;
        state.wait_for(|container| container.state.status.is_live()).await.ok().map(drop)
    };
    // Started even so: the failure then says why.
    let _ = tokio::time::timeout(TARGET_DEADLINE, runs).await;
    match handle.ask(Request::Start).await {
        Ok(Ok(())) => {}
        // The actor has said it.
        Ok(Err(_)) => {}
        Err(error) => tracing::debug!(container.id = &*handle.id, %error, "was removed before its start"),
    }
}

/// The container whose namespace this one shares.
fn target(container: &Container) -> Option<String> {
    let spec = &container.config.spec;
    let modes = [&container.config.network_mode, &spec.pid_mode, &spec.ipc_mode];
    modes.into_iter().find_map(|mode| mode.strip_prefix("container:")).map(str::to_owned)
}

/// Gives back the container, and the one that it has to wait for, when it is to be started later.
async fn restore_one(shared: &Arc<Shared>, record: Record) -> Option<(Handle, String)> {
    let container = &record.container;
    let id = container.id.clone();
    for mount in container.mounts.iter().filter(|mount| !mount.name.is_empty()) {
        shared.volumes.claim(&mount.name, &id);
    }
    match shared.registry.reserve(&container.name, &id) {
        Ok(reservation) => drop(reservation.keep()),
        Err(error) => {
            // A rename that was cut short cannot lead here: the record has one name. A disk edited by hand can.
            tracing::error!(container.id = id, %error, "a container comes back without its name");
        }
    }
    let (actor, handle) = Actor::new(shared.clone(), record);
    shared.registry.insert(handle.clone());
    let why = match tokio::time::timeout(PATIENCE, ask(shared, &id)).await {
        Ok(Ok(answer)) => return resume(shared, actor, handle, answer).await,
        Ok(Err(error)) => Chain(&error).to_string(),
        Err(_) => "it does not answer".to_owned(),
    };
    tracing::error!(container.id = id, why, "a container is out of reach until its shim can be talked to");
    shared.scope.spawn(resume_later(shared.clone(), actor, handle));
    None
}

/// Asks until there is an answer. Until then the container is as its record says, and requests to it wait.
async fn resume_later(shared: Arc<Shared>, actor: Actor, handle: Handle) {
    let answer = loop {
        match ask(&shared, &handle.id).await {
            Ok(answer) => break answer,
            Err(_) => tokio::time::sleep(PATIENCE).await,
        }
    };
    tracing::info!(container.id = &*handle.id, "a container is within reach again");
    if let Some((handle, target)) = resume(&shared, actor, handle, answer).await {
        start_after(shared, handle, target).await;
    }
}

/// A shim and what it says of its container; `None` when there is none.
async fn ask(shared: &Shared, id: &str) -> Result<Option<(Shim, ShimState)>, ConnectError> {
    let shim = match Shim::connect(&shared.state_dir(id)).await {
        Ok(shim) => shim,
        Err(ConnectError::Gone { .. }) => return Ok(None),
        Err(error @ (ConnectError::Version { .. } | ConnectError::Io { .. })) => return Err(error),
    };
    Ok(shim.state().await.ok().map(|state| (shim, state)))
}

/// Has the actor take up what there is; as [`restore_one`].
async fn resume(
    shared: &Arc<Shared>,
    mut actor: Actor,
    handle: Handle,
    answer: Option<(Shim, ShimState)>,
) -> Option<(Handle, String)> {
    let found = find(shared, actor.record_mut(), answer).await;
    let record = actor.record_mut();
    let starts = matches!(found, Found::Still) && starts_at_boot(record);
    let waits_for = target(&record.container).filter(|_| starts);
    match found {
        Found::Alive(shim) => actor.adopt(shim),
        Found::Exited(exit) => {
            if actor.settle(exit).await == Next::End {
                return None;
            }
        }
        Found::Still if starts && waits_for.is_none() => actor.start_at_boot(),
        Found::Still => actor.rest(),
    }
    if actor.is_leftover() && actor.remove_self().await == Next::End {
        return None;
    }
    shared.scope.spawn(actor.run());
    waits_for.map(|target| (handle, target))
}

async fn find(shared: &Shared, record: &mut Record, answer: Option<(Shim, ShimState)>) -> Found {
    let id = record.container.id.clone();
    let ran = record.container.state.status.is_live();
    if let Some((_, ShimState::Running { .. } | ShimState::Stopped(_))) = answer {
        // The last daemon may have gone between the start and its record of it.
        record.started_by_hand = true;
    }
    match answer {
        Some((shim, ShimState::Running { pid, started_at, paused, log_dropped: _ })) => {
            let state = &mut record.container.state;
            state.status = if paused { Status::Paused } else { Status::Running };
            if state.started_at != started_at {
                state.exit_code = 0;
                state.error.clear();
                state.health = None;
            }
            (state.pid, state.started_at) = (pid, started_at);
            if let Err(error) = wiring::adopt(shared, &record.container).await {
                tracing::warn!(container.id = id, error = %Chain(&error), "networking was not taken over");
            }
            tracing::info!(container.id = id, pid, "adopted");
            Found::Alive(shim)
        }
        Some((shim, ShimState::Created { .. })) => {
            tracing::info!(container.id = id, "a start that was cut short is taken back");
            launch::end(shared, &record.container, &shim).await;
            Found::Still
        }
        Some((shim, ShimState::Stopped(exit))) => {
            launch::end(shared, &record.container, &shim).await;
            Found::Exited(exit)
        }
        None => gone(shared, &record.container, ran).await,
    }
}

/// No shim: if the container ran by its record, its exit is on disk or unknown.
async fn gone(shared: &Shared, container: &Container, ran: bool) -> Found {
    let exit = if ran { Some(actor::stored_exit(shared, container).await) } else { None };
    launch::clean(shared, &container.id, shared.cgroup(container)).await;
    exit.map_or(Found::Still, Found::Exited)
}

fn starts_at_boot(record: &Record) -> bool {
    let container = &record.container;
    restart::at_boot(
        container.config.restart,
        container.state.status == Status::Restarting,
        record.stopped_by_hand,
        record.started_by_hand,
        container.state.exit_code,
        container.restart_count,
    )
}

/// Layers and shims whose container has no record: its creation was cut short, or its removal.
async fn remove_strays(shared: &Arc<Shared>, known: &BTreeSet<String>) {
    for key in shared.images.snapshot_keys() {
        if !known.contains(&key)
            && let Err(error) = shared.images.release(&key).await
        {
            tracing::warn!(key, error = %Chain(&error), "a writable layer that nobody owns stays behind");
        }
    }
    let Ok(entries) = std::fs::read_dir(shared.config.exec_root.join("containers")) else { return };
    for entry in entries.flatten() {
        let id = entry.file_name().to_string_lossy().into_owned();
        if known.contains(&id) {
            continue;
        }
        tracing::info!(container.id = id, "a container without a record is ended");
        let (done, ended) = oneshot::channel::<()>();
        let shared_too = shared.clone();
        shared.scope.spawn(async move {
            end_stray(shared_too, id).await;
            drop(done);
        });
        // One whose shim does not answer ends when it does.
        let _ = tokio::time::timeout(PATIENCE, ended).await;
    }
}

async fn end_stray(shared: Arc<Shared>, id: String) {
    let cgroup = shared.default_cgroup(&id);
    match Shim::connect(&shared.state_dir(&id)).await {
        Ok(shim) => {
            // It may have ended by itself.
            let _ = shim.kill(crate::signal::KILL, true).await;
            let _ = shim.wait().await;
            launch::end_by_id(&shared, &id, cgroup, &shim).await;
        }
        Err(_) => launch::clean(&shared, &id, cgroup).await,
    }
}
