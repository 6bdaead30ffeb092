//! What is wrong with a spec: all of it at once, in Docker's words where it has some. Nothing is stored
//! before its spec has passed here, so everything else may rely on it.

mod content;

use std::collections::BTreeSet;
use std::fmt;

use prost::Message;
use rswarm_base::duration;
use rswarm_base::ipam::Subnet;
use rswarm_proto::model::service::Mode;
use rswarm_proto::wire::{
    Annotations, ClusterSpec, ContainerSpec, EndpointSpec, IpamConfig, Mount, NetworkSpec, NodeSpec,
    PortConfig, ResourceRequirements, Resources, RestartPolicy, ServiceSpec, TaskSpec, UpdateConfig,
    endpoint_spec, mount, port_config,
};

pub use self::content::{CONFIG_BYTES_MAX, SECRET_BYTES_MAX, content};
use crate::constraint::Constraint;
use crate::publish::balancing;
use crate::relocate;
use crate::state::{State, address_of};

/// Tasks that one service may ask for.
pub const REPLICAS_MAX: u64 = 1_000_000;
/// The least CPU that can be reserved or be the limit: a thousandth of one.
const NANO_CPUS_MIN: i64 = 1_000_000;
/// The least memory that can be reserved or be the limit.
const MEMORY_MIN: i64 = 4 << 20;
/// Characters of a name that is a part of DNS names.
const DNS_LABEL_MAX: usize = 63;
/// The network option that says how large packets may be.
const MTU_OPTION: &str = "com.docker.network.driver.mtu";
/// The least that a link of IPv6 carries.
/// spec: RFC 8200 5
const IPV6_MTU_MIN: u32 = 1280;
/// The prefix length below which a subnet has too few addresses to be of use (as swarmkit).
const PREFIX_MAX: u8 = 29;

/// Encoded bytes of a spec. Every task has a copy of its service's, and some copies must fit one write.
const SPEC_BYTES_MAX: usize = 1 << 20;

/// Bytes of all labels of a secret or config: beside its data, they must fit one write.
const LABELS_BYTES_MAX: usize = 16 << 10;

/// One thing that is wrong with a spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Which part of the spec, such as `ContainerSpec`; empty for the spec itself.
    pub field: &'static str,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            return f.write_str(&self.reason);
        }
        write!(f, "{}: {}", self.field, self.reason)
    }
}

/// Collects problems.
#[derive(Default)]
struct Findings(Vec<Problem>);

impl Findings {
    fn add(&mut self, field: &'static str, reason: impl Into<String>) {
        self.0.push(Problem { field, reason: reason.into() });
    }

    fn add_if(&mut self, wrong: bool, field: &'static str, reason: impl Into<String>) {
        if wrong {
            self.add(field, reason);
        }
    }

    /// What is too large for the raft log.
    fn add_size(&mut self, spec: &impl Message) {
        let bytes = spec.encoded_len();
        let reason = format!("the spec is too large: it has {bytes} bytes and may have {SPEC_BYTES_MAX}");
        self.add_if(bytes > SPEC_BYTES_MAX, "", reason);
    }

    fn result(self) -> Result<(), Vec<Problem>> {
        if self.0.is_empty() { Ok(()) } else { Err(self.0) }
    }
}

/// Checks a service's spec, networks already resolved to ids.
pub fn service(spec: &ServiceSpec, state: &State) -> Result<(), Vec<Problem>> {
    let mut findings = Findings::default();
    findings.add_size(spec);
    dns_name(spec.annotations.as_ref(), &mut findings);
    match &spec.task {
        None => findings.add("TaskSpec", "a task spec must be provided"),
        Some(spec) => task(spec, state, &mut findings),
    }
    content::templates(spec, &mut findings);
    if let Mode::Replicated(replicas) | Mode::ReplicatedJob { total: replicas, .. } = spec.mode_or_default() {
        let reason = format!("number of replicas must be at most {REPLICAS_MAX}, not {replicas}");
        findings.add_if(replicas > REPLICAS_MAX, "", reason);
    } else {
        let placement = spec.task.as_ref().and_then(|task| task.placement.as_ref());
        let max = placement.map_or(0, |placement| placement.max_replicas);
        findings.add_if(max > 0, "Placement", "max replicas per node can only be used in replicated mode");
    }
    let labels = spec.annotations.as_ref().map(|annotations| annotations.labels.clone()).unwrap_or_default();
    match crate::cron::parse(&labels) {
        Ok(None) => {}
        Ok(Some(_)) => {
            let is_job = spec.mode_or_default().is_job();
            findings.add_if(!is_job, "", "a schedule needs a job: use mode replicated-job or global-job");
        }
        Err(error) => findings.add("", error.to_string()),
    }
    if spec.mode_or_default().is_job() {
        findings.add_if(spec.update.is_some(), "", "Jobs may not have an update config");
        findings.add_if(spec.rollback.is_some(), "", "Jobs may not have a rollback config");
    } else {
        update(spec.update.as_ref(), "update", &mut findings);
        update(spec.rollback.as_ref(), "rollback", &mut findings);
    }
    if let Some(spec) = &spec.endpoint {
        endpoint(spec, &mut findings);
    }
    let labels = spec.annotations.as_ref().map(|annotations| &annotations.labels);
    if let Some(Err(reason)) = labels.map(balancing) {
        findings.add("", reason);
    }
    if let Some(Err(reason)) = labels.map(relocate::starts_first) {
        findings.add("", reason);
    }
    findings.result()
}

