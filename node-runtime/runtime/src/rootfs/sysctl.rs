//! `linux.sysctl`: only what belongs to a namespace of the container's own, and only through procfs.

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use oci_spec::runtime::{Linux, LinuxNamespaceType, Spec};
use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::is_procfs;
use crate::failure::{Context, Failure};

/// What belongs to an IPC namespace, besides `fs.mqueue`. ipc_namespaces(7).
const IPC: &[&str] = &[
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
    "kernel/shm_rmid_forced",
];

/// Refuses what would change the machine, in runc's words.
pub(super) fn check(spec: &Spec, linux: &Linux) -> Result<(), Failure> {
    for (key, value) in linux.sysctl().iter().flatten() {
        let given = spec.domainname().as_ref().filter(|name| !name.is_empty());
        if path(key).as_deref() == Some("kernel/domainname") && given.is_some_and(|given| given != value) {
            let why = "is not allowed as it conflicts with the OCI \"domainname\" field";
            return Err(Failure::invalid(format!("sysctl \"{key}\" {why}")));
        }
    }
    for key in linux.sysctl().iter().flat_map(|all| all.keys()) {
        let path = path(key).ok_or_else(|| Failure::invalid(format!("sysctl `{key}` is not a name")))?;
        allowed(linux, &path).map_err(|why| Failure::invalid(format!("sysctl \"{key}\" {why}")))?;
    }
    Ok(())
}

fn allowed(linux: &Linux, path: &str) -> Result<(), String> {
    let has = |typ| linux.namespaces().iter().flatten().any(|namespace| namespace.typ() == typ);
    let only_if = |is: bool, why: &str| if is { Ok(()) } else { Err(why.to_owned()) };
    if IPC.contains(&path) || path.starts_with("fs/mqueue/") {
        return only_if(has(LinuxNamespaceType::Ipc), "is not allowed in the hosts ipc namespace");
    }
    if path.starts_with("net/") {
        let own = own_network(linux).map_err(|why| format!("cannot be set: {why}"))?;
        return only_if(own, "not allowed in host network namespace");
    }
    if path == "kernel/hostname" && has(LinuxNamespaceType::Uts) {
        return Err("is not allowed as it conflicts with the OCI \"hostname\" field".to_owned());
    }
    if path == "kernel/domainname" && has(LinuxNamespaceType::Uts) {
        return Ok(());
    }
    if path.starts_with("user/") {
        return only_if(has(LinuxNamespaceType::User), "is not allowed without a user namespace");
    }
    Err("is not in a separate kernel namespace".to_owned())
}

/// Whether the container's network is another than ours.
fn own_network(linux: &Linux) -> Result<bool, Failure> {
    let mut all = linux.namespaces().iter().flatten();
    let Some(network) = all.find(|namespace| namespace.typ() == LinuxNamespaceType::Network) else {
        return Ok(false);
    };
    let Some(path) = network.path().as_ref().filter(|path| !path.as_os_str().is_empty()) else {
        return Ok(true);
    };
    let theirs = std::fs::metadata(path).with_context(|| format!("look at `{}`", path.display()))?;
    let ours = std::fs::metadata("/proc/self/ns/net").context("look at our network namespace")?;
    Ok((theirs.dev(), theirs.ino()) != (ours.dev(), ours.ino()))
}

/// Writes them through the machine's `/proc`, where the caller's own namespaces show. What is not procfs, or
/// leads through a link or another mount, is not written to.
pub(super) fn write(linux: &Linux) -> Result<(), Failure> {
    let Some(sysctls) = linux.sysctl().as_ref().filter(|all| !all.is_empty()) else { return Ok(()) };
    let sys = open_sys()?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    for (key, value) in sysctls {
        let path = path(key).ok_or_else(|| Failure::invalid(format!("sysctl `{key}` is not a name")))?;
        let what = || format!("write sysctl {key}");
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat2(&sys, path, flags, Mode::empty(), resolve).with_context(what)?;
        rustix::io::write(&file, value.as_bytes()).with_context(what)?;
    }
    Ok(())
}

