//! Limits and devices.

use std::collections::BTreeSet;

use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, LinuxMemory, LinuxPids,
    LinuxResources, LinuxThrottleDevice, LinuxThrottleDeviceBuilder, LinuxWeightDeviceBuilder,
};
use rswarm_proto::model::container::{DeviceRate, ResourceLimits};

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

/// Which limits the machine's cgroups can set.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "each is a file that the kernel has or has not")]
pub(crate) struct Support {
    pub memory: bool,
    pub swap: bool,
    pub reservation: bool,
    pub swappiness: bool,
    pub oom_kill_disable: bool,
    pub pids: bool,
    pub shares: bool,
    pub quota: bool,
    pub realtime: bool,
    pub cpuset: bool,
    pub blkio_weight: bool,
    pub blkio_throttle: bool,
    /// Processors that a container may be bound to.
    pub cpus: BTreeSet<u32>,
    /// Memory nodes that it may be bound to.
    pub mems: BTreeSet<u32>,
}

impl Default for Support {
    /// A machine that has everything, and two processors.
    fn default() -> Support {
        Support {
            memory: true,
            swap: true,
            reservation: true,
            swappiness: true,
            oom_kill_disable: true,
            pids: true,
            shares: true,
            quota: true,
            realtime: true,
            cpuset: true,
            blkio_weight: true,
            blkio_throttle: true,
            cpus: [0, 1].into(),
            mems: [0].into(),
        }
    }
}

/// Takes away what the machine cannot do; returns Docker's warnings about it.
// moby: daemon_unix.go, verifyPlatformContainerResources
pub(crate) fn discard(limits: &mut ResourceLimits, support: &Support) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut warn = |text: &str| warnings.push(text.to_owned());
    if limits.memory > 0 && !support.memory {
        warn(
            "Your kernel does not support memory limit capabilities or the cgroup is not mounted. Limitation discarded.",
        );
        limits.memory = 0;
        limits.memory_swap = -1;
    }
    if limits.memory > 0 && limits.memory_swap != -1 && !support.swap {
        warn(
            "Your kernel does not support swap limit capabilities or the cgroup is not mounted. Memory limited without swap.",
        );
        limits.memory_swap = -1;
    }
    if limits.memory_reservation > 0 && !support.reservation {
        warn(
            "Your kernel does not support memory soft limit capabilities or the cgroup is not mounted. Limitation discarded.",
        );
        limits.memory_reservation = 0;
    }
    if limits.memory_swappiness.is_some_and(|value| value != -1) && !support.swappiness {
        warn(
            "Your kernel does not support memory swappiness capabilities or the cgroup is not mounted. Memory swappiness discarded.",
        );
        limits.memory_swappiness = None;
    }
    if limits.oom_kill_disable && !support.oom_kill_disable {
        warn("Your kernel does not support OomKillDisable. OomKillDisable discarded.");
        limits.oom_kill_disable = false;
    }
    if limits.oom_kill_disable && limits.memory == 0 {
        warn(
            "OOM killer is disabled for the container, but no memory limit is set, this can result in the system running out of resources.",
        );
    }
    if limits.pids > 0 && !support.pids {
        warn(
            "Your kernel does not support PIDs limit capabilities or the cgroup is not mounted. PIDs limit discarded.",
        );
        limits.pids = 0;
    }
    if limits.cpu_shares > 0 && !support.shares {
        warn("Your kernel does not support CPU shares or the cgroup is not mounted. Shares discarded.");
        limits.cpu_shares = 0;
    }
    if (limits.cpu_period > 0 || limits.cpu_quota > 0) && !support.quota {
        warn(
            "Your kernel does not support CPU CFS scheduler or the cgroup is not mounted. Period and quota discarded.",
        );
        (limits.cpu_period, limits.cpu_quota) = (0, 0);
    }
    if (!limits.cpuset_cpus.is_empty() || !limits.cpuset_mems.is_empty()) && !support.cpuset {
        warn("Your kernel does not support cpuset or the cgroup is not mounted. Cpuset discarded.");
        limits.cpuset_cpus.clear();
        limits.cpuset_mems.clear();
    }
    warnings.extend(discard_block_io(limits, support));
    warnings
}

