//! Secrets and configs of the cluster. The data of a secret goes in and never comes out.
//!
//! An extension: `POST /secrets/{id}/versions?version=N` and the same of configs take the body of an update, make a
//! new version of it, and answer with what `GET` shows of that.

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
use crate::translate::content;
use crate::types;

const FILTERS: [&str; 4] = ["id", "label", "name", "names"];

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/secrets", get(list_secrets))
        .route("/secrets/create", post(create_secret))
        .route("/secrets/{id}", get(inspect_secret).delete(remove_secret))
        .route("/secrets/{id}/update", post(update_secret))
        .route("/secrets/{id}/versions", post(renew_secret))
        .route("/configs", get(list_configs))
        .route("/configs/create", post(create_config))
        .route("/configs/{id}", get(inspect_config).delete(remove_config))
        .route("/configs/{id}/update", post(update_config))
        .route("/configs/{id}/versions", post(renew_config))
}

/// As swarmkit: any of the names, beginnings of names and of ids; and all of the labels.
fn matches(id: &str, spec: Option<&wire::ContentSpec>, filters: &Filters) -> bool {
    let annotations = spec.and_then(|spec| spec.annotations.clone()).unwrap_or_default();
    let asked = ["names", "name", "id"].iter().any(|key| filters.has(key));
    let called = (filters.has("names") && filters.exact("names", &annotations.name))
        || (filters.has("name") && filters.prefix("name", &annotations.name))
        || (filters.has("id") && filters.prefix("id", id));
    (!asked || called) && filters.labels("label", &annotations.labels)
}

/// Names of versions, such as `key@2`, among those that are asked for.
fn versions_asked(filters: &Filters) -> impl Iterator<Item = &str> {
    let names = filters.get("names").iter().chain(filters.get("name"));
    names.map(String::as_str).filter(|name| name.contains('@'))
}

// ---- secrets --------------------------------------------------------------------------------------------

async fn list_secrets(State(app): State<App>, query: Query) -> Result<Json<Vec<types::Secret>>, ApiError> {
    let filters = query.filters(&FILTERS)?;
    let secrets: Vec<wire::Secret> = swarm::list(&app).await?;
    let chosen = secrets.iter().filter(|found| matches(&found.id, found.spec.as_ref(), &filters));
    let mut shown: Vec<types::Secret> = chosen.map(content::secret).collect();
    for name in versions_asked(&filters) {
        // As it was asked for: a client looks for the name in what it gets.
        if let Ok(found) = find_secret(&app, name).await {
            let secret = content::secret(&found);
            shown.push(types::Secret {
                spec: types::SecretSpec { name: name.to_owned(), ..secret.spec },
                ..secret
            });
        }
    }
    Ok(Json(shown))
}

async fn find_secret(app: &App, reference: &str) -> Result<wire::Secret, ApiError> {
    swarm::get_one(app, reference, content::secret_not_found).await
}

