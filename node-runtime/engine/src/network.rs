//! Local networks: `bridge`, `host`, `none` and the bridges that users make; and the cluster's overlays, as far
//! as containers here are on them. This module knows the networks; `rswarm_network` makes them.

mod drivers;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rswarm_base::ipam::{Family, Subnet};
use rswarm_base::{Chain, Timestamp, fsx};
use rswarm_network::{DEFAULT_BRIDGE, DefaultBridge, Networks, Overlay};
use serde::{Deserialize, Serialize};

use crate::blocking::blocking;
use crate::error::{Cause, FileError, NetworkError};

/// A network to make.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkCreate {
    /// Its name.
    pub name: String,
    /// Its driver; empty is `bridge`.
    pub driver: String,
    /// No way out.
    pub internal: bool,
    /// Subnets; families without one take it from the pools.
    pub ipam: Vec<NetworkPool>,
    /// With IPv6.
    pub enable_ipv6: bool,
    /// Without IPv4.
    pub without_ipv4: bool,
    /// Only meaningful in a cluster; kept for `inspect`.
    pub attachable: bool,
    /// Driver options, such as `com.docker.network.bridge.enable_icc`.
    pub options: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Nothing but words for other networks: no container can be on it.
    pub config_only: bool,
    /// The network whose words these are; empty for one that has its own.
    pub config_from: String,
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
    /// Addresses that no container gets, by name.
    #[serde(default)]
    pub auxiliary: BTreeMap<String, IpAddr>,
}

impl NetworkPool {
    /// The family that it is of; where nothing says, IPv4.
    fn family(&self) -> Family {
        let gateway = self.gateway.map(Family::of);
        let range = self.ip_range.map(Subnet::family);
        self.subnet.map(Subnet::family).or(gateway).or(range).unwrap_or(Family::V4)
    }
}

/// What users see of a cluster's network, and its kernel objects do not need.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OverlayFacts {
    /// When the cluster made it.
    pub created: Timestamp,
    /// Containers that no service made may be on it.
    pub attachable: bool,
    /// It is the routing mesh's.
    pub ingress: bool,
    /// Driver options.
    pub options: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// A cluster's network that each node makes on its own links, by the words of a network of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ByWords {
    /// The cluster's identifier.
    pub id: String,
    /// Its name.
    pub name: String,
    /// `macvlan` or `ipvlan`.
    pub driver: String,
    /// The network whose words these are.
    pub config_from: String,
    /// No way out.
    pub internal: bool,
    /// What users see of it.
    pub facts: OverlayFacts,
}

/// A local network, or a cluster's as this node knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// 64 hexadecimal digits, or the cluster's 25 digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// `bridge`, `host`, `null`, `macvlan`, `ipvlan` or `overlay`.
    pub driver: String,
    /// When it was made.
    pub created: Timestamp,
    /// Made by `swarm`: comes and goes with the tasks on this node.
    pub swarm: bool,
    /// No way out.
    pub internal: bool,
    /// With IPv6.
    pub enable_ipv6: bool,
    /// Without IPv4.
    #[serde(default)]
    pub without_ipv4: bool,
    /// See [`NetworkCreate::attachable`].
    pub attachable: bool,
    /// The routing mesh's.
    #[serde(default)]
    pub ingress: bool,
    /// Subnets with their gateways.
    pub ipam: Vec<NetworkPool>,
    /// Driver options.
    pub options: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// The host's interface; empty where there is none.
    pub interface: String,
    /// See [`NetworkCreate::config_only`].
    #[serde(default)]
    pub config_only: bool,
    /// See [`NetworkCreate::config_from`].
    #[serde(default)]
    pub config_from: String,
}

impl Network {
    /// What `rswarm_network` calls it.
    pub(crate) fn kernel_id(&self) -> &str {
        if self.is_default_bridge() { DEFAULT_BRIDGE } else { &self.id }
    }

    /// The `bridge` network, where containers are not found by name.
    pub(crate) fn is_default_bridge(&self) -> bool {
        is_default(&self.name) && self.driver == "bridge"
    }

    /// Whether containers on it find each other by name.
    pub(crate) fn has_names(&self) -> bool {
        !self.is_default_bridge()
            && matches!(self.driver.as_str(), "bridge" | "macvlan" | "ipvlan" | "overlay")
    }

