//! Services: Docker's spec to the stored one and back, and the stored service as clients see it.

use std::collections::BTreeMap;

use rswarm_base::Kind;
use rswarm_proto::model::service as defaults;
use rswarm_proto::wire;
use rswarm_proto::wire::{endpoint_spec, restart_policy, service_spec, update_config, update_status};

use super::{healthcheck, healthcheck_out, meta, mounts, nanos, ports, refuse, ulimits, ulimits_out};
use crate::error::ApiError;
use crate::types;

// ---- in -------------------------------------------------------------------------------------------------

/// `networks` gives the identifiers of the networks that [`network_targets`] names.
pub(crate) fn spec(
    spec: &types::ServiceSpec,
    networks: &BTreeMap<String, String>,
) -> Result<wire::ServiceSpec, ApiError> {
    Ok(wire::ServiceSpec {
        annotations: Some(wire::Annotations {
            name: spec.name.clone(),
            labels: spec.labels.clone().unwrap_or_default(),
        }),
        task: Some(task(spec, networks)?),
        mode: Some(mode(&spec.mode)?),
        update: spec.update_config.as_ref().map(update).transpose()?,
        rollback: spec.rollback_config.as_ref().map(update).transpose()?,
        endpoint: spec.endpoint_spec.as_ref().map(endpoint).transpose()?,
    })
}

/// Names and identifiers of the networks that a spec attaches to: to be resolved before [`spec`].
pub(crate) fn network_targets(spec: &types::ServiceSpec) -> impl Iterator<Item = &str> {
    attachments(spec).iter().map(|attachment| attachment.target.as_str())
}

/// Old clients put them beside the task.
fn attachments(spec: &types::ServiceSpec) -> &[types::NetworkAttachmentConfig] {
    let in_task = &spec.task_template.networks;
    if in_task.is_empty() { &spec.networks } else { in_task }
}

fn mode(mode: &types::ServiceMode) -> Result<service_spec::Mode, ApiError> {
    refuse(mode.replicated_job.is_some(), "a service of mode replicated-job")?;
    refuse(mode.global_job.is_some(), "a service of mode global-job")?;
    match (&mode.replicated, &mode.global) {
        (Some(_), Some(_)) => Err(ApiError::invalid("must specify only one service mode")),
        (None, Some(_)) => Ok(service_spec::Mode::Global(wire::Global {})),
        (replicated, None) => {
            let replicas = replicated.as_ref().and_then(|replicated| replicated.replicas).unwrap_or(1);
            Ok(service_spec::Mode::Replicated(wire::Replicated { replicas }))
        }
    }
}

fn task(spec: &types::ServiceSpec, networks: &BTreeMap<String, String>) -> Result<wire::TaskSpec, ApiError> {
    let template = &spec.task_template;
    refuse(
        !matches!(template.runtime.as_str(), "" | "container"),
        "a service whose runtime is not \"container\"",
    )?;
    refuse(template.plugin_spec.is_some(), "a plugin service (PluginSpec)")?;
    refuse(template.network_attachment_spec.is_some(), "a network attachment (NetworkAttachmentSpec)")?;
    let Some(container_spec) = &template.container_spec else {
        return Err(ApiError::invalid("TaskTemplate: ContainerSpec is missing"));
    };
    let container = container(container_spec)?;
    let resources = template.resources.as_ref().map(resources).transpose()?;
    let networks = attachments(spec)
        .iter()
        .map(|attachment| wire::NetworkAttachmentConfig {
            target: networks.get(&attachment.target).cloned().unwrap_or_else(|| attachment.target.clone()),
            aliases: attachment.aliases.clone(),
            addresses: Vec::new(),
            driver_opts: attachment.driver_opts.clone(),
        })
        .collect();
    Ok(wire::TaskSpec {
        container: Some(container),
        resources,
        restart: template.restart_policy.as_ref().map(restart).transpose()?,
        placement: template.placement.as_ref().map(placement),
        log_driver: template
            .log_driver
            .as_ref()
            .map(|driver| wire::LogDriver { name: driver.name.clone(), options: driver.options.clone() }),
        networks,
        force_update: template.force_update,
    })
}

