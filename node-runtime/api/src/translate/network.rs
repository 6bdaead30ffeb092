//! Networks, this node's and the cluster's: one shape for both.

use std::collections::BTreeMap;

use rswarm_base::{Kind, Timestamp};
use rswarm_engine::network::{Network, NetworkCreate, NetworkMember, NetworkPool};
use rswarm_engine::{Exposed, Exposure, Filter, Finding, Owned};
use rswarm_proto::model::object::Stored;
use rswarm_proto::wire;

use super::{mac, meta, nanos, refuse};
use crate::error::ApiError;
use crate::types;

/// The driver whose networks span the cluster.
const OVERLAY: &str = "overlay";
/// The driver option that carries an overlay's VXLAN id.
const VNI_OPTION: &str = "com.docker.network.driver.overlay.vxlanid_list";

/// A network to make, on this node or in the cluster.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Wanted {
    Local(NetworkCreate),
    Cluster(wire::NetworkSpec),
}

pub(crate) fn create(body: &types::NetworkCreateBody) -> Result<Wanted, ApiError> {
    if body.name.trim().is_empty() {
        return Err(ApiError::invalid("invalid network name: name is empty"));
    }
    let ipam = body.ipam.clone().unwrap_or_default();
    refuse(!matches!(ipam.driver.as_str(), "" | "default"), "another IPAM driver (IPAM.Driver)")?;
    refuse(ipam.options.as_ref().is_some_and(|options| !options.is_empty()), "IPAM options (IPAM.Options)")?;
    let configs = ipam.config.unwrap_or_default();
    let takes_words = body.config_from.as_ref().is_some_and(|from| !from.network.is_empty());
    match (body.driver.as_str(), body.scope.as_str()) {
        (_, "" | "local") if body.config_only => local(body, &configs).map(Wanted::Local),
        (_, "swarm") if body.config_only => Err(ApiError::new(
            Kind::PermissionDenied,
            "configuration network can only contain network specific fields. Network operator fields like \
             [ ingress | internal | attachable | scope ] are not supported.",
        )),
        (OVERLAY, _) if takes_words => {
            Err(ApiError::unsupported("an overlay network of another one's words (ConfigFrom)"))
        }
        (OVERLAY, "" | "swarm") => cluster(body, &configs).map(Wanted::Cluster),
        (OVERLAY, scope) => Err(ApiError::invalid(format!("an overlay network cannot have scope '{scope}'"))),
        (driver @ ("macvlan" | "ipvlan"), "swarm") => match &body.config_from {
            Some(from) if takes_words => by_words(body, &configs, &from.network).map(Wanted::Cluster),
            _ => Err(ApiError::invalid(format!(
                "a network of driver '{driver}' in the cluster needs --config-from: nodes cannot share a part of a \
                 subnet"
            ))
            .hint("make a network with --config-only on every node, by one name")),
        },
        (driver, "swarm") => {
            Err(ApiError::unsupported(format!("a network of driver '{driver}' in the cluster"))
                .hint("use --driver overlay, or macvlan or ipvlan with --config-from"))
        }
        (_, "" | "local") => local(body, &configs).map(Wanted::Local),
        (_, scope) => Err(ApiError::invalid(format!("invalid network scope '{scope}': want local or swarm"))),
    }
}

fn local(body: &types::NetworkCreateBody, configs: &[types::IpamConfig]) -> Result<NetworkCreate, ApiError> {
    if body.ingress {
        return Err(ApiError::invalid("a local network cannot be the ingress network"));
    }
    Ok(NetworkCreate {
        name: body.name.clone(),
        driver: body.driver.clone(),
        internal: body.internal,
        ipam: configs.iter().map(pool).collect::<Result<_, _>>()?,
        enable_ipv6: body.enable_ipv6.unwrap_or_default(),
        without_ipv4: body.enable_ipv4 == Some(false),
        attachable: body.attachable,
        options: body.options.clone().unwrap_or_default(),
        labels: body.labels.clone().unwrap_or_default(),
        config_only: body.config_only,
        config_from: body.config_from.clone().unwrap_or_default().network,
    })
}

