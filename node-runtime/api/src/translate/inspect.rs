//! A container as `GET /containers/{id}/json` shows it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use rswarm_engine::container::{Container, Endpoint, Health, MountKind, MountPoint, State, Status};
use rswarm_engine::{ContainerConfig, MASKED_PATHS, READONLY_PATHS, RestartName};
use rswarm_proto::wire;

use super::{healthcheck_out, mac, mounts, network, ports, ulimits_out};
use crate::types;
use crate::version::ApiVersion;

const NANOS_PER_SECOND: i64 = 1_000_000_000;
/// Docker's size of `/dev/shm` when none was asked for.
const SHM_SIZE: i64 = 64 << 20;

/// Everything but the sizes, which take a walk over the disk.
pub(crate) fn container(container: &Container, version: ApiVersion) -> types::ContainerInspect {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    types::ContainerInspect {
        id: container.id.clone(),
        created: container.created.to_string(),
        path: container.path.clone(),
        args: container.args.clone(),
        state: state(&container.state),
        image: container.image_id.clone(),
        resolv_conf_path: text(&container.resolv_conf_path()),
        hostname_path: text(&container.hostname_path()),
        hosts_path: text(&container.hosts_path()),
        log_path: container.log_path.as_deref().map(text).unwrap_or_default(),
        name: format!("/{}", container.name),
        restart_count: container.restart_count.into(),
        driver: "overlay2".to_owned(),
        platform: "linux".to_owned(),
        host_config: host_config(&container.config),
        graph_driver: types::GraphDriver { name: "overlay2".to_owned(), data: None },
        mounts: container.mounts.iter().map(mount_point).collect(),
        config: config(container),
        network_settings: network_settings(container, version),
        ..types::ContainerInspect::default()
    }
}

fn state(state: &State) -> types::ContainerState {
    types::ContainerState {
        status: state.status.as_str().to_owned(),
        running: state.status.is_running(),
        paused: state.status == Status::Paused,
        restarting: state.status == Status::Restarting,
        oom_killed: state.oom_killed,
        dead: state.status == Status::Dead,
        pid: state.pid.into(),
        exit_code: state.exit_code.into(),
        error: state.error.clone(),
        started_at: state.started_at.to_string(),
        finished_at: state.finished_at.to_string(),
        health: state.health.as_ref().map(health),
    }
}

fn health(health: &Health) -> types::Health {
    let log = health.log.iter().map(|probe| types::HealthResult {
        start: probe.start.to_string(),
        end: probe.end.to_string(),
        exit_code: probe.exit_code.into(),
        output: probe.output.clone(),
    });
    types::Health {
        status: health.status.as_str().to_owned(),
        failing_streak: health.failing_streak.into(),
        log: Some(log.collect()),
    }
}

pub(crate) fn mount_point(point: &MountPoint) -> types::MountPoint {
    types::MountPoint {
        kind: point.kind.as_str().to_owned(),
        name: point.name.clone(),
        source: point.source.clone(),
        destination: point.destination.clone(),
        driver: point.driver.clone(),
        mode: if point.kind == MountKind::Volume { "z".to_owned() } else { String::new() },
        rw: point.writable,
        propagation: point.propagation.clone(),
    }
}

fn config(container: &Container) -> types::ContainerConfig {
    let ContainerConfig { spec, attach, .. } = &*container.config;
    types::ContainerConfig {
        // moby: the short id, where nothing else was asked for.
        hostname: or(&spec.hostname, rswarm_base::id::short(&container.id)),
        domainname: spec.domainname.clone(),
        user: spec.user.clone(),
        attach_stdin: attach.stdin,
        attach_stdout: attach.stdout,
        attach_stderr: attach.stderr,
        exposed_ports: container.exposed.iter().map(|port| (port.clone(), types::Empty {})).collect(),
        tty: spec.tty,
        open_stdin: spec.open_stdin,
        stdin_once: spec.stdin_once,
        env: Some(spec.env.clone()),
        cmd: spec.args.clone().into(),
        healthcheck: spec.healthcheck.as_ref().map(healthcheck_out),
        image: spec.image.clone(),
        volumes: volumes(&spec.mounts),
        working_dir: spec.workdir.clone(),
        entrypoint: spec.entrypoint.clone().into(),
        labels: Some(spec.labels.clone()),
        stop_signal: spec.stop_signal.clone(),
        stop_timeout: spec
            .stop_grace
            .map(|nanos| if nanos == i64::MAX { -1 } else { nanos / NANOS_PER_SECOND }),
        ..types::ContainerConfig::default()
    }
}

