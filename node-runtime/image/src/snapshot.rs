//! Placeholder of a few minutes.
use rswarm_base::{Classify, Kind};
/// Why it failed.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// x
    #[error("x")]
    X,
}
impl Classify for SnapshotError {
    fn kind(&self) -> Kind {
        Kind::Internal
    }
}
use std::path::PathBuf;
/// The directories of a container's root file system, for an overlay mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layers {
    /// Read-only layers, topmost first.
    pub lower: Vec<PathBuf>,
    /// The writable layer.
    pub upper: PathBuf,
    /// What overlayfs needs to work.
    pub work: PathBuf,
}
