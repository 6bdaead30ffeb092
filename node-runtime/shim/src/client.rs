//! The daemon's side: launch a shim, find a living one again, ask it things.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Stdio;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use rswarm_base::{Classify, Kind};
use rswarm_runtime::Failure;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::UnixStream;
use tokio::process::Command;

use crate::launch::{LAUNCH_FILE, SHIM_LOG, SOCKET};
use crate::protocol::{self, Hello, Launched, Reply, Request, VERSION};

pub use crate::launch::{Exit, Launch, LogFile, RuntimeBinary, ShimState};
pub use crate::protocol::{ExecRequest, Started};

/// How much of the shim's own log goes into an error.
const LOG_TAIL_MAX: usize = 2048;

/// A container that could not be created.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The launch file or the shim's log cannot be written.
    #[error("shim of container could not be prepared in `{path}`")]
    Prepare {
        /// The state directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The program cannot be run.
    #[error("shim `{exe}` could not be run")]
    Spawn {
        /// The program.
        exe: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The shim ended without a word.
    #[error("shim ended before the container was created: {log}")]
    Silent {
        /// The end of its log.
        log: String,
    },
    /// The container cannot be made: the words of the runtime, complete.
    #[error(transparent)]
    Runtime(Failure),
}

impl LaunchError {
    /// What a shell would report: 127 (not found), 126 (cannot be executed), else 128.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self {
            LaunchError::Runtime(failure) => failure.exit_code(),
            LaunchError::Prepare { .. } | LaunchError::Spawn { .. } | LaunchError::Silent { .. } => 128,
        }
    }
}

impl Classify for LaunchError {
    fn kind(&self) -> Kind {
        match self {
            LaunchError::Runtime(failure) => failure.kind(),
            LaunchError::Prepare { .. } | LaunchError::Spawn { .. } | LaunchError::Silent { .. } => {
                Kind::Internal
            }
        }
    }
}

/// There is no shim to talk to.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No process listens in the state directory.
    #[error("no shim is alive in `{path}`")]
    Gone {
        /// The state directory.
        path: PathBuf,
    },
    /// It speaks another version of the protocol.
    #[error("shim in `{path}` speaks version {theirs}, not {VERSION}")]
    Version {
        /// The state directory.
        path: PathBuf,
        /// What it speaks.
        theirs: u32,
    },
    /// The conversation broke.
    #[error("shim in `{path}` could not be talked to")]
    Io {
        /// The state directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Classify for ConnectError {
    fn kind(&self) -> Kind {
        match self {
            ConnectError::Gone { .. } => Kind::NotFound,
            ConnectError::Version { .. } => Kind::FailedPrecondition,
            ConnectError::Io { .. } => Kind::Internal,
        }
    }
}

/// A request to a shim that was not served.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The shim vanished, and the container with it. The exit file may exist.
    #[error("shim of the container is gone")]
    Gone,
    /// The container's state forbids it.
    #[error("{0}")]
    Refused(String),
    /// The command cannot be run: the words of the runtime, complete.
    #[error(transparent)]
    Runtime(Failure),
    /// The conversation broke.
    #[error("shim could not be talked to")]
    Io(#[source] io::Error),
}

/// A start or exec that was not served; the same cases as for any call.
pub type StartError = CallError;

impl CallError {
    /// What a shell would report: 127 (not found), 126 (cannot be executed), else 128.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self {
            CallError::Runtime(failure) => failure.exit_code(),
            CallError::Gone | CallError::Refused(_) | CallError::Io(_) => 128,
        }
    }
}

impl Classify for CallError {
    fn kind(&self) -> Kind {
        match self {
            CallError::Gone => Kind::NotFound,
            CallError::Refused(_) => Kind::Conflict,
            CallError::Runtime(failure) => failure.kind(),
            CallError::Io(_) => Kind::Internal,
        }
    }
}

