//! Address pools: which subnet a network gets, which address an endpoint gets. Pure; used alike by the
//! cluster's allocator and by local networks.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Which of the two kinds an address is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, in the order in which they are listed everywhere.
    pub const ALL: [Family; 2] = [Family::V4, Family::V6];

    /// The family of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Family {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// How many bits its addresses have.
    #[must_use]
    pub fn bits(self) -> u8 {
        match self {
            Family::V4 => 32,
            Family::V6 => 128,
        }
    }

    /// The address that stands for all addresses of a host.
    #[must_use]
    pub fn unspecified(self) -> IpAddr {
        match self {
            Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

/// An IP prefix, host bits cleared: `10.0.1.0/24`, `fd00::/64`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet {
    address: IpAddr,
    prefix: u8,
}

/// Text that is no subnet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid subnet `{0}`: want ADDRESS/PREFIX, such as 10.0.1.0/24")]
pub struct InvalidSubnet(pub String);

impl Subnet {
    /// The prefix of length `prefix` that holds `address`; `None` when the length does not fit the family.
    #[must_use]
    pub fn new(address: IpAddr, prefix: u8) -> Option<Subnet> {
        let bits = family_bits(address);
        (prefix <= bits)
            .then(|| Subnet { address: to_ip(to_bits(address) & mask(bits, prefix), address), prefix })
    }

    /// The network address.
    #[must_use]
    pub fn address(self) -> IpAddr {
        self.address
    }

    /// The prefix length.
    #[must_use]
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The family of its addresses.
    #[must_use]
    pub fn family(self) -> Family {
        Family::of(self.address)
    }

    /// The last address.
    #[must_use]
    pub fn last(self) -> IpAddr {
        let bits = family_bits(self.address);
        let hosts = mask(bits, bits) ^ mask(bits, self.prefix);
        to_ip(to_bits(self.address) | hosts, self.address)
    }

    /// Whether the address lies inside.
    #[must_use]
    pub fn contains(self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4()
            && Subnet::new(address, self.prefix).is_some_and(|subnet| subnet.address == self.address)
    }

    /// Whether any address lies in both.
    #[must_use]
    pub fn overlaps(self, other: Subnet) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }

    /// The `n`th address, counted from the network address; `None` past the end.
    #[must_use]
    pub fn nth(self, n: u128) -> Option<IpAddr> {
        (n < self.size()).then(|| to_ip(to_bits(self.address) + n, self.address))
    }

    /// How many addresses there are, saturating at `u128::MAX`.
    #[must_use]
    pub fn size(self) -> u128 {
        let host_bits = u32::from(family_bits(self.address) - self.prefix);
        1u128.checked_shl(host_bits).unwrap_or(u128::MAX)
    }

    /// The subnets of length `prefix` inside this one, in order.
    pub fn split(self, prefix: u8) -> impl Iterator<Item = Subnet> {
        let bits = family_bits(self.address);
        let count = if prefix < self.prefix || prefix > bits {
            0
        } else {
            1u128.checked_shl(u32::from(prefix - self.prefix)).unwrap_or(u128::MAX)
        };
        let step = u32::from(bits.saturating_sub(prefix));
        (0..count).map(move |n| Subnet {
            address: to_ip(to_bits(self.address) + n.checked_shl(step).unwrap_or(0), self.address),
            prefix,
        })
    }

    /// Addresses that endpoints may have: neither the network nor, for IPv4, the broadcast address.
    fn is_usable(self, address: IpAddr) -> bool {
        if !self.contains(address) {
            return false;
        }
        let offset = to_bits(address) - to_bits(self.address);
        let broadcast = address.is_ipv4() && self.prefix < 31 && offset == self.size() - 1;
        offset != 0 && !broadcast
    }
}

fn family_bits(address: IpAddr) -> u8 {
    Family::of(address).bits()
}

fn mask(bits: u8, prefix: u8) -> u128 {
    let all = if bits == 32 { u128::from(u32::MAX) } else { u128::MAX };
    all ^ all.checked_shr(u32::from(prefix)).unwrap_or(0)
}

fn to_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn to_ip(bits: u128, like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::from_bits(bits as u32).into(),
        IpAddr::V6(_) => Ipv6Addr::from_bits(bits).into(),
    }
}

impl FromStr for Subnet {
    type Err = InvalidSubnet;

