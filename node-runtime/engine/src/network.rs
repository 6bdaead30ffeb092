//! Local networks: `bridge`, `host`, `none` and the bridges that users make.

use std::collections::BTreeMap;
use std::net::IpAddr;

use rswarm_base::Timestamp;
use rswarm_base::ipam::Subnet;
use serde::{Deserialize, Serialize};

/// A network to make.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkCreate {
    /// Its name.
    pub name: String,
    /// Its driver; empty is `bridge`.
    pub driver: String,
    /// No way out.
    pub internal: bool,
    /// Subnets; empty takes one from the pools.
    pub ipam: Vec<NetworkPool>,
    /// With IPv6.
    pub enable_ipv6: bool,
    /// Only meaningful in a cluster; kept for `inspect`.
    pub attachable: bool,
    /// Driver options, such as `com.docker.network.bridge.enable_icc`.
    pub options: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// One subnet of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkPool {
    /// The addresses; none takes one from the pools.
    pub subnet: Option<Subnet>,
    /// The gateway; none takes the first address.
    pub gateway: Option<IpAddr>,
    /// The part of the subnet that containers get addresses from.
    pub ip_range: Option<Subnet>,
}

/// A local network, or a cluster's as this node knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// 64 hexadecimal digits, or the cluster's 25 digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// `bridge`, `host`, `null` or `overlay`.
    pub driver: String,
    /// When it was made.
    pub created: Timestamp,
    /// Made by `swarm`: comes and goes with the tasks on this node.
    pub swarm: bool,
    /// No way out.
    pub internal: bool,
    /// With IPv6.
    pub enable_ipv6: bool,
    /// See [`NetworkCreate::attachable`].
    pub attachable: bool,
    /// Subnets with their gateways.
    pub ipam: Vec<NetworkPool>,
    /// Driver options.
    pub options: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// The host's interface; empty where there is none.
    pub interface: String,
}

/// A container on a network, as `network inspect` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkMember {
    /// The container.
    pub container_id: String,
    /// Its name.
    pub name: String,
    /// Its place on the network.
    pub endpoint: crate::container::Endpoint,
}
