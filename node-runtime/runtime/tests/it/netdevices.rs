//! `linux.netDevices`, with one end of a veth pair in a network namespace of the test's own.

use std::process::{Command, Output};

use anyhow::{Result, ensure};
use serde_json::json;

use crate::Case;
use crate::support::{BUSYBOX, Bundle};

pub const CASES: &[Case] = &[
    ("a_device_is_moved_with_its_addresses", a_device_is_moved_with_its_addresses),
    ("a_device_that_cannot_be_moved_makes_nothing", a_device_that_cannot_be_moved_makes_nothing),
];

/// Runs a command of the runtime where there is a device `ours0`, and says then what has become of it.
fn run(bundle: &Bundle) -> Result<Output> {
    let call = bundle.command(&["run", &bundle.id])?;
    let script = format!(
        "ip() {{ {BUSYBOX} ip \"$@\"; }}
         ip link add ours0 type veth; ip link set ours0 mtu 1300
         ip addr add 10.9.8.7/24 dev ours0; ip addr add 10.9.8.6/24 dev ours0 scope link
         \"$@\"; code=$?
         ip link show ours0 2>&1; exit $code"
    );
    let mut command = Command::new("unshare");
    command.args(["--net", "sh", "-c", &script, "sh"]).arg(call.get_program()).args(call.get_args());
    Ok(command.current_dir(bundle.path("bundle")).output()?)
}

fn a_device_is_moved_with_its_addresses() -> Result<()> {
    let mut bundle = Bundle::sh("busybox ip addr show eth7")?;
    for users in [false, true] {
        if users {
            bundle.spec["linux"]["namespaces"].as_array_mut().expect("some").push(json!({"type": "user"}));
            for map in ["uidMappings", "gidMappings"] {
                bundle.spec["linux"][map] = json!([{"containerID": 0, "hostID": 0, "size": 1000}]);
            }
        }
        bundle.spec["linux"]["netDevices"] = json!({"ours0": {"name": "eth7"}});
        let output = run(&bundle)?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "{output:?}");
        ensure!(said.contains(",UP") && said.contains("mtu 1300"), "{said}");
        ensure!(said.contains("inet 10.9.8.7/24") && !said.contains("10.9.8.6"), "{said}");
        ensure!(said.contains("ip: can't find device 'ours0'"), "{said}");
        bundle.nothing_is_left()?;
    }
    Ok(())
}

fn a_device_that_cannot_be_moved_makes_nothing() -> Result<()> {
    let mut bundle = Bundle::sh("")?;
    let table = [
        (json!({"ours7": {}}), "`linux.netDevices.ours7`: take down: no such device"),
        (
            json!({"ours0": {"name": "lo"}}),
            "`linux.netDevices.ours0`: move to the container as `lo`: file exists",
        ),
    ];
    for (devices, words) in table {
        bundle.spec["linux"]["netDevices"] = devices;
        let output = run(&bundle)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success() && said.contains(words), "{output:?}");
        // It is where it was.
        ensure!(String::from_utf8_lossy(&output.stdout).contains("ours0"), "{output:?}");
        bundle.nothing_is_left()?;
    }
    Ok(())
}
