//! The engine's handle: every operation that the HTTP API and the worker use.

use std::sync::Arc;
use std::time::Duration;

use rswarm_base::{Chain, Scope};
use rswarm_image::{ImageStore, ImageUser, Removed, StoreConfig};
use rswarm_network::{Networks, Overlay, OverlayError};
use rswarm_proto::model::container::ResourceLimits;
use rswarm_shim::client::Shim;
use tokio::sync::oneshot;

use crate::blocking::blocking;
use crate::config::{ContainerConfig, EndpointConfig, EngineConfig, RestartPolicy};
use crate::container::{Container, Request, Status, launch};
use crate::error::{
    Cause, ControlError, CreateError, ExecError, FileError, LogsError, LookupError, NetworkError, OpenError,
    RemoveError, StartError, VolumeError,
};
use crate::events::{Event, Events, Subscription};
use crate::exec::{self, Exec, ExecConfig, ExecStream, Execs};
use crate::logs::{self, LogOptions, LogStream};
use crate::network::{LocalNetworks, Network, NetworkCreate, NetworkMember};
use crate::registry::{Handle, Registry};
use crate::shared::Shared;
use crate::volume::{Volume, VolumeCreate, Volumes};
use crate::{boot, create, host, names, signal};

/// How long containers' actors may take to finish what they are at when the daemon stops.
const CLOSE_DEADLINE: Duration = Duration::from_secs(10);

/// Containers, networks, volumes and images of one daemon. Cloning gives another handle.
#[derive(Debug, Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

/// A container that was created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    /// Its identifier.
    pub id: String,
    /// What was asked for and cannot be had, but does not matter enough to fail.
    pub warnings: Vec<String>,
}

/// What a `wait` waits for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WaitCondition {
    /// Until it does not run; at once if so already.
    #[default]
    NotRunning,
    /// Until its next exit, even if it does not run now.
    NextExit,
    /// Until it is removed.
    Removed,
}

/// How a wait ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waited {
    /// The exit code of the last run.
    pub exit_code: i32,
    /// Why a removal failed.
    pub error: Option<String>,
}

/// How to remove a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RemoveOptions {
    /// Kill it first when it runs.
    pub force: bool,
    /// Remove its anonymous volumes too.
    pub volumes: bool,
}

/// Changes to a container that exists.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ContainerUpdate {
    /// Limits that are not zero replace the container's.
    pub resources: ResourceLimits,
    /// The restart policy, when it changes.
    pub restart: Option<RestartPolicy>,
}

/// Figures about the engine and its machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EngineInfo {
    /// All containers.
    pub containers: usize,
    /// Of these running.
    pub running: usize,
    /// Of these paused.
    pub paused: usize,
    /// Of these neither.
    pub stopped: usize,
    /// Images.
    pub images: usize,
    /// The kernel's release.
    pub kernel_version: String,
    /// The distribution's name.
    pub operating_system: String,
    /// The machine's hardware name, such as `x86_64`.
    pub architecture: String,
    /// Processors.
    pub cpus: usize,
    /// Memory in bytes.
    pub memory: u64,
    /// `1` or `2`.
    pub cgroup_version: &'static str,
}

impl Engine {
    /// Opens the data directory (which the caller has locked), adopts the containers that live, and starts those
    /// whose policy says so.
    ///
    /// # Errors
    /// When what is stored cannot be read, or networking cannot be set up.
    pub async fn open(config: EngineConfig, scope: Scope) -> Result<Engine, OpenError> {
        for dir in [&config.data_root, &config.exec_root.join("containers")] {
            std::fs::create_dir_all(dir).map_err(FileError::write(dir))?;
        }
        let images = open_images(&config).await?;
        let networking = rswarm_network::Config {
            daemon_id: config.daemon_id.clone(),
            netns_dir: launch::netns_dir(&config),
            default_bridge: config.default_bridge,
            bridge_pools: config.bridge_pools.clone(),
        };
        let networks = Networks::open(networking, scope.child("networks")).await.map_err(Cause::new)?;
        let path = config.data_root.join("networks.json");
        let local = LocalNetworks::open(path, networks.clone(), config.default_bridge).await?;
        let volumes = config.data_root.join("volumes");
        let volumes = blocking(|| Volumes::open(volumes)).await?;
        let shared = Arc::new(Shared {
            host: host::facts(),
            images,
            networks,
            local,
            volumes,
            registry: Registry::default(),
            execs: Execs::default(),
            events: Events::new(),
            scope: scope.child("containers"),
            config,
        });
        boot::restore(&shared).await?;
        Ok(Engine { shared })
    }

