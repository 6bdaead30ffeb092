//! Many tasks on many networks, through managers and workers: afterwards the kernel and the names of every node say
//! what the managers' tables say, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rswarm_tests::harness::{Lab, eventually, run};
use rswarm_tests::host::Host;
use serde_json::Value;

use crate::support::{inside, look_up, namespace_of, network_traces, number};

/// All of a round's tasks start and stop at once, on whatever else the machine has to do.
const PATIENCE: Duration = Duration::from_secs(180);
/// Nothing changes any more.
const SETTLED: Duration = Duration::from_secs(30);
/// A connection that is not answered by then is lost.
const ANSWER: Duration = Duration::from_secs(20);
/// Networks with a service each; `RSWARM_CLUSTER_NETWORKS` makes it more.
const NETWORKS: usize = 2;
/// Task starts and stops, in rounds; `RSWARM_CLUSTER_TASKS` makes it more.
const TASKS: usize = 20;
/// Tasks of each service that a round starts and stops, at most.
const STEP_MAX: usize = 20;
/// Tasks of each service that stay in the end.
const STAY: usize = 2;
/// Connections of a probe to each service in a round: what the kernel remembers of tasks that go then.
const CONNECTIONS: usize = 2;

#[test]
fn tasks_come_and_go_and_every_node_has_what_the_managers_say() -> Result<()> {
    let networks = number("RSWARM_CLUSTER_NETWORKS", NETWORKS)?;
    let tasks = number("RSWARM_CLUSTER_TASKS", TASKS)?.div_ceil(networks);
    let step = tasks.div_ceil(2).min(STEP_MAX);
    let lab = Lab::start(3)?;
    lab.form_cluster(1)?;
    lab.every_host(Host::import_demo)?;
    let first = &lab.hosts[0];
    let before: Vec<String> = lab.hosts.iter().map(network_traces).collect::<Result<_>>()?;
    let names: Vec<String> = (0..networks).map(|number| format!("net{number}")).collect();
    let services: Vec<String> = (0..networks).map(|number| format!("web{number}")).collect();
    for (network, service) in names.iter().zip(&services) {
        first.docker(&["network", "create", "--driver", "overlay", network])?;
        let create = ["service", "create", "--detach", "--name", service, "--network", network];
        first.docker(&[&create[..], &["--replicas", "0", "demo:latest"]].concat())?;
    }
    let probes = Probes::start(&lab, &names)?;
    let started = Instant::now();
    for round in 0..tasks.div_ceil(step) {
        scale(first, &services, step)?;
        probes.connect(&services).with_context(|| format!("round {round}"))?;
        scale(first, &services, 0)?;
        println!("{} tasks started and stopped in {:?}", (round + 1) * networks * step, started.elapsed());
    }
    scale(first, &services, STAY)?;
    probes.connect(&services)?;
    for (network, service) in names.iter().zip(&services) {
        eventually(SETTLED, &format!("every node has the managers' table of {network}"), || {
            let table = Managed::read(&lab, network)?;
            ensure!(table.tasks.len() == STAY + lab.hosts.len(), "{table:?}");
            for (host, namespace) in lab.hosts.iter().zip(&probes.0) {
                table.compare(host).with_context(|| host.name.clone())?;
                let known: BTreeSet<Ipv4Addr> = inside(namespace, || look_up(&format!("tasks.{service}")))?
                    .addresses
                    .into_iter()
                    .collect();
                ensure!(known == table.of(service), "{}: {known:?}, {table:?}", host.name);
            }
            Ok(true)
        })?;
    }
    for host in &lab.hosts {
        host.rswarm(
            &[&["network", "check"][..], &names.iter().map(String::as_str).collect::<Vec<_>>()].concat(),
        )?;
    }
    let all: Vec<&str> = services.iter().map(String::as_str).chain(["probe"]).collect();
    first.docker(&[&["service", "rm"][..], &all].concat())?;
    for network in &names {
        // Refused while a task is still on its way out.
        eventually(PATIENCE, &format!("{network} is removed"), || {
            first.docker(&["network", "rm", network]).map(|_| true)
        })?;
    }
    eventually(SETTLED, "every node is what it was", || {
        for (host, before) in lab.hosts.iter().zip(&before) {
            let now = network_traces(host)?;
            ensure!(now == *before, "{} was {before}, is {now}", host.name);
        }
        Ok(true)
    })?;
    lab.finish()
}

