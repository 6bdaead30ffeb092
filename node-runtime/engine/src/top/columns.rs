//! The columns that `ps` knows, each with its names, its title and its text for a process. Pure.

use std::collections::HashMap;
use std::fs;

use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

use super::process::Process;

/// A kind of column.
pub(super) struct Kind {
    /// What `-o` calls it; the first is the usual one.
    pub names: &'static [&'static str],
    pub title: &'static str,
    pub show: fn(&Process, &Facts) -> String,
}

impl Kind {
    /// What it shows of a process; a command with its place in the tree before it.
    pub fn cell(&self, process: &Process, facts: &Facts) -> String {
        let text = (self.show)(process, facts);
        let is_command = self.names.iter().any(|name| matches!(*name, "args" | "cmd" | "comm" | "ucmd"));
        if is_command { format!("{}{text}", process.branch) } else { text }
    }
}

impl std::fmt::Debug for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.names[0])
    }
}

/// What must be known of the machine.
pub(super) struct Facts {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
    zone: TimeZone,
    now: Timestamp,
    /// Seconds since the machine's start.
    uptime: i64,
    /// Memory in bytes.
    memory: u64,
}

/// Clock ticks a second in `/proc`: the same on every machine that we run on.
// man: proc_pid_stat(5), USER_HZ
const TICKS: u64 = 100;
const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;
/// A longer name loses its end, as in `ps`.
const NAME_MAX: usize = 8;

impl Facts {
    /// The host's users, as for the host's `ps`, and its clock.
    pub fn read() -> Facts {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let uptime = text("/proc/uptime");
        let now = rswarm_base::Timestamp::now().as_secs();
        Facts {
            users: accounts(&text("/etc/passwd")),
            groups: accounts(&text("/etc/group")),
            zone: TimeZone::system(),
            now: Timestamp::from_second(now).unwrap_or(Timestamp::UNIX_EPOCH),
            uptime: uptime.split('.').next().and_then(|seconds| seconds.parse().ok()).unwrap_or_default(),
            memory: crate::host::memory(),
        }
    }

    /// Seconds that a process has lived.
    fn age(&self, process: &Process) -> u64 {
        u64::try_from(self.uptime).unwrap_or(0).saturating_sub(process.start / TICKS)
    }

    fn started(&self, process: &Process) -> Zoned {
        let age = i64::try_from(self.age(process)).unwrap_or(i64::MAX);
        let started = Timestamp::from_second(self.now.as_second().saturating_sub(age));
        started.unwrap_or(Timestamp::UNIX_EPOCH).to_zoned(self.zone.clone())
    }
}

/// Names by number, of a file in the format of `/etc/passwd` or `/etc/group`.
fn accounts(text: &str) -> HashMap<u32, String> {
    let entries = text.lines().rev().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        Some((fields.nth(1)?.parse().ok()?, name.to_owned()))
    });
    entries.collect()
}

fn name_of(names: &HashMap<u32, String>, id: u32) -> String {
    match names.get(&id) {
        Some(name) if name.len() > NAME_MAX => {
            name.chars().take(NAME_MAX - 1).chain(std::iter::once('+')).collect()
        }
        Some(name) => name.clone(),
        None => id.to_string(),
    }
}

/// Tenths as a number with one decimal.
fn tenths(value: u64) -> String {
    if value > 999 { (value / 10).to_string() } else { format!("{}.{}", value / 10, value % 10) }
}

/// Tenths of a percent of one processor, over the process's life.
fn cpu(process: &Process, facts: &Facts) -> u64 {
    (process.time * 1000 / TICKS).checked_div(facts.age(process)).unwrap_or(0)
}

fn terminal(process: &Process) -> String {
    let (major, minor) =
        ((process.terminal >> 8) & 0xfff, (process.terminal & 0xff) | ((process.terminal >> 12) & 0xf_ff00));
    // Documentation/admin-guide/devices.txt
    match (major, minor) {
        (0, 0) => "?".to_owned(),
        (4, 0..=63) => format!("tty{minor}"),
        (4, _) => format!("ttyS{}", minor - 64),
        (5, 1) => "console".to_owned(),
        (136..=143, _) => format!("pts/{}", (major - 136) * 256 + minor),
        _ => "?".to_owned(),
    }
}

/// State, then what else is remarkable.
fn stat(process: &Process) -> String {
    let marks = [
        (process.nice < 0, '<'),
        (process.nice > 0, 'N'),
        (process.locked, 'L'),
        (process.session == process.pid, 's'),
        (process.threads > 1, 'l'),
        (process.group == process.foreground, '+'),
    ];
    let marks = marks.iter().filter(|(is, _)| *is).map(|(_, mark)| *mark);
    std::iter::once(process.state).chain(marks).collect()
}

/// `[days-]hours:minutes:seconds`.
fn time(process: &Process, _: &Facts) -> String {
    let seconds = process.time / TICKS;
    let days = if seconds >= DAY { format!("{}-", seconds / DAY) } else { String::new() };
    format!("{days}{:02}:{:02}:{:02}", seconds % DAY / HOUR, seconds % HOUR / 60, seconds % 60)
}

