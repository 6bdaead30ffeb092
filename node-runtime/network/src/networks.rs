//! The handle: finds the network's owner, and has it do the work.
//!
//! Owners call each other in one direction only: registry, then networks (an overlay the default bridge),
//! then the host. What is read often (which networks there are, what names lead to) is an immutable value
//! swapped as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use futures_util::future::join_all;
use rswarm_base::Scope;
use rswarm_base::ipam::{self, Family, Subnet, local_prefix};

use crate::actor::Owner;
use crate::bridge::{Bridge, Context, disconnect, shutting_down};
use crate::check::{self, Exposure, Finding, MeshServices};
use crate::dns;
use crate::error::{
    AttachError, CreateBridgeError, CreateLanError, KernelError, NetnsError, OpenError, OverlayError,
    RemoveError,
};
use crate::host::Host;
use crate::lan::{self, Lan, Parent};
use crate::link::Route;
use crate::model::{
    AddressPool, AttachRequest, Attached, BridgeInfo, BridgeSpec, Config, DEFAULT_BRIDGE, DefaultBridge,
    DnsConfig, LanInfo, LanSpec, Opening, Overlay, Pool,
};
use crate::names::Names;
use crate::netns::{self, Netns, Pins};
use crate::overlay::{Keeper, OverlayNetwork, WayOut};
use crate::tunnel::{Tunnel, TunnelPeerStatus};
use crate::watch::{self, Listen, Watch};

/// The kernel's limit on an interface's name.
const INTERFACE_CHARS: usize = 15;

/// All networks of a daemon. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Networks(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    context: Context,
    directory: Directory,
    registry: Owner<Registry>,
    dns: Owner<dns::Servers>,
}

/// Which networks there are; written by the registry alone.
type Directory = Arc<ArcSwap<BTreeMap<String, Network>>>;

/// A network's owner.
#[derive(Debug, Clone)]
enum Network {
    Bridge(BridgeInfo, Owner<Bridge>),
    Overlay(Owner<OverlayNetwork>),
    Lan(LanInfo, Owner<Lan>),
}

/// Makes and removes networks, one at a time: two must not choose the same subnet.
#[derive(Debug)]
struct Registry {
    config: Config,
    scope: Scope,
    context: Context,
    pins: Pins,
    directory: Directory,
}

impl Networks {
    /// Starts networking in the calling thread's network namespace: adopts what a daemon of the same
    /// identifier left, makes the default bridge. Tasks run in `scope`; when it ends, kernel objects stay.
    ///
    /// # Errors
    /// When the sandbox directory or the default bridge cannot be made.
    pub async fn open(config: Config, scope: Scope) -> Result<Networks, OpenError> {
        let home = Netns::current().map_err(|source| KernelError {
            action: "the daemon's network namespace could not be opened".to_owned(),
            source,
        })?;
        let pins = Pins::open(&config.netns_dir)
            .map_err(|source| OpenError::NetnsDir { path: config.netns_dir.clone(), source })?;
        let table = format!("rswarm-{}", config.daemon_id);
        let host = Owner::spawn(&scope, Host::open(home.clone(), table, config.firewall).await?);
        let names = Names::default();
        let alias = format!("{}tunnel", Context::alias_prefix(&config.daemon_id));
        let (exe, dir) = (config.tunnel_exe.clone(), config.tunnel_dir.clone());
        let tunnel = Owner::spawn(&scope, Tunnel::new(exe, dir, alias, home.clone(), pins.clone()));
        let (owner, watching) = (tunnel.clone(), scope.clone());
        let watch = tunnel.call(move |tunnel| Box::pin(async move { tunnel.watch(watching, owner) }));
        watch.await.map_err(|_| shutting_down())?;
        let context = Context { daemon_id: config.daemon_id.clone(), home, host, names, tunnel };
        let directory = Directory::default();
        let registry = Registry {
            config: config.clone(),
            scope: scope.clone(),
            context: context.clone(),
            pins,
            directory: Arc::clone(&directory),
        };
        let registry = Owner::spawn(&scope, registry);
        let servers = dns::Servers::new(context.names.clone(), scope.clone());
        let dns = Owner::spawn(&scope, servers);
        let networks = Networks(Arc::new(Shared { context, directory, registry, dns }));
        if config.default_bridge {
            let mut spec = default_bridge(&config.bridge);
            spec.interface = Some(format!("rsw-{}", config.daemon_id));
            if config.default_bridge_ipv6 {
                spec.families.push(Family::V6);
                let pool = Pool { subnet: config.fixed_cidr_v6, ..Pool::any(Family::V6) };
                spec.pools.push(pool);
            }
            networks.create_bridge(spec).await.map_err(OpenError::DefaultBridge)?;
        }
        networks.keep_home(&scope).await?;
        Ok(networks)
    }