    /// Lets go of all containers, which go on in their shims. When none lives and no cluster network is
    /// held, the kernel objects go too: an engine that does nothing leaves nothing.
    pub async fn close(&self) {
        self.shared.scope.shutdown(CLOSE_DEADLINE).await;
        let lives = self.list().iter().any(|container| container.state.status.is_live());
        let holds_overlay = self.shared.networks.overlays().await.is_ok_and(|overlays| !overlays.is_empty());
        if lives || holds_overlay {
            return;
        }
        if let Err(error) = self.shared.networks.close_all().await {
            tracing::warn!(error = %Chain(&error), "network objects are left");
        }
        let parent = self.shared.config.cgroup_parent.clone();
        if parent == EngineConfig::own_cgroup(&self.shared.config.daemon_id)
            && let Err(error) = blocking(move || launch::remove_cgroup(&parent)).await
        {
            tracing::warn!(error, "the parent cgroup is left");
        }
    }

    /// The images.
    #[must_use]
    pub fn images(&self) -> &ImageStore {
        &self.shared.images
    }

    /// The kernel's side of networking.
    #[must_use]
    pub fn networks(&self) -> &Networks {
        &self.shared.networks
    }

    /// How the engine was set up.
    #[must_use]
    pub fn config(&self) -> &EngineConfig {
        &self.shared.config
    }

    /// Figures for `docker info`.
    #[must_use]
    pub fn info(&self) -> EngineInfo {
        let containers = self.list();
        let count = |wanted: fn(Status) -> bool| containers.iter().filter(|c| wanted(c.state.status)).count();
        let running = count(|status| matches!(status, Status::Running | Status::Restarting));
        let paused = count(|status| status == Status::Paused);
        let machine = rustix::system::uname();
        EngineInfo {
            containers: containers.len(),
            running,
            paused,
            stopped: containers.len() - running - paused,
            images: self.shared.images.list().len(),
            kernel_version: machine.release().to_string_lossy().into_owned(),
            operating_system: host::operating_system(),
            architecture: machine.machine().to_string_lossy().into_owned(),
            cpus: self.shared.host.cpus,
            memory: host::memory(),
            cgroup_version: if self.shared.host.cgroup_v2 { "2" } else { "1" },
        }
    }

    // ---- containers: life ---------------------------------------------------------------------------

    /// Creates a container. `name` without a leading slash; `None` makes one up. On return it is durable.
    ///
    /// # Errors
    /// When the configuration is wrong, or the name, image or a network cannot be had.
    pub async fn create(&self, name: Option<&str>, config: ContainerConfig) -> Result<Created, CreateError> {
        // In a task of its own: a caller that goes away leaves nothing half made.
        let (shared, name) = (self.shared.clone(), name.map(str::to_owned));
        self.detached(async move { create::create(&shared, name.as_deref(), config).await }).await
    }

    /// Starts a container. On return its program runs.
    ///
    /// # Errors
    /// When it runs already or cannot be started; then everything is undone.
    pub async fn start(&self, reference: &str) -> Result<(), StartError> {
        self.find(reference)?.ask(Request::Start).await?
    }

    /// Stops a container: its stop signal (or `signal`), a wait of `timeout` (or the container's own;
    /// `Duration::MAX` waits without end), then SIGKILL. A caller that goes away cancels nothing.
    ///
    /// # Errors
    /// When it does not run, or the signal is unknown.
    pub async fn stop(
        &self,
        reference: &str,
        timeout: Option<Duration>,
        signal: Option<&str>,
    ) -> Result<(), ControlError> {
        let (handle, signal) = (self.find(reference)?, parse_signal(signal)?);
        handle.ask(|reply| Request::Stop { timeout, signal, reply }).await?
    }

    /// [`Engine::stop`] if it runs, then [`Engine::start`].
    ///
    /// # Errors
    /// Those of both.
    pub async fn restart(
        &self,
        reference: &str,
        timeout: Option<Duration>,
        signal: Option<&str>,
    ) -> Result<(), ControlError> {
        let (handle, signal) = (self.find(reference)?, parse_signal(signal)?);
        handle.ask(|reply| Request::Restart { timeout, signal, reply }).await?
    }

