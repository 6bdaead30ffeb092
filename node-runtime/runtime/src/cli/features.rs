//! `features`: what this runtime knows, so that callers need not try.

use serde_json::json;

use super::args::Order;
use super::{Call, Command, say};
use crate::failure::Failure;
use crate::hooks::Point;

/// The newest version of the specification that is kept.
pub(super) const SPEC_VERSION: &str = "1.2.1";

pub(super) const FEATURES: Command = Command {
    name: "features",
    args: "",
    about: "print what this runtime can do",
    flags: &[],
    order: Order::Anywhere,
    run: features,
};

// spec: oci-runtime features.md, features-linux.md
fn features(call: &Call<'_>) -> Result<i32, Failure> {
    call.args.nothing_more()?;
    let mut capabilities: Vec<String> = caps::all().iter().map(ToString::to_string).collect();
    capabilities.sort();
    let features = json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": SPEC_VERSION,
        "hooks": Point::ALL.map(Point::name),
        "mountOptions": crate::rootfs::known_options(),
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": capabilities,
            "cgroup": {"v1": true, "v2": true, "systemd": false, "systemdUser": false, "rdma": true},
            "seccomp": {
                "enabled": true,
                "actions": crate::seccomp::ACTIONS,
                "operators": crate::seccomp::OPERATORS,
                "archs": crate::seccomp::ARCHITECTURES,
                "knownFlags": crate::seccomp::FLAGS,
                "supportedFlags": crate::seccomp::FLAGS,
            },
            "apparmor": {"enabled": true},
            "selinux": {"enabled": true},
            "intelRdt": {"enabled": false},
            "mountExtensions": {"idmap": {"enabled": true}},
            "netDevices": {"enabled": true},
        },
        // What a caller must not pass on from a stranger: nothing of ours is steered by an annotation.
        "potentiallyUnsafeConfigAnnotations": [],
        "annotations": {"org.rswarm.version": env!("CARGO_PKG_VERSION")},
    });
    say(&format!("{features:#}\n"))
}
