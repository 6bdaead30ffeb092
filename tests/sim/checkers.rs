//! What must hold in every history, whatever goes wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use rswarm_manager_core::state::{address_of, node_state};
use rswarm_manager_core::{State, relocate};
use rswarm_proto::model::object::Stored;
use rswarm_proto::model::service::Mode;
use rswarm_proto::model::task::TaskState;
use rswarm_proto::tls::issuer_info;
use rswarm_proto::wire::{Node, NodeState, Service, Takeover, update_config::Order};

use crate::agent::Agent;

/// Everything that was seen so far.
#[derive(Default)]
pub struct Checkers {
    leaders: BTreeMap<u64, u64>,
    log: BTreeMap<u64, u64>,
    states: BTreeMap<u64, u64>,
    places: BTreeMap<String, String>,
    /// Up to which index of the log a node was known to be down. Times are those of clocks that are set.
    down_at: BTreeMap<String, u64>,
    observed: BTreeMap<String, (TaskState, TaskState)>,
    /// Complete slots, by job and iteration.
    completed: BTreeMap<(String, Option<u64>), BTreeSet<u64>>,
    versions: BTreeMap<(&'static str, String), u64>,
    /// How many tasks each service might have, by the raft index of the spec that said so.
    bounds: BTreeMap<String, BTreeMap<u64, u64>>,
    root: String,
    /// The first index seen of this group of managers: a new one leaves out many.
    group_since: Option<u64>,
}

/// Entries within which managers follow a spec: what may be on its way when they decide.
const BOUND_HOLDS: u64 = 400;

impl Checkers {
    /// One leader per term.
    pub fn leads(&mut self, term: u64, manager: u64) {
        let leader = *self.leaders.entry(term).or_insert(manager);
        assert_eq!(leader, manager, "term {term} has two leaders");
    }

    /// The managers were lost, and others go on from all that was committed, in terms of their own.
    pub fn regrouped(&mut self) {
        self.leaders.clear();
        self.group_since = None;
    }

    /// All managers apply the same entry at one index.
    pub fn applied(&mut self, manager: u64, index: u64, entry: u64) {
        let seen = *self.log.entry(index).or_insert(entry);
        assert_eq!(seen, entry, "manager {manager} applied another entry at {index}");
    }

    /// All managers have the same state at one index.
    pub fn state(&mut self, manager: u64, index: u64, fingerprint: u64) {
        let seen = *self.states.entry(index).or_insert(fingerprint);
        assert_eq!(seen, fingerprint, "manager {manager} has another state at {index}");
    }

    /// What one committed state must be in itself, and after the one before it.
    pub fn committed(&mut self, state: &State) {
        let mut held: BTreeSet<(String, IpAddr)> = BTreeSet::new();
        let mut hold = |network: &str, address: &str| {
            let address = address_of(address).expect("an address");
            assert!(
                held.insert((network.to_owned(), address)),
                "{address} of network {network} is given twice"
            );
        };
        for mesh in state.nodes().filter_map(|node| node.mesh.as_ref()) {
            mesh.addresses.iter().for_each(|address| hold(&mesh.network_id, address));
        }
        published_once(state);
        self.version(state);
        self.root(state);
        for service in state.services().filter(|service| !service.pending_delete && service.is_job()) {
            self.job(service, state);
        }
        for service in state.services() {
            self.count(service, state);
            let endpoint = service.endpoint.iter().flat_map(|endpoint| &endpoint.virtual_ips);
            endpoint.for_each(|vip| hold(&vip.network_id, &vip.address));
        }
        for task in state.tasks() {
            if !task.observed().is_terminal() {
                for attachment in &task.networks {
                    attachment.addresses.iter().for_each(|address| hold(&attachment.network_id, address));
                }
            }
            let seen = self.observed.entry(task.id.clone()).or_insert((task.observed(), task.desired()));
            assert!(task.observed() >= seen.0 && task.desired() >= seen.1, "task {} moved back", task.id);
            *seen = (task.observed(), task.desired());
        }
        for node in state.nodes().filter(|node| node_state(node) == NodeState::Down) {
            self.down_at.insert(node.id.clone(), state.index());
        }
    }

