//! Settings that `service create` and `service update` share; lists differ, they are added to and removed from.

use clap::Args;
use rswarm_api::types::{
    ContainerSpec, DiscreteGenericResource, Driver, EndpointSpec, GenericResource, NetworkAttachmentConfig,
    Placement, PlacementPreference, PortConfig, ReplicatedService, ResourceLimit, ResourceRequirements,
    ServiceRestartPolicy, ServiceSpec, SpreadOver, UpdateConfig,
};

use crate::cmd::mount::split_csv;
use crate::cmd::{container, words};
use crate::units;

/// `KIND=COUNT`, as services ask for generic resources: docker's clients refuse names, and so do managers.
///
/// # Errors
/// What is wrong with it.
pub fn generic_resource(text: &str) -> Result<GenericResource, String> {
    let (kind, value) = text
        .split_once('=')
        .ok_or_else(|| format!("invalid generic-resource format `{text}` expected `name=value`"))?;
    let value = value.parse().map_err(|_| {
        format!("invalid generic-resource request `{text}`, Named Generic Resources is not supported for service create or update")
    })?;
    let spec = DiscreteGenericResource { kind: kind.to_owned(), value };
    Ok(GenericResource { discrete_resource_spec: Some(spec), ..GenericResource::default() })
}

/// The generic resources that a spec reserves, as they will be: of one kind there is one entry.
pub fn change_generic(spec: &mut ServiceSpec, add: Vec<GenericResource>, remove: &[String]) {
    if add.is_empty() && remove.is_empty() {
        return;
    }
    let kind = |resource: &GenericResource| {
        resource.discrete_resource_spec.as_ref().map(|spec| spec.kind.clone()).unwrap_or_default()
    };
    let resources = spec.task_template.resources.get_or_insert_default();
    let reserved = resources.reservations.get_or_insert_default().generic_resources.get_or_insert_default();
    reserved.retain(|old| !remove.contains(&kind(old)) && !add.iter().any(|new| kind(new) == kind(old)));
    reserved.extend(add);
}

/// Settings of one value each. What is not given stays as it is.
#[derive(Debug, Clone, Default, Args)]
pub struct Settings {
    /// How many tasks
    #[arg(long, value_name = "COUNT")]
    pub replicas: Option<u64>,
    /// Tasks of it per node at most; 0 is no limit
    #[arg(long, value_name = "COUNT")]
    replicas_max_per_node: Option<u64>,
    /// Run this instead of the image's entrypoint
    #[arg(long, value_name = "COMMAND")]
    entrypoint: Option<String>,
    /// Host name of containers; `{{.Node.Hostname}}` and the like are filled in
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// Run as this user, `USER[:GROUP]`
    #[arg(short, long)]
    user: Option<String>,
    /// Start in this directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Give containers a terminal
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    tty: Option<bool>,
    /// Run an init that reaps processes and passes signals on
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    init: Option<bool>,
    /// Make the root file system read-only
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    read_only: Option<bool>,
    /// Signal that stops containers
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<String>,
    /// Time from the stop signal to the kill
    #[arg(long, value_name = "DURATION", value_parser = units::parse_nanos)]
    stop_grace_period: Option<i64>,
    /// Isolation of containers
    #[arg(long)]
    isolation: Option<String>,
    /// Whom the kernel kills first, -1000 to 1000
    #[arg(long, value_name = "SCORE", allow_hyphen_values = true)]
    oom_score_adj: Option<i32>,
    /// Limit CPU time
    #[arg(long, value_name = "CPUS", value_parser = units::parse_nano_cpus)]
    limit_cpu: Option<i64>,
    /// Limit memory
    #[arg(long, value_name = "BYTES", value_parser = units::parse_bytes)]
    limit_memory: Option<i64>,
    /// Limit processes
    #[arg(long, value_name = "COUNT")]
    limit_pids: Option<i64>,
    /// Swap beyond the memory limit; -1 is no limit
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true, value_parser = units::parse_bytes_or_unlimited)]
    memory_swap: Option<i64>,
    /// How readily memory is swapped, 0 to 100; -1 is the node's own
    #[arg(long, value_name = "PERCENT", allow_hyphen_values = true)]
    memory_swappiness: Option<i64>,
    /// OCI runtime of containers, by its name on the nodes
    #[arg(long)]
    runtime: Option<String>,
    /// CPU time to keep free on the node
    #[arg(long, value_name = "CPUS", value_parser = units::parse_nano_cpus)]
    reserve_cpu: Option<i64>,
    /// Memory to keep free on the node
    #[arg(long, value_name = "BYTES", value_parser = units::parse_bytes)]
    reserve_memory: Option<i64>,
    /// When to restart: none, on-failure, any
    #[arg(long, value_name = "CONDITION", value_parser = ["none", "on-failure", "any"])]
    restart_condition: Option<String>,
    /// Time before a restart
    #[arg(long, value_name = "DURATION", value_parser = units::parse_nanos)]
    restart_delay: Option<i64>,
    /// Restarts at most
    #[arg(long, value_name = "COUNT")]
    restart_max_attempts: Option<u64>,
    /// Time in which restarts are counted
    #[arg(long, value_name = "DURATION", value_parser = units::parse_nanos)]
    restart_window: Option<i64>,
    #[command(flatten)]
    update: UpdateFlags,
    #[command(flatten)]
    rollback: RollbackFlags,
    /// How its name resolves: vip, dnsrr
    #[arg(long, value_name = "MODE", value_parser = ["vip", "dnsrr"])]
    endpoint_mode: Option<String>,
    /// Logging driver
    #[arg(long, value_name = "DRIVER")]
    log_driver: Option<String>,
    /// Logging driver option, `KEY=VALUE`
    #[arg(long, value_name = "OPTION")]
    log_opt: Vec<String>,
    #[command(flatten)]
    health: words::HealthArgs,
    /// Send registry credentials to the nodes
    #[arg(long)]
    pub with_registry_auth: bool,
}

