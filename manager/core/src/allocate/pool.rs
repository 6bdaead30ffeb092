//! The addresses of one network: which are taken, as the state says, and which comes next.

use std::collections::BTreeSet;
use std::net::IpAddr;

use rswarm_base::ipam::{self, Subnet};
use rswarm_proto::model::object::Stored;
use rswarm_proto::wire::{IpamConfig, Network, Task};

use crate::state::{State, address_of};

/// The addresses of one subnet of a network.
pub(super) struct Pool {
    pub(super) subnet: Subnet,
    /// Where addresses are handed out from: the subnet, or a part of it.
    pub(super) range: Subnet,
    pub(super) taken: BTreeSet<IpAddr>,
    cursor: u128,
}

impl Pool {
    /// The next free address.
    pub(super) fn next(&mut self) -> Option<IpAddr> {
        let mut tries = self.range.size();
        while tries > 0 {
            let (address, cursor) = ipam::next_address(self.range, &self.taken, self.cursor)?;
            self.cursor = cursor;
            self.taken.insert(address);
            // A range may end where its subnet does: the subnet's own last address is its broadcast.
            let last = self.subnet.nth(self.subnet.size() - 1);
            if !(address.is_ipv4() && self.subnet.prefix() < 31 && last == Some(address)) {
                return Some(address);
            }
            tries -= 1;
        }
        None
    }

    pub(super) fn cidr(&self, address: IpAddr) -> String {
        format!("{address}/{}", self.subnet.prefix())
    }
}

/// A pool for each subnet of the network.
pub(super) fn of(view: &State, network: &Network) -> Vec<Pool> {
    let mut taken: BTreeSet<IpAddr> = BTreeSet::new();
    for config in &network.ipam {
        taken.extend(address_of(&config.gateway));
        taken.extend(config.aux_addresses.values().filter_map(|address| address_of(address)));
    }
    let vips = view.services().filter_map(|service| service.endpoint.as_ref());
    let vips = vips.flat_map(|endpoint| &endpoint.virtual_ips).filter(|vip| vip.network_id == network.id);
    taken.extend(vips.filter_map(|vip| address_of(&vip.address)));
    let nodes = view.nodes().filter_map(|node| node.mesh.as_ref());
    let nodes = nodes.filter(|mesh| mesh.network_id == network.id).flat_map(|mesh| &mesh.addresses);
    taken.extend(nodes.filter_map(|address| address_of(address)));
    let held = view.tasks_on_network(&network.id).filter(|task| !task.observed().is_terminal());
    taken.extend(held.flat_map(|task| addresses(task, &network.id)));
    let newest = view.tasks_on_network(&network.id).max_by_key(|task| (task.meta().created_at, &task.id));
    let last: Vec<IpAddr> = newest.map(|task| addresses(task, &network.id).collect()).unwrap_or_default();
    network.ipam.iter().filter_map(|config| pool(config, &taken, &last)).collect()
}

fn pool(config: &IpamConfig, taken: &BTreeSet<IpAddr>, last: &[IpAddr]) -> Option<Pool> {
    let subnet: Subnet = config.subnet.parse().ok()?;
    let range = config.ip_range.parse().unwrap_or(subnet);
    let taken = taken.iter().copied().filter(|address| subnet.contains(*address)).collect();
    let last = last.iter().find(|address| range.contains(**address));
    let cursor = last.map_or(0, |address| offset(range, *address));
    Some(Pool { subnet, range, taken, cursor })
}

fn offset(range: Subnet, address: IpAddr) -> u128 {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    };
    bits(address) - bits(range.address())
}

/// A task's addresses on one network.
fn addresses<'t>(task: &'t Task, network_id: &'t str) -> impl Iterator<Item = IpAddr> + 't {
    let attachments = task.networks.iter().filter(move |attachment| attachment.network_id == network_id);
    attachments.flat_map(|attachment| &attachment.addresses).filter_map(|address| address_of(address))
}
