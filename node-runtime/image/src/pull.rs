//! Pulling: placeholder of a few minutes.
use crate::manifest::Descriptor;
use crate::platform::Platform;
use rswarm_base::{Classify, Kind};
/// What a registry says about a name, without pulling it.
#[derive(Debug, Clone)]
pub struct Distribution {
    /// Media type, digest and size of what the name points at.
    pub descriptor: Descriptor,
    /// What it can run on.
    pub platforms: Vec<Platform>,
}
/// Why a pull failed.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// x
    #[error("x")]
    X,
}
impl Classify for PullError {
    fn kind(&self) -> Kind {
        Kind::Internal
    }
}
