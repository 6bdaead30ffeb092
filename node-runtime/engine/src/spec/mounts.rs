//! What is mounted inside a container, in order.

use std::path::Path;

use oci_spec::runtime::Mount;
use rswarm_proto::model::container::{self as model, mount};

use super::{INIT_TARGET, Input, Namespace};
use crate::container::{MountKind, MountPoint, Recursion};
use crate::merge::clean_path;

/// Docker's `/dev/shm`.
const SHM_SIZE: i64 = 64 << 20;

/// Where a volume's content comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum VolumeSource {
    /// A directory of the host.
    Directory(String),
    /// A file system that is mounted inside the container: type, device, options.
    Filesystem(String, String, Vec<String>),
}

/// All mounts: the kernel's file systems, the engine's files, then the user's, parents first. A user's mount
/// takes the place of ours at the same destination.
pub(super) fn mounts(input: &Input<'_>) -> Result<Vec<Mount>, String> {
    let users = users(input)?;
    let taken = |destination: &Path| users.iter().any(|mount| mount.destination() == destination);
    let mut mounts: Vec<Mount> = kernel(input).into_iter().chain(engine(input)).collect();
    mounts.retain(|mount| !taken(mount.destination()));
    mounts.extend(users);
    Ok(mounts)
}

fn mount(destination: &str, typ: &str, source: &str, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(destination.into())
        .set_typ(Some(typ.to_owned()))
        .set_source(Some(source.into()))
        .set_options(Some(options.iter().map(ToString::to_string).collect()));
    mount
}

fn kernel(input: &Input<'_>) -> Vec<Mount> {
    let config = &input.container.config.spec;
    let access = if config.privileged { "rw" } else { "ro" };
    let cgroups = if input.security.writable_cgroups { "rw" } else { access };
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", access]),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", cgroups]),
    ];
    if input.ipc == Namespace::Host {
        if input.host.mqueue {
            mounts.push(mount("/dev/mqueue", "bind", "/dev/mqueue", &["rbind", "nosuid", "noexec", "nodev"]));
        }
        mounts.push(mount("/dev/shm", "bind", "/dev/shm", &["rbind", "nosuid", "noexec", "nodev"]));
        return mounts;
    }
    mounts.push(mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]));
    if let Some(shm) = input.shm {
        mounts.push(mount("/dev/shm", "bind", &shm.to_string_lossy(), &["rbind", "rprivate"]));
    } else if config.ipc_mode != "none" {
        let size = format!("size={}", if config.shm_size > 0 { config.shm_size } else { SHM_SIZE });
        mounts.push(mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", &size]));
    }
    mounts
}

/// The files that the engine writes for each container, and its init.
fn engine(input: &Input<'_>) -> Vec<Mount> {
    let file = |name: &str| {
        let source = input.etc.join(name);
        mount(&format!("/etc/{name}"), "bind", &source.to_string_lossy(), &["rbind", "rprivate"])
    };
    let mut mounts = vec![file("resolv.conf"), file("hostname"), file("hosts")];
    if let Some(init) = input.init {
        mounts.push(mount(INIT_TARGET, "bind", &init.to_string_lossy(), &["bind", "ro"]));
    }
    mounts
}

fn users(input: &Input<'_>) -> Result<Vec<Mount>, String> {
    let config = &input.container.config.spec;
    let tmpfs = config.mounts.iter().filter(|mount| mount.r#type() == mount::Type::Tmpfs).map(tmpfs);
    let mut mounts: Vec<Mount> = tmpfs.collect();
    for point in input.container.mounts.iter() {
        match point.kind {
            MountKind::Bind => mounts.push(bind(&point.source, point)),
            MountKind::Volume => mounts.push(volume(input, point)?),
            MountKind::Tmpfs => {}
        }
    }
    mounts.sort_by_key(|mount| mount.destination().components().count());
    Ok(mounts)
}

fn bind(source: &str, point: &MountPoint) -> Mount {
    let bind = if point.recursion == Recursion::Disabled { "bind" } else { "rbind" };
    // moby: read-only is so for all mounts below too, since Docker 25.
    let access = match (point.writable, point.recursion) {
        (true, _) => "rw",
        (false, Recursion::Enabled | Recursion::Readonly) => "rro",
        (false, Recursion::Disabled | Recursion::Writable) => "ro",
    };
    let propagation = if point.propagation.is_empty() { "rprivate" } else { &point.propagation };
    mount(&point.destination, "bind", source, &[bind, access, propagation])
}

fn volume(input: &Input<'_>, point: &MountPoint) -> Result<Mount, String> {
    match input.volumes.get(&point.name) {
        Some(VolumeSource::Directory(path)) => Ok(bind(path, point)),
        Some(VolumeSource::Filesystem(typ, device, options)) => {
            let mut options: Vec<&str> = options.iter().map(String::as_str).collect();
            if !point.writable {
                options.push("ro");
            }
            Ok(mount(&point.destination, typ, device, &options))
        }
        None => Err(format!("get {}: no such volume", point.name)),
    }
}

/// `noexec,nosuid,nodev` unless the user says the opposite, then size, mode and the user's options.
fn tmpfs(asked: &model::Mount) -> Mount {
    let own: Vec<&str> = asked.tmpfs_options.split(',').filter(|option| !option.is_empty()).collect();
    let mut options: Vec<String> = Vec::new();
    for default in ["noexec", "nosuid", "nodev"] {
        let opposite = default.trim_start_matches("no");
        if !own.contains(&opposite) && !own.contains(&default) {
            options.push(default.to_owned());
        }
    }
    options.extend(own.iter().map(ToString::to_string));
    if asked.tmpfs_size > 0 {
        options.push(format!("size={}", asked.tmpfs_size));
    }
    if asked.tmpfs_mode != 0 {
        options.push(format!("mode={:o}", asked.tmpfs_mode));
    }
    if asked.read_only {
        options.push("ro".to_owned());
    }
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    mount(&clean_path(&asked.target), "tmpfs", "tmpfs", &options)
}
