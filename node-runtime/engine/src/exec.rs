//! Further processes inside a running container: those that clients ask for, and health probes.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rswarm_base::Timestamp;
use rswarm_shim::client::{AttachStream, CallError, ExecRequest, Shim};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

use crate::container::Container;
use crate::error::ExecError;
use crate::{merge, spec};

/// How many digits of its container's identifier end that of an exec.
const CONTAINER_DIGITS: usize = 32;
/// How long an exec can be asked about after its end.
const KEPT: Duration = Duration::from_secs(300);
/// How much of a probe's output is kept.
const OUTPUT_MAX: usize = 4096;
/// How much of a container's account files is read.
const ACCOUNTS_MAX: u64 = 10 << 20;

/// A process to run beside the container's own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecConfig {
    /// Program and arguments.
    pub command: Vec<String>,
    /// `KEY=VALUE`, added to the container's.
    pub env: Vec<String>,
    /// Working directory; empty for the container's.
    pub workdir: String,
    /// User; empty for the container's.
    pub user: String,
    /// With every capability.
    pub privileged: bool,
    /// On a terminal.
    pub tty: bool,
    /// Keep standard input open for the client.
    pub attach_stdin: bool,
    /// Pass standard output on.
    pub attach_stdout: bool,
    /// Pass standard error on.
    pub attach_stderr: bool,
    /// Size of the terminal at the start: width, height.
    pub console_size: Option<(u16, u16)>,
    /// The keys that let go of its terminal, as the client wrote them.
    pub detach_keys: String,
}

/// An exec and how it went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exec {
    /// 64 hexadecimal digits; [`container_of`] them tells where it runs.
    pub id: String,
    /// The container that it runs in.
    pub container_id: String,
    /// What was asked for.
    pub config: ExecConfig,
    /// Whether its process lives.
    pub running: bool,
    /// Its process; 0 before the start.
    pub pid: i32,
    /// How it ended; `None` while it has not.
    pub exit_code: Option<i32>,
    /// When it was created.
    pub created: Timestamp,
}

/// The beginning of its container's identifier, when that of an exec can be one: all who know of an exec know where it
/// is, without asking everybody and without remembering anything.
#[must_use]
pub fn container_of(exec_id: &str) -> Option<&str> {
    let is_id = exec_id.len() == 2 * CONTAINER_DIGITS && exec_id.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_id.then(|| &exec_id[CONTAINER_DIGITS..])
}

fn new_id(container_id: &str) -> String {
    let container = container_id.get(..CONTAINER_DIGITS).unwrap_or(container_id);
    let own = rswarm_base::id::engine_id();
    format!("{}{container}", &own[container.len()..])
}

/// An exec's streams. They end after its exit code is known, so that whoever reads to the end can ask for it.
#[derive(Debug)]
pub struct ExecStream {
    streams: AttachStream,
    /// Resolves, whether by a message or by being dropped, when the exit code is kept.
    exit: Option<oneshot::Receiver<()>>,
    at_end: bool,
}

impl ExecStream {
    pub(crate) fn new(streams: AttachStream, exit: oneshot::Receiver<()>) -> ExecStream {
        ExecStream { streams, exit: Some(exit), at_end: false }
    }
}

impl AsyncRead for ExecStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.at_end {
            let before = buf.filled().len();
            ready!(Pin::new(&mut self.streams).poll_read(cx, buf))?;
            if buf.filled().len() > before || buf.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            self.at_end = true;
        }
        if let Some(exit) = &mut self.exit {
            let _ = ready!(Pin::new(exit).poll(cx));
            self.exit = None;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ExecStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.streams).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.streams).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.streams).poll_shutdown(cx)
    }
}

/// All execs that can be asked about. Cloning gives another handle.
#[derive(Debug, Clone, Default)]
pub(crate) struct Execs {
    table: Arc<Mutex<BTreeMap<String, Entry>>>,
}

#[derive(Debug)]
struct Entry {
    exec: Exec,
    started: bool,
    shim: Option<Shim>,
    ended: Option<Timestamp>,
}