/// Starts a shim and returns when the container's init is made and waits for [`Shim::start`].
///
/// `exe` is run as `exe shim --state-dir DIR`, from a read-only view of the file, so that no container can
/// write to it. A failure leaves nothing behind but the shim's log.
///
/// # Errors
/// The runtime's own words in [`LaunchError::Runtime`].
pub async fn launch(exe: &Path, launch: &Launch) -> Result<Shim, LaunchError> {
    let prepare = |source| LaunchError::Prepare { path: launch.state_dir.clone(), source };
    let spawn = |source| LaunchError::Spawn { exe: exe.to_owned(), source };
    write_launch(launch).map_err(prepare)?;
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(launch.state_dir.join(SHIM_LOG))
        .map_err(prepare)?;
    let program = program(exe).map_err(spawn)?;
    let mut child = Command::new(format!("/proc/{}/fd/{}", std::process::id(), program.as_raw_fd()))
        .arg0(exe.as_os_str())
        .args(["shim", "--state-dir"])
        .arg(&launch.state_dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .current_dir("/")
        .spawn()
        .map_err(spawn)?;
    let mut said = Vec::new();
    let mut stdout = child.stdout.take().expect("stdout was asked to be a pipe");
    stdout.read_to_end(&mut said).await.map_err(spawn)?;
    child.wait().await.map_err(spawn)?;
    match serde_json::from_slice(&said) {
        Ok(Launched::Created { .. }) => Shim::open(&launch.state_dir).map_err(prepare),
        Ok(Launched::Failed(failure)) => Err(LaunchError::Runtime(failure)),
        Err(_) => Err(LaunchError::Silent { log: log_tail(&launch.state_dir) }),
    }
}

/// The read-only view of the program, made once: to take one down waits for the kernel. All shims of a daemon are
/// of its own version, whatever has been installed in its place meanwhile.
fn program(exe: &Path) -> io::Result<Arc<OwnedFd>> {
    static VIEW: OnceLock<(PathBuf, Arc<OwnedFd>)> = OnceLock::new();
    if VIEW.get().is_none() {
        let view = Arc::new(rswarm_runtime::readonly_program(exe)?);
        // Somebody else's is as good.
        let _ = VIEW.set((exe.to_owned(), view));
    }
    match VIEW.get() {
        Some((path, view)) if path == exe => Ok(view.clone()),
        Some(_) | None => rswarm_runtime::readonly_program(exe).map(Arc::new),
    }
}

/// Not durable: after a power loss there is no shim to read it.
fn write_launch(launch: &Launch) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let json = serde_json::to_vec_pretty(launch)?;
    let mut options = std::fs::OpenOptions::new();
    let mut file = options
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(launch.state_dir.join(LAUNCH_FILE))?;
    io::Write::write_all(&mut file, &json)
}

/// The last words of a shim.
fn log_tail(state_dir: &Path) -> String {
    let log = std::fs::read(state_dir.join(SHIM_LOG)).unwrap_or_default();
    let tail = &log[log.len().saturating_sub(LOG_TAIL_MAX)..];
    String::from_utf8_lossy(tail).trim().to_owned()
}

/// Takes away what is left of a container whose shim was killed: processes that its end did not reach, its
/// cgroups, socket and launch file. Everything else went with the shim. Does nothing where nothing is left.
///
/// # Errors
/// What could not be taken away.
pub async fn clear_remains(launch: &Launch) -> io::Result<()> {
    let launch = launch.clone();
    let clear = move || {
        let spec = rswarm_runtime::spec::load(&launch.bundle).map_err(io::Error::other)?;
        let path = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_ref());
        if let Some(path) = path {
            let cgroup = rswarm_runtime::cgroup::Cgroup::at(path).map_err(io::Error::other)?;
            cgroup.kill()?;
            cgroup.remove()?;
        }
        for file in [SOCKET, LAUNCH_FILE] {
            rswarm_base::fsx::remove_all(&launch.state_dir.join(file))?;
        }
        Ok(())
    };
    tokio::task::spawn_blocking(clear).await.map_err(io::Error::other)?
}

/// A handle on a container's shim. Each call is a connection of its own; clones are the same handle.
#[derive(Debug, Clone)]
pub struct Shim {
    state_dir: Arc<PathBuf>,
    /// The socket is reached through this directory, since its own path may be too long for an address.
    dir: Arc<OwnedFd>,
}

impl Shim {
    fn open(state_dir: &Path) -> io::Result<Shim> {
        use rustix::fs::{Mode, OFlags};
        let dir =
            rustix::fs::open(state_dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Shim { state_dir: Arc::new(state_dir.to_owned()), dir: Arc::new(dir) })
    }

