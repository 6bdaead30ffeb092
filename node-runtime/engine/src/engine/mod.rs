//! The engine's handle: every operation that the HTTP API and the worker use, by concept: what is done to
//! containers, processes inside them, and the objects that they use.

mod containers;
mod execs;
mod files;
mod objects;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rswarm_base::metrics::Exposition;
use rswarm_base::{Chain, Scope};
use rswarm_image::{ImageStore, StoreConfig};
use rswarm_network::Networks;
use tokio::sync::oneshot;

use crate::attach::Cluster;
use crate::blocking::blocking;
use crate::config::EngineConfig;
use crate::container::{Status, launch, logfile};
use crate::error::{Cause, FileError, LookupError, OpenError};
use crate::events::{Event, Events, Subscription};
use crate::exec::Execs;
use crate::metrics::Instruments;
use crate::network::LocalNetworks;
use crate::registry::{Handle, Registry};
use crate::shared::Shared;
use crate::spec;
use crate::volume::Volumes;
use crate::{boot, host};

pub use containers::{Attachment, ContainerUpdate, Created, RemoveOptions, WaitCondition, Waited};
pub(crate) use files::Access;
pub use files::{Archive, CommitRequest};
/// Docker's frames out, standard input in; raw bytes both ways on a terminal.
pub use rswarm_shim::client::AttachStream;

/// How long containers' actors may take to finish what they are at when the daemon stops.
const CLOSE_DEADLINE: Duration = Duration::from_secs(10);

/// Containers, networks, volumes and images of one daemon. Cloning gives another handle.
#[derive(Debug, Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

/// Figures about the engine and its machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EngineInfo {
    /// All containers.
    pub containers: usize,
    /// Of these running.
    pub running: usize,
    /// Of these paused.
    pub paused: usize,
    /// Of these neither.
    pub stopped: usize,
    /// Images.
    pub images: usize,
    /// The kernel's release.
    pub kernel_version: String,
    /// The distribution's name.
    pub operating_system: String,
    /// The machine's hardware name, such as `x86_64`.
    pub architecture: String,
    /// Processors.
    pub cpus: usize,
    /// Memory in bytes.
    pub memory: u64,
    /// `1` or `2`.
    pub cgroup_version: &'static str,
}

impl Engine {
    /// Opens the data directory (which the caller has locked), adopts the containers that live, and starts those
    /// whose policy says so.
    ///
    /// # Errors
    /// When what is stored cannot be read, or networking cannot be set up.
    pub async fn open(config: EngineConfig, scope: Scope) -> Result<Engine, OpenError> {
        logfile::parse(&config.log, Path::new("")).map_err(OpenError::LogDriver)?;
        spec::check_profile(&config.seccomp).map_err(OpenError::Seccomp)?;
        for dir in [&config.data_root, &config.exec_root.join("containers")] {
            std::fs::create_dir_all(dir).map_err(FileError::write(dir))?;
        }
        let images = open_images(&config).await?;
        let networking = rswarm_network::Config {
            daemon_id: config.daemon_id.clone(),
            netns_dir: launch::netns_dir(&config),
            tunnel_dir: config.exec_root.join("tunnel"),
            tunnel_exe: config.exe.clone(),
            default_bridge: config.default_bridge,
            default_bridge_ipv6: config.default_bridge_ipv6,
            fixed_cidr_v6: config.fixed_cidr_v6,
            bridge: config.bridge.clone(),
            bridge_pools: config.bridge_pools.clone(),
            firewall: config.firewall,
        };
        let networks = Networks::open(networking, scope.child("networks")).await.map_err(Cause::new)?;
        let path = config.data_root.join("networks.json");
        let bridge = config.default_bridge.then_some(&config.bridge);
        let local = LocalNetworks::open(path, networks.clone(), bridge).await?;
        let volumes = config.data_root.join("volumes");
        let volumes = blocking(|| Volumes::open(volumes)).await?;
        let shared = Arc::new(Shared {
            host: host::facts(),
            images,
            networks,
            local,
            cluster: Cluster::default(),
            volumes,
            registry: Registry::default(),
            execs: Execs::default(),
            events: Events::new(),
            instruments: Instruments::default(),
            scope: scope.child("containers"),
            config,
        });
        boot::restore(&shared).await?;
        Ok(Engine { shared })
    }

