//! A service over five hosts: placed, reachable, shown alike by docker's CLI and ours.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};

use rswarm_tests::harness::run;

use crate::support::{cluster, containers_of, converged, deploy, fetch_inside, running_tasks};

#[test]
fn five_replicas_spread_and_reach_each_other_by_address_and_by_name() -> Result<()> {
    let lab = cluster(5, 3)?;
    let first = &lab.hosts[0];
    deploy(first, "web", 5)?;
    converged(first, "web", 5, Duration::from_secs(20))?;

    let nodes: BTreeSet<String> = running_tasks(first, "web")?.into_iter().map(|(_, node)| node).collect();
    ensure!(nodes.len() >= 4, "5 replicas are on {nodes:?} only");
    for manager in &lab.hosts[..3] {
        let listed = manager.docker(&["service", "ls", "--format", "{{.Name}} {{.Replicas}}"])?;
        ensure!(listed.trim() == "web 5/5", "{} lists {listed:?}", manager.name);
    }

    let tasks = containers_of(&lab, "web")?;
    ensure!(tasks.len() == 5, "{} containers", tasks.len());
    for task in &tasks {
        let other = tasks.iter().find(|other| other.host != task.host).expect("five tasks on four nodes");
        let host = &lab.hosts[task.host];
        for url in [format!("http://{}/", other.address), "http://tasks.web/".into(), "http://web/".into()] {
            let page = fetch_inside(host, &task.id, &url)?;
            ensure!(page.to_lowercase().contains("hostname"), "{url} from {} gave {page:?}", host.name);
        }
    }
    lab.finish()
}

#[test]
fn services_scale_drain_and_go() -> Result<()> {
    let lab = cluster(3, 1)?;
    let first = &lab.hosts[0];
    deploy(first, "web", 2)?;
    first.docker(&["service", "scale", "web=6"])?;
    converged(first, "web", 6, Duration::from_secs(20))?;

    first.docker(&["node", "update", "--availability", "drain", "h3"])?;
    rswarm_tests::harness::eventually(Duration::from_secs(20), "h3 is empty", || {
        let tasks = running_tasks(first, "web")?;
        Ok(tasks.len() == 6 && tasks.iter().all(|(_, node)| node != "h3"))
    })?;
    first.docker(&["node", "update", "--availability", "active", "h3"])?;

    first.docker(&[
        "service",
        "create",
        "--name",
        "agent",
        "--mode",
        "global",
        "--network",
        "app",
        "demo:latest",
    ])?;
    converged_on(first, "agent", &["h1", "h2", "h3"])?;

    let logs = first.docker(&["service", "logs", "web"])?;
    ensure!(logs.contains("web."), "service logs gave {logs:?}");

    first.docker(&["service", "rm", "web", "agent"])?;
    rswarm_tests::harness::eventually(Duration::from_secs(20), "all containers are gone", || {
        Ok(lab.hosts.iter().all(|host| host.docker(&["ps", "-aq"]).is_ok_and(|ids| ids.trim().is_empty())))
    })?;
    first.docker(&["network", "rm", "app"])?;
    lab.finish()
}

fn converged_on(host: &rswarm_tests::host::Host, service: &str, nodes: &[&str]) -> Result<()> {
    rswarm_tests::harness::eventually(Duration::from_secs(20), "a task on every node", || {
        let tasks = running_tasks(host, service)?;
        let found: BTreeSet<&str> = tasks.iter().map(|(_, node)| node.as_str()).collect();
        Ok(tasks.len() == nodes.len() && nodes.iter().all(|node| found.contains(node)))
    })
}

