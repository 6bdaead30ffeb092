//! Containers: life, views and streams.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{delete, get, post};
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream;
use rswarm_base::{Kind, Timestamp};
use rswarm_engine::container::{Container, Status};
use rswarm_engine::error::CreateError;
use rswarm_engine::{ContainerUpdate, RemoveOptions, WaitCondition};

use crate::attach::DetachKeys;
use crate::error::ApiError;
use crate::filters::Filters;
use crate::request::{JsonBody, Query};
use crate::router::App;
use crate::stream::{json_line, streaming};
use crate::translate::{create, inspect, ports, refuse, summary};
use crate::types;
use crate::version::ApiVersion;
use crate::{attachments, logs, stats};

const FILTERS: [&str; 15] = [
    "ancestor",
    "before",
    "exited",
    "expose",
    "health",
    "id",
    "is-task",
    "isolation",
    "label",
    "name",
    "network",
    "publish",
    "since",
    "status",
    "volume",
];
const STATUSES: [&str; 7] = ["created", "running", "paused", "restarting", "removing", "exited", "dead"];
const HEALTHS: [&str; 4] = ["starting", "healthy", "unhealthy", "none"];

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/containers/json", get(list))
        .route("/containers/create", post(create))
        .route("/containers/prune", post(prune))
        .route("/containers/{id}", delete(remove))
        .route("/containers/{id}/{alias}", delete(remove_link))
        .route("/containers/{id}/json", get(inspect))
        .route("/containers/{id}/start", post(start))
        .route("/containers/{id}/stop", post(stop))
        .route("/containers/{id}/restart", post(restart))
        .route("/containers/{id}/kill", post(kill))
        .route("/containers/{id}/wait", post(wait))
        .route("/containers/{id}/logs", get(read_logs))
        .route("/containers/{id}/attach", post(attachments::attach))
        .route("/containers/{id}/resize", post(resize))
        .route("/containers/{id}/rename", post(rename))
        .route("/containers/{id}/pause", post(pause))
        .route("/containers/{id}/unpause", post(unpause))
        .route("/containers/{id}/update", post(update))
        .route("/containers/{id}/attach/ws", get(attachments::attach_websocket))
        .route("/containers/{id}/top", get(top))
        .route("/containers/{id}/stats", get(stats::container))
        .route(
            "/containers/{id}/checkpoints",
            get(|| unsupported("checkpoints")).post(|| unsupported("checkpoints")),
        )
}

async fn unsupported(what: &'static str) -> ApiError {
    ApiError::unsupported(what)
}

async fn create(
    State(app): State<App>,
    query: Query,
    version: ApiVersion,
    JsonBody(body): JsonBody<Option<serde_json::Value>>,
) -> Result<(StatusCode, Json<types::ContainerCreated>), ApiError> {
    let body = create_body(body)?;
    let wanted = create::container(&body, version)?;
    check_platform(&app, query.text("platform"), &body.config.image)?;
    let name = query.has("name").then(|| query.text("name")).filter(|name| !name.is_empty());
    let created = app.engine.create(name, wanted.config).await.map_err(creation_error)?;
    let warnings = wanted.warnings.into_iter().chain(created.warnings).collect();
    Ok((StatusCode::CREATED, Json(types::ContainerCreated { id: created.id, warnings })))
}

/// The body of a create. What is beside the container's own configuration does not make one.
fn create_body(body: Option<serde_json::Value>) -> Result<types::CreateBody, ApiError> {
    let body = body.ok_or_else(|| ApiError::invalid("invalid JSON: got EOF while reading request body"))?;
    let is_config = |key: &String| {
        !["HostConfig", "NetworkingConfig"].iter().any(|other| other.eq_ignore_ascii_case(key))
    };
    if body.as_object().is_some_and(|fields| !fields.keys().any(is_config)) {
        return Err(ApiError::invalid("config cannot be empty in order to create a container"));
    }
    let body: types::CreateBody =
        types::from_value(body).map_err(|error| ApiError::invalid(format!("invalid JSON: {error}")))?;
    let config = &body.config;
    if config.image.is_empty() && config.cmd.words().is_empty() && config.entrypoint.words().is_empty() {
        return Err(ApiError::invalid("no command specified"));
    }
    Ok(body)
}

