//! How long it takes from a task that has come up on one node until another node's tasks reach it by the service's
//! virtual address: five idle nodes, real daemons.
//!
//! Needs root, and the program of the same profile:
//! `cargo build --release && cargo bench -p rswarm-tests --bench endpoint`. The clock starts with the container (its
//! event), so that the time includes the report to the managers and their write, and ends with the first
//! connection by the virtual address.
#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

#[path = "../it/support.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod support;

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use rswarm_tests::harness::{Lab, eventually};
use rswarm_tests::host::Host;

const HOSTS: u8 = 5;
const ROUNDS: usize = 20;
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two tries of a client: connections that wait for an answer are not in each other's way.
const PACE: Duration = Duration::from_millis(2);

fn main() -> Result<()> {
    // `cargo bench` and `cargo test` pass flags that mean nothing here.
    if std::env::args().any(|arg| arg == "--list" || arg == "--test") {
        return Ok(());
    }
    let lab = Lab::start(HOSTS)?;
    lab.form_cluster(1)?;
    for host in &lab.hosts {
        host.import_demo()?;
    }
    let (first, server, client) = (&lab.hosts[0], &lab.hosts[1], &lab.hosts[4]);
    first.docker(&["network", "create", "--driver", "overlay", "net"])?;
    create(first, "client", 1, client)?;
    create(first, "web", 0, server)?;
    let from = namespace(client)?;
    let to = virtual_address(first)?;
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let began = now()?;
        let usable = std::thread::scope(|scope| -> Result<Duration> {
            let usable = scope.spawn(|| support::inside(&from, || first_connection(to)));
            first.docker(&["service", "scale", "--detach", "web=1"])?;
            usable.join().expect("the client's thread")
        })?;
        times.push(usable.saturating_sub(started(server, began)?));
        first.docker(&["service", "scale", "--detach", "web=0"])?;
        eventually(PATIENCE, "the task is gone", || Ok(containers(server, "web")?.is_empty()))?;
    }
    times.sort();
    println!(
        "start to usable from another of {HOSTS} nodes: {:.1?} in the median, {:.1?} to {:.1?}",
        times[times.len() / 2],
        times[0],
        times[times.len() - 1]
    );
    lab.finish()
}

/// A service whose tasks are all on one node.
fn create(first: &Host, name: &str, replicas: usize, on: &Host) -> Result<()> {
    let (constraint, replicas) = (format!("node.hostname=={}", on.name), replicas.to_string());
    let create =
        ["service", "create", "--detach", "--name", name, "--network", "net", "--stop-grace-period", "0s"];
    first.docker(
        &[&create[..], &["--constraint", &constraint, "--replicas", &replicas, "demo:latest"]].concat(),
    )?;
    Ok(())
}

fn containers(host: &Host, service: &str) -> Result<String> {
    let filter = format!("label=com.docker.swarm.service.name={service}");
    Ok(host.docker(&["ps", "-q", "--filter", &filter])?.trim().to_owned())
}

/// The client's network namespace.
fn namespace(host: &Host) -> Result<PathBuf> {
    eventually(PATIENCE, "the client runs", || Ok(!containers(host, "client")?.is_empty()))?;
    support::namespace_of(host, &containers(host, "client")?)
}

fn virtual_address(first: &Host) -> Result<SocketAddr> {
    let format = "{{range .Endpoint.VirtualIPs}}{{.Addr}} {{end}}";
    let addresses = first.docker(&["service", "inspect", "--format", format, "web"])?;
    let (address, _) = addresses.trim().split_once('/').context("no virtual address")?;
    Ok(SocketAddr::new(address.parse::<Ipv4Addr>()?.into(), 80))
}

/// When the first connection was made, since the epoch. Without tasks each is refused at once.
fn first_connection(to: SocketAddr) -> Result<Duration> {
    let until = now()? + PATIENCE;
    while TcpStream::connect_timeout(&to, PATIENCE).is_err() {
        ensure!(now()? < until, "nobody answers at {to}");
        std::thread::sleep(PACE);
    }
    now()
}

fn now() -> Result<Duration> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?)
}

/// When the container started that has started since, since the epoch.
fn started(host: &Host, since: Duration) -> Result<Duration> {
    let (since, until) = (format!("{}.{:09}", since.as_secs(), since.subsec_nanos()), now()?.as_secs() + 1);
    let wanted = ["--filter", "type=container", "--filter", "event=start", "--format", "{{.TimeNano}}"];
    let until = until.to_string();
    let told = host.docker(&[&["events", "--since", &since, "--until", &until][..], &wanted].concat())?;
    Ok(Duration::from_nanos(told.trim().parse().with_context(|| format!("starts: {told}"))?))
}
