//! Many containers, one after the other and all at once: the daemon is afterwards what it was before.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use rswarm_tests::harness::{Lab, eventually};
use rswarm_tests::host::Host;
use rswarm_tests::traces;

use crate::support::number;

/// Rounds before the first look: caches and pools have their size by then.
const WARM_UP: usize = 40;
/// Rounds between the two looks; `RSWARM_CHURN_ROUNDS` makes it more.
const ROUNDS: usize = 150;
/// Containers that live at the same time.
const TOGETHER: usize = 64;
/// How much the daemon's memory may differ between the looks, KiB: an allocator's slack, not a leak of rounds.
const SLACK_KIB: u64 = 6 << 10;

#[test]
fn a_daemon_is_the_same_after_many_containers() -> Result<()> {
    let lab = Lab::start_alone(1)?;
    let host = &lab.hosts[0];
    host.import_busybox()?;
    let rounds = number("RSWARM_CHURN_ROUNDS", ROUNDS)?;
    for _ in 0..WARM_UP {
        round(host)?;
    }
    all_at_once(host)?;
    let before = settled(host)?;
    let started = Instant::now();
    for _ in 0..rounds {
        round(host)?;
    }
    println!("{rounds} containers in a row: {:?} each", started.elapsed() / u32::try_from(rounds)?);
    let started = Instant::now();
    all_at_once(host)?;
    println!("{TOGETHER} containers at once: {:?}", started.elapsed());
    eventually(std::time::Duration::from_secs(30), "nothing of them is left", || {
        let (now, then) = (settled(host)?, &before);
        // The first look may see more: a client's connection that is not closed yet, threads for blocking work
        // that have not ended for want of it.
        let grown = now.leaks().into_iter().zip(then.leaks()).any(|(now, then)| now > then);
        ensure!(!grown && now.threads <= then.threads, "{then:?}, then {now:?}");
        Ok(true)
    })?;
    let after = settled(host)?;
    ensure!(after.memory_kib <= before.memory_kib + SLACK_KIB, "{before:?}, then {after:?}");
    println!("memory of the daemon: {} KiB, then {} KiB", before.memory_kib, after.memory_kib);
    lab.finish()
}

/// What a leak would add to.
#[derive(Debug)]
struct Traces {
    descriptors: usize,
    threads: u64,
    zombies: usize,
    mounts: usize,
    cgroups: usize,
    containers: usize,
    memory_kib: u64,
}

impl Traces {
    /// All but the memory, which is compared with some slack.
    fn leaks(&self) -> [usize; 5] {
        [self.descriptors, self.zombies, self.mounts, self.cgroups, self.containers]
    }
}

fn settled(host: &Host) -> Result<Traces> {
    let pid = host.pid().context("the daemon runs")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let number = |field: &str| -> Result<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(field)).context(field.to_owned())?;
        Ok(line.split_whitespace().next().context("a number")?.parse()?)
    };
    let dir = format!("{}/", host.dir.display());
    let mounts = std::fs::read_to_string(format!("/proc/{pid}/mounts"))?;
    Ok(Traces {
        descriptors: std::fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
        threads: number("Threads:")?,
        zombies: children(pid)?.iter().filter(|state| **state == 'Z').count(),
        mounts: mounts.lines().filter(|line| line.contains(&dir)).count(),
        cgroups: traces::cgroups(host).len(),
        containers: std::fs::read_dir(host.dir.join("run/containers"))?.count()
            + std::fs::read_dir(host.dir.join("data/containers"))?.count(),
        memory_kib: number("VmRSS:")?,
    })
}

/// The states of a process's children.
fn children(parent: u32) -> Result<Vec<char>> {
    let mut states = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        let mut fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
        let state = fields.next().and_then(|state| state.chars().next());
        if fields.next() == Some(&parent.to_string()) {
            states.extend(state);
        }
    }
    Ok(states)
}

fn all_at_once(host: &Host) -> Result<()> {
    let results: Vec<Result<()>> = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..TOGETHER).map(|_| scope.spawn(|| round(host))).collect();
        runs.into_iter().map(|run| run.join().expect("a round's thread")).collect()
    });
    results.into_iter().collect()
}

/// Created, started, waited for, removed: what `docker run --rm` is, without a client program's own cost.
fn round(host: &Host) -> Result<()> {
    let body = r#"{"Image":"busybox","Cmd":["true"],"HostConfig":{"NetworkMode":"none"}}"#;
    let created: serde_json::Value =
        serde_json::from_str(&call(host, "POST", "/containers/create", body, 201)?)?;
    let id = created["Id"].as_str().context("an id")?;
    call(host, "POST", &format!("/containers/{id}/start"), "", 204)?;
    let ended = call(host, "POST", &format!("/containers/{id}/wait"), "", 200)?;
    ensure!(ended.contains("\"StatusCode\":0"), "{ended}");
    call(host, "DELETE", &format!("/containers/{id}"), "", 204)?;
    Ok(())
}

/// One request on a connection of its own; the body of the reply as it came.
fn call(host: &Host, method: &str, path: &str, body: &str, status: u16) -> Result<String> {
    let mut socket = UnixStream::connect(host.dir.join("rswarm.sock"))?;
    let length = body.len();
    write!(
        socket,
        "{method} /v1.51{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )?;
    let mut reply = String::new();
    socket.read_to_string(&mut reply)?;
    let (head, rest) = reply.split_once("\r\n\r\n").context("no end of the head")?;
    ensure!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{method} {path}: {reply}");
    // Chunked bodies of one object begin and end with lines of their own.
    let json = rest.find('{').zip(rest.rfind('}')).map(|(first, last)| rest[first..=last].to_owned());
    Ok(json.unwrap_or_default())
}