macro_rules! rolling {
    ($(#[$meta:meta])* $name:ident, $parallelism:ident, $delay:ident, $failure:ident, $ratio:ident, $monitor:ident, $order:ident, $actions:expr) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Default, Args)]
        struct $name {
            /// Tasks that change at a time; 0 is all
            #[arg(long, value_name = "COUNT")]
            $parallelism: Option<u64>,
            /// Time between groups of tasks
            #[arg(long, value_name = "DURATION", value_parser = units::parse_nanos)]
            $delay: Option<i64>,
            /// What happens when tasks fail
            #[arg(long, value_name = "ACTION", value_parser = $actions)]
            $failure: Option<String>,
            /// Share of tasks that may fail
            #[arg(long, value_name = "RATIO")]
            $ratio: Option<f32>,
            /// How long a changed task is watched
            #[arg(long, value_name = "DURATION", value_parser = units::parse_nanos)]
            $monitor: Option<i64>,
            /// What comes first: start-first, stop-first
            #[arg(long, value_name = "ORDER", value_parser = ["start-first", "stop-first"])]
            $order: Option<String>,
        }

        impl $name {
            fn over(&self, current: Option<UpdateConfig>) -> Option<UpdateConfig> {
                let said = self.$parallelism.is_some() || self.$delay.is_some() || self.$failure.is_some()
                    || self.$ratio.is_some() || self.$monitor.is_some() || self.$order.is_some();
                if !said {
                    return current;
                }
                let before = current.unwrap_or(UpdateConfig { parallelism: 1, ..UpdateConfig::default() });
                Some(UpdateConfig {
                    parallelism: self.$parallelism.unwrap_or(before.parallelism),
                    delay: self.$delay.unwrap_or(before.delay),
                    failure_action: self.$failure.clone().unwrap_or(before.failure_action),
                    max_failure_ratio: self.$ratio.unwrap_or(before.max_failure_ratio),
                    monitor: self.$monitor.unwrap_or(before.monitor),
                    order: self.$order.clone().unwrap_or(before.order),
                })
            }
        }
    };
}

rolling!(
    /// How an update rolls.
    UpdateFlags, update_parallelism, update_delay, update_failure_action, update_max_failure_ratio,
    update_monitor, update_order, ["pause", "continue", "rollback"]
);
rolling!(
    /// How a rollback rolls.
    RollbackFlags, rollback_parallelism, rollback_delay, rollback_failure_action, rollback_max_failure_ratio,
    rollback_monitor, rollback_order, ["pause", "continue"]
);

impl Settings {
    /// Puts what was said into the spec, and leaves the rest.
    ///
    /// # Errors
    /// When a setting does not go with the service's mode.
    pub fn apply(&self, spec: &mut ServiceSpec) -> Result<(), String> {
        self.apply_mode(spec)?;
        self.apply_container(spec.task_template.container_spec.get_or_insert_default());
        let task = &mut spec.task_template;
        task.resources = self.resources(task.resources.take());
        task.restart_policy = self.restart(task.restart_policy.take());
        if let Some(max) = self.replicas_max_per_node {
            task.placement.get_or_insert_with(Placement::default).max_replicas = max;
        }
        if self.log_driver.is_some() || !self.log_opt.is_empty() {
            let before = task.log_driver.take().unwrap_or_default();
            let mut options = if self.log_driver.is_some() { Default::default() } else { before.options };
            options.extend(words::key_values(&self.log_opt));
            task.log_driver = Some(Driver { name: self.log_driver.clone().unwrap_or(before.name), options });
        }
        spec.update_config = self.update.over(spec.update_config.take());
        spec.rollback_config = self.rollback.over(spec.rollback_config.take());
        if let Some(mode) = &self.endpoint_mode {
            spec.endpoint_spec.get_or_insert_with(EndpointSpec::default).mode.clone_from(mode);
        }
        Ok(())
    }

    fn apply_mode(&self, spec: &mut ServiceSpec) -> Result<(), String> {
        let mode = &mut spec.mode;
        match (self.replicas, mode.global.is_some() || mode.global_job.is_some()) {
            (Some(_), true) => Err("replicas can only be used with replicated or replicated-job mode".into()),
            (Some(count), false) => {
                match &mut mode.replicated_job {
                    Some(job) => job.total_completions = Some(count),
                    None => mode.replicated = Some(ReplicatedService { replicas: Some(count) }),
                }
                Ok(())
            }
            (None, _) => Ok(()),
        }
    }

    fn apply_container(&self, container: &mut ContainerSpec) {
        let set = |to: &mut String, value: &Option<String>| {
            if let Some(value) = value {
                to.clone_from(value);
            }
        };
        set(&mut container.hostname, &self.hostname);
        set(&mut container.user, &self.user);
        set(&mut container.dir, &self.workdir);
        set(&mut container.stop_signal, &self.stop_signal);
        set(&mut container.isolation, &self.isolation);
        set(&mut container.runtime, &self.runtime);
        if let Some(entrypoint) = &self.entrypoint {
            container.command = shell_words(entrypoint);
        }
        container.tty = self.tty.unwrap_or(container.tty);
        container.read_only = self.read_only.unwrap_or(container.read_only);
        container.init = self.init.or(container.init);
        container.oom_score_adj = self.oom_score_adj.unwrap_or(container.oom_score_adj);
        container.stop_grace_period = self.stop_grace_period.or(container.stop_grace_period);
        container.healthcheck = self.health.over(container.healthcheck.take());
    }

    fn resources(&self, current: Option<ResourceRequirements>) -> Option<ResourceRequirements> {
        let mut resources = current.unwrap_or_default();
        if self.limit_cpu.is_some() || self.limit_memory.is_some() || self.limit_pids.is_some() {
            let before = resources.limits.unwrap_or_default();
            resources.limits = Some(ResourceLimit {
                nano_cpus: self.limit_cpu.unwrap_or(before.nano_cpus),
                memory_bytes: self.limit_memory.unwrap_or(before.memory_bytes),
                pids: self.limit_pids.unwrap_or(before.pids),
            });
        }
        resources.swap_bytes = self.memory_swap.or(resources.swap_bytes);
        resources.memory_swappiness = self.memory_swappiness.or(resources.memory_swappiness);
        if self.reserve_cpu.is_some() || self.reserve_memory.is_some() {
            let reservations = resources.reservations.get_or_insert_default();
            reservations.nano_cpus = self.reserve_cpu.unwrap_or(reservations.nano_cpus);
            reservations.memory_bytes = self.reserve_memory.unwrap_or(reservations.memory_bytes);
        }
        (resources != ResourceRequirements::default()).then_some(resources)
    }

    fn restart(&self, current: Option<ServiceRestartPolicy>) -> Option<ServiceRestartPolicy> {
        let before = current.unwrap_or_default();
        let policy = ServiceRestartPolicy {
            condition: self.restart_condition.clone().unwrap_or(before.condition),
            delay: self.restart_delay.or(before.delay),
            max_attempts: self.restart_max_attempts.or(before.max_attempts),
            window: self.restart_window.or(before.window),
        };
        (policy != ServiceRestartPolicy::default()).then_some(policy)
    }
}

/// Words as a shell cuts them: quotes keep spaces, a backslash keeps what follows.
pub fn shell_words(text: &str) -> Vec<String> {
    let (mut words, mut word, mut started, mut quote) = (Vec::new(), String::new(), false, None);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            (c, Some(open)) if c == open => quote = None,
            ('\'' | '"', None) => {
                quote = Some(c);
                started = true;
            }
            ('\\', None | Some('"')) => word.extend(chars.next()),
            (c, None) if c.is_whitespace() => {
                if started || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                started = false;
            }
            (c, _) => word.push(c),
        }
    }
    if started || !word.is_empty() {
        words.push(word);
    }
    words
}

