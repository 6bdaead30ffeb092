//! One network on a link of the host's: macvlan or ipvlan. Its containers are on the link's own segment, with
//! routers there as their gateways; the host is no hop on their way, and by that link neither hears the other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use rswarm_base::ipam::{Family, Subnet, mac_for};

use crate::bridge::Context;
use crate::check::Finding;
use crate::error::{AttachError, CreateLanError, KernelError};
use crate::link::{LanLink, OwnParent, Route};
use crate::model::{
    AttachRequest, Attached, BoundPort, IpvlanMode, LanInfo, LanMode, LanSpec, Lead, Mac, MacvlanMode, Placed,
};
use crate::names::NameTable;
use crate::netns::{Netns, set_ipv6};
use crate::pair::{lead_through, routed, tell_mesh};
use crate::places::Places;
use crate::plan::{Address, Gateway, Link, LinkKind, Plan};

/// The greatest VLAN identifier (IEEE 802.1Q).
const VLAN_MAX: u16 = 4094;

/// The network's owner.
#[derive(Debug)]
pub struct Lan {
    pub(crate) spec: LanSpec,
    pub(crate) info: LanInfo,
    context: Context,
    endpoints: BTreeMap<String, Attached>,
    /// The containers' namespaces, where their interfaces are.
    members: BTreeMap<String, Netns>,
}

/// The link that a network is on, and how to make it when it is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    /// Its name.
    pub name: String,
    /// How to make it; `None` for one that nobody but the administrator can.
    own: Option<OwnParent>,
}

impl Parent {
    /// What a network asks for.
    ///
    /// # Errors
    /// When it cannot be one.
    pub fn of(spec: &LanSpec) -> Result<Parent, CreateLanError> {
        let Some(name) = spec.parent.clone().filter(|name| !name.is_empty()) else {
            // As Docker names it.
            let name = format!("dm-{}", rswarm_base::id::short(&spec.id));
            return Ok(Parent { name, own: Some(OwnParent::Dummy) });
        };
        if name == "lo" {
            return Err(CreateLanError::Loopback(spec.mode.driver()));
        }
        let own = match name.rsplit_once('.') {
            Some((of, id)) if !of.is_empty() => Some((of.to_owned(), id.to_owned())),
            _ => None,
        };
        let own = own.map(|(of, id)| match id.parse() {
            Ok(id) if (1..=VLAN_MAX).contains(&id) => Ok(OwnParent::Vlan { of, id }),
            _ => Err(id),
        });
        match own.transpose() {
            Ok(own) => Ok(Parent { name, own }),
            // `eth0.upstairs` may be a link's own name.
            Err(_) => Ok(Parent { name, own: None }),
        }
    }

    /// Why it cannot be made.
    fn refusal(&self) -> CreateLanError {
        match self.name.rsplit_once('.') {
            Some((of, id)) if !of.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit()) => {
                CreateLanError::VlanId(id.to_owned())
            }
            _ => CreateLanError::NoParent(self.name.clone()),
        }
    }
}

/// Refuses a link that another network has to itself, or that this one would.
pub fn check_parent(spec: &LanSpec, parent: &str, other: &Lan) -> Result<(), CreateLanError> {
    if other.info.parent != parent {
        return Ok(());
    }
    let (driver, name) = (other.spec.mode.driver(), other.spec.name.clone());
    let passthru = LanMode::Macvlan(MacvlanMode::Passthru);
    if spec.mode == passthru {
        return Err(CreateLanError::Exclusive { driver, other: name, parent: parent.to_owned() });
    }
    if other.spec.mode == passthru {
        return Err(CreateLanError::Taken { driver, other: name, parent: parent.to_owned() });
    }
    Ok(())
}