#[test]
fn managers_are_promoted_and_demoted() -> Result<()> {
    let lab = cluster(3, 1)?;
    let first = &lab.hosts[0];
    first.docker(&["node", "promote", "h2", "h3"])?;
    rswarm_tests::harness::eventually(Duration::from_secs(20), "three managers", || {
        let status = first.docker(&["node", "ls", "--format", "{{.ManagerStatus}}"])?;
        Ok(status.matches("Reachable").count() == 2)
    })?;
    rswarm_tests::harness::eventually(
        Duration::from_secs(10),
        "a promoted node serves control calls",
        || lab.hosts[2].docker(&["node", "ls"]).map(|_| true),
    )?;
    first.docker(&["node", "demote", "h3"])?;
    rswarm_tests::harness::eventually(Duration::from_secs(20), "h3 is a worker again", || {
        let refused = lab.hosts[2].docker(&["node", "ls"]).is_err();
        Ok(refused
            && first.docker(&["node", "ls", "--format", "{{.ManagerStatus}}"])?.matches("Reachable").count()
                == 1)
    })?;
    lab.finish()
}

#[test]
fn a_task_runs_once_it_is_healthy_and_is_replaced_when_it_is_not() -> Result<()> {
    let lab = rswarm_tests::harness::Lab::start(1)?;
    let host = &lab.hosts[0];
    lab.form_cluster(1)?;
    host.import_busybox()?;
    let create = |name: &str, check: &str| {
        let args = ["service", "create", "--detach", "--name", name, "--restart-condition", "none"];
        let health = ["--health-cmd", check, "--health-interval", "200ms", "--health-retries", "2"];
        host.docker(&[&args[..], &health[..], &["busybox:latest", "sleep", "1000"]].concat())
    };
    create("well", "true")?;
    create("ill", "false")?;
    converged(host, "well", 1, Duration::from_secs(20))?;
    rswarm_tests::harness::eventually(Duration::from_secs(30), "the ill task failed", || {
        let tasks =
            host.docker(&["service", "ps", "ill", "--format", "{{.CurrentState}} {{.Error}}", "--no-trunc"])?;
        Ok(tasks.contains("Failed") && tasks.contains("task: unhealthy container"))
    })?;
    lab.finish()
}

#[test]
fn a_service_runs_under_another_runtime() -> Result<()> {
    // Debian's crun refuses machines with both cgroup hierarchies.
    let runc = run(std::process::Command::new("sh").args(["-c", "command -v runc"]))?;
    let mut lab = rswarm_tests::harness::Lab::start(1)?;
    let host = &mut lab.hosts[0];
    host.stop()?;
    host.flags = vec!["--add-runtime".to_owned(), format!("other={}", runc.trim())];
    host.start()?;
    host.ready()?;
    lab.form_cluster(1)?;
    let host = &lab.hosts[0];
    host.import_busybox()?;
    let args =
        ["service", "create", "--detach", "--name", "web", "--container-label", "rswarm.runtime=other"];
    host.docker(&[&args[..], &["busybox:latest", "sleep", "1000"]].concat())?;
    converged(host, "web", 1, Duration::from_secs(20))?;
    let id = host.docker(&["ps", "-q", "--no-trunc"])?;
    let id = id.trim();
    ensure!(host.docker(&["inspect", "--format", "{{.HostConfig.Runtime}}", id])?.trim() == "other");
    let known = std::process::Command::new(runc.trim())
        .arg("--root")
        .arg(host.dir.join("run/containers").join(id).join("runtime"))
        .args(["list", "-q"])
        .output()?;
    ensure!(String::from_utf8_lossy(&known.stdout).trim() == id, "runc knows {known:?}");
    ensure!(host.docker(&["exec", id, "echo", "up"])?.trim() == "up");
    let unnamed = host.docker(&["service", "create", "--detach", "busybox:latest", "sleep", "1000"])?;
    let name = host.docker(&["service", "inspect", "--format", "{{.Spec.Name}}", unnamed.trim()])?;
    ensure!(name.trim().contains('_'), "a service without a name gets two words, not {name:?}");
    host.docker(&["service", "rm", "web", name.trim()])?;
    lab.finish()
}
