//! From a container to the OCI runtime spec that its shim executes. Pure: what must be known of the machine
//! comes in as [`Host`] and [`Input`].

mod capabilities;
mod mounts;
mod profile;
mod resources;
mod security;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Linux, LinuxNamespace, LinuxNamespaceType, LinuxSeccomp, PosixRlimit, PosixRlimitBuilder,
    PosixRlimitType, Process, Root, Spec,
};
use rswarm_proto::model::container::{ContainerSpec, Ulimit};

use crate::config::SeccompProfile;
use crate::container::Container;
use crate::merge;

pub(crate) use capabilities::bounding_set;
pub(crate) use mounts::VolumeSource;
pub(crate) use resources::{
    HostDevice, Support, check as check_resources, discard as discard_unsupported, merge as merge_resources,
    parse_set, to_oci as oci_resources,
};
pub(crate) use security::{Seccomp, Security};

/// What the machine can do, read once.
#[derive(Debug, Clone, Default)]
pub(crate) struct Host {
    /// Capabilities that a container can have: names without `CAP_`.
    pub capabilities: BTreeSet<&'static str>,
    /// The daemon's own hard limits, by ulimit name.
    pub hard_limits: BTreeMap<String, u64>,
    /// Whether the daemon may go beyond them.
    pub may_raise_limits: bool,
    /// Processors.
    pub cpus: usize,
    /// Whether the kernel's cgroups are v2 only.
    pub cgroup_v2: bool,
    /// What they can limit.
    pub support: Support,
    /// Whether message queues are mounted on the machine.
    pub mqueue: bool,
}

/// Where a namespace of the container comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Namespace {
    /// A new one.
    Own,
    /// The one that the shim is in.
    Host,
    /// An existing one.
    Path(PathBuf),
}

/// What generation needs beside the container.
pub(crate) struct Input<'a> {
    pub container: &'a Container,
    pub host: &'a Host,
    /// Where the root file system gets mounted.
    pub rootfs: &'a Path,
    /// The directory with `hosts`, `hostname` and `resolv.conf`.
    pub etc: &'a Path,
    pub cgroup: &'a str,
    pub network: Namespace,
    pub pid: Namespace,
    pub ipc: Namespace,
    pub volumes: &'a BTreeMap<String, VolumeSource>,
    /// The host's devices that the container gets; all of them when it is privileged.
    pub devices: &'a [HostDevice],
    /// Finds the block devices that limits name.
    pub numbers: resources::Numbers<'a>,
    /// The directory that is its `/dev/shm`, when others share it.
    pub shm: Option<&'a Path>,
    pub security: &'a Security,
    /// The program that runs as the first process, when there is one.
    pub init: Option<&'a Path>,
    /// Variables that tell of linked containers.
    pub linked: &'a [String],
    /// The daemon's default ulimits.
    pub ulimits: &'a [Ulimit],
}

/// Where the init program is inside the container.
const INIT_TARGET: &str = "/sbin/docker-init";

/// Generates the spec.
///
/// # Errors
/// What was asked for and cannot be had, in one sentence.
pub(crate) fn generate(input: &Input<'_>) -> Result<Spec, String> {
    let config = &input.container.config.spec;
    let mut root = Root::default();
    root.set_path(input.rootfs.to_owned()).set_readonly(Some(config.read_only));
    let mut spec = Spec::default();
    spec.set_root(Some(root))
        .set_process(Some(process(input)?))
        .set_mounts(Some(mounts::mounts(input)?))
        .set_linux(Some(linux(input)?));
    let shares_host_name = config.uts_mode == "host";
    spec.set_hostname((!shares_host_name).then(|| host_name(input.container)));
    spec.set_domainname((!config.domainname.is_empty()).then(|| config.domainname.clone()));
    let annotations: HashMap<String, String> =
        config.annotations.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    spec.set_annotations((!annotations.is_empty()).then_some(annotations));
    Ok(spec)
}

