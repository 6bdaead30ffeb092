//! What carries encrypted overlays between nodes: one WireGuard device per node.
//!
//! The device's interface is in a network namespace of its own, with nothing else in it. The VXLAN devices of
//! encrypted networks have their sockets there: what they send has no other way than through the tunnel, and what
//! comes to the host in clear is not for them. The device's own UDP socket is the host's.
//!
//! Where the kernel has WireGuard, the device is the kernel's ([`kernel`]). Else it is a process ([`process`]), another
//! life of the one binary, that outlives the daemon and is adopted by the next one.
//! Start at [`Tunnel`]; what keys and peers do to packets is in [`exchange`].

mod control;
mod exchange;
mod kernel;
mod keys;
mod owner;
pub mod process;
mod socket;
mod sys;

use std::net::Ipv4Addr;

pub use control::{PeerConfig as TunnelPeer, PeerStatus as TunnelPeerStatus};
pub use keys::{Public as PublicKey, Secret};
pub(crate) use owner::Tunnel;

/// The UDP port that nodes listen on unless told otherwise.
pub const TUNNEL_PORT: u16 = 51820;

/// How an encrypted overlay's traffic reaches other nodes: all of it, each time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverlayTunnel {
    /// How new this is: where networks differ about a peer or the pre-shared key, the newest is right.
    pub version: u64,
    /// This node's private key.
    pub private: Secret,
    /// The cluster's pre-shared key.
    pub psk: Secret,
    /// The UDP port that this node listens on.
    pub port: u16,
    /// This node's address inside the tunnel.
    pub address: Ipv4Addr,
    /// The nodes that have a place on the network.
    pub peers: Vec<TunnelPeer>,
}
