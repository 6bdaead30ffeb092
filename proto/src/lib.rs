//! Every shape that crosses a process between nodes, and the mutual-TLS channel that carries it.
//!
//! Is not: behaviour. The stored objects are the generated messages themselves; [`model`] adds what their
//! types cannot say (the order of task states, names, defaults), so that there is one of each.
//! Start at `rswarm/v1/types.proto`, then [`model`], then [`tls`].
#![forbid(unsafe_code)]

pub mod model;
pub mod status;
pub mod tls;
pub mod token;
pub mod wire;
