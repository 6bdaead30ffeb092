//! Hooks: when they run, where, with what on their standard input, and what their failure does.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::Case;
use crate::support::{BUSYBOX, Bundle};

pub const CASES: &[Case] = &[
    ("each_runs_at_its_time_in_its_place", each_runs_at_its_time_in_its_place),
    ("a_failure_before_the_start_leaves_nothing", a_failure_before_the_start_leaves_nothing),
    ("a_start_container_failure_is_told_by_start", a_start_container_failure_is_told_by_start),
    ("a_hook_that_takes_too_long_is_ended", a_hook_that_takes_too_long_is_ended),
];

/// A hook that is a script of the machine's busybox.
fn sh(script: &str) -> Value {
    json!({"path": BUSYBOX, "args": ["sh", "-c", script], "env": ["PATH=/bin", "MARK=set"]})
}

/// Writes what it sees, in order, to a file of the machine.
fn witness(log: &Path, name: &str) -> Value {
    let log = log.display();
    sh(&format!(
        "{{ echo {name} $MARK; readlink /proc/self/ns/uts; readlink /proc/self/ns/mnt; cat; echo; }} >> {log}"
    ))
}

fn each_runs_at_its_time_in_its_place() -> Result<()> {
    let mut bundle = Bundle::sh("readlink /proc/self/ns/uts; cat /started; sleep 1000")?;
    std::os::unix::fs::symlink("busybox", bundle.path("bundle/rootfs/bin/readlink"))?;
    let log = bundle.path("log");
    bundle.spec["annotations"] = json!({"some": "thing"});
    let mut hooks = json!({});
    for name in ["prestart", "createRuntime", "createContainer", "poststart", "poststop"] {
        hooks[name] = json!([witness(&log, name)]);
    }
    // Its path means what it means in the container, and so does its environment.
    let script = "{ echo startContainer $MARK; cat; } > /started";
    hooks["startContainer"] = json!([{"path": "/bin/busybox", "args": ["sh", "-c", script]}]);
    bundle.spec["process"]["env"] = json!(["PATH=/bin", "MARK=own"]);
    bundle.spec["hooks"] = hooks;
    bundle.succeeds(&["create", &bundle.id])?;
    let pid = bundle.state()?["pid"].clone();
    let (uts, mnt) = (
        fs::read_link(format!("/proc/{pid}/ns/uts"))?.display().to_string(),
        fs::read_link(format!("/proc/{pid}/ns/mnt"))?.display().to_string(),
    );
    ensure!(!bundle.path("bundle/rootfs/started").exists(), "startContainer ran before start");
    let seen = fs::read_to_string(&log)?;
    let lines: Vec<&str> = seen.lines().collect();
    ensure!(lines.len() == 12, "{seen}");
    for (at, name) in ["prestart", "createRuntime", "createContainer"].iter().enumerate() {
        let [head, its_uts, its_mnt, state] = lines[at * 4..at * 4 + 4] else { unreachable!() };
        let inside = *name == "createContainer";
        ensure!(head == format!("{name} set") && (its_uts == uts) == inside, "{seen}");
        ensure!((its_mnt == mnt) == inside, "{seen}");
        let state: Value = serde_json::from_str(state)?;
        ensure!(state["id"] == bundle.id && state["status"] == "creating", "{state}");
        ensure!(state["pid"] == if inside { json!(1) } else { pid.clone() }, "{state}");
        ensure!(state["annotations"]["some"] == "thing" && state["ociVersion"] == bundle.spec["ociVersion"]);
        ensure!(state["bundle"] == bundle.path("bundle").display().to_string(), "{state}");
    }
    bundle.succeeds(&["start", &bundle.id])?;
    let started = fs::read_to_string(bundle.path("bundle/rootfs/started"))?;
    let (head, state) = started.split_once('\n').context("two lines")?;
    let state: Value = serde_json::from_str(state)?;
    ensure!(head == "startContainer own" && state["status"] == "created" && state["pid"] == 1, "{started}");
    bundle.succeeds(&["delete", "--force", &bundle.id])?;
    let seen = fs::read_to_string(&log)?;
    let after: Vec<&str> = seen.lines().skip(12).collect();
    ensure!(after.len() == 8 && after[0] == "poststart set" && after[4] == "poststop set", "{seen}");
    let states = [after[3], after[7]].map(serde_json::from_str::<Value>);
    let [Ok(running), Ok(stopped)] = states else { anyhow::bail!("{seen}") };
    ensure!(running["status"] == "running" && running["pid"] == pid, "{running}");
    ensure!(stopped["status"] == "stopped" && stopped.get("pid").is_none_or(|pid| *pid == 0), "{stopped}");
    bundle.nothing_is_left()
}

fn a_failure_before_the_start_leaves_nothing() -> Result<()> {
    for name in ["prestart", "createRuntime", "createContainer"] {
        let mut bundle = Bundle::sh("echo ran > /ran")?;
        let log = bundle.path("log");
        bundle.spec["hooks"] = json!({});
        bundle.spec["hooks"][name] = json!([
            sh("echo first is right"),
            sh("echo went; echo wrong >&2; exit 3"),
            witness(&log, "third")
        ]);
        let said = bundle.fails(&["create", &bundle.id])?;
        ensure!(
            said.contains(&format!("error running {name} hook #1"))
                && said.contains("exit status 3: went; wrong"),
            "{said}"
        );
        ensure!(!log.exists(), "the third ran after a failure");
        ensure!(!bundle.path("bundle/rootfs/ran").exists());
        bundle.nothing_is_left()?;
    }
    Ok(())
}

fn a_start_container_failure_is_told_by_start() -> Result<()> {
    let mut bundle = Bundle::sh("echo ran > /ran")?;
    bundle.spec["hooks"] = json!({"startContainer": [{"path": "/bin/none"}]});
    bundle.succeeds(&["create", &bundle.id])?;
    let said = bundle.fails(&["start", &bundle.id])?;
    ensure!(said.contains("error running startContainer hook #0: /bin/none: exit status 127"), "{said}");
    ensure!(said.contains("no such file or directory"), "{said}");
    bundle.status_becomes("stopped")?;
    ensure!(!bundle.path("bundle/rootfs/ran").exists(), "the command ran");
    bundle.succeeds(&["delete", &bundle.id])?;
    bundle.nothing_is_left()
}

fn a_hook_that_takes_too_long_is_ended() -> Result<()> {
    let mut bundle = Bundle::sh("")?;
    let mut slow = sh("echo $$ > /proc/self/fd/2; exec sleep 1000");
    slow["timeout"] = 1.into();
    bundle.spec["hooks"] = json!({"createRuntime": [slow]});
    let said = bundle.fails(&["create", &bundle.id])?;
    ensure!(
        said.contains("error running createRuntime hook #0") && said.contains("longer than its 1 s"),
        "{said}"
    );
    bundle.nothing_is_left()
}
