//! A container's networking: its namespace, its endpoints, its published ports, its names and its three files.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rswarm_base::Chain;
use rswarm_base::id::is_cluster_id;
use rswarm_base::ipam::Family;
use rswarm_network::{
    AttachError, AttachRequest, Attached, BoundPort as KernelPort, DnsAlias, DnsConfig, Mac, Netns, Placed,
    PortBinding, Protocol,
};

use super::lead::{self, gateway_index, order, with_networks};
use super::ports::bindings;
use super::{BoundPort, Container, Endpoint};
use crate::attach::{Place, PlaceRequest};
use crate::blocking::blocking;
use crate::config::{ContainerConfig, EndpointConfig};
use crate::error::{Cause, FileError, NetworkError, StartError};
use crate::files::{self, ResolvConf};
use crate::network::{Network, is_bare, is_default};
use crate::shared::Shared;
use crate::spec::{self, Namespace};
use crate::{host, links};

/// The network mode, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The daemon's own namespace.
    Host,
    /// A namespace with nothing but loopback.
    None,
    /// Another container's namespace.
    Container(String),
    /// A namespace with an endpoint on each of these networks.
    Networks,
}

impl Mode {
    pub(crate) fn of(mode: &str) -> Mode {
        match mode {
            "host" => Mode::Host,
            "none" => Mode::None,
            _ => mode
                .strip_prefix("container:")
                .map_or(Mode::Networks, |name| Mode::Container(name.to_owned())),
        }
    }
}

/// The endpoints that a container will have. Names are resolved to networks here, once.
pub(crate) fn endpoints(
    shared: &Shared,
    id: &str,
    name: &str,
    config: &ContainerConfig,
) -> Result<Vec<Endpoint>, NetworkError> {
    let mode = Mode::of(&config.network_mode);
    let mut wanted = config.endpoints.clone();
    // Clients name the mode's network again where they list endpoints.
    wanted.retain(|endpoint| !matches!(endpoint.network.as_str(), "host" | "none" | ""));
    if mode != Mode::Networks {
        if !wanted.is_empty() {
            return Err(NetworkError::Forbidden(format!(
                "container cannot be connected to a network: its network mode is {}",
                config.network_mode
            )));
        }
        // `host` and `none` are networks too for those who look, with endpoints that no interface stands for.
        if !is_bare(&config.network_mode) {
            return Ok(Vec::new());
        }
        let network = shared.local.find(&config.network_mode)?;
        let asked = EndpointConfig { network: network.name.clone(), ..EndpointConfig::default() };
        return Ok(vec![new_endpoint(&network, id, name, config, asked)?]);
    }
    let default = matches!(config.network_mode.as_str(), "" | "default");
    let primary = if default { "bridge" } else { &config.network_mode };
    for endpoint in &mut wanted {
        if endpoint.network == "default" {
            "bridge".clone_into(&mut endpoint.network);
        }
    }
    let mut endpoints = Vec::new();
    match known(shared, primary)? {
        // A daemon without a default bridge: loopback only, as dockerd's with `--bridge none`.
        None if default => {}
        found => {
            let is_primary = |reference: &str| {
                reference == primary
                    || found
                        .as_ref()
                        .is_some_and(|network| [&network.id, &network.name].contains(&&reference.to_owned()))
            };
            let named = wanted.iter().any(|endpoint| is_primary(&endpoint.network));
            if !named && (!default || wanted.is_empty()) {
                let network = found.map_or_else(|| primary.to_owned(), |network| network.name.clone());
                wanted.insert(0, EndpointConfig { network, ..EndpointConfig::default() });
            }
        }
    }
    for endpoint in wanted {
        endpoints.push(match known(shared, &endpoint.network)? {
            Some(network) => new_endpoint(&network, id, name, config, endpoint)?,
            None => later(endpoint),
        });
    }
    Ok(endpoints)
}