    /// Whether endpoints on it have an address of the family.
    pub(crate) fn has(&self, family: Family) -> bool {
        self.ipam.iter().any(|pool| pool.subnet.is_some_and(|subnet| subnet.family() == family))
    }

    /// Whether the cluster tells all of it, each time that the daemon starts.
    fn is_told(&self) -> bool {
        self.swarm && self.config_from.is_empty()
    }

    fn is_predefined(&self) -> bool {
        PREDEFINED.iter().any(|(name, _)| *name == self.name)
    }

    fn new(name: &str, driver: &str) -> Network {
        Network {
            id: rswarm_base::id::engine_id(),
            name: name.to_owned(),
            driver: driver.to_owned(),
            created: Timestamp::now(),
            swarm: false,
            internal: false,
            enable_ipv6: false,
            without_ipv4: false,
            attachable: false,
            ingress: false,
            ipam: Vec::new(),
            options: BTreeMap::new(),
            labels: BTreeMap::new(),
            interface: String::new(),
            config_only: false,
            config_from: String::new(),
        }
    }
}

/// The networks that a container is on by name alone: no interface leads there.
pub(crate) fn is_bare(name: &str) -> bool {
    matches!(name, "host" | "none")
}

/// Whether that is the name of the default bridge.
pub(crate) fn is_default(name: &str) -> bool {
    name == DEFAULT_BRIDGE
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

/// Networks that are always there, and their drivers.
const PREDEFINED: [(&str, &str); 3] = [("bridge", "bridge"), ("host", "host"), ("none", "null")];

/// `networks.json`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Stored {
    version: u32,
    networks: Vec<Network>,
}

const VERSION: u32 = 1;

/// All networks of an engine. Cloning gives another handle.
#[derive(Debug, Clone)]
pub(crate) struct LocalNetworks {
    path: Arc<PathBuf>,
    networks: Networks,
    table: Arc<Mutex<Table>>,
    /// Held while the file is written, so that the last write has the last state.
    writing: Arc<Mutex<()>>,
}

