//! `POST /containers/create`: Docker's three configurations into the engine's one.

use rswarm_engine::config::AttachedStreams;
use rswarm_engine::{ContainerConfig, EndpointConfig, RestartName, RestartPolicy};
use rswarm_proto::wire;

use super::{checked_healthcheck, filled, mounts, parse_mac, ports, refuse, ulimits};
use crate::error::ApiError;
use crate::types::{self, CreateBody, HostConfig, HostResources};
use crate::version::ApiVersion;

/// Docker's warning to clients that can still name it: newer ones are not told.
const NO_KERNEL_MEMORY: &str =
    "Specifying a kernel memory limit is deprecated and will be removed in a future release.";
const NANOS_PER_SECOND: i64 = 1_000_000_000;

/// What the engine is asked for, and what the client is told about it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Wanted {
    pub config: ContainerConfig,
    pub warnings: Vec<String>,
}

/// Docker's three configurations as one.
pub(crate) fn container(body: &CreateBody, version: ApiVersion) -> Result<Wanted, ApiError> {
    let host = body.host_config.clone().unwrap_or_default();
    let config = &body.config;
    refuse_host(&host)?;
    refuse_config(config)?;
    let mut spec = process(config)?;
    confine(&mut spec, &host);
    names(&mut spec, &host);
    spec.mounts = all_mounts(config, &host)?;
    of_old_clients(&mut spec, version);
    let network_mode = if config.network_disabled { "none" } else { &host.network_mode };
    let mut warnings = Vec::new();
    let resources = resources(&host.resources, version, &mut warnings)?;
    let restart = restart_policy(&host.restart_policy)?;
    if host.auto_remove && restart.name != RestartName::No {
        return Err(ApiError::invalid("can't create 'AutoRemove' container with restart policy"));
    }
    let ports = ports::bindings(host.port_bindings.as_ref().unwrap_or(&types::PortMap::new()))?;
    let exposed = ports::exposed(config.exposed_ports.keys())?;
    let config = ContainerConfig {
        endpoints: endpoints(body, network_mode)?,
        network_mode: network_mode.to_owned(),
        spec,
        resources,
        ports,
        exposed,
        volumes_from: host.volumes_from.clone().unwrap_or_default(),
        links: host.links.clone().unwrap_or_default(),
        publish_all: host.publish_all_ports,
        log: wire::LogDriver {
            name: host.log_config.kind.clone(),
            options: host.log_config.config.clone().unwrap_or_default(),
        },
        cgroup_parent: host.resources.cgroup_parent.clone(),
        restart,
        auto_remove: host.auto_remove,
        isolation: host.isolation.clone(),
        volume_driver: host.volume_driver.clone(),
        console_size: console_size(host.console_size)?,
        masked_paths: host.masked_paths.clone(),
        readonly_paths: host.readonly_paths.clone(),
        attach: AttachedStreams {
            stdin: config.attach_stdin,
            stdout: config.attach_stdout,
            stderr: config.attach_stderr,
        },
        ..ContainerConfig::default()
    };
    Ok(Wanted { config, warnings })
}

fn refuse_config(config: &types::ContainerConfig) -> Result<(), ApiError> {
    refuse(filled(config.shell.as_ref()), "Shell")?;
    refuse(filled(config.on_build.as_ref()), "OnBuild")
}

fn refuse_host(host: &HostConfig) -> Result<(), ApiError> {
    refuse(!host.cgroup.is_empty(), "Cgroup")?;
    if !host.storage_opt.is_empty() {
        // As moby's overlay2 where it has no quotas.
        let why = "--storage-opt is supported only for overlay over xfs with 'pquota' mount option";
        return Err(ApiError::new(rswarm_base::Kind::Internal, why.to_owned()));
    }
    if !matches!(host.isolation.as_str(), "" | "default") {
        return Err(ApiError::invalid(format!("invalid isolation (\"{}\")", host.isolation)));
    }
    if !matches!(host.volume_driver.as_str(), "" | "local") && filled(host.binds.as_ref()) {
        return Err(ApiError::new(
            rswarm_base::Kind::NotFound,
            format!("error looking up volume plugin {0}: plugin \"{0}\" not found", host.volume_driver),
        ));
    }
    refuse_resources(&host.resources)
}

