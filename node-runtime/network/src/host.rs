//! The daemon's own network namespace: its nftables tables, and which host port belongs to whom.

mod mesh;
mod port;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use rswarm_base::ipam::Family;

use self::mesh::MeshPorts;
use self::port::reserve;
use crate::check::{self, Exposed, Exposure, Finding, MeshServices, Owned};
use crate::conntrack::{self, Doomed};
use crate::error::{AttachError, KernelError};
use crate::model::{BoundPort, FirewallMode, Opening, PortBinding, Protocol};
use crate::netns::{self, Netns, forward_ipv6, set_sysctl};
use crate::nft::{self, Held, Settled, Table};
use crate::reset;
use crate::rules::{self, BridgeRules, HostPort, InFamily, Target};

/// What the names of all daemons' tables begin with.
const OWN_TABLES: &str = "rswarm-";
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
    /// Where it leads, for each family that the container has an address of.
    pub ways: Vec<Way>,
}

/// The way to a container's port.
#[derive(Debug, Clone, Copy)]
pub struct Way {
    /// The container's address.
    pub inside: IpAddr,
    /// Where the host sends it.
    pub target: Target,
}

impl Publish {
    /// The host's addresses to publish on, with the way from each; ports are to be chosen.
    fn places(&self) -> Result<Vec<(HostPort, Way)>, AttachError> {
        let PortBinding { host_ip, protocol, .. } = self.binding;
        let place = |way: &Way| match host_ip {
            None => Some((HostPort::any(Family::of(way.inside), protocol, 0), *way)),
            Some(address) => (Family::of(address) == Family::of(way.inside))
                .then_some((HostPort { address, protocol, port: 0 }, *way)),
        };
        let places: Vec<_> = self.ways.iter().filter_map(place).collect();
        match host_ip {
            Some(address) if places.is_empty() => Err(AttachError::PortFamily(address)),
            _ => Ok(places),
        }
    }
}

/// A host port that is taken.
#[derive(Debug)]
struct Lease {
    owner: Endpoint,
    target: Target,
    /// Keeps other processes of the host from binding the port; `None` when one had it already at adoption,
    /// and for protocols that the kernel has no sockets of.
    _reserved: Option<OwnedFd>,
}

/// The namespace's owner.
#[derive(Debug)]
pub struct Host {
    home: Netns,
    /// The families that the kernel has.
    families: Vec<Family>,
    /// The tables' name.
    table: String,
    firewall: FirewallMode,
    bridges: BTreeMap<String, BridgeRules>,
    /// What containers may reach of neighbours that they are kept from, by container.
    openings: BTreeMap<String, Vec<Opening>>,
    leases: BTreeMap<HostPort, Lease>,
    /// What a daemon before us published, until its containers are adopted or [`Host::settle`].
    inherited: BTreeMap<HostPort, Target>,
    /// What every node of the cluster publishes.
    mesh: MeshPorts,
    /// What the kernel has.
    applied: Vec<Held>,
    /// What still waited when the tables were removed must not bring them back.
    closed: bool,
}

