//! The commands as callers of OCI runtimes use them.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::Case;
use crate::support::Bundle;

pub const CASES: &[Case] = &[
    ("a_container_is_created_started_killed_and_deleted", a_container_is_created_started_killed_and_deleted),
    ("run_gives_the_commands_exit_code_and_output", run_gives_the_commands_exit_code_and_output),
    ("run_passes_signals_on", run_passes_signals_on),
    ("a_container_can_be_paused", a_container_can_be_paused),
    ("start_says_why_a_command_cannot_run", start_says_why_a_command_cannot_run),
    ("a_failed_create_leaves_nothing", a_failed_create_leaves_nothing),
    ("mistakes_are_named", mistakes_are_named),
    ("spec_and_features_are_printed", spec_and_features_are_printed),
];

fn a_container_is_created_started_killed_and_deleted() -> Result<()> {
    let bundle = Bundle::sh("hostname > /said; sleep 1000")?;
    let pid_file = bundle.path("pid");
    bundle.succeeds(&[
        "create",
        "--bundle",
        ".",
        "--pid-file",
        pid_file.to_str().context("path")?,
        &bundle.id,
    ])?;
    let state = bundle.state()?;
    let pid: i64 = fs::read_to_string(&pid_file)?.parse()?;
    ensure!(state["status"] == "created" && state["pid"] == pid && state["id"] == bundle.id, "{state}");
    ensure!(!bundle.path("bundle/rootfs/said").exists(), "it runs before start");
    ensure!(bundle.fails(&["create", &bundle.id])?.contains("exists already"));
    ensure!(bundle.fails(&["delete", &bundle.id])?.contains("not stopped"));
    bundle.succeeds(&["start", &bundle.id])?;
    ensure!(bundle.state()?["status"] == "running");
    ensure!(bundle.fails(&["start", &bundle.id])?.contains("not in the state `created`"));
    bundle.succeeds(&["kill", &bundle.id, "KILL"])?;
    bundle.status_becomes("stopped")?;
    ensure!(bundle.fails(&["kill", &bundle.id])?.contains("container not running"));
    ensure!(fs::read_to_string(bundle.path("bundle/rootfs/said"))? == "cli\n");
    bundle.succeeds(&["delete", &bundle.id])?;
    bundle.nothing_is_left()
}

fn run_gives_the_commands_exit_code_and_output() -> Result<()> {
    let bundle = Bundle::sh("echo out; (sleep 0.05 &); exit 9")?;
    let output = bundle.call(&["run", &bundle.id])?;
    ensure!(output.status.code() == Some(9) && output.stdout == b"out\n", "{output:?}");
    bundle.nothing_is_left()
}

fn run_passes_signals_on() -> Result<()> {
    let bundle = Bundle::sh("trap 'exit 5' TERM; echo up > /up; while :; do sleep 0.05; done")?;
    let mut child = bundle.command(&["run", &bundle.id])?.spawn()?;
    while !bundle.path("bundle/rootfs/up").exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(child.id().cast_signed()),
        nix::sys::signal::Signal::SIGTERM,
    )?;
    ensure!(child.wait()?.code() == Some(5));
    bundle.nothing_is_left()
}

fn a_container_can_be_paused() -> Result<()> {
    let bundle = Bundle::sh("sleep 1000")?;
    bundle.succeeds(&["run", "--detach", &bundle.id])?;
    ensure!(bundle.fails(&["resume", &bundle.id])?.contains("is not paused"));
    bundle.succeeds(&["pause", &bundle.id])?;
    ensure!(bundle.state()?["status"] == "paused");
    bundle.succeeds(&["resume", &bundle.id])?;
    ensure!(bundle.state()?["status"] == "running");
    bundle.succeeds(&["delete", "--force", &bundle.id])?;
    bundle.nothing_is_left()
}

fn start_says_why_a_command_cannot_run() -> Result<()> {
    let mut bundle = Bundle::sh("")?;
    fs::write(bundle.path("bundle/rootfs/bin/broken"), "no program\n")?;
    fs::set_permissions(
        bundle.path("bundle/rootfs/bin/broken"),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )?;
    bundle.spec["process"]["args"] = json!(["broken"]);
    bundle.succeeds(&["create", &bundle.id])?;
    let error = bundle.fails(&["start", &bundle.id])?;
    ensure!(error == "error: exec /bin/broken: exec format error", "{error}");
    bundle.status_becomes("stopped")?;
    bundle.succeeds(&["delete", &bundle.id])?;
    bundle.nothing_is_left()
}

fn a_failed_create_leaves_nothing() -> Result<()> {
    let mut bundle = Bundle::sh("")?;
    bundle.spec["process"]["args"] = json!(["missing"]);
    let log = bundle.path("log.json");
    let log_flags = ["--log", log.to_str().context("path")?, "--log-format", "json"];
    let error = bundle.fails(&[&log_flags[..], &["create", &bundle.id]].concat())?;
    ensure!(error == "error: exec: \"missing\": executable file not found in $PATH", "{error}");
    let line: Value = serde_json::from_str(&fs::read_to_string(&log)?)?;
    ensure!(
        line["msg"] == "exec: \"missing\": executable file not found in $PATH" && line["level"] == "error",
        "{line}"
    );
    bundle.nothing_is_left()?;
    bundle.spec["process"]["terminal"] = true.into();
    ensure!(bundle.fails(&["create", &bundle.id])?.contains("--console-socket"));
    bundle.nothing_is_left()
}

fn mistakes_are_named() -> Result<()> {
    let bundle = Bundle::sh("")?;
    ensure!(bundle.fails(&["dance"])?.contains("command `dance` is not known"));
    ensure!(bundle.fails(&["--systemd-cgroup", "state", "x"])?.contains("`--systemd-cgroup` is not known"));
    ensure!(bundle.fails(&["state", "nobody"])?.contains("`nobody` does not exist"));
    ensure!(bundle.fails(&["kill", "nobody", "NONSENSE"])?.contains("signal `NONSENSE`"));
    bundle.succeeds(&["delete", "--force", "nobody"])?;
    Ok(())
}

fn spec_and_features_are_printed() -> Result<()> {
    let bundle = Bundle::sh("")?;
    let dir = bundle.path("new");
    fs::create_dir(&dir)?;
    bundle.succeeds(&["spec", "--bundle", dir.to_str().context("path")?])?;
    let spec: oci_spec::runtime::Spec = serde_json::from_slice(&fs::read(dir.join("config.json"))?)?;
    ensure!(spec.process().is_some());
    ensure!(bundle.fails(&["spec", "--bundle", dir.to_str().context("path")?])?.contains("exists already"));
    let features: Value = serde_json::from_str(&bundle.succeeds(&["features"])?)?;
    ensure!(features["linux"]["cgroup"]["v2"] == true, "{features}");
    Ok(())
}
