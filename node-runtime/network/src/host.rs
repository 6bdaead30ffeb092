//! The daemon's own network namespace: its nftables table, and which host port belongs to whom.

mod mesh;
mod port;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;

use self::mesh::MeshPorts;
use self::port::reserve;
use crate::conntrack::{self, Doomed};
use crate::error::{AttachError, KernelError};
use crate::model::{BoundPort, PortBinding, Protocol};
use crate::netns::{Netns, set_sysctl};
use crate::nft::{self, Held, Settled};
use crate::rules::{self, BridgeRules, HostPort, Target};

/// How often the kernel is asked for a free port before giving up.
const EPHEMERAL_TRIES: u32 = 32;

/// One container's endpoint in one network.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// The container.
    pub container: String,
    /// The network.
    pub network: String,
}

/// A port to publish, and where it leads.
#[derive(Debug, Clone)]
pub struct Publish {
    /// What was asked for.
    pub binding: PortBinding,
    /// Where the host sends it.
    pub target: Target,
}

/// A host port that is taken.
#[derive(Debug)]
struct Lease {
    owner: Endpoint,
    target: Target,
    /// Keeps other processes of the host from binding the port; `None` when one had it already at adoption.
    _reserved: Option<OwnedFd>,
}

/// The namespace's owner.
#[derive(Debug)]
pub struct Host {
    home: Netns,
    /// The table's name.
    table: String,
    bridges: BTreeMap<String, BridgeRules>,
    leases: BTreeMap<HostPort, Lease>,
    /// What a daemon before us published, until its containers are adopted or [`Host::settle`].
    inherited: BTreeMap<HostPort, Target>,
    /// What every node of the cluster publishes.
    mesh: MeshPorts,
    /// What the kernel has.
    applied: Option<Held>,
    /// What still waited when the tables were removed must not bring them back.
    closed: bool,
}

impl Host {
    /// Prepares the namespace, and reads what was published before.
    pub async fn open(home: Netns, table: String) -> Result<Host, KernelError> {
        let name = table.clone();
        let read = move || {
            set_sysctl("ipv4/ip_forward", "1");
            ensure_user_table();
            let mut inherited = BTreeMap::new();
            for map in [rules::BY_ADDRESS, rules::ANY] {
                inherited.extend(read_ports(&name, map)?);
            }
            Ok((inherited, MeshPorts::inherit(read_ports(&name, rules::MESH)?)))
        };
        let (inherited, mesh) =
            home.act(format!("rules of table `{table}` could not be listed"), read).await?;
        let (bridges, leases) = (BTreeMap::new(), BTreeMap::new());
        Ok(Host { home, table, bridges, leases, inherited, mesh, applied: None, closed: false })
    }

    /// Adds or changes a bridge's rules.
    pub async fn set_bridge(&mut self, interface: String, rules: BridgeRules) -> Result<(), KernelError> {
        let before = self.bridges.insert(interface.clone(), rules);
        let done = self.apply().await;
        if done.is_err() {
            match before {
                Some(rules) => self.bridges.insert(interface, rules),
                None => self.bridges.remove(&interface),
            };
        }
        done
    }

    /// Removes a bridge's rules.
    pub async fn remove_bridge(&mut self, interface: &str) -> Result<(), KernelError> {
        self.bridges.remove(interface);
        self.apply().await
    }

