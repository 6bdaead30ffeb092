//! What callers say and get: bridges, overlays, attachments, published ports, names.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use rswarm_base::ipam::{Family, Subnet};
use serde::{Deserialize, Serialize};

use crate::tunnel::OverlayTunnel;

/// The identifier and the name of the bridge that every daemon has.
pub const DEFAULT_BRIDGE: &str = "bridge";

/// How a daemon's networking is set up.
#[derive(Debug, Clone)]
pub struct Config {
    /// The daemon's own identifier, 8 hexadecimal digits; names of kernel objects derive from it.
    pub daemon_id: String,
    /// Where overlay sandboxes are pinned. Becomes a mount of its own, so that a process in another mount
    /// namespace can let go of all of them by detaching this one path.
    pub netns_dir: PathBuf,
    /// What the device of encrypted overlays keeps while there is one: its socket, and which networks need it.
    pub tunnel_dir: PathBuf,
    /// The program that is the device as `tunnel …`, where the kernel has no WireGuard.
    pub tunnel_exe: PathBuf,
    /// Whether there is a default bridge. Without one, overlays have no way out and publish no ports.
    pub default_bridge: bool,
    /// What is asked of it.
    pub bridge: DefaultBridge,
    /// Whether containers on the default bridge have IPv6 addresses.
    pub default_bridge_ipv6: bool,
    /// The default bridge's IPv6 subnet; `None` takes a free one.
    pub fixed_cidr_v6: Option<Subnet>,
    /// Pools of subnets that bridges are given when none is asked for, in order; empty means Docker's own.
    pub bridge_pools: Vec<AddressPool>,
    /// Whether published ports are open by themselves.
    pub firewall: FirewallMode,
}

/// A subnet whose parts are given to networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressPool {
    /// All of it.
    pub base: Subnet,
    /// The length of one network's prefix.
    pub size: u8,
}

/// What is asked of the default bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefaultBridge {
    /// Its own address and the length of its subnet's prefix; `None` takes a free subnet.
    pub address: Option<(IpAddr, u8)>,
    /// The part of the subnet that addresses are chosen from.
    pub range: Option<Subnet>,
    /// Whether containers on it reach each other.
    pub icc: bool,
    /// Whether what leaves it carries the host's address.
    pub masquerade: bool,
    /// The interfaces' MTU; `None` is 1500.
    pub mtu: Option<u32>,
    /// Where ports are published when a binding names no address; `None` is all addresses.
    pub host_binding: Option<IpAddr>,
}

impl Default for DefaultBridge {
    fn default() -> DefaultBridge {
        DefaultBridge {
            address: None,
            range: None,
            icc: true,
            masquerade: true,
            mtu: None,
            host_binding: None,
        }
    }
}

/// Whether published ports are open by themselves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FirewallMode {
    /// To everybody, as Docker's.
    #[default]
    Open,
    /// While the host lets in by itself what ends at it; else only where the administrator's rules consent.
    Input,
}

/// A MAC address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<[u8; 6]> for Mac {
    fn from(bytes: [u8; 6]) -> Mac {
        Mac(bytes)
    }
}

/// A local bridge network as asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgeSpec {
    /// The network's identifier; the interface is `br-` and its first twelve characters.
    pub id: String,
    /// The network's name: PTR answers end in it.
    pub name: String,
    /// The host's interface, when the user chose it.
    pub interface: Option<String>,
    /// The families of its addresses.
    pub families: Vec<Family>,
    /// Its subnets as far as they are asked for, at most one of each family.
    pub pools: Vec<Pool>,
    /// No way in or out but the bridge itself.
    pub internal: bool,
    /// Whether containers on it reach each other.
    pub icc: bool,
    /// Whether what leaves it carries the host's address.
    pub masquerade: bool,
    /// The interfaces' MTU; `None` is 1500.
    pub mtu: Option<u32>,
    /// Where ports are published when a binding names no address; `None` is all addresses.
    pub host_binding: Option<IpAddr>,
}

impl BridgeSpec {
    /// A bridge with Docker's defaults.
    #[must_use]
    pub fn new(id: &str, name: &str) -> BridgeSpec {
        BridgeSpec {
            id: id.to_owned(),
            name: name.to_owned(),
            interface: None,
            families: vec![Family::V4],
            pools: Vec::new(),
            internal: false,
            icc: true,
            masquerade: true,
            mtu: None,
            host_binding: None,
        }
    }
}

