//! Volumes of this node.

use axum::Json;
use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use rswarm_engine::volume::{Volume, VolumeCreate};

use crate::error::ApiError;
use crate::request::{JsonBody, Query};
use crate::router::App;
use crate::translate::refuse;
use crate::types;
use crate::version::ApiVersion;

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/volumes", get(list))
        .route("/volumes/create", post(create))
        .route("/volumes/prune", post(prune))
        .route("/volumes/{name}", get(inspect).delete(remove).put(update))
}

pub(crate) fn volume(volume: &Volume) -> types::Volume {
    types::Volume {
        created_at: volume.created.to_string(),
        driver: volume.driver.clone(),
        labels: (!volume.labels.is_empty()).then(|| volume.labels.clone()),
        mountpoint: volume.mountpoint.to_string_lossy().into_owned(),
        name: volume.name.clone(),
        options: (!volume.options.is_empty()).then(|| volume.options.clone()),
        scope: "local".to_owned(),
        ..types::Volume::default()
    }
}

/// Whether a container, running or not, mounts it.
fn is_used(app: &App, name: &str) -> bool {
    app.engine.list().iter().any(|container| container.mounts.iter().any(|mount| mount.name == name))
}

async fn list(State(app): State<App>, query: Query) -> Result<Json<types::VolumeList>, ApiError> {
    let filters = query.filters(&["dangling", "driver", "label", "name"])?;
    let dangling = filters.flag("dangling")?;
    let volumes = app.engine.list_volumes();
    let chosen = volumes
        .iter()
        .filter(|found| filters.any("name", |wanted| found.name.contains(wanted)))
        .filter(|found| filters.exact("driver", &found.driver))
        .filter(|found| filters.labels("label", &found.labels))
        .filter(|found| dangling.is_none_or(|wanted| is_used(&app, &found.name) != wanted));
    Ok(Json(types::VolumeList { volumes: chosen.map(|found| volume(found)).collect(), warnings: None }))
}

async fn create(
    State(app): State<App>,
    JsonBody(body): JsonBody<types::VolumeCreateBody>,
) -> Result<(StatusCode, Json<types::Volume>), ApiError> {
    refuse(body.cluster_volume_spec.is_some(), "a cluster volume (ClusterVolumeSpec)")?;
    let request = VolumeCreate {
        name: body.name,
        driver: body.driver,
        options: body.driver_opts.unwrap_or_default(),
        labels: body.labels.unwrap_or_default(),
    };
    let created = app.engine.create_volume(request).await?;
    Ok((StatusCode::CREATED, Json(volume(&created))))
}

async fn inspect(State(app): State<App>, Path(name): Path<String>) -> Result<Json<types::Volume>, ApiError> {
    Ok(Json(volume(&*app.engine.inspect_volume(&name)?)))
}

async fn remove(
    State(app): State<App>,
    Path(name): Path<String>,
    query: Query,
) -> Result<StatusCode, ApiError> {
    app.engine.remove_volume(&name, query.flag("force")).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn update() -> ApiError {
    ApiError::unsupported("updating a cluster volume")
}

async fn prune(
    State(app): State<App>,
    query: Query,
    version: ApiVersion,
) -> Result<Json<types::VolumesPruned>, ApiError> {
    let filters = query.filters(&["all", "label", "label!"])?;
    // Before 1.42, volumes with a name were not spared.
    let all = filters.flag("all")?.unwrap_or(false) || !version.at_least(42);
    let mut pruned = types::VolumesPruned::default();
    let deleted = pruned.volumes_deleted.get_or_insert_default();
    for found in app.engine.list_volumes() {
        let chosen = (all || found.is_anonymous())
            && filters.labels("label", &found.labels)
            && filters.without_labels("label!", &found.labels)
            && !is_used(&app, &found.name);
        // One that is taken into use meanwhile stays.
        if chosen && app.engine.remove_volume(&found.name, false).await.is_ok() {
            deleted.push(found.name.clone());
        }
    }
    Ok(Json(pruned))
}
