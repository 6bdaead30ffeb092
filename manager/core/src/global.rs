//! One task of a global service on every node that may have it.

use std::collections::BTreeSet;

use rswarm_proto::model::task::TaskState;
use rswarm_proto::wire::{Node, Service};

use crate::author::Author;
use crate::cron;
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
        let services = view.services().filter(|service| !service.pending_delete && slot::is_global(service));
        for service in services.filter(|service| !cron::is_waiting(service)) {
            let slots = slot::occupied(view, service);
            let spec = service.task_spec();
            // What a node did for an earlier iteration of a job does not count.
            let own = slots.iter().filter(|slot| slot.latest().job_iteration == service.job_iteration());
            let taken: BTreeSet<&str> = own.map(|slot| slot.latest().node_id.as_str()).collect();
            let free = view.nodes().filter(|node| {
                !taken.contains(node.id.as_str())
                    && filter::takes_new_tasks(node)
                    && slot::sits_well(&spec, node)
            });
            for node in free {
                if plan.edits.len() >= CREATES_MAX {
                    return plan;
                }
                let place = Place { slot: 0, node_id: node.id.clone() };
                let mut task = slot::new_task(service, place, env.now, env.ids);
                let mut earlier = slots.iter().filter(|slot| slot.latest().node_id == node.id);
                if earlier.any(|slot| !slot.others_stopped(view, "") || slot.is_live()) {
                    task.desired_state = TaskState::Ready.into();
                }
                plan.create(task);
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::Author;
    use crate::reconcile::Plan;
    use crate::world::{World, node, spec};
    use rswarm_proto::wire::{Global, NodeAvailability, Placement, ServiceSpec, service_spec};

    fn global(name: &str) -> ServiceSpec {
        ServiceSpec { mode: Some(service_spec::Mode::Global(Global {})), ..spec(name, 0) }
    }

    #[test]
    fn every_node_has_one_task_and_a_new_node_gets_one() {
        let mut world = World::new(3);
        let id = world.create(global("agent"));
        world.run(Duration::from_secs(2));
        assert_eq!(world.spread(&id).len(), 3);
        let mut plan = Plan::default();
        plan.create(node("n9"));
        world.write(Author::Ca, plan.into_changes());
        world.run(Duration::from_secs(2));
        assert_eq!(world.running(&id), 4);
    }

    #[test]
    fn a_drained_node_loses_its_task_and_gets_one_when_it_is_active_again() {
        let mut world = World::new(2);
        let id = world.create(global("agent"));
        world.run(Duration::from_secs(2));
        let set = |world: &mut World, availability: NodeAvailability| {
            world.change_node("n1", Author::Control, |node| {
                node.spec.get_or_insert_default().set_availability(availability);
            });
            world.run(Duration::from_secs(2));
        };
        set(&mut world, NodeAvailability::Drain);
        assert_eq!(world.spread(&id), [("n2".to_owned(), 1)].into());
        set(&mut world, NodeAvailability::Active);
        assert_eq!(world.running(&id), 2);
    }

    #[test]
    fn constraints_choose_the_nodes() {
        let mut world = World::new(3);
        let mut spec = global("agent");
        let constraints = vec!["node.id!=n2".to_owned()];
        spec.task.get_or_insert_default().placement = Some(Placement { constraints, ..Placement::default() });
        let id = world.create(spec);
        world.run(Duration::from_secs(2));
        assert_eq!(world.spread(&id).into_keys().collect::<Vec<_>>(), ["n1", "n3"]);
    }

    #[test]
    fn a_task_on_a_node_that_was_away_is_adopted() {
        let mut world = World::new(2);
        let id = world.create(global("agent"));
        world.run(Duration::from_secs(2));
        let before: Vec<String> = world.live(&id).iter().map(|task| task.id.clone()).collect();
        world.cut.insert("n1".to_owned());
        world.run(Duration::from_secs(20));
        world.cut.clear();
        world.run(Duration::from_secs(5));
        let after: Vec<String> = world.live(&id).iter().map(|task| task.id.clone()).collect();
        assert_eq!(before, after);
    }

    #[test]
    fn nothing_is_left_of_a_node_that_was_removed() {
        let mut world = World::new(2);
        let id = world.create(global("agent"));
        world.run(Duration::from_secs(2));
        let request = rswarm_proto::wire::RemoveRequest { id: "n1".to_owned(), force: true };
        world.control(|state, _, ids| crate::control::remove_node(state, &request, ids)).expect("removed");
        world.cut.insert("n1".to_owned());
        world.run(Duration::from_secs(3));
        let nodes: Vec<String> = world.tasks(&id).iter().map(|task| task.node_id.clone()).collect();
        assert_eq!(nodes, ["n2"]);
    }
}