fn dns_name(annotations: Option<&Annotations>, findings: &mut Findings) {
    let name = annotations.map_or("", |annotations| annotations.name.as_str());
    if name.is_empty() {
        return findings.add("meta", "name must be provided");
    }
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let inside = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    let valid = inside && edge(name.chars().next()) && edge(name.chars().last());
    findings.add_if(!valid, "", "name must be valid as a DNS name component");
    findings.add_if(name.len() > DNS_LABEL_MAX, "", "name must be 63 characters or fewer");
}

fn task(spec: &TaskSpec, state: &State, findings: &mut Findings) {
    match &spec.container {
        None => findings.add("ContainerSpec", "a container spec must be provided"),
        Some(spec) => container(spec, findings),
    }
    if let Some(requirements) = &spec.resources {
        resources(requirements, findings);
    }
    if let Some(policy) = &spec.restart {
        restart(policy, findings);
    }
    if let Some(placement) = &spec.placement {
        for text in &placement.constraints {
            if let Err(error) = Constraint::parse(text) {
                findings.add("Placement", error.to_string());
            }
        }
        for descriptor in &placement.spread {
            let label = ["node.labels.", "engine.labels."]
                .iter()
                .any(|prefix| descriptor.len() > prefix.len() && descriptor.starts_with(prefix));
            let reason =
                format!("cannot spread over `{descriptor}`: want node.labels.NAME or engine.labels.NAME");
            findings.add_if(!label, "Placement", reason);
        }
    }
    networks(spec, state, findings);
    content::references(spec, findings);
}

fn networks(spec: &TaskSpec, state: &State, findings: &mut Findings) {
    let mut seen = BTreeSet::new();
    for config in &spec.networks {
        let target = config.target.as_str();
        let on_node = crate::allocate::NODE_NETWORKS.contains(&target);
        let known = state.network(target).is_some_and(|network| !network.pending_delete);
        findings.add_if(!on_node && !known, "Networks", format!("network {target} not found"));
        if let Some(ingress) = state.ingress_network().filter(|ingress| ingress.id == target) {
            let name = rswarm_proto::model::object::Stored::name(ingress.as_ref());
            let reason = format!("Service cannot be explicitly attached to the ingress network \"{name}\"");
            findings.add("", reason);
        }
        findings.add_if(!seen.insert(target), "Networks", format!("network {target} is given twice"));
        let alone = on_node && target != "bridge" && spec.networks.len() > 1;
        findings.add_if(alone, "Networks", format!("network {target} cannot be combined with others"));
        for address in &config.addresses {
            let reason = format!("`{address}` is not an IP address");
            findings.add_if(address_of(address).is_none(), "Networks", reason);
            let outside = address_of(address).filter(|address| is_outside(state, target, *address));
            let reason = format!("address {address} is in none of the subnets of network {target}");
            findings.add_if(outside.is_some(), "Networks", reason);
        }
        for alias in &config.aliases {
            let reason = format!(
                "\"{alias}\" is not a valid alias: want labels of letters, digits, `-` and `_`, at most 63 each, with `.` between them"
            );
            findings.add_if(!is_dns_name(alias), "Networks", reason);
        }
    }
}

/// Whether an address is on none of the network's subnets, as far as it has got them.
fn is_outside(state: &State, network: &str, address: std::net::IpAddr) -> bool {
    let Some(network) = state.network(network).filter(|network| !network.ipam.is_empty()) else {
        return false;
    };
    let mut subnets = network.ipam.iter().filter_map(|config| config.subnet.parse::<Subnet>().ok());
    !subnets.any(|subnet| subnet.contains(address))
}