impl Execs {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn create(&self, container_id: &str, config: ExecConfig) -> Exec {
        let exec = Exec {
            id: new_id(container_id),
            container_id: container_id.to_owned(),
            config,
            running: false,
            pid: 0,
            exit_code: None,
            created: Timestamp::now(),
        };
        let mut table = self.lock();
        let now = exec.created;
        table.retain(|_, entry| entry.ended.is_none_or(|ended| now.since(ended) < KEPT));
        table.insert(exec.id.clone(), Entry { exec: exec.clone(), started: false, shim: None, ended: None });
        exec
    }

    pub(crate) fn get(&self, id: &str) -> Result<Exec, ExecError> {
        let not_found = || ExecError::NotFound(id.to_owned());
        self.lock().get(id).map(|entry| entry.exec.clone()).ok_or_else(not_found)
    }

    /// The shim of an exec whose process lives.
    pub(crate) fn shim(&self, id: &str) -> Result<Shim, ExecError> {
        let table = self.lock();
        let entry = table.get(id).ok_or_else(|| ExecError::NotFound(id.to_owned()))?;
        let running = entry.shim.clone().filter(|_| entry.exec.running);
        running.ok_or_else(|| ExecError::Conflict(format!("exec process {id} is not running")))
    }

    /// Takes the one start that an exec has.
    pub(crate) fn begin(&self, id: &str) -> Result<Exec, ExecError> {
        let mut table = self.lock();
        let entry = table.get_mut(id).ok_or_else(|| ExecError::NotFound(id.to_owned()))?;
        if std::mem::replace(&mut entry.started, true) {
            let state = if entry.ended.is_some() { "exited" } else { "running" };
            return Err(ExecError::Conflict(format!("exec {id} has already {state}")));
        }
        Ok(entry.exec.clone())
    }

    pub(crate) fn started(&self, id: &str, pid: i32, shim: Shim) {
        if let Some(entry) = self.lock().get_mut(id) {
            entry.exec.running = true;
            entry.exec.pid = pid;
            entry.shim = Some(shim);
        }
    }

    pub(crate) fn ended(&self, id: &str, exit_code: i32) {
        if let Some(entry) = self.lock().get_mut(id) {
            entry.exec.running = false;
            entry.exec.exit_code = Some(exit_code);
            entry.shim = None;
            entry.ended = Some(Timestamp::now());
        }
    }

    /// Those of a container that have not ended.
    pub(crate) fn of(&self, container_id: &str) -> Vec<String> {
        let table = self.lock();
        let own = table.values().filter(|entry| entry.exec.container_id == container_id);
        own.filter(|entry| entry.ended.is_none()).map(|entry| entry.exec.id.clone()).collect()
    }

    /// Forgets the execs that a run of their container did not start: the next run is another one.
    pub(crate) fn forget_unstarted(&self, container_id: &str) {
        self.lock().retain(|_, entry| entry.started || entry.exec.container_id != container_id);
    }

    /// Forgets the execs of a removed container.
    pub(crate) fn forget(&self, container_id: &str) {
        self.lock().retain(|_, entry| entry.exec.container_id != container_id);
    }
}

/// Whether a user text names somebody in the container: looked up in its own files, as they are now. Blocks.
///
/// # Errors
/// In Docker's words.
pub(crate) fn check_user(init: i32, user: &str) -> Result<(), String> {
    use rustix::fs::{Mode, OFlags};
    let root = format!("/proc/{init}/root");
    let root = rustix::fs::open(root, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|_| "container is not running".to_owned())?;
    user_numbers(&root, user).map(drop)
}

