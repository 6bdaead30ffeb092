//! System: `_ping`, `version`, `info`, `auth`, `system/df`.

use std::collections::BTreeMap;

use axum::Json;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use rswarm_base::Timestamp;
use rswarm_engine::config::SeccompProfile;
use rswarm_engine::{Engine, EngineConfig, EngineInfo};
use rswarm_image::RegistryAuth;
use rswarm_proto::wire;
use tracing::level_filters::LevelFilter;

use crate::error::ApiError;
use crate::node::{ClusterInfo, LocalState};
use crate::request::JsonBody;
use crate::router::{App, DOCKER_VERSION};
use crate::translate::{cluster, shown_generic};
use crate::types;
use crate::version;

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/_ping", get(ping))
        .route("/version", get(version_info))
        .route("/info", get(info))
        .route("/auth", post(auth))
}

/// Where a node stands, as the `Swarm` header says it.
fn swarm_header(info: &ClusterInfo) -> String {
    match (info.state, info.control_available) {
        (LocalState::Active, true) => "active/manager".to_owned(),
        (LocalState::Active, false) => "active/worker".to_owned(),
        (state, _) => state.as_str().to_owned(),
    }
}

async fn ping(State(app): State<App>) -> Response {
    let mut headers = HeaderMap::new();
    let text = |value: &'static str| HeaderValue::from_static(value);
    headers.insert(header::CONTENT_TYPE, text("text/plain; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, text("no-cache, no-store, must-revalidate"));
    headers.insert(header::PRAGMA, text("no-cache"));
    headers.insert("Builder-Version", text("1"));
    let swarm = swarm_header(&app.cluster.info());
    headers.insert("Swarm", HeaderValue::from_str(&swarm).expect("plain ASCII"));
    (headers, "OK").into_response()
}

/// Go's name of this machine's processor.
fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

async fn version_info(State(app): State<App>) -> Json<types::VersionBody> {
    let kernel = app.engine.info().kernel_version;
    let details = [
        ("ApiVersion", version::MAX.to_string()),
        ("Arch", go_arch().to_owned()),
        ("Experimental", "false".to_owned()),
        ("KernelVersion", kernel.clone()),
        ("MinAPIVersion", version::MIN.to_string()),
        ("Os", "linux".to_owned()),
    ];
    let component = types::Component {
        name: "Engine".to_owned(),
        version: DOCKER_VERSION.to_owned(),
        details: details.map(|(key, value)| (key.to_owned(), value)).into(),
    };
    let own = types::Component {
        name: "rswarm".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        details: types::StringMap::new(),
    };
    Json(types::VersionBody {
        platform: types::VersionPlatform { name: concat!("rswarm ", env!("CARGO_PKG_VERSION")).to_owned() },
        components: vec![component, own],
        version: DOCKER_VERSION.to_owned(),
        api_version: version::MAX.to_string(),
        min_api_version: version::MIN.to_string(),
        os: "linux".to_owned(),
        arch: go_arch().to_owned(),
        kernel_version: kernel,
        ..types::VersionBody::default()
    })
}

async fn info(State(app): State<App>) -> Json<types::InfoBody> {
    let swarm = swarm_info(&app).await;
    let mut body = info_body(&app.engine, &app.engine.info(), swarm);
    body.generic_resources = shown_generic(&app.cluster.info().generic);
    body.debug = LevelFilter::current() >= LevelFilter::DEBUG;
    body.n_fd = open_files();
    // What stands for goroutines: the runtime's tasks.
    let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    body.n_goroutines = i64::try_from(tasks).unwrap_or(i64::MAX);
    Json(body)
}

/// This process's file descriptors; 0 where they cannot be counted.
fn open_files() -> i64 {
    std::fs::read_dir("/proc/self/fd").map_or(0, |entries| i64::try_from(entries.count()).unwrap_or(i64::MAX))
}

fn info_body(engine: &Engine, info: &EngineInfo, swarm: types::SwarmInfo) -> types::InfoBody {
    let config = engine.config();
    let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
    let log_driver = if config.log.name.is_empty() { "json-file" } else { &config.log.name };
    let list = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect());
    types::InfoBody {
        id: config.daemon_id.clone(),
        containers: count(info.containers),
        containers_running: count(info.running),
        containers_paused: count(info.paused),
        containers_stopped: count(info.stopped),
        images: count(info.images),
        driver: "overlay2".to_owned(),
        plugins: types::PluginsInfo {
            volume: list(&["local"]),
            network: list(&["bridge", "host", "ipvlan", "macvlan", "null", "overlay"]),
            authorization: None,
            log: list(&["json-file", "local", "none"]),
        },
        memory_limit: true,
        swap_limit: true,
        cpu_cfs_period: true,
        cpu_cfs_quota: true,
        cpu_shares: true,
        cpu_set: true,
        pids_limit: true,
        ipv4_forwarding: true,
        system_time: Timestamp::now().to_string(),
        logging_driver: log_driver.to_owned(),
        cgroup_driver: "cgroupfs".to_owned(),
        cgroup_version: info.cgroup_version.to_owned(),
        kernel_version: info.kernel_version.clone(),
        operating_system: info.operating_system.clone(),
        os_type: "linux".to_owned(),
        architecture: info.architecture.clone(),
        index_server_address: "https://index.docker.io/v1/".to_owned(),
        registry_config: Some(registry_config(&config.registry_mirrors, &config.insecure_registries)),
        ncpu: count(info.cpus),
        mem_total: i64::try_from(info.memory).unwrap_or(i64::MAX),
        docker_root_dir: config.data_root.to_string_lossy().into_owned(),
        name: config.host_name.clone(),
        labels: config.labels.clone(),
        server_version: DOCKER_VERSION.to_owned(),
        runtimes: runtimes(engine),
        default_runtime: if config.default_runtime.is_empty() {
            "rswarm".to_owned()
        } else {
            config.default_runtime.clone()
        },
        swarm,
        // Shims own the containers: every restart of the daemon is a live restore.
        live_restore_enabled: true,
        security_options: security_options(config, info),
        warnings: warnings(config),
        default_address_pools: config
            .bridge_pools
            .iter()
            .map(|pool| types::AddressPool { base: pool.base.to_string(), size: pool.size.into() })
            .collect(),
        ..types::InfoBody::default()
    }
}

// moby: fillSecurityOptions
fn security_options(config: &EngineConfig, info: &EngineInfo) -> Vec<String> {
    let mut options = vec![format!("name=seccomp,profile={}", config.seccomp.name())];
    // Private where nothing says otherwise, if the cgroups are version 2.
    let private = match config.cgroupns_mode.as_str() {
        "" => info.cgroup_version == "2",
        mode => mode == "private",
    };
    if private {
        options.push("name=cgroupns".to_owned());
    }
    if config.no_new_privileges {
        options.push("name=no-new-privileges".to_owned());
    }
    options
}

fn warnings(config: &EngineConfig) -> Option<Vec<String>> {
    let is_builtin = config.seccomp == SeccompProfile::Builtin;
    (!is_builtin).then(|| vec!["WARNING: daemon is not using the default seccomp profile".to_owned()])
}

fn registry_config(mirrors: &[String], insecure: &[String]) -> types::RegistryServiceConfig {
    // What is on this machine is reached without TLS, whoever says nothing.
    let local = ["::1/128", "127.0.0.0/8"].map(str::to_owned);
    let entries = insecure.iter().cloned().chain(local);
    let (networks, hosts): (Vec<String>, Vec<String>) = entries.partition(|entry| entry.contains('/'));
    let mirrors: Vec<String> =
        mirrors.iter().map(|mirror| format!("{}/", mirror.trim_end_matches('/'))).collect();
    let hub = types::IndexInfo {
        name: "docker.io".to_owned(),
        mirrors: mirrors.clone(),
        secure: true,
        official: true,
    };
    let others = hosts.into_iter().map(|name| {
        let index = types::IndexInfo { name: name.clone(), ..types::IndexInfo::default() };
        (name, index)
    });
    types::RegistryServiceConfig {
        insecure_registry_cidrs: networks,
        index_configs: others.chain([("docker.io".to_owned(), hub)]).collect(),
        mirrors: Some(mirrors),
    }
}

fn runtimes(engine: &Engine) -> BTreeMap<String, types::RuntimeInfo> {
    let others = engine.config().runtimes.iter().map(|(name, path)| {
        let path = path.to_string_lossy().into_owned();
        (name.clone(), types::RuntimeInfo { path, ..types::RuntimeInfo::default() })
    });
    let own = types::RuntimeInfo { path: "rswarm".to_owned(), ..types::RuntimeInfo::default() };
    // The same one, by the name that Docker's clients know.
    let builtin = ["rswarm", "runc"].map(|name| (name.to_owned(), own.clone()));
    others.chain(builtin).collect()
}

/// Never fails and hardly waits: what the managers do not tell in time is an error inside.
async fn swarm_info(app: &App) -> types::SwarmInfo {
    const PATIENCE: std::time::Duration = std::time::Duration::from_secs(3);
    let info = app.cluster.info();
    let managers: Vec<_> = info
        .managers
        .iter()
        .map(|manager| types::RemoteManager { node_id: manager.node_id.clone(), addr: manager.addr.clone() })
        .collect();
    let mut swarm = types::SwarmInfo {
        node_id: info.node_id.clone(),
        node_addr: info.node_addr.clone(),
        local_node_state: info.state.as_str().to_owned(),
        control_available: info.control_available,
        error: info.error.clone(),
        remote_managers: (!managers.is_empty()).then_some(managers),
        ..types::SwarmInfo::default()
    };
    if info.state == LocalState::Active && info.control_available {
        match tokio::time::timeout(PATIENCE, managed(app, &mut swarm)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => swarm.error = error.message,
            Err(_) => swarm.error = "the managers did not answer in time".to_owned(),
        }
    }
    swarm
}

/// What only managers know: how many nodes there are, and the cluster's settings.
async fn managed(app: &App, swarm: &mut types::SwarmInfo) -> Result<(), ApiError> {
    let nodes: Vec<wire::Node> = crate::swarm::list(app).await?;
    let managers = nodes.iter().filter(|node| node.manager_status.is_some()).count();
    swarm.nodes = i64::try_from(nodes.len()).unwrap_or(i64::MAX);
    swarm.managers = i64::try_from(managers).unwrap_or(i64::MAX);
    let stored = crate::swarm::cluster(app).await?;
    swarm.cluster = Some(cluster::cluster(&stored));
    Ok(())
}

async fn auth(
    State(app): State<App>,
    JsonBody(body): JsonBody<types::AuthConfig>,
) -> Result<Json<types::AuthReply>, ApiError> {
    let credentials = RegistryAuth {
        username: body.username,
        password: body.password,
        auth: body.auth,
        identitytoken: body.identitytoken,
        registrytoken: body.registrytoken,
        serveraddress: body.serveraddress,
    };
    app.engine.images().login(credentials).await?;
    Ok(Json(types::AuthReply { status: "Login Succeeded".to_owned(), ..types::AuthReply::default() }))
}