/// Whether a name can be asked for (RFC 1035, and `_`, which people use).
fn is_dns_name(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

fn container(spec: &ContainerSpec, findings: &mut Findings) {
    const FIELD: &str = "ContainerSpec";
    if spec.image.trim().is_empty() {
        findings.add(FIELD, "image reference must be provided");
    } else {
        let valid = is_reference(&spec.image);
        findings.add_if(!valid, FIELD, format!("\"{}\" is not a valid repository/tag", spec.image));
    }
    let mut targets = BTreeSet::new();
    for mount in &spec.mounts {
        let twice = !targets.insert(mount.target.as_str());
        findings.add_if(twice, FIELD, format!("duplicate mount point: {}", mount.target));
        check_mount(mount, findings);
    }
    for variable in &spec.env {
        let nameless = variable.is_empty() || variable.starts_with('=');
        findings.add_if(nameless, FIELD, format!("invalid environment variable: \"{variable}\""));
    }
    findings.add_if(spec.stop_grace.is_some_and(|ns| ns < 0), FIELD, "stop-grace-period cannot be negative");
    confinement(spec, findings);
    if let Some(check) = &spec.healthcheck {
        for (name, ns) in [
            ("Interval", check.interval),
            ("Timeout", check.timeout),
            ("StartPeriod", check.start_period),
            ("StartInterval", check.start_interval),
        ] {
            let wrong = ns != 0 && ns < 1_000_000;
            findings.add_if(wrong, FIELD, format!("{name} in Healthcheck cannot be less than 1ms"));
        }
        findings.add_if(check.retries < 0, FIELD, "Retries in Healthcheck cannot be negative");
    }
}

/// What can be told without knowing the node; whether a capability or a runtime is there, only the node knows.
fn confinement(spec: &ContainerSpec, findings: &mut Findings) {
    const FIELD: &str = "ContainerSpec";
    let score = -1000..=1000;
    findings.add_if(
        !score.contains(&spec.oom_score_adj),
        FIELD,
        format!("Invalid value {}, range for oom score adj is [-1000, 1000]", spec.oom_score_adj),
    );
    for ulimit in &spec.ulimits {
        // -1 is without limit.
        let soft_is_more = ulimit.hard != -1 && (ulimit.soft > ulimit.hard || ulimit.soft == -1);
        let name = &ulimit.name;
        findings.add_if(name.is_empty(), FIELD, "invalid ulimit: it has no name");
        findings.add_if(
            soft_is_more,
            FIELD,
            format!(
                "ulimit soft limit must be less than or equal to hard limit: {} > {}",
                ulimit.soft, ulimit.hard
            ),
        );
    }
    for key in spec.sysctls.keys() {
        let is_namespaced = ["net.", "kernel.", "fs.mqueue."].iter().any(|prefix| key.starts_with(prefix));
        findings.add_if(
            !is_namespaced,
            FIELD,
            format!("sysctl '{key}' is not allowed: it is not a namespace's own"),
        );
    }
}

/// Whether the text could name an image at all; the registry client parses it in full.
fn is_reference(image: &str) -> bool {
    let (name, digest) = image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)));
    let (path, tag) = match name.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (name, None),
    };
    let (host, repository) = match path.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (host, rest),
        _ => ("", path),
    };
    let is_part = |part: &str| {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        part.chars().all(allowed) && edge(part.chars().next()) && edge(part.chars().last())
    };
    let is_tag = |tag: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        !tag.is_empty() && tag.len() <= 128 && tag.chars().all(allowed) && !tag.starts_with(['.', '-'])
    };
    let host_ok = host.chars().all(|c| c.is_ascii_alphanumeric() || ".-:[]".contains(c));
    host_ok
        && repository.split('/').all(is_part)
        && tag.is_none_or(is_tag)
        && digest.is_none_or(|digest| digest.split_once(':').is_some_and(|(_, hex)| hex.len() >= 32))
}

fn check_mount(mount: &Mount, findings: &mut Findings) {
    const FIELD: &str = "ContainerSpec";
    if mount.target.is_empty() {
        return findings.add(FIELD, "invalid mount config: field Target must not be empty");
    }
    let (target, source) = (&mount.target, &mount.source);
    let reason = format!("invalid mount path: '{target}' mount path must be absolute");
    findings.add_if(!target.starts_with('/'), FIELD, reason);
    let root = target.starts_with('/') && target.trim_matches(['/', '.']).is_empty();
    findings.add_if(root, FIELD, "invalid mount config: destination can't be '/'");
    match mount.r#type() {
        mount::Type::Bind => {
            let reason = format!("invalid mount path: '{source}' mount path must be absolute");
            findings.add_if(!source.starts_with('/'), FIELD, reason);
        }
        mount::Type::Tmpfs => {
            findings.add_if(
                !source.is_empty(),
                FIELD,
                "invalid mount config: field Source must not be specified",
            );
            findings.add_if(
                mount.tmpfs_size < 0,
                FIELD,
                "invalid mount config: tmpfs size cannot be negative",
            );
        }
        mount::Type::Volume => {
            let reason = format!("invalid mount source: volume name `{source}` must not be a path");
            findings.add_if(source.contains('/'), FIELD, reason);
        }
    }
}

fn resources(requirements: &ResourceRequirements, findings: &mut Findings) {
    let limits = requirements.limits.unwrap_or_default();
    let reserved = requirements.reservations.unwrap_or_default();
    amounts(&limits, findings);
    amounts(&reserved, findings);
    for resource in &requirements.generic {
        let (kind, count) = (&resource.kind, resource.count);
        let named = !resource.name.is_empty();
        findings.add_if(named, "", format!("invalid argument for resource {kind}"));
        findings.add_if(count < 0, "", format!("cannot ask for negative resource {kind}: {count}"));
        findings.add_if(kind.is_empty(), "Resources", "a generic resource needs a kind");
    }
    let over = |reserved: i64, limit: i64| limit > 0 && reserved > limit;
    let reason = "reserved CPU cannot be more than the limit";
    findings.add_if(over(reserved.nano_cpus, limits.nano_cpus), "Resources", reason);
    let reason = "reserved memory cannot be more than the limit";
    findings.add_if(over(reserved.memory, limits.memory), "Resources", reason);
}

