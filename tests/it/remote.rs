//! A task's container seen on any manager, wherever it runs.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rswarm_tests::harness::{Lab, eventually};
use rswarm_tests::host::Host;
use serde_json::Value;

use crate::support::{TaskContainer, cluster, containers_of, converged, deploy};

const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn containers_of_tasks_are_seen_from_every_manager() -> Result<()> {
    let mut lab = cluster(3, 2)?;
    deploy(&lab.hosts[0], "web", 3)?;
    converged(&lab.hosts[0], "web", 3, PATIENCE)?;
    let tasks = containers_of(&lab, "web")?;
    ensure!(tasks.len() == 3, "a task on each node");
    // One that leads and one that does not; of workers nobody is told anything.
    for from in 0..2 {
        for task in tasks.iter().filter(|task| task.host != from) {
            everything_is_seen(&lab.hosts[from], &lab.hosts[task.host], task)?;
        }
    }
    let elsewhere = tasks.iter().find(|task| task.host == 0).context("a task on the first host")?;
    is_not_there(&lab.hosts[2], &elsewhere.id)?;
    whoever_leaves_leaves_nothing(&lab, &tasks)?;
    only_looking_is_passed_on(&lab, &tasks)?;
    a_node_that_does_not_answer_is_named(&mut lab, &tasks)?;
    lab.hosts[0].docker(&["service", "rm", "web"])?;
    lab.finish()
}

/// As its own node shows it, to the byte.
fn everything_is_seen(from: &Host, own: &Host, task: &TaskContainer) -> Result<()> {
    let path = |view: &str| format!("/v1.41/containers/{}/{view}", task.id);
    let shown = own.api("GET", &path("json"), "")?;
    ensure!(shown.0 == 200 && from.api("GET", &path("json"), "")? == shown, "{shown:?}");
    let found: Value = serde_json::from_str(&shown.1)?;
    let name = found["Name"].as_str().context("a name")?.trim_start_matches('/');
    for reference in [name, &task.id[..12]] {
        let id = from.docker(&["inspect", "--format", "{{.Id}} {{.State.Status}}", reference])?;
        ensure!(id.trim() == format!("{} running", task.id), "{id}");
    }
    ensure!(from.docker(&["top", name])? == own.docker(&["top", name])?);
    ensure!(from.docker(&["logs", name])? == own.docker(&["logs", name])?);
    ensure!(from.docker(&["diff", name])? == own.docker(&["diff", name])?);
    let stats = from.docker(&["stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}}", name])?;
    ensure!(stats.starts_with(name) && !stats.ends_with(" 0"), "{stats}");
    let copied = |host: &Host| host.docker(&["cp", &format!("{name}:/etc/hostname"), "-"]);
    ensure!(copied(from)? == copied(own)? && copied(from)?.contains("hostname"));
    let missing = from.api("GET", &format!("{}?path=/nowhere", path("archive")), "")?;
    ensure!(
        missing.0 == 404 && missing == own.api("GET", &format!("{}?path=/nowhere", path("archive")), "")?
    );
    Ok(())
}

fn is_not_there(host: &Host, reference: &str) -> Result<()> {
    let (status, body) = host.api("GET", &format!("/containers/{reference}/json"), "")?;
    ensure!(status == 404 && body.contains(&format!("No such container: {reference}")), "{status} {body}");
    Ok(())
}

/// A client that waits for a container that says nothing, and goes away.
fn whoever_leaves_leaves_nothing(lab: &Lab, tasks: &[TaskContainer]) -> Result<()> {
    let there = tasks.iter().find(|task| task.host == 2).context("a task on the worker")?;
    let hosts = [&lab.hosts[0], &lab.hosts[2]];
    let sockets = || hosts.map(|host| sockets(host).unwrap_or_default());
    let before = sockets();
    let mut follow = std::process::Command::new("docker");
    follow.args(["-H", &lab.hosts[0].socket(), "logs", "--follow", "--tail", "0", &there.id]);
    let mut client = follow.spawn()?;
    eventually(PATIENCE, "both nodes carry it", || {
        Ok(sockets().iter().zip(&before).all(|(now, before)| now > before))
    })?;
    client.kill()?;
    client.wait()?;
    eventually(PATIENCE, "neither node does any more", || {
        let now = sockets();
        ensure!(now.iter().zip(&before).all(|(now, before)| now <= before), "{before:?}, now {now:?}");
        Ok(true)
    })
}

/// Unix sockets that a host's daemon holds: other connections come and go by themselves.
fn sockets(host: &Host) -> Result<usize> {
    let pid = host.pid().context("a daemon")?;
    let unix = std::fs::read_to_string(format!("/proc/{pid}/net/unix"))?;
    let unix: std::collections::BTreeSet<&str> =
        unix.lines().filter_map(|line| line.split_whitespace().nth(6)).collect();
    let held = std::fs::read_dir(format!("/proc/{pid}/fd"))?.filter_map(|entry| {
        let target = std::fs::read_link(entry.ok()?.path()).ok()?;
        let inode = target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned();
        unix.contains(inode.as_str()).then_some(())
    });
    Ok(held.count())
}

/// What changes a container is its own node's, and the cluster's; what is no task's is nobody else's.
fn only_looking_is_passed_on(lab: &Lab, tasks: &[TaskContainer]) -> Result<()> {
    let there = tasks.iter().find(|task| task.host == 2).context("a task on the worker")?;
    for (method, view) in [("POST", "/stop"), ("POST", "/exec"), ("DELETE", "")] {
        let (status, body) =
            lab.hosts[0].api(method, &format!("/containers/{}{view}", there.id), r#"{"Cmd":["true"]}"#)?;
        ensure!(status == 404 && body.contains("No such container"), "{method} {view}: {status} {body}");
    }
    let own = lab.hosts[2].docker(&["create", "--name", "own", "demo:latest"])?;
    is_not_there(&lab.hosts[0], own.trim())?;
    is_not_there(&lab.hosts[0], "own")?;
    lab.hosts[2].docker(&["rm", "own"]).map(drop)
}

fn a_node_that_does_not_answer_is_named(lab: &mut Lab, tasks: &[TaskContainer]) -> Result<()> {
    let there = tasks.iter().find(|task| task.host == 2).context("a task on the worker")?;
    lab.hosts[2].kill()?;
    let (status, body) = lab.hosts[0].api("GET", &format!("/containers/{}/json", there.id), "")?;
    ensure!(status == 503 && body.contains("is on node h3, which does not answer"), "{status} {body}");
    lab.hosts[2].start()?;
    lab.hosts[2].ready()
}
