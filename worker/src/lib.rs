//! A node's side of the contract with the managers: one session to any of them, assigned tasks and
//! endpoint tables in, statuses out.
//!
//! Is not: containers. An [`Executor`] runs those; the daemon wires it onto the engine.
//! Start at [`agent`] (who owns what), then [`step`] (what a task does next), then [`session`].
//!
//! ```text
//!   session ──ManagerMessage──▶ agent ──wanted task──▶ task actor ──prepare, start, wait, stop──▶ Executor
//!      ▲                        │ ▲ └──wanted table──▶ network actor ──apply──▶ Executor
//!      └──AgentMessage──────────┘ └──status, applied version──┘
//! ```
//!
//! Everything assigned is on disk before it is acted on ([`disk`]), so a node that starts without any
//! manager keeps its tasks. Secrets and configs are there only sealed with the node's key.
#![forbid(unsafe_code)]

pub mod agent;
pub mod assignments;
pub mod attach;
pub mod content;
pub mod disk;
pub mod executor;
pub mod logs;
mod network;
mod reporter;
mod session;
pub mod step;
mod task;
mod usage;

pub use agent::{Agent, AgentConfig, AgentHandle, Membership};
pub use content::Content;
pub use executor::{ExecError, Executor, Started, TaskExit};