fn amounts(resources: &Resources, findings: &mut Findings) {
    let cpus = resources.nano_cpus;
    if cpus != 0 && cpus < NANO_CPUS_MIN {
        let shown = cpus as f64 / 1e9;
        findings.add("", format!("invalid cpu value {shown}: Must be at least 0.001"));
    }
    let memory = resources.memory;
    let reason = format!("invalid memory value {memory}: Must be at least 4MiB");
    findings.add_if(memory != 0 && memory < MEMORY_MIN, "", reason);
    let reason = format!("invalid pids limit {}: cannot be negative", resources.pids);
    findings.add_if(resources.pids < 0, "", reason);
}

fn restart(policy: &RestartPolicy, findings: &mut Findings) {
    findings.add_if(policy.delay.is_some_and(|ns| ns < 0), "TaskSpec", "restart-delay cannot be negative");
    findings.add_if(policy.window.is_some_and(|ns| ns < 0), "TaskSpec", "restart-window cannot be negative");
}

fn update(config: Option<&UpdateConfig>, which: &str, findings: &mut Findings) {
    let Some(config) = config else { return };
    findings.add_if(config.delay < 0, "TaskSpec", format!("{which}-delay cannot be negative"));
    findings.add_if(config.monitor < 0, "TaskSpec", format!("{which}-monitor cannot be negative"));
    let ratio = (0.0..=1.0).contains(&config.max_failure_ratio);
    let reason = format!("{which}-maxfailureratio cannot be less than 0 or bigger than 1");
    findings.add_if(!ratio, "TaskSpec", reason);
}

fn endpoint(spec: &EndpointSpec, findings: &mut Findings) {
    const FIELD: &str = "EndpointSpec";
    let mut published = BTreeSet::new();
    let mut targets = BTreeSet::new();
    for port in &spec.ports {
        let ingress = port.mode() == port_config::Mode::Ingress;
        let reason = "port published with ingress mode can't be used with dnsrr mode";
        findings.add_if(ingress && spec.mode() == endpoint_spec::Mode::Dnsrr, FIELD, reason);
        check_port(port, findings);
        if port.published != 0 {
            let key = (port.mode, &port.protocol, port.published, &port.host_ip);
            findings.add_if(!published.insert(key), FIELD, "duplicate published ports provided");
        } else {
            let key = (port.mode, &port.protocol, port.target);
            findings.add_if(!targets.insert(key), FIELD, "duplicate published ports provided");
        }
    }
}

fn check_port(port: &PortConfig, findings: &mut Findings) {
    const FIELD: &str = "EndpointSpec";
    let known = matches!(port.protocol.as_str(), "tcp" | "udp" | "sctp");
    findings.add_if(!known, FIELD, format!("invalid protocol '{}'", port.protocol));
    let target = (1..=65535).contains(&port.target);
    findings.add_if(
        !target,
        FIELD,
        format!("invalid target port {}: must be between 1 and 65535", port.target),
    );
    let reason = format!("invalid published port {}: must be at most 65535", port.published);
    findings.add_if(port.published > 65535, FIELD, reason);
}

/// What IPv4 must carry, and what a packet can have.
const MTUS: std::ops::RangeInclusive<u32> = 576..=65535;

/// Checks a network's spec.
pub fn network(spec: &NetworkSpec, state: &State) -> Result<(), Vec<Problem>> {
    let mut findings = Findings::default();
    findings.add_size(spec);
    let name = spec.annotations.as_ref().map_or("", |annotations| annotations.name.as_str());
    if name.is_empty() {
        findings.add("", "name must be provided");
    } else {
        let valid = name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        let reason =
            format!("{name} includes invalid characters for a network name: want [a-zA-Z0-9][a-zA-Z0-9_.-]");
        findings.add_if(!valid, "", reason);
        let predefined = crate::allocate::NODE_NETWORKS.contains(&name);
        findings.add_if(predefined, "", format!("{name} is a pre-defined network and cannot be created"));
    }
    findings.add_if(spec.ingress && spec.attachable, "", "ingress network cannot be attachable");
    let driver = spec.driver.as_str();
    let reason = format!(
        "could not resolve driver {driver} in plugin registry: cluster networks are overlay networks"
    );
    findings.add_if(!driver.is_empty() && driver != "overlay", "", reason);
    let mut seen: Vec<Subnet> = Vec::new();
    for config in &spec.ipam {
        ipam(config, &mut seen, &mut findings);
    }
    for subnet in &seen {
        for other in state.networks() {
            let taken = other.ipam.iter().filter_map(|config| config.subnet.parse::<Subnet>().ok());
            if taken.into_iter().any(|taken| taken.overlaps(*subnet)) {
                let owner = rswarm_proto::model::object::Stored::name(other.as_ref());
                findings.add("", format!("Pool overlaps with other one on this address space: {subnet} is part of network {owner}"));
            }
        }
    }
    options(spec, &mut findings);
    families(spec, &seen, &mut findings);
    findings.result()
}

