//! What a playground consists of: names, addresses and paths, all from its size and its directories. Pure.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use super::record::Record;

/// Sockets, logs and namespaces.
pub const DEFAULT_DIR: &str = "/run/rswarm-playground";
/// Images and container layers: overlayfs wants a file system that is on a disk.
const DEFAULT_DATA_DIR: &str = "/var/lib/rswarm-playground";
/// Hosts are 10.99.0.1 and up.
const FIRST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
/// Prefix length of the hosts' network.
pub const PREFIX: u8 = 24;

/// What a host is in the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Takes part in consensus.
    Manager,
    /// Runs tasks only.
    Worker,
}

impl Role {
    /// Docker's word.
    pub fn name(self) -> &'static str {
        match self {
            Role::Manager => "manager",
            Role::Worker => "worker",
        }
    }
}

/// One host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// `n1`, `n2`, …
    pub name: String,
    /// Its role.
    pub role: Role,
    /// Its address on the hosts' network.
    pub address: Ipv4Addr,
    /// Its daemon's API.
    pub socket: PathBuf,
    /// What its daemon says.
    pub log: PathBuf,
    /// Run-time files of its daemon.
    pub exec_root: PathBuf,
    /// Durable files of its daemon.
    pub data_root: PathBuf,
    /// Where its network namespace is pinned.
    pub netns: PathBuf,
}

/// The whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Sockets, logs and namespaces.
    pub dir: PathBuf,
    /// Durable files of the daemons.
    pub data_dir: PathBuf,
    /// Managers first.
    pub hosts: Vec<Host>,
    /// Where the namespace that connects the hosts is pinned.
    pub switch: PathBuf,
}

impl Plan {
    /// A playground of this size in this directory.
    pub fn new(dir: &Path, managers: u8, workers: u8) -> Plan {
        let data_dir = if dir == Path::new(DEFAULT_DIR) { DEFAULT_DATA_DIR.into() } else { dir.join("data") };
        let host = |n: u8| {
            let name = format!("n{n}");
            Host {
                role: if n <= managers { Role::Manager } else { Role::Worker },
                address: Ipv4Addr::from(u32::from(FIRST_ADDRESS) + u32::from(n) - 1),
                socket: dir.join(&name).join("rswarm.sock"),
                log: dir.join(&name).join("daemon.log"),
                exec_root: dir.join(&name).join("exec"),
                data_root: data_dir.join(&name),
                netns: dir.join("netns").join(&name),
                name,
            }
        };
        let hosts = (1..=managers + workers).map(host).collect();
        Plan { switch: dir.join("netns").join("switch"), dir: dir.to_owned(), data_dir, hosts }
    }

    /// The playground that a record is of.
    pub fn of_record(record: &Record) -> Plan {
        Plan::new(&record.dir, record.managers, record.workers)
    }

    /// The host that starts the cluster.
    pub fn first(&self) -> &Host {
        &self.hosts[0]
    }

    /// Every host that manages.
    pub fn managers(&self) -> impl Iterator<Item = &Host> {
        self.hosts.iter().filter(|host| host.role == Role::Manager)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_named_and_numbered_from_one() {
        let plan = Plan::new(Path::new(DEFAULT_DIR), 3, 2);
        let shown: Vec<String> =
            plan.hosts.iter().map(|h| format!("{} {} {}", h.name, h.role.name(), h.address)).collect();
        assert_eq!(shown.len(), 5);
        assert_eq!(shown[0], "n1 manager 10.99.0.1");
        assert_eq!(shown[4], "n5 worker 10.99.0.5");
        assert_eq!(plan.first().data_root, Path::new("/var/lib/rswarm-playground/n1"));
        assert_eq!(Plan::new(Path::new("/tmp/p"), 1, 0).first().data_root, Path::new("/tmp/p/data/n1"));
    }
}
