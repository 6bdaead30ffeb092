//! Failures of the engine's operations: one enum per family, in Docker's words where clients match them.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use rswarm_base::{Classify, Kind};
use thiserror::Error;

/// A failure from a crate below, whichever that is, with its kind and its hint.
#[derive(Debug)]
pub struct Cause(Box<dyn Classify + Send + Sync>);

impl Cause {
    /// Wraps a classified failure.
    pub fn new(error: impl Classify + Send + Sync + 'static) -> Cause {
        Cause(Box::new(error))
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl Error for Cause {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

impl Classify for Cause {
    fn kind(&self) -> Kind {
        self.0.kind()
    }

    fn hint(&self) -> Option<String> {
        self.0.hint()
    }
}

/// A runtime's failure with the end that containerd gives to those it cannot classify: clients match on the words.
#[derive(Debug, Error)]
#[error("{words}: unknown")]
pub(crate) struct RuntimeWords {
    words: String,
    kind: Kind,
    hint: Option<String>,
}

impl RuntimeWords {
    pub(crate) fn of(error: &impl Classify) -> RuntimeWords {
        let words = rswarm_base::Chain(error).to_string();
        RuntimeWords { words, kind: error.kind(), hint: error.hint() }
    }
}

impl Classify for RuntimeWords {
    fn kind(&self) -> Kind {
        self.kind
    }

    fn hint(&self) -> Option<String> {
        self.hint.clone()
    }
}

/// A file of the engine's own could not be read or written.
#[derive(Debug, Error)]
#[error("`{path}` could not be {verb}")]
pub struct FileError {
    verb: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl FileError {
    /// For `map_err`: a write to `path` failed.
    pub(crate) fn write(path: &Path) -> impl FnOnce(io::Error) -> FileError + '_ {
        move |source| FileError { verb: "written", path: path.to_owned(), source }
    }

    /// For `map_err`: a read of `path` failed.
    pub(crate) fn read(path: &Path) -> impl FnOnce(io::Error) -> FileError + '_ {
        move |source| FileError { verb: "read", path: path.to_owned(), source }
    }

    /// The file is there, but nobody can make sense of it.
    pub(crate) fn is_damage(&self) -> bool {
        self.source.kind() == io::ErrorKind::InvalidData
    }

    /// For `map_err`: a removal of `path` failed.
    pub(crate) fn remove(path: &Path) -> impl FnOnce(io::Error) -> FileError + '_ {
        move |source| FileError { verb: "removed", path: path.to_owned(), source }
    }
}

impl Classify for FileError {
    fn kind(&self) -> Kind {
        Kind::Internal
    }

    fn hint(&self) -> Option<String> {
        let path = self.path.display();
        match self.source.kind() {
            io::ErrorKind::StorageFull => Some(format!("free some space: `df -h {path}`")),
            io::ErrorKind::InvalidData => Some(format!(
                "mend `{path}` or bring it back; if it is moved away, what it says is forgotten"
            )),
            _ => None,
        }
    }
}

/// The engine could not be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Another daemon, or the disk.
    #[error("data directory `{path}` cannot be used")]
    DataRoot {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The default log driver or one of its options is not known; why.
    #[error("the default log driver cannot be used: {0}")]
    LogDriver(String),
    /// The default profile of system calls is none; why.
    #[error("the default seccomp profile cannot be used: {0}")]
    Seccomp(String),
    /// A stored object cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// Images or networks could not be opened.
    #[error(transparent)]
    Below(#[from] Cause),
}

impl Classify for OpenError {
    fn kind(&self) -> Kind {
        match self {
            OpenError::DataRoot { .. } => Kind::FailedPrecondition,
            OpenError::LogDriver(_) | OpenError::Seccomp(_) => Kind::InvalidArgument,
            OpenError::File(error) => error.kind(),
            OpenError::Below(error) => error.kind(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            OpenError::DataRoot { .. } | OpenError::LogDriver(_) | OpenError::Seccomp(_) => None,
            OpenError::File(error) => error.hint(),
            OpenError::Below(error) => error.hint(),
        }
    }
}

/// A reference that names no container, or more than one.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LookupError {
    /// None has that name, identifier or prefix.
    #[error("No such container: {0}")]
    NotFound(String),
    /// More than one identifier begins so.
    #[error("Multiple IDs found with provided prefix: {0}")]
    Ambiguous(String),
}

impl Classify for LookupError {
    fn kind(&self) -> Kind {
        match self {
            LookupError::NotFound(_) => Kind::NotFound,
            LookupError::Ambiguous(_) => Kind::InvalidArgument,
        }
    }
}

/// A name that cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NameError {
    /// Not of the right form.
    #[error("Invalid container name ({0}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")]
    Invalid(String),
    /// Another container's.
    #[error(
        "Conflict. The container name \"/{name}\" is already in use by container \"{holder}\". \
         You have to remove (or rename) that container to be able to reuse that name."
    )]
    Taken {
        /// The name.
        name: String,
        /// The identifier of the container that has it.
        holder: String,
    },
}

