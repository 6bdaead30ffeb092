//! Clients that keep their connections and clients that do not, by every way to a service, while its tasks are
//! scaled and replaced: no request is lost.
//!
//! A connection lives until its task has drained; then its server closes it, or it is reset. A client that asks just
//! then hears nothing and asks again on another one, as RFC 9112 (9.3.1) has it and HTTP libraries do. What was
//! asked on a new connection is answered, always; also by clients that remember an address for as long as they may.
//!
//! A datagram may be lost, and is asked again. It is never refused, whether its client keeps its port or not.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rswarm_tests::harness::{Lab, eventually};
use rswarm_tests::host::{CHECKED, Host};

use crate::support::{cluster, containers_of, converged, deploy, inside, look_up, running_tasks};

const PATIENCE: Duration = Duration::from_secs(60);
/// A machine that is busy is slow, and loses nothing.
const ANSWER: Duration = Duration::from_secs(20);
/// How long a datagram is waited for.
const DATAGRAM: Duration = Duration::from_secs(3);
/// How often one is asked: what is on the way back when its task leaves is lost, and no more.
const TRIES: usize = 3;
/// Requests that a client must have made for its word to count.
const REQUESTS_MIN: usize = 20;
/// Between two requests of one client: six of them share the machine with the cluster.
const PAUSE: Duration = Duration::from_millis(20);

#[test]
fn clients_lose_no_request_while_tasks_come_and_go() -> Result<()> {
    let lab = cluster(3, 1)?;
    let first = &lab.hosts[0];
    lab.every_host(Host::import_checked_demo)?;
    deploy(first, "client", 1)?;
    let create = ["service", "create", "--detach", "--replicas", "2", "--network", "app"];
    let create = |more: &[&str]| first.docker(&[&create[..], more, &[CHECKED]].concat());
    create(&["--name", "web", "-p", "8080:80", "-p", "8080:80/udp"])?;
    for name in ["direct", "spare"] {
        create_in_pool(first, name)?;
    }
    for (service, replicas) in [("web", 2), ("direct", 2), ("spare", 2), ("client", 1)] {
        converged(first, service, replicas, PATIENCE)?;
    }
    let ways = ways(&lab)?;
    for way in &ways {
        eventually(PATIENCE, &format!("{} leads to a task", way.name), || {
            way.inside(|| way.client(false).ask()).map(|()| true)
        })?;
    }
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let end = &end;
        let mut running = Vec::new();
        for (way, keeps) in ways.iter().flat_map(|way| [(way, true), (way, false)]) {
            let client = scope.spawn(move || way.inside(|| Ok(way.client(keeps).run(end))));
            running.push((way, keeps, client));
        }
        let ways = ways.iter().filter(|way| way.is_balanced);
        let datagrams: Vec<_> = ways
            .flat_map(|way| [(way, true), (way, false)])
            .map(|(way, keeps)| (way, keeps, scope.spawn(move || way.inside(|| datagrams(way, keeps, end)))))
            .collect();
        let changed = come_and_go(first, "web")
            .and_then(|()| come_and_go(first, "direct"))
            .and_then(|()| goes(&lab, "spare"))
            .and_then(|()| the_gone_are_forgotten(&lab));
        end.store(true, Ordering::Relaxed);
        let told: Result<Vec<_>> = running
            .into_iter()
            .map(|(way, keeps, client)| Ok((way, keeps, client.join().expect("a client's thread")?)))
            .collect();
        let datagrams = datagrams.into_iter().map(|(way, keeps, client)| {
            let (asked, lost) = client.join().expect("a client's thread")?;
            println!("{asked} datagrams by {}, one port: {keeps}: {lost} asked again", way.name);
            ensure!(asked >= REQUESTS_MIN, "{asked} datagrams by {} say nothing", way.name);
            Ok(())
        });
        let datagrams = datagrams.collect::<Result<()>>();
        told?.into_iter().try_for_each(|(way, keeps, told)| told.judge(way.name, keeps))?;
        datagrams.and(changed)
    })?;
    first.docker(&["service", "rm", "web", "direct", "client"])?;
    lab.finish()
}

