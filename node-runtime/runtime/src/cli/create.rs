//! `create` and `run`.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use rswarm_base::Timestamp;
use rustix::fs::{Mode, OFlags};

use super::args::{Flag, Order, Parsed};
use super::console::{
    CONSOLE_SOCKET, PID_FILE, PIDFD_SOCKET, PRESERVE_FDS, check_preserved, check_terminal, hand_over, stdio,
    write_pid,
};
use super::foreground::Foreground;
use super::own_program::run_from_readonly_view;
use super::store::{Entry, FIFO, Init, Record};
use super::{Call, Command, delete, start};
use crate::cgroup::container_path;
use crate::create::{Create, Created};
use crate::failure::{Context, Failure};
use crate::last::Gate;
use crate::spec;

const BUNDLE: Flag = Flag::value("bundle", "DIR", "the bundle (default: the working directory)").or("b");
const NO_PIVOT: Flag = Flag::switch("no-pivot", "enter the root by chroot, where / is an initramfs");
const NO_NEW_KEYRING: Flag = Flag::switch("no-new-keyring", "keep the caller's session keyring");
const NO_SUBREAPER: Flag = Flag::switch("no-subreaper", "do not reap what the container's processes leave");

pub(super) const CREATE: Command = Command {
    name: "create",
    args: "ID",
    about: "make a container; its command waits for `start`",
    flags: &[
        BUNDLE,
        CONSOLE_SOCKET,
        PIDFD_SOCKET,
        PID_FILE,
        PRESERVE_FDS,
        NO_PIVOT,
        NO_NEW_KEYRING,
        // As runc: there it is of no effect either.
        NO_SUBREAPER,
    ],
    order: Order::Anywhere,
    run: create,
};

pub(super) const RUN: Command = Command {
    name: "run",
    args: "ID",
    about: "make a container, start it, wait for its end and delete it",
    flags: &[
        BUNDLE,
        CONSOLE_SOCKET,
        PIDFD_SOCKET,
        PID_FILE,
        PRESERVE_FDS,
        NO_PIVOT,
        NO_NEW_KEYRING,
        NO_SUBREAPER,
        Flag::switch("detach", "do not wait").or("d"),
        Flag::switch("keep", "do not delete"),
    ],
    order: Order::Anywhere,
    run,
};

fn create(call: &Call<'_>) -> Result<i32, Failure> {
    call.store.check(call.args.only_id()?)?;
    run_from_readonly_view()?;
    make(call, &Plan::of(call, true)?).map(|_| 0)
}

fn run(call: &Call<'_>) -> Result<i32, Failure> {
    let detached = call.args.has("detach");
    call.store.check(call.args.only_id()?)?;
    run_from_readonly_view()?;
    let plan = Plan::of(call, detached)?;
    if detached {
        let (entry, _) = make(call, &plan)?;
        return start::start(&entry).inspect_err(|_| drop(delete::destroy(&entry))).map(|()| 0);
    }
    if !call.args.has("no-subreaper") {
        nix::sys::prctl::set_child_subreaper(true).context("become a subreaper")?;
    }
    // Before the process exists: no signal of its end may be lost.
    let foreground = Foreground::prepare()?;
    let (mut entry, created) = make(call, &plan)?;
    let started = start::start(&entry);
    // Other commands may have the container from here on.
    entry.release();
    let ended = started.and_then(|()| foreground.follow(created.pid, &created.pidfd, created.terminal));
    if call.args.has("keep") {
        return ended;
    }
    let entry = call.store.hold(&entry.record.id);
    match entry {
        Ok(entry) => delete::destroy(&entry)?,
        // Somebody else has deleted it.
        Err(_) if ended.is_ok() => {}
        Err(failure) => return ended.and(Err(failure)),
    }
    ended
}

/// What is to be made, checked before anything is.
struct Plan {
    spec: Spec,
    bundle: PathBuf,
    terminal: bool,
    detached: bool,
    preserve_fds: u32,
}

impl Plan {
    fn of(call: &Call<'_>, detached: bool) -> Result<Plan, Failure> {
        let bundle = bundle(&call.args)?;
        let mut spec = spec::load(&bundle)?;
        let terminal = spec::process(&spec)?.terminal().unwrap_or(false);
        check_terminal(terminal, detached, call.args.value("console-socket"))?;
        let preserved = call.args.number("preserve-fds")?.unwrap_or(0);
        let listening = listening_fds();
        let preserve_fds = listening + preserved;
        check_preserved(preserve_fds)?;
        if listening > 0 {
            announce(&mut spec, listening);
        }
        place(&mut spec, call)?;
        Ok(Plan { spec, bundle, terminal, detached, preserve_fds })
    }

