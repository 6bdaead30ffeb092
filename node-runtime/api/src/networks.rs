//! Networks: this node's and the cluster's as one list.

use axum::Json;
use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use rswarm_base::{Kind, Timestamp};
use rswarm_engine::TunnelPeerStatus;
use rswarm_engine::network::NetworkMember;
use rswarm_proto::wire;

use crate::error::ApiError;
use crate::filters::Filters;
use crate::request::{JsonBody, Query};
use crate::router::App;
use crate::swarm;
use crate::translate::create;
use crate::translate::network::{self, Wanted};
use crate::translate::verbose;
use crate::types;

const FILTERS: [&str; 7] = ["dangling", "driver", "id", "label", "name", "scope", "type"];

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/networks", get(list))
        .route("/networks/", get(list))
        .route("/networks/create", post(create_network))
        .route("/networks/prune", post(prune))
        .route("/networks/audit", post(audit))
        .route("/networks/{id}", get(inspect).delete(remove))
        .route("/networks/{id}/check", get(check))
        .route("/networks/{id}/connect", post(connect))
        .route("/networks/{id}/disconnect", post(disconnect))
}

/// The cluster's networks; none where there is no manager to ask.
async fn cluster_networks(app: &App) -> Vec<wire::Network> {
    if !app.cluster.info().control_available {
        return Vec::new();
    }
    match swarm::list(app).await {
        Ok(networks) => networks,
        Err(error) => {
            tracing::warn!(error = error.message, "the cluster's networks are left out of the list");
            Vec::new()
        }
    }
}

fn members(app: &App, id: &str) -> Vec<NetworkMember> {
    app.engine.inspect_network(id).map(|(_, members)| members).unwrap_or_default()
}

async fn all(app: &App) -> Vec<types::NetworkInspect> {
    let local = app.engine.list_networks();
    let local = local.iter().map(|found| network::local_out(found, &members(app, &found.id))).collect();
    let cluster = cluster_networks(app).await;
    network::merge(local, cluster.iter().map(|found| network::cluster_out(found, &[])).collect())
}

async fn list(State(app): State<App>, query: Query) -> Result<Json<Vec<types::NetworkInspect>>, ApiError> {
    let filters = query.filters(&FILTERS)?;
    check_type(&filters)?;
    let dangling = dangling(&filters)?;
    let mut networks = all(&app).await;
    networks.retain(|found| matches(found, &filters, dangling));
    // Lists leave the containers out.
    for found in &mut networks {
        found.containers = Some(std::collections::BTreeMap::new());
    }
    Ok(Json(networks))
}

/// In moby's words (`daemon/network/filter.go`).
fn check_type(filters: &Filters) -> Result<(), ApiError> {
    match filters.get("type").iter().find(|value| !matches!(value.as_str(), "builtin" | "custom")) {
        Some(value) => Err(ApiError::invalid(format!("invalid filter: 'type'='{value}'"))),
        None => Ok(()),
    }
}

fn dangling(filters: &Filters) -> Result<Option<bool>, ApiError> {
    match filters.get("dangling") {
        [] => Ok(None),
        [one] if matches!(one.as_str(), "1" | "true") => Ok(Some(true)),
        [one] if matches!(one.as_str(), "0" | "false") => Ok(Some(false)),
        [_] => Err(ApiError::invalid(
            "invalid value for filter 'dangling', must be \"true\" (or \"1\"), or \"false\" (or \"0\")",
        )),
        _ => Err(ApiError::invalid("got more than one value for filter key \"dangling\"")),
    }
}

fn matches(found: &types::NetworkInspect, filters: &Filters, dangling: Option<bool>) -> bool {
    let builtin = network::is_predefined(&found.name) || found.ingress;
    let labels = found.labels.clone().unwrap_or_default();
    let is_dangling = !builtin && found.containers.as_ref().is_none_or(std::collections::BTreeMap::is_empty);
    filters.prefix("id", &found.id)
        && filters.any("name", |wanted| found.name.contains(wanted))
        && filters.exact("driver", &found.driver)
        && filters.exact("scope", &found.scope)
        && filters.exact("type", if builtin { "builtin" } else { "custom" })
        && filters.labels("label", &labels)
        && dangling.is_none_or(|wanted| is_dangling == wanted)
}

