//! The command line as callers of OCI runtimes use it. Needs root and a static busybox.
//!
//! The program is its own runtime: it runs itself as `… runtime COMMAND`, which must find no thread, so there
//! is no test harness.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

const BUSYBOX: &str = "/bin/busybox";

type Case = fn() -> Result<()>;

const ALL: &[(&str, Case)] = &[
    ("a_container_is_created_started_killed_and_deleted", a_container_is_created_started_killed_and_deleted),
    ("run_gives_the_commands_exit_code_and_output", run_gives_the_commands_exit_code_and_output),
    ("run_passes_signals_on", run_passes_signals_on),
    ("a_container_can_be_paused", a_container_can_be_paused),
    ("start_says_why_a_command_cannot_run", start_says_why_a_command_cannot_run),
    ("a_failed_create_leaves_nothing", a_failed_create_leaves_nothing),
    ("mistakes_are_named", mistakes_are_named),
    ("spec_and_features_are_printed", spec_and_features_are_printed),
];

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    if args.first().is_some_and(|arg| arg == "runtime") {
        let code = rswarm_runtime::cli::main(args[1..].to_vec());
        return ExitCode::from(u8::try_from(code).unwrap_or(255));
    }
    if args.iter().any(|arg| arg == "--list") {
        return ExitCode::SUCCESS;
    }
    if !nix::unistd::geteuid().is_root() || !fs::exists(BUSYBOX).is_ok_and(|there| there) {
        eprintln!("skipped: needs root and {BUSYBOX} (busybox-static)");
        let ci = std::env::var("CI").is_ok_and(|value| value == "true");
        return if ci { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    let wanted: Vec<&str> =
        args.iter().filter_map(|arg| arg.to_str()).filter(|arg| !arg.starts_with('-')).collect();
    let mut failed = 0;
    for (name, test) in ALL {
        if !wanted.is_empty() && !wanted.iter().any(|part| name.contains(part)) {
            continue;
        }
        let result = test();
        println!("test {name} ... {}", if result.is_ok() { "ok" } else { "FAILED" });
        if let Err(error) = result {
            println!("    {error:#}");
            failed += 1;
        }
    }
    println!("{failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A bundle, and a root for the runtime to remember containers in.
struct Bundle {
    dir: TempDir,
    id: String,
    spec: Value,
}

impl Bundle {
    fn sh(script: &str) -> Result<Bundle> {
        let dir = tempfile::tempdir()?;
        let root = dir.path().join("bundle/rootfs");
        for name in ["bin", "proc", "dev", "etc"] {
            fs::create_dir_all(root.join(name))?;
        }
        fs::copy(BUSYBOX, root.join("bin/busybox"))?;
        for name in ["sh", "sleep", "cat", "echo", "hostname"] {
            symlink("busybox", root.join("bin").join(name))?;
        }
        let id = format!("clitest-{}", &rswarm_base::id::engine_id()[..16]);
        let mut spec = serde_json::to_value(oci_spec::runtime::Spec::default())?;
        spec["process"]["args"] = json!(["sh", "-c", script]);
        spec["root"]["readonly"] = false.into();
        spec["hostname"] = "cli".into();
        spec["linux"]["cgroupsPath"] = format!("/rswarm-{id}").into();
        Ok(Bundle { dir, id, spec })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Result<Command> {
        fs::write(self.path("bundle/config.json"), serde_json::to_vec(&self.spec)?)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["runtime", "--root"]).arg(self.path("root")).args(args);
        command.current_dir(self.path("bundle")).stdin(Stdio::null());
        Ok(command)
    }

    /// Runs a command; output goes through files, since a detached container keeps them open.
    fn call(&self, args: &[&str]) -> Result<Output> {
        let (out, err) = (self.path("out"), self.path("err"));
        let status =
            self.command(args)?.stdout(fs::File::create(&out)?).stderr(fs::File::create(&err)?).status()?;
        Ok(Output { status, stdout: fs::read(out)?, stderr: fs::read(err)? })
    }

    fn succeeds(&self, args: &[&str]) -> Result<String> {
        let output = self.call(args)?;
        ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    fn fails(&self, args: &[&str]) -> Result<String> {
        let output = self.call(args)?;
        ensure!(output.status.code() == Some(1), "{args:?} gave {:?}", output.status);
        Ok(String::from_utf8(output.stderr)?.trim().to_owned())
    }

    fn state(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.succeeds(&["state", &self.id])?)?)
    }

    fn status_becomes(&self, wanted: &str) -> Result<()> {
        for _ in 0..1000 {
            if self.state()?["status"] == wanted {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        anyhow::bail!("the status never became {wanted}")
    }

    fn nothing_is_left(&self) -> Result<()> {
        ensure!(!self.path("root").join(&self.id).exists(), "it is remembered");
        for entry in fs::read_dir("/sys/fs/cgroup")?.flatten() {
            let dir = entry.path().join(format!("rswarm-{}", self.id));
            ensure!(!dir.exists(), "{} is left", dir.display());
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        ensure!(!mounts.contains(&self.dir.path().display().to_string()), "a mount is left");
        Ok(())
    }
}

impl Drop for Bundle {
    /// A failed test leaves nothing either.
    fn drop(&mut self) {
        let _ = self.call(&["delete", "--force", &self.id.clone()]);
    }
}

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
