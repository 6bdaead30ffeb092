//! What an engine and a container are asked to be. Plain values: nothing here reads the machine.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use rswarm_base::ipam::Subnet;
use rswarm_proto::model::container::{ContainerSpec, LogDriver, PortConfig, ResourceLimits, Ulimit};
use serde::{Deserialize, Serialize};

/// How an engine is set up. Merged once by the daemon; the engine reads no file and no variable for it.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Durable state, e.g. `/var/lib/rswarm`.
    pub data_root: PathBuf,
    /// State of this boot, e.g. `/run/rswarm`.
    pub exec_root: PathBuf,
    /// Eight hexadecimal digits; the prefix of every kernel object's name.
    pub daemon_id: String,
    /// The cgroup that holds the containers' cgroups, e.g. `/rswarm-<daemon id>`.
    pub cgroup_parent: String,
    /// The program that is started as `EXE shim --state-dir DIR`, one for each container.
    pub exe: PathBuf,
    /// This host's name, for events and `info`.
    pub host_name: String,
    /// The daemon's own labels.
    pub labels: Vec<String>,
    /// Registries that are asked before the one an image names.
    pub registry_mirrors: Vec<String>,
    /// Registries that may be spoken to without TLS.
    pub insecure_registries: Vec<String>,
    /// Whether the `bridge` network exists.
    pub default_bridge: bool,
    /// Whether containers on the `bridge` network have IPv6 addresses.
    pub default_bridge_ipv6: bool,
    /// The IPv6 subnet of the `bridge` network; `None` takes a free one.
    pub fixed_cidr_v6: Option<Subnet>,
    /// What is asked of the `bridge` network.
    pub bridge: rswarm_network::DefaultBridge,
    /// Where bridges get their subnets from; empty for Docker's pools.
    pub bridge_pools: Vec<rswarm_network::AddressPool>,
    /// Whether published ports are open by themselves.
    pub firewall: rswarm_network::FirewallMode,
    /// Logging of containers that choose no driver. An empty name is `json-file`.
    pub log: LogDriver,
    /// Limits that apply unless a container names the same one. Clamped to what the daemon itself may have.
    pub ulimits: Vec<Ulimit>,
    /// Bytes of `/dev/shm` of containers that do not say; 0 is Docker's default.
    pub shm_size: i64,
    /// Whether programs of containers that do not say gain no privileges.
    pub no_new_privileges: bool,
    /// The system call filter of containers that choose none.
    pub seccomp: SeccompProfile,
    /// Layers that are fetched at one time; 0 is Docker's default.
    pub downloads_max: usize,
    /// Other OCI runtimes, by name.
    pub runtimes: BTreeMap<String, PathBuf>,
    /// The runtime of containers that name none; empty is the built-in one.
    pub default_runtime: String,
    /// Name servers, search domains and options of containers that give none.
    pub dns: DnsDefaults,
    /// The program that becomes the first process of containers with `init`; `None` refuses them.
    pub init_path: Option<PathBuf>,
    /// Whether containers that do not say get an init.
    pub init: bool,
    /// The IPC mode of containers that choose none: `shareable`, `private`, or empty for the latter.
    pub ipc_mode: String,
    /// The cgroup namespace mode of containers that choose none: `host`, `private`, or empty for what the version of
    /// the host's cgroups makes usual.
    pub cgroupns_mode: String,
    /// How long `stop` waits for a container that does not say.
    pub stop_timeout: Duration,
}

/// A system call filter for all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum SeccompProfile {
    /// Docker's default profile.
    #[default]
    Builtin,
    /// None.
    Unconfined,
    /// A profile in Docker's JSON format.
    File {
        /// Where it was read from.
        path: PathBuf,
        /// What it says.
        json: String,
    },
}

impl SeccompProfile {
    /// As dockerd's `info` shows it.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            SeccompProfile::Builtin => "builtin".to_owned(),
            SeccompProfile::Unconfined => "unconfined".to_owned(),
            SeccompProfile::File { path, .. } => path.display().to_string(),
        }
    }
}

/// Name resolution of containers that do not ask for their own.
#[derive(Debug, Clone, Default)]
pub struct DnsDefaults {
    /// Name servers; empty for the host's.
    pub servers: Vec<IpAddr>,
    /// Search domains; empty for the host's.
    pub search: Vec<String>,
    /// Resolver options; empty for the host's.
    pub options: Vec<String>,
}

impl EngineConfig {
    /// The parent cgroup that is the daemon's own, to be removed with its last container.
    #[must_use]
    pub fn own_cgroup(daemon_id: &str) -> String {
        format!("/rswarm-{daemon_id}")
    }

    /// Docker's defaults for everything but the places and the identity.
    #[must_use]
    pub fn new(data_root: PathBuf, exec_root: PathBuf, daemon_id: String, exe: PathBuf) -> EngineConfig {
        EngineConfig {
            cgroup_parent: EngineConfig::own_cgroup(&daemon_id),
            data_root,
            exec_root,
            daemon_id,
            exe,
            host_name: String::new(),
            labels: Vec::new(),
            registry_mirrors: Vec::new(),
            insecure_registries: Vec::new(),
            default_bridge: true,
            default_bridge_ipv6: false,
            fixed_cidr_v6: None,
            bridge: rswarm_network::DefaultBridge::default(),
            bridge_pools: Vec::new(),
            firewall: rswarm_network::FirewallMode::Open,
            log: LogDriver::default(),
            ulimits: Vec::new(),
            shm_size: 0,
            no_new_privileges: false,
            seccomp: SeccompProfile::Builtin,
            downloads_max: 0,
            runtimes: BTreeMap::new(),
            default_runtime: String::new(),
            dns: DnsDefaults::default(),
            init_path: None,
            init: false,
            ipc_mode: String::new(),
            cgroupns_mode: String::new(),
            stop_timeout: Duration::from_secs(10),
        }
    }
}

