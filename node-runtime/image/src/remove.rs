//! Placeholder of a few minutes.
use rswarm_base::{Classify, Kind};
/// Why it failed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// x
    #[error("x")]
    X,
}
impl Classify for RemoveError {
    fn kind(&self) -> Kind {
        Kind::Internal
    }
}
/// A container that uses an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageUser {
    /// The image's id.
    pub image_id: String,
    /// The container's id.
    pub container_id: String,
    /// Whether it runs (paused and restarting count).
    pub is_running: bool,
}
/// How to remove.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RemoveOptions {
    /// Go on where a conflict can be overruled.
    pub force: bool,
    /// Keep untagged parents.
    pub no_prune: bool,
}
/// One line of what was removed, in Docker's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removed {
    /// A familiar name.
    Untagged(String),
    /// An image id or a layer's chain id.
    Deleted(String),
}
