//! The commands.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use oci_spec::runtime::Spec;
use rswarm_base::{Timestamp, fsx};
use rustix::event::{PollFd, PollFlags};

use super::args::Parsed;
use super::say;
use super::store::{Entry, FIFO, Record, Status, Store, start_ticks};
use crate::create::{Create, Created, create};
use crate::failure::{Context, Failure};
use crate::init::Gate;
use crate::terminal::Stdio;
use crate::{spec, sys};

const BUNDLE: (&str, bool) = ("--bundle", true);
const PID_FILE: (&str, bool) = ("--pid-file", true);
const CONSOLE: (&str, bool) = ("--console-socket", true);
const NO_KEYRING: (&str, bool) = ("--no-new-keyring", false);

/// How long a killed container may take to end.
const ENDS_WITHIN: Duration = Duration::from_secs(10);

/// Runs one command.
pub(super) fn run(command: &str, args: &[String], store: &Store) -> Result<i32, Failure> {
    let parse = |known: &[(&str, bool)]| Parsed::leading(args, known);
    match command {
        "create" => create_command(&parse(&[BUNDLE, PID_FILE, CONSOLE, NO_KEYRING])?, store),
        "run" => run_command(&parse(&[BUNDLE, PID_FILE, CONSOLE, NO_KEYRING, ("--detach", false)])?, store),
        "start" => start(&store.find(only_id(&parse(&[])?)?)?),
        "state" => state(&store.find(only_id(&parse(&[])?)?)?),
        "kill" => kill(&parse(&[("--all", false)])?, store),
        "pause" => freeze(&store.find(only_id(&parse(&[])?)?)?, true),
        "resume" => freeze(&store.find(only_id(&parse(&[])?)?)?, false),
        "delete" => delete(&parse(&[("--force", false)])?, store),
        "spec" => write_spec(&parse(&[BUNDLE])?),
        "features" => features(),
        other => {
            Err(Failure::invalid(format!("command `{other}` is not known; see `rswarm runtime --help`")))
        }
    }
}

fn only_id(parsed: &Parsed) -> Result<&str, Failure> {
    match parsed.rest.as_slice() {
        [id] => Ok(id),
        _ => Err(Failure::invalid("exactly one container id is needed")),
    }
}

fn create_command(parsed: &Parsed, store: &Store) -> Result<i32, Failure> {
    run_from_readonly_view()?;
    remember(parsed, store).map(|_| 0)
}

/// Creates a container and remembers it.
fn remember(parsed: &Parsed, store: &Store) -> Result<Entry, Failure> {
    let id = only_id(parsed)?;
    let bundle = bundle(parsed)?;
    let spec = spec::load(&bundle)?;
    let dir = store.reserve(id)?;
    let made = make(parsed, id, &spec, &bundle, &dir).and_then(|created| {
        let done = write_down(parsed, id, &spec, &bundle, &dir, &created);
        done.inspect_err(|_| destroy(&created))
    });
    made.inspect_err(|_| {
        let _ = fsx::remove_all(&dir);
    })
}

fn bundle(parsed: &Parsed) -> Result<PathBuf, Failure> {
    let given = Path::new(parsed.value("--bundle").unwrap_or("."));
    fs::canonicalize(given).with_context(|| format!("bundle `{}`", given.display()))
}

