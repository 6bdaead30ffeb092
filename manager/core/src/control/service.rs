//! Services: new, changed, rolled back, removed.

use rswarm_base::{IdGen, Timestamp};
use rswarm_proto::wire::{
    CreateServiceRequest, JobStatus, ObjectKind, RemoveRequest, Service, ServiceSpec, UpdateServiceRequest,
    UpdateStatus, service_spec, update_service_request, update_status,
};

use super::read::{find_network, find_service, registry_auth};
use super::{ControlError, Decision, check_version, decided};
use crate::allocate::{NODE_NETWORKS, bare_endpoint};
use crate::content;
use crate::cron;
use crate::publish;
use crate::reconcile::Plan;
use crate::state::State;
use crate::validate::{self, Problem};

/// A new service.
pub fn create_service(
    state: &State,
    request: &CreateServiceRequest,
    now: Timestamp,
    ids: &mut IdGen,
) -> Decision {
    let spec = request.spec.clone().ok_or(ControlError::Incomplete("a service spec must be provided"))?;
    let spec = admitted(state, spec, None)?;
    let name = spec.annotations.as_ref().map_or("", |annotations| annotations.name.as_str());
    if state.service_named(name).is_some() {
        return Err(ControlError::NameTaken { kind: ObjectKind::Service, name: name.to_owned() });
    }
    let id = ids.cluster_id();
    let mut plan = Plan::default();
    let status = JobStatus { iteration: 0, last_execution: now.0, scheduled_until: now.0 };
    let job_status = spec.mode_or_default().is_job().then_some(status);
    let endpoint = bare_endpoint(&spec);
    plan.create(Service { id: id.clone(), endpoint, spec: Some(spec), job_status, ..Service::default() });
    decided(plan, &id, ids)
}

/// The spec as it is stored, or why it cannot be. `own` is the service that it is for, if there is one already.
fn admitted(
    state: &State,
    mut spec: ServiceSpec,
    own: Option<&Service>,
) -> Result<ServiceSpec, ControlError> {
    if spec.mode.is_none() {
        let replicated = rswarm_proto::wire::Replicated { replicas: 1 };
        spec.mode = Some(service_spec::Mode::Replicated(replicated));
    }
    for port in spec.endpoint.iter_mut().flat_map(|endpoint| &mut endpoint.ports) {
        if port.protocol.is_empty() {
            port.protocol = "tcp".to_owned();
        }
    }
    for config in spec.task.iter_mut().flat_map(|task| &mut task.networks) {
        // What cannot be resolved stays as it is, for `validate` to complain about with everything else.
        if !NODE_NETWORKS.contains(&config.target.as_str())
            && let Ok(network) = find_network(state, &config.target)
        {
            config.target.clone_from(&network.id);
        }
    }
    content::follow(state, &mut spec, own.and_then(|own| own.spec.as_ref()));
    check(state, &spec, own.map_or("", |own| &own.id))?;
    Ok(spec)
}

/// All that is wrong with a spec, in itself and beside what the cluster has. A single thing that is wrong with its
/// surroundings keeps its own kind.
fn check(state: &State, spec: &ServiceSpec, own_id: &str) -> Result<(), ControlError> {
    let mut beside: Vec<ControlError> =
        content::missing(state, Some(spec)).into_iter().map(ControlError::from).collect();
    if publish::needs_ingress(spec.endpoint.as_ref()) && state.lacks_ingress() {
        beside.push(publish::IngressError::Missing.into());
    }
    beside.extend(publish::spec_conflicts(state, spec, own_id).map(ControlError::from));
    let problems = validate::service(spec, state).err().unwrap_or_default();
    match (problems.is_empty(), beside.len()) {
        (true, 0) => Ok(()),
        (true, 1) => Err(beside.remove(0)),
        _ => {
            let beside = beside.iter().map(Problem::of);
            Err(ControlError::Invalid(problems.into_iter().chain(beside).collect()))
        }
    }
}

