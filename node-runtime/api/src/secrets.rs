//! Secrets and configs of the cluster. The data of a secret goes in and never comes out.
//!
//! An extension: `POST /secrets/{id}/versions?version=N` and the same of configs take the body of an update, make a
//! new version of it, and answer with what `GET` shows of that.

use std::future::Future;

use axum::Json;
use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use rswarm_base::Kind;
use rswarm_proto::model::object::Stored;
use rswarm_proto::wire::{self, Object, UpdateConfigRequest, UpdateSecretRequest};
use tonic::{Response, Status};

use crate::error::ApiError;
use crate::filters::Filters;
use crate::request::{JsonBody, Query};
use crate::router::{App, Control};
use crate::swarm;
use crate::translate::content;
use crate::types;

const FILTERS: [&str; 4] = ["id", "label", "name", "names"];

pub(crate) fn routes() -> Router<App> {
    routes_of::<wire::Secret>("/secrets").merge(routes_of::<wire::Config>("/configs"))
}

fn routes_of<C: Content>(path: &str) -> Router<App> {
    Router::new()
        .route(path, get(list::<C>))
        .route(&format!("{path}/create"), post(create::<C>))
        .route(&format!("{path}/{{id}}"), get(inspect::<C>).delete(remove::<C>))
        .route(&format!("{path}/{{id}}/update"), post(update::<C>))
        .route(&format!("{path}/{{id}}/versions"), post(renew::<C>))
}

/// A secret or a config: what the two differ in.
trait Content: Stored + TryFrom<Object> + Send + 'static {
    const NOUN: &str;

    fn read(spec: &types::ContentSpec) -> Result<wire::ContentSpec, ApiError>;

    fn show(&self) -> types::Content;

    fn stored(&self) -> (&str, Option<&wire::ContentSpec>);

    fn create(
        control: Control,
        spec: wire::ContentSpec,
    ) -> impl Future<Output = Result<Response<Self>, Status>> + Send;

    fn change(
        control: Control,
        id: String,
        version: u64,
        change: Change,
    ) -> impl Future<Output = Result<Response<Self>, Status>> + Send;

    fn remove(
        control: Control,
        request: wire::RemoveRequest,
    ) -> impl Future<Output = Result<Response<wire::RemoveResponse>, Status>> + Send;
}

/// What becomes of it.
struct Change {
    spec: wire::ContentSpec,
    /// Not of the version that there is, but of one more.
    new_version: bool,
}

impl Content for wire::Secret {
    const NOUN: &str = "secret";

    fn read(spec: &types::ContentSpec) -> Result<wire::ContentSpec, ApiError> {
        content::secret_spec(spec)
    }

    fn show(&self) -> types::Content {
        content::secret(self)
    }

    fn stored(&self) -> (&str, Option<&wire::ContentSpec>) {
        (&self.id, self.spec.as_ref())
    }

    async fn create(mut control: Control, spec: wire::ContentSpec) -> Result<Response<Self>, Status> {
        control.create_secret(wire::CreateSecretRequest { spec: Some(spec) }).await
    }

    async fn change(
        mut control: Control,
        id: String,
        version: u64,
        Change { spec, new_version }: Change,
    ) -> Result<Response<Self>, Status> {
        control.update_secret(UpdateSecretRequest { id, version, spec: Some(spec), new_version }).await
    }

    async fn remove(
        mut control: Control,
        request: wire::RemoveRequest,
    ) -> Result<Response<wire::RemoveResponse>, Status> {
        control.remove_secret(request).await
    }
}

impl Content for wire::Config {
    const NOUN: &str = "config";

    fn read(spec: &types::ContentSpec) -> Result<wire::ContentSpec, ApiError> {
        content::config_spec(spec)
    }

    fn show(&self) -> types::Content {
        content::config(self)
    }

    fn stored(&self) -> (&str, Option<&wire::ContentSpec>) {
        (&self.id, self.spec.as_ref())
    }

