//! What clients ask, answered.

use std::io;
use std::os::fd::OwnedFd;

use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use rswarm_base::Timestamp;
use rswarm_runtime::{Failure, Stdio};
use rustix::process::PidfdFlags;

use super::connection::Phase;
use super::event::{Life, Shim};
use super::process::Process;
use super::{Ends, pipes};
use crate::note::note;
use crate::protocol::{ExecRequest, Hello, Reply, Request, Started, VERSION};

/// What comes of a request.
enum Answer {
    /// This, and the end of the conversation.
    Reply(Reply),
    /// Nothing yet: the exit of the container or of this exec.
    Wait(Option<String>),
    /// This, and then the stdio of the container or of this exec.
    Stream(Reply, Option<String>),
}

impl Shim {
    /// Handles what has come from a client that is not attached.
    pub(super) fn on_messages(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        if connection.phase == Phase::Hello {
            match connection.message::<Hello>() {
                Ok(None) => return,
                Ok(Some(hello)) => {
                    connection.send(&Hello { version: VERSION });
                    connection.phase = Phase::Request;
                    if hello.version != VERSION {
                        let why = format!("the shim speaks version {VERSION}, not {}", hello.version);
                        connection.send(&Reply::Refused(why));
                        connection.close();
                        return;
                    }
                }
                Err(why) => return self.refuse(index, why),
            }
        }
        if self.connections[index].phase == Phase::Request {
            match self.connections[index].message::<Request>() {
                Ok(None) => {}
                Ok(Some(request)) => self.on_request(index, request),
                Err(why) => self.refuse(index, why),
            }
        }
    }

    fn refuse(&mut self, index: usize, why: String) {
        let connection = &mut self.connections[index];
        connection.send(&Reply::Refused(why));
        connection.close();
    }

    fn on_request(&mut self, index: usize, request: Request) {
        let answer = self.answer(request);
        let connection = &mut self.connections[index];
        match answer {
            Answer::Reply(reply) => {
                connection.send(&reply);
                connection.close();
            }
            Answer::Wait(exec) => connection.phase = Phase::Waiting(exec),
            Answer::Stream(reply, exec) => {
                connection.send(&reply);
                connection.phase = Phase::Attached { exec: exec.clone(), sends: true };
                let early = connection.take_raw();
                match self.find_mut(exec.as_deref()) {
                    Some(process) if process.exit.is_none() => process.feed(&early),
                    _ => self.connections[index].close(),
                }
            }
        }
    }

    fn answer(&mut self, request: Request) -> Answer {
        let reply = match request {
            Request::Wait => return self.wait(None),
            Request::ExecWait { id } => return self.wait(Some(id)),
            Request::Attach => return Answer::Stream(Reply::Done, None),
            Request::ExecStart(request) => return self.exec(&request),
            Request::Start => self.start(),
            Request::State => Reply::State(self.state()),
            Request::Kill { signal, all } => done(self.kill(signal, all)),
            Request::Pause => self.pause(),
            Request::Resume => self.resume(),
            Request::Resize { width, height } => self.resize(None, (width, height)),
            Request::ExecResize { id, width, height } => self.resize(Some(&id), (width, height)),
            Request::ExecKill { id, signal } => self.exec_kill(&id, signal),
            Request::Shutdown => self.shutdown(),
        };
        Answer::Reply(reply)
    }

    fn wait(&self, exec: Option<String>) -> Answer {
        match self.find(exec.as_deref()) {
            None => Answer::Reply(no_exec()),
            Some(process) => match process.exit {
                Some(exit) => Answer::Reply(Reply::Exited(exit)),
                None => Answer::Wait(exec),
            },
        }
    }

    fn start(&mut self) -> Reply {
        if self.life != Life::Created {
            return Reply::Refused("container was started already".to_owned());
        }
        match self.container.start(&self.launch) {
            Ok(()) => {
                let started_at = Timestamp::wall();
                self.life = Life::Running { started_at, paused: false };
                Reply::Started(Started { pid: self.container.pid, started_at })
            }
            Err(failure) => {
                self.start_failed = Some(failure.exit_code());
                self.end_init();
                Reply::Failed(failure)
            }
        }
    }

    /// Kills a first process that runs nothing of the user's, and waits for its end.
    fn end_init(&mut self) {
        let _ = rswarm_runtime::send_signal(self.container.pidfd(), Signal::SIGKILL as i32);
        while !matches!(self.life, Life::Stopped(_)) {
            let id = Id::Pid(Pid::from_raw(self.container.pid));
            match waitid(id, WaitPidFlag::WNOWAIT | WaitPidFlag::WEXITED) {
                Ok(_) | Err(nix::Error::EINTR) => self.reap(),
                Err(error) => {
                    note(format_args!("init cannot be waited for: {error}"));
                    return;
                }
            }
        }
    }

