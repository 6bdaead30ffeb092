//! What a service's tasks are: resources, restarts, placement, and the networks they are on.

use std::collections::BTreeSet;

use rswarm_base::ipam::Subnet;
use rswarm_proto::wire::{ResourceRequirements, Resources, RestartPolicy, TaskSpec};

use super::container::container;
use super::{Findings, content};
use crate::constraint::Constraint;
use crate::state::{State, address_of};

/// The least CPU that can be reserved or be the limit: a thousandth of one.
pub(super) const NANO_CPUS_MIN: i64 = 1_000_000;

/// The least memory that can be reserved or be the limit.
pub(super) const MEMORY_MIN: i64 = 4 << 20;

pub(super) fn task(spec: &TaskSpec, state: &State, findings: &mut Findings) {
    match &spec.container {
        None => findings.add("ContainerSpec", "a container spec must be provided"),
        Some(spec) => container(spec, findings),
    }
    if let Some(requirements) = &spec.resources {
        resources(requirements, findings);
    }
    if let Some(policy) = &spec.restart {
        restart(policy, findings);
    }
    if let Some(placement) = &spec.placement {
        for text in &placement.constraints {
            if let Err(error) = Constraint::parse(text) {
                findings.add("Placement", error.to_string());
            }
        }
    }
    networks(spec, state, findings);
    content::references(spec, findings);
}

fn networks(spec: &TaskSpec, state: &State, findings: &mut Findings) {
    let mut seen = BTreeSet::new();
    for config in &spec.networks {
        let target = config.target.as_str();
        let on_node = crate::allocate::NODE_NETWORKS.contains(&target);
        let known = state.network(target).is_some_and(|network| !network.pending_delete);
        let reason = format!("network {target} not found");
        let fix = "`rswarm network ls` shows what there is";
        findings.add_fixable(!on_node && !known, "Networks", reason, fix);
        if let Some(ingress) = state.ingress_network().filter(|ingress| ingress.id == target) {
            let name = rswarm_proto::model::object::Stored::name(ingress.as_ref());
            let reason = format!("Service cannot be explicitly attached to the ingress network \"{name}\"");
            findings.add_fixable(true, "", reason, "publish a port instead (--publish)");
        }
        findings.add_if(!seen.insert(target), "Networks", format!("network {target} is given twice"));
        let alone = on_node && target != "bridge" && spec.networks.len() > 1;
        let reason = format!("network {target} cannot be combined with others");
        findings.add_fixable(alone, "Networks", reason, "leave the others out");
        for address in &config.addresses {
            let reason = format!("`{address}` is not an IP address");
            findings.add_if(address_of(address).is_none(), "Networks", reason);
            let outside = address_of(address).filter(|address| is_outside(state, target, *address));
            let reason = format!("address {address} is in none of the subnets of network {target}");
            findings.add_if(outside.is_some(), "Networks", reason);
        }
        for alias in &config.aliases {
            let reason = format!(
                "\"{alias}\" is not a valid alias: want labels of letters, digits, `-` and `_`, at most 63 each, with `.` between them"
            );
            findings.add_if(!is_dns_name(alias), "Networks", reason);
        }
    }
}

/// Whether an address is on none of the network's subnets, as far as it has got them.
fn is_outside(state: &State, network: &str, address: std::net::IpAddr) -> bool {
    let Some(network) = state.network(network).filter(|network| !network.ipam.is_empty()) else {
        return false;
    };
    let mut subnets = network.ipam.iter().filter_map(|config| config.subnet.parse::<Subnet>().ok());
    !subnets.any(|subnet| subnet.contains(address))
}

/// Whether a name can be asked for (RFC 1035, and `_`, which people use).
fn is_dns_name(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

fn resources(requirements: &ResourceRequirements, findings: &mut Findings) {
    let limits = requirements.limits.unwrap_or_default();
    let reserved = requirements.reservations.unwrap_or_default();
    amounts(&limits, findings);
    amounts(&reserved, findings);
    for resource in &requirements.generic {
        let (kind, count) = (&resource.kind, resource.count);
        let named = !resource.name.is_empty();
        findings.add_if(named, "", format!("invalid argument for resource {kind}"));
        findings.add_if(count < 0, "", format!("cannot ask for negative resource {kind}: {count}"));
        findings.add_if(kind.is_empty(), "Resources", "a generic resource needs a kind");
    }
    let over = |reserved: i64, limit: i64| limit > 0 && reserved > limit;
    let reason = "reserved CPU cannot be more than the limit";
    findings.add_if(over(reserved.nano_cpus, limits.nano_cpus), "Resources", reason);
    let reason = "reserved memory cannot be more than the limit";
    findings.add_if(over(reserved.memory, limits.memory), "Resources", reason);
}

fn amounts(resources: &Resources, findings: &mut Findings) {
    let cpus = resources.nano_cpus;
    if cpus != 0 && cpus < NANO_CPUS_MIN {
        let shown = cpus as f64 / 1e9;
        findings.add("", format!("invalid cpu value {shown}: Must be at least 0.001"));
    }
    let memory = resources.memory;
    let reason = format!("invalid memory value {memory}: Must be at least 4MiB");
    findings.add_if(memory != 0 && memory < MEMORY_MIN, "", reason);
    let reason = format!("invalid pids limit {}: cannot be negative", resources.pids);
    findings.add_if(resources.pids < 0, "", reason);
}

fn restart(policy: &RestartPolicy, findings: &mut Findings) {
    findings.add_if(policy.delay.is_some_and(|ns| ns < 0), "TaskSpec", "restart-delay cannot be negative");
    findings.add_if(policy.window.is_some_and(|ns| ns < 0), "TaskSpec", "restart-window cannot be negative");
}
