//! In progress.
use crate::author::Author;
use crate::reconcile::{Env, Plan, Reconciler};
use crate::state::State;
/// In progress.
#[derive(Debug)]
pub struct Liveness;
impl Reconciler for Liveness {
    fn author(&self) -> Author {
        Author::Liveness
    }
    fn reconcile(&self, _view: &State, _env: &mut Env<'_>) -> Plan {
        todo!()
    }
}
