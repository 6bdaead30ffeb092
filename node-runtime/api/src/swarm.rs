//! Membership: init, join, leave, the cluster's settings; and how all Swarm paths ask the managers.

use axum::Json;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use rswarm_base::Kind;
use rswarm_proto::model::object::Stored;
use rswarm_proto::tls::UnlockKey;
use rswarm_proto::wire::{self, Object};

use crate::call::{self, audited, noted};
use crate::error::ApiError;
use crate::node::{InitRequest, JoinRequest, RestoreRequest};
use crate::request::{JsonBody, Query};
use crate::router::App;
use crate::translate::{cluster as translate, node, usage};
use crate::types;

/// The largest backup that is taken in: some millions of tasks, as of raft snapshots.
const BACKUP_BYTES_MAX: usize = 2 << 30;
/// The header with the unlock key that a sealed backup needs: not in the query, which is logged.
pub const UNLOCK_KEY: &str = "x-rswarm-unlock-key";
/// VXLAN's own port.
const DATA_PATH_PORTS: std::ops::RangeInclusive<u32> = 1024..=49151;

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/swarm", get(inspect))
        .route("/swarm/init", post(init))
        .route("/swarm/join", post(join))
        .route("/swarm/leave", post(leave))
        .route("/swarm/update", post(update))
        .route("/swarm/unlockkey", get(unlock_key))
        .route("/swarm/unlock", post(unlock))
        // Not Docker's: the whole state in one file, and back.
        .route("/swarm/backup", get(backup))
        .route("/swarm/restore", post(restore))
        // What services and nodes use.
        .route("/swarm/usage", get(usage))
}

// ---- asking the managers --------------------------------------------------------------------------------

/// All objects of a kind.
pub(crate) async fn list<T>(app: &App) -> Result<Vec<T>, ApiError>
where
    T: Stored + TryFrom<Object>,
{
    let request = wire::ListRequest { kind: T::KIND.into() };
    let reply = noted(app.control().await?.list(request).await);
    let reply = reply.map_err(|status| ApiError::from_status(&status))?;
    Ok(reply.objects.into_iter().filter_map(|object| T::try_from(object).ok()).collect())
}

/// One object by identifier, name or unique beginning of its identifier; `missing` words its absence.
pub(crate) async fn get_one<T>(
    app: &App,
    reference: &str,
    missing: fn(&str) -> ApiError,
) -> Result<T, ApiError>
where
    T: Stored + TryFrom<Object>,
{
    let request = wire::GetRequest { kind: T::KIND.into(), reference: reference.to_owned() };
    let reply = noted(app.control().await?.get(request).await).map_err(|status| match status.code() {
        tonic::Code::NotFound => missing(reference),
        _ => ApiError::from_status(&status),
    })?;
    T::try_from(reply).map_err(|_| missing(reference))
}

/// The cluster object: there is one.
pub(crate) async fn cluster(app: &App) -> Result<wire::Cluster, ApiError> {
    let clusters: Vec<wire::Cluster> = list(app).await?;
    clusters
        .into_iter()
        .next()
        .ok_or_else(|| ApiError::new(Kind::Unavailable, "the cluster has no settings yet"))
}

/// The version that an update of a `noun` must present, or why it is none, in Go's words.
pub(crate) fn version(query: &Query, noun: &str) -> Result<u64, ApiError> {
    let text = query.text("version");
    text.parse().map_err(|_| {
        ApiError::invalid(format!(
            "invalid {noun} version '{text}': strconv.ParseUint: parsing \"{text}\": invalid syntax"
        ))
    })
}

// ---- endpoints ------------------------------------------------------------------------------------------

async fn init(
    State(app): State<App>,
    JsonBody(body): JsonBody<types::SwarmInitBody>,
) -> Result<Json<String>, ApiError> {
    if body.data_path_port != 0 && !DATA_PATH_PORTS.contains(&body.data_path_port) {
        return Err(ApiError::invalid(format!(
            "invalid data path port {}: want 1024 to 49151",
            body.data_path_port
        )));
    }
    let request = InitRequest {
        listen_addr: body.listen_addr,
        advertise_addr: body.advertise_addr,
        data_path_addr: body.data_path_addr,
        data_path_port: body.data_path_port,
        force_new_cluster: body.force_new_cluster,
        default_addr_pool: pools(body.default_addr_pool.unwrap_or_default())?,
        subnet_size: subnet_size(body.subnet_size)?,
        spec: wire::ClusterSpec {
            // Docker's clients say it beside the spec.
            auto_lock: body.auto_lock_managers || body.spec.encryption_config.auto_lock_managers,
            ..translate::spec(&body.spec, translate::defaults())?
        },
        availability: node::availability(&body.availability)?,
    };
    let detail = if request.force_new_cluster { vec!["force_new_cluster".to_owned()] } else { Vec::new() };
    Ok(Json(audited(&app, "init", detail, app.cluster.init(request)).await?))
}

