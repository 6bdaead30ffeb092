//! The stored objects, with what their generated types cannot say.

pub mod container;
pub mod network;
pub mod object;
pub mod service;
pub mod task;

pub use crate::wire::{Cluster, Network, Node, Object, ObjectKind, Service, Task};