/// Brings all services to so many tasks, and waits until they run.
fn scale(first: &Host, services: &[String], replicas: usize) -> Result<()> {
    let wanted: Vec<String> = services.iter().map(|service| format!("{service}={replicas}")).collect();
    let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
    first.docker(&[&["service", "scale", "--detach"][..], &wanted].concat())?;
    let end = format!(" {replicas}/{replicas}");
    eventually(PATIENCE, &format!("every service has {replicas} tasks"), || {
        let rows = first.docker(&["service", "ls", "--format", "{{.Name}} {{.Replicas}}"])?;
        let there = rows.lines().filter(|row| row.starts_with("web") && row.ends_with(&end)).count();
        ensure!(there == services.len(), "{rows}");
        Ok(true)
    })
}

/// The network namespace of a container on every host that is on all networks.
struct Probes(Vec<PathBuf>);

impl Probes {
    fn start(lab: &Lab, networks: &[String]) -> Result<Probes> {
        let mut create = vec!["service", "create", "--detach", "--name", "probe", "--mode", "global"];
        create.extend(networks.iter().flat_map(|network| ["--network", network]));
        create.push("demo:latest");
        lab.hosts[0].docker(&create)?;
        let filter = ["ps", "-q", "--filter", "label=com.docker.swarm.service.name=probe"];
        let mut probes = Vec::new();
        for host in &lab.hosts {
            eventually(PATIENCE, &format!("a probe runs on {}", host.name), || {
                let id = host.docker(&filter)?;
                ensure!(!id.trim().is_empty(), "none yet");
                probes.push(namespace_of(host, id.trim())?);
                Ok(true)
            })?;
        }
        Ok(Probes(probes))
    }

