//! A configuration's values, before anything is made: what the kernel or the specification would refuse is an
//! error that names the field.
//!
//! Types were checked by parsing. What only the machine can say (is there such a cgroup controller, can this
//! be mounted) is checked where it is used.

use std::collections::HashSet;
use std::path::Path;

use oci_spec::runtime::{Linux, LinuxCapabilities, LinuxNamespaceType, Process, Root, Spec};

use crate::attributes;
use crate::cgroup::check_resources;
use crate::failure::Failure;
use crate::hooks::{self, Point};
use crate::lsm;
use crate::netdevice;
use crate::spec;

/// The kernel's limit on host and domain names: `__NEW_UTS_LEN`.
const NAME_LENGTH_MAX: usize = 64;
/// The kernel's limit on supplementary groups: `NGROUPS_MAX`.
const GROUPS_MAX: usize = 65536;

type Checked = Result<(), Failure>;

fn wrong(field: &str, why: impl std::fmt::Display) -> Checked {
    Err(Failure::invalid(format!("`{field}` {why}")))
}

fn require(is: bool, field: &str, why: &str) -> Checked {
    if is { Ok(()) } else { wrong(field, why) }
}

/// The whole configuration.
// spec: oci-runtime config.md, config-linux.md
pub(crate) fn config(config: &Spec) -> Checked {
    version(config.version())?;
    let linux = spec::linux(config)?;
    require(
        config.root().as_ref().is_some_and(|root| !root.path().as_os_str().is_empty()),
        "root.path",
        "is missing",
    )?;
    process(spec::process(config)?)?;
    lsm::check(spec::process(config)?)?;
    namespaces(linux)?;
    without_mounts(config, linux)?;
    user_and_time(linux)?;
    let own_names = spec::has_namespace(linux, LinuxNamespaceType::Uts);
    name("hostname", config.hostname().as_deref(), own_names)?;
    name("domainname", config.domainname().as_deref(), own_names)?;
    for (index, mount) in config.mounts().iter().flatten().enumerate() {
        let field = |name: &str| format!("mounts[{index}].{name}");
        no_zero(mount.destination(), || field("destination"))?;
        mount.source().as_ref().map_or(Ok(()), |source| no_zero(source, || field("source")))?;
        strings(mount.options().as_deref().unwrap_or_default(), &field("options"))?;
    }
    strings(linux.masked_paths().as_deref().unwrap_or_default(), "linux.maskedPaths")?;
    strings(linux.readonly_paths().as_deref().unwrap_or_default(), "linux.readonlyPaths")?;
    all_hooks(config)?;

    not_done(linux)?;
    netdevice::check(linux)?;
    if let Some(label) = lsm::given(linux.mount_label().as_deref())
        && !lsm::selinux_is_enabled()
    {
        return wrong(
            "linux.mountLabel",
            format!("`{label}` is given, and this kernel runs without SELinux"),
        );
    }
    if let Some(personality) = linux.personality() {
        attributes::domain(personality)?;
    }
    if let Some(policy) = linux.memory_policy() {
        attributes::memory_policy(policy)?;
    }
    linux.resources().as_ref().map_or(Ok(()), check_resources)
}

// spec: oci-runtime config.md#specification-version
fn version(version: &str) -> Checked {
    let core = version.split(['-', '+']).next().unwrap_or_default();
    let numbers: Vec<_> = core.split('.').map(str::parse::<u32>).collect();
    match numbers.as_slice() {
        [Ok(1), Ok(_), Ok(_)] => Ok(()),
        [Ok(_), Ok(_), Ok(_)] => wrong("ociVersion", format!("`{version}` is not supported: only 1.x is")),
        _ => wrong("ociVersion", format!("`{version}` is no version like 1.2.0")),
    }
}

