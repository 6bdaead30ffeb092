//! Limits, looked at from inside the container and from outside, on the machine's own hierarchies; the same
//! tests run on version 2 alone in the machine that `tests/vm/run` starts.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rswarm_runtime::cgroup::{Cgroup, Layout};
use serde_json::{Value, json};

use crate::Case;
use crate::support::Bundle;

pub const CASES: &[Case] = &[
    (
        "the_container_is_in_its_cgroup_from_its_first_breath",
        the_container_is_in_its_cgroup_from_its_first_breath,
    ),
    ("a_memory_limit_is_seen_and_kept", a_memory_limit_is_seen_and_kept),
    ("swap_is_limited_with_memory", swap_is_limited_with_memory),
    ("processes_are_counted_out", processes_are_counted_out),
    ("processor_time_is_rationed", processor_time_is_rationed),
    ("processors_are_chosen", processors_are_chosen),
    ("shares_burst_and_idle_are_set", shares_burst_and_idle_are_set),
    ("reads_and_writes_of_a_device_are_slowed", reads_and_writes_of_a_device_are_slowed),
    ("huge_pages_are_limited", huge_pages_are_limited),
    ("devices_are_denied", devices_are_denied),
    ("a_raw_file_is_written_on_version_2", a_raw_file_is_written_on_version_2),
    ("what_the_version_has_not_is_refused", what_the_version_has_not_is_refused),
    ("an_impossible_value_makes_nothing", an_impossible_value_makes_nothing),
    ("limits_change_while_it_runs", limits_change_while_it_runs),
    ("a_paused_fork_bomb_is_removed", a_paused_fork_bomb_is_removed),
    ("what_others_have_frozen_is_deleted_at_once", what_others_have_frozen_is_deleted_at_once),
    ("nested_cgroups_are_removed", nested_cgroups_are_removed),
    ("a_cgroup_in_use_is_refused", a_cgroup_in_use_is_refused),
    ("a_parent_with_processes_hands_nothing_down", a_parent_with_processes_hands_nothing_down),
    ("below_a_threaded_cgroup_no_container_can_be", below_a_threaded_cgroup_no_container_can_be),
    ("a_missing_path_is_made_from_the_id", a_missing_path_is_made_from_the_id),
    ("out_of_memory_is_told", out_of_memory_is_told),
];

/// Where the machine's one version 2 hierarchy is used for everything.
fn only_v2() -> Result<bool> {
    Ok(Layout::detect()?.is_unified())
}

/// A bundle with limits.
fn limited(resources: Value, script: &str) -> Result<Bundle> {
    let mut bundle = Bundle::sh(script)?;
    bundle.spec["linux"]["resources"] = resources;
    Ok(bundle)
}

