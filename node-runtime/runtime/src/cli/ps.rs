//! `ps`.

use std::fmt::Write as _;
use std::fs;

use super::args::{Flag, Order};
use super::{Call, Command, say};
use crate::failure::{Context, Failure};

/// `USER_HZ`, which the kernel counts time for programs in on every architecture that we run on.
const TICKS_PER_SECOND: u64 = 100;

pub(super) const PS: Command = Command {
    name: "ps",
    args: "ID",
    about: "print a container's processes",
    flags: &[Flag::value("format", "FORMAT", "table or json (default table)").or("f")],
    order: Order::Leading,
    run: ps,
};

fn ps(call: &Call<'_>) -> Result<i32, Failure> {
    let (id, options) = call.args.id_and_more()?;
    // runc gives them to the machine's ps; this runtime runs no programs of the machine.
    if let Some(option) = options.iter().find(|option| !matches!(option.as_str(), "-ef" | "")) {
        return Err(Failure::invalid(format!("ps option `{option}` is not supported; use --format json")));
    }
    let format = call.args.value("format").unwrap_or("table");
    if !["table", "json"].contains(&format) {
        return Err(Failure::invalid("invalid format option"));
    }
    let pids = call.store.find(id)?.cgroup()?.pids().context("unable to get all container pids")?;
    if format == "json" {
        let numbers: Vec<String> = pids.iter().map(ToString::to_string).collect();
        return say(&format!("[{}]\n", numbers.join(",")));
    }
    let mut text = format!("{:8} {:>7} {:>7} {:8} {:>8} CMD\n", "UID", "PID", "PPID", "TTY", "TIME");
    // One that has ended meanwhile is passed over.
    for process in pids.iter().filter_map(|pid| Process::read(*pid)) {
        let Process { uid, pid, parent, terminal, seconds, command } = process;
        let time = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
        let _ = writeln!(text, "{uid:8} {pid:7} {parent:7} {terminal:8} {time:>8} {command}");
    }
    say(&text)
}

/// One line.
#[derive(Debug, PartialEq, Eq)]
struct Process {
    uid: u32,
    pid: i32,
    parent: i32,
    terminal: String,
    /// Of processor time.
    seconds: u64,
    command: String,
}

impl Process {
    fn read(pid: i32) -> Option<Process> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let uid = status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().nth(1)?;
        Process::parse(pid, uid.parse().ok()?, &stat, &line)
    }

    // proc_pid_stat(5)
    fn parse(pid: i32, uid: u32, stat: &str, line: &[u8]) -> Option<Process> {
        let (name, fields) = stat.split_once('(')?.1.rsplit_once(") ")?;
        let fields: Vec<&str> = fields.split(' ').collect();
        let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
        let words: Vec<_> = line
            .split(|byte| *byte == 0)
            .filter(|word| !word.is_empty())
            .map(String::from_utf8_lossy)
            .collect();
        Some(Process {
            uid,
            pid,
            parent: fields.get(1)?.parse().ok()?,
            terminal: terminal(fields.get(4)?.parse().ok()?),
            seconds: (number(11)? + number(12)?) / TICKS_PER_SECOND,
            // A kernel's thread or a zombie has no command line.
            command: if words.is_empty() { format!("[{name}]") } else { words.join(" ") },
        })
    }
}

fn terminal(device: i32) -> String {
    let device = u64::from(device.cast_unsigned());
    match (rustix::fs::major(device), rustix::fs::minor(device)) {
        (0, 0) => "?".to_owned(),
        // Documentation/admin-guide/devices.txt: Unix98 pseudo-terminals.
        (major @ 136..=143, minor) => format!("pts/{}", (major - 136) * 256 + minor),
        (major, minor) => format!("{major}:{minor}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_whatever_its_name() {
        let stat = "7 (a) b (c) S 3 7 7 34819 7 0 0 0 0 0 150 250 0 0 20 0 1 0 99 0 0";
        let process = Process::parse(7, 5, stat, b"sleep\x001000\0").expect("process");
        let seconds = 4;
        let wanted = Process {
            uid: 5,
            pid: 7,
            parent: 3,
            terminal: "pts/3".into(),
            seconds,
            command: "sleep 1000".into(),
        };
        assert_eq!(process, wanted);
        assert_eq!(Process::parse(7, 5, stat, b"").expect("process").command, "[a) b (c]");
        assert_eq!(Process::parse(7, 5, "7 (x", b""), None);
    }
}
