//! The loop: what can happen, and what a container's end means.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::sys::signalfd::SignalFd;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use rswarm_base::{Timestamp, fsx};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::pipe::PipeFlags;

use super::connection::{Connection, Phase};
use super::container::Container;
use super::keeper::Keeper;
use super::process::Process;
use crate::launch::{Exit, LAUNCH_FILE, Launch, SOCKET, ShimState};
use crate::log::{Log, Stream};
use crate::note::note;
use crate::protocol::Reply;
use crate::sys;

/// The most that is read at once. The buffer is memory only as far as it was ever filled, and only until nothing
/// has moved for [`REST`].
const READ_MAX: usize = 256 << 10;

/// How long busy outputs gather.
const GATHER: Timespec = Timespec { tv_sec: 0, tv_nsec: 300_000 };

/// After so long without an event the buffers go.
const REST: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Where the container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    Created,
    Running { started_at: Timestamp, paused: bool },
    Stopped(Exit),
}

/// The shim and all that it looks after.
pub(super) struct Shim {
    pub launch: Launch,
    pub root: PathBuf,
    pub container: Container,
    pub life: Life,
    /// The container's first process, then execs.
    pub processes: Vec<Process>,
    pub connections: Vec<Connection>,
    /// Init never became the user's command: this is the exit code then.
    pub start_failed: Option<i32>,
    /// A client has sent the shim home.
    pub done: bool,
    listener: UnixListener,
    signals: SignalFd,
    keeper: Option<Keeper>,
    /// Empty while nothing moves.
    buffer: Vec<u8>,
}

/// What a descriptor in the poll set stands for; indices are stable during one turn.
#[derive(Debug, Clone, Copy)]
enum Source {
    Signals,
    Listener,
    Output(usize, Stream),
    Stdin(usize),
    Log(usize),
    Connection(usize),
}

impl Shim {
    pub(super) fn new(
        launch: Launch,
        root: PathBuf,
        container: Container,
        process: Process,
        listener: UnixListener,
        signals: SignalFd,
        keeper: Option<Keeper>,
    ) -> Shim {
        Shim {
            launch,
            root,
            container,
            life: Life::Created,
            processes: vec![process],
            connections: Vec::new(),
            start_failed: None,
            done: false,
            listener,
            signals,
            keeper,
            buffer: Vec::new(),
        }
    }

    /// Turns until a client sends the shim home.
    pub(super) fn run(mut self) {
        while !(self.done && self.connections.iter().all(|connection| !connection.has_output())) {
            if let Err(error) = self.turn() {
                // Only a bug or a kernel without memory gets here; the container must not outlive us unseen.
                note(format_args!("shim cannot poll and ends: {error}"));
                break;
            }
        }
        for file in [SOCKET, LAUNCH_FILE] {
            if let Err(error) = fsx::remove_all(&self.launch.state_dir.join(file)) {
                note(format_args!("file is left behind: {error}"));
            }
        }
    }

    /// Waits for something to happen and handles all that has.
    fn turn(&mut self) -> io::Result<()> {
        let happened = self.poll()?;
        let outputs = self.processes.iter_mut().flat_map(Process::outputs_mut);
        let gathered: usize = outputs.map(|output| usize::from(std::mem::take(&mut output.gathering))).sum();
        if happened.is_empty() && gathered == 0 {
            self.rest();
        }
        for (source, flags) in happened {
            match source {
                Source::Signals => self.on_signals(),
                Source::Listener => self.on_listener(),
                Source::Output(index, stream) => self.on_output(index, stream),
                Source::Stdin(index) => self.processes[index].pump(),
                Source::Log(index) => self.processes[index].pump_log(),
                Source::Connection(index) => self.on_connection(index, flags),
            }
        }
        self.connections.retain(|connection| !connection.is_over());
        Ok(())
    }

    /// Nothing has happened for a while: no memory is held for what may come.
    fn rest(&mut self) {
        self.buffer = Vec::new();
        for process in &mut self.processes {
            if let Some(log) = &mut process.log {
                log.rest();
            }
        }
        sys::trim_memory();
    }

    fn poll(&self) -> io::Result<Vec<(Source, PollFlags)>> {
        let mut fds: Vec<PollFd<'_>> = Vec::new();
        let mut sources: Vec<Source> = Vec::new();
        let mut add = |source, fd, flags| {
            sources.push(source);
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        };
        add(Source::Signals, self.signals.as_fd(), PollFlags::IN);
        add(Source::Listener, self.listener.as_fd(), PollFlags::IN);
        for (index, process) in self.processes.iter().enumerate() {
            if !self.has_slow_reader(process) {
                for output in process.outputs().iter().filter(|output| !output.gathering) {
                    add(Source::Output(index, output.stream), output.fd.as_fd(), PollFlags::IN);
                }
            }
            if let Some(fd) = process.stdin_wanted() {
                add(Source::Stdin(index), fd.as_fd(), PollFlags::OUT);
            }
            if let Some(fd) = process.log_wanted() {
                add(Source::Log(index), fd, PollFlags::OUT);
            }
        }
        for (index, connection) in self.connections.iter().enumerate() {
            let flags = self.wanted(connection);
            add(Source::Connection(index), borrow(connection), flags);
        }
        let gathering = self.processes.iter().flat_map(Process::outputs).any(|output| output.gathering);
        let timeout = if gathering { Some(&GATHER) } else { (!self.buffer.is_empty()).then_some(&REST) };
        match rustix::event::poll(&mut fds, timeout) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let happened = fds.iter().map(PollFd::revents).zip(sources);
        Ok(happened.filter(|(flags, _)| !flags.is_empty()).map(|(flags, source)| (source, flags)).collect())
    }

