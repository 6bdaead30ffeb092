//! What a process may do: limits, identity, capabilities, no_new_privs, seccomp. Applied to the caller.

use std::collections::HashSet;

use nix::unistd::{Gid, Uid};
use oci_spec::runtime::{Capability, LinuxCapabilities, PosixRlimit, PosixRlimitType, Process};
use rustix::process::{Resource, Rlimit};

use crate::failure::{Context, Failure};
use crate::procfs::Proc;
use crate::sys::{self, CapabilitySets};
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
        let new = Rlimit { current: bound(rlimit.soft()), maximum: bound(rlimit.hard()) };
        rustix::process::setrlimit(resource(rlimit.typ()), new)
            .with_context(|| format!("error setting rlimit type {} ({})", rlimit.typ(), rlimit.hard()))?;
    }
    Ok(())
}

/// The kernel's infinity is the highest number.
fn bound(value: u64) -> Option<u64> {
    (value != u64::MAX).then_some(value)
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

/// Raises hard limits of another process to what it will need; soft limits stay. In a user namespace nobody can
/// raise them any more.
pub(crate) fn raise_limits(pid: i32, rlimits: &[PosixRlimit]) -> Result<(), Failure> {
    for rlimit in rlimits {
        let own = rustix::process::getrlimit(resource(rlimit.typ()));
        let wanted = bound(rlimit.hard());
        if own.maximum.is_some_and(|own| wanted.is_none_or(|wanted| wanted > own)) {
            let raised = Rlimit { current: own.current, maximum: wanted };
            rustix::process::prlimit(rustix::process::Pid::from_raw(pid), resource(rlimit.typ()), raised)
                .with_context(|| format!("error setting rlimit type {} ({})", rlimit.typ(), rlimit.hard()))?;
        }
    }
    Ok(())
}

/// Gives up everything that the process is not to have. The order matters: dropping the bounding set and a
/// filter without no_new_privs need the privileges that go next. With no_new_privs a filter can be loaded
/// later, by anyone. `bounding` is what the process may have at most until now.
pub(crate) fn drop_privileges(
    process: &Process,
    identity: &Identity,
    can_set_groups: bool,
    bounding: u64,
    load_filter: impl FnOnce() -> Result<(), Failure>,
) -> Result<(), Failure> {
    let sets = Sets::of(process.capabilities().as_ref(), bounding);
    let no_new_privileges = process.no_new_privileges().unwrap_or(false);
    if !no_new_privileges {
        load_filter()?;
    }
    sets.drop_bounding()?;
    change_user(identity, can_set_groups)?;
    sets.apply()?;
    if let Some(mode) = process.user().umask() {
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(mode & 0o777));
    }
    if no_new_privileges {
        nix::sys::prctl::set_no_new_privs().context("set no_new_privs")?;
    }
    Ok(())
}

fn change_user(identity: &Identity, can_set_groups: bool) -> Result<(), Failure> {
    nix::sys::prctl::set_keepcaps(true).context("keep capabilities")?;
    if can_set_groups {
        let groups: Vec<Gid> = identity.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        nix::unistd::setgroups(&groups).context("setgroups")?;
    }
    become_user(identity.uid, identity.gid)?;
    nix::sys::prctl::set_keepcaps(false).context("stop keeping capabilities")
}

/// Changes all of the caller's user and group numbers.
pub(crate) fn become_user(uid: u32, gid: u32) -> Result<(), Failure> {
    let unmapped = |what: &str, number: u32, error: nix::Error| match error {
        nix::Error::EINVAL => {
            Failure::invalid(format!("cannot set{what} to unmapped {what} {number} in user namespace"))
        }
        error => Failure::os(format!("set{what} {number}"), error),
    };
    let group = Gid::from_raw(gid);
    nix::unistd::setresgid(group, group, group).map_err(|error| unmapped("gid", gid, error))?;
    let user = Uid::from_raw(uid);
    nix::unistd::setresuid(user, user, user).map_err(|error| unmapped("uid", uid, error))
}

/// Capability sets to be had, a bit each. One that this process does not have cannot be granted.
// spec: oci-runtime config.md#linux-process "capabilities that cannot be granted … SHOULD NOT fail"
struct Sets {
    ours: u64,
    bounding: u64,
    inheritable: u64,
    permitted: u64,
    effective: u64,
    ambient: u64,
}

impl Sets {
    fn of(asked: Option<&LinuxCapabilities>, ours: u64) -> Sets {
        let grant = |set: Option<&Option<HashSet<Capability>>>| bits(set.and_then(Option::as_ref)) & ours;
        let (inheritable, permitted) = (
            grant(asked.map(LinuxCapabilities::inheritable)),
            grant(asked.map(LinuxCapabilities::permitted)),
        );
        Sets {
            bounding: grant(asked.map(LinuxCapabilities::bounding)),
            effective: grant(asked.map(LinuxCapabilities::effective)),
            ambient: grant(asked.map(LinuxCapabilities::ambient)) & inheritable & permitted,
            inheritable,
            permitted,
            ours,
        }
    }

