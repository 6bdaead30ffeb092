//! The engine's handle: every operation that the HTTP API and the worker use.

use std::sync::Arc;
use std::time::Duration;

use rswarm_base::Scope;
use rswarm_proto::model::container::ResourceLimits;

use crate::config::{ContainerConfig, EndpointConfig, EngineConfig, RestartPolicy};
use crate::container::Container;
use crate::error::{
    ControlError, CreateError, ExecError, LogsError, LookupError, NetworkError, OpenError, RemoveError,
    StartError, VolumeError,
};
use crate::events::{Event, Subscription};
use crate::exec::{Exec, ExecConfig};
use crate::logs::{LogOptions, LogStream};
use crate::network::{Network, NetworkCreate, NetworkMember};
use crate::volume::{Volume, VolumeCreate};

/// Containers, networks, volumes and images of one daemon. Cloning gives another handle.
#[derive(Clone)]
pub struct Engine {
    config: Arc<EngineConfig>,
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
    /// Opens the data directory, adopts the containers that live, and starts those whose policy says so.
    ///
    /// # Errors
    /// When another daemon holds the directory, or what is stored in it cannot be read.
    pub async fn open(config: EngineConfig, scope: Scope) -> Result<Engine, OpenError> {
        let _ = scope;
        Ok(Engine { config: Arc::new(config) })
    }

    /// How the engine was set up.
    #[must_use]
    pub fn config(&self) -> &EngineConfig {
        &self.config
    }

    /// Figures for `docker info`.
    #[must_use]
    pub fn info(&self) -> EngineInfo {
        todo!()
    }

    // ---- containers: life ---------------------------------------------------------------------------

    /// Creates a container. `name` without a leading slash; `None` makes one up. On return it is durable.
    ///
    /// # Errors
    /// When the configuration is wrong, or the name, image or a network cannot be had.
    pub async fn create(&self, name: Option<&str>, config: ContainerConfig) -> Result<Created, CreateError> {
        let _ = (name, config);
        todo!()
    }

    /// Starts a container. On return its program runs.
    ///
    /// # Errors
    /// When it runs already or cannot be started; then everything is undone.
    pub async fn start(&self, reference: &str) -> Result<(), StartError> {
        let _ = reference;
        todo!()
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
        let _ = (reference, timeout, signal);
        todo!()
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
        let _ = (reference, timeout, signal);
        todo!()
    }

    /// Sends a signal: a name with or without `SIG`, or a number; the empty text is SIGKILL.
    ///
    /// # Errors
    /// When it does not run, or the signal is unknown.
    pub async fn kill(&self, reference: &str, signal: &str) -> Result<(), ControlError> {
        let _ = (reference, signal);
        todo!()
    }

    /// Freezes a container.
    ///
    /// # Errors
    /// When it does not run or is frozen already.
    pub async fn pause(&self, reference: &str) -> Result<(), ControlError> {
        let _ = reference;
        todo!()
    }

    /// Thaws a container.
    ///
    /// # Errors
    /// When it is not frozen.
    pub async fn unpause(&self, reference: &str) -> Result<(), ControlError> {
        let _ = reference;
        todo!()
    }

    /// Gives a container another name, also in DNS.
    ///
    /// # Errors
    /// When the name cannot be had.
    pub async fn rename(&self, reference: &str, name: &str) -> Result<(), ControlError> {
        let _ = (reference, name);
        todo!()
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
        let _ = (reference, update);
        todo!()
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
        let _ = (reference, condition);
        todo!();
        #[allow(unreachable_code)]
        Ok(std::future::pending())
    }

    /// Removes a container and everything of it.
    ///
    /// # Errors
    /// When it runs and `force` is not given, or somebody else is removing it.
    pub async fn remove(&self, reference: &str, options: RemoveOptions) -> Result<(), RemoveError> {
        let _ = (reference, options);
        todo!()
    }

    // ---- containers: views --------------------------------------------------------------------------