/// A container as asked for: the spec that services share, and what only a single machine knows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerConfig {
    /// Image, process, mounts, security: the same message as in a service.
    pub spec: ContainerSpec,
    /// Limits.
    pub resources: ResourceLimits,
    /// `""` and `default` (the default bridge), `bridge`, `none`, `host`, `container:X`, or a network.
    pub network_mode: String,
    /// The networks to join. Empty: the one that `network_mode` names.
    pub endpoints: Vec<EndpointConfig>,
    /// Published ports. `published` 0 takes a free one. The mode is ignored: every one is on this host.
    pub ports: Vec<PortConfig>,
    /// Exposed ports (`80/tcp`), beside the image's.
    pub exposed: Vec<String>,
    /// Containers whose binds and volumes it gets too: `NAME[:ro|:rw]`.
    pub volumes_from: Vec<String>,
    /// Containers that it knows by names of its own, `NAME[:ALIAS]`; on the default bridge with all that is
    /// exposed of them.
    pub links: Vec<String>,
    /// Publish every exposed port on a free one.
    pub publish_all: bool,
    /// The cgroup to be below: a path or a systemd slice's name; empty for the engine's.
    pub cgroup_parent: String,
    /// Logging; an empty name takes the engine's default.
    pub log: LogDriver,
    /// What happens when it exits.
    pub restart: RestartPolicy,
    /// Remove it when it exits.
    pub auto_remove: bool,
    /// Size of the terminal at the start: width, height.
    pub console_size: Option<(u16, u16)>,
    /// Streams that the creating client attaches; only shown again by `inspect`.
    pub attach: AttachedStreams,
    /// The isolation technology that was asked for; there is one, and `inspect` shows the word again.
    pub isolation: String,
    /// The driver of volumes that are named in binds; only shown again by `inspect`.
    pub volume_driver: String,
    /// What it cannot see of the kernel; `None` is Docker's list, [`crate::MASKED_PATHS`].
    pub masked_paths: Option<Vec<String>>,
    /// What it cannot change of it; `None` is Docker's list, [`crate::READONLY_PATHS`].
    pub readonly_paths: Option<Vec<String>>,
    /// Files put into the container, held in memory only: never on a disk, gone with the daemon.
    #[serde(skip)]
    pub files: Vec<InjectedFile>,
    /// The cluster task that this container runs.
    pub task: Option<TaskRef>,
}

/// Which streams a client attaches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AttachedStreams {
    /// Standard input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
}

/// One network to join.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EndpointConfig {
    /// Identifier or name.
    pub network: String,
    /// A fixed address. Given by the cluster on overlay networks.
    pub address: Option<IpAddr>,
    /// A fixed IPv6 address beside it.
    pub address_v6: Option<IpAddr>,
    /// A fixed MAC address.
    pub mac: Option<[u8; 6]>,
    /// Further names on this network.
    pub aliases: Vec<String>,
    /// Names for others on this network that only this container knows, `NAME[:ALIAS]`.
    pub links: Vec<String>,
    /// The network with the greatest gives the default route; then the first by name.
    pub gateway_priority: i32,
    /// Driver options, shown again by `inspect`.
    pub driver_options: BTreeMap<String, String>,
}

/// When an exited container starts again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RestartPolicy {
    /// When.
    pub name: RestartName,
    /// For `on-failure`: how often at most; 0 is without limit.
    pub max: u32,
}

/// The restart policies' names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartName {
    /// Never.
    #[default]
    No,
    /// Whatever the exit code, and when the daemon starts.
    Always,
    /// On a code other than 0.
    OnFailure,
    /// As `always`, but one that was stopped by hand stays so when the daemon starts.
    UnlessStopped,
}

impl RestartName {
    /// Docker's word. The empty text means `no`.
    #[must_use]
    pub fn parse(text: &str) -> Option<RestartName> {
        match text {
            "" | "no" => Some(RestartName::No),
            "always" => Some(RestartName::Always),
            "on-failure" => Some(RestartName::OnFailure),
            "unless-stopped" => Some(RestartName::UnlessStopped),
            _ => None,
        }
    }

    /// Docker's word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            RestartName::No => "no",
            RestartName::Always => "always",
            RestartName::OnFailure => "on-failure",
            RestartName::UnlessStopped => "unless-stopped",
        }
    }
}

/// A file that exists only in the container's memory: a secret or a config.
#[derive(Clone, PartialEq, Eq)]
pub struct InjectedFile {
    /// Absolute path inside the container.
    pub target: String,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
    /// Content.
    pub data: Vec<u8>,
}

/// Shows everything but the content.
impl std::fmt::Debug for InjectedFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InjectedFile")
            .field("target", &self.target)
            .field("mode", &format_args!("{:o}", self.mode))
            .field("data", &"***")
            .finish_non_exhaustive()
    }
}

/// The cluster task behind a container; becomes the `com.docker.swarm.*` labels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskRef {
    /// Task identifier.
    pub task_id: String,
    /// `<service>.<slot>.<task id>`.
    pub task_name: String,
    /// Service identifier.
    pub service_id: String,
    /// Service name.
    pub service_name: String,
    /// This node's identifier.
    pub node_id: String,
}
