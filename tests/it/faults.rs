//! What may break without anyone noticing: leaders, daemons, cables, power.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rswarm_tests::harness::{Lab, eventually};

use crate::support::{cluster, cluster_of, converged, deploy, running, running_everywhere, running_tasks};

#[test]
fn a_killed_leader_costs_seconds_and_no_container() -> Result<()> {
    let mut lab = cluster_of(Lab::start_alone(5)?, 3)?;
    deploy(&lab.hosts[0], "web", 5)?;
    converged(&lab.hosts[0], "web", 5, Duration::from_secs(20))?;
    let before = running_everywhere(&lab)?;

    let leader = lab.leader(0)?;
    let killed = Instant::now();
    lab.hosts[leader].kill()?;
    let other = (0..3).find(|index| *index != leader).expect("three managers");
    eventually(Duration::from_secs(3), "another manager accepts a scale", || {
        lab.hosts[other].docker(&["service", "scale", "--detach", "web=8"]).map(|_| true)
    })?;
    println!("a new leader took a write after {:?}", killed.elapsed());
    lab.hosts[leader].start()?;
    lab.hosts[leader].ready()?;
    converged(&lab.hosts[other], "web", 8, Duration::from_secs(20))?;

    let after = running_everywhere(&lab)?;
    for (id, process) in &before {
        ensure!(after.get(id) == Some(process), "container {id} was {process:?}, is {:?}", after.get(id));
    }
    lab.finish()
}

#[test]
fn a_cut_off_host_is_replaced_or_waited_for_and_nothing_runs_twice_when_it_returns() -> Result<()> {
    let lab = cluster(4, 3)?;
    let (first, lost) = (&lab.hosts[0], &lab.hosts[3]);
    deploy(first, "web", 4)?;
    let patient =
        ["--name", "patient", "--label", "rswarm.node-loss.grace=5m", "--replicas-max-per-node", "1"];
    let create =
        [&["service", "create", "--detach", "--replicas", "4"][..], &patient, &["demo:latest"]].concat();
    first.docker(&create)?;
    for service in ["web", "patient"] {
        converged(first, service, 4, Duration::from_secs(20))?;
    }
    let before = running(lost)?;
    ensure!(before.len() == 2, "{before:?}");
    lab.cut(3)?;
    eventually(Duration::from_secs(10), "the tasks of h4 run elsewhere", || {
        let tasks = running_tasks(first, "web")?;
        Ok(tasks.len() == 4 && tasks.iter().all(|(_, node)| node != "h4"))
    })?;
    lab.heal(3)?;
    eventually(Duration::from_secs(20), "h4 is ready and runs nothing that was replaced", || {
        let status = first.docker(&["node", "inspect", "h4", "--format", "{{.Status.State}}"])?;
        let count: usize =
            lab.hosts.iter().map(|host| running(host).map_or(usize::MAX / 8, |all| all.len())).sum();
        Ok(status.trim() == "ready" && count == 8)
    })?;
    for service in ["web", "patient"] {
        converged(first, service, 4, Duration::from_secs(10))?;
    }
    let after = running(lost)?;
    let kept = after.len() == 1 && after.iter().all(|(id, process)| before.get(id) == Some(process));
    ensure!(kept, "of {before:?}, the patient service's is left, not {after:?}");
    lab.finish()
}

#[test]
fn every_daemon_stops_and_starts_and_the_cluster_is_as_before() -> Result<()> {
    let mut lab = cluster(3, 3)?;
    deploy(&lab.hosts[0], "web", 3)?;
    converged(&lab.hosts[0], "web", 3, Duration::from_secs(20))?;
    let before = running_everywhere(&lab)?;
    for host in &mut lab.hosts {
        host.stop()?;
    }
    for host in &mut lab.hosts {
        host.start()?;
    }
    for host in &lab.hosts {
        host.ready()?;
    }
    converged(&lab.hosts[1], "web", 3, Duration::from_secs(20))?;
    ensure!(running_everywhere(&lab)? == before, "containers were restarted");
    lab.finish()
}

#[test]
fn a_worker_without_managers_keeps_its_tasks_over_a_restart() -> Result<()> {
    let mut lab = cluster(2, 1)?;
    deploy(&lab.hosts[0], "web", 2)?;
    converged(&lab.hosts[0], "web", 2, Duration::from_secs(20))?;
    let before = running(&lab.hosts[1])?;
    lab.hosts[0].kill()?;
    lab.hosts[1].restart_hard()?;
    ensure!(running(&lab.hosts[1])? == before, "the worker's containers changed");
    lab.hosts[0].start()?;
    lab.hosts[0].ready()?;
    converged(&lab.hosts[0], "web", 2, Duration::from_secs(20))?;
    ensure!(running(&lab.hosts[1])? == before, "the worker's containers changed when the manager came back");
    lab.finish()
}

/// Demoted and promoted while it was off, a manager comes back with a log of a member that is none any more;
/// or its log is lost. Either way it joins the others anew.
#[test]
fn a_manager_that_lost_its_place_joins_anew() -> Result<()> {
    let mut lab = cluster(3, 3)?;
    let reachable = |lab: &Lab| -> Result<bool> {
        let nodes = lab.hosts[0].docker(&["node", "ls", "--format", "{{.ManagerStatus}}"])?;
        let from_h3 = lab.hosts[2].docker(&["node", "ls", "-q"]).is_ok_and(|ids| ids.lines().count() == 3);
        Ok(nodes.matches("Reachable").count() + nodes.matches("Leader").count() == 3 && from_h3)
    };
    lab.hosts[2].kill()?;
    eventually(Duration::from_secs(15), "h3 is seen to be away", || {
        Ok(lab.hosts[0].docker(&["node", "ls"])?.contains("Unreachable"))
    })?;
    lab.hosts[0].docker(&["node", "demote", "h3"])?;
    lab.hosts[0].docker(&["node", "promote", "h3"])?;
    lab.hosts[2].start()?;
    lab.hosts[2].ready()?;
    eventually(Duration::from_secs(40), "h3 manages again after it was demoted and promoted", || {
        reachable(&lab)
    })?;

    lab.hosts[2].kill()?;
    std::fs::remove_dir_all(lab.hosts[2].dir.join("data/swarm/raft"))?;
    lab.hosts[2].start()?;
    lab.hosts[2].ready()?;
    eventually(Duration::from_secs(40), "h3 manages again without its old log", || reachable(&lab))?;
    lab.finish()
}

#[test]
fn a_node_that_is_removed_while_it_runs_gives_up_its_tasks() -> Result<()> {
    let lab = cluster(2, 1)?;
    deploy(&lab.hosts[0], "web", 2)?;
    converged(&lab.hosts[0], "web", 2, Duration::from_secs(20))?;
    ensure!(!running(&lab.hosts[1])?.is_empty(), "h2 runs one of the tasks");
    lab.hosts[0].docker(&["node", "rm", "--force", "h2"])?;
    eventually(Duration::from_secs(20), "both tasks run on h1 and none on h2", || {
        Ok(running(&lab.hosts[0])?.len() == 2 && running(&lab.hosts[1])?.is_empty())
    })?;
    lab.finish()
}
