//! A lab: hosts in network namespaces joined by a switch that lives in one of its own, so that nothing of
//! the machine's network changes. Dropping a lab removes everything it made, whatever state it is in.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::host::Host;
use crate::traces;
use crate::turns::Turn;

/// How often a condition is looked at again; the deadline is what matters.
const POLL: Duration = Duration::from_millis(50);

/// Hosts on one network, 10.99.0.0/24.
pub struct Lab {
    /// Names everything that the lab makes: `rswarm-it-PID-N`.
    pub name: String,
    /// Data and run directories of all hosts.
    pub dir: PathBuf,
    /// The hosts, in order of their addresses.
    pub hosts: Vec<Host>,
    finished: bool,
    _turn: Turn,
}

impl Lab {
    /// `count` hosts with a running daemon each, beside the hosts of other labs.
    pub fn start(count: u8) -> Result<Lab> {
        Lab::start_in(Turn::beside_others(), count)
    }

    /// The same while no other lab is there: for what measures time, or how much of the machine is used.
    pub fn start_alone(count: u8) -> Result<Lab> {
        Lab::start_in(Turn::alone(), count)
    }

    fn start_in(turn: Turn, count: u8) -> Result<Lab> {
        static LABS: AtomicU32 = AtomicU32::new(0);
        let name = format!("rswarm-it-{}-{}", std::process::id(), LABS.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(&name);
        std::fs::create_dir_all(&dir)?;
        let mut lab = Lab { name, dir, hosts: Vec::new(), finished: false, _turn: turn };
        lab.make_switch()?;
        for number in 1..=count {
            lab.add_host(number)?;
        }
        for host in &mut lab.hosts {
            host.start()?;
        }
        for host in &lab.hosts {
            host.ready()?;
        }
        Ok(lab)
    }

    fn switch(&self) -> String {
        format!("{}-sw", self.name)
    }

    fn make_switch(&self) -> Result<()> {
        let switch = self.switch();
        ip(&["netns", "add", &switch])?;
        ip(&["-n", &switch, "link", "add", "br0", "type", "bridge", "stp_state", "0", "forward_delay", "0"])?;
        ip(&["-n", &switch, "link", "set", "br0", "up"])
    }

    fn add_host(&mut self, number: u8) -> Result<()> {
        let (switch, port) = (self.switch(), format!("p{number}"));
        let netns = format!("{}-h{number}", self.name);
        let address = Ipv4Addr::new(10, 99, 0, number);
        ip(&["netns", "add", &netns])?;
        ip(&["-n", &netns, "link", "set", "lo", "up"])?;
        ip(&["-n", &switch, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &netns])?;
        ip(&["-n", &switch, "link", "set", &port, "master", "br0", "up"])?;
        ip(&["-n", &netns, "addr", "add", &format!("{address}/24"), "dev", "eth0"])?;
        ip(&["-n", &netns, "link", "set", "eth0", "up"])?;
        self.hosts.push(Host::new(format!("h{number}"), netns, address, self.dir.join(format!("h{number}"))));
        Ok(())
    }

    /// The same work for every host, all at once.
    pub fn every_host(&self, work: impl Fn(&Host) -> Result<()> + Sync) -> Result<()> {
        std::thread::scope(|scope| {
            let started: Vec<_> = self.hosts.iter().map(|host| scope.spawn(|| work(host))).collect();
            started.into_iter().try_for_each(|one| one.join().expect("the work of a host"))
        })
    }

    /// Pulls a host's network cable.
    pub fn cut(&self, host: usize) -> Result<()> {
        ip(&["-n", &self.switch(), "link", "set", &format!("p{}", host + 1), "down"])
    }

    /// Plugs it in again.
    pub fn heal(&self, host: usize) -> Result<()> {
        ip(&["-n", &self.switch(), "link", "set", &format!("p{}", host + 1), "up"])
    }

    /// A cluster over all hosts: the first `managers` of them manage, the rest work.
    pub fn form_cluster(&self, managers: usize) -> Result<()> {
        let first = &self.hosts[0];
        first.rswarm(&["init", "--advertise-addr", &first.address.to_string()])?;
        for (index, host) in self.hosts.iter().enumerate().skip(1) {
            let role = if index < managers { "manager" } else { "worker" };
            let token = first.rswarm(&["swarm", "join-token", "-q", role])?;
            host.rswarm(&["join", "--token", token.trim(), &format!("{}:2377", first.address)])?;
        }
        eventually(Duration::from_secs(20), "all nodes ready and all managers reachable", || {
            let nodes = first.docker(&["node", "ls", "--format", "{{.Status}} {{.ManagerStatus}}"])?;
            let ready = nodes.lines().filter(|line| line.starts_with("Ready")).count();
            let reachable = nodes.matches("Reachable").count() + nodes.matches("Leader").count();
            Ok(ready == self.hosts.len() && reachable == managers)
        })
    }

    /// The index of the host whose daemon leads, as another host's API says.
    pub fn leader(&self, ask: usize) -> Result<usize> {
        let nodes = self.hosts[ask].docker(&["node", "ls", "--format", "{{.ID}} {{.ManagerStatus}}"])?;
        let leader = nodes.lines().find(|line| line.ends_with("Leader")).context("no leader in `node ls`")?;
        let id = leader.split_whitespace().next().unwrap_or_default();
        for (index, host) in self.hosts.iter().enumerate() {
            if host.is_running() && host.docker(&["info", "--format", "{{.Swarm.NodeID}}"])?.trim() == id {
                return Ok(index);
            }
        }
        bail!("the leader `{id}` is none of the running hosts")
    }

    /// Ends the lab as a user would, and checks that the product left nothing behind.
    pub fn finish(mut self) -> Result<()> {
        for host in &mut self.hosts {
            host.retire()?;
        }
        let left = traces::of(&self.dir, &self.hosts);
        ensure!(left.is_empty(), "left behind: {left:#?}");
        self.finished = true;
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // A failed test returns an error more often than it panics: what was not finished is explained.
        if !self.finished {
            for host in &self.hosts {
                host.print_log_tail();
            }
        }
        traces::remove(&self.dir, &mut self.hosts);
        for host in &self.hosts {
            let _ = ip(&["netns", "del", &host.netns]);
        }
        let _ = ip(&["netns", "del", &self.switch()]);
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Waits until `condition` holds; an error inside counts as "not yet" and is shown when time is up.
pub fn eventually(deadline: Duration, what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let started = Instant::now();
    loop {
        let outcome = condition();
        if matches!(outcome, Ok(true)) {
            return Ok(());
        }
        if started.elapsed() > deadline {
            return match outcome {
                Err(error) => Err(error.context(format!("not within {deadline:?}: {what}"))),
                Ok(_) => bail!("not within {deadline:?}: {what}"),
            };
        }
        std::thread::sleep(POLL);
    }
}

/// The binary under test, built by the same `cargo` call as the tests.
pub fn binary() -> PathBuf {
    let test = std::env::current_exe().expect("a running test has a path");
    let path = test.parent().and_then(Path::parent).expect("target/…/deps/test").join("rswarm");
    assert!(path.exists(), "{} is missing: run `cargo build -p rswarm` first", path.display());
    path
}

/// Runs a command to its end; its output, or an error that shows both streams.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{command:?}: {}\n{stdout}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(stdout)
}

fn ip(args: &[&str]) -> Result<()> {
    run(Command::new("ip").args(args)).map(drop)
}
