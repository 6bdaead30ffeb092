//! Namespaces: new ones, joined ones, and the machine's, told apart by the kernel's numbers.

use std::fs;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::Case;
use crate::support::Bundle;

pub const CASES: &[Case] = &[
    ("a_user_namespace_maps_root_to_somebody", a_user_namespace_maps_root_to_somebody),
    ("exec_enters_user_and_time_namespaces", exec_enters_user_and_time_namespaces),
    ("clocks_are_set_in_a_time_namespace", clocks_are_set_in_a_time_namespace),
    ("namespaces_are_joined_by_path", namespaces_are_joined_by_path),
    ("a_user_namespace_and_what_it_owns_are_joined", a_user_namespace_and_what_it_owns_are_joined),
    ("a_new_user_namespace_joins_the_machines_network", a_new_user_namespace_joins_the_machines_network),
    ("what_is_not_listed_is_the_machines", what_is_not_listed_is_the_machines),
    ("a_container_can_do_without_a_mount_namespace", a_container_can_do_without_a_mount_namespace),
    (
        "a_mount_namespace_is_joined_unless_it_is_the_machines",
        a_mount_namespace_is_joined_unless_it_is_the_machines,
    ),
    ("a_path_of_another_type_is_refused_by_field", a_path_of_another_type_is_refused_by_field),
];

const TYPES: [&str; 6] = ["mnt", "uts", "ipc", "pid", "net", "cgroup"];

/// What `/proc/<who>/ns/<type>` refers to.
fn namespace(who: impl std::fmt::Display, typ: &str) -> Result<String> {
    Ok(fs::read_link(format!("/proc/{who}/ns/{typ}"))?.display().to_string())
}

fn pid(bundle: &Bundle) -> Result<i64> {
    bundle.state()?["pid"].as_i64().context("a pid")
}

/// Adds a user namespace whose root is user 100000.
fn with_users(bundle: &mut Bundle) -> Result<()> {
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    bundle.spec["linux"]["uidMappings"] = map.clone();
    bundle.spec["linux"]["gidMappings"] = map;
    add(bundle, json!({"type": "user"}))?;
    let root = bundle.path("bundle/rootfs");
    let mut pending = vec![root];
    while let Some(path) = pending.pop() {
        std::os::unix::fs::lchown(&path, Some(100_000), Some(100_000))?;
        if path.is_dir() && !path.is_symlink() {
            pending.extend(fs::read_dir(&path)?.flatten().map(|entry| entry.path()));
        }
    }
    // The way to it must be open to him too.
    let dir = bundle.path("");
    fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok(())
}

fn add(bundle: &mut Bundle, namespace: Value) -> Result<()> {
    bundle.spec["linux"]["namespaces"].as_array_mut().context("namespaces")?.push(namespace);
    Ok(())
}

/// Replaces a namespace by one that is there.
fn join(bundle: &mut Bundle, typ: &str, path: &str) -> Result<()> {
    let all = bundle.spec["linux"]["namespaces"].as_array_mut().context("namespaces")?;
    all.retain(|one| one["type"] != typ);
    all.push(json!({"type": typ, "path": path}));
    Ok(())
}

fn start(bundle: &Bundle) -> Result<i64> {
    bundle.succeeds(&["run", "--detach", &bundle.id])?;
    pid(bundle)
}

