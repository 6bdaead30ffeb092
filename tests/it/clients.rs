//! Clients that keep their connections and clients that do not, by every way to a service, while its tasks are
//! scaled and replaced: no request is lost.
//!
//! A connection lives until its task has drained; then its server closes it, or it is reset. A client that asks just
//! then hears nothing and asks again on another one, as RFC 9112 (9.3.1) has it and HTTP libraries do. What was
//! asked on a new connection is answered, always.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};
use rswarm_tests::harness::{Lab, eventually};
use rswarm_tests::host::{CHECKED, Host};

use crate::support::{cluster, containers_of, converged, deploy, running_tasks};

const PATIENCE: Duration = Duration::from_secs(60);
/// A machine that is busy is slow, and loses nothing.
const ANSWER: Duration = Duration::from_secs(20);
/// A question that is lost is asked again.
const RESOLVE: Duration = Duration::from_secs(3);
/// Requests that a client must have made for its word to count.
const REQUESTS_MIN: usize = 20;
/// Between two requests of one client: six of them share the machine with the cluster.
const PAUSE: Duration = Duration::from_millis(20);

#[test]
fn clients_lose_no_request_while_tasks_come_and_go() -> Result<()> {
    let lab = cluster(3, 1)?;
    let first = &lab.hosts[0];
    for host in &lab.hosts {
        host.import_checked_demo()?;
    }
    deploy(first, "client", 1)?;
    let create = ["service", "create", "--detach", "--replicas", "2", "--network", "app"];
    let create = |more: &[&str]| first.docker(&[&create[..], more, &[CHECKED]].concat());
    create(&["--name", "web", "-p", "8080:80"])?;
    create(&["--name", "direct", "--endpoint-mode", "dnsrr"])?;
    for (service, replicas) in [("web", 2), ("direct", 2), ("client", 1)] {
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
        let changed = come_and_go(first, "web").and(come_and_go(first, "direct"));
        end.store(true, Ordering::Relaxed);
        let told: Result<Vec<_>> = running
            .into_iter()
            .map(|(way, keeps, client)| Ok((way, keeps, client.join().expect("a client's thread")?)))
            .collect();
        told?.into_iter().try_for_each(|(way, keeps, told)| told.judge(way.name, keeps))?;
        changed
    })?;
    first.docker(&["service", "rm", "web", "direct", "client"])?;
    lab.finish()
}

/// An upgrade is another program on the same directories.
#[test]
fn connections_outlive_an_upgrade_of_the_daemon() -> Result<()> {
    let mut lab = cluster(3, 1)?;
    let first = &lab.hosts[0];
    for host in &lab.hosts {
        host.import_checked_demo()?;
    }
    let create = ["service", "create", "--detach", "--network", "app", "--constraint"];
    let create = |more: &[&str]| first.docker(&[&create[..], more, &[CHECKED]].concat());
    create(&["node.hostname==h2", "--name", "client"])?;
    create(&["node.hostname==h3", "--name", "web", "-p", "8080:80"])?;
    create(&["node.hostname==h2", "--name", "bound", "-p", "mode=host,published=8090,target=80"])?;
    for service in ["client", "web", "bound"] {
        converged(first, service, 1, PATIENCE)?;
    }
    let [mesh, vip, _] = ways(&lab)?;
    let vip = Way { to: To::Address(SocketAddr::new(vip.inside(|| resolve("web"))?.into(), 80)), ..vip };
    let bound = To::Address(SocketAddr::new(lab.hosts[1].address.into(), 8090));
    let bound = Way { name: "a port of the host", to: bound, namespace: mesh.namespace.clone() };
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
}

#[derive(Clone, Copy)]
enum To {
    Address(SocketAddr),
    /// A name, on port 80: each connection looks it up anew.
    Name(&'static str),
}

fn ways(lab: &Lab) -> Result<[Way; 3]> {
    let task = containers_of(lab, "client")?.into_iter().next().context("the client runs")?;
    let pid = lab.hosts[task.host].docker(&["inspect", "--format", "{{.State.Pid}}", &task.id])?;
    let inside = PathBuf::from(format!("/proc/{}/ns/net", pid.trim()));
    let outside = PathBuf::from(format!("/run/netns/{}", lab.hosts[2].netns));
    let mesh = To::Address(SocketAddr::new(lab.hosts[1].address.into(), 8080));
    Ok([
        Way { name: "the mesh", namespace: outside, to: mesh },
        Way { name: "the virtual address", namespace: inside.clone(), to: To::Name("web") },
        Way { name: "names of tasks", namespace: inside, to: To::Name("direct") },
    ])
}

impl Way {
    /// Runs in the client's network namespace, on a thread of its own.
    fn inside<R: Send>(&self, work: impl FnOnce() -> Result<R> + Send) -> Result<R> {
        std::thread::scope(|scope| {
            let entered = || {
                setns(File::open(&self.namespace)?, CloneFlags::CLONE_NEWNET)?;
                work()
            };
            scope.spawn(entered).join().expect("the work's thread")
        })
    }

    fn client(&self, keeps: bool) -> Client {
        Client { to: self.to, keeps, connection: None, told: Told::default() }
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
            To::Name(name) => Ok(SocketAddr::new(resolve(name)?.into(), 80)),
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

/// The first address that the container's name server has for a name.
fn resolve(name: &str) -> Result<Ipv4Addr> {
    let mut question = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, u8::try_from(name.len())?];
    question.extend(name.bytes().chain([0, 0, 1, 0, 1]));
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect((Ipv4Addr::new(127, 0, 0, 11), 53))?;
    socket.set_read_timeout(Some(RESOLVE))?;
    let mut answer = [0; 512];
    let mut ask = || socket.send(&question).and_then(|_| socket.recv(&mut answer));
    let length = ask().or_else(|_| ask()).with_context(|| format!("who is {name}"))?;
    // After the question: a pointer to the name, type, class, time to live, and the length of the address.
    let first = answer[..length].get(question.len() + 12..question.len() + 16);
    let octets: [u8; 4] = first.with_context(|| format!("{name} has no address"))?.try_into()?;
    Ok(octets.into())
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