fn container(spec: &types::ContainerSpec) -> Result<wire::ContainerSpec, ApiError> {
    let later =
        |error: ApiError| error.hint("pass the value by an environment variable, a mount or the image");
    refuse(!spec.secrets.is_empty(), "a secret of a service (Secrets)").map_err(later)?;
    refuse(!spec.configs.is_empty(), "a config of a service (Configs)").map_err(later)?;
    if !matches!(spec.isolation.as_str(), "" | "default") {
        return Err(ApiError::invalid(format!("invalid isolation (\"{}\")", spec.isolation)));
    }
    let dns = spec.dns_config.clone().unwrap_or_default();
    let mounts = spec.mounts.iter().map(mounts::parse_mount).collect::<Result<Vec<_>, _>>()?;
    mounts::check_targets(&mounts)?;
    Ok(wire::ContainerSpec {
        image: spec.image.clone(),
        labels: spec.labels.clone(),
        entrypoint: spec.command.clone(),
        args: spec.args.clone(),
        hostname: spec.hostname.clone(),
        env: spec.env.clone(),
        workdir: spec.dir.clone(),
        user: spec.user.clone(),
        groups: spec.groups.clone(),
        tty: spec.tty,
        open_stdin: spec.open_stdin,
        read_only: spec.read_only,
        stop_signal: spec.stop_signal.clone(),
        stop_grace: spec.stop_grace_period,
        mounts,
        cap_add: spec.capability_add.clone(),
        cap_drop: spec.capability_drop.clone(),
        security_opt: spec.privileges.as_ref().map(privileges).transpose()?.unwrap_or_default(),
        sysctls: spec.sysctls.clone(),
        ulimits: ulimits(&spec.ulimits),
        init: spec.init,
        oom_score_adj: spec.oom_score_adj,
        hosts: hosts(&spec.hosts)?,
        dns: dns.nameservers,
        dns_search: dns.search,
        dns_options: dns.options,
        healthcheck: spec.healthcheck.as_ref().map(healthcheck).transpose()?,
        ..wire::ContainerSpec::default()
    })
}

/// `ADDRESS NAME [NAME…]`, as in `/etc/hosts`, to `NAME:ADDRESS` each.
fn hosts(lines: &[String]) -> Result<Vec<String>, ApiError> {
    let mut entries = Vec::new();
    for line in lines {
        let mut words = line.split_whitespace();
        let (address, names) = (words.next(), words);
        let before = entries.len();
        if let Some(address) = address {
            entries.extend(names.map(|name| format!("{name}:{address}")));
        }
        if entries.len() == before {
            return Err(ApiError::invalid(format!("invalid host \"{line}\": want ADDRESS NAME")));
        }
    }
    Ok(entries)
}

/// A service's privileges in the words of `--security-opt`, which is what containers have.
fn privileges(privileges: &types::Privileges) -> Result<Vec<String>, ApiError> {
    refuse(privileges.credential_spec.is_some(), "--credential-spec (CredentialSpec)")?;
    let mut options = Vec::new();
    if privileges.no_new_privileges {
        options.push("no-new-privileges".to_owned());
    }
    if let Some(seccomp) = &privileges.seccomp {
        match seccomp.mode.as_str() {
            "" | "default" => {}
            "unconfined" => options.push("seccomp=unconfined".to_owned()),
            "custom" => options.push(format!("seccomp={}", decode_profile(&seccomp.profile)?)),
            other => return Err(ApiError::invalid(format!("unknown seccomp mode '{other}'"))),
        }
    }
    if let Some(apparmor) = &privileges.apparmor {
        match apparmor.mode.as_str() {
            "" | "default" => {}
            "disabled" => options.push("apparmor=unconfined".to_owned()),
            other => return Err(ApiError::invalid(format!("unknown AppArmor mode '{other}'"))),
        }
    }
    if let Some(selinux) = &privileges.selinux_context {
        options.extend(selinux_options(selinux));
    }
    Ok(options)
}

fn selinux_options(selinux: &types::SelinuxContext) -> Vec<String> {
    if selinux.disable {
        return vec!["label=disable".to_owned()];
    }
    let parts = [
        ("user", &selinux.user),
        ("role", &selinux.role),
        ("type", &selinux.kind),
        ("level", &selinux.level),
    ];
    let set = parts.iter().filter(|(_, value)| !value.is_empty());
    set.map(|(key, value)| format!("label={key}:{value}")).collect()
}

