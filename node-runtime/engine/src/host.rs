//! What the engine must know of its machine. The only module that looks.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::resource::{Resource, getrlimit};
use oci_spec::runtime::LinuxDeviceType;
use rswarm_proto::model::container::Device;
use rswarm_runtime::cgroup::Cgroup;

use crate::files::ResolvConf;
use crate::spec::{Host, HostDevice, Support, bounding_set, parse_set};

/// The bit of `CAP_SYS_RESOURCE`.
const SYS_RESOURCE: u64 = 1 << 24;

/// Reads what [`Host`] holds.
pub(crate) fn facts() -> Host {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bits = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0)
    };
    Host {
        capabilities: bounding_set(bits("CapBnd")),
        hard_limits: hard_limits(),
        may_raise_limits: bits("CapEff") & SYS_RESOURCE != 0,
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        cgroup_v2: Path::new("/sys/fs/cgroup/cgroup.controllers").exists(),
        support: support(),
        mqueue: Path::new("/dev/mqueue").exists(),
    }
}

/// What the machine's cgroups can limit: the files that a cgroup has, or would have.
fn support() -> Support {
    // Any path will do: it is the hierarchies' roots that are looked at.
    let probe = Cgroup::at(Path::new("/any")).ok();
    let root = |controller: &str| {
        let dir = probe.as_ref().and_then(|cgroup| cgroup.directory(controller).map(Path::to_owned));
        dir.and_then(|dir| dir.parent().map(Path::to_owned))
    };
    let unified = probe.as_ref().is_some_and(|cgroup| cgroup.only_unified().is_some());
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    let listed = |controller: &str| controllers.split_whitespace().any(|name| name == controller);
    // The root of version 2 has no files for limits: a controller there has all of its own.
    let has = |controller: &str, v1: &str| {
        if unified { listed(controller) } else { root(controller).is_some_and(|dir| dir.join(v1).exists()) }
    };
    let cpuset = root("cpuset");
    let set = |v1: &str, v2: &str| {
        let file = cpuset.as_ref().map(|dir| dir.join(if unified { v2 } else { v1 }));
        let text = file.and_then(|file| fs::read_to_string(file).ok());
        text.and_then(|text| parse_set(&text)).unwrap_or_default()
    };
    Support {
        memory: has("memory", "memory.limit_in_bytes"),
        swap: has("memory", "memory.memsw.limit_in_bytes") && fs::metadata("/proc/swaps").is_ok(),
        reservation: has("memory", "memory.soft_limit_in_bytes"),
        swappiness: !unified && has("memory", "memory.swappiness"),
        oom_kill_disable: !unified && has("memory", "memory.oom_control"),
        pids: if unified { listed("pids") } else { root("pids").is_some() },
        shares: has("cpu", "cpu.shares"),
        quota: has("cpu", "cpu.cfs_quota_us"),
        realtime: !unified && has("cpu", "cpu.rt_runtime_us"),
        cpuset: has("cpuset", "cpuset.cpus"),
        blkio_weight: has("blkio", "blkio.weight") || (unified && listed("io")),
        blkio_throttle: has("blkio", "blkio.throttle.read_bps_device") || (unified && listed("io")),
        cpus: set("cpuset.cpus", "cpuset.cpus.effective"),
        mems: set("cpuset.mems", "cpuset.mems.effective"),
    }
}

/// The numbers of a block device, by its path.
///
/// # Errors
/// In Go's words, as Docker passes them on.
pub(crate) fn block_device(path: &str) -> Result<(i64, i64), String> {
    let meta = fs::metadata(path).map_err(|error| format!("stat {path}: {}", describe(&error)))?;
    let number = |part: u64| i64::try_from(part).unwrap_or(0);
    Ok((number(nix::sys::stat::major(meta.rdev())), number(nix::sys::stat::minor(meta.rdev()))))
}

fn hard_limits() -> BTreeMap<String, u64> {
    let all = [
        ("core", Resource::RLIMIT_CORE),
        ("cpu", Resource::RLIMIT_CPU),
        ("data", Resource::RLIMIT_DATA),
        ("fsize", Resource::RLIMIT_FSIZE),
        ("locks", Resource::RLIMIT_LOCKS),
        ("memlock", Resource::RLIMIT_MEMLOCK),
        ("msgqueue", Resource::RLIMIT_MSGQUEUE),
        ("nice", Resource::RLIMIT_NICE),
        ("nofile", Resource::RLIMIT_NOFILE),
        ("nproc", Resource::RLIMIT_NPROC),
        ("rss", Resource::RLIMIT_RSS),
        ("rtprio", Resource::RLIMIT_RTPRIO),
        ("rttime", Resource::RLIMIT_RTTIME),
        ("sigpending", Resource::RLIMIT_SIGPENDING),
        ("stack", Resource::RLIMIT_STACK),
    ];
    all.into_iter().filter_map(|(name, id)| Some((name.to_owned(), getrlimit(id).ok()?.1))).collect()
}