/// Anonymous volumes.
fn volumes(mounts: &[wire::Mount]) -> Option<types::KeySet> {
    let anonymous =
        |mount: &&wire::Mount| mount.r#type() == wire::mount::Type::Volume && mount.source.is_empty();
    let set: types::KeySet =
        mounts.iter().filter(anonymous).map(|mount| (mount.target.clone(), types::Empty {})).collect();
    (!set.is_empty()).then_some(set)
}

fn host_config(config: &ContainerConfig) -> types::HostConfig {
    let spec = &config.spec;
    let list = |items: &[String]| (!items.is_empty()).then(|| items.to_vec());
    let binds: Vec<String> = spec.mounts.iter().filter_map(mounts::bind_out).collect();
    let unconfined =
        spec.privileged || spec.security_opt.iter().any(|option| option == "systempaths=unconfined");
    let paths = |asked: &Option<Vec<String>>, paths: &[&str]| match asked {
        _ if unconfined => Vec::new(),
        Some(asked) => asked.clone(),
        None => paths.iter().map(ToString::to_string).collect(),
    };
    types::HostConfig {
        resources: resources(config),
        binds: list(&binds),
        log_config: types::LogConfig {
            kind: or(&config.log.name, "json-file"),
            config: Some(config.log.options.clone()),
        },
        network_mode: config.network_mode.clone(),
        port_bindings: Some(ports::bindings_out(&config.ports)),
        restart_policy: restart_policy(config),
        auto_remove: config.auto_remove,
        console_size: config.console_size.map_or([0, 0], |(width, height)| [height.into(), width.into()]),
        annotations: spec.annotations.clone(),
        cap_add: list(&spec.cap_add),
        cap_drop: list(&spec.cap_drop),
        cgroupns_mode: or(&spec.cgroupns_mode, "private"),
        dns: Some(spec.dns.clone()),
        dns_options: Some(spec.dns_options.clone()),
        dns_search: Some(spec.dns_search.clone()),
        extra_hosts: list(&spec.hosts),
        group_add: list(&spec.groups),
        ipc_mode: or(&spec.ipc_mode, "private"),
        oom_score_adj: spec.oom_score_adj,
        pid_mode: spec.pid_mode.clone(),
        privileged: spec.privileged,
        volumes_from: list(&config.volumes_from),
        publish_all_ports: config.publish_all,
        readonly_rootfs: spec.read_only,
        security_opt: list(&spec.security_opt),
        tmpfs: tmpfs(&spec.mounts),
        uts_mode: spec.uts_mode.clone(),
        userns_mode: spec.userns_mode.clone(),
        shm_size: if spec.shm_size == 0 { SHM_SIZE } else { spec.shm_size },
        sysctls: spec.sysctls.clone(),
        runtime: or(&spec.runtime, "runc"),
        isolation: config.isolation.clone(),
        volume_driver: config.volume_driver.clone(),
        mounts: spec.mounts.iter().filter(|mount| needs_object(mount)).map(mounts::mount_out).collect(),
        masked_paths: Some(paths(&config.masked_paths, MASKED_PATHS)),
        readonly_paths: Some(paths(&config.readonly_paths, READONLY_PATHS)),
        init: spec.init,
        ..types::HostConfig::default()
    }
}

/// Mounts that neither a `-v` text, an anonymous volume nor a tmpfs map says.
fn needs_object(mount: &wire::Mount) -> bool {
    match mount.r#type() {
        wire::mount::Type::Bind => mounts::bind_out(mount).is_none(),
        wire::mount::Type::Tmpfs => !mount.tmpfs_map,
        wire::mount::Type::Volume => false,
    }
}

fn tmpfs(mounts: &[wire::Mount]) -> types::StringMap {
    let mapped = mounts.iter().filter(|mount| mount.tmpfs_map);
    mapped.map(|mount| (mount.target.clone(), mount.tmpfs_options.clone())).collect()
}

