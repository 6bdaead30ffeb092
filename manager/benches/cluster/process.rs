//! What the kernel counts of this process.

use std::fs;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

/// What the threads of managers are called.
pub const MANAGER: &str = "manager";
/// What the threads of agents are called.
pub const AGENT: &str = "agent";

/// Two threads of this name, as many as the machines have cores that the goals are for.
pub fn runtime(name: &str) -> Runtime {
    Builder::new_multi_thread().worker_threads(2).thread_name(name).enable_all().build().expect("threads")
}

/// CPU time of the threads whose name begins so. Threads that have ended are missing: those that wait for disks
/// or decide end after ten idle seconds, which is longer than anything is measured without pause.
/// source: Documentation/scheduler/sched-stats.rst, proc_pid_comm(5)
pub fn cpu(name: &str) -> Duration {
    let threads = fs::read_dir("/proc/self/task").expect("proc is mounted").flatten();
    let times = threads.filter_map(|thread| {
        let comm = fs::read_to_string(thread.path().join("comm")).ok()?;
        let stat = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        let ran: u64 = stat.split(' ').next()?.parse().ok()?;
        comm.starts_with(name).then_some(ran)
    });
    Duration::from_nanos(times.sum())
}

/// Resident memory, in MiB.
pub fn resident() -> f64 {
    number("status", "VmRSS:") as f64 / 1024.0
}

/// Bytes that were sent to disks.
pub fn written() -> u64 {
    number("io", "write_bytes:")
}

/// A number of `/proc/self/FILE`, by the word before it.
fn number(file: &str, word: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/self/{file}")).expect("proc is mounted");
    let line = text.lines().find_map(|line| line.strip_prefix(word)).expect("the kernel counts it");
    line.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number")
}

/// The one in the middle.
pub fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times[times.len() / 2]
}