/// Clients take 404 for "pull the image, and once more": a network or another container that is not there is a
/// mistake of the request, as it is to dockerd.
fn creation_error(error: CreateError) -> ApiError {
    let is_other = matches!(error, CreateError::Network(_) | CreateError::Lookup(_));
    let error = ApiError::from(error);
    if is_other && error.kind == Kind::NotFound {
        return ApiError { kind: Kind::InvalidArgument, ..error };
    }
    error
}

/// A platform that is asked for must be the image's: clients pull on this 404.
fn check_platform(app: &App, wanted: &str, name: &str) -> Result<(), ApiError> {
    if wanted.is_empty() {
        return Ok(());
    }
    let wanted: rswarm_image::Platform = wanted.parse()?;
    let image = app.engine.images().get(name)?;
    if wanted.rank(&image.platform).is_some() {
        return Ok(());
    }
    Err(ApiError::new(
        Kind::NotFound,
        format!(
            "image with reference {name} was found but does not provide the specified platform ({}/{})",
            wanted.os, wanted.architecture
        ),
    ))
}

// ---- views ----------------------------------------------------------------------------------------------

async fn inspect(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Query,
    version: ApiVersion,
) -> Result<Json<types::ContainerInspect>, ApiError> {
    let container = app.engine.inspect(&id)?;
    let mut shown = inspect::container(&container, version);
    shown.host_config.links = Some(app.engine.links(&container)).filter(|links| !links.is_empty());
    let execs = app.engine.exec_ids(&container.id);
    shown.exec_ids = (!execs.is_empty()).then_some(execs);
    if query.flag("size") {
        let (written, whole) = sizes(&app, &container).await?;
        shown.size_rw = Some(written);
        shown.size_root_fs = Some(whole);
    }
    Ok(Json(shown))
}

/// What the container has written, and that with its image.
pub(crate) async fn sizes(app: &App, container: &Container) -> Result<(i64, i64), ApiError> {
    let written = app.engine.images().snapshot_size(&container.id).await?;
    let image = app.engine.images().get(&container.image_id).map(|image| image.size).unwrap_or_default();
    let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    Ok((bytes(written), bytes(written.saturating_add(image))))
}

async fn top(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Query,
) -> Result<Json<types::TopBody>, ApiError> {
    let top = app.engine.top(&id, query.text("ps_args")).await?;
    Ok(Json(types::TopBody { titles: top.titles, processes: top.processes }))
}

async fn list(
    State(app): State<App>,
    query: Query,
    version: ApiVersion,
) -> Result<Json<Vec<types::ContainerSummary>>, ApiError> {
    let filters = query.filters(&FILTERS)?;
    let selection = Selection::new(&app, &filters)?;
    // Docker takes a limit of 0, or less, for none.
    let limit =
        query.number::<i64>("limit")?.and_then(|limit| usize::try_from(limit).ok()).filter(|n| *n > 0);
    let all = query.flag("all") || limit.is_some() || filters.has("status") || filters.has("exited");
    let now = Timestamp::now();
    let containers = app.engine.list();
    let chosen = containers
        .iter()
        .filter(|container| all || container.state.status.is_running())
        .filter(|container| selection.matches(container))
        .take(limit.unwrap_or(usize::MAX));
    let links = app.engine.link_names();
    let mut rows = Vec::new();
    for container in chosen {
        let mut row = summary::container(container, now, version);
        row.names.extend(links.get(&container.id).into_iter().flatten().cloned());
        row.names.sort();
        if query.flag("size") {
            (row.size_rw, row.size_root_fs) = sizes(&app, container).await?;
        }
        rows.push(row);
    }
    Ok(Json(rows))
}