/// One subnet of a bridge as asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// The subnet; `None` takes the first free one of the family.
    pub subnet: Option<Subnet>,
    /// Of which family it is.
    pub family: Family,
    /// The part of the subnet that addresses are chosen from.
    pub range: Option<Subnet>,
    /// The gateway; `None` is the first address of the subnet.
    pub gateway: Option<IpAddr>,
    /// Addresses that no container gets.
    pub reserved: Vec<IpAddr>,
}

impl Pool {
    /// One of which nothing is asked.
    #[must_use]
    pub fn any(family: Family) -> Pool {
        Pool { subnet: None, family, range: None, gateway: None, reserved: Vec::new() }
    }
}

/// A bridge network as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgeInfo {
    /// The network's identifier.
    pub id: String,
    /// The host's interface.
    pub interface: String,
    /// Its subnets, each with the bridge's own address in it; IPv4 first.
    pub subnets: Vec<(Subnet, IpAddr)>,
}

impl BridgeInfo {
    /// The subnet of a family, and the bridge's own address in it.
    #[must_use]
    pub fn of(&self, family: Family) -> Option<(Subnet, IpAddr)> {
        self.subnets.iter().find(|(subnet, _)| subnet.family() == family).copied()
    }
}

/// A network on one of the host's own links, as asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LanSpec {
    /// The network's identifier.
    pub id: String,
    /// The network's name: PTR answers end in it.
    pub name: String,
    /// How containers are on the link.
    pub mode: LanMode,
    /// The link: one that is there, or `LINK.VLAN` to be made. `None` makes one that leads nowhere.
    pub parent: Option<String>,
    /// The families of its addresses.
    pub families: Vec<Family>,
    /// Its subnets as far as they are asked for.
    pub pools: Vec<Pool>,
    /// No default route.
    pub internal: bool,
    /// The interfaces' MTU; `None` is the link's.
    pub mtu: Option<u32>,
}

/// How containers are on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LanMode {
    /// With a MAC of their own.
    Macvlan(MacvlanMode),
    /// With the link's own MAC.
    Ipvlan(IpvlanMode, IpvlanFlag),
}

impl LanMode {
    /// What Docker, and the kernel, call it.
    #[must_use]
    pub fn driver(self) -> &'static str {
        match self {
            LanMode::Macvlan(_) => "macvlan",
            LanMode::Ipvlan(..) => "ipvlan",
        }
    }
}

/// Who hears whom on a link (ip-link(8), `macvlan`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MacvlanMode {
    /// All hear each other.
    #[default]
    Bridge,
    /// They do not hear each other.
    Private,
    /// They hear each other by a switch that sends frames back.
    Vepa,
    /// One has the link to itself.
    Passthru,
}

/// On which layer a link decides who gets a packet (ip-link(8), `ipvlan`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IpvlanMode {
    /// It switches.
    #[default]
    L2,
    /// It routes.
    L3,
    /// It routes, past the host's filters.
    L3s,
}

/// Who hears whom on such a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IpvlanFlag {
    /// All hear each other.
    #[default]
    Bridge,
    /// They do not hear each other.
    Private,
    /// They hear each other by a switch that sends frames back.
    Vepa,
}

/// Such a network as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LanInfo {
    /// The link.
    pub parent: String,
    /// Its subnets, each with its gateway: a router on the segment, not this host.
    pub subnets: Vec<(Subnet, IpAddr)>,
    /// Whether it has no way out.
    pub internal: bool,
}

/// Transport protocol of a published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The protocol of that name, as Docker spells it.
    #[must_use]
    pub fn named(name: &str) -> Option<Protocol> {
        [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|protocol| protocol.name() == name)
    }

    const fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A port to publish on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortBinding {
    /// The host's address; `None` is all of them, of the families that the container has addresses of.
    pub host_ip: Option<IpAddr>,
    /// The host's port; 0 lets the kernel choose one.
    pub host_port: u16,
    /// The last port of a range of which the first free one is taken; 0 when there is no range.
    pub host_port_end: u16,
    /// The container's port.
    pub container_port: u16,
    /// The protocol.
    pub protocol: Protocol,
}

