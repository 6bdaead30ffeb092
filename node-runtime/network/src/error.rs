//! What can go wrong, per operation. Where Docker's clients see a text, it is Docker's.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use rswarm_base::ipam::{Family, Subnet};
use rswarm_base::{Classify, Kind};

use crate::model::Protocol;

/// The kernel refused something, or a namespace could not be entered.
#[derive(Debug, thiserror::Error)]
#[error("{action}")]
pub struct KernelError {
    /// What was tried, with its noun: "link `rsw-1a2b3c4d` could not be created".
    pub action: String,
    /// The kernel's answer.
    #[source]
    pub source: io::Error,
}

impl Classify for KernelError {
    fn kind(&self) -> Kind {
        Kind::Internal
    }

    fn hint(&self) -> Option<String> {
        (self.source.kind() == io::ErrorKind::PermissionDenied)
            .then(|| "the daemon needs CAP_NET_ADMIN and CAP_SYS_ADMIN: run it as root".to_owned())
    }
}

/// A network namespace could not be made or opened.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The kernel refused to make one.
    #[error("network namespace could not be created")]
    Create(#[source] io::Error),
    /// There is no such process, or it may not be looked at.
    #[error("network namespace of process {pid} could not be opened")]
    Open {
        /// The process.
        pid: i32,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// It was made, but is of no use.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

impl Classify for NetnsError {
    fn kind(&self) -> Kind {
        match self {
            Self::Create(_) | Self::Open { .. } => Kind::Internal,
            Self::Kernel(error) => error.kind(),
        }
    }
}

/// Networking could not be started.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory of pinned sandboxes is unusable.
    #[error("sandbox directory `{path}` could not be prepared")]
    NetnsDir {
        /// The directory.
        path: PathBuf,
        /// The failing call's error.
        #[source]
        source: io::Error,
    },
    /// The default bridge could not be made.
    #[error("default bridge network could not be created")]
    DefaultBridge(#[source] CreateBridgeError),
    /// The kernel refused something.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

impl Classify for OpenError {
    fn kind(&self) -> Kind {
        match self {
            Self::NetnsDir { .. } => Kind::Internal,
            Self::DefaultBridge(error) => error.kind(),
            Self::Kernel(error) => error.kind(),
        }
    }
}

/// A bridge network could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CreateBridgeError {
    /// The subnet is another network's.
    #[error("Pool overlaps with other one on this address space")]
    Overlap(Subnet),
    /// All pools are in use.
    #[error("all predefined address pools have been fully subnetted")]
    NoFreePool,
    /// The gateway (or a reserved address) is not in the subnet.
    #[error("no matching subnet for gateway {0}")]
    Gateway(IpAddr),
    /// There is a second subnet of the same family.
    #[error("bridge driver doesn't support multiple subnets")]
    Subnets,
    /// A subnet of a family that the network is made without.
    #[error("subnet `{0}` is of an address family that is not enabled on the network")]
    Family(Subnet),
    /// A reserved address, or the range, is not in the subnet.
    #[error("{0} is not in the subnet {1}")]
    Outside(String, Subnet),
    /// The network would have no addresses at all.
    #[error("IPv4 or IPv6 must be enabled")]
    NoFamily,
    /// The kernel was started without IPv6.
    #[error("IPv6 is not available on this host")]
    NoIpv6,
    /// Too small for what IPv6 must carry.
    #[error("invalid MTU number: {0}: IPv6 needs at least 1280")]
    Mtu(u32),
    /// The interface's name is longer than the kernel takes, or not ours.
    #[error("network interface `{0}` cannot be used: it belongs to something else, or its name is invalid")]
    Interface(String),
    /// The kernel refused something.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

impl Classify for CreateBridgeError {
    fn kind(&self) -> Kind {
        match self {
            Self::Overlap(_) | Self::Interface(_) | Self::Subnets => Kind::PermissionDenied,
            Self::NoFreePool
            | Self::Gateway(_)
            | Self::Family(_)
            | Self::Outside(..)
            | Self::NoFamily
            | Self::NoIpv6
            | Self::Mtu(_) => Kind::InvalidArgument,
            Self::Kernel(error) => error.kind(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Overlap(subnet) => Some(format!("choose a subnet that does not overlap `{subnet}`")),
            Self::NoFreePool => Some("remove unused networks, or give the network a subnet".to_owned()),
            Self::Gateway(_)
            | Self::Family(_)
            | Self::Subnets
            | Self::Outside(..)
            | Self::NoFamily
            | Self::NoIpv6
            | Self::Mtu(_)
            | Self::Interface(_) => None,
            Self::Kernel(error) => error.hint(),
        }
    }
}

/// A network on one of the host's links could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CreateLanError {
    /// Its addresses are not possible.
    #[error(transparent)]
    Addresses(#[from] CreateBridgeError),
    /// The kernel has no such interfaces.
    #[error("kernel does not support {0}")]
    NoDriver(&'static str),
    /// The kernel has no links of the kind that would have to be made.
    #[error("parent interface `{parent}` could not be created: the kernel has no {kind} interfaces")]
    NoParentKind {
        /// The link.
        parent: String,
        /// Of which kind it would be.
        kind: &'static str,
    },
    /// Nothing but this host is on it.
    #[error("loopback interface is not a valid {0} parent link")]
    Loopback(&'static str),
    /// There is no such link, and its name does not say how to make one.
    #[error("invalid subinterface vlan name {0}, example formatting is eth0.10")]
    NoParent(String),
    /// Not in 1..=4094 (IEEE 802.1Q).
    #[error("vlan id must be between 1-4094, received: {0}")]
    VlanId(String),
    /// The link that the VLAN would be of is not there.
    #[error("failed to find master interface {0} on the Docker host")]
    NoMaster(String),
    /// Its mode allows one network alone on the link.
    #[error("cannot use mode passthru, {driver} network {other} is already using parent interface {parent}")]
    Exclusive {
        /// Of which driver.
        driver: &'static str,
        /// The other network.
        other: String,
        /// The link.
        parent: String,
    },
    /// The link is another network's alone.
    #[error("{driver} network {other} is already using parent interface {parent} in mode passthru")]
    Taken {
        /// Of which driver.
        driver: &'static str,
        /// The other network.
        other: String,
        /// The link.
        parent: String,
    },
    /// The kernel refused something.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

impl Classify for CreateLanError {
    fn kind(&self) -> Kind {
        match self {
            Self::Addresses(error) => error.kind(),
            Self::NoDriver(_) | Self::NoParentKind { .. } => Kind::NotImplemented,
            Self::Loopback(_) | Self::NoParent(_) | Self::VlanId(_) | Self::NoMaster(_) => {
                Kind::InvalidArgument
            }
            Self::Exclusive { .. } | Self::Taken { .. } => Kind::PermissionDenied,
            Self::Kernel(error) => error.kind(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Addresses(error) => error.hint(),
            Self::NoDriver(driver) => {
                Some(format!("load it with `modprobe {driver}`, or use another driver"))
            }
            Self::NoParentKind { .. } => Some("name a link that is there with `-o parent=LINK`".to_owned()),
            Self::NoParent(_) | Self::NoMaster(_) => Some("see `ip link` for the links there are".to_owned()),
            Self::Loopback(_) | Self::VlanId(_) | Self::Exclusive { .. } | Self::Taken { .. } => None,
            Self::Kernel(error) => error.hint(),
        }
    }
}

/// A network could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// Containers are attached to it.
    #[error("network {network} has active endpoints")]
    InUse {
        /// The network's name.
        network: String,
    },
    /// The kernel refused something.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

impl Classify for RemoveError {
    fn kind(&self) -> Kind {
        match self {
            Self::InUse { .. } => Kind::PermissionDenied,
            Self::Kernel(error) => error.kind(),
        }
    }
}

/// An overlay could not be brought to the wanted state.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// What was asked for cannot be.
    #[error("overlay network `{network}` is invalid: {reason}")]
    Invalid {
        /// The network's name.
        network: String,
        /// Why.
        reason: String,
    },
    /// It was removed while this waited for its turn.
    #[error("overlay network `{0}` was removed meanwhile")]
    Removed(String),
    /// Its sandbox could not be pinned.
    #[error("sandbox of network `{network}` could not be pinned to `{path}`")]
    Pin {
        /// The network's name.
        network: String,
        /// The file.
        path: PathBuf,
        /// The failing call's error.
        #[source]
        source: io::Error,
    },
    /// Its sandbox could not be made.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// It has no address on the default bridge.
    #[error("network `{network}` has no way out")]
    Uplink {
        /// The network's name.
        network: String,
        /// Why.
        #[source]
        source: Box<AttachError>,
    },
    /// It is encrypted, and what encrypts is not there.
    #[error("network `{network}` has no encrypted way to other nodes")]
    Tunnel {
        /// The network's name.
        network: String,
        /// Why.
        #[source]
        source: TunnelError,
    },
    /// The kernel refused something.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

impl Classify for OverlayError {
    fn kind(&self) -> Kind {
        match self {
            Self::Invalid { .. } => Kind::InvalidArgument,
            Self::Removed(_) => Kind::Conflict,
            Self::Pin { .. } => Kind::Internal,
            Self::Netns(error) => error.kind(),
            Self::Uplink { source, .. } => source.kind(),
            Self::Tunnel { source, .. } => source.kind(),
            Self::Kernel(error) => error.kind(),
        }
    }
}

/// The WireGuard device of encrypted overlays could not be made, changed or removed.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// Its directory could not be used.
    #[error("`{path}` could not be used")]
    Directory {
        /// The file or directory.
        path: PathBuf,
        /// The failing call's error.
        #[source]
        source: io::Error,
    },
    /// Its namespace could not be pinned, found or let go.
    #[error("the tunnel's namespace could not be pinned to `{path}`")]
    Pin {
        /// The file.
        path: PathBuf,
        /// The failing call's error.
        #[source]
        source: io::Error,
    },
    /// Its namespace could not be made.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// Its process could not be started.
    #[error("`{exe} tunnel` could not be started")]
    Spawn {
        /// The program.
        exe: PathBuf,
        /// The failing call's error.
        #[source]
        source: io::Error,
    },
    /// Its process cannot serve, in its own words.
    #[error("the kernel has no WireGuard, and the device in user space does not work: {0}")]
    Device(String),
    /// Its process does not answer.
    #[error("the WireGuard device in user space does not answer")]
    Ask(#[source] io::Error),
    /// Its process does not end.
    #[error("process {pid} of the WireGuard device could not be ended")]
    Stop {
        /// The process.
        pid: i32,
        /// The failing call's error.
        #[source]
        source: io::Error,
    },
    /// The kernel refused something.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

impl Classify for TunnelError {
    fn kind(&self) -> Kind {
        match self {
            Self::Directory { .. } | Self::Pin { .. } | Self::Spawn { .. } | Self::Stop { .. } => {
                Kind::Internal
            }
            Self::Netns(error) => error.kind(),
            Self::Device(_) | Self::Ask(_) => Kind::Unavailable,
            Self::Kernel(error) => error.kind(),
        }
    }
}

/// A container could not be attached, published or given DNS.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// There is no such network here (an overlay must be applied first).
    #[error("network {0} not found")]
    NoSuchNetwork(String),
    /// The container has an endpoint in it.
    #[error("endpoint of container `{container}` already exists in network {network}")]
    AlreadyAttached {
        /// The container.
        container: String,
        /// The network's name.
        network: String,
    },
    /// Another endpoint has the address.
    #[error("Address already in use")]
    AddressInUse(IpAddr),
    /// The link's own MAC is that of all.
    #[error("ipvlan interfaces do not support custom mac address assignment")]
    NoOwnMac,
    /// The link that the network is on has gone.
    #[error("parent interface `{parent}` of network {network} does not exist")]
    NoParent {
        /// The link.
        parent: String,
        /// The network's name.
        network: String,
    },
    /// The address is not in the network's subnet.
    #[error(
        "invalid config for network {network}: invalid endpoint settings:\n\
         no configured subnet or ip-range contain the IP address {address}"
    )]
    AddressOutside {
        /// The address.
        address: IpAddr,
        /// The network's name.
        network: String,
    },
    /// The subnet is full.
    #[error("no available {family} addresses on this network's address pools: {network} ({id})")]
    AddressesExhausted {
        /// Of which kind.
        family: Family,
        /// The network's name.
        network: String,
        /// The network's identifier.
        id: String,
    },
    /// An overlay's address comes from the cluster, and none came.
    #[error("network `{0}` gives no addresses itself: the cluster must")]
    AddressMissing(String),
    /// Another container of ours publishes the port.
    #[error("Bind for {address}:{port} failed: port is already allocated")]
    PortAllocated {
        /// The host's address.
        address: IpAddr,
        /// The host's port.
        port: u16,
    },
    /// Another process has the port.
    #[error("failed to bind host port for {host}:{target}/{protocol}")]
    PortBind {
        /// The host's address and port.
        host: SocketAddr,
        /// The container's.
        target: SocketAddr,
        /// The protocol.
        protocol: Protocol,
        /// Who has it, as `name (pid)`, where the kernel tells.
        holder: Option<String>,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No port of the range, or none at all, is free.
    #[error("Bind for {address} failed: all ports are allocated")]
    PortsExhausted {
        /// The host's address.
        address: IpAddr,
    },
    /// The container has no address of the family that the host's is of.
    #[error("port cannot be published on `{0}`: the container has no {family} address", family = Family::of(*.0))]
    PortFamily(IpAddr),
    /// The network has no way in.
    #[error("network `{0}` cannot publish ports: it has no way in from the host")]
    NotPublishable(String),
    /// The container's DNS could not be started.
    #[error("DNS of container `{container}` could not be started")]
    Dns {
        /// The container.
        container: String,
        /// The failing call's error.
        #[source]
        source: io::Error,
    },
    /// The overlay that a container was found in could not be taken over.
    #[error("endpoint could not be taken over")]
    Sandbox(#[source] Box<OverlayError>),
    /// Networking is being shut down.
    #[error("networking is shutting down")]
    ShuttingDown,
    /// The kernel refused something.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

impl AttachError {
    /// Whether a published port is what could not be had.
    #[must_use]
    pub fn is_of_port(&self) -> bool {
        matches!(
            self,
            Self::PortAllocated { .. }
                | Self::PortBind { .. }
                | Self::PortsExhausted { .. }
                | Self::PortFamily(_)
        )
    }
}

impl Classify for AttachError {
    fn kind(&self) -> Kind {
        match self {
            Self::NoSuchNetwork(_) => Kind::NotFound,
            Self::AlreadyAttached { .. } | Self::AddressInUse(_) | Self::NotPublishable(_) => {
                Kind::PermissionDenied
            }
            Self::AddressOutside { .. } | Self::PortFamily(_) | Self::NoOwnMac => Kind::InvalidArgument,
            Self::NoParent { .. } => Kind::FailedPrecondition,
            // Docker answers 500 to all of these, and its clients know no better.
            Self::AddressesExhausted { .. }
            | Self::PortAllocated { .. }
            | Self::PortBind { .. }
            | Self::PortsExhausted { .. } => Kind::Internal,
            Self::AddressMissing(_) | Self::Dns { .. } => Kind::Internal,
            Self::Sandbox(error) => error.kind(),
            Self::ShuttingDown => Kind::Unavailable,
            Self::Kernel(error) => error.kind(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::PortAllocated { port, .. } => {
                Some(format!("stop the container that publishes port {port}, or publish another port"))
            }
            Self::PortBind { host, holder: Some(holder), .. } => {
                let port = host.port();
                Some(format!("process {holder} has port {port}: stop it, or publish another port"))
            }
            Self::PortBind { host, .. } => {
                Some(format!("find the process that has it with `ss -lpn sport = {}`", host.port()))
            }
            Self::PortFamily(IpAddr::V6(_)) => {
                Some("put the container on a network that was created with `--ipv6`".to_owned())
            }
            Self::NoParent { parent, .. } => {
                Some(format!("make `{parent}` again, or restart the daemon if it made it"))
            }
            Self::Kernel(error) => error.hint(),
            Self::NoSuchNetwork(_)
            | Self::AlreadyAttached { .. }
            | Self::NoOwnMac
            | Self::AddressInUse(_)
            | Self::AddressOutside { .. }
            | Self::AddressesExhausted { .. }
            | Self::AddressMissing(_)
            | Self::PortsExhausted { .. }
            | Self::PortFamily(IpAddr::V4(_))
            | Self::NotPublishable(_)
            | Self::Dns { .. }
            | Self::Sandbox(_)
            | Self::ShuttingDown => None,
        }
    }
}
