//! A node is drained under load: a service of one replica does not go down, and what has nowhere to go serves until the
//! deadline.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rswarm_tests::harness::{Lab, eventually, run};
use rswarm_tests::host::{CHECKED, Host};

use crate::support::{cluster, containers_of, converged, deploy, fetch_inside, hammer, running_tasks};

const PATIENCE: Duration = Duration::from_secs(60);
/// Requests that a client must have made for its word to count.
const REQUESTS_MIN: usize = 20;

#[test]
fn a_drained_node_takes_no_service_of_one_replica_down() -> Result<()> {
    let lab = cluster(3, 1)?;
    let first = &lab.hosts[0];
    lab.every_host(Host::import_checked_demo)?;
    deploy(first, "client", 1)?;
    let create = ["service", "create", "--detach", "--name", "web", "--network", "app", "-p", "8080:80"];
    first.docker(&[&create[..], &[CHECKED]].concat())?;
    converged(first, "client", 1, PATIENCE)?;
    converged(first, "web", 1, PATIENCE)?;
    no_request_is_lost(&lab)?;
    what_has_nowhere_to_go_serves_until_the_deadline(&lab)?;
    lab.finish()
}

/// The node of a service's only task.
fn node_of(lab: &Lab, service: &str) -> Result<String> {
    let tasks = running_tasks(&lab.hosts[0], service)?;
    Ok(tasks.into_iter().next().with_context(|| format!("{service} runs"))?.1)
}

/// The client stays where it is: the nodes that `web` is on are drained, one after the other, but its own.
fn no_request_is_lost(lab: &Lab) -> Result<()> {
    let first = &lab.hosts[0];
    let task = containers_of(lab, "client")?.into_iter().next().context("the client runs")?;
    let client = &lab.hosts[task.host];
    let asked = lab.hosts.iter().find(|host| host.name != client.name).context("another host")?;
    let url = format!("http://{}:8080/", asked.address);
    eventually(PATIENCE, "the mesh answers", || {
        run(client.command("curl").args(["-sS", "--fail", "--max-time", "20", &url])).map(|_| true)
    })?;
    let mesh = || run(client.command("curl").args(["-sS", "--fail", "--max-time", "20", &url]));
    let vip = || fetch_inside(client, &task.id, "http://web/");
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let clients =
            [("mesh", scope.spawn(|| hammer(&end, mesh))), ("name", scope.spawn(|| hammer(&end, vip)))];
        let drained = (0..2).try_for_each(|_| {
            let node = node_of(lab, "web")?;
            if node == client.name {
                return Ok(());
            }
            first.rswarm(&["node", "update", "--availability", "drain", "--wait", &node])?;
            ensure!(node_of(lab, "web")? != node, "web is still on {node}");
            first.docker(&["node", "update", "--availability", "active", &node]).map(drop)
        });
        end.store(true, Ordering::Relaxed);
        for (way, hammered) in clients {
            let (failures, count) = hammered.join().expect("the client does not panic");
            println!("{count} requests by {way}, {} failed", failures.len());
            ensure!(failures.is_empty(), "by {way}: {failures:#?}");
            ensure!(count >= REQUESTS_MIN, "{count} requests by {way} say nothing");
        }
        drained
    })
}

fn what_has_nowhere_to_go_serves_until_the_deadline(lab: &Lab) -> Result<()> {
    let first = &lab.hosts[0];
    let node = node_of(lab, "web")?;
    let pin = ["service", "update", "--detach", "--constraint-add"];
    first.docker(&[&pin[..], &[&format!("node.hostname=={node}"), "web"]].concat())?;
    let drain = ["node", "update", "--availability", "drain", "--drain-deadline"];
    first.rswarm(&[&drain[..], &["1h", &node]].concat())?;
    let explained =
        || first.docker(&["service", "ps", "web", "--no-trunc", "--format", "{{.CurrentState}}|{{.Error}}"]);
    eventually(PATIENCE, "the successor says why it waits", || {
        Ok(explained()?.contains("no suitable node (") && node_of(lab, "web")? == node)
    })?;
    first.rswarm(&[&drain[..], &["0", "--wait", &node]].concat())?;
    ensure!(running_tasks(first, "web")?.is_empty(), "{}", explained()?);
    let refused = first.refusal(&["node", "update", "--label-add", "rswarm.drain.deadline=soon", &node])?;
    ensure!(refused.contains("invalid duration `soon`"), "{refused}");
    first.docker(&["service", "rm", "web", "client"])?;
    eventually(PATIENCE, "all containers are gone", || {
        Ok(lab.hosts.iter().all(|host| host.docker(&["ps", "-aq"]).is_ok_and(|ids| ids.trim().is_empty())))
    })
}