    /// Puts right what others change in the daemon's namespace.
    async fn keep_home(&self, scope: &Scope) -> Result<(), KernelError> {
        let watch = Watch::open(&self.0.context.home, Listen::Home).await;
        let watch = watch.map_err(|source| KernelError {
            action: "changes in the daemon's network namespace could not be listened to".to_owned(),
            source,
        })?;
        let networks = Arc::downgrade(&self.0);
        watch::spawn(scope, watch, move || {
            let networks = networks.upgrade().map(Networks);
            Box::pin(async move {
                let Some(networks) = networks else { return false };
                networks.check_home().await;
                true
            })
        });
        Ok(())
    }

    async fn check_home(&self) {
        let note = |error: &KernelError| {
            tracing::warn!(error = %rswarm_base::Chain(error), "what others changed could not be put right");
        };
        if let Ok(Err(error)) = self.0.context.host.call(|host| Box::pin(host.check())).await {
            note(&error);
        }
        let all: Vec<Network> = self.0.directory.load().values().cloned().collect();
        let mut bridges_changed = false;
        for network in &all {
            let Network::Bridge(_, owner) = network else { continue };
            match owner.call(|bridge| Box::pin(bridge.check())).await {
                Ok(Ok(is_changed)) => bridges_changed |= is_changed,
                Ok(Err(error)) => note(&error),
                // Removed meanwhile.
                Err(_) => {}
            }
        }
        // Overlays have their way out by a bridge.
        for network in all.iter().filter(|_| bridges_changed) {
            if let Network::Overlay(owner) = network {
                let _ = owner.call(|overlay| Box::pin(overlay.check())).await;
            }
        }
    }

