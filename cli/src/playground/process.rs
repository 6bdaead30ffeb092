//! Processes by more than their number: numbers are used again.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

const POLL: Duration = Duration::from_millis(20);

/// A process, told from a later one of the same number by when it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// Clock ticks from boot to its start.
    pub started: u64,
}

impl Process {
    /// The process that has this number now.
    pub fn of(pid: i32) -> Option<Process> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (state, started) = parse_stat(&stat)?;
        (state != 'Z' && state != 'X').then_some(Process { pid, started })
    }

    /// This process.
    pub fn own() -> Process {
        let pid = i32::try_from(std::process::id()).unwrap_or(0);
        Process::of(pid).unwrap_or(Process { pid, started: 0 })
    }

    /// Whether it runs still.
    pub fn is_alive(self) -> bool {
        Process::of(self.pid) == Some(self)
    }

    /// Sends a signal, if it is still there.
    pub fn signal(self, signal: Signal) {
        if self.is_alive() {
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }

    /// Waits for its end; whether it came in time.
    pub async fn gone_within(self, deadline: Duration) -> bool {
        let started = Instant::now();
        while self.is_alive() {
            if started.elapsed() > deadline {
                return false;
            }
            tokio::time::sleep(POLL).await;
        }
        true
    }
}

/// Every process for which `ours` says so, by its directory under `/proc`.
pub fn find(ours: impl Fn(&Path) -> bool) -> Vec<Process> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbered =
        entries.filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())));
    let own = Process::own().pid;
    numbered.filter(|(pid, path)| *pid != own && ours(path)).filter_map(|(pid, _)| Process::of(pid)).collect()
}

/// State and start time. The name before them may hold anything, parentheses too.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_hide_the_start_time() {
        let stat = "42 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 777 20 21";
        assert_eq!(parse_stat(stat), Some(('S', 777)));
    }

    #[tokio::test]
    async fn a_process_is_alive_until_it_is_reaped_or_dead() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep starts");
        let pid = i32::try_from(child.id()).expect("a pid");
        let process = Process::of(pid).expect("it runs");
        assert!(process.is_alive());
        assert!(!Process { started: process.started + 1, ..process }.is_alive());
        process.signal(Signal::SIGKILL);
        assert!(process.gone_within(Duration::from_secs(5)).await, "a zombie counts as gone");
        child.wait().expect("reaped");
    }
}