/// IPv6 is asked for, and its links can carry it.
fn families(spec: &NetworkSpec, subnets: &[Subnet], findings: &mut Findings) {
    let six = subnets.iter().find(|subnet| subnet.address().is_ipv6()).filter(|_| !spec.ipv6);
    if let Some(subnet) = six {
        findings.add("", format!("subnet {subnet} needs IPv6 to be enabled on the network (--ipv6)"));
    }
    let mtu = spec.options.get(MTU_OPTION).and_then(|text| text.parse::<u32>().ok());
    if let Some(mtu) = mtu.filter(|mtu| spec.ipv6 && *mtu < IPV6_MTU_MIN) {
        findings.add("", format!("invalid MTU number: {mtu}: IPv6 needs at least {IPV6_MTU_MIN}"));
    }
}

/// Options that nodes understand must have values that they can take.
fn options(spec: &NetworkSpec, findings: &mut Findings) {
    if let Some(mtu) = spec.options.get(MTU_OPTION) {
        let possible = mtu.parse().is_ok_and(|mtu: u32| MTUS.contains(&mtu));
        let (least, most) = (MTUS.start(), MTUS.end());
        let reason = format!("invalid MTU \"{mtu}\" ({MTU_OPTION}): want a number from {least} to {most}");
        findings.add_if(!possible, "", reason);
    }
}

fn ipam(config: &IpamConfig, seen: &mut Vec<Subnet>, findings: &mut Findings) {
    if config.subnet.is_empty() {
        let alone =
            config.gateway.is_empty() && config.ip_range.is_empty() && config.aux_addresses.is_empty();
        return findings.add_if(!alone, "", "a gateway, range or auxiliary address needs a subnet");
    }
    let subnet = match config.subnet.parse::<Subnet>() {
        Ok(subnet) => subnet,
        Err(error) => return findings.add("", error.to_string()),
    };
    let narrow = subnet.address().is_ipv4() && subnet.prefix() > PREFIX_MAX;
    findings.add_if(narrow, "", format!("subnet {subnet} is too small: /{PREFIX_MAX} is the smallest"));
    let reason = format!("subnet {subnet} overlaps another subnet of the network");
    findings.add_if(seen.iter().any(|other| other.overlaps(subnet)), "", reason);
    seen.push(subnet);
    let inside = |text: &str| address_of(text).is_some_and(|address| subnet.contains(address));
    if !config.gateway.is_empty() {
        let reason = format!("no matching subnet for gateway {}", config.gateway);
        findings.add_if(!inside(&config.gateway), "", reason);
    }
    if !config.ip_range.is_empty() {
        let range = config.ip_range.parse::<Subnet>();
        let fits =
            range.is_ok_and(|range| subnet.contains(range.address()) && range.prefix() >= subnet.prefix());
        findings.add_if(!fits, "", format!("no matching subnet for range {}", config.ip_range));
    }
    for (name, address) in &config.aux_addresses {
        findings.add_if(!inside(address), "", format!("no matching subnet for aux-address {name}={address}"));
    }
}

/// Checks a node's spec.
pub fn node(spec: &NodeSpec) -> Result<(), Vec<Problem>> {
    let mut findings = Findings::default();
    findings.add_size(spec);
    let labels = spec.annotations.as_ref().map(|annotations| &annotations.labels);
    let nameless = labels.is_some_and(|labels| labels.keys().any(String::is_empty));
    findings.add_if(nameless, "", "a label needs a name");
    let deadline = labels.and_then(|labels| labels.get(relocate::DEADLINE));
    if let Some(Err(error)) = deadline.map(|text| duration::parse(text)) {
        findings.add("", format!("label {}: {error}", relocate::DEADLINE));
    }
    findings.result()
}

