//! The worker's executor on the engine: a task is a container, a cluster network is an overlay.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use rswarm_api::TaskContainersService;
use rswarm_base::error::{Chain, Classify};
use rswarm_base::{Kind, Scope, Timestamp};
use rswarm_engine::config::TaskRef;
use rswarm_engine::container::{HealthStatus, Status};
use rswarm_engine::logs::{LogOptions, LogSource};
use rswarm_engine::stats::{MemoryStats, Sample};
use rswarm_engine::{Container, ContainerConfig, EndpointConfig, Engine, RemoveOptions, WaitCondition};
use rswarm_image::{Progress, Reference, RegistryAuth};
use rswarm_proto::model::template::Place;
use rswarm_proto::wire::task_containers_server::TaskContainersServer;
use rswarm_proto::wire::{
    ContainerStatus, EngineDescription, GenericResource, LogLine, NetworkAttachment, NodeDescription,
    Platform, PortConfig, Resources, Task, TaskLogsRequest, TaskUsage, log_line, port_config,
};
use rswarm_worker::assignments::NetworkView;
use rswarm_worker::executor::LogStream;
use rswarm_worker::{Content, ExecError, Executor, Started, TaskExit};
use tokio::sync::broadcast::error::RecvError;

use super::attachments::Attachments;
use super::connections::any_incoming;
use super::content;
use super::node::Node;
use super::overlay::{address, by_words, facts, mac, overlay};
use super::tunnel::OwnKey;

/// Tasks whose use is told to the managers, who take no more.
const USAGE_TASKS_MAX: usize = 1000;
/// How often a container is asked for the connections that it has left.
const LOOK_PERIOD: Duration = Duration::from_millis(100);
/// How many looks in a row must find none: a client that asked for the name just before may still be on its way.
const QUIET_LOOKS: u32 = 3;

/// Runs this node's tasks on its engine.
pub struct EngineExecutor {
    engine: Engine,
    node_id: String,
    hostname: String,
    labels: BTreeMap<String, String>,
    generic: Vec<GenericResource>,
    data_path: IpAddr,
    own_key: OwnKey,
    node: Weak<Node>,
    pub(super) attachments: Arc<Attachments>,
}

impl EngineExecutor {
    /// The executor of the node `node_id`, with the engine's labels and what it has that services can reserve.
    #[must_use]
    pub fn new(
        engine: Engine,
        node_id: String,
        hostname: String,
        (labels, generic): (&[(String, String)], &[GenericResource]),
        data_path: IpAddr,
        own_key: OwnKey,
        node: Weak<Node>,
    ) -> Arc<EngineExecutor> {
        let labels = labels.iter().cloned().collect();
        let attachments = Attachments::new(engine.clone());
        let generic = generic.to_vec();
        Arc::new(EngineExecutor {
            engine,
            node_id,
            hostname,
            labels,
            generic,
            data_path,
            own_key,
            node,
            attachments,
        })
    }

    /// Serves managers that ask about containers of tasks, as long as the scope lasts.
    pub fn containers(&self, scope: &Scope) -> TaskContainersServer<TaskContainersService> {
        TaskContainersService::server(self.engine.clone(), self.node.clone(), scope.clone())
    }

    fn container_of(&self, task_id: &str) -> Option<Arc<Container>> {
        let of_task = |container: &Arc<Container>| task_of(container) == Some(task_id);
        self.engine.list().into_iter().find(of_task)
    }

    /// An image that is present is never asked for elsewhere.
    async fn ensure_image(&self, reference: &str, auth: &str) -> Result<(), ExecError> {
        if self.engine.images().get(reference).is_ok() {
            return Ok(());
        }
        let parsed: Reference = reference.parse().map_err(|error| failure(&error))?;
        match self.engine.images().pull(&parsed, RegistryAuth::from_header(auth), Progress::silent()).await {
            Ok(_) => Ok(()),
            Err(error) => {
                tracing::warn!(image = reference, error = %Chain(&error), "image could not be pulled");
                Err(ExecError(format!("No such image: {}: {}", parsed.familiar(), Chain(&error))))
            }
        }
    }

