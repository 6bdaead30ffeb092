//! What others see of a container: one immutable value, replaced whole by its actor.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use rswarm_base::Timestamp;
use serde::{Deserialize, Serialize};

use crate::config::ContainerConfig;

/// A container at one moment. `config` is merged with the image's: what runs, not only what was asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Container {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Without the leading slash that Docker's API shows.
    pub name: String,
    /// When it was created.
    pub created: Timestamp,
    /// The image's identifier; `config.spec.image` is the name it was asked by.
    pub image_id: String,
    /// The program.
    pub path: String,
    /// The program's arguments.
    pub args: Vec<String>,
    /// What it was asked to be, filled up from the image.
    pub config: Arc<ContainerConfig>,
    /// How it is.
    pub state: State,
    /// Restarts by policy since the last start by hand.
    pub restart_count: u32,
    /// Binds and volumes, resolved.
    pub mounts: Arc<Vec<MountPoint>>,
    /// Networks that it is, or will be, on.
    pub endpoints: Arc<Vec<Endpoint>>,
    /// Exposed ports, image's and own: `80/tcp`.
    pub exposed: Arc<Vec<String>>,
    /// Others on the default bridge that it knows.
    #[serde(default)]
    pub links: Arc<Vec<Link>>,
    /// Directory of the files below.
    #[serde(skip)]
    pub dir: PathBuf,
    /// Its log; `None` when the driver keeps none.
    pub log_path: Option<PathBuf>,
    /// How often it has exited; lets a waiter tell exits apart.
    pub exits: u64,
    /// The last exit's code; unlike the state's, kept while it runs again.
    pub last_exit_code: i32,
    /// Set in the very last value only: the container is gone.
    #[serde(skip)]
    pub removed: bool,
}

impl Container {
    /// The file mounted at `/etc/hostname`.
    #[must_use]
    pub fn hostname_path(&self) -> PathBuf {
        self.dir.join("hostname")
    }

    /// The file mounted at `/etc/hosts`.
    #[must_use]
    pub fn hosts_path(&self) -> PathBuf {
        self.dir.join("hosts")
    }

    /// The file mounted at `/etc/resolv.conf`.
    #[must_use]
    pub fn resolv_conf_path(&self) -> PathBuf {
        self.dir.join("resolv.conf")
    }
}

/// One container's knowledge of another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The other's identifier.
    pub target: String,
    /// What it is called by the one that has the link.
    pub alias: String,
}

/// How a container is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// In one word.
    pub status: Status,
    /// Its first process; 0 when none.
    pub pid: i32,
    /// Of the last run: 0..255, 128+n after signal n. 125, 126 or 127 after a failed start.
    pub exit_code: i32,
    /// Why the last start failed.
    pub error: String,
    /// Whether the kernel killed a process of the last run for memory.
    pub oom_killed: bool,
    /// Start of the last run.
    pub started_at: Timestamp,
    /// End of the last run.
    pub finished_at: Timestamp,
    /// Result of its health check, when it has one.
    pub health: Option<Health>,
}

/// Docker's words for a container's state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Never started, or its first start failed.
    #[default]
    Created,
    /// Its first process lives.
    Running,
    /// Frozen.
    Paused,
    /// Exited; starts again after a delay.
    Restarting,
    /// Being removed.
    Removing,
    /// Its first process ended.
    Exited,
    /// A removal failed half-way.
    Dead,
}

impl Status {
    /// The word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Restarting => "restarting",
            Status::Removing => "removing",
            Status::Exited => "exited",
            Status::Dead => "dead",
        }
    }

    /// Whether Docker calls it running: also while paused or between two runs.
    #[must_use]
    pub fn is_running(self) -> bool {
        matches!(self, Status::Running | Status::Paused | Status::Restarting)
    }

    /// Whether its processes exist right now.
    #[must_use]
    pub fn is_live(self) -> bool {
        matches!(self, Status::Running | Status::Paused)
    }
}

/// Result of a container's health check.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Health {
    /// The verdict.
    pub status: HealthStatus,
    /// Failures in a row.
    pub failing_streak: u32,
    /// The last probes, oldest first.
    pub log: Vec<Probe>,
}

/// A health check's verdict.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthStatus {
    /// No verdict yet.
    #[default]
    Starting,
    /// The last probe succeeded.
    Healthy,
    /// Too many probes in a row failed.
    Unhealthy,
}

impl HealthStatus {
    /// Docker's word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            HealthStatus::Starting => "starting",
            HealthStatus::Healthy => "healthy",
            HealthStatus::Unhealthy => "unhealthy",
        }
    }
}

/// One run of a health check.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Probe {
    /// When it began.
    pub start: Timestamp,
    /// When it ended.
    pub end: Timestamp,
    /// Its exit code; -1 when it took too long.
    pub exit_code: i32,
    /// The beginning of what it wrote.
    pub output: String,
}

/// One mount as `inspect` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPoint {
    /// What it is.
    pub kind: MountKind,
    /// The volume's name; empty for others.
    pub name: String,
    /// Where on the host.
    pub source: String,
    /// Where in the container.
    pub destination: String,
    /// The volume's driver.
    pub driver: String,
    /// Whether it can be written to.
    pub writable: bool,
    /// Mount propagation, such as `rprivate`.
    pub propagation: String,
    /// Whether the volume was made for this container alone and goes with `rm -v`.
    pub anonymous: bool,
    /// For a bind: what becomes of the mounts below its source.
    #[serde(default)]
    pub recursion: Recursion,
}

/// How a bind takes the mounts below its source along.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recursion {
    /// All of them, read-only with it.
    #[default]
    Enabled,
    /// None.
    Disabled,
    /// All of them, writable also below a read-only one.
    Writable,
    /// All of them, read-only or not at all.
    Readonly,
}

/// What is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MountKind {
    /// A path of the host.
    Bind,
    /// A named or anonymous volume.
    Volume,
    /// Memory.
    Tmpfs,
}

impl MountKind {
    /// Docker's word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            MountKind::Bind => "bind",
            MountKind::Volume => "volume",
            MountKind::Tmpfs => "tmpfs",
        }
    }
}

/// A container's place on a network. The addresses are there while it runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Endpoint {
    /// 64 hexadecimal digits while attached, else empty.
    pub endpoint_id: String,
    /// The network's identifier.
    pub network_id: String,
    /// The network's name.
    pub network_name: String,
    /// The interface inside the container.
    pub interface: String,
    /// Address and prefix length.
    pub address: Option<(IpAddr, u8)>,
    /// IPv6 address and prefix length.
    pub address_v6: Option<(IpAddr, u8)>,
    /// Default gateway.
    pub gateway: Option<IpAddr>,
    /// Default gateway of IPv6.
    pub gateway_v6: Option<IpAddr>,
    /// MAC address.
    pub mac: Option<[u8; 6]>,
    /// The names under which others on the network find it.
    pub names: Vec<String>,
    /// What was asked for.
    pub config: crate::config::EndpointConfig,
    /// Published ports as bound.
    pub ports: Vec<BoundPort>,
    /// The place that the cluster gave a container of this node's own, while it is attached; else empty.
    #[serde(default)]
    pub place: String,
}

/// A published port as bound.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoundPort {
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// The container's port.
    pub container_port: u16,
    /// The host's address.
    pub host_ip: IpAddr,
    /// The host's port.
    pub host_port: u16,
}

/// Labels and attributes, sorted.
pub type Attributes = BTreeMap<String, String>;
