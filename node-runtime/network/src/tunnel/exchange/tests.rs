//! Packets between exchanges as values: keys in every order, removed peers, roaming, noise.

use std::collections::VecDeque;

use super::*;
use crate::tunnel::keys::Secret;

/// What a device gave out.
#[derive(Default)]
struct Out {
    network: VecDeque<(SocketAddr, Vec<u8>)>,
    tunnel: Vec<Vec<u8>>,
}

impl Sink for Out {
    fn to_network(&mut self, to: SocketAddr, datagram: &[u8]) {
        self.network.push_back((to, datagram.to_vec()));
    }

    fn to_tunnel(&mut self, packet: &[u8]) {
        self.tunnel.push(packet.to_vec());
    }
}

/// Nodes on one wire, which loses nothing and remembers everything.
struct Wire {
    nodes: Vec<(Exchange, Out, Config)>,
    heard: Vec<Vec<u8>>,
}

fn endpoint(node: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, node as u8], 51820))
}

fn address(node: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, node as u8)
}

/// An IPv4 packet with a text in it.
fn packet(from: usize, to: usize, text: &str) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(address(from).octets());
    packet.extend(address(to).octets());
    packet.extend(text.as_bytes());
    let length = u16::try_from(packet.len()).expect("short");
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet
}

impl Wire {
    fn of(count: usize) -> Wire {
        let config = |node| Config {
            private: Secret::new([node as u8 + 1; 32]),
            psk: Secret::new([9; 32]),
            peers: Vec::new(),
        };
        let nodes = (0..count).map(|node| (Exchange::default(), Out::default(), config(node))).collect();
        let mut wire = Wire { nodes, heard: Vec::new() };
        (0..count).for_each(|node| wire.learn(node));
        wire
    }

    /// Tells a node what all the others are by now.
    fn learn(&mut self, node: usize) {
        let peers = (0..self.nodes.len()).filter(|other| *other != node).map(|other| PeerConfig {
            node: other.to_string(),
            public: self.nodes[other].2.private.public(),
            address: address(other),
            endpoint: endpoint(other),
        });
        self.nodes[node].2.peers = peers.collect();
        self.configure(node);
    }

    fn configure(&mut self, node: usize) {
        let (exchange, out, config) = &mut self.nodes[node];
        exchange.configure(config, out);
    }

    /// Carries what was sent until nothing is on its way.
    fn settle(&mut self) {
        while let Some(from) = (0..self.nodes.len()).find(|node| !self.nodes[*node].1.network.is_empty()) {
            while let Some((to, datagram)) = self.nodes[from].1.network.pop_front() {
                let node = (0..self.nodes.len()).find(|node| endpoint(*node) == to).expect("a node");
                let (exchange, out, _) = &mut self.nodes[node];
                exchange.receive(endpoint(from), &datagram, out);
                self.heard.push(datagram);
            }
        }
    }

    fn send(&mut self, from: usize, to: usize, text: &str) {
        let (exchange, out, _) = &mut self.nodes[from];
        exchange.send(&packet(from, to, text), out);
        self.settle();
    }

    /// Sends one each way, and demands that both arrive.
    fn check(&mut self, a: usize, b: usize) {
        for (from, to) in [(a, b), (b, a)] {
            self.nodes[to].1.tunnel.clear();
            self.send(from, to, "attack at dawn");
            assert_eq!(self.nodes[to].1.tunnel, [packet(from, to, "attack at dawn")], "{from} to {to}");
        }
    }

    fn is_current(&self, node: usize) -> bool {
        self.nodes[node].0.status().iter().all(|peer| peer.is_current)
    }
}

#[test]
fn packets_arrive_and_the_wire_shows_none_of_them() {
    let mut wire = Wire::of(3);
    wire.settle();
    for (a, b) in [(0, 1), (1, 2), (0, 2)] {
        wire.check(a, b);
    }
    let shows = |datagram: &Vec<u8>| datagram.windows(6).any(|part| part == b"attack");
    assert!(!wire.heard.is_empty() && !wire.heard.iter().any(shows));
}

#[test]
fn the_first_packet_waits_for_the_session() {
    let mut wire = Wire::of(2);
    // The greetings are lost.
    wire.nodes.iter_mut().for_each(|(_, out, _)| out.network.clear());
    wire.nodes[1].0 = Exchange::default();
    wire.learn(1);
    wire.nodes[1].1.network.clear();
    let (exchange, out, _) = &mut wire.nodes[0];
    exchange.send(&packet(0, 1, "early"), out);
    exchange.peers.values_mut().for_each(|peer| peer.greet(&mut exchange.scratch, out));
    // Its handshake is under way: the next initiation comes with the timer, or from the other side.
    let (exchange, out, _) = &mut wire.nodes[1];
    exchange.send(&packet(1, 0, "late"), out);
    exchange.peers.values_mut().for_each(|peer| {
        let newest = peer.generations.last_mut().expect("a generation");
        if let TunnResult::WriteToNetwork(datagram) =
            newest.tunn.format_handshake_initiation(&mut exchange.scratch, true)
        {
            out.to_network(peer.endpoint, datagram);
        }
    });
    wire.settle();
    assert_eq!(wire.nodes[0].1.tunnel, [packet(1, 0, "late")]);
    assert_eq!(wire.nodes[1].1.tunnel, [packet(0, 1, "early")]);
}