fn pool(config: &types::IpamConfig) -> Result<NetworkPool, ApiError> {
    let mut auxiliary = BTreeMap::new();
    for (name, text) in &config.auxiliary_addresses {
        auxiliary.extend(parse(text, "auxiliary address")?.map(|address| (name.clone(), address)));
    }
    Ok(NetworkPool {
        subnet: parse(&config.subnet, "subnet")?,
        gateway: parse(&config.gateway, "gateway")?,
        ip_range: parse(&config.ip_range, "IP range")?,
        auxiliary,
    })
}

fn parse<T: std::str::FromStr>(text: &str, what: &str) -> Result<Option<T>, ApiError> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| ApiError::invalid(format!("invalid {what} \"{text}\"")))
}

fn cluster(
    body: &types::NetworkCreateBody,
    configs: &[types::IpamConfig],
) -> Result<wire::NetworkSpec, ApiError> {
    for config in configs {
        pool(config)?;
    }
    Ok(wire::NetworkSpec {
        annotations: Some(wire::Annotations {
            name: body.name.clone(),
            labels: body.labels.clone().unwrap_or_default(),
        }),
        driver: OVERLAY.to_owned(),
        options: body.options.clone().unwrap_or_default(),
        ipv6: body.enable_ipv6.unwrap_or_default(),
        internal: body.internal,
        attachable: body.attachable,
        ingress: body.ingress,
        without_ipv4: body.enable_ipv4 == Some(false),
        ipam: configs
            .iter()
            .map(|config| wire::IpamConfig {
                subnet: config.subnet.clone(),
                gateway: config.gateway.clone(),
                ip_range: config.ip_range.clone(),
                aux_addresses: config.auxiliary_addresses.clone(),
            })
            .collect(),
        ..wire::NetworkSpec::default()
    })
}

/// A network that every node makes by the words of a network of its own: on its own links, with its own part of the
/// subnet.
fn by_words(
    body: &types::NetworkCreateBody,
    configs: &[types::IpamConfig],
    from: &str,
) -> Result<wire::NetworkSpec, ApiError> {
    let has_own = !configs.is_empty()
        || body.options.as_ref().is_some_and(|options| !options.is_empty())
        || body.labels.as_ref().is_some_and(|labels| !labels.is_empty())
        || body.enable_ipv6 == Some(true);
    if has_own {
        // As Docker says it.
        return Err(ApiError::new(
            Kind::PermissionDenied,
            "user specified configurations are not supported if the network depends on a configuration network",
        ));
    }
    let spec = cluster(body, &[])?;
    Ok(wire::NetworkSpec { driver: body.driver.clone(), config_from: from.to_owned(), ..spec })
}

/// A network of this node. `members` are left out of lists.
pub(crate) fn local_out(network: &Network, members: &[NetworkMember]) -> types::NetworkInspect {
    let configs = network.ipam.iter().map(|pool| types::IpamConfig {
        subnet: pool.subnet.map(|subnet| subnet.to_string()).unwrap_or_default(),
        ip_range: pool.ip_range.map(|range| range.to_string()).unwrap_or_default(),
        gateway: pool.gateway.map(|gateway| gateway.to_string()).unwrap_or_default(),
        auxiliary_addresses: pool.auxiliary.iter().map(|(name, ip)| (name.clone(), ip.to_string())).collect(),
    });
    types::NetworkInspect {
        name: network.name.clone(),
        id: network.id.clone(),
        created: network.created.to_string(),
        scope: if network.swarm { "swarm" } else { "local" }.to_owned(),
        driver: network.driver.clone(),
        enable_ipv4: !network.without_ipv4,
        enable_ipv6: network.enable_ipv6,
        ipam: types::Ipam { driver: "default".to_owned(), options: None, config: Some(configs.collect()) },
        internal: network.internal,
        attachable: network.attachable,
        ingress: network.ingress,
        config_only: network.config_only,
        config_from: types::ConfigReference { network: network.config_from.clone() },
        containers: Some(members.iter().map(member).collect()),
        options: Some(network.options.clone()),
        labels: Some(network.labels.clone()),
        ..types::NetworkInspect::default()
    }
}

fn member(member: &NetworkMember) -> (String, types::NetworkContainer) {
    let cidr = |address: Option<(std::net::IpAddr, u8)>| {
        address.map(|(address, prefix)| format!("{address}/{prefix}")).unwrap_or_default()
    };
    let shown = types::NetworkContainer {
        name: member.name.clone(),
        endpoint_id: member.endpoint.endpoint_id.clone(),
        mac_address: mac(member.endpoint.mac),
        ipv4_address: cidr(member.endpoint.address),
        ipv6_address: cidr(member.endpoint.address_v6),
    };
    (member.container_id.clone(), shown)
}

