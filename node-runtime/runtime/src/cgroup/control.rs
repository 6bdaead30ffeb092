//! Freezing, signalling and killing all that is inside.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::tree::add_pids;
use super::{Cgroup, is_gone, put, read_number};

/// How long a freeze or thaw may take.
const FROZEN_WITHIN: Duration = Duration::from_secs(10);
/// How long to wait for a freeze that only keeps processes from forking while they are killed.
const STILL_WITHIN: Duration = Duration::from_millis(200);
/// How long processes may take to end that were killed one by one.
const KILLED_WITHIN: Duration = Duration::from_secs(10);
/// After that long without an end, some were missed: they are killed again.
const KILL_AGAIN_AFTER: Duration = Duration::from_millis(100);
/// Between two looks at something that the kernel has no event for.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(1);

impl Cgroup {
    /// Stops all processes where they are.
    ///
    /// # Errors
    /// When there is no freezer, or it does not get there in time; then nothing is left frozen.
    pub fn freeze(&self) -> io::Result<()> {
        self.set_frozen(true, FROZEN_WITHIN).inspect_err(|_| {
            let _ = self.set_frozen(false, FROZEN_WITHIN);
        })
    }

    /// Lets them go on.
    ///
    /// # Errors
    /// As [`Cgroup::freeze`].
    pub fn thaw(&self) -> io::Result<()> {
        self.set_frozen(false, FROZEN_WITHIN)
    }

