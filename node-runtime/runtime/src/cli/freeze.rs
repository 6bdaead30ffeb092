//! `pause` and `resume`.

use super::args::Order;
use super::store::Status;
use super::{Call, Command};
use crate::failure::{Context, Failure};

pub(super) const PAUSE: Command = Command {
    name: "pause",
    args: "ID",
    about: "stop all of a container's processes where they are",
    flags: &[],
    order: Order::Anywhere,
    run: pause,
};

pub(super) const RESUME: Command = Command {
    name: "resume",
    args: "ID",
    about: "let them go on",
    flags: &[],
    order: Order::Anywhere,
    run: resume,
};

fn pause(call: &Call<'_>) -> Result<i32, Failure> {
    let entry = call.store.hold(call.args.only_id()?)?;
    match entry.status()? {
        Status::Running | Status::Created => {
            entry.cgroup()?.freeze().context("freeze the container")?;
            Ok(0)
        }
        Status::Paused => Err(Failure::invalid("container is paused already")),
        Status::Creating | Status::Stopped => Err(Failure::invalid("container not running")),
    }
}

fn resume(call: &Call<'_>) -> Result<i32, Failure> {
    let entry = call.store.hold(call.args.only_id()?)?;
    let cgroup = entry.cgroup()?;
    // A container that was paused before its start is `created` to all who ask.
    if entry.init().is_err() || !cgroup.is_frozen() {
        return Err(Failure::invalid("container not paused"));
    }
    cgroup.thaw().context("thaw the container")?;
    Ok(0)
}
