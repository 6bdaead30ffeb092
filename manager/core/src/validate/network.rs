//! Networks: names, subnets, options.

use std::collections::BTreeSet;

use rswarm_base::ipam::Subnet;
use rswarm_proto::wire::{IpamConfig, NetworkSpec};

use super::{Findings, Problem};
use crate::state::{State, address_of};

/// The network option that says how large packets may be.
pub(super) const MTU_OPTION: &str = "com.docker.network.driver.mtu";

/// The least that a link of IPv6 carries.
/// spec: RFC 8200 5
const IPV6_MTU_MIN: u32 = 1280;

/// The prefix length below which a subnet has too few addresses to be of use (as swarmkit).
const PREFIX_MAX: u8 = 29;

/// What IPv4 must carry, and what a packet can have.
const MTUS: std::ops::RangeInclusive<u32> = 576..=65535;

/// Checks a network's spec.
pub fn network(spec: &NetworkSpec, state: &State) -> Result<(), Vec<Problem>> {
    let mut findings = Findings::default();
    findings.add_size(spec);
    let name = spec.annotations.as_ref().map_or("", |annotations| annotations.name.as_str());
    if name.is_empty() {
        findings.add("", "name must be provided");
    } else {
        let valid = name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        let reason =
            format!("{name} includes invalid characters for a network name: want [a-zA-Z0-9][a-zA-Z0-9_.-]");
        findings.add_if(!valid, "", reason);
        let predefined = crate::allocate::NODE_NETWORKS.contains(&name);
        findings.add_if(predefined, "", format!("{name} is a pre-defined network and cannot be created"));
    }
    findings.add_if(spec.ingress && spec.attachable, "", "ingress network cannot be attachable");
    driver(spec, &mut findings);
    let mut seen: Vec<Subnet> = Vec::new();
    for config in &spec.ipam {
        ipam(config, &mut seen, &mut findings);
    }
    for subnet in &seen {
        for other in state.networks() {
            let taken = other.ipam.iter().filter_map(|config| config.subnet.parse::<Subnet>().ok());
            if taken.into_iter().any(|taken| taken.overlaps(*subnet)) {
                let owner = rswarm_proto::model::object::Stored::name(other.as_ref());
                findings.add("", format!("Pool overlaps with other one on this address space: {subnet} is part of network {owner}"));
            }
        }
    }
    options(spec, &mut findings);
    families(spec, &seen, &mut findings);
    findings.result()
}

/// Overlays are the cluster's own; a network of the nodes' links has only words of theirs.
fn driver(spec: &NetworkSpec, findings: &mut Findings) {
    let driver = spec.driver.as_str();
    if spec.config_from.is_empty() {
        let reason = format!(
            "could not resolve driver {driver} in plugin registry: cluster networks are overlay networks"
        );
        return findings.add_if(!driver.is_empty() && driver != "overlay", "", reason);
    }
    let reason =
        format!("a network of driver {driver} cannot depend on a configuration network of each node");
    findings.add_if(!matches!(driver, "macvlan" | "ipvlan"), "", reason);
    findings.add_if(spec.ingress, "", "ingress network must be an overlay network");
    let has_own = !spec.ipam.is_empty() || !spec.options.is_empty();
    let reason =
        "user specified configurations are not supported if the network depends on a configuration network";
    findings.add_if(has_own, "", reason);
}

/// One family at least, IPv6 where it is asked for, and links that can carry it.
fn families(spec: &NetworkSpec, subnets: &[Subnet], findings: &mut Findings) {
    let is_overlay = spec.config_from.is_empty();
    findings.add_if(spec.without_ipv4 && !spec.ipv6 && is_overlay, "", "IPv4 or IPv6 must be enabled");
    findings.add_if(spec.without_ipv4 && spec.ingress, "", "ingress network needs IPv4");
    let four = subnets.iter().find(|subnet| subnet.address().is_ipv4()).filter(|_| spec.without_ipv4);
    if let Some(subnet) = four {
        findings.add("", format!("subnet {subnet} needs IPv4 to be enabled on the network (--ipv4)"));
    }
    let six = subnets.iter().find(|subnet| subnet.address().is_ipv6()).filter(|_| !spec.ipv6);
    if let Some(subnet) = six {
        findings.add("", format!("subnet {subnet} needs IPv6 to be enabled on the network (--ipv6)"));
    }
    let mtu = spec.options.get(MTU_OPTION).and_then(|text| text.parse::<u32>().ok());
    if let Some(mtu) = mtu.filter(|mtu| spec.ipv6 && *mtu < IPV6_MTU_MIN) {
        findings.add("", format!("invalid MTU number: {mtu}: IPv6 needs at least {IPV6_MTU_MIN}"));
    }
}

/// Options that nodes understand must have values that they can take.
fn options(spec: &NetworkSpec, findings: &mut Findings) {
    if let Some(mtu) = spec.options.get(MTU_OPTION) {
        let possible = mtu.parse().is_ok_and(|mtu: u32| MTUS.contains(&mtu));
        let (least, most) = (MTUS.start(), MTUS.end());
        let reason = format!("invalid MTU \"{mtu}\" ({MTU_OPTION}): want a number from {least} to {most}");
        findings.add_if(!possible, "", reason);
    }
}

fn ipam(config: &IpamConfig, seen: &mut Vec<Subnet>, findings: &mut Findings) {
    if config.subnet.is_empty() {
        let alone =
            config.gateway.is_empty() && config.ip_range.is_empty() && config.aux_addresses.is_empty();
        return findings.add_if(!alone, "", "a gateway, range or auxiliary address needs a subnet");
    }
    let subnet = match config.subnet.parse::<Subnet>() {
        Ok(subnet) => subnet,
        Err(error) => return findings.add("", error.to_string()),
    };
    let narrow = subnet.address().is_ipv4() && subnet.prefix() > PREFIX_MAX;
    findings.add_if(narrow, "", format!("subnet {subnet} is too small: /{PREFIX_MAX} is the smallest"));
    let reason = format!("subnet {subnet} overlaps another subnet of the network");
    findings.add_if(seen.iter().any(|other| other.overlaps(subnet)), "", reason);
    seen.push(subnet);
    let inside = |text: &str| address_of(text).is_some_and(|address| subnet.contains(address));
    if !config.gateway.is_empty() {
        let reason = format!("no matching subnet for gateway {}", config.gateway);
        findings.add_if(!inside(&config.gateway), "", reason);
    }
    if !config.ip_range.is_empty() {
        let range = config.ip_range.parse::<Subnet>();
        let fits =
            range.is_ok_and(|range| subnet.contains(range.address()) && range.prefix() >= subnet.prefix());
        findings.add_if(!fits, "", format!("no matching subnet for range {}", config.ip_range));
    }
    let mut given = BTreeSet::from_iter(address_of(&config.gateway));
    for (name, address) in &config.aux_addresses {
        findings.add_if(!inside(address), "", format!("no matching subnet for aux-address {name}={address}"));
        let reason = format!("aux-address {name}={address} is the gateway or another aux-address already");
        let is_given = address_of(address).is_some_and(|address| !given.insert(address));
        findings.add_if(is_given, "", reason);
    }
}