/// What a script says in a container with limits.
fn said(resources: Value, script: &str) -> Result<String> {
    let bundle = limited(resources, script)?;
    let output = bundle.call(&["run", &bundle.id])?;
    bundle.nothing_is_left()?;
    ensure!(output.status.success(), "{:?}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// A file of the container's own cgroup, as it sees it.
fn seen(resources: Value, controller: &str, v1: &str, v2: &str) -> Result<String> {
    let file = match Layout::detect()?.v1_mount(controller).and_then(|mount| mount.file_name()) {
        Some(name) => format!("/sys/fs/cgroup/{}/{v1}", name.to_string_lossy()),
        None if only_v2()? => format!("/sys/fs/cgroup/{v2}"),
        None => format!("/sys/fs/cgroup/unified/{v2}"),
    };
    said(resources, &format!("cat {file}"))
}

fn cgroup(bundle: &Bundle) -> Result<Cgroup> {
    Ok(Cgroup::at(format!("/rswarm-{}", bundle.id).as_ref())?)
}

fn until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds()? {
        ensure!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn the_container_is_in_its_cgroup_from_its_first_breath() -> Result<()> {
    // Without a cgroup namespace the kernel names whole paths.
    let mut bundle = Bundle::sh("cat /proc/self/cgroup")?;
    let namespaces = bundle.spec["linux"]["namespaces"].as_array_mut().context("namespaces")?;
    namespaces.retain(|namespace| namespace["type"] != "cgroup");
    let output = bundle.call(&["run", &bundle.id])?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(!text.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let suffix = format!(":/rswarm-{}", bundle.id);
    for line in text.lines() {
        // There is a version 2 hierarchy even where none is mounted.
        let is_used = !line.starts_with("0::") || Layout::detect()?.unified.is_some();
        ensure!(!is_used || line.ends_with(&suffix), "{line}");
    }
    // With one of its own it sees only itself.
    let own = said(json!({}), "cat /proc/self/cgroup")?;
    ensure!(own.lines().all(|line| line.ends_with(":/")), "{own}");
    Ok(())
}

fn a_memory_limit_is_seen_and_kept() -> Result<()> {
    let limit = json!({"memory": {"limit": 33_554_432, "swap": 33_554_432, "reservation": 16_777_216}});
    ensure!(seen(limit.clone(), "memory", "memory.limit_in_bytes", "memory.max")? == "33554432");
    ensure!(seen(limit.clone(), "memory", "memory.soft_limit_in_bytes", "memory.low")? == "16777216");
    // The shell outlives what it started, and says how that ended.
    let ended = said(limit, "busybox tail /dev/zero 2>/dev/null; echo $?")?;
    ensure!(ended == "137", "{ended}");
    Ok(())
}

fn swap_is_limited_with_memory() -> Result<()> {
    let both = json!({"memory": {"limit": 33_554_432, "swap": 50_331_648}});
    let wanted = if only_v2()? { "16777216" } else { "50331648" };
    let limit = seen(both, "memory", "memory.memsw.limit_in_bytes", "memory.swap.max")?;
    ensure!(limit == wanted, "{limit}");
    let none = json!({"memory": {"limit": -1, "swap": -1}});
    let unlimited = seen(none, "memory", "memory.memsw.limit_in_bytes", "memory.swap.max")?;
    ensure!(unlimited == "max" || unlimited == "9223372036854771712", "{unlimited}");
    Ok(())
}

fn processes_are_counted_out() -> Result<()> {
    ensure!(seen(json!({"pids": {"limit": 12}}), "pids", "pids.max", "pids.max")? == "12");
    ensure!(seen(json!({"pids": {"limit": -1}}), "pids", "pids.max", "pids.max")? == "max");
    // Nobody can fork: the shell looks itself.
    let look = "for file in /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max; do \
                if test -e $file; then read limit < $file; echo $limit; fi; done";
    ensure!(said(json!({"pids": {"limit": 0}}), look)? == "1");
    ensure!(seen(json!({"pids": {}}), "pids", "pids.max", "pids.max")? == "max");
    // The shell gives up when it cannot fork, so the forks are another's.
    let script = "sh -c 'for i in 1 2 3 4 5 6 7 8 9 10; do sleep 100 >/dev/null 2>&1 & done' 2>&1 | cat";
    let complaint = said(json!({"pids": {"limit": 8}}), &format!("{script}; true"))?;
    ensure!(complaint.contains("fork"), "{complaint}");
    Ok(())
}

fn processor_time_is_rationed() -> Result<()> {
    let tenth = json!({"cpu": {"quota": 10_000, "period": 100_000}});
    let bundle = limited(tenth, "while :; do :; done")?;
    bundle.succeeds(&["run", "--detach", &bundle.id])?;
    let cgroup = cgroup(&bundle)?;
    until("it is held back", || Ok(cgroup.stats()?.cpu.throttled_periods >= 5))?;
    let (start, before) = (Instant::now(), cgroup.stats()?.cpu);
    until("ten periods pass", || Ok(cgroup.stats()?.cpu.periods >= before.periods + 10))?;
    let (passed, after) = (start.elapsed(), cgroup.stats()?.cpu);
    let used = Duration::from_nanos(after.usage - before.usage);
    ensure!(used.as_secs_f64() < passed.as_secs_f64() * 0.2, "{used:?} of {passed:?}");
    ensure!(after.throttled_time > before.throttled_time);
    bundle.succeeds(&["delete", "--force", &bundle.id])?;
    bundle.nothing_is_left()
}

fn processors_are_chosen() -> Result<()> {
    let first = json!({"cpu": {"cpus": "0", "mems": "0"}});
    let allowed = said(first.clone(), "cat /proc/self/status")?;
    let line = |name: &str| allowed.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    ensure!(line("Cpus_allowed_list:") == Some("0"), "{allowed}");
    ensure!(line("Mems_allowed_list:") == Some("0"), "{allowed}");
    ensure!(seen(first, "cpuset", "cpuset.cpus", "cpuset.cpus")? == "0");
    Ok(())
}

fn shares_burst_and_idle_are_set() -> Result<()> {
    let shares = |shares: u64| json!({"cpu": {"shares": shares}});
    let v2 = only_v2()?;
    for (asked, weight) in [(1024, "100"), (512, "59"), (2, "1")] {
        let found = seen(shares(asked), "cpu", "cpu.shares", "cpu.weight")?;
        ensure!(found == if v2 { weight.to_owned() } else { asked.to_string() }, "{asked}: {found}");
    }
    let burst = json!({"cpu": {"quota": 20_000, "period": 50_000, "burst": 10_000}});
    ensure!(seen(burst.clone(), "cpu", "cpu.cfs_burst_us", "cpu.max.burst")? == "10000");
    let quota = seen(burst, "cpu", "cpu.cfs_quota_us", "cpu.max")?;
    ensure!(quota == if v2 { "20000 50000" } else { "20000" }, "{quota}");
    ensure!(seen(json!({"cpu": {"idle": 1}}), "cpu", "cpu.idle", "cpu.idle")? == "1");
    Ok(())
}

/// A disk and how to use it: read as a device where that is allowed, else written to as a file.
fn disk(bundle: &Bundle) -> Option<(u32, u32, &'static str)> {
    use std::os::unix::fs::MetadataExt;
    let number = |dev: u64| (libc::major(dev), libc::minor(dev));
    for path in ["/dev/vda", "/dev/sda", "/dev/nvme0n1"] {
        if let Ok(file) = fs::File::open(path) {
            let (major, minor) = number(file.metadata().ok()?.rdev());
            return Some((major, minor, "if=/dev/disk of=/dev/null iflag=direct"));
        }
    }
    let (major, minor) = number(fs::metadata(bundle.path("")).ok()?.dev());
    let is_disk = PathBuf::from(format!("/sys/dev/block/{major}:{minor}")).exists();
    is_disk.then_some((major, minor, "if=/dev/zero of=/file oflag=direct"))
}

fn reads_and_writes_of_a_device_are_slowed() -> Result<()> {
    let Some((major, minor, operands)) = disk(&Bundle::sh("")?) else {
        println!("    skipped: no disk");
        return Ok(());
    };
    let device = |rate: u64| json!([{"major": major, "minor": minor, "rate": rate}]);
    let limits = json!({
        "blockIO": {
            "throttleReadBpsDevice": device(2 << 20),
            "throttleWriteBpsDevice": device(2 << 20),
            "throttleReadIOPSDevice": device(5000),
            "throttleWriteIOPSDevice": device(7000),
        },
        "devices": [{"allow": true, "type": "b", "major": major, "minor": minor, "access": "r"}],
    });
    if only_v2()? {
        let line = seen(limits.clone(), "io", "", "io.max")?;
        ensure!(line == format!("{major}:{minor} rbps=2097152 wbps=2097152 riops=5000 wiops=7000"), "{line}");
    } else {
        for (kind, rate) in
            [("read_bps", 2 << 20), ("write_bps", 2 << 20), ("read_iops", 5000), ("write_iops", 7000)]
        {
            let line = seen(limits.clone(), "blkio", &format!("blkio.throttle.{kind}_device"), "")?;
            ensure!(line == format!("{major}:{minor} {rate}"), "{kind}: {line}");
        }
    }
    // 4 MiB at 2 MiB a second take about two seconds.
    let mut bundle = limited(limits, &format!("busybox dd {operands} bs=1M count=4"))?;
    bundle.spec["linux"]["devices"] = json!([
        {"path": "/dev/disk", "type": "b", "major": major, "minor": minor, "fileMode": 384, "uid": 0, "gid": 0}]);
    let start = Instant::now();
    let output = bundle.call(&["run", &bundle.id])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    ensure!(start.elapsed() > Duration::from_millis(1500), "only {:?}", start.elapsed());
    bundle.nothing_is_left()
}

fn huge_pages_are_limited() -> Result<()> {
    let is_ours = only_v2()? || Layout::detect()?.v1_mount("hugetlb").is_some();
    if !PathBuf::from("/sys/kernel/mm/hugepages/hugepages-2048kB").exists() || !is_ours {
        // On a hybrid machine the controller would have to be enabled at the machine's own root.
        println!("    skipped: no huge pages, or not ours to hand down");
        return Ok(());
    }
    let limit = json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 4_194_304}]});
    ensure!(seen(limit.clone(), "hugetlb", "hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max")? == "4194304");
    let reserved = seen(limit, "hugetlb", "hugetlb.2MB.rsvd.limit_in_bytes", "hugetlb.2MB.rsvd.max")?;
    ensure!(reserved == "4194304", "{reserved}");
    Ok(())
}

