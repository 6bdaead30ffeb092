//! A process that its caller waits for: signals are passed on to it, its terminal is the caller's, its end
//! is the caller's end.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::OFlags;
use rustix::termios::{OptionalActions, OutputModes, Termios};

use crate::failure::{Context, Failure};
use crate::sys;

/// Passed on. Not here: what only the kernel sends, and what stops a job of the caller's shell.
const FORWARDED: &[Signal] = &[
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGTERM,
    Signal::SIGCONT,
    Signal::SIGPWR,
];

/// How much typed text waits for a process that does not read: as much as a terminal's line holds.
const TYPED_MAX: usize = 4096;

/// Readiness to follow a process that is yet to be made.
pub(super) struct Foreground {
    signals: SignalFd,
}

impl Foreground {
    /// Takes over the signals. Called before the process exists, so that none is lost.
    pub(super) fn prepare() -> Result<Foreground, Failure> {
        let mut set = SigSet::empty();
        for signal in FORWARDED.iter().chain(&[Signal::SIGCHLD, Signal::SIGWINCH]) {
            set.add(*signal);
        }
        set.thread_block().context("take signals")?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&set, flags).context("listen to signals")?;
        Ok(Foreground { signals })
    }

    /// Waits for the end of a child and reaps whoever falls to us meanwhile; returns its exit code.
    pub(super) fn follow(self, pid: i32, pidfd: &OwnedFd, terminal: Option<OwnedFd>) -> Result<i32, Failure> {
        let mut console = terminal.map(Console::connect).transpose()?;
        loop {
            if let Some(code) = reap(pid)? {
                if let Some(console) = &mut console {
                    console.drain()?;
                }
                return Ok(code);
            }
            let ready = self.wait(console.as_ref())?;
            if let Some(console) = &mut console {
                console.serve(ready)?;
            }
            while let Some(info) = self.signals.read_signal().context("read signals")? {
                let number = info.ssi_signo.cast_signed();
                match (number, &console) {
                    (libc::SIGCHLD, _) => {}
                    (libc::SIGWINCH, Some(console)) => console.resize(),
                    // One that has just ended needs no signal.
                    _ => drop(sys::send_signal(pidfd, number)),
                }
            }
        }
    }

    /// Until there is something to do.
    fn wait(&self, console: Option<&Console>) -> Result<Ready, Failure> {
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        let stdin = io::stdin();
        // One that has hung up is left out: poll would tell of nothing else.
        let console = console.filter(|console| !console.output_ended);
        if let Some(console) = console {
            fds.push(PollFd::new(&console.near, console.interest()));
            if console.wants_input() {
                fds.push(PollFd::new(&stdin, PollFlags::IN));
            }
        }
        match rustix::event::poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Failure::os("wait for the process", error)),
        }
        let at = |index: usize| fds.get(index).is_some_and(|fd: &PollFd<'_>| !fd.revents().is_empty());
        Ok(Ready { near: at(1), stdin: at(2) })
    }
}

/// Reaps everyone who has ended; the code of the one who counts.
fn reap(wanted: i32) -> Result<Option<i32>, Failure> {
    loop {
        let (pid, code) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => (pid, code),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32),
            Ok(WaitStatus::StillAlive) => return Ok(None),
            Ok(_) | Err(nix::Error::EINTR) => continue,
            Err(error) => return Err(Failure::os("wait for the process", error)),
        };
        if pid.as_raw() == wanted {
            return Ok(Some(code));
        }
    }
}

/// What poll has found.
#[derive(Debug, Clone, Copy)]
struct Ready {
    near: bool,
    stdin: bool,
}

/// The near end of the process's terminal, between the caller's standard input and output.
struct Console {
    near: OwnedFd,
    /// Typed, and not yet taken.
    typed: VecDeque<u8>,
    input_ended: bool,
    /// Every far end is closed.
    output_ended: bool,
    outer: Option<Outer>,
}

/// The caller's own terminal, raw while this lives.
struct Outer {
    terminal: OwnedFd,
    before: Termios,
}

