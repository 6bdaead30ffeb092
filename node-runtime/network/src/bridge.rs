//! One bridge network: its addresses and its endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use rswarm_base::ipam::{Family, Subnet, local_prefix, mac_for};

use crate::actor::Owner;
use crate::check::{self, Finding};
use crate::conntrack::{self, Doomed};
use crate::error::{AttachError, KernelError};
use crate::host::{Endpoint, Host, Publish, Way};
use crate::link::Route;
use crate::model::{
    AttachRequest, Attached, BoundPort, BridgeInfo, BridgeSpec, DEFAULT_BRIDGE, Lead, Mac, Placed,
    PortBinding,
};
use crate::names::{NameTable, Names};
use crate::netns::{Netns, forward_ipv6, set_ipv6, set_sysctl};
use crate::pair::{Inside, Member, Near, connect, disconnect, pair_name, routed};
use crate::places::Places;
use crate::plan::{Address, Link, LinkKind, Plan, Port, steps};
use crate::rules::{BridgeRules, Target};
use crate::tunnel::Tunnel;

/// MTU of a bridge that was given none.
const MTU: u32 = 1500;

/// The network's owner.
#[derive(Debug)]
pub struct Bridge {
    pub(crate) spec: BridgeSpec,
    pub(crate) info: BridgeInfo,
    context: Context,
    endpoints: BTreeMap<String, Attached>,
    /// Addresses of overlays' ways out.
    uplinks: BTreeSet<IpAddr>,
    /// The IPv6 subnet of overlays' ways out, once there is one that needs it.
    uplinks_v6: Option<Subnet>,
    members: BTreeMap<String, Member>,
    /// What still waited when the network was removed must not bring it back.
    removed: bool,
}

/// What networks share.
#[derive(Debug, Clone)]
pub struct Context {
    /// The daemon's identifier.
    pub daemon_id: String,
    /// The daemon's network namespace.
    pub home: Netns,
    /// Its owner.
    pub host: Owner<Host>,
    /// All names.
    pub names: Names,
    /// The device of encrypted overlays.
    pub tunnel: Owner<Tunnel>,
}

impl Context {
    /// The text that marks a link as ours: teardown and adoption go by it.
    pub fn alias(&self, what: &str) -> String {
        format!("rswarm {} {what}", self.daemon_id)
    }

    /// The subnet that overlays' ways out have their IPv6 addresses of: the last one of this daemon's own prefix.
    pub fn uplinks_v6(&self) -> Option<Subnet> {
        Subnet::new(local_prefix(&self.daemon_id).last(), 64)
    }

    /// The prefix of all of them.
    pub fn alias_prefix(daemon_id: &str) -> String {
        format!("rswarm {daemon_id} ")
    }
}

/// Containers that are kept apart ask for each other's link address in vain. The host answers in their place, and
/// its rules say what goes on: what is open between two.
// Documentation/networking/ip-sysctl.rst, proxy_arp_pvlan; RFC 3069
fn lead_through_host(interface: &str) {
    set_sysctl(&format!("ipv4/conf/{interface}/proxy_arp_pvlan"), "1");
    set_sysctl(&format!("ipv4/conf/{interface}/send_redirects"), "0");
    set_sysctl(&format!("ipv4/neigh/{interface}/proxy_delay"), "0");
}

impl Bridge {
    /// Makes the bridge, or takes it over. `uplinks_v6` is what a daemon before us gave it for ways out.
    pub async fn open(
        spec: BridgeSpec,
        info: BridgeInfo,
        context: Context,
        uplinks_v6: Option<Subnet>,
    ) -> Result<Bridge, KernelError> {
        let bridge = Bridge {
            spec,
            info,
            context,
            endpoints: BTreeMap::new(),
            uplinks: BTreeSet::new(),
            uplinks_v6,
            members: BTreeMap::new(),
            removed: false,
        };
        bridge.apply().await?;
        bridge.publish_names();
        Ok(bridge)
    }

