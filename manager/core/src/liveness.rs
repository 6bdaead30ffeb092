//! Node states from heartbeats: missed ones make a node suspect, then down; a new one makes it ready again.
//!
//! Heartbeats are not in the log. A leader that has not heard of a node counts from the time it came to
//! lead, and allows for the time that agents need to find it: a change of leaders moves no task.

use std::time::Duration;

use rswarm_base::Timestamp;
use rswarm_proto::model::object::Stored;
use rswarm_proto::model::task::TaskState;
use rswarm_proto::wire::{Node, NodeState, NodeStatus, Task, TaskStatus};

use crate::author::Author;
use crate::reconcile::{Env, Plan, Reconciler};
use crate::state::{State, node_state};

/// Heartbeat periods without one until a node gets no new tasks.
const SUSPECT_AFTER: u32 = 2;
/// Heartbeat periods without one until a node's tasks are replaced.
const DOWN_AFTER: u32 = 5;
/// Heartbeat periods that are added for nodes that a new leader has not heard of, and for all nodes after the
/// cluster's settings changed: agents take less than with it to find a leader, or to learn of a shorter period.
/// Where the period is halved ([`crate::pace`]), an agent that is not told of it in time is heard all the same: it beats
/// within two of the new periods, and is suspect after three. A longer period needs nothing: agents that have not
/// been told beat too often.
/// No more, so that a leader's own node, when it dies, is replaced in time: an election comes first.
const GRACE: u32 = 1;
/// How long tasks of a node that is down may still run there, for all anyone knows (as swarmkit).
const ORPHANED_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// Judges nodes by their heartbeats.
#[derive(Debug)]
pub struct Liveness;

impl Reconciler for Liveness {
    fn author(&self) -> Author {
        Author::Liveness
    }

    fn reconcile(&self, view: &State, env: &mut Env<'_>) -> Plan {
        let mut plan = Plan::default();
        let period = view.heartbeat_period();
        // Only this leader has held nodes to other settings; and only its own times compare with heartbeats.
        let changed_at =
            view.cluster().map_or(Timestamp::ZERO, |cluster| Timestamp(cluster.meta().updated_at));
        let changed_at = Some(changed_at).filter(|at| (env.leader_since..=env.now).contains(at));
        let changed_at = changed_at.unwrap_or(Timestamp::ZERO);
        for node in view.nodes() {
            let (state, next) = judge(node, period, changed_at, env);
            if let Some(next) = next {
                plan.wake(next);
            }
            if state != node_state(node) {
                plan.update(with_state(node, state, env.now));
            }
        }
        for node_id in view.nodes_with_tasks() {
            orphan(view, node_id, env, &mut plan);
        }
        plan
    }
}

/// The state of a node now, and when it changes if no heartbeat comes.
fn judge(
    node: &Node,
    period: Duration,
    changed_at: Timestamp,
    env: &Env<'_>,
) -> (NodeState, Option<Timestamp>) {
    let heard = env.heartbeats.get(&node.id);
    let stored = node_state(node);
    // What made a node suspect does not make it ready because the period has become longer.
    let overdue_at = match (&node.status, stored) {
        (Some(status), NodeState::Suspect | NodeState::Down) => env.past(Timestamp(status.changed_at)),
        _ => Timestamp::ZERO,
    };
    let is_recent =
        |heard: &&Timestamp| env.now < heard.after(period * SUSPECT_AFTER) && **heard >= overdue_at;
    let is_heard = heard.filter(is_recent).is_some();
    let from = match heard {
        Some(heard) => (*heard).max(changed_at.after(period * GRACE)),
        None if stored == NodeState::Down => return (NodeState::Down, None),
        None => env.leader_since.max(changed_at).after(period * GRACE),
    };
    let suspect_at = from.after(period * SUSPECT_AFTER);
    let down_at = from.after(period * DOWN_AFTER);
    if env.now >= down_at {
        (NodeState::Down, None)
    } else if env.now >= suspect_at {
        // A node that was never heard of is not under suspicion yet.
        let state = if stored == NodeState::Unknown { stored } else { NodeState::Suspect };
        (if stored == NodeState::Down { stored } else { state }, Some(down_at))
    } else if is_heard {
        (NodeState::ReadyNode, Some(suspect_at))
    } else {
        (stored, Some(suspect_at))
    }
}

fn with_state(node: &Node, state: NodeState, now: Timestamp) -> Node {
    let message = match state {
        NodeState::Down => "heartbeat failure",
        NodeState::Suspect => "heartbeats are overdue",
        NodeState::ReadyNode | NodeState::Unknown => "",
    };
    let status = NodeStatus {
        state: state.into(),
        message: message.to_owned(),
        changed_at: now.0,
        ..node.status.clone().unwrap_or_default()
    };
    Node { status: Some(status), ..node.clone() }
}

