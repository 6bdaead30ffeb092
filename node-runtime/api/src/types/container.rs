//! Containers: create, inspect, list, update, and the small replies.

use std::collections::BTreeMap;

use super::{Command, Empty, KeySet, Mount, StringMap};

/// `80/tcp` to the host's side of it; `null` means exposed, not published.
pub type PortMap = BTreeMap<String, Option<Vec<PortBinding>>>;

docker! {
    /// What `X-Docker-Container-Path-Stat` holds, in base64.
    pub struct PathStat {
        #[serde(rename = "name")]
        pub name: String,
        #[serde(rename = "size")]
        pub size: i64,
        #[serde(rename = "mode")]
        pub mode: u32,
        #[serde(rename = "mtime")]
        pub mtime: String,
        #[serde(rename = "linkTarget")]
        pub link_target: String,
    }

    /// One of `GET /containers/{id}/changes`.
    pub struct FilesystemChange {
        pub path: String,
        pub kind: u8,
    }
}

docker! {
    /// The body of `POST /containers/create`: configuration, host configuration and networks, flattened.
    pub struct CreateBody {
        flatten config: ContainerConfig,
        pub host_config: Option<HostConfig>,
        pub networking_config: Option<NetworkingConfig>,
    }
}

docker! {
    /// What is the same on any host.
    pub struct ContainerConfig {
        pub hostname: String,
        pub domainname: String,
        pub user: String,
        pub attach_stdin: bool,
        pub attach_stdout: bool,
        pub attach_stderr: bool,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub exposed_ports: KeySet,
        pub tty: bool,
        pub open_stdin: bool,
        pub stdin_once: bool,
        pub env: Option<Vec<String>>,
        pub cmd: Command,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub healthcheck: Option<HealthConfig>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub args_escaped: bool,
        pub image: String,
        pub volumes: Option<KeySet>,
        pub working_dir: String,
        pub entrypoint: Command,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub network_disabled: bool,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub mac_address: String,
        pub on_build: Option<Vec<String>>,
        pub labels: Option<StringMap>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub stop_signal: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub stop_timeout: Option<i64>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub shell: Option<Vec<String>>,
    }

    pub struct HealthConfig {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub test: Vec<String>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub interval: i64,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub timeout: i64,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub start_period: i64,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub start_interval: i64,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub retries: i32,
    }
}

docker! {
    /// What depends on the host.
    pub struct HostConfig {
        flatten resources: HostResources,
        pub binds: Option<Vec<String>>,
        #[serde(rename = "ContainerIDFile")]
        pub container_id_file: String,
        pub log_config: LogConfig,
        pub network_mode: String,
        pub port_bindings: Option<PortMap>,
        pub restart_policy: RestartPolicy,
        pub auto_remove: bool,
        pub volume_driver: String,
        pub volumes_from: Option<Vec<String>>,
        pub console_size: [u32; 2],
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub annotations: StringMap,
        pub cap_add: Option<Vec<String>>,
        pub cap_drop: Option<Vec<String>>,
        pub cgroupns_mode: String,
        pub dns: Option<Vec<String>>,
        pub dns_options: Option<Vec<String>>,
        pub dns_search: Option<Vec<String>>,
        pub extra_hosts: Option<Vec<String>>,
        pub group_add: Option<Vec<String>>,
        pub ipc_mode: String,
        pub cgroup: String,
        pub links: Option<Vec<String>>,
        pub oom_score_adj: i32,
        pub pid_mode: String,
        pub privileged: bool,
        pub publish_all_ports: bool,
        pub readonly_rootfs: bool,
        pub security_opt: Option<Vec<String>>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub storage_opt: StringMap,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub tmpfs: StringMap,
        #[serde(rename = "UTSMode")]
        pub uts_mode: String,
        pub userns_mode: String,
        pub shm_size: i64,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub sysctls: StringMap,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub runtime: String,
        pub isolation: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub mounts: Vec<Mount>,
        pub masked_paths: Option<Vec<String>>,
        pub readonly_paths: Option<Vec<String>>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub init: Option<bool>,
    }
}