/// Go sends bytes as base64.
fn decode_profile(profile: &str) -> Result<String, ApiError> {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD.decode(profile).ok();
    bytes
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .ok_or_else(|| ApiError::invalid("the seccomp profile is not base64 of JSON text"))
}

fn resources(resources: &types::ResourceRequirements) -> Result<wire::ResourceRequirements, ApiError> {
    refuse(resources.swap_bytes.is_some_and(|bytes| bytes != 0), "--memory-swap of a service (SwapBytes)")?;
    refuse(
        resources.memory_swappiness.is_some_and(|value| value != -1),
        "--memory-swappiness of a service (MemorySwappiness)",
    )?;
    let reservations = resources.reservations.as_ref();
    let generic = reservations.and_then(|reservations| reservations.generic_resources.as_ref());
    refuse(super::filled(generic), "--generic-resource (GenericResources)")?;
    Ok(wire::ResourceRequirements {
        limits: resources.limits.as_ref().map(|limits| wire::Resources {
            nano_cpus: limits.nano_cpus,
            memory: limits.memory_bytes,
            pids: limits.pids,
        }),
        reservations: reservations.map(|reservations| wire::Resources {
            nano_cpus: reservations.nano_cpus,
            memory: reservations.memory_bytes,
            pids: 0,
        }),
    })
}

fn restart(policy: &types::ServiceRestartPolicy) -> Result<wire::RestartPolicy, ApiError> {
    use restart_policy::Condition;
    let condition = match policy.condition.as_str() {
        "" | "any" => Condition::Any,
        "on-failure" => Condition::OnFailure,
        "none" => Condition::None,
        other => return Err(ApiError::invalid(format!("invalid RestartCondition: \"{other}\""))),
    };
    let mut result = wire::RestartPolicy {
        delay: policy.delay,
        max_attempts: policy.max_attempts.unwrap_or_default(),
        window: policy.window.unwrap_or_default(),
        ..wire::RestartPolicy::default()
    };
    result.set_condition(condition);
    Ok(result)
}

fn placement(placement: &types::Placement) -> wire::Placement {
    let spread = placement.preferences.iter().filter_map(|preference| preference.spread.as_ref());
    wire::Placement {
        constraints: placement.constraints.clone(),
        spread: spread.map(|over| over.spread_descriptor.clone()).collect(),
        max_replicas: placement.max_replicas,
        platforms: placement
            .platforms
            .iter()
            .map(|platform| wire::Platform {
                architecture: platform.architecture.clone(),
                os: platform.os.clone(),
            })
            .collect(),
    }
}

fn update(config: &types::UpdateConfig) -> Result<wire::UpdateConfig, ApiError> {
    use update_config::{FailureAction, Order};
    let action = match config.failure_action.as_str() {
        "" | "pause" => FailureAction::Pause,
        "continue" => FailureAction::Continue,
        "rollback" => FailureAction::Rollback,
        other => return Err(ApiError::invalid(format!("unrecognized update failure action {other}"))),
    };
    let order = match config.order.as_str() {
        "" | "stop-first" => Order::StopFirst,
        "start-first" => Order::StartFirst,
        other => return Err(ApiError::invalid(format!("unrecognized update order {other}"))),
    };
    let mut result = wire::UpdateConfig {
        parallelism: config.parallelism,
        delay: config.delay,
        monitor: config.monitor,
        max_failure_ratio: config.max_failure_ratio,
        ..wire::UpdateConfig::default()
    };
    result.set_failure_action(action);
    result.set_order(order);
    Ok(result)
}

fn endpoint(spec: &types::EndpointSpec) -> Result<wire::EndpointSpec, ApiError> {
    let mode = match spec.mode.as_str() {
        "" | "vip" => endpoint_spec::Mode::Vip,
        "dnsrr" => endpoint_spec::Mode::Dnsrr,
        other => {
            return Err(ApiError::invalid(format!(
                "invalid EndpointSpec mode \"{other}\": want vip or dnsrr"
            )));
        }
    };
    let mut result = wire::EndpointSpec {
        ports: spec.ports.iter().map(ports::service_port).collect::<Result<_, _>>()?,
        ..wire::EndpointSpec::default()
    };
    result.set_mode(mode);
    Ok(result)
}