/// A network of the cluster, with the containers on it that are on this node.
pub(crate) fn cluster_out(network: &wire::Network, members: &[NetworkMember]) -> types::NetworkInspect {
    let spec = network.spec.clone().unwrap_or_default();
    let annotations = spec.annotations.unwrap_or_default();
    types::NetworkInspect {
        name: annotations.name,
        id: network.id.clone(),
        created: nanos(network.meta.unwrap_or_default().created_at),
        scope: "swarm".to_owned(),
        driver: spec.driver,
        enable_ipv4: !spec.without_ipv4,
        enable_ipv6: spec.ipv6,
        ipam: types::Ipam { driver: "default".to_owned(), options: None, config: Some(allocated(network)) },
        internal: spec.internal,
        attachable: spec.attachable,
        ingress: spec.ingress,
        config_from: types::ConfigReference { network: spec.config_from },
        containers: (!members.is_empty()).then(|| members.iter().map(member).collect()),
        options: Some(driver_options(network)),
        labels: Some(annotations.labels),
        ..types::NetworkInspect::default()
    }
}

fn allocated(network: &wire::Network) -> Vec<types::IpamConfig> {
    network.ipam.iter().map(ipam_out).collect()
}

fn ipam_out(config: &wire::IpamConfig) -> types::IpamConfig {
    types::IpamConfig {
        subnet: config.subnet.clone(),
        ip_range: config.ip_range.clone(),
        gateway: config.gateway.clone(),
        auxiliary_addresses: config.aux_addresses.clone(),
    }
}

fn driver_options(network: &wire::Network) -> types::StringMap {
    let mut options = network.spec.as_ref().map(|spec| spec.options.clone()).unwrap_or_default();
    if network.vni != 0 {
        options.insert(VNI_OPTION.to_owned(), network.vni.to_string());
    }
    options
}

/// A cluster network inside of a task.
pub(crate) fn attached(network: &wire::Network) -> types::AttachedNetwork {
    let (version, created_at, updated_at) = meta(network.meta);
    let spec = network.spec.clone().unwrap_or_default();
    let annotations = spec.annotations.unwrap_or_default();
    let default_ipam = || types::Driver { name: "default".to_owned(), ..types::Driver::default() };
    let wanted = types::IpamOptions {
        driver: types::Driver::default(),
        configs: spec.ipam.iter().map(ipam_out).collect(),
    };
    types::AttachedNetwork {
        id: network.id.clone(),
        version,
        created_at,
        updated_at,
        spec: types::AttachedNetworkSpec {
            name: annotations.name,
            labels: Some(annotations.labels),
            driver_configuration: Some(types::Driver { name: spec.driver.clone(), options: spec.options }),
            ipv6_enabled: spec.ipv6,
            internal: spec.internal,
            attachable: spec.attachable,
            ingress: spec.ingress,
            ipam_options: (wanted != types::IpamOptions::default()).then_some(wanted),
            scope: "swarm".to_owned(),
        },
        driver_state: types::Driver { name: spec.driver, options: driver_options(network) },
        ipam_options: Some(types::IpamOptions { driver: default_ipam(), configs: allocated(network) }),
    }
}

/// Networks that come with every node and cannot be removed.
pub(crate) fn is_predefined(name: &str) -> bool {
    matches!(name, "bridge" | "host" | "none")
}

/// What a service is attached to by `--network host` or `bridge`: a network that every node has of its own, which the
/// cluster shows to those who ask for it by name, but in no list.
pub(crate) fn of_every_node(name: &str) -> Option<types::NetworkInspect> {
    let predefined = ("com.docker.swarm.predefined".to_owned(), "true".to_owned());
    matches!(name, "bridge" | "host").then(|| types::NetworkInspect {
        name: name.to_owned(),
        id: name.to_owned(),
        created: Timestamp::ZERO.to_string(),
        scope: "swarm".to_owned(),
        driver: name.to_owned(),
        enable_ipv4: true,
        labels: Some([predefined].into()),
        ..types::NetworkInspect::default()
    })
}

