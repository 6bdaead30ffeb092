//! How fast whole managers are: real certificates, real gRPC on the loopback, real logs with fsync.
//!
//! ```text
//! cargo bench -p rswarm-manager --bench cluster -- SCENARIO [NUMBERS]
//!
//!     replicas [AGENTS] [REPLICAS]   from `create` to all running, as agents report it
//!     inside [AGENTS] [REPLICAS]     the same with many more agents, that call in the process without TLS
//!     idle [AGENTS]                  CPU, raft entries and disk of doing nothing
//!     writes                         small writes to three managers: one after the other, then many at once
//!     failover [TRIALS]              from the leader's death to the next write that is accepted
//!     rounds [ROUNDS]                memory over services that are made and removed
//! ```
//!
//! Agents are clients that answer at once that a task runs, or has stopped. They share the process with the
//! managers: resident memory is that of both. CPU is told apart by the names of threads. Each figure is printed
//! with its goal, after the machine's load, which is part of every one of them.

use std::fs;
use std::process::ExitCode;

use rswarm_manager::TICK;

mod crowd;
mod failover;
mod figure;
mod idle;
mod process;
mod replicas;
mod rounds;
mod writes;

#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../../tests/cluster/harness.rs"]
mod harness;

/// What `rounds` and others take when the command line gives no number.
const AGENTS: usize = 1_000;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let number = |at: usize, default| words.get(at).and_then(|word| word.parse().ok()).unwrap_or(default);
    // `cargo test` runs benchmarks too, and asks for nothing.
    let Some(scenario) = words.first() else { return ExitCode::SUCCESS };
    harness::TICKING.set(TICK).expect("nothing ticks yet");
    let managers = process::runtime(process::MANAGER);
    println!("load {}", fs::read_to_string("/proc/loadavg").expect("the load").trim());
    match scenario.as_str() {
        "replicas" => managers.block_on(replicas::run(number(1, AGENTS), number(2, 10_000), crowd::Way::Tls)),
        "inside" => managers.block_on(replicas::run(number(1, 5_000), number(2, 50_000), crowd::Way::Inside)),
        "idle" => managers.block_on(idle::run(number(1, AGENTS))),
        "writes" => managers.block_on(writes::run()),
        "failover" => managers.block_on(failover::run(number(1, 20))),
        "rounds" => managers.block_on(rounds::run(number(1, 10_000))),
        other => {
            eprintln!("no scenario `{other}`: replicas, inside, idle, writes, failover or rounds");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
