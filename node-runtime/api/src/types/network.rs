//! Networks.

use std::collections::BTreeMap;

use super::{EndpointSettings, StringMap};

docker! {
    /// The body of `POST /networks/create`.
    pub struct NetworkCreateBody {
        pub name: String,
        pub driver: String,
        pub scope: String,
        #[serde(rename = "EnableIPv4", skip_serializing_if = "crate::types::omit")]
        pub enable_ipv4: Option<bool>,
        #[serde(rename = "EnableIPv6", skip_serializing_if = "crate::types::omit")]
        pub enable_ipv6: Option<bool>,
        #[serde(rename = "IPAM")]
        pub ipam: Option<Ipam>,
        pub internal: bool,
        pub attachable: bool,
        pub ingress: bool,
        pub config_only: bool,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub config_from: Option<ConfigReference>,
        pub options: Option<StringMap>,
        pub labels: Option<StringMap>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub check_duplicate: Option<bool>,
    }

    pub struct Ipam {
        pub driver: String,
        pub options: Option<StringMap>,
        pub config: Option<Vec<IpamConfig>>,
    }

    pub struct IpamConfig {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub subnet: String,
        #[serde(rename = "IPRange", skip_serializing_if = "crate::types::omit")]
        pub ip_range: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub gateway: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub auxiliary_addresses: StringMap,
    }

    pub struct ConfigReference {
        pub network: String,
    }

    pub struct NetworkCreated {
        pub id: String,
        pub warning: String,
    }

    /// The reply to `GET /networks/{id}`, and one row of `GET /networks`.
    pub struct NetworkInspect {
        pub name: String,
        pub id: String,
        pub created: String,
        pub scope: String,
        pub driver: String,
        #[serde(rename = "EnableIPv4")]
        pub enable_ipv4: bool,
        #[serde(rename = "EnableIPv6")]
        pub enable_ipv6: bool,
        #[serde(rename = "IPAM")]
        pub ipam: Ipam,
        pub internal: bool,
        pub attachable: bool,
        pub ingress: bool,
        pub config_from: ConfigReference,
        pub config_only: bool,
        pub containers: Option<BTreeMap<String, NetworkContainer>>,
        pub options: Option<StringMap>,
        pub labels: Option<StringMap>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub peers: Vec<PeerInfo>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub services: BTreeMap<String, NetworkServiceInfo>,
    }

    pub struct NetworkContainer {
        pub name: String,
        #[serde(rename = "EndpointID")]
        pub endpoint_id: String,
        pub mac_address: String,
        #[serde(rename = "IPv4Address")]
        pub ipv4_address: String,
        #[serde(rename = "IPv6Address")]
        pub ipv6_address: String,
    }

    pub struct PeerInfo {
        pub name: String,
        #[serde(rename = "IP")]
        pub ip: String,
        /// Ours: the version of the network's endpoint table in the node's kernel. One that stays behind the others
        /// says whose node lags.
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub table_version: u64,
        /// Ours: how the answering node's traffic of an encrypted network gets there.
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub tunnel: Option<TunnelInfo>,
    }

    /// A node as the WireGuard device of another one sees it.
    pub struct TunnelInfo {
        /// Where packets to it go.
        pub endpoint: String,
        /// How long ago the session began that they go by; absent when there is none.
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub handshake_seconds: Option<u64>,
        /// Whether that session has the newest keys.
        pub is_current: bool,
    }

    pub struct NetworkServiceInfo {
        #[serde(rename = "VIP")]
        pub vip: String,
        pub ports: Vec<String>,
        #[serde(rename = "LocalLBIndex")]
        pub local_lb_index: i64,
        pub tasks: Vec<NetworkServiceTask>,
    }

    pub struct NetworkServiceTask {
        pub name: String,
        #[serde(rename = "EndpointID")]
        pub endpoint_id: String,
        #[serde(rename = "EndpointIP")]
        pub endpoint_ip: String,
        pub info: StringMap,
    }

    /// Ours: the answer to `GET /networks/{id}/check`.
    pub struct NetworkCheck {
        pub id: String,
        pub name: String,
        /// Whether this node holds anything of the network; else nothing was looked at.
        pub present: bool,
        pub findings: Vec<NetworkFinding>,
    }

    pub struct NetworkFinding {
        pub subject: String,
        pub found: String,
        /// What to do about it; empty when all is well.
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub remedy: String,
    }

    /// Ours: the answer to `POST /networks/audit`.
    pub struct NetworkAudit {
        pub ports: Vec<AuditPort>,
        /// Names of containers that use this host's own network.
        pub host_network: Vec<String>,
        pub filters: Vec<AuditFilter>,
        /// Tables of iptables-legacy, such as `ip filter`, whose rules cannot be told.
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub legacy_tables: Vec<String>,
    }

    pub struct AuditPort {
        #[serde(rename = "HostIP")]
        pub host_ip: String,
        pub host_port: u16,
        pub protocol: String,
        /// `anywhere`, `this host`, or the address that it is reached at.
        pub from: String,
        /// The container's name; empty for a port of the routing mesh.
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub container: String,
        /// The service whose tasks every node leads to.
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub service: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub network: String,
        /// `ADDRESS:PORT` that this host sends it to.
        pub target: String,
    }

    /// A chain of somebody else, which packets pass besides ours.
    pub struct AuditFilter {
        pub family: String,
        pub table: String,
        pub chain: String,
        /// `input` or `forward`.
        pub hook: String,
        /// `accept` or `drop`.
        pub policy: String,
    }

    pub struct NetworkConnectBody {
        pub container: String,
        pub endpoint_config: Option<EndpointSettings>,
    }

    pub struct NetworkDisconnectBody {
        pub container: String,
        pub force: bool,
    }

    pub struct NetworksPruned {
        pub networks_deleted: Option<Vec<String>>,
    }
}