/// Checks a cluster's spec.
pub fn cluster(spec: &ClusterSpec) -> Result<(), Vec<Problem>> {
    const HOUR: i64 = 3_600_000_000_000;
    const MILLISECOND: i64 = 1_000_000;
    // Nodes must have heard of a key before the next one comes.
    const TUNNEL_KEY_PERIOD_MIN: i64 = 10_000 * MILLISECOND;
    let mut findings = Findings::default();
    findings.add_size(spec);
    let name = spec.annotations.as_ref().map_or("", |annotations| annotations.name.as_str());
    findings.add_if(name != "default", "", "swarm spec name must be \"default\"");
    let expiry = spec.node_cert_expiry;
    findings.add_if(expiry != 0 && expiry < HOUR, "", "minimum certificate expiry time must be 1h0m0s");
    let period = spec.heartbeat_period;
    findings.add_if(period < 0, "", "heartbeat time period cannot be a negative duration");
    let hasty = period > 0 && period < 100 * MILLISECOND;
    findings.add_if(hasty, "", "heartbeat time period must be at least 100ms");
    let period = spec.tunnel_key_period;
    let hasty = period != 0 && period < TUNNEL_KEY_PERIOD_MIN;
    findings.add_if(hasty, "", "the keys of encrypted networks can be renewed every 10s at most");
    let (election, heartbeat) = (spec.election_tick, spec.heartbeat_tick);
    let slow = election != 0 && heartbeat != 0 && election <= heartbeat;
    findings.add_if(
        slow,
        "",
        format!("election tick must be more than heartbeat tick: {election} is not more than {heartbeat}"),
    );
    findings.result()
}

#[cfg(test)]
mod tests {
    use rswarm_proto::wire::Ulimit;

    use super::*;
    use crate::world::{World, node, spec};

    fn problems(change: impl FnOnce(&mut ServiceSpec)) -> Vec<String> {
        let mut spec = spec("web", 1);
        change(&mut spec);
        let found = service(&spec, &World::new(1).state).err().unwrap_or_default();
        found.iter().map(ToString::to_string).collect()
    }

    fn container(spec: &mut ServiceSpec) -> &mut ContainerSpec {
        spec.task.get_or_insert_default().container.get_or_insert_default()
    }

    fn named(name: &str) -> Vec<String> {
        problems(|spec| spec.annotations.get_or_insert_default().name = name.to_owned())
    }

    #[test]
    fn a_sound_spec_has_no_problems() {
        assert_eq!(problems(|_| {}), Vec::<String>::new());
        for name in ["a", "web-1", "web_2", "Web"] {
            assert_eq!(named(name), Vec::<String>::new(), "{name}");
        }
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let found = problems(|spec| {
            spec.annotations.get_or_insert_default().name = "a.b".to_owned();
            container(spec).image.clear();
            spec.update = Some(UpdateConfig { delay: -1, max_failure_ratio: 2.0, ..UpdateConfig::default() });
        });
        assert_eq!(
            found,
            [
                "name must be valid as a DNS name component",
                "ContainerSpec: image reference must be provided",
                "TaskSpec: update-delay cannot be negative",
                "TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1",
            ]
        );
    }

    #[test]
    fn names_are_parts_of_dns_names() {
        assert_eq!(named(""), ["meta: name must be provided"]);
        assert_eq!(named(&"a".repeat(64)), ["name must be 63 characters or fewer"]);
        for name in ["-a", "a-", "a b", "a.b", "ü"] {
            assert_eq!(named(name), ["name must be valid as a DNS name component"], "{name}");
        }
    }

    #[test]
    fn confinement_is_checked_as_far_as_it_can_be() {
        let found = problems(|spec| {
            let container = container(spec);
            container.oom_score_adj = 2000;
            container.ulimits.push(Ulimit { name: "nofile".into(), soft: 5, hard: 4 });
            container.ulimits.push(Ulimit { name: "core".into(), soft: 5, hard: -1 });
            container.sysctls.insert("vm.swappiness".into(), "1".into());
            container.sysctls.insert("net.core.somaxconn".into(), "1".into());
        });
        assert_eq!(
            found,
            [
                "ContainerSpec: Invalid value 2000, range for oom score adj is [-1000, 1000]",
                "ContainerSpec: ulimit soft limit must be less than or equal to hard limit: 5 > 4",
                "ContainerSpec: sysctl 'vm.swappiness' is not allowed: it is not a namespace's own",
            ]
        );
    }

    #[test]
    fn images_are_references() {
        let image = |image: &str| problems(|spec| container(spec).image = image.to_owned());
        let digest = format!("reg.example:5000/a/b@sha256:{}", "0".repeat(64));
        for good in ["web", "web:1", "library/web:v1.2", "reg.example:5000/a/b:t", "localhost/a", &digest] {
            assert_eq!(image(good), Vec::<String>::new(), "{good}");
        }
        for bad in ["UPPER", "a b", "web:", "web:t t", "/web", "web//x", "web@sha256:1"] {
            assert_eq!(image(bad), [format!("ContainerSpec: \"{bad}\" is not a valid repository/tag")]);
        }
    }

    #[test]
    fn mounts_have_targets_of_their_own() {
        let mount = |kind: mount::Type, source: &str, target: &str| Mount {
            r#type: kind.into(),
            source: source.to_owned(),
            target: target.to_owned(),
            ..Mount::default()
        };
        let with = |mounts: Vec<Mount>| problems(|spec| container(spec).mounts = mounts);
        assert_eq!(with(vec![mount(mount::Type::Volume, "data", "/data")]), Vec::<String>::new());
        assert_eq!(
            with(vec![mount(mount::Type::Volume, "a", "/x"), mount(mount::Type::Tmpfs, "", "/x")]),
            ["ContainerSpec: duplicate mount point: /x"]
        );
        assert_eq!(
            with(vec![mount(mount::Type::Bind, "rel", "/x")]),
            ["ContainerSpec: invalid mount path: 'rel' mount path must be absolute"]
        );
        assert_eq!(
            with(vec![mount(mount::Type::Tmpfs, "", "/")]),
            ["ContainerSpec: invalid mount config: destination can't be '/'"]
        );
    }