fn make(parsed: &Parsed, id: &str, spec: &Spec, bundle: &Path, dir: &Path) -> Result<Created, Failure> {
    let terminal = spec::process(spec)?.terminal().unwrap_or(false);
    let console = match (terminal, parsed.value("--console-socket")) {
        (true, None) => return Err(Failure::invalid("a terminal needs --console-socket")),
        (false, Some(_)) => {
            return Err(Failure::invalid("--console-socket is for containers with a terminal"));
        }
        (_, socket) => socket,
    };
    rustix::fs::mknodat(
        rustix::fs::CWD,
        dir.join(FIFO),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .context("make the start FIFO")?;
    let dir = File::open(dir).context("open the state directory")?;
    let created = create(Create {
        id,
        spec,
        bundle,
        user: None,
        groups: &[],
        stdio: if terminal { Stdio::Terminal(None) } else { Stdio::Inherit },
        gate: Gate::Fifo { dir: dir.into(), name: FIFO.to_owned() },
        preserve_fds: 0,
        no_pivot: false,
        new_keyring: !parsed.has("--no-new-keyring"),
        die_with_parent: false,
    })?;
    if let (Some(socket), Some(terminal)) = (console, &created.terminal) {
        hand_over(Path::new(socket), terminal).inspect_err(|_| destroy(&created))?;
    }
    Ok(created)
}

/// Sends a terminal's near end to whoever listens.
fn hand_over(socket: &Path, terminal: &OwnedFd) -> Result<(), Failure> {
    let what = || format!("send terminal to `{}`", socket.display());
    let stream = UnixStream::connect(socket).with_context(what)?;
    let fds = [terminal.as_raw_fd()];
    let name = [io::IoSlice::new(b"/dev/ptmx")];
    let rights = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(stream.as_raw_fd(), &name, &rights, MsgFlags::MSG_NOSIGNAL, None).with_context(what)?;
    Ok(())
}

fn write_down(
    parsed: &Parsed,
    id: &str,
    spec: &Spec,
    bundle: &Path,
    dir: &Path,
    created: &Created,
) -> Result<Entry, Failure> {
    let record = Record {
        id: id.to_owned(),
        pid: created.pid,
        start_ticks: start_ticks(created.pid).ok_or_else(|| Failure::other("init is gone"))?,
        bundle: bundle.to_owned(),
        cgroup: created.cgroup.path().to_owned(),
        created: Timestamp::now(),
        version: spec.version().clone(),
        annotations: spec.annotations().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect(),
    };
    fsx::write_json(&dir.join("state.json"), &record).context("remember container")?;
    if let Some(path) = parsed.value("--pid-file") {
        fsx::write_atomic(Path::new(path), created.pid.to_string().as_bytes()).context("write pid file")?;
    }
    Ok(Entry { dir: dir.to_owned(), record })
}

fn destroy(created: &Created) {
    let _ = created.cgroup.kill();
    let _ = waitpid(Pid::from_raw(created.pid), None);
    let _ = created.cgroup.remove();
}

/// Lets init run: opening its FIFO is the word, and what comes out of it is why it could not.
fn start(entry: &Entry) -> Result<i32, Failure> {
    if entry.status()? != Status::Created {
        return Err(Failure::invalid(format!(
            "container `{}` is not in the state `created`",
            entry.record.id
        )));
    }
    // Before the word is given: after it, init may be gone at any moment.
    let init = init_of(entry)?;
    let fifo = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(entry.dir.join(FIFO))
        .context("open the start FIFO")?;
    let said = hear(&fifo, &init)?;
    fs::remove_file(entry.dir.join(FIFO)).context("remove the start FIFO")?;
    match serde_json::from_slice::<Failure>(&said) {
        Ok(failure) => Err(failure),
        Err(_) => Ok(0),
    }
}

/// Reads until the writer closes or init ends. What was said is read after the end was seen: one poll may
/// look at the FIFO before the last words and at init after its death.
fn hear(fifo: &File, init: &OwnedFd) -> Result<Vec<u8>, Failure> {
    let mut said = Vec::new();
    loop {
        let mut fds = [PollFd::new(fifo, PollFlags::IN), PollFd::new(init, PollFlags::IN)];
        match rustix::event::poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            polled => polled.context("wait for init")?,
        };
        let silent = fds[0].revents().contains(PollFlags::HUP) || !fds[1].revents().is_empty();
        match io::Read::read_to_end(&mut &*fifo, &mut said) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            read => drop(read.context("read the start FIFO")?),
        }
        if silent {
            return Ok(said);
        }
    }
}