docker! {
    /// The limits of a container; `POST /containers/{id}/update` takes the same.
    pub struct HostResources {
        pub cpu_shares: i64,
        pub memory: i64,
        pub nano_cpus: i64,
        pub cgroup_parent: String,
        pub blkio_weight: u16,
        pub blkio_weight_device: Option<Vec<WeightDevice>>,
        pub blkio_device_read_bps: Option<Vec<ThrottleDevice>>,
        pub blkio_device_write_bps: Option<Vec<ThrottleDevice>>,
        #[serde(rename = "BlkioDeviceReadIOps")]
        pub blkio_device_read_iops: Option<Vec<ThrottleDevice>>,
        #[serde(rename = "BlkioDeviceWriteIOps")]
        pub blkio_device_write_iops: Option<Vec<ThrottleDevice>>,
        pub cpu_period: i64,
        pub cpu_quota: i64,
        pub cpu_realtime_period: i64,
        pub cpu_realtime_runtime: i64,
        pub cpuset_cpus: String,
        pub cpuset_mems: String,
        pub devices: Option<Vec<DeviceMapping>>,
        pub device_cgroup_rules: Option<Vec<String>>,
        pub device_requests: Option<Vec<DeviceRequest>>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub kernel_memory: i64,
        #[serde(rename = "KernelMemoryTCP", skip_serializing_if = "crate::types::omit")]
        pub kernel_memory_tcp: i64,
        pub memory_reservation: i64,
        pub memory_swap: i64,
        pub memory_swappiness: Option<i64>,
        pub oom_kill_disable: Option<bool>,
        pub pids_limit: Option<i64>,
        pub ulimits: Option<Vec<Ulimit>>,
        pub cpu_count: i64,
        pub cpu_percent: i64,
        #[serde(rename = "IOMaximumIOps")]
        pub io_maximum_iops: u64,
        #[serde(rename = "IOMaximumBandwidth")]
        pub io_maximum_bandwidth: u64,
    }

    pub struct WeightDevice {
        pub path: String,
        pub weight: u16,
    }

    pub struct ThrottleDevice {
        pub path: String,
        pub rate: u64,
    }

    pub struct DeviceMapping {
        pub path_on_host: String,
        pub path_in_container: String,
        pub cgroup_permissions: String,
    }

    pub struct DeviceRequest {
        pub driver: String,
        pub count: i64,
        #[serde(rename = "DeviceIDs")]
        pub device_ids: Option<Vec<String>>,
        pub capabilities: Option<Vec<Vec<String>>>,
        pub options: Option<StringMap>,
    }

    pub struct Ulimit {
        pub name: String,
        pub hard: i64,
        pub soft: i64,
    }

    pub struct LogConfig {
        #[serde(rename = "Type")]
        pub kind: String,
        pub config: Option<StringMap>,
    }

    pub struct RestartPolicy {
        pub name: String,
        pub maximum_retry_count: i64,
    }

    pub struct PortBinding {
        pub host_ip: String,
        pub host_port: String,
    }

    pub struct NetworkingConfig {
        pub endpoints_config: Option<BTreeMap<String, Option<EndpointSettings>>>,
    }

    pub struct EndpointSettings {
        #[serde(rename = "IPAMConfig")]
        pub ipam_config: Option<EndpointIpamConfig>,
        pub links: Option<Vec<String>>,
        pub aliases: Option<Vec<String>>,
        pub mac_address: String,
        pub driver_opts: Option<StringMap>,
        pub gw_priority: i64,
        #[serde(rename = "NetworkID")]
        pub network_id: String,
        #[serde(rename = "EndpointID")]
        pub endpoint_id: String,
        pub gateway: String,
        #[serde(rename = "IPAddress")]
        pub ip_address: String,
        #[serde(rename = "IPPrefixLen")]
        pub ip_prefix_len: u8,
        #[serde(rename = "IPv6Gateway")]
        pub ipv6_gateway: String,
        #[serde(rename = "GlobalIPv6Address")]
        pub global_ipv6_address: String,
        #[serde(rename = "GlobalIPv6PrefixLen")]
        pub global_ipv6_prefix_len: u8,
        #[serde(rename = "DNSNames")]
        pub dns_names: Option<Vec<String>>,
    }

    pub struct EndpointIpamConfig {
        #[serde(rename = "IPv4Address", skip_serializing_if = "crate::types::omit")]
        pub ipv4_address: String,
        #[serde(rename = "IPv6Address", skip_serializing_if = "crate::types::omit")]
        pub ipv6_address: String,
        #[serde(rename = "LinkLocalIPs", skip_serializing_if = "crate::types::omit")]
        pub link_local_ips: Vec<String>,
    }

    /// The reply to `POST /containers/create`.
    pub struct ContainerCreated {
        pub id: String,
        pub warnings: Vec<String>,
    }
}

docker! {
    /// The body of `POST /containers/{id}/update`.
    pub struct ContainerUpdateBody {
        flatten resources: HostResources,
        pub restart_policy: Option<RestartPolicy>,
    }
}

