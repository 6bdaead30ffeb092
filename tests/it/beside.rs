//! Debian's dockerd on the same host: containers of both are reached and reach out, and its rules are afterwards what they
//! were before.

use std::time::Duration;

use anyhow::{Result, ensure};
use rswarm_tests::dockerd::Dockerd;
use rswarm_tests::harness::{Lab, eventually, run};
use rswarm_tests::host::Host;
use rswarm_tests::images::DEMO;

const PATIENCE: Duration = Duration::from_secs(30);
/// What dockerd's chains drop by default: the way that `network check` tells.
const LET_THROUGH: &str =
    "iptables-nft -I DOCKER-USER -i rsw+ -j ACCEPT; iptables-nft -I DOCKER-USER -o rsw+ -j ACCEPT";

#[test]
fn dockerd_on_the_same_host_keeps_its_rules_and_both_are_reached() -> Result<()> {
    let mut lab = Lab::start(2)?;
    lab.hosts[0].stop()?;
    let (flags, dir) = (["--ip6tables=false"], lab.dir.join("dockerd"));
    let dockerd = Dockerd::start(&dir, &lab.hosts[0].netns, &flags)?;
    import(&dockerd)?;
    dockerd.docker(&["run", "-d", "--name", "theirs", "-p", "8081:80", "demo:latest"])?;
    run(lab.hosts[0].command("sh").args(["-c", LET_THROUGH]))?;
    let before = rules(&lab.hosts[0])?;
    ensure!(before.contains("DOCKER-USER") && !before.contains("rswarm"), "{before}");

    lab.hosts[0].start()?;
    lab.hosts[0].ready()?;
    let [host, other] = [&lab.hosts[0], &lab.hosts[1]];
    for host in [host, other] {
        host.import_demo()?;
        host.docker(&["run", "-d", "--name", "ours", "-p", "8080:80", "demo:latest"])?;
    }
    for port in [8080, 8081] {
        // Asked from outside, it asks outside.
        let url = format!("http://{}:{port}/fetch?url=http://{}:8080/", host.address, other.address);
        eventually(PATIENCE, &format!("{url} answers"), || {
            let page = run(other.command("curl").args(["-sS", "--fail", "--max-time", "20", &url]))?;
            ensure!(page.contains("Hostname"), "{page}");
            Ok(true)
        })?;
    }
    let theirs = rules(host)?;
    let theirs: String = theirs.split_inclusive("\n}\n").filter(|table| !table.contains(" rswarm")).collect();
    ensure!(theirs == before, "{before}\nthen\n{theirs}");
    host.docker(&["rm", "-f", "ours"])?;
    lab.hosts[0].stop()?;
    let after = rules(&lab.hosts[0])?;
    ensure!(after == before, "{before}\nthen\n{after}");
    dockerd.docker(&["rm", "-f", "theirs"])?;
    drop(dockerd);
    run(lab.hosts[0].command("ip").args(["link", "del", "docker0"]))?;
    lab.finish()
}

/// All rules, without what they have counted.
fn rules(host: &Host) -> Result<String> {
    run(host.command("nft").args(["-s", "list", "ruleset"]))
}

/// The demo image for dockerd.
fn import(dockerd: &Dockerd) -> Result<()> {
    let changes = ["--change", r#"ENTRYPOINT ["/rswarm","whoami"]"#];
    dockerd.docker(&[&["import"][..], &changes, &[&DEMO.path()?, "demo:latest"]].concat()).map(drop)
}