/// `8080:80/tcp`, or `published=8080,target=80,protocol=tcp,mode=ingress`.
pub fn port(text: &str) -> Result<Vec<PortConfig>, String> {
    if !text.contains('=') {
        let short = container::published(text)?;
        let config = |(port, binding): (String, rswarm_api::types::PortBinding)| {
            let (target, protocol) = port.split_once('/').unwrap_or((&port, "tcp"));
            if !binding.host_ip.is_empty() {
                return Err(format!("invalid port `{text}`: a service's port is published on every address"));
            }
            let number = |text: &str| text.parse().map_err(|_| format!("invalid port `{text}`"));
            Ok(PortConfig {
                protocol: protocol.to_owned(),
                target_port: number(target)?,
                published_port: if binding.host_port.is_empty() { 0 } else { number(&binding.host_port)? },
                publish_mode: "ingress".into(),
                ..PortConfig::default()
            })
        };
        return short.into_iter().map(config).collect();
    }
    let mut port =
        PortConfig { protocol: "tcp".into(), publish_mode: "ingress".into(), ..PortConfig::default() };
    for field in split_csv(text) {
        let (key, value) = field.split_once('=').unwrap_or((&field, ""));
        let number = || {
            value
                .parse::<u16>()
                .map(u32::from)
                .map_err(|_| format!("invalid port `{text}`: `{key}` is a port"))
        };
        match (key, value) {
            ("target", _) => port.target_port = number()?,
            ("published", _) => port.published_port = number()?,
            ("protocol", "tcp" | "udp" | "sctp") => port.protocol = value.to_owned(),
            ("mode", "ingress" | "host") => port.publish_mode = value.to_owned(),
            ("name", _) => port.name = value.to_owned(),
            ("protocol" | "mode", _) => {
                return Err(format!("invalid port `{text}`: `{key}` cannot be `{value}`"));
            }
            _ => return Err(format!("invalid port `{text}`: `{key}` is not a port option")),
        }
    }
    if port.target_port == 0 {
        Err(format!("invalid port `{text}`: `target` is missing"))
    } else {
        Ok(vec![port])
    }
}

