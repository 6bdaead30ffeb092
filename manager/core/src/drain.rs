//! When a task that is told to stop may do so: once the nodes on its networks no longer lead anything to it.
//!
//! From the write that tells it to stop (`stop_version`), no endpoint table names it as ready. Its node holds it
//! back until `drained` says that every node with such a table has one of that version, or a newer one, in its
//! kernel. A node that does not say so is waited for only so long, by the task's own node: this here never has to
//! give up.

use std::collections::{BTreeMap, BTreeSet};

use rswarm_proto::wire::Task;

use crate::author::Author;
use crate::reconcile::{Env, Plan, Reconciler};
use crate::state::State;

/// Table versions that nodes have in their kernels: by node id, then by network id. Kept out of raft, as heartbeats
/// are.
pub type AppliedTables = BTreeMap<String, BTreeMap<String, u64>>;

/// Tells nodes that nothing leads to their stopping tasks any more.
#[derive(Debug)]
pub struct Drain;

impl Reconciler for Drain {
    fn author(&self) -> Author {
        Author::Drain
    }

    fn reconcile(&self, view: &State, env: &mut Env<'_>) -> Plan {
        let mut plan = Plan::default();
        let mut known = BTreeMap::new();
        for task in view.stopping_tasks().filter(|task| task.drains() && !task.drained) {
            let networks = task.networks.iter().filter(|attachment| !attachment.addresses.is_empty());
            let is_out = networks.into_iter().all(|attachment| {
                let network = attachment.network_id.as_str();
                let applied =
                    known.entry(network).or_insert_with(|| applied_everywhere(view, network, env.tables));
                *applied >= task.stop_version
            });
            if is_out {
                plan.update(Task { drained: true, ..Task::clone(task) });
            }
        }
        plan
    }
}

/// The version of the network's table that every node has which is told of it, as far as it can be asked.
fn applied_everywhere(view: &State, network: &str, tables: &AppliedTables) -> u64 {
    let present = view.tasks_on_network(network).filter(|task| crate::assign::is_present(task));
    let mut nodes: BTreeSet<&str> = present.map(|task| task.node_id.as_str()).collect();
    let routers =
        view.nodes().filter(|node| node.mesh.as_ref().is_some_and(|mesh| mesh.network_id == network));
    nodes.extend(routers.map(|node| node.id.as_str()));
    let answering = nodes.into_iter().filter(|node| !view.is_node_lost(node));
    let applied = answering.map(|node| tables.get(node).and_then(|tables| tables.get(network)).copied());
    applied.map(|version| version.unwrap_or(0)).min().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::world::{World, attach, port, publish, spec};
    use rswarm_proto::model::task::TaskState;
    use rswarm_proto::wire::{Replicated, service_spec};

    /// A world with two running tasks of a service on two nodes, one of which is then told to stop.
    fn stopping(prepare: impl FnOnce(&mut rswarm_proto::wire::ServiceSpec)) -> (World, String) {
        let mut world = World::new(3);
        world.network("net");
        let mut web = spec("web", 2);
        prepare(&mut web);
        let id = world.create(web);
        world.run(Duration::from_secs(2));
        world
            .change(&id, |spec| spec.mode = Some(service_spec::Mode::Replicated(Replicated { replicas: 1 })));
        world.reconcile();
        let told = world.tasks(&id).into_iter().find(|task| task.desired() > TaskState::Running);
        let told = told.expect("one is told to stop").id.clone();
        (world, told)
    }

    fn is_drained(world: &mut World, task: &str) -> bool {
        world.reconcile();
        world.state.task(task).is_some_and(|task| task.drained)
    }

    #[test]
    fn a_task_is_drained_once_every_node_has_a_table_without_it() {
        let (mut world, told) = stopping(|web| attach(web, "net"));
        let task = world.state.task(&told).expect("task").clone();
        assert_eq!(task.stop_version, task.meta.as_ref().map_or(0, |meta| meta.version));
        let network = task.networks[0].network_id.clone();
        assert!(!is_drained(&mut world, &told), "nobody has said anything");
        let on = |world: &World| -> BTreeSet<String> {
            world.state.tasks_on_network(&network).map(|task| task.node_id.clone()).collect()
        };
        let nodes = on(&world);
        assert_eq!(nodes.len(), 2);
        for node in &nodes {
            world.applied(node, &network, task.stop_version - 1);
        }
        assert!(!is_drained(&mut world, &told), "their tables are older");
        let (last, others) = nodes.last().zip(nodes.first()).expect("two nodes");
        world.applied(others, &network, task.stop_version);
        assert!(!is_drained(&mut world, &told), "one is missing");
        world.applied(last, &network, task.stop_version + 1);
        assert!(is_drained(&mut world, &told), "one without a task there is not asked");
    }

    #[test]
    fn a_node_that_is_down_is_not_waited_for() {
        let (mut world, told) = stopping(|web| attach(web, "net"));
        let task = world.state.task(&told).expect("task").clone();
        world.applied(&task.node_id, &task.networks[0].network_id, task.stop_version);
        assert!(!is_drained(&mut world, &told));
        let other = world.state.tasks().find(|other| other.id != told).expect("the other").node_id.clone();
        world.cut.insert(other);
        world.now = world.now.after(Duration::from_secs(20));
        world.beat();
        assert!(is_drained(&mut world, &told));
    }

    #[test]
    fn every_node_is_asked_about_what_is_published() {
        let (mut world, told) = stopping(|web| publish(web, [port(8080, 80)]));
        let task = world.state.task(&told).expect("task").clone();
        let network = task.networks[0].network_id.clone();
        for node in ["n1", "n2"] {
            world.applied(node, &network, task.stop_version);
        }
        assert!(!is_drained(&mut world, &told));
        world.applied("n3", &network, task.stop_version);
        assert!(is_drained(&mut world, &told));
    }

    #[test]
    fn a_task_without_a_network_of_the_cluster_just_stops() {
        let (world, told) = stopping(|_| ());
        assert!(world.state.task(&told).is_some_and(|task| !task.drains() && !task.drained));
    }
}
