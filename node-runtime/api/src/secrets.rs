//! Secrets and configs: there are none yet, and none can be made.

use axum::Json;
use axum::Router;
use axum::extract::{Path, State};
use axum::routing::{get, post};
use rswarm_base::Kind;

use crate::error::ApiError;
use crate::request::Query;
use crate::router::App;
use crate::types;

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/secrets", get(list_secrets))
        .route("/secrets/create", post(create_secret))
        .route("/secrets/{id}", get(missing_secret).delete(missing_secret))
        .route("/secrets/{id}/update", post(missing_secret))
        .route("/configs", get(list_configs))
        .route("/configs/create", post(create_config))
        .route("/configs/{id}", get(missing_config).delete(missing_config))
        .route("/configs/{id}/update", post(missing_config))
}

const FILTERS: [&str; 4] = ["id", "label", "name", "names"];

async fn list_secrets(State(app): State<App>, query: Query) -> Result<Json<Vec<types::Secret>>, ApiError> {
    query.filters(&FILTERS)?;
    app.control().await?;
    Ok(Json(Vec::new()))
}

async fn list_configs(State(app): State<App>, query: Query) -> Result<Json<Vec<types::Config>>, ApiError> {
    query.filters(&FILTERS)?;
    app.control().await?;
    Ok(Json(Vec::new()))
}

async fn create_secret(State(app): State<App>) -> Result<Json<types::Empty>, ApiError> {
    app.control().await?;
    Err(ApiError::unsupported("creating a secret"))
}

async fn create_config(State(app): State<App>) -> Result<Json<types::Empty>, ApiError> {
    app.control().await?;
    Err(ApiError::unsupported("creating a config"))
}

async fn missing_secret(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<types::Secret>, ApiError> {
    app.control().await?;
    Err(ApiError::new(Kind::NotFound, format!("secret {id} not found")))
}

async fn missing_config(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<types::Config>, ApiError> {
    app.control().await?;
    Err(ApiError::new(Kind::NotFound, format!("config {id} not found")))
}