/// An upgrade is another program on the same directories.
#[test]
fn connections_outlive_an_upgrade_of_the_daemon() -> Result<()> {
    let mut lab = cluster(3, 1)?;
    let first = &lab.hosts[0];
    lab.every_host(Host::import_checked_demo)?;
    let create = ["service", "create", "--detach", "--network", "app", "--constraint"];
    let create = |more: &[&str]| first.docker(&[&create[..], more, &[CHECKED]].concat());
    create(&["node.hostname==h2", "--name", "client"])?;
    create(&["node.hostname==h3", "--name", "web", "-p", "8080:80"])?;
    create(&["node.hostname==h2", "--name", "bound", "-p", "mode=host,published=8090,target=80"])?;
    for service in ["client", "web", "bound"] {
        converged(first, service, 1, PATIENCE)?;
    }
    let [mesh, vip, ..] = ways(&lab)?;
    let vip =
        Way { to: To::Address(SocketAddr::new(vip.inside(|| look_up("web"))?.first()?.into(), 80)), ..vip };
    let bound = To::Address(SocketAddr::new(lab.hosts[1].address.into(), 8090));
    let bound =
        Way { name: "a port of the host", to: bound, namespace: mesh.namespace.clone(), is_balanced: false };
    let ways = [mesh, vip, bound];
    let mut old = Vec::new();
    for way in &ways {
        let mut client = way.client(true);
        eventually(PATIENCE, &format!("{} leads to a task", way.name), || {
            way.inside(|| client.ask()).map(|()| true)
        })?;
        old.push(client);
    }
    let mut all_go_on = |when: &str| -> Result<()> {
        for (way, client) in ways.iter().zip(&mut old) {
            let before = client.told.connections;
            way.inside(|| client.ask()).with_context(|| format!("{} {when}", way.name))?;
            ensure!(client.told.connections == before, "a connection by {} ended {when}", way.name);
            way.inside(|| way.client(false).ask()).with_context(|| format!("new, {} {when}", way.name))?;
        }
        Ok(())
    };
    all_go_on("before the upgrade")?;
    let newer = lab.dir.join("rswarm-newer");
    std::fs::copy(&lab.hosts[1].program, &newer)?;
    let host = &mut lab.hosts[1];
    host.stop()?;
    all_go_on("while no daemon runs")?;
    host.program = newer;
    host.start()?;
    host.ready()?;
    all_go_on("once the new daemon answers")?;
    eventually(PATIENCE, "the new daemon has the managers' tables", || {
        lab.hosts[1].rswarm(&["network", "check", "app", "ingress"]).map(|_| true)
    })?;
    all_go_on("once the new daemon has the managers' tables")?;
    for service in ["client", "web", "bound"] {
        let tasks = lab.hosts[0].docker(&["service", "ps", "-q", service])?;
        ensure!(tasks.lines().count() == 1, "the upgrade replaced the task of {service}");
    }
    lab.hosts[0].docker(&["service", "rm", "client", "web", "bound"])?;
    lab.finish()
}

/// By what a client reaches a service.
struct Way {
    name: &'static str,
    namespace: PathBuf,
    to: To,
    /// By an address that is not a task's.
    is_balanced: bool,
}