/// A network that is here; `None` for one that may come: the cluster's are made on a node as they are needed.
pub(crate) fn known(shared: &Shared, reference: &str) -> Result<Option<Arc<Network>>, NetworkError> {
    match shared.local.find(reference) {
        Ok(network) => Ok(Some(network)),
        Err(NetworkError::NotFound(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// An endpoint on a network that is not here, and is looked for again when the container starts, as Docker does.
pub(crate) fn later(asked: EndpointConfig) -> Endpoint {
    Endpoint { network_name: asked.network.clone(), config: asked, ..Endpoint::default() }
}

/// An endpoint that is not attached yet.
pub(crate) fn new_endpoint(
    network: &Network,
    id: &str,
    name: &str,
    config: &ContainerConfig,
    asked: EndpointConfig,
) -> Result<Endpoint, NetworkError> {
    if let Some(address) = asked.address.filter(|address| !address.is_ipv4()) {
        return Err(NetworkError::Invalid(format!("invalid IPv4 address: {address}")));
    }
    if let Some(address) = asked.address_v6.filter(|address| !address.is_ipv6()) {
        return Err(NetworkError::Invalid(format!("invalid IPv6 address: {address}")));
    }
    if network.config_only {
        // As Docker says it.
        let reason = "cannot create endpoint on configuration-only network";
        return Err(NetworkError::Forbidden(reason.to_owned()));
    }
    if network.is_default_bridge() && (asked.address.is_some() || asked.address_v6.is_some()) {
        return Err(NetworkError::Invalid(
            "user specified IP address is supported on user defined networks only".to_owned(),
        ));
    }
    if network.is_default_bridge() && !asked.aliases.is_empty() {
        return Err(NetworkError::Invalid(
            "network-scoped aliases are only supported for user-defined networks".to_owned(),
        ));
    }
    Ok(Endpoint {
        network_id: network.id.clone(),
        network_name: network.name.clone(),
        names: names(network, id, name, config, &asked),
        config: asked,
        ..Endpoint::default()
    })
}

/// The names by which others on a network find a container.
pub(crate) fn names(
    network: &Network,
    id: &str,
    name: &str,
    config: &ContainerConfig,
    asked: &EndpointConfig,
) -> Vec<String> {
    if network.has_names() { all_names(id, name, config, asked) } else { Vec::new() }
}

fn all_names(id: &str, name: &str, config: &ContainerConfig, asked: &EndpointConfig) -> Vec<String> {
    let mut names = vec![name.to_owned()];
    let more =
        asked.aliases.iter().map(String::as_str).chain([rswarm_base::id::short(id), &config.spec.hostname]);
    for more in more {
        if !more.is_empty() && !names.iter().any(|known| known == more) {
            names.push(more.to_owned());
        }
    }
    names
}

/// What `launch` needs to know of a container's networking. The namespace lives as long as this value, or a
/// process in it.
#[derive(Debug)]
pub(crate) struct Wired {
    pub namespace: Namespace,
    /// Where the three files are: another container's directory when its network is shared.
    pub etc: PathBuf,
    netns: Option<Netns>,
}

/// Makes a container's namespace, with nothing in it but loopback, or finds the one that it shares.
pub(crate) async fn wire(shared: &Shared, container: &Container) -> Result<Wired, StartError> {
    let etc = container.dir.clone();
    match Mode::of(&container.config.network_mode) {
        Mode::Host => Ok(Wired { namespace: Namespace::Host, etc, netns: None }),
        Mode::Container(name) => {
            let other = shared.running(&name, "network")?;
            let netns = shared.networks.open_netns(other.state.pid).map_err(Cause::new)?;
            Ok(Wired {
                namespace: Namespace::Path(netns.fd_path()),
                etc: other.dir.clone(),
                netns: Some(netns),
            })
        }
        Mode::None | Mode::Networks => {
            links::check_start(&shared.registry, container)?;
            let netns = shared.networks.create_netns().await.map_err(Cause::new)?;
            Ok(Wired { namespace: Namespace::Path(netns.fd_path()), etc, netns: Some(netns) })
        }
    }
}

/// Puts everything into the namespace that a program needs to find there: interfaces, names and the three files. On
/// an error no endpoint is left.
pub(crate) async fn fill(
    shared: &Shared,
    container: &Container,
    wired: &Wired,
) -> Result<Vec<Endpoint>, StartError> {
    match (Mode::of(&container.config.network_mode), &wired.netns) {
        (Mode::Container(_), _) => Ok(Vec::new()),
        (Mode::Host, _) | (_, None) => {
            write_files(shared, container, &[], None, false).await?;
            Ok(container.endpoints.iter().map(seated).collect())
        }
        (Mode::None | Mode::Networks, Some(netns)) => {
            let attached = attach_all(shared, container, netns).await;
            if attached.is_err() {
                unwire(shared, &container.id).await;
            }
            attached.map_err(|error| StartError::Networking(Box::new(error)))
        }
    }
}

/// An endpoint that is there by its name alone, while the container runs.
pub(crate) fn seated(endpoint: &Endpoint) -> Endpoint {
    Endpoint { endpoint_id: rswarm_base::id::engine_id(), ..endpoint.clone() }
}

/// Takes a container off all networks. What the kernel refuses is logged: the next start makes everything anew.
pub(crate) async fn unwire(shared: &Shared, id: &str) {
    if let Some(attacher) = shared.cluster.get() {
        attacher.release_all(id);
    }
    if let Err(error) = shared.networks.detach(id).await {
        tracing::warn!(container.id = id, error = %Chain(&error), "container could not be detached from its networks");
    }
}

async fn attach_all(
    shared: &Shared,
    container: &Container,
    netns: &Netns,
) -> Result<Vec<Endpoint>, StartError> {
    let mut found: Vec<(Endpoint, Arc<Network>)> = Vec::new();
    let mut places = Vec::new();
    for endpoint in container.endpoints.iter() {
        let (network, place) = locate(shared, container, endpoint).await?;
        found.push((endpoint.clone(), network));
        places.push(place);
    }
    let gateways = Family::ALL.map(|family| (family, gateway_index(&found, family)));
    let gateway = gateways.iter().find_map(|(_, number)| *number);
    let mut attached = Vec::new();
    for (number, ((endpoint, network), place)) in found.iter().zip(places).enumerate() {
        if is_bare(&network.name) {
            attached.push(seated(endpoint));
            continue;
        }
        let leads = gateways.iter().filter(|(_, gateway)| *gateway == Some(number));
        let default_routes: Vec<Family> = leads.map(|(family, _)| *family).collect();
        let mut publish = bindings(container)?;
        // A port that no endpoint can serve is the first one's to refuse.
        let served = |family| gateways.iter().any(|(one, gateway)| *one == family && gateway.is_some());
        publish.retain(|binding| match binding.host_ip.map(Family::of) {
            Some(family) if served(family) => default_routes.contains(&family),
            Some(_) => gateway == Some(number),
            None => !default_routes.is_empty(),
        });
        let wanted = Wanted { number, default_routes, publish, place };
        attached.push(attach(shared, container, netns, endpoint.clone(), network, wanted).await?);
    }
    let networks: Vec<&Network> = order(&found, gateway).into_iter().map(|n| &*found[n].1).collect();
    let resolv = resolv_conf(shared, container)?;
    let dns = dns(&networks, &attached, &resolv);
    if let Some(dns) = &dns {
        shared.networks.serve_dns(netns, &container.id, dns.clone()).await.map_err(Cause::new)?;
    }
    open_links(shared, container, &attached).await?;
    let gateway = gateway.and_then(|n| attached[n].gateway);
    write_files(shared, container, &attached, gateway, dns.is_some()).await?;
    Ok(attached)
}

/// The network of an endpoint, and for the cluster's the place that it gives a container of this node's own. One
/// that was made anew under the same name serves as well.
pub(crate) async fn locate(
    shared: &Shared,
    container: &Container,
    endpoint: &Endpoint,
) -> Result<(Arc<Network>, Option<Place>), NetworkError> {
    let name = &endpoint.network_name;
    let here =
        known(shared, &endpoint.network_id)?.map_or_else(|| known(shared, name), |found| Ok(Some(found)))?;
    let is_given = |network: &Arc<Network>| !network.swarm || container.config.task.is_some();
    if let Some(network) = here.clone().filter(is_given) {
        return Ok((network, None));
    }
    let attacher = match shared.cluster.get() {
        None if is_cluster_id(&endpoint.network_id) => shared.cluster.wait().await,
        attacher => attacher,
    };
    let attacher = attacher.ok_or_else(|| NetworkError::NotFound(name.clone()))?;
    let asked = &endpoint.config;
    let request = PlaceRequest {
        container_id: container.id.clone(),
        network: here.map_or_else(|| name.clone(), |network| network.id.clone()),
        addresses: asked.address.into_iter().chain(asked.address_v6).collect(),
        names: all_names(&container.id, &container.name, &container.config, asked),
    };
    let place = attacher.place(request).await?;
    match shared.local.find(&place.network_id) {
        Ok(network) => Ok((network, Some(place))),
        Err(error) => {
            attacher.release(&place.id);
            Err(error)
        }
    }
}

/// What one attachment adds to its endpoint.
struct Wanted {
    number: usize,
    /// The families whose default route goes by it.
    default_routes: Vec<Family>,
    publish: Vec<PortBinding>,
    place: Option<Place>,
}

async fn attach(
    shared: &Shared,
    container: &Container,
    netns: &Netns,
    mut endpoint: Endpoint,
    network: &Network,
    wanted: Wanted,
) -> Result<Endpoint, StartError> {
    endpoint.network_id.clone_from(&network.id);
    endpoint.network_name.clone_from(&network.name);
    endpoint.names = names(network, &container.id, &container.name, &container.config, &endpoint.config);
    let place = wanted.place.as_ref();
    let given = place.filter(|place| !place.addresses.is_empty());
    let asked = endpoint.config.address.into_iter().chain(endpoint.config.address_v6).collect();
    let request = AttachRequest {
        container_id: container.id.clone(),
        network_id: network.kernel_id().to_owned(),
        interface: format!("eth{}", wanted.number),
        addresses: given.map_or(asked, |place| place.addresses.clone()),
        mac: place.and_then(|place| place.mac).or(endpoint.config.mac).map(Mac),
        default_routes: wanted.default_routes,
        publish: wanted.publish,
        names: endpoint.names.clone(),
    };
    endpoint.endpoint_id = rswarm_base::id::engine_id();
    let attached = shared.networks.attach(netns, request).await;
    let attached = attached.map_err(|error| refused(container, &endpoint, error))?;
    let placed = Family::ALL.map(|family| attached.of(family));
    [endpoint.address, endpoint.address_v6] =
        placed.map(|placed| placed.map(|placed| (placed.address, placed.prefix)));
    [endpoint.gateway, endpoint.gateway_v6] = placed.map(|placed| placed.and_then(|placed| placed.gateway));
    endpoint.interface = attached.interface;
    endpoint.mac = Some(attached.mac.0);
    endpoint.ports = attached.ports.into_iter().map(from_kernel_port).collect();
    endpoint.place = wanted.place.map(|place| place.id).unwrap_or_default();
    Ok(endpoint)
}

/// Puts a running container on one more network. Returns the endpoints that it has then.
pub(crate) async fn connect(
    shared: &Shared,
    container: &Container,
    endpoint: Endpoint,
    network: &Network,
    place: Option<Place>,
) -> Result<Vec<Endpoint>, StartError> {
    let netns = shared.networks.open_netns(container.state.pid).map_err(Cause::new)?;
    let used = |number: usize| container.endpoints.iter().any(|e| e.interface == format!("eth{number}"));
    let number = (0..).find(|number| !used(*number)).unwrap_or(0);
    // If it is to lead, it takes over once it is there.
    let wanted = Wanted { number, default_routes: Vec::new(), publish: Vec::new(), place };
    let mut endpoints = container.endpoints.to_vec();
    endpoints.push(attach(shared, container, &netns, endpoint, network, wanted).await?);
    let mut connected = lead::anew(shared, container, &mut endpoints, &netns).await;
    if connected.is_ok() {
        connected = refresh(shared, container, &endpoints, &netns).await;
    }
    let Err(error) = connected else { return Ok(endpoints) };
    if let Err(error) = disconnect(shared, container, network).await {
        tracing::warn!(container.id = container.id, error = %Chain(&error), "an endpoint stays behind");
    }
    Err(error)
}

/// Takes a running container off one network. Returns the endpoints that it keeps.
pub(crate) async fn disconnect(
    shared: &Shared,
    container: &Container,
    network: &Network,
) -> Result<Vec<Endpoint>, StartError> {
    shared.networks.disconnect(&container.id, network.kernel_id()).await.map_err(Cause::new)?;
    let mut endpoints = container.endpoints.to_vec();
    shared.cluster.release(endpoints.iter().filter(|e| e.network_id == network.id).map(|e| &e.place));
    endpoints.retain(|endpoint| endpoint.network_id != network.id);
    let netns = shared.networks.open_netns(container.state.pid).map_err(Cause::new)?;
    // It is off that network, whatever comes of the way out by another: a port may be taken there.
    if let Err(error) = lead::anew(shared, container, &mut endpoints, &netns).await {
        tracing::warn!(container.id = container.id, error = %Chain(&error), "no other network leads all that the one that was left led");
    }
    refresh(shared, container, &endpoints, &netns).await?;
    Ok(endpoints)
}

/// Why an endpoint is not as it was asked for: what is of its ports, in words of their own.
pub(crate) fn refused(container: &Container, endpoint: &Endpoint, error: AttachError) -> StartError {
    if !error.is_of_port() {
        return Cause::new(error).into();
    }
    StartError::Publish {
        container: container.name.clone(),
        endpoint: endpoint.endpoint_id.clone(),
        source: Cause::new(error),
    }
}

/// DNS and files for a changed set of endpoints.
async fn refresh(
    shared: &Shared,
    container: &Container,
    endpoints: &[Endpoint],
    netns: &Netns,
) -> Result<(), StartError> {
    let on = with_networks(shared, endpoints);
    let gateway = Family::ALL.into_iter().find_map(|family| gateway_index(&on, family));
    let networks: Vec<&Network> = order(&on, gateway).into_iter().map(|n| &*on[n].1).collect();
    let dns = dns(&networks, endpoints, &resolv_conf(shared, container)?);
    if let Some(dns) = &dns {
        shared.networks.serve_dns(netns, &container.id, dns.clone()).await.map_err(Cause::new)?;
    }
    let gateway = gateway.and_then(|n| on[n].0.gateway);
    write_files(shared, container, endpoints, gateway, dns.is_some()).await
}

/// Takes over a running container's networking after a daemon restart.
pub(crate) async fn adopt(shared: &Shared, container: &Container) -> Result<(), StartError> {
    if !matches!(Mode::of(&container.config.network_mode), Mode::None | Mode::Networks) {
        return Ok(());
    }
    let netns = shared.networks.open_netns(container.state.pid).map_err(Cause::new)?;
    let mut attached = Vec::new();
    let mut networks = Vec::new();
    let mut internal = !container.endpoints.is_empty();
    for endpoint in container.endpoints.iter() {
        let Ok(network) = shared.local.find(&endpoint.network_id) else {
            // A cluster network: it is known again when the worker has applied it.
            internal &= [endpoint.gateway, endpoint.gateway_v6].iter().all(Option::is_none);
            attached.extend(to_kernel(endpoint, &endpoint.network_id));
            networks.push(endpoint.network_id.clone());
            continue;
        };
        internal &= network.internal;
        attached.extend(to_kernel(endpoint, network.kernel_id()));
        if network.has_names() {
            networks.push(network.id.clone());
        }
    }
    let resolv = resolv_conf(shared, container)?;
    let dns = (!networks.is_empty()).then(|| dns_config(networks, internal, &container.endpoints, &resolv));
    shared.networks.adopt(&container.id, &netns, &attached, dns).await.map_err(Cause::new)?;
    Ok(())
}

fn to_kernel(endpoint: &Endpoint, network_id: &str) -> Option<Attached> {
    let placed = |address: Option<(IpAddr, u8)>, gateway| {
        address.map(|(address, prefix)| Placed { address, prefix, gateway })
    };
    let addresses =
        [placed(endpoint.address, endpoint.gateway), placed(endpoint.address_v6, endpoint.gateway_v6)];
    let addresses: Vec<Placed> = addresses.into_iter().flatten().collect();
    if addresses.is_empty() {
        return None;
    }
    let ports = endpoint.ports.iter().map(|port| KernelPort {
        host_ip: port.host_ip,
        host_port: port.host_port,
        container_port: port.container_port,
        protocol: Protocol::named(&port.protocol).unwrap_or(Protocol::Tcp),
    });
    Some(Attached {
        network_id: network_id.to_owned(),
        interface: endpoint.interface.clone(),
        addresses,
        mac: Mac(endpoint.mac?),
        ports: ports.collect(),
        names: endpoint.names.clone(),
    })
}

pub(crate) fn from_kernel_port(port: KernelPort) -> BoundPort {
    BoundPort {
        protocol: port.protocol.to_string(),
        container_port: port.container_port,
        host_ip: port.host_ip,
        host_port: port.host_port,
    }
}

fn dns(networks: &[&Network], endpoints: &[Endpoint], resolv: &ResolvConf) -> Option<DnsConfig> {
    let named: Vec<String> =
        networks.iter().filter(|network| network.has_names()).map(|network| network.id.clone()).collect();
    let internal = networks.iter().all(|network| network.internal);
    (!named.is_empty()).then(|| dns_config(named, internal, endpoints, resolv))
}

/// What links are where containers are found by name: names of the container's own.
fn aliases(endpoints: &[Endpoint]) -> Vec<DnsAlias> {
    let links =
        endpoints.iter().flat_map(|endpoint| endpoint.config.links.iter().map(move |l| (endpoint, l)));
    let alias = |(endpoint, link): (&Endpoint, &String)| {
        let (name, alias) = links::parse(link).ok()?;
        let network = endpoint.network_id.clone();
        Some(DnsAlias { network, alias: alias.to_owned(), name: name.to_owned() })
    };
    links.filter_map(alias).collect()
}

/// Lets a container reach those that it links to, where containers on the default bridge are kept apart.
pub(crate) async fn open_links(
    shared: &Shared,
    container: &Container,
    endpoints: &[Endpoint],
) -> Result<(), StartError> {
    if shared.config.bridge.icc || container.links.is_empty() {
        return Ok(());
    }
    set_openings(shared, container, endpoints).await
}

/// Opens what the container's links lead to, and nothing else.
async fn set_openings(
    shared: &Shared,
    container: &Container,
    endpoints: &[Endpoint],
) -> Result<(), StartError> {
    let openings = links::openings(&shared.registry, container, endpoints);
    Ok(shared.networks.open_links(&container.id, openings).await.map_err(Cause::new)?)
}

/// Takes note that a linked container came up, perhaps with other addresses.
pub(crate) async fn relink(
    shared: &Shared,
    container: &Container,
    target: &Container,
) -> Result<(), StartError> {
    open_links(shared, container, &container.endpoints).await?;
    let links = container.links.iter().filter(|link| link.target == target.id);
    let aliases: Vec<String> = links.map(|link| link.alias.clone()).collect();
    let (path, target) = (container.hosts_path(), target.clone());
    let write = move || -> Result<(), FileError> {
        for alias in &aliases {
            let hosts = std::fs::read_to_string(&path).map_err(FileError::read(&path))?;
            if let Some(hosts) = links::readdress(&hosts, alias, &target) {
                files::write_in_place(&path, &hosts).map_err(FileError::write(&path))?;
            }
        }
        Ok(())
    };
    Ok(blocking(write).await?)
}

/// Brings a running container's files and its way to others in line with its links.
pub(crate) async fn rewrite(shared: &Shared, container: &Container) -> Result<(), StartError> {
    let endpoints = &container.endpoints;
    // Also when no link is left.
    if !shared.config.bridge.icc {
        set_openings(shared, container, endpoints).await?;
    }
    let named = |endpoint: &Endpoint| shared.local.find(&endpoint.network_id).is_ok_and(|n| n.has_names());
    let gateway = endpoints.iter().find_map(|endpoint| endpoint.gateway);
    write_files(shared, container, endpoints, gateway, endpoints.iter().any(named)).await
}

fn dns_config(
    networks: Vec<String>,
    internal: bool,
    endpoints: &[Endpoint],
    resolv: &ResolvConf,
) -> DnsConfig {
    /// What resolvers bound these options to (resolv.conf(5)).
    const TIMEOUT_SECONDS_MAX: u32 = 30;
    const ATTEMPTS_MAX: u32 = 5;
    let own = endpoints.iter().flat_map(|endpoint| [endpoint.address, endpoint.address_v6]);
    let seconds = resolv.option("timeout").map(|seconds| seconds.clamp(1, TIMEOUT_SECONDS_MAX));
    DnsConfig {
        networks,
        aliases: aliases(endpoints),
        // Asked from the daemon's namespace, so that the host's loopback servers are fine.
        upstream: resolv.servers.clone(),
        own: own.flatten().map(|(address, _)| address).collect(),
        timeout: seconds.map(|seconds| Duration::from_secs(seconds.into())),
        attempts: resolv.option("attempts").map(|attempts| attempts.clamp(1, ATTEMPTS_MAX)),
        internal,
        keep_short: resolv.option("ndots").is_some_and(|ndots| ndots > 0),
    }
}

fn resolv_conf(shared: &Shared, container: &Container) -> Result<ResolvConf, StartError> {
    ResolvConf::for_container(&container.config.spec, &shared.config.dns, &host::resolv_conf())
        .map_err(StartError::Invalid)
}

/// Writes `hosts`, `hostname` and `resolv.conf`.
async fn write_files(
    shared: &Shared,
    container: &Container,
    endpoints: &[Endpoint],
    gateway: Option<IpAddr>,
    has_dns: bool,
) -> Result<(), StartError> {
    let config = &container.config;
    let on_host = Mode::of(&config.network_mode) == Mode::Host;
    let name = spec::host_name(container);
    let own = endpoints.iter().flat_map(|endpoint| [endpoint.address, endpoint.address_v6]);
    let own: Vec<IpAddr> = own.flatten().map(|(address, _)| address).collect();
    let gateway = gateway.or(on_host.then_some(IpAddr::V4(Ipv4Addr::LOCALHOST)));
    let on_bridge = endpoints.iter().any(|endpoint| is_default(&endpoint.network_name));
    let linked = if on_bridge { links::hosts(&shared.registry, container) } else { String::new() };
    let mut hosts = files::hosts(&config.spec, &name, &linked, &own, gateway);
    // As Docker: whoever adds a line gets a file of the container's own.
    if on_host && config.spec.hosts.is_empty() {
        hosts = host::hosts();
    }
    let resolv = resolv_conf(shared, container)?;
    let resolv = if has_dns { resolv.embedded() } else { resolv.direct(!on_host) };
    let dir = container.dir.clone();
    let write = move || {
        for (file, text) in files::NAMES.into_iter().zip([hosts, format!("{name}\n"), resolv]) {
            let path = dir.join(file);
            files::write_in_place(&path, &text).map_err(FileError::write(&path))?;
        }
        Ok(())
    };
    blocking(write).await.map_err(StartError::File)
}