    fn record(&self, id: &str) -> Result<Record, Failure> {
        let linux = spec::linux(&self.spec)?;
        Ok(Record {
            id: id.to_owned(),
            bundle: self.bundle.clone(),
            rootfs: spec::root_path(&self.spec, &self.bundle)?,
            cgroup: linux.cgroups_path().clone().unwrap_or_default(),
            created: Timestamp::now(),
            version: self.spec.version().clone(),
            annotations: self.spec.annotations().clone().into_iter().flatten().collect(),
            owns_pids: spec::has_new_namespace(linux, LinuxNamespaceType::Pid),
            has_hooks: self.spec.hooks().is_some(),
            init: None,
        })
    }
}

fn bundle(args: &Parsed) -> Result<PathBuf, Failure> {
    let given = args.value("bundle").filter(|dir| !dir.is_empty()).unwrap_or(".");
    fs::canonicalize(given).with_context(|| format!("bundle `{given}`"))
}

/// How many sockets a service manager has passed to this process.
// sd_listen_fds(3)
fn listening_fds() -> u32 {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    match (number("LISTEN_PID"), number("LISTEN_FDS")) {
        (Some(pid), Some(count)) if pid == std::process::id() => count,
        _ => 0,
    }
}

/// Tells the container's command of them: it is process 1 where it is.
fn announce(spec: &mut Spec, listening: u32) {
    if let Some(process) = spec.process_mut() {
        let mut env = process.env().clone().unwrap_or_default();
        env.extend([format!("LISTEN_FDS={listening}"), "LISTEN_PID=1".to_owned()]);
        process.set_env(Some(env));
    }
}

/// Gives the container a cgroup path, whatever form the configuration has it in.
fn place(spec: &mut Spec, call: &Call<'_>) -> Result<(), Failure> {
    let configured = spec::linux(spec)?.cgroups_path().clone();
    let path = container_path(configured.as_deref(), call.args.only_id()?, call.systemd_cgroup)?;
    if let Some(linux) = spec.linux_mut() {
        linux.set_cgroups_path(Some(path));
    }
    Ok(())
}

/// Makes a container and remembers it; other commands are kept out until the entry goes.
fn make(call: &Call<'_>, plan: &Plan) -> Result<(Entry, Created), Failure> {
    let id = call.args.only_id()?;
    let mut entry = call.store.reserve(plan.record(id)?, &plan.spec)?;
    let made = make_process(call, plan, &entry).and_then(|created| {
        let done = tell(call, &mut entry, &created);
        done.inspect_err(|_| end(&created)).map(|()| created)
    });
    match made {
        Ok(created) => Ok((entry, created)),
        Err(failure) => {
            let _ = call.store.forget_remains(id);
            Err(failure)
        }
    }
}

fn make_process(call: &Call<'_>, plan: &Plan, entry: &Entry) -> Result<Created, Failure> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fifo = rustix::fs::open(entry.dir.join(FIFO), flags, Mode::empty()).context("open the start FIFO")?;
    crate::create(Create {
        id: &entry.record.id,
        spec: &plan.spec,
        bundle: &plan.bundle,
        user: None,
        groups: &[],
        stdio: stdio(plan.terminal, plan.detached),
        gate: Gate::Fifo(fifo),
        preserve_fds: plan.preserve_fds,
        no_pivot: call.args.has("no-pivot"),
        new_keyring: !call.args.has("no-new-keyring"),
        die_with_parent: false,
    })
}

/// Tells everyone who wants to know of the new process.
fn tell(call: &Call<'_>, entry: &mut Entry, created: &Created) -> Result<(), Failure> {
    if let (Some(socket), Some(terminal)) = (call.args.value("console-socket"), &created.terminal) {
        hand_over(Path::new(socket), b"/dev/ptmx", terminal)?;
    }
    if let Some(socket) = call.args.value("pidfd-socket") {
        hand_over(Path::new(socket), b"pidfd", &created.pidfd)?;
    }
    entry.record.init = Some(Init::of(created.pid).ok_or_else(|| Failure::other("init is gone"))?);
    entry.remember()?;
    write_pid(call.args.value("pid-file"), created.pid)
}

/// Undoes a creation.
fn end(created: &Created) {
    let _ = created.cgroup.kill();
    let _ = waitpid(Pid::from_raw(created.pid), None);
    let _ = created.cgroup.remove();
}