/// Checks what can be known to be wrong before a container exists.
///
/// # Errors
/// The first thing, in one sentence.
pub(crate) fn check(spec: &ContainerSpec, host: &Host) -> Result<(), String> {
    capabilities::check(spec)?;
    if let Some(unknown) = spec.ulimits.iter().find(|ulimit| !ULIMITS.contains(&ulimit.name.as_str())) {
        return Err(format!("invalid ulimit type: {}", unknown.name));
    }
    if !(-1000..=1000).contains(&spec.oom_score_adj) {
        return Err(format!(
            "Invalid value {}, range for oom score adj is [-1000, 1000]",
            spec.oom_score_adj
        ));
    }
    if spec.shm_size < 0 {
        return Err("SHM size can not be less than 0".to_owned());
    }
    spec.device_cgroup_rules.iter().try_for_each(|rule| resources::parse_rule(rule).map(drop))?;
    rlimits(&spec.ulimits, &[], host).map(drop)
}

/// The name that the container has for itself: its own, else its short identifier.
pub(crate) fn host_name(container: &Container) -> String {
    let asked = &container.config.spec.hostname;
    if asked.is_empty() { rswarm_base::id::short(&container.id).to_owned() } else { asked.clone() }
}

fn process(input: &Input<'_>) -> Result<Process, String> {
    let config = &input.container.config.spec;
    let mut args = vec![input.container.path.clone()];
    args.extend(input.container.args.iter().cloned());
    if input.init.is_some() {
        args.splice(0..0, [INIT_TARGET.to_owned(), "--".to_owned()]);
    }
    let cwd = if config.workdir.is_empty() { "/" } else { &config.workdir };
    let mut process = Process::default();
    process
        .set_terminal(Some(config.tty))
        .set_args(Some(args))
        .set_env(Some(merge::environment(config, &host_name(input.container), input.linked)))
        .set_cwd(PathBuf::from(merge::clean_path(cwd)))
        .set_capabilities(Some(capabilities::capabilities(config, input.host)?))
        .set_rlimits(Some(rlimits(&config.ulimits, input.ulimits, input.host)?))
        .set_no_new_privileges(Some(input.security.no_new_privileges))
        .set_oom_score_adj((config.oom_score_adj != 0).then_some(config.oom_score_adj));
    Ok(process)
}

fn linux(input: &Input<'_>) -> Result<Linux, String> {
    let config = &input.container.config.spec;
    let open = config.privileged || input.security.unmasked;
    let paths = |asked: &Option<Vec<String>>, paths: &[&str]| match asked {
        _ if open => Vec::new(),
        Some(asked) => asked.clone(),
        None => paths.iter().map(ToString::to_string).collect(),
    };
    let mut linux = Linux::default();
    linux
        .set_namespaces(Some(namespaces(input)))
        .set_resources(Some(resources::resources(input)?))
        .set_devices(Some(resources::nodes(input.devices)))
        .set_cgroups_path(Some(PathBuf::from(input.cgroup)))
        .set_sysctl(Some(sysctls(input)?))
        .set_seccomp(seccomp(input)?)
        .set_masked_paths(Some(paths(&input.container.config.masked_paths, MASKED_PATHS)))
        .set_readonly_paths(Some(paths(&input.container.config.readonly_paths, READONLY_PATHS)));
    Ok(linux)
}

/// The system call filter: what the default profile allows depends on the capabilities.
fn seccomp(input: &Input<'_>) -> Result<Option<LinuxSeccomp>, String> {
    let config = &input.container.config.spec;
    if config.privileged {
        return Ok(None);
    }
    let capabilities = capabilities::capabilities(config, input.host)?;
    let capabilities = capabilities.bounding().clone().unwrap_or_default();
    match &input.security.seccomp {
        Seccomp::Default => Ok(Some(rswarm_runtime::seccomp::docker_default(&capabilities))),
        Seccomp::Unconfined => Ok(None),
        Seccomp::Profile(json) => profile::parse(json, &capabilities).map(Some),
    }
}

/// Checks the profile of containers that choose none.
///
/// # Errors
/// What is wrong with it, in one sentence.
pub(crate) fn check_profile(profile: &SeccompProfile) -> Result<(), String> {
    match profile {
        SeccompProfile::Builtin | SeccompProfile::Unconfined => Ok(()),
        SeccompProfile::File { json, .. } => profile::parse(json, &HashSet::new()).map(drop),
    }
}

/// What a container cannot see of the kernel, unless it is privileged or asks for all.
pub const MASKED_PATHS: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// What it can see and not change.
pub const READONLY_PATHS: &[&str] =
    &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

