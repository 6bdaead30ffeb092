//! What nodes need to encrypt networks between them: a number each, which is their address inside the tunnel, and a
//! key that all of them share beside their own. Nothing of it is there without an encrypted network.
//!
//! The shared key is made anew after a while, and when a node was removed: that node then has nothing that is of
//! use, even to one who records all traffic and gets hold of other nodes' keys one day. Nodes renew their own keys
//! when they see a new one.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use rswarm_base::Timestamp;
use rswarm_proto::wire::{Cluster, NetworkNode, Node, TunnelPeer, TunnelSecret};

use crate::author::Author;
use crate::reconcile::{Env, Plan, Reconciler};
use crate::state::State;

/// How long a shared key is used unless the cluster says otherwise (Docker: 12 h).
pub const KEY_PERIOD: i64 = 12 * 3_600_000_000_000;
/// Nodes' addresses inside the tunnel begin here. It is in no namespace but the tunnel's own.
const FIRST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 0);
/// As many addresses as FIRST has, without its own and the last.
const NUMBERS: std::ops::Range<u32> = 1..(1 << 24) - 1;

/// Makes keys, and gives nodes numbers.
#[derive(Debug)]
pub struct Tunnels;

impl Reconciler for Tunnels {
    fn author(&self) -> Author {
        Author::Tunnels
    }

    fn reconcile(&self, view: &State, env: &mut Env<'_>) -> Plan {
        let mut plan = Plan::default();
        let Some(cluster) = view.cluster() else { return plan };
        if !view.networks().any(|network| network.is_encrypted()) {
            forget(view, cluster, &mut plan);
            return plan;
        }
        let mut taken: BTreeSet<u32> = view.nodes().map(|node| node.tunnel_number).collect();
        for node in view.nodes().filter(|node| node.tunnel_number == 0) {
            let Some(number) = NUMBERS.into_iter().find(|number| !taken.contains(number)) else { break };
            taken.insert(number);
            plan.update(Node { tunnel_number: number, ..Node::clone(node) });
        }
        let removals = cluster.removed_nodes.len() as u64;
        let due = cluster.tunnel.as_ref().filter(|secret| secret.removals == removals).map(|secret| {
            let made_at = env.past(Timestamp(secret.made_at));
            Timestamp(made_at.0.saturating_add(period(cluster)))
        });
        match due {
            Some(due) if due > env.now => plan.wake(due),
            _ => {
                let tunnel = TunnelSecret { psk: env.secret.to_vec(), made_at: env.now.0, removals };
                plan.update(Cluster { tunnel: Some(tunnel), ..Cluster::clone(cluster) });
            }
        }
        plan
    }
}

fn period(cluster: &Cluster) -> i64 {
    cluster
        .spec
        .as_ref()
        .map(|spec| spec.tunnel_key_period)
        .filter(|period| *period > 0)
        .unwrap_or(KEY_PERIOD)
}

fn forget(view: &State, cluster: &Cluster, plan: &mut Plan) {
    if cluster.tunnel.is_some() {
        plan.update(Cluster { tunnel: None, ..Cluster::clone(cluster) });
    }
    for node in view.nodes().filter(|node| node.tunnel_number != 0) {
        plan.update(Node { tunnel_number: 0, ..Node::clone(node) });
    }
}

/// A node as a peer; `None` until it has a number and said its key.
#[must_use]
pub fn peer(node: &Node) -> Option<TunnelPeer> {
    let key = node.description.as_ref()?.tunnel.clone()?;
    let number = Some(node.tunnel_number).filter(|number| NUMBERS.contains(number))?;
    let address = Ipv4Addr::from_bits(FIRST.to_bits() + number).to_string();
    Some(TunnelPeer { address, key: Some(key) })
}