/// By identifier, then by name, then by the beginning of an identifier.
fn find<'a>(
    networks: &'a [types::NetworkInspect],
    reference: &str,
) -> Result<&'a types::NetworkInspect, ApiError> {
    let by_id = networks.iter().find(|found| found.id == reference);
    if let Some(found) = by_id.or_else(|| networks.iter().find(|found| found.name == reference)) {
        return Ok(found);
    }
    let mut by_prefix =
        networks.iter().filter(|found| !reference.is_empty() && found.id.starts_with(reference));
    match (by_prefix.next(), by_prefix.next()) {
        (Some(found), None) => Ok(found),
        (None, _) => Err(network::not_found(reference)),
        (Some(_), Some(_)) => Err(ApiError::invalid(format!(
            "network {reference} is ambiguous ({} matches found based on ID prefix)",
            by_prefix.count() + 2
        ))),
    }
}

async fn inspect(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Query,
) -> Result<Json<types::NetworkInspect>, ApiError> {
    let mut networks = all(&app).await;
    if query.has("scope") {
        let scope = query.text("scope");
        networks.retain(|found| found.scope == scope);
        // Docker's CLI asks for what `--network host` of a service is.
        if scope == "swarm" && app.cluster.info().control_available {
            networks.extend(network::of_every_node(&id));
        }
    }
    let mut found = find(&networks, &id).cloned()?;
    if query.flag("verbose") && found.scope == "swarm" {
        let is_encrypted = found.options.as_ref().is_some_and(|options| options.contains_key("encrypted"));
        let tunnel = if is_encrypted { app.engine.tunnel_peers().await } else { Vec::new() };
        if app.cluster.info().control_available {
            on_network(&app, tunnel).await?.describe(&mut found);
        } else {
            // A worker knows its own containers alone, and whom it has a way to.
            found.peers = verbose::tunnel_peers(&tunnel);
        }
    }
    Ok(Json(found))
}

/// What the managers know of who is on networks.
async fn on_network(app: &App, tunnel: Vec<TunnelPeerStatus>) -> Result<verbose::Cluster, ApiError> {
    Ok(verbose::Cluster {
        services: swarm::list(app).await?,
        tasks: swarm::list(app).await?,
        nodes: swarm::list(app).await?,
        tunnel,
    })
}

async fn create_network(
    State(app): State<App>,
    JsonBody(body): JsonBody<types::NetworkCreateBody>,
) -> Result<(StatusCode, Json<types::NetworkCreated>), ApiError> {
    let wanted = network::create(&body)?;
    if network::is_predefined(&body.name) {
        return Err(ApiError::new(
            Kind::PermissionDenied,
            format!("operation is not permitted on predefined {} network", body.name),
        ));
    }
    let id = match wanted {
        Wanted::Local(request) => app.engine.create_network(request).await?,
        Wanted::Cluster(spec) => {
            let request = wire::CreateNetworkRequest { spec: Some(spec) };
            let created = app.control().await?.create_network(request).await;
            created.map_err(|status| creation_error(&status, &body.name))?.into_inner().id
        }
    };
    Ok((StatusCode::CREATED, Json(types::NetworkCreated { id, warning: String::new() })))
}

/// A name that is taken is told as for a network of one node.
fn creation_error(status: &tonic::Status, name: &str) -> ApiError {
    let error = ApiError::from_status(status);
    if status.code() == tonic::Code::AlreadyExists {
        return ApiError { message: format!("network with name {name} already exists"), ..error };
    }
    error
}

