//! In progress.
use crate::state::State;
use rswarm_proto::wire::ServiceSpec;
/// One thing that is wrong with a spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where in the spec, such as `ContainerSpec`.
    pub field: String,
    /// What is wrong, in Docker's words where it has some.
    pub reason: String,
}
/// All problems of a service's spec.
pub fn service(_spec: &ServiceSpec, _state: &State) -> Result<(), Vec<Problem>> {
    todo!()
}
