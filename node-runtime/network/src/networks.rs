//! The handle: finds the network's owner, and has it do the work.
//!
//! Owners call each other in one direction only: registry, then networks (an overlay the default bridge),
//! then the host. What is read often (which networks there are, what names lead to) is an immutable value
//! swapped as a whole.

mod lead;
mod pools;
mod registry;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use futures_util::future::join_all;
use rswarm_base::Scope;
use rswarm_base::ipam::{Family, Subnet};

use self::registry::Registry;
use crate::actor::Owner;
use crate::bridge::{Bridge, Context, shutting_down};
use crate::check::{self, Exposure, Finding, MeshServices};
use crate::dns;
use crate::error::{
    AttachError, CreateBridgeError, CreateLanError, KernelError, NetnsError, OpenError, OverlayError,
    RemoveError,
};
use crate::host::Host;
use crate::lan::Lan;
use crate::model::{
    AttachRequest, Attached, BridgeInfo, BridgeSpec, Config, DEFAULT_BRIDGE, DefaultBridge, DnsConfig,
    LanInfo, LanSpec, Opening, Overlay, Pool,
};
use crate::names::Names;
use crate::netns::{Netns, Pins};
use crate::overlay::OverlayNetwork;
use crate::tunnel::{Tunnel, TunnelPeerStatus};
use crate::watch::{self, Listen, Watch};

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
