//! All peers of one device as a value: packets in, packets out. Knows no socket.
//!
//! A peer has one *generation* for each combination of our key, its key and the pre-shared key that was wanted,
//! the newest last. A change makes a new generation beside the old one, which carries the traffic until the new
//! one has a session, and takes what is still on its way a little longer: keys change without a lost packet, in
//! whatever order nodes hear of it.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};

use super::control::{Config, PeerConfig, PeerStatus};
use super::keys::Public;

/// How long an old generation is still listened to once a newer one carries the traffic: longer than a packet
/// is on its way.
const OVERLAP: Duration = Duration::from_secs(10);
/// Handshakes a second from which a sender must prove its address. Each is counted twice: when its sender is
/// looked for and by the session that it is for.
const HANDSHAKES_MAX: u64 = 2 * 400;
/// The largest packet, and what WireGuard adds to it.
const BUFFER: usize = (1 << 16) + 64;

/// Where packets go.
pub trait Sink {
    /// A datagram for another node.
    fn to_network(&mut self, to: SocketAddr, datagram: &[u8]);
    /// A packet that came through the tunnel.
    fn to_tunnel(&mut self, packet: &[u8]);
}

/// A device without its sockets.
pub struct Exchange {
    peers: HashMap<u32, Peer>,
    by_node: HashMap<String, u32>,
    by_address: HashMap<Ipv4Addr, u32>,
    /// Which peer a generation's number belongs to.
    by_generation: HashMap<u32, u32>,
    limiters: HashMap<Public, Arc<RateLimiter>>,
    last_number: u32,
    scratch: Vec<u8>,
}

struct Peer {
    config: PeerConfig,
    /// Where it was last heard; else where the managers say that it is.
    endpoint: SocketAddr,
    /// Never empty; the wanted one is the last.
    generations: Vec<Generation>,
}

struct Generation {
    number: u32,
    own: StaticSecret,
    own_public: Public,
    peer_public: Public,
    psk: [u8; 32],
    tunn: Tunn,
}

impl Default for Exchange {
    fn default() -> Exchange {
        Exchange {
            peers: HashMap::new(),
            by_node: HashMap::new(),
            by_address: HashMap::new(),
            by_generation: HashMap::new(),
            limiters: HashMap::new(),
            last_number: 0,
            scratch: vec![0; BUFFER],
        }
    }
}

impl Exchange {
    /// Makes the peers those of `config`: who is not in it has no session left when this returns.
    pub fn configure(&mut self, config: &Config, sink: &mut impl Sink) {
        let gone: Vec<String> = self
            .by_node
            .keys()
            .filter(|node| !config.peers.iter().any(|peer| peer.node == **node))
            .cloned()
            .collect();
        gone.iter().for_each(|node| self.remove(node));
        let own_public = config.private.public();
        for wanted in &config.peers {
            let slot = match self.by_node.get(&wanted.node) {
                Some(slot) => *slot,
                None => self.add(wanted),
            };
            self.update(slot, wanted, config, own_public, sink);
        }
        self.index();
    }

    fn remove(&mut self, node: &str) {
        if let Some(peer) = self.by_node.remove(node).and_then(|slot| self.peers.remove(&slot)) {
            peer.generations.iter().for_each(|generation| {
                self.by_generation.remove(&generation.number);
            });
        }
    }

    fn add(&mut self, wanted: &PeerConfig) -> u32 {
        let slot = self.next_number();
        let peer = Peer { config: wanted.clone(), endpoint: wanted.endpoint, generations: Vec::new() };
        self.peers.insert(slot, peer);
        self.by_node.insert(wanted.node.clone(), slot);
        slot
    }

    fn update(
        &mut self,
        slot: u32,
        wanted: &PeerConfig,
        config: &Config,
        own_public: Public,
        sink: &mut impl Sink,
    ) {
        let number = self.next_number();
        let limiter = self.limiter(own_public);
        let Some(peer) = self.peers.get_mut(&slot) else { return };
        if peer.config.endpoint != wanted.endpoint {
            peer.endpoint = wanted.endpoint;
        }
        peer.config = wanted.clone();
        let psk = *config.psk.expose();
        let is_newest = peer.generations.last().is_some_and(|newest| {
            (newest.own_public, newest.peer_public, newest.psk) == (own_public, wanted.public, psk)
        });
        if is_newest {
            return;
        }
        peer.keep_the_best();
        let own = config.private.private();
        let tunn =
            Tunn::new(own.clone(), PublicKey::from(wanted.public), Some(psk), None, number, Some(limiter));
        let generation = Generation { number, own, own_public, peer_public: wanted.public, psk, tunn };
        peer.generations.push(generation);
        peer.greet(&mut self.scratch, sink);
    }

