//! The first thing a new user runs.

use std::process::Command;

use anyhow::{Result, ensure};
use rswarm_tests::harness::{binary, run};
use rswarm_tests::turns::Turn;

#[test]
fn the_playground_checks_itself_and_cleans_up() -> Result<()> {
    let _turn = Turn::alone();
    let dir = tempfile::tempdir()?;
    let interfaces = run(Command::new("ip").args(["-o", "link"]))?;
    let rules = run(Command::new("nft").args(["list", "ruleset"]))?;
    let output = run(Command::new(binary()).args(["playground", "--check", "--dir"]).arg(dir.path()))?;
    println!("{output}");
    ensure!(run(Command::new("ip").args(["-o", "link"]))? == interfaces, "the machine's interfaces changed");
    ensure!(run(Command::new("nft").args(["list", "ruleset"]))? == rules, "the machine's firewall changed");
    let table = std::fs::read_to_string("/proc/self/mounts")?;
    ensure!(!table.contains(&dir.path().display().to_string()), "a mount of the playground is left");
    Ok(())
}
