//! The network between managers and agents: late, lossy, out of order, and cut at times.

use std::collections::BTreeMap;
use std::time::Duration;

use rswarm_base::IdGen;
use rswarm_proto::wire::{Assignments, NodeTaskReport};

/// Who sends or receives.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Address {
    /// A manager, by raft id.
    Manager(u64),
    /// A node's agent, by node id.
    Agent(String),
}

/// What is sent.
#[derive(Debug, Clone)]
pub enum Payload {
    /// A raft message, encoded.
    Raft(Vec<u8>),
    /// An agent's heartbeat with its statuses, the sequence that it has applied, and who signed its certificate.
    Report { node_id: String, statuses: Vec<NodeTaskReport>, sequence: String, root: usize },
    /// The same, passed on by a follower.
    Relay { node_id: String, statuses: Vec<NodeTaskReport>, root: usize },
    /// What an agent is assigned, as of a raft index, and the root that signs certificates.
    Assign { index: u64, root: usize, message: Assignments },
}

impl Payload {
    /// Whether it is no message, but the end of the stream that a raft snapshot was sent on.
    pub fn is_end(&self) -> bool {
        matches!(self, Payload::Raft(bytes) if bytes.is_empty())
    }
}

/// One message on its way.
#[derive(Debug, Clone)]
pub struct Packet {
    pub from: Address,
    pub to: Address,
    pub payload: Payload,
}

/// Which links work, and how badly.
#[derive(Debug, Default)]
pub struct Net {
    /// Messages lost, of a thousand.
    pub loss: u64,
    /// Which side of a partition each address is on; those not named are on side zero.
    sides: BTreeMap<Address, u8>,
}

impl Net {
    /// How long a message takes; `None` when it is lost.
    pub fn transit(&self, packet: &Packet, random: &mut IdGen) -> Option<Duration> {
        let lost = random.number() % 1000 < self.loss;
        // Most are quick, some dawdle and are overtaken.
        let slow = random.number().is_multiple_of(20);
        let latency = Duration::from_micros(500 + random.number() % if slow { 80_000 } else { 3_000 });
        (!lost && self.connected(&packet.from, &packet.to)).then_some(latency)
    }

    pub fn connected(&self, a: &Address, b: &Address) -> bool {
        let side = |address| self.sides.get(address).copied().unwrap_or(0);
        side(a) == side(b)
    }

    /// Cuts the addresses off from the rest, and the sides from one another.
    pub fn part(&mut self, sides: BTreeMap<Address, u8>) {
        self.sides = sides;
    }

    pub fn heal(&mut self) {
        *self = Net::default();
    }
}
