//! Options of docker's `service create` whose effect shows in the container alone.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rswarm_tests::harness::{Lab, eventually};
use rswarm_tests::host::Host;

const PATIENCE: Duration = Duration::from_secs(30);

/// The id of a service's running container.
fn container(host: &Host, service: &str) -> Result<String> {
    let filter = format!("label=com.docker.swarm.service.name={service}");
    let ids = || host.docker(&["ps", "-q", "--filter", &filter]);
    eventually(PATIENCE, &format!("{service} runs"), || Ok(!ids()?.trim().is_empty()))?;
    Ok(ids()?.lines().next().context("it has gone")?.to_owned())
}

#[test]
fn services_use_the_networks_of_their_nodes_and_a_read_only_root() -> Result<()> {
    let lab = Lab::start(1)?;
    lab.form_cluster(1)?;
    let host = &lab.hosts[0];
    host.import_busybox()?;
    let secret = lab.dir.join("text");
    std::fs::write(&secret, "words")?;
    host.docker(&["config", "create", "words", &secret.display().to_string()])?;
    let create = |options: &[&str]| {
        let common = ["service", "create", "--detach", "--no-resolve-image"];
        host.docker(&[&common[..], options, &["busybox", "sleep", "1000"]].concat())
    };
    create(&["--name", "on-host", "--network", "host"])?;
    create(&["--name", "on-bridge", "--network", "bridge"])?;
    create(&["--name", "locked", "--read-only", "--config", "source=words,target=/etc/words"])?;

    let addresses = |id: &str| host.docker(&["exec", id, "ip", "-4", "-o", "addr"]);
    let own = addresses(&container(host, "on-host")?)?;
    ensure!(own.contains(&host.address.to_string()), "the host's address: {own}");
    let own = addresses(&container(host, "on-bridge")?)?;
    ensure!(own.contains("172.17."), "an address of the bridge: {own}");
    ensure!(host.docker(&["service", "ps", "on-host"])?.contains("Running"), "its tasks are listed");
    let shown = host.docker(&["service", "inspect", "--pretty", "on-host"])?;
    ensure!(shown.contains("Networks: host"), "{shown}");
    let refused = host.refusal(&["service", "create", "--detach", "--network", "none", "busybox"])?;
    ensure!(refused.contains("network none not found"), "{refused}");

    let locked = container(host, "locked")?;
    let script = "cat /etc/words; touch /etc/more 2>&1";
    let said = host.docker(&["exec", &locked, "sh", "-c", &format!("{script} || true")])?;
    ensure!(said.starts_with("words") && said.contains("Read-only file system"), "{said}");
    lab.finish()
}