/// Another spec for a service, or its previous one again.
pub fn update_service(
    state: &State,
    request: &UpdateServiceRequest,
    now: Timestamp,
    ids: &mut IdGen,
) -> Decision {
    let stored = find_service(state, &request.id)?;
    check_version(stored.as_ref(), request.version)?;
    let mut service = Service::clone(&stored);
    match request.rollback() {
        update_service_request::Rollback::Previous => roll_back(state, &mut service, now)?,
        update_service_request::Rollback::None => {
            let spec =
                request.spec.clone().ok_or(ControlError::Incomplete("a service spec must be provided"))?;
            respecify(state, &mut service, spec, request.registry_auth_from_previous)?;
        }
    }
    restart_job(&stored, &mut service, now);
    let mut plan = Plan::default();
    plan.update(service);
    decided(plan, &stored.id, ids)
}

/// Any change of a job begins it anew; one with a schedule waits for its next time, unless it is forced.
fn restart_job(before: &Service, service: &mut Service, now: Timestamp) {
    let scheduled = cron::of(service).is_some();
    let forced = before.task_spec().force_update != service.task_spec().force_update;
    let labels = |service: &Service| service.spec.clone().and_then(|spec| spec.annotations);
    let rescheduled = labels(before) != labels(service);
    let Some(status) = &mut service.job_status else { return };
    if !scheduled || forced {
        (status.iteration, status.last_execution) = (status.iteration + 1, now.0);
    }
    if rescheduled {
        status.scheduled_until = now.0;
    }
    service.update_status = None;
}

fn roll_back(state: &State, service: &mut Service, now: Timestamp) -> Result<(), ControlError> {
    let missing = || ControlError::NoPreviousSpec(service.id.clone());
    let previous = service.previous_spec.take().ok_or_else(missing)?;
    check(state, &previous, &service.id)?;
    service.previous_spec = service.spec.replace(previous);
    service.update_status = Some(UpdateStatus {
        state: update_status::State::RollbackStarted.into(),
        started_at: now.0,
        completed_at: 0,
        message: "manually requested rollback".to_owned(),
        cause: String::new(),
    });
    Ok(())
}

fn respecify(
    state: &State,
    service: &mut Service,
    mut spec: ServiceSpec,
    auth_from_previous: bool,
) -> Result<(), ControlError> {
    keep_auth(service, &mut spec, auth_from_previous);
    let spec = admitted(state, spec, Some(service))?;
    let old = service.spec.clone().unwrap_or_default();
    let mode = |spec: &ServiceSpec| spec.mode.as_ref().map(std::mem::discriminant);
    if mode(&spec) != mode(&old) {
        return Err(ControlError::ModeChange);
    }
    let name = |spec: &ServiceSpec| spec.annotations.as_ref().map(|annotations| annotations.name.clone());
    if name(&spec) != name(&old) {
        return Err(ControlError::Rename);
    }
    if spec != old {
        service.previous_spec = Some(old);
    }
    service.spec = Some(spec);
    // A paused update goes on, one that is under way begins anew.
    service.update_status = None;
    Ok(())
}

/// Without credentials of its own, the new spec keeps those that the service has, or had before.
fn keep_auth(service: &Service, spec: &mut ServiceSpec, from_previous: bool) {
    let source = if from_previous { service.previous_spec.clone() } else { service.spec.clone() };
    let kept = source.and_then(|mut source| registry_auth(&mut source).cloned()).unwrap_or_default();
    if let Some(auth) = registry_auth(spec)
        && auth.is_empty()
    {
        *auth = kept;
    }
}

/// The end of a service: it is gone for users at once, and deleted when its tasks have stopped.
pub fn remove_service(state: &State, request: &RemoveRequest, ids: &mut IdGen) -> Decision {
    let service = find_service(state, &request.id)?;
    let mut plan = Plan::default();
    plan.update(Service { pending_delete: true, ..Service::clone(&service) });
    decided(plan, &service.id, ids)
}