    /// A new network namespace, its loopback interface up.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn create_netns(&self) -> Result<Netns, NetnsError> {
        Netns::create().await
    }

    /// The network namespace of a running process.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn open_netns(&self, pid: i32) -> Result<Netns, NetnsError> {
        Netns::of_process(pid)
    }

    /// Makes a bridge network, or takes it over if its interface exists: it then keeps its subnet, unless
    /// another one is asked for.
    ///
    /// # Errors
    /// When its subnet is taken or the kernel refuses.
    pub async fn create_bridge(&self, spec: BridgeSpec) -> Result<BridgeInfo, CreateBridgeError> {
        self.0
            .registry
            .call(move |registry| Box::pin(registry.create_bridge(spec)))
            .await
            .map_err(|_| shutting_down())?
    }

    /// The bridge network, if it is one of ours.
    #[must_use]
    pub fn bridge(&self, id: &str) -> Option<BridgeInfo> {
        match self.network(id)? {
            Network::Bridge(info, _) => Some(info),
            Network::Overlay(_) | Network::Lan(..) => None,
        }
    }

    /// Makes a network on one of the host's own links, or takes it over.
    ///
    /// # Errors
    /// When a subnet is taken, or the kernel has no such interfaces or no such link.
    pub async fn create_lan(&self, spec: LanSpec) -> Result<LanInfo, CreateLanError> {
        let create = self.0.registry.call(move |registry| Box::pin(registry.create_lan(spec))).await;
        create.map_err(|_| shutting_down())?
    }

    /// Removes a network of this host's own; one that does not exist is no error.
    ///
    /// # Errors
    /// When containers are attached to it.
    pub async fn remove_local(&self, id: &str) -> Result<(), RemoveError> {
        let id = id.to_owned();
        self.0
            .registry
            .call(move |registry| Box::pin(registry.remove_local(id)))
            .await
            .map_err(|_| shutting_down())?
    }

    /// Gives a container an interface in a network, with address, routes, published ports and names.
    /// On an error nothing of it is left.
    ///
    /// # Errors
    /// When the address or a port is taken, or the kernel refuses.
    pub async fn attach(&self, netns: &Netns, request: AttachRequest) -> Result<Attached, AttachError> {
        let Some(network) = self.network(&request.network_id) else {
            return Err(AttachError::NoSuchNetwork(request.network_id));
        };
        let netns = netns.clone();
        let attached = match network {
            Network::Bridge(_, owner) => {
                owner.call(move |bridge| Box::pin(bridge.attach(netns, request))).await
            }
            Network::Overlay(owner) => {
                owner.call(move |overlay| Box::pin(overlay.attach(netns, request))).await
            }
            Network::Lan(_, owner) => owner.call(move |lan| Box::pin(lan.attach(netns, request))).await,
        };
        attached.map_err(|_| AttachError::ShuttingDown)?
    }

    /// Takes a container out of one network.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn disconnect(&self, container_id: &str, network_id: &str) -> Result<(), KernelError> {
        match self.network(network_id) {
            Some(network) => network.detach(container_id).await,
            None => Ok(()),
        }
    }

    /// Takes a container out of all networks: interfaces, ports, names, DNS. Idempotent.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn detach(&self, container_id: &str) -> Result<(), KernelError> {
        let container = container_id.to_owned();
        // Servers that ended with the daemon hold nothing any more.
        let _ = self.0.dns.call(move |dns| Box::pin(async move { dns.stop(&container).await })).await;
        let (host, container) = (&self.0.context.host, container_id.to_owned());
        let closed = host.call(move |host| Box::pin(async move { host.close_links(&container).await })).await;
        closed.map_err(|_| shutting_down())??;
        let networks: Vec<Network> = self.0.directory.load().values().cloned().collect();
        let all = join_all(networks.iter().map(|network| network.detach(container_id))).await;
        all.into_iter().collect()
    }

    /// Takes over a running container's endpoints after a daemon restart: addresses, ports and names are
    /// known again, DNS is served again; its traffic is not touched. Bridges must exist by then; overlays
    /// may be applied later.
    ///
    /// # Errors
    /// When a bridge is missing, or DNS cannot be served.
    pub async fn adopt(
        &self,
        container_id: &str,
        netns: &Netns,
        endpoints: &[Attached],
        dns: Option<DnsConfig>,
    ) -> Result<(), AttachError> {
        for endpoint in endpoints {
            self.adopt_endpoint(container_id, netns, endpoint.clone()).await?;
        }
        match dns {
            Some(config) => self.serve_dns(netns, container_id, config).await,
            None => Ok(()),
        }
    }

    async fn adopt_endpoint(
        &self,
        container: &str,
        netns: &Netns,
        endpoint: Attached,
    ) -> Result<(), AttachError> {
        let network_id = endpoint.network_id.clone();
        let network = match self.network(&network_id) {
            Some(network) => network,
            // An overlay that the managers have not spoken of yet: its sandbox tells that it was one.
            None => {
                let id = network_id.clone();
                let found = self
                    .0
                    .registry
                    .call(move |registry| Box::pin(std::future::ready(registry.pinned(&id))))
                    .await
                    .map_err(|_| AttachError::ShuttingDown)?;
                Network::Overlay(found.ok_or(AttachError::NoSuchNetwork(network_id))?)
            }
        };
        let (container, netns) = (container.to_owned(), netns.clone());
        match network {
            Network::Bridge(_, owner) => Ok(owner
                .call(move |bridge| Box::pin(async move { bridge.adopt(&container, &netns, endpoint).await }))
                .await
                .map_err(|_| AttachError::ShuttingDown)??),
            Network::Overlay(owner) => {
                let adopted = owner
                    .call(move |overlay| {
                        Box::pin(async move { overlay.adopt(&container, &netns, endpoint).await })
                    })
                    .await
                    .map_err(|_| AttachError::ShuttingDown)?;
                adopted.map_err(|source| AttachError::Sandbox(Box::new(source)))
            }
            Network::Lan(_, owner) => owner
                .call(move |lan| {
                    lan.adopt(&container, &netns, endpoint);
                    Box::pin(std::future::ready(()))
                })
                .await
                .map_err(|_| AttachError::ShuttingDown),
        }
    }

    /// Says that every running container was adopted: published ports that nobody claimed are withdrawn.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn settle(&self) -> Result<(), KernelError> {
        self.0.context.host.call(|host| Box::pin(host.settle())).await.map_err(|_| shutting_down())?
    }

    /// Replaces the ports that a container may reach of neighbours on a bridge that keeps them apart. They are shut
    /// again when it, or who is reached, is detached.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn open_links(&self, container_id: &str, openings: Vec<Opening>) -> Result<(), KernelError> {
        let container = container_id.to_owned();
        let host = &self.0.context.host;
        let opened = host.call(move |host| Box::pin(host.open_links(container, openings))).await;
        opened.map_err(|_| shutting_down())?
    }

    /// Replaces the names by which a container is found in a network that a user made on this host (rename,
    /// aliases).
    pub async fn set_names(&self, container_id: &str, network_id: &str, names: Vec<String>) {
        let container = container_id.to_owned();
        // Of an owner that ended, nobody asks for names.
        match self.network(network_id) {
            Some(Network::Bridge(_, owner)) => {
                let _ =
                    owner.call(|bridge| Box::pin(async move { bridge.set_names(&container, names) })).await;
            }
            Some(Network::Lan(_, owner)) => {
                let _ = owner.call(|lan| Box::pin(async move { lan.set_names(&container, names) })).await;
            }
            Some(Network::Overlay(_)) | None => {}
        }
    }

    /// Brings an overlay to the wanted state: makes what is missing, corrects what differs, removes what
    /// is left over. Applying the same state again changes nothing. Returns how many changes it took.
    ///
    /// # Errors
    /// When the state is invalid or the kernel refuses.
    pub async fn apply_overlay(&self, overlay: Overlay) -> Result<usize, OverlayError> {
        let owner = match self.network(&overlay.network_id) {
            Some(Network::Overlay(owner)) => owner,
            Some(Network::Bridge(..) | Network::Lan(..)) => {
                let reason = "a network of this host has the same identifier".to_owned();
                return Err(OverlayError::Invalid { network: overlay.name, reason });
            }
            None => {
                let id = overlay.network_id.clone();
                self.0
                    .registry
                    .call(move |registry| Box::pin(std::future::ready(registry.overlay(&id))))
                    .await
                    .map_err(|_| shutting_down())?
            }
        };
        Ok(owner
            .call(move |network| Box::pin(network.apply(overlay)))
            .await
            .map_err(|_| shutting_down())??
            .len())
    }

    /// Removes an overlay's sandbox from this node; one that does not exist is no error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn remove_overlay(&self, network_id: &str) -> Result<(), OverlayError> {
        let id = network_id.to_owned();
        self.0
            .registry
            .call(move |registry| Box::pin(registry.remove_overlay(id)))
            .await
            .map_err(|_| shutting_down())?
    }

    /// The overlays on this node: applied, adopted, or left pinned by a daemon before.
    ///
    /// # Errors
    /// When the sandbox directory cannot be read.
    pub async fn overlays(&self) -> Result<Vec<String>, KernelError> {
        let names = self
            .0
            .registry
            .call(|registry| Box::pin(std::future::ready(registry.pins.names())))
            .await
            .map_err(|_| shutting_down())?;
        names.map_err(|source| KernelError { action: "sandboxes could not be listed".to_owned(), source })
    }

    /// How the device of encrypted overlays sees other nodes; nothing where there is none.
    pub async fn tunnel_peers(&self) -> Vec<TunnelPeerStatus> {
        self.0.context.tunnel.call(|tunnel| Box::pin(tunnel.status())).await.unwrap_or_default()
    }

    /// Serves DNS at 127.0.0.11 inside the namespace; a second call replaces the configuration.
    ///
    /// # Errors
    /// When the sockets cannot be opened.
    pub async fn serve_dns(
        &self,
        netns: &Netns,
        container_id: &str,
        config: DnsConfig,
    ) -> Result<(), AttachError> {
        let (netns, container) = (netns.clone(), container_id.to_owned());
        let serve = {
            let container = container.clone();
            self.0.dns.call(move |dns| Box::pin(dns.serve(netns, container, config)))
        };
        let served = serve.await.map_err(|_| AttachError::ShuttingDown)?;
        served.map_err(|source| AttachError::Dns { container, source })
    }

    /// The addresses that a container on these networks would be told for `name`; `None` when its question
    /// would go to the upstream servers.
    #[must_use]
    pub fn lookup(&self, networks: &[String], name: &str) -> Option<Vec<IpAddr>> {
        self.0.context.names.resolve(networks, name).map(|answer| answer.addresses)
    }

    /// Compares what the kernel has of a network with what it should have, and tries the ways to the other
    /// nodes; `None` when the network is not on this node. Changes nothing.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn check(&self, network_id: &str) -> Result<Option<Vec<Finding>>, KernelError> {
        let Some(network) = self.network(network_id) else { return Ok(None) };
        let home = self.0.context.host.call(|host| Box::pin(async { host.examine().await }));
        let mut findings = home.await.map_err(|_| shutting_down())??;
        match network {
            Network::Bridge(_, owner) => {
                let examined = owner.call(|bridge| Box::pin(async { bridge.examine().await })).await;
                findings.extend(examined.map_err(|_| shutting_down())??);
            }
            Network::Overlay(owner) => {
                let examined = owner.call(|overlay| Box::pin(async { overlay.examine().await })).await;
                let examined = examined.map_err(|_| shutting_down())??;
                findings.extend(examined.findings);
                findings.extend(check::probe_all(&self.0.context.home, examined.probes).await);
            }
            Network::Lan(_, owner) => {
                let examined = owner.call(|lan| Box::pin(async { lan.examine().await })).await;
                findings.extend(examined.map_err(|_| shutting_down())??);
            }
        }
        Ok(Some(findings))
    }

    /// What can be reached on this host, and from where.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn audit(&self) -> Result<Exposure, KernelError> {
        let mut services = MeshServices::new();
        let all: Vec<Network> = self.0.directory.load().values().cloned().collect();
        for network in all {
            let Network::Overlay(owner) = network else { continue };
            let found = owner.call(|overlay| Box::pin(std::future::ready(overlay.mesh_services()))).await;
            services.extend(found.into_iter().flatten());
        }
        let audit = self.0.context.host.call(|host| Box::pin(async { host.audit(services).await })).await;
        audit.map_err(|_| shutting_down())?
    }

    /// Removes every kernel object of this daemon: sandboxes, bridges, pairs, rules. For uninstalling;
    /// containers should be gone.
    ///
    /// # Errors
    /// The first thing that the kernel refused; the rest is removed all the same.
    pub async fn close_all(&self) -> Result<(), KernelError> {
        let _ = self.0.dns.call(|dns| Box::pin(dns.stop_all())).await;
        self.0.registry.call(|registry| Box::pin(registry.close_all())).await.map_err(|_| shutting_down())?
    }

    fn network(&self, id: &str) -> Option<Network> {
        self.0.directory.load().get(id).cloned()
    }
}