fn init_of(entry: &Entry) -> Result<OwnedFd, Failure> {
    let gone = || Failure::other(format!("container `{}` is not running", entry.record.id));
    let pid = rustix::process::Pid::from_raw(entry.record.pid).ok_or_else(gone)?;
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).map_err(|_| gone())?;
    // The number may have been given away between the look and the open.
    if start_ticks(entry.record.pid) == Some(entry.record.start_ticks) { Ok(pidfd) } else { Err(gone()) }
}

// spec: oci-runtime runtime.md#state
fn state(entry: &Entry) -> Result<i32, Failure> {
    let record = &entry.record;
    let status = entry.status()?;
    let mut state = serde_json::json!({
        "ociVersion": record.version,
        "id": record.id,
        "status": status,
        "bundle": record.bundle,
        "created": record.created.to_string(),
        "annotations": record.annotations,
    });
    state["pid"] = if status == Status::Stopped { 0.into() } else { record.pid.into() };
    say(&format!("{state:#}\n"))
}

fn kill(parsed: &Parsed, store: &Store) -> Result<i32, Failure> {
    let (id, signal) = match parsed.rest.as_slice() {
        [id] => (id, "TERM"),
        [id, signal] => (id, signal.as_str()),
        _ => return Err(Failure::invalid("a container id and at most one signal are needed")),
    };
    let number =
        signal_number(signal).ok_or_else(|| Failure::invalid(format!("signal `{signal}` is not known")))?;
    let entry = store.find(id)?;
    if parsed.has("--all") {
        let signal = Signal::try_from(number).context("send signal to all")?;
        entry.cgroup()?.signal(signal).context("send signal to all")?;
        return Ok(0);
    }
    if entry.status()? == Status::Stopped {
        return Err(Failure::invalid("container not running"));
    }
    sys::send_signal(init_of(&entry)?, number).context("send signal")?;
    Ok(0)
}

/// `9`, `KILL` or `SIGKILL`.
fn signal_number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=libc::SIGRTMAX()).contains(&number).then_some(number);
    }
    let upper = text.to_uppercase();
    let name = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    name.parse::<Signal>().ok().map(|signal| signal as i32)
}

fn freeze(entry: &Entry, frozen: bool) -> Result<i32, Failure> {
    let (wanted, what) = if frozen { (Status::Running, "running") } else { (Status::Paused, "paused") };
    if entry.status()? != wanted {
        return Err(Failure::invalid(format!("container `{}` is not {what}", entry.record.id)));
    }
    let cgroup = entry.cgroup()?;
    if frozen { cgroup.freeze() } else { cgroup.thaw() }.context("change the freezer")?;
    Ok(0)
}

/// Forgets a stopped container, or with force any, also one that is not there.
fn delete(parsed: &Parsed, store: &Store) -> Result<i32, Failure> {
    let (id, force) = (only_id(parsed)?, parsed.has("--force"));
    let entry = match store.find(id) {
        Err(_) if force => return Ok(0),
        found => found?,
    };
    let status = entry.status()?;
    if status != Status::Stopped && !force {
        return Err(Failure::invalid(format!(
            "cannot delete container `{id}` that is not stopped: {status:?}"
        )));
    }
    forget(&entry)?;
    Ok(0)
}

fn forget(entry: &Entry) -> Result<(), Failure> {
    let cgroup = entry.cgroup()?;
    cgroup.kill().context("kill the container's processes")?;
    let deadline = Instant::now() + ENDS_WITHIN;
    while entry.status()? != Status::Stopped && Instant::now() < deadline {
        sleep(Duration::from_millis(1));
    }
    cgroup.remove().context("remove cgroup")?;
    fsx::remove_all(&entry.dir).context("forget container")
}

fn run_command(parsed: &Parsed, store: &Store) -> Result<i32, Failure> {
    run_from_readonly_view()?;
    if parsed.has("--detach") {
        let entry = remember(parsed, store)?;
        start(&entry).inspect_err(|_| drop(forget(&entry)))?;
        return Ok(0);
    }
    nix::sys::prctl::set_child_subreaper(true).context("become a subreaper")?;
    let mut signals = SigSet::empty();
    for signal in [
        Signal::SIGCHLD,
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGQUIT,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
    ] {
        signals.add(signal);
    }
    signals.thread_block().context("take signals")?;
    let entry = remember(parsed, store)?;
    let ended = start(&entry).and_then(|_| foreground(&entry, &signals));
    forget(&entry)?;
    ended
}

