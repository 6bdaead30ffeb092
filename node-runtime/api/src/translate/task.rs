//! Tasks as clients see them.

use std::collections::BTreeMap;

use rswarm_base::Kind;
use rswarm_proto::wire;

use super::{meta, nanos, network, ports, service};
use crate::error::ApiError;
use crate::types;

/// A task, with the networks that it is on shown whole, as Docker stores them in it.
pub(crate) fn task(task: &wire::Task, networks: &BTreeMap<String, wire::Network>) -> types::Task {
    let (version, created_at, updated_at) = meta(task.meta);
    let mut places: Vec<_> = task.networks.iter().map(|place| attachment(place, networks)).collect();
    places.sort_by_key(|place| !place.network.spec.ingress);
    types::Task {
        id: task.id.clone(),
        version,
        created_at,
        updated_at,
        labels: Some(types::StringMap::new()),
        spec: spec(task),
        service_id: task.service_id.clone(),
        slot: task.slot,
        node_id: task.node_id.clone(),
        status: status(task),
        desired_state: desired_name(task).to_owned(),
        job_iteration: task.job_iteration.map(|index| types::Version { index }),
        networks_attachments: places,
        generic_resources: super::generic_out(&task.generic),
        ..types::Task::default()
    }
}

/// As moby, which says of services what runs them, and not of tasks.
fn spec(task: &wire::Task) -> types::TaskSpec {
    let shown = task.spec.as_ref().map(service::task_out).unwrap_or_default();
    types::TaskSpec { runtime: String::new(), ..shown }
}

fn status(task: &wire::Task) -> types::TaskStatus {
    let status = task.status.clone().unwrap_or_default();
    types::TaskStatus {
        timestamp: nanos(status.timestamp),
        state: state_name(task.observed()).to_owned(),
        message: status.message,
        err: status.err,
        container_status: status.container.map(|container| types::ContainerStatus {
            container_id: container.container_id,
            pid: container.pid,
            exit_code: container.exit_code,
        }),
        port_status: types::PortStatus { ports: status.ports.iter().map(ports::service_port_out).collect() },
    }
}

/// The state as Docker's clients know it: one that drains runs still, and its message says the rest.
fn state_name(state: wire::TaskState) -> &'static str {
    match state {
        wire::TaskState::Draining => wire::TaskState::Running.name(),
        other => other.name(),
    }
}

/// What is wanted of a task: of a job's, that it completes.
fn desired_name(task: &wire::Task) -> &'static str {
    let completed =
        task.desired() == wire::TaskState::Shutdown && task.observed() == wire::TaskState::Complete;
    if task.job_iteration.is_some() && (task.desired() == wire::TaskState::Running || completed) {
        return wire::TaskState::Complete.name();
    }
    task.desired().name()
}

fn attachment(
    place: &wire::NetworkAttachment,
    networks: &BTreeMap<String, wire::Network>,
) -> types::NetworkAttachment {
    // One that has gone, or a node's own: clients read its times all the same.
    let unknown = || types::AttachedNetwork {
        id: place.network_id.clone(),
        created_at: nanos(0),
        updated_at: nanos(0),
        ..types::AttachedNetwork::default()
    };
    types::NetworkAttachment {
        network: networks.get(&place.network_id).map_or_else(unknown, network::attached),
        addresses: place.addresses.clone(),
    }
}

/// Docker's text for a task that there is not.
pub(crate) fn not_found(reference: &str) -> ApiError {
    ApiError::new(Kind::NotFound, format!("task {reference} not found"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draining_task_runs_for_docker() {
        let status = wire::TaskStatus {
            state: wire::TaskState::Draining.into(),
            message: "draining".into(),
            ..wire::TaskStatus::default()
        };
        let mut stored = wire::Task { status: Some(status), ..wire::Task::default() };
        stored.set_desired_state(wire::TaskState::Shutdown);
        let shown = task(&stored, &BTreeMap::new());
        assert_eq!((shown.status.state.as_str(), shown.desired_state.as_str()), ("running", "shutdown"));
        assert_eq!(shown.status.message, "draining");
    }

    #[test]
    fn a_task_has_dockers_shape() {
        let stored = wire::Task {
            id: "t1".into(),
            service_id: "s1".into(),
            slot: 2,
            node_id: "n1".into(),
            desired_state: wire::TaskState::Running.into(),
            status: Some(wire::TaskStatus {
                state: wire::TaskState::Running.into(),
                timestamp: 1_700_000_000_000_000_000,
                message: "started".into(),
                container: Some(wire::ContainerStatus { container_id: "c1".into(), pid: 42, exit_code: 0 }),
                ..wire::TaskStatus::default()
            }),
            networks: [("net1", "10.0.1.3/24"), ("mesh", "10.0.0.7/24")]
                .map(|(network, address)| wire::NetworkAttachment {
                    network_id: network.into(),
                    addresses: vec![address.into()],
                    ..wire::NetworkAttachment::default()
                })
                .into(),
            ..wire::Task::default()
        };
        let network = |id: &str, name: &str, ingress| {
            let annotations = Some(wire::Annotations { name: name.into(), ..wire::Annotations::default() });
            let driver = "overlay".into();
            let spec = wire::NetworkSpec { annotations, driver, ingress, ..wire::NetworkSpec::default() };
            (id.to_owned(), wire::Network { id: id.into(), spec: Some(spec), ..wire::Network::default() })
        };
        let networks = [network("net1", "front", false), network("mesh", "ingress", true)].into();
        let json = serde_json::to_value(task(&stored, &networks)).expect("json");
        let status = serde_json::json!({
            "Timestamp": "2023-11-14T22:13:20Z", "State": "running", "Message": "started",
            "ContainerStatus": {"ContainerID": "c1", "PID": 42, "ExitCode": 0}, "PortStatus": {}
        });
        assert_eq!(json["Status"], status);
        assert_eq!((json["DesiredState"].as_str(), json["Slot"].as_u64()), (Some("running"), Some(2)));
        assert_eq!(json["NetworksAttachments"][0]["Network"]["Spec"]["Ingress"], true);
        assert_eq!(json["NetworksAttachments"][1]["Network"]["Spec"]["Name"], "front");
        assert_eq!(json["NetworksAttachments"][1]["Addresses"][0], "10.0.1.3/24");
    }
}