fn devices_are_denied() -> Result<()> {
    let open = "busybox mknod /k c 1 11; (: >/k) 2>/dev/null && echo may || echo may not; \
                (: >/dev/null) && (: </dev/zero) && echo standard";
    let with = |rules: Value| -> Result<String> {
        let bundle = &mut limited(json!({ "devices": rules }), open)?;
        let capabilities = ["bounding", "effective", "permitted"];
        for set in capabilities {
            let set = bundle.spec["process"]["capabilities"][set].as_array_mut().context("capabilities")?;
            set.push("CAP_MKNOD".into());
        }
        let output = bundle.call(&["run", &bundle.id])?;
        bundle.nothing_is_left()?;
        ensure!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    };
    let rule = |allow: bool| json!({"allow": allow, "type": "c", "major": 1, "minor": 11, "access": "rwm"});
    ensure!(with(json!([]))? == "may not\nstandard\n");
    ensure!(with(json!([{"allow": false}]))? == "may not\nstandard\n");
    ensure!(with(json!([{"allow": false}, rule(true)]))? == "may\nstandard\n");
    ensure!(with(json!([{"allow": true}]))? == "may\nstandard\n");
    ensure!(with(json!([{"allow": true}, rule(false)]))?.ends_with("may not\nstandard\n"));
    Ok(())
}

