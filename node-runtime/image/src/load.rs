//! Placeholder of a few minutes.
use rswarm_base::{Classify, Kind};
/// Why it failed.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// x
    #[error("x")]
    X,
}
impl Classify for LoadError {
    fn kind(&self) -> Kind {
        Kind::Internal
    }
}
/// One image of an archive.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The image.
    pub image: crate::Image,
    /// The familiar names that the archive gave it; empty: it is known by its id alone.
    pub references: Vec<String>,
}