fn refuse_resources(resources: &HostResources) -> Result<(), ApiError> {
    if let Some(request) = resources.device_requests.iter().flatten().next() {
        return Err(no_device_driver(request));
    }
    refuse(resources.cpu_count != 0, "CpuCount")?;
    refuse(resources.cpu_percent != 0, "CpuPercent")?;
    refuse(resources.io_maximum_iops != 0, "IOMaximumIOps")?;
    refuse(resources.io_maximum_bandwidth != 0, "IOMaximumBandwidth")
}

/// As dockerd without a driver for the devices, which also refuses them: GPUs need a vendor's hook.
fn no_device_driver(request: &types::DeviceRequest) -> ApiError {
    let capabilities = request.capabilities.iter().flatten().map(|all| format!("[{}]", all.join(" ")));
    let capabilities = capabilities.collect::<Vec<_>>().join(" ");
    ApiError::new(
        rswarm_base::Kind::Internal,
        format!("could not select device driver \"{}\" with capabilities: [{capabilities}]", request.driver),
    )
    .hint("pass the device nodes by --device and the libraries by --volume")
}

/// What clients of older versions mean by the same words.
// docker-api: version history, 1.44, 1.41, 1.40
fn of_old_clients(spec: &mut wire::ContainerSpec, version: ApiVersion) {
    if !version.at_least(44) {
        for mount in spec.mounts.iter_mut().filter(|mount| mount.read_only) {
            if mount.recursion() == wire::mount::Recursion::Enabled {
                mount.set_recursion(wire::mount::Recursion::Writable);
            }
        }
    }
    if !version.at_least(41) && spec.cgroupns_mode.is_empty() {
        "host".clone_into(&mut spec.cgroupns_mode);
    }
    if !version.at_least(40) && spec.ipc_mode.is_empty() {
        "shareable".clone_into(&mut spec.ipc_mode);
    }
}

/// The process: what the image gives is filled in by the engine.
fn process(config: &types::ContainerConfig) -> Result<wire::ContainerSpec, ApiError> {
    let entrypoint = config.entrypoint.words();
    let cleared = entrypoint == [""];
    if let Some(wrong) = config.env.iter().flatten().find(|entry| entry.is_empty() || entry.starts_with('='))
    {
        return Err(ApiError::invalid(format!("invalid environment variable: {wrong}")));
    }
    let stop_grace = match config.stop_timeout {
        // A negative timeout waits without end.
        Some(seconds) if seconds < 0 => Some(i64::MAX),
        Some(seconds) => Some(seconds.saturating_mul(NANOS_PER_SECOND)),
        None => None,
    };
    Ok(wire::ContainerSpec {
        image: config.image.clone(),
        labels: config.labels.clone().unwrap_or_default(),
        entrypoint: if cleared { Vec::new() } else { entrypoint.to_vec() },
        entrypoint_cleared: cleared,
        args: config.cmd.words().to_vec(),
        hostname: config.hostname.clone(),
        domainname: config.domainname.clone(),
        env: config.env.clone().unwrap_or_default(),
        workdir: workdir(&config.working_dir)?,
        user: config.user.clone(),
        tty: config.tty,
        open_stdin: config.open_stdin,
        stdin_once: config.stdin_once,
        stop_signal: config.stop_signal.clone(),
        stop_grace,
        healthcheck: config.healthcheck.as_ref().map(checked_healthcheck).transpose()?,
        ..wire::ContainerSpec::default()
    })
}

fn workdir(path: &str) -> Result<String, ApiError> {
    if path.is_empty() || path.starts_with('/') {
        return Ok(path.to_owned());
    }
    Err(ApiError::invalid(format!(
        "the working directory '{path}' is invalid, it needs to be an absolute path"
    )))
}

/// Namespaces, privileges and kernel settings.
fn confine(spec: &mut wire::ContainerSpec, host: &HostConfig) {
    spec.groups = host.group_add.clone().unwrap_or_default();
    spec.read_only = host.readonly_rootfs;
    spec.cap_add = host.cap_add.clone().unwrap_or_default();
    spec.cap_drop = host.cap_drop.clone().unwrap_or_default();
    spec.privileged = host.privileged;
    spec.security_opt = host.security_opt.clone().unwrap_or_default();
    spec.sysctls = host.sysctls.clone();
    spec.ulimits = ulimits(host.resources.ulimits.as_deref().unwrap_or_default());
    spec.init = host.init;
    spec.shm_size = host.shm_size;
    spec.oom_score_adj = host.oom_score_adj;
    spec.pid_mode = host.pid_mode.clone();
    spec.ipc_mode = host.ipc_mode.clone();
    spec.uts_mode = host.uts_mode.clone();
    spec.cgroupns_mode = host.cgroupns_mode.clone();
    spec.userns_mode = host.userns_mode.clone();
    spec.runtime = host.runtime.clone();
    spec.annotations = host.annotations.clone();
    spec.device_cgroup_rules = host.resources.device_cgroup_rules.clone().unwrap_or_default();
    spec.devices = host
        .resources
        .devices
        .iter()
        .flatten()
        .map(|device| wire::Device {
            host_path: device.path_on_host.clone(),
            container_path: device.path_in_container.clone(),
            permissions: device.cgroup_permissions.clone(),
        })
        .collect();
}

