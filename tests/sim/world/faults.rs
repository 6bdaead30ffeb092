//! What goes wrong, by chance: crashes, reboots, partitions, clocks that jump, managers replaced, lost, brought back.

use std::time::Duration;

use rswarm_manager_core::peer::Restored;

use super::{Event, TICK, World};
use crate::manager::{Manager, founded_at};
use crate::net::{Address, Payload};

/// How far a clock is set, forward or back.
const JUMP_MAX: Duration = Duration::from_secs(3600);
/// How far the raft index of a cluster that comes back from a backup is beyond the backup's.
const INDEX_GAP: u64 = 1_000_000;

impl World {
    pub(super) fn break_it(&mut self) {
        match self.random.number() % 12 {
            0 | 1 => self.crash_or_start_managers(),
            2 => self.stop_or_start_agent(),
            3 => {
                let node = self.any_node();
                let now = self.now;
                if let Some(agent) = self.agents.get_mut(&node) {
                    agent.reboot(now);
                }
            }
            4 | 5 => self.part(),
            6..=8 => {
                let loss = 20 + self.random.number() % 50;
                self.net.heal();
                self.net.loss = loss;
                self.managers
                    .values_mut()
                    .filter(|manager| manager.running.is_none())
                    .for_each(Manager::start);
            }
            9 => self.replace_manager(),
            10 => self.jump(),
            _ if !self.had_disaster && self.random.number().is_multiple_of(8) => self.lose_managers(),
            _ => {}
        }
    }

    fn any_node(&mut self) -> String {
        let at = self.random.number() as usize % self.agents.len();
        self.agents.keys().nth(at).cloned().expect("there are agents")
    }

    fn crash_or_start_managers(&mut self) {
        for manager in self.managers.values_mut() {
            match (self.random.number() % 3, &manager.running) {
                (0, Some(_)) => manager.crash(&mut self.random),
                (1 | 2, None) => manager.start(),
                _ => {}
            }
        }
    }

    fn stop_or_start_agent(&mut self) {
        let node = self.any_node();
        if let Some(agent) = self.agents.get_mut(&node) {
            if agent.is_up { agent.is_up = false } else { agent.restart() }
        }
    }

    fn part(&mut self) {
        let managers = self.managers.keys().map(|id| Address::Manager(*id));
        let agents = self.agents.keys().map(|node| Address::Agent(node.clone()));
        let all: Vec<Address> = managers.chain(agents).collect();
        let sides = all.into_iter().map(|address| (address, (self.random.number() % 2) as u8)).collect();
        self.net.part(sides);
    }

    /// Somebody sets the clock of a machine.
    fn jump(&mut self) {
        let range = 2 * JUMP_MAX.as_nanos() as u64;
        let by = (self.random.number() % range) as i64 - JUMP_MAX.as_nanos() as i64;
        if self.random.number().is_multiple_of(2) {
            let ids: Vec<u64> = self.managers.keys().copied().collect();
            let at = ids[self.random.number() as usize % ids.len()];
            self.managers.get_mut(&at).expect("it was listed").jump(by);
        } else {
            let node = self.any_node();
            self.agents.get_mut(&node).expect("it was listed").jump(by);
        }
    }

    /// The managers are lost for good: all but the one with the most in its log, which recovers the cluster, or all
    /// of them, and a backup that misses nothing brings it back. Either way nothing acknowledged may be missing.
    fn lose_managers(&mut self) {
        self.had_disaster = true;
        let (id, manager) = if self.random.number().is_multiple_of(2) {
            let furthest = self.managers.values().max_by_key(|manager| manager.disk.position());
            let id = furthest.map(|manager| manager.id).expect("there are managers");
            let mut survivor = self.managers.remove(&id).expect("it was listed");
            survivor.crash(&mut self.random);
            let mut restored: Restored = survivor.disk.restored();
            let persist = restored.force_single(id);
            survivor.disk.write(&persist);
            (id, survivor)
        } else {
            let id = self.next_manager;
            self.next_manager += 1;
            let mut revived = Manager::new(id, &mut self.random);
            revived.disk = founded_at(id, self.newest.index() + INDEX_GAP, &self.newest);
            self.after(TICK, Event::ManagerTick(id));
            (id, revived)
        };
        // What the lost ones had sent ends with the connections.
        self.queue.retain(|_, event| match event {
            Event::Deliver(packet) => !matches!(packet.payload, Payload::Raft(_)),
            _ => true,
        });
        self.managers.clear();
        self.members = [id].into();
        self.managers.insert(id, manager);
        self.managers.get_mut(&id).expect("just put").start();
        self.checkers.regrouped();
        while self.members.len() < self.size.managers {
            let new = self.next_manager;
            self.next_manager += 1;
            self.members.insert(new);
            let mut manager = Manager::new(new, &mut self.random);
            manager.start();
            self.managers.insert(new, manager);
            self.after(TICK, Event::ManagerTick(new));
        }
    }

    /// A member is replaced for good: the new one has another raft id and an empty disk.
    fn replace_manager(&mut self) {
        let known = self
            .members
            .iter()
            .all(|id| self.managers.get(id).is_some_and(|manager| manager.running.is_some()));
        if !known || self.managers.len() > self.size.managers {
            return;
        }
        let at = self.random.number() as usize % self.members.len();
        let old = *self.members.iter().nth(at).expect("there are members");
        let new = self.next_manager;
        self.next_manager += 1;
        self.members.remove(&old);
        self.members.insert(new);
        let mut manager = Manager::new(new, &mut self.random);
        manager.start();
        self.managers.insert(new, manager);
        self.after(TICK, Event::ManagerTick(new));
    }
}