    /// Waits until the verdict of the container's health check is a wanted one. Without a check, and once it
    /// does not run any more, a container counts as healthy: its end is told by `wait`.
    async fn health(&self, task: &Task, wanted: impl Fn(HealthStatus) -> bool) -> HealthStatus {
        let mut events = self.engine.events().live;
        loop {
            let container = self.container_of(&task.id).filter(|container| container.state.status.is_live());
            let health =
                container.and_then(|container| container.state.health.as_ref().map(|health| health.status));
            match health {
                Some(health) if wanted(health) => return health,
                None if wanted(HealthStatus::Healthy) => return HealthStatus::Healthy,
                Some(_) => {}
                None => return std::future::pending().await,
            }
            // One that lags looks again all the same.
            if let Err(RecvError::Closed) = events.recv().await {
                return std::future::pending().await;
            }
        }
    }

    /// As moby's executor: the container is stopped, the task failed.
    async fn stop_unhealthy(&self, task: &Task) -> ExecError {
        match self.stop(task).await {
            Ok(()) => ExecError("task: unhealthy container".into()),
            Err(error) => error,
        }
    }

    /// Image and container of a task.
    async fn create(&self, task: &Task, content: &Content) -> Result<(), ExecError> {
        let mut config = self.container_config(task);
        let place = Place::of(task, &self.describe().await);
        config.files = content::files(task, &place, content)?;
        config.spec = place.expand(config.spec).map_err(|error| failure(&error))?;
        config.spec.env.extend(resource_variables(&task.generic));
        self.ensure_image(&config.spec.image, &config.spec.registry_auth).await?;
        self.engine.create(Some(&task.container_name()), config).await.map_err(|error| failure(&error))?;
        Ok(())
    }

    fn container_config(&self, task: &Task) -> ContainerConfig {
        let spec = task.spec.clone().unwrap_or_default();
        let service = task.service_annotations.clone().unwrap_or_default();
        let resources = spec.resources.unwrap_or_default();
        let limits = resources.limits.unwrap_or_default();
        let endpoints: Vec<EndpointConfig> = task.networks.iter().map(endpoint).collect();
        let ports = task.endpoint.clone().unwrap_or_default().ports;
        let mut container = spec.container.unwrap_or_default();
        container.hosts = container.hosts.iter().flat_map(|line| host_entries(line)).collect();
        ContainerConfig {
            spec: container,
            resources: rswarm_proto::wire::ResourceLimits {
                nano_cpus: limits.nano_cpus,
                memory: limits.memory,
                pids: limits.pids,
                memory_swap: memory_and_swap(limits.memory, resources.swap),
                memory_swappiness: resources.memory_swappiness,
                ..Default::default()
            },
            network_mode: endpoints.first().map(|endpoint| endpoint.network.clone()).unwrap_or_default(),
            endpoints,
            ports: ports.into_iter().filter(|port| port.mode() == port_config::Mode::Host).collect(),
            log: spec.log_driver.unwrap_or_default(),
            task: Some(TaskRef {
                task_id: task.id.clone(),
                task_name: task.container_name(),
                service_id: task.service_id.clone(),
                service_name: service.name,
                node_id: self.node_id.clone(),
            }),
            ..ContainerConfig::default()
        }
    }
}

/// How a container learns what its task was given: `DOCKER_RESOURCE_GPU=uuid1,uuid2`, `DOCKER_RESOURCE_SSD=3`.
/// spec: swarmkit `api/genericresource/string.go`
fn resource_variables(given: &[GenericResource]) -> Vec<String> {
    let mut kinds: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for resource in given {
        let value = if resource.name.is_empty() { resource.count.to_string() } else { resource.name.clone() };
        kinds.entry(&resource.kind).or_default().push(value);
    }
    let variable = |(kind, values): (&str, Vec<String>)| {
        format!("DOCKER_RESOURCE_{}={}", kind.to_uppercase(), values.join(","))
    };
    kinds.into_iter().map(variable).collect()
}