/// Name resolution.
fn names(spec: &mut wire::ContainerSpec, host: &HostConfig) {
    spec.hosts = host.extra_hosts.clone().unwrap_or_default();
    spec.dns = host.dns.clone().unwrap_or_default();
    spec.dns_search = host.dns_search.clone().unwrap_or_default();
    spec.dns_options = host.dns_options.clone().unwrap_or_default();
}

/// `-v`, `--mount`, `--tmpfs`, and anonymous volumes where nothing else is mounted.
fn all_mounts(config: &types::ContainerConfig, host: &HostConfig) -> Result<Vec<wire::Mount>, ApiError> {
    let mut all = Vec::new();
    for bind in host.binds.iter().flatten() {
        all.push(mounts::parse_bind(bind)?);
    }
    for mount in &host.mounts {
        all.push(mounts::parse_mount(mount)?);
    }
    for (target, options) in &host.tmpfs {
        all.push(mounts::parse_tmpfs(target, options)?);
    }
    mounts::check_targets(&all)?;
    for volume in config.volumes.iter().flatten().map(|(text, _)| mounts::parse_bind(text)) {
        let volume = volume?;
        if !all.iter().any(|other| other.target == volume.target) {
            all.push(volume);
        }
    }
    Ok(all)
}

/// Limits of `create` and `update`; the engine checks them.
pub(crate) fn resources(
    limits: &HostResources,
    version: ApiVersion,
    warnings: &mut Vec<String>,
) -> Result<wire::ResourceLimits, ApiError> {
    refuse_resources(limits)?;
    if (limits.kernel_memory != 0 || limits.kernel_memory_tcp != 0) && !version.at_least(51) {
        warnings.push(NO_KERNEL_MEMORY.to_owned());
    }
    Ok(wire::ResourceLimits {
        nano_cpus: limits.nano_cpus,
        memory: limits.memory,
        memory_swap: limits.memory_swap,
        memory_reservation: limits.memory_reservation,
        // Zero and less are no limit, and shown as if nothing had been said.
        pids: limits.pids_limit.unwrap_or_default().max(0),
        cpu_shares: limits.cpu_shares,
        cpu_quota: limits.cpu_quota,
        cpu_period: limits.cpu_period,
        cpuset_cpus: limits.cpuset_cpus.clone(),
        cpuset_mems: limits.cpuset_mems.clone(),
        memory_swappiness: limits.memory_swappiness,
        oom_kill_disable: limits.oom_kill_disable == Some(true),
        blkio_weight: limits.blkio_weight.into(),
        blkio_weight_devices: weights(limits.blkio_weight_device.as_deref()),
        blkio_read_bps: rates(limits.blkio_device_read_bps.as_deref()),
        blkio_write_bps: rates(limits.blkio_device_write_bps.as_deref()),
        blkio_read_iops: rates(limits.blkio_device_read_iops.as_deref()),
        blkio_write_iops: rates(limits.blkio_device_write_iops.as_deref()),
        cpu_realtime_period: limits.cpu_realtime_period,
        cpu_realtime_runtime: limits.cpu_realtime_runtime,
    })
}

fn rates(devices: Option<&[types::ThrottleDevice]>) -> Vec<wire::DeviceRate> {
    let devices = devices.unwrap_or_default().iter();
    devices.map(|device| wire::DeviceRate { path: device.path.clone(), rate: device.rate }).collect()
}

fn weights(devices: Option<&[types::WeightDevice]>) -> Vec<wire::DeviceRate> {
    let devices = devices.unwrap_or_default().iter();
    devices.map(|device| wire::DeviceRate { path: device.path.clone(), rate: device.weight.into() }).collect()
}