    /// Brings the interface and its rules to what they should be.
    async fn apply(&self) -> Result<(), KernelError> {
        let plan = self.plan();
        let interface = self.info.interface.clone();
        let (name, icc) = (interface.clone(), self.spec.icc);
        let make = move || {
            let mut route = Route::open()?;
            let v4_only = |address: &Address| address.address.is_ipv4();
            if !plan.addresses.iter().all(v4_only) {
                // The settings are there with the link, and must be right before it has an address.
                let addresses = plan.addresses.iter().filter(|address| v4_only(address)).cloned().collect();
                if route.links()?.iter().all(|link| link.link.name != name) {
                    route.reconcile(&Plan { addresses, ..plan.clone() }, None)?;
                }
                set_ipv6(&name, true);
                forward_ipv6();
            }
            route.reconcile(&plan, None)?;
            set_sysctl(&format!("ipv4/conf/{name}/route_localnet"), "1");
            if !icc {
                lead_through_host(&name);
            }
            Ok(())
        };
        self.context.home.act(format!("bridge `{interface}` could not be created"), make).await?;
        let subnets = self.info.subnets.iter().map(|(subnet, _)| *subnet);
        let rules = BridgeRules {
            subnets: subnets.chain(self.uplinks_v6).collect(),
            internal: self.spec.internal,
            icc: self.spec.icc,
            masquerade: self.spec.masquerade,
        };
        let host = &self.context.host;
        host.call(move |host| Box::pin(host.set_bridge(interface, rules)))
            .await
            .map_err(|_| shutting_down())?
    }

    /// Has the bridge lead out what overlays send from addresses of this subnet.
    pub async fn lead_out(&mut self, subnet: Subnet) -> Result<(), KernelError> {
        if self.uplinks_v6 == Some(subnet) {
            return Ok(());
        }
        self.uplinks_v6 = Some(subnet);
        let done = self.apply().await;
        if done.is_err() {
            self.uplinks_v6 = None;
        }
        done
    }

    fn mtu(&self) -> u32 {
        self.spec.mtu.unwrap_or(MTU)
    }

    fn plan(&self) -> Plan {
        let name = self.info.interface.clone();
        let uplinks = self.uplinks_v6.and_then(|subnet| Some((subnet, subnet.nth(1)?)));
        let on_bridge = |(subnet, address): (Subnet, IpAddr)| Address {
            link: name.clone(),
            address,
            prefix: subnet.prefix(),
        };
        Plan {
            addresses: self.info.subnets.iter().copied().chain(uplinks).map(on_bridge).collect(),
            links: vec![Link {
                name: name.clone(),
                kind: LinkKind::Bridge,
                mtu: self.mtu(),
                mac: self.info.subnets.first().map(|(_, gateway)| Mac(mac_for(*gateway))),
                port: None,
                alias: self.context.alias(&self.info.id),
            }],
            ..Plan::default()
        }
    }

    /// Gives a container an endpoint; on an error nothing of it is left.
    pub async fn attach(&mut self, netns: Netns, request: AttachRequest) -> Result<Attached, AttachError> {
        if self.endpoints.contains_key(&request.container_id) {
            return Err(AttachError::AlreadyAttached {
                container: request.container_id,
                network: self.spec.name.clone(),
            });
        }
        let addresses = self.places().choose_all(&request.addresses)?;
        let container = request.container_id.clone();
        let mut attached = self.describe(&request, addresses);
        self.connect(&netns, &container, &attached, &request.default_routes).await?;
        match self.publish(&container, &attached, &request.lead()).await {
            Ok(ports) => attached.ports = ports,
            Err(error) => {
                disconnect(&self.context.home, &pair_name(&container, &self.info.id)).await?;
                return Err(error);
            }
        }
        let member = Member { netns, default_routes: request.default_routes, rules: Vec::new() };
        self.members.insert(container.clone(), member);
        self.endpoints.insert(container, attached.clone());
        self.publish_names();
        Ok(attached)
    }

    /// Leads a container this way in families whose default route went elsewhere, and publishes its ports there.
    pub async fn lead(&mut self, container: String, lead: Lead) -> Result<Vec<BoundPort>, AttachError> {
        let known = self.endpoints.get(&container).cloned().zip(self.members.get_mut(&container));
        let Some((attached, member)) = known else {
            return Err(AttachError::NoSuchNetwork(self.info.id.clone()));
        };
        member.lead(&attached, &lead.families).await?;
        let ports = self.publish(&container, &attached, &lead).await?;
        self.endpoints.entry(container).and_modify(|attached| attached.ports.extend(ports.iter().cloned()));
        Ok(ports)
    }

    /// Leads a container this way no more in some families.
    pub async fn unlead(&mut self, container: String, families: Vec<Family>) -> Result<(), KernelError> {
        let known = self.endpoints.get_mut(&container).zip(self.members.get_mut(&container));
        let Some((attached, member)) = known else { return Ok(()) };
        let Some(gone) = member.unlead(attached, &families) else { return Ok(()) };
        withdraw(&self.context.host, self.endpoint(&container), families).await?;
        conntrack::forget(&self.context.home, Doomed::AnsweredBy(gone)).await;
        Ok(())
    }