/// `[[days-]hours:]minutes:seconds`.
fn elapsed(process: &Process, facts: &Facts) -> String {
    let seconds = facts.age(process);
    let mut text = if seconds >= DAY { format!("{}-", seconds / DAY) } else { String::new() };
    if seconds >= HOUR {
        text.push_str(&format!("{:02}:", seconds % DAY / HOUR));
    }
    text + &format!("{:02}:{:02}", seconds % HOUR / 60, seconds % 60)
}

/// The time of a start today, else the day of one this year, else the year.
fn start(process: &Process, facts: &Facts) -> String {
    let (started, now) = (facts.started(process), facts.now.to_zoned(facts.zone.clone()));
    let format = match () {
        () if started.date() == now.date() => "%H:%M",
        () if started.year() == now.year() => "%b%d",
        () => "%Y",
    };
    started.strftime(format).to_string()
}

fn wait_channel(process: &Process, _: &Facts) -> String {
    let function = process.waits_in.trim_start_matches(['_', '.']);
    if function.is_empty() { "-".to_owned() } else { function.chars().take(6).collect() }
}

/// Scheduling class.
// man: sched(7)
fn class(process: &Process) -> &'static str {
    match process.policy {
        0 => "TS",
        1 => "FF",
        2 => "RR",
        3 => "B",
        5 => "IDL",
        6 => "DLN",
        _ => "?",
    }
}

fn is_realtime(process: &Process) -> bool {
    matches!(process.policy, 1 | 2 | 6)
}

const fn kind(
    names: &'static [&'static str],
    title: &'static str,
    show: fn(&Process, &Facts) -> String,
) -> Kind {
    Kind { names, title, show }
}