/// Docker's text for a network that there is not.
pub(crate) fn not_found(reference: &str) -> ApiError {
    ApiError::new(Kind::NotFound, format!("network {reference} not found"))
}

/// This node's networks and the cluster's, each once: the cluster's view of one that is on this node too wins.
pub(crate) fn merge(
    local: Vec<types::NetworkInspect>,
    cluster: Vec<types::NetworkInspect>,
) -> Vec<types::NetworkInspect> {
    let mut all: BTreeMap<String, types::NetworkInspect> =
        local.into_iter().map(|network| (network.id.clone(), network)).collect();
    for mut network in cluster {
        if let Some(known) = all.remove(&network.id) {
            network.containers = known.containers;
        }
        all.insert(network.id.clone(), network);
    }
    let mut all: Vec<_> = all.into_values().collect();
    all.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    all
}

/// One thing that a check looked at.
pub(crate) fn finding_out(finding: Finding) -> types::NetworkFinding {
    let Finding { subject, found, remedy } = finding;
    types::NetworkFinding { subject, found, remedy: remedy.unwrap_or_default() }
}

/// What can be reached, by the names that people know.
pub(crate) fn audit_out(
    exposure: Exposure,
    networks: &[types::NetworkInspect],
    services: &[wire::Service],
) -> types::NetworkAudit {
    let members = |network: &types::NetworkInspect| network.containers.clone().unwrap_or_default();
    let names: BTreeMap<String, String> =
        networks.iter().flat_map(members).map(|(id, container)| (id, container.name)).collect();
    let host = networks.iter().find(|network| network.name == "host" && network.driver == "host");
    let filter = |filter: Filter| types::AuditFilter {
        family: filter.family.to_owned(),
        table: filter.table,
        chain: filter.chain,
        hook: if filter.input { "input" } else { "forward" }.to_owned(),
        policy: if filter.drops { "drop" } else { "accept" }.to_owned(),
    };
    let ports = exposure.ports.into_iter().map(|port| port_out(port, networks, &names, services)).collect();
    types::NetworkAudit {
        ports,
        host_network: host.map(members).unwrap_or_default().into_values().map(|one| one.name).collect(),
        filters: exposure.filters.into_iter().map(filter).collect(),
        legacy_tables: exposure.legacy,
    }
}