    #[test]
    fn amounts_have_least_values() {
        let reserve = |reserved: Resources, limits: Resources| {
            problems(|spec| {
                let requirements = ResourceRequirements {
                    limits: Some(limits),
                    reservations: Some(reserved),
                    ..ResourceRequirements::default()
                };
                spec.task.get_or_insert_default().resources = Some(requirements);
            })
        };
        let amount = |nano_cpus, memory| Resources { nano_cpus, memory, pids: 0 };
        assert_eq!(reserve(amount(NANO_CPUS_MIN, MEMORY_MIN), amount(0, 0)), Vec::<String>::new());
        assert_eq!(
            reserve(amount(1000, 1000), amount(0, 0)),
            [
                "invalid cpu value 0.000001: Must be at least 0.001",
                "invalid memory value 1000: Must be at least 4MiB"
            ]
        );
        assert_eq!(
            reserve(amount(0, 2 * MEMORY_MIN), amount(0, MEMORY_MIN)),
            ["Resources: reserved memory cannot be more than the limit"]
        );
    }

    #[test]
    fn ports_are_published_once() {
        let port = |published: u32, mode: port_config::Mode| PortConfig {
            protocol: "tcp".to_owned(),
            target: 80,
            published,
            mode: mode.into(),
            ..PortConfig::default()
        };
        let with = |ports: Vec<PortConfig>, mode: endpoint_spec::Mode| {
            problems(|spec| spec.endpoint = Some(EndpointSpec { mode: mode.into(), ports }))
        };
        use endpoint_spec::Mode::{Dnsrr, Vip};
        use port_config::Mode::{Host, Ingress};
        assert_eq!(with(vec![port(8080, Host), port(8081, Host)], Dnsrr), Vec::<String>::new());
        assert_eq!(
            with(vec![port(8080, Host), port(8080, Host)], Vip),
            ["EndpointSpec: duplicate published ports provided"]
        );
        assert_eq!(
            with(vec![port(8080, Ingress)], Dnsrr),
            ["EndpointSpec: port published with ingress mode can't be used with dnsrr mode"]
        );
        assert_eq!(
            with(vec![port(70_000, Host)], Vip),
            ["EndpointSpec: invalid published port 70000: must be at most 65535"]
        );
    }

    #[test]
    fn ways_to_balance_are_known_or_refused() {
        let with = |label: &str, value: &str| {
            problems(|spec| {
                let annotations = spec.annotations.get_or_insert_default();
                annotations.labels.insert(label.to_owned(), value.to_owned());
            })
        };
        for (label, value) in
            [("rswarm.lb", "sticky"), ("rswarm.local-first", "true"), ("rswarm.publish", "local")]
        {
            assert_eq!(with(label, value), Vec::<String>::new());
        }
        assert_eq!(
            with("rswarm.lb", "fair"),
            ["invalid label rswarm.lb=fair: want random, source-hash or sticky"]
        );
        assert!(with("rswarm.proxy-protocol", "v2")[0].contains("no proxy"));
    }