/// All of them.
// man: ps(1) STANDARD FORMAT SPECIFIERS
pub(super) static ALL: &[Kind] = &[
    kind(&["pid", "tgid"], "PID", |p, _| p.pid.to_string()),
    kind(&["ppid"], "PPID", |p, _| p.parent.to_string()),
    kind(&["pgid", "pgrp"], "PGID", |p, _| p.group.to_string()),
    kind(&["sid"], "SID", |p, _| p.session.to_string()),
    kind(&["sess", "session"], "SESS", |p, _| p.session.to_string()),
    kind(&["tpgid"], "TPGID", |p, _| p.foreground.to_string()),
    // What `-f` shows below the title of a number.
    kind(&["uid_name"], "UID", |p, f| name_of(&f.users, p.users[1])),
    kind(&["uid"], "UID", |p, _| p.users[1].to_string()),
    kind(&["euid"], "EUID", |p, _| p.users[1].to_string()),
    kind(&["ruid"], "RUID", |p, _| p.users[0].to_string()),
    kind(&["gid"], "GID", |p, _| p.groups[1].to_string()),
    kind(&["egid"], "EGID", |p, _| p.groups[1].to_string()),
    kind(&["rgid"], "RGID", |p, _| p.groups[0].to_string()),
    kind(&["user", "uname"], "USER", |p, f| name_of(&f.users, p.users[1])),
    kind(&["euser"], "EUSER", |p, f| name_of(&f.users, p.users[1])),
    kind(&["ruser"], "RUSER", |p, f| name_of(&f.users, p.users[0])),
    kind(&["group"], "GROUP", |p, f| name_of(&f.groups, p.groups[1])),
    kind(&["egroup"], "EGROUP", |p, f| name_of(&f.groups, p.groups[1])),
    kind(&["rgroup"], "RGROUP", |p, f| name_of(&f.groups, p.groups[0])),
    kind(&["comm", "ucomm"], "COMMAND", |p, _| p.name.clone()),
    kind(&["ucmd"], "CMD", |p, _| p.name.clone()),
    kind(&["cmd"], "CMD", |p, _| p.arguments.clone()),
    kind(&["args", "command"], "COMMAND", |p, _| p.arguments.clone()),
    kind(&["stat"], "STAT", |p, _| stat(p)),
    kind(&["s", "state"], "S", |p, _| p.state.to_string()),
    kind(&["tname"], "TTY", |p, _| terminal(p)),
    kind(&["tty", "tt"], "TT", |p, _| terminal(p)),
    kind(&["time", "cputime"], "TIME", time),
    kind(&["bsdtime"], "TIME", |p, _| {
        let seconds = p.time / TICKS;
        format!("{}:{:02}", seconds / 60, seconds % 60)
    }),
    kind(&["etime"], "ELAPSED", elapsed),
    kind(&["etimes"], "ELAPSED", |p, f| f.age(p).to_string()),
    kind(&["stime"], "STIME", start),
    kind(&["start_time", "bsdstart"], "START", start),
    kind(&["start"], "STARTED", |p, f| {
        let format = if f.age(p) >= DAY { "%b %d" } else { "%H:%M:%S" };
        f.started(p).strftime(format).to_string()
    }),
    kind(&["lstart"], "STARTED", |p, f| f.started(p).strftime("%a %b %e %H:%M:%S %Y").to_string()),
    kind(&["c"], "C", |p, f| (cpu(p, f) / 10).min(99).to_string()),
    kind(&["pcpu", "%cpu"], "%CPU", |p, f| tenths(cpu(p, f))),
    kind(&["pmem", "%mem"], "%MEM", |p, f| tenths((p.resident_kib << 10) * 1000 / f.memory.max(1))),
    kind(&["rss", "rssize", "rsz"], "RSS", |p, _| p.resident_kib.to_string()),
    kind(&["vsz", "vsize"], "VSZ", |p, _| (p.virtual_size >> 10).to_string()),
    kind(&["sz"], "SZ", |p, _| p.virtual_pages.to_string()),
    kind(&["ni", "nice"], "NI", |p, _| if is_realtime(p) { "-".to_owned() } else { p.nice.to_string() }),
    kind(&["pri"], "PRI", |p, _| (39 - p.priority).to_string()),
    kind(&["priority"], "PRI", |p, _| p.priority.to_string()),
    kind(&["opri", "intpri"], "PRI", |p, _| (60 + p.priority).to_string()),
    kind(&["rtprio"], "RTPRIO", |p, _| {
        if is_realtime(p) { p.realtime_priority.to_string() } else { "-".to_owned() }
    }),
    kind(&["cls", "class", "policy"], "CLS", |p, _| class(p).to_owned()),
    kind(&["psr"], "PSR", |p, _| p.processor.to_string()),
    kind(&["nlwp"], "NLWP", |p, _| p.threads.to_string()),
    kind(&["thcount"], "THCNT", |p, _| p.threads.to_string()),
    kind(&["wchan"], "WCHAN", wait_channel),
    // The bits that `ps` shows of the kernel's flags: forked without exec, used root's powers.
    kind(&["f", "flag", "flags"], "F", |p, _| format!("{:o}", (p.flags >> 6) & 7)),
    kind(&["addr"], "ADDR", |_, _| "-".to_owned()),
    kind(&["maj_flt", "majflt"], "MAJFL", |p, _| p.major_faults.to_string()),
    kind(&["min_flt", "minflt"], "MINFL", |p, _| p.minor_faults.to_string()),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            users: accounts("root:x:0:0::/:/bin/sh\nsystemd-resolve:x:101:101::/:/bin/false\n"),
            groups: HashMap::new(),
            zone: TimeZone::UTC,
            now: Timestamp::from_second(1_700_000_000).expect("a time"),
            uptime: 200_000,
            memory: 1 << 30,
        }
    }

    fn show(name: &str, process: &Process) -> String {
        let kind = ALL.iter().find(|kind| kind.names.contains(&name)).expect("a column");
        (kind.show)(process, &facts())
    }

    #[test]
    fn times_are_written_as_ps_does() {
        let process = Process { time: (2 * 86_400 + 3 * 3600 + 4 * 60 + 5) * 100, ..Process::default() };
        assert_eq!(show("time", &process), "2-03:04:05");
        assert_eq!(show("bsdtime", &Process { time: 6_500, ..Process::default() }), "1:05");
        let at = |start: u64| Process { start: start * 100, ..Process::default() };
        // Now is 2023-11-14 22:13:20.
        assert_eq!(show("stime", &at(200_000 - 3600)), "21:13");
        assert_eq!(show("stime", &at(200_000 - 2 * 86_400)), "Nov12");
        assert_eq!(show("etime", &at(200_000 - 65)), "01:05");
        assert_eq!(show("etime", &at(200_000 - 3665)), "01:01:05");
        assert_eq!(show("etime", &at(200_000 - 90_061)), "1-01:01:01");
        assert_eq!(show("lstart", &at(200_000)), "Tue Nov 14 22:13:20 2023");
    }

    #[test]
    fn shares_are_of_a_processor_and_of_memory() {
        let process = Process { start: 19_990_000, time: 4_260, resident_kib: 10_486, ..Process::default() };
        assert_eq!((show("pcpu", &process), show("c", &process)), ("42.6".into(), "42".into()));
        assert_eq!(show("pmem", &process), "1.0");
    }

    #[test]
    fn users_terminals_and_states_have_their_marks() {
        let process = Process {
            pid: 5,
            session: 5,
            group: 5,
            foreground: 5,
            state: 'S',
            threads: 2,
            nice: 3,
            terminal: 0x8801,
            users: [0, 101],
            ..Process::default()
        };
        assert_eq!(show("stat", &process), "SNsl+");
        assert_eq!(show("tty", &process), "pts/1");
        assert_eq!(show("tty", &Process::default()), "?");
        assert_eq!((show("user", &process), show("ruser", &process)), ("systemd+".into(), "root".into()));
        assert_eq!(show("user", &Process { users: [7, 7], ..Process::default() }), "7");
    }

    #[test]
    fn no_two_columns_share_a_name() {
        let mut names: Vec<&str> = ALL.iter().flat_map(|kind| kind.names.iter().copied()).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