fn a_raw_file_is_written_on_version_2() -> Result<()> {
    let depth = json!({"unified": {"cgroup.max.depth": "3"}});
    if Layout::detect()?.unified.is_some() {
        let file = if only_v2()? { "" } else { "unified/" };
        ensure!(said(depth, &format!("cat /sys/fs/cgroup/{file}cgroup.max.depth"))? == "3");
    }
    let high = json!({"unified": {"memory.high": "50000000", "pids.max": "9"}});
    if only_v2()? {
        ensure!(seen(high, "memory", "", "memory.high")? == "49999872");
        return Ok(());
    }
    let bundle = limited(high, "true")?;
    let error = bundle.fails(&["create", &bundle.id])?;
    ensure!(
        error.contains("linux.resources.unified[") && error.contains("needs cgroup version 2"),
        "{error}"
    );
    bundle.nothing_is_left()
}

fn what_the_version_has_not_is_refused() -> Result<()> {
    let refused: &[(Value, &str)] = if only_v2()? {
        &[
            (json!({"memory": {"swappiness": 3}}), "memory.swappiness"),
            (json!({"memory": {"disableOOMKiller": true}}), "memory.disableOOMKiller"),
            (json!({"cpu": {"realtimeRuntime": 1000}}), "cpu.realtimeRuntime"),
        ]
    } else {
        ensure!(seen(json!({"memory": {"swappiness": 3}}), "memory", "memory.swappiness", "")? == "3");
        let oom = seen(json!({"memory": {"disableOOMKiller": true}}), "memory", "memory.oom_control", "")?;
        ensure!(oom.contains("oom_kill_disable 1"), "{oom}");
        &[(json!({"rdma": {"mlx": {"hcaHandles": 3}}}), "rdma")]
    };
    let class = (json!({"network": {"classID": 3}}), "network.classID");
    let has_class = Layout::detect()?.v1_mount("net_cls").is_some();
    if has_class {
        ensure!(seen(class.0.clone(), "net_cls", "net_cls.classid", "")? == "3");
    }
    for (resources, field) in refused.iter().chain((!has_class).then_some(&class)) {
        let bundle = limited(resources.clone(), "true")?;
        let error = bundle.fails(&["create", &bundle.id])?;
        ensure!(error.contains(&format!("linux.resources.{field}")), "{error}");
        bundle.nothing_is_left()?;
    }
    Ok(())
}