    fn drop_bounding(&self) -> Result<(), Failure> {
        for capability in each(self.ours & !self.bounding) {
            sys::process_control(libc::PR_CAPBSET_DROP, capability, 0)
                .with_context(|| refused("bounding", capability))?;
        }
        Ok(())
    }

    /// Ambient last, since it must be in both permitted and inheritable.
    // capabilities(7)
    fn apply(&self) -> Result<(), Failure> {
        let sets = CapabilitySets {
            effective: self.effective,
            permitted: self.permitted,
            inheritable: self.inheritable,
        };
        let beyond = self.inheritable & !self.bounding;
        sys::set_capabilities(sets).with_context(|| match each(beyond).next() {
            None => "set `process.capabilities`".to_owned(),
            Some(capability) => {
                format!("set `process.capabilities.inheritable`: capability number {capability} is not in `bounding`")
            }
        })?;
        let ambient = |operation: i32| u64::from(operation.cast_unsigned());
        sys::process_control(libc::PR_CAP_AMBIENT, ambient(libc::PR_CAP_AMBIENT_CLEAR_ALL), 0)
            .context("clear ambient capabilities")?;
        for capability in each(self.ambient) {
            sys::process_control(libc::PR_CAP_AMBIENT, ambient(libc::PR_CAP_AMBIENT_RAISE), capability)
                .with_context(|| refused("ambient", capability))?;
        }
        Ok(())
    }
}

/// Says which ambient capabilities the kernel will not raise, in runc's words: those that are not both permitted
/// and inheritable. For the one who makes the process: in the container there is nobody to hear it.
// capabilities(7), "Ambient"
pub(crate) fn warn_of_ambient(sets: &LinuxCapabilities) {
    let can = bits(sets.permitted().as_ref()) & bits(sets.inheritable().as_ref());
    let mut refused: Vec<_> = sets.ambient().iter().flatten().map(|one| (number(*one), *one)).collect();
    refused.retain(|(number, _)| can & 1 << number == 0);
    refused.sort_by_key(|(number, _)| *number);
    for (_, capability) in refused {
        let name = serde_json::to_value(capability).unwrap_or_default();
        tracing::warn!(
            "can't raise ambient capability {}: operation not permitted",
            name.as_str().unwrap_or_default()
        );
    }
}

/// A bit for each.
fn bits(set: Option<&HashSet<Capability>>) -> u64 {
    set.into_iter().flatten().fold(0, |bits, capability| bits | 1 << number(*capability))
}

/// The numbers of the bits that are set.
fn each(set: u64) -> impl Iterator<Item = u64> {
    (0..64).filter(move |bit| set & 1 << bit != 0)
}

fn refused(set: &str, capability: u64) -> String {
    format!("set {set} capability number {capability}")
}

/// All capabilities that can be had here.
pub(crate) fn all_capabilities() -> HashSet<Capability> {
    let ours = Proc::open().and_then(|proc| proc.status()).map_or(0, |own| own.bounding);
    NUMBERS.iter().zip(0..).filter(|(_, number)| ours & 1 << number != 0).map(|(one, _)| *one).collect()
}

/// The kernel's number: include/uapi/linux/capability.h.
fn number(capability: Capability) -> u64 {
    let position = NUMBERS.iter().zip(0..).find(|(one, _)| **one == capability);
    position.map(|(_, number)| number).expect("the list has every capability")
}

/// All capabilities, in the kernel's order.
const NUMBERS: [Capability; 41] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

#[cfg(test)]
mod tests {
    use caps::{CapSet, Capability as Cap};

    use super::*;

    #[test]
    fn every_capability_has_the_kernels_number() {
        for (capability, expected) in NUMBERS.iter().zip(0..) {
            assert_eq!(number(*capability), expected);
            let name: Cap = capability_name(*capability).parse().expect("a kernel name");
            assert_eq!(u64::from(name.index()), expected, "{capability}");
        }
        assert_eq!(caps::all().len(), NUMBERS.len());
    }

    fn capability_name(capability: Capability) -> String {
        serde_json::from_value(serde_json::to_value(capability).expect("json")).expect("a name")
    }

    #[test]
    fn what_cannot_be_granted_is_left_out() {
        let sets = serde_json::json!({
            "bounding": ["CAP_CHOWN", "CAP_KILL"],
            "permitted": ["CAP_CHOWN", "CAP_KILL"],
            "inheritable": ["CAP_KILL", "CAP_BPF"],
            "ambient": ["CAP_CHOWN", "CAP_KILL", "CAP_BPF"],
        });
        let sets = serde_json::from_value(sets).expect("sets");
        let kill = 1 << number(Capability::Kill);
        let granted = Sets::of(Some(&sets), kill | 1 << number(Capability::Bpf));
        assert_eq!((granted.bounding, granted.permitted, granted.ambient), (kill, kill, kill));
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
