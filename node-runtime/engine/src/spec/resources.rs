//! Limits and devices.

use oci_spec::runtime::{
    LinuxCpu, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, LinuxMemory, LinuxPids, LinuxResources,
};
use rswarm_proto::model::container::ResourceLimits;

use super::{Host, Input};

/// The least memory that a container can start with.
const MEMORY_MIN: i64 = 6 << 20;
/// The period that `nano_cpus` is measured in, microseconds.
const PERIOD: u64 = 100_000;

/// A device of the host for the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostDevice {
    /// Where in the container.
    pub path: String,
    pub kind: LinuxDeviceType,
    pub major: i64,
    pub minor: i64,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Of `rwm`.
    pub permissions: String,
}

/// Checks limits, in Docker's words.
///
/// # Errors
/// The first limit that cannot be.
pub(crate) fn check(limits: &ResourceLimits, host: &Host) -> Result<(), String> {
    if limits.memory != 0 && limits.memory < MEMORY_MIN {
        return Err("Minimum memory limit allowed is 6MB".to_owned());
    }
    if limits.memory_swap > 0 && limits.memory == 0 {
        return Err(
            "You should always set the Memory limit when using Memoryswap limit, see usage".to_owned()
        );
    }
    if limits.memory_swap > 0 && limits.memory_swap < limits.memory {
        return Err("Minimum memoryswap limit should be larger than memory limit, see usage".to_owned());
    }
    if limits.memory > 0 && limits.memory_reservation > limits.memory {
        return Err(
            "Minimum memory limit can not be less than memory reservation limit, see usage".to_owned()
        );
    }
    if limits.nano_cpus > 0 && limits.cpu_quota > 0 {
        return Err("Conflicting options: Nano CPUs and CPU Quota cannot both be set.".to_owned());
    }
    if limits.nano_cpus > 0 && limits.cpu_period > 0 {
        return Err("Conflicting options: Nano CPUs and CPU Period cannot both be set.".to_owned());
    }
    let cpus = i64::try_from(host.cpus).unwrap_or(i64::MAX);
    if limits.nano_cpus < 0 || limits.nano_cpus > cpus.saturating_mul(1_000_000_000) {
        return Err(format!(
            "range of CPUs is from 0.01 to {cpus}.00, as there are only {cpus} CPUs available"
        ));
    }
    if limits.cpu_period != 0 && !(1000..=1_000_000).contains(&limits.cpu_period) {
        return Err(
            "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)".to_owned()
        );
    }
    if limits.cpu_quota > 0 && limits.cpu_quota < 1000 {
        return Err("CPU cfs quota can not be less than 1ms (i.e. 1000)".to_owned());
    }
    Ok(())
}

/// The limits with those of `update` that are set, checked.
///
/// # Errors
/// When they cannot be together.
pub(crate) fn merge(
    current: &ResourceLimits,
    update: &ResourceLimits,
    host: &Host,
) -> Result<ResourceLimits, String> {
    let mut merged = current.clone();
    let set = |own: &mut i64, new: i64| *own = if new == 0 { *own } else { new };
    if update.memory > 0
        && update.memory_swap == 0
        && current.memory_swap > 0
        && update.memory > current.memory_swap
    {
        return Err(
            "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the \
                    same time"
                .to_owned(),
        );
    }
    if update.nano_cpus > 0 && (current.cpu_quota > 0 || current.cpu_period > 0) {
        return Err(
            "Conflicting options: Nano CPUs cannot be updated as CPU Quota or Period has already been set"
                .to_owned(),
        );
    }
    set(&mut merged.nano_cpus, update.nano_cpus);
    set(&mut merged.memory, update.memory);
    set(&mut merged.memory_swap, update.memory_swap);
    set(&mut merged.memory_reservation, update.memory_reservation);
    set(&mut merged.pids, update.pids);
    set(&mut merged.cpu_shares, update.cpu_shares);
    set(&mut merged.cpu_quota, update.cpu_quota);
    set(&mut merged.cpu_period, update.cpu_period);
    if !update.cpuset_cpus.is_empty() {
        merged.cpuset_cpus.clone_from(&update.cpuset_cpus);
    }
    if !update.cpuset_mems.is_empty() {
        merged.cpuset_mems.clone_from(&update.cpuset_mems);
    }
    check(&merged, host)?;
    Ok(merged)
}

/// The limits in the runtime's terms; devices are left as they are.
pub(crate) fn to_oci(limits: &ResourceLimits) -> LinuxResources {
    let mut resources = LinuxResources::default();
    resources.set_memory(memory(limits)).set_cpu(cpu(limits));
    if limits.pids != 0 {
        let mut pids = LinuxPids::default();
        pids.set_limit(if limits.pids > 0 { limits.pids } else { -1 });
        resources.set_pids(Some(pids));
    }
    resources
}

fn memory(limits: &ResourceLimits) -> Option<LinuxMemory> {
    if limits.memory == 0 && limits.memory_reservation == 0 {
        return None;
    }
    let mut memory = LinuxMemory::default();
    let set = |value: i64| (value != 0).then_some(value);
    let swap = match limits.memory_swap {
        0 => limits.memory.saturating_mul(2),
        both => both,
    };
    memory
        .set_limit(set(limits.memory))
        .set_swap(if limits.memory > 0 { set(swap) } else { None })
        .set_reservation(set(limits.memory_reservation));
    Some(memory)
}

