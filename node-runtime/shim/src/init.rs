//! The tiny init of `--init`: `docker-init -- COMMAND…`, the container's first process.
//!
//! It starts the command, hands every signal that it gets on to it, reaps whatever falls to it, and ends with the
//! command's exit code. It is this very binary, bound into the container read-only under that name, and needs
//! nothing there: no `/proc`, no library, no file.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, setpgid, tcsetpgrp};

use crate::sys;

/// The name by which the binary knows that it is this.
pub const NAME: &str = "docker-init";

/// The command cannot be executed, the command is not there: as a shell says it.
const NOT_EXECUTABLE: i32 = 126;
const NOT_FOUND: i32 = 127;

/// Runs as init; called before any thread exists, with the arguments after the name. Returns the exit code.
#[must_use]
pub fn main(args: &[OsString]) -> i32 {
    let command = match args {
        [separator, command @ ..] if separator == "--" => command,
        command => command,
    };
    let Some((program, args)) = command.split_first() else {
        say("usage: docker-init -- COMMAND [ARG...]");
        return 2;
    };
    // Blocked before the command exists: no end of a child and no signal is missed.
    let all = SigSet::all();
    let signals = all.thread_block().and_then(|()| SignalFd::new(&all));
    let signals = match signals {
        Ok(signals) => signals,
        Err(error) => return failed("take signals", &error),
    };
    match rswarm_runtime::fork() {
        Ok(0) => become_command(program, args),
        Ok(child) => watch(&signals, Pid::from_raw(child)),
        Err(error) => failed("fork", &error),
    }
}

/// In a process group of its own, which has the terminal if there is one.
fn become_command(program: &OsString, args: &[OsString]) -> ! {
    // A leader of a group already, or no terminal: both are fine.
    let _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
    let _ = tcsetpgrp(std::io::stdin(), nix::unistd::getpid());
    let mut command = Command::new(program);
    sys::unblock_signals_of(command.args(args));
    let error = command.exec();
    let code = if error.kind() == std::io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE };
    failed(&format!("exec {}", program.display()), &error);
    rswarm_runtime::exit_now(code)
}

/// Until the command has ended.
fn watch(signals: &SignalFd, command: Pid) -> i32 {
    loop {
        let signal = match signals.read_signal() {
            Ok(Some(info)) => i32::try_from(info.ssi_signo).unwrap_or(0),
            Ok(None) | Err(nix::Error::EINTR) => continue,
            Err(error) => return failed("read signals", &error),
        };
        if signal == Signal::SIGCHLD as i32 {
            if let Some(code) = reap(command) {
                return code;
            }
        } else if signal != Signal::SIGTTIN as i32 && signal != Signal::SIGTTOU as i32 {
            // Those two are about init's own use of the terminal.
            sys::signal(command.as_raw(), signal);
        }
    }
}

/// Reaps all that have ended; the command's exit code when it is among them.
fn reap(command: Pid) -> Option<i32> {
    let mut code = None;
    loop {
        let (pid, its_code) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => (pid, code),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32),
            // A real-time signal has no name, and its process is reaped all the same.
            Err(nix::Error::EINVAL | nix::Error::EINTR) => continue,
            Ok(WaitStatus::StillAlive) | Err(_) => return code,
            Ok(_) => continue,
        };
        if pid == command {
            code = Some(its_code);
        }
    }
}

fn failed(what: &str, error: &dyn std::fmt::Display) -> i32 {
    say(&format!("{what} failed: {error}"));
    1
}

fn say(words: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{NAME}: {words}");
}
