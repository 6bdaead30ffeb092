//! Labels of a service that say how its connections are spread: of published ports on any host, and of its
//! virtual address.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rswarm_tests::harness::{Lab, eventually, run};
use rswarm_tests::host::Host;

use crate::support::{cluster, containers_of, converged, deploy, fetch_inside};

const PATIENCE: Duration = Duration::from_secs(60);
/// Connections that tell one task from several: by chance, all go to the same of three once in 2,000,000.
const CONNECTIONS: usize = 14;
/// curl's status when nobody listens.
const REFUSED: i32 = 7;

#[test]
fn labels_of_a_service_say_which_task_a_connection_goes_to() -> Result<()> {
    let lab = cluster(3, 1)?;
    let first = &lab.hosts[0];
    let create = ["service", "create", "--detach", "--network", "app", "-p", "8080:80"];
    let refused = first.refusal(&[&create[..], &["--label", "rswarm.lb=fair", "demo:latest"]].concat())?;
    ensure!(
        refused.contains("invalid label rswarm.lb=fair: want random, source-hash or sticky"),
        "{refused}"
    );
    first.docker(&[&create[..], &["--name", "web", "--replicas", "3", "demo:latest"]].concat())?;
    deploy(first, "client", 1)?;
    converged(first, "web", 3, PATIENCE)?;
    converged(first, "client", 1, PATIENCE)?;
    let tasks = tasks_by_host(&lab)?;
    ensure!(tasks.iter().all(|tasks| tasks.len() == 1), "one task on each host: {tasks:?}");

    every_task_is_met(&lab)?;
    a_client_keeps_its_task(&lab)?;
    the_nearest_task_answers(&lab)?;
    a_port_answers_where_a_task_is(&lab)?;
    ensure!(
        tasks_by_host(&lab)?.concat().iter().all(|task| tasks.concat().contains(task)),
        "labels restart no task"
    );

    first.docker(&["service", "rm", "web", "client"])?;
    eventually(PATIENCE, "all containers are gone", || {
        Ok(lab.hosts.iter().all(|host| host.docker(&["ps", "-aq"]).is_ok_and(|ids| ids.trim().is_empty())))
    })?;
    first.docker(&["network", "rm", "app"])?;
    lab.finish()
}

/// The host names of a service's tasks, for each host.
fn tasks_by_host(lab: &Lab) -> Result<Vec<Vec<String>>> {
    let mut tasks = vec![Vec::new(); lab.hosts.len()];
    for container in containers_of(lab, "web")? {
        tasks[container.host].push(container.id[..12].to_owned());
    }
    Ok(tasks)
}

fn label(lab: &Lab, label: &str) -> Result<()> {
    lab.hosts[0].docker(&["service", "update", "--detach", "--label-add", label, "web"]).map(drop)
}

fn host_name(page: &str) -> Result<String> {
    let line = page.lines().find_map(|line| line.strip_prefix("Hostname: "));
    Ok(line.with_context(|| format!("no host name in {page:?}"))?.to_owned())
}

/// The tasks that answer a client on a host's published port.
fn met(client: &Host, server: &Host) -> Result<BTreeSet<String>> {
    let url = format!("http://{}:8080/", server.address);
    let ask = |_| host_name(&run(client.command("curl").args(["-sS", "--fail", "--max-time", "20", &url]))?);
    (0..CONNECTIONS).map(ask).collect()
}

/// The tasks that answer a container by the service's name, and the host that the container is on.
fn met_inside(lab: &Lab) -> Result<(usize, BTreeSet<String>)> {
    let client = containers_of(lab, "client")?.into_iter().next().context("the client runs")?;
    let ask = |_| host_name(&fetch_inside(&lab.hosts[client.host], &client.id, "http://web/")?);
    Ok((client.host, (0..CONNECTIONS).map(ask).collect::<Result<_>>()?))
}

fn every_task_is_met(lab: &Lab) -> Result<()> {
    for server in &lab.hosts {
        eventually(PATIENCE, &format!("several tasks answer at {}", server.name), || {
            Ok(met(&lab.hosts[1], server)?.len() > 1)
        })?;
    }
    eventually(PATIENCE, "several tasks answer by name", || Ok(met_inside(lab)?.1.len() > 1))
}

/// By whatever host it comes: all of them draw alike.
fn a_client_keeps_its_task(lab: &Lab) -> Result<()> {
    for pick in ["rswarm.lb=sticky", "rswarm.lb=source-hash"] {
        label(lab, pick)?;
        eventually(PATIENCE, &format!("one client meets one task: {pick}"), || {
            let (one, other) = (met(&lab.hosts[1], &lab.hosts[0])?, met(&lab.hosts[1], &lab.hosts[2])?);
            let inside = met_inside(lab)?.1;
            ensure!(one == other && one.len() == 1 && inside.len() == 1, "{one:?}, {other:?}, {inside:?}");
            Ok(true)
        })?;
    }
    label(lab, "rswarm.lb=random")?;
    every_task_is_met(lab)
}

fn the_nearest_task_answers(lab: &Lab) -> Result<()> {
    label(lab, "rswarm.local-first=true")?;
    let tasks = tasks_by_host(lab)?;
    for (server, own) in lab.hosts.iter().zip(&tasks) {
        eventually(PATIENCE, &format!("the task of {} answers there", server.name), || {
            let met = met(&lab.hosts[1], server)?;
            ensure!(met.iter().eq(own), "{met:?} at {}, which has {own:?}", server.name);
            Ok(true)
        })?;
    }
    eventually(PATIENCE, "the task of the client's host answers it", || {
        let (host, met) = met_inside(lab)?;
        ensure!(met.iter().eq(&tasks[host]), "{met:?} answer a client on host {host}: {tasks:?}");
        Ok(true)
    })
}

fn a_port_answers_where_a_task_is(lab: &Lab) -> Result<()> {
    let first = &lab.hosts[0];
    // Without a task of its own, a host leads to others' as long as nothing else is said.
    first.docker(&["service", "scale", "--detach", "web=2"])?;
    converged(first, "web", 2, PATIENCE)?;
    eventually(PATIENCE, "one task is gone", || Ok(tasks_by_host(lab)?.concat().len() == 2))?;
    let tasks = tasks_by_host(lab)?;
    let without = tasks.iter().position(Vec::is_empty).context("a host without a task")?;
    let client = &lab.hosts[(without + 1) % 3];
    eventually(PATIENCE, "a host without a task answers by others'", || {
        Ok(met(client, &lab.hosts[without])?.len() > 1)
    })?;
    label(lab, "rswarm.publish=local")?;
    for (server, own) in lab.hosts.iter().zip(&tasks) {
        eventually(PATIENCE, &format!("{} answers only with {own:?}", server.name), || {
            if !own.is_empty() {
                return Ok(met(client, server)?.iter().eq(own));
            }
            let url = format!("http://{}:8080/", server.address);
            let status = client.command("curl").args(["-sS", "--max-time", "20", &url]).output()?.status;
            Ok(status.code() == Some(REFUSED))
        })?;
    }
    let inside = met_inside(lab)?;
    ensure!(!inside.1.is_empty(), "by name it is everybody's");
    let all = ["service", "update", "--detach", "--label-rm", "rswarm.publish", "web"];
    first.docker(&all)?;
    eventually(PATIENCE, "every host answers again", || Ok(met(client, &lab.hosts[without])?.len() > 1))
}