    /// Sends a signal: a name with or without `SIG`, or a number; the empty text is SIGKILL.
    ///
    /// # Errors
    /// When it does not run, or the signal is unknown.
    pub async fn kill(&self, reference: &str, signal: &str) -> Result<(), ControlError> {
        let handle = self.find(reference)?;
        let signal = parse_signal(Some(signal).filter(|signal| !signal.is_empty()))?.unwrap_or(signal::KILL);
        handle.ask(|reply| Request::Kill { signal, reply }).await?
    }

    /// Freezes a container.
    ///
    /// # Errors
    /// When it does not run or is frozen already.
    pub async fn pause(&self, reference: &str) -> Result<(), ControlError> {
        self.find(reference)?.ask(Request::Pause).await?
    }

    /// Thaws a container.
    ///
    /// # Errors
    /// When it is not frozen.
    pub async fn unpause(&self, reference: &str) -> Result<(), ControlError> {
        self.find(reference)?.ask(Request::Unpause).await?
    }

    /// Gives a container another name, also in DNS.
    ///
    /// # Errors
    /// When the name cannot be had.
    pub async fn rename(&self, reference: &str, name: &str) -> Result<(), ControlError> {
        let handle = self.find(reference)?;
        let name = names::parse(name)?;
        if handle.container().name == name {
            return Err(ControlError::Invalid(
                "Renaming a container with the same name as its current name".to_owned(),
            ));
        }
        let name = self.shared.registry.reserve(&name, &handle.id)?;
        handle.ask(|reply| Request::Rename { name, reply }).await?
    }

    /// Changes limits and restart policy; those of a running container at once. Returns warnings.
    ///
    /// # Errors
    /// When they contradict each other or the container.
    pub async fn update(
        &self,
        reference: &str,
        update: ContainerUpdate,
    ) -> Result<Vec<String>, ControlError> {
        let update = Box::new(update);
        self.find(reference)?.ask(|reply| Request::Update { update, reply }).await?
    }