#[derive(Clone, Copy)]
enum To {
    Address(SocketAddr),
    /// A name, on port 80: each connection looks it up anew.
    Name(&'static str),
    /// The same, as long as the answer may not be remembered.
    Remembered(&'static str),
}

fn ways(lab: &Lab) -> Result<[Way; 5]> {
    let task = containers_of(lab, "client")?.into_iter().next().context("the client runs")?;
    let pid = lab.hosts[task.host].docker(&["inspect", "--format", "{{.State.Pid}}", &task.id])?;
    let inside = PathBuf::from(format!("/proc/{}/ns/net", pid.trim()));
    let outside = PathBuf::from(format!("/run/netns/{}", lab.hosts[2].netns));
    let mesh = To::Address(SocketAddr::new(lab.hosts[1].address.into(), 8080));
    let inside = |name, to, is_balanced| Way { name, namespace: inside.clone(), to, is_balanced };
    Ok([
        Way { name: "the mesh", namespace: outside, to: mesh, is_balanced: true },
        inside("the virtual address", To::Name("web"), true),
        inside("names of tasks", To::Name("direct"), false),
        inside("remembered tasks", To::Remembered("pool"), false),
        inside("remembered tasks behind a virtual address", To::Remembered("tasks.web"), false),
    ])
}

impl Way {
    fn inside<R: Send>(&self, work: impl FnOnce() -> Result<R> + Send) -> Result<R> {
        inside(&self.namespace, work)
    }

    fn client(&self, keeps: bool) -> Client {
        Client { to: self.to, keeps, remembered: Cell::default(), connection: None, told: Told::default() }
    }
}

/// What a client has seen.
#[derive(Default)]
struct Told {
    requests: usize,
    connections: usize,
    /// Those of them that ended between two requests, when another request was sent already.
    ended: usize,
    failures: Vec<String>,
}

impl Told {
    fn judge(self, way: &str, keeps: bool) -> Result<()> {
        let Told { requests, connections, ended, failures } = self;
        let kind = if keeps { "kept connections" } else { "a connection each" };
        let failed = failures.len();
        println!("{requests} requests by {way}, {kind}, {connections}: {ended} ended, {failed} failed");
        ensure!(failures.is_empty(), "by {way}, {kind}: {failures:#?}");
        ensure!(requests >= REQUESTS_MIN, "{requests} requests by {way}, {kind}, say nothing");
        ensure!(!keeps || connections * 4 < requests, "{connections} connections by {way} were not kept");
        Ok(())
    }
}

struct Client {
    to: To,
    keeps: bool,
    /// An address, and until when.
    remembered: Cell<Option<(SocketAddr, Instant)>>,
    connection: Option<BufReader<TcpStream>>,
    told: Told,
}

impl Client {
    fn run(mut self, end: &AtomicBool) -> Told {
        while !end.load(Ordering::Relaxed) {
            self.told.requests += 1;
            if let Err(error) = self.ask() {
                let number = self.told.requests;
                self.told.failures.push(format!("request {number}: {error:#}"));
            }
            std::thread::sleep(PAUSE);
        }
        self.told
    }

    /// One request: on the connection that there is, or else on a new one.
    fn ask(&mut self) -> Result<()> {
        if let Some(mut connection) = self.connection.take() {
            match self.exchange(&mut connection).context("on a kept connection")? {
                Answer::Whole { stays } => {
                    self.connection = Some(connection).filter(|_| stays);
                    return Ok(());
                }
                Answer::Ended => self.told.ended += 1,
            }
        }
        let started = Instant::now();
        let address = self.address()?;
        let resolved = started.elapsed();
        self.told.connections += 1;
        let connected = TcpStream::connect_timeout(&address, ANSWER);
        let stream = connected.with_context(|| format!("to {address}, looked up in {resolved:?}"))?;
        stream.set_read_timeout(Some(ANSWER))?;
        let mut connection = BufReader::new(stream);
        match self.exchange(&mut connection).with_context(|| format!("on a new connection to {address}"))? {
            Answer::Whole { stays } => self.connection = Some(connection).filter(|_| stays),
            Answer::Ended => anyhow::bail!("{address} answered nothing on a new connection"),
        }
        Ok(())
    }

    fn address(&self) -> Result<SocketAddr> {
        match self.to {
            To::Address(address) => Ok(address),
            To::Name(name) => Ok(SocketAddr::new(look_up(name)?.first()?.into(), 80)),
            To::Remembered(name) => match self.remembered.get() {
                Some((address, until)) if Instant::now() < until => Ok(address),
                _ => {
                    let answer = look_up(name)?;
                    let address = SocketAddr::new(answer.first()?.into(), 80);
                    self.remembered.set(Some((address, Instant::now() + answer.ttl)));
                    Ok(address)
                }
            },
        }
    }

    fn exchange(&self, connection: &mut BufReader<TcpStream>) -> Result<Answer> {
        let wish = if self.keeps { "keep-alive" } else { "close" };
        let request = format!("GET /hostname HTTP/1.1\r\nHost: web\r\nConnection: {wish}\r\n\r\n");
        let mut head = String::new();
        let sent = connection.get_mut().write_all(request.as_bytes());
        let heard = sent.and_then(|()| connection.read_line(&mut head));
        match heard {
            Ok(0) => return Ok(Answer::Ended),
            Err(error) if head.is_empty() && has_ended(&error) => return Ok(Answer::Ended),
            heard => heard?,
        };
        while connection.read_line(&mut head)? > 2 {}
        ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
        let length =
            head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).context("a length")?;
        let mut body = vec![0; length.parse()?];
        connection.read_exact(&mut body).context("the rest of an answer")?;
        Ok(Answer::Whole { stays: head.contains("Connection: keep-alive") })
    }
}

enum Answer {
    Whole {
        stays: bool,
    },
    /// The connection was at its end, and nothing of an answer came.
    Ended,
}

fn has_ended(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

/// Services without a virtual address that have a name in common.
fn create_in_pool(first: &Host, name: &str) -> Result<()> {
    let create = ["service", "create", "--detach", "--replicas", "2", "--endpoint-mode", "dnsrr"];
    let place = ["--network", "name=app,alias=pool", "--name", name, CHECKED];
    first.docker(&[&create[..], &place].concat()).map(drop)
}

/// Asks again and again, from one port or each time from another: how often, and how many of them more than once.
fn datagrams(way: &Way, keeps: bool, end: &AtomicBool) -> Result<(usize, usize)> {
    let address = way.client(false).address()?;
    let socket = || -> Result<UdpSocket> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(address)?;
        socket.set_read_timeout(Some(DATAGRAM))?;
        Ok(socket)
    };
    let mut kept = socket()?;
    let (mut asked, mut lost) = (0, 0);
    while !end.load(Ordering::Relaxed) {
        if !keeps {
            kept = socket()?;
        }
        asked += 1;
        let mut tries = 0;
        loop {
            tries += 1;
            kept.send(b"?").with_context(|| format!("datagram {asked} by {}", way.name))?;
            match kept.recv(&mut [0; 64]) {
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && tries < TRIES => lost += 1,
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("datagram {asked} by {}, try {tries}", way.name));
                }
            }
        }
        std::thread::sleep(PAUSE);
    }
    Ok((asked, lost))
}