fn discard_block_io(limits: &mut ResourceLimits, support: &Support) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut warn = |what: &str, discarded: &str| {
        warnings.push(format!(
            "Your kernel does not support {what} or the cgroup is not mounted. {discarded} discarded."
        ));
    };
    if limits.blkio_weight > 0 && !support.blkio_weight {
        warn("Block I/O weight", "Weight");
        limits.blkio_weight = 0;
    }
    if !limits.blkio_weight_devices.is_empty() && !support.blkio_weight {
        warn("Block I/O weight_device", "Weight-device");
        limits.blkio_weight_devices.clear();
    }
    let throttles = [
        ("BPS Block I/O read limit", "Block I/O BPS read limit", &mut limits.blkio_read_bps),
        ("BPS Block I/O write limit", "Block I/O BPS write limit", &mut limits.blkio_write_bps),
        ("IOPS Block read limit", "Block I/O IOPS read limit", &mut limits.blkio_read_iops),
        ("IOPS Block write limit", "Block I/O IOPS write limit", &mut limits.blkio_write_iops),
    ];
    for (what, discarded, list) in throttles {
        if !list.is_empty() && !support.blkio_throttle {
            warn(what, discarded);
            list.clear();
        }
    }
    warnings
}

/// Checks limits, in Docker's words.
///
/// # Errors
/// The first limit that cannot be.
pub(crate) fn check(limits: &ResourceLimits, host: &Host) -> Result<(), String> {
    check_memory(limits)?;
    check_cpu(limits, host)?;
    check_block_io(limits)
}

fn check_memory(limits: &ResourceLimits) -> Result<(), String> {
    let wrong = |text: &str| Err(text.to_owned());
    if limits.memory != 0 && limits.memory < MEMORY_MIN {
        return wrong("Minimum memory limit allowed is 6MB");
    }
    if limits.memory_swap > 0 && limits.memory == 0 {
        return wrong("You should always set the Memory limit when using Memoryswap limit, see usage");
    }
    if limits.memory_swap > 0 && limits.memory_swap < limits.memory {
        return wrong("Minimum memoryswap limit should be larger than memory limit, see usage");
    }
    if limits.memory_reservation != 0 && limits.memory_reservation < MEMORY_MIN {
        return wrong("Minimum memory reservation allowed is 6MB");
    }
    if limits.memory > 0 && limits.memory_reservation > limits.memory {
        return wrong("Minimum memory limit can not be less than memory reservation limit, see usage");
    }
    match limits.memory_swappiness {
        Some(value) if !(-1..=100).contains(&value) => {
            Err(format!("Invalid value: {value}, valid memory swappiness range is 0-100"))
        }
        _ => Ok(()),
    }
}

fn check_cpu(limits: &ResourceLimits, host: &Host) -> Result<(), String> {
    let wrong = |text: &str| Err(text.to_owned());
    if limits.cpu_shares < 0 {
        return Err(format!("invalid CPU shares ({}): value must be a positive integer", limits.cpu_shares));
    }
    if limits.nano_cpus > 0 && limits.cpu_period > 0 {
        return wrong("Conflicting options: Nano CPUs and CPU Period cannot both be set");
    }
    if limits.nano_cpus > 0 && limits.cpu_quota > 0 {
        return wrong("Conflicting options: Nano CPUs and CPU Quota cannot both be set");
    }
    if limits.nano_cpus > 0 && !host.support.quota {
        return wrong(
            "NanoCPUs can not be set, as your kernel does not support CPU CFS scheduler or the cgroup is not mounted",
        );
    }
    let cpus = i64::try_from(host.cpus).unwrap_or(i64::MAX);
    if limits.nano_cpus < 0 || limits.nano_cpus > cpus.saturating_mul(1_000_000_000) {
        return Err(format!(
            "range of CPUs is from 0.01 to {cpus}.00, as there are only {cpus} CPUs available"
        ));
    }
    if limits.cpu_period != 0 && !(1000..=1_000_000).contains(&limits.cpu_period) {
        return wrong("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)");
    }
    if limits.cpu_quota > 0 && limits.cpu_quota < 1000 {
        return wrong("CPU cfs quota can not be less than 1ms (i.e. 1000)");
    }
    if (limits.cpu_realtime_period != 0 || limits.cpu_realtime_runtime != 0) && !host.support.realtime {
        return wrong("Your kernel does not support CPU real-time scheduler");
    }
    if limits.cpu_realtime_period != 0 && limits.cpu_realtime_runtime > limits.cpu_realtime_period {
        return wrong("cpu real-time runtime cannot be higher than cpu real-time period");
    }
    check_set("cpuset cpus", "CPUs", &limits.cpuset_cpus, &host.support.cpus)?;
    check_set("cpuset mems", "memory nodes", &limits.cpuset_mems, &host.support.mems)
}

