//! One task of a global service on every node that may have it.

use std::collections::BTreeSet;

use rswarm_proto::wire::{Node, Service};

use crate::author::Author;
use crate::filter;
use crate::reconcile::{Env, Plan, Reconciler};
use crate::replicated::CREATES_MAX;
use crate::slot::{self, Place};
use crate::state::State;

/// Gives new nodes the tasks of global services.
#[derive(Debug)]
pub struct Global;

impl Reconciler for Global {
    fn author(&self) -> Author {
        Author::Global
    }

    fn reconcile(&self, view: &State, env: &mut Env<'_>) -> Plan {
        let mut plan = Plan::default();
        for service in view.services().filter(|service| !service.pending_delete && slot::is_global(service)) {
            let slots = slot::occupied(view, service);
            let taken: BTreeSet<&str> = slots.iter().map(|slot| slot.latest().node_id.as_str()).collect();
            let free =
                view.nodes().filter(|node| !taken.contains(node.id.as_str()) && is_eligible(service, node));
            for node in free {
                if plan.changes.len() >= CREATES_MAX {
                    return plan;
                }
                let place = Place { slot: 0, node_id: node.id.clone() };
                plan.create(slot::new_task(service, place, env.now, env.ids));
            }
        }
        plan
    }
}

/// Whether the service may get a new task on this node.
#[must_use]
pub fn is_eligible(service: &Service, node: &Node) -> bool {
    filter::takes_new_tasks(node) && slot::sits_well(&service.task_spec(), node)
}