    /// Finds a living shim again, after the daemon was restarted.
    ///
    /// # Errors
    /// [`ConnectError::Gone`] when none is alive: the container is gone too, its exit file may exist.
    pub async fn connect(state_dir: &Path) -> Result<Shim, ConnectError> {
        let gone = || ConnectError::Gone { path: state_dir.to_owned() };
        let failed = |source| ConnectError::Io { path: state_dir.to_owned(), source };
        let shim = Shim::open(state_dir).map_err(|_| gone())?;
        let mut stream = match shim.stream().await {
            Ok(stream) => stream,
            Err(CallError::Gone) => return Err(gone()),
            Err(CallError::Io(source)) => return Err(failed(source)),
            Err(error @ (CallError::Refused(_) | CallError::Runtime(_))) => {
                return Err(failed(io::Error::other(error.to_string())));
            }
        };
        stream.write_all(&protocol::encode(&Hello { version: VERSION })).await.map_err(failed)?;
        stream.write_all(&protocol::encode(&Request::State)).await.map_err(failed)?;
        let hello: Hello = read_message(&mut stream).await.map_err(|_| gone())?;
        if hello.version == VERSION {
            Ok(shim)
        } else {
            Err(ConnectError::Version { path: state_dir.to_owned(), theirs: hello.version })
        }
    }

    /// Where its files are.
    #[must_use]
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// Lets the created container run.
    ///
    /// # Errors
    /// [`CallError::Runtime`] when the user's command cannot be executed; the container has then exited.
    pub async fn start(&self) -> Result<Started, StartError> {
        match self.call(Request::Start).await? {
            Reply::Started(started) => Ok(started),
            reply => Err(unexpected(reply)),
        }
    }

    /// Where the container is in its life.
    ///
    /// # Errors
    /// [`CallError::Gone`] when the shim vanished.
    pub async fn state(&self) -> Result<ShimState, CallError> {
        match self.call(Request::State).await? {
            Reply::State(state) => Ok(state),
            reply => Err(unexpected(reply)),
        }
    }

    /// Sends a signal to the container's first process, or to all its processes.
    ///
    /// # Errors
    /// [`CallError::Refused`] when it has exited.
    pub async fn kill(&self, signal: i32, all: bool) -> Result<(), CallError> {
        self.done(Request::Kill { signal, all }).await
    }

    /// Freezes all processes of the container.
    ///
    /// # Errors
    /// [`CallError::Refused`] when it does not run or is frozen already.
    pub async fn pause(&self) -> Result<(), CallError> {
        self.done(Request::Pause).await
    }

    /// Thaws all processes of the container.
    ///
    /// # Errors
    /// [`CallError::Refused`] when it is not frozen.
    pub async fn resume(&self) -> Result<(), CallError> {
        self.done(Request::Resume).await
    }

    /// Resolves when the container has exited.
    ///
    /// # Errors
    /// [`CallError::Gone`] when the shim vanished; the exit file may then exist.
    pub async fn wait(&self) -> Result<Exit, CallError> {
        match self.call(Request::Wait).await? {
            Reply::Exited(exit) => Ok(exit),
            reply => Err(unexpected(reply)),
        }
    }

    /// The container's stdio. All output from this moment on is in the stream: attach before
    /// [`Shim::start`] to miss nothing.
    ///
    /// # Errors
    /// [`CallError::Gone`] when the shim vanished.
    pub async fn attach(&self) -> Result<AttachStream, CallError> {
        let (stream, reply) = self.ask(Request::Attach).await?;
        match reply {
            Reply::Done => Ok(AttachStream(stream)),
            reply => Err(unexpected(reply)),
        }
    }

    /// Sets the size of the container's terminal.
    ///
    /// # Errors
    /// [`CallError::Refused`] when it has none or has exited.
    pub async fn resize(&self, width: u16, height: u16) -> Result<(), CallError> {
        self.done(Request::Resize { width, height }).await
    }