fn an_impossible_value_makes_nothing() -> Result<()> {
    for (resources, field) in [
        (json!({"memory": {"limit": -2}}), "memory.limit"),
        (json!({"cpu": {"period": 7}}), "cpu.period"),
        (json!({"pids": {"limit": 1_i64 << 40}}), "pids.limit"),
        (json!({"cpu": {"cpus": "900"}}), "cpu.cpus"),
        (json!({"blockIO": {"weight": 5}}), "blockIO.weight"),
        (json!({"devices": [{"allow": true, "access": "q"}]}), "devices[0].access"),
    ] {
        let bundle = limited(resources, "true")?;
        let error = bundle.fails(&["create", &bundle.id])?;
        ensure!(error.contains(&format!("`linux.resources.{field}`: ")), "{error}");
        bundle.nothing_is_left()?;
    }
    Ok(())
}

fn limits_change_while_it_runs() -> Result<()> {
    let bundle = limited(json!({"memory": {"limit": 67_108_864, "swap": 67_108_864}}), "sleep 1000")?;
    bundle.succeeds(&["run", "--detach", &bundle.id])?;
    let cgroup = cgroup(&bundle)?;
    for megabytes in [128_i64, 16, 48] {
        let bytes = megabytes << 20;
        let update = json!({
            "memory": {"limit": bytes, "swap": bytes * 2},
            "pids": {"limit": megabytes},
            "cpu": {"quota": megabytes * 1000, "period": megabytes * 2000},
        });
        cgroup.apply(&serde_json::from_value(update)?)?;
        let stats = cgroup.stats()?;
        let limit = stats.memory.context("memory")?.limit;
        ensure!(limit == u64::try_from(bytes).ok(), "{limit:?}");
        ensure!(stats.pids.context("pids")?.limit == u64::try_from(megabytes).ok());
    }
    let refused = serde_json::from_value(json!({"pids": {"limit": 3}, "memory": {"limit": -9}}))?;
    ensure!(cgroup.apply(&refused).is_err());
    ensure!(cgroup.stats()?.pids.context("pids")?.limit == Some(48), "nothing is written");
    bundle.succeeds(&["delete", "--force", &bundle.id])?;
    bundle.nothing_is_left()
}

/// Each process starts the next and ends, so that one is gone before it can be signalled. The first reaps.
const BOMB: &str = "export B='sh -c \"$B\" &'; for i in 1 2 3 4 5 6; do sh -c \"$B\" & done; \
                    while :; do sleep 0.05; done";

