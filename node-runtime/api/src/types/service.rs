//! Services: the spec, the object, and the replies.

use super::{Driver, Empty, HealthConfig, Mount, NodeResources, Platform, StringMap, Ulimit, Version};

docker! {
    /// The body of `POST /services/create` and `/services/{id}/update`.
    pub struct ServiceSpec {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub name: String,
        pub labels: Option<StringMap>,
        pub task_template: TaskSpec,
        pub mode: ServiceMode,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub update_config: Option<UpdateConfig>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub rollback_config: Option<UpdateConfig>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub networks: Vec<NetworkAttachmentConfig>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub endpoint_spec: Option<EndpointSpec>,
    }

    pub struct ServiceMode {
        // Go does not mind the case, and docker-py writes these as its users do.
        #[serde(alias = "replicated", skip_serializing_if = "crate::types::omit")]
        pub replicated: Option<ReplicatedService>,
        #[serde(alias = "global", skip_serializing_if = "crate::types::omit")]
        pub global: Option<Empty>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub replicated_job: Option<ReplicatedJob>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub global_job: Option<Empty>,
    }

    pub struct ReplicatedService {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub replicas: Option<u64>,
    }

    pub struct ReplicatedJob {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub max_concurrent: Option<u64>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub total_completions: Option<u64>,
    }

    // In lower case as a plain dictionary of docker-py's has them.
    pub struct UpdateConfig {
        #[serde(alias = "parallelism")]
        pub parallelism: u64,
        #[serde(alias = "delay", skip_serializing_if = "crate::types::omit")]
        pub delay: i64,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub failure_action: String,
        #[serde(alias = "monitor", skip_serializing_if = "crate::types::omit")]
        pub monitor: i64,
        #[serde(serialize_with = "as_go_writes")]
        pub max_failure_ratio: f32,
        #[serde(alias = "order")]
        pub order: String,
    }

    pub struct EndpointSpec {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub mode: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub ports: Vec<PortConfig>,
    }

    pub struct PortConfig {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub name: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub protocol: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub target_port: u32,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub published_port: u32,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub publish_mode: String,
    }

    pub struct NetworkAttachmentConfig {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub target: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub aliases: Vec<String>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub driver_opts: StringMap,
    }

    pub struct TaskSpec {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub container_spec: Option<ContainerSpec>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub plugin_spec: Option<Empty>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub network_attachment_spec: Option<Empty>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub resources: Option<ResourceRequirements>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub restart_policy: Option<ServiceRestartPolicy>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub placement: Option<Placement>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub networks: Vec<NetworkAttachmentConfig>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub log_driver: Option<Driver>,
        pub force_update: u64,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub runtime: String,
    }

    pub struct ContainerSpec {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub image: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub labels: StringMap,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub command: Vec<String>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub args: Vec<String>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub hostname: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub env: Vec<String>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub dir: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub user: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub groups: Vec<String>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub privileges: Option<Privileges>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub init: Option<bool>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub stop_signal: String,
        #[serde(rename = "TTY", skip_serializing_if = "crate::types::omit")]
        pub tty: bool,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub open_stdin: bool,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub read_only: bool,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub mounts: Vec<Mount>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub stop_grace_period: Option<i64>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub healthcheck: Option<HealthConfig>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub hosts: Vec<String>,
        #[serde(rename = "DNSConfig", skip_serializing_if = "crate::types::omit")]
        pub dns_config: Option<DnsConfig>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub secrets: Vec<SecretReference>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub configs: Vec<ConfigReferenceSpec>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub isolation: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub sysctls: StringMap,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub capability_add: Vec<String>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub capability_drop: Vec<String>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub ulimits: Vec<Ulimit>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub oom_score_adj: i32,
        /// Ours: the OCI runtime, by its name on the nodes.
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub runtime: String,
    }

    pub struct Privileges {
        pub credential_spec: Option<CredentialSpec>,
        #[serde(rename = "SELinuxContext")]
        pub selinux_context: Option<SelinuxContext>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub seccomp: Option<SeccompOpts>,
        #[serde(rename = "AppArmor", skip_serializing_if = "crate::types::omit")]
        pub apparmor: Option<AppArmorOpts>,
        pub no_new_privileges: bool,
    }

    pub struct CredentialSpec {
        pub config: String,
        pub file: String,
        pub registry: String,
    }

    pub struct SelinuxContext {
        pub disable: bool,
        pub user: String,
        pub role: String,
        #[serde(rename = "Type")]
        pub kind: String,
        pub level: String,
    }

    pub struct SeccompOpts {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub mode: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub profile: String,
    }

    pub struct AppArmorOpts {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub mode: String,
    }

    pub struct DnsConfig {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub nameservers: Vec<String>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub search: Vec<String>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub options: Vec<String>,
    }

    pub struct SecretReference {
        pub file: Option<FileTarget>,
        #[serde(rename = "SecretID")]
        pub secret_id: String,
        pub secret_name: String,
    }

    pub struct ConfigReferenceSpec {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub file: Option<FileTarget>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub runtime: Option<Empty>,
        #[serde(rename = "ConfigID")]
        pub config_id: String,
        pub config_name: String,
    }

    pub struct FileTarget {
        pub name: String,
        #[serde(rename = "UID")]
        pub uid: String,
        #[serde(rename = "GID")]
        pub gid: String,
        pub mode: u32,
    }

    pub struct ResourceRequirements {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub limits: Option<ResourceLimit>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub reservations: Option<NodeResources>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub swap_bytes: Option<i64>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub memory_swappiness: Option<i64>,
    }

    pub struct ResourceLimit {
        #[serde(rename = "NanoCPUs", skip_serializing_if = "crate::types::omit")]
        pub nano_cpus: i64,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub memory_bytes: i64,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub pids: i64,
    }

    pub struct ServiceRestartPolicy {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub condition: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub delay: Option<i64>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub max_attempts: Option<u64>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub window: Option<i64>,
    }

    pub struct Placement {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub constraints: Vec<String>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub preferences: Vec<PlacementPreference>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub max_replicas: u64,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub platforms: Vec<Platform>,
    }

    pub struct PlacementPreference {
        pub spread: Option<SpreadOver>,
    }

    pub struct SpreadOver {
        pub spread_descriptor: String,
    }

    /// The reply to `GET /services/{id}`, and one row of `GET /services`.
    pub struct Service {
        #[serde(rename = "ID")]
        pub id: String,
        pub version: Version,
        pub created_at: String,
        pub updated_at: String,
        pub spec: ServiceSpec,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub previous_spec: Option<ServiceSpec>,
        pub endpoint: Endpoint,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub update_status: Option<UpdateStatus>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub service_status: Option<ServiceStatus>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub job_status: Option<JobStatus>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub deployment: Option<Deployment>,
    }

    /// Ours: how far the service is on the way to its spec.
    pub struct Deployment {
        /// The update status' state; empty when there was no update.
        pub phase: String,
        /// Why it was paused or rolled back.
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub cause: String,
        /// Slots that have a task.
        pub total: u64,
        /// Those whose task is as the spec asks.
        pub updated: u64,
        /// Those whose such task runs.
        pub running: u64,
        /// Those in which one failed since the update began.
        pub failed: u64,
    }

    pub struct JobStatus {
        pub job_iteration: Version,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub last_execution: String,
    }

    pub struct Endpoint {
        pub spec: EndpointSpec,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub ports: Vec<PortConfig>,
        #[serde(rename = "VirtualIPs", skip_serializing_if = "crate::types::omit")]
        pub virtual_ips: Vec<VirtualIp>,
    }

    pub struct VirtualIp {
        #[serde(rename = "NetworkID", skip_serializing_if = "crate::types::omit")]
        pub network_id: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub addr: String,
    }

    pub struct UpdateStatus {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub state: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub started_at: Option<String>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub completed_at: Option<String>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub message: String,
    }

    pub struct ServiceStatus {
        pub running_tasks: u64,
        pub desired_tasks: u64,
        pub completed_tasks: u64,
    }

    pub struct ServiceCreated {
        #[serde(rename = "ID", skip_serializing_if = "crate::types::omit")]
        pub id: String,
        pub warnings: Option<Vec<String>>,
    }

    pub struct ServiceUpdated {
        pub warnings: Option<Vec<String>>,
    }

    /// The reply to `POST /services/create/forecast` and `/services/{id}/forecast`, which docker has not.
    pub struct ServiceForecast {
        pub spec: ServiceSpec,
        pub tasks: Vec<ForecastTask>,
        pub unchanged: u64,
        pub complete: bool,
    }

    pub struct ForecastTask {
        pub name: String,
        pub replaces: String,
        pub from_node: String,
        pub starts: bool,
        pub to_node: String,
        pub err: String,
    }

    /// The reply to `POST /secrets/create` and `/configs/create`.
    pub struct IdReply {
        #[serde(rename = "ID")]
        pub id: String,
    }

    /// One row of `GET /secrets` or `GET /configs`.
    pub struct Content {
        #[serde(rename = "ID")]
        pub id: String,
        pub version: Version,
        pub created_at: String,
        pub updated_at: String,
        pub spec: ContentSpec,
        /// Once it has had more than one; docker has not.
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub versions: Vec<ContentVersion>,
    }

    /// One version of a secret or config, and the names of the services that use it.
    pub struct ContentVersion {
        #[serde(rename = "ID")]
        pub id: String,
        pub number: u64,
        pub created_at: String,
        pub services: Vec<String>,
    }

    /// Of a secret or a config.
    pub struct ContentSpec {
        pub name: String,
        pub labels: Option<StringMap>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub data: String,
        /// Of secrets alone.
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub driver: Option<Driver>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub templating: Option<Driver>,
    }
}

/// A whole number without a fraction, as Go's encoder has it.
fn as_go_writes<S: serde::Serializer>(ratio: &f32, serializer: S) -> Result<S::Ok, S::Error> {
    if ratio.fract() == 0.0 {
        serializer.serialize_i64(*ratio as i64)
    } else {
        serializer.serialize_f32(*ratio)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_docker_py_writes_in_lower_case_is_read() {
        let mode: ServiceMode = serde_json::from_str(r#"{"global":{}}"#).expect("a mode");
        assert!(mode.global.is_some() && mode.replicated.is_none());
        let mode: ServiceMode = serde_json::from_str(r#"{"replicated":{"Replicas":5}}"#).expect("a mode");
        assert_eq!(mode.replicated.and_then(|replicated| replicated.replicas), Some(5));
        let update: UpdateConfig =
            serde_json::from_str(r#"{"order":"start-first"}"#).expect("a configuration");
        assert_eq!(update.order, "start-first");
    }
}