    /// Runs another process in the container; the stream is its stdio and ends after its last output.
    ///
    /// # Errors
    /// [`CallError::Runtime`] when the command cannot be executed, [`CallError::Refused`] when the container
    /// does not run.
    pub async fn exec(&self, request: ExecRequest) -> Result<(Started, AttachStream), CallError> {
        let (stream, reply) = self.ask(Request::ExecStart(request)).await?;
        match reply {
            Reply::Started(started) => Ok((started, AttachStream(stream))),
            reply => Err(unexpected(reply)),
        }
    }

    /// Sets the size of an exec's terminal.
    ///
    /// # Errors
    /// [`CallError::Refused`] when there is no such exec or it has no terminal.
    pub async fn exec_resize(&self, id: &str, width: u16, height: u16) -> Result<(), CallError> {
        self.done(Request::ExecResize { id: id.to_owned(), width, height }).await
    }

    /// Sends a signal to an exec's process.
    ///
    /// # Errors
    /// [`CallError::Refused`] when there is no such exec or it has ended.
    pub async fn exec_kill(&self, id: &str, signal: i32) -> Result<(), CallError> {
        self.done(Request::ExecKill { id: id.to_owned(), signal }).await
    }

    /// Resolves when the exec has exited. Each exec's exit is kept for as long as the shim lives.
    ///
    /// # Errors
    /// [`CallError::Refused`] when there is no such exec.
    pub async fn exec_wait(&self, id: &str) -> Result<Exit, CallError> {
        match self.call(Request::ExecWait { id: id.to_owned() }).await? {
            Reply::Exited(exit) => Ok(exit),
            reply => Err(unexpected(reply)),
        }
    }

    /// Ends the shim of an exited container; its socket and launch file are removed. A created container
    /// that was never started is thrown away.
    ///
    /// # Errors
    /// [`CallError::Refused`] when the container runs.
    pub async fn shutdown(&self) -> Result<(), CallError> {
        self.done(Request::Shutdown).await
    }

    async fn done(&self, request: Request) -> Result<(), CallError> {
        match self.call(request).await? {
            Reply::Done => Ok(()),
            reply => Err(unexpected(reply)),
        }
    }

    async fn call(&self, request: Request) -> Result<Reply, CallError> {
        self.ask(request).await.map(|(_, reply)| reply)
    }

    async fn ask(&self, request: Request) -> Result<(UnixStream, Reply), CallError> {
        let mut stream = self.stream().await?;
        let mut message = protocol::encode(&Hello { version: VERSION });
        message.extend(protocol::encode(&request));
        stream.write_all(&message).await.map_err(vanished)?;
        let _: Hello = read_message(&mut stream).await?;
        let reply = read_message(&mut stream).await?;
        Ok((stream, reply))
    }

    async fn stream(&self) -> Result<UnixStream, CallError> {
        let address = format!("/proc/self/fd/{}/{SOCKET}", self.dir.as_raw_fd());
        UnixStream::connect(address).await.map_err(vanished)
    }
}

/// A shim that is not there any more shows as one of these.
fn vanished(error: io::Error) -> CallError {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotFound, UnexpectedEof};
    match error.kind() {
        BrokenPipe | ConnectionRefused | ConnectionReset | NotFound | UnexpectedEof => CallError::Gone,
        _ => CallError::Io(error),
    }
}

fn unexpected(reply: Reply) -> CallError {
    match reply {
        Reply::Failed(failure) => CallError::Runtime(failure),
        Reply::Refused(why) => CallError::Refused(why),
        Reply::Done | Reply::Started(_) | Reply::State(_) | Reply::Exited(_) => {
            CallError::Io(io::Error::other("the shim answered another question"))
        }
    }
}

async fn read_message<T: serde::de::DeserializeOwned>(stream: &mut UnixStream) -> Result<T, CallError> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await.map_err(vanished)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > protocol::MESSAGE_MAX {
        return Err(CallError::Io(io::Error::other(format!("the shim sent a message of {length} bytes"))));
    }
    let mut json = vec![0; length];
    stream.read_exact(&mut json).await.map_err(vanished)?;
    serde_json::from_slice(&json).map_err(|error| CallError::Io(error.into()))
}

/// A container's or exec's stdio: reads give Docker's stdcopy frames (raw bytes with a terminal), writes
/// are its standard input, shutdown ends that input. Reads end after the last output.
#[derive(Debug)]
pub struct AttachStream(UnixStream);

impl AsyncRead for AttachStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for AttachStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
