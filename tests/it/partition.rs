//! Connections and networks while nodes die, cables break and managers are gone.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rswarm_tests::harness::{Lab, eventually, run};
use rswarm_tests::host::Host;

use crate::support::{cluster, cluster_of, containers_of, converged, deploy, inside, network_traces, number};

const PATIENCE: Duration = Duration::from_secs(60);
/// What comes on top of the detection of a dead node before every new connection succeeds.
const AFTER_DETECTION: Duration = Duration::from_secs(1);
/// Networks that come and go; `RSWARM_NETWORK_ROUNDS` makes it more.
const ROUNDS: usize = 12;

/// A connection that stays, and says each line that it is told again.
struct Echo {
    client: Child,
    /// Its lines, read by a thread that ends with it.
    answers: mpsc::Receiver<String>,
}

impl Echo {
    /// From a container of `client` to an address.
    fn start(lab: &Lab, client: &str, address: &str) -> Result<Echo> {
        let from = containers_of(lab, client)?.into_iter().next().context("the client runs")?;
        let pid = lab.hosts[from.host].docker(&["inspect", "--format", "{{.State.Pid}}", &from.id])?;
        let mut client = std::process::Command::new("nsenter")
            .arg(format!("--net=/proc/{}/ns/net", pid.trim()))
            .args(["busybox", "nc", address, "9000"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let lines = BufReader::new(client.stdout.take().context("a pipe")?).lines();
        let (said, answers) = mpsc::channel();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| said.send(line)));
        Ok(Echo { client, answers })
    }

    /// The same with a server that may have been started just now: a task that runs need not listen yet.
    fn once_it_listens(lab: &Lab, client: &str, address: &str) -> Result<Echo> {
        let mut talk = None;
        eventually(PATIENCE, &format!("{address} listens"), || {
            let mut started = Echo::start(lab, client, address)?;
            started.say("are you there")?;
            talk = Some(started);
            Ok(true)
        })?;
        talk.context("it listens")
    }

    /// Says a line and waits for it to come back.
    fn say(&mut self, line: &str) -> Result<()> {
        let input = self.client.stdin.as_mut().context("a pipe")?;
        writeln!(input, "{line}")?;
        self.hear(line)
    }