fn check_set(name: &str, what: &str, wanted: &str, there: &BTreeSet<u32>) -> Result<(), String> {
    let Some(set) = parse_set(wanted) else { return Err(format!("Invalid value {wanted} for {name}")) };
    if set.is_subset(there) {
        return Ok(());
    }
    Err(format!("Requested {what} are not available - requested {wanted}, available: {}", print_set(there)))
}

/// Reads a list of numbers and ranges, `0-2,7`; `None` when it is none.
pub(crate) fn parse_set(text: &str) -> Option<BTreeSet<u32>> {
    /// As many processors as a kernel can be built for.
    const LAST: u32 = 8191;
    let mut set = BTreeSet::new();
    for part in text.trim().split(',').filter(|_| !text.trim().is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last > LAST {
            return None;
        }
        set.extend(first..=last);
    }
    Some(set)
}

fn print_set(set: &BTreeSet<u32>) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for &number in set {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    let texts = ranges.iter().map(
        |(first, last)| {
            if first == last { first.to_string() } else { format!("{first}-{last}") }
        },
    );
    texts.collect::<Vec<_>>().join(",")
}

fn check_block_io(limits: &ResourceLimits) -> Result<(), String> {
    let weight = 10..=1000;
    if limits.blkio_weight != 0 && !weight.contains(&limits.blkio_weight) {
        return Err("Range of blkio weight is from 10 to 1000".to_owned());
    }
    let odd = |device: &&DeviceRate| !(10..=1000).contains(&device.rate);
    match limits.blkio_weight_devices.iter().find(odd) {
        Some(device) => Err(format!("invalid weight for device: {}:{}", device.path, device.rate)),
        None => Ok(()),
    }
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
        let which = if current.cpu_period > 0 { "CPU Period" } else { "CPU Quota" };
        return Err(format!(
            "Conflicting options: Nano CPUs cannot be updated as {which} has already been set"
        ));
    }
    if current.nano_cpus > 0 && (update.cpu_quota > 0 || update.cpu_period > 0) {
        let which = if update.cpu_period > 0 { "CPU Period" } else { "CPU Quota" };
        return Err(format!(
            "Conflicting options: {which} cannot be updated as NanoCPUs has already been set"
        ));
    }
    set(&mut merged.nano_cpus, update.nano_cpus);
    set(&mut merged.memory, update.memory);
    set(&mut merged.memory_swap, update.memory_swap);
    set(&mut merged.memory_reservation, update.memory_reservation);
    set(&mut merged.pids, update.pids);
    set(&mut merged.cpu_shares, update.cpu_shares);
    set(&mut merged.cpu_quota, update.cpu_quota);
    set(&mut merged.cpu_period, update.cpu_period);
    set(&mut merged.cpu_realtime_period, update.cpu_realtime_period);
    set(&mut merged.cpu_realtime_runtime, update.cpu_realtime_runtime);
    if update.blkio_weight != 0 {
        merged.blkio_weight = update.blkio_weight;
    }
    for (own, new) in [
        (&mut merged.blkio_weight_devices, &update.blkio_weight_devices),
        (&mut merged.blkio_read_bps, &update.blkio_read_bps),
        (&mut merged.blkio_write_bps, &update.blkio_write_bps),
        (&mut merged.blkio_read_iops, &update.blkio_read_iops),
        (&mut merged.blkio_write_iops, &update.blkio_write_iops),
    ] {
        if !new.is_empty() {
            own.clone_from(new);
        }
    }
    if !update.cpuset_cpus.is_empty() {
        merged.cpuset_cpus.clone_from(&update.cpuset_cpus);
    }
    if !update.cpuset_mems.is_empty() {
        merged.cpuset_mems.clone_from(&update.cpuset_mems);
    }
    check(&merged, host)?;
    Ok(merged)
}

/// Finds a block device's numbers by its path.
pub(crate) type Numbers<'a> = &'a dyn Fn(&str) -> Result<(i64, i64), String>;

/// The limits in the runtime's terms; devices are left as they are.
///
/// # Errors
/// A block device that is not there.
pub(crate) fn to_oci(limits: &ResourceLimits, numbers: Numbers<'_>) -> Result<LinuxResources, String> {
    let mut resources = LinuxResources::default();
    resources.set_memory(memory(limits)).set_cpu(cpu(limits)).set_block_io(block_io(limits, numbers)?);
    if limits.pids != 0 {
        let mut pids = LinuxPids::default();
        pids.set_limit(if limits.pids > 0 { limits.pids } else { -1 });
        resources.set_pids(Some(pids));
    }
    Ok(resources)
}

