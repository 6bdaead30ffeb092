//! One container: what others see of it.

pub(crate) mod state;

pub use state::{
    Attributes, BoundPort, Container, Endpoint, Health, HealthStatus, MountKind, MountPoint, Probe, State,
    Status,
};