/// A published port as it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BoundPort {
    /// The host's address, `0.0.0.0` or `::` for all of its family.
    pub host_ip: IpAddr,
    /// The host's port.
    pub host_port: u16,
    /// The container's port.
    pub container_port: u16,
    /// The protocol.
    pub protocol: Protocol,
}

/// One endpoint to make: a container's interface in a network.
#[derive(Debug, Clone)]
pub struct AttachRequest {
    /// The container.
    pub container_id: String,
    /// The network: `bridge`, a user-defined bridge or an overlay that was applied.
    pub network_id: String,
    /// The interface's name inside: `eth0`.
    pub interface: String,
    /// Its addresses, at most one of each family. A bridge chooses those that are missing; an overlay's come
    /// from the cluster.
    pub addresses: Vec<IpAddr>,
    /// Its MAC; `None` derives it from the first address, as Docker does.
    pub mac: Option<Mac>,
    /// The families whose default route goes through this network (an internal network has none).
    pub default_routes: Vec<Family>,
    /// Ports to publish on the host, in the families whose default route goes this way: answers must find back.
    pub publish: Vec<PortBinding>,
    /// Names that others on the same user-defined bridge find it by; the first is its name in PTR answers.
    /// An overlay's names come with [`Overlay::endpoints`].
    pub names: Vec<String>,
}

impl AttachRequest {
    /// Its part that another network may take over later.
    pub(crate) fn lead(&self) -> Lead {
        let (families, publish) = (self.default_routes.clone(), self.publish.clone());
        Lead { families, publish }
    }
}

/// How a network leads a container's packets out, and others' in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lead {
    /// The families whose default route goes through it.
    pub families: Vec<Family>,
    /// Ports to publish on the host, in these families: answers must find back.
    pub publish: Vec<PortBinding>,
}

impl Lead {
    /// The addresses that ports are published of.
    pub(crate) fn published<'a>(&'a self, attached: &'a Attached) -> impl Iterator<Item = IpAddr> + 'a {
        attached.ips().filter(|address| self.families.contains(&Family::of(*address)))
    }
}

/// An address of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// The address.
    pub address: IpAddr,
    /// Its prefix length.
    pub prefix: u8,
    /// The network's gateway in this family; `None` when it has no way out.
    pub gateway: Option<IpAddr>,
}

/// An endpoint as it is. Callers keep it and hand it back to [`crate::Networks::adopt`] after a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// The network.
    pub network_id: String,
    /// The interface's name inside.
    pub interface: String,
    /// Its addresses, at most one of each family; IPv4 first.
    pub addresses: Vec<Placed>,
    /// The MAC.
    pub mac: Mac,
    /// Ports published on the host.
    pub ports: Vec<BoundPort>,
    /// The names it is found by.
    pub names: Vec<String>,
}

impl Attached {
    /// The addresses alone.
    pub fn ips(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().map(|placed| placed.address)
    }

    /// Its address of a family.
    #[must_use]
    pub fn of(&self, family: Family) -> Option<Placed> {
        self.addresses.iter().find(|placed| Family::of(placed.address) == family).copied()
    }
}

/// Where a container's DNS looks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DnsConfig {
    /// The networks whose names it sees, most important first.
    pub networks: Vec<String>,
    /// Names that it alone knows for others.
    pub aliases: Vec<DnsAlias>,
    /// Servers for all other names, asked in order from the daemon's namespace (at most three are used).
    pub upstream: Vec<IpAddr>,
    /// Addresses of the container itself: asking one of them would ask it its own question again, without end.
    pub own: Vec<IpAddr>,
    /// How long one server has to answer (resolv.conf(5), `timeout`); `None` is our own measure.
    pub timeout: Option<Duration>,
    /// How often all of them are asked (`attempts`); `None` is once.
    pub attempts: Option<u32>,
    /// No network of the container leads out: other names are refused.
    pub internal: bool,
    /// Names without a dot are left to the search list.
    pub keep_short: bool,
}

/// A port of one container that another one may reach on a bridge that keeps them apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Opening {
    /// The container that is reached.
    pub target: String,
    /// Who may reach it.
    pub from: IpAddr,
    /// Its address, of the same family.
    pub to: IpAddr,
    /// The protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
}

/// One container's own name for another one, on one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsAlias {
    /// The network.
    pub network: String,
    /// What it asks for.
    pub alias: String,
    /// What is looked up instead.
    pub name: String,
}