impl Classify for NameError {
    fn kind(&self) -> Kind {
        match self {
            NameError::Invalid(_) => Kind::InvalidArgument,
            NameError::Taken { .. } => Kind::Conflict,
        }
    }
}

/// A container could not be created. Nothing is left of it.
#[derive(Debug, Error)]
pub enum CreateError {
    /// The name cannot be had.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Something in the configuration is wrong.
    #[error("{0}")]
    Invalid(String),
    /// Parts of the configuration contradict each other, or the state of another container.
    #[error("{0}")]
    Conflict(String),
    /// The container named in `container:X`.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// The network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The volume.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The image, usually: it is missing.
    #[error(transparent)]
    Below(#[from] Cause),
    /// The disk.
    #[error(transparent)]
    File(#[from] FileError),
}

impl Classify for CreateError {
    fn kind(&self) -> Kind {
        match self {
            CreateError::Name(error) => error.kind(),
            CreateError::Invalid(_) => Kind::InvalidArgument,
            CreateError::Conflict(_) => Kind::Conflict,
            CreateError::Lookup(error) => error.kind(),
            CreateError::Network(error) => error.kind(),
            CreateError::Volume(error) => error.kind(),
            CreateError::Below(error) => error.kind(),
            CreateError::File(error) => error.kind(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            CreateError::Below(error) => error.hint(),
            CreateError::File(error) => error.hint(),
            CreateError::Name(_)
            | CreateError::Invalid(_)
            | CreateError::Conflict(_)
            | CreateError::Lookup(_)
            | CreateError::Network(_)
            | CreateError::Volume(_) => None,
        }
    }
}

/// A container could not be started. Everything that was set up for it is undone.
#[derive(Debug, Error)]
pub enum StartError {
    /// No such container.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// Runs already.
    #[error("container {0} is already running")]
    AlreadyRunning(String),
    /// The container's state forbids it: paused, being removed.
    #[error("{0}")]
    Conflict(String),
    /// The configuration asks for what this machine cannot give.
    #[error("{0}")]
    Invalid(String),
    /// A container that it links to is not there for it; why.
    #[error("{0}")]
    Link(String),
    /// A network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A volume.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The runtime could not start the container's process. The cause has runc's wording.
    #[error(
        "failed to create task for container: failed to create shim task: OCI runtime create failed: \
         runc create failed: unable to start container process: error during container init"
    )]
    Launch {
        /// What goes into the container's state: 126, 127 or 128.
        exit_code: i32,
        /// Why.
        #[source]
        source: Cause,
    },
    /// The container's networks could not be set up; in moby's words.
    #[error("failed to set up container networking")]
    Networking(#[source] Box<StartError>),
    /// A published port cannot be had on this host; in moby's words.
    #[error("driver failed programming external connectivity on endpoint {container} ({endpoint})")]
    Publish {
        /// The container's name.
        container: String,
        /// The endpoint's identifier.
        endpoint: String,
        /// Why.
        #[source]
        source: Cause,
    },
    /// Image or network could not be prepared.
    #[error(transparent)]
    Below(#[from] Cause),
    /// The disk.
    #[error(transparent)]
    File(#[from] FileError),
}

impl StartError {
    /// The exit code that the container shows after this failure.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        if let StartError::Launch { exit_code, .. } = self { *exit_code } else { 128 }
    }
}

impl Classify for StartError {
    fn kind(&self) -> Kind {
        match self {
            StartError::Lookup(error) => error.kind(),
            StartError::AlreadyRunning(_) => Kind::NotModified,
            StartError::Conflict(_) => Kind::Conflict,
            StartError::Invalid(_) => Kind::InvalidArgument,
            // moby has no kind for it.
            StartError::Link(_) => Kind::Internal,
            StartError::Network(error) => error.kind(),
            StartError::Volume(error) => error.kind(),
            // moby: a command that cannot be executed is the caller's mistake.
            StartError::Launch { exit_code: 126 | 127, .. } => Kind::InvalidArgument,
            StartError::Launch { source, .. } | StartError::Publish { source, .. } => source.kind(),
            StartError::Networking(error) => error.kind(),
            StartError::Below(error) => error.kind(),
            StartError::File(error) => error.kind(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            StartError::Launch { source, .. } | StartError::Publish { source, .. } => source.hint(),
            StartError::Networking(error) => error.hint(),
            StartError::Below(error) => error.hint(),
            StartError::File(error) => error.hint(),
            StartError::Lookup(_)
            | StartError::AlreadyRunning(_)
            | StartError::Conflict(_)
            | StartError::Invalid(_)
            | StartError::Link(_)
            | StartError::Network(_)
            | StartError::Volume(_) => None,
        }
    }
}

/// Stop, kill, pause, rename, update, attach and resize: what a container's state or the request forbids.
#[derive(Debug, Error)]
pub enum ControlError {
    /// No such container.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// `stop` of one that does not run.
    #[error("container {0} is already stopped")]
    AlreadyStopped(String),
    /// The request needs a running container.
    #[error("container {0} is not running")]
    NotRunning(String),
    /// The container's state forbids it.
    #[error("{0}")]
    Conflict(String),
    /// The request is wrong.
    #[error("{0}")]
    Invalid(String),
    /// It could not be done, in one sentence.
    #[error("{0}")]
    Failed(String),
    /// The new name cannot be had.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A restart's second half failed.
    #[error(transparent)]
    Start(Box<StartError>),
    /// The shim or the runtime.
    #[error(transparent)]
    Below(#[from] Cause),
    /// The disk.
    #[error(transparent)]
    File(#[from] FileError),
}

impl From<StartError> for ControlError {
    fn from(error: StartError) -> ControlError {
        ControlError::Start(Box::new(error))
    }
}

impl Classify for ControlError {
    fn kind(&self) -> Kind {
        match self {
            ControlError::Lookup(error) => error.kind(),
            ControlError::AlreadyStopped(_) => Kind::NotModified,
            ControlError::NotRunning(_) | ControlError::Conflict(_) => Kind::Conflict,
            ControlError::Invalid(_) => Kind::InvalidArgument,
            ControlError::Failed(_) => Kind::Internal,
            ControlError::Name(error) => error.kind(),
            ControlError::Start(error) => error.kind(),
            ControlError::Below(error) => error.kind(),
            ControlError::File(error) => error.kind(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            ControlError::Start(error) => error.hint(),
            ControlError::Below(error) => error.hint(),
            ControlError::File(error) => error.hint(),
            ControlError::Lookup(_)
            | ControlError::AlreadyStopped(_)
            | ControlError::NotRunning(_)
            | ControlError::Conflict(_)
            | ControlError::Invalid(_)
            | ControlError::Failed(_)
            | ControlError::Name(_) => None,
        }
    }
}

/// A container could not be removed.
#[derive(Debug, Error)]
pub enum RemoveError {
    /// No such container.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// It runs, and `force` was not given.
    #[error(
        "cannot remove container \"/{name}\": container is {state}: \
         stop the container before removing or force remove"
    )]
    Running {
        /// Its name.
        name: String,
        /// `running`, `paused` or `restarting`.
        state: &'static str,
    },
    /// Somebody else is removing it.
    #[error("removal of container {0} is already in progress")]
    InProgress(String),
    /// It could not be stopped, or something of it could not be deleted. It is `dead` now.
    #[error("container {id} could not be removed")]
    Failed {
        /// Its identifier.
        id: String,
        /// Why.
        #[source]
        source: Cause,
    },
}

impl Classify for RemoveError {
    fn kind(&self) -> Kind {
        match self {
            RemoveError::Lookup(error) => error.kind(),
            RemoveError::Running { .. } | RemoveError::InProgress(_) => Kind::Conflict,
            RemoveError::Failed { source, .. } => source.kind(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            RemoveError::Failed { source, .. } => source.hint(),
            RemoveError::Lookup(_) | RemoveError::Running { .. } | RemoveError::InProgress(_) => None,
        }
    }
}

/// A container's log cannot be read.
#[derive(Debug, Error)]
pub enum LogsError {
    /// No such container.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// Being removed.
    #[error("can not get logs from container which is dead or marked for removal")]
    Removing,
    /// The driver keeps nothing that could be read.
    #[error("configured logging driver does not support reading")]
    NotReadable,
    /// The disk.
    #[error(transparent)]
    File(#[from] FileError),
}

impl Classify for LogsError {
    fn kind(&self) -> Kind {
        match self {
            LogsError::Lookup(error) => error.kind(),
            LogsError::Removing => Kind::Conflict,
            LogsError::NotReadable => Kind::NotImplemented,
            LogsError::File(error) => error.kind(),
        }
    }
}

/// An operation on a local network failed.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// None has that name or identifier.
    #[error("network {0} not found")]
    NotFound(String),
    /// Something that the request names is not there.
    #[error("{0}")]
    Missing(String),
    /// There is no such driver.
    #[error("plugin \"{0}\" not found")]
    NoDriver(String),
    /// More than one identifier begins so.
    #[error("network {0} is ambiguous: more than one identifier begins so")]
    Ambiguous(String),
    /// The name is taken.
    #[error("network with name {0} already exists")]
    Exists(String),
    /// `bridge`, `host` and `none` are always there.
    #[error("{0} is a pre-defined network and cannot be {1}")]
    Predefined(String, &'static str),
    /// Containers are on it.
    #[error("error while removing network: network {name} has active endpoints ({users})")]
    InUse {
        /// The network.
        name: String,
        /// The containers.
        users: String,
    },
    /// The container is not on it.
    #[error("container {container} is not connected to network {network}")]
    NotConnected {
        /// The container.
        container: String,
        /// The network.
        network: String,
    },
    /// Already on it, or the modes exclude each other.
    #[error("{0}")]
    Forbidden(String),
    /// The request is wrong.
    #[error("{0}")]
    Invalid(String),
    /// The cluster gave no place on its network.
    #[error(transparent)]
    Place(#[from] crate::attach::PlaceError),
    /// No such container.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// The kernel refused.
    #[error(transparent)]
    Below(#[from] Cause),
    /// The disk.
    #[error(transparent)]
    File(#[from] FileError),
}

impl Classify for NetworkError {
    fn kind(&self) -> Kind {
        match self {
            NetworkError::NotFound(_) | NetworkError::Missing(_) | NetworkError::NoDriver(_) => {
                Kind::NotFound
            }
            NetworkError::Exists(_) => Kind::Conflict,
            NetworkError::Ambiguous(_) | NetworkError::Invalid(_) => Kind::InvalidArgument,
            NetworkError::Predefined(..)
            | NetworkError::InUse { .. }
            | NetworkError::Forbidden(_)
            | NetworkError::NotConnected { .. } => Kind::PermissionDenied,
            NetworkError::Place(error) => error.kind,
            NetworkError::Lookup(error) => error.kind(),
            NetworkError::Below(error) => error.kind(),
            NetworkError::File(error) => error.kind(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            NetworkError::Place(error) => error.hint.clone(),
            NetworkError::Below(error) => error.hint(),
            NetworkError::File(error) => error.hint(),
            NetworkError::InUse { .. } => Some("remove or disconnect those containers first".to_owned()),
            NetworkError::NotFound(_)
            | NetworkError::Missing(_)
            | NetworkError::NoDriver(_)
            | NetworkError::Ambiguous(_)
            | NetworkError::Exists(_)
            | NetworkError::Predefined(..)
            | NetworkError::NotConnected { .. }
            | NetworkError::Forbidden(_)
            | NetworkError::Invalid(_)
            | NetworkError::Lookup(_) => None,
        }
    }
}

/// An operation on a volume failed.
#[derive(Debug, Error)]
pub enum VolumeError {
    /// None has that name.
    #[error("get {0}: no such volume")]
    NotFound(String),
    /// Not of the right form.
    #[error(
        "create {0}: \"{0}\" includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" \
         are allowed. If you intended to pass a host directory, use absolute path"
    )]
    InvalidName(String),
    /// It cannot be made as it is asked for.
    #[error("create {name}")]
    Create {
        /// The volume.
        name: String,
        /// Why.
        #[source]
        source: Box<VolumeError>,
    },
    /// Drivers are not supported beyond `local`.
    #[error("error looking up volume plugin {0}: plugin \"{0}\" not found")]
    NoDriver(String),
    /// An option that the local driver does not have.
    #[error("invalid option: \"{0}\"")]
    InvalidOption(String),
    /// Options that only make sense with another one.
    #[error("missing required option: \"{0}\"")]
    MissingOption(&'static str),
    /// Containers use it.
    #[error("remove {name}: volume is in use - [{users}]")]
    InUse {
        /// The volume.
        name: String,
        /// The containers' identifiers.
        users: String,
    },
    /// There is one, whose record cannot be read.
    #[error("get {name}: the volume's record `{record}` is damaged")]
    Damaged {
        /// The volume.
        name: String,
        /// The file.
        record: PathBuf,
    },
    /// The disk.
    #[error(transparent)]
    File(#[from] FileError),
}

impl Classify for VolumeError {
    fn kind(&self) -> Kind {
        match self {
            VolumeError::NotFound(_) | VolumeError::NoDriver(_) => Kind::NotFound,
            VolumeError::Create { source, .. } => source.kind(),
            VolumeError::InvalidName(_) | VolumeError::InvalidOption(_) | VolumeError::MissingOption(_) => {
                Kind::InvalidArgument
            }
            VolumeError::InUse { .. } => Kind::Conflict,
            VolumeError::Damaged { .. } => Kind::Internal,
            VolumeError::File(error) => error.kind(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            VolumeError::Damaged { record, .. } => Some(format!(
                "mend `{}` and start the daemon again, or remove the volume's directory",
                record.display()
            )),
            VolumeError::File(error) => error.hint(),
            _ => None,
        }
    }
}

/// A process could not be run inside a container.
#[derive(Debug, Error)]
pub enum ExecError {
    /// No such container.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// No such exec.
    #[error("No such exec instance: {0}")]
    NotFound(String),
    /// The container does not run, is paused, or the exec was started before.
    #[error("{0}")]
    Conflict(String),
    /// The request is wrong.
    #[error("{0}")]
    Invalid(String),
    /// The runtime could not start the process. The cause has runc's wording.
    #[error("OCI runtime exec failed: exec failed: unable to start container process")]
    Start(#[source] Cause),
    /// The shim or the runtime.
    #[error(transparent)]
    Below(#[from] Cause),
}

impl Classify for ExecError {
    fn kind(&self) -> Kind {
        match self {
            ExecError::Lookup(error) => error.kind(),
            ExecError::NotFound(_) => Kind::NotFound,
            ExecError::Conflict(_) => Kind::Conflict,
            // moby: a command that cannot be executed is the caller's mistake.
            ExecError::Invalid(_) | ExecError::Start(_) => Kind::InvalidArgument,
            ExecError::Below(error) => error.kind(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            ExecError::Below(error) | ExecError::Start(error) => error.hint(),
            ExecError::Lookup(_)
            | ExecError::NotFound(_)
            | ExecError::Conflict(_)
            | ExecError::Invalid(_) => None,
        }
    }
}
