//! What several tests ask of a lab.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};
use rswarm_tests::harness::{Lab, eventually, run};
use rswarm_tests::host::Host;

/// How long a name server is waited for; a question that is lost is asked again.
const LOOK_UP: Duration = Duration::from_secs(3);

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
    cluster_of(Lab::start(hosts)?, managers)
}

/// The same of the hosts of a lab.
pub fn cluster_of(lab: Lab, managers: usize) -> Result<Lab> {
    lab.form_cluster(managers)?;
    lab.every_host(Host::import_demo)?;
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
    command.args([&namespace, "curl", "-sS", "--max-time", "20", "--get", "http://127.0.0.1/fetch"]);
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

/// Does work in a network namespace, on a thread of its own.
pub fn inside<R: Send>(namespace: &Path, work: impl FnOnce() -> Result<R> + Send) -> Result<R> {
    std::thread::scope(|scope| {
        let entered = || {
            setns(File::open(namespace)?, CloneFlags::CLONE_NEWNET)?;
            work()
        };
        scope.spawn(entered).join().expect("the work's thread")
    })
}

/// The network namespace of a container.
pub fn namespace_of(host: &Host, container: &str) -> Result<PathBuf> {
    let pid = host.docker(&["inspect", "--format", "{{.State.Pid}}", container])?;
    Ok(PathBuf::from(format!("/proc/{}/ns/net", pid.trim())))
}

/// What a container's name server answers.
#[derive(Debug)]
pub struct Answer {
    /// In the order of the answer.
    pub addresses: Vec<Ipv4Addr>,
    /// How long it may be remembered.
    pub ttl: Duration,
}

impl Answer {
    /// The address that a client takes.
    pub fn first(&self) -> Result<Ipv4Addr> {
        self.addresses.first().copied().context("the name has no address")
    }
}

/// Asks the name server of the container whose network namespace this thread is in.
pub fn look_up(name: &str) -> Result<Answer> {
    let mut question = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(u8::try_from(label.len())?);
        question.extend(label.bytes());
    }
    question.extend([0, 0, 1, 0, 1]);
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect((Ipv4Addr::new(127, 0, 0, 11), 53))?;
    socket.set_read_timeout(Some(LOOK_UP))?;
    let mut answer = [0; 512];
    let mut ask = || socket.send(&question).and_then(|_| socket.recv(&mut answer));
    let length = ask().or_else(|_| ask()).with_context(|| format!("who is {name}"))?;
    // After the question, for each: a pointer to the name, type, class, time to live, and the address's length.
    let records = answer[..length].get(question.len()..).unwrap_or_default().as_chunks::<16>().0;
    let addresses =
        records.iter().map(|record| Ipv4Addr::new(record[12], record[13], record[14], record[15]));
    let ttls = records.iter().map(|record| u32::from_be_bytes([record[6], record[7], record[8], record[9]]));
    let ttl = Duration::from_secs(ttls.min().unwrap_or(0).into());
    Ok(Answer { addresses: addresses.collect(), ttl })
}

/// What a host's kernel has of networks: links, namespaces, tables, routes.
pub fn network_traces(host: &Host) -> Result<String> {
    let links = run(host.command("ip").args(["-br", "link"]))?;
    let names = links.lines().filter_map(|line| line.split_whitespace().next()).collect::<Vec<_>>();
    let pins = std::fs::read_dir(host.dir.join("run/netns"))?.count();
    let rules = run(host.command("nft").args(["list", "ruleset"]))?;
    // A bridge that stays has an address of its own on the link, once a container was on it.
    let routes = "(ip -4 route show table all; ip -6 route show table all | grep -v -e fe80:: -e ff00::) | sed 's/ linkdown//'";
    let routes = run(host.command("sh").args(["-c", routes]))?;
    Ok(format!("{names:?} {pins} {rules} {routes}"))
}

/// How much of something there shall be, unless a variable of the environment says otherwise.
pub fn number(variable: &str, otherwise: usize) -> Result<usize> {
    match std::env::var(variable) {
        Ok(text) => text.parse().context(variable.to_owned()),
        Err(_) => Ok(otherwise),
    }
}
