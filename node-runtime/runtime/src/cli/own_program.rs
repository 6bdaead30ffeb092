//! This program's own file, kept out of reach of the containers that it makes.

use std::convert::Infallible;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::failure::{Context, Failure};

/// Starts this program anew from a view of its file that no container can write through, unless it runs
/// from one already. See [`crate::readonly_program`]. For every command that puts a copy of this process
/// into a container; what the command was told is said again, so nothing may have been done yet.
pub(super) fn run_from_readonly_view() -> Result<(), Failure> {
    let own = Path::new("/proc/self/exe");
    let mounted = rustix::fs::statvfs(own).context("look at own program")?;
    if mounted.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
        return Ok(());
    }
    let view = crate::readonly_program(own).context("make own program read-only")?;
    execute(view.as_fd()).map(|never| match never {})
}

fn execute(view: impl AsRawFd) -> Result<Infallible, Failure> {
    let mut args = std::env::args_os();
    let name = args.next().unwrap_or_default();
    let path = format!("/proc/self/fd/{}", view.as_raw_fd());
    let error = Command::new(path).arg0(name).args(args).exec();
    Err(Failure::os("run own program again", error))
}
