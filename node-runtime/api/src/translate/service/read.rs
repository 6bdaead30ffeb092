//! Docker's service spec to the stored one.

use std::collections::BTreeMap;

use rswarm_proto::wire;
use rswarm_proto::wire::{endpoint_spec, restart_policy, service_spec, update_config};

use crate::error::ApiError;
use crate::translate::{content, generic, healthcheck, mounts, ports, refuse, ulimits};
use crate::types;

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
    let named = [
        mode.replicated.is_some(),
        mode.global.is_some(),
        mode.replicated_job.is_some(),
        mode.global_job.is_some(),
    ];
    if named.iter().filter(|named| **named).count() > 1 {
        return Err(ApiError::invalid("must specify only one service mode"));
    }
    if let Some(job) = &mode.replicated_job {
        // As moby: one at a time, and as often as there are at a time.
        let max_concurrent = job.max_concurrent.unwrap_or(1);
        let total_completions = job.total_completions.unwrap_or(max_concurrent);
        let job = wire::ReplicatedJob { max_concurrent, total_completions };
        return Ok(service_spec::Mode::ReplicatedJob(job));
    }
    match (&mode.replicated, &mode.global) {
        _ if mode.global_job.is_some() => Ok(service_spec::Mode::GlobalJob(wire::GlobalJob {})),
        (_, Some(_)) => Ok(service_spec::Mode::Global(wire::Global {})),
        (replicated, None) => {
            let replicas = replicated.as_ref().and_then(|replicated| replicated.replicas).unwrap_or(1);
            Ok(service_spec::Mode::Replicated(wire::Replicated { replicas }))
        }
    }
}

fn task(spec: &types::ServiceSpec, networks: &BTreeMap<String, String>) -> Result<wire::TaskSpec, ApiError> {
    let template = &spec.task_template;
    refuse(template.plugin_spec.is_some(), "a plugin service (PluginSpec)")?;
    refuse(template.network_attachment_spec.is_some(), "a network attachment (NetworkAttachmentSpec)")?;
    // As moby: what runs it, and the spec for that, go together.
    let container_spec = match (template.runtime.as_str(), &template.container_spec) {
        ("" | "container", Some(spec)) => spec,
        ("" | "container" | "plugin" | "attachment", _) => {
            return Err(ApiError::invalid("mismatched Runtime and *Spec fields"));
        }
        _ => return Err(ApiError::invalid("unsupported runtime")),
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
        secrets: content::secret_references(&container_spec.secrets),
        configs: content::config_references(&container_spec.configs)?,
        attachment: None,
    })
}

fn container(spec: &types::ContainerSpec) -> Result<wire::ContainerSpec, ApiError> {
    if !matches!(spec.isolation.as_str(), "" | "default") {
        return Err(ApiError::invalid(format!("invalid isolation (\"{}\")", spec.isolation)));
    }
    let dns = spec.dns_config.clone().unwrap_or_default();
    let mounts = spec.mounts.iter().map(mounts::parse_task_mount).collect::<Result<Vec<_>, _>>()?;
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
        runtime: runtime(spec),
        hosts: hosts(&spec.hosts)?,
        dns: dns.nameservers,
        dns_search: dns.search,
        dns_options: dns.options,
        healthcheck: spec.healthcheck.as_ref().map(healthcheck).transpose()?,
        ..wire::ContainerSpec::default()
    })
}

/// The container label by which docker's clients and stack files choose a service's OCI runtime: their spec has no
/// field for it. Ours has `Runtime`.
pub(super) const RUNTIME_LABEL: &str = "rswarm.runtime";

fn runtime(spec: &types::ContainerSpec) -> String {
    match spec.labels.get(RUNTIME_LABEL) {
        Some(name) if spec.runtime.is_empty() => name.clone(),
        _ => spec.runtime.clone(),
    }
}

/// `ADDRESS NAME [NAME…]`, as in `/etc/hosts`, kept as they are.
fn hosts(lines: &[String]) -> Result<Vec<String>, ApiError> {
    match lines.iter().find(|line| line.split_whitespace().count() < 2) {
        Some(line) => Err(ApiError::invalid(format!("invalid host \"{line}\": want ADDRESS NAME"))),
        None => Ok(lines.to_vec()),
    }
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
    check_swap(resources)?;
    let reservations = resources.reservations.as_ref();
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
        swap: resources.swap_bytes,
        memory_swappiness: resources.memory_swappiness,
        generic: generic(reservations.and_then(|reservations| reservations.generic_resources.as_ref())),
    })
}

/// swarmkit: swap is counted beyond the memory limit, and only -1 is without limit.
fn check_swap(resources: &types::ResourceRequirements) -> Result<(), ApiError> {
    let limit = resources.limits.as_ref().map_or(0, |limits| limits.memory_bytes);
    match (resources.swap_bytes, resources.memory_swappiness) {
        (Some(bytes), _) if bytes < -1 => {
            Err(ApiError::invalid(format!("invalid memory swap: {bytes}: must be -1 or more")))
        }
        (Some(bytes), _) if bytes > 0 && limit == 0 => {
            Err(ApiError::invalid("invalid memory swap: a memory limit must be set with it"))
        }
        (_, Some(value)) if !(-1..=100).contains(&value) => Err(ApiError::invalid(format!(
            "invalid memory swappiness: {value}: must be between 0 and 100, or -1 for the node's own"
        ))),
        _ => Ok(()),
    }
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
        window: policy.window,
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
            return Err(ApiError::invalid(format!("invalid resolution mode: \"{other}\"")));
        }
    };
    let mut result = wire::EndpointSpec {
        ports: spec.ports.iter().map(ports::service_port).collect::<Result<_, _>>()?,
        ..wire::EndpointSpec::default()
    };
    result.set_mode(mode);
    Ok(result)
}