/// A service's line of `/etc/hosts`, `ADDRESS NAME [NAME…]`, as a container has it: `NAME:ADDRESS` for each name.
fn host_entries(line: &str) -> Vec<String> {
    let mut words = line.split_whitespace();
    match (words.next(), words.clone().next()) {
        (Some(address), Some(_)) => words.map(|name| format!("{name}:{address}")).collect(),
        // Those before us stored it as a container has it.
        _ => vec![line.to_owned()],
    }
}

#[async_trait]
impl Executor for EngineExecutor {
    async fn describe(&self) -> NodeDescription {
        let info = self.engine.info();
        NodeDescription {
            hostname: self.hostname.clone(),
            platform: Some(Platform { architecture: info.architecture, os: "linux".into() }),
            resources: Some(Resources {
                nano_cpus: i64::try_from(info.cpus).unwrap_or(0) * 1_000_000_000,
                memory: i64::try_from(info.memory).unwrap_or(i64::MAX),
                pids: 0,
            }),
            engine: Some(EngineDescription {
                version: env!("CARGO_PKG_VERSION").into(),
                labels: self.labels.clone(),
                network_drivers: ["bridge", "host", "ipvlan", "macvlan", "null", "overlay"]
                    .map(Into::into)
                    .into(),
                volume_drivers: vec!["local".into()],
                log_drivers: vec!["json-file".into(), "local".into(), "none".into()],
            }),
            tunnel: self.own_key.announced().inspect_err(|error| tracing::error!(%error, "no key")).ok(),
            // The agent's to say: it holds the certificate.
            tls: None,
            generic: self.generic.clone(),
        }
    }

    async fn apply_network(&self, network: &NetworkView) -> Result<(), ExecError> {
        if !network.network.is_overlay() {
            return self.engine.apply_by_words(by_words(network)).await.map_err(|error| failure(&error));
        }
        self.engine
            .apply_overlay(overlay(network, &self.node_id, self.data_path, &self.own_key)?, facts(network))
            .await
            .map_err(|error| failure(&error))
    }

    async fn remove_network(&self, network_id: &str) -> Result<(), ExecError> {
        if self.engine.held_by_words().iter().any(|held| held == network_id) {
            return self.engine.remove_by_words(network_id).await.map_err(|error| failure(&error));
        }
        self.engine.remove_overlay(network_id).await.map_err(|error| failure(&error))
    }

    async fn prepare(&self, task: &Task, content: &Content) -> Result<(), ExecError> {
        if task.is_attachment() {
            return self.attachments.grant(task);
        }
        if self.container_of(&task.id).is_some() {
            return Ok(());
        }
        self.create(task, content).await
    }

    /// A task with a health check runs once its container is healthy.
    async fn start(&self, task: &Task, content: &Content) -> Result<Started, ExecError> {
        if task.is_attachment() {
            return self.attachments.attached(task).await;
        }
        let mut container = self.container_of(&task.id).ok_or_else(|| gone(task))?;
        if container.state.status == Status::Created && content::is_lost(task, &container) {
            // The daemon that had its secrets in memory is gone; the container never ran.
            self.remove(&task.id).await?;
            self.create(task, content).await?;
            container = self.container_of(&task.id).ok_or_else(|| gone(task))?;
        }
        // One that has run and ended, unseen by a daemon that was away, is not run again: `wait` tells its end.
        if container.state.status == Status::Created
            && let Err(error) = self.engine.start(&container.id).await
            && error.kind() != Kind::NotModified
        {
            return Err(ExecError(format!("starting container failed: {}", Chain(&error))));
        }
        if self.health(task, |health| health != HealthStatus::Starting).await == HealthStatus::Unhealthy {
            return Err(self.stop_unhealthy(task).await);
        }
        let container = self.container_of(&task.id).ok_or_else(|| gone(task))?;
        let status = ContainerStatus {
            container_id: container.id.clone(),
            pid: container.state.pid.into(),
            exit_code: 0,
        };
        Ok(Started { container: status, ports: bound_ports(&container) })
    }

