//! Brings a container up, from its layers to its running program, and takes down what is left of one.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use rswarm_base::{Chain, fsx};
use rswarm_image::Layers;
use rswarm_proto::model::container::ContainerSpec;
use rswarm_runtime::{Rootfs, cgroup::Cgroup};
use rswarm_shim::client::{self, AttachStream, CallError, LaunchError, Shim, Started};
use rswarm_shim::{Launch, RuntimeBinary};
use tokio::sync::oneshot;

use super::record::Record;
use super::wiring::{self, Wired};
use super::{Container, MountKind, inject, logfile, propagation, shm};
use crate::blocking::blocking;
use crate::config::EngineConfig;
use crate::error::{Cause, FileError, RuntimeWords, StartError};
use crate::merge::clean_path;
use crate::shared::Shared;
use crate::spec::{self, Input, Namespace, Security, VolumeSource};
use crate::{files, host, links, merged, signal};

/// The built-in runtime's names; `runc` is what Docker's clients call the default.
const BUILT_IN: [&str; 4] = ["", "rswarm", "runc", "io.containerd.runc.v2"];

/// What a container stands on: its layers and its namespace.
pub(crate) struct Place {
    layers: Layers,
    pub wired: Wired,
}

/// Makes its place. What was made before a failure goes with the value, or serves the next start.
pub(crate) async fn place(shared: &Shared, record: &Record) -> Result<Place, StartError> {
    let container = &record.container;
    if container.config.files.len() != record.files {
        return Err(StartError::Conflict(format!(
            "container {} was given files that were held in memory and went with the last daemon: create it anew",
            container.id
        )));
    }
    let layers = shared.images.prepare(&container.id, &container.image_id);
    let (layers, wired) = tokio::join!(layers, wiring::wire(shared, container));
    Ok(Place { layers: layers.map_err(Cause::new)?, wired: wired? })
}

/// Whether its interfaces must be there before it is made: somebody's words for them are kept then, or programs run
/// that may look.
pub(crate) fn needs_interfaces(shared: &Shared, container: &Container) -> bool {
    let spec = &container.config.spec;
    // One that there is not is refused when the shim is told of it.
    let is_built_in = matches!(runtime(&shared.config, &spec.runtime), Ok(None) | Err(_));
    !is_built_in || spec.sysctls.keys().any(|key| key.starts_with("net"))
}

/// Makes the container on its place: everything but letting its program run. After a failure nothing of it is left.
pub(crate) async fn create(
    shared: &Shared,
    container: &Container,
    place: &Place,
) -> Result<Shim, StartError> {
    let created = launch(shared, container, &place.layers, &place.wired).await;
    if created.is_err() {
        clean(shared, &container.id, shared.cgroup(container)).await;
    }
    created
}

async fn launch(
    shared: &Shared,
    container: &Container,
    layers: &Layers,
    wired: &Wired,
) -> Result<Shim, StartError> {
    let launch = prepare(shared, container, layers, wired).await?;
    client::launch(&shared.config.exe, &launch)
        .await
        .map_err(|error| launch_failure(error, LaunchError::exit_code))
}

/// Lets a created container's program run. Clients that wait for its streams get them first, so that they miss
/// nothing; its files are put in before.
pub(crate) async fn start(
    container: &Container,
    shim: &Shim,
    clients: Vec<oneshot::Sender<AttachStream>>,
) -> Result<Started, StartError> {
    for client in clients.into_iter().filter(|client| !client.is_closed()) {
        let stream = shim.attach().await.map_err(Cause::new)?;
        // One that has gone away meanwhile is no failure.
        let _ = client.send(stream);
    }
    if !container.config.files.is_empty() {
        put_files(container, shim).await?;
    }
    shim.start().await.map_err(|error| launch_failure(error, CallError::exit_code))
}

async fn put_files(container: &Container, shim: &Shim) -> Result<(), StartError> {
    let state = shim.state().await.map_err(Cause::new)?;
    let rswarm_shim::ShimState::Created { pid } = state else {
        return Err(StartError::Conflict(format!("container {} ended before its start", container.id)));
    };
    let config = container.config.clone();
    let put = blocking(move || inject::inject(pid, &config.files));
    let path = Path::new("secrets and configs");
    Ok(put.await.map_err(FileError::write(path))?)
}

/// The runtime's own words, complete, and the exit code that they mean.
fn launch_failure<E>(error: E, exit_code: impl FnOnce(&E) -> i32) -> StartError
where
    E: rswarm_base::Classify + Send + Sync + 'static,
{
    let (exit_code, words) = (exit_code(&error), Chain(&error).to_string());
    // moby looks users up itself, before it asks a runtime.
    if words.starts_with("unable to find ") {
        return StartError::Invalid(words);
    }
    StartError::Launch { exit_code, source: Cause::new(RuntimeWords::of(&error)) }
}