    /// Every one asks every service.
    fn connect(&self, services: &[String]) -> Result<()> {
        for namespace in &self.0 {
            inside(namespace, || {
                for service in services {
                    let address = SocketAddr::new(look_up(service)?.first()?.into(), 80);
                    for _ in 0..CONNECTIONS {
                        ask(address).with_context(|| format!("{service} at {address}"))?;
                    }
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// A task runs when it is started: it need not listen at once.
fn ask(address: SocketAddr) -> Result<()> {
    eventually(ANSWER, "a task listens", || {
        let mut stream = TcpStream::connect_timeout(&address, ANSWER)?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.write_all(b"GET /hostname HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer:?}");
        Ok(true)
    })
}

/// A network as the managers have it.
#[derive(Debug)]
struct Managed {
    id: String,
    gateway: Ipv4Addr,
    /// The service and the node's name of each running task, by its address.
    tasks: BTreeMap<Ipv4Addr, (String, String)>,
    /// Where nodes are.
    nodes: BTreeMap<String, Ipv4Addr>,
}

impl Managed {
    fn read(lab: &Lab, network: &str) -> Result<Managed> {
        let first = &lab.hosts[0];
        let format = "{{.Id}} {{(index .IPAM.Config 0).Gateway}}";
        let told = first.docker(&["network", "inspect", "--format", format, network])?;
        let (id, gateway) = told.trim().split_once(' ').context("id and gateway")?;
        let get = |path: &str| -> Result<Vec<Value>> {
            let (status, body) = first.api("GET", path, "")?;
            ensure!(status == 200, "{status}: {body}");
            Ok(serde_json::from_str(&body)?)
        };
        let named = |path: &str, name: &str| -> Result<BTreeMap<String, String>> {
            let text = |value: &Value| value.as_str().map(str::to_owned).context(path.to_owned());
            get(path)?
                .iter()
                .map(|value| Ok((text(&value["ID"])?, text(value.pointer(name).context("a name")?)?)))
                .collect()
        };
        let services = named("/services", "/Spec/Name")?;
        let nodes = named("/nodes", "/Description/Hostname")?;
        let mut tasks = BTreeMap::new();
        for task in get("/tasks")? {
            let attachments = task["NetworksAttachments"].as_array().cloned().unwrap_or_default();
            for attachment in attachments.iter().filter(|attachment| attachment["Network"]["ID"] == id) {
                if task["DesiredState"] == "running" && task["Status"]["State"] == "running" {
                    let cidr = attachment["Addresses"][0].as_str().context("an address")?;
                    let address = cidr.split('/').next().unwrap_or_default().parse()?;
                    let name = |key: &str, names: &BTreeMap<String, String>| {
                        names.get(task[key].as_str().unwrap_or_default()).cloned().unwrap_or_default()
                    };
                    tasks.insert(address, (name("ServiceID", &services), name("NodeID", &nodes)));
                }
            }
        }
        let nodes = lab.hosts.iter().map(|host| (host.name.clone(), host.address)).collect();
        Ok(Managed { id: id.to_owned(), gateway: gateway.parse()?, tasks, nodes })
    }

    /// The addresses of a service.
    fn of(&self, service: &str) -> BTreeSet<Ipv4Addr> {
        self.tasks.iter().filter(|(_, (of, _))| of == service).map(|(address, _)| *address).collect()
    }

    /// With what the kernel of a node has.
    fn compare(&self, host: &Host) -> Result<()> {
        let pin = host.dir.join("run/netns").join(&self.id);
        let lines = |command: &str| -> Result<BTreeSet<String>> {
            let mut sandbox = std::process::Command::new("nsenter");
            sandbox.arg(format!("--net={}", pin.display())).args(["--", "sh", "-c", command]);
            Ok(run(&mut sandbox)?.lines().map(|line| line.trim().to_owned()).collect())
        };
        let remote = self.tasks.iter().filter(|(_, (_, node))| *node != host.name);
        let destinations: BTreeSet<String> = remote
            .map(|(address, (_, node))| {
                let [a, b, c, d] = address.octets();
                format!("02:42:{a:02x}:{b:02x}:{c:02x}:{d:02x} {}", self.nodes[node])
            })
            .collect();
        let found = lines("bridge fdb show dev vxlan0 | awk '/ dst / { print $1, $3 }'")?;
        ensure!(found == destinations, "destinations: {found:?}, {self:?}");
        let addresses: BTreeSet<String> = self.tasks.keys().map(Ipv4Addr::to_string).collect();
        let found = lines("ip -4 neigh show dev br0 nud permanent | awk '{ print $1 }'")?;
        ensure!(found == addresses, "neighbours: {found:?}, {self:?}");
        let found = lines("nft list map ip rswarm backends | grep -o ': 10[.0-9]*' | cut -c3-")?;
        ensure!(found == addresses, "backends: {found:?}, {self:?}");
        let pairs = lines("ip -o link show master br0 type veth | wc -l")?;
        let local = self.tasks.values().filter(|(_, node)| *node == host.name).count();
        ensure!(pairs == BTreeSet::from([local.to_string()]), "pairs: {pairs:?}, {self:?}");
        let routes = lines("ip -4 route")?;
        ensure!(routes.len() == 3, "the network, the way out and its network: {routes:?}");
        let [a, b, c, _] = self.gateway.octets();
        let tracked =
            lines(&format!("grep -o 'src={a}\\.{b}\\.{c}\\.[0-9]*' /proc/net/nf_conntrack | cut -c5-"))?;
        let gone = tracked
            .iter()
            .find(|address| !addresses.contains(*address) && **address != self.gateway.to_string());
        ensure!(gone.is_none(), "connections of {gone:?}, which has gone: {self:?}");
        Ok(())
    }
}
