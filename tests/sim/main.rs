//! A whole cluster in one thread and virtual time: the real brain, raft peers and agent rules, on a network
//! that loses, reorders and parts, disks that forget what was not synced, and machines that crash.
//!
//! One seed gives one history. `SEED=n cargo test -p rswarm-tests --test sim` runs that one alone;
//! `SEEDS=n` runs n fresh ones from the first that is not in `seeds.txt`.

mod agent;
mod checkers;
mod manager;
mod net;
mod workload;
mod world;

use std::time::Duration;

use world::World;

/// How long users and faults do their worst, in virtual time.
const STORM: Duration = Duration::from_secs(60);
/// How long a healed cluster may take to be as its users asked.
const RECOVERY: Duration = Duration::from_secs(90);

fn run(seed: u64) {
    let mut world = World::new(seed);
    world.found_cluster();
    world.storm(STORM);
    world.heal();
    world.settle(RECOVERY);
}

fn committed_seeds() -> Vec<u64> {
    let lines = include_str!("seeds.txt").lines().map(str::trim);
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.parse().expect("a seed"))
        .collect()
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

#[test]
fn every_seed_keeps_the_promises() {
    let seeds = match (number("SEED"), number("SEEDS")) {
        (Some(seed), _) => vec![seed],
        (None, Some(count)) => {
            let first = committed_seeds().into_iter().max().unwrap_or(0) + 1;
            (first..first + count).collect()
        }
        (None, None) => committed_seeds(),
    };
    for seed in seeds {
        if let Err(panic) = std::panic::catch_unwind(|| run(seed)) {
            eprintln!("seed {seed} fails: SEED={seed} cargo test -p rswarm-tests --test sim");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn one_seed_gives_one_history() {
    let history = || {
        let mut world = World::new(77);
        world.found_cluster();
        world.storm(Duration::from_secs(15));
        world.fingerprint()
    };
    assert_eq!(history(), history());
}
