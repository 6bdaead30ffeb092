//! Container networking by netlink and syscalls alone: bridges, overlays, published ports and DNS.
//!
//! Runs in the daemon's network namespace and owns every kernel object that it makes there, in the
//! containers' namespaces and in the overlay sandboxes. Names derive from identifiers, so a restarted
//! daemon finds and adopts what exists; what is wanted is compared with what the kernel has, and only the
//! difference is applied.
//!
//! Is not: which network a container joins, or which address a task has in the cluster. The engine and
//! the managers decide that.
//! Start at [`Networks`]; then [`plan`] (what should exist, pure), `link` (making it so) and `nft`.

mod actor;
mod bridge;
pub mod check;
mod conntrack;
mod dns;
pub mod error;
mod host;
mod icmp;
mod lan;
mod link;
pub mod model;
mod names;
mod netns;
mod networks;
mod nft;
mod overlay;
mod pair;
mod places;
pub mod plan;
mod reset;
mod rules;
pub mod tunnel;
mod watch;

pub use check::{Exposed, Exposure, Filter, Finding, Owned};
pub use dns::NAME_TTL;
pub use error::{
    AttachError, CreateBridgeError, CreateLanError, KernelError, NetnsError, OpenError, OverlayError,
    RemoveError, TunnelError,
};
pub use model::*;
pub use netns::Netns;
pub use networks::Networks;
pub use tunnel::{OverlayTunnel, TUNNEL_PORT, TunnelPeer, TunnelPeerStatus};
