//! How long `POST /containers/{id}/start` takes for a container of `true` without a network: rswarm beside
//! Debian's dockerd, in turns, in one run. Then 32 at once. Then what a bridge adds to rswarm's.
//!
//! Needs root, `docker.io`, `busybox-static`, and the program of the same profile:
//! `cargo build --release && cargo bench -p rswarm-tests --bench start`. dockerd runs in a network namespace of the
//! lab with directories and a cgroup of its own, so nothing of the machine's changes.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rswarm_tests::dockerd::Dockerd;
use rswarm_tests::harness::{Lab, run};

const ROUNDS: usize = 20;
const PARALLEL: usize = 32;
const NONE: &str = "none";
const BRIDGE: &str = "bridge";
/// dockerd needs none, and so makes no rules.
const BARE: [&str; 3] = ["--bridge=none", "--iptables=false", "--ip6tables=false"];

fn main() -> Result<()> {
    // `cargo bench` and `cargo test` pass flags that mean nothing here.
    if std::env::args().any(|arg| arg == "--list" || arg == "--test") {
        return Ok(());
    }
    let lab = Lab::start(1)?;
    let host = &lab.hosts[0];
    let ours = Api { name: "rswarm", socket: host.dir.join("rswarm.sock") };
    let dockerd = Dockerd::start(&lab.dir.join("dockerd"), &host.netns, &BARE)?;
    let theirs = Api { name: "dockerd", socket: dockerd.socket.clone() };
    import_busybox(&ours)?;
    import_busybox(&theirs)?;

    let mut single = [Vec::new(), Vec::new()];
    for round in 0..=ROUNDS {
        for (api, times) in [&ours, &theirs].into_iter().zip(&mut single) {
            let time = api.start_one(NONE)?;
            // The first of each fills caches.
            if round > 0 {
                times.push(time);
            }
        }
    }
    let [our_single, their_single] = single.map(median);
    println!(
        "one start:        rswarm {our_single:>9.2?}  dockerd {their_single:>9.2?}  ratio {:.1}",
        ratio(their_single, our_single)
    );

    for (api, single) in [(&ours, our_single), (&theirs, their_single)] {
        api.report_many(NONE, single)?;
    }
    drop(dockerd);
    bridge(&ours)?;
    lab.finish()
}

/// What it adds to a start that the container comes onto a bridge.
fn bridge(api: &Api) -> Result<()> {
    let mut single = [Vec::new(), Vec::new()];
    for round in 0..=ROUNDS {
        for (network, times) in [NONE, BRIDGE].into_iter().zip(&mut single) {
            let time = api.start_one(network)?;
            if round > 0 {
                times.push(time);
            }
        }
    }
    let [none, bridge] = single.map(median);
    let more = (bridge.as_secs_f64() - none.as_secs_f64()) * 1e3;
    println!("one start on a bridge: {bridge:.2?}, without a network {none:.2?}: {more:.2} ms more");
    api.report_many(BRIDGE, bridge)
}

/// A Docker Engine API on a socket.
struct Api {
    name: &'static str,
    socket: PathBuf,
}

impl Api {
    /// One call on a connection of its own; the body of a successful answer.
    fn call(&self, method: &str, path: &str, body: &[u8]) -> Result<String> {
        let mut stream = UnixStream::connect(&self.socket)?;
        write!(
            stream,
            "{method} /v1.41{path} HTTP/1.1\r\nHost: api\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )?;
        stream.write_all(body)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no end of the headers")?;
        let code = head.split(' ').nth(1).unwrap_or_default();
        ensure!(code.starts_with('2'), "{}: {method} {path}: {head}\n{body}", self.name);
        Ok(body.to_owned())
    }

    fn create(&self, network: &str) -> Result<String> {
        let config = format!(
            r#"{{"Image":"busybox:latest","Cmd":["true"],"HostConfig":{{"NetworkMode":"{network}"}}}}"#
        );
        let answer = self.call("POST", "/containers/create", config.as_bytes())?;
        let id = answer.split("\"Id\":\"").nth(1).and_then(|rest| rest.get(..64)).context("no id")?;
        Ok(id.to_owned())
    }

    fn start(&self, id: &str) -> Result<()> {
        self.call("POST", &format!("/containers/{id}/start"), b"").map(drop)
    }

    fn end(&self, id: &str) -> Result<()> {
        self.call("POST", &format!("/containers/{id}/wait"), b"")?;
        self.call("DELETE", &format!("/containers/{id}"), b"").map(drop)
    }

    fn start_one(&self, network: &str) -> Result<Duration> {
        let id = self.create(network)?;
        let started = Instant::now();
        self.start(&id)?;
        let time = started.elapsed();
        self.end(&id)?;
        Ok(time)
    }

    /// From the first call to the last answer.
    fn start_many(&self, network: &str, count: usize) -> Result<Duration> {
        let ids = (0..count).map(|_| self.create(network)).collect::<Result<Vec<_>>>()?;
        let started = Instant::now();
        std::thread::scope(|scope| {
            let starts: Vec<_> = ids.iter().map(|id| scope.spawn(|| self.start(id))).collect();
            starts.into_iter().try_for_each(|start| start.join().expect("no panic"))
        })?;
        let time = started.elapsed();
        ids.iter().try_for_each(|id| self.end(id))?;
        Ok(time)
    }

    /// [`PARALLEL`] at once, beside one start alone.
    fn report_many(&self, network: &str, single: Duration) -> Result<()> {
        let cores = u32::try_from(std::thread::available_parallelism()?.get())?;
        let all = self.start_many(network, PARALLEL)?;
        let each = all * cores / u32::try_from(PARALLEL)?;
        println!(
            "{PARALLEL} at once, {:>7}, network {network}: {all:>9.2?}, {each:.2?} each per core, {:.2} × one start",
            self.name,
            ratio(each, single)
        );
        Ok(())
    }
}

fn import_busybox(api: &Api) -> Result<()> {
    let dir = tempfile::tempdir()?;
    std::fs::create_dir(dir.path().join("bin"))?;
    std::fs::copy("/bin/busybox", dir.path().join("bin/busybox"))?;
    std::os::unix::fs::symlink("busybox", dir.path().join("bin/true"))?;
    let tar = dir.path().join("image.tar");
    run(Command::new("tar").arg("-C").arg(dir.path()).arg("-cf").arg(&tar).arg("bin"))?;
    api.call("POST", "/images/create?fromSrc=-&repo=busybox&tag=latest", &std::fs::read(tar)?).map(drop)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn ratio(a: Duration, b: Duration) -> f64 {
    a.as_secs_f64() / b.as_secs_f64()
}