impl Lan {
    /// Makes sure of the link.
    ///
    /// # Errors
    /// When it is not there and cannot be made, or the kernel has no interfaces of the mode.
    pub async fn open(
        spec: LanSpec,
        parent: Parent,
        subnets: Vec<(Subnet, IpAddr)>,
        context: Context,
    ) -> Result<Lan, CreateLanError> {
        let internal = spec.internal || parent.own == Some(OwnParent::Dummy);
        let info = LanInfo { parent: parent.name.clone(), subnets, internal };
        let lan = Lan { spec, info, context, endpoints: BTreeMap::new(), members: BTreeMap::new() };
        let mode = lan.spec.mode;
        let action = format!("{} interfaces could not be asked for", mode.driver());
        if !lan.context.home.act(action, move || Route::open()?.has_lan(mode)).await? {
            return Err(CreateLanError::NoDriver(mode.driver()));
        }
        lan.make_parent(parent).await?;
        lan.publish_names();
        Ok(lan)
    }

    async fn make_parent(&self, parent: Parent) -> Result<(), CreateLanError> {
        if self.find_link(&parent.name).await? {
            return Ok(());
        }
        let Some(own) = parent.own.clone() else { return Err(parent.refusal()) };
        if let OwnParent::Vlan { of, .. } = &own
            && !self.find_link(of).await?
        {
            return Err(CreateLanError::NoMaster(of.clone()));
        }
        let kind = if own == OwnParent::Dummy { "dummy" } else { "VLAN" };
        let (name, alias) = (parent.name.clone(), self.context.alias(&self.spec.id));
        let make = move || Route::open()?.create_parent(&name, &own, &alias);
        let action = format!("parent interface `{}` could not be created", parent.name);
        self.context.home.act(action, make).await.map_err(|error| match error.source.raw_os_error() {
            Some(libc::EOPNOTSUPP) => CreateLanError::NoParentKind { parent: parent.name, kind },
            _ => error.into(),
        })
    }

    async fn find_link(&self, name: &str) -> Result<bool, KernelError> {
        let name = name.to_owned();
        let find = move || Ok(Route::open()?.parent(&name)?.is_some());
        self.context.home.act("links could not be listed", find).await
    }

    /// Gives a container an interface on the link. Ports are not published: others reach the container itself.
    pub async fn attach(&mut self, netns: Netns, request: AttachRequest) -> Result<Attached, AttachError> {
        let network = self.spec.name.clone();
        if self.endpoints.contains_key(&request.container_id) {
            return Err(AttachError::AlreadyAttached { container: request.container_id, network });
        }
        let own_mac = matches!(self.spec.mode, LanMode::Macvlan(_));
        if request.mac.is_some() && !own_mac {
            return Err(AttachError::NoOwnMac);
        }
        let addresses = self.places().choose_all(&request.addresses)?;
        let parent = self.info.parent.clone();
        let find = move || Route::open()?.parent(&parent);
        let action = format!("parent interface `{}` could not be looked at", self.info.parent);
        let found = self.context.home.act(action, find).await?;
        let Some((mtu, parent_mac)) = found else {
            return Err(AttachError::NoParent { parent: self.info.parent.clone(), network });
        };
        let derived = addresses.first().map(|placed| Mac(mac_for(placed.address)));
        let mac = if own_mac { request.mac.or(derived) } else { parent_mac };
        let attached = Attached {
            network_id: self.spec.id.clone(),
            interface: request.interface.clone(),
            addresses,
            mac: mac.unwrap_or(Mac([0; 6])),
            ports: Vec::new(),
            names: request.names.clone(),
        };
        let mtu = self.spec.mtu.unwrap_or(mtu);
        self.connect(&netns, &attached, &request.default_routes, mtu).await?;
        self.members.insert(request.container_id.clone(), netns);
        self.endpoints.insert(request.container_id, attached.clone());
        self.publish_names();
        Ok(attached)
    }

