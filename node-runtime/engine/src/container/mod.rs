//! One container: what others see of it (`state`), what is durable (`record`), the task that owns it (`actor`), and
//! how it comes up and goes down (`launch`, `wiring`, `lead`, `ports`).

pub(crate) mod actor;
pub(crate) mod health;
mod inject;
pub(crate) mod launch;
pub(crate) mod lead;
pub(crate) mod logfile;
pub(crate) mod ports;
mod propagation;
pub(crate) mod record;
pub(crate) mod restart;
mod shm;
pub(crate) mod state;
pub(crate) mod wiring;

pub(crate) use actor::Request;
pub use state::{
    Attributes, BoundPort, Container, Endpoint, Health, HealthStatus, Link, MountKind, MountPoint, Probe,
    Recursion, State, Status,
};