    async fn wait(&self, task: &Task) -> Result<TaskExit, ExecError> {
        if task.is_attachment() {
            self.attachments.detached(task).await;
            return Ok(TaskExit { code: 0, oom_killed: false });
        }
        let container = self.container_of(&task.id).ok_or_else(|| gone(task))?;
        let ended = self.engine.wait(&container.id, WaitCondition::NotRunning).await;
        let ended = ended.map_err(|error| failure(&error))?;
        let ended = tokio::select! {
            biased;
            ended = ended => ended,
            _ = self.health(task, |health| health == HealthStatus::Unhealthy) => {
                return Err(self.stop_unhealthy(task).await);
            }
        };
        let oom_killed = self.container_of(&task.id).is_some_and(|container| container.state.oom_killed);
        Ok(TaskExit { code: ended.exit_code.into(), oom_killed })
    }

    /// The kernel tells nobody when a connection ends: it is asked.
    async fn unused(&self, task: &Task) {
        let pid = || self.container_of(&task.id).map(|container| container.state.pid).filter(|pid| *pid > 0);
        let mut quiet_looks = 0;
        while let Some(pid) = pid() {
            quiet_looks = if any_incoming(pid).unwrap_or(false) { 0 } else { quiet_looks + 1 };
            if quiet_looks == QUIET_LOOKS {
                return;
            }
            tokio::time::sleep(LOOK_PERIOD).await;
        }
    }

    fn remembered(&self) -> Duration {
        rswarm_engine::NAME_TTL
    }

    async fn stop(&self, task: &Task) -> Result<(), ExecError> {
        if task.is_attachment() {
            self.attachments.detach(&task.id).await;
            return Ok(());
        }
        let Some(container) = self.container_of(&task.id) else { return Ok(()) };
        let grace = task.spec.as_ref().map(rswarm_proto::wire::TaskSpec::stop_grace);
        match self.engine.stop(&container.id, grace, None).await {
            Err(error) if error.kind() != Kind::NotModified && error.kind() != Kind::NotFound => {
                Err(failure(&error))
            }
            _ => Ok(()),
        }
    }

    async fn remove(&self, task_id: &str) -> Result<(), ExecError> {
        self.attachments.detach(task_id).await;
        let Some(container) = self.container_of(task_id) else { return Ok(()) };
        let options = RemoveOptions { force: true, volumes: true };
        match self.engine.remove(&container.id, options).await {
            Err(error) if error.kind() != Kind::NotFound => Err(failure(&error)),
            _ => Ok(()),
        }
    }

    async fn held(&self) -> Vec<String> {
        let containers = self.engine.list();
        let tasks = containers.iter().filter_map(|container| task_of(container).map(str::to_owned));
        tasks.chain(self.attachments.held()).collect()
    }

    async fn held_networks(&self) -> Vec<String> {
        let overlays = self.engine.networks().overlays().await.unwrap_or_else(|error| {
            tracing::warn!(error = %Chain(&error), "the networks of this node cannot be listed");
            Vec::new()
        });
        [overlays, self.engine.held_by_words()].concat()
    }

    async fn usage(&self) -> Vec<TaskUsage> {
        let is_task =
            |container: &Arc<Container>| task_of(container).is_some() && container.state.status.is_live();
        let running = self.engine.list().into_iter().filter(is_task);
        let mut usage = Vec::new();
        for container in running.take(USAGE_TASKS_MAX) {
            let Some(task_id) = task_of(&container) else { continue };
            // It may have ended since.
            let Ok(sample) = self.engine.stats(&container.id).await else { continue };
            usage.push(usage_of(task_id, &sample));
        }
        usage
    }

    async fn logs(&self, request: &TaskLogsRequest) -> Result<LogStream, ExecError> {
        let container = self
            .container_of(&request.task_id)
            .ok_or_else(|| ExecError(format!("task {} has no container on this node", request.task_id)))?;
        let time = |ns: i64| (ns != 0).then_some(Timestamp(ns));
        let options = LogOptions {
            follow: request.follow,
            stdout: request.stdout,
            stderr: request.stderr,
            since: time(request.since),
            until: time(request.until),
            tail: usize::try_from(request.tail).ok(),
        };
        let entries = self.engine.logs(&container.id, options).await.map_err(|error| failure(&error))?;
        Ok(Box::pin(entries.map(|entry| {
            let stream = match entry.source {
                LogSource::Stdout => log_line::Stream::Stdout,
                LogSource::Stderr => log_line::Stream::Stderr,
            };
            Ok(LogLine { stream: stream.into(), timestamp: entry.at.0, data: entry.line.to_vec() })
        })))
    }
}

