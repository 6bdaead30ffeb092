//! Which addresses and names a network of this host can have. Pure, but for the kernel's families.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use rswarm_base::ipam::{self, Family, Subnet, local_prefix};

use crate::error::CreateBridgeError;
use crate::model::Pool;
use crate::netns;

/// The interface of a user-defined bridge, named as Docker names it.
pub(super) fn bridge_name(id: &str) -> String {
    format!("br-{}", rswarm_base::id::short(id))
}

/// Refuses addresses that no network of this host can have.
pub(super) fn check(families: &[Family], mtu: Option<u32>, pools: &[Pool]) -> Result<(), CreateBridgeError> {
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
pub(super) fn one_of_each(pools: &[Pool]) -> Result<(), CreateBridgeError> {
    let families: BTreeSet<Family> = pools.iter().map(|pool| pool.family).collect();
    if families.len() == pools.len() { Ok(()) } else { Err(CreateBridgeError::Subnets) }
}

/// The bridge's own address: the one that was asked for, else the first that may be handed out.
pub(super) fn gateway(pool: &Pool, subnet: Subnet) -> Result<IpAddr, CreateBridgeError> {
    let taken: BTreeSet<IpAddr> = pool.reserved.iter().copied().collect();
    match pool.gateway.or_else(|| ipam::lowest_address(subnet, &taken)) {
        Some(gateway) if subnet.contains(gateway) && gateway != subnet.address() => Ok(gateway),
        other => Err(CreateBridgeError::Gateway(other.unwrap_or(subnet.address()))),
    }
}

/// The prefix length of one network's subnet in a pool: an IPv4 pool is one, an IPv6 one holds many.
pub(super) fn default_prefix(pool: Subnet) -> u8 {
    match pool.family() {
        Family::V4 => pool.prefix(),
        Family::V6 => pool.prefix().max(64),
    }
}

/// Docker's pools for local networks; of IPv6 the prefix that is this daemon's own.
pub(super) fn default_pools(family: Family, daemon_id: &str) -> Vec<Subnet> {
    match family {
        Family::V4 => default_pools_v4(),
        Family::V6 => vec![local_prefix(daemon_id)],
    }
}

/// In Docker's order: 172.17.0.0/16 to 172.31.0.0/16, then 192.168.0.0/16 in parts of 4096 addresses.
fn default_pools_v4() -> Vec<Subnet> {
    let large = (17..=31).map(|second| (Ipv4Addr::new(172, second, 0, 0), 16));
    let small = (0..16).map(|part| (Ipv4Addr::new(192, 168, part * 16, 0), 20));
    large.chain(small).filter_map(|(address, prefix)| Subnet::new(address.into(), prefix)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_pools_are_dockers() {
        let pools = default_pools_v4();
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
