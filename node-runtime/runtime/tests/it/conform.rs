//! What other runtimes do where the specification leaves a choice, and their callers count on.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::Case;
use crate::mounts::{add, mount, run};
use crate::support::Bundle;

pub const CASES: &[Case] = &[
    ("unknown_capabilities_are_left_out_with_a_warning", unknown_capabilities_are_left_out_with_a_warning),
    ("ambient_capabilities_that_cannot_be_are_left_out", ambient_capabilities_that_cannot_be_are_left_out),
    ("a_variable_is_set_once_and_home_is_never_empty", a_variable_is_set_once_and_home_is_never_empty),
    ("the_callers_processors_are_not_the_containers", the_callers_processors_are_not_the_containers),
    ("a_filter_for_older_programs_is_no_obstacle", a_filter_for_older_programs_is_no_obstacle),
    ("capabilities_count_when_the_command_is_found", capabilities_count_when_the_command_is_found),
    ("a_created_container_ends_on_term", a_created_container_ends_on_term),
    (
        "signal_zero_to_all_is_no_error_when_nobody_is_there",
        signal_zero_to_all_is_no_error_when_nobody_is_there,
    ),
    (
        "hooks_start_in_the_root_with_the_callers_environment",
        hooks_start_in_the_root_with_the_callers_environment,
    ),
    ("a_failed_poststart_hook_destroys_the_container", a_failed_poststart_hook_destroys_the_container),
    ("a_destination_may_be_given_on_the_machine", a_destination_may_be_given_on_the_machine),
    ("a_path_that_is_masked_twice_is_covered_once", a_path_that_is_masked_twice_is_covered_once),
    ("a_frozen_cgroup_is_not_thawed_by_a_new_container", a_frozen_cgroup_is_not_thawed_by_a_new_container),
    ("an_empty_cpuset_of_others_is_filled", an_empty_cpuset_of_others_is_filled),
    ("a_failed_update_changes_nothing", a_failed_update_changes_nothing),
    ("exec_enters_cgroups_below_by_controller", exec_enters_cgroups_below_by_controller),
    ("exec_needs_no_user_in_its_process", exec_needs_no_user_in_its_process),
    ("debug_says_what_is_done", debug_says_what_is_done),
    (
        "an_init_that_is_killed_while_it_is_made_is_told_of",
        an_init_that_is_killed_while_it_is_made_is_told_of,
    ),
];

fn stderr(bundle: &Bundle, args: &[&str]) -> Result<String> {
    let output = bundle.call(args)?;
    ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stderr)?)
}

// spec: oci-runtime config.md#linux-process, capabilities
fn unknown_capabilities_are_left_out_with_a_warning() -> Result<()> {
    let mut bundle = Bundle::sh("")?;
    bundle.spec["process"]["capabilities"] = json!({"bounding": ["CAP_KILL", "CAP_FLY", "OTHER"]});
    let said = stderr(&bundle, &["run", &bundle.id])?;
    let words = "level=warning msg=\"ignoring unknown or unavailable capabilities: [CAP_FLY OTHER]\"";
    ensure!(said.contains(words), "{said}");
    bundle.nothing_is_left()
}

fn ambient_capabilities_that_cannot_be_are_left_out() -> Result<()> {
    let mut bundle = Bundle::sh("cat /proc/self/status > /said")?;
    bundle.spec["process"]["capabilities"] = json!({
        "bounding": ["CAP_KILL", "CAP_CHOWN"], "permitted": ["CAP_KILL", "CAP_CHOWN"],
        "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL", "CAP_CHOWN"],
    });
    let said = stderr(&bundle, &["run", &bundle.id])?;
    ensure!(said.contains("can't raise ambient capability CAP_CHOWN: operation not permitted"), "{said}");
    let status = fs::read_to_string(bundle.path("bundle/rootfs/said"))?;
    ensure!(status.contains("CapAmb:\t0000000000000020"), "{status}");
    bundle.nothing_is_left()
}

fn a_variable_is_set_once_and_home_is_never_empty() -> Result<()> {
    let mut bundle = Bundle::sh("")?;
    fs::write(bundle.path("bundle/rootfs/etc/passwd"), "root:x:0:0::/its/home:/bin/sh\n")?;
    bundle.spec["process"]["args"] = json!(["busybox", "env"]);
    bundle.spec["process"]["env"] = json!(["A=1", "HOME=/other", "PATH=/bin", "A=2", "HOME="]);
    ensure!(run(&bundle)? == "PATH=/bin\nA=2\nHOME=/its/home\n");
    Ok(())
}

