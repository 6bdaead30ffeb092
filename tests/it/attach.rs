//! Containers that no service made on an overlay that lets them: on any node, by any of Docker's ways, through the
//! loss of daemons and managers.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rswarm_tests::harness::{Lab, eventually};
use rswarm_tests::host::Host;

use crate::support::{converged, deploy, fetch_inside};

const PATIENCE: Duration = Duration::from_secs(60);
const ADDRESS: &str = "{{(index .NetworkSettings.Networks \"app\").IPAddress}}";

#[test]
fn containers_of_their_own_come_onto_attachable_overlays() -> Result<()> {
    let mut lab = Lab::start(3)?;
    lab.form_cluster(1)?;
    lab.every_host(Host::import_demo)?;
    let create = ["network", "create", "--driver", "overlay"];
    lab.hosts[0].docker(&[&create[..], &["--attachable", "--label", "of=us", "app"]].concat())?;
    lab.hosts[0].docker(&[&create[..], &["closed"]].concat())?;

    refused_as_docker_refuses(&lab.hosts)?;
    names_lead_to_containers_of_all_nodes(&lab)?;
    a_running_container_comes_and_goes(&lab)?;
    an_address_is_free_once_its_container_has_left(&lab)?;
    daemons_and_managers_may_die(&mut lab)?;
    nothing_is_left(&lab)?;
    lab.finish()
}

/// Starts a demo container on `app`; its address there.
fn start(host: &Host, name: &str, more: &[&str]) -> Result<String> {
    let run = ["run", "-d", "--name", name, "--network", "app"];
    host.docker(&[&run[..], more, &["demo:latest"]].concat())?;
    address(host, name)
}

fn address(host: &Host, name: &str) -> Result<String> {
    Ok(host.docker(&["inspect", "--format", ADDRESS, name])?.trim().to_owned())
}

fn reaches(host: &Host, container: &str, url: &str) -> Result<()> {
    eventually(PATIENCE, &format!("{container} on {} reaches {url}", host.name), || {
        Ok(fetch_inside(host, container, url).is_ok_and(|page| page.contains("Hostname")))
    })
}

fn refused_as_docker_refuses(hosts: &[Host]) -> Result<()> {
    let worker = &hosts[1];
    let refused = worker.refusal(&["run", "--rm", "--network", "closed", "demo:latest"])?;
    let wanted = "Could not attach to network closed: rpc error: code = PermissionDenied desc = network closed \
                  not manually attachable";
    ensure!(refused.contains(wanted), "{refused}");
    let refused = worker.refusal(&["run", "--rm", "--network", "app", "--ip", "192.0.2.9", "demo:latest"])?;
    ensure!(refused.contains("192.0.2.9") && refused.contains("does not belong"), "{refused}");
    let refused = worker.refusal(&["run", "--rm", "--network", "nowhere", "demo:latest"])?;
    ensure!(refused.contains("network nowhere not found"), "{refused}");
    // Docker's workers know the networks that they use, and no others.
    let listed = worker.docker(&["network", "ls", "--filter", "driver=overlay", "--format", "{{.Name}}"])?;
    ensure!(!listed.contains("app") && !listed.contains("closed"), "{listed}");
    Ok(())
}

fn names_lead_to_containers_of_all_nodes(lab: &Lab) -> Result<()> {
    let [first, second, third] = &lab.hosts[..] else { anyhow::bail!("three hosts") };
    start(first, "one", &["--network-alias", "uno"])?;
    let wanted = start(second, "two", &["--ip", "10.0.1.200"])?;
    ensure!(wanted == "10.0.1.200", "it asked for 10.0.1.200 and has {wanted}");
    deploy(first, "web", 2)?;
    converged(first, "web", 2, PATIENCE)?;
    reaches(second, "two", "http://uno/")?;
    reaches(second, "two", "http://web/")?;
    reaches(first, "one", "http://two/")?;
    reaches(first, "one", "http://10.0.1.200/")?;
    // Created first, and started later, as compose does.
    third.docker(&["create", "--name", "three", "--network", "app", "demo:latest"])?;
    third.docker(&["start", "three"])?;
    reaches(third, "three", "http://two.app/")?;
    let format = "{{.Scope}} {{.Attachable}} {{.Labels.of}} {{len .Containers}}";
    let shown = third.docker(&["network", "inspect", "app", "--format", format])?;
    let tasks = third.docker(&["ps", "-q", "--filter", "name=web"])?.split_whitespace().count();
    ensure!(shown.trim() == format!("swarm true us {}", tasks + 1), "{shown:?}");
    let refused = first.refusal(&["network", "rm", "app"])?;
    ensure!(refused.contains("is in use by"), "{refused}");
    first.docker(&["service", "rm", "web"])?;
    let refused = first.refusal(&["network", "rm", "app"])?;
    ensure!(refused.contains("is in use by task"), "{refused}");
    // What is no container of the cluster's is no task to users.
    eventually(PATIENCE, "no task is left", || Ok(first.docker(&["node", "ps", "-q"])?.trim().is_empty()))
}

