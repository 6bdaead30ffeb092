//! What several tests ask of a lab.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rswarm_tests::harness::{Lab, eventually, run};
use rswarm_tests::host::Host;

/// A container as the host's kernel sees it: its first process and when that was started.
pub type Running = BTreeMap<String, (String, String)>;

/// Running containers of a host by id.
pub fn running(host: &Host) -> Result<Running> {
    let ids = host.docker(&["ps", "-q", "--no-trunc"])?;
    let mut found = Running::new();
    for id in ids.split_whitespace() {
        let state = host.docker(&["inspect", "--format", "{{.State.Pid}} {{.State.StartedAt}}", id])?;
        let (pid, started) = state.trim().split_once(' ').context("pid and start time")?;
        found.insert(id.to_owned(), (pid.to_owned(), started.to_owned()));
    }
    Ok(found)
}

/// Running containers of every host whose daemon runs.
pub fn running_everywhere(lab: &Lab) -> Result<Running> {
    let mut all = Running::new();
    for host in lab.hosts.iter().filter(|host| host.is_running()) {
        all.extend(running(host)?);
    }
    Ok(all)
}

/// Tasks of a service that run, as `service ps` shows them: name and node.
pub fn running_tasks(host: &Host, service: &str) -> Result<Vec<(String, String)>> {
    let args = [
        "service",
        "ps",
        service,
        "--filter",
        "desired-state=running",
        "--format",
        "{{.Name}} {{.Node}} {{.CurrentState}}",
    ];
    let text = host.docker(&args)?;
    let rows = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (name, node, state) = (words.next()?, words.next()?, words.next()?);
        (state == "Running").then(|| (name.to_owned(), node.to_owned()))
    });
    Ok(rows.collect())
}

/// Waits until a service has `replicas` running tasks, no two of them in one slot.
pub fn converged(host: &Host, service: &str, replicas: usize, deadline: Duration) -> Result<()> {
    eventually(deadline, &format!("{replicas} tasks of {service} run"), || {
        let tasks = running_tasks(host, service)?;
        let slots: BTreeSet<&String> = tasks.iter().map(|(name, _)| name).collect();
        Ok(tasks.len() == replicas && slots.len() == replicas)
    })
}

/// A cluster of `hosts` with `managers`, the demo image everywhere and an overlay network `app`.
pub fn cluster(hosts: u8, managers: usize) -> Result<Lab> {
    let lab = Lab::start(hosts)?;
    lab.form_cluster(managers)?;
    for host in &lab.hosts {
        host.import_demo()?;
    }
    lab.hosts[0].docker(&["network", "create", "--driver", "overlay", "app"])?;
    Ok(lab)
}

/// `service create` of the demo service on `app`.
pub fn deploy(host: &Host, name: &str, replicas: usize) -> Result<()> {
    host.rswarm(&[
        "service",
        "create",
        "--name",
        name,
        "--replicas",
        &replicas.to_string(),
        "--network",
        "app",
        "demo:latest",
    ])
    .map(drop)
}

/// Fetches a URL from inside a container's network namespace, by the demo server's own resolver.
pub fn fetch_inside(host: &Host, container: &str, url: &str) -> Result<String> {
    let pid = host.docker(&["inspect", "--format", "{{.State.Pid}}", container])?;
    let namespace = format!("--net=/proc/{}/ns/net", pid.trim());
    let mut command = std::process::Command::new("nsenter");
    command.args([&namespace, "curl", "-sS", "--max-time", "5", "--get", "http://127.0.0.1/fetch"]);
    run(command.arg("--data-urlencode").arg(format!("url={url}")))
}

/// Asks the demo server again and again until told to end; the failures, and how often it asked.
pub fn hammer(end: &AtomicBool, ask: impl Fn() -> Result<String>) -> (Vec<String>, usize) {
    let (mut failures, mut count) = (Vec::new(), 0);
    while !end.load(Ordering::Relaxed) {
        count += 1;
        match ask() {
            Ok(page) if page.contains("Hostname") => {}
            Ok(page) => failures.push(format!("request {count}: {page:?}")),
            Err(error) => failures.push(format!("request {count}: {error:#}")),
        }
    }
    (failures, count)
}

/// The container of a task on the host that runs it, with the task's address on `app`.
pub struct TaskContainer {
    /// Index of the host.
    pub host: usize,
    /// Container id.
    pub id: String,
    /// Address on the overlay.
    pub address: String,
}

/// Every running container of a service.
pub fn containers_of(lab: &Lab, service: &str) -> Result<Vec<TaskContainer>> {
    let mut found = Vec::new();
    let filter = format!("label=com.docker.swarm.service.name={service}");
    for (index, host) in lab.hosts.iter().enumerate().filter(|(_, host)| host.is_running()) {
        for id in host.docker(&["ps", "-q", "--no-trunc", "--filter", &filter])?.split_whitespace() {
            let format = "{{(index .NetworkSettings.Networks \"app\").IPAddress}}";
            let address = host.docker(&["inspect", "--format", format, id])?.trim().to_owned();
            ensure!(!address.is_empty(), "container {id} has no address on `app`");
            found.push(TaskContainer { host: index, id: id.to_owned(), address });
        }
    }
    Ok(found)
}

/// A part of a test that shares its daemon with others, by name.
pub type Check = (&'static str, fn(&Host) -> Result<()>);

/// Runs all checks, each of which removes its containers, and tells of every one that failed.
pub fn all_pass(host: &Host, checks: &[Check]) -> Result<()> {
    let mut failures = Vec::new();
    for (name, check) in checks {
        if let Err(error) = check(host) {
            failures.push(format!("{name}: {error:#}"));
        }
        let left = host.docker(&["ps", "-aq"])?;
        if !left.trim().is_empty() {
            failures.push(format!("{name}: containers are left: {}", left.trim()));
            let mut args = vec!["rm", "-f"];
            args.extend(left.split_whitespace());
            host.docker(&args)?;
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n\n"));
    Ok(())
}