async fn remove(State(app): State<App>, Path(id): Path<String>) -> Result<StatusCode, ApiError> {
    let networks = all(&app).await;
    let found = find(&networks, &id)?;
    if network::is_predefined(&found.name) {
        return Err(ApiError::new(
            Kind::PermissionDenied,
            format!("{} is a pre-defined network and cannot be removed", found.name),
        ));
    }
    remove_found(&app, found).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn remove_found(app: &App, found: &types::NetworkInspect) -> Result<(), ApiError> {
    if found.scope == "swarm" {
        let request = wire::RemoveRequest { id: found.id.clone(), force: false };
        app.control()
            .await?
            .remove_network(request)
            .await
            .map_err(|status| ApiError::from_status(&status))?;
        return Ok(());
    }
    Ok(app.engine.remove_network(&found.id).await?)
}

async fn connect(
    State(app): State<App>,
    Path(id): Path<String>,
    JsonBody(body): JsonBody<types::NetworkConnectBody>,
) -> Result<StatusCode, ApiError> {
    let settings = body.endpoint_config.unwrap_or_default();
    let endpoint = create::endpoint(&id, &settings)?;
    app.engine.connect_network(&body.container, endpoint).await?;
    Ok(StatusCode::OK)
}

async fn disconnect(
    State(app): State<App>,
    Path(id): Path<String>,
    JsonBody(body): JsonBody<types::NetworkDisconnectBody>,
) -> Result<StatusCode, ApiError> {
    app.engine.disconnect_network(&body.container, &id).await?;
    Ok(StatusCode::OK)
}

/// Ours: what of a network is not as it should be on this node.
async fn check(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<types::NetworkCheck>, ApiError> {
    let networks = all(&app).await;
    let found = find(&networks, &id)?;
    // One that is only the cluster's is not on this node.
    let is_here = app.engine.list_networks().iter().any(|network| network.id == found.id);
    let findings = if is_here { app.engine.check_network(&found.id).await? } else { None };
    Ok(Json(types::NetworkCheck {
        id: found.id.clone(),
        name: found.name.clone(),
        present: findings.is_some(),
        findings: findings.unwrap_or_default().into_iter().map(network::finding_out).collect(),
    }))
}

/// Ours: what can be reached on this node, and from where.
async fn audit(State(app): State<App>) -> Result<Json<types::NetworkAudit>, ApiError> {
    let exposure = app.engine.audit_networks().await?;
    let networks = all(&app).await;
    let services: Vec<wire::Service> =
        if app.cluster.info().control_available { swarm::list(&app).await? } else { Vec::new() };
    Ok(Json(network::audit_out(exposure, &networks, &services)))
}

async fn prune(State(app): State<App>, query: Query) -> Result<Json<types::NetworksPruned>, ApiError> {
    let filters = query.filters(&["until", "label", "label!"])?;
    let until = filters.until(Timestamp::now())?;
    let mut deleted = Vec::new();
    for found in all(&app).await {
        let labels = found.labels.clone().unwrap_or_default();
        let created = Timestamp::parse(&found.created).unwrap_or_default();
        let is_used = found.containers.as_ref().is_some_and(|containers| !containers.is_empty());
        let chosen = !network::is_predefined(&found.name)
            && !found.ingress
            && !found.config_only
            && !is_used
            && until.is_none_or(|until| created <= until)
            && filters.labels("label", &labels)
            && filters.without_labels("label!", &labels);
        // One that a stopped container or a service wants is kept by whoever owns it.
        if chosen && remove_found(&app, &found).await.is_ok() {
            deleted.push(found.name);
        }
    }
    Ok(Json(types::NetworksPruned { networks_deleted: (!deleted.is_empty()).then_some(deleted) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(id: &str, name: &str) -> types::NetworkInspect {
        types::NetworkInspect { id: id.into(), name: name.into(), ..types::NetworkInspect::default() }
    }

    #[test]
    fn a_network_is_found_by_id_then_name_then_prefix() {
        let networks = [network("abc1", "one"), network("abc2", "abc1x"), network("def3", "abc2")];
        let check = |reference: &str| {
            find(&networks, reference).map(|found| found.id.as_str()).map_err(|e| e.message)
        };
        assert_eq!(check("abc2"), Ok("abc2"));
        assert_eq!(check("one"), Ok("abc1"));
        assert_eq!(check("d"), Ok("def3"));
        assert_eq!(check("abc"), Err("network abc is ambiguous (2 matches found based on ID prefix)".into()));
        assert_eq!(check("x"), Err("network x not found".into()));
        assert!(check("").is_err());
    }
}
