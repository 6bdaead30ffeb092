//! Random users: they create, scale, update and remove services, networks, secrets and configs, and drain nodes.

use std::collections::BTreeMap;
use std::sync::Arc;

use rswarm_base::{IdGen, Timestamp};
use rswarm_manager_core::State;
use rswarm_manager_core::control::{self, Decision, Fresh};
use rswarm_proto::model::object::Stored;
use rswarm_proto::wire::{
    Annotations, ContainerSpec, CreateNetworkRequest, CreateServiceRequest, EndpointSpec, Global, Network,
    NetworkAttachmentConfig, NetworkSpec, NodeAvailability, NodeSpec, ObjectKind, PortConfig, RemoveRequest,
    Replicated, ReplicatedJob, ResourceRequirements, Resources, RestartPolicy, RootCa, RootRotation, Service,
    ServiceSpec, TaskSpec, UpdateClusterRequest, UpdateConfig, UpdateNodeRequest, UpdateServiceRequest,
    service_spec,
    update_config::{FailureAction, Order},
};

use crate::agent::{BROKEN, FLAKY};
use crate::contents;
use crate::roots::root;

const SECOND: i64 = 1_000_000_000;
/// Services at once, and replicas of each once all is mended: what the small subnets of the simulation can
/// hold, virtual addresses and the tasks of running updates included.
const SERVICES_MAX: usize = 4;
const REPLICAS_MENDED: u64 = 3;
/// Services on the ingress network at once, where every node has an address too.
const PUBLISHED_MAX: usize = 2;
/// Prefix length of every network: small, so that addresses are reused soon.
pub const SUBNET_SIZE: u32 = 26;

/// What a user was promised once the request was acknowledged.
#[derive(Debug, Clone, PartialEq)]
pub enum Promise {
    /// It exists from then on.
    Exists(ObjectKind, String),
    /// It will go, and not come back.
    Goes(ObjectKind, String),
    /// Nothing lasting.
    Nothing,
}

/// What users were promised.
#[derive(Default)]
pub struct Promises {
    pub exists: BTreeMap<String, ObjectKind>,
    pub goes: BTreeMap<String, ObjectKind>,
}

impl Promises {
    /// From the moment a removal is asked for, nothing is promised but that it goes once acknowledged.
    pub fn asked(&mut self, promise: &Promise) {
        if let Promise::Goes(_, id) = promise {
            self.exists.remove(id);
        }
    }

    pub fn acknowledged(&mut self, promise: Promise) {
        match promise {
            Promise::Exists(kind, id) => {
                self.exists.insert(id, kind);
            }
            Promise::Goes(kind, id) => {
                self.goes.insert(id, kind);
            }
            Promise::Nothing => {}
        }
    }
}

