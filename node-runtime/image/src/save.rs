//! Placeholder of a few minutes.
use rswarm_base::{Classify, Kind};
/// Why it failed.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// x
    #[error("x")]
    X,
}
impl Classify for SaveError {
    fn kind(&self) -> Kind {
        Kind::Internal
    }
}
