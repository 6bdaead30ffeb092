//! Which addresses of a local network its endpoints get. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use rswarm_base::ipam::{Family, Subnet, lowest_address};

use crate::error::AttachError;
use crate::model::{Placed, Pool};

/// A network's addresses, and those of them that are taken.
#[derive(Debug)]
pub struct Places<'a> {
    /// The network's name.
    pub network: &'a str,
    /// The network's identifier.
    pub id: &'a str,
    /// Its subnets with their gateways.
    pub subnets: &'a [(Subnet, IpAddr)],
    /// What was asked of them.
    pub pools: &'a [Pool],
    /// Whether there is no way out.
    pub internal: bool,
    /// Addresses that somebody has; gateways and reserved ones need not be among them.
    pub taken: BTreeSet<IpAddr>,
}

impl Places<'_> {
    /// An address of each family that the network has, those that are asked for among them.
    pub fn choose_all(&self, asked: &[IpAddr]) -> Result<Vec<Placed>, AttachError> {
        let has = |family: &Family| self.subnets.iter().any(|(subnet, _)| subnet.family() == *family);
        if let Some(address) = asked.iter().find(|address| !has(&Family::of(**address))) {
            return Err(self.outside(*address));
        }
        let families = Family::ALL.into_iter().filter(has);
        let choose = |family| {
            let wanted = asked.iter().copied().find(|address| Family::of(*address) == family);
            self.choose(family, wanted)
        };
        families.map(choose).collect()
    }

    /// An address of a family: the one that is asked for, or the lowest that is free.
    pub fn choose(&self, family: Family, wanted: Option<IpAddr>) -> Result<Placed, AttachError> {
        let mut own = self.subnets.iter().copied().filter(|(subnet, _)| subnet.family() == family);
        let placed = |address, (subnet, gateway): (Subnet, IpAddr)| Placed {
            address,
            prefix: subnet.prefix(),
            gateway: (!self.internal).then_some(gateway),
        };
        let Some(address) = wanted else {
            let free = own.find_map(|place| Some(placed(self.free(place.0)?, place)));
            return free.ok_or_else(|| AttachError::AddressesExhausted {
                family,
                network: self.network.to_owned(),
                id: self.id.to_owned(),
            });
        };
        let place = own.find(|(subnet, _)| subnet.contains(address)).ok_or_else(|| self.outside(address))?;
        if self.all_taken().contains(&address) {
            return Err(AttachError::AddressInUse(address));
        }
        Ok(placed(address, place))
    }

    fn outside(&self, address: IpAddr) -> AttachError {
        AttachError::AddressOutside { address, network: self.network.to_owned() }
    }

    fn free(&self, subnet: Subnet) -> Option<IpAddr> {
        let is_its =
            |pool: &&Pool| pool.subnet.map_or(pool.family == subnet.family(), |of_pool| of_pool == subnet);
        let range = self.pools.iter().find(is_its).and_then(|pool| pool.range).unwrap_or(subnet);
        free_address(range, subnet, self.all_taken())
    }

    fn all_taken(&self) -> BTreeSet<IpAddr> {
        let gateways = self.subnets.iter().map(|(_, gateway)| *gateway);
        let reserved = self.pools.iter().flat_map(|pool| pool.reserved.iter().copied());
        self.taken.iter().copied().chain(gateways).chain(reserved).collect()
    }
}

/// The lowest free address of `range`, which is the subnet or a part of it.
fn free_address(range: Subnet, subnet: Subnet, mut taken: BTreeSet<IpAddr>) -> Option<IpAddr> {
    if range != subnet {
        // All of a range's addresses are good but the subnet's own ends.
        taken.insert(subnet.address());
        taken.insert(subnet.last());
        return (0..range.size()).filter_map(|n| range.nth(n)).find(|address| !taken.contains(address));
    }
    lowest_address(subnet, &taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_gives_all_of_its_addresses() {
        let (range, subnet) = ("10.1.0.0/30".parse().expect("range"), "10.1.0.0/16".parse().expect("subnet"));
        let mut taken = BTreeSet::from([IpAddr::from([10, 1, 0, 1])]);
        let mut given = Vec::new();
        while let Some(address) = free_address(range, subnet, taken.clone()) {
            taken.insert(address);
            given.push(address.to_string());
        }
        assert_eq!(given, ["10.1.0.2", "10.1.0.3"]);
    }

    #[test]
    fn subnets_of_a_family_are_used_up_in_order() {
        let subnet = |text: &str| text.parse::<Subnet>().expect("subnet");
        let ip = |text: &str| text.parse::<IpAddr>().expect("address");
        let subnets = [(subnet("10.1.0.0/30"), ip("10.1.0.1")), (subnet("10.2.0.0/30"), ip("10.2.0.2"))];
        let pools =
            [Pool { reserved: vec![ip("10.2.0.1")], subnet: Some(subnets[1].0), ..Pool::any(Family::V4) }];
        let mut places = Places {
            network: "n",
            id: "1",
            subnets: &subnets,
            pools: &pools,
            internal: false,
            taken: BTreeSet::new(),
        };
        assert_eq!(places.choose(Family::V4, None).expect("free").address, ip("10.1.0.2"));
        assert!(matches!(places.choose(Family::V4, Some(ip("10.2.0.1"))), Err(AttachError::AddressInUse(_))));
        assert!(
            places.choose_all(&[ip("fd00::1")]).is_err() && places.choose_all(&[ip("10.3.0.1")]).is_err()
        );
        places.taken.insert(ip("10.1.0.2"));
        assert!(matches!(places.choose(Family::V4, None), Err(AttachError::AddressesExhausted { .. })));
    }
}
