//! One small process per container: it is the container's parent, owns its stdio and pty, writes its log,
//! and keeps its exit code. It outlives the daemon, and the container never outlives it.
//!
//! Is not: a place for decisions. What runs, and whether it runs again, is the engine's business.
//! Start at [`protocol`] (what the two sides say to each other), then [`serve`] (the process) and [`client`]
//! (the daemon's side).

pub mod client;
pub mod init;
pub mod launch;
pub mod log;
mod note;
pub mod protocol;
pub mod serve;
mod sys;

pub use launch::{Exit, Launch, LogFile, LogFormat, RuntimeBinary, ShimState};
