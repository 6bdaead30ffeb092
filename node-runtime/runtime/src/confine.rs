//! What a process may do: limits, identity, capabilities, no_new_privs, seccomp. Applied to the caller.

use std::collections::HashSet;

use caps::{CapSet, Capability as Cap, CapsHashSet};
use nix::unistd::{Gid, Uid};
use oci_spec::runtime::{Capability, LinuxCapabilities, PosixRlimit, PosixRlimitType, Process};
use rustix::process::{Resource, Rlimit};

use crate::failure::{Context, Failure};
use crate::seccomp::Filter;
use crate::user::Identity;

/// The hard limit of this process: what a container can be given without `CAP_SYS_RESOURCE`. `None` is
/// unlimited.
#[must_use]
pub fn hard_limit(typ: PosixRlimitType) -> Option<u64> {
    rustix::process::getrlimit(resource(typ)).maximum
}

/// Sets resource limits; the first that the kernel refuses is an error that names it.
pub(crate) fn limit(rlimits: &[PosixRlimit]) -> Result<(), Failure> {
    for rlimit in rlimits {
        let bound = |value: u64| (value != u64::MAX).then_some(value);
        let new = Rlimit { current: bound(rlimit.soft()), maximum: bound(rlimit.hard()) };
        rustix::process::setrlimit(resource(rlimit.typ()), new)
            .with_context(|| format!("error setting rlimit type {} ({})", rlimit.typ(), rlimit.hard()))?;
    }
    Ok(())
}

fn resource(typ: PosixRlimitType) -> Resource {
    match typ {
        PosixRlimitType::RlimitCpu => Resource::Cpu,
        PosixRlimitType::RlimitFsize => Resource::Fsize,
        PosixRlimitType::RlimitData => Resource::Data,
        PosixRlimitType::RlimitStack => Resource::Stack,
        PosixRlimitType::RlimitCore => Resource::Core,
        PosixRlimitType::RlimitRss => Resource::Rss,
        PosixRlimitType::RlimitNproc => Resource::Nproc,
        PosixRlimitType::RlimitNofile => Resource::Nofile,
        PosixRlimitType::RlimitMemlock => Resource::Memlock,
        PosixRlimitType::RlimitAs => Resource::As,
        PosixRlimitType::RlimitLocks => Resource::Locks,
        PosixRlimitType::RlimitSigpending => Resource::Sigpending,
        PosixRlimitType::RlimitMsgqueue => Resource::Msgqueue,
        PosixRlimitType::RlimitNice => Resource::Nice,
        PosixRlimitType::RlimitRtprio => Resource::Rtprio,
        PosixRlimitType::RlimitRttime => Resource::Rttime,
    }
}

/// Gives up everything that the process is not to have. The order matters: dropping the bounding set and a
/// filter without no_new_privs need the privileges that go next.
pub(crate) fn drop_privileges(
    process: &Process,
    identity: &Identity,
    filter: Option<&Filter>,
) -> Result<(), Failure> {
    let no_new_privileges = process.no_new_privileges().unwrap_or(false);
    if let Some(filter) = filter
        && !no_new_privileges
    {
        filter.load()?;
    }
    let sets = Sets::of(process.capabilities().as_ref())?;
    for capability in &sets.ours - &sets.bounding {
        caps::drop(None, CapSet::Bounding, capability).map_err(|error| refused("bounding", &error))?;
    }
    change_user(identity)?;
    sets.apply()?;
    if let Some(mode) = process.user().umask() {
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(mode & 0o777));
    }
    if no_new_privileges {
        nix::sys::prctl::set_no_new_privs().context("set no_new_privs")?;
        if let Some(filter) = filter {
            filter.load()?;
        }
    }
    Ok(())
}

fn change_user(identity: &Identity) -> Result<(), Failure> {
    nix::sys::prctl::set_keepcaps(true).context("keep capabilities")?;
    let groups: Vec<Gid> = identity.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    nix::unistd::setgroups(&groups).context("setgroups")?;
    let gid = Gid::from_raw(identity.gid);
    nix::unistd::setresgid(gid, gid, gid).with_context(|| format!("setgid {gid}"))?;
    let uid = Uid::from_raw(identity.uid);
    nix::unistd::setresuid(uid, uid, uid).with_context(|| format!("setuid {uid}"))?;
    nix::sys::prctl::set_keepcaps(false).context("stop keeping capabilities")
}

