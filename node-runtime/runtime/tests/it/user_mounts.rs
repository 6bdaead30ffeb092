//! The file tree of a container whose root is nobody on the machine.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::Case;
use crate::mounts::{add, in_namespace, line, mount, run, said};
use crate::support::Bundle;

pub const CASES: &[Case] = &[
    ("a_tree_that_its_root_cannot_reach_is_mounted", a_tree_that_its_root_cannot_reach_is_mounted),
    ("devices_are_the_machines_own", devices_are_the_machines_own),
    ("terminals_have_a_group_if_there_is_one", terminals_have_a_group_if_there_is_one),
    ("inherited_flags_are_kept_and_cannot_be_taken_off", inherited_flags_are_kept_and_cannot_be_taken_off),
    ("a_mount_can_have_the_containers_ids", a_mount_can_have_the_containers_ids),
    (
        "what_was_mounted_before_can_have_the_containers_ids",
        what_was_mounted_before_can_have_the_containers_ids,
    ),
    ("the_machines_sysfs_is_shown_with_its_network", the_machines_sysfs_is_shown_with_its_network),
];

/// Who the container's root is.
const ROOT: u32 = 100_000;

/// A bundle whose root file system belongs to the container's root; the directory around it may
/// be entered by the machine's root only.
fn bundle(script: &str) -> Result<Bundle> {
    let mut bundle = Bundle::sh(script)?;
    fs::create_dir(bundle.path("bundle/rootfs/sys"))?;
    give(&bundle.path("bundle/rootfs"))?;
    fs::set_permissions(bundle.path(""), fs::Permissions::from_mode(0o700))?;
    let namespaces = bundle.spec["linux"]["namespaces"].as_array_mut().context("namespaces")?;
    namespaces.push(json!({"type": "user"}));
    let map = json!([{"containerID": 0, "hostID": ROOT, "size": 65536}]);
    bundle.spec["linux"]["uidMappings"] = map.clone();
    bundle.spec["linux"]["gidMappings"] = map;
    Ok(bundle)
}

fn give(dir: &Path) -> Result<()> {
    chown(dir, Some(ROOT), Some(ROOT))?;
    for entry in fs::read_dir(dir)?.flatten() {
        if entry.file_type()?.is_dir() {
            give(&entry.path())?;
        }
    }
    Ok(())
}

fn a_tree_that_its_root_cannot_reach_is_mounted() -> Result<()> {
    let script = "cat /d/name /f; touch /d/x || echo refused; touch /made; cat /proc/self/uid_map";
    let mut bundle = bundle(script)?;
    let secret = bundle.path("secret");
    fs::create_dir(&secret)?;
    fs::write(secret.join("name"), "directory\n")?;
    fs::write(bundle.path("file"), "file\n")?;
    add(&mut bundle, mount("/d", "bind", "../secret", "rbind"))?;
    add(&mut bundle, mount("/f", "bind", "../file", "bind,ro"))?;
    let said = run(&bundle)?;
    ensure!(said.starts_with("directory\nfile\nrefused\n"), "{said}");
    ensure!(said.contains("100000"), "{said}");
    let made = fs::metadata(bundle.path("bundle/rootfs/made"))?;
    ensure!(std::os::unix::fs::MetadataExt::uid(&made) == ROOT);
    Ok(())
}