/// Writes the bundle and says what the shim shall do.
async fn prepare(
    shared: &Shared,
    container: &Container,
    layers: &Layers,
    wired: &Wired,
) -> Result<Launch, StartError> {
    let config = &container.config;
    let state_dir = shared.state_dir(&container.id);
    let rootfs = state_dir.join("rootfs");
    let spec = generate(shared, container, wired, &rootfs).await?;
    let mut log = logfile::parse(&config.log, &log_path(container)).map_err(StartError::Invalid)?;
    if let Some(log) = &mut log {
        log.attrs = logfile::attributes(container).map_err(StartError::Invalid)?;
    }
    let launch = Launch {
        id: container.id.clone(),
        state_dir,
        exit_file: exit_file(container),
        bundle: container.dir.clone(),
        rootfs: Rootfs::Overlay {
            lower: layers.lower.clone(),
            upper: layers.upper.clone(),
            work: layers.work.clone(),
        },
        // Nobody named is root, who has a home and groups as well.
        user: Some(if config.spec.user.is_empty() { "0".to_owned() } else { config.spec.user.clone() }),
        groups: config.spec.groups.clone(),
        log,
        tty: config.spec.tty,
        open_stdin: config.spec.open_stdin,
        stdin_once: config.spec.stdin_once,
        console_size: config.console_size,
        detach_mounts: vec![netns_dir(&shared.config)],
        runtime: runtime(&shared.config, &config.spec.runtime).map_err(StartError::Invalid)?,
    };
    let (files, workdir, dir) = (config.clone(), clean_path(&config.spec.workdir), container.dir.clone());
    let (layers, etc) = (layers.clone(), wired.etc.clone());
    let write = move || {
        // They are mounted, whoever fills them, and whenever.
        files::make(&etc)?;
        fs::create_dir_all(&rootfs).map_err(FileError::write(&rootfs))?;
        merged::ensure_directory(&layers.upper, &layers.lower, &workdir)
            .map_err(FileError::write(Path::new(&workdir)))?;
        inject::make_places(&layers.upper, &layers.lower, &files.files)
            .map_err(FileError::write(&layers.upper))?;
        let path = dir.join("config.json");
        let json = serde_json::to_vec(&spec).map_err(|error| FileError::write(&path)(error.into()))?;
        fs::write(&path, json).map_err(FileError::write(&path))
    };
    blocking(write).await?;
    Ok(launch)
}

async fn generate(
    shared: &Shared,
    container: &Container,
    wired: &Wired,
    rootfs: &Path,
) -> Result<oci_spec::runtime::Spec, StartError> {
    let config = &container.config.spec;
    let security =
        Security::parse(config, Security::of_daemon(&shared.config)).map_err(StartError::Invalid)?;
    let devices = if config.privileged {
        host::all_devices()
    } else {
        host::devices(&config.devices).map_err(StartError::Invalid)?
    };
    let cgroup = shared.cgroup(container);
    let shm = shm_of(shared, container).await?;
    let propagation =
        propagation::of_root(&container.mounts, &shared.config.data_root).map_err(Cause::new)?;
    let input = Input {
        container,
        host: &shared.host,
        rootfs,
        etc: &wired.etc,
        cgroup: &cgroup,
        network: wired.namespace.clone(),
        pid: joined(shared, &config.pid_mode, "pid")?,
        ipc: joined(shared, &config.ipc_mode, "ipc")?,
        volumes: &volumes(shared, container)?,
        devices: &devices,
        numbers: &host::block_device,
        shm: shm.as_deref(),
        security: &security,
        init: if wants_init(shared, config) { shared.config.init_path.as_deref() } else { None },
        linked: &links::environment(&shared.registry, container),
        ulimits: &shared.config.ulimits,
    };
    let mut spec = spec::generate(&input).map_err(StartError::Invalid)?;
    if let (Some(linux), Some(propagation)) = (spec.linux_mut(), propagation) {
        linux.set_rootfs_propagation(Some(propagation.to_owned()));
    }
    Ok(spec)
}

/// The `/dev/shm` that it shares with others: its own, or that of the container whose IPC namespace it joins.
async fn shm_of(shared: &Shared, container: &Container) -> Result<Option<PathBuf>, StartError> {
    let mode = &container.config.spec.ipc_mode;
    if mode == "shareable" {
        let (state_dir, container) = (shared.state_dir(&container.id), container.clone());
        let path = state_dir.join("shm");
        let mounted = blocking(move || shm::mount(&state_dir, &container)).await;
        return Ok(Some(mounted.map_err(FileError::write(&path))?));
    }
    let Some(name) = mode.strip_prefix("container:") else { return Ok(None) };
    let donor = shared.running(name, "IPC")?;
    let shm = shm::shared(&shared.state_dir(&donor.id));
    shm.map(Some).ok_or_else(|| {
        // moby: getIPCContainer
        StartError::Invalid(format!(
            "failed to join IPC namespace: container {}: non-shareable IPC (hint: use IpcMode:shareable for the donor container)",
            donor.id
        ))
    })
}

