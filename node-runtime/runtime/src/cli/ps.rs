//! `ps`.

use std::fmt::Write as _;
use std::fs;

use super::args::{Flag, Order};
use super::{Call, Command, say};
use crate::failure::{Context, Failure};
use crate::sys;

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
    // As `ps -ef` of procps has them, which is what runc prints.
    let mut text = "UID          PID    PPID  C STIME TTY          TIME CMD\n".to_owned();
    let (accounts, now) = (fs::read_to_string("/etc/passwd").unwrap_or_default(), Now::look()?);
    // One that has ended meanwhile is passed over.
    for process in pids.iter().filter_map(|pid| Process::read(*pid)) {
        let Process { uid, pid, parent, terminal, seconds, started, command } = process;
        let (user, share, start) = (user(&accounts, uid), now.share(seconds, started), now.start(started));
        let time = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
        let _ = writeln!(
            text,
            "{user:8} {pid:7} {parent:7} {share:2} {start:5} {terminal:8} {time:>8} {command}"
        );
    }
    say(&text)
}

/// A user's name, cut to the column's width; or the number of one whom nobody has named.
fn user(accounts: &str, uid: u32) -> String {
    let name = accounts.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    });
    match name {
        Some(name) if name.chars().count() > 8 => name.chars().take(7).chain(['+']).collect(),
        Some(name) => name.to_owned(),
        None => uid.to_string(),
    }
}

/// The present, in seconds since 1970, and when the machine began to count ticks.
struct Now {
    seconds: i64,
    boot: i64,
}

impl Now {
    fn look() -> Result<Now, Failure> {
        let stat = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
        // proc_stat(5)
        let boot = stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok());
        let boot = boot.ok_or_else(|| Failure::other("/proc/stat has no btime"))?;
        Ok(Now { seconds: rswarm_base::Timestamp::now().0 / 1_000_000_000, boot })
    }

    /// Of one processor, in per cent of the time since it started.
    fn share(&self, used: u64, started: u64) -> u64 {
        let age = (self.seconds - self.boot).unsigned_abs().saturating_sub(started);
        (used * 100).checked_div(age).unwrap_or(0).min(99)
    }

    /// The hour for today, the day for this year, else the year.
    fn start(&self, started: u64) -> String {
        const MONTHS: [&str; 12] =
            ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
        let at = sys::local_time(self.boot.saturating_add_unsigned(started));
        let now = sys::local_time(self.seconds);
        if (at.year, at.day_of_year) == (now.year, now.day_of_year) {
            format!("{:02}:{:02}", at.hour, at.minute)
        } else if at.year == now.year {
            format!("{}{:02}", MONTHS[at.month.min(11)], at.day)
        } else {
            at.year.to_string()
        }
    }
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
    /// Seconds after the machine's own start.
    started: u64,
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
            started: number(19)? / TICKS_PER_SECOND,
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
    fn columns_are_as_wide_as_they_are() {
        let accounts = "root:x:0:0::/root:/bin/sh\nsystemd-network:x:7:7::/:/bin/false\n";
        assert_eq!([0, 7, 9].map(|uid| user(accounts, uid)), ["root", "systemd+", "9"]);
        // Noon of the 1st of July 2020, in whatever zone: a day later and a year later show it.
        let noon = 1_593_604_800;
        let now = |seconds| Now { seconds, boot: noon };
        assert!(now(noon + 5 * 86_400).start(0).starts_with("Jul0"));
        assert_eq!(now(noon + 400 * 86_400).start(0), "2020");
        assert_eq!(now(noon + 60).start(0).len(), 5);
        assert_eq!((now(noon + 200).share(50, 100), now(noon).share(5, 0)), (50, 0));
        assert_eq!(now(noon + 2).share(50, 1), 99);
    }

    #[test]
    fn a_process_is_read_whatever_its_name() {
        let stat = "7 (a) b (c) S 3 7 7 34819 7 0 0 0 0 0 150 250 0 0 20 0 1 0 99 0 0";
        let process = Process::parse(7, 5, stat, b"sleep\x001000\0").expect("process");
        let wanted = Process {
            uid: 5,
            pid: 7,
            parent: 3,
            terminal: "pts/3".into(),
            seconds: 4,
            started: 0,
            command: "sleep 1000".into(),
        };
        assert_eq!(process, wanted);
        assert_eq!(Process::parse(7, 5, stat, b"").expect("process").command, "[a) b (c]");
        assert_eq!(Process::parse(7, 5, "7 (x", b""), None);
    }
}