fn the_callers_processors_are_not_the_containers() -> Result<()> {
    let bundle = Bundle::sh("cat /proc/self/status > /said")?;
    let command = bundle.command(&["run", &bundle.id])?;
    let output = std::process::Command::new(crate::support::BUSYBOX)
        .args(["taskset", "1"])
        .arg(command.get_program())
        .args(command.get_args())
        .current_dir(bundle.path("bundle"))
        .output()?;
    ensure!(output.status.success(), "{output:?}");
    let of = |text: &str| -> Result<String> {
        let line = text.lines().find(|line| line.starts_with("Cpus_allowed:"));
        Ok(line.context("Cpus_allowed")?.to_owned())
    };
    // What a cpuset does not forbid to us it does not forbid to the container's, which is below the same root.
    let (theirs, ours) =
        (fs::read_to_string(bundle.path("bundle/rootfs/said"))?, fs::read_to_string("/proc/self/status")?);
    ensure!(of(&theirs)? == of(&ours)?, "{theirs}");
    bundle.nothing_is_left()
}

/// What runs between the load of a filter and the command is what old programs called, too.
fn a_filter_for_older_programs_is_no_obstacle() -> Result<()> {
    let mut bundle = Bundle::sh("sleep 1000")?;
    bundle.spec["process"]["noNewPrivileges"] = false.into();
    let names = json!([
        "close_range",
        "openat2",
        "faccessat2",
        "fsopen",
        "fsconfig",
        "fspick",
        "open_tree",
        "move_mount",
        "mount_setattr",
        "statx",
        "pidfd_open",
    ]);
    for number in [libc::ENOSYS, libc::EPERM] {
        bundle.spec["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": number}],
        });
        bundle.succeeds(&["run", "--detach", &bundle.id])?;
        bundle.succeeds(&["exec", &bundle.id, "true"])?;
        bundle.succeeds(&["delete", "--force", &bundle.id])?;
        bundle.nothing_is_left()?;
    }
    Ok(())
}

fn capabilities_count_when_the_command_is_found() -> Result<()> {
    let mut bundle = Bundle::sh("")?;
    let program = bundle.path("bundle/rootfs/bin/busybox");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o744))?;
    bundle.spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    bundle.spec["process"]["args"] = json!(["/bin/busybox", "true"]);
    ensure!(bundle.fails(&["run", &bundle.id])?.contains("permission denied"));
    let one = json!(["CAP_DAC_OVERRIDE"]);
    bundle.spec["process"]["capabilities"] =
        json!({"bounding": one, "effective": one, "permitted": one, "inheritable": one, "ambient": one});
    run(&bundle).map(drop)
}

fn a_created_container_ends_on_term() -> Result<()> {
    let bundle = Bundle::sh("sleep 1000")?;
    bundle.succeeds(&["create", &bundle.id])?;
    bundle.succeeds(&["kill", &bundle.id, "TERM"])?;
    bundle.status_becomes("stopped")?;
    bundle.succeeds(&["delete", &bundle.id])?;
    bundle.nothing_is_left()
}

fn signal_zero_to_all_is_no_error_when_nobody_is_there() -> Result<()> {
    let bundle = Bundle::sh("true")?;
    bundle.succeeds(&["run", "--detach", &bundle.id])?;
    bundle.status_becomes("stopped")?;
    ensure!(bundle.fails(&["kill", &bundle.id, "0"])?.contains("container not running"));
    bundle.succeeds(&["kill", "--all", &bundle.id, "0"])?;
    bundle.succeeds(&["delete", &bundle.id])?;
    bundle.nothing_is_left()
}

fn hooks_start_in_the_root_with_the_callers_environment() -> Result<()> {
    let mut bundle = Bundle::sh("cat where")?;
    let script = |text: &str| json!({"path": "/bin/sh", "args": ["sh", "-c", text]});
    let mut nothing = script("test -z \"$OURS\"");
    nothing["env"] = json!([]);
    bundle.spec["hooks"] = json!({
        "createRuntime": [script("test \"$OURS\" = yes"), nothing],
        "createContainer": [script("echo here > ./where")],
    });
    let mut command = bundle.command(&["run", &bundle.id])?;
    let output = command.env("OURS", "yes").stderr(Stdio::piped()).stdout(Stdio::piped()).output()?;
    ensure!(output.status.success() && output.stdout == b"here\n", "{output:?}");
    bundle.nothing_is_left()
}