    /// Looks whether bridge and pairs are still as they were made, and puts right what is not. Says whether
    /// there was anything.
    pub async fn check(&mut self) -> Result<bool, KernelError> {
        if self.removed {
            return Ok(false);
        }
        let mut plan = self.plan();
        plan.links.extend(self.endpoints.keys().map(|container| self.near(container)));
        let name = self.info.interface.clone();
        let correct = move || {
            let mut route = Route::open()?;
            let mut found = route.links_and_addresses()?;
            let is_changed = !steps(&plan, &found).is_empty();
            if is_changed {
                found = route.reconcile(&plan, None)?.1;
            }
            if plan.addresses.iter().any(|address| address.address.is_ipv6()) {
                set_ipv6(&name, true);
            }
            set_sysctl(&format!("ipv4/conf/{name}/route_localnet"), "1");
            Ok((is_changed, found))
        };
        let action = format!("bridge `{}` could not be corrected", self.info.interface);
        let (mut is_changed, found) = self.context.home.act(action, correct).await?;
        let there: BTreeSet<&str> = found.links.iter().map(|link| link.link.name.as_str()).collect();
        for (container, attached) in &self.endpoints {
            let Some(member) = self.members.get(container) else { continue };
            if !there.contains(pair_name(container, &self.info.id).as_str()) {
                self.connect(&member.netns, container, attached, &member.default_routes).await?;
                is_changed = true;
            }
        }
        if is_changed {
            let network = self.spec.name.as_str();
            tracing::warn!(network, "somebody else changed links of the network; they are put right");
        }
        Ok(is_changed)
    }

    fn describe(&self, request: &AttachRequest, addresses: Vec<Placed>) -> Attached {
        let derived = addresses.first().map(|placed| mac_for(placed.address)).unwrap_or_default();
        Attached {
            network_id: self.info.id.clone(),
            interface: request.interface.clone(),
            addresses,
            mac: request.mac.unwrap_or(Mac(derived)),
            ports: Vec::new(),
            names: request.names.clone(),
        }
    }

    async fn connect(
        &self,
        netns: &Netns,
        container: &str,
        attached: &Attached,
        default_routes: &[Family],
    ) -> Result<(), KernelError> {
        let link = self.near(container);
        let near = Near { link, port: self.near_port(), is_routed: false };
        let inside = Inside {
            interface: attached.interface.clone(),
            mac: attached.mac,
            mtu: self.mtu(),
            addresses: routed(&attached.addresses, default_routes),
            mesh: Vec::new(),
        };
        connect(&self.context.home, near, netns, inside).await.map(drop)
    }

    /// Whether the kernel has what it should; nothing is changed.
    pub async fn examine(&self) -> Result<Vec<Finding>, KernelError> {
        let mut plan = self.plan();
        plan.links.extend(self.endpoints.keys().map(|container| self.near(container)));
        let look = move || {
            let found = Route::open()?.links_and_addresses()?;
            Ok(check::compare(&plan, &found))
        };
        self.context.home.act("links could not be listed", look).await
    }

    /// The container's end here.
    fn near(&self, container: &str) -> Link {
        Link {
            name: pair_name(container, &self.info.id),
            kind: LinkKind::Veth,
            mtu: self.mtu(),
            mac: None,
            port: Some(self.near_port()),
            alias: self.context.alias(container),
        }
    }

    fn near_port(&self) -> Port {
        Port { bridge: self.info.interface.clone(), hairpin: true, isolated: !self.spec.icc }
    }