impl Network {
    async fn detach(&self, container: &str) -> Result<(), KernelError> {
        let container = container.to_owned();
        let detached = match self {
            Network::Bridge(_, owner) => {
                owner.call(move |bridge| Box::pin(async move { bridge.detach(&container).await })).await
            }
            Network::Overlay(owner) => {
                owner.call(move |overlay| Box::pin(async move { overlay.detach(&container).await })).await
            }
            Network::Lan(_, owner) => {
                owner.call(move |lan| Box::pin(async move { lan.detach(&container).await })).await
            }
        };
        // A network that was removed meanwhile took its endpoints with it.
        detached.unwrap_or(Ok(()))
    }
}

impl Registry {
    async fn create_bridge(&mut self, spec: BridgeSpec) -> Result<BridgeInfo, CreateBridgeError> {
        if let Some(Network::Bridge(info, _)) = self.directory.load().get(&spec.id) {
            return Ok(info.clone());
        }
        let interface = spec.interface.clone().unwrap_or_else(|| bridge_name(&spec.id));
        if interface.is_empty() || interface.len() > INTERFACE_CHARS || interface.contains(['/', ' ']) {
            return Err(CreateBridgeError::Interface(interface));
        }
        check(&spec.families, spec.mtu, &spec.pools)?;
        one_of_each(&spec.pools)?;
        let had = self.subnets_of(&interface, &spec.id).await?;
        let uplinks = self.context.uplinks_v6();
        let mut subnets = Vec::new();
        for family in Family::ALL.into_iter().filter(|family| spec.families.contains(family)) {
            let pool = spec.pools.iter().find(|pool| pool.family == family).cloned();
            let pool = pool.unwrap_or_else(|| Pool::any(family));
            let had = had.iter().find(|had| had.family() == family && Some(**had) != uplinks);
            let subnet = self.choose_subnet(&pool, had.copied()).await?;
            subnets.push((subnet, gateway(&pool, subnet)?));
        }
        let info = BridgeInfo { id: spec.id.clone(), interface, subnets };
        let uplinks = uplinks.filter(|uplinks| had.contains(uplinks));
        let bridge = Bridge::open(spec, info.clone(), self.context.clone(), uplinks).await?;
        let owner = Owner::spawn(&self.scope, bridge);
        self.insert(info.id.clone(), Network::Bridge(info.clone(), owner));
        Ok(info)
    }

