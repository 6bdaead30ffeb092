//! Runs containers on one machine: containers, networks, volumes and images as one in-process API, used alike by
//! the HTTP API and by the cluster's worker.
//!
//! Is not: HTTP, the cluster, the runtime. Containers live in shims and survive the daemon; the engine adopts them.
//! Start at [`Engine`], then [`ContainerConfig`] (what is asked for) and [`Container`] (what is).
#![forbid(unsafe_code)]

pub mod attach;
mod blocking;
mod boot;
mod commit;
pub mod config;
pub mod container;
mod create;
pub mod engine;
pub mod error;
pub mod events;
pub mod exec;
mod files;
pub mod filesystem;
mod host;
mod links;
pub mod logs;
mod merge;
mod merged;
mod metrics;
pub mod names;
pub mod network;
mod registry;
mod shared;
mod signal;
mod spec;
pub mod stats;
pub mod top;
pub mod volume;

pub use config::{ContainerConfig, EndpointConfig, EngineConfig, RestartName, RestartPolicy};
pub use container::Container;
pub use container::launch::is_builtin_runtime;
pub use engine::{
    Archive, AttachStream, Attachment, CommitRequest, ContainerUpdate, Created, Engine, EngineInfo,
    RemoveOptions, WaitCondition, Waited,
};
pub use merge::clean_path;
pub use rswarm_network::{
    Exposed, Exposure, Filter, Finding, FirewallMode, NAME_TTL, Owned, TunnelPeerStatus,
};
pub use spec::{MASKED_PATHS, READONLY_PATHS};