// spec: oci-runtime runtime.md#lifecycle step 9
fn a_failed_poststart_hook_destroys_the_container() -> Result<()> {
    let mut bundle = Bundle::sh("sleep 1000")?;
    let after = bundle.path("after");
    let mark = json!({"path": "/bin/sh", "args": ["sh", "-c", format!("echo >> {}", after.display())]});
    bundle.spec["hooks"] = json!({"poststart": [{"path": "/bin/false"}], "poststop": [mark]});
    bundle.succeeds(&["create", &bundle.id])?;
    ensure!(bundle.fails(&["start", &bundle.id])?.contains("poststart hook #0"));
    ensure!(bundle.fails(&["state", &bundle.id])?.contains("does not exist"));
    ensure!(fs::read_to_string(&after)? == "\n");
    bundle.nothing_is_left()?;
    ensure!(bundle.fails(&["run", "--detach", &bundle.id])?.contains("poststart hook #0"));
    ensure!(fs::read_to_string(&after)? == "\n\n");
    bundle.nothing_is_left()
}

fn a_destination_may_be_given_on_the_machine() -> Result<()> {
    let mut bundle = Bundle::sh("cat /mnt/file")?;
    fs::create_dir(bundle.path("source"))?;
    fs::write(bundle.path("source/file"), "inside")?;
    let destination = bundle.path("bundle/rootfs/mnt").display().to_string();
    let source = bundle.path("source").display().to_string();
    add(&mut bundle, mount(&destination, "bind", &source, "rbind"))?;
    ensure!(run(&bundle)? == "inside");
    Ok(())
}

fn a_path_that_is_masked_twice_is_covered_once() -> Result<()> {
    let mut bundle = Bundle::sh("cat /proc/self/mountinfo")?;
    fs::create_dir(bundle.path("bundle/rootfs/secret"))?;
    fs::write(bundle.path("bundle/rootfs/file"), "")?;
    bundle.spec["linux"]["maskedPaths"] = json!(["/secret", "/file", "/secret", "/file"]);
    let table = run(&bundle)?;
    ensure!(table.matches(" /secret ").count() == 1 && table.matches(" /file ").count() == 1, "{table}");
    Ok(())
}

/// Where a version 1 hierarchy or version 2 itself has a container's cgroup.
fn cgroup(bundle: &Bundle, hierarchy: &str) -> std::path::PathBuf {
    std::path::Path::new("/sys/fs/cgroup").join(hierarchy).join(format!("rswarm-{}", bundle.id))
}

/// A cgroup of the test's own, removed with it.
struct Own(std::path::PathBuf);