fn resources(config: &ContainerConfig) -> types::HostResources {
    let limits = &config.resources;
    let devices = config.spec.devices.iter().map(|device| types::DeviceMapping {
        path_on_host: device.host_path.clone(),
        path_in_container: device.container_path.clone(),
        cgroup_permissions: device.permissions.clone(),
    });
    types::HostResources {
        cgroup_parent: config.cgroup_parent.clone(),
        cpu_shares: limits.cpu_shares,
        memory: limits.memory,
        nano_cpus: limits.nano_cpus,
        cpu_period: limits.cpu_period,
        cpu_quota: limits.cpu_quota,
        cpuset_cpus: limits.cpuset_cpus.clone(),
        cpuset_mems: limits.cpuset_mems.clone(),
        devices: Some(devices.collect()),
        device_cgroup_rules: (!config.spec.device_cgroup_rules.is_empty())
            .then(|| config.spec.device_cgroup_rules.clone()),
        memory_swappiness: limits.memory_swappiness.filter(|value| *value != -1),
        oom_kill_disable: Some(limits.oom_kill_disable),
        blkio_weight: u16::try_from(limits.blkio_weight).unwrap_or(u16::MAX),
        blkio_weight_device: Some(weights_out(&limits.blkio_weight_devices)),
        blkio_device_read_bps: Some(rates_out(&limits.blkio_read_bps)),
        blkio_device_write_bps: Some(rates_out(&limits.blkio_write_bps)),
        blkio_device_read_iops: Some(rates_out(&limits.blkio_read_iops)),
        blkio_device_write_iops: Some(rates_out(&limits.blkio_write_iops)),
        cpu_realtime_period: limits.cpu_realtime_period,
        cpu_realtime_runtime: limits.cpu_realtime_runtime,
        memory_reservation: limits.memory_reservation,
        memory_swap: limits.memory_swap,
        pids_limit: (limits.pids != 0).then_some(limits.pids.max(0)),
        ulimits: Some(ulimits_out(&config.spec.ulimits)),
        ..types::HostResources::default()
    }
}

fn rates_out(devices: &[wire::DeviceRate]) -> Vec<types::ThrottleDevice> {
    let devices = devices.iter();
    devices.map(|device| types::ThrottleDevice { path: device.path.clone(), rate: device.rate }).collect()
}

fn weights_out(devices: &[wire::DeviceRate]) -> Vec<types::WeightDevice> {
    let weight = |rate: u64| u16::try_from(rate).unwrap_or(u16::MAX);
    let devices = devices.iter();
    devices
        .map(|device| types::WeightDevice { path: device.path.clone(), weight: weight(device.rate) })
        .collect()
}

fn restart_policy(config: &ContainerConfig) -> types::RestartPolicy {
    let restart = config.restart;
    let max = if restart.name == RestartName::OnFailure { restart.max } else { 0 };
    types::RestartPolicy { name: restart.name.as_str().to_owned(), maximum_retry_count: max.into() }
}

fn or(text: &str, default: &str) -> String {
    if text.is_empty() { default.to_owned() } else { text.to_owned() }
}

fn network_settings(container: &Container, version: ApiVersion) -> types::NetworkSettings {
    let mut settings =
        types::NetworkSettings { ports: live_ports(container), ..types::NetworkSettings::default() };
    for endpoint in container.endpoints.iter() {
        let shown = endpoint_settings(endpoint, container, version);
        // The fields at the top are the default bridge's, as before there were others.
        if endpoint.network_name == "bridge" {
            settings.endpoint_id = shown.endpoint_id.clone();
            settings.gateway = shown.gateway.clone();
            settings.ipv6_gateway = shown.ipv6_gateway.clone();
            settings.global_ipv6_address = shown.global_ipv6_address.clone();
            settings.global_ipv6_prefix_len = shown.global_ipv6_prefix_len;
            settings.ip_address = shown.ip_address.clone();
            settings.ip_prefix_len = shown.ip_prefix_len;
            settings.mac_address = shown.mac_address.clone();
        }
        settings.networks.insert(endpoint.network_name.clone(), shown);
    }
    settings
}

/// Nothing is published, or even exposed, while the container has no network.
fn live_ports(container: &Container) -> types::PortMap {
    if container.state.status.is_live() { ports::bound_out(container) } else { BTreeMap::new() }
}

