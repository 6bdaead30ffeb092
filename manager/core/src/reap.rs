//! In progress.
use crate::author::Author;
use crate::reconcile::{Env, Plan, Reconciler};
use crate::state::State;
/// In progress.
#[derive(Debug)]
pub struct Reap;
impl Reconciler for Reap {
    fn author(&self) -> Author {
        Author::Reap
    }
    fn reconcile(&self, _view: &State, _env: &mut Env<'_>) -> Plan {
        todo!()
    }
}