fn a_paused_fork_bomb_is_removed() -> Result<()> {
    let bundle = limited(json!({"pids": {"limit": 200}}), BOMB)?;
    bundle.succeeds(&["run", "--detach", &bundle.id])?;
    let cgroup = cgroup(&bundle)?;
    let first = cgroup.pids()?;
    until("it forks", || Ok(cgroup.pids()?.difference(&first).count() > 3))?;
    bundle.succeeds(&["pause", &bundle.id])?;
    ensure!(bundle.state()?["status"] == "paused");
    let pids = cgroup.pids()?;
    ensure!(!pids.is_empty() && pids == cgroup.pids()?, "nobody forks");
    bundle.succeeds(&["delete", "--force", &bundle.id])?;
    bundle.nothing_is_left()
}

/// Makes a version 1 cgroup that is thawed and removed with the test.
struct Frozen(PathBuf);

impl Frozen {
    fn make(path: PathBuf) -> Result<Frozen> {
        fs::create_dir(&path)?;
        Ok(Frozen(path))
    }

    fn set(&self, state: &str) -> Result<()> {
        Ok(fs::write(self.0.join("freezer.state"), state)?)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = self.set("THAWED");
        let _ = fs::remove_dir(&self.0);
    }
}

/// Somebody freezes a cgroup around the container, its own, or one that its init was moved to.
fn what_others_have_frozen_is_deleted_at_once() -> Result<()> {
    let freezer = std::path::Path::new("/sys/fs/cgroup/freezer");
    if !freezer.join("tasks").exists() {
        println!("    skipped: the freezer is not of version 1");
        return Ok(());
    }
    let pod = format!("rswarmpod{}", std::process::id());
    for place in ["around", "own", "elsewhere"] {
        let around = Frozen::make(freezer.join(&pod))?;
        let mut bundle = Bundle::sh("sleep 1000 & sleep 1000")?;
        if place != "elsewhere" {
            bundle.spec["linux"]["cgroupsPath"] = format!("/{pod}/{}", bundle.id).into();
        }
        bundle.succeeds(&["run", "--detach", &bundle.id])?;
        match place {
            "around" => around.set("FROZEN")?,
            "own" => fs::write(around.0.join(&bundle.id).join("freezer.state"), "FROZEN")?,
            _ => {
                fs::write(around.0.join("cgroup.procs"), bundle.state()?["pid"].to_string())?;
                around.set("FROZEN")?;
            }
        }
        let before = Instant::now();
        bundle.succeeds(&["delete", "--force", &bundle.id])?;
        ensure!(before.elapsed() < Duration::from_secs(5), "{place}: {:?}", before.elapsed());
        ensure!(place == "own" || fs::read_to_string(around.0.join("freezer.state"))?.trim() != "THAWED");
        drop(around);
        for entry in fs::read_dir("/sys/fs/cgroup")?.flatten() {
            let _ = fs::remove_dir(entry.path().join(&pod));
        }
        bundle.nothing_is_left()?;
    }
    Ok(())
}

fn nested_cgroups_are_removed() -> Result<()> {
    let bundle = limited(json!({}), "sleep 1000")?;
    bundle.succeeds(&["run", "--detach", &bundle.id])?;
    let layout = Layout::detect()?;
    let mounts = layout.v1.iter().map(|hierarchy| &hierarchy.mount).chain(&layout.unified);
    for mount in mounts {
        fs::create_dir_all(mount.join(format!("rswarm-{}/a/b", bundle.id)))?;
    }
    bundle.succeeds(&["delete", "--force", &bundle.id])?;
    bundle.nothing_is_left()
}

fn a_cgroup_in_use_is_refused() -> Result<()> {
    let bundle = limited(json!({}), "sleep 1000")?;
    bundle.succeeds(&["run", "--detach", &bundle.id])?;
    let mut second = Bundle::sh("true")?;
    second.spec["linux"]["cgroupsPath"] = bundle.spec["linux"]["cgroupsPath"].clone();
    let error = second.fails(&["create", &second.id])?;
    ensure!(error.contains("container's cgroup is not empty"), "{error}");
    ensure!(bundle.state()?["status"] == "running", "the first is not disturbed");
    bundle.succeeds(&["delete", "--force", &bundle.id])?;
    bundle.nothing_is_left()
}