/// One random request, decided on the leader's state.
pub fn request(
    state: &State,
    now: Timestamp,
    random: &mut IdGen,
    ids: &mut IdGen,
) -> Option<(Decision, Promise)> {
    let services: Vec<_> = state.services().filter(|service| !service.pending_delete).cloned().collect();
    let pick = |random: &mut IdGen, count: usize| random.number() as usize % count.max(1);
    let service = services.get(pick(random, services.len()));
    match random.number() % 34 {
        0..=5 if services.len() < SERVICES_MAX => {
            let request = CreateServiceRequest { spec: Some(new_service(state, random)) };
            Some(exists(ObjectKind::Service, control::create_service(state, &request, now, ids)))
        }
        6..=9 => Some((rescale(state, service?, now, random, ids)?, Promise::Nothing)),
        10..=13 => {
            let image = [FLAKY, "web:1", "web:2", "web:3", BROKEN][pick(random, 5)];
            let decision = update(state, service?, now, ids, |spec| {
                let container = spec.task.get_or_insert_default().container.get_or_insert_default();
                container.image = image.to_owned();
            });
            Some((decision, Promise::Nothing))
        }
        14 | 15 => {
            let id = service?.id.clone();
            let request = RemoveRequest { id: id.clone(), force: false };
            let decision = control::remove_service(state, &request, ids);
            Some((decision, Promise::Goes(ObjectKind::Service, id)))
        }
        16 | 17 if user_networks(state).count() < 3 => {
            let annotations =
                Some(Annotations { name: format!("net{}", random.number() % 100), ..Annotations::default() });
            let request =
                CreateNetworkRequest { spec: Some(NetworkSpec { annotations, ..NetworkSpec::default() }) };
            Some(exists(ObjectKind::Network, control::create_network(state, &request, ids)))
        }
        18 | 19 => {
            let network = user_networks(state).find(|network| !network.pending_delete)?;
            let request = RemoveRequest { id: network.id.clone(), force: false };
            let decision = control::remove_network(state, &request, ids);
            Some((decision, Promise::Goes(ObjectKind::Network, network.id.clone())))
        }
        20..=23 => Some((redrain(state, random, ids)?, Promise::Nothing)),
        24 | 25 => {
            let ports = published(state, random);
            let decision = update(state, service?, now, ids, |spec| {
                spec.endpoint.get_or_insert_default().ports = ports;
            });
            Some((decision, Promise::Nothing))
        }
        26 => Some((replace_root(state, random, ids)?, Promise::Nothing)),
        27..=29 => Some(contents::request(state, random, ids)),
        30..=33 => {
            let decision = update(state, service?, now, ids, |spec| contents::use_any(state, random, spec));
            Some((decision, Promise::Nothing))
        }
        _ => None,
    }
}

/// Another root certificate, also while the last one is still on its way.
fn replace_root(state: &State, random: &mut IdGen, ids: &mut IdGen) -> Option<Decision> {
    let cluster = state.cluster()?;
    let old = cluster.root_ca.clone()?;
    let new = root(random.number() as usize).certificate_pem.clone();
    if new == old.certificate_pem {
        return None;
    }
    let rotation = Some(RootRotation { certificate_pem: new, ..RootRotation::default() });
    let fresh = Fresh { root: Some(RootCa { rotation, ..old }), ..Fresh::default() };
    let request = UpdateClusterRequest { version: cluster.meta().version, ..UpdateClusterRequest::default() };
    Some(control::update_cluster(state, &request, fresh, ids))
}

fn user_networks(state: &State) -> impl Iterator<Item = &Arc<Network>> {
    state.networks().filter(|network| network.spec.as_ref().is_none_or(|spec| !spec.ingress))
}

/// A port on every node, or none: one of few, so that services want the same, or any.
fn published(state: &State, random: &mut IdGen) -> Vec<PortConfig> {
    let number = random.number() as u32 % 4;
    if number == 3 || state.services_on_ingress().count() >= PUBLISHED_MAX {
        return Vec::new();
    }
    let published = if number == 0 { 0 } else { 8079 + number };
    vec![PortConfig { protocol: "tcp".to_owned(), target: 80, published, ..PortConfig::default() }]
}

fn exists(kind: ObjectKind, decision: Decision) -> (Decision, Promise) {
    let promise = match &decision {
        Ok((_, id)) => Promise::Exists(kind, id.clone()),
        Err(_) => Promise::Nothing,
    };
    (decision, promise)
}