    /// Lets go of all containers, which go on in their shims. When none lives and no cluster network is
    /// held, the kernel objects go too: an engine that does nothing leaves nothing.
    pub async fn close(&self) {
        self.shared.scope.shutdown(CLOSE_DEADLINE).await;
        let lives = self.list().iter().any(|container| container.state.status.is_live());
        let holds_overlay = self.shared.networks.overlays().await.is_ok_and(|overlays| !overlays.is_empty());
        if lives || holds_overlay {
            return;
        }
        if let Err(error) = self.shared.networks.close_all().await {
            tracing::warn!(error = %Chain(&error), "network objects are left");
        }
        let parent = self.shared.config.cgroup_parent.clone();
        if parent == EngineConfig::own_cgroup(&self.shared.config.daemon_id)
            && let Err(error) = blocking(move || launch::remove_cgroup(&parent)).await
        {
            tracing::warn!(error, "the parent cgroup is left");
        }
    }

    /// The images.
    #[must_use]
    pub fn images(&self) -> &ImageStore {
        &self.shared.images
    }

    /// The kernel's side of networking.
    #[must_use]
    pub fn networks(&self) -> &Networks {
        &self.shared.networks
    }

    /// How the engine was set up.
    #[must_use]
    pub fn config(&self) -> &EngineConfig {
        &self.shared.config
    }

    /// Figures for `docker info`.
    #[must_use]
    pub fn info(&self) -> EngineInfo {
        let containers = self.list();
        let count = |wanted: fn(Status) -> bool| containers.iter().filter(|c| wanted(c.state.status)).count();
        let running = count(|status| matches!(status, Status::Running | Status::Restarting));
        let paused = count(|status| status == Status::Paused);
        let machine = rustix::system::uname();
        EngineInfo {
            containers: containers.len(),
            running,
            paused,
            stopped: containers.len() - running - paused,
            images: self.shared.images.list().len(),
            kernel_version: machine.release().to_string_lossy().into_owned(),
            operating_system: host::operating_system(),
            architecture: machine.machine().to_string_lossy().into_owned(),
            cpus: self.shared.host.cpus,
            memory: host::memory(),
            cgroup_version: if self.shared.host.cgroup_v2 { "2" } else { "1" },
        }
    }

    /// Writes the engine's figures.
    pub fn metrics(&self, out: &mut Exposition) {
        self.shared.instruments.write(&self.info(), &self.shared.events, out);
    }

    /// The last events and those to come.
    #[must_use]
    pub fn events(&self) -> Subscription {
        self.shared.events.subscribe()
    }

    /// Announces something that happened above the engine, in the cluster or in the API.
    pub fn publish(&self, event: Event) {
        self.shared.events.publish(event);
    }

    fn find(&self, reference: &str) -> Result<Handle, LookupError> {
        self.shared.registry.find(reference)
    }

    /// Runs to its end whether or not the caller waits for it.
    async fn detached<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        let (reply, answer) = oneshot::channel();
        self.shared.scope.spawn(async move {
            // The caller may have gone away.
            let _ = reply.send(work.await);
        });
        match answer.await {
            Ok(value) => value,
            // The process is being shut down, and the caller with it.
            Err(_) => std::future::pending().await,
        }
    }
}

async fn open_images(config: &EngineConfig) -> Result<ImageStore, OpenError> {
    let mut store = StoreConfig::new(config.data_root.join("image"));
    store.mirrors.clone_from(&config.registry_mirrors);
    store.insecure_registries.clone_from(&config.insecure_registries);
    if config.downloads_max > 0 {
        store.downloads_max = config.downloads_max;
    }
    let open = blocking(|| ImageStore::open(store)).await;
    Ok(open.map_err(Cause::new)?)
}