    /// No object goes back to an older version.
    fn version(&mut self, state: &State) {
        fn of<'s, T: Stored + 's>(
            kind: &'static str,
            objects: impl Iterator<Item = &'s Arc<T>>,
            id: impl Fn(&T) -> &str,
            seen: &mut BTreeMap<(&'static str, String), u64>,
        ) {
            for object in objects {
                let (id, version) = (id(object), object.meta().version);
                let last = seen.entry((kind, id.to_owned())).or_default();
                assert!(*last <= version, "{kind} {id} went back from version {last} to {version}");
                *last = version;
            }
        }
        let seen = &mut self.versions;
        of("cluster", state.cluster().into_iter(), |cluster| &cluster.id, seen);
        of("node", state.nodes(), |node| &node.id, seen);
        of("service", state.services(), |service| &service.id, seen);
        of("network", state.networks(), |network| &network.id, seen);
        of("task", state.tasks(), |task| &task.id, seen);
    }

    /// The old root goes when no node has a certificate by it any more.
    fn root(&mut self, state: &State) {
        let Some(root) = state.cluster().and_then(|cluster| cluster.root_ca.as_ref()) else { return };
        if self.root != root.certificate_pem {
            let by_other = |node: &&Arc<Node>| {
                let tls = node.description.as_ref().and_then(|description| description.tls.as_ref());
                tls.map(|tls| (tls.issuer_subject.clone(), tls.issuer_public_key.clone()))
                    != issuer_info(&root.certificate_pem)
            };
            let other = state.nodes().find(by_other).map(|node| &node.id);
            assert_eq!(other, None, "its certificate is good no more");
            self.root.clone_from(&root.certificate_pem);
        }
    }

    /// A service has no more tasks than its replicas and, start-first or while some move, those that take over.
    fn count(&mut self, service: &Service, state: &State) {
        let Some(spec) = service.spec.as_ref().filter(|_| !service.pending_delete) else { return };
        let Mode::Replicated(replicas) = spec.mode_or_default() else { return };
        let mut live = state.tasks_of_service(&service.id).filter(|task| task.is_live());
        let moves = live.any(|task| task.takes_over() != Takeover::NoTakeover);
        let beside = match spec.update.unwrap_or_default().order() {
            Order::StopFirst if !moves => 0,
            Order::StopFirst | Order::StartFirst => relocate::parallelism(service).min(replicas),
        };
        let bounds = self.bounds.entry(service.id.clone()).or_default();
        let bound = bounds.entry(service.spec_version).or_default();
        *bound = (replicas + beside).max(*bound);
        // A spec counts for as long after the next one as what was decided by it may be on its way.
        let since = *self.group_since.get_or_insert(state.index());
        let next = |version: u64| bounds.range(version + 1..).next().map(|(next, _)| since.max(*next));
        let over: Vec<u64> = bounds
            .keys()
            .copied()
            .filter(|version| next(*version).is_some_and(|next| next + BOUND_HOLDS < state.index()))
            .collect();
        bounds.retain(|version, _| !over.contains(version));
        let bound = bounds.values().max().copied().unwrap_or(0);
        let live = state.tasks_of_service(&service.id).filter(|task| task.is_live()).count() as u64;
        assert!(live <= bound, "service {} has {live} tasks, {bound} at most", service.id);
    }

    /// A job's completions are exact: each slot has its turn once, no more run than may, none is forgotten, and
    /// none is had twice.
    fn job(&mut self, service: &Service, state: &State) {
        let Some(Mode::ReplicatedJob { concurrent, total }) =
            service.spec.as_ref().map(|spec| spec.mode_or_default())
        else {
            return;
        };
        let iteration = service.job_iteration();
        let own = || state.tasks_of_service(&service.id).filter(|task| task.job_iteration == iteration);
        let complete = completed(state, service);
        assert!(own().all(|task| (1..=total).contains(&task.slot)), "{} has other slots", service.id);
        // What a lost node completed after all may be known before its successor has been told to stop.
        let live: BTreeSet<u64> = own()
            .filter(|task| task.is_live())
            .map(|task| task.slot)
            .filter(|slot| !complete.contains(slot))
            .collect();
        assert!(live.len() as u64 <= concurrent, "{live:?} of job {} run at once", service.id);
        let known = self.completed.entry((service.id.clone(), iteration)).or_default();
        assert!(known.is_subset(&complete), "job {} has forgotten some of {known:?}", service.id);
        *known = complete;
    }

    /// What containers must be, whatever managers believe.
    pub fn containers(&mut self, agents: &BTreeMap<String, Agent>, state: &State) {
        let mut addresses: BTreeMap<(String, String), String> = BTreeMap::new();
        let mut slots: BTreeMap<(String, u64), Vec<Up>> = BTreeMap::new();
        for (node, agent) in agents {
            for container in agent.containers.values() {
                let task = &container.task;
                let place = self.places.entry(task.id.clone()).or_insert_with(|| node.clone());
                assert_eq!(place, node, "task {} is on two nodes", task.id);
                if !container.is_up() {
                    continue;
                }
                for attachment in &task.networks {
                    for address in &attachment.addresses {
                        let key = (attachment.network_id.clone(), address.clone());
                        let other = addresses.insert(key, task.id.clone());
                        assert_eq!(other, None, "{address} is held by {} too", task.id);
                    }
                }
                if task.slot != 0 {
                    slots.entry((task.service_id.clone(), task.slot)).or_default().push(Up {
                        node: node.clone(),
                        since: task.created_version,
                        takes_over: task.takes_over() != Takeover::NoTakeover,
                        stored: state.task(&task.id).map(|task| (task.observed(), task.desired())),
                    });
                }
            }
        }
        for ((service, slot), tasks) in slots {
            let update = state.service(&service).and_then(|service| service.spec.as_ref()?.update);
            let start_first = update.is_some_and(|update| update.order() == Order::StartFirst);
            // A node that was given up may still run what was replaced elsewhere.
            let known = tasks
                .iter()
                .filter(|up| self.down_at.get(&up.node).is_none_or(|down_at| *down_at < up.since));
            let known = known.count();
            let moves = tasks.iter().any(|up| up.takes_over);
            assert!(
                known <= if start_first || moves { 2 } else { 1 },
                "{known} tasks run in slot {slot} of {service}: {tasks:?}"
            );
        }
    }
}

/// A container that is up.
#[derive(Debug)]
struct Up {
    node: String,
    /// The index of the log that made its task.
    since: u64,
    takes_over: bool,
    /// What the managers believe of it; told when a check fails.
    #[allow(dead_code, reason = "read by `Debug`")]
    stored: Option<(TaskState, TaskState)>,
}

/// The slots in which a task of the job's iteration ran to completion.
pub fn completed(state: &State, service: &Service) -> BTreeSet<u64> {
    let iteration = service.job_iteration();
    let own = state.tasks_of_service(&service.id).filter(|task| task.job_iteration == iteration);
    own.filter(|task| task.observed() == TaskState::Complete).map(|task| task.slot).collect()
}

/// No two services are published on one port of every node.
fn published_once(state: &State) {
    let mut owners: BTreeMap<(String, u32), String> = BTreeMap::new();
    for service in state.services().filter(|service| !service.pending_delete) {
        let asked = service.spec.iter().flat_map(|spec| &spec.endpoint).flat_map(|endpoint| &endpoint.ports);
        let given = service.endpoint.iter().flat_map(|endpoint| &endpoint.ports);
        for port in asked.chain(given).filter(|port| port.published != 0) {
            let key = (port.protocol.clone(), port.published);
            let owner = owners.entry(key).or_insert_with(|| service.id.clone());
            assert_eq!(*owner, service.id, "port {} is published twice", port.published);
        }
    }
}
