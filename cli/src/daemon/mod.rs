//! The daemon: engine, node and API servers, wired together and ended in order.
//!
//! Is not: any of their behaviour. Start at [`run`].

mod address;
mod announce;
mod args;
mod attachments;
mod connections;
mod content;
mod executor;
mod membership;
mod metrics;
mod node;
mod overlay;
mod tunnel;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rswarm_api::{ClusterError, ClusterNode};
use rswarm_base::audit::Audit;
use rswarm_base::telemetry::{self, Format};
use rswarm_base::{Chain, Scope, fsx, id};
use rswarm_engine::{Engine, EngineConfig};
use rswarm_manager::Calls;
use rswarm_proto::model::container::LogDriver;
use tokio::signal::unix::{SignalKind, signal};

pub use args::{DaemonArgs, LogFormat, LogLevel};
use args::{Settings, SettingsError};
use membership::{Paths, Record};
use node::{Node, NodeConfig};

/// How long the last daemon on the same directory may take to be gone.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);
/// How often that is looked at.
const LOCK_LOOK: Duration = Duration::from_millis(50);
/// How long requests that are being served may take to end.
const API_DEADLINE: Duration = Duration::from_secs(5);
/// How long the node's parts may take to end.
const NODE_DEADLINE: Duration = Duration::from_secs(10);
/// How long the engine may take to let go of its containers, which go on in their shims.
const ENGINE_DEADLINE: Duration = Duration::from_secs(5);

