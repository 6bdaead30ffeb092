//! Placeholder of a few minutes.
use rswarm_base::{Classify, Kind};
/// Why it failed.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// x
    #[error("x")]
    X,
}
impl Classify for ImportError {
    fn kind(&self) -> Kind {
        Kind::Internal
    }
}
/// How an image is made of a root file system.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// The name it gets.
    pub reference: Option<crate::Reference>,
    /// Its comment.
    pub message: String,
    /// Dockerfile instructions that shape its configuration.
    pub changes: Vec<String>,
    /// What it is for; this machine's when not given.
    pub platform: Option<crate::Platform>,
}