    async fn connect(
        &self,
        netns: &Netns,
        attached: &Attached,
        default_routes: &[Family],
        mtu: u32,
    ) -> Result<(), KernelError> {
        let own_mac = matches!(self.spec.mode, LanMode::Macvlan(_)).then_some(attached.mac);
        let link = LanLink {
            parent: self.info.parent.clone(),
            mode: self.spec.mode,
            name: attached.interface.clone(),
            mac: own_mac,
            mtu,
            netns: netns.raw(),
        };
        // The descriptor must outlive the work, also when this future is dropped.
        let held = netns.clone();
        let make = move || {
            let _held = held;
            Route::open()?.create_lan(&link)
        };
        let action = format!("{} interface could not be created", self.spec.mode.driver());
        self.context.home.act(action, make).await?;
        let interface = attached.interface.clone();
        let inside = self.inside(attached, default_routes, own_mac, mtu);
        let action = format!("interface `{interface}` could not be set up in the container");
        let done = netns.act(action, move || inside.set_up()).await;
        if done.is_err() {
            self.disconnect(netns, &interface).await?;
        }
        done
    }

    fn inside(&self, attached: &Attached, default_routes: &[Family], mac: Option<Mac>, mtu: u32) -> Inside {
        let addresses = routed(&attached.addresses, default_routes);
        let default_links = if self.routes_itself() { default_routes.to_vec() } else { Vec::new() };
        Inside { interface: attached.interface.clone(), mac, mtu, addresses, default_links }
    }

    /// Leads a container this way in families whose default route went elsewhere. Nothing is published: others reach
    /// the container itself.
    pub async fn lead(&mut self, container: String, lead: Lead) -> Result<Vec<BoundPort>, AttachError> {
        let known = self.endpoints.get(&container).zip(self.members.get(&container));
        let Some((attached, netns)) = known else {
            return Err(AttachError::NoSuchNetwork(self.spec.id.clone()));
        };
        let interface = attached.interface.clone();
        if self.routes_itself() {
            let action = format!("default route could not be led through `{interface}`");
            let set = move || {
                let mut route = Route::open()?;
                lead.families.iter().try_for_each(|family| route.set_default_link(&interface, *family))
            };
            netns.act(action, set).await?;
        } else {
            lead_through(netns, &interface, routed(&attached.addresses, &lead.families)).await?;
        }
        Ok(Vec::new())
    }

    async fn disconnect(&self, netns: &Netns, interface: &str) -> Result<(), KernelError> {
        let name = interface.to_owned();
        let action = format!("interface `{interface}` could not be removed");
        netns.act(action, move || Route::open()?.delete_link(&name)).await
    }

    /// Takes a container out; one that has no endpoint is no error.
    pub async fn detach(&mut self, container: &str) -> Result<(), KernelError> {
        let Some(attached) = self.endpoints.get(container) else { return Ok(()) };
        if let Some(netns) = self.members.get(container) {
            self.disconnect(netns, &attached.interface).await?;
        }
        self.endpoints.remove(container);
        self.members.remove(container);
        self.publish_names();
        Ok(())
    }

    /// Takes over an endpoint that exists.
    pub fn adopt(&mut self, container: &str, netns: &Netns, attached: Attached) {
        self.members.insert(container.to_owned(), netns.clone());
        self.endpoints.insert(container.to_owned(), attached);
        self.publish_names();
    }

    /// Replaces a container's names.
    pub fn set_names(&mut self, container: &str, names: Vec<String>) {
        if let Some(endpoint) = self.endpoints.get_mut(container) {
            endpoint.names = names;
            self.publish_names();
        }
    }

    /// Whether a container is on it.
    pub fn is_in_use(&self) -> bool {
        !self.endpoints.is_empty()
    }

    /// Whether the link is there; nothing is changed.
    pub async fn examine(&self) -> Result<Vec<Finding>, KernelError> {
        let subject = format!("parent interface {}", self.info.parent);
        Ok(vec![if self.find_link(&self.info.parent).await? {
            Finding::good(subject, "is there")
        } else {
            Finding::bad(subject, "is gone", "make it again, then restart the network's containers")
        }])
    }

