//! Swarm and nodes.

use super::{Driver, StringMap};

docker! {
    /// An object's version; an update must present it.
    pub struct Version {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub index: u64,
    }

    /// The cluster object, without its tokens.
    pub struct ClusterInfo {
        #[serde(rename = "ID")]
        pub id: String,
        pub version: Version,
        pub created_at: String,
        pub updated_at: String,
        pub spec: SwarmSpec,
        #[serde(rename = "TLSInfo")]
        pub tls_info: TlsInfo,
        pub root_rotation_in_progress: bool,
        pub default_addr_pool: Option<Vec<String>>,
        pub subnet_size: u32,
        pub data_path_port: u32,
    }
}

docker! {
    /// The reply to `GET /swarm`.
    pub struct SwarmInspect {
        flatten cluster: ClusterInfo,
        pub join_tokens: JoinTokens,
    }
}

docker! {
    pub struct JoinTokens {
        pub worker: String,
        pub manager: String,
    }

    pub struct TlsInfo {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub trust_root: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub cert_issuer_subject: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub cert_issuer_public_key: String,
    }

    pub struct SwarmSpec {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub name: String,
        pub labels: Option<StringMap>,
        pub orchestration: OrchestrationConfig,
        pub raft: RaftConfig,
        pub dispatcher: DispatcherConfig,
        #[serde(rename = "CAConfig")]
        pub ca_config: CaConfig,
        pub task_defaults: TaskDefaults,
        pub encryption_config: EncryptionConfig,
    }

    pub struct OrchestrationConfig {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub task_history_retention_limit: Option<i64>,
    }

    pub struct RaftConfig {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub snapshot_interval: u64,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub keep_old_snapshots: Option<u64>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub log_entries_for_slow_followers: u64,
        pub election_tick: i64,
        pub heartbeat_tick: i64,
    }

    pub struct DispatcherConfig {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub heartbeat_period: i64,
    }

    pub struct CaConfig {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub node_cert_expiry: i64,
        #[serde(rename = "ExternalCAs", skip_serializing_if = "crate::types::omit")]
        pub external_cas: Vec<ExternalCa>,
        #[serde(rename = "SigningCACert", skip_serializing_if = "crate::types::omit")]
        pub signing_ca_cert: String,
        #[serde(rename = "SigningCAKey", skip_serializing_if = "crate::types::omit")]
        pub signing_ca_key: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub force_rotate: u64,
    }

    pub struct ExternalCa {
        pub protocol: String,
        #[serde(rename = "URL")]
        pub url: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub options: Option<StringMap>,
        #[serde(rename = "CACert")]
        pub ca_cert: String,
    }

    pub struct TaskDefaults {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub log_driver: Option<Driver>,
    }

    pub struct EncryptionConfig {
        pub auto_lock_managers: bool,
        /// How long the keys of encrypted networks are used, in nanoseconds; 0 says nothing. Not Docker's.
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub tunnel_key_period: i64,
    }

    /// The body of `POST /swarm/init`.
    pub struct SwarmInitBody {
        pub listen_addr: String,
        pub advertise_addr: String,
        pub data_path_addr: String,
        pub data_path_port: u32,
        pub force_new_cluster: bool,
        pub spec: SwarmSpec,
        pub auto_lock_managers: bool,
        pub availability: String,
        pub default_addr_pool: Option<Vec<String>>,
        pub subnet_size: u32,
    }

    /// The body of `POST /swarm/join`.
    pub struct SwarmJoinBody {
        pub listen_addr: String,
        pub advertise_addr: String,
        pub data_path_addr: String,
        pub remote_addrs: Option<Vec<String>>,
        pub join_token: String,
        pub availability: String,
    }

    pub struct UnlockKeyBody {
        pub unlock_key: String,
    }

    /// The reply to `GET /nodes/{id}`, and one row of `GET /nodes`.
    pub struct Node {
        #[serde(rename = "ID")]
        pub id: String,
        pub version: Version,
        pub created_at: String,
        pub updated_at: String,
        pub spec: NodeSpec,
        pub description: NodeDescription,
        pub status: NodeStatus,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub manager_status: Option<ManagerStatus>,
    }

    pub struct NodeSpec {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub name: String,
        pub labels: Option<StringMap>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub role: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub availability: String,
    }

    pub struct NodeDescription {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub hostname: String,
        pub platform: Platform,
        pub resources: NodeResources,
        pub engine: EngineDescription,
        #[serde(rename = "TLSInfo")]
        pub tls_info: TlsInfo,
    }

    pub struct Platform {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub architecture: String,
        #[serde(rename = "OS", skip_serializing_if = "crate::types::omit")]
        pub os: String,
    }

    pub struct NodeResources {
        #[serde(rename = "NanoCPUs", skip_serializing_if = "crate::types::omit")]
        pub nano_cpus: i64,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub memory_bytes: i64,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub generic_resources: Option<Vec<GenericResource>>,
    }

    pub struct GenericResource {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub named_resource_spec: Option<NamedGenericResource>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub discrete_resource_spec: Option<DiscreteGenericResource>,
    }

    pub struct NamedGenericResource {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub kind: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub value: String,
    }

    pub struct DiscreteGenericResource {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub kind: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub value: i64,
    }

    pub struct EngineDescription {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub engine_version: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub labels: StringMap,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub plugins: Vec<PluginDescription>,
    }

    pub struct PluginDescription {
        #[serde(rename = "Type", skip_serializing_if = "crate::types::omit")]
        pub kind: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub name: String,
    }

    pub struct NodeStatus {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub state: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub message: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub addr: String,
    }

    pub struct ManagerStatus {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub leader: bool,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub reachability: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub addr: String,
    }
}
