//! One process, as `/proc` tells of it.

use std::fs;

/// What is shown of a process. Times are in clock ticks.
// man: proc_pid_stat(5)
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Process {
    pub pid: i32,
    /// At most 15 bytes.
    pub name: String,
    /// Its command line, or its name in brackets.
    pub arguments: String,
    pub state: char,
    pub parent: i32,
    pub group: i32,
    pub session: i32,
    pub terminal: u32,
    /// The terminal's foreground process group.
    pub foreground: i32,
    pub flags: u64,
    pub minor_faults: u64,
    pub major_faults: u64,
    /// Processor time used.
    pub time: u64,
    pub priority: i64,
    pub nice: i64,
    pub threads: i64,
    /// Since the machine's start.
    pub start: u64,
    /// Bytes.
    pub virtual_size: u64,
    pub virtual_pages: u64,
    pub resident_kib: u64,
    pub processor: i64,
    pub realtime_priority: u64,
    pub policy: u64,
    /// Real, effective.
    pub users: [u32; 2],
    /// Real, effective.
    pub groups: [u32; 2],
    /// Whether it has locked memory.
    pub locked: bool,
    /// What is drawn before its command where commands are a tree.
    pub branch: String,
    /// The kernel function that it waits in; empty when unknown.
    pub waits_in: String,
}

impl Process {
    /// Reads a process; `None` for one that is gone.
    pub fn read(pid: i32) -> Option<Process> {
        let file = |name: &str| fs::read(format!("/proc/{pid}/{name}")).ok();
        let text = |name: &str| file(name).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let mut process = parse_stat(&text("stat")?)?;
        let status = text("status")?;
        let ids = |field: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(field));
            let mut ids =
                line.unwrap_or_default().split_whitespace().map(|id| id.parse().unwrap_or_default());
            [ids.next().unwrap_or_default(), ids.next().unwrap_or_default()]
        };
        process.users = ids("Uid:");
        process.groups = ids("Gid:");
        process.resident_kib = u64::from(ids("VmRSS:")[0]);
        let pages = text("statm").unwrap_or_default();
        process.virtual_pages =
            pages.split(' ').next().and_then(|pages| pages.parse().ok()).unwrap_or_default();
        process.locked = status.lines().any(|line| line.starts_with("VmLck:") && !line.contains(" 0 kB"));
        process.waits_in = text("wchan").filter(|function| function != "0").unwrap_or_default();
        process.arguments = command_line(&file("cmdline").unwrap_or_default(), &process.name);
        Some(process)
    }
}

/// The words of a command line with blanks between them. Control characters would break a table.
fn command_line(bytes: &[u8], name: &str) -> String {
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    if end == 0 {
        return format!("[{name}]");
    }
    let text = String::from_utf8_lossy(&bytes[..end]);
    text.chars()
        .map(|c| {
            if c == '\0' {
                ' '
            } else if c.is_control() {
                '?'
            } else {
                c
            }
        })
        .collect()
}

/// The name is in parentheses and may contain anything, also parentheses.
fn parse_stat(stat: &str) -> Option<Process> {
    let (pid, rest) = stat.split_once(" (")?;
    let (name, rest) = rest.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    // Numbered as in the manual, where the state is field 3.
    let field = |number: usize| fields.get(number - 3).copied().unwrap_or("0");
    let signed = |number: usize| field(number).parse::<i64>().unwrap_or(0);
    let small = |number: usize| field(number).parse::<i32>().unwrap_or(0);
    let unsigned = |number: usize| field(number).parse::<u64>().unwrap_or(0);
    Some(Process {
        pid: pid.parse().ok()?,
        name: name.to_owned(),
        state: field(3).chars().next()?,
        parent: small(4),
        group: small(5),
        session: small(6),
        terminal: u32::from_ne_bytes(small(7).to_ne_bytes()),
        foreground: small(8),
        flags: unsigned(9),
        minor_faults: unsigned(10),
        major_faults: unsigned(12),
        time: unsigned(14) + unsigned(15),
        priority: signed(18),
        nice: signed(19),
        threads: signed(20),
        start: unsigned(22),
        virtual_size: unsigned(23),
        processor: signed(39),
        realtime_priority: unsigned(40),
        policy: unsigned(41),
        ..Process::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_look_like_the_fields_behind_it() {
        let stat = "42 (a) R 1 (b) S 7 42 42 34816 43 4194304 5 0 6 0 100 50 0 0 20 0 3 0 9000 8192 2 \
                    18446744073709551615 0 0 0 0 0 0 0 0 0 0 0 0 17 1 0 0";
        let process = parse_stat(stat).expect("process");
        assert_eq!((process.pid, process.name.as_str(), process.state), (42, "a) R 1 (b", 'S'));
        assert_eq!((process.parent, process.terminal, process.foreground), (7, 34816, 43));
        assert_eq!((process.time, process.threads, process.start, process.processor), (150, 3, 9000, 1));
        assert_eq!(parse_stat("42 (a"), None);
    }

    #[test]
    fn a_command_line_is_words_and_a_kernel_thread_has_its_name() {
        assert_eq!(command_line(b"sh\0-c\0a\nb\0", "sh"), "sh -c a?b");
        assert_eq!(command_line(b"", "kworker"), "[kworker]");
        assert_eq!(command_line(b"\0\0", "x"), "[x]");
    }
}