fn port_out(
    port: Exposed,
    networks: &[types::NetworkInspect],
    names: &BTreeMap<String, String>,
    services: &[wire::Service],
) -> types::AuditPort {
    let mut out = types::AuditPort {
        host_ip: port.host_ip.to_string(),
        host_port: port.host_port,
        protocol: port.protocol.to_string(),
        from: match port.host_ip {
            all if all.is_unspecified() => "anywhere".to_owned(),
            own if own.is_loopback() => "this host".to_owned(),
            one => format!("where {one} is reached"),
        },
        target: std::net::SocketAddr::new(port.target.0, port.target.1).to_string(),
        ..types::AuditPort::default()
    };
    match port.owner {
        Owned::Container { id, network_id } => {
            out.container = names.get(&id).cloned().unwrap_or(id);
            // The default bridge goes by its name among the kernel's networks.
            let known = networks.iter().find(|network| network.id == network_id);
            out.network = known.map_or(network_id, |network| network.name.clone());
        }
        Owned::Mesh { service_id } => {
            let known = services.iter().find(|service| service.id == service_id);
            let name = known.map(|service| service.name().to_owned());
            out.service = name.unwrap_or(service_id);
        }
        Owned::Unclaimed => {}
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(text: &str) -> Result<Wanted, ApiError> {
        create(&serde_json::from_str(text).expect("body"))
    }

    #[test]
    fn the_driver_says_whose_network_it_is() {
        let overlay = r#"{"Name":"n","Driver":"overlay","Attachable":true,"IPAM":{"Driver":"default","Options":{},"Config":[{"Subnet":"10.9.0.0/24"}]}}"#;
        let Ok(Wanted::Cluster(spec)) = wanted(overlay) else { panic!("a cluster network") };
        assert!(spec.attachable && spec.ipam[0].subnet == "10.9.0.0/24");
        let bridge = r#"{"Name":"n","Driver":"bridge","IPAM":{"Config":[{"Subnet":"10.9.0.0/24","Gateway":"10.9.0.254"}]},"Labels":{"a":"b"}}"#;
        let Ok(Wanted::Local(network)) = wanted(bridge) else { panic!("a local network") };
        assert_eq!(network.ipam[0].gateway, "10.9.0.254".parse().ok());
        assert_eq!(network.labels["a"], "b");
        let macvlan = r#"{"Name":"n","Driver":"macvlan","ConfigFrom":{"Network":"words"}}"#;
        let Ok(Wanted::Local(network)) = wanted(macvlan) else { panic!("a local network") };
        assert_eq!((network.driver.as_str(), network.config_from.as_str()), ("macvlan", "words"));
        let Ok(Wanted::Local(words)) = wanted(r#"{"Name":"words","ConfigOnly":true}"#) else {
            panic!("a local network")
        };
        assert!(words.config_only);
    }

    #[test]
    fn what_cannot_be_honoured_is_refused() {
        let refused = [
            (r#"{"Name":""}"#, Kind::InvalidArgument),
            (r#"{"Name":"n","ConfigOnly":true,"Scope":"swarm"}"#, Kind::PermissionDenied),
            (r#"{"Name":"n","Driver":"overlay","ConfigFrom":{"Network":"c"}}"#, Kind::NotImplemented),
            (r#"{"Name":"n","IPAM":{"Driver":"dhcp"}}"#, Kind::NotImplemented),
            (r#"{"Name":"n","IPAM":{"Config":[{"Subnet":"10.9.0.0"}]}}"#, Kind::InvalidArgument),
            (
                r#"{"Name":"n","IPAM":{"Config":[{"AuxiliaryAddresses":{"a":"10.0.0"}}]}}"#,
                Kind::InvalidArgument,
            ),
            (r#"{"Name":"n","Driver":"macvlan","Scope":"swarm"}"#, Kind::InvalidArgument),
            (r#"{"Name":"n","Driver":"bridge","Scope":"swarm"}"#, Kind::NotImplemented),
            (
                r#"{"Name":"n","Driver":"macvlan","Scope":"swarm","ConfigFrom":{"Network":"c"},"Options":{"parent":"eth0"}}"#,
                Kind::PermissionDenied,
            ),
            (r#"{"Name":"n","Driver":"overlay","Scope":"local"}"#, Kind::InvalidArgument),
            (r#"{"Name":"n","Ingress":true}"#, Kind::InvalidArgument),
        ];
        for (text, kind) in refused {
            assert_eq!(wanted(text).expect_err(text).kind, kind, "{text}");
        }
    }

    #[test]
    fn a_network_known_to_node_and_cluster_is_listed_once_with_its_containers() {
        let network = |id: &str, scope: &str| types::NetworkInspect {
            id: id.into(),
            name: id.into(),
            scope: scope.into(),
            ..types::NetworkInspect::default()
        };
        let mut on_node = network("x", "swarm");
        on_node.containers = Some(BTreeMap::from([("c".to_owned(), types::NetworkContainer::default())]));
        on_node.driver = "stale".into();
        let all =
            merge(vec![network("b", "local"), on_node], vec![network("x", "swarm"), network("a", "swarm")]);
        let ids: Vec<&str> = all.iter().map(|network| network.id.as_str()).collect();
        assert_eq!(ids, ["a", "b", "x"]);
        assert!(all[2].driver.is_empty() && all[2].containers.is_some());
    }

    #[test]
    fn a_cluster_network_shows_its_vxlan_id_and_its_subnets() {
        let stored = wire::Network {
            id: "net1".into(),
            spec: Some(wire::NetworkSpec { driver: OVERLAY.into(), ..wire::NetworkSpec::default() }),
            ipam: vec![wire::IpamConfig {
                subnet: "10.0.1.0/24".into(),
                gateway: "10.0.1.1".into(),
                ..Default::default()
            }],
            vni: 4097,
            ..wire::Network::default()
        };
        let json = serde_json::to_value(cluster_out(&stored, &[])).expect("json");
        assert_eq!(json["Options"][VNI_OPTION], "4097");
        assert_eq!(json["IPAM"]["Config"][0]["Gateway"], "10.0.1.1");
        assert_eq!(json["Scope"], "swarm");
        assert_eq!(attached(&stored).ipam_options.expect("ipam").configs[0].subnet, "10.0.1.0/24");
    }
}