/// A service is removed whose name clients have from another one as well.
fn goes(lab: &Lab, service: &str) -> Result<()> {
    lab.hosts[0].docker(&["service", "rm", service])?;
    eventually(PATIENCE, &format!("{service} is gone"), || Ok(containers_of(lab, service)?.is_empty()))
}

/// No node remembers a connection of a task that has ended.
fn the_gone_are_forgotten(lab: &Lab) -> Result<()> {
    let (status, body) = lab.hosts[0].api("GET", "/tasks", "")?;
    ensure!(status == 200, "{status}: {body}");
    let tasks: Vec<serde_json::Value> = serde_json::from_str(&body)?;
    let addresses = |task: &serde_json::Value| {
        let attachments = task["NetworksAttachments"].as_array().cloned().unwrap_or_default();
        let cidrs = attachments
            .into_iter()
            .flat_map(|place| place["Addresses"].as_array().cloned().unwrap_or_default());
        let ips = cidrs.filter_map(|cidr| cidr.as_str()?.split('/').next()?.parse().ok());
        ips.collect::<Vec<IpAddr>>()
    };
    let (live, gone): (Vec<_>, Vec<_>) = tasks.iter().partition(|task| task["Status"]["State"] == "running");
    let live: BTreeSet<IpAddr> = live.into_iter().flat_map(addresses).collect();
    let gone: BTreeSet<IpAddr> =
        gone.into_iter().flat_map(addresses).filter(|gone| !live.contains(gone)).collect();
    ensure!(!gone.is_empty(), "no task has ended");
    eventually(PATIENCE, "what has gone is forgotten", || {
        for host in &lab.hosts {
            for pin in std::fs::read_dir(host.dir.join("run/netns"))? {
                let path = pin?.path();
                let tracked =
                    inside(&path, || Ok(std::fs::read_to_string("/proc/thread-self/net/nf_conntrack")?))?;
                let stale =
                    tracked.lines().find(|row| gone.iter().any(|gone| row.contains(&format!("src={gone} "))));
                ensure!(stale.is_none(), "{} in {}: {stale:?}", host.name, path.display());
            }
        }
        Ok(true)
    })
}

fn come_and_go(first: &Host, service: &str) -> Result<()> {
    for replicas in [4, 1, 2] {
        first.docker(&["service", "scale", "--detach", &format!("{service}={replicas}")])?;
        converged(first, service, replicas, PATIENCE)?;
    }
    first.docker(&["service", "update", "--detach", "--force", "--update-monitor", "1s", service])?;
    eventually(PATIENCE * 2, "every task is replaced", || {
        let state = first.docker(&["service", "inspect", service, "--format", "{{.UpdateStatus.State}}"])?;
        Ok(state.trim() == "completed" && running_tasks(first, service)?.len() == 2)
    })
}