    /// Registers for an end before it returns; the future it returns resolves with the end.
    ///
    /// # Errors
    /// When there is no such container.
    pub async fn wait(
        &self,
        reference: &str,
        condition: WaitCondition,
    ) -> Result<impl Future<Output = Waited> + Send + 'static, LookupError> {
        let mut state = self.find(reference)?.state;
        let exits = state.borrow().exits;
        Ok(async move {
            loop {
                let ended = wait_ended(&state.borrow_and_update(), condition, exits);
                if let Some(waited) = ended {
                    return waited;
                }
                if state.changed().await.is_err() {
                    let container = state.borrow();
                    // The last value says that it was removed, or there will be none: the daemon stops.
                    let error = (!container.removed).then(|| "the daemon is shutting down".to_owned());
                    return Waited { exit_code: container.last_exit_code, error };
                }
            }
        })
    }

    /// Removes a container and everything of it.
    ///
    /// # Errors
    /// When it runs and `force` is not given, or somebody else is removing it.
    pub async fn remove(&self, reference: &str, options: RemoveOptions) -> Result<(), RemoveError> {
        self.find(reference)?.ask(|reply| Request::Remove { options, reply }).await?
    }

    // ---- containers: views --------------------------------------------------------------------------

    /// A container by full identifier, name or unique prefix of the identifier, in this order.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub fn inspect(&self, reference: &str) -> Result<Arc<Container>, LookupError> {
        Ok(self.find(reference)?.container())
    }

    /// All containers, newest first.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Container>> {
        self.shared.registry.list()
    }

    /// A container's log.
    ///
    /// # Errors
    /// When it keeps none that could be read.
    pub async fn logs(&self, reference: &str, options: LogOptions) -> Result<LogStream, LogsError> {
        let handle = self.find(reference)?;
        let container = handle.container();
        if matches!(container.state.status, Status::Removing | Status::Dead) {
            return Err(LogsError::Removing);
        }
        let path = container.log_path.clone().ok_or(LogsError::NotReadable)?;
        logs::open(path, options, handle.state).await
    }

    /// Attaches to a container's streams, before or after its start.
    ///
    /// # Errors
    /// When it is paused or between two runs.
    pub async fn attach(&self, reference: &str) -> Result<Attachment, ControlError> {
        self.find(reference)?.ask(Request::Attach).await?
    }

    /// Sets the size of a running container's terminal.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn resize(&self, reference: &str, width: u16, height: u16) -> Result<(), ControlError> {
        self.find(reference)?.ask(|reply| Request::Resize { width, height, reply }).await?
    }

    // ---- execs --------------------------------------------------------------------------------------

    /// Prepares a process inside a running container; returns its identifier.
    ///
    /// # Errors
    /// When the container does not run or there is nothing to execute.
    pub async fn exec_create(&self, reference: &str, config: ExecConfig) -> Result<String, ExecError> {
        let handle = self.find(reference)?;
        if config.command.is_empty() {
            return Err(ExecError::Invalid("No exec command specified".to_owned()));
        }
        handle.ask(Request::Shim).await??;
        let container = handle.container();
        let exec = self.shared.execs.create(&container.id, config);
        self.exec_event(&container, "exec_create", &exec, &[]);
        Ok(exec.id)
    }

    /// Starts it. On return its process exists. The stream is raw on a terminal, else framed.
    ///
    /// # Errors
    /// When it was started before or cannot be.
    pub async fn exec_start(
        &self,
        id: &str,
        console_size: Option<(u16, u16)>,
    ) -> Result<ExecStream, ExecError> {
        let container_id = self.shared.execs.get(id)?.container_id;
        let handle = self.find(&container_id)?;
        let shim = handle.ask(Request::Shim).await??;
        let exec = self.shared.execs.begin(id)?;
        let container = handle.container();
        let request = exec::request(&exec, &container, console_size);
        let (started, stream) = match shim.exec(request).await {
            Ok(started) => started,
            Err(error) => {
                self.shared.execs.ended(id, error.exit_code());
                return Err(Cause::new(error).into());
            }
        };
        self.shared.execs.started(id, started.pid, shim.clone());
        self.exec_event(&container, "exec_start", &exec, &[]);
        let ended = self.watch_exec(shim, container, exec);
        Ok(ExecStream::new(stream, ended))
    }

    /// An exec by its identifier.
    ///
    /// # Errors
    /// When there is none.
    pub fn exec_inspect(&self, id: &str) -> Result<Exec, ExecError> {
        self.shared.execs.get(id)
    }

    /// Sets the size of an exec's terminal.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn exec_resize(&self, id: &str, width: u16, height: u16) -> Result<(), ExecError> {
        let shim = self.shared.execs.shim(id)?;
        Ok(shim.exec_resize(id, width, height).await.map_err(Cause::new)?)
    }

    // ---- events -------------------------------------------------------------------------------------

    /// The last events and those to come.
    #[must_use]
    pub fn events(&self) -> Subscription {
        self.shared.events.subscribe()
    }

    /// Announces something that happened above the engine, in the cluster or in the API.
    pub fn publish(&self, event: Event) {
        self.shared.events.publish(event);
    }

    // ---- networks -----------------------------------------------------------------------------------

    /// Makes a bridge network; returns its identifier.
    ///
    /// # Errors
    /// When the name is taken or the subnet overlaps another.
    pub async fn create_network(&self, request: NetworkCreate) -> Result<String, NetworkError> {
        let local = self.shared.local.clone();
        let network = self.detached(async move { local.create(request).await }).await?;
        self.network_event(&network, "create");
        Ok(network.id.clone())
    }

    /// Removes a network that no container is on.
    ///
    /// # Errors
    /// When there is none, or it is in use.
    pub async fn remove_network(&self, reference: &str) -> Result<(), NetworkError> {
        let network = self.shared.local.find(reference)?;
        let users: Vec<String> = self.members(&network).into_iter().map(|member| member.name).collect();
        let (local, id) = (self.shared.local.clone(), network.id.clone());
        self.detached(async move { local.remove(&id, &users).await }).await?;
        self.network_event(&network, "destroy");
        Ok(())
    }

    /// All networks that this node knows, by name.
    #[must_use]
    pub fn list_networks(&self) -> Vec<Arc<Network>> {
        self.shared.local.list()
    }

    /// A network by identifier, name or unique prefix, and the running containers on it.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub fn inspect_network(
        &self,
        reference: &str,
    ) -> Result<(Arc<Network>, Vec<NetworkMember>), NetworkError> {
        let network = self.shared.local.find(reference)?;
        let members = self.members(&network);
        Ok((network, members))
    }

    /// Puts a container on one more network, at once when it runs.
    ///
    /// # Errors
    /// When it is on it already, or its network mode excludes others.
    pub async fn connect_network(
        &self,
        container: &str,
        endpoint: EndpointConfig,
    ) -> Result<(), NetworkError> {
        self.find(container)?.ask(|reply| Request::Connect { endpoint, reply }).await?
    }

    /// Takes a container off a network.
    ///
    /// # Errors
    /// When it is not on it.
    pub async fn disconnect_network(&self, container: &str, network: &str) -> Result<(), NetworkError> {
        let network = network.to_owned();
        self.find(container)?.ask(|reply| Request::Disconnect { network, reply }).await?
    }

    /// Brings a cluster network on this node to the wanted state; driven by the worker.
    ///
    /// # Errors
    /// When the state is invalid or the kernel refuses.
    pub async fn apply_overlay(&self, overlay: Overlay) -> Result<(), OverlayError> {
        let noted = overlay.clone();
        self.shared.networks.apply_overlay(overlay).await?;
        self.shared.local.note_overlay(&noted);
        Ok(())
    }

    /// Removes a cluster network from this node.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn remove_overlay(&self, network_id: &str) -> Result<(), OverlayError> {
        self.shared.networks.remove_overlay(network_id).await?;
        self.shared.local.forget_overlay(network_id);
        Ok(())
    }

    // ---- images -------------------------------------------------------------------------------------

    /// Removes an image or a name of it, unless containers use it.
    ///
    /// # Errors
    /// When there is none, or it is in use.
    pub async fn remove_image(
        &self,
        reference: &str,
        options: rswarm_image::RemoveOptions,
    ) -> Result<Vec<Removed>, rswarm_image::RemoveError> {
        let users: Vec<ImageUser> = self.list().iter().map(|container| image_user(container)).collect();
        let removed = self.shared.images.remove(reference, options, &users).await?;
        for line in &removed {
            let (action, id) = match line {
                Removed::Untagged(name) => ("untag", name),
                Removed::Deleted(id) => ("delete", id),
            };
            self.shared.events.local("image", action, id, [("name".to_owned(), reference.to_owned())].into());
        }
        Ok(removed)
    }

    // ---- volumes ------------------------------------------------------------------------------------

    /// Makes a volume, or returns the one of that name.
    ///
    /// # Errors
    /// When the name or an option is not allowed.
    pub async fn create_volume(&self, request: VolumeCreate) -> Result<Arc<Volume>, VolumeError> {
        let volumes = self.shared.volumes.clone();
        let make = blocking(move || volumes.ensure(request, None));
        let (volume, made) = make.await?;
        if made {
            self.volume_event(&volume, "create");
        }
        Ok(volume)
    }

    /// All volumes, by name.
    #[must_use]
    pub fn list_volumes(&self) -> Vec<Arc<Volume>> {
        self.shared.volumes.list()
    }

    /// A volume by its name.
    ///
    /// # Errors
    /// When there is none.
    pub fn inspect_volume(&self, name: &str) -> Result<Arc<Volume>, VolumeError> {
        self.shared.volumes.get(name)
    }

    /// Removes a volume that no container uses. With `force`, one that is not there is fine.
    ///
    /// # Errors
    /// When there is none, or it is in use.
    pub async fn remove_volume(&self, name: &str, force: bool) -> Result<(), VolumeError> {
        let (volumes, owned) = (self.shared.volumes.clone(), name.to_owned());
        let remove = blocking(move || volumes.remove(&owned));
        match remove.await {
            Ok(volume) => {
                self.volume_event(&volume, "destroy");
                Ok(())
            }
            Err(VolumeError::NotFound(_)) if force => Ok(()),
            Err(error) => Err(error),
        }
    }

    // ---- inside -------------------------------------------------------------------------------------

    fn find(&self, reference: &str) -> Result<Handle, LookupError> {
        self.shared.registry.find(reference)
    }

    /// Runs to its end whether or not the caller waits for it.
    async fn detached<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        let (reply, answer) = oneshot::channel();
        self.shared.scope.spawn(async move {
            // The caller may have gone away.
            let _ = reply.send(work.await);
        });
        match answer.await {
            Ok(value) => value,
            // The process is being shut down, and the caller with it.
            Err(_) => std::future::pending().await,
        }
    }

    /// The running containers on a network.
    fn members(&self, network: &Network) -> Vec<NetworkMember> {
        let mut members = Vec::new();
        for container in self.list().into_iter().filter(|container| container.state.status.is_live()) {
            let endpoint = container.endpoints.iter().find(|endpoint| endpoint.network_id == network.id);
            members.extend(endpoint.map(|endpoint| NetworkMember {
                container_id: container.id.clone(),
                name: container.name.clone(),
                endpoint: endpoint.clone(),
            }));
        }
        members
    }

    fn network_event(&self, network: &Network, action: &str) {
        let attributes =
            [("name".to_owned(), network.name.clone()), ("type".to_owned(), network.driver.clone())];
        self.shared.events.local("network", action, &network.id, attributes.into());
    }

    fn volume_event(&self, volume: &Volume, action: &str) {
        let attributes = [("driver".to_owned(), volume.driver.clone())];
        self.shared.events.local("volume", action, &volume.name, attributes.into());
    }

    /// `exec_create` and `exec_start` carry the command line in the action, as Docker's do.
    fn exec_event(&self, container: &Container, action: &str, exec: &Exec, more: &[(&str, String)]) {
        let command = exec.config.command.join(" ");
        let action = if action == "exec_die" { action.to_owned() } else { format!("{action}: {command}") };
        let mut more = more.to_vec();
        more.push(("execID", exec.id.clone()));
        self.shared.event(container, &action, &more);
    }

    /// Keeps an exec's exit code, for as long as it can be asked about; what is returned resolves then.
    fn watch_exec(&self, shim: Shim, container: Arc<Container>, exec: Exec) -> oneshot::Receiver<()> {
        let (known, ended) = oneshot::channel();
        let (engine, cancelled) = (self.clone(), self.shared.scope.token());
        self.shared.scope.spawn(async move {
            let exit = tokio::select! {
                () = cancelled.cancelled() => return,
                exit = shim.exec_wait(&exec.id) => exit,
            };
            // Without its shim the process is dead: the container went, with SIGKILL.
            let code = exit.map_or(128 + signal::KILL, |exit| exit.code);
            engine.shared.execs.ended(&exec.id, code);
            // The client may have gone away.
            let _ = known.send(());
            engine.exec_event(&container, "exec_die", &exec, &[("exitCode", code.to_string())]);
        });
        ended
    }
}