/// A process, of a configuration or to be added to a container.
// spec: oci-runtime config.md#process
pub(crate) fn process(process: &Process) -> Checked {
    let args = process.args().as_deref().unwrap_or_default();
    require(!args.is_empty(), "process.args", "is empty: there is no command")?;
    strings(args, "process.args")?;
    environment(process.env().as_deref().unwrap_or_default(), "process.env")?;
    let cwd = process.cwd();
    if !cwd.is_absolute() {
        return wrong("process.cwd", format!("`{}` is not an absolute path", cwd.display()));
    }
    no_zero(cwd, || "process.cwd".to_owned())?;
    if let Some(score) = process.oom_score_adj() {
        require((-1000..=1000).contains(&score), "process.oomScoreAdj", "is not between -1000 and 1000")?;
    }
    let user = process.user();
    require(user.umask().unwrap_or(0) <= 0o777, "process.user.umask", "is more than 0777")?;
    let groups = user.additional_gids().as_deref().unwrap_or_default();
    require(
        groups.len() <= GROUPS_MAX,
        "process.user.additionalGids",
        "has more groups than the kernel takes",
    )?;
    if let Some(index) = groups.iter().position(|gid| *gid == u32::MAX) {
        return wrong(&format!("process.user.additionalGids[{index}]"), "is no group");
    }
    require(user.uid() != u32::MAX, "process.user.uid", "is no user")?;
    require(user.gid() != u32::MAX, "process.user.gid", "is no group")?;
    if let Some(size) = process.console_size() {
        let fits = |value: u64| u16::try_from(value).is_ok();
        require(fits(size.height()), "process.consoleSize.height", "is more than 65535")?;
        require(fits(size.width()), "process.consoleSize.width", "is more than 65535")?;
    }
    rlimits(process)?;
    process.capabilities().as_ref().map_or(Ok(()), capabilities)?;
    scheduling(process)
}

fn rlimits(process: &Process) -> Checked {
    let mut seen = HashSet::new();
    for (index, rlimit) in process.rlimits().iter().flatten().enumerate() {
        let field = format!("process.rlimits[{index}]");
        if !seen.insert(rlimit.typ() as u32) {
            return wrong(&format!("{field}.type"), format!("{} is there already", rlimit.typ()));
        }
        require(rlimit.soft() <= rlimit.hard(), &format!("{field}.soft"), "is more than the hard limit")?;
    }
    Ok(())
}

/// What the kernel holds sets to. capabilities(7).
fn capabilities(sets: &LinuxCapabilities) -> Checked {
    let empty = HashSet::new();
    let of = |set: &'_ Option<HashSet<_>>| set.clone().unwrap_or_else(|| empty.clone());
    let permitted = of(sets.permitted());
    if let Some(more) = of(sets.effective()).difference(&permitted).next() {
        return wrong("process.capabilities.effective", format!("has {more}, which `permitted` has not"));
    }
    Ok(())
}

fn scheduling(process: &Process) -> Checked {
    if let Some(scheduler) = process.scheduler() {
        attributes::scheduler_attributes(scheduler)?;
    }
    if let Some(priority) = process.io_priority() {
        attributes::packed(priority)?;
    }
    if let Some(affinity) = process.exec_cpu_affinity() {
        let lists = [("initial", affinity.initial()), ("final", affinity.cpu_affinity_final())];
        for (name, list) in lists {
            let Some(list) = list.as_ref().filter(|list| !list.is_empty()) else { continue };
            attributes::numbers(list, &format!("process.execCPUAffinity.{name}"))?;
        }
    }
    Ok(())
}

fn strings(all: &[String], field: &str) -> Checked {
    match all.iter().position(|one| one.contains('\0')) {
        Some(index) => wrong(&format!("{field}[{index}]"), "contains a zero byte"),
        None => Ok(()),
    }
}

/// As runc: a variable has a name and an equals sign.
fn environment(all: &[String], field: &str) -> Checked {
    strings(all, field)?;
    let nameless = |one: &String| matches!(one.find('='), None | Some(0));
    match all.iter().position(nameless) {
        Some(index) => wrong(&format!("{field}[{index}]"), "is no variable like NAME=value"),
        None => Ok(()),
    }
}

fn no_zero(path: &Path, field: impl FnOnce() -> String) -> Checked {
    let has_zero = path.as_os_str().as_encoded_bytes().contains(&0);
    if has_zero { wrong(&field(), "contains a zero byte") } else { Ok(()) }
}

fn name(field: &str, value: Option<&str>, own: bool) -> Checked {
    let Some(value) = value.filter(|value| !value.is_empty()) else { return Ok(()) };
    require(own, field, "needs a UTS namespace of the container's own")?;
    require(value.len() <= NAME_LENGTH_MAX, field, "is longer than the kernel's 64 bytes")
}