    fn kill(&self, signal: i32, all: bool) -> io::Result<()> {
        if matches!(self.life, Life::Stopped(_)) {
            return Err(io::Error::other("container is not running"));
        }
        self.container.kill(signal, all)
    }

    fn exec_kill(&self, id: &str, signal: i32) -> Reply {
        match self.find(Some(id)) {
            None => no_exec(),
            Some(process) if process.exit.is_some() => Reply::Refused("exec has ended".to_owned()),
            Some(process) => {
                done(open_pidfd(process.pid).and_then(|fd| rswarm_runtime::send_signal(fd, signal)))
            }
        }
    }

    fn pause(&mut self) -> Reply {
        match &mut self.life {
            Life::Running { paused: true, .. } => Reply::Refused("container is paused already".to_owned()),
            Life::Running { paused, .. } => match self.container.pause() {
                Ok(()) => {
                    *paused = true;
                    Reply::Done
                }
                Err(failure) => Reply::Failed(failure),
            },
            Life::Created | Life::Stopped(_) => Reply::Refused("container is not running".to_owned()),
        }
    }

    fn resume(&mut self) -> Reply {
        match &mut self.life {
            Life::Running { paused, .. } if *paused => match self.container.resume() {
                Ok(()) => {
                    *paused = false;
                    Reply::Done
                }
                Err(failure) => Reply::Failed(failure),
            },
            Life::Running { .. } | Life::Created | Life::Stopped(_) => {
                Reply::Refused("container is not paused".to_owned())
            }
        }
    }

    fn resize(&self, exec: Option<&str>, size: (u16, u16)) -> Reply {
        let Some(process) = self.find(exec) else { return no_exec() };
        match &process.terminal {
            Some(terminal) => match rswarm_runtime::resize(terminal, size) {
                Ok(()) => Reply::Done,
                Err(failure) => Reply::Failed(failure),
            },
            None if process.exit.is_some() => Reply::Refused("process has ended".to_owned()),
            None => Reply::Refused("process has no terminal".to_owned()),
        }
    }

    fn shutdown(&mut self) -> Reply {
        match self.life {
            Life::Running { .. } => return Reply::Refused("container is running".to_owned()),
            Life::Created => self.end_init(),
            Life::Stopped(_) => {}
        }
        self.done = true;
        Reply::Done
    }

    fn exec(&mut self, request: &ExecRequest) -> Answer {
        match self.life {
            Life::Running { paused: false, .. } => {}
            Life::Running { paused: true, .. } => return refused("container is paused"),
            Life::Created | Life::Stopped(_) => return refused("container is not running"),
        }
        if self.find(Some(&request.id)).is_some() {
            return refused("there is such an exec already");
        }
        match self.add_process(request) {
            Ok(pid) => {
                let started = Started { pid, started_at: Timestamp::wall() };
                Answer::Stream(Reply::Started(started), Some(request.id.clone()))
            }
            Err(failure) => Answer::Reply(Reply::Failed(failure)),
        }
    }

    fn add_process(&mut self, request: &ExecRequest) -> Result<i32, Failure> {
        let pipes_failed = |error| Failure::os("make the exec's stdio", error);
        let (stdio, ends) = if request.tty {
            (Stdio::Terminal(request.console_size), Ends::default())
        } else {
            pipes(request.stdin).map_err(pipes_failed)?
        };
        let added = self.container.exec(&self.launch, request, stdio)?;
        let mut process = match added.terminal {
            Some(near) => Process::with_terminal(added.pid, near, request.stdin),
            None => Process::with_pipes(added.pid, ends),
        }
        .map_err(pipes_failed)?;
        process.exec = Some(request.id.clone());
        process.stdin_once = true;
        self.processes.push(process);
        Ok(added.pid)
    }
}

fn refused(why: &str) -> Answer {
    Answer::Reply(Reply::Refused(why.to_owned()))
}

/// Safe for a child that was not reaped: its number is not given away.
fn open_pidfd(pid: i32) -> io::Result<OwnedFd> {
    let pid = rustix::process::Pid::from_raw(pid).ok_or_else(|| io::Error::other("process has ended"))?;
    Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
}

fn no_exec() -> Reply {
    Reply::Refused("there is no such exec".to_owned())
}

fn done(result: io::Result<()>) -> Reply {
    match result {
        Ok(()) => Reply::Done,
        Err(error) => Reply::Refused(rswarm_runtime::describe(&error)),
    }
}
