//! Who makes and removes networks, and writes the directory of those there are.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use rswarm_base::Scope;
use rswarm_base::ipam::{Family, Subnet};

use super::pools::{bridge_name, check, default_pools, default_prefix, gateway, one_of_each};
use super::{Directory, Network};
use crate::actor::Owner;
use crate::bridge::{Bridge, Context, shutting_down};
use crate::error::{CreateBridgeError, CreateLanError, KernelError, OverlayError, RemoveError};
use crate::lan::{self, Lan, Parent};
use crate::link::Route;
use crate::model::{AddressPool, BridgeInfo, BridgeSpec, Config, DEFAULT_BRIDGE, LanInfo, LanSpec, Pool};
use crate::netns::Pins;
use crate::overlay::{Keeper, OverlayNetwork, WayOut};
use crate::pair::disconnect;

/// The kernel's limit on an interface's name.
const INTERFACE_CHARS: usize = 15;

/// Makes and removes networks, one at a time: two must not choose the same subnet.
#[derive(Debug)]
pub(super) struct Registry {
    pub(super) config: Config,
    pub(super) scope: Scope,
    pub(super) context: Context,
    pub(super) pins: Pins,
    pub(super) directory: Directory,
}

impl Registry {
    pub(super) async fn create_bridge(&mut self, spec: BridgeSpec) -> Result<BridgeInfo, CreateBridgeError> {
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

    pub(super) async fn create_lan(&mut self, spec: LanSpec) -> Result<LanInfo, CreateLanError> {
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
            pools = default_pools(pool.family, &self.config.daemon_id).into_iter().map(whole).collect();
        }
        let mut subnets = pools.into_iter().flat_map(|pool| pool.base.split(pool.size));
        subnets.find(is_free).ok_or(CreateBridgeError::NoFreePool)
    }

    pub(super) async fn remove_local(&mut self, id: String) -> Result<(), RemoveError> {
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
    pub(super) fn overlay(&mut self, id: &str) -> Owner<OverlayNetwork> {
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
    pub(super) fn pinned(&mut self, id: &str) -> Option<Owner<OverlayNetwork>> {
        let exists = self.pins.names().is_ok_and(|names| names.iter().any(|name| name == id));
        exists.then(|| self.overlay(id))
    }

    pub(super) async fn remove_overlay(&mut self, id: String) -> Result<(), OverlayError> {
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

    pub(super) async fn close_all(&mut self) -> Result<(), KernelError> {
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