impl Own {
    fn make(path: std::path::PathBuf) -> Result<Own> {
        fs::create_dir(&path)?;
        Ok(Own(path))
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

fn a_frozen_cgroup_is_not_thawed_by_a_new_container() -> Result<()> {
    let bundle = Bundle::sh("true")?;
    let (hierarchy, file, word) = if fs::exists("/sys/fs/cgroup/freezer")? {
        ("freezer", "freezer.state", "FROZEN")
    } else {
        ("", "cgroup.freeze", "1")
    };
    let frozen = Own::make(cgroup(&bundle, hierarchy))?;
    fs::write(frozen.0.join(file), word)?;
    let said = bundle.fails(&["run", &bundle.id])?;
    ensure!(said.contains("container's cgroup unexpectedly frozen"), "{said}");
    drop(frozen);
    run(&bundle).map(drop)
}

fn an_empty_cpuset_of_others_is_filled() -> Result<()> {
    if !fs::exists("/sys/fs/cgroup/cpuset/cpuset.cpus")? {
        println!("    skipped: cpuset is not of version 1");
        return Ok(());
    }
    let pod = format!("rswarmpod{}", std::process::id());
    let own = Own::make(std::path::Path::new("/sys/fs/cgroup/cpuset").join(&pod))?;
    ensure!(fs::read_to_string(own.0.join("cpuset.cpus"))?.trim().is_empty());
    let mut bundle = Bundle::sh("true")?;
    bundle.spec["linux"]["cgroupsPath"] = format!("/{pod}/{}", bundle.id).into();
    bundle.succeeds(&["run", &bundle.id])?;
    ensure!(!fs::read_to_string(own.0.join("cpuset.cpus"))?.trim().is_empty());
    drop(own);
    for entry in fs::read_dir("/sys/fs/cgroup")?.flatten() {
        let _ = fs::remove_dir(entry.path().join(&pod));
    }
    bundle.nothing_is_left()
}

fn a_failed_update_changes_nothing() -> Result<()> {
    let bundle = Bundle::sh("sleep 1000")?;
    bundle.succeeds(&["run", "--detach", &bundle.id])?;
    let values = || -> Result<Vec<(std::path::PathBuf, String)>> {
        let mut all = Vec::new();
        for file in [
            "memory/memory.limit_in_bytes",
            "memory/memory.soft_limit_in_bytes",
            "cpu/cpu.shares",
            "cpu/cpu.cfs_quota_us",
            "cpu/cpu.cfs_period_us",
            "cpuset/cpuset.cpus",
            "pids/pids.max",
            "memory.max",
            "cpu.weight",
            "cpu.max",
            "cpuset.cpus",
            "pids.max",
        ] {
            let (hierarchy, name) = file.rsplit_once('/').unwrap_or(("", file));
            let path = cgroup(&bundle, hierarchy).join(name);
            if let Ok(value) = fs::read_to_string(&path) {
                all.push((path, value));
            }
        }
        ensure!(all.len() > 3, "{all:?}");
        Ok(all)
    };
    let before = values()?;
    let change = json!({
        "memory": {"limit": 64 << 20, "reservation": 32 << 20}, "pids": {"limit": 33},
        "cpu": {"shares": 512, "quota": 20_000, "period": 40_000, "cpus": "0"},
    });
    // One of these comes before the others and one behind them, whatever their order is.
    for (part, name, value) in
        [("memory", "limit", json!(4096)), ("cpu", "cpus", json!("4000")), ("cpu", "mems", json!("500"))]
    {
        let mut change = change.clone();
        change[part][name] = value;
        change["memory"]["reservation"] = json!(4096);
        let file = bundle.path("resources.json");
        fs::write(&file, change.to_string())?;
        bundle.fails(&["update", "--resources", file.to_str().context("path")?, &bundle.id])?;
        ensure!(values()? == before, "{change}: {before:?} became {:?}", values()?);
    }
    bundle.succeeds(&["delete", "--force", &bundle.id])?;
    bundle.nothing_is_left()
}

fn exec_enters_cgroups_below_by_controller() -> Result<()> {
    let mut bundle = Bundle::sh("sleep 1000")?;
    // Seen from the machine's cgroup namespace.
    bundle.spec["linux"]["namespaces"] =
        json!([{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}]);
    bundle.succeeds(&["run", "--detach", &bundle.id])?;
    let fails = |cgroup: &str| -> Result<String> {
        let output = bundle.call(&["exec", "--cgroup", cgroup, &bundle.id, "true"])?;
        ensure!(output.status.code() == Some(255), "{output:?}");
        Ok(String::from_utf8(output.stderr)?)
    };
    ensure!(fails("..")?.contains("bad sub cgroup path"));
    ensure!(fails("what:/")?.contains("unknown controller what"));
    let said = fails("missing")?;
    ensure!(said.contains(" adding pid ") && said.contains("no such file or directory"), "{said}");
    if fs::exists("/sys/fs/cgroup/memory/memory.limit_in_bytes")? {
        fs::create_dir(cgroup(&bundle, "memory").join("below"))?;
        let read = ["exec", "--cgroup", "memory:below", &bundle.id, "cat", "/proc/self/cgroup"];
        let groups = bundle.succeeds(&read)?;
        let own = format!("/rswarm-{}", bundle.id);
        ensure!(groups.contains(&format!(":memory:{own}/below\n")), "{groups}");
        ensure!(groups.contains(&format!(":pids:{own}\n")), "{groups}");
    }
    bundle.succeeds(&["delete", "--force", &bundle.id])?;
    bundle.nothing_is_left()
}

fn exec_needs_no_user_in_its_process() -> Result<()> {
    let bundle = Bundle::sh("sleep 1000")?;
    bundle.succeeds(&["run", "--detach", &bundle.id])?;
    let file = bundle.path("process.json");
    let process: Value = json!({"args": ["/bin/id", "-u"], "cwd": "/"});
    fs::write(&file, process.to_string())?;
    let said = bundle.succeeds(&["exec", "--process", file.to_str().context("path")?, &bundle.id])?;
    ensure!(said == "0\n", "{said}");
    bundle.succeeds(&["delete", "--force", &bundle.id])?;
    bundle.nothing_is_left()
}

fn debug_says_what_is_done() -> Result<()> {
    let bundle = Bundle::sh("")?;
    let said = stderr(&bundle, &["--debug", "run", &bundle.id])?;
    ensure!(said.contains("level=debug msg=\"init waits for start"), "{said}");
    ensure!(!stderr(&bundle, &["run", &bundle.id])?.contains("level="));
    bundle.nothing_is_left()
}

/// By its own hook, whose parent it is; in a pid namespace of its own nobody inside could.
fn an_init_that_is_killed_while_it_is_made_is_told_of() -> Result<()> {
    let mut bundle = Bundle::sh("")?;
    bundle.spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "ipc"}, {"type": "uts"}]);
    let hook = json!({"path": "/bin/sh", "args": ["sh", "-c", "kill -9 $PPID"]});
    bundle.spec["hooks"] = json!({"createContainer": [hook]});
    let said = bundle.fails(&["create", &bundle.id])?;
    ensure!(said.ends_with("container init ended unexpectedly: signal: killed"), "{said}");
    bundle.nothing_is_left()
}
