//! The first moment of a cluster: its root, its tokens, its first node, which certifies itself.

use std::sync::Arc;
use std::time::Duration;

use rswarm_base::id::cluster_id;
use rswarm_base::{Classify, Kind, Timestamp};
use rswarm_proto::tls::{
    Authority, AuthorityError, CERTIFICATE_LIFETIME, Credentials, Identity, IdentityError, Subject,
    UnlockKey, new_key, signing_request,
};
use rswarm_proto::token::JoinToken;
use rswarm_proto::wire::{
    Annotations, Cluster, ClusterSpec, Node, NodeAvailability, NodeDescription, NodeRole, NodeSpec, RootCa,
};

use crate::config::Founding;

/// Where overlay networks get their subnets from when nobody says otherwise (Docker's value).
pub const ADDRESS_POOL: &str = "10.0.0.0/8";
/// Prefix length of those subnets (Docker's value).
pub const SUBNET_SIZE: u32 = 24;
/// UDP port of VXLAN traffic (Docker's value).
pub const DATA_PATH_PORT: u32 = 4789;

const HEARTBEAT_PERIOD: Duration = Duration::from_secs(1);
const TASK_HISTORY: i64 = 5;
const SNAPSHOT_INTERVAL: u64 = 10_000;
const SLOW_FOLLOWER_ENTRIES: u64 = 500;
const HEARTBEAT_TICK: u32 = 2;
const ELECTION_TICK: u32 = 10;

/// What a user can say about a new cluster. Zero and empty values get their defaults.
#[derive(Debug, Clone, Default)]
pub struct NewCluster {
    /// Its settings.
    pub spec: ClusterSpec,
    /// Pools for overlay subnets.
    pub address_pools: Vec<String>,
    /// Prefix length of overlay subnets.
    pub subnet_size: u32,
    /// UDP port of VXLAN traffic.
    pub data_path_port: u32,
    /// Host name of the first node.
    pub hostname: String,
    /// Whether the first node takes tasks.
    pub availability: NodeAvailability,
}

/// Makes a cluster's root, its join tokens, its first node and that node's identity. Nothing is stored yet:
/// save the identity, then start a manager with [`Boot::Bootstrap`](crate::Boot::Bootstrap).
///
/// # Errors
/// Only when no key can be made.
pub fn found(request: NewCluster, now: Timestamp) -> Result<(Founding, Arc<Identity>), FoundError> {
    let authority = Authority::generate(now)?;
    let subject = Subject { node_id: cluster_id(), role: NodeRole::Manager, cluster_id: cluster_id() };
    let spec = with_defaults(request.spec);
    let lifetime = certificate_lifetime(&spec);
    let key_pem = new_key()?;
    let chain_pem = authority.issue(&signing_request(&key_pem)?, &subject, lifetime, now)?;
    let root_pem = authority.certificate_pem().to_owned();
    let identity = Identity::new(Credentials { key_pem, chain_pem, root_pem })?;
    let or = |value: u32, default: u32| if value == 0 { default } else { value };
    let unlock_key = if spec.auto_lock { UnlockKey::generate().to_bytes() } else { Vec::new() };
    let pools = request.address_pools;
    let cluster = Cluster {
        id: subject.cluster_id,
        root_ca: Some(RootCa { last_forced_rotation: spec.force_rotate, ..root_ca(&authority) }),
        spec: Some(spec),
        default_address_pool: if pools.is_empty() { vec![ADDRESS_POOL.to_owned()] } else { pools },
        subnet_size: or(request.subnet_size, SUBNET_SIZE),
        data_path_port: or(request.data_path_port, DATA_PATH_PORT),
        unlock_key,
        ..Cluster::default()
    };
    let node = new_node(subject.node_id, NodeRole::Manager, request.availability, request.hostname);
    Ok((Founding { cluster, node }, identity))
}

