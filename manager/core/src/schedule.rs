//! In progress.
use crate::author::Author;
use crate::reconcile::{Env, Plan, Reconciler};
use crate::state::State;
use rswarm_proto::wire::Task;
/// In progress.
#[derive(Debug)]
pub struct Schedule;
impl Reconciler for Schedule {
    fn author(&self) -> Author {
        Author::Schedule
    }
    fn reconcile(&self, _view: &State, _env: &mut Env<'_>) -> Plan {
        todo!()
    }
}
/// What the tasks on a node take up.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Load {}
impl Load {
    pub(crate) fn add(&mut self, _task: &Task) {}
    pub(crate) fn remove(&mut self, _task: &Task) {}
    pub(crate) fn is_empty(&self) -> bool {
        true
    }
}