fn a_user_namespace_maps_root_to_somebody() -> Result<()> {
    // Its root may rename it, change its network and mount: all of those namespaces belong to it.
    let mut bundle = Bundle::sh(
        "exec > /said 2>&1; cat /proc/self/uid_map && id -u && busybox hostname inside && busybox ifconfig lo 127.0.0.7 \
         && busybox mount -t tmpfs none /etc && echo done && echo x > /made && sleep 1000",
    )?;
    with_users(&mut bundle)?;
    bundle.spec["process"]["oomScoreAdj"] = 100.into();
    let caps = json!(["CAP_SYS_ADMIN", "CAP_NET_ADMIN"]);
    bundle.spec["process"]["capabilities"] = json!({"bounding": caps, "permitted": caps, "effective": caps});
    let pid = start(&bundle)?;
    bundle.appears("bundle/rootfs/made")?;
    for typ in TYPES.iter().chain(&["user"]) {
        ensure!(namespace(pid, typ)? != namespace("self", typ)?, "{typ} is the machine's");
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    ensure!(status.contains("Uid:\t100000\t100000\t100000\t100000"), "{status}");
    ensure!(status.contains("Gid:\t100000\t100000\t100000\t100000"), "{status}");
    ensure!(fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?.trim() == "100");
    ensure!(fs::metadata(bundle.path("bundle/rootfs/made"))?.uid() == 100_000);
    bundle.says("0 100000 65536 0 done")?;
    bundle.succeeds(&["delete", "--force", &bundle.id])?;
    bundle.nothing_is_left()
}

fn exec_enters_user_and_time_namespaces() -> Result<()> {
    let mut bundle = Bundle::sh("sleep 1000")?;
    with_users(&mut bundle)?;
    add(&mut bundle, json!({"type": "time"}))?;
    bundle.spec["linux"]["timeOffsets"] = json!({"boottime": {"secs": 5_000_000}});
    let pid = start(&bundle)?;
    let script = "for n in user time mnt uts ipc pid net cgroup; do readlink /proc/self/ns/$n; done; id -u";
    let said = bundle.succeeds(&["exec", &bundle.id, "busybox", "sh", "-c", script])?;
    let lines: Vec<&str> = said.lines().collect();
    for (line, typ) in lines.iter().zip(["user", "time", "mnt", "uts", "ipc", "pid", "net", "cgroup"]) {
        ensure!(*line == namespace(pid, typ)?, "{typ}: {said}");
    }
    ensure!(lines.len() == 9 && lines[8] == "0", "{said}");
    bundle.succeeds(&["delete", "--force", &bundle.id])?;
    bundle.nothing_is_left()
}

fn clocks_are_set_in_a_time_namespace() -> Result<()> {
    let mut bundle = Bundle::sh("cat /proc/uptime; cat /proc/self/timens_offsets")?;
    add(&mut bundle, json!({"type": "time"}))?;
    bundle.spec["linux"]["timeOffsets"] =
        json!({"boottime": {"secs": 7_000_000}, "monotonic": {"secs": 3, "nanosecs": 5}});
    let said = bundle.succeeds(&["run", &bundle.id])?;
    let uptime: f64 = said.split_whitespace().next().context("an uptime")?.parse()?;
    ensure!(uptime > 7_000_000.0, "{said}");
    let words: Vec<&str> = said.split_whitespace().skip(2).collect();
    ensure!(words == ["monotonic", "3", "5", "boottime", "7000000", "0"], "{said}");
    bundle.nothing_is_left()
}

fn namespaces_are_joined_by_path() -> Result<()> {
    let first = Bundle::sh("sleep 1000")?;
    let target = start(&first)?;
    let mut second = Bundle::sh("sleep 1000")?;
    for (typ, name) in
        [("pid", "pid"), ("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("cgroup", "cgroup")]
    {
        join(&mut second, typ, &format!("/proc/{target}/ns/{name}"))?;
    }
    let pid = start(&second)?;
    for typ in ["pid", "net", "ipc", "uts", "cgroup"] {
        ensure!(namespace(pid, typ)? == namespace(target, typ)?, "{typ} is another");
    }
    ensure!(namespace(pid, "mnt")? != namespace(target, "mnt")?);
    second.succeeds(&["delete", "--force", &second.id])?;
    second.nothing_is_left()?;
    ensure!(first.state()?["status"] == "running", "it took the first with it");
    first.succeeds(&["delete", "--force", &first.id])?;
    first.nothing_is_left()
}

fn a_user_namespace_and_what_it_owns_are_joined() -> Result<()> {
    let mut first = Bundle::sh("sleep 1000")?;
    with_users(&mut first)?;
    let target = start(&first)?;
    let mut second =
        Bundle::sh("exec > /said 2>&1; id -u; busybox hostname other && cat /proc/self/uid_map; sleep 1000")?;
    // The maps are given again, as podman does; the other ones are those of the namespace anyway.
    with_users(&mut second)?;
    second.spec["linux"].as_object_mut().context("linux")?.retain(|key, _| key != "gidMappings");
    second.spec["process"]["capabilities"] = json!({
        "bounding": ["CAP_SYS_ADMIN"], "permitted": ["CAP_SYS_ADMIN"], "effective": ["CAP_SYS_ADMIN"]
    });
    for (typ, name) in [("user", "user"), ("network", "net"), ("ipc", "ipc"), ("pid", "pid")] {
        join(&mut second, typ, &format!("/proc/{target}/ns/{name}"))?;
    }
    second.spec["linux"]["uidMappings"][0]["size"] = 7.into();
    let refused = second.fails(&["create", &second.id])?;
    ensure!(refused.contains("`linux.uidMappings` is not that of the user namespace"), "{refused}");
    second.spec["linux"]["uidMappings"][0]["size"] = 65536.into();
    let pid = start(&second)?;
    for typ in ["user", "net", "ipc", "pid"] {
        ensure!(namespace(pid, typ)? == namespace(target, typ)?, "{typ} is another");
    }
    for typ in ["mnt", "uts"] {
        ensure!(namespace(pid, typ)? != namespace(target, typ)?, "{typ} is the same");
    }
    ensure!(fs::read_to_string(format!("/proc/{pid}/status"))?.contains("Uid:\t100000\t100000"));
    second.says("0 0 100000 65536")?;
    second.succeeds(&["delete", "--force", &second.id])?;
    first.succeeds(&["delete", "--force", &first.id])?;
    second.nothing_is_left()?;
    first.nothing_is_left()
}

fn a_new_user_namespace_joins_the_machines_network() -> Result<()> {
    let mut bundle = Bundle::sh("sleep 1000")?;
    with_users(&mut bundle)?;
    join(&mut bundle, "network", "/proc/self/ns/net")?;
    let pid = start(&bundle)?;
    ensure!(namespace(pid, "net")? == namespace("self", "net")?);
    ensure!(namespace(pid, "user")? != namespace("self", "user")?);
    ensure!(fs::read_to_string(format!("/proc/{pid}/status"))?.contains("Uid:\t100000\t100000"));
    bundle.succeeds(&["delete", "--force", &bundle.id])?;
    bundle.nothing_is_left()
}

fn what_is_not_listed_is_the_machines() -> Result<()> {
    let mut bundle = Bundle::sh("sleep 1000")?;
    bundle.spec["linux"]["namespaces"] = json!([{"type": "mount"}]);
    bundle.spec["hostname"] = "".into();
    let mounts = bundle.spec["mounts"].as_array_mut().context("mounts")?;
    mounts.retain(|mount| !matches!(mount["type"].as_str(), Some("sysfs" | "mqueue")));
    let pid = start(&bundle)?;
    for typ in ["uts", "ipc", "pid", "net", "cgroup", "user", "time"] {
        ensure!(namespace(pid, typ)? == namespace("self", typ)?, "{typ} is new");
    }
    bundle.succeeds(&["delete", "--force", &bundle.id])?;
    bundle.nothing_is_left()
}

fn a_container_can_do_without_a_mount_namespace() -> Result<()> {
    let mut bundle = Bundle::sh("cat /etc/where > /said; exec sleep 1000")?;
    fs::write(bundle.path("bundle/rootfs/etc/where"), "inside")?;
    bundle.spec["linux"]["namespaces"] = json!([{"type": "pid"}]);
    bundle.spec["hostname"] = "".into();
    let refused = |bundle: &Bundle, field: &str| -> Result<()> {
        let said = bundle.fails(&["create", &bundle.id])?;
        ensure!(said.contains(&format!("`{field}` is given, but there is no mount namespace")), "{said}");
        bundle.nothing_is_left()
    };
    for field in ["mounts", "linux.maskedPaths", "linux.readonlyPaths"] {
        refused(&bundle, field)?;
        let (parent, name) = field.rsplit_once('.').map_or(("", field), |(_, name)| ("/linux", name));
        bundle.spec.pointer_mut(parent).context("parent")?[name] = json!([]);
    }
    bundle.spec["root"]["readonly"] = true.into();
    refused(&bundle, "root.readonly")?;
    bundle.spec["root"]["readonly"] = false.into();
    let pid = start(&bundle)?;
    bundle.says("inside")?;
    ensure!(namespace(pid, "mnt")? == namespace("self", "mnt")?);
    let root = fs::read_link(format!("/proc/{pid}/root"))?;
    ensure!(root == bundle.path("bundle/rootfs").canonicalize()?, "{root:?}");
    ensure!(bundle.succeeds(&["exec", &bundle.id, "cat", "/etc/where"])? == "inside");
    bundle.succeeds(&["delete", "--force", &bundle.id])?;
    bundle.nothing_is_left()
}

/// A process in a mount namespace of its own, ended with the test.
struct Holder(std::process::Child);

impl Holder {
    fn make() -> Result<Holder> {
        let mut command = std::process::Command::new("unshare");
        let holder = Holder(command.args(["--mount", crate::support::BUSYBOX, "sleep", "1000"]).spawn()?);
        for _ in 0..2000 {
            if namespace(holder.0.id(), "mnt")? != namespace("self", "mnt")? {
                return Ok(holder);
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        anyhow::bail!("unshare made no mount namespace")
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn a_mount_namespace_is_joined_unless_it_is_the_machines() -> Result<()> {
    let mut bundle = Bundle::sh("cat /proc/self/mountinfo > /said; exec sleep 1000")?;
    join(&mut bundle, "mount", "/proc/self/ns/mnt")?;
    let said = bundle.fails(&["create", &bundle.id])?;
    ensure!(
        said.contains("linux.namespaces[") && said.contains("the machine's own mount namespace"),
        "{said}"
    );
    bundle.nothing_is_left()?;
    let holder = Holder::make()?;
    join(&mut bundle, "mount", &format!("/proc/{}/ns/mnt", holder.0.id()))?;
    let pid = start(&bundle)?;
    ensure!(namespace(pid, "mnt")? == namespace(holder.0.id(), "mnt")?);
    ensure!(bundle.succeeds(&["exec", &bundle.id, "cat", "/proc/self/mountinfo"])?.contains(" /proc "));
    bundle.succeeds(&["delete", "--force", &bundle.id])?;
    bundle.nothing_is_left()
}

fn a_path_of_another_type_is_refused_by_field() -> Result<()> {
    let mut bundle = Bundle::sh("")?;
    let file = bundle.path("file");
    fs::write(&file, "")?;
    for path in ["/proc/self/ns/uts", "/dev/null", file.to_str().context("path")?] {
        bundle.spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "network", "path": path}]);
        bundle.spec["hostname"] = "".into();
        let said = bundle.fails(&["create", &bundle.id])?;
        ensure!(said.contains("`linux.namespaces[1].path`") && said.contains(path), "{said}");
        bundle.nothing_is_left()?;
    }
    bundle.spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "user"}]);
    let said = bundle.fails(&["create", &bundle.id])?;
    ensure!(said.contains("`linux.uidMappings` is empty"), "{said}");
    bundle.nothing_is_left()
}
