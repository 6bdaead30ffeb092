//! The stored service and its spec as clients see them.

use rswarm_proto::model::service as defaults;
use rswarm_proto::wire;
use rswarm_proto::wire::{endpoint_spec, restart_policy, update_config, update_status};

use super::read::RUNTIME_LABEL;
use crate::translate::{content, healthcheck_out, meta, mounts, nanos, ports, shown_generic, ulimits_out};
use crate::types;

/// What would come of a request.
pub(crate) fn forecast(foretold: wire::Forecast) -> types::ServiceForecast {
    let spec = foretold.service.and_then(|service| service.spec);
    types::ServiceForecast {
        spec: spec.as_ref().map(spec_out).unwrap_or_default(),
        tasks: foretold
            .tasks
            .into_iter()
            .map(|task| types::ForecastTask {
                name: task.name,
                replaces: task.replaces,
                from_node: task.from_node,
                starts: task.starts,
                to_node: task.to_node,
                err: task.err,
            })
            .collect(),
        unchanged: foretold.unchanged,
        complete: foretold.complete,
    }
}

/// The stored service. With `defaults`, its spec shows what the managers assume where it says nothing.
pub(crate) fn service(service: &wire::Service, defaults: bool) -> types::Service {
    let (version, created_at, updated_at) = meta(service.meta);
    let mut spec = service.spec.as_ref().map(spec_out).unwrap_or_default();
    if defaults {
        insert_defaults(&mut spec);
    }
    let mut endpoint = service.endpoint.as_ref().map(endpoint_out).unwrap_or_default();
    if service.spec.as_ref().is_none_or(|spec| spec.endpoint.is_none()) {
        // moby: what nobody asked for has no mode.
        endpoint.spec.mode.clear();
    }
    types::Service {
        id: service.id.clone(),
        version,
        created_at,
        updated_at,
        spec,
        previous_spec: service.previous_spec.as_ref().map(spec_out),
        endpoint,
        update_status: service.update_status.as_ref().and_then(update_status_out),
        service_status: None,
        deployment: service.deployment.as_ref().map(|deployment| types::Deployment {
            phase: service
                .update_status
                .as_ref()
                .and_then(update_status_out)
                .map(|status| status.state)
                .unwrap_or_default(),
            cause: deployment.cause.clone(),
            total: deployment.total,
            updated: deployment.updated,
            running: deployment.running,
            failed: deployment.failed,
        }),
        job_status: service.job_status.map(|status| types::JobStatus {
            job_iteration: types::Version { index: status.iteration },
            last_execution: nanos(status.last_execution),
        }),
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
        defaults::Mode::ReplicatedJob { concurrent, total } => types::ServiceMode {
            replicated_job: Some(types::ReplicatedJob {
                max_concurrent: Some(concurrent),
                total_completions: Some(total),
            }),
            ..types::ServiceMode::default()
        },
        defaults::Mode::GlobalJob => {
            types::ServiceMode { global_job: Some(types::Empty {}), ..types::ServiceMode::default() }
        }
    }
}

pub(crate) fn task_out(task: &wire::TaskSpec) -> types::TaskSpec {
    types::TaskSpec {
        container_spec: task.container.as_ref().map(|container| types::ContainerSpec {
            secrets: content::secret_references_out(&task.secrets),
            configs: content::config_references_out(&task.configs),
            ..container_out(container)
        }),
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
        runtime: if spec.labels.contains_key(RUNTIME_LABEL) { String::new() } else { spec.runtime.clone() },
        ..types::ContainerSpec::default()
    }
}

/// A line of `/etc/hosts`; `NAME:ADDRESS`, which those before us stored, as `ADDRESS NAME`.
fn host_out(entry: &str) -> Option<String> {
    if entry.contains(char::is_whitespace) {
        return Some(entry.to_owned());
    }
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
            generic_resources: shown_generic(&resources.generic),
        }),
        swap_bytes: resources.swap,
        memory_swappiness: resources.memory_swappiness,
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
        window: policy.window,
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
    // As dockerd: jobs too, which may not have any.
    for config in [&mut spec.update_config, &mut spec.rollback_config] {
        let config = config.get_or_insert_with(update);
        if config.monitor == 0 {
            config.monitor = nanos(defaults::UPDATE_MONITOR);
        }
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