fn task_of(container: &Container) -> Option<&str> {
    container.config.task.as_ref().map(|task| task.task_id.as_str())
}

/// A look at a container, in sums.
fn usage_of(task_id: &str, sample: &Sample) -> TaskUsage {
    let networks = || sample.networks.values();
    TaskUsage {
        task_id: task_id.to_owned(),
        cpu_time: sample.cgroup.cpu.usage,
        memory: sample.cgroup.memory.as_ref().map_or(0, memory_used),
        pids: sample.cgroup.pids.as_ref().map_or(0, |pids| pids.current),
        received: networks().map(|network| network.received.bytes).sum(),
        sent: networks().map(|network| network.sent.bytes).sum(),
        read: sample.cgroup.io.iter().map(|io| io.read_bytes).sum(),
        written: sample.cgroup.io.iter().map(|io| io.write_bytes).sum(),
        ..TaskUsage::default()
    }
}

/// Without the page cache that can be dropped, as `stats` shows it; versions 1 and 2 name that differently.
fn memory_used(memory: &MemoryStats) -> u64 {
    let cache = ["total_inactive_file", "inactive_file"].iter().find_map(|name| memory.detail.get(*name));
    memory.usage.saturating_sub(cache.copied().unwrap_or(0))
}

/// Ports of a running container on this host, each once.
fn bound_ports(container: &Container) -> Vec<PortConfig> {
    let mut found = Vec::new();
    for port in container.endpoints.iter().flat_map(|endpoint| &endpoint.ports) {
        let bound = PortConfig {
            protocol: port.protocol.clone(),
            target: port.container_port.into(),
            published: port.host_port.into(),
            mode: port_config::Mode::Host.into(),
            ..PortConfig::default()
        };
        if !found.contains(&bound) {
            found.push(bound);
        }
    }
    found
}

/// The engine's sum of memory and swap, from a service's swap beyond its memory.
fn memory_and_swap(memory: i64, swap: Option<i64>) -> i64 {
    match swap {
        Some(-1) => -1,
        Some(swap) if memory > 0 => memory.saturating_add(swap),
        _ => 0,
    }
}

fn endpoint(attachment: &NetworkAttachment) -> EndpointConfig {
    let mut addresses = attachment.addresses.iter().filter_map(|cidr| address(cidr).ok());
    EndpointConfig {
        network: attachment.network_id.clone(),
        address: addresses.clone().find(IpAddr::is_ipv4),
        address_v6: addresses.find(IpAddr::is_ipv6),
        mac: mac(&attachment.mac).ok().map(|mac| mac.0),
        aliases: attachment.aliases.clone(),
        ..EndpointConfig::default()
    }
}

fn gone(task: &Task) -> ExecError {
    ExecError(format!("No such container: {}", task.container_name()))
}

pub(super) fn failure<E: std::error::Error>(error: &E) -> ExecError {
    ExecError(Chain(error).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_learns_what_its_task_was_given() {
        let own =
            |kind: &str, name: &str, count| GenericResource { kind: kind.into(), name: name.into(), count };
        let given = [own("nvidia-gpu", "a", 0), own("ssd", "", 3), own("nvidia-gpu", "b", 0)];
        assert_eq!(resource_variables(&given), ["DOCKER_RESOURCE_NVIDIA-GPU=a,b", "DOCKER_RESOURCE_SSD=3"]);
    }

    #[test]
    fn a_line_of_hosts_is_one_entry_for_each_name() {
        assert_eq!(host_entries("fd00::1  db\tstore"), ["db:fd00::1", "store:fd00::1"]);
        assert_eq!(host_entries("db:10.0.0.9"), ["db:10.0.0.9"]);
    }
}