fn pools(pools: Vec<String>) -> Result<Vec<String>, ApiError> {
    for pool in &pools {
        pool.parse::<rswarm_base::ipam::Subnet>().map_err(|error| ApiError::invalid(error.to_string()))?;
    }
    Ok(pools)
}

fn subnet_size(size: u32) -> Result<u32, ApiError> {
    // More than a /29 leaves no address for a task.
    if size > 29 {
        return Err(ApiError::invalid(format!("subnet size {size} must be less than or equal to 29")));
    }
    Ok(size)
}

async fn join(
    State(app): State<App>,
    JsonBody(body): JsonBody<types::SwarmJoinBody>,
) -> Result<StatusCode, ApiError> {
    let remote_addrs = body.remote_addrs.unwrap_or_default();
    if remote_addrs.iter().all(String::is_empty) {
        return Err(ApiError::invalid("at least 1 RemoteAddr is required to join"));
    }
    if body.join_token.is_empty() {
        return Err(ApiError::invalid("a join token is required to join")
            .hint("ask a manager for it: docker swarm join-token worker"));
    }
    let request = JoinRequest {
        remote_addrs,
        token: body.join_token,
        listen_addr: body.listen_addr,
        advertise_addr: body.advertise_addr,
        data_path_addr: body.data_path_addr,
        availability: node::availability(&body.availability)?,
    };
    let detail = request.remote_addrs.clone();
    audited(&app, "join", detail, app.cluster.join(request)).await?;
    Ok(StatusCode::OK)
}

async fn leave(State(app): State<App>, query: Query) -> Result<StatusCode, ApiError> {
    let force = query.flag("force");
    audited(&app, "leave", call::force(force), app.cluster.leave(force)).await?;
    Ok(StatusCode::OK)
}

async fn inspect(State(app): State<App>) -> Result<Json<types::SwarmInspect>, ApiError> {
    Ok(Json(translate::inspect(&cluster(&app).await?)))
}

async fn update(
    State(app): State<App>,
    query: Query,
    JsonBody(body): JsonBody<types::SwarmSpec>,
) -> Result<StatusCode, ApiError> {
    let current = cluster(&app).await?.spec.unwrap_or_default();
    let request = wire::UpdateClusterRequest {
        version: version(&query, "swarm")?,
        spec: Some(translate::spec(&body, current)?),
        rotate_worker_token: query.flag("rotateWorkerToken"),
        rotate_manager_token: query.flag("rotateManagerToken"),
        rotate_unlock_key: query.flag("rotateManagerUnlockKey"),
        signing_ca_cert: body.ca_config.signing_ca_cert,
        signing_ca_key: body.ca_config.signing_ca_key.into_bytes(),
    };
    app.control().await?.update_cluster(request).await.map_err(|status| ApiError::from_status(&status))?;
    Ok(StatusCode::OK)
}

async fn usage(State(app): State<App>) -> Result<Json<types::ClusterUsage>, ApiError> {
    let told = app.control().await?.usage(wire::UsageRequest {}).await;
    let told = told.map_err(|status| ApiError::from_status(&status))?.into_inner();
    let (tasks, services, nodes) = (list(&app).await?, list(&app).await?, list(&app).await?);
    Ok(Json(usage::usage(&told, &tasks, &services, &nodes)))
}

async fn backup(State(app): State<App>) -> Result<impl IntoResponse, ApiError> {
    let bytes: Bytes = audited(&app, "backup", Vec::new(), app.cluster.backup()).await?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], bytes))
}

async fn restore(
    State(app): State<App>,
    query: Query,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<String>, ApiError> {
    let backup = axum::body::to_bytes(body, BACKUP_BYTES_MAX)
        .await
        .map_err(|error| ApiError::invalid(format!("the backup could not be read: {error}")))?;
    let unlock_key = headers.get(UNLOCK_KEY).and_then(|key| key.to_str().ok()).unwrap_or_default();
    let request = RestoreRequest {
        backup,
        unlock_key: unlock_key.to_owned(),
        listen_addr: query.text("listenAddr").to_owned(),
        advertise_addr: query.text("advertiseAddr").to_owned(),
        data_path_addr: query.text("dataPathAddr").to_owned(),
    };
    Ok(Json(audited(&app, "restore", Vec::new(), app.cluster.restore(request)).await?))
}

async fn unlock_key(State(app): State<App>) -> Result<Json<types::UnlockKeyBody>, ApiError> {
    let reply = app.control().await?.get_unlock_key(wire::UnlockKeyRequest {}).await;
    let key = reply.map_err(|status| ApiError::from_status(&status))?.into_inner().key;
    let unlock_key = UnlockKey::from_bytes(&key).map(|key| key.to_string()).unwrap_or_default();
    Ok(Json(types::UnlockKeyBody { unlock_key }))
}

async fn unlock(
    State(app): State<App>,
    JsonBody(body): JsonBody<types::UnlockKeyBody>,
) -> Result<StatusCode, ApiError> {
    audited(&app, "unlock", Vec::new(), app.cluster.unlock(body.unlock_key)).await?;
    Ok(StatusCode::OK)
}