/// Passes signals on until init has ended, and reaps whoever falls to us.
fn foreground(entry: &Entry, signals: &SigSet) -> Result<i32, Failure> {
    loop {
        loop {
            let (pid, code) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, code),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32),
                Ok(WaitStatus::StillAlive) => break,
                Ok(_) | Err(nix::Error::EINTR) => continue,
                Err(error) => return Err(Failure::os("wait for init", error)),
            };
            if pid.as_raw() == entry.record.pid {
                return Ok(code);
            }
        }
        let signal = signals.wait().context("wait for signals")?;
        if signal != Signal::SIGCHLD
            && let Ok(init) = init_of(entry)
        {
            let _ = sys::send_signal(init, signal as i32);
        }
    }
}

fn write_spec(parsed: &Parsed) -> Result<i32, Failure> {
    if !parsed.rest.is_empty() {
        return Err(Failure::invalid("spec takes no arguments"));
    }
    let path = bundle(parsed)?.join("config.json");
    let spec = serde_json::to_vec_pretty(&Spec::default()).map_err(io::Error::from).context("make spec")?;
    let mut file = match File::options().write(true).create_new(true).open(&path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(Failure::invalid(format!("`{}` exists already", path.display())));
        }
        file => file.with_context(|| format!("create `{}`", path.display()))?,
    };
    io::Write::write_all(&mut file, &spec).context("write config.json")?;
    Ok(0)
}

// spec: oci-runtime features.md
fn features() -> Result<i32, Failure> {
    let capabilities: Vec<String> =
        caps::runtime::thread_all_supported().iter().map(ToString::to_string).collect();
    let annotations: BTreeMap<&str, &str> =
        BTreeMap::from([("org.rswarm.version", env!("CARGO_PKG_VERSION"))]);
    let features = serde_json::json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": oci_spec::runtime::VERSION,
        "hooks": [],
        "mountOptions": crate::rootfs::known_options(),
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "uts"],
            "capabilities": capabilities,
            "cgroup": {"v1": true, "v2": true, "systemd": false, "systemdUser": false, "rdma": false},
            "seccomp": {
                "enabled": true,
                "actions": crate::seccomp::ACTIONS,
                "operators": crate::seccomp::OPERATORS,
                "archs": crate::seccomp::ARCHITECTURES,
            },
            "apparmor": {"enabled": false},
            "selinux": {"enabled": false},
        },
        "annotations": annotations,
    });
    say(&format!("{features:#}\n"))
}

/// Starts this program anew from a view of its file that no container can write through, unless it runs
/// from one already. See [`crate::readonly_program`].
fn run_from_readonly_view() -> Result<(), Failure> {
    let own = Path::new("/proc/self/exe");
    let mounted = rustix::fs::statvfs(own).context("look at own program")?;
    if mounted.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
        return Ok(());
    }
    let view = crate::readonly_program(own).context("make own program read-only")?;
    execute_view(view.as_fd()).map(|never| match never {})
}

fn execute_view(view: impl AsRawFd) -> Result<Infallible, Failure> {
    use std::os::unix::process::CommandExt;
    let mut args = std::env::args_os();
    let name = args.next().unwrap_or_default();
    let path = format!("/proc/self/fd/{}", view.as_raw_fd());
    let error = std::process::Command::new(path).arg0(name).args(args).exec();
    Err(Failure::os("run own program again", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_has_a_number_and_two_names() {
        assert_eq!(["9", "KILL", "SIGKILL", "kill"].map(signal_number), [Some(9); 4]);
        assert_eq!((signal_number("0"), signal_number("NONE"), signal_number("99")), (None, None, None));
    }
}
