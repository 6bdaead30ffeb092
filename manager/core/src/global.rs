//! In progress.
use crate::author::Author;
use crate::reconcile::{Env, Plan, Reconciler};
use crate::state::State;
/// In progress.
#[derive(Debug)]
pub struct Global;
impl Reconciler for Global {
    fn author(&self) -> Author {
        Author::Global
    }
    fn reconcile(&self, _view: &State, _env: &mut Env<'_>) -> Plan {
        todo!()
    }
}