/// Capability sets to be had. One that this process does not have cannot be granted.
// spec: oci-runtime config.md#linux-process "capabilities that cannot be granted … SHOULD NOT fail"
struct Sets {
    ours: CapsHashSet,
    bounding: CapsHashSet,
    inheritable: CapsHashSet,
    permitted: CapsHashSet,
    effective: CapsHashSet,
    ambient: CapsHashSet,
}

impl Sets {
    fn of(asked: Option<&LinuxCapabilities>) -> Result<Sets, Failure> {
        let ours = caps::read(None, CapSet::Bounding).map_err(|error| refused("bounding", &error))?;
        let grant = |set: Option<&Option<HashSet<Capability>>>| -> CapsHashSet {
            let all = set.and_then(Option::as_ref).into_iter().flatten();
            all.filter_map(|capability| named(*capability)).filter(|cap| ours.contains(cap)).collect()
        };
        Ok(Sets {
            bounding: grant(asked.map(LinuxCapabilities::bounding)),
            inheritable: grant(asked.map(LinuxCapabilities::inheritable)),
            permitted: grant(asked.map(LinuxCapabilities::permitted)),
            effective: grant(asked.map(LinuxCapabilities::effective)),
            ambient: grant(asked.map(LinuxCapabilities::ambient)),
            ours,
        })
    }

    /// Inheritable first, while everything is still permitted; effective before permitted, of which it is a
    /// part; ambient last, since it must be in both permitted and inheritable.
    fn apply(&self) -> Result<(), Failure> {
        caps::set(None, CapSet::Inheritable, &self.inheritable)
            .map_err(|error| refused("inheritable", &error))?;
        caps::set(None, CapSet::Effective, &self.effective).map_err(|error| refused("effective", &error))?;
        caps::set(None, CapSet::Permitted, &self.permitted).map_err(|error| refused("permitted", &error))?;
        caps::clear(None, CapSet::Ambient).map_err(|error| refused("ambient", &error))?;
        for capability in &self.ambient {
            caps::raise(None, CapSet::Ambient, *capability).map_err(|error| refused("ambient", &error))?;
        }
        Ok(())
    }
}

/// All capabilities that can be had here.
pub(crate) fn all_capabilities() -> HashSet<Capability> {
    let ours = caps::read(None, CapSet::Bounding).unwrap_or_default();
    let names = ours.iter().map(ToString::to_string);
    names.filter_map(|name| serde_json::from_value(serde_json::Value::String(name)).ok()).collect()
}

fn named(capability: Capability) -> Option<Cap> {
    let name = serde_json::to_value(capability).ok()?;
    name.as_str()?.parse().ok()
}

fn refused(set: &str, error: &caps::errors::CapsError) -> Failure {
    Failure::other(format!("set {set} capabilities: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_capability_has_a_kernel_number() {
        for capability in [Capability::AuditControl, Capability::Bpf, Capability::CheckpointRestore] {
            {
                assert!(named(capability).is_some(), "{capability}");
            }
        }
        assert_eq!(named(Capability::NetBindService), Some(Cap::CAP_NET_BIND_SERVICE));
        assert_eq!(named(Capability::WakeAlarm), Some(Cap::CAP_WAKE_ALARM));
    }

    #[test]
    fn a_limit_beyond_our_own_is_refused_by_name() {
        let Some(hard) = hard_limit(PosixRlimitType::RlimitNofile) else { return };
        let caps = caps::read(None, CapSet::Effective).expect("caps");
        if caps.contains(&Cap::CAP_SYS_RESOURCE) {
            return;
        }
        let rlimit = serde_json::json!({"type": "RLIMIT_NOFILE", "hard": hard + 1, "soft": hard + 1});
        let failure = limit(&[serde_json::from_value(rlimit).expect("rlimit")]).expect_err("refused");
        assert!(
            failure.message.contains("RLIMIT_NOFILE") && failure.message.contains("not permitted"),
            "{failure}"
        );
    }
}