/// A node as it is stored when its first certificate is issued.
pub(crate) fn new_node(id: String, role: NodeRole, availability: NodeAvailability, hostname: String) -> Node {
    Node {
        id,
        spec: Some(NodeSpec {
            annotations: Some(Annotations::default()),
            desired_role: role.into(),
            availability: availability.into(),
        }),
        description: Some(NodeDescription { hostname, ..NodeDescription::default() }),
        role: role.into(),
        ..Node::default()
    }
}

/// How long the cluster's node certificates live.
pub(crate) fn certificate_lifetime(spec: &ClusterSpec) -> Duration {
    match u64::try_from(spec.node_cert_expiry) {
        Ok(ns) if ns > 0 => Duration::from_nanos(ns),
        _ => CERTIFICATE_LIFETIME,
    }
}

fn root_ca(authority: &Authority) -> RootCa {
    RootCa {
        certificate_pem: authority.certificate_pem().to_owned(),
        key_pem: authority.key_pem().as_bytes().to_vec(),
        digest: authority.digest().to_string(),
        worker_token: JoinToken::generate(authority.digest()).to_string(),
        manager_token: JoinToken::generate(authority.digest()).to_string(),
        rotation: None,
        last_forced_rotation: 0,
    }
}

fn with_defaults(mut spec: ClusterSpec) -> ClusterSpec {
    fn fill<T: Default + PartialEq>(field: &mut T, default: T) {
        if *field == T::default() {
            *field = default;
        }
    }
    let nanos = |duration: Duration| i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
    spec.annotations.get_or_insert_default().name = "default".to_owned();
    fill(&mut spec.task_history_limit, TASK_HISTORY);
    fill(&mut spec.snapshot_interval, SNAPSHOT_INTERVAL);
    fill(&mut spec.log_entries_for_slow_followers, SLOW_FOLLOWER_ENTRIES);
    fill(&mut spec.heartbeat_tick, HEARTBEAT_TICK);
    fill(&mut spec.election_tick, ELECTION_TICK);
    fill(&mut spec.heartbeat_period, nanos(HEARTBEAT_PERIOD));
    fill(&mut spec.node_cert_expiry, nanos(CERTIFICATE_LIFETIME));
    spec
}

/// Why there is no new cluster.
#[derive(Debug, thiserror::Error)]
pub enum FoundError {
    /// The root or the first certificate could not be made.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The first certificate cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl Classify for FoundError {
    fn kind(&self) -> Kind {
        Kind::Internal
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_cluster_has_dockers_defaults_and_keeps_what_was_asked() {
        let asked = NewCluster {
            spec: ClusterSpec { task_history_limit: 3, ..ClusterSpec::default() },
            subnet_size: 26,
            ..NewCluster::default()
        };
        let (founding, identity) = found(asked, Timestamp::now()).expect("cluster");
        let cluster = founding.cluster;
        let spec = cluster.spec.expect("spec");
        assert_eq!((spec.task_history_limit, spec.snapshot_interval), (3, 10_000));
        assert_eq!(spec.annotations.expect("name").name, "default");
        assert_eq!((cluster.subnet_size, cluster.data_path_port), (26, 4789));
        assert_eq!(cluster.default_address_pool, ["10.0.0.0/8"]);
        let subject = identity.subject();
        assert_eq!((subject.cluster_id, subject.node_id), (cluster.id, founding.node.id));
        assert_eq!(subject.role, NodeRole::Manager);
    }

    #[test]
    fn the_two_tokens_of_a_cluster_pin_the_same_root_and_differ() {
        let (founding, _) = found(NewCluster::default(), Timestamp::now()).expect("cluster");
        let root = founding.cluster.root_ca.expect("root");
        let (worker, manager) = (JoinToken::parse(&root.worker_token), JoinToken::parse(&root.manager_token));
        let (worker, manager) = (worker.expect("valid"), manager.expect("valid"));
        assert_eq!(worker.root_digest, manager.root_digest);
        assert_eq!(worker.root_digest.to_string(), root.digest);
        assert!(!worker.matches(&manager));
    }
}