    /// The addresses that endpoints may have.
    fn places(&self) -> Places<'_> {
        let endpoints = self.endpoints.values().flat_map(Attached::ips);
        Places {
            network: &self.spec.name,
            id: &self.info.id,
            subnets: &self.info.subnets,
            pools: &self.spec.pools,
            internal: self.spec.internal,
            taken: endpoints.chain(self.uplinks.iter().copied()).collect(),
        }
    }

    /// An IPv4 address for a sandbox's way out, which is no container's endpoint.
    pub fn reserve_address(&mut self, wanted: Option<IpAddr>) -> Result<IpAddr, AttachError> {
        let places = self.places();
        let address = match places.choose(Family::V4, wanted) {
            Err(AttachError::AddressInUse(_)) => places.choose(Family::V4, None)?.address,
            other => other?.address,
        };
        self.uplinks.insert(address);
        Ok(address)
    }

    /// Gives it back.
    pub fn release_address(&mut self, address: IpAddr) {
        self.uplinks.remove(&address);
    }

    async fn publish(
        &self,
        container: &str,
        attached: &Attached,
        lead: &Lead,
    ) -> Result<Vec<BoundPort>, AttachError> {
        // Docker too ignores ports of a container whose network has no way in.
        if lead.publish.is_empty() || self.spec.internal {
            return Ok(Vec::new());
        }
        let ports = lead.publish.iter().map(|binding| {
            let host_ip = binding.host_ip.or(self.spec.host_binding);
            let binding = PortBinding { host_ip, ..binding.clone() };
            let to =
                |inside| Way { inside, target: Target { address: inside, port: binding.container_port } };
            let ways = lead.published(attached).map(to).collect();
            Publish { binding, ways }
        });
        let (owner, ports) = (self.endpoint(container), ports.collect());
        publish(&self.context.host, owner, ports).await
    }

    fn endpoint(&self, container: &str) -> Endpoint {
        Endpoint { container: container.to_owned(), network: self.info.id.clone() }
    }

    /// Takes a container out; one that has no endpoint is no error.
    pub async fn detach(&mut self, container: &str) -> Result<(), KernelError> {
        let Some(attached) = self.endpoints.get(container) else { return Ok(()) };
        if !attached.ports.is_empty() {
            withdraw(&self.context.host, self.endpoint(container), Family::ALL.to_vec()).await?;
            conntrack::forget(&self.context.home, Doomed::AnsweredBy(attached.ips().collect())).await;
        }
        disconnect(&self.context.home, &pair_name(container, &self.info.id)).await?;
        self.endpoints.remove(container);
        self.members.remove(container);
        self.publish_names();
        Ok(())
    }

    /// Takes over an endpoint that exists.
    pub async fn adopt(
        &mut self,
        container: &str,
        netns: &Netns,
        attached: Attached,
    ) -> Result<(), KernelError> {
        let member = Member::adopt(netns, &attached.interface).await?;
        self.members.insert(container.to_owned(), member);
        if !attached.ports.is_empty() {
            let target = |port: &BoundPort| {
                let address = attached.of(Family::of(port.host_ip))?.address;
                Some((port.clone(), Target { address, port: port.container_port }))
            };
            let ports = attached.ports.iter().filter_map(target).collect();
            adopt_ports(&self.context.host, self.endpoint(container), ports).await?;
        }
        self.endpoints.insert(container.to_owned(), attached);
        self.publish_names();
        Ok(())
    }

    /// Replaces a container's names.
    pub fn set_names(&mut self, container: &str, names: Vec<String>) {
        if let Some(endpoint) = self.endpoints.get_mut(container) {
            endpoint.names = names;
            self.publish_names();
        }
    }

    /// Whether a container or an overlay's way out is on it.
    pub fn is_in_use(&self) -> bool {
        !self.endpoints.is_empty()
    }

    /// The bridge is being removed: it must not be put right any more.
    pub fn retire(&mut self) {
        self.removed = true;
    }

    /// Removes the bridge and its rules.
    pub async fn close(&mut self) -> Result<(), KernelError> {
        self.retire();
        let interface = self.info.interface.clone();
        self.context
            .host
            .call(move |host| {
                let work = async move { host.remove_bridge(&interface).await };
                Box::pin(work)
            })
            .await
            .map_err(|_| shutting_down())??;
        self.context.names.remove(&self.info.id);
        disconnect(&self.context.home, &self.info.interface).await
    }

    /// Containers on the default bridge are not found by name, as in Docker.
    fn publish_names(&self) {
        let mut table = NameTable::new(&self.spec.name);
        if self.info.id != DEFAULT_BRIDGE {
            for endpoint in self.endpoints.values() {
                table.add_container(&endpoint.names, &endpoint.ips().collect::<Vec<_>>());
            }
        }
        self.context.names.publish(&self.info.id, table);
    }
}

/// Has the host publish ports.
pub async fn publish(
    host: &Owner<Host>,
    owner: Endpoint,
    ports: Vec<Publish>,
) -> Result<Vec<BoundPort>, AttachError> {
    host.call(move |host| Box::pin(host.publish(owner, ports)))
        .await
        .map_err(|_| AttachError::ShuttingDown)?
}

/// Has the host withdraw what an endpoint published in some families.
pub async fn withdraw(host: &Owner<Host>, owner: Endpoint, families: Vec<Family>) -> Result<(), KernelError> {
    host.call(move |host| Box::pin(async move { host.withdraw(&owner, &families).await }))
        .await
        .map_err(|_| shutting_down())?
}

/// Has the host take over ports that are published.
pub async fn adopt_ports(
    host: &Owner<Host>,
    owner: Endpoint,
    ports: Vec<(BoundPort, Target)>,
) -> Result<(), KernelError> {
    host.call(move |host| Box::pin(host.adopt(owner, ports))).await.map_err(|_| shutting_down())?
}

/// What callers of an owner that ended are told.
pub fn shutting_down() -> KernelError {
    KernelError {
        action: "networking is shutting down".to_owned(),
        source: io::Error::from(io::ErrorKind::NotConnected),
    }
}