    fn hear(&mut self, line: &str) -> Result<()> {
        let answer =
            self.answers.recv_timeout(PATIENCE).with_context(|| format!("{line:?} did not come back"))?;
        ensure!(answer == line, "{line:?} came back as {answer:?}");
        Ok(())
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}

/// The service's virtual address on `app`.
fn vip(host: &Host, service: &str) -> Result<String> {
    let format = "{{(index .Endpoint.VirtualIPs 0).Addr}}";
    let vip = host.docker(&["service", "inspect", service, "--format", format])?;
    Ok(vip.trim().split('/').next().unwrap_or_default().to_owned())
}

#[test]
fn connections_live_on_without_managers_and_through_a_partition() -> Result<()> {
    let mut lab = cluster(3, 1)?;
    lab.every_host(Host::import_busybox)?;
    let first = &lab.hosts[0];
    let place = |name: &str| format!("node.hostname=={name}");
    let create = ["service", "create", "--detach", "--network", "app", "--constraint"];
    let server = ["--name", "echo", "busybox:latest", "nc", "-ll", "-p", "9000", "-e", "cat"];
    first.docker(&[&create[..], &[&place("h2")], &server].concat())?;
    let client = ["--name", "client", "busybox:latest", "sleep", "100000"];
    first.docker(&[&create[..], &[&place("h3")], &client].concat())?;
    converged(first, "echo", 1, PATIENCE)?;
    converged(first, "client", 1, PATIENCE)?;
    let task = containers_of(&lab, "echo")?.into_iter().next().context("the server runs")?;
    let mut talks = [
        Echo::once_it_listens(&lab, "client", &vip(first, "echo")?)?,
        Echo::once_it_listens(&lab, "client", &task.address)?,
    ];
    let say = |talks: &mut [Echo; 2], line: &str| talks.iter_mut().try_for_each(|talk| talk.say(line));
    say(&mut talks, "begin")?;

    // No managers: old connections go on, and new ones are made.
    lab.hosts[0].kill()?;
    say(&mut talks, "no manager")?;
    Echo::start(&lab, "client", &task.address)?.say("new, without a manager")?;
    // The agents' daemons die as well.
    lab.hosts[1].restart_hard()?;
    lab.hosts[2].restart_hard()?;
    say(&mut talks, "no manager, new daemons")?;

    // Nothing goes between the workers; what was said meanwhile arrives after it.
    let other = lab.hosts[1].address.to_string();
    let cut = format!(
        "add table ip cut; add chain ip cut in {{ type filter hook prerouting priority -400; }}; \
         add rule ip cut in ip saddr {other} drop"
    );
    run(lab.hosts[2].command("nft").arg(cut))?;
    for talk in &mut talks {
        writeln!(talk.client.stdin.as_mut().context("a pipe")?, "said while cut off")?;
    }
    lab.hosts[0].start()?;
    lab.hosts[0].ready()?;
    run(lab.hosts[2].command("nft").args(["delete", "table", "ip", "cut"]))?;
    for talk in &mut talks {
        talk.hear("said while cut off")?;
    }
    say(&mut talks, "healed")?;

    // Afterwards every kernel has what the managers' table says, and nothing else.
    eventually(PATIENCE, "every node is as the managers want it", || {
        lab.hosts.iter().try_for_each(|host| host.rswarm(&["network", "check", "app"]).map(drop))?;
        let same = containers_of(&lab, "echo")?.first().map(|now| now.id.clone()) == Some(task.id.clone());
        ensure!(same, "the server was replaced");
        Ok(true)
    })?;
    say(&mut talks, "end")?;
    drop(talks);
    lab.hosts[0].docker(&["service", "rm", "echo", "client"])?;
    lab.finish()
}

#[test]
fn a_dead_node_costs_new_connections_its_detection_and_no_more() -> Result<()> {
    let lab = cluster_of(Lab::start_alone(3)?, 1)?;
    let first = &lab.hosts[0];
    let create = ["service", "create", "--detach", "--name", "web", "--replicas", "3", "-p", "8080:80"];
    first.docker(&[&create[..], &["--network", "app", "demo:latest"]].concat())?;
    converged(first, "web", 3, PATIENCE)?;
    let url = format!("http://{}:8080/", first.address);
    let ask = |seconds: &str| {
        let args = ["-sS", "--fail", "-o", "/dev/null", "--connect-timeout", seconds, &url];
        run(lab.hosts[1].command("curl").args(args))
    };
    eventually(PATIENCE, "the port answers", || ask("2").map(|_| true))?;
    let mut waits = connection_to(&lab, 2, (first.address, 8080))?;
    // Its cable is pulled: nobody says goodbye.
    lab.cut(2)?;
    let cut = Instant::now();
    eventually(PATIENCE, "the node is seen to be down", || {
        Ok(first.docker(&["node", "inspect", "h3", "--format", "{{.Status.State}}"])?.trim() == "down")
    })?;
    let detected = cut.elapsed();
    eventually(AFTER_DETECTION, "ten connections in a row", || {
        (0..10).try_for_each(|_| ask("0.5").map(drop)).map(|()| true)
    })?;
    println!("seen after {detected:?}, all connections succeed after {:?}", cut.elapsed());
    let ended = waits.read(&mut [0]).map_err(|error| error.kind());
    ensure!(ended == Err(ErrorKind::ConnectionReset), "a client that waits for the dead node: {ended:?}");
    println!("a client that had been waiting for the dead node knew after {:?}", cut.elapsed());
    for _ in 0..40 {
        ask("2").context("after the node was seen to be down")?;
    }
    lab.heal(2)?;
    eventually(PATIENCE, "the node is back, and its tables are the managers'", || {
        let state = first.docker(&["node", "inspect", "h3", "--format", "{{.Status.State}}"])?;
        ensure!(state.trim() == "ready", "{state}");
        lab.hosts.iter().try_for_each(|host| host.rswarm(&["network", "check", "ingress"]).map(drop))?;
        Ok(true)
    })?;
    first.docker(&["service", "rm", "web"])?;
    lab.finish()
}

/// A connection from the second host by the first one's port to the task on another, which has answered and is silent.
fn connection_to(lab: &Lab, host: usize, port: (Ipv4Addr, u16)) -> Result<TcpStream> {
    let tasks = containers_of(lab, "web")?;
    let there = tasks.iter().find(|task| task.host == host).context("a task on each host")?;
    let name = lab.hosts[host].docker(&["inspect", "--format", "{{.Config.Hostname}}", &there.id])?;
    for _ in 0..64 {
        let mut stream = inside(&Path::new("/run/netns").join(&lab.hosts[1].netns), || {
            Ok(TcpStream::connect_timeout(&port.into(), PATIENCE)?)
        })?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /hostname HTTP/1.1\r\nHost: web\r\nConnection: keep-alive\r\n\r\n")?;
        let mut answer = String::new();
        let mut lines = BufReader::new(&stream);
        while !answer.ends_with("\r\n\r\n") {
            ensure!(lines.read_line(&mut answer)? > 0, "an answer that ends: {answer}");
        }
        let mut body = vec![0; name.trim().len()];
        lines.read_exact(&mut body)?;
        if body == name.trim().as_bytes() {
            return Ok(stream);
        }
    }
    anyhow::bail!("64 connections and none to {name}")
}

#[test]
fn networks_come_and_go_and_leave_nothing() -> Result<()> {
    let rounds = number("RSWARM_NETWORK_ROUNDS", ROUNDS)?;
    let lab = cluster(2, 1)?;
    let first = &lab.hosts[0];
    // One that stays: what the first of them makes on a node is there before and after.
    deploy(first, "web", 2)?;
    converged(first, "web", 2, PATIENCE)?;
    let before: Vec<String> = lab.hosts.iter().map(network_traces).collect::<Result<_>>()?;
    let listed = first.docker(&["network", "ls"])?;
    for round in 0..rounds {
        let (network, service) = (format!("net{round}"), format!("service{round}"));
        first.docker(&["network", "create", "-d", "overlay", &network])?;
        if round % 4 == 0 {
            let create = ["service", "create", "--detach", "--name", &service, "--mode", "global"];
            first.docker(&[&create[..], &["--network", &network, "demo:latest"]].concat())?;
            converged_global(first, &service, lab.hosts.len())?;
            first.docker(&["service", "rm", &service])?;
        }
        // Refused while a task is still on its way out.
        eventually(PATIENCE, &format!("{network} is removed"), || {
            first.docker(&["network", "rm", &network]).map(|_| true)
        })?;
    }
    eventually(PATIENCE, "every node is what it was", || {
        let now = first.docker(&["network", "ls"])?;
        ensure!(now == listed, "{listed}, then {now}");
        for (host, before) in lab.hosts.iter().zip(&before) {
            let now = network_traces(host)?;
            ensure!(now == *before, "{} was {before}, is {now}", host.name);
        }
        Ok(true)
    })?;
    first.docker(&["service", "rm", "web"])?;
    lab.finish()
}

fn converged_global(host: &Host, service: &str, nodes: usize) -> Result<()> {
    eventually(PATIENCE, &format!("{service} runs on every node"), || {
        Ok(crate::support::running_tasks(host, service)?.len() == nodes)
    })
}