    fn from_str(text: &str) -> Result<Subnet, InvalidSubnet> {
        let parsed = text
            .split_once('/')
            .and_then(|(address, prefix)| Subnet::new(address.parse().ok()?, prefix.parse().ok()?));
        parsed.ok_or_else(|| InvalidSubnet(text.to_owned()))
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl TryFrom<String> for Subnet {
    type Error = InvalidSubnet;

    fn try_from(text: String) -> Result<Subnet, InvalidSubnet> {
        text.parse()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> String {
        subnet.to_string()
    }
}

/// The first subnet of length `prefix` in `pools` that overlaps nothing in `taken`.
#[must_use]
pub fn free_subnet(pools: &[Subnet], prefix: u8, taken: &[Subnet]) -> Option<Subnet> {
    // Taken subnets are skipped whole, so that a large one does not cost a step for each of its parts.
    pools.iter().find_map(|pool| {
        pool.split(prefix).find(|candidate| !taken.iter().any(|other| other.overlaps(*candidate)))
    })
}

/// The next free address of `subnet` after `cursor` (wrapping), so that a released one is not reused at
/// once. `None` when the subnet is full. Pass `cursor = 0` for "from the start"; store the returned offset.
#[must_use]
pub fn next_address(subnet: Subnet, taken: &BTreeSet<IpAddr>, cursor: u128) -> Option<(IpAddr, u128)> {
    // Only `taken.len()` candidates can be refused, plus the two ends.
    let tries = (taken.len() as u128 + 3).min(subnet.size());
    (1..=tries).find_map(|step| {
        let offset = (cursor + step) % subnet.size();
        let address = subnet.nth(offset)?;
        (subnet.is_usable(address) && !taken.contains(&address)).then_some((address, offset))
    })
}

/// The lowest free address of `subnet`.
#[must_use]
pub fn lowest_address(subnet: Subnet, taken: &BTreeSet<IpAddr>) -> Option<IpAddr> {
    next_address(subnet, taken, 0).map(|(address, _)| address)
}

/// The locally administered MAC of an endpoint: `02:42:` and four bytes, as Docker derives them from an IPv4
/// address. Of an IPv6 address all bytes count, so that neighbours in a subnet differ.
#[must_use]
pub fn mac_for(address: IpAddr) -> [u8; 6] {
    let [a, b, c, d] = match address {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(v6) => {
            let bits = v6.to_bits();
            ((bits ^ bits >> 32 ^ bits >> 64 ^ bits >> 96) as u32).to_be_bytes()
        }
    };
    [0x02, 0x42, a, b, c, d]
}

/// A site's own IPv6 prefix of 48 bits, `fd` and forty bits that derive from what makes the site unique.
/// spec: RFC 4193 3.2
#[must_use]
pub fn local_prefix(seed: &str) -> Subnet {
    // FNV-1a, as prefixes must stay the same from one build to the next; its high bits are mixed best.
    let hash = seed
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let bits = 0xfd << 120 | u128::from(hash >> 24) << 80;
    Subnet { address: Ipv6Addr::from_bits(bits).into(), prefix: 48 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        text.parse().expect("subnet")
    }

    #[test]
    fn host_bits_are_cleared() {
        assert_eq!(subnet("10.0.1.77/24").to_string(), "10.0.1.0/24");
        assert_eq!(subnet("fd00::1/64").to_string(), "fd00::/64");
        assert!("10.0.0.0".parse::<Subnet>().is_err());
        assert!("10.0.0.0/33".parse::<Subnet>().is_err());
    }

    #[test]
    fn a_free_subnet_overlaps_nothing() {
        let taken = [subnet("10.0.0.0/24"), subnet("10.0.1.0/25")];
        assert_eq!(free_subnet(&[subnet("10.0.0.0/8")], 24, &taken), Some(subnet("10.0.2.0/24")));
        assert_eq!(free_subnet(&[subnet("10.0.0.0/24")], 24, &taken), None);
    }

    #[test]
    fn addresses_are_handed_out_in_order_and_run_out() {
        let net = subnet("10.0.0.0/29");
        let mut taken = BTreeSet::new();
        let mut cursor = 0;
        while let Some((address, next)) = next_address(net, &taken, cursor) {
            taken.insert(address);
            cursor = next;
        }
        assert_eq!(taken.len(), 6);
        assert!(!taken.contains(&"10.0.0.7".parse::<IpAddr>().expect("address")));
        taken.remove(&"10.0.0.2".parse::<IpAddr>().expect("address"));
        assert_eq!(lowest_address(net, &taken), "10.0.0.2".parse().ok());
    }

    #[test]
    fn a_subnet_has_a_family_and_a_last_address() {
        for (text, family, last) in [
            ("10.0.0.0/29", Family::V4, "10.0.0.7"),
            ("0.0.0.0/0", Family::V4, "255.255.255.255"),
            ("fd00::/126", Family::V6, "fd00::3"),
            ("::/0", Family::V6, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ] {
            assert_eq!((subnet(text).family(), subnet(text).last().to_string()), (family, last.to_owned()));
        }
    }

    #[test]
    fn macs_of_neighbours_differ() {
        assert_eq!(mac_for(IpAddr::from([172, 17, 0, 2])), [2, 0x42, 172, 17, 0, 2]);
        let net = subnet("fd12:3456:789a:1::/64");
        let macs: BTreeSet<_> = (0..5000).filter_map(|n| net.nth(n)).map(mac_for).collect();
        assert_eq!(macs.len(), 5000);
    }

    #[test]
    fn local_prefixes_are_of_the_local_range_and_differ() {
        let (one, other) = (local_prefix("1a2b3c4d"), local_prefix("1a2b3c4e"));
        assert!(subnet("fd00::/8").contains(one.address()) && one.prefix() == 48);
        assert!(!one.overlaps(other), "{one} and {other}");
        let first = one.split(64).next();
        assert_eq!(first.map(Subnet::address), Some(one.address()));
    }
}