    fn wanted(&self, connection: &Connection) -> PollFlags {
        let mut flags = PollFlags::empty();
        let fits = match &connection.phase {
            Phase::Attached { exec, .. } => self.find(exec.as_deref()).is_some_and(Process::takes_input),
            Phase::Hello | Phase::Request | Phase::Waiting(_) | Phase::Closing => true,
        };
        flags.set(PollFlags::IN, connection.listens() && fits);
        flags.set(PollFlags::OUT, connection.has_output());
        flags
    }

    fn has_slow_reader(&self, process: &Process) -> bool {
        self.connections.iter().any(|connection| is_attached(connection, process) && connection.is_slow())
    }

    /// The container's first process, or an exec.
    pub(super) fn find(&self, exec: Option<&str>) -> Option<&Process> {
        self.processes.iter().find(|process| process.exec.as_deref() == exec)
    }

    pub(super) fn find_mut(&mut self, exec: Option<&str>) -> Option<&mut Process> {
        self.processes.iter_mut().find(|process| process.exec.as_deref() == exec)
    }

    fn on_listener(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            match Connection::new(stream) {
                Ok(connection) => self.connections.push(connection),
                Err(error) => note(format_args!("connection could not be taken: {error}")),
            }
        }
    }

    /// Reads once from an output, so that nobody starves others.
    fn on_output(&mut self, index: usize, stream: Stream) {
        self.read_output(index, stream);
    }

    /// Reads once; false when there is nothing more now.
    fn read_output(&mut self, index: usize, stream: Stream) -> bool {
        if self.buffer.is_empty() {
            self.buffer = vec![0; READ_MAX];
        }
        let process = &mut self.processes[index];
        let Some(bytes) = process.read(stream, &mut self.buffer) else { return false };
        if let Some(log) = &mut process.log {
            log.output(stream, bytes, Timestamp::wall());
        }
        let raw = process.terminal.is_some();
        for connection in self.connections.iter_mut().filter(|connection| is_attached(connection, process)) {
            connection.output(stream, bytes, raw);
        }
        true
    }

    fn on_connection(&mut self, index: usize, flags: PollFlags) {
        if flags.contains(PollFlags::OUT) {
            self.connections[index].flush();
        }
        if flags.contains(PollFlags::IN) {
            self.on_input(index);
        }
        // The client is gone; what it sent before is still there to be read.
        if flags.intersects(PollFlags::HUP | PollFlags::ERR) && !flags.contains(PollFlags::IN) {
            while self.connections[index].listens() && self.on_input(index) {}
            self.connections[index].break_off();
        }
    }

    /// Takes what a client sent; false when that was all.
    fn on_input(&mut self, index: usize) -> bool {
        let mut buffer = std::mem::take(&mut self.buffer);
        if buffer.is_empty() {
            buffer = vec![0; READ_MAX];
        }
        let open = self.connections[index].receive(&mut buffer);
        self.buffer = buffer;
        if let Phase::Attached { exec, .. } = self.connections[index].phase.clone() {
            let bytes = self.connections[index].take_raw();
            if let Some(process) = self.find_mut(exec.as_deref()) {
                process.feed(&bytes);
            }
        } else {
            self.on_messages(index);
        }
        if !open {
            self.end_input_of(index);
        }
        open
    }

    /// A client sends nothing any more.
    fn end_input_of(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        match &mut connection.phase {
            Phase::Attached { exec, sends } => {
                *sends = false;
                let exec = exec.clone();
                if let Some(process) = self.find_mut(exec.as_deref()) {
                    process.end_input();
                }
            }
            Phase::Hello | Phase::Request => connection.break_off(),
            Phase::Waiting(_) | Phase::Closing => {}
        }
    }

    /// Reaps whoever has ended: our own children and those that fell to us.
    fn on_signals(&mut self) {
        while let Ok(Some(_)) = self.signals.read_signal() {}
        self.reap();
    }

    pub(super) fn reap(&mut self) {
        loop {
            let (pid, code) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid.as_raw(), code),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid.as_raw(), 128 + signal as i32),
                Ok(WaitStatus::StillAlive) | Err(nix::Error::ECHILD) => return,
                Ok(_) | Err(nix::Error::EINTR) => continue,
                Err(error) => {
                    note(format_args!("children cannot be reaped: {error}"));
                    return;
                }
            };
            let ended = |process: &Process| process.pid == pid && process.exit.is_none();
            match self.processes.iter().position(ended) {
                Some(0) => self.on_exit(code),
                Some(index) => self.on_exec_exit(index, code),
                None => self.on_other_exit(pid),
            }
        }
    }

    /// One that fell to us, or our own keeper, which is replaced.
    fn on_other_exit(&mut self, pid: i32) {
        if self.keeper.as_ref().is_some_and(|keeper| keeper.pid == pid) {
            let keeper = Keeper::start(self.container.pidfd(), self.container.cgroup());
            self.keeper = keeper.inspect_err(|error| note(format_args!("no keeper: {error}"))).ok();
        }
    }

    /// The container has ended: what is left of it goes, then its exit is made durable, then it is told.
    fn on_exit(&mut self, code: i32) {
        let at = Timestamp::wall();
        let oom_killed = self.clear_away();
        let exit = Exit { code: self.start_failed.unwrap_or(code), at, oom_killed, shim_killed: false };
        if let Err(error) = record_exit(&self.launch.exit_file, exit) {
            note(format_args!("exit could not be recorded: {error}"));
        }
        self.processes[0].exit = Some(exit);
        self.life = Life::Stopped(exit);
        self.tell_exit(0, exit);
        self.container.delete(&self.launch);
    }

    /// Kills what shares the container's cgroup, saves its last words, and removes cgroup and root. Returns
    /// whether memory ran out in it.
    fn clear_away(&mut self) -> bool {
        let cgroup = self.container.cgroup().clone();
        let told = |what: &str, result: io::Result<()>| {
            if let Err(error) = result {
                note(format_args!("{what}: {error}"));
            }
        };
        told("container's processes could not be killed", cgroup.kill());
        if let Some(keeper) = self.keeper.take() {
            keeper.dismiss();
        }
        let oom_killed = cgroup.oom_kills() > 0;
        told("container's cgroup could not be removed", cgroup.remove());
        self.drain(0);
        let process = &mut self.processes[0];
        if let Some(mut log) = process.log.take() {
            log.finish(Timestamp::wall());
            if log.dropped() > 0 {
                note(format_args!("{} lines of output could not be logged", log.dropped()));
            }
        }
        process.close_stdin();
        process.terminal = None;
        told("container's root could not be unmounted", self.unmount_root());
        oom_killed
    }

    /// The last to let go of an overlay has to wait until everything below it is on disk. That is a copy of
    /// us, so that an exit need not wait for it.
    fn unmount_root(&self) -> io::Result<()> {
        let root = File::options().read(true).custom_flags(libc::O_PATH).open(&self.root)?;
        let (until, unmounted) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        if rswarm_runtime::fork()? == 0 {
            sys::close_all_but(&[root.as_raw_fd(), until.as_raw_fd()]);
            let _ = rustix::io::read(&until, &mut [0]);
            rswarm_runtime::exit_now(0);
        }
        drop(root);
        let done = self.launch.rootfs.unmount(&self.root);
        drop(unmounted);
        done
    }

    /// An exec's process has ended; those that it left running keep no stream open.
    fn on_exec_exit(&mut self, index: usize, code: i32) {
        self.drain(index);
        let exit = Exit { code, at: Timestamp::wall(), oom_killed: false, shim_killed: false };
        let process = &mut self.processes[index];
        process.close_stdin();
        process.terminal = None;
        process.exit = Some(exit);
        self.tell_exit(index, exit);
    }

    /// Reads all output that is there.
    fn drain(&mut self, index: usize) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            while self.read_output(index, stream) {}
        }
        self.processes[index].close_outputs();
    }

    /// Answers those who wait, before the streams end.
    fn tell_exit(&mut self, index: usize, exit: Exit) {
        let process = &self.processes[index];
        for connection in &mut self.connections {
            if connection.phase == Phase::Waiting(process.exec.clone()) {
                connection.send(&Reply::Exited(exit));
                connection.close();
            } else if is_attached(connection, process) {
                connection.close();
            }
        }
    }

    /// What a client is told.
    pub(super) fn state(&mut self) -> ShimState {
        let pid = self.container.pid;
        match self.life {
            Life::Created => ShimState::Created { pid },
            Life::Running { started_at, paused } => {
                let log_dropped = self.processes[0].log.as_mut().map_or(0, Log::dropped);
                ShimState::Running { pid, started_at, paused, log_dropped }
            }
            Life::Stopped(exit) => ShimState::Stopped(exit),
        }
    }
}

/// One file, written in place: there is none from an earlier run, and half of one reads as none. The directory
/// is synchronised too, which costs nothing where the file's own synchronisation has written its entry as well.
fn record_exit(path: &Path, exit: Exit) -> io::Result<()> {
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(&serde_json::to_vec(&exit)?)?;
    file.sync_all()?;
    fsx::sync_dir(path.parent().unwrap_or(Path::new("/")))
}

fn borrow(connection: &Connection) -> BorrowedFd<'_> {
    connection.stream.as_fd()
}

fn is_attached(connection: &Connection, process: &Process) -> bool {
    matches!(&connection.phase, Phase::Attached { exec, .. } if *exec == process.exec)
}
