//! How often agents beat, by how many they are: managers hear some hundreds of beats a second, however large the
//! cluster is.
//!
//! The period grows by powers of two, since each change of it is told to every agent: a cluster that doubles changes it
//! once. It is stored with the cluster rather than counted wherever it is asked for: so all managers change it at one
//! place of the log, and `Liveness` knows when.

use std::time::Duration;

use rswarm_proto::wire::Cluster;

use crate::author::Author;
use crate::reconcile::{Env, Plan, Reconciler};
use crate::state::State;

/// Beats of all agents together in a second.
const BEATS_PER_SECOND: u128 = 500;

/// Lengthens and shortens the period of heartbeats.
#[derive(Debug)]
pub struct Pace;

impl Reconciler for Pace {
    fn author(&self) -> Author {
        Author::Liveness
    }

    fn reconcile(&self, view: &State, _: &mut Env<'_>) -> Plan {
        let mut plan = Plan::default();
        let Some(cluster) = view.cluster() else { return plan };
        let stretch = stretch(view.node_count(), view.wanted_heartbeat_period());
        if stretch != cluster.heartbeat_stretch.max(1) {
            plan.update(Cluster { heartbeat_stretch: stretch, ..Cluster::clone(cluster) });
        }
        plan
    }
}

/// By how much the period is longer for so many nodes: the smallest power of two that is enough.
fn stretch(nodes: usize, period: Duration) -> u32 {
    let beats = nodes as u128 * 1_000_000_000;
    let needed = beats.div_ceil(BEATS_PER_SECOND * period.as_nanos().max(1));
    u32::try_from(needed).ok().and_then(u32::checked_next_power_of_two).unwrap_or(1 << 31)
}

#[cfg(test)]
mod tests {
    use rswarm_proto::wire::{NodeState, RemoveRequest};

    use super::*;
    use crate::state::node_state;
    use crate::world::{World, node};

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_period_doubles_with_the_cluster_beyond_five_hundred_beats_a_second() {
        let seconds = |nodes| stretch(nodes, SECOND);
        assert_eq!([0, 1, 500, 501, 1_000, 1_001, 5_000, 10_000].map(seconds), [1, 1, 1, 2, 2, 4, 16, 32]);
        assert_eq!(stretch(1_000, 10 * SECOND), 1, "it is long enough as it was asked for");
        assert_eq!(stretch(1_000, Duration::from_millis(100)), 32);
        assert_eq!(stretch(usize::MAX, Duration::ZERO), 1 << 31);
    }

    const TENTH: Duration = Duration::from_millis(100);

    /// As many nodes as may beat ten times a second, which is the shortest period.
    fn world_at_the_edge() -> World {
        let mut world = World::new(50);
        world.set_heartbeat_period(TENTH);
        world.run(2 * TENTH);
        assert_eq!(world.state.heartbeat_period(), TENTH);
        world
    }

    fn join(world: &mut World, numbers: std::ops::RangeInclusive<usize>) {
        let mut plan = Plan::default();
        numbers.for_each(|n| plan.create(node(&format!("n{n}"))));
        world.write(Author::Bootstrap, plan.into_changes());
        world.reconcile();
    }

    fn leave(world: &mut World, number: usize) {
        let request = RemoveRequest { id: format!("n{number}"), force: true };
        world.control(|state, _, ids| crate::control::remove_node(state, &request, ids)).expect("removed");
        world.reconcile();
    }

    fn state_of(world: &World, id: &str) -> NodeState {
        node_state(world.state.node(id).expect("node"))
    }

    /// Time passes in which the node is not heard and others are.
    fn silence(world: &mut World, id: &str, time: Duration) {
        world.cut.insert(id.to_owned());
        world.skip(time);
        world.cut.clear();
    }

    #[test]
    fn joining_nodes_lengthen_the_period_once_and_leaving_ones_shorten_it() {
        let mut world = world_at_the_edge();
        join(&mut world, 51..=51);
        assert_eq!(world.state.heartbeat_period(), 2 * TENTH);
        let told = world.state.cluster().cloned();
        join(&mut world, 52..=100);
        assert_eq!(world.state.cluster().cloned(), told, "no agent is told anything");
        join(&mut world, 101..=101);
        assert_eq!(world.state.heartbeat_period(), 4 * TENTH);
        leave(&mut world, 101);
        assert_eq!(world.state.heartbeat_period(), 2 * TENTH);
        (51..=100).for_each(|number| leave(&mut world, number));
        assert_eq!(world.state.heartbeat_period(), TENTH);
    }

    #[test]
    fn a_shorter_period_suspects_no_agent_that_has_not_heard_of_it() {
        let mut world = world_at_the_edge();
        join(&mut world, 51..=51);
        world.skip(10 * TENTH);
        // A moment before its next beat is due.
        silence(&mut world, "n1", 2 * TENTH - Duration::from_millis(1));
        leave(&mut world, 51);
        assert_eq!(world.state.heartbeat_period(), TENTH);
        // It is told late, and goes on for a while as before: nothing is thought of it.
        for _ in 0..3 {
            assert_eq!(state_of(&world, "n1"), NodeState::ReadyNode);
            silence(&mut world, "n1", TENTH - Duration::from_millis(1));
        }
        assert_eq!(state_of(&world, "n1"), NodeState::ReadyNode);
        // One that then says nothing is gone.
        silence(&mut world, "n1", Duration::from_millis(3));
        assert_eq!(state_of(&world, "n1"), NodeState::Suspect);
        silence(&mut world, "n1", 3 * TENTH);
        assert_eq!(state_of(&world, "n1"), NodeState::Down);
    }

    #[test]
    fn a_longer_period_brings_no_silent_node_back() {
        let mut world = world_at_the_edge();
        silence(&mut world, "n1", 3 * TENTH);
        assert_eq!(state_of(&world, "n1"), NodeState::Suspect);
        join(&mut world, 51..=51);
        assert_eq!(world.state.heartbeat_period(), 2 * TENTH);
        assert_eq!(state_of(&world, "n1"), NodeState::Suspect, "it was not heard since");
        world.beat();
        world.reconcile();
        assert_eq!(state_of(&world, "n1"), NodeState::ReadyNode);
    }
}