/// `host`, `container:X`, or one of its own.
fn joined(shared: &Shared, mode: &str, what: &str) -> Result<Namespace, StartError> {
    match mode.strip_prefix("container:") {
        Some(name) => {
            let other = shared.running(name, what)?;
            Ok(Namespace::Path(format!("/proc/{}/ns/{what}", other.state.pid).into()))
        }
        None if mode == "host" => Ok(Namespace::Host),
        None => Ok(Namespace::Own),
    }
}

fn volumes(shared: &Shared, container: &Container) -> Result<BTreeMap<String, VolumeSource>, StartError> {
    let volumes = container.mounts.iter().filter(|mount| mount.kind == MountKind::Volume);
    volumes.map(|mount| Ok((mount.name.clone(), shared.volumes.get(&mount.name)?.source()))).collect()
}

/// Whether the container gets an init as its first process.
fn wants_init(shared: &Shared, spec: &ContainerSpec) -> bool {
    spec.init.unwrap_or(shared.config.init)
}

/// Whether the init that the container gets is there.
///
/// # Errors
/// When none is configured, in one sentence.
pub(crate) fn check_init(shared: &Shared, spec: &ContainerSpec) -> Result<(), String> {
    if wants_init(shared, spec) && shared.config.init_path.is_none() {
        return Err("no init program is configured: start the daemon with `--init-path`".to_owned());
    }
    Ok(())
}

/// Whether a runtime's name is one of the built-in runtime's. The empty name is.
#[must_use]
pub fn is_builtin_runtime(name: &str) -> bool {
    BUILT_IN.contains(&name)
}

/// The runtime of that name; `None` is the built-in one.
///
/// # Errors
/// When there is none, in Docker's words.
pub(crate) fn runtime(config: &EngineConfig, name: &str) -> Result<Option<RuntimeBinary>, String> {
    let name = if name.is_empty() { &config.default_runtime } else { name };
    match config.runtimes.get(name) {
        Some(path) => Ok(Some(RuntimeBinary { path: path.clone(), args: Vec::new() })),
        None if BUILT_IN.contains(&name) => Ok(None),
        None => Err(format!("unknown or invalid runtime name: {name}")),
    }
}

/// Where its log is, when it keeps one.
pub(crate) fn log_path(container: &Container) -> PathBuf {
    logfile::path(&container.dir, &container.id, &container.config.log)
}

/// `<dir>/exit.json`.
pub(crate) fn exit_file(container: &Container) -> PathBuf {
    container.dir.join("exit.json")
}

/// Where overlay sandboxes are pinned.
pub(crate) fn netns_dir(config: &EngineConfig) -> PathBuf {
    config.exec_root.join("netns")
}

/// Ends a created container, or the shim of one that has exited.
pub(crate) async fn end(shared: &Shared, container: &Container, shim: &Shim) {
    end_by_id(shared, &container.id, shared.cgroup(container), shim).await;
}

/// The same for a container that has no record.
pub(crate) async fn end_by_id(shared: &Shared, id: &str, cgroup: String, shim: &Shim) {
    match shim.shutdown().await {
        Ok(()) | Err(CallError::Gone) => {}
        Err(error) => {
            tracing::warn!(container.id = id, error = %Chain(&error), "shim did not end by itself");
            // Its container goes first; a shim without one ends.
            let _ = shim.kill(signal::KILL, true).await;
            let _ = shim.wait().await;
            let _ = shim.shutdown().await;
        }
    }
    clean(shared, id, cgroup).await;
}

/// Removes what a container that does not live may have left: its processes, its cgroup, its shim's files.
pub(crate) async fn clean(shared: &Shared, id: &str, cgroup: String) {
    let state_dir = shared.state_dir(id);
    let work = move || {
        remove_cgroup(&cgroup)?;
        shm::unmount(&state_dir).map_err(|error| error.to_string())?;
        fsx::remove_all(&state_dir).map_err(|error| error.to_string())
    };
    if let Err(error) = blocking(work).await {
        tracing::warn!(container.id = id, error, "something of a container that ended stays behind");
    }
}

/// Kills what is in a cgroup and removes it from every hierarchy. Blocks.
pub(crate) fn remove_cgroup(path: &str) -> Result<(), String> {
    let cgroup = Cgroup::at(Path::new(path)).map_err(|error| error.to_string())?;
    cgroup.kill().and_then(|()| cgroup.remove()).map_err(|error| error.to_string())
}