// ---- out ------------------------------------------------------------------------------------------------

/// The stored service. With `defaults`, its spec shows what the managers assume where it says nothing.
pub(crate) fn service(service: &wire::Service, defaults: bool) -> types::Service {
    let (version, created_at, updated_at) = meta(service.meta);
    let mut spec = service.spec.as_ref().map(spec_out).unwrap_or_default();
    if defaults {
        insert_defaults(&mut spec);
    }
    types::Service {
        id: service.id.clone(),
        version,
        created_at,
        updated_at,
        spec,
        previous_spec: service.previous_spec.as_ref().map(spec_out),
        endpoint: service.endpoint.as_ref().map(endpoint_out).unwrap_or_default(),
        update_status: service.update_status.as_ref().and_then(update_status_out),
        service_status: None,
    }
}

pub(crate) fn spec_out(spec: &wire::ServiceSpec) -> types::ServiceSpec {
    let annotations = spec.annotations.clone().unwrap_or_default();
    types::ServiceSpec {
        name: annotations.name,
        labels: Some(annotations.labels),
        task_template: spec.task.as_ref().map(task_out).unwrap_or_default(),
        mode: mode_out(spec),
        update_config: spec.update.as_ref().map(update_out),
        rollback_config: spec.rollback.as_ref().map(update_out),
        networks: Vec::new(),
        endpoint_spec: spec.endpoint.as_ref().map(endpoint_spec_out),
    }
}

fn mode_out(spec: &wire::ServiceSpec) -> types::ServiceMode {
    match spec.mode_or_default() {
        defaults::Mode::Replicated(replicas) => types::ServiceMode {
            replicated: Some(types::ReplicatedService { replicas: Some(replicas) }),
            ..types::ServiceMode::default()
        },
        defaults::Mode::Global => {
            types::ServiceMode { global: Some(types::Empty {}), ..types::ServiceMode::default() }
        }
    }
}

pub(crate) fn task_out(task: &wire::TaskSpec) -> types::TaskSpec {
    types::TaskSpec {
        container_spec: task.container.as_ref().map(container_out),
        resources: task.resources.as_ref().map(resources_out),
        restart_policy: task.restart.as_ref().map(restart_out),
        placement: task.placement.as_ref().map(placement_out),
        networks: task.networks.iter().map(attachment_out).collect(),
        log_driver: task
            .log_driver
            .as_ref()
            .map(|driver| types::Driver { name: driver.name.clone(), options: driver.options.clone() }),
        force_update: task.force_update,
        runtime: "container".to_owned(),
        ..types::TaskSpec::default()
    }
}

fn attachment_out(attachment: &wire::NetworkAttachmentConfig) -> types::NetworkAttachmentConfig {
    types::NetworkAttachmentConfig {
        target: attachment.target.clone(),
        aliases: attachment.aliases.clone(),
        driver_opts: attachment.driver_opts.clone(),
    }
}

fn container_out(spec: &wire::ContainerSpec) -> types::ContainerSpec {
    let dns = types::DnsConfig {
        nameservers: spec.dns.clone(),
        search: spec.dns_search.clone(),
        options: spec.dns_options.clone(),
    };
    types::ContainerSpec {
        image: spec.image.clone(),
        labels: spec.labels.clone(),
        command: spec.entrypoint.clone(),
        args: spec.args.clone(),
        hostname: spec.hostname.clone(),
        env: spec.env.clone(),
        dir: spec.workdir.clone(),
        user: spec.user.clone(),
        groups: spec.groups.clone(),
        privileges: privileges_out(&spec.security_opt),
        init: spec.init,
        stop_signal: spec.stop_signal.clone(),
        tty: spec.tty,
        open_stdin: spec.open_stdin,
        read_only: spec.read_only,
        mounts: spec.mounts.iter().map(mounts::mount_out).collect(),
        stop_grace_period: spec.stop_grace,
        healthcheck: spec.healthcheck.as_ref().map(healthcheck_out),
        hosts: spec.hosts.iter().filter_map(|entry| host_out(entry)).collect(),
        dns_config: Some(dns),
        isolation: "default".to_owned(),
        sysctls: spec.sysctls.clone(),
        capability_add: spec.cap_add.clone(),
        capability_drop: spec.cap_drop.clone(),
        ulimits: ulimits_out(&spec.ulimits),
        oom_score_adj: spec.oom_score_adj,
        ..types::ContainerSpec::default()
    }
}

