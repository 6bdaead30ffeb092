//! Generic resources: what a node's operator says it has, counted (`SSD=3`) or by name (`GPU=uuid1`), and what of it
//! tasks were given. A service asks for so many of a kind; where the node's have names, its tasks get names.

use std::collections::{BTreeMap, BTreeSet};

use rswarm_proto::wire::{GenericResource, Node, Task};

/// What the tasks on a node were given. Kept by the state, task by task.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Claims(BTreeMap<String, Claim>);

#[derive(Debug, Clone, Default, PartialEq)]
struct Claim {
    count: i64,
    names: BTreeSet<String>,
}

impl Claims {
    /// A task has been given these.
    pub fn add(&mut self, given: &[GenericResource]) {
        for resource in given {
            let claim = self.0.entry(resource.kind.clone()).or_default();
            claim.count += resource.count;
            if !resource.name.is_empty() {
                claim.names.insert(resource.name.clone());
            }
        }
    }

    /// They are free again.
    pub fn remove(&mut self, given: &[GenericResource]) {
        for resource in given {
            let Some(claim) = self.0.get_mut(&resource.kind) else { continue };
            claim.count -= resource.count;
            claim.names.remove(&resource.name);
            if *claim == Claim::default() {
                self.0.remove(&resource.kind);
            }
        }
    }

    /// What a task that reserves `wanted` gets on this node; nothing when too little is free.
    #[must_use]
    pub fn choose(&self, wanted: &[GenericResource], node: &Node) -> Option<Vec<GenericResource>> {
        let mut given = Vec::new();
        for resource in wanted.iter().filter(|resource| resource.count > 0) {
            let claim = self.0.get(&resource.kind);
            let own = || has(node).iter().filter(|own| own.kind == resource.kind);
            let counted: i64 = own().map(|own| own.count).sum();
            let free = own().filter(|own| !own.name.is_empty());
            let free = free.filter(|own| claim.is_none_or(|claim| !claim.names.contains(&own.name)));
            let named: Vec<GenericResource> =
                free.take(usize::try_from(resource.count).unwrap_or(usize::MAX)).cloned().collect();
            if named.len() as i64 == resource.count {
                given.extend(named);
            } else if counted - claim.map_or(0, |claim| claim.count) >= resource.count {
                given.push(resource.clone());
            } else {
                return None;
            }
        }
        Some(given)
    }

    /// Whether the node still has all of this.
    #[must_use]
    pub fn is_had_by(&self, node: &Node) -> bool {
        self.0.iter().all(|(kind, claim)| {
            let own = || has(node).iter().filter(|own| own.kind == *kind);
            claim.count <= own().map(|own| own.count).sum()
                && claim.names.iter().all(|name| own().any(|own| own.name == *name))
        })
    }
}

fn has(node: &Node) -> &[GenericResource] {
    node.description.as_ref().map_or(&[], |description| &description.generic)
}

/// What a task reserves.
#[must_use]
pub fn reserved(task: &Task) -> &[GenericResource] {
    let requirements = task.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    requirements.map_or(&[], |requirements| &requirements.generic)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::author::Author;
    use crate::world::{World, spec};
    use rswarm_proto::wire::ServiceSpec;

    fn counted(kind: &str, count: i64) -> GenericResource {
        GenericResource { kind: kind.to_owned(), count, ..GenericResource::default() }
    }

    fn named(kind: &str, name: &str) -> GenericResource {
        GenericResource { kind: kind.to_owned(), name: name.to_owned(), ..GenericResource::default() }
    }

    fn equip(world: &mut World, node: &str, generic: &[GenericResource]) {
        world.change_node(node, Author::Dispatcher, |node| {
            node.description.get_or_insert_default().generic = generic.to_vec();
        });
    }

    fn wanting(replicas: u64, wanted: &[GenericResource]) -> ServiceSpec {
        let mut spec = spec("web", replicas);
        let resources = spec.task.get_or_insert_default().resources.get_or_insert_default();
        resources.generic = wanted.to_vec();
        spec
    }

    fn given(world: &World, id: &str) -> BTreeSet<(String, String)> {
        let live = world.live(id).into_iter();
        live.flat_map(|task| {
            let node = task.node_id.clone();
            let value = |own: &GenericResource| match own.name.is_empty() {
                true => format!("{}={}", own.kind, own.count),
                false => format!("{}={}", own.kind, own.name),
            };
            task.generic.iter().map(|own| (node.clone(), value(own))).collect::<Vec<_>>()
        })
        .collect()
    }

    #[test]
    fn names_are_given_once_and_counts_up_to_what_is_there() {
        let mut world = World::new(3);
        equip(&mut world, "n1", &[named("GPU", "a"), named("GPU", "b")]);
        equip(&mut world, "n2", &[counted("GPU", 1)]);
        let id = world.create(wanting(4, &[counted("GPU", 1)]));
        world.run(Duration::from_secs(2));
        assert_eq!(world.running(&id), 3);
        let on = |node: &str, value: &str| (node.to_owned(), value.to_owned());
        assert_eq!(given(&world, &id), [on("n1", "GPU=a"), on("n1", "GPU=b"), on("n2", "GPU=1")].into());
        let waits = world.live(&id).into_iter().find(|task| task.node_id.is_empty()).expect("one waits");
        let why = waits.status.clone().unwrap_or_default().err;
        assert_eq!(why, "no suitable node (insufficient resources on 3 nodes)");
    }

    #[test]
    fn what_a_task_had_is_free_when_it_has_ended() {
        let mut world = World::new(1);
        equip(&mut world, "n1", &[named("GPU", "a"), counted("SSD", 3)]);
        let id = world.create(wanting(1, &[counted("GPU", 1), counted("SSD", 2)]));
        world.run(Duration::from_secs(2));
        let before = given(&world, &id);
        assert_eq!(before.len(), 2);
        world.report(&world.live(&id)[0].id.clone(), rswarm_proto::model::task::TaskState::Failed);
        world.run(Duration::from_secs(3));
        assert_eq!((world.running(&id), given(&world, &id)), (1, before));
    }

    #[test]
    fn a_task_leaves_a_node_that_lost_what_it_was_given() {
        let mut world = World::new(2);
        equip(&mut world, "n1", &[named("GPU", "a")]);
        let id = world.create(wanting(1, &[counted("GPU", 1)]));
        world.run(Duration::from_secs(2));
        assert_eq!(world.running(&id), 1);
        equip(&mut world, "n1", &[named("GPU", "b")]);
        world.run(Duration::from_secs(3));
        assert_eq!(given(&world, &id), [("n1".to_owned(), "GPU=b".to_owned())].into());
        equip(&mut world, "n1", &[]);
        world.run(Duration::from_secs(3));
        assert_eq!(world.running(&id), 0);
    }

    #[test]
    fn several_of_a_kind_come_from_one_node() {
        let mut world = World::new(2);
        equip(&mut world, "n1", &[named("GPU", "a")]);
        equip(&mut world, "n2", &[named("GPU", "a"), named("GPU", "b"), named("GPU", "c")]);
        let id = world.create(wanting(2, &[counted("GPU", 2)]));
        world.run(Duration::from_secs(2));
        assert_eq!((world.running(&id), given(&world, &id).len()), (1, 2));
    }
}