/// `app`, or `name=app,alias=web,driver-opt=K=V`.
pub fn network(text: &str) -> Result<NetworkAttachmentConfig, String> {
    let mut network = NetworkAttachmentConfig::default();
    if !text.contains('=') {
        network.target = text.to_owned();
        return Ok(network);
    }
    for field in split_csv(text) {
        let (key, value) = field.split_once('=').unwrap_or((&field, ""));
        match key {
            "name" => network.target = value.to_owned(),
            "alias" => network.aliases.push(value.to_owned()),
            "driver-opt" => network.driver_opts.extend(words::key_values(&[value.to_owned()])),
            _ => return Err(format!("invalid network `{text}`: `{key}` is not a network option")),
        }
    }
    if network.target.is_empty() {
        Err(format!("invalid network `{text}`: `name` is missing"))
    } else {
        Ok(network)
    }
}

/// `spread=node.labels.zone`
pub fn preference(text: &str) -> Result<PlacementPreference, String> {
    let descriptor = text.strip_prefix("spread=").filter(|descriptor| !descriptor.is_empty());
    let descriptor = descriptor.ok_or_else(|| {
        format!("invalid placement preference `{text}`: write it as `spread=node.labels.zone`")
    })?;
    Ok(PlacementPreference { spread: Some(SpreadOver { spread_descriptor: descriptor.to_owned() }) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_have_a_short_and_a_long_form() {
        let short = port("8080:80/udp").expect("short");
        assert_eq!(
            (short[0].published_port, short[0].target_port, short[0].protocol.as_str()),
            (8080, 80, "udp")
        );
        let long = port("published=8080,target=80,mode=host").expect("long");
        assert_eq!((long[0].publish_mode.as_str(), long[0].protocol.as_str()), ("host", "tcp"));
        for text in
            ["published=80", "target=x", "target=80,mode=mesh", "target=80,colour=red", "1.2.3.4:80:80"]
        {
            assert!(port(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_entrypoint_is_cut_as_a_shell_cuts() {
        assert_eq!(shell_words(r#"sh -c 'echo "a b"' c\ d """#), ["sh", "-c", "echo \"a b\"", "c d", ""]);
        assert!(shell_words("  ").is_empty());
    }

    #[test]
    fn networks_and_preferences_are_checked() {
        let attached = network("name=app,alias=a,alias=b").expect("a network");
        assert_eq!((attached.target.as_str(), attached.aliases.len()), ("app", 2));
        assert!(network("alias=a").is_err());
        assert!(preference("zone").is_err());
    }
}