fn a_running_container_comes_and_goes(lab: &Lab) -> Result<()> {
    let worker = &lab.hosts[2];
    worker.docker(&["run", "-d", "--name", "late", "demo:latest"])?;
    worker.docker(&["network", "connect", "--alias", "spat", "app", "late"])?;
    reaches(&lab.hosts[0], "one", "http://spat/")?;
    reaches(worker, "late", "http://two/")?;
    worker.docker(&["network", "disconnect", "app", "late"])?;
    eventually(PATIENCE, "the name is gone", || {
        Ok(fetch_inside(&lab.hosts[0], "one", "http://spat/").is_ok_and(|page| !page.contains("Hostname")))
    })?;
    worker.docker(&["rm", "-f", "late", "three"])?;
    // The last container took the network with it.
    eventually(PATIENCE, "the worker forgets the network", || {
        Ok(!worker.docker(&["network", "ls", "--format", "{{.Name}}"])?.lines().any(|name| name == "app"))
    })
}

fn an_address_is_free_once_its_container_has_left(lab: &Lab) -> Result<()> {
    let [first, second, third] = &lab.hosts[..] else { anyhow::bail!("three hosts") };
    let taken = third.refusal(&["run", "--rm", "--network", "app", "--ip", "10.0.1.200", "demo:latest"])?;
    ensure!(taken.contains("10.0.1.200 is already in use"), "{taken}");
    second.docker(&["restart", "-t", "0", "two"])?;
    ensure!(address(second, "two")? == "10.0.1.200", "a restart keeps what was asked for");
    second.docker(&["rm", "-f", "two"])?;
    let moved = start(third, "two", &["--ip", "10.0.1.200"])?;
    ensure!(moved == "10.0.1.200", "{moved}");
    reaches(first, "one", "http://two/")
}

fn daemons_and_managers_may_die(lab: &mut Lab) -> Result<()> {
    let before = address(&lab.hosts[2], "two")?;
    lab.hosts[2].restart_hard()?;
    lab.hosts[2].ready()?;
    ensure!(address(&lab.hosts[2], "two")? == before, "the daemon's restart changed the address");
    reaches(&lab.hosts[2], "two", "http://one/")?;
    // Without any manager it goes on as it is.
    let first = &mut lab.hosts[0];
    first.kill()?;
    lab.hosts[2].restart_hard()?;
    lab.hosts[2].ready()?;
    let refused = lab.hosts[1].refusal(&["run", "--rm", "--network", "app", "demo:latest"])?;
    ensure!(refused.contains("Could not attach to network app"), "{refused}");
    lab.hosts[0].start()?;
    lab.hosts[0].ready()?;
    reaches(&lab.hosts[2], "two", "http://one/")?;
    reaches(&lab.hosts[0], "one", "http://two/")
}

fn nothing_is_left(lab: &Lab) -> Result<()> {
    let first = &lab.hosts[0];
    for (host, name) in [(0, "one"), (2, "two")] {
        lab.hosts[host].docker(&["rm", "-f", name])?;
    }
    for host in &lab.hosts {
        let created = host.docker(&["ps", "-aq"])?;
        for id in created.split_whitespace() {
            host.docker(&["rm", "-f", id])?;
        }
    }
    eventually(PATIENCE, "the network is free", || Ok(first.docker(&["network", "rm", "app"]).is_ok()))?;
    first.docker(&["network", "rm", "closed"]).context("the other network")?;
    Ok(())
}