fn block_io(limits: &ResourceLimits, numbers: Numbers<'_>) -> Result<Option<LinuxBlockIo>, String> {
    let mut block = LinuxBlockIo::default();
    block.set_weight(u16::try_from(limits.blkio_weight).ok().filter(|weight| *weight != 0));
    let weights = limits.blkio_weight_devices.iter().map(|device| {
        let (major, minor) = numbers(&device.path)?;
        let mut weight = LinuxWeightDeviceBuilder::default().major(major).minor(minor);
        if let Ok(value) = u16::try_from(device.rate) {
            weight = weight.weight(value);
        }
        weight.build().map_err(|error| error.to_string())
    });
    let weights = weights.collect::<Result<Vec<_>, String>>()?;
    block.set_weight_device((!weights.is_empty()).then_some(weights));
    let throttle = |devices: &[DeviceRate]| -> Result<Option<Vec<LinuxThrottleDevice>>, String> {
        let rates = devices.iter().map(|device| {
            let (major, minor) = numbers(&device.path)?;
            let rate = LinuxThrottleDeviceBuilder::default().major(major).minor(minor).rate(device.rate);
            rate.build().map_err(|error| error.to_string())
        });
        let rates = rates.collect::<Result<Vec<_>, String>>()?;
        Ok((!rates.is_empty()).then_some(rates))
    };
    block
        .set_throttle_read_bps_device(throttle(&limits.blkio_read_bps)?)
        .set_throttle_write_bps_device(throttle(&limits.blkio_write_bps)?)
        .set_throttle_read_iops_device(throttle(&limits.blkio_read_iops)?)
        .set_throttle_write_iops_device(throttle(&limits.blkio_write_iops)?);
    Ok((block != LinuxBlockIo::default()).then_some(block))
}

fn memory(limits: &ResourceLimits) -> Option<LinuxMemory> {
    let mut memory = LinuxMemory::default();
    let set = |value: i64| (value != 0).then_some(value);
    let swap = match limits.memory_swap {
        0 => limits.memory.saturating_mul(2),
        both => both,
    };
    memory
        .set_limit(set(limits.memory))
        .set_swap(if limits.memory > 0 { set(swap) } else { None })
        .set_reservation(set(limits.memory_reservation))
        .set_swappiness(limits.memory_swappiness.and_then(|value| u64::try_from(value).ok()))
        .set_disable_oom_killer(limits.oom_kill_disable.then_some(true));
    (memory != LinuxMemory::default()).then_some(memory)
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
    if limits.cpu_realtime_period > 0 {
        cpu.set_realtime_period(u64::try_from(limits.cpu_realtime_period).ok());
    }
    if limits.cpu_realtime_runtime != 0 {
        cpu.set_realtime_runtime(Some(limits.cpu_realtime_runtime));
    }
    if !limits.cpuset_cpus.is_empty() {
        cpu.set_cpus(Some(limits.cpuset_cpus.clone()));
    }
    if !limits.cpuset_mems.is_empty() {
        cpu.set_mems(Some(limits.cpuset_mems.clone()));
    }
    (cpu != LinuxCpu::default()).then_some(cpu)
}

pub(super) fn resources(input: &Input<'_>) -> Result<LinuxResources, String> {
    let config = &input.container.config;
    let mut resources = to_oci(&config.resources, input.numbers)?;
    let rules = if config.spec.privileged {
        vec![rule(true, LinuxDeviceType::A, None, None, "rwm")]
    } else {
        let mut rules = device_rules(input.devices);
        for text in &config.spec.device_cgroup_rules {
            rules.push(parse_rule(text)?);
        }
        rules
    };
    resources.set_devices(Some(rules));
    Ok(resources)
}