/// Why a daemon does not start.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Options that cannot be used.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The log cannot be set up.
    #[error("{0}")]
    Log(String),
    /// A directory or file of the daemon's own.
    #[error("`{0}` cannot be used")]
    File(PathBuf, #[source] std::io::Error),
    /// The engine does not open.
    #[error("the engine cannot be opened")]
    Engine(#[from] rswarm_engine::error::OpenError),
    /// The node cannot go on in its cluster.
    #[error("the node cannot go on in its cluster")]
    Node(#[source] ClusterError),
    /// The API cannot listen where it was told to.
    #[error("the API cannot listen on `{0}`")]
    Listen(String, #[source] std::io::Error),
    /// An address that is no URL of ours.
    #[error("invalid host `{0}`: want unix:///PATH or tcp://ADDRESS:PORT")]
    Host(String),
}

/// Checks the options and the file that they name.
///
/// # Errors
/// When the daemon would refuse them.
pub fn validate(args: DaemonArgs) -> Result<(), DaemonError> {
    Settings::merge(args)?;
    Ok(())
}

/// Runs the daemon until SIGTERM or SIGINT. Containers go on without it.
///
/// # Errors
/// When a part does not start; nothing runs then.
pub async fn run(args: DaemonArgs) -> Result<(), DaemonError> {
    let settings = Settings::merge(args)?;
    telemetry::init(filter(settings.log_level), format(settings.log_format)).map_err(DaemonError::Log)?;
    for dir in [&settings.data_root, &settings.exec_root] {
        std::fs::create_dir_all(dir).map_err(|error| DaemonError::File(dir.clone(), error))?;
    }
    let (data_root, exec_root) = (real(&settings.data_root)?, real(&settings.exec_root)?);
    let _lock = lock(&data_root).await.map_err(|error| DaemonError::File(data_root.clone(), error))?;
    let pidfile = settings.pidfile.as_deref().map(Pidfile::write).transpose()?;

    let root = Scope::root("daemon");
    let engine_scope = root.child("engine");
    let engine = Engine::open(engine_config(&settings, &data_root, exec_root)?, engine_scope.clone()).await?;
    let node_scope = root.child("node");
    let config = NodeConfig {
        engine: engine.clone(),
        paths: Paths::new(&data_root),
        hostname: hostname(&settings),
        labels: settings.labels.clone(),
        generic: settings.generic.clone(),
        tunnel_port: settings.tunnel_port,
        advertise_addr: settings.advertise_addr.clone(),
        record: Record { audit: audit(&settings)?, calls: Calls::default() },
    };
    let node = Node::start(config, node_scope.clone()).await.map_err(DaemonError::Node)?;
    let api_scope = root.child("api");
    announce::start(engine.clone(), node.clone(), &api_scope);
    for host in &settings.hosts {
        serve(host, &engine, node.clone(), &api_scope).await?;
    }
    if let Some(address) = settings.observe.metrics_addr {
        metrics::serve(address, engine.clone(), node.clone(), &api_scope).await?;
    }
    tracing::info!(hosts = ?settings.hosts, data_root = %data_root.display(), "the daemon is ready");

    ended().await;
    tracing::info!("the daemon stops; containers go on");
    api_scope.shutdown(API_DEADLINE).await;
    node_scope.shutdown(NODE_DEADLINE).await;
    engine.close().await;
    engine_scope.shutdown(ENGINE_DEADLINE).await;
    drop(pidfile);
    Ok(())
}

/// Where control calls are written down, when somebody wants that.
fn audit(settings: &Settings) -> Result<Audit, DaemonError> {
    let Some(path) = &settings.observe.audit_log else { return Ok(Audit::default()) };
    Audit::open(path).map_err(|error| DaemonError::File(path.clone(), error))
}

/// Takes the data root. A daemon that was killed holds it until the kernel has cleared it away: whoever starts the
/// next one need not know how long that takes.
async fn lock(data_root: &Path) -> std::io::Result<fsx::DirLock> {
    let deadline = tokio::time::Instant::now() + LOCK_PATIENCE;
    loop {
        match fsx::DirLock::acquire(data_root) {
            Err(error)
                if error.kind() == std::io::ErrorKind::WouldBlock
                    && tokio::time::Instant::now() < deadline =>
            {
                // The kernel tells nobody when a lock is free that is not waited for.
                tokio::time::sleep(LOCK_LOOK).await;
            }
            result => return result,
        }
    }
}

fn engine_config(
    settings: &Settings,
    data_root: &Path,
    exec_root: PathBuf,
) -> Result<EngineConfig, DaemonError> {
    let exe = std::env::current_exe().map_err(|error| DaemonError::File("/proc/self/exe".into(), error))?;
    let defaults = EngineConfig::new(data_root.to_owned(), exec_root, daemon_id(data_root)?, exe);
    Ok(EngineConfig {
        cgroup_parent: settings.cgroup_parent.clone().unwrap_or_else(|| defaults.cgroup_parent.clone()),
        host_name: hostname(settings),
        labels: settings.labels.iter().map(|(key, value)| format!("{key}={value}")).collect(),
        registry_mirrors: settings.registry_mirrors.clone(),
        insecure_registries: settings.insecure_registries.clone(),
        default_bridge: settings.default_bridge,
        firewall: settings.firewall,
        default_bridge_ipv6: settings.ipv6,
        fixed_cidr_v6: settings.fixed_cidr_v6,
        runtimes: settings.runtimes.clone(),
        default_runtime: settings.default_runtime.clone(),
        init: settings.init,
        // This binary is an init too, by the name that it has in the container.
        init_path: settings.init_path.clone().or_else(|| Some(defaults.exe.clone())),
        ipc_mode: settings.ipc_mode.clone(),
        cgroupns_mode: settings.cgroupns_mode.clone(),
        bridge: settings.network.bridge.clone(),
        bridge_pools: settings.network.pools.clone(),
        dns: settings.network.dns.clone(),
        ulimits: settings.defaults.ulimits.clone(),
        shm_size: settings.defaults.shm_size,
        no_new_privileges: settings.defaults.no_new_privileges,
        seccomp: settings.defaults.seccomp.clone(),
        downloads_max: settings.downloads_max,
        log: LogDriver { name: settings.log_driver.clone(), options: settings.log_opts.clone() },
        ..defaults
    })
}

/// The prefix of all this daemon's kernel objects: made once, kept with the data.
fn daemon_id(data_root: &Path) -> Result<String, DaemonError> {
    let path = data_root.join("daemon-id");
    let named = |error| DaemonError::File(path.clone(), error);
    match std::fs::read_to_string(&path) {
        Ok(text) if is_daemon_id(text.trim()) => Ok(text.trim().to_owned()),
        Ok(text) => {
            let what = format!("`{}` is no daemon id: want 8 hexadecimal digits", text.trim());
            Err(named(std::io::Error::new(std::io::ErrorKind::InvalidData, what)))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let made = id::engine_id()[..8].to_owned();
            fsx::write_atomic(&path, format!("{made}\n").as_bytes()).map_err(named)?;
            Ok(made)
        }
        Err(error) => Err(named(error)),
    }
}

fn is_daemon_id(text: &str) -> bool {
    text.len() == 8 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

async fn serve(host: &str, engine: &Engine, node: Arc<Node>, scope: &Scope) -> Result<(), DaemonError> {
    let listener = listen(host).await?;
    let (engine, cluster, scope_of_api) = (engine.clone(), node as Arc<dyn ClusterNode>, scope.clone());
    let host = host.to_owned();
    scope.spawn(async move {
        if let Err(error) = rswarm_api::serve(listener, engine, cluster, scope_of_api).await {
            tracing::error!(host, error = %Chain(&error), "the API server ended");
        }
    });
    Ok(())
}

async fn listen(host: &str) -> Result<rswarm_api::Listener, DaemonError> {
    let failed = |error| DaemonError::Listen(host.to_owned(), error);
    if let Some(path) = host.strip_prefix("unix://") {
        return unix(Path::new(path)).map(rswarm_api::Listener::Unix).map_err(failed);
    }
    let Some(address) = host.strip_prefix("tcp://") else { return Err(DaemonError::Host(host.to_owned())) };
    let address: SocketAddr = address.parse().map_err(|_| DaemonError::Host(host.to_owned()))?;
    let listener = tokio::net::TcpListener::bind(address).await.map_err(failed)?;
    if !address.ip().is_loopback() {
        tracing::warn!(
            host,
            "the API is open to everyone who can reach this address: they are root on this host"
        );
    }
    Ok(rswarm_api::Listener::Tcp(listener))
}

/// A socket for root (and the group it belongs to) only. A stale one is replaced: the data root's lock says
/// that no other daemon of ours serves it.
fn unix(path: &Path) -> std::io::Result<tokio::net::UnixListener> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => return Err(std::io::ErrorKind::AddrInUse.into()),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
        Err(_) => {}
    }
    let listener = tokio::net::UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o660))?;
    Ok(listener)
}

