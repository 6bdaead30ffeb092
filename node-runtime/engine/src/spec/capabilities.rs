//! Which capabilities a container has.

use std::collections::{BTreeSet, HashSet};

use oci_spec::runtime::{Capability, LinuxCapabilities};
use rswarm_proto::model::container::ContainerSpec;

use super::Host;

/// Docker's: enough for packages' usual programs, nothing of the machine.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// In the kernel's order: the place is the number.
// spec: linux include/uapi/linux/capability.h
const ALL: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The names behind the bits of `CapBnd` or `CapEff`.
pub(crate) fn bounding_set(bits: u64) -> BTreeSet<&'static str> {
    ALL.iter().enumerate().filter(|(number, _)| bits >> number & 1 == 1).map(|(_, name)| *name).collect()
}

/// The sets of the container's first process. Ambient and inheritable stay empty, so that a user other than
/// root has only what a file's capabilities give.
pub(super) fn capabilities(spec: &ContainerSpec, host: &Host) -> Result<LinuxCapabilities, String> {
    let wanted = wanted(spec, host)?;
    let set: HashSet<Capability> =
        wanted.into_iter().map(|name| name.parse().expect("the table has the kernel's names")).collect();
    let mut capabilities = LinuxCapabilities::default();
    capabilities
        .set_bounding(Some(set.clone()))
        .set_effective(Some(set.clone()))
        .set_permitted(Some(set))
        .set_inheritable(None)
        .set_ambient(None);
    Ok(capabilities)
}

fn wanted(spec: &ContainerSpec, host: &Host) -> Result<BTreeSet<&'static str>, String> {
    let add = parse_all(&spec.cap_add)?;
    let drop = parse_all(&spec.cap_drop)?;
    if spec.privileged {
        return Ok(host.capabilities.clone());
    }
    let base: BTreeSet<&'static str> = match (add.all, drop.all) {
        (true, _) => host.capabilities.iter().copied().filter(|name| !drop.names.contains(name)).collect(),
        (false, true) => BTreeSet::new(),
        (false, false) => DEFAULT
            .into_iter()
            .filter(|name| host.capabilities.contains(name) && !drop.names.contains(name))
            .collect(),
    };
    if let Some(missing) = add.names.iter().find(|name| !host.capabilities.contains(*name)) {
        return Err(format!(
            "capability not supported by your kernel or not available in the current environment: \"CAP_{missing}\""
        ));
    }
    Ok(base.into_iter().chain(add.names).collect())
}

struct Parsed {
    all: bool,
    names: BTreeSet<&'static str>,
}

fn parse_all(texts: &[String]) -> Result<Parsed, String> {
    let mut parsed = Parsed { all: false, names: BTreeSet::new() };
    for text in texts {
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
        if name == "ALL" {
            parsed.all = true;
            continue;
        }
        let known = ALL.iter().find(|known| **known == name);
        parsed.names.insert(known.ok_or_else(|| format!("unknown capability: \"CAP_{name}\""))?);
    }
    Ok(parsed)
}

/// Whether every name is a capability's.
///
/// # Errors
/// The first that is not, in one sentence.
pub(super) fn check(spec: &ContainerSpec) -> Result<(), String> {
    parse_all(&spec.cap_add).map_err(|why| format!("invalid CapAdd: {why}"))?;
    parse_all(&spec.cap_drop).map_err(|why| format!("invalid CapDrop: {why}"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Host {
        Host {
            capabilities: ALL.into_iter().filter(|name| *name != "SYS_RESOURCE").collect(),
            ..Host::default()
        }
    }

    fn names(add: &[&str], drop: &[&str], privileged: bool) -> Result<BTreeSet<&'static str>, String> {
        let strings = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let spec = ContainerSpec {
            cap_add: strings(add),
            cap_drop: strings(drop),
            privileged,
            ..ContainerSpec::default()
        };
        wanted(&spec, &host())
    }

    #[test]
    fn the_default_is_dockers_fourteen() {
        assert_eq!(names(&[], &[], false).expect("set"), BTreeSet::from(DEFAULT));
    }

    #[test]
    fn all_means_what_the_machine_has() {
        let all = names(&["ALL"], &["net_raw"], false).expect("set");
        assert!(all.contains("SYS_ADMIN") && !all.contains("NET_RAW") && !all.contains("SYS_RESOURCE"));
        assert_eq!(names(&["CAP_NET_ADMIN"], &["ALL"], false).expect("set"), BTreeSet::from(["NET_ADMIN"]));
        assert_eq!(names(&[], &[], true).expect("set").len(), 40);
    }

    #[test]
    fn what_cannot_be_had_is_an_error() {
        assert!(names(&["FLY"], &[], false).expect_err("unknown").contains("CAP_FLY"));
        assert!(names(&["SYS_RESOURCE"], &[], false).expect_err("absent").contains("CAP_SYS_RESOURCE"));
    }

    #[test]
    fn bits_are_the_kernels_numbers() {
        assert_eq!(bounding_set(1 << 21 | 1), BTreeSet::from(["CHOWN", "SYS_ADMIN"]));
        assert!(ALL.iter().all(|name| name.parse::<Capability>().is_ok()));
    }
}