    /// Publishes ports: all of them, or none.
    pub async fn publish(
        &mut self,
        owner: Endpoint,
        ports: Vec<Publish>,
        inside: IpAddr,
    ) -> Result<Vec<BoundPort>, AttachError> {
        let mut bound = Vec::new();
        let mut taken = Vec::new();
        let mut failed = None;
        for port in &ports {
            match self.lease(&owner, port, inside).await {
                Ok(host) => {
                    taken.push(host);
                    bound.push(BoundPort {
                        host_ip: host.address.into(),
                        host_port: host.port,
                        container_port: port.binding.container_port,
                        protocol: host.protocol,
                    });
                }
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        if failed.is_none() && !taken.is_empty() {
            failed = self.apply().await.err().map(AttachError::from);
        }
        let Some(error) = failed else {
            self.forget_flows(&taken).await;
            return Ok(bound);
        };
        for port in taken {
            self.leases.remove(&port);
        }
        Err(error)
    }

    /// UDP clients that were already sending get the new rules too.
    async fn forget_flows(&self, ports: &[HostPort]) {
        for port in ports.iter().filter(|port| port.protocol == Protocol::Udp) {
            conntrack::forget(&self.home, Doomed::UdpTo(port.port)).await;
        }
    }

    /// Takes over ports that a running container had published, without touching its traffic.
    pub async fn adopt(
        &mut self,
        owner: Endpoint,
        ports: Vec<(BoundPort, Target)>,
    ) -> Result<(), KernelError> {
        for (port, target) in ports {
            let IpAddr::V4(address) = port.host_ip else { continue };
            let host = HostPort { address, protocol: port.protocol, port: port.host_port };
            let reserved = self.home.run(move || reserve(host)).await.and_then(std::convert::identity);
            if let Err(error) = &reserved {
                tracing::warn!(?host, %error, "published port is not reserved: another process has it");
            }
            let reserved = reserved.ok().map(|(socket, _)| socket);
            self.leases.insert(host, Lease { owner: owner.clone(), target, _reserved: reserved });
        }
        self.apply().await
    }

    /// Withdraws what an endpoint published.
    pub async fn withdraw(&mut self, owner: &Endpoint) -> Result<(), KernelError> {
        self.leases.retain(|_, lease| lease.owner != *owner);
        self.apply().await
    }

    /// Withdraws what nobody adopted, and forgets the connections of containers that ended unseen.
    pub async fn settle(&mut self) -> Result<(), KernelError> {
        let inherited = std::mem::take(&mut self.inherited);
        self.apply().await?;
        let leased = self.leases.values().map(|lease| lease.target);
        let live: BTreeSet<Ipv4Addr> =
            leased.chain(self.mesh.targets().into_values()).map(|target| target.address).collect();
        let gone: BTreeSet<Ipv4Addr> = inherited.values().map(|target| target.address).collect();
        for address in gone.difference(&live) {
            conntrack::forget(&self.home, Doomed::AnsweredBy((*address).into())).await;
        }
        Ok(())
    }

    /// Removes the tables.
    pub async fn close(&mut self) -> Result<(), KernelError> {
        self.closed = true;
        self.leases.clear();
        self.bridges.clear();
        self.inherited.clear();
        self.mesh = MeshPorts::default();
        self.applied = None;
        let table = self.table.clone();
        let action = format!("table `{table}` could not be removed");
        let remove = move || nft::commit(None, None, &table).and(nft::commit(None, None, rules::USER));
        self.home.act(action, remove).await.map(|_| ())
    }

    async fn apply(&mut self) -> Result<(), KernelError> {
        let mut ports = self.inherited.clone();
        ports.extend(self.leases.iter().map(|(port, lease)| (*port, lease.target)));
        let wanted = rules::host(&self.table, &self.bridges, &ports, &self.mesh.targets());
        let before = self.applied.take();
        let action = format!("rules of table `{}` could not be changed", self.table);
        // After an error it is unknown what the kernel has, so the next change replaces all of it.
        let (held, settled) = self.home.act(action, move || nft::settle(before, wanted)).await?;
        self.applied = Some(held);
        if settled == Settled::Repaired {
            tracing::warn!(table = self.table, "somebody else changed the rules; they are put right");
        }
        Ok(())
    }

    /// Looks whether the kernel still has what it was given, and puts right what it has not.
    pub async fn check(&mut self) -> Result<(), KernelError> {
        // Without rules nothing is damaged.
        if self.closed || (self.applied.is_none() && self.bridges.is_empty()) {
            return Ok(());
        }
        let settings = || {
            set_sysctl("ipv4/ip_forward", "1");
            ensure_user_table();
            Ok(())
        };
        self.home.act("settings could not be looked at", settings).await?;
        self.apply().await
    }

    /// Finds and takes a host port.
    async fn lease(
        &mut self,
        owner: &Endpoint,
        port: &Publish,
        inside: IpAddr,
    ) -> Result<HostPort, AttachError> {
        let PortBinding { host_ip, host_port, host_port_end, container_port, protocol } = port.binding;
        let address = match host_ip.unwrap_or(Ipv4Addr::UNSPECIFIED.into()) {
            IpAddr::V4(address) => address,
            other @ IpAddr::V6(_) => return Err(AttachError::PortFamily(other)),
        };
        let wanted = HostPort { address, protocol, port: host_port };
        if host_port == 0 {
            return self.lease_any(owner, port.target, wanted).await;
        }
        let is_range = host_port_end > host_port;
        for number in host_port..=host_port_end.max(host_port) {
            let host = HostPort { port: number, ..wanted };
            if self.conflicts(host) {
                if is_range {
                    continue;
                }
                return Err(AttachError::PortAllocated { address: address.into(), port: number });
            }
            match self.reserve(host).await {
                Ok((socket, _)) => {
                    self.take(owner, port.target, host, socket);
                    return Ok(host);
                }
                Err(_) if is_range => {}
                Err(error) => {
                    let source = in_dockers_words(error);
                    let target = format!("{inside}:{container_port}");
                    let address = address.into();
                    return Err(AttachError::PortBind { address, port: number, target, protocol, source });
                }
            }
        }
        Err(AttachError::PortsExhausted { address: address.into() })
    }

    async fn lease_any(
        &mut self,
        owner: &Endpoint,
        target: Target,
        wanted: HostPort,
    ) -> Result<HostPort, AttachError> {
        for _ in 0..EPHEMERAL_TRIES {
            let Ok((socket, number)) = self.reserve(wanted).await else { break };
            let host = HostPort { port: number, ..wanted };
            if !self.conflicts(host) {
                self.take(owner, target, host, socket);
                return Ok(host);
            }
        }
        Err(AttachError::PortsExhausted { address: wanted.address.into() })
    }

    fn take(&mut self, owner: &Endpoint, target: Target, host: HostPort, socket: OwnedFd) {
        self.leases.insert(host, Lease { owner: owner.clone(), target, _reserved: Some(socket) });
    }

    /// Whether we have the port already, on an address that `wanted` includes.
    fn conflicts(&self, wanted: HostPort) -> bool {
        self.holder(wanted).is_some() || self.mesh.has(wanted.protocol, wanted.port)
    }

    /// Which of our containers has the port.
    fn holder(&self, wanted: HostPort) -> Option<&Endpoint> {
        let overlaps = |taken: &HostPort| {
            taken.port == wanted.port
                && taken.protocol == wanted.protocol
                && (taken.address == wanted.address
                    || taken.address.is_unspecified()
                    || wanted.address.is_unspecified())
        };
        self.leases.iter().find(|(taken, _)| overlaps(taken)).map(|(_, lease)| &lease.owner)
    }

    async fn reserve(&self, host: HostPort) -> io::Result<(OwnedFd, u16)> {
        self.home.run(move || reserve(host)).await?
    }
}

/// Makes the administrator's table, unless it is there: what he has in it is his.
fn ensure_user_table() {
    let made = nft::has_chain(rules::USER, rules::USER_CHAIN).and_then(|is_there| match is_there {
        true => Ok(()),
        false => nft::ensure(&rules::user()),
    });
    if let Err(error) = made {
        tracing::warn!(table = rules::USER, %error, "table for the administrator's rules could not be made");
    }
}

/// What clients look for in a refusal.
fn in_dockers_words(error: io::Error) -> io::Error {
    match error.kind() {
        kind @ io::ErrorKind::AddrInUse => io::Error::new(kind, "address already in use"),
        kind @ io::ErrorKind::AddrNotAvailable => io::Error::new(kind, "cannot assign requested address"),
        _ => error,
    }
}

/// The ports that a map of ours has in the kernel, in the calling thread's namespace.
fn read_ports(table: &str, map: &str) -> io::Result<BTreeMap<HostPort, Target>> {
    let elements = nft::elements(table, map)?;
    Ok(elements.iter().filter_map(|(key, value)| rules::read_port((key, value))).collect())
}
