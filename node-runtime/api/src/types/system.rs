//! `/version`, `/info` and their parts.

use std::collections::BTreeMap;

use super::{ClusterInfo, ContainerSummary, Empty, GenericResource, ImageSummary, StringMap, Volume};

docker! {
    /// The reply to `GET /version`.
    pub struct VersionBody {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub platform: VersionPlatform,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub components: Vec<Component>,
        pub version: String,
        pub api_version: String,
        #[serde(rename = "MinAPIVersion", skip_serializing_if = "crate::types::omit")]
        pub min_api_version: String,
        pub git_commit: String,
        pub go_version: String,
        pub os: String,
        pub arch: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub kernel_version: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub experimental: bool,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub build_time: String,
    }

    pub struct VersionPlatform {
        pub name: String,
    }

    pub struct Component {
        pub name: String,
        pub version: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub details: StringMap,
    }

    /// The reply to `GET /info`.
    pub struct InfoBody {
        #[serde(rename = "ID")]
        pub id: String,
        pub containers: i64,
        pub containers_running: i64,
        pub containers_paused: i64,
        pub containers_stopped: i64,
        pub images: i64,
        pub driver: String,
        pub driver_status: Vec<[String; 2]>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub system_status: Option<Vec<[String; 2]>>,
        pub plugins: PluginsInfo,
        pub memory_limit: bool,
        pub swap_limit: bool,
        pub cpu_cfs_period: bool,
        pub cpu_cfs_quota: bool,
        #[serde(rename = "CPUShares")]
        pub cpu_shares: bool,
        #[serde(rename = "CPUSet")]
        pub cpu_set: bool,
        pub pids_limit: bool,
        #[serde(rename = "IPv4Forwarding")]
        pub ipv4_forwarding: bool,
        pub debug: bool,
        pub n_fd: i64,
        pub oom_kill_disable: bool,
        pub n_goroutines: i64,
        pub system_time: String,
        pub logging_driver: String,
        pub cgroup_driver: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub cgroup_version: String,
        pub n_events_listener: i64,
        pub kernel_version: String,
        pub operating_system: String,
        #[serde(rename = "OSVersion")]
        pub os_version: String,
        #[serde(rename = "OSType")]
        pub os_type: String,
        pub architecture: String,
        pub index_server_address: String,
        pub registry_config: Option<RegistryServiceConfig>,
        #[serde(rename = "NCPU")]
        pub ncpu: i64,
        pub mem_total: i64,
        pub generic_resources: Option<Vec<GenericResource>>,
        pub docker_root_dir: String,
        pub http_proxy: String,
        pub https_proxy: String,
        pub no_proxy: String,
        pub name: String,
        pub labels: Vec<String>,
        pub experimental_build: bool,
        pub server_version: String,
        pub runtimes: BTreeMap<String, RuntimeInfo>,
        pub default_runtime: String,
        pub swarm: SwarmInfo,
        pub live_restore_enabled: bool,
        pub isolation: String,
        pub init_binary: String,
        pub containerd_commit: Commit,
        pub runc_commit: Commit,
        pub init_commit: Commit,
        pub security_options: Vec<String>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub product_license: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub default_address_pools: Vec<AddressPool>,
        #[serde(rename = "CDISpecDirs")]
        pub cdi_spec_dirs: Option<Vec<String>>,
        pub warnings: Option<Vec<String>>,
    }

    pub struct PluginsInfo {
        pub volume: Option<Vec<String>>,
        pub network: Option<Vec<String>>,
        pub authorization: Option<Vec<String>>,
        pub log: Option<Vec<String>>,
    }

    pub struct RegistryServiceConfig {
        #[serde(rename = "InsecureRegistryCIDRs")]
        pub insecure_registry_cidrs: Vec<String>,
        pub index_configs: BTreeMap<String, IndexInfo>,
        pub mirrors: Option<Vec<String>>,
    }

    pub struct IndexInfo {
        pub name: String,
        pub mirrors: Vec<String>,
        pub secure: bool,
        pub official: bool,
    }

    pub struct RuntimeInfo {
        #[serde(rename = "path", skip_serializing_if = "crate::types::omit")]
        pub path: String,
        #[serde(rename = "runtimeArgs", skip_serializing_if = "crate::types::omit")]
        pub runtime_args: Vec<String>,
        #[serde(rename = "status", skip_serializing_if = "crate::types::omit")]
        pub status: StringMap,
    }

    pub struct Commit {
        #[serde(rename = "ID")]
        pub id: String,
    }

    pub struct AddressPool {
        pub base: String,
        pub size: i64,
    }

    /// The cluster as this node sees it.
    pub struct SwarmInfo {
        #[serde(rename = "NodeID")]
        pub node_id: String,
        pub node_addr: String,
        pub local_node_state: String,
        pub control_available: bool,
        pub error: String,
        pub remote_managers: Option<Vec<RemoteManager>>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub nodes: i64,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub managers: i64,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub cluster: Option<ClusterInfo>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub warnings: Vec<String>,
    }

    pub struct RemoteManager {
        #[serde(rename = "NodeID")]
        pub node_id: String,
        pub addr: String,
    }

    /// The reply to `GET /system/df`.
    pub struct DiskUsage {
        pub layers_size: i64,
        pub images: Option<Vec<ImageSummary>>,
        pub containers: Option<Vec<ContainerSummary>>,
        pub volumes: Option<Vec<Volume>>,
        pub build_cache: Option<Vec<Empty>>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub builder_size: i64,
    }
}
