//! The Docker Engine HTTP API, Swarm endpoints included: over the engine for what is on this node, over the
//! managers' control service for what is the cluster's.
//!
//! Is not: decisions. A handler reads a request, translates it (`translate`, pure), calls the engine or the
//! managers once or twice, and translates the answer back. What it cannot honour it refuses by name.
//! Start at [`serve`], then `router` (every route, and the one table of statuses), then one file per API tag.
#![forbid(unsafe_code)]

pub mod node;
pub mod types;

pub use node::{
    Availability, ClusterError, ClusterInfo, ClusterNode, InitRequest, JoinRequest, LocalState, RemoteManager,
};