/// One network of a container. `Aliases` hold the short id only for clients before 1.45.
pub(crate) fn endpoint_settings(
    endpoint: &Endpoint,
    container: &Container,
    version: ApiVersion,
) -> types::EndpointSettings {
    let ip = |address: Option<(IpAddr, u8)>| {
        address.map_or((String::new(), 0), |(address, prefix)| (address.to_string(), prefix))
    };
    let config = &endpoint.config;
    let (ip_address, ip_prefix_len) = ip(endpoint.address);
    let (global_ipv6_address, global_ipv6_prefix_len) = ip(endpoint.address_v6);
    let mut aliases = config.aliases.clone();
    if !version.at_least(45) && !network::is_predefined(&endpoint.network_name) {
        aliases.push(rswarm_base::id::short(&container.id).to_owned());
    }
    let fixed = types::EndpointIpamConfig {
        ipv4_address: config.address.map(|address| address.to_string()).unwrap_or_default(),
        ipv6_address: config.address_v6.map(|address| address.to_string()).unwrap_or_default(),
        ..types::EndpointIpamConfig::default()
    };
    types::EndpointSettings {
        ipam_config: (fixed != types::EndpointIpamConfig::default()).then_some(fixed),
        aliases: (!aliases.is_empty()).then_some(aliases),
        links: (!config.links.is_empty()).then(|| config.links.clone()),
        // What is asked for is shown before the container has it.
        mac_address: mac(endpoint.mac.or(config.mac)),
        driver_opts: (!config.driver_options.is_empty()).then(|| config.driver_options.clone()),
        gw_priority: config.gateway_priority.into(),
        network_id: endpoint.network_id.clone(),
        endpoint_id: endpoint.endpoint_id.clone(),
        gateway: endpoint.gateway.map(|gateway| gateway.to_string()).unwrap_or_default(),
        ipv6_gateway: endpoint.gateway_v6.map(|gateway| gateway.to_string()).unwrap_or_default(),
        ip_address,
        ip_prefix_len,
        global_ipv6_address,
        global_ipv6_prefix_len,
        dns_names: (!endpoint.names.is_empty()).then(|| endpoint.names.clone()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use rswarm_engine::container::BoundPort;
    use rswarm_engine::{EndpointConfig, RestartPolicy};

    use super::*;
    use crate::version;

    /// A running container on the default bridge.
    pub(crate) fn sample() -> Container {
        let mut config = ContainerConfig { network_mode: "default".into(), ..ContainerConfig::default() };
        config.spec.image = "alpine".into();
        config.spec.args = vec!["sleep".into(), "1 000".into()];
        config.spec.labels.insert("a".into(), "b".into());
        config.restart = RestartPolicy { name: RestartName::OnFailure, max: 3 };
        config.spec.mounts = ["/src:/dst:ro", "/anon"].map(|t| mounts::parse_bind(t).expect("bind")).into();
        let endpoint = Endpoint {
            endpoint_id: "e".repeat(64),
            network_id: "n".repeat(64),
            network_name: "bridge".into(),
            address: Some(("172.17.0.2".parse().expect("address"), 16)),
            gateway: "172.17.0.1".parse().ok(),
            mac: Some([2, 0x42, 0xac, 0x11, 0, 2]),
            config: EndpointConfig { network: "bridge".into(), ..EndpointConfig::default() },
            ports: vec![BoundPort {
                protocol: "tcp".into(),
                container_port: 80,
                host_ip: "0.0.0.0".parse().expect("address"),
                host_port: 8080,
            }],
            ..Endpoint::default()
        };
        Container {
            id: "0123456789abcdef".repeat(4),
            name: "web".into(),
            created: rswarm_base::Timestamp(1_700_000_000_000_000_000),
            image_id: format!("sha256:{}", "a".repeat(64)),
            path: "sleep".into(),
            args: vec!["1 000".into()],
            config: Arc::new(config),
            state: State {
                status: Status::Running,
                pid: 42,
                started_at: rswarm_base::Timestamp(1_700_000_001_000_000_000),
                ..State::default()
            },
            restart_count: 0,
            mounts: Arc::default(),
            endpoints: Arc::new(vec![endpoint]),
            exposed: Arc::new(vec!["53/udp".into(), "80/tcp".into()]),
            links: Arc::default(),
            dir: "/var/lib/rswarm/containers/x".into(),
            log_path: None,
            exits: 0,
            last_exit_code: 0,
            removed: false,
        }
    }

    #[test]
    fn inspect_has_dockers_shape() {
        let json = serde_json::to_value(container(&sample(), version::MAX)).expect("json");
        assert_eq!(json["Name"], "/web");
        assert_eq!(json["State"]["Running"], true);
        assert_eq!(json["State"]["FinishedAt"], "0001-01-01T00:00:00Z");
        assert_eq!(json["NetworkSettings"]["IPAddress"], "172.17.0.2");
        assert_eq!(json["NetworkSettings"]["Networks"]["bridge"]["MacAddress"], "02:42:ac:11:00:02");
        assert_eq!(json["NetworkSettings"]["Ports"]["80/tcp"][0]["HostPort"], "8080");
        assert!(json["NetworkSettings"]["Ports"]["53/udp"].is_null());
        assert_eq!(json["HostConfig"]["Binds"][0], "/src:/dst:ro");
        assert_eq!(json["HostConfig"]["RestartPolicy"]["MaximumRetryCount"], 3);
        assert_eq!(json["HostConfig"]["ShmSize"], SHM_SIZE);
        assert_eq!(json["Config"]["Volumes"]["/anon"], serde_json::json!({}));
        assert_eq!(json["Config"]["Cmd"][1], "1 000");
        assert!(json["Config"]["Entrypoint"].is_null());
        assert_eq!(json["Mounts"], serde_json::json!([]));
        assert!(json["State"].get("Health").is_none());
    }

    #[test]
    fn nothing_is_published_by_a_container_that_does_not_run() {
        let mut stopped = sample();
        stopped.state.status = Status::Exited;
        let shown = container(&stopped, version::MAX);
        assert!(shown.network_settings.ports.is_empty());
        assert!(!shown.state.running);
    }
}