    /// A container by full identifier, name or unique prefix of the identifier, in this order.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub fn inspect(&self, reference: &str) -> Result<Arc<Container>, LookupError> {
        let _ = reference;
        todo!()
    }

    /// All containers, newest first.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Container>> {
        todo!()
    }

    /// A container's log.
    ///
    /// # Errors
    /// When it keeps none that could be read.
    pub async fn logs(&self, reference: &str, options: LogOptions) -> Result<LogStream, LogsError> {
        let _ = (reference, options);
        todo!()
    }

    /// Attaches to a container's streams, before or after its start.
    ///
    /// # Errors
    /// When it is paused or between two runs.
    pub async fn attach(&self, reference: &str) -> Result<Attachment, ControlError> {
        let _ = reference;
        todo!()
    }

    /// Sets the size of a running container's terminal.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn resize(&self, reference: &str, width: u16, height: u16) -> Result<(), ControlError> {
        let _ = (reference, width, height);
        todo!()
    }

    // ---- execs --------------------------------------------------------------------------------------

    /// Prepares a process inside a running container; returns its identifier.
    ///
    /// # Errors
    /// When the container does not run or there is nothing to execute.
    pub async fn exec_create(&self, reference: &str, config: ExecConfig) -> Result<String, ExecError> {
        let _ = (reference, config);
        todo!()
    }

    /// Starts it. On return its process exists. The stream is raw on a terminal, else framed.
    ///
    /// # Errors
    /// When it was started before or cannot be.
    pub async fn exec_start(
        &self,
        id: &str,
        console_size: Option<(u16, u16)>,
    ) -> Result<AttachStream, ExecError> {
        let _ = (id, console_size);
        todo!()
    }

    /// An exec by its identifier.
    ///
    /// # Errors
    /// When there is none.
    pub fn exec_inspect(&self, id: &str) -> Result<Exec, ExecError> {
        let _ = id;
        todo!()
    }

    /// Sets the size of an exec's terminal.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn exec_resize(&self, id: &str, width: u16, height: u16) -> Result<(), ExecError> {
        let _ = (id, width, height);
        todo!()
    }

    // ---- events -------------------------------------------------------------------------------------

    /// The last events and those to come.
    #[must_use]
    pub fn events(&self) -> Subscription {
        todo!()
    }

    /// Announces something that happened above the engine, in the cluster or in the API.
    pub fn publish(&self, event: Event) {
        let _ = event;
        todo!()
    }

    // ---- networks -----------------------------------------------------------------------------------

    /// Makes a bridge network; returns its identifier.
    ///
    /// # Errors
    /// When the name is taken or the subnet overlaps another.
    pub async fn create_network(&self, request: NetworkCreate) -> Result<String, NetworkError> {
        let _ = request;
        todo!()
    }

    /// Removes a network that no container is on.
    ///
    /// # Errors
    /// When there is none, or it is in use.
    pub async fn remove_network(&self, reference: &str) -> Result<(), NetworkError> {
        let _ = reference;
        todo!()
    }

    /// All networks that this node knows, by name.
    #[must_use]
    pub fn list_networks(&self) -> Vec<Arc<Network>> {
        todo!()
    }

    /// A network by identifier, name or unique prefix, and the running containers on it.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub fn inspect_network(
        &self,
        reference: &str,
    ) -> Result<(Arc<Network>, Vec<NetworkMember>), NetworkError> {
        let _ = reference;
        todo!()
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
        let _ = (container, endpoint);
        todo!()
    }

    /// Takes a container off a network.
    ///
    /// # Errors
    /// When it is not on it.
    pub async fn disconnect_network(&self, container: &str, network: &str) -> Result<(), NetworkError> {
        let _ = (container, network);
        todo!()
    }

    // ---- volumes ------------------------------------------------------------------------------------

    /// Makes a volume, or returns the one of that name.
    ///
    /// # Errors
    /// When the name or an option is not allowed.
    pub async fn create_volume(&self, request: VolumeCreate) -> Result<Arc<Volume>, VolumeError> {
        let _ = request;
        todo!()
    }

    /// All volumes, by name.
    #[must_use]
    pub fn list_volumes(&self) -> Vec<Arc<Volume>> {
        todo!()
    }

    /// A volume by its name.
    ///
    /// # Errors
    /// When there is none.
    pub fn inspect_volume(&self, name: &str) -> Result<Arc<Volume>, VolumeError> {
        let _ = name;
        todo!()
    }

    /// Removes a volume that no container uses. With `force`, one that is not there is fine.
    ///
    /// # Errors
    /// When there is none, or it is in use.
    pub async fn remove_volume(&self, name: &str, force: bool) -> Result<(), VolumeError> {
        let _ = (name, force);
        todo!()
    }
}

/// A client's hold on a container's streams. Resolves once the container runs: the hold exists before the
/// program's first byte.
#[derive(Debug)]
pub struct Attachment {
    /// Whether the container has a terminal: then the stream is raw, else framed.
    pub tty: bool,
    ready: tokio::sync::oneshot::Receiver<AttachStream>,
}

impl Attachment {
    /// The streams; `None` when the container was removed without having been started.
    pub async fn ready(self) -> Option<AttachStream> {
        self.ready.await.ok()
    }
}

/// Docker's frames out, standard input in; raw bytes both ways on a terminal.
pub type AttachStream = tokio::net::UnixStream;