/// An overlay network as this node should have it: all of it, each time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    /// The network's identifier.
    pub network_id: String,
    /// The network's name.
    pub name: String,
    /// The VXLAN network identifier.
    pub vni: u32,
    /// Its subnets and their gateways; every node's sandbox has the gateway's address.
    pub subnets: Vec<(Subnet, IpAddr)>,
    /// The MTU of containers in it; `None` is the underlay's minus the encapsulation.
    pub mtu: Option<u32>,
    /// VXLAN's UDP port.
    pub data_path_port: u16,
    /// This node's address in the data path.
    pub local_addr: IpAddr,
    /// No way out.
    pub internal: bool,
    /// Every endpoint in the cluster, this node's included.
    pub endpoints: Vec<OverlayEndpoint>,
    /// Services that have a virtual address in this network, or ports with names.
    pub services: Vec<OverlayService>,
    /// What makes this the network of the routing mesh; `None` for all others.
    pub mesh: Option<Mesh>,
    /// How its traffic is encrypted; `None` when it is not. Nodes' addresses are those inside the tunnel then, but
    /// for `local_addr`.
    pub tunnel: Option<OverlayTunnel>,
}

/// A service that has virtual addresses, at which connections go to one of its ready endpoints, or ports with names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverlayService {
    /// The service.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its aliases in this network.
    pub aliases: Vec<String>,
    /// The virtual addresses, at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// How connections are spread.
    pub balancing: Balancing,
    /// Ports that have a name, which SRV questions ask for.
    pub ports: Vec<NamedPort>,
}

/// A service's port that has a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedPort {
    /// The name.
    pub name: String,
    /// The protocol.
    pub protocol: Protocol,
    /// The tasks' port.
    pub port: u16,
}

/// Which of a service's ready tasks a new connection goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Balancing {
    /// How one is picked.
    pub pick: Pick,
    /// Only tasks of the client's node (of the mesh: of the node that it came to), while there are any.
    pub local_first: bool,
    /// A port of the mesh is published only on nodes that have a task.
    pub local_only: bool,
}

/// How one of many is picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pick {
    /// By chance.
    #[default]
    Random,
    /// By the client's address, over the backends there are.
    SourceHash,
    /// By the client's address, over slots that backends have: one that comes or goes moves only the clients
    /// that it gets or had.
    Sticky,
}

/// The routing mesh: what is published on every node leads to ready tasks, wherever they are. The network's
/// sandboxes are routers between nodes; only they know which nodes there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mesh {
    /// This node's own addresses in the network, at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// The MAC that goes with it.
    pub mac: Mac,
    /// Every other node of the cluster.
    pub nodes: Vec<MeshNode>,
    /// What is published on every node.
    pub ports: Vec<MeshPort>,
}

/// Another node's sandbox, as a router in the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshNode {
    /// Its addresses in the network, at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// The MAC that goes with them.
    pub mac: Mac,
    /// The node's data-path address.
    pub node_addr: IpAddr,
}

/// A port that is published on every node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshPort {
    /// The protocol.
    pub protocol: Protocol,
    /// The port on the nodes.
    pub published: u16,
    /// The tasks' port.
    pub target: u16,
    /// The service whose ready tasks it leads to.
    pub service_id: String,
    /// How connections are spread.
    pub balancing: Balancing,
}

/// One task's or container's place in an overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverlayEndpoint {
    /// The task (or the attached container's identifier).
    pub task_id: String,
    /// Its service's identifier, empty for a container of its own.
    pub service_id: String,
    /// Its service, empty for a container of its own.
    pub service_name: String,
    /// `web.1`, empty when it has none.
    pub slot_name: String,
    /// The container's names: full name, short identifier.
    pub container_names: Vec<String>,
    /// The service's aliases in this network; they answer as the service's name does.
    pub aliases: Vec<String>,
    /// Its addresses in this network.
    pub addresses: Vec<IpAddr>,
    /// Its MAC.
    pub mac: Mac,
    /// The data-path address of its node.
    pub node_addr: IpAddr,
    /// Whether it is on this node.
    pub local: bool,
    /// Whether names lead to it: running, healthy, not draining.
    pub ready: bool,
    /// Whether its process runs, ready or not.
    pub started: bool,
}