    async fn create_lan(&mut self, spec: LanSpec) -> Result<LanInfo, CreateLanError> {
        if let Some(Network::Lan(info, _)) = self.directory.load().get(&spec.id) {
            return Ok(info.clone());
        }
        check(&spec.families, spec.mtu, &spec.pools)?;
        let parent = Parent::of(&spec)?;
        let all: Vec<Network> = self.directory.load().values().cloned().collect();
        for network in all {
            let Network::Lan(_, owner) = network else { continue };
            let (spec, parent) = (spec.clone(), parent.name.clone());
            let fits = owner
                .call(move |other| Box::pin(std::future::ready(lan::check_parent(&spec, &parent, other))));
            fits.await.map_err(|_| shutting_down())??;
        }
        let mut subnets: Vec<(Subnet, IpAddr)> = Vec::new();
        for family in Family::ALL.into_iter().filter(|family| spec.families.contains(family)) {
            let mut pools: Vec<Pool> =
                spec.pools.iter().filter(|pool| pool.family == family).cloned().collect();
            if pools.is_empty() {
                pools.push(Pool::any(family));
            }
            for pool in pools {
                let subnet = self.choose_subnet(&pool, None).await?;
                if subnets.iter().any(|(other, _)| other.overlaps(subnet)) {
                    return Err(CreateBridgeError::Overlap(subnet).into());
                }
                subnets.push((subnet, gateway(&pool, subnet)?));
            }
        }
        let lan = Lan::open(spec.clone(), parent, subnets, self.context.clone()).await?;
        let info = lan.info.clone();
        let owner = Owner::spawn(&self.scope, lan);
        self.insert(spec.id, Network::Lan(info.clone(), owner));
        Ok(info)
    }

