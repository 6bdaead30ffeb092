//! Services of the cluster.

use std::collections::{BTreeMap, BTreeSet};

use axum::Json;
use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::{get, post};
use rswarm_base::{IdGen, Kind};
use rswarm_engine::names;
use rswarm_proto::wire;
use rswarm_proto::wire::forecast_service_request;
use rswarm_proto::wire::update_service_request::Rollback;

use crate::error::ApiError;
use crate::filters::Filters;
use crate::logs;
use crate::request::{JsonBody, Query};
use crate::router::App;
use crate::swarm;
use crate::translate::{network, node, service};
use crate::types;
use crate::version::ApiVersion;

const FILTERS: [&str; 5] = ["id", "label", "mode", "name", "runtime"];

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/services", get(list))
        .route("/services/create", post(create))
        .route("/services/create/forecast", post(forecast_create))
        .route("/services/{id}/forecast", post(forecast_update))
        .route("/services/{id}", get(inspect).delete(remove))
        .route("/services/{id}/update", post(update))
        .route("/services/{id}/logs", get(read_logs))
}

async fn list(State(app): State<App>, query: Query) -> Result<Json<Vec<types::Service>>, ApiError> {
    let filters = query.filters(&FILTERS)?;
    filters.one_of("runtime", &["container", "plugin"])?;
    let stored: Vec<wire::Service> = swarm::list(&app).await?;
    let (tasks, ready) = if query.flag("status") { with_tasks(&app).await? } else { Default::default() };
    let rows = stored.iter().filter(|found| matches(found, &filters)).map(|found| {
        let mut row = service::service(found, query.flag("insertDefaults"));
        if query.flag("status") {
            row.service_status = Some(service::status(found, &tasks, |node| ready.contains(node)));
        }
        row
    });
    Ok(Json(rows.collect()))
}

/// All tasks, and the nodes whose tasks count as running.
async fn with_tasks(app: &App) -> Result<(Vec<wire::Task>, BTreeSet<String>), ApiError> {
    let tasks = swarm::list(app).await?;
    let nodes: Vec<wire::Node> = swarm::list(app).await?;
    let is_ready = |found: &wire::Node| {
        found.status.as_ref().is_some_and(|status| node::state(status.state()) != "down")
    };
    Ok((tasks, nodes.into_iter().filter(is_ready).map(|found| found.id).collect()))
}

fn matches(found: &wire::Service, filters: &Filters) -> bool {
    let spec = found.spec.clone().unwrap_or_default();
    let annotations = spec.annotations.clone().unwrap_or_default();
    let mode = match spec.mode {
        Some(wire::service_spec::Mode::Global(_)) => "global",
        Some(wire::service_spec::Mode::ReplicatedJob(_)) => "replicated-job",
        Some(wire::service_spec::Mode::GlobalJob(_)) => "global-job",
        Some(wire::service_spec::Mode::Replicated(_)) | None => "replicated",
    };
    filters.prefix("id", &found.id)
        && filters.prefix("name", &annotations.name)
        && filters.labels("label", &annotations.labels)
        && filters.exact("mode", mode)
        && filters.exact("runtime", "container")
}

async fn find(app: &App, reference: &str) -> Result<wire::Service, ApiError> {
    swarm::get_one(app, reference, service::not_found).await
}

async fn inspect(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Query,
) -> Result<Json<types::Service>, ApiError> {
    Ok(Json(service::service(&find(&app, &id).await?, query.flag("insertDefaults"))))
}

/// The spec to store: networks by identifier, credentials with it.
async fn spec(
    app: &App,
    body: &types::ServiceSpec,
    headers: &HeaderMap,
) -> Result<wire::ServiceSpec, ApiError> {
    let mut networks = BTreeMap::new();
    for target in service::network_targets(body) {
        networks.insert(target.to_owned(), network_id(app, target).await?);
    }
    let mut spec = service::spec(body, &networks)?;
    let auth = headers.get("X-Registry-Auth").and_then(|value| value.to_str().ok()).unwrap_or_default();
    if let Some(container) = spec.task.as_mut().and_then(|task| task.container.as_mut()) {
        container.registry_auth = auth.to_owned();
    }
    Ok(spec)
}

async fn network_id(app: &App, reference: &str) -> Result<String, ApiError> {
    if network::of_every_node(reference).is_some() {
        return Ok(reference.to_owned());
    }
    match swarm::get_one::<wire::Network>(app, reference, network::not_found).await {
        Ok(found) => Ok(found.id),
        Err(error) if error.kind == Kind::NotFound && app.engine.inspect_network(reference).is_ok() => {
            Err(ApiError::new(
                Kind::PermissionDenied,
                format!(
                    "The network {reference} cannot be used with services. Only networks scoped to the swarm \
                     can be used, such as those created with the overlay driver."
                ),
            ))
        }
        Err(error) => Err(error),
    }
}