/// `c 1:3 rwm`; a star is any number.
///
/// # Errors
/// In Docker's words.
pub(crate) fn parse_rule(text: &str) -> Result<LinuxDeviceCgroup, String> {
    let invalid = || format!("invalid device cgroup rule format: '{text}'");
    let number = |text: &str| match text {
        "*" => Ok(None),
        text => text.parse::<u32>().map(|number| Some(i64::from(number))).map_err(|_| invalid()),
    };
    let [kind, numbers, access] = text.split(' ').collect::<Vec<_>>()[..] else { return Err(invalid()) };
    let kind = match kind {
        "a" => LinuxDeviceType::A,
        "b" => LinuxDeviceType::B,
        "c" => LinuxDeviceType::C,
        _ => return Err(invalid()),
    };
    let (major, minor) = numbers.split_once(':').ok_or_else(invalid)?;
    if access.is_empty() || access.len() > 3 || access.chars().any(|letter| !"rwm".contains(letter)) {
        return Err(invalid());
    }
    Ok(rule(true, kind, number(major)?, number(minor)?, access))
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

    fn oci(limits: &ResourceLimits) -> LinuxResources {
        let numbers = |path: &str| if path == "/dev/sda" { Ok((8, 0)) } else { Err(format!("stat {path}")) };
        to_oci(limits, &numbers).expect("limits")
    }

    #[test]
    fn block_devices_are_found_by_their_path() {
        let rate = |path: &str, rate| DeviceRate { path: path.into(), rate };
        let limits = ResourceLimits {
            blkio_weight: 300,
            blkio_read_bps: vec![rate("/dev/sda", 1 << 20)],
            ..ResourceLimits::default()
        };
        let block = oci(&limits).block_io().clone().expect("block");
        let read = block.throttle_read_bps_device().as_ref().expect("throttle");
        assert_eq!((block.weight(), read[0].major(), read[0].rate()), (Some(300), 8, 1 << 20));
        let missing =
            ResourceLimits { blkio_write_iops: vec![rate("/dev/gone", 5)], ..ResourceLimits::default() };
        assert_eq!(
            to_oci(&missing, &|path: &str| Err(format!("stat {path}"))).expect_err("missing"),
            "stat /dev/gone"
        );
    }

    #[test]
    fn what_the_machine_cannot_do_is_discarded_with_a_warning() {
        let none = Support {
            swap: false,
            swappiness: false,
            oom_kill_disable: false,
            blkio_weight: false,
            ..Support::default()
        };
        let mut limits = ResourceLimits {
            memory: 64 << 20,
            memory_swap: 128 << 20,
            memory_swappiness: Some(10),
            oom_kill_disable: true,
            blkio_weight: 100,
            ..ResourceLimits::default()
        };
        let mut same = limits.clone();
        assert_eq!(discard(&mut limits, &none).len(), 4);
        assert_eq!((limits.memory, limits.memory_swap, limits.blkio_weight), (64 << 20, -1, 0));
        assert!(discard(&mut same, &Support::default()).is_empty());
        assert_eq!(same.memory_swappiness, Some(10));
    }

    #[test]
    fn sets_are_ranges_of_what_is_there() {
        assert_eq!(parse_set("0-2,7").expect("set"), [0, 1, 2, 7].into());
        assert_eq!(print_set(&[0, 1, 2, 7].into()), "0-2,7");
        assert_eq!(parse_set(""), Some(BTreeSet::new()));
        for wrong in ["a", "2-1", "1,,2", "0-99999999"] {
            assert_eq!(parse_set(wrong), None, "{wrong}");
        }
        let limits = ResourceLimits { cpuset_cpus: "0,5".into(), ..ResourceLimits::default() };
        assert_eq!(
            check(&limits, &host()).expect_err("not there"),
            "Requested CPUs are not available - requested 0,5, available: 0-1"
        );
    }

    #[test]
    fn device_rules_are_read_as_docker_writes_them() {
        let rule = parse_rule("c 1:* rw").expect("rule");
        assert_eq!((rule.major(), rule.minor(), rule.access().as_deref()), (Some(1), None, Some("rw")));
        for wrong in ["c 1:3", "x 1:3 rwm", "c 1 rwm", "c 1:3 rwx", "c 1:3 ", "c a:3 r"] {
            assert!(parse_rule(wrong).is_err(), "{wrong}");
        }
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
            |pids| oci(&ResourceLimits { pids, ..ResourceLimits::default() }).pids().map(|p| p.limit());
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
        let rates = vec![DeviceRate { path: "/dev/sda".into(), rate: 5 }];
        let current = ResourceLimits { blkio_write_bps: rates.clone(), ..current };
        let update =
            ResourceLimits { memory: 100 << 20, blkio_read_bps: rates.clone(), ..ResourceLimits::default() };
        let merged = merge(&current, &update, &host()).expect("merged");
        assert_eq!((merged.memory, merged.pids), (100 << 20, 5));
        assert_eq!((&merged.blkio_read_bps, &merged.blkio_write_bps), (&rates, &rates));
        let beyond_swap = ResourceLimits { memory: 200 << 20, ..ResourceLimits::default() };
        assert!(merge(&current, &beyond_swap, &host()).expect_err("refused").contains("memoryswap"));
    }
}