docker! {
    pub struct ContainerUpdated {
        pub warnings: Option<Vec<String>>,
    }

    /// The reply to `POST /containers/{id}/wait`.
    pub struct WaitBody {
        pub status_code: i64,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub error: Option<WaitError>,
    }

    pub struct WaitError {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub message: String,
    }

    /// The reply to `GET /containers/{id}/json`.
    pub struct ContainerInspect {
        pub id: String,
        pub created: String,
        pub path: String,
        pub args: Vec<String>,
        pub state: ContainerState,
        pub image: String,
        pub resolv_conf_path: String,
        pub hostname_path: String,
        pub hosts_path: String,
        pub log_path: String,
        pub name: String,
        pub restart_count: i64,
        pub driver: String,
        pub platform: String,
        pub mount_label: String,
        pub process_label: String,
        pub app_armor_profile: String,
        #[serde(rename = "ExecIDs")]
        pub exec_ids: Option<Vec<String>>,
        pub host_config: HostConfig,
        pub graph_driver: GraphDriver,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub size_rw: Option<i64>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub size_root_fs: Option<i64>,
        pub mounts: Vec<MountPoint>,
        pub config: ContainerConfig,
        pub network_settings: NetworkSettings,
    }

    pub struct ContainerState {
        pub status: String,
        pub running: bool,
        pub paused: bool,
        pub restarting: bool,
        #[serde(rename = "OOMKilled")]
        pub oom_killed: bool,
        pub dead: bool,
        pub pid: i64,
        pub exit_code: i64,
        pub error: String,
        pub started_at: String,
        pub finished_at: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub health: Option<Health>,
    }

    pub struct Health {
        pub status: String,
        pub failing_streak: i64,
        pub log: Option<Vec<HealthResult>>,
    }

    pub struct HealthResult {
        pub start: String,
        pub end: String,
        pub exit_code: i64,
        pub output: String,
    }

    pub struct GraphDriver {
        pub data: Option<StringMap>,
        pub name: String,
    }

    pub struct MountPoint {
        #[serde(rename = "Type", skip_serializing_if = "crate::types::omit")]
        pub kind: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub name: String,
        pub source: String,
        pub destination: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub driver: String,
        pub mode: String,
        #[serde(rename = "RW")]
        pub rw: bool,
        pub propagation: String,
    }

    pub struct NetworkSettings {
        pub bridge: String,
        #[serde(rename = "SandboxID")]
        pub sandbox_id: String,
        pub sandbox_key: String,
        pub ports: PortMap,
        pub hairpin_mode: bool,
        #[serde(rename = "LinkLocalIPv6Address")]
        pub link_local_ipv6_address: String,
        #[serde(rename = "LinkLocalIPv6PrefixLen")]
        pub link_local_ipv6_prefix_len: u8,
        #[serde(rename = "SecondaryIPAddresses")]
        pub secondary_ip_addresses: Option<Vec<Empty>>,
        #[serde(rename = "SecondaryIPv6Addresses")]
        pub secondary_ipv6_addresses: Option<Vec<Empty>>,
        #[serde(rename = "EndpointID")]
        pub endpoint_id: String,
        pub gateway: String,
        #[serde(rename = "GlobalIPv6Address")]
        pub global_ipv6_address: String,
        #[serde(rename = "GlobalIPv6PrefixLen")]
        pub global_ipv6_prefix_len: u8,
        #[serde(rename = "IPAddress")]
        pub ip_address: String,
        #[serde(rename = "IPPrefixLen")]
        pub ip_prefix_len: u8,
        #[serde(rename = "IPv6Gateway")]
        pub ipv6_gateway: String,
        pub mac_address: String,
        pub networks: BTreeMap<String, EndpointSettings>,
    }

    /// One row of `GET /containers/json`.
    pub struct ContainerSummary {
        pub id: String,
        pub names: Vec<String>,
        pub image: String,
        #[serde(rename = "ImageID")]
        pub image_id: String,
        pub command: String,
        pub created: i64,
        pub ports: Vec<Port>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub size_rw: i64,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub size_root_fs: i64,
        pub labels: StringMap,
        pub state: String,
        pub status: String,
        pub host_config: SummaryHostConfig,
        pub network_settings: SummaryNetworks,
        pub mounts: Vec<MountPoint>,
    }

    pub struct SummaryHostConfig {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub network_mode: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub annotations: StringMap,
    }

    pub struct SummaryNetworks {
        pub networks: BTreeMap<String, EndpointSettings>,
    }

    pub struct Port {
        #[serde(rename = "IP", skip_serializing_if = "crate::types::omit")]
        pub ip: String,
        pub private_port: u16,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub public_port: u16,
        #[serde(rename = "Type")]
        pub kind: String,
    }

    /// The reply to `GET /containers/{id}/top`.
    pub struct TopBody {
        pub titles: Vec<String>,
        pub processes: Vec<Vec<String>>,
    }

    pub struct ContainersPruned {
        pub containers_deleted: Option<Vec<String>>,
        pub space_reclaimed: u64,
    }
}