    /// Numbers are 24 bits, and those in use are skipped.
    fn next_number(&mut self) -> u32 {
        loop {
            self.last_number = (self.last_number + 1) & 0x00ff_ffff;
            if !self.by_generation.contains_key(&self.last_number)
                && !self.peers.contains_key(&self.last_number)
            {
                return self.last_number;
            }
        }
    }

    fn limiter(&mut self, own: Public) -> Arc<RateLimiter> {
        let make = || Arc::new(RateLimiter::new(&PublicKey::from(own), HANDSHAKES_MAX));
        self.limiters.entry(own).or_insert_with(make).clone()
    }

    /// Finds peers by what packets say, after any change.
    fn index(&mut self) {
        self.by_address = self.peers.iter().map(|(slot, peer)| (peer.config.address, *slot)).collect();
        self.by_generation = self
            .peers
            .iter()
            .flat_map(|(slot, peer)| peer.generations.iter().map(|generation| (generation.number, *slot)))
            .collect();
        let in_use = |own: &Public| {
            self.peers
                .values()
                .flat_map(|peer| &peer.generations)
                .any(|generation| generation.own_public == *own)
        };
        let unused: Vec<Public> = self.limiters.keys().filter(|own| !in_use(own)).copied().collect();
        unused.iter().for_each(|own| drop(self.limiters.remove(own)));
    }

    /// Encrypts a packet of ours; one that is for no peer goes nowhere.
    pub fn send(&mut self, packet: &[u8], sink: &mut impl Sink) {
        let Some(IpAddr::V4(to)) = Tunn::dst_address(packet) else { return };
        let Some(peer) = self.by_address.get(&to).and_then(|slot| self.peers.get_mut(slot)) else { return };
        let endpoint = peer.endpoint;
        let Some(generation) = peer.carrier() else { return };
        if let TunnResult::WriteToNetwork(datagram) = generation.tunn.encapsulate(packet, &mut self.scratch) {
            sink.to_network(endpoint, datagram);
        }
    }

    /// Takes a datagram from the network; what is not from a peer is dropped.
    pub fn receive(&mut self, from: SocketAddr, datagram: &[u8], sink: &mut impl Sink) {
        let Some((slot, number)) = self.receiver(from, datagram, sink) else { return };
        let Some(peer) = self.peers.get_mut(&slot) else { return };
        let address = peer.config.address;
        let Some(generation) = peer.generations.iter_mut().find(|generation| generation.number == number)
        else {
            return;
        };
        let mut result = generation.tunn.decapsulate(Some(from.ip()), datagram, &mut self.scratch);
        let mut is_authentic = true;
        loop {
            let more = match result {
                // A peer speaks for its own address alone.
                TunnResult::WriteToTunnelV4(packet, source) => {
                    if source == address {
                        sink.to_tunnel(packet);
                    }
                    false
                }
                TunnResult::WriteToTunnelV6(..) => false,
                TunnResult::WriteToNetwork(reply) => {
                    sink.to_network(from, reply);
                    true
                }
                TunnResult::Done => break,
                TunnResult::Err(_) => {
                    is_authentic = false;
                    break;
                }
            };
            if !more {
                break;
            }
            result = generation.tunn.decapsulate(None, &[], &mut self.scratch);
        }
        // What waited for a session that the other side began.
        while is_authentic
            && let TunnResult::WriteToNetwork(waiting) =
                generation.tunn.decapsulate(None, &[], &mut self.scratch)
        {
            sink.to_network(from, waiting);
        }
        if is_authentic && !is_cookie(datagram) {
            peer.endpoint = from;
        }
    }

    /// Which peer and generation a datagram is for.
    fn receiver(&self, from: SocketAddr, datagram: &[u8], sink: &mut impl Sink) -> Option<(u32, u32)> {
        let number = match Tunn::parse_incoming_packet(datagram).ok()? {
            Packet::HandshakeInit(_) => return self.initiated(from, datagram, sink),
            Packet::HandshakeResponse(packet) => packet.receiver_idx >> 8,
            Packet::PacketCookieReply(packet) => packet.receiver_idx >> 8,
            Packet::PacketData(packet) => packet.receiver_idx >> 8,
        };
        Some((*self.by_generation.get(&number)?, number))
    }