/// The host's name resolution; systemd's real servers when only its stub is named.
pub(crate) fn resolv_conf() -> ResolvConf {
    let read = |path: &str| ResolvConf::parse(&fs::read_to_string(path).unwrap_or_default());
    let conf = read("/etc/resolv.conf");
    let only_stub =
        !conf.servers.is_empty() && conf.servers.iter().all(|server| server.to_string() == "127.0.0.53");
    if only_stub {
        let real = read("/run/systemd/resolve/resolv.conf");
        if !real.servers.is_empty() {
            return real;
        }
    }
    conf
}

/// The host's `/etc/hosts`, for containers on its network.
pub(crate) fn hosts() -> String {
    fs::read_to_string("/etc/hosts").unwrap_or_default()
}

/// The device nodes that a container asked for; one that is a directory stands for all in it.
///
/// # Errors
/// The first that is not there, in Docker's words.
pub(crate) fn devices(asked: &[Device]) -> Result<Vec<HostDevice>, String> {
    let mut devices = Vec::new();
    for device in asked {
        let inside =
            if device.container_path.is_empty() { &device.host_path } else { &device.container_path };
        let permissions = if device.permissions.is_empty() { "rwm" } else { &device.permissions };
        let wrong = |why: &str| {
            format!(
                "error gathering device information while adding custom device \"{}\": {why}",
                device.host_path
            )
        };
        if permissions.chars().any(|letter| !"rwm".contains(letter)) {
            return Err(format!("invalid device mode: {permissions}"));
        }
        let before = devices.len();
        collect(Path::new(&device.host_path), Path::new(inside), permissions, &mut devices)
            .map_err(|error| wrong(&describe(&error)))?;
        if devices.len() == before {
            return Err(wrong("not a device node"));
        }
    }
    Ok(devices)
}

/// A system error as Go prints it: lower case, no number.
pub(crate) fn describe(error: &std::io::Error) -> String {
    let number = error.raw_os_error();
    number
        .map_or_else(|| error.to_string(), |number| nix::errno::Errno::from_raw(number).desc().to_lowercase())
}

/// Every device of the host, for privileged containers.
pub(crate) fn all_devices() -> Vec<HostDevice> {
    let mut devices = Vec::new();
    let Ok(entries) = fs::read_dir("/dev") else { return devices };
    for entry in entries.flatten() {
        let path = entry.path();
        // These are the container's own mounts.
        let own = [
            "pts", "shm", "fd", "mqueue", "console", "ptmx", "tty", "null", "zero", "full", "random",
            "urandom",
        ];
        if !own.iter().any(|name| entry.file_name() == *name) {
            // A device that vanishes meanwhile is none.
            let _ = collect(&path, &path, "rwm", &mut devices);
        }
    }
    devices
}

fn collect(from: &Path, inside: &Path, permissions: &str, into: &mut Vec<HostDevice>) -> std::io::Result<()> {
    let meta = fs::metadata(from)?;
    if meta.is_dir() {
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            if !entry.file_type()?.is_symlink() {
                collect(&entry.path(), &inside.join(entry.file_name()), permissions, into)?;
            }
        }
        return Ok(());
    }
    let kind = match meta.file_type() {
        kind if kind.is_char_device() => LinuxDeviceType::C,
        kind if kind.is_block_device() => LinuxDeviceType::B,
        _ => return Ok(()),
    };
    let number = |part: u64| i64::try_from(part).unwrap_or(0);
    into.push(HostDevice {
        path: inside.display().to_string(),
        kind,
        major: number(nix::sys::stat::major(meta.rdev())),
        minor: number(nix::sys::stat::minor(meta.rdev())),
        mode: meta.mode(),
        uid: meta.uid(),
        gid: meta.gid(),
        permissions: permissions.to_owned(),
    });
    Ok(())
}

/// The distribution's name, as `/etc/os-release` has it.
pub(crate) fn operating_system() -> String {
    let paths = [PathBuf::from("/etc/os-release"), PathBuf::from("/usr/lib/os-release")];
    let text = paths.iter().find_map(|path| fs::read_to_string(path).ok()).unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| "Linux".to_owned(), |name| name.trim_matches('"').to_owned())
}

/// Memory in bytes.
pub(crate) fn memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_found_with_its_numbers_and_a_file_is_none() {
        let device = |path: &str| Device { host_path: path.into(), ..Device::default() };
        let found = devices(&[device("/dev/null")]).expect("found");
        assert_eq!((found[0].kind, found[0].major, found[0].minor), (LinuxDeviceType::C, 1, 3));
        assert!(devices(&[device("/etc/passwd")]).expect_err("a file").contains("not a device node"));
        assert!(devices(&[device("/dev/gone")]).expect_err("missing").contains("no such file or directory"));
        let odd = Device { permissions: "rx".into(), ..device("/dev/null") };
        assert_eq!(devices(&[odd]).expect_err("mode"), "invalid device mode: rx");
    }

    #[test]
    fn the_machine_has_processors_limits_and_memory() {
        let host = facts();
        assert!(host.cpus > 0 && memory() > 0);
        assert!(host.hard_limits.contains_key("nofile"));
    }
}
