//! In progress.
use crate::author::Author;
use crate::reconcile::{Env, Plan, Reconciler};
use crate::state::State;
/// In progress.
#[derive(Debug)]
pub struct Allocate;
impl Reconciler for Allocate {
    fn author(&self) -> Author {
        Author::Allocate
    }
    fn reconcile(&self, _view: &State, _env: &mut Env<'_>) -> Plan {
        todo!()
    }
}
