//! What is done to containers, and what there is to see of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rswarm_base::{Classify as _, Kind};
use rswarm_proto::model::container::ResourceLimits;
use tokio::sync::oneshot;

use super::{AttachStream, Engine};
use crate::blocking::blocking;
use crate::config::{ContainerConfig, RestartPolicy};
use crate::container::{Container, Request, Status};
use crate::error::{ControlError, CreateError, LogsError, LookupError, NameError, RemoveError, StartError};
use crate::logs::{self, LogOptions, LogStream};
use crate::metrics::timed;
use crate::stats::Sample;
use crate::top::{self, Top};
use crate::{create, links, names, signal, stats};

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

impl Engine {
    /// Creates a container. `name` without a leading slash; `None` makes one up. On return it is durable.
    ///
    /// # Errors
    /// When the configuration is wrong, or the name, image or a network cannot be had.
    pub async fn create(&self, name: Option<&str>, config: ContainerConfig) -> Result<Created, CreateError> {
        // In a task of its own: a caller that goes away leaves nothing half made.
        let (shared, name) = (self.shared.clone(), name.map(str::to_owned));
        let work = self.detached(async move { create::create(&shared, name.as_deref(), config).await });
        timed(&self.shared.instruments.create, work).await
    }

    /// Starts a container. On return its program runs.
    ///
    /// # Errors
    /// When it runs already or cannot be started; then everything is undone.
    pub async fn start(&self, reference: &str) -> Result<(), StartError> {
        let work = async { self.find(reference)?.ask(Request::Start).await? };
        timed(&self.shared.instruments.start, work).await
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
        // moby: reserveName
        let refused = |error: NameError| {
            let text = format!("Error when allocating new name: {error}");
            match error.kind() {
                Kind::Conflict => ControlError::Conflict(text),
                _ => ControlError::Invalid(text),
            }
        };
        let name = names::parse(name).map_err(refused)?;
        if handle.container().name == name {
            return Err(ControlError::Invalid(
                "Renaming a container with the same name as its current name".to_owned(),
            ));
        }
        let name = self.shared.registry.reserve(&name, &handle.id).map_err(refused)?;
        handle.ask(|reply| Request::Rename { name, reply }).await?
    }

    /// Lets go of a link, `/parent/alias`; the container that it leads to stays.
    ///
    /// # Errors
    /// When there is no such link.
    pub async fn remove_link(&self, reference: &str) -> Result<(), ControlError> {
        let name = reference.trim_start_matches('/');
        let Some((parent, alias)) = name.split_once('/') else {
            self.find(name)?;
            return Err(ControlError::Conflict(
                "Conflict, cannot remove the default link name of the container".to_owned(),
            ));
        };
        let gone = || LookupError::NotFound(reference.to_owned());
        let parent = self.find(parent).map_err(|_| gone())?;
        if parent.container().links.iter().all(|link| link.alias != alias) {
            return Err(gone().into());
        }
        parent.ask(|reply| Request::Unlink { alias: alias.to_owned(), reply }).await?
    }

    /// The further names that links give to containers, `/parent/alias`, by container identifier.
    #[must_use]
    pub fn link_names(&self) -> BTreeMap<String, Vec<String>> {
        let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for parent in self.list() {
            for link in parent.links.iter() {
                let name = format!("/{}/{}", parent.name, link.alias);
                names.entry(link.target.clone()).or_default().push(name);
            }
        }
        names
    }

    /// A container's links as `inspect` shows them: `/name:/parent/alias`.
    #[must_use]
    pub fn links(&self, container: &Container) -> Vec<String> {
        let links = links::followed(&self.shared.registry, container);
        links.map(|(link, target)| format!("/{}:/{}/{}", target.name, container.name, link.alias)).collect()
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
        let work = async { self.find(reference)?.ask(|reply| Request::Remove { options, reply }).await? };
        timed(&self.shared.instruments.delete, work).await
    }

    // ---- views --------------------------------------------------------------------------------------

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

    /// The processes of a running container, as `ps` with these arguments would show them.
    ///
    /// # Errors
    /// When it does not run, or `ps` would refuse the arguments.
    pub async fn top(&self, reference: &str, arguments: &str) -> Result<Top, ControlError> {
        let container = self.find(reference)?.container();
        match container.state.status {
            Status::Running | Status::Paused => {}
            Status::Restarting => {
                return Err(ControlError::Conflict(format!(
                    "Container {} is restarting, wait until the container is running",
                    container.id
                )));
            }
            Status::Created | Status::Removing | Status::Exited | Status::Dead => {
                return Err(ControlError::NotRunning(container.id.clone()));
            }
        }
        let (cgroup, arguments) = (self.shared.cgroup(&container), arguments.to_owned());
        let top =
            blocking(move || top::of_cgroup(&cgroup, &arguments)).await.map_err(ControlError::Failed)?;
        self.shared.event(&container, "top", &[]);
        Ok(top)
    }

    /// What a running container has used so far.
    ///
    /// # Errors
    /// When it does not run, or its counters cannot be read.
    pub async fn stats(&self, reference: &str) -> Result<Sample, ControlError> {
        let handle = self.find(reference)?;
        let container = handle.container();
        let not_running = || ControlError::NotRunning(container.id.clone());
        if !container.state.status.is_live() {
            return Err(not_running());
        }
        let (cgroup, looked_at) = (self.shared.cgroup(&container), container.clone());
        let sample = blocking(move || stats::sample(&cgroup, &looked_at)).await;
        // The counters go with the container, which may end while they are read.
        let is_live = handle.container().state.status.is_live();
        sample.map_err(|why| if is_live { ControlError::Failed(why) } else { not_running() })
    }

    /// Sets the size of a running container's terminal.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn resize(&self, reference: &str, width: u16, height: u16) -> Result<(), ControlError> {
        self.find(reference)?.ask(|reply| Request::Resize { width, height, reply }).await?
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