fn new_service(state: &State, random: &mut IdGen) -> ServiceSpec {
    let mut dice = |sides: u64| random.number() % sides;
    let order = if dice(2) == 0 { Order::StopFirst } else { Order::StartFirst };
    let action = [FailureAction::Pause, FailureAction::Continue, FailureAction::Rollback][dice(3) as usize];
    let update = UpdateConfig {
        parallelism: 1 + dice(2),
        delay: dice(2) as i64 * SECOND,
        failure_action: action.into(),
        monitor: SECOND,
        max_failure_ratio: 0.0,
        order: order.into(),
    };
    let mode = match dice(6) {
        0 => service_spec::Mode::Global(Global {}),
        1 => service_spec::Mode::ReplicatedJob(ReplicatedJob {
            max_concurrent: 1 + dice(2),
            total_completions: 1 + dice(4),
        }),
        _ => service_spec::Mode::Replicated(Replicated { replicas: 1 + dice(5) }),
    };
    let is_global = matches!(mode, service_spec::Mode::Global(_));
    let is_job = matches!(mode, service_spec::Mode::ReplicatedJob(_));
    let networks = user_networks(state).filter(|network| !network.pending_delete && !is_global);
    let network = networks.into_iter().nth(dice(2) as usize);
    let networks = network.map(|network| NetworkAttachmentConfig {
        target: network.id.clone(),
        ..NetworkAttachmentConfig::default()
    });
    let ports = if is_global { Vec::new() } else { published(state, random) };
    let mut dice = |sides: u64| random.number() % sides;
    let reservations = Some(Resources { memory: (64 + dice(256) as i64) << 20, ..Resources::default() });
    let patient = (dice(4) == 0).then(|| ("rswarm.node-loss.grace".to_owned(), "20s".to_owned()));
    let labels = patient.into_iter().collect();
    ServiceSpec {
        annotations: Some(Annotations { name: format!("web{}", dice(1000)), labels }),
        task: Some(TaskSpec {
            container: Some(ContainerSpec { image: FLAKY.to_owned(), ..ContainerSpec::default() }),
            restart: Some(RestartPolicy { delay: Some(SECOND), ..RestartPolicy::default() }),
            resources: Some(ResourceRequirements { reservations, ..ResourceRequirements::default() }),
            networks: networks.into_iter().collect(),
            ..TaskSpec::default()
        }),
        mode: Some(mode),
        update: (!is_job).then_some(update),
        endpoint: Some(EndpointSpec { ports, ..EndpointSpec::default() }),
        ..ServiceSpec::default()
    }
}

fn update(
    state: &State,
    service: &Service,
    now: Timestamp,
    ids: &mut IdGen,
    change: impl FnOnce(&mut ServiceSpec),
) -> Decision {
    let mut spec = service.spec.clone().unwrap_or_default();
    change(&mut spec);
    let request = UpdateServiceRequest {
        id: service.id.clone(),
        version: service.meta().version,
        spec: Some(spec),
        ..UpdateServiceRequest::default()
    };
    control::update_service(state, &request, now, ids)
}

fn rescale(
    state: &State,
    service: &Service,
    now: Timestamp,
    random: &mut IdGen,
    ids: &mut IdGen,
) -> Option<Decision> {
    let mode = service.spec.as_ref()?.mode.as_ref()?;
    let service_spec::Mode::Replicated(_) = mode else { return None };
    let replicas = random.number() % 7;
    let mode = service_spec::Mode::Replicated(Replicated { replicas });
    Some(update(state, service, now, ids, |spec| spec.mode = Some(mode)))
}

fn redrain(state: &State, random: &mut IdGen, ids: &mut IdGen) -> Option<Decision> {
    let node = state.nodes().nth(random.number() as usize % state.nodes().count().max(1))?;
    let availability = match random.number() % 3 {
        0 => NodeAvailability::Drain,
        1 => NodeAvailability::Pause,
        _ => NodeAvailability::Active,
    };
    Some(set_availability(state, &node.id, availability, ids))
}

pub fn set_availability(
    state: &State,
    node: &str,
    availability: NodeAvailability,
    ids: &mut IdGen,
) -> Decision {
    let stored = state.node(node).expect("a node");
    let spec = NodeSpec { availability: availability.into(), ..stored.spec.clone().unwrap_or_default() };
    let request = UpdateNodeRequest { id: node.to_owned(), version: stored.meta().version, spec: Some(spec) };
    control::update_node(state, &request, &[], ids)
}

/// Replaces images that cannot run, so that every service can be as asked.
pub fn mend(state: &State, service: &Service, now: Timestamp, ids: &mut IdGen) -> Decision {
    update(state, service, now, ids, |spec| {
        let task = spec.task.get_or_insert_default();
        task.container.get_or_insert_default().image = "web:9".to_owned();
        task.force_update += 1;
        if let Some(service_spec::Mode::Replicated(replicated)) = &mut spec.mode {
            replicated.replicas = replicated.replicas.min(REPLICAS_MENDED);
        }
    })
}