/// Filters of a list, with what they refer to looked up.
struct Selection<'a> {
    filters: &'a Filters,
    before: Option<Arc<Container>>,
    since: Option<Arc<Container>>,
    images: Vec<String>,
    exited: Vec<i32>,
    is_task: Option<bool>,
}

impl Selection<'_> {
    fn new<'a>(app: &App, filters: &'a Filters) -> Result<Selection<'a>, ApiError> {
        filters.one_of("status", &STATUSES)?;
        filters.one_of("health", &HEALTHS)?;
        filters.one_of("isolation", &["default"])?;
        let container = |key: &str| filters.get(key).last().map(|id| app.engine.inspect(id)).transpose();
        let number = |text: &String| {
            text.parse().map_err(|_| ApiError::invalid(format!("invalid filter 'exited={text}'")))
        };
        Ok(Selection {
            filters,
            before: container("before")?,
            since: container("since")?,
            images: descendants(app, filters.get("ancestor")),
            exited: filters.get("exited").iter().map(number).collect::<Result<_, _>>()?,
            is_task: filters.flag("is-task")?,
        })
    }

    fn matches(&self, container: &Container) -> bool {
        let (filters, state) = (self.filters, &container.state);
        let health = state.health.as_ref().map_or("none", |health| health.status.as_str());
        let networks = |wanted: &str| {
            container
                .endpoints
                .iter()
                .any(|at| at.network_name == wanted || at.network_id.starts_with(wanted))
        };
        let volumes = |wanted: &str| {
            container.mounts.iter().any(|mount| mount.name == wanted || mount.destination == wanted)
        };
        filters.prefix("id", &container.id)
            // A name is matched with and without its slash.
            && filters.pattern("name", &[&container.name, &format!("/{}", container.name)])
            && filters.labels("label", &container.config.spec.labels)
            && filters.exact("status", state.status.as_str())
            && filters.exact("health", health)
            && filters.any("network", networks)
            && filters.any("volume", volumes)
            && self.matches_lookups(container)
            && self.matches_ports(container)
    }

    fn matches_lookups(&self, container: &Container) -> bool {
        let older = |other: &Option<Arc<Container>>| {
            other.as_ref().is_none_or(|other| container.created < other.created)
        };
        let newer = |other: &Option<Arc<Container>>| {
            other.as_ref().is_none_or(|other| container.created > other.created)
        };
        let ended = container.state.status == Status::Exited && !container.state.finished_at.is_zero();
        older(&self.before)
            && newer(&self.since)
            && (!self.filters.has("ancestor") || self.images.contains(&container.image_id))
            && (self.exited.is_empty() || (ended && self.exited.contains(&container.state.exit_code)))
            && self.is_task.is_none_or(|wanted| container.config.task.is_some() == wanted)
    }

    fn matches_ports(&self, container: &Container) -> bool {
        let rows = ports::rows_out(container);
        let has = |wanted: &str, public: bool| {
            let (range, kind) = wanted.split_once('/').unwrap_or((wanted, "tcp"));
            let (from, to) = range.split_once('-').unwrap_or((range, range));
            let (Ok(from), Ok(to)) = (from.parse::<u16>(), to.parse::<u16>()) else { return false };
            rows.iter().any(|row| {
                let port = if public { row.public_port } else { row.private_port };
                row.kind == kind && port != 0 && (from..=to).contains(&port)
            })
        };
        self.filters.any("expose", |wanted| has(wanted, false))
            && self.filters.any("publish", |wanted| has(wanted, true))
    }
}

