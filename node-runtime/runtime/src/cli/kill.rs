//! `kill`.

use nix::sys::signal::Signal;

use super::args::{Flag, Order};
use super::store::{Entry, Status};
use super::{Call, Command};
use crate::failure::{Context, Failure};
use crate::sys;

pub(super) const KILL: Command = Command {
    name: "kill",
    args: "ID [SIGNAL]",
    about: "send a signal to a container's init (default TERM)",
    flags: &[Flag::switch("all", "to all of the container's processes").or("a")],
    order: Order::Leading,
    run: kill,
};

fn kill(call: &Call<'_>) -> Result<i32, Failure> {
    let (id, more) = call.args.id_and_more()?;
    let name = match more {
        [] => "TERM",
        [name] => name,
        _ => return Err(Failure::invalid("a container id and at most one signal are needed")),
    };
    let signal = signal_number(name).ok_or_else(|| Failure::invalid(format!("unknown signal \"{name}\"")))?;
    let entry = call.store.find(id)?;
    let status = entry.status()?;
    // Without a pid namespace of its own, what init started outlives it unless it is killed too.
    let all = call.args.has("all") || (signal == libc::SIGKILL && !entry.record.owns_pids);
    if all {
        send_to_all(&entry, signal)?;
        return Ok(0);
    }
    if status == Status::Stopped {
        // Callers look for these words.
        return Err(Failure::invalid("container not running"));
    }
    sys::send_signal(entry.init()?, signal).with_context(|| format!("send signal {name}"))?;
    if signal == libc::SIGKILL && status == Status::Paused {
        // A process that is frozen by version 1 dies no sooner.
        entry.cgroup()?.thaw().context("thaw the killed container")?;
    }
    Ok(0)
}

fn send_to_all(entry: &Entry, signal: i32) -> Result<(), Failure> {
    let cgroup = entry.cgroup()?;
    if signal == libc::SIGKILL {
        return cgroup.kill().context("kill all processes");
    }
    if signal == 0 {
        // It is asked for all who are there, and there may be nobody.
        return Ok(());
    }
    let signal = Signal::try_from(signal).context("send signal to all")?;
    cgroup.signal(signal).context("send signal to all")
}

/// `9`, `KILL` or `SIGKILL`. Zero only asks whether there is somebody.
fn signal_number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (0..=libc::SIGRTMAX()).contains(&number).then_some(number);
    }
    let upper = text.to_uppercase();
    let name = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    match name.strip_prefix("SIGRTMIN") {
        Some("") => Some(libc::SIGRTMIN()),
        Some(more) => {
            let number = libc::SIGRTMIN().checked_add(more.strip_prefix('+')?.parse().ok()?)?;
            (libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(&number).then_some(number)
        }
        None => name.parse::<Signal>().ok().map(|signal| signal as i32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_has_a_number_and_two_names() {
        assert_eq!(["9", "KILL", "SIGKILL", "kill"].map(signal_number), [Some(9); 4]);
        assert_eq!(
            ["0", "37", "RTMIN+3"].map(signal_number),
            [Some(0), Some(37), Some(libc::SIGRTMIN() + 3)]
        );
        assert_eq!(["-1", "NONE", "99", "RTMIN+-9", "RTMIN+99", ""].map(signal_number), [None; 6]);
    }
}
