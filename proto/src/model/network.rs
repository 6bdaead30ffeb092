//! Cluster networks and the endpoint tables that describe who is on them.

pub use crate::wire::{
    IpamConfig, NetworkAttachment, NetworkEndpoint, NetworkNode, NetworkService, NetworkSpec, NetworkTable,
};