impl Host {
    /// Prepares the namespace, and reads what was published before.
    pub async fn open(home: Netns, table: String, firewall: FirewallMode) -> Result<Host, KernelError> {
        let name = table.clone();
        let read = move || {
            set_sysctl("ipv4/ip_forward", "1");
            let families = netns::families();
            let (mut inherited, mut mesh) = (BTreeMap::new(), BTreeMap::new());
            for family in families.iter().copied() {
                ensure_user_table(family);
                for map in [rules::BY_ADDRESS, rules::ANY] {
                    inherited.extend(read_ports(family, &name, map)?);
                }
                mesh.extend(read_ports(family, &name, rules::MESH)?);
            }
            Ok((families, inherited, MeshPorts::inherit(mesh)))
        };
        let (families, inherited, mesh) =
            home.act(format!("rules of table `{table}` could not be listed"), read).await?;
        Ok(Host {
            home,
            families,
            table,
            firewall,
            bridges: BTreeMap::new(),
            openings: BTreeMap::new(),
            leases: BTreeMap::new(),
            inherited,
            mesh,
            applied: Vec::new(),
            closed: false,
        })
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

    /// Replaces what a container may reach of its neighbours.
    pub async fn open_links(&mut self, container: String, openings: Vec<Opening>) -> Result<(), KernelError> {
        let before = if openings.is_empty() {
            self.openings.remove(&container).unwrap_or_default()
        } else {
            self.openings.insert(container, openings.clone()).unwrap_or_default()
        };
        if before == openings { Ok(()) } else { self.apply().await }
    }

    /// Forgets a container that has left: what it might reach, and what might reach it.
    pub async fn close_links(&mut self, container: &str) -> Result<(), KernelError> {
        let count = |all: &BTreeMap<String, Vec<Opening>>| all.values().map(Vec::len).sum::<usize>();
        let before = count(&self.openings);
        self.openings.remove(container);
        for openings in self.openings.values_mut() {
            openings.retain(|opening| opening.target != container);
        }
        if count(&self.openings) == before { Ok(()) } else { self.apply().await }
    }

    /// Publishes ports: all of them, or none.
    pub async fn publish(
        &mut self,
        owner: Endpoint,
        ports: Vec<Publish>,
    ) -> Result<Vec<BoundPort>, AttachError> {
        let mut bound = Vec::new();
        let mut taken = Vec::new();
        let mut failed = None;
        for port in &ports {
            match self.lease(&owner, port).await {
                Ok(hosts) => {
                    bound.extend(hosts.iter().map(|host| BoundPort {
                        host_ip: host.address,
                        host_port: host.port,
                        container_port: port.binding.container_port,
                        protocol: host.protocol,
                    }));
                    taken.extend(hosts);
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
            conntrack::forget(&self.home, Doomed::UdpTo { family: port.family(), port: port.port }).await;
        }
    }

    /// Ends connections that were led to an overlay's way out and from there to somebody who cannot be reached:
    /// `(where they were led, their client)`.
    pub async fn refuse(&mut self, ways: BTreeSet<(SocketAddr, SocketAddr)>) {
        let led = conntrack::sever(&self.home, Doomed::Between(ways)).await;
        reset::refuse(&self.home, led).await;
    }

    /// Takes over ports that a running container had published, without touching its traffic.
    pub async fn adopt(
        &mut self,
        owner: Endpoint,
        ports: Vec<(BoundPort, Target)>,
    ) -> Result<(), KernelError> {
        for (port, target) in ports {
            let host = HostPort { address: port.host_ip, protocol: port.protocol, port: port.host_port };
            let reserved = self.home.run(move || reserve(host)).await.and_then(std::convert::identity);
            if let Err(error) = &reserved {
                tracing::warn!(?host, %error, "published port is not reserved: another process has it");
            }
            let reserved = reserved.ok().and_then(|(socket, _)| socket);
            self.leases.insert(host, Lease { owner: owner.clone(), target, _reserved: reserved });
        }
        self.apply().await
    }

    /// Withdraws what an endpoint published in some families.
    pub async fn withdraw(&mut self, owner: &Endpoint, families: &[Family]) -> Result<(), KernelError> {
        self.leases.retain(|place, lease| lease.owner != *owner || !families.contains(&place.family()));
        self.apply().await
    }

    /// Withdraws what nobody adopted, and forgets the connections of containers that ended unseen.
    pub async fn settle(&mut self) -> Result<(), KernelError> {
        let inherited = std::mem::take(&mut self.inherited);
        self.apply().await?;
        let leased = self.leases.values().map(|lease| lease.target);
        let live: BTreeSet<IpAddr> =
            leased.chain(self.mesh.targets().into_values()).map(|target| target.address).collect();
        let gone: BTreeSet<IpAddr> = inherited.values().map(|target| target.address).collect();
        conntrack::forget(&self.home, Doomed::AnsweredBy(&gone - &live)).await;
        Ok(())
    }

    /// Removes the tables.
    pub async fn close(&mut self) -> Result<(), KernelError> {
        self.closed = true;
        self.leases.clear();
        self.bridges.clear();
        self.openings.clear();
        self.inherited.clear();
        self.mesh = MeshPorts::default();
        self.applied.clear();
        let table = self.table.clone();
        let action = format!("table `{table}` could not be removed");
        let remove = move || nft::remove(&table).and(nft::remove(rules::USER));
        self.home.act(action, remove).await
    }

    async fn apply(&mut self) -> Result<(), KernelError> {
        let mut ports = self.inherited.clone();
        ports.extend(self.leases.iter().map(|(port, lease)| (*port, lease.target)));
        let mesh = self.mesh.targets();
        let openings = || self.openings.values().flatten();
        let table = |family| rules::host(family, &self.table, &self.bridges, openings(), &ports, &mesh);
        let mut wanted: Vec<Table> = self.families.iter().copied().map(table).collect();
        let before = std::mem::take(&mut self.applied);
        let action = format!("rules of table `{}` could not be changed", self.table);
        // After an error it is unknown what the kernel has, so the next change replaces all of it.
        let firewall = self.firewall;
        let settle = move || {
            if firewall == FirewallMode::Input {
                let chains = nft::base_chains()?;
                let closed = wanted.iter_mut().filter(|table| is_closed(table.family, &chains));
                closed.for_each(rules::require_consent);
            }
            nft::settle(before, wanted)
        };
        let (held, settled) = self.home.act(action, settle).await?;
        self.applied = held;
        if settled == Settled::Repaired {
            tracing::warn!(table = self.table, "somebody else changed the rules; they are put right");
        }
        Ok(())
    }

    /// Looks whether the kernel still has what it was given, and puts right what it has not.
    pub async fn check(&mut self) -> Result<(), KernelError> {
        // Without rules nothing is damaged.
        if self.closed || (self.applied.is_empty() && self.bridges.is_empty()) {
            return Ok(());
        }
        let families = self.families.clone();
        let subnets = self.bridges.values().flat_map(|bridge| &bridge.subnets);
        let has_v6 = subnets.into_iter().any(|subnet| subnet.family() == Family::V6);
        let settings = move || {
            set_sysctl("ipv4/ip_forward", "1");
            if has_v6 {
                forward_ipv6();
            }
            families.into_iter().for_each(ensure_user_table);
            Ok(())
        };
        self.home.act("settings could not be looked at", settings).await?;
        self.apply().await
    }

    /// Whether the kernel has what it should; nothing is changed.
    pub async fn examine(&self) -> Result<Vec<Finding>, KernelError> {
        let held = self.applied.clone();
        let look = move || {
            let is_held = nft::are_held(&held)?;
            let forwards = fs::read_to_string("/proc/sys/net/ipv4/ip_forward")?.trim() == "1";
            Ok((is_held, forwards, nft::base_chains()?))
        };
        let (is_held, forwards, chains) = self.home.act("rules could not be listed", look).await?;
        let subject = format!("table {}", self.table);
        let mut findings = vec![if is_held {
            Finding::good(subject, "is as it should be")
        } else {
            Finding::bad(
                subject,
                "was changed by somebody else",
                "the daemon puts it right by itself; find out who changes it with `nft monitor`",
            )
        }];
        if !forwards {
            let remedy = "the daemon turns it on by itself; find out who turns it off, such as a file in /etc/sysctl.d";
            findings.push(Finding::bad("net.ipv4.ip_forward", "is off", remedy));
        }
        findings.extend(check::strangers(&chains, OWN_TABLES));
        Ok(findings)
    }

    /// What can be reached here, and by which filters it comes.
    pub async fn audit(&self, services: MeshServices) -> Result<Exposure, KernelError> {
        let listed = || nft::base_chains().map(|chains| (chains, check::legacy_tables()));
        let (chains, legacy) = self.home.act("chains could not be listed", listed).await?;
        let exposed = |port: &HostPort, target: Target, owner| Exposed {
            host_ip: port.address,
            host_port: port.port,
            protocol: port.protocol,
            owner,
            target: (target.address, target.port),
        };
        let leased = self.leases.iter().map(|(port, lease)| {
            let (id, network_id) = (lease.owner.container.clone(), lease.owner.network.clone());
            exposed(port, lease.target, Owned::Container { id, network_id })
        });
        let unclaimed = self.inherited.iter().filter(|(port, _)| !self.leases.contains_key(port));
        let unclaimed = unclaimed.map(|(port, target)| exposed(port, *target, Owned::Unclaimed));
        let targets = self.mesh.targets();
        let mesh = targets.iter().map(|(port, target)| {
            let service_id = services.get(&(port.protocol, port.port)).cloned().unwrap_or_default();
            exposed(port, *target, Owned::Mesh { service_id })
        });
        let ports = leased.chain(unclaimed).chain(mesh).collect();
        let ours = |chain: &nft::BaseChain| chain.table.starts_with(OWN_TABLES) && chain.table != rules::USER;
        let chains = chains.into_iter().filter(|chain| !ours(chain)).collect();
        Ok(Exposure { ports, filters: check::filters(chains), legacy })
    }

    /// Finds and takes a host port: the same number on every address that it is published on.
    async fn lease(&mut self, owner: &Endpoint, port: &Publish) -> Result<Vec<HostPort>, AttachError> {
        let PortBinding { host_port, host_port_end, .. } = port.binding;
        let places = port.places()?;
        let Some((first, _)) = places.first() else { return Ok(Vec::new()) };
        let exhausted = AttachError::PortsExhausted { address: first.address };
        if host_port == 0 {
            return self.lease_any(owner, &places).await.ok_or(exhausted);
        }
        let is_range = host_port_end > host_port;
        for number in host_port..=host_port_end.max(host_port) {
            match self.reserve_all(&places, number, port.binding.container_port).await {
                Ok(sockets) => return Ok(self.take(owner, &places, number, sockets)),
                Err(_) if is_range => {}
                Err(error) => return Err(self.naming_holder(error).await),
            }
        }
        Err(exhausted)
    }

    async fn lease_any(&mut self, owner: &Endpoint, places: &[(HostPort, Way)]) -> Option<Vec<HostPort>> {
        for _ in 0..EPHEMERAL_TRIES {
            let (first, rest) = places.split_first()?;
            let (socket, number) = self.reserve(first.0).await.ok()?;
            if self.conflicts(HostPort { port: number, ..first.0 }) {
                continue;
            }
            // Whoever has the number in the other family only costs another try.
            if let Ok(sockets) = self.reserve_all(rest, number, 0).await {
                let sockets = std::iter::once(socket).chain(sockets).collect();
                return Some(self.take(owner, places, number, sockets));
            }
        }
        None
    }

    /// Keeps a number on all places, or on none.
    async fn reserve_all(
        &self,
        places: &[(HostPort, Way)],
        number: u16,
        container_port: u16,
    ) -> Result<Vec<Option<OwnedFd>>, AttachError> {
        let mut sockets = Vec::new();
        for (place, way) in places {
            let host = HostPort { port: number, ..*place };
            if self.conflicts(host) {
                return Err(AttachError::PortAllocated { address: host.address, port: number });
            }
            let reserved = self.reserve(host).await;
            sockets.push(reserved.map(|(socket, _)| socket).map_err(|error| AttachError::PortBind {
                host: SocketAddr::new(host.address, number),
                target: SocketAddr::new(way.inside, container_port),
                protocol: host.protocol,
                holder: None,
                source: in_dockers_words(error),
            })?);
        }
        Ok(sockets)
    }

    /// Says which process has the port that could not be had.
    async fn naming_holder(&self, error: AttachError) -> AttachError {
        let AttachError::PortBind { host, target, protocol, source, .. } = error else { return error };
        let holder = self.home.run(move || port::holder(protocol, host.port())).await.ok().flatten();
        AttachError::PortBind { host, target, protocol, holder, source }
    }

    fn take(
        &mut self,
        owner: &Endpoint,
        places: &[(HostPort, Way)],
        port: u16,
        sockets: Vec<Option<OwnedFd>>,
    ) -> Vec<HostPort> {
        let mut taken = Vec::new();
        for ((place, way), socket) in places.iter().zip(sockets) {
            let host = HostPort { port, ..*place };
            let lease = Lease { owner: owner.clone(), target: way.target, _reserved: socket };
            self.leases.insert(host, lease);
            taken.push(host);
        }
        taken
    }

    /// Whether we have the port already, on an address that `wanted` includes.
    fn conflicts(&self, wanted: HostPort) -> bool {
        self.holder(wanted).is_some() || self.mesh.has(wanted)
    }

    /// Which of our containers has the port.
    fn holder(&self, wanted: HostPort) -> Option<&Endpoint> {
        let overlaps = |taken: &HostPort| {
            taken.port == wanted.port
                && taken.protocol == wanted.protocol
                && taken.family() == wanted.family()
                && (taken.address == wanted.address
                    || taken.address.is_unspecified()
                    || wanted.address.is_unspecified())
        };
        self.leases.iter().find(|(taken, _)| overlaps(taken)).map(|(_, lease)| &lease.owner)
    }

    async fn reserve(&self, host: HostPort) -> io::Result<(Option<OwnedFd>, u16)> {
        self.home.run(move || reserve(host)).await?
    }
}

/// Whether the host drops by itself what ends at it.
fn is_closed(family: Family, chains: &[nft::BaseChain]) -> bool {
    let other = match family {
        Family::V4 => "ip6",
        Family::V6 => "ip",
    };
    let closes = |chain: &nft::BaseChain| {
        chain.hook == nft::Hooked::Input && chain.drops && !chain.table.starts_with(OWN_TABLES)
    };
    chains.iter().any(|chain| chain.family != other && closes(chain))
}

/// Makes the administrator's table, unless it is there: what he has in it is his.
fn ensure_user_table(family: Family) {
    let made = nft::has_chain(family, rules::USER, rules::USER_CHAIN).and_then(|is_there| match is_there {
        true => Ok(()),
        false => nft::ensure(&rules::user(family)),
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
fn read_ports(family: Family, table: &str, map: &str) -> io::Result<BTreeMap<HostPort, Target>> {
    let elements = nft::undisturbed(|| nft::elements(family, table, map))?;
    Ok(elements.iter().filter_map(|(key, value)| rules::read_port(family, (key, value))).collect())
}
