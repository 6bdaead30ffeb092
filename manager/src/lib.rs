//! The body around the brain: raft on disk and on the wire, the leader's loop, and what managers serve.
//!
//! Is not: decisions. What a cluster should do next, what a request may change and what a node must know are
//! pure functions of `rswarm-manager-core`; here they get their clock, their disk and their sockets.
//! Start at [`Manager`], then `raft` (the one task that owns the log and the state), then `leader`.
#![forbid(unsafe_code)]

mod attachments;
mod backup;
mod blocking;
mod ca;
mod calls;
mod config;
mod control;
mod dispatcher;
mod external;
mod forward;
mod found;
mod group;
mod guard;
mod heartbeats;
mod intake;
mod leader;
mod logs;
mod manager;
mod metrics;
mod raft;
mod record;
mod replica;
mod rotation;
mod start;
mod store;
mod transport;
mod usage;
mod wal;

pub use backup::{Backup, BackupError, Header};
pub use calls::Calls;
pub use config::{Boot, Founding, ManagerConfig, Revival, TICK};
pub use found::{ADDRESS_POOL, DATA_PATH_PORT, FoundError, NewCluster, SUBNET_SIZE, found};
pub use manager::{Leader, Lock, Manager};
pub use raft::{Ended, StateError};
pub use start::StartError;
pub use wal::{DamagedFile, WalError};
