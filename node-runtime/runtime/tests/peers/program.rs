//! A program that is called and must end in time.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// How long a call may take on a machine that has much else to do.
const ENDS_WITHIN: Duration = Duration::from_secs(120);

/// What a call gave.
#[derive(Debug)]
pub struct Output {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// Runs a program to its end. Output goes through files: a container that stays may keep it open.
pub fn call(command: &mut Command, dir: &Path) -> Result<Output> {
    let (out, err) = (dir.join("out"), dir.join("err"));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(File::create(&out)?)
        .stderr(File::create(&err)?)
        .spawn()
        .with_context(|| format!("{command:?}"))?;
    let pid = Pid::from_raw(child.id().cast_signed()).context("pid")?;
    let ended = becomes_readable(&pidfd_open(pid, PidfdFlags::empty())?, ENDS_WITHIN)?;
    if !ended {
        child.kill()?;
    }
    let status = child.wait()?;
    let output = Output { status, stdout: fs::read_to_string(out)?, stderr: fs::read_to_string(err)? };
    ensure!(ended, "{command:?} did not end: {output:?}");
    Ok(output)
}

/// The same, which must succeed; what it printed.
pub fn succeeds(command: &mut Command, dir: &Path) -> Result<String> {
    let output = call(command, dir)?;
    ensure!(output.status.success(), "{command:?}: {output:?}");
    Ok(output.stdout)
}

/// The same, which must end with this code.
pub fn gives(command: &mut Command, dir: &Path, code: i32) -> Result<Output> {
    let output = call(command, dir)?;
    ensure!(output.status.code() == Some(code), "{command:?}: not {code}: {output:?}");
    Ok(output)
}

fn becomes_readable(fd: impl AsFd, within: Duration) -> Result<bool> {
    let timeout = Timespec::try_from(within)?;
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    Ok(rustix::event::poll(&mut fds, Some(&timeout))? > 0)
}

/// Looks again and again, for what no event tells.
pub fn becomes(what: &str, mut look: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + ENDS_WITHIN;
    while !look()? {
        if Instant::now() > deadline {
            bail!("{what}: never");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