impl Console {
    fn connect(near: OwnedFd) -> Result<Console, Failure> {
        let flags = rustix::fs::fcntl_getfl(&near).context("look at terminal")?;
        rustix::fs::fcntl_setfl(&near, flags | OFlags::NONBLOCK).context("set terminal")?;
        let outer = Outer::find();
        if let Some(outer) = &outer {
            outer.make_raw()?;
        }
        let console =
            Console { near, typed: VecDeque::new(), input_ended: false, output_ended: false, outer };
        console.resize();
        Ok(console)
    }

    /// The process's terminal has the size of the caller's; that it is gone is no failure.
    fn resize(&self) {
        if let Some(outer) = &self.outer
            && let Ok(size) = rustix::termios::tcgetwinsize(&outer.terminal)
        {
            let _ = rustix::termios::tcsetwinsize(&self.near, size);
        }
    }

    fn wants_input(&self) -> bool {
        !self.input_ended && self.typed.is_empty()
    }

    fn interest(&self) -> PollFlags {
        let mut interest = PollFlags::IN;
        interest.set(PollFlags::OUT, !self.typed.is_empty());
        interest
    }

    fn serve(&mut self, ready: Ready) -> Result<(), Failure> {
        if ready.near && !self.output_ended {
            self.pass_output()?;
        }
        if ready.stdin && self.wants_input() {
            self.read_input()?;
        }
        self.pass_input()
    }

    /// Passes what is there, up to a full buffer; false when there is nothing now.
    fn pass_output(&mut self) -> Result<bool, Failure> {
        let mut buffer = [0; 8192];
        match rustix::io::read(&self.near, &mut buffer) {
            // EIO: nobody has the far end open.
            Ok(0) | Err(rustix::io::Errno::IO) => {
                self.output_ended = true;
                Ok(false)
            }
            Ok(length) => {
                let mut out = io::stdout().lock();
                // A caller that has gone away does not end the process.
                let _ = out.write_all(&buffer[..length]).and_then(|()| out.flush());
                Ok(true)
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(Failure::os("read terminal", error)),
        }
    }

    fn read_input(&mut self) -> Result<(), Failure> {
        let mut buffer = [0; TYPED_MAX];
        match rustix::io::read(io::stdin(), &mut buffer) {
            Ok(0) | Err(rustix::io::Errno::IO) => self.input_ended = true,
            Ok(length) => self.typed.extend(&buffer[..length]),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Failure::os("read standard input", error)),
        }
        Ok(())
    }

    fn pass_input(&mut self) -> Result<(), Failure> {
        while !self.typed.is_empty() {
            match rustix::io::write(&self.near, self.typed.as_slices().0) {
                Ok(length) => drop(self.typed.drain(..length)),
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(()),
                // Nobody will read it.
                Err(rustix::io::Errno::IO) => self.typed.clear(),
                Err(error) => return Err(Failure::os("write to terminal", error)),
            }
        }
        Ok(())
    }

    /// What the process printed last. Others may still have its terminal open: they are not waited for.
    fn drain(&mut self) -> Result<(), Failure> {
        while !self.output_ended && self.pass_output()? {}
        Ok(())
    }
}

impl Outer {
    /// Any of the standard files may be a terminal, or none while there is a controlling one.
    fn find() -> Option<Outer> {
        let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
        let standard: [BorrowedFd<'_>; 3] = [stderr.as_fd(), stdout.as_fd(), stdin.as_fd()];
        let terminal = match standard.into_iter().find(|file| rustix::termios::isatty(file)) {
            Some(file) => file.try_clone_to_owned().ok()?,
            None => File::open("/dev/tty").ok()?.into(),
        };
        let before = rustix::termios::tcgetattr(&terminal).ok()?;
        Some(Outer { terminal, before })
    }

    fn make_raw(&self) -> Result<(), Failure> {
        let mut raw = self.before.clone();
        raw.make_raw();
        // It still begins a new line where a line ends: the process's own terminal does not.
        raw.output_modes.insert(OutputModes::OPOST);
        rustix::termios::tcsetattr(&self.terminal, OptionalActions::Now, &raw)
            .context("failed to set the terminal raw")
    }
}

impl Drop for Outer {
    fn drop(&mut self) {
        let _ = rustix::termios::tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
    }
}