    async fn create(mut control: Control, spec: wire::ContentSpec) -> Result<Response<Self>, Status> {
        control.create_config(wire::CreateConfigRequest { spec: Some(spec) }).await
    }

    async fn change(
        mut control: Control,
        id: String,
        version: u64,
        Change { spec, new_version }: Change,
    ) -> Result<Response<Self>, Status> {
        control.update_config(UpdateConfigRequest { id, version, spec: Some(spec), new_version }).await
    }

    async fn remove(
        mut control: Control,
        request: wire::RemoveRequest,
    ) -> Result<Response<wire::RemoveResponse>, Status> {
        control.remove_config(request).await
    }
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

async fn list<C: Content>(
    State(app): State<App>,
    query: Query,
) -> Result<Json<Vec<types::Content>>, ApiError> {
    let filters = query.filters(&FILTERS)?;
    let all: Vec<C> = swarm::list(&app).await?;
    let is_chosen = |found: &&C| {
        let (id, spec) = found.stored();
        matches(id, spec, &filters)
    };
    let mut shown: Vec<types::Content> = all.iter().filter(is_chosen).map(C::show).collect();
    for name in versions_asked(&filters) {
        // As it was asked for: a client looks for the name in what it gets.
        if let Ok(found) = find::<C>(&app, name).await {
            let found = found.show();
            let spec = types::ContentSpec { name: name.to_owned(), ..found.spec };
            shown.push(types::Content { spec, ..found });
        }
    }
    Ok(Json(shown))
}

async fn find<C: Content>(app: &App, reference: &str) -> Result<C, ApiError> {
    // As Docker says it.
    let missing =
        |reference: &str| ApiError::new(Kind::NotFound, format!("{} {reference} not found", C::NOUN));
    swarm::get_one(app, reference, missing).await
}

async fn inspect<C: Content>(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<types::Content>, ApiError> {
    Ok(Json(find::<C>(&app, &id).await?.show()))
}

async fn create<C: Content>(
    State(app): State<App>,
    JsonBody(body): JsonBody<types::ContentSpec>,
) -> Result<(StatusCode, Json<types::IdReply>), ApiError> {
    let created = C::create(app.control().await?, C::read(&body)?).await;
    let created = created.map_err(|status| ApiError::from_status(&status))?.into_inner();
    Ok((StatusCode::CREATED, Json(types::IdReply { id: created.stored().0.to_owned() })))
}

async fn update<C: Content>(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Query,
    JsonBody(body): JsonBody<types::ContentSpec>,
) -> Result<StatusCode, ApiError> {
    change::<C>(&app, &id, &query, &body, false).await?;
    Ok(StatusCode::OK)
}

async fn renew<C: Content>(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Query,
    JsonBody(body): JsonBody<types::ContentSpec>,
) -> Result<Json<types::Content>, ApiError> {
    Ok(Json(change::<C>(&app, &id, &query, &body, true).await?.show()))
}

async fn change<C: Content>(
    app: &App,
    id: &str,
    query: &Query,
    body: &types::ContentSpec,
    new_version: bool,
) -> Result<C, ApiError> {
    let version = content::version(query, C::NOUN)?;
    let id = find::<C>(app, id).await?.stored().0.to_owned();
    let change = Change { spec: C::read(body)?, new_version };
    let changed = C::change(app.control().await?, id, version, change).await;
    Ok(changed.map_err(|status| ApiError::from_status(&status))?.into_inner())
}

async fn remove<C: Content>(State(app): State<App>, Path(id): Path<String>) -> Result<StatusCode, ApiError> {
    let id = find::<C>(&app, &id).await?.stored().0.to_owned();
    let removed = C::remove(app.control().await?, wire::RemoveRequest { id, force: false }).await;
    removed.map_err(|status| ApiError::from_status(&status))?;
    Ok(StatusCode::NO_CONTENT)
}