pub(crate) fn restart_policy(policy: &types::RestartPolicy) -> Result<RestartPolicy, ApiError> {
    let name = RestartName::parse(&policy.name).ok_or_else(|| {
        ApiError::invalid(format!(
            "invalid restart policy: unknown policy '{}'; use one of 'no', 'always', 'on-failure', or \
             'unless-stopped'",
            policy.name
        ))
    })?;
    let max = u32::try_from(policy.maximum_retry_count)
        .map_err(|_| ApiError::invalid("invalid restart policy: maximum retry count cannot be negative"))?;
    if max != 0 && name != RestartName::OnFailure {
        return Err(ApiError::invalid(
            "invalid restart policy: maximum retry count can only be used with 'on-failure'",
        ));
    }
    Ok(RestartPolicy { name, max })
}

/// Docker's order is height, width.
pub(crate) fn console_size([height, width]: [u32; 2]) -> Result<Option<(u16, u16)>, ApiError> {
    if (height, width) == (0, 0) {
        return Ok(None);
    }
    match (u16::try_from(width), u16::try_from(height)) {
        (Ok(width), Ok(height)) => Ok(Some((width, height))),
        _ => Err(ApiError::invalid(format!("invalid console size {width}x{height}"))),
    }
}

/// The networks to join. The mode's own network is always one of them, with a MAC address for the container.
fn endpoints(body: &CreateBody, mode: &str) -> Result<Vec<EndpointConfig>, ApiError> {
    let given = body.networking_config.as_ref().and_then(|networking| networking.endpoints_config.as_ref());
    let mac = &body.config.mac_address;
    let mut endpoints = Vec::new();
    if matches!(mode, "host" | "none") || mode.starts_with("container:") {
        if let Some(name) = given.iter().flat_map(|map| map.keys()).find(|name| *name != mode) {
            return Err(ApiError::invalid(format!(
                "conflicting options: cannot attach to network '{name}' in network mode '{mode}'"
            )));
        }
        return Ok(endpoints);
    }
    let own = network_name(mode);
    for (name, settings) in given.into_iter().flatten() {
        let settings = settings.clone().unwrap_or_default();
        endpoints.push(endpoint(network_name(name), &settings)?);
    }
    if !mac.is_empty() || (!endpoints.is_empty() && !endpoints.iter().any(|endpoint| endpoint.network == own))
    {
        let found = endpoints.iter().position(|endpoint| endpoint.network == own);
        let place = found.unwrap_or_else(|| {
            endpoints.insert(0, EndpointConfig { network: own.to_owned(), ..EndpointConfig::default() });
            0
        });
        if !mac.is_empty() && endpoints[place].mac.is_none() {
            endpoints[place].mac = Some(parse_mac(mac).ok_or_else(|| invalid_mac(mac))?);
        }
    }
    Ok(endpoints)
}

/// The default network's other name.
fn network_name(name: &str) -> &str {
    if matches!(name, "" | "default") { "bridge" } else { name }
}

/// One network's settings, of `create` and of `network connect`.
pub(crate) fn endpoint(
    network: &str,
    settings: &types::EndpointSettings,
) -> Result<EndpointConfig, ApiError> {
    let ipam = settings.ipam_config.clone().unwrap_or_default();
    refuse(!ipam.link_local_ips.is_empty(), "--link-local-ip (LinkLocalIPs)")?;
    let mac = &settings.mac_address;
    Ok(EndpointConfig {
        network: network.to_owned(),
        address: address(&ipam.ipv4_address)?,
        address_v6: address(&ipam.ipv6_address)?,
        mac: if mac.is_empty() { None } else { Some(parse_mac(mac).ok_or_else(|| invalid_mac(mac))?) },
        aliases: settings.aliases.clone().unwrap_or_default(),
        links: settings.links.clone().unwrap_or_default(),
        gateway_priority: i32::try_from(settings.gw_priority)
            .map_err(|_| ApiError::invalid("GwPriority does not fit 32 bits"))?,
        driver_options: settings.driver_opts.clone().unwrap_or_default(),
    })
}

fn address(text: &str) -> Result<Option<std::net::IpAddr>, ApiError> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| ApiError::invalid(format!("invalid IP address: {text}")))
}

fn invalid_mac(text: &str) -> ApiError {
    ApiError::invalid(format!("invalid MAC address: {text}"))
}

#[cfg(test)]
#[path = "create_tests.rs"]
mod tests;