/// Gives up tasks on a node that is no longer listed, or was down for very long.
fn orphan(view: &State, node_id: &str, env: &Env<'_>, plan: &mut Plan) {
    let now = env.now;
    let given_up_at = match view.node(node_id) {
        None => now,
        Some(node) if node_state(node) == NodeState::Down => {
            let since = node.status.as_ref().map_or(0, |status| status.changed_at);
            env.past(Timestamp(since)).after(ORPHANED_AFTER)
        }
        Some(_) => return,
    };
    let held = view.tasks_on_node(node_id).filter(|task| !task.observed().is_terminal());
    if now >= given_up_at {
        held.for_each(|task| plan.update(orphaned(task, now)));
    } else if held.count() > 0 {
        plan.wake(given_up_at);
    }
}

fn orphaned(task: &Task, now: Timestamp) -> Task {
    let status = TaskStatus {
        state: TaskState::Orphaned.into(),
        timestamp: now.0,
        message: "the node of this task is gone".to_owned(),
        ..task.status.clone().unwrap_or_default()
    };
    Task { status: Some(status), ..task.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::{World, spec};

    fn state_of(world: &World, node: &str) -> NodeState {
        node_state(world.state.node(node).expect("node"))
    }

    #[test]
    fn a_silent_node_becomes_suspect_then_down_and_its_tasks_move() {
        let mut world = World::new(3);
        let id = world.create(spec("web", 3));
        world.run(Duration::from_secs(2));
        world.cut.insert("n1".to_owned());
        world.run(Duration::from_secs(3));
        assert_eq!(state_of(&world, "n1"), NodeState::Suspect);
        assert_eq!(world.spread(&id).len(), 3, "a suspect keeps its tasks");
        world.run(Duration::from_secs(6));
        assert_eq!(state_of(&world, "n1"), NodeState::Down);
        assert_eq!(world.running(&id), 3);
        assert!(!world.spread(&id).contains_key("n1"));
        world.cut.clear();
        world.run(Duration::from_secs(2));
        assert_eq!(state_of(&world, "n1"), NodeState::ReadyNode);
        assert_eq!(world.held_in_slots(&id).into_values().collect::<Vec<_>>(), [1, 1, 1]);
    }

    #[test]
    fn a_new_leader_moves_nothing() {
        let mut world = World::new(3);
        let id = world.create(spec("web", 3));
        world.run(Duration::from_secs(2));
        let before: Vec<String> = world.live(&id).iter().map(|task| task.id.clone()).collect();
        world.heartbeats.clear();
        world.leader_since = world.now;
        world.cut.extend(["n1", "n2", "n3"].map(str::to_owned));
        world.run(Duration::from_secs(5));
        world.cut.clear();
        world.run(Duration::from_secs(2));
        let after: Vec<String> = world.live(&id).iter().map(|task| task.id.clone()).collect();
        assert_eq!(before, after);
    }

    #[test]
    fn a_shorter_period_moves_nothing_before_agents_have_heard_of_it() {
        let mut world = World::new(2);
        world.set_heartbeat_period(Duration::from_secs(30));
        let id = world.create(spec("web", 2));
        world.run(Duration::from_secs(2));
        let before: Vec<String> = world.live(&id).iter().map(|task| task.id.clone()).collect();
        // Agents were last heard 20 s ago, as they shall; they hear of the new period a second later.
        let all = ["n1", "n2"].map(str::to_owned);
        world.cut.extend(all.clone());
        world.run(Duration::from_secs(20));
        assert_eq!(state_of(&world, "n1"), NodeState::ReadyNode);
        world.set_heartbeat_period(Duration::from_secs(1));
        world.run(Duration::from_secs(2));
        assert_eq!(state_of(&world, "n1"), NodeState::ReadyNode);
        world.cut.clear();
        world.run(Duration::from_secs(2));
        let after: Vec<String> = world.live(&id).iter().map(|task| task.id.clone()).collect();
        assert_eq!(before, after);
        // From then on it holds.
        world.cut.insert("n1".to_owned());
        world.run(Duration::from_secs(6));
        assert_eq!(state_of(&world, "n1"), NodeState::Down);
    }

    #[test]
    fn tasks_stay_where_they_are_when_no_node_is_left() {
        let mut world = World::new(3);
        let id = world.create(spec("web", 3));
        world.run(Duration::from_secs(2));
        world.cut.extend(["n1", "n2", "n3"].map(str::to_owned));
        world.run(Duration::from_secs(30));
        assert!(["n1", "n2", "n3"].iter().all(|node| state_of(&world, node) == NodeState::Down));
        assert_eq!(world.tasks(&id).len(), 3);
        world.cut.clear();
        world.step();
        world.run(Duration::from_secs(5));
        assert_eq!((world.running(&id), world.tasks(&id).len()), (3, 3), "all are adopted");
    }

    #[test]
    fn tasks_of_a_node_that_was_removed_are_given_up() {
        let mut world = World::new(2);
        let id = world.create(spec("web", 2));
        world.run(Duration::from_secs(2));
        let request = rswarm_proto::wire::RemoveRequest { id: "n1".to_owned(), force: true };
        world.control(|state, _, ids| crate::control::remove_node(state, &request, ids)).expect("removed");
        world.cut.insert("n1".to_owned());
        world.run(Duration::from_secs(3));
        assert_eq!(world.spread(&id), [("n2".to_owned(), 2)].into());
        assert!(
            world.tasks(&id).iter().all(|task| task.observed() != TaskState::Orphaned),
            "nothing is left of it"
        );
    }
}