    /// Removes the link, if it was made for this network.
    pub async fn close(&mut self) -> Result<(), KernelError> {
        self.context.names.remove(&self.spec.id);
        let (name, alias) = (self.info.parent.clone(), self.context.alias(&self.spec.id));
        let remove = move || {
            let mut route = Route::open()?;
            let is_own = route.links()?.iter().any(|link| link.link.name == name && link.link.alias == alias);
            if is_own { route.delete_link(&name) } else { Ok(()) }
        };
        let action = format!("parent interface `{}` could not be removed", self.info.parent);
        self.context.home.act(action, remove).await
    }

    /// Whether the link routes by itself, so that its containers need no router.
    fn routes_itself(&self) -> bool {
        matches!(self.spec.mode, LanMode::Ipvlan(IpvlanMode::L3 | IpvlanMode::L3s, _))
    }

    fn places(&self) -> Places<'_> {
        Places {
            network: &self.spec.name,
            id: &self.spec.id,
            subnets: &self.info.subnets,
            pools: &self.spec.pools,
            internal: self.info.internal || self.routes_itself(),
            taken: self.endpoints.values().flat_map(Attached::ips).collect(),
        }
    }

    fn publish_names(&self) {
        let mut table = NameTable::new(&self.spec.name);
        for endpoint in self.endpoints.values() {
            table.add_container(&endpoint.names, &endpoint.ips().collect::<Vec<_>>());
        }
        self.context.names.publish(&self.spec.id, table);
    }
}

/// What an endpoint needs inside the container.
#[derive(Debug)]
struct Inside {
    interface: String,
    mac: Option<Mac>,
    mtu: u32,
    addresses: Vec<Placed>,
    default_links: Vec<Family>,
}

impl Inside {
    fn plan(&self) -> Plan {
        let link = self.interface.clone();
        let address =
            |placed: &Placed| Address { link: link.clone(), address: placed.address, prefix: placed.prefix };
        let gateway = |placed: &Placed| Some(Gateway { address: placed.gateway?, link: link.clone() });
        Plan {
            links: vec![Link {
                name: link.clone(),
                kind: LinkKind::Other,
                mtu: self.mtu,
                mac: self.mac,
                port: None,
                alias: String::new(),
            }],
            addresses: self.addresses.iter().map(address).collect::<BTreeSet<_>>(),
            default_routes: self.addresses.iter().filter_map(gateway).collect(),
            ..Plan::default()
        }
    }

    /// Sets the interface up, in the calling thread's namespace.
    fn set_up(&self) -> std::io::Result<()> {
        set_ipv6(&self.interface, self.addresses.iter().any(|placed| placed.address.is_ipv6()));
        let mut route = Route::open()?;
        route.reconcile(&self.plan(), None)?;
        for family in &self.default_links {
            route.set_default_link(&self.interface, *family)?;
        }
        tell_mesh(&self.addresses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(parent: Option<&str>) -> LanSpec {
        LanSpec {
            id: "0123456789abcdef".repeat(4),
            name: "lan".into(),
            mode: LanMode::Macvlan(MacvlanMode::Bridge),
            parent: parent.map(str::to_owned),
            families: vec![Family::V4],
            pools: Vec::new(),
            internal: false,
            mtu: None,
        }
    }

    #[test]
    fn a_parents_name_says_how_to_make_it() {
        let of = |name| Parent::of(&spec(name)).expect("parent");
        assert_eq!(of(None), Parent { name: "dm-0123456789ab".into(), own: Some(OwnParent::Dummy) });
        assert_eq!(of(Some("eth0")).own, None);
        let vlan = OwnParent::Vlan { of: "eth0".into(), id: 10 };
        assert_eq!(of(Some("eth0.10")), Parent { name: "eth0.10".into(), own: Some(vlan) });
        assert!(Parent::of(&spec(Some("lo"))).is_err());
        let refusal = |name| of(Some(name)).refusal().to_string();
        assert_eq!(refusal("eth0.4095"), "vlan id must be between 1-4094, received: 4095");
        assert_eq!(refusal("eth7"), "invalid subinterface vlan name eth7, example formatting is eth0.10");
        assert_eq!(
            refusal("eth0.up"),
            "invalid subinterface vlan name eth0.up, example formatting is eth0.10"
        );
    }
}