fn namespaces(input: &Input<'_>) -> Vec<LinuxNamespace> {
    let config = &input.container.config.spec;
    let own_unless_host = |mode: &str| if mode == "host" { Namespace::Host } else { Namespace::Own };
    let cgroup_mode = match config.cgroupns_mode.as_str() {
        // moby: private where cgroups are v2, the host's where they are not, and for privileged ones.
        "" if input.host.cgroup_v2 && !config.privileged => "private",
        "" => "host",
        mode => mode,
    };
    let wanted = [
        (LinuxNamespaceType::Mount, Namespace::Own),
        (LinuxNamespaceType::Network, input.network.clone()),
        (LinuxNamespaceType::Uts, own_unless_host(&config.uts_mode)),
        (LinuxNamespaceType::Pid, input.pid.clone()),
        (LinuxNamespaceType::Ipc, input.ipc.clone()),
        (LinuxNamespaceType::Cgroup, own_unless_host(cgroup_mode)),
    ];
    wanted.into_iter().filter_map(|(typ, from)| namespace(typ, from)).collect()
}

fn namespace(typ: LinuxNamespaceType, from: Namespace) -> Option<LinuxNamespace> {
    let path = match from {
        Namespace::Host => return None,
        Namespace::Own => None,
        Namespace::Path(path) => Some(path),
    };
    let mut namespace = LinuxNamespace::default();
    namespace.set_typ(typ).set_path(path);
    Some(namespace)
}

/// The defaults of a network namespace of one's own, under what the user sets.
fn sysctls(input: &Input<'_>) -> Result<HashMap<String, String>, String> {
    let mut sysctls = HashMap::new();
    let own_network = matches!(input.network, Namespace::Own | Namespace::Path(_));
    let joins_container = input.container.config.network_mode.starts_with("container:");
    if own_network && !joins_container {
        sysctls.insert("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned());
        sysctls.insert("net.ipv4.ping_group_range".to_owned(), "0 2147483647".to_owned());
    }
    for (key, value) in &input.container.config.spec.sysctls {
        if key.starts_with("net.") && !own_network {
            return Err(format!("sysctl \"{key}\" not allowed in host network namespace"));
        }
        sysctls.insert(key.clone(), value.clone());
    }
    Ok(sysctls)
}

/// The container's limits, then the daemon's defaults for those it does not name. Defaults are clamped to
/// what the daemon may have; a limit that the user named is kept or refused.
fn rlimits(own: &[Ulimit], defaults: &[Ulimit], host: &Host) -> Result<Vec<PosixRlimit>, String> {
    let mut limits = Vec::new();
    for ulimit in own {
        let hard_max = hard_limit(host, &ulimit.name);
        if to_limit(ulimit.hard) > hard_max {
            return Err(format!(
                "ulimit {}={}:{} exceeds the daemon's own hard limit of {hard_max}",
                ulimit.name, ulimit.soft, ulimit.hard
            ));
        }
        limits.push(rlimit(ulimit, u64::MAX)?);
    }
    for ulimit in defaults.iter().filter(|default| own.iter().all(|named| named.name != default.name)) {
        limits.push(rlimit(ulimit, hard_limit(host, &ulimit.name))?);
    }
    Ok(limits)
}

fn hard_limit(host: &Host, name: &str) -> u64 {
    if host.may_raise_limits { u64::MAX } else { host.hard_limits.get(name).copied().unwrap_or(u64::MAX) }
}

/// -1 is without limit.
fn to_limit(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

fn rlimit(ulimit: &Ulimit, max: u64) -> Result<PosixRlimit, String> {
    let typ: PosixRlimitType = format!("RLIMIT_{}", ulimit.name.to_uppercase())
        .parse()
        .map_err(|_| format!("invalid ulimit type: {}", ulimit.name))?;
    let hard = to_limit(ulimit.hard).min(max);
    let soft = to_limit(ulimit.soft);
    if soft > hard && max == u64::MAX {
        return Err(format!("ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}"));
    }
    let limit = PosixRlimitBuilder::default().typ(typ).hard(hard).soft(soft.min(hard)).build();
    Ok(limit.expect("every field has a default"))
}

/// The names that ulimits can have.
const ULIMITS: &[&str] = &[
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

#[cfg(test)]
pub(crate) mod tests;