    /// An initiation names its sender only to who has the private key that it is for.
    fn initiated(&self, from: SocketAddr, datagram: &[u8], sink: &mut impl Sink) -> Option<(u32, u32)> {
        let mut cookie = [0; 64];
        for (own_public, limiter) in &self.limiters {
            let packet = match limiter.verify_packet(Some(from.ip()), datagram, &mut cookie) {
                Ok(Packet::HandshakeInit(packet)) => packet,
                Err(TunnResult::WriteToNetwork(cookie)) => {
                    sink.to_network(from, cookie);
                    return None;
                }
                // It is for another of our keys, or for none.
                Ok(_) | Err(_) => continue,
            };
            let with_key = |generation: &&Generation| generation.own_public == *own_public;
            let own = self.peers.values().flat_map(|peer| &peer.generations).find(with_key)?;
            let sender = parse_handshake_anon(&own.own, &PublicKey::from(*own_public), &packet).ok()?;
            return self.peers.iter().find_map(|(slot, peer)| {
                let of_both = peer
                    .generations
                    .iter()
                    .rev()
                    .filter(with_key)
                    .find(|generation| generation.peer_public == sender.peer_static_public)?;
                Some((*slot, of_both.number))
            });
        }
        None
    }

    /// Handshakes, keepalives and the end of old generations: to be called a few times a second.
    pub fn tick(&mut self, sink: &mut impl Sink) {
        self.limiters.values().for_each(|limiter| limiter.reset_count());
        let mut ended = false;
        for peer in self.peers.values_mut() {
            for generation in &mut peer.generations {
                if let TunnResult::WriteToNetwork(datagram) = generation.tunn.update_timers(&mut self.scratch)
                {
                    sink.to_network(peer.endpoint, datagram);
                }
            }
            ended |= peer.end_old_ones();
        }
        if ended {
            self.index();
        }
    }

    /// What is known of each peer.
    pub fn status(&self) -> Vec<PeerStatus> {
        let status = |peer: &Peer| {
            let newest = peer.generations.iter().rev().find_map(|generation| generation.age());
            PeerStatus {
                node: peer.config.node.clone(),
                endpoint: peer.endpoint,
                handshake_seconds: newest.map(|age| age.as_secs()),
                is_current: peer.generations.last().is_some_and(|newest| newest.age().is_some()),
            }
        };
        self.peers.values().map(status).collect()
    }
}

impl Peer {
    /// The generation to send by: the newest with a session, else the newest.
    fn carrier(&mut self) -> Option<&mut Generation> {
        let with_session = self.generations.iter().rposition(|generation| generation.age().is_some());
        let last = self.generations.len().checked_sub(1)?;
        self.generations.get_mut(with_session.unwrap_or(last))
    }

    /// Begins a handshake of the newest generation at once: its session is there when it is needed.
    fn greet(&mut self, scratch: &mut [u8], sink: &mut impl Sink) {
        let Some(newest) = self.generations.last_mut() else { return };
        if let TunnResult::WriteToNetwork(datagram) = newest.tunn.format_handshake_initiation(scratch, false)
        {
            sink.to_network(self.endpoint, datagram);
        }
    }

    /// Before a new generation: of those before, only the one that carries the traffic stays.
    fn keep_the_best(&mut self) {
        let Some(best) = self.carrier().map(|generation| generation.number) else { return };
        self.generations.retain(|generation| generation.number == best);
    }

    /// Once the newest has carried the traffic long enough, the others go.
    fn end_old_ones(&mut self) -> bool {
        let is_settled = self.generations.len() > 1
            && self.generations.last().and_then(Generation::age).is_some_and(|age| age > OVERLAP);
        if is_settled {
            self.generations.drain(..self.generations.len() - 1);
        }
        is_settled
    }
}

impl Generation {
    /// How old its session is; `None` when it has none to send by.
    fn age(&self) -> Option<Duration> {
        self.tunn.time_since_last_handshake()
    }
}

/// Cookies are bound to an address, and anybody can make one believe they come from another.
fn is_cookie(datagram: &[u8]) -> bool {
    matches!(Tunn::parse_incoming_packet(datagram), Ok(Packet::PacketCookieReply(_)))
}

#[cfg(test)]
mod tests;
