//! The stored objects, with what their generated types cannot say.

mod cluster;
pub mod container;
pub mod content;
pub mod network;
pub mod object;
pub mod service;
pub mod task;
pub mod template;

pub use crate::wire::{Cluster, Config, Network, Node, Object, ObjectKind, Secret, Service, Task};