    /// The subnets of an interface that exists; one that is not this network's is an error.
    async fn subnets_of(&self, interface: &str, id: &str) -> Result<Vec<Subnet>, CreateBridgeError> {
        let list = || Route::open()?.list();
        let found = self.context.home.act("links could not be listed", list).await?;
        let Some(link) = found.links.iter().find(|link| link.link.name == interface) else {
            return Ok(Vec::new());
        };
        if link.link.alias != self.context.alias(id) {
            return Err(CreateBridgeError::Interface(interface.to_owned()));
        }
        let addresses = found.addresses.iter().filter(|entry| entry.link == interface);
        Ok(addresses.filter_map(|entry| Subnet::new(entry.address, entry.prefix)).collect())
    }

    async fn choose_subnet(&self, pool: &Pool, had: Option<Subnet>) -> Result<Subnet, CreateBridgeError> {
        let taken: Vec<Subnet> = self
            .directory
            .load()
            .values()
            .flat_map(|network| match network {
                Network::Bridge(BridgeInfo { subnets, .. }, _) | Network::Lan(LanInfo { subnets, .. }, _) => {
                    subnets.iter().map(|(subnet, _)| *subnet).collect()
                }
                Network::Overlay(_) => Vec::new(),
            })
            .chain(self.context.uplinks_v6())
            .collect();
        if let Some(asked) = pool.subnet {
            let fits = !taken.iter().any(|other| other.overlaps(asked));
            return fits.then_some(asked).ok_or(CreateBridgeError::Overlap(asked));
        }
        if let Some(had) = had {
            return Ok(had);
        }
        let routed = || Route::open()?.routed_subnets();
        let routed = self.context.home.act("routes could not be listed", routed).await?;
        let is_free = |subnet: &Subnet| !taken.iter().chain(&routed).any(|other| other.overlaps(*subnet));
        let of_family = |one: &AddressPool| one.base.family() == pool.family;
        let configured = self.config.bridge_pools.iter().copied().filter(of_family);
        let mut pools: Vec<AddressPool> = configured.collect();
        if pools.is_empty() {
            let whole = |base| AddressPool { base, size: default_prefix(base) };
            pools = self.default_pools(pool.family).into_iter().map(whole).collect();
        }
        let mut subnets = pools.into_iter().flat_map(|pool| pool.base.split(pool.size));
        subnets.find(is_free).ok_or(CreateBridgeError::NoFreePool)
    }

    /// Docker's pools for local networks; of IPv6 the prefix that is this daemon's own.
    fn default_pools(&self, family: Family) -> Vec<Subnet> {
        match family {
            Family::V4 => default_pools(),
            Family::V6 => vec![local_prefix(&self.config.daemon_id)],
        }
    }

    async fn remove_local(&mut self, id: String) -> Result<(), RemoveError> {
        let removed = match self.directory.load().get(&id).cloned() {
            Some(Network::Bridge(_, owner)) => owner.call(|bridge| Box::pin(remove_bridge(bridge))).await,
            Some(Network::Lan(_, owner)) => owner.call(|lan| Box::pin(remove_lan(lan))).await,
            Some(Network::Overlay(_)) | None => return Ok(()),
        };
        removed.map_err(|_| shutting_down())??;
        self.take(&id);
        Ok(())
    }

    /// The overlay's owner, made if there is none.
    fn overlay(&mut self, id: &str) -> Owner<OverlayNetwork> {
        if let Some(Network::Overlay(owner)) = self.directory.load().get(id) {
            return owner.clone();
        }
        let way_out = match self.directory.load().get(DEFAULT_BRIDGE) {
            Some(Network::Bridge(info, owner)) => Some(WayOut { info: info.clone(), owner: owner.clone() }),
            _ => None,
        };
        let (context, pins) = (self.context.clone(), self.pins.clone());
        let keeper = self.scope.child("sandbox");
        let owner = Owner::spawn_with(&self.scope, |itself| {
            OverlayNetwork::new(id.to_owned(), context, pins, way_out, Keeper { scope: keeper, itself })
        });
        self.insert(id.to_owned(), Network::Overlay(owner.clone()));
        owner
    }