/// Whom a user text names in the file system below `root`.
///
/// # Errors
/// In Docker's words.
pub(crate) fn user_numbers(root: impl std::os::fd::AsFd, user: &str) -> Result<(u32, u32), String> {
    use rustix::fs::{Mode, OFlags, ResolveFlags};
    // A file that is not there is an empty one; no link in it leads out of the container.
    let read = |path: &str| -> String {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = rustix::fs::openat2(&root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT);
        let mut bytes = Vec::new();
        if let Ok(file) = file {
            let _ =
                io::Read::read_to_end(&mut io::Read::take(fs::File::from(file), ACCOUNTS_MAX), &mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let (passwd, group) = (read("etc/passwd"), read("etc/group"));
    rswarm_runtime::user::numbers(passwd, group, user).map_err(|failure| failure.to_string())
}

/// What the shim is asked for. `linked` are the variables that tell of linked containers.
pub(crate) fn request(
    exec: &Exec,
    container: &Container,
    linked: &[String],
    console_size: Option<(u16, u16)>,
) -> ExecRequest {
    let config = &exec.config;
    let base = merge::environment(&container.config.spec, &spec::host_name(container), linked);
    let mut env = merge::override_env(base, &config.env);
    if config.tty && !env.iter().any(|entry| entry.starts_with("TERM=")) {
        env.push("TERM=xterm".to_owned());
    }
    ExecRequest {
        id: exec.id.clone(),
        args: config.command.clone(),
        env,
        cwd: (!config.workdir.is_empty()).then(|| config.workdir.clone()),
        user: (!config.user.is_empty()).then(|| config.user.clone()),
        privileged: config.privileged,
        tty: config.tty,
        stdin: config.attach_stdin,
        console_size: console_size.or(config.console_size),
    }
}

/// A request of the engine's own: as the container's user, without input.
pub(crate) fn internal_request(
    container: &Container,
    linked: &[String],
    command: Vec<String>,
) -> ExecRequest {
    ExecRequest {
        id: rswarm_base::id::engine_id(),
        args: command,
        env: merge::environment(&container.config.spec, &spec::host_name(container), linked),
        ..ExecRequest::default()
    }
}

/// Runs a process to its end; its exit code and the beginning of its output.
pub(crate) async fn run(shim: &Shim, request: ExecRequest) -> Result<(i32, String), CallError> {
    let id = request.id.clone();
    let (_, stream) = shim.exec(request).await?;
    let output = read_output(stream).await;
    let exit = shim.exec_wait(&id).await?;
    Ok((exit.code, output))
}

/// Reads all frames, keeps the first bytes.
async fn read_output(mut stream: AttachStream) -> String {
    let mut output = Vec::new();
    let mut header = [0; 8];
    while stream.read_exact(&mut header).await.is_ok() {
        let [.., a, b, c, d] = header;
        let length = u64::from(u32::from_be_bytes([a, b, c, d]));
        let mut payload = (&mut stream).take(length);
        let room = OUTPUT_MAX.saturating_sub(output.len()) as u64;
        let kept = (&mut payload).take(room).read_to_end(&mut output).await;
        let skipped = tokio::io::copy(&mut payload, &mut tokio::io::sink()).await;
        if kept.is_err() || skipped.is_err() {
            break;
        }
    }
    String::from_utf8_lossy(&output).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exec_starts_once_and_is_known_until_its_container_goes() {
        let execs = Execs::default();
        let config = ExecConfig { command: vec!["true".into()], ..ExecConfig::default() };
        let exec = execs.create("c1", config);
        assert!(execs.begin(&exec.id).is_ok());
        assert!(matches!(execs.begin(&exec.id), Err(ExecError::Conflict(_))));
        assert!(matches!(execs.shim(&exec.id), Err(ExecError::Conflict(_))));
        execs.ended(&exec.id, 3);
        let known = execs.get(&exec.id).expect("known");
        assert_eq!((known.running, known.exit_code), (false, Some(3)));
        execs.forget("c1");
        assert_eq!(
            execs.get(&exec.id).expect_err("gone").to_string(),
            format!("No such exec instance: {}", exec.id)
        );
    }

    #[test]
    fn an_exec_is_called_after_its_container() {
        let container = rswarm_base::id::engine_id();
        let [one, other] = [new_id(&container), new_id(&container)];
        assert_ne!(one[..32], other[..32]);
        assert_eq!(container_of(&one), Some(&container[..32]));
        for text in [&one[1..], "web.1", "", &"\u{fc}".repeat(32)] {
            assert_eq!(container_of(text), None, "{text}");
        }
    }

    #[test]
    fn a_request_adds_to_the_containers_environment() {
        let mut config = crate::config::ContainerConfig::default();
        config.spec.env = vec!["A=container".into(), "B=container".into()];
        let container = spec::tests::container(config, Vec::new());
        let config = ExecConfig { env: vec!["A=exec".into()], tty: true, ..ExecConfig::default() };
        let request = request(&Execs::default().create("c1", config), &container, &[], Some((80, 25)));
        assert_eq!(request.env[2..], ["A=exec", "B=container", "TERM=xterm"]);
        assert_eq!((request.console_size, request.user, request.cwd), (Some((80, 25)), None, None));
    }
}