fn open_sys() -> Result<OwnedFd, Failure> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let sys = rustix::fs::open("/proc/sys", flags, Mode::empty()).context("open /proc/sys")?;
    if !is_procfs(&sys).context("look at /proc/sys")? {
        return Err(Failure::other("/proc/sys is not procfs"));
    }
    Ok(sys)
}

/// Below `/proc/sys`: `net.ipv4.ip_forward` or `net/ipv4/conf/eth0.1/forwarding`, the first separator decides.
// sysctl.d(5)
fn path(key: &str) -> Option<String> {
    let separator = key.chars().find(|letter| matches!(letter, '.' | '/'))?;
    let swapped = if separator == '.' {
        let swap = |letter| match letter {
            '.' => '/',
            '/' => '.',
            other => other,
        };
        key.chars().map(swap).collect()
    } else {
        key.to_owned()
    };
    let clean = swapped.split('/').all(|part| !matches!(part, "" | "." | "..")) && !swapped.contains('\0');
    clean.then_some(swapped)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_sysctl_is_a_path_with_either_separator() {
        assert_eq!(path("net.ipv4.ip_forward").as_deref(), Some("net/ipv4/ip_forward"));
        let forwarding = Some("net/ipv4/conf/eth0.1/forwarding");
        assert_eq!(path("net/ipv4/conf/eth0.1/forwarding").as_deref(), forwarding);
        assert_eq!(path("net.ipv4.conf.eth0/1.forwarding").as_deref(), forwarding);
        for key in ["net/../../etc/passwd", "net", "", "net//x", "net.ipv4/..", "/net/x", "net.\0"] {
            assert_eq!(path(key), None, "{key}");
        }
    }

    fn refused(key: &str, namespaces: &[&str]) -> Option<String> {
        let namespaces: Vec<_> = namespaces.iter().map(|typ| json!({"type": typ})).collect();
        let linux = json!({"namespaces": namespaces, "sysctl": {key: "1"}});
        let linux = serde_json::from_value(linux).expect("linux");
        check(&Spec::default(), &linux).err().map(|failure| failure.message)
    }

    #[test]
    fn only_namespaces_of_ones_own_are_changed() {
        let all = &["network", "ipc", "uts", "user"];
        for key in
            ["net.ipv4.ip_forward", "kernel.shmmax", "fs/mqueue/msg_max", "kernel.domainname", "user.max_x"]
        {
            assert_eq!(refused(key, all), None);
            assert!(refused(key, &[]).is_some(), "{key}");
        }
        for key in ["vm.swappiness", "kernel.core_pattern", "kernel.hostname", "fs.file-max", "net"] {
            assert!(refused(key, all).is_some(), "{key}");
        }
        let words = refused("net.ipv4.ip_forward", &["ipc"]);
        assert_eq!(
            words.as_deref(),
            Some("sysctl \"net.ipv4.ip_forward\" not allowed in host network namespace")
        );
        let words = refused("kernel.sem", &["network"]);
        assert_eq!(words.as_deref(), Some("sysctl \"kernel.sem\" is not allowed in the hosts ipc namespace"));
    }

    #[test]
    fn a_domain_name_is_given_once() {
        let linux = json!({"namespaces": [{"type": "uts"}], "sysctl": {"kernel.domainname": "one"}});
        let linux: Linux = serde_json::from_value(linux).expect("linux");
        let mut spec = Spec::default();
        spec.set_domainname(Some("one".to_owned()));
        assert_eq!(check(&spec, &linux), Ok(()));
        spec.set_domainname(Some("other".to_owned()));
        let failure = check(&spec, &linux).expect_err("refused");
        assert!(failure.message.ends_with("conflicts with the OCI \"domainname\" field"), "{failure}");
    }

    #[test]
    fn the_hosts_network_by_path_is_the_hosts() {
        let linux = json!({
            "namespaces": [{"type": "network", "path": "/proc/self/ns/net"}],
            "sysctl": {"net.core.somaxconn": "1"},
        });
        let failure = check(&Spec::default(), &serde_json::from_value(linux).expect("linux"));
        let failure = failure.expect_err("refused");
        assert!(failure.message.contains("not allowed in host network namespace"), "{failure}");
    }
}