    /// The owner of an overlay whose sandbox was left by a daemon before.
    fn pinned(&mut self, id: &str) -> Option<Owner<OverlayNetwork>> {
        let exists = self.pins.names().is_ok_and(|names| names.iter().any(|name| name == id));
        exists.then(|| self.overlay(id))
    }

    async fn remove_overlay(&mut self, id: String) -> Result<(), OverlayError> {
        let Some(owner) = self.pinned(&id).or_else(|| self.known_overlay(&id)) else { return Ok(()) };
        owner.call(|network| Box::pin(network.close())).await.map_err(|_| shutting_down())??;
        self.take(&id);
        Ok(())
    }

    fn known_overlay(&self, id: &str) -> Option<Owner<OverlayNetwork>> {
        match self.directory.load().get(id) {
            Some(Network::Overlay(owner)) => Some(owner.clone()),
            _ => None,
        }
    }

    async fn close_all(&mut self) -> Result<(), KernelError> {
        let mut first = None;
        let mut note = |done: Result<(), KernelError>| {
            if let Err(error) = done {
                tracing::warn!(error = %rswarm_base::Chain(&error), "network object left behind");
                first.get_or_insert(error);
            }
        };
        let pinned = self.pins.names().unwrap_or_default();
        for id in pinned {
            let done = self.remove_overlay(id).await;
            note(done.map_err(|error| KernelError {
                action: rswarm_base::Chain(&error).to_string(),
                source: std::io::Error::other("sandbox not removed"),
            }));
        }
        let tunnel = self.context.tunnel.call(|tunnel| Box::pin(tunnel.close())).await;
        note(tunnel.map_err(|_| shutting_down()).and_then(|closed| {
            closed.map_err(|error| KernelError {
                action: rswarm_base::Chain(&error).to_string(),
                source: std::io::Error::other("device not removed"),
            })
        }));
        for network in self.directory.load().values() {
            let Network::Bridge(_, owner) = network else { continue };
            // An owner that ended puts nothing right.
            let _ = owner.call(|bridge| Box::pin(async { bridge.retire() })).await;
        }
        let links = self.our_links().await;
        note(links.as_ref().map(|_| ()).map_err(|error| KernelError {
            action: error.action.clone(),
            source: std::io::Error::from(error.source.kind()),
        }));
        for name in links.unwrap_or_default() {
            note(disconnect(&self.context.home, &name).await);
        }
        note(
            self.context
                .host
                .call(|host| Box::pin(host.close()))
                .await
                .unwrap_or_else(|_| Err(shutting_down())),
        );
        self.directory.store(Arc::default());
        let path = self.config.netns_dir.display();
        let action = format!("sandbox directory `{path}` could not be removed");
        note(self.pins.close().map_err(|source| KernelError { action, source }));
        first.map_or(Ok(()), Err)
    }

    /// The links in the daemon's namespace that carry its mark.
    async fn our_links(&self) -> Result<Vec<String>, KernelError> {
        let prefix = Context::alias_prefix(&self.config.daemon_id);
        let list = move || {
            let links = Route::open()?.links()?.into_iter();
            Ok(links.filter(|link| link.link.alias.starts_with(&prefix)).map(|link| link.link.name).collect())
        };
        self.context.home.act("links could not be listed", list).await
    }

    fn insert(&self, id: String, network: Network) {
        let mut all = BTreeMap::clone(&self.directory.load());
        all.insert(id, network);
        self.directory.store(Arc::new(all));
    }

    fn take(&self, id: &str) {
        let mut all = BTreeMap::clone(&self.directory.load());
        all.remove(id);
        self.directory.store(Arc::new(all));
    }
}

async fn remove_bridge(bridge: &mut Bridge) -> Result<(), RemoveError> {
    if bridge.is_in_use() {
        return Err(RemoveError::InUse { network: bridge.spec.name.clone() });
    }
    Ok(bridge.close().await?)
}

async fn remove_lan(lan: &mut Lan) -> Result<(), RemoveError> {
    if lan.is_in_use() {
        return Err(RemoveError::InUse { network: lan.spec.name.clone() });
    }
    Ok(lan.close().await?)
}