/// A file with the daemon's process id, gone when the daemon ends.
struct Pidfile(PathBuf);

impl Pidfile {
    fn write(path: &Path) -> Result<Pidfile, DaemonError> {
        fsx::write_atomic_mode(path, std::process::id().to_string().as_bytes(), 0o644)
            .map_err(|error| DaemonError::File(path.to_owned(), error))?;
        Ok(Pidfile(path.to_owned()))
    }
}

impl Drop for Pidfile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

async fn ended() {
    let mut terminate = signal(SignalKind::terminate()).expect("SIGTERM can be caught");
    let mut interrupt = signal(SignalKind::interrupt()).expect("SIGINT can be caught");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

fn hostname(settings: &Settings) -> String {
    let machine = || nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned());
    settings.node_name.clone().unwrap_or_else(|| machine().unwrap_or_else(|_| "localhost".into()))
}

/// Mounts and cgroups need paths that do not move when a symbolic link does.
fn real(path: &Path) -> Result<PathBuf, DaemonError> {
    std::fs::canonicalize(path).map_err(|error| DaemonError::File(path.to_owned(), error))
}

fn filter(level: LogLevel) -> &'static str {
    // Libraries speak up only when something is wrong.
    match level {
        LogLevel::Debug => {
            "warn,rswarm=debug,rswarm_base=debug,rswarm_proto=debug,rswarm_manager=debug,\
            rswarm_manager_core=debug,rswarm_worker=debug,rswarm_engine=debug,rswarm_api=debug,\
            rswarm_image=debug,rswarm_network=debug,rswarm_shim=debug,rswarm_runtime=debug"
        }
        LogLevel::Info => {
            "warn,rswarm=info,rswarm_base=info,rswarm_proto=info,rswarm_manager=info,\
            rswarm_manager_core=info,rswarm_worker=info,rswarm_engine=info,rswarm_api=info,\
            rswarm_image=info,rswarm_network=info,rswarm_shim=info,rswarm_runtime=info"
        }
        LogLevel::Warn => "warn",
        LogLevel::Error => "error",
    }
}

fn format(format: LogFormat) -> Format {
    match format {
        LogFormat::Text => Format::Text,
        LogFormat::Json => Format::Json,
    }
}
