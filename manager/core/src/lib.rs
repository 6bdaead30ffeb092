//! Decides; never does. Turns cluster state into the changes that bring it closer to what users asked.
//!
//! Is not: disks, sockets, time, randomness. Those call in from `manager`. Of raft, only the protocol is
//! here ([`peer`], without its log on disk and its network).
//! Start at [`Reconciler`], then [`State`], then [`apply`]. What users may ask is in [`control`], what agents
//! report comes in through [`intake`], what a node must know goes out through [`assign`].
#![forbid(unsafe_code)]

pub mod allocate;
pub mod announce;
pub mod apply;
pub mod assign;
pub mod author;
pub mod cohort;
pub mod constraint;
pub mod content;
pub mod control;
pub mod cron;
pub mod drain;
pub mod edit;
pub mod enforce;
pub mod filter;
pub mod forecast;
pub mod generic;
pub mod global;
mod indices;
pub mod intake;
pub mod job;
pub mod liveness;
pub mod pace;
pub mod peer;
pub mod publish;
pub mod reap;
pub mod rebalance;
pub mod reconcile;
pub mod relocate;
pub mod replicated;
pub mod restart;
pub mod rotation;
pub mod schedule;
pub mod slot;
pub mod state;
pub mod tunnel;
pub mod update;
pub mod validate;

#[cfg(test)]
mod world;

pub use apply::{Applied, Event, Rejected, apply};
pub use author::Author;
pub use edit::Edit;
pub use peer::Peer;
pub use reconcile::{Env, Pass, Plan, Reconciler, all, pass};
pub use state::{AnyObject, State};