/// `NAME:ADDRESS` as `ADDRESS NAME`.
fn host_out(entry: &str) -> Option<String> {
    entry.split_once(':').map(|(name, address)| format!("{address} {name}"))
}

fn privileges_out(options: &[String]) -> Option<types::Privileges> {
    use base64::Engine as _;
    let mut privileges = types::Privileges::default();
    for option in options {
        let (key, value) = option.split_once('=').unwrap_or((option, ""));
        match (key, value) {
            ("no-new-privileges", _) => privileges.no_new_privileges = true,
            ("seccomp", "unconfined") => {
                privileges.seccomp =
                    Some(types::SeccompOpts { mode: "unconfined".into(), ..Default::default() });
            }
            ("seccomp", profile) => {
                let profile = base64::engine::general_purpose::STANDARD.encode(profile);
                privileges.seccomp = Some(types::SeccompOpts { mode: "custom".into(), profile });
            }
            ("apparmor", _) => privileges.apparmor = Some(types::AppArmorOpts { mode: "disabled".into() }),
            ("label", label) => {
                selinux_out(privileges.selinux_context.get_or_insert_default(), label);
            }
            _ => {}
        }
    }
    (!options.is_empty()).then_some(privileges)
}

fn selinux_out(context: &mut types::SelinuxContext, label: &str) {
    match label.split_once(':') {
        Some(("user", value)) => context.user = value.to_owned(),
        Some(("role", value)) => context.role = value.to_owned(),
        Some(("type", value)) => context.kind = value.to_owned(),
        Some(("level", value)) => context.level = value.to_owned(),
        _ => context.disable = true,
    }
}

fn resources_out(resources: &wire::ResourceRequirements) -> types::ResourceRequirements {
    types::ResourceRequirements {
        limits: resources.limits.as_ref().map(|limits| types::ResourceLimit {
            nano_cpus: limits.nano_cpus,
            memory_bytes: limits.memory,
            pids: limits.pids,
        }),
        reservations: resources.reservations.as_ref().map(|reservations| types::NodeResources {
            nano_cpus: reservations.nano_cpus,
            memory_bytes: reservations.memory,
            generic_resources: None,
        }),
        ..types::ResourceRequirements::default()
    }
}

fn restart_out(policy: &wire::RestartPolicy) -> types::ServiceRestartPolicy {
    use restart_policy::Condition;
    let condition = match policy.condition() {
        Condition::Any => "any",
        Condition::OnFailure => "on-failure",
        Condition::None => "none",
    };
    types::ServiceRestartPolicy {
        condition: condition.to_owned(),
        delay: policy.delay,
        max_attempts: Some(policy.max_attempts),
        window: (policy.window != 0).then_some(policy.window),
    }
}

fn placement_out(placement: &wire::Placement) -> types::Placement {
    let preferences = placement.spread.iter().map(|descriptor| types::PlacementPreference {
        spread: Some(types::SpreadOver { spread_descriptor: descriptor.clone() }),
    });
    types::Placement {
        constraints: placement.constraints.clone(),
        preferences: preferences.collect(),
        max_replicas: placement.max_replicas,
        platforms: placement
            .platforms
            .iter()
            .map(|platform| types::Platform {
                architecture: platform.architecture.clone(),
                os: platform.os.clone(),
            })
            .collect(),
    }
}

fn update_out(config: &wire::UpdateConfig) -> types::UpdateConfig {
    use update_config::{FailureAction, Order};
    let action = match config.failure_action() {
        FailureAction::Pause => "pause",
        FailureAction::Continue => "continue",
        FailureAction::Rollback => "rollback",
    };
    let order = match config.order() {
        Order::StopFirst => "stop-first",
        Order::StartFirst => "start-first",
    };
    types::UpdateConfig {
        parallelism: config.parallelism,
        delay: config.delay,
        failure_action: action.to_owned(),
        monitor: config.monitor,
        max_failure_ratio: config.max_failure_ratio,
        order: order.to_owned(),
    }
}

