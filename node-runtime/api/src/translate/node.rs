//! Nodes: the stored object as clients see it, and their changes to its spec.

use rswarm_base::Kind;
use rswarm_proto::wire;
use rswarm_proto::wire::{NodeAvailability, NodeRole, NodeState};

use super::meta;
use crate::error::ApiError;
use crate::types;

pub(crate) fn node(node: &wire::Node) -> types::Node {
    let (version, created_at, updated_at) = meta(node.meta);
    let status = node.status.clone().unwrap_or_default();
    types::Node {
        id: node.id.clone(),
        version,
        created_at,
        updated_at,
        spec: node.spec.as_ref().map(spec_out).unwrap_or_default(),
        description: description(node),
        status: types::NodeStatus {
            state: state(status.state()).to_owned(),
            message: status.message,
            addr: status.addr,
        },
        manager_status: node.manager_status.as_ref().map(|manager| types::ManagerStatus {
            leader: manager.leader,
            reachability: if manager.reachable { "reachable" } else { "unreachable" }.to_owned(),
            addr: manager.addr.clone(),
        }),
    }
}

/// Docker's word; a node that misses heartbeats is still ready to its clients.
pub(crate) fn state(state: NodeState) -> &'static str {
    match state {
        NodeState::Unknown => "unknown",
        NodeState::Down => "down",
        NodeState::ReadyNode | NodeState::Suspect => "ready",
    }
}

fn description(node: &wire::Node) -> types::NodeDescription {
    let description = node.description.clone().unwrap_or_default();
    let platform = description.platform.unwrap_or_default();
    let resources = description.resources.unwrap_or_default();
    let engine = description.engine.unwrap_or_default();
    let plugins = [
        ("Log", &engine.log_drivers),
        ("Network", &engine.network_drivers),
        ("Volume", &engine.volume_drivers),
    ];
    let plugins = plugins.into_iter().flat_map(|(kind, names)| {
        names.iter().map(move |name| types::PluginDescription { kind: kind.to_owned(), name: name.clone() })
    });
    types::NodeDescription {
        hostname: description.hostname,
        platform: types::Platform { architecture: platform.architecture, os: platform.os },
        resources: types::NodeResources {
            nano_cpus: resources.nano_cpus,
            memory_bytes: resources.memory,
            generic_resources: super::shown_generic(&description.generic),
        },
        engine: types::EngineDescription {
            engine_version: engine.version,
            labels: engine.labels,
            plugins: plugins.collect(),
        },
        tls_info: super::cluster::tls_out(description.tls.unwrap_or_default()),
    }
}

fn spec_out(spec: &wire::NodeSpec) -> types::NodeSpec {
    let annotations = spec.annotations.clone().unwrap_or_default();
    types::NodeSpec {
        name: annotations.name,
        labels: Some(annotations.labels),
        role: role(spec.desired_role()).to_owned(),
        availability: availability_out(spec.availability()).to_owned(),
    }
}

pub(crate) fn role(role: NodeRole) -> &'static str {
    match role {
        NodeRole::Worker => "worker",
        NodeRole::Manager => "manager",
    }
}

fn availability_out(availability: NodeAvailability) -> &'static str {
    match availability {
        NodeAvailability::Active => "active",
        NodeAvailability::Pause => "pause",
        NodeAvailability::Drain => "drain",
    }
}

/// The empty text, of `init` and `join`, is `active`.
pub(crate) fn availability(text: &str) -> Result<NodeAvailability, ApiError> {
    match text.to_ascii_lowercase().as_str() {
        "" | "active" => Ok(NodeAvailability::Active),
        "pause" => Ok(NodeAvailability::Pause),
        "drain" => Ok(NodeAvailability::Drain),
        _ => Err(ApiError::invalid(format!("invalid Availability: \"{text}\""))),
    }
}

/// The whole spec of `POST /nodes/{id}/update`: it replaces the stored one.
pub(crate) fn spec(spec: &types::NodeSpec) -> Result<wire::NodeSpec, ApiError> {
    let role = match spec.role.to_ascii_lowercase().as_str() {
        "worker" => NodeRole::Worker,
        "manager" => NodeRole::Manager,
        _ => return Err(ApiError::invalid(format!("invalid Role: \"{}\"", spec.role))),
    };
    if spec.availability.is_empty() {
        return Err(ApiError::invalid("invalid Availability: \"\""));
    }
    Ok(wire::NodeSpec {
        annotations: Some(wire::Annotations {
            name: spec.name.clone(),
            labels: spec.labels.clone().unwrap_or_default(),
        }),
        desired_role: role.into(),
        availability: availability(&spec.availability)?.into(),
    })
}

/// Docker's text for a node that there is not.
pub(crate) fn not_found(reference: &str) -> ApiError {
    ApiError::new(Kind::NotFound, format!("node {reference} not found"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_survives_the_way_in_and_out() {
        let text = r#"{"Name":"n","Labels":{"zone":"a"},"Role":"manager","Availability":"drain"}"#;
        let sent: types::NodeSpec = serde_json::from_str(text).expect("spec");
        assert_eq!(serde_json::to_string(&spec_out(&spec(&sent).expect("spec"))).expect("json"), text);
        let without_role = types::NodeSpec { role: String::new(), ..sent.clone() };
        assert_eq!(spec(&without_role).expect_err("no role").message, "invalid Role: \"\"");
        let wrong = types::NodeSpec { availability: "gone".into(), ..sent };
        assert_eq!(spec(&wrong).expect_err("no availability").message, "invalid Availability: \"gone\"");
    }

    #[test]
    fn a_manager_shows_its_status_and_a_worker_none() {
        let mut stored = wire::Node {
            id: "n1".into(),
            status: Some(wire::NodeStatus { state: NodeState::ReadyNode.into(), ..Default::default() }),
            manager_status: Some(wire::ManagerStatus {
                addr: "10.0.0.1:2377".into(),
                leader: true,
                reachable: true,
                raft_id: 1,
            }),
            ..wire::Node::default()
        };
        let json = serde_json::to_value(node(&stored)).expect("json");
        let manager =
            serde_json::json!({"Leader": true, "Reachability": "reachable", "Addr": "10.0.0.1:2377"});
        assert_eq!(json["ManagerStatus"], manager);
        assert_eq!(json["Status"]["State"], "ready");
        stored.manager_status = None;
        let json = serde_json::to_value(node(&stored)).expect("json");
        assert!(json.get("ManagerStatus").is_none());
    }
}