async fn inspect_secret(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<types::Secret>, ApiError> {
    Ok(Json(content::secret(&find_secret(&app, &id).await?)))
}

async fn create_secret(
    State(app): State<App>,
    JsonBody(body): JsonBody<types::SecretSpec>,
) -> Result<(StatusCode, Json<types::IdReply>), ApiError> {
    let mut control = app.control().await?;
    let request = wire::CreateSecretRequest { spec: Some(content::secret_spec(&body)?) };
    let created = control.create_secret(request).await.map_err(|status| ApiError::from_status(&status))?;
    Ok((StatusCode::CREATED, Json(types::IdReply { id: created.into_inner().id })))
}

async fn update_secret(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Query,
    JsonBody(body): JsonBody<types::SecretSpec>,
) -> Result<StatusCode, ApiError> {
    change_secret(&app, &id, &query, &body, false).await?;
    Ok(StatusCode::OK)
}

async fn renew_secret(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Query,
    JsonBody(body): JsonBody<types::SecretSpec>,
) -> Result<Json<types::Secret>, ApiError> {
    Ok(Json(content::secret(&change_secret(&app, &id, &query, &body, true).await?)))
}

async fn change_secret(
    app: &App,
    id: &str,
    query: &Query,
    body: &types::SecretSpec,
    new_version: bool,
) -> Result<wire::Secret, ApiError> {
    let version = content::version(query, "secret")?;
    let id = find_secret(app, id).await?.id;
    let spec = Some(content::secret_spec(body)?);
    let request = wire::UpdateSecretRequest { id, version, spec, new_version };
    let changed = app.control().await?.update_secret(request).await;
    Ok(changed.map_err(|status| ApiError::from_status(&status))?.into_inner())
}

async fn remove_secret(State(app): State<App>, Path(id): Path<String>) -> Result<StatusCode, ApiError> {
    let request = wire::RemoveRequest { id: find_secret(&app, &id).await?.id, force: false };
    app.control().await?.remove_secret(request).await.map_err(|status| ApiError::from_status(&status))?;
    Ok(StatusCode::NO_CONTENT)
}

// ---- configs --------------------------------------------------------------------------------------------

async fn list_configs(State(app): State<App>, query: Query) -> Result<Json<Vec<types::Config>>, ApiError> {
    let filters = query.filters(&FILTERS)?;
    let configs: Vec<wire::Config> = swarm::list(&app).await?;
    let chosen = configs.iter().filter(|found| matches(&found.id, found.spec.as_ref(), &filters));
    let mut shown: Vec<types::Config> = chosen.map(content::config).collect();
    for name in versions_asked(&filters) {
        // As it was asked for: a client looks for the name in what it gets.
        if let Ok(found) = find_config(&app, name).await {
            let config = content::config(&found);
            shown.push(types::Config {
                spec: types::ConfigSpec { name: name.to_owned(), ..config.spec },
                ..config
            });
        }
    }
    Ok(Json(shown))
}

async fn find_config(app: &App, reference: &str) -> Result<wire::Config, ApiError> {
    swarm::get_one(app, reference, content::config_not_found).await
}

async fn inspect_config(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<types::Config>, ApiError> {
    Ok(Json(content::config(&find_config(&app, &id).await?)))
}

async fn create_config(
    State(app): State<App>,
    JsonBody(body): JsonBody<types::ConfigSpec>,
) -> Result<(StatusCode, Json<types::IdReply>), ApiError> {
    let mut control = app.control().await?;
    let request = wire::CreateConfigRequest { spec: Some(content::config_spec(&body)?) };
    let created = control.create_config(request).await.map_err(|status| ApiError::from_status(&status))?;
    Ok((StatusCode::CREATED, Json(types::IdReply { id: created.into_inner().id })))
}

async fn update_config(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Query,
    JsonBody(body): JsonBody<types::ConfigSpec>,
) -> Result<StatusCode, ApiError> {
    change_config(&app, &id, &query, &body, false).await?;
    Ok(StatusCode::OK)
}

async fn renew_config(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Query,
    JsonBody(body): JsonBody<types::ConfigSpec>,
) -> Result<Json<types::Config>, ApiError> {
    Ok(Json(content::config(&change_config(&app, &id, &query, &body, true).await?)))
}

async fn change_config(
    app: &App,
    id: &str,
    query: &Query,
    body: &types::ConfigSpec,
    new_version: bool,
) -> Result<wire::Config, ApiError> {
    let version = content::version(query, "config")?;
    let id = find_config(app, id).await?.id;
    let spec = Some(content::config_spec(body)?);
    let request = wire::UpdateConfigRequest { id, version, spec, new_version };
    let changed = app.control().await?.update_config(request).await;
    Ok(changed.map_err(|status| ApiError::from_status(&status))?.into_inner())
}

async fn remove_config(State(app): State<App>, Path(id): Path<String>) -> Result<StatusCode, ApiError> {
    let request = wire::RemoveRequest { id: find_config(&app, &id).await?.id, force: false };
    app.control().await?.remove_config(request).await.map_err(|status| ApiError::from_status(&status))?;
    Ok(StatusCode::NO_CONTENT)
}