// spec: oci-runtime config.md#posix-platform-hooks
fn all_hooks(config: &Spec) -> Checked {
    for point in Point::ALL {
        for (index, hook) in hooks::of(config, point).iter().enumerate() {
            let field = |name: &str| format!("hooks.{}[{index}].{name}", point.name());
            require(hook.path().is_absolute(), &field("path"), "is not an absolute path")?;
            no_zero(hook.path(), || field("path"))?;
            strings(hook.args().as_deref().unwrap_or_default(), &field("args"))?;
            strings(hook.env().as_deref().unwrap_or_default(), &field("env"))?;
            require(
                hook.timeout().is_none_or(|seconds| seconds > 0),
                &field("timeout"),
                "is not more than zero",
            )?;
        }
    }
    Ok(())
}

// spec: oci-runtime config-linux.md#namespaces
fn namespaces(linux: &Linux) -> Checked {
    let all = linux.namespaces().as_deref().unwrap_or_default();
    for (index, namespace) in all.iter().enumerate() {
        let (typ, field) = (namespace.typ(), format!("linux.namespaces[{index}]"));
        if all[..index].iter().any(|before| before.typ() == typ) {
            return wrong(&format!("{field}.type"), format!("{typ:?} is there already"));
        }
        let Some(path) = namespace.path().as_ref().filter(|path| !path.as_os_str().is_empty()) else {
            continue;
        };
        let field = format!("{field}.path");
        require(path.is_absolute(), &field, "is not an absolute path")?;
        no_zero(path, || field.clone())?;
    }
    Ok(())
}

/// Without a mount namespace a container has a directory of the machine for its root and the machine's mounts.
/// runc would add the container's to them, and leave them there: nothing is mounted, hidden or protected.
fn without_mounts(config: &Spec, linux: &Linux) -> Checked {
    if spec::has_namespace(linux, LinuxNamespaceType::Mount) {
        return Ok(());
    }
    let any = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|list| !list.is_empty());
    let given = [
        ("mounts", config.mounts().as_ref().is_some_and(|mounts| !mounts.is_empty())),
        ("linux.maskedPaths", any(linux.masked_paths())),
        ("linux.readonlyPaths", any(linux.readonly_paths())),
        ("root.readonly", config.root().as_ref().and_then(Root::readonly).unwrap_or(false)),
        ("linux.rootfsPropagation", linux.rootfs_propagation().as_ref().is_some_and(|name| !name.is_empty())),
    ];
    match given.iter().find(|(_, given)| *given) {
        Some((field, _)) => wrong(field, "is given, but there is no mount namespace in `linux.namespaces`"),
        None => Ok(()),
    }
}

fn user_and_time(linux: &Linux) -> Checked {
    let maps = [("linux.uidMappings", linux.uid_mappings()), ("linux.gidMappings", linux.gid_mappings())];
    let is_new = spec::has_new_namespace(linux, LinuxNamespaceType::User);
    for (field, map) in maps {
        let given = map.as_ref().is_some_and(|map| !map.is_empty());
        if given && !spec::has_namespace(linux, LinuxNamespaceType::User) {
            return wrong(field, "is given, but there is no user namespace in `linux.namespaces`");
        }
    }
    if is_new {
        crate::idmap::Maps::of(linux)?;
    }
    let Some(offsets) = linux.time_offsets().as_ref().filter(|offsets| !offsets.is_empty()) else {
        return Ok(());
    };
    require(
        spec::has_new_namespace(linux, LinuxNamespaceType::Time),
        "linux.timeOffsets",
        "is given, but there is no new time namespace in `linux.namespaces`",
    )?;
    for (clock, offset) in offsets {
        let field = format!("linux.timeOffsets.{clock}");
        require(matches!(clock.as_str(), "monotonic" | "boottime"), &field, "is no clock that can be set")?;
        let nanoseconds = offset.nanosecs().unwrap_or(0);
        require(nanoseconds < 1_000_000_000, &format!("{field}.nanosecs"), "is a second or more")?;
    }
    Ok(())
}

/// What this runtime does not do: an error, never silence.
fn not_done(linux: &Linux) -> Checked {
    if linux.intel_rdt().is_some() {
        return wrong("linux.intelRdt", "is not supported by this runtime");
    }
    Ok(())
}