fn devices_are_the_machines_own() -> Result<()> {
    let script = "cd /dev; stat -c '%n %t:%T %a' null zero full random urandom tty fuse pipe
        echo x > null && busybox head -c 3 zero | busybox wc -c; cat /proc/self/mountinfo";
    let mut bundle = bundle(script)?;
    let fuse = fs::metadata("/dev/fuse").is_ok();
    let mut devices = vec![json!({"path": "/dev/pipe", "type": "p", "fileMode": 0o640})];
    if fuse {
        devices.push(json!({"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o777}));
    } else {
        eprintln!("the machine has no /dev/fuse to bind");
    }
    bundle.spec["linux"]["devices"] = devices.into();
    let before = fs::metadata("/dev/fuse").map(|meta| meta.permissions().mode());
    let said = run(&bundle)?;
    ensure!(said.starts_with("null 1:3 666\nzero 1:5 666\nfull 1:7 666\nrandom 1:8 666\n"), "{said}");
    ensure!(said.contains("pipe 0:0 640\n3\n"), "{said}");
    ensure!(line(&said, "/dev/null")?.root == "/null", "{said}");
    ensure!(!fuse || line(&said, "/dev/fuse")?.root == "/fuse", "{said}");
    ensure!(fs::metadata("/dev/fuse").map(|meta| meta.permissions().mode()).ok() == before.ok());
    // One that the machine does not have in that place cannot be had.
    bundle.spec["linux"]["devices"] = json!([{"path": "/dev/null", "type": "c", "major": 1, "minor": 5}]);
    let error = bundle.fails(&["run", &bundle.id])?;
    ensure!(error.contains("bind device `/dev/null`: the machine has another file there"), "{error}");
    bundle.nothing_is_left()
}

fn terminals_have_a_group_if_there_is_one() -> Result<()> {
    let mut bundle = bundle("cat /proc/self/mountinfo")?;
    ensure!(line(&run(&bundle)?, "/dev/pts")?.has("gid=100005"));
    let map = json!([{"containerID": 0, "hostID": ROOT, "size": 1}]);
    bundle.spec["linux"]["gidMappings"] = map;
    let table = run(&bundle)?;
    ensure!(line(&table, "/dev/pts")?.has("mode=620") && !table.contains("gid=100005"), "{table}");
    Ok(())
}

fn inherited_flags_are_kept_and_cannot_be_taken_off() -> Result<()> {
    let mut bundle = bundle("cat /proc/self/mountinfo")?;
    fs::create_dir(bundle.path("host"))?;
    // The container's root may look at it, so the mount is its own copy of the machine's.
    fs::set_permissions(bundle.path(""), fs::Permissions::from_mode(0o755))?;
    add(&mut bundle, mount("/kept", "bind", "../host", "bind,nosuid"))?;
    let script = "mount -t tmpfs -o ro,nodev,noexec tmpfs $DIR/host; exec \"$@\"";
    let table = said(&in_namespace(&bundle, script, &["run", &bundle.id])?)?;
    let kept = line(&table, "/kept")?;
    ensure!(["ro", "nodev", "noexec", "nosuid"].iter().all(|flag| kept.has(flag)), "{kept:?}");
    for flag in ["rw", "dev", "exec"] {
        bundle.spec["mounts"].as_array_mut().context("mounts")?.pop();
        add(&mut bundle, mount("/kept", "bind", "../host", &format!("bind,{flag}")))?;
        let output = in_namespace(&bundle, script, &["run", &bundle.id])?;
        let error = String::from_utf8(output.stderr)?;
        ensure!(!output.status.success() && error.contains("set mount options"), "{flag}: {error}");
    }
    bundle.nothing_is_left()
}

fn a_mount_can_have_the_containers_ids() -> Result<()> {
    let mut bundle = bundle("stat -c '%u %g' /mapped/file /plain/file; touch /mapped/new")?;
    fs::create_dir(bundle.path("host"))?;
    fs::write(bundle.path("host/file"), "")?;
    add(&mut bundle, mount("/mapped", "bind", "../host", "bind,idmap"))?;
    add(&mut bundle, mount("/plain", "bind", "../host", "bind"))?;
    ensure!(run(&bundle)? == "0 0\n65534 65534\n");
    let new = fs::metadata(bundle.path("host/new"))?;
    ensure!(std::os::unix::fs::MetadataExt::uid(&new) == 0);
    Ok(())
}

/// Only init sees the source, and only its parent may map ids.
fn what_was_mounted_before_can_have_the_containers_ids() -> Result<()> {
    let mut bundle =
        bundle("stat -c '%u %g' /mapped/file /below/dir/file /seen/dir/file; touch /mapped/new")?;
    fs::create_dir_all(bundle.path("host/dir"))?;
    fs::write(bundle.path("host/dir/file"), "")?;
    // The container's root may look at its own root.
    fs::set_permissions(bundle.path(""), fs::Permissions::from_mode(0o755))?;
    add(&mut bundle, mount("/seen", "bind", "../host", "bind"))?;
    add(&mut bundle, mount("/mapped", "bind", "rootfs/seen/dir", "bind,idmap"))?;
    add(&mut bundle, mount("/below", "bind", "rootfs/seen", "rbind,ridmap"))?;
    let said = run(&bundle)?;
    ensure!(said == "0 0\n0 0\n65534 65534\n", "{said}");
    let new = fs::metadata(bundle.path("host/dir/new"))?;
    ensure!(std::os::unix::fs::MetadataExt::uid(&new) == 0);
    // The parent says why it cannot.
    add(&mut bundle, mount("/no", "bind", "rootfs/proc/sys", "bind,idmap"))?;
    let refused = bundle.fails(&["run", &bundle.id])?;
    ensure!(refused.contains("can its file system be id-mapped?"), "{refused}");
    bundle.nothing_is_left()
}

fn the_machines_sysfs_is_shown_with_its_network() -> Result<()> {
    let mut bundle = bundle("cat /proc/self/mountinfo; touch /sys/kernel/x || echo refused")?;
    let namespaces = bundle.spec["linux"]["namespaces"].as_array_mut().context("namespaces")?;
    namespaces.retain(|namespace| namespace["type"] != "network");
    let said = run(&bundle)?;
    let sys = line(&said, "/sys")?;
    ensure!(sys.typ == "sysfs" && sys.has("ro") && sys.has("noexec"), "{sys:?}");
    ensure!(said.ends_with("refused\n"), "{said}");
    Ok(())
}