/// Identifiers of the images named, and of all that have their layers.
fn descendants(app: &App, names: &[String]) -> Vec<String> {
    let images = app.engine.images();
    let ancestors: Vec<_> = names.iter().filter_map(|name| images.get(name).ok()).collect();
    if ancestors.is_empty() {
        return Vec::new();
    }
    let is_child = |image: &rswarm_image::Image| {
        ancestors.iter().any(|ancestor| {
            image.id == ancestor.id
                || (!ancestor.layers.is_empty() && image.layers.starts_with(&ancestor.layers))
        })
    };
    images.list().iter().filter(|image| is_child(image)).map(|image| image.id.to_string()).collect()
}

// ---- life -----------------------------------------------------------------------------------------------

async fn start(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Query,
    body: Bytes,
) -> Result<StatusCode, ApiError> {
    // `{}` and the like are what old clients send.
    const EMPTY_MAX: usize = 7;
    if body.len() > EMPTY_MAX {
        return Err(ApiError::invalid(
            "starting container with non-empty request body was deprecated since API v1.22 and removed in v1.24",
        ));
    }
    if !query.text("checkpoint").is_empty() {
        return Err(ApiError::unsupported("starting from a checkpoint"));
    }
    DetachKeys::parse(query.text("detachKeys"))?;
    app.engine.start(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `t` in seconds: negative waits without end, absent is the container's own.
fn stop_options(query: &Query) -> Result<(Option<Duration>, Option<&str>), ApiError> {
    let timeout = query.number::<i64>("t")?;
    let timeout = timeout.map(|seconds| u64::try_from(seconds).map_or(Duration::MAX, Duration::from_secs));
    let signal = Some(query.text("signal")).filter(|signal| !signal.is_empty());
    Ok((timeout, signal))
}

async fn stop(State(app): State<App>, Path(id): Path<String>, query: Query) -> Result<StatusCode, ApiError> {
    let (timeout, signal) = stop_options(&query)?;
    app.engine.stop(&id, timeout, signal).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn restart(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Query,
) -> Result<StatusCode, ApiError> {
    let (timeout, signal) = stop_options(&query)?;
    app.engine.inspect(&id)?;
    app.engine.restart(&id, timeout, signal).await.map_err(|error| {
        let error = ApiError::from(error);
        ApiError { message: format!("Cannot restart container {id}: {}", error.message), ..error }
    })?;
    Ok(StatusCode::NO_CONTENT)
}

async fn kill(State(app): State<App>, Path(id): Path<String>, query: Query) -> Result<StatusCode, ApiError> {
    app.engine.kill(&id, query.text("signal")).await.map_err(|error| {
        let error = ApiError::from(error);
        ApiError { message: format!("cannot kill container: {id}: {}", error.message), ..error }
    })?;
    Ok(StatusCode::NO_CONTENT)
}

async fn pause(State(app): State<App>, Path(id): Path<String>) -> Result<StatusCode, ApiError> {
    app.engine.pause(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn unpause(State(app): State<App>, Path(id): Path<String>) -> Result<StatusCode, ApiError> {
    app.engine.unpause(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn rename(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Query,
) -> Result<StatusCode, ApiError> {
    let name = query.text("name");
    if name.is_empty() {
        return Err(ApiError::invalid("Neither old nor new names may be empty"));
    }
    app.engine.rename(&id, name).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn update(
    State(app): State<App>,
    Path(id): Path<String>,
    version: ApiVersion,
    JsonBody(body): JsonBody<types::ContainerUpdateBody>,
) -> Result<Json<types::ContainerUpdated>, ApiError> {
    let mut warnings = Vec::new();
    refuse(!body.resources.cgroup_parent.is_empty(), "changing the cgroup parent (CgroupParent)")?;
    let mut resources = create::resources(&body.resources, version, &mut warnings)?;
    resources.pids = pids_update(body.resources.pids_limit, version);
    let restart = body.restart_policy.as_ref().filter(|policy| !policy.name.is_empty());
    let restart = restart.map(create::restart_policy).transpose()?;
    warnings.extend(app.engine.update(&id, ContainerUpdate { resources, restart }).await?);
    Ok(Json(types::ContainerUpdated { warnings: (!warnings.is_empty()).then_some(warnings) }))
}

/// The limit to set: 0 leaves the one there is, a negative one ends it.
// moby: postContainerUpdate; versions before 1.40 have no limit of processes to update
fn pids_update(limit: Option<i64>, version: ApiVersion) -> i64 {
    match limit {
        Some(limit) if version.at_least(40) => {
            if limit > 0 {
                limit
            } else {
                -1
            }
        }
        _ => 0,
    }
}

async fn remove(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Query,
) -> Result<StatusCode, ApiError> {
    if query.flag("link") {
        app.engine.remove_link(&id).await?;
        return Ok(StatusCode::NO_CONTENT);
    }
    let options = RemoveOptions { force: query.flag("force"), volumes: query.flag("v") };
    app.engine.remove(&id, options).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `rm --link /parent/alias`: clients do not quote the slash in it.
async fn remove_link(
    State(app): State<App>,
    Path((parent, alias)): Path<(String, String)>,
    query: Query,
) -> Result<StatusCode, ApiError> {
    let name = format!("{parent}/{alias}");
    if !query.flag("link") {
        return Err(ApiError::new(Kind::NotFound, format!("No such container: {name}")));
    }
    app.engine.remove_link(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn prune(State(app): State<App>, query: Query) -> Result<Json<types::ContainersPruned>, ApiError> {
    let filters = query.filters(&["until", "label", "label!"])?;
    let until = filters.until(Timestamp::now())?;
    let mut pruned = types::ContainersPruned::default();
    let deleted = pruned.containers_deleted.get_or_insert_default();
    for container in app.engine.list() {
        let labels = &container.config.spec.labels;
        let chosen = !container.state.status.is_running()
            && until.is_none_or(|until| container.created <= until)
            && filters.labels("label", labels)
            && filters.without_labels("label!", labels);
        if !chosen {
            continue;
        }
        let size = app.engine.images().snapshot_size(&container.id).await.unwrap_or_default();
        // One that was started or removed meanwhile is no failure of the prune.
        if app.engine.remove(&container.id, RemoveOptions::default()).await.is_ok() {
            deleted.push(container.id.clone());
            pruned.space_reclaimed += size;
        }
    }
    Ok(Json(pruned))
}

// ---- streams --------------------------------------------------------------------------------------------

/// The waiter is registered and the head sent before the wait: clients start the container only then.
async fn wait(State(app): State<App>, Path(id): Path<String>, query: Query) -> Result<Response, ApiError> {
    let condition = match query.text("condition") {
        "" | "not-running" => WaitCondition::NotRunning,
        "next-exit" => WaitCondition::NextExit,
        "removed" => WaitCondition::Removed,
        other => return Err(ApiError::invalid(format!("invalid condition: \"{other}\""))),
    };
    let waited = app.engine.wait(&id, condition).await?;
    let result = async move {
        let waited = waited.await;
        json_line(&types::WaitBody {
            status_code: waited.exit_code.into(),
            error: waited.error.map(|message| types::WaitError { message }),
        })
    };
    let chunks = stream::iter([Bytes::new()]).chain(stream::once(result));
    Ok(streaming("application/json", app.scope.token(), chunks))
}

async fn read_logs(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Query,
    version: ApiVersion,
) -> Result<Response, ApiError> {
    logs::container(&app, &id, &query, version).await
}

async fn resize(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Query,
) -> Result<StatusCode, ApiError> {
    let (width, height) = terminal_size(&query)?;
    app.engine.resize(&id, width, height).await?;
    Ok(StatusCode::OK)
}

/// `w` and `h`, both needed.
pub(crate) fn terminal_size(query: &Query) -> Result<(u16, u16), ApiError> {
    let side = |name: &str| {
        query.number(name)?.ok_or_else(|| ApiError::invalid(format!("invalid resize: '{name}' is missing")))
    };
    Ok((side("w")?, side("h")?))
}