    #[test]
    fn a_spec_that_does_not_fit_the_log_is_refused() {
        let found = problems(|spec| container(spec).env = vec!["A=".repeat(SPEC_BYTES_MAX)]);
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("the spec is too large: it has 20"), "{}", found[0]);
        assert_eq!(problems(|spec| container(spec).env = vec!["A=".repeat(1000)]), Vec::<String>::new());
    }

    #[test]
    fn what_the_data_path_cannot_do_is_refused() {
        let check = |change: fn(&mut NetworkSpec)| {
            let annotations = Some(Annotations { name: "net".to_owned(), ..Annotations::default() });
            let mut spec = NetworkSpec { annotations, ..NetworkSpec::default() };
            change(&mut spec);
            let found = network(&spec, &World::new(1).state).err().unwrap_or_default();
            found
                .iter()
                .map(|problem| problem.to_string().chars().take(32).collect())
                .collect::<Vec<String>>()
        };
        assert_eq!(check(|spec| spec.ipv6 = true), Vec::<String>::new());
        let six = |spec: &mut NetworkSpec| {
            let subnet = "fd00:1::/64".to_owned();
            spec.ipam = vec![IpamConfig { subnet, ..IpamConfig::default() }];
        };
        assert_eq!(check(six), ["subnet fd00:1::/64 needs IPv6 to"]);
        let small = |spec: &mut NetworkSpec| {
            spec.ipv6 = true;
            spec.options.insert(MTU_OPTION.to_owned(), "1000".to_owned());
        };
        assert_eq!(check(small), ["invalid MTU number: 1000: IPv6 n"]);
        assert_eq!(
            check(|spec| drop(spec.options.insert("encrypted".to_owned(), String::new()))),
            Vec::<String>::new()
        );
        assert_eq!(
            check(|spec| drop(spec.options.insert("mtu".to_owned(), "1400".to_owned()))),
            Vec::<String>::new(),
            "Docker ignores options that it does not know"
        );
    }

    #[test]
    fn jobs_have_no_updates() {
        let found = problems(|spec| {
            let job = rswarm_proto::wire::GlobalJob {};
            spec.mode = Some(rswarm_proto::wire::service_spec::Mode::GlobalJob(job));
            spec.update = Some(UpdateConfig::default());
            spec.rollback = Some(UpdateConfig::default());
        });
        assert_eq!(found, ["Jobs may not have an update config", "Jobs may not have a rollback config"]);
    }

    #[test]
    fn replicas_have_a_limit() {
        let replicas = |replicas: u64| {
            problems(|spec| {
                let replicated = rswarm_proto::wire::Replicated { replicas };
                spec.mode = Some(rswarm_proto::wire::service_spec::Mode::Replicated(replicated));
            })
        };
        assert_eq!(replicas(REPLICAS_MAX), Vec::<String>::new());
        assert_eq!(replicas(u64::MAX).len(), 1);
    }

    #[test]
    fn subnets_fit_and_do_not_overlap() {
        let mut world = World::new(1);
        world.network("first");
        world.reconcile();
        let check = |config: IpamConfig| {
            let annotations = Some(Annotations { name: "net".to_owned(), ..Annotations::default() });
            let spec = NetworkSpec { annotations, ipam: vec![config], ..NetworkSpec::default() };
            let found = network(&spec, &world.state).err().unwrap_or_default();
            found.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let subnet = |subnet: &str| IpamConfig { subnet: subnet.to_owned(), ..IpamConfig::default() };
        assert_eq!(check(subnet("10.7.0.0/24")), Vec::<String>::new());
        assert_eq!(
            check(subnet("10.0.1.128/25")),
            ["Pool overlaps with other one on this address space: 10.0.1.128/25 is part of network first"]
        );
        assert_eq!(check(subnet("10.7.0.0/30")), ["subnet 10.7.0.0/30 is too small: /29 is the smallest"]);
        let gateway = IpamConfig { gateway: "10.8.0.1".to_owned(), ..subnet("10.7.0.0/24") };
        assert_eq!(check(gateway), ["no matching subnet for gateway 10.8.0.1"]);
    }

    #[test]
    fn an_absurd_mtu_is_refused() {
        let check = |mtu: &str| {
            let annotations = Some(Annotations { name: "net".to_owned(), ..Annotations::default() });
            let mut spec = NetworkSpec { annotations, ..NetworkSpec::default() };
            spec.options.insert(MTU_OPTION.to_owned(), mtu.to_owned());
            network(&spec, &World::new(1).state).is_ok()
        };
        assert!(["576", "1400", "9000", "65535"].into_iter().all(check));
        for mtu in ["0", "68", "65536", "-1", "big", "", "99999999999999999999"] {
            assert!(!check(mtu), "{mtu}");
        }
    }

    #[test]
    fn aliases_and_addresses_must_fit_the_network() {
        let mut world = World::new(1);
        let id = world.network("first");
        world.reconcile();
        let check = |alias: &str, address: &str| {
            let mut spec = spec("web", 1);
            spec.task.get_or_insert_default().networks = vec![rswarm_proto::wire::NetworkAttachmentConfig {
                target: id.clone(),
                aliases: vec![alias.to_owned()],
                addresses: vec![address.to_owned()],
                ..Default::default()
            }];
            let found = service(&spec, &world.state).err().unwrap_or_default();
            found.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(check("db.main_1", "10.0.1.9"), Vec::<String>::new());
        for alias in ["", "a b", "a..b", ".", "caf\u{e9}", &"x".repeat(64), &"x.".repeat(127)] {
            assert_eq!(check(alias, "10.0.1.9").len(), 1, "{alias}");
        }
        let outside = check("db", "10.9.9.9");
        assert!(outside[0].contains("address 10.9.9.9 is in none of the subnets of network"), "{outside:?}");
    }

    #[test]
    fn clusters_and_nodes_are_checked_too() {
        assert_eq!(super::node(&node("n1").spec.unwrap_or_default()), Ok(()));
        let named = Some(Annotations { name: "default".to_owned(), ..Annotations::default() });
        let spec = ClusterSpec { annotations: named, ..ClusterSpec::default() };
        assert_eq!(cluster(&spec), Ok(()));
        let bad = ClusterSpec {
            annotations: None,
            election_tick: 2,
            heartbeat_tick: 2,
            heartbeat_period: 1,
            ..spec
        };
        assert_eq!(cluster(&bad).err().map(|problems| problems.len()), Some(3));
    }
}
