//! `spec`.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

use serde_json::{Value, json};

use super::args::{Flag, Order};
use super::{Call, Command, features};
use crate::cgroup::Layout;
use crate::failure::{Context, Failure};

pub(super) const SPEC: Command = Command {
    name: "spec",
    args: "",
    about: "write a config.json to start from",
    flags: &[
        Flag::value("bundle", "DIR", "where to (default: the working directory)").or("b"),
        Flag::switch("rootless", "for a container that maps its root to the caller"),
    ],
    order: Order::Anywhere,
    run: write_spec,
};

fn write_spec(call: &Call<'_>) -> Result<i32, Failure> {
    call.args.nothing_more()?;
    let bundle = call.args.value("bundle").filter(|dir| !dir.is_empty()).unwrap_or(".");
    let path = Path::new(bundle).join("config.json");
    let mut spec = example();
    if Layout::detect().is_ok_and(|layout| layout.is_unified()) {
        // With version 1 a container sees the machine's paths, unless it is told otherwise: as with runc.
        spec["linux"]["namespaces"].as_array_mut().expect("it has some").push(json!({"type": "cgroup"}));
    }
    if call.args.has("rootless") {
        make_rootless(&mut spec, nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    }
    let mut file = match File::create_new(&path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(Failure::invalid(format!("File {} exists. Remove it first", path.display())));
        }
        file => file.with_context(|| format!("create `{}`", path.display()))?,
    };
    file.write_all(format!("{spec:#}\n").as_bytes()).context("write config.json")?;
    Ok(0)
}

/// A shell with a terminal and few privileges: the same that runc gives to start from.
fn example() -> Value {
    let capabilities = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    json!({
        "ociVersion": features::SPEC_VERSION,
        "process": {
            "terminal": true,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "rswarm",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs",
             "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
             "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
        ],
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [
                {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
            ],
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

/// What a caller who is not root cannot have goes: a network, limits, owners of mounts, a sysfs of its own.
fn make_rootless(spec: &mut Value, uid: u32, gid: u32) {
    let linux = &mut spec["linux"];
    if let Some(namespaces) = linux["namespaces"].as_array_mut() {
        namespaces.retain(|namespace| namespace["type"] != "network");
        namespaces.push(json!({"type": "user"}));
    }
    linux["uidMappings"] = json!([{"containerID": 0, "hostID": uid, "size": 1}]);
    linux["gidMappings"] = json!([{"containerID": 0, "hostID": gid, "size": 1}]);
    linux.as_object_mut().and_then(|linux| linux.remove("resources"));
    for mount in spec["mounts"].as_array_mut().into_iter().flatten() {
        if mount["destination"] == "/sys" {
            let options = ["rbind", "nosuid", "noexec", "nodev", "ro"];
            *mount = json!({"destination": "/sys", "type": "none", "source": "/sys", "options": options});
        } else if let Some(options) = mount["options"].as_array_mut() {
            let owner = |option: &Value| {
                option.as_str().is_some_and(|text| text.starts_with("gid=") || text.starts_with("uid="))
            };
            options.retain(|option| !owner(option));
        }
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::Spec;

    use super::*;

    #[test]
    fn both_examples_are_specs() {
        let mut example = example();
        serde_json::from_value::<Spec>(example.clone()).expect("a spec");
        make_rootless(&mut example, 1000, 100);
        assert_eq!(example["linux"]["uidMappings"][0]["hostID"], 1000);
        assert!(!example.to_string().contains("gid=5") && !example.to_string().contains("network"));
        serde_json::from_value::<Spec>(example).expect("a spec");
    }
}