fn cpu(limits: &ResourceLimits) -> Option<LinuxCpu> {
    let mut cpu = LinuxCpu::default();
    if limits.nano_cpus > 0 {
        let quota =
            limits.nano_cpus.saturating_mul(i64::try_from(PERIOD).unwrap_or(i64::MAX)) / 1_000_000_000;
        cpu.set_period(Some(PERIOD)).set_quota(Some(quota.max(1000)));
    }
    if limits.cpu_period > 0 {
        cpu.set_period(u64::try_from(limits.cpu_period).ok());
    }
    if limits.cpu_quota != 0 {
        cpu.set_quota(Some(limits.cpu_quota));
    }
    if limits.cpu_shares > 0 {
        // The kernel's least.
        cpu.set_shares(u64::try_from(limits.cpu_shares.max(2)).ok());
    }
    if !limits.cpuset_cpus.is_empty() {
        cpu.set_cpus(Some(limits.cpuset_cpus.clone()));
    }
    if !limits.cpuset_mems.is_empty() {
        cpu.set_mems(Some(limits.cpuset_mems.clone()));
    }
    (cpu != LinuxCpu::default()).then_some(cpu)
}

pub(super) fn resources(input: &Input<'_>) -> LinuxResources {
    let mut resources = to_oci(&input.container.config.resources);
    let rules = if input.container.config.spec.privileged {
        vec![rule(true, LinuxDeviceType::A, None, None, "rwm")]
    } else {
        device_rules(input.devices)
    };
    resources.set_devices(Some(rules));
    resources
}

/// Nothing but making nodes and the standard devices, then those given.
fn device_rules(devices: &[HostDevice]) -> Vec<LinuxDeviceCgroup> {
    let c = LinuxDeviceType::C;
    let mut rules = vec![
        rule(false, LinuxDeviceType::A, None, None, "rwm"),
        rule(true, c, None, None, "m"),
        rule(true, LinuxDeviceType::B, None, None, "m"),
    ];
    let standard = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)];
    rules.extend(standard.map(|(major, minor)| rule(true, c, Some(major), Some(minor), "rwm")));
    rules.push(rule(true, c, Some(136), None, "rwm"));
    rules.extend(devices.iter().map(|d| rule(true, d.kind, Some(d.major), Some(d.minor), &d.permissions)));
    rules
}

fn rule(
    allow: bool,
    kind: LinuxDeviceType,
    major: Option<i64>,
    minor: Option<i64>,
    access: &str,
) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(allow)
        .set_typ(Some(kind))
        .set_major(major)
        .set_minor(minor)
        .set_access(Some(access.to_owned()));
    rule
}

/// The nodes to make in `/dev`.
pub(super) fn nodes(devices: &[HostDevice]) -> Vec<LinuxDevice> {
    devices
        .iter()
        .map(|device| {
            let mut node = LinuxDevice::default();
            node.set_path(device.path.clone().into())
                .set_typ(device.kind)
                .set_major(device.major)
                .set_minor(device.minor)
                .set_file_mode(Some(device.mode & 0o777))
                .set_uid(Some(device.uid))
                .set_gid(Some(device.gid));
            node
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Host {
        Host { cpus: 2, ..Host::default() }
    }

    #[test]
    fn cpus_become_quota_and_period() {
        let limits = ResourceLimits { nano_cpus: 1_500_000_000, ..ResourceLimits::default() };
        let cpu = cpu(&limits).expect("cpu");
        assert_eq!((cpu.quota(), cpu.period()), (Some(150_000), Some(100_000)));
    }

    #[test]
    fn swap_is_twice_the_memory_unless_given() {
        let limits =
            |memory_swap| ResourceLimits { memory: 64 << 20, memory_swap, ..ResourceLimits::default() };
        assert_eq!(memory(&limits(0)).expect("memory").swap(), Some(128 << 20));
        assert_eq!(memory(&limits(-1)).expect("memory").swap(), Some(-1));
        assert_eq!(memory(&limits(100 << 20)).expect("memory").swap(), Some(100 << 20));
        assert_eq!(memory(&ResourceLimits::default()), None);
    }

    #[test]
    fn no_limit_for_processes_is_written_as_minus_one() {
        let limit =
            |pids| to_oci(&ResourceLimits { pids, ..ResourceLimits::default() }).pids().map(|p| p.limit());
        assert_eq!((limit(0), limit(-1), limit(7)), (None, Some(-1), Some(7)));
    }

    #[test]
    fn impossible_limits_are_refused() {
        let base = ResourceLimits::default;
        let bad = [
            ResourceLimits { memory: 1 << 20, ..base() },
            ResourceLimits { memory_swap: 1 << 30, ..base() },
            ResourceLimits { memory: 64 << 20, memory_swap: 32 << 20, ..base() },
            ResourceLimits { nano_cpus: 3_000_000_000, ..base() },
            ResourceLimits { nano_cpus: 1, cpu_quota: 5000, ..base() },
            ResourceLimits { cpu_period: 10, ..base() },
        ];
        for limits in bad {
            assert!(check(&limits, &host()).is_err(), "{limits:?}");
        }
        assert_eq!(check(&base(), &host()), Ok(()));
    }

    #[test]
    fn an_update_keeps_what_it_does_not_name() {
        let current =
            ResourceLimits { memory: 64 << 20, memory_swap: 128 << 20, pids: 5, ..ResourceLimits::default() };
        let update = ResourceLimits { memory: 100 << 20, ..ResourceLimits::default() };
        let merged = merge(&current, &update, &host()).expect("merged");
        assert_eq!((merged.memory, merged.pids), (100 << 20, 5));
        let beyond_swap = ResourceLimits { memory: 200 << 20, ..ResourceLimits::default() };
        assert!(merge(&current, &beyond_swap, &host()).expect_err("refused").contains("memoryswap"));
    }
}