fn wait_ended(container: &Container, condition: WaitCondition, exits: u64) -> Option<Waited> {
    let exited = container.exits > exits;
    let ended = match condition {
        WaitCondition::NotRunning => exited || !container.state.status.is_running(),
        WaitCondition::NextExit => exited,
        WaitCondition::Removed => container.state.status == Status::Dead,
    };
    let failed = container.state.status == Status::Dead;
    let waited = || Waited {
        exit_code: container.last_exit_code,
        error: failed.then(|| container.state.error.clone()),
    };
    (ended || container.removed).then(waited)
}

fn parse_signal(signal: Option<&str>) -> Result<Option<i32>, ControlError> {
    let parse = |text: &str| {
        signal::parse(text).ok_or_else(|| ControlError::Invalid(format!("invalid signal: {text}")))
    };
    signal.map(parse).transpose()
}

fn image_user(container: &Container) -> ImageUser {
    ImageUser {
        image_id: container.image_id.clone(),
        container_id: container.id.clone(),
        is_running: container.state.status.is_running(),
    }
}

async fn open_images(config: &EngineConfig) -> Result<ImageStore, OpenError> {
    let mut store = StoreConfig::new(config.data_root.join("image"));
    store.mirrors.clone_from(&config.registry_mirrors);
    store.insecure_registries.clone_from(&config.insecure_registries);
    let open = blocking(|| ImageStore::open(store)).await;
    Ok(open.map_err(Cause::new)?)
}

/// A client's hold on a container's streams. Resolves once the container runs: the hold exists before the
/// program's first byte.
#[derive(Debug)]
pub struct Attachment {
    /// Whether the container has a terminal: then the stream is raw, else framed.
    pub tty: bool,
    ready: oneshot::Receiver<AttachStream>,
}

impl Attachment {
    pub(crate) fn new(tty: bool) -> (oneshot::Sender<AttachStream>, Attachment) {
        let (client, ready) = oneshot::channel();
        (client, Attachment { tty, ready })
    }

    /// The streams; `None` when the container was removed without having been started, or its start failed.
    pub async fn ready(self) -> Option<AttachStream> {
        self.ready.await.ok()
    }
}

/// Docker's frames out, standard input in; raw bytes both ways on a terminal.
pub use rswarm_shim::client::AttachStream;