/// A node as an encrypted network's table has it.
#[must_use]
pub fn entry(node: &Node, node_addr: &str) -> Option<NetworkNode> {
    let tunnel = Some(peer(node)?);
    let (node_id, node_addr) = (node.id.clone(), node_addr.to_owned());
    Some(NetworkNode { node_id, node_addr, tunnel, ..NetworkNode::default() })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::assign::assignments;
    use crate::world::{World, attach, spec};
    use rswarm_proto::wire::{RemoveRequest, TunnelKey};

    /// Three nodes that said their keys, and a service with a task on two of them.
    fn world() -> (World, String) {
        let mut world = World::new(3);
        for n in 1..=3u8 {
            world.change_node(&format!("n{n}"), Author::Dispatcher, |node| {
                let tunnel = Some(TunnelKey { public_key: vec![n; 32], port: 51820 });
                node.description.get_or_insert_default().tunnel = tunnel;
            });
        }
        let network = world.encrypted_network("net");
        let mut web = spec("web", 2);
        attach(&mut web, "net");
        world.create(web);
        world.run(Duration::from_secs(2));
        (world, network)
    }

    fn psk(world: &World) -> Vec<u8> {
        world.state.cluster().and_then(|cluster| cluster.tunnel.clone()).expect("a key").psk
    }

    #[test]
    fn nothing_is_made_without_an_encrypted_network() {
        let mut world = World::new(2);
        world.network("net");
        world.run(Duration::from_secs(1));
        assert!(world.state.cluster().is_some_and(|cluster| cluster.tunnel.is_none()));
        assert!(world.state.nodes().all(|node| node.tunnel_number == 0));
    }

    #[test]
    fn every_node_has_an_address_of_its_own() {
        let (world, _) = world();
        let addresses: BTreeSet<String> =
            world.state.nodes().map(|node| peer(node).expect("a peer").address).collect();
        assert_eq!(addresses.into_iter().collect::<Vec<_>>(), ["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
    }

    #[test]
    fn the_key_is_made_anew_in_time_and_not_before() {
        let (mut world, _) = world();
        let first = psk(&world);
        let period = Duration::from_nanos(KEY_PERIOD.unsigned_abs());
        world.skip(period - Duration::from_secs(60));
        assert_eq!(psk(&world), first);
        world.skip(Duration::from_secs(120));
        assert_ne!(psk(&world), first);
    }

    #[test]
    fn only_nodes_of_the_network_learn_its_key_and_its_peers() {
        let (world, network) = world();
        let hosts: BTreeSet<String> = world.state.tasks().map(|task| task.node_id.clone()).collect();
        assert_eq!(hosts.len(), 2);
        for node in world.state.nodes() {
            let set = assignments(&world.state, &node.id);
            let Some(table) = set.networks.get(&network) else {
                assert!(!hosts.contains(&node.id));
                continue;
            };
            assert_eq!(table.nodes.keys().cloned().collect::<BTreeSet<_>>(), hosts);
            assert_eq!(table.tunnel.as_ref().map(|secret| secret.psk.clone()), Some(psk(&world)));
        }
    }

    #[test]
    fn a_removed_node_is_no_peer_and_the_key_changes() {
        let (mut world, network) = world();
        let (gone, stays) = {
            let mut hosts = world.state.tasks().map(|task| task.node_id.clone());
            (hosts.next().expect("a host"), hosts.next().expect("another"))
        };
        let before = psk(&world);
        let request = RemoveRequest { id: gone.clone(), force: true };
        world.control(|state, _, ids| crate::control::remove_node(state, &request, ids)).expect("removed");
        world.reconcile();
        assert_ne!(psk(&world), before);
        let set = assignments(&world.state, &stays);
        assert!(!set.networks[&network].nodes.contains_key(&gone));
    }

    #[test]
    fn all_of_it_goes_with_the_last_encrypted_network() {
        let mut world = World::new(2);
        let network = world.encrypted_network("net");
        world.run(Duration::from_secs(1));
        assert!(world.state.nodes().all(|node| node.tunnel_number != 0));
        let request = RemoveRequest { id: network, force: false };
        world.control(|state, _, ids| crate::control::remove_network(state, &request, ids)).expect("removed");
        world.run(Duration::from_secs(1));
        assert!(world.state.cluster().is_some_and(|cluster| cluster.tunnel.is_none()));
        assert!(world.state.nodes().all(|node| node.tunnel_number == 0));
    }
}