async fn create(
    State(app): State<App>,
    headers: HeaderMap,
    JsonBody(body): JsonBody<types::ServiceSpec>,
) -> Result<(StatusCode, Json<types::ServiceCreated>), ApiError> {
    let warnings = warnings(&body);
    let request = creation(&app, body, &headers).await?;
    let created = app.control().await?.create_service(request).await;
    let id = created.map_err(|status| ApiError::from_status(&status))?.into_inner().id;
    Ok((StatusCode::CREATED, Json(types::ServiceCreated { id, warnings })))
}

async fn creation(
    app: &App,
    mut body: types::ServiceSpec,
    headers: &HeaderMap,
) -> Result<wire::CreateServiceRequest, ApiError> {
    if body.name.is_empty() {
        body.name = names::random(&mut IdGen::from_system());
    }
    // A node that is no manager says so first.
    app.control().await?;
    Ok(wire::CreateServiceRequest { spec: Some(spec(app, &body, headers).await?) })
}

async fn update(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Query,
    headers: HeaderMap,
    JsonBody(body): JsonBody<types::ServiceSpec>,
) -> Result<Json<types::ServiceUpdated>, ApiError> {
    let warnings = warnings(&body);
    let request = change(&app, &id, &query, &body, &headers).await?;
    app.control().await?.update_service(request).await.map_err(|status| ApiError::from_status(&status))?;
    Ok(Json(types::ServiceUpdated { warnings }))
}

/// What Docker takes in silence, though it has no effect.
fn warnings(body: &types::ServiceSpec) -> Option<Vec<String>> {
    let placement = body.task_template.placement.as_ref();
    let preferences = placement.into_iter().flat_map(|placement| &placement.preferences);
    let descriptors =
        preferences.filter_map(|preference| Some(&preference.spread.as_ref()?.spread_descriptor));
    let is_known = |descriptor: &&String| {
        ["node.labels.", "engine.labels."].iter().any(|prefix| descriptor.starts_with(prefix))
    };
    let warning = |descriptor: &String| {
        format!("tasks are not spread over `{descriptor}`: want node.labels.NAME or engine.labels.NAME")
    };
    let warnings: Vec<String> = descriptors.filter(|text| !is_known(text)).map(warning).collect();
    (!warnings.is_empty()).then_some(warnings)
}

async fn change(
    app: &App,
    id: &str,
    query: &Query,
    body: &types::ServiceSpec,
    headers: &HeaderMap,
) -> Result<wire::UpdateServiceRequest, ApiError> {
    let version = swarm::version(query, "service")?;
    let rollback = match query.text("rollback") {
        "" => Rollback::None,
        "previous" => Rollback::Previous,
        other => return Err(ApiError::invalid(format!("unrecognized rollback option {other}"))),
    };
    let registry_auth_from_previous = match query.text("registryAuthFrom") {
        "" | "spec" => false,
        "previous-spec" => true,
        other => return Err(ApiError::invalid(format!("unsupported registryAuthFrom value \"{other}\""))),
    };
    let stored = find(app, id).await?;
    // A rollback takes the spec that is stored; the one sent along is not looked at.
    let spec = if rollback == Rollback::Previous { None } else { Some(spec(app, body, headers).await?) };
    Ok(wire::UpdateServiceRequest {
        id: stored.id,
        version,
        spec,
        rollback: rollback.into(),
        registry_auth_from_previous,
    })
}

/// What `create` would do, with the same body.
async fn forecast_create(
    State(app): State<App>,
    headers: HeaderMap,
    JsonBody(body): JsonBody<types::ServiceSpec>,
) -> Result<Json<types::ServiceForecast>, ApiError> {
    let request = creation(&app, body, &headers).await?;
    foretold(&app, forecast_service_request::Request::Create(request)).await
}

/// What `update` would do, with the same query and body.
async fn forecast_update(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Query,
    headers: HeaderMap,
    JsonBody(body): JsonBody<types::ServiceSpec>,
) -> Result<Json<types::ServiceForecast>, ApiError> {
    let request = change(&app, &id, &query, &body, &headers).await?;
    foretold(&app, forecast_service_request::Request::Update(request)).await
}

async fn foretold(
    app: &App,
    request: forecast_service_request::Request,
) -> Result<Json<types::ServiceForecast>, ApiError> {
    let request = wire::ForecastServiceRequest { request: Some(request) };
    let foretold = app.control().await?.forecast_service(request).await;
    Ok(Json(service::forecast(foretold.map_err(|status| ApiError::from_status(&status))?.into_inner())))
}

async fn remove(State(app): State<App>, Path(id): Path<String>) -> Result<StatusCode, ApiError> {
    let request = wire::RemoveRequest { id: find(&app, &id).await?.id, force: false };
    app.control().await?.remove_service(request).await.map_err(|status| ApiError::from_status(&status))?;
    Ok(StatusCode::OK)
}

async fn read_logs(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Query,
    version: ApiVersion,
) -> Result<Response, ApiError> {
    let found = find(&app, &id).await?;
    let tty = found.task_spec().container.is_some_and(|container| container.tty);
    let selector = wire::LogsRequest { service_ids: vec![found.id], ..wire::LogsRequest::default() };
    logs::cluster(&app, selector, &query, tty, version).await
}
