//! Subnets and VXLAN ids of networks, and what is said when there are none left.

use std::collections::{BTreeMap, BTreeSet};

use rswarm_base::ipam::{self, Family, Subnet};
use rswarm_proto::wire::{IpamConfig, Network};

use crate::state::State;

/// The VXLAN ids that networks get (as swarmkit): below are those that people set up by hand.
const VNIS: std::ops::Range<u32> = 4096..1 << 24;
/// The network option that asks for a VXLAN id (as Docker's overlay driver).
const VNI_OPTION: &str = "com.docker.network.driver.overlay.vxlanid_list";

/// Every new network with its subnets and its VXLAN id, by network id. `made` is not stored yet, and the first
/// to be given anything.
pub(super) fn given(view: &State, made: Option<&Network>) -> BTreeMap<String, Network> {
    let mut fresh = BTreeMap::new();
    let stored = view.networks().map(AsRef::as_ref);
    let stored = stored.filter(|network| network.vni == 0 && !network.pending_delete && network.is_overlay());
    let new: Vec<&Network> = made.into_iter().chain(stored).collect();
    if new.is_empty() {
        return fresh;
    }
    let mut taken: Vec<Subnet> = view.networks().flat_map(|network| subnets(&network.ipam)).collect();
    // Subnets that other new networks ask for by name are not given away.
    new.iter().for_each(|network| taken.extend(subnets(&spec_ipam(network))));
    let mut vnis: BTreeSet<u32> = view.networks().map(|network| network.vni).collect();
    let sources = Family::ALL.map(|family| view.address_pools(family));
    for network in new {
        let Some(ipam) = network_ipam(network, &sources, &mut taken) else { continue };
        let wanted = network.spec.as_ref().and_then(|spec| spec.options.get(VNI_OPTION));
        let wanted = wanted.and_then(|list| list.split(',').next()?.trim().parse().ok());
        let free = |vni: &u32| !vnis.contains(vni);
        let Some(vni) = wanted.filter(free).or_else(|| VNIS.clone().find(free)) else { continue };
        vnis.insert(vni);
        fresh.insert(network.id.clone(), Network { ipam, vni, ..network.clone() });
    }
    fresh
}

fn spec_ipam(network: &Network) -> Vec<IpamConfig> {
    network.spec.as_ref().map(|spec| spec.ipam.clone()).unwrap_or_default()
}

fn subnets(ipam: &[IpamConfig]) -> impl Iterator<Item = Subnet> {
    ipam.iter().filter_map(|config| config.subnet.parse().ok())
}

/// The network's subnets as asked for, IPv4 first, each with a gateway; a family that it has no subnet of gets one
/// from that family's pools and of that size. `None` when the pools are exhausted.
fn network_ipam(
    network: &Network,
    sources: &[(Vec<Subnet>, u8); 2],
    taken: &mut Vec<Subnet>,
) -> Option<Vec<IpamConfig>> {
    let is_wanted = |family| match family {
        Family::V4 => network.spec.as_ref().is_none_or(|spec| !spec.without_ipv4),
        Family::V6 => network.spec.as_ref().is_some_and(|spec| spec.ipv6),
    };
    let asked: Vec<(Option<Subnet>, IpamConfig)> =
        spec_ipam(network).into_iter().map(|config| (config.subnet.parse().ok(), config)).collect();
    let mut configs = Vec::new();
    for (family, (pools, size)) in Family::ALL.into_iter().zip(sources) {
        // Without a subnet nothing else can be said of one either.
        let of_family = |subnet: &Option<Subnet>| subnet.is_some_and(|subnet| subnet.family() == family);
        let mut its: Vec<_> = asked.iter().filter(|(subnet, _)| of_family(subnet)).cloned().collect();
        if its.is_empty() && is_wanted(family) {
            let subnet = ipam::free_subnet(pools, *size, taken)?;
            taken.push(subnet);
            its.push((Some(subnet), IpamConfig::default()));
        }
        for (subnet, mut config) in its {
            let subnet = subnet?;
            config.subnet = subnet.to_string();
            if config.gateway.is_empty() {
                config.gateway = subnet.nth(1)?.to_string();
            }
            configs.push(config);
        }
    }
    Some(configs)
}

/// Why a network that was asked for has no addresses: what can be had was given away in this very pass.
pub(super) fn why_none(view: &State, network_id: &str) -> String {
    let is_known = view.network(network_id).is_some_and(|network| !network.pending_delete);
    if !is_known {
        return format!("network {network_id} has no subnet yet");
    }
    let (pools, size) = view.address_pools(Family::V4);
    let used = view.networks().filter(|network| network.vni != 0).count();
    exhausted(network_id, &pools, size, used)
}

pub(super) fn exhausted(network_id: &str, pools: &[Subnet], size: u8, used: usize) -> String {
    let parts = |pool: &Subnet| 1u128 << u32::from(size.saturating_sub(pool.prefix())).min(127);
    let all: u128 = pools.iter().map(parts).sum();
    let pools: Vec<String> = pools.iter().map(ToString::to_string).collect();
    format!(
        "network {network_id} has no subnet: the cluster's address pools ({}, {all} subnets of /{size}) are \
         exhausted by {used} networks; remove some, or give the network a subnet of its own",
        pools.join(", ")
    )
}
