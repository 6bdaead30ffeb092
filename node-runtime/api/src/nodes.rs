//! Nodes of the cluster.

use axum::Json;
use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use rswarm_proto::wire;

use crate::error::ApiError;
use crate::filters::Filters;
use crate::request::{JsonBody, Query};
use crate::router::App;
use crate::swarm;
use crate::translate::node;
use crate::types;

const FILTERS: [&str; 6] = ["id", "label", "membership", "name", "node.label", "role"];

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/nodes", get(list))
        .route("/nodes/{id}", get(inspect).delete(remove))
        .route("/nodes/{id}/update", post(update))
}

async fn list(State(app): State<App>, query: Query) -> Result<Json<Vec<types::Node>>, ApiError> {
    let filters = query.filters(&FILTERS)?;
    filters.one_in_cluster("role", &["worker", "manager"])?;
    filters.one_in_cluster("membership", &["accepted", "pending"])?;
    let nodes: Vec<wire::Node> = swarm::list(&app).await?;
    let shown = nodes.iter().map(node::node);
    Ok(Json(shown.filter(|found| matches(found, &filters)).collect()))
}

fn matches(found: &types::Node, filters: &Filters) -> bool {
    let own_labels = found.spec.labels.clone().unwrap_or_default();
    filters.prefix("id", &found.id)
        && filters.any("name", |wanted| {
            found.description.hostname.starts_with(wanted) || found.spec.name.starts_with(wanted)
        })
        && filters.exact("role", &found.spec.role)
        // A node that is in the store was accepted.
        && filters.exact("membership", "accepted")
        && filters.labels("label", &found.description.engine.labels)
        && filters.labels("node.label", &own_labels)
}

/// A node by identifier, hostname or prefix; `self` is this one.
async fn find(app: &App, reference: &str) -> Result<wire::Node, ApiError> {
    let own = app.cluster.info().node_id;
    if reference == "self" && !own.is_empty() {
        return swarm::get_one(app, &own, node::not_found).await;
    }
    match swarm::get_one(app, reference, node::not_found).await {
        Err(error) if error.kind == rswarm_base::Kind::NotFound => by_hostname(app, reference).await,
        found => found,
    }
}

/// A hostname is not a node's name in the store; as with Docker, it must be the only one.
async fn by_hostname(app: &App, reference: &str) -> Result<wire::Node, ApiError> {
    let nodes: Vec<wire::Node> = swarm::list(app).await?;
    let has_name = |node: &wire::Node| {
        node.description.as_ref().is_some_and(|description| description.hostname == reference)
    };
    let mut found = nodes.into_iter().filter(has_name);
    match (found.next(), found.next()) {
        (Some(node), None) => Ok(node),
        (None, _) => Err(node::not_found(reference)),
        (Some(_), Some(_)) => Err(ApiError::invalid(format!(
            "node {reference} is ambiguous ({} matches found)",
            found.count() + 2
        ))),
    }
}

async fn inspect(State(app): State<App>, Path(id): Path<String>) -> Result<Json<types::Node>, ApiError> {
    let found = find(&app, &id).await?;
    Ok(Json(node::node(&found)))
}

async fn update(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Query,
    JsonBody(body): JsonBody<types::NodeSpec>,
) -> Result<StatusCode, ApiError> {
    let version = swarm::version(&query, "node")?;
    let spec = node::spec(&body)?;
    let id = find(&app, &id).await?.id;
    let request = wire::UpdateNodeRequest { id, version, spec: Some(spec) };
    app.control().await?.update_node(request).await.map_err(|status| ApiError::from_status(&status))?;
    Ok(StatusCode::OK)
}

async fn remove(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Query,
) -> Result<StatusCode, ApiError> {
    let request = wire::RemoveRequest { id: find(&app, &id).await?.id, force: query.flag("force") };
    app.control().await?.remove_node(request).await.map_err(|status| ApiError::from_status(&status))?;
    Ok(StatusCode::OK)
}
