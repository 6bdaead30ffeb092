//! `delete`.

use std::time::Duration;

use oci_spec::runtime::ContainerState;
use rustix::event::{PollFd, PollFlags, Timespec};

use super::args::{Flag, Order};
use super::store::{Entry, Status};
use super::{Call, Command};
use crate::failure::{Context, Failure};
use crate::hooks;

/// How long a killed container may take to end before it is helped.
const ENDS_ALONE_WITHIN: Duration = Duration::from_millis(100);
/// How long it may take then.
const ENDS_WITHIN: Duration = Duration::from_secs(10);

pub(super) const DELETE: Command = Command {
    name: "delete",
    args: "ID",
    about: "forget a container that has ended, and remove what it had",
    flags: &[Flag::switch("force", "kill it first; one that is not there is fine").or("f")],
    order: Order::Anywhere,
    run: delete,
};

fn delete(call: &Call<'_>) -> Result<i32, Failure> {
    let (id, force) = (call.args.only_id()?, call.args.has("force"));
    if force {
        // One that is being made is held by its maker, who gives up when its init is gone.
        if let Ok(entry) = call.store.find(id)
            && entry.status()? == Status::Creating
        {
            entry.cgroup()?.kill().context("kill the container's processes")?;
        }
    }
    let entry = match call.store.hold(id) {
        Ok(entry) => entry,
        // What was interrupted before a state was written, or has none that can be read.
        Err(_) if force => return call.store.forget_remains(id).map(|()| 0),
        Err(failure) => return Err(failure),
    };
    let status = entry.status()?;
    if !force && matches!(status, Status::Running | Status::Paused) {
        return Err(Failure::invalid(format!(
            "cannot delete container {id} that is not stopped: {}",
            status.name()
        )));
    }
    destroy(&entry).map(|()| 0)
}

/// Ends a container and leaves nothing of it. The hooks that follow are run last.
pub(super) fn destroy(entry: &Entry) -> Result<(), Failure> {
    let cgroup = entry.cgroup()?;
    let init = entry.init().ok();
    // With a pid namespace of its own, no process outlives init. Then there is nobody to kill.
    let is_empty = init.is_none() && entry.record.owns_pids && entry.record.init.is_some();
    if !is_empty || cgroup.remove().is_err() {
        cgroup.kill().context("kill the container's processes")?;
        if let Some(init) = init {
            // It may have been moved to another cgroup, or be gone with those in this one.
            match crate::sys::send_signal(&init, libc::SIGKILL) {
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                sent => sent.context("kill init")?,
            }
            if !ends(&init, ENDS_ALONE_WITHIN)? {
                cgroup
                    .help_to_end(entry.record.init.map(|init| init.pid))
                    .context("help processes to end")?;
            }
            if !ends(&init, ENDS_WITHIN)? {
                return Err(Failure::other("container init still running"));
            }
        } else {
            cgroup.help_to_end(None).context("help processes to end")?;
        }
        cgroup.remove().context("unable to remove container's cgroup")?;
    }
    // Read before it goes.
    let spec = if entry.record.has_hooks { Some(entry.spec()?) } else { None };
    std::fs::remove_dir_all(&entry.dir).context("unable to remove container state dir")?;
    if let Some(spec) = spec {
        hooks::poststop(&spec, &entry.hook_state(&spec, ContainerState::Stopped));
    }
    Ok(())
}

fn ends(process: impl std::os::fd::AsFd, within: Duration) -> Result<bool, Failure> {
    let within = Timespec::try_from(within).expect("a few seconds");
    loop {
        let mut fds = [PollFd::new(&process, PollFlags::IN)];
        match rustix::event::poll(&mut fds, Some(&within)) {
            Err(rustix::io::Errno::INTR) => {}
            polled => return polled.map(|count| count > 0).context("wait for init"),
        }
    }
}