/// Refuses addresses that no network of this host can have.
fn check(families: &[Family], mtu: Option<u32>, pools: &[Pool]) -> Result<(), CreateBridgeError> {
    /// spec: RFC 8200 5
    const IPV6_MTU_MIN: u32 = 1280;
    if families.is_empty() {
        return Err(CreateBridgeError::NoFamily);
    }
    if families.contains(&Family::V6) {
        if !netns::families().contains(&Family::V6) {
            return Err(CreateBridgeError::NoIpv6);
        }
        if let Some(mtu) = mtu.filter(|mtu| *mtu < IPV6_MTU_MIN) {
            return Err(CreateBridgeError::Mtu(mtu));
        }
    }
    for pool in pools {
        let Some(subnet) = pool.subnet else { continue };
        if subnet.family() != pool.family || !families.contains(&pool.family) {
            return Err(CreateBridgeError::Family(subnet));
        }
        if let Some(range) =
            pool.range.filter(|range| !subnet.contains(range.address()) || range.prefix() < subnet.prefix())
        {
            return Err(CreateBridgeError::Outside(format!("range {range}"), subnet));
        }
        if let Some(address) = pool.reserved.iter().find(|address| !subnet.contains(**address)) {
            return Err(CreateBridgeError::Outside(format!("auxiliary address {address}"), subnet));
        }
    }
    Ok(())
}

/// A bridge has one subnet of each family.
fn one_of_each(pools: &[Pool]) -> Result<(), CreateBridgeError> {
    let families: BTreeSet<Family> = pools.iter().map(|pool| pool.family).collect();
    if families.len() == pools.len() { Ok(()) } else { Err(CreateBridgeError::Subnets) }
}

/// The bridge's own address: the one that was asked for, else the first that may be handed out.
fn gateway(pool: &Pool, subnet: Subnet) -> Result<IpAddr, CreateBridgeError> {
    let taken: BTreeSet<IpAddr> = pool.reserved.iter().copied().collect();
    match pool.gateway.or_else(|| ipam::lowest_address(subnet, &taken)) {
        Some(gateway) if subnet.contains(gateway) && gateway != subnet.address() => Ok(gateway),
        other => Err(CreateBridgeError::Gateway(other.unwrap_or(subnet.address()))),
    }
}

/// The prefix length of one network's subnet in a pool: an IPv4 pool is one, an IPv6 one holds many.
fn default_prefix(pool: Subnet) -> u8 {
    match pool.family() {
        Family::V4 => pool.prefix(),
        Family::V6 => pool.prefix().max(64),
    }
}

/// The default bridge as asked for, but for its interface and IPv6.
fn default_bridge(asked: &DefaultBridge) -> BridgeSpec {
    let mut spec = BridgeSpec::new(DEFAULT_BRIDGE, DEFAULT_BRIDGE);
    (spec.icc, spec.masquerade) = (asked.icc, asked.masquerade);
    (spec.mtu, spec.host_binding) = (asked.mtu, asked.host_binding);
    // What is asked of addresses holds in the range's subnet when there is no other.
    let subnet = asked.address.and_then(|(address, prefix)| Subnet::new(address, prefix)).or(asked.range);
    if subnet.is_some() {
        let gateway = asked.address.map(|(address, _)| address);
        spec.pools.push(Pool { subnet, range: asked.range, gateway, ..Pool::any(Family::V4) });
    }
    spec
}

/// The interface of a user-defined bridge, named as Docker names it.
fn bridge_name(id: &str) -> String {
    format!("br-{}", rswarm_base::id::short(id))
}

/// Docker's pools for local networks, in its order: 172.17.0.0/16 to 172.31.0.0/16, then 192.168.0.0/16
/// in parts of 4096 addresses.
fn default_pools() -> Vec<Subnet> {
    let large = (17..=31).map(|second| (Ipv4Addr::new(172, second, 0, 0), 16));
    let small = (0..16).map(|part| (Ipv4Addr::new(192, 168, part * 16, 0), 20));
    large.chain(small).filter_map(|(address, prefix)| Subnet::new(address.into(), prefix)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_pools_are_dockers() {
        let pools = default_pools();
        assert_eq!(pools[0].to_string(), "172.17.0.0/16");
        assert_eq!(pools[15].to_string(), "192.168.0.0/20");
        assert_eq!(pools.last().map(ToString::to_string).as_deref(), Some("192.168.240.0/20"));
    }

    #[test]
    fn bridge_names_fit_the_kernel() {
        assert_eq!(bridge_name(&"0123456789abcdef".repeat(4)), "br-0123456789ab");
        assert_eq!(bridge_name("short"), "br-short");
    }
}