    fn set_frozen(&self, frozen: bool, within: Duration) -> io::Result<()> {
        let deadline = Instant::now() + within;
        let done = if let Some(dir) = &self.unified {
            put(&dir.join("cgroup.freeze"), if frozen { "1" } else { "0" })?;
            wait_for_event(dir, if frozen { "frozen 1" } else { "frozen 0" }, deadline)?
        } else if let Some(dir) = self.directory("freezer") {
            set_frozen_v1(dir, if frozen { "FROZEN" } else { "THAWED" }, deadline)?
        } else {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "this machine has no cgroup freezer"));
        };
        let late = || io::Error::new(io::ErrorKind::TimedOut, "processes did not freeze or thaw in time");
        done.then_some(()).ok_or_else(late)
    }

    /// Whether its processes are stopped where they are, or about to be.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        match (&self.unified, self.directory("freezer")) {
            (Some(dir), _) => read_number(&dir.join("cgroup.freeze")) == Some(1),
            (None, Some(dir)) => {
                fs::read_to_string(dir.join("freezer.state")).is_ok_and(|s| s.trim() != "THAWED")
            }
            (None, None) => false,
        }
    }

    /// Sends a signal to every process.
    ///
    /// # Errors
    /// The failing call's; a process that is gone meanwhile is none.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        for pid in self.pids()? {
            signal_one(pid, signal)?;
        }
        Ok(())
    }

    /// Kills every process, frozen or not, also those that are being made at this moment. They may not have
    /// ended yet.
    ///
    /// # Errors
    /// The failing call's, or a time-out where the kernel cannot kill a cgroup itself.
    pub fn kill(&self) -> io::Result<()> {
        let Some(dir) = &self.unified else { return self.kill_each() };
        match put(&dir.join("cgroup.kill"), "1") {
            Ok(()) => self.kill_strays(),
            // Kernels before 5.14 do not have the file.
            Err(error) if is_gone(&error) && dir.exists() => self.kill_each(),
            Err(error) if is_gone(&error) => self.kill_strays(),
            Err(error) => Err(error),
        }
    }

    /// A container that may write to its cgroups can have moved processes out of those of one version.
    fn kill_strays(&self) -> io::Result<()> {
        let one = ["pids", "freezer", "devices", "memory"].iter().find_map(|name| self.layout.v1_index(name));
        let Some(dir) = one.map(|index| &self.v1[index]) else { return Ok(()) };
        match fs::read_to_string(dir.join("cgroup.procs")) {
            Ok(text) => {
                let pids = text.lines().filter_map(|line| line.parse().ok());
                pids.into_iter().try_for_each(|pid| signal_one(pid, Signal::SIGKILL))
            }
            Err(error) if is_gone(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Frozen processes cannot fork away from the signal; what escapes a freezer that does not close is met
    /// by the next round.
    pub(super) fn kill_each(&self) -> io::Result<()> {
        let deadline = Instant::now() + KILLED_WITHIN;
        while !self.pids()?.is_empty() {
            if Instant::now() > deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "processes did not end in time"));
            }
            // Without a freezer, or in time, all that is left is to be faster than they are.
            let _ = self.set_frozen(true, STILL_WITHIN);
            let killed = self.pids()?;
            let signalled = killed.iter().try_for_each(|pid| signal_one(*pid, Signal::SIGKILL));
            match self.set_frozen(false, STILL_WITHIN) {
                // Somebody has frozen a cgroup around it.
                Err(error) if error.kind() == io::ErrorKind::TimedOut => self.release_killed(None)?,
                Err(error) if error.kind() != io::ErrorKind::Unsupported && !is_gone(&error) => {
                    return Err(error);
                }
                _ => {}
            }
            signalled?;
            let again = (Instant::now() + KILL_AGAIN_AFTER).min(deadline);
            if self.unified.is_some() {
                self.wait_until_empty(again)?;
            }
            while self.unified.is_none() && Instant::now() < again && !self.is_empty()? {
                sleep(LOOK_EVERY);
            }
            // One that was moved can be frozen where this cgroup's freezer does not reach.
            let held = self.pids()?.into_iter().filter(|pid| killed.contains(pid));
            self.leave_freezer(held);
        }
        Ok(())
    }

    /// Waits a moment for killed processes to end, and helps those that cannot: what version 1 has frozen ends
    /// only when it is thawed, and a cgroup that somebody has frozen is not ours to thaw. They are moved out of
    /// it, `init` too, wherever it is. One that cannot be moved has ended, or is not helped.
    // Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst
    pub(crate) fn help_to_end(&self, init: Option<i32>) -> io::Result<()> {
        self.wait_until_empty(Instant::now() + KILL_AGAIN_AFTER)?;
        self.release_killed(init)
    }

    /// Lets processes end that were sent SIGKILL while version 1 has them frozen, in this cgroup or in one around it;
    /// others need no help. `init` is among them wherever it is.
    ///
    /// # Errors
    /// The failing read's.
    pub fn release_frozen(&self, init: i32) -> io::Result<()> {
        let Some(dir) = self.directory("freezer") else { return Ok(()) };
        match fs::read_to_string(dir.join("freezer.state")) {
            Ok(state) if state.trim() != "THAWED" => self.release_killed(Some(init)),
            Ok(_) => Ok(()),
            Err(error) if is_gone(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn release_killed(&self, init: Option<i32>) -> io::Result<()> {
        let mut pids = self.pids()?;
        if let Some(dir) = self.directory("freezer") {
            add_pids(dir, &mut pids)?;
        }
        self.leave_freezer(pids.into_iter().chain(init));
        Ok(())
    }

    /// Moves processes out of every cgroup of version 1's freezer.
    fn leave_freezer(&self, pids: impl Iterator<Item = i32>) {
        let Some(index) = self.layout.v1_index("freezer") else { return };
        let top = self.layout.v1[index].mount.join("cgroup.procs");
        for pid in pids {
            // One that has ended cannot be moved.
            let _ = put(&top, &pid.to_string());
        }
    }

    /// Whether no process is in it, nor below it.
    ///
    /// # Errors
    /// The failing read's.
    pub fn is_empty(&self) -> io::Result<bool> {
        let Some(dir) = &self.unified else { return Ok(self.pids()?.is_empty()) };
        match fs::read_to_string(dir.join("cgroup.events")) {
            Ok(events) => Ok(has_line(&events, "populated 0")),
            Err(error) if is_gone(&error) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Waits for the last process to end, where the kernel says so; false when it did not, or there is no
    /// event for it.
    pub(super) fn wait_until_empty(&self, deadline: Instant) -> io::Result<bool> {
        match &self.unified {
            Some(dir) => wait_for_event(dir, "populated 0", deadline),
            None => Ok(false),
        }
    }
}

/// A version 1 freezer has no event, and may have to be told again: a process that is being made can stay out.
// Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst
fn set_frozen_v1(dir: &Path, wanted: &str, deadline: Instant) -> io::Result<bool> {
    let file = dir.join("freezer.state");
    loop {
        put(&file, wanted)?;
        if fs::read_to_string(&file)?.trim() == wanted {
            return Ok(true);
        }
        if Instant::now() > deadline {
            return Ok(false);
        }
        sleep(LOOK_EVERY);
    }
}

fn signal_one(pid: i32, signal: Signal) -> io::Result<()> {
    // Zero is a process of an outer pid namespace.
    if pid <= 0 {
        return Ok(());
    }
    match kill(Pid::from_raw(pid), signal) {
        Ok(()) | Err(nix::Error::ESRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Waits until `cgroup.events` has a line. A cgroup that is gone has every event behind it.
fn wait_for_event(dir: &Path, line: &str, deadline: Instant) -> io::Result<bool> {
    let file = match File::open(dir.join("cgroup.events")) {
        Err(error) if is_gone(&error) => return Ok(true),
        file => file?,
    };
    let mut buffer = [0; 256];
    loop {
        let length = match rustix::io::pread(&file, &mut buffer, 0) {
            Err(rustix::io::Errno::NODEV) => return Ok(true),
            length => length?,
        };
        if has_line(&String::from_utf8_lossy(&buffer[..length]), line) {
            return Ok(true);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let mut changes = [PollFd::new(&file, PollFlags::PRI)];
        let timeout = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
        match poll(&mut changes, Some(&timeout)) {
            Err(rustix::io::Errno::INTR) | Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn has_line(text: &str, line: &str) -> bool {
    text.lines().any(|found| found == line)
}
