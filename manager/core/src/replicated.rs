//! In progress.
use crate::author::Author;
use crate::reconcile::{Env, Plan, Reconciler};
use crate::state::State;
/// In progress.
#[derive(Debug)]
pub struct Replicated;
impl Reconciler for Replicated {
    fn author(&self) -> Author {
        Author::Replicated
    }
    fn reconcile(&self, _view: &State, _env: &mut Env<'_>) -> Plan {
        todo!()
    }
}