#[test]
fn a_pre_shared_key_changes_without_a_loss_in_whatever_order_nodes_hear_of_it() {
    for order in [[0, 1], [1, 0]] {
        let mut wire = Wire::of(2);
        wire.settle();
        wire.check(0, 1);
        for node in order {
            wire.nodes[node].2.psk = Secret::new([10; 32]);
            wire.configure(node);
            wire.check(0, 1);
            wire.settle();
            wire.check(0, 1);
        }
        assert!(wire.is_current(0) && wire.is_current(1));
    }
}

#[test]
fn nodes_change_their_own_keys_without_a_loss_even_at_once() {
    let mut wire = Wire::of(2);
    wire.settle();
    wire.check(0, 1);
    for node in [0, 1] {
        wire.nodes[node].2.private = Secret::new([node as u8 + 101; 32]);
        wire.configure(node);
        wire.check(0, 1);
    }
    for node in [1, 0] {
        wire.learn(node);
        wire.check(0, 1);
        wire.settle();
        wire.check(0, 1);
    }
    assert!(wire.is_current(0) && wire.is_current(1));
    // The old generation goes when the new one has carried the traffic for a while.
    assert!(wire.nodes.iter().all(|(exchange, ..)| exchange.by_generation.len() <= 2));
}

#[test]
fn who_is_no_peer_any_more_decrypts_nothing_and_is_not_heard() {
    let mut wire = Wire::of(3);
    wire.settle();
    wire.check(0, 2);
    wire.nodes[0].2.peers.retain(|peer| peer.node != "2");
    wire.configure(0);
    wire.nodes.iter_mut().for_each(|(_, out, _)| out.tunnel.clear());
    wire.send(2, 0, "let me in");
    assert!(wire.nodes[0].1.tunnel.is_empty());
    // What the others say to each other afterwards, it cannot read, whatever it is given to hear.
    wire.heard.clear();
    wire.send(0, 1, "secret");
    wire.send(1, 0, "secret");
    let heard = std::mem::take(&mut wire.heard);
    assert!(heard.len() >= 2);
    let (exchange, out, _) = &mut wire.nodes[2];
    heard.iter().for_each(|datagram| exchange.receive(endpoint(0), datagram, out));
    assert!(out.tunnel.is_empty());
    wire.check(0, 1);
}

#[test]
fn a_peer_speaks_for_its_own_address_alone() {
    let mut wire = Wire::of(3);
    wire.settle();
    wire.check(0, 1);
    wire.nodes[1].1.tunnel.clear();
    let (exchange, out, _) = &mut wire.nodes[0];
    exchange.send(&packet(2, 1, "I am 2"), out);
    wire.settle();
    assert!(wire.nodes[1].1.tunnel.is_empty());
}

#[test]
fn a_peer_without_the_pre_shared_key_gets_no_session() {
    let mut wire = Wire::of(2);
    wire.nodes.iter_mut().for_each(|(exchange, out, _)| {
        *exchange = Exchange::default();
        out.network.clear();
    });
    wire.nodes[1].2.psk = Secret::new([66; 32]);
    (0..2).for_each(|node| wire.configure(node));
    wire.settle();
    wire.send(0, 1, "hello");
    assert!(wire.nodes[1].1.tunnel.is_empty());
    assert!(wire.nodes.iter().all(|(exchange, ..)| exchange.status()[0].handshake_seconds.is_none()));
}

#[test]
fn a_peer_is_answered_where_it_was_last_heard_and_sought_where_the_managers_say() {
    let mut wire = Wire::of(2);
    wire.settle();
    wire.check(0, 1);
    // Node 1 speaks from elsewhere.
    let (exchange, out, _) = &mut wire.nodes[1];
    exchange.send(&packet(1, 0, "moved"), out);
    let (_, datagram) = out.network.pop_front().expect("a datagram");
    let elsewhere = SocketAddr::from(([203, 0, 113, 1], 4000));
    let (exchange, out, config) = &mut wire.nodes[0];
    exchange.receive(elsewhere, &datagram, out);
    assert_eq!(exchange.status()[0].endpoint, elsewhere);
    exchange.send(&packet(0, 1, "there"), out);
    assert_eq!(out.network.pop_front().map(|(to, _)| to), Some(elsewhere));
    // The same configuration again moves nothing; another address does.
    exchange.configure(config, out);
    assert_eq!(exchange.status()[0].endpoint, elsewhere);
    config.peers[0].endpoint = SocketAddr::from(([192, 0, 2, 77], 51820));
    exchange.configure(config, out);
    assert_eq!(exchange.status()[0].endpoint, config.peers[0].endpoint);
}

#[test]
fn noise_is_dropped() {
    let mut wire = Wire::of(2);
    wire.settle();
    let (exchange, out, _) = &mut wire.nodes[0];
    for length in 0..200 {
        for kind in 0..5 {
            let mut datagram = vec![0xa5; length];
            if length >= 4 {
                datagram[..4].copy_from_slice(&u32::to_le_bytes(kind));
            }
            exchange.receive(endpoint(1), &datagram, out);
        }
        exchange.send(&vec![0x45; length], out);
    }
    assert!(out.tunnel.is_empty());
    wire.check(0, 1);
}