#[derive(Debug, Default)]
struct Table {
    networks: BTreeMap<String, Arc<Network>>,
    /// Names whose bridge is being made.
    pending: BTreeSet<String>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LocalNetworks {
    /// Reads what is stored and has every bridge made or taken over. `bridge` is the default bridge, if there is one. One that cannot be is left out with a
    /// warning: its containers say so when they start.
    pub(crate) async fn open(
        path: PathBuf,
        networks: Networks,
        bridge: Option<&DefaultBridge>,
    ) -> Result<LocalNetworks, FileError> {
        let stored: Stored = fsx::read_json(&path).map_err(FileError::read(&path))?.unwrap_or_default();
        let mut table = Table::default();
        for network in stored.networks {
            table.networks.insert(network.id.clone(), Arc::new(network));
        }
        for (name, driver) in PREDEFINED {
            let known = table.networks.values().any(|network| network.name == name);
            if !known && (bridge.is_some() || name != DEFAULT_BRIDGE) {
                let network = Network::new(name, driver);
                table.networks.insert(network.id.clone(), Arc::new(network));
            }
        }
        if bridge.is_none() {
            table.networks.retain(|_, network| !network.is_default_bridge());
        }
        let local =
            LocalNetworks { path: Arc::new(path), networks, table: Arc::default(), writing: Arc::default() };
        for network in table.networks.values_mut() {
            local.restore(network).await;
            if let Some(bridge) = bridge.filter(|_| network.is_default_bridge()) {
                let options = default_options(bridge, &network.interface);
                Arc::make_mut(network).options = options;
            }
        }
        *lock(&local.table) = table;
        local.persist().await?;
        Ok(local)
    }

    async fn restore(&self, network: &mut Arc<Network>) {
        if network.is_default_bridge() {
            if let Some(info) = self.networks.bridge(DEFAULT_BRIDGE) {
                take_info(Arc::make_mut(network), &info.interface, &info.subnets);
            }
            return;
        }
        if network.is_predefined() || network.config_only {
            return;
        }
        if let Err(error) = self.bring_about(Arc::make_mut(network)).await {
            tracing::warn!(network = network.name, error = %Chain(&error), "network was not restored");
        }
    }

    /// Has the kernel hold what the network needs, and takes note of what was chosen for it.
    async fn bring_about(&self, network: &mut Network) -> Result<(), NetworkError> {
        match network.driver.as_str() {
            "macvlan" | "ipvlan" => {
                let spec = drivers::lan_spec(network).map_err(NetworkError::Invalid)?;
                let info = self.networks.create_lan(spec).await.map_err(Cause::new)?;
                network.internal = info.internal;
                take_info(network, &info.parent, &info.subnets);
            }
            _ => {
                let spec = drivers::bridge_spec(network).map_err(NetworkError::Invalid)?;
                let info = self.networks.create_bridge(spec).await.map_err(Cause::new)?;
                take_info(network, &info.interface, &info.subnets);
            }
        }
        Ok(())
    }

    async fn persist(&self) -> Result<(), FileError> {
        let local = self.clone();
        let write = move || {
            let _writing = lock(&local.writing);
            let networks = lock(&local.table)
                .networks
                .values()
                .filter(|n| !n.is_told())
                .map(|n| (**n).clone())
                .collect();
            fsx::write_json(&local.path, &Stored { version: VERSION, networks })
                .map_err(FileError::write(&local.path))
        };
        blocking(write).await
    }

    /// Makes a network of this host.
    pub(crate) async fn create(&self, request: NetworkCreate) -> Result<Arc<Network>, NetworkError> {
        check(&request)?;
        {
            let mut table = lock(&self.table);
            let taken = table.networks.values().any(|network| network.name == request.name);
            if taken || !table.pending.insert(request.name.clone()) {
                return Err(NetworkError::Exists(request.name));
            }
        }
        let name = request.name.clone();
        let made = self.make(request).await;
        {
            let mut table = lock(&self.table);
            table.pending.remove(&name);
            if let Ok(network) = &made {
                table.networks.insert(network.id.clone(), network.clone());
            }
        }
        let network = made?;
        if let Err(error) = self.persist().await {
            lock(&self.table).networks.remove(&network.id);
            if let Err(error) = self.networks.remove_local(&network.id).await {
                tracing::warn!(network = name, error = %Chain(&error), "a network's interface stays behind");
            }
            return Err(error.into());
        }
        Ok(network)
    }

    async fn make(&self, request: NetworkCreate) -> Result<Arc<Network>, NetworkError> {
        let driver = if request.driver.is_empty() { "bridge" } else { &request.driver };
        // Docker calls it so: there is nothing in the kernel.
        let driver = if request.config_only { "null" } else { driver };
        let mut network = Network::new(&request.name, driver);
        network.internal = request.internal;
        network.attachable = request.attachable;
        network.enable_ipv6 = request.enable_ipv6;
        network.without_ipv4 = request.without_ipv4;
        network.ipam = request.ipam;
        network.options = request.options;
        network.labels = request.labels;
        network.config_only = request.config_only;
        if !request.config_from.is_empty() {
            self.take_words(&mut network, &request.config_from)?;
        }
        if !network.config_only {
            self.bring_about(&mut network).await?;
        }
        Ok(Arc::new(network))
    }

    fn take_words(&self, network: &mut Network, from: &str) -> Result<(), NetworkError> {
        let config = self.config(from)?;
        network.enable_ipv6 = config.enable_ipv6;
        network.without_ipv4 = config.without_ipv4;
        network.ipam.clone_from(&config.ipam);
        network.options.clone_from(&config.options);
        network.labels.clone_from(&config.labels);
        network.config_from.clone_from(&config.name);
        Ok(())
    }

    /// Makes a cluster's network here, if it is not. It is stored like this host's own: its containers are on it
    /// before a daemon that starts hears of the cluster.
    pub(crate) async fn apply_by_words(&self, wanted: ByWords) -> Result<(), NetworkError> {
        if lock(&self.table).networks.contains_key(&wanted.id) {
            return Ok(());
        }
        let mut network = Network::new(&wanted.name, &wanted.driver);
        self.take_words(&mut network, &wanted.config_from)?;
        network.id = wanted.id;
        network.swarm = true;
        network.internal = wanted.internal;
        network.attachable = wanted.facts.attachable;
        network.created = wanted.facts.created;
        self.bring_about(&mut network).await?;
        lock(&self.table).networks.insert(network.id.clone(), Arc::new(network));
        Ok(self.persist().await?)
    }

    /// The cluster's networks that this node made.
    pub(crate) fn held_by_words(&self) -> Vec<String> {
        let made = |network: &&Arc<Network>| network.swarm && !network.is_told();
        lock(&self.table).networks.values().filter(made).map(|network| network.id.clone()).collect()
    }

    /// Removes one of them.
    pub(crate) async fn remove_by_words(&self, network_id: &str) -> Result<(), NetworkError> {
        self.networks.remove_local(network_id).await.map_err(Cause::new)?;
        lock(&self.table).networks.remove(network_id);
        Ok(self.persist().await?)
    }

    /// A network that is there for its words.
    fn config(&self, name: &str) -> Result<Arc<Network>, NetworkError> {
        let found = self.find(name).ok().filter(|network| network.config_only);
        // As Docker says it.
        found.ok_or_else(|| NetworkError::Missing(format!("configuration network \"{name}\" does not exist")))
    }

    /// Removes a network that nobody is on.
    pub(crate) async fn remove(
        &self,
        reference: &str,
        users: &[String],
    ) -> Result<Arc<Network>, NetworkError> {
        let network = self.find(reference)?;
        if network.is_predefined() {
            return Err(NetworkError::Predefined(network.name.clone(), "removed"));
        }
        if !users.is_empty() {
            return Err(NetworkError::InUse { name: network.name.clone(), users: users.join(", ") });
        }
        if network.swarm {
            return Err(NetworkError::Forbidden(format!("network {} belongs to the cluster", network.name)));
        }
        if network.config_only && self.list().iter().any(|other| other.config_from == network.name) {
            let reason = format!("configuration network \"{}\" is in use", network.name);
            return Err(NetworkError::Forbidden(reason));
        }
        self.networks.remove_local(&network.id).await.map_err(Cause::new)?;
        lock(&self.table).networks.remove(&network.id);
        self.persist().await?;
        Ok(network)
    }

    /// By full identifier, else by name, else by unique prefix of the identifier.
    pub(crate) fn find(&self, reference: &str) -> Result<Arc<Network>, NetworkError> {
        let table = lock(&self.table);
        if let Some(network) = table.networks.get(reference) {
            return Ok(network.clone());
        }
        if let Some(network) = table.networks.values().find(|network| network.name == reference) {
            return Ok(network.clone());
        }
        let begins = |id: &String| !reference.is_empty() && id.starts_with(reference);
        let mut matches = table.networks.iter().filter(|(id, _)| begins(id)).map(|(_, network)| network);
        match (matches.next(), matches.next()) {
            (Some(network), None) => Ok(network.clone()),
            (Some(_), Some(_)) => Err(NetworkError::Ambiguous(reference.to_owned())),
            (None, _) => Err(NetworkError::NotFound(reference.to_owned())),
        }
    }

    /// All networks, by name.
    pub(crate) fn list(&self) -> Vec<Arc<Network>> {
        let mut networks: Vec<Arc<Network>> = lock(&self.table).networks.values().cloned().collect();
        networks.sort_by(|a, b| a.name.cmp(&b.name).then_with(|| a.id.cmp(&b.id)));
        networks
    }

    /// Takes note of a cluster network that is now here.
    pub(crate) fn note_overlay(&self, overlay: &Overlay, facts: OverlayFacts) {
        let mut network = Network::new(&overlay.name, "overlay");
        network.attachable = facts.attachable;
        network.ingress = facts.ingress;
        network.options = facts.options;
        network.labels = facts.labels;
        network.created = facts.created;
        network.id.clone_from(&overlay.network_id);
        network.swarm = true;
        network.internal = overlay.internal;
        network.ipam = overlay
            .subnets
            .iter()
            .map(|(subnet, gateway)| NetworkPool {
                subnet: Some(*subnet),
                gateway: Some(*gateway),
                ip_range: None,
                auxiliary: BTreeMap::new(),
            })
            .collect();
        network.enable_ipv6 = network.has(Family::V6);
        network.without_ipv4 = !network.has(Family::V4);
        let mut table = lock(&self.table);
        table.networks.insert(network.id.clone(), Arc::new(network));
    }

    /// Forgets a cluster network.
    pub(crate) fn forget_overlay(&self, network_id: &str) {
        lock(&self.table).networks.retain(|id, network| !(network.swarm && id == network_id));
    }
}

fn take_info(network: &mut Network, interface: &str, subnets: &[(Subnet, IpAddr)]) {
    interface.clone_into(&mut network.interface);
    let made = |(subnet, gateway): &(Subnet, IpAddr)| {
        let of_subnet = network.ipam.iter().find(|pool| pool.subnet == Some(*subnet));
        let asked = of_subnet.or_else(|| network.ipam.iter().find(|pool| pool.family() == subnet.family()));
        NetworkPool {
            subnet: Some(*subnet),
            gateway: Some(*gateway),
            ip_range: asked.and_then(|pool| pool.ip_range),
            auxiliary: asked.map(|pool| pool.auxiliary.clone()).unwrap_or_default(),
        }
    };
    network.ipam = subnets.iter().map(made).collect();
    network.enable_ipv6 = network.has(Family::V6);
}

/// The default bridge's options, by the names that others' have.
fn default_options(bridge: &DefaultBridge, interface: &str) -> BTreeMap<String, String> {
    let binding = bridge.host_binding.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let options = [
        ("com.docker.network.bridge.default_bridge", "true".to_owned()),
        ("com.docker.network.bridge.enable_icc", bridge.icc.to_string()),
        ("com.docker.network.bridge.enable_ip_masquerade", bridge.masquerade.to_string()),
        ("com.docker.network.bridge.host_binding_ipv4", binding.to_string()),
        ("com.docker.network.bridge.name", interface.to_owned()),
        ("com.docker.network.driver.mtu", bridge.mtu.unwrap_or(MTU).to_string()),
    ];
    options.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// Ethernet's.
const MTU: u32 = 1500;

fn check(request: &NetworkCreate) -> Result<(), NetworkError> {
    let invalid = |reason: String| Err(NetworkError::Invalid(reason));
    if PREDEFINED.iter().any(|(name, _)| *name == request.name) || request.name == "default" {
        return Err(NetworkError::Forbidden(format!(
            "operation is not permitted on predefined {} network",
            request.name
        )));
    }
    if !matches!(request.driver.as_str(), "" | "bridge" | "macvlan" | "ipvlan") && !request.config_only {
        return Err(NetworkError::NoDriver(request.driver.clone()));
    }
    if request.name.trim().is_empty() {
        return invalid("invalid name: name is empty".to_owned());
    }
    if let Some((name, address)) = request.ipam.iter().find_map(given_twice) {
        // As Docker says it.
        let reason = "Address already in use";
        return invalid(format!("failed to allocate secondary ip address ({name}:{address}): {reason}"));
    }
    check_config(request)
}

/// An auxiliary address that is the gateway's too, or another auxiliary one.
fn given_twice(pool: &NetworkPool) -> Option<(&String, IpAddr)> {
    let mut given = BTreeSet::from_iter(pool.gateway);
    pool.auxiliary.iter().map(|(name, address)| (name, *address)).find(|(_, address)| !given.insert(*address))
}

/// What a network of words may say, and one that takes its words from another.
fn check_config(request: &NetworkCreate) -> Result<(), NetworkError> {
    let forbidden = |reason: &str| Err(NetworkError::Forbidden(reason.to_owned()));
    if request.config_only && (request.internal || request.attachable) {
        return forbidden(
            "configuration network can only contain network specific fields. Network operator fields like \
             [ ingress | internal | attachable | scope ] are not supported.",
        );
    }
    if request.config_from.is_empty() {
        return Ok(());
    }
    if request.config_only {
        return forbidden("a configuration network cannot depend on another configuration network");
    }
    if request.enable_ipv6 || !request.labels.is_empty() || !request.ipam.is_empty() {
        return forbidden(
            "user specified configurations are not supported if the network depends on a configuration network",
        );
    }
    if !request.options.is_empty() {
        return forbidden(
            "network driver options are not supported if the network depends on a configuration network",
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> NetworkCreate {
        NetworkCreate { name: name.into(), ..NetworkCreate::default() }
    }

    #[test]
    fn requests_that_cannot_be_served_are_refused() {
        assert!(matches!(check(&named("host")), Err(NetworkError::Forbidden(_))));
        assert!(matches!(check(&named(" ")), Err(NetworkError::Invalid(_))));
        let driver = NetworkCreate { driver: "weave".into(), ..named("x") };
        assert!(matches!(check(&driver), Err(NetworkError::NoDriver(_))));
        assert!(check(&named("x")).is_ok() && check(&named("a b")).is_ok());
    }

    #[test]
    fn an_address_is_set_aside_for_one() {
        let address = |text: &str| text.parse::<IpAddr>().expect("address");
        let pool = |gateway: &str, others: [&str; 2]| NetworkPool {
            subnet: "10.7.0.0/24".parse().ok(),
            gateway: Some(address(gateway)),
            ip_range: None,
            auxiliary: BTreeMap::from([("a".into(), address(others[0])), ("b".into(), address(others[1]))]),
        };
        let refused = |pool: NetworkPool| {
            check(&NetworkCreate { ipam: vec![pool], ..named("x") }).err().map(|error| error.to_string())
        };
        let said = |which| {
            Some(format!("failed to allocate secondary ip address ({which}): Address already in use"))
        };
        assert_eq!(refused(pool("10.7.0.1", ["10.7.0.2", "10.7.0.1"])), said("b:10.7.0.1"));
        assert_eq!(refused(pool("10.7.0.1", ["10.7.0.2", "10.7.0.2"])), said("b:10.7.0.2"));
        assert_eq!(refused(pool("10.7.0.1", ["10.7.0.2", "10.7.0.3"])), None);
    }

    #[test]
    fn words_are_a_networks_own_or_anothers() {
        let config = NetworkCreate { config_only: true, ..named("words") };
        assert!(check(&config).is_ok());
        assert!(check(&NetworkCreate { internal: true, ..config.clone() }).is_err());
        let nested = NetworkCreate { config_from: "other".into(), ..config };
        assert!(matches!(check(&nested), Err(NetworkError::Forbidden(_))));
        let from = NetworkCreate { config_from: "words".into(), driver: "macvlan".into(), ..named("lan") };
        assert!(check(&from).is_ok());
        let both = NetworkCreate { options: [("parent".to_owned(), "eth0".to_owned())].into(), ..from };
        assert!(matches!(check(&both), Err(NetworkError::Forbidden(_))));
    }

    #[test]
    fn a_network_keeps_what_was_asked_of_each_family() {
        let mut network = Network::new("x", "bridge");
        network.enable_ipv6 = true;
        let pool = |subnet: &str, name: &str, address: &str| NetworkPool {
            subnet: subnet.parse().ok(),
            gateway: None,
            ip_range: None,
            auxiliary: [(name.to_owned(), address.parse().expect("address"))].into(),
        };
        network.ipam =
            vec![pool("fd00:7::/64", "router", "fd00:7::1"), pool("10.7.0.0/24", "host", "10.7.0.9")];
        let spec = drivers::bridge_spec(&network).expect("spec");
        assert_eq!(spec.families, Family::ALL);
        assert_eq!(spec.pools[0].reserved, ["fd00:7::1".parse::<IpAddr>().expect("address")]);
        let made = |subnet: &str, gateway: &str| {
            (subnet.parse().expect("subnet"), gateway.parse().expect("address"))
        };
        let subnets = [made("10.7.0.0/24", "10.7.0.1"), made("fd00:7::/64", "fd00:7::2")];
        take_info(&mut network, "br-x", &subnets);
        assert!(network.enable_ipv6 && network.ipam[0].auxiliary.contains_key("host"));
        assert!(network.ipam[1].auxiliary.contains_key("router"));
        network.without_ipv4 = true;
        assert_eq!(drivers::bridge_spec(&network).expect("spec").families, [Family::V6]);
    }

    #[test]
    fn driver_options_are_understood_or_refused() {
        let mut network = Network::new("x", "bridge");
        let set = |network: &mut Network, key: &str, value: &str| {
            network.options.insert(key.to_owned(), value.to_owned());
        };
        set(&mut network, "com.docker.network.bridge.enable_icc", "false");
        set(&mut network, "com.docker.network.driver.mtu", "1400");
        let spec = drivers::bridge_spec(&network).expect("spec");
        assert_eq!((spec.icc, spec.masquerade, spec.mtu), (false, true, Some(1400)));
        for absurd in ["big", "0", "67", "65536", "-1"] {
            set(&mut network, "com.docker.network.driver.mtu", absurd);
            assert!(drivers::bridge_spec(&network).is_err(), "{absurd}");
        }
        network.options = [("colour".to_owned(), "red".to_owned())].into();
        assert!(drivers::bridge_spec(&network).is_ok(), "a word of the user's own");
        set(&mut network, "com.docker.network.bridge.colour", "red");
        assert!(drivers::bridge_spec(&network).is_err());
    }
}
