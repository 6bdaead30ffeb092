//! Tasks of the cluster.

use std::collections::BTreeMap;

use axum::Json;
use axum::Router;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::get;
use rswarm_proto::wire;

use crate::error::ApiError;
use crate::filters::Filters;
use crate::logs;
use crate::request::Query;
use crate::router::App;
use crate::swarm;
use crate::translate::{node, service, task};
use crate::types;
use crate::version::ApiVersion;

const FILTERS: [&str; 8] =
    ["_up-to-date", "desired-state", "id", "label", "name", "node", "runtime", "service"];
const DESIRED: [&str; 3] = ["running", "shutdown", "accepted"];

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/tasks", get(list))
        .route("/tasks/{id}", get(inspect))
        .route("/tasks/{id}/logs", get(read_logs))
}

async fn networks(app: &App) -> Result<BTreeMap<String, wire::Network>, ApiError> {
    let networks: Vec<wire::Network> = swarm::list(app).await?;
    Ok(networks.into_iter().map(|network| (network.id.clone(), network)).collect())
}

/// What the filters name, looked up: services and nodes are given by name or identifier.
struct Selection {
    filters: Filters,
    services: Vec<wire::Service>,
    nodes: Vec<wire::Node>,
    own_node: String,
}

impl Selection {
    async fn new(app: &App, filters: Filters) -> Result<Selection, ApiError> {
        filters.one_in_cluster("desired-state", &DESIRED)?;
        filters.one_of("runtime", &["container", "plugin"])?;
        filters.flag("_up-to-date")?;
        let services = if filters.has("service") || filters.has("_up-to-date") {
            swarm::list(app).await?
        } else {
            Vec::new()
        };
        let nodes = if filters.has("node") { swarm::list(app).await? } else { Vec::new() };
        let selection = Selection { filters, services, nodes, own_node: app.cluster.info().node_id };
        selection.check()?;
        Ok(selection)
    }

    /// Services and nodes that are named must be there.
    fn check(&self) -> Result<(), ApiError> {
        use rswarm_proto::model::object::Stored as _;
        let is_called = |id: &str, name: &str, wanted: &str| {
            id == wanted || name == wanted || (!wanted.is_empty() && id.starts_with(wanted))
        };
        for wanted in self.filters.get("service") {
            if !self.services.iter().any(|service| is_called(&service.id, service.name(), wanted)) {
                return Err(service::not_found(wanted));
            }
        }
        for wanted in self.filters.get("node").iter().filter(|wanted| *wanted != "self") {
            let name = |node: &wire::Node| {
                node.description.as_ref().map_or(String::new(), |description| description.hostname.clone())
            };
            if !self.nodes.iter().any(|node| is_called(&node.id, &name(node), wanted)) {
                return Err(node::not_found(wanted));
            }
        }
        Ok(())
    }

    fn matches(&self, found: &wire::Task) -> bool {
        let annotations = found.service_annotations.clone().unwrap_or_default();
        let labels = found
            .spec
            .as_ref()
            .and_then(|spec| spec.container.as_ref())
            .map(|container| container.labels.clone());
        self.filters.prefix("id", &found.id)
            && self.filters.any("name", |wanted| {
                found.container_name().starts_with(wanted) || annotations.name.starts_with(wanted)
            })
            && self.filters.any("service", |wanted| self.is_service(found, wanted))
            && self.filters.any("node", |wanted| self.is_node(found, wanted))
            && self.filters.labels("label", &labels.unwrap_or_default())
            && self.filters.any("desired-state", |wanted| is_desired(found, wanted))
            && self.filters.exact("runtime", "container")
            && self.is_up_to_date(found)
    }

    fn is_service(&self, found: &wire::Task, wanted: &str) -> bool {
        found.service_id == wanted
            || self.services.iter().any(|service| {
                use rswarm_proto::model::object::Stored as _;
                service.id == found.service_id && service.name() == wanted
            })
            || (!wanted.is_empty() && found.service_id.starts_with(wanted))
    }

    fn is_node(&self, found: &wire::Task, wanted: &str) -> bool {
        let wanted = if wanted == "self" { &self.own_node } else { wanted };
        let has_name = |node: &wire::Node| {
            node.id == found.node_id
                && node.description.as_ref().is_some_and(|description| description.hostname == wanted)
        };
        found.node_id == wanted
            || self.nodes.iter().any(has_name)
            || (!wanted.is_empty() && found.node_id.starts_with(wanted))
    }

    /// Its spec is its service's: what a client that waits for an update asks.
    fn is_up_to_date(&self, found: &wire::Task) -> bool {
        let Ok(Some(wanted)) = self.filters.flag("_up-to-date") else { return true };
        let service = self.services.iter().find(|service| service.id == found.service_id);
        service.is_some_and(|service| describes(service, found)) == wanted
    }
}

/// Whether a task is as its service says now. A new version of the service leaves a task as it was when what
/// changed is not part of it (the number of replicas), or only says where new tasks may go.
fn describes(service: &wire::Service, found: &wire::Task) -> bool {
    let without_placement = |spec: wire::TaskSpec| wire::TaskSpec { placement: None, ..spec };
    let has = found.spec.clone().map(without_placement);
    service.spec_version == found.spec_version || has == Some(without_placement(service.task_spec()))
}

/// Docker knows three: what should run, what should not, and what only got as far as a node.
fn is_desired(found: &wire::Task, wanted: &str) -> bool {
    match wanted {
        "running" => found.desired() == wire::TaskState::Running,
        "accepted" => found.desired() == wire::TaskState::Accepted,
        _ => found.desired() >= wire::TaskState::Shutdown,
    }
}

async fn list(State(app): State<App>, query: Query) -> Result<Json<Vec<types::Task>>, ApiError> {
    let filters = query.filters(&FILTERS)?;
    let mut tasks: Vec<wire::Task> = swarm::list(&app).await?;
    // As Docker: places of nodes' own containers on networks are no tasks to users.
    tasks.retain(|found| !found.is_attachment());
    let selection = Selection::new(&app, filters).await?;
    let networks = networks(&app).await?;
    let chosen = tasks.iter().filter(|found| selection.matches(found));
    Ok(Json(chosen.map(|found| task::task(found, &networks)).collect()))
}

async fn inspect(State(app): State<App>, Path(id): Path<String>) -> Result<Json<types::Task>, ApiError> {
    let found = swarm::get_one(&app, &id, task::not_found).await?;
    Ok(Json(task::task(&found, &networks(&app).await?)))
}

async fn read_logs(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Query,
    version: ApiVersion,
) -> Result<Response, ApiError> {
    let found: wire::Task = swarm::get_one(&app, &id, task::not_found).await?;
    let tty = found.spec.and_then(|spec| spec.container).is_some_and(|container| container.tty);
    let selector = wire::LogsRequest { task_ids: vec![found.id], ..wire::LogsRequest::default() };
    logs::cluster(&app, selector, &query, tty, version).await
}