fn a_parent_with_processes_hands_nothing_down() -> Result<()> {
    if !only_v2()? {
        println!("    skipped: version 1 has no such rule");
        return Ok(());
    }
    let parent = PathBuf::from(format!("/sys/fs/cgroup/rswarm-parent-{}", std::process::id()));
    fs::create_dir(&parent)?;
    let child = std::process::Command::new("/bin/busybox").args(["sleep", "1000"]).spawn();
    let refused = child.map_err(anyhow::Error::from).and_then(|mut child| {
        let moved = fs::write(parent.join("cgroup.procs"), child.id().to_string());
        let mut bundle = limited(json!({"memory": {"limit": 33_554_432}}), "true")?;
        let name = parent.file_name().context("name")?.to_string_lossy().into_owned();
        bundle.spec["linux"]["cgroupsPath"] = format!("/{name}/c").into();
        let refused = bundle.fails(&["create", &bundle.id]);
        let left = parent.join("c").exists();
        child.kill()?;
        child.wait()?;
        moved?;
        ensure!(!left, "the container's cgroup is left");
        refused
    });
    fs::remove_dir(&parent)?;
    let error = refused?;
    ensure!(error.contains("memory.limit") && error.contains("has processes of its own"), "{error}");
    Ok(())
}

fn below_a_threaded_cgroup_no_container_can_be() -> Result<()> {
    let Some(mount) = Layout::detect()?.unified.clone() else {
        println!("    skipped: version 1 has no threads of its own");
        return Ok(());
    };
    let name = format!("rswarm-threaded-{}", std::process::id());
    fs::create_dir_all(mount.join(&name).join("t"))?;
    let mut bundle = Bundle::sh("true")?;
    bundle.spec["linux"]["cgroupsPath"] = format!("/{name}/c").into();
    let refused = fs::write(mount.join(&name).join("t/cgroup.type"), "threaded")
        .map_err(anyhow::Error::from)
        .and_then(|()| bundle.fails(&["create", &bundle.id]));
    Cgroup::at(format!("/{name}").as_ref())?.remove()?;
    let error = refused?;
    ensure!(error.contains("no process can be in cgroup") && error.contains("threaded"), "{error}");
    Ok(())
}

fn a_missing_path_is_made_from_the_id() -> Result<()> {
    let mut bundle = Bundle::sh("sleep 1000")?;
    bundle.spec["linux"].as_object_mut().context("linux")?.remove("cgroupsPath");
    bundle.succeeds(&["run", "--detach", &bundle.id])?;
    let cgroup = Cgroup::at(format!("/{}", bundle.id).as_ref())?;
    ensure!(cgroup.pids()?.len() == 1, "it is not there");
    bundle.succeeds(&["delete", "--force", &bundle.id])?;
    ensure!(cgroup.stats().is_err(), "it is left");
    Ok(())
}

fn out_of_memory_is_told() -> Result<()> {
    let limit = json!({"memory": {"limit": 16_777_216, "swap": 16_777_216}});
    let script = "while [ ! -e /go ]; do sleep 0.01; done; busybox tail /dev/zero; sleep 1000";
    let bundle = limited(limit, script)?;
    bundle.succeeds(&["run", "--detach", &bundle.id])?;
    let cgroup = cgroup(&bundle)?;
    let events = cgroup.oom_events()?;
    ensure!(!events.take() && cgroup.oom_kills() == 0);
    fs::write(bundle.path("bundle/rootfs/go"), "")?;
    until("it is told", || Ok(events.take()))?;
    // The kill follows the word.
    until("it is counted", || Ok(cgroup.oom_kills() == 1))?;
    ensure!(bundle.state()?["status"] == "running", "init was not the one");
    bundle.succeeds(&["delete", "--force", &bundle.id])?;
    bundle.nothing_is_left()
}
