//! What the standard library lacks and every rswarm crate needs: time, durations as people write them, identifiers, error kinds, task
//! supervision, logging set-up, durable files and address pools.
//!
//! Is not: anything that knows what a container or a cluster is.
//! Start at [`error`] (how failures are classified), then [`supervise`] (how tasks are owned).
#![forbid(unsafe_code)]

pub mod clock;
pub mod duration;
pub mod error;
pub mod fsx;
pub mod id;
pub mod ipam;
pub mod schedule;
pub mod supervise;
pub mod telemetry;

pub use clock::{Clock, SystemClock, Timestamp};
pub use error::{Chain, Classify, Kind};
pub use id::IdGen;
pub use supervise::Scope;
