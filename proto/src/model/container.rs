//! The container spec: one for `run` and for services, so that they cannot drift apart.

pub use crate::wire::{
    ContainerSpec, Device, DeviceRate, Healthcheck, LogDriver, Mount, PortConfig, ResourceLimits, Ulimit,
    mount, port_config,
};