fn endpoint_spec_out(spec: &wire::EndpointSpec) -> types::EndpointSpec {
    let mode = match spec.mode() {
        endpoint_spec::Mode::Vip => "vip",
        endpoint_spec::Mode::Dnsrr => "dnsrr",
    };
    types::EndpointSpec {
        mode: mode.to_owned(),
        ports: spec.ports.iter().map(ports::service_port_out).collect(),
    }
}

fn endpoint_out(endpoint: &wire::Endpoint) -> types::Endpoint {
    types::Endpoint {
        spec: endpoint.spec.as_ref().map(endpoint_spec_out).unwrap_or_default(),
        ports: endpoint.ports.iter().map(ports::service_port_out).collect(),
        virtual_ips: endpoint
            .virtual_ips
            .iter()
            .map(|vip| types::VirtualIp { network_id: vip.network_id.clone(), addr: vip.address.clone() })
            .collect(),
    }
}

fn update_status_out(status: &wire::UpdateStatus) -> Option<types::UpdateStatus> {
    use update_status::State;
    let state = match status.state() {
        State::Unknown => return None,
        State::Updating => "updating",
        State::Paused => "paused",
        State::Completed => "completed",
        State::RollbackStarted => "rollback_started",
        State::RollbackPaused => "rollback_paused",
        State::RollbackCompleted => "rollback_completed",
    };
    let time = |at: i64| (at != 0).then(|| nanos(at));
    Some(types::UpdateStatus {
        state: state.to_owned(),
        started_at: time(status.started_at),
        completed_at: time(status.completed_at),
        message: status.message.clone(),
    })
}

/// What the managers assume where a spec says nothing (`insertDefaults=1`).
fn insert_defaults(spec: &mut types::ServiceSpec) {
    let nanos = |duration: std::time::Duration| i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
    let update = || types::UpdateConfig {
        parallelism: 1,
        failure_action: "pause".to_owned(),
        monitor: nanos(defaults::UPDATE_MONITOR),
        order: "stop-first".to_owned(),
        ..types::UpdateConfig::default()
    };
    spec.update_config.get_or_insert_with(update);
    spec.rollback_config.get_or_insert_with(update);
    let endpoint = spec.endpoint_spec.get_or_insert_default();
    if endpoint.mode.is_empty() {
        endpoint.mode = "vip".to_owned();
    }
    let task = &mut spec.task_template;
    task.resources.get_or_insert_default();
    task.placement.get_or_insert_default();
    let restart = task.restart_policy.get_or_insert_default();
    if restart.condition.is_empty() {
        restart.condition = "any".to_owned();
    }
    restart.delay.get_or_insert(nanos(defaults::RESTART_DELAY));
    restart.max_attempts.get_or_insert(0);
    let container = task.container_spec.get_or_insert_default();
    container.stop_grace_period.get_or_insert(nanos(defaults::STOP_GRACE));
}

/// How many of a service's tasks run, should run, and are done.
pub(crate) fn status(
    service: &wire::Service,
    tasks: &[wire::Task],
    is_ready: impl Fn(&str) -> bool,
) -> types::ServiceStatus {
    let own = || tasks.iter().filter(|task| task.service_id == service.id);
    let running = own().filter(|task| {
        task.observed() == wire::TaskState::Running
            && task.desired() == wire::TaskState::Running
            && is_ready(&task.node_id)
    });
    let desired = match service.spec.as_ref().map(wire::ServiceSpec::mode_or_default) {
        Some(defaults::Mode::Replicated(replicas)) => replicas,
        // As many as there are nodes to run one: those whose task should run.
        Some(defaults::Mode::Global) | None => {
            own().filter(|task| task.desired() == wire::TaskState::Running).count() as u64
        }
    };
    let completed = own().filter(|task| task.observed() == wire::TaskState::Complete).count() as u64;
    types::ServiceStatus {
        running_tasks: running.count() as u64,
        desired_tasks: desired,
        completed_tasks: completed,
    }
}

/// Docker's text for a service that there is not.
pub(crate) fn not_found(reference: &str) -> ApiError {
    ApiError::new(Kind::NotFound, format!("service {reference} not found"))
}

#[cfg(test)]
#[path = "service_tests.rs"]
mod tests;
