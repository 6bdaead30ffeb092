//! Tasks.

use super::{Driver, Empty, GenericResource, IpamConfig, PortConfig, StringMap, TaskSpec, Version};

docker! {
    /// The reply to `GET /tasks/{id}`, and one row of `GET /tasks`.
    pub struct Task {
        #[serde(rename = "ID")]
        pub id: String,
        pub version: Version,
        pub created_at: String,
        pub updated_at: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub name: String,
        pub labels: Option<StringMap>,
        pub spec: TaskSpec,
        #[serde(rename = "ServiceID", skip_serializing_if = "crate::types::omit")]
        pub service_id: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub slot: u64,
        #[serde(rename = "NodeID", skip_serializing_if = "crate::types::omit")]
        pub node_id: String,
        pub status: TaskStatus,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub desired_state: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub networks_attachments: Vec<NetworkAttachment>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub generic_resources: Vec<GenericResource>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub job_iteration: Option<Version>,
        pub volumes: Option<Vec<Empty>>,
    }

    pub struct TaskStatus {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub timestamp: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub state: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub message: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub err: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub container_status: Option<ContainerStatus>,
        pub port_status: PortStatus,
    }

    pub struct ContainerStatus {
        #[serde(rename = "ContainerID")]
        pub container_id: String,
        #[serde(rename = "PID")]
        pub pid: i64,
        pub exit_code: i64,
    }

    pub struct PortStatus {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub ports: Vec<PortConfig>,
    }

    pub struct NetworkAttachment {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub network: AttachedNetwork,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub addresses: Vec<String>,
    }

    /// The cluster's network object, as tasks show it.
    pub struct AttachedNetwork {
        #[serde(rename = "ID")]
        pub id: String,
        pub version: Version,
        pub created_at: String,
        pub updated_at: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub spec: AttachedNetworkSpec,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub driver_state: Driver,
        #[serde(rename = "IPAMOptions", skip_serializing_if = "crate::types::omit")]
        pub ipam_options: Option<IpamOptions>,
    }

    pub struct AttachedNetworkSpec {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub name: String,
        pub labels: Option<StringMap>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub driver_configuration: Option<Driver>,
        #[serde(rename = "IPv6Enabled", skip_serializing_if = "crate::types::omit")]
        pub ipv6_enabled: bool,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub internal: bool,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub attachable: bool,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub ingress: bool,
        #[serde(rename = "IPAMOptions", skip_serializing_if = "crate::types::omit")]
        pub ipam_options: Option<IpamOptions>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub scope: String,
    }

    pub struct IpamOptions {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub driver: Driver,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub configs: Vec<IpamConfig>,
    }
}
