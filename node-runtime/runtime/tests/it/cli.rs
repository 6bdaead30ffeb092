//! The commands as callers of OCI runtimes use them.

use std::fs;
use std::io::{BufRead, BufReader, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix, SocketType, recvmsg,
};
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
    ("exec_runs_another_command", exec_runs_another_command),
    ("exec_takes_a_whole_process", exec_takes_a_whole_process),
    ("exec_says_why_it_failed", exec_says_why_it_failed),
    ("a_foreground_terminal_is_the_callers", a_foreground_terminal_is_the_callers),
    ("a_console_socket_gets_the_terminal", a_console_socket_gets_the_terminal),
    ("containers_are_listed", containers_are_listed),
    ("resources_are_updated", resources_are_updated),
    ("events_tell_what_is_used", events_tell_what_is_used),
    ("descriptors_are_passed_on", descriptors_are_passed_on),
    ("a_systemd_path_is_a_place_in_its_slice", a_systemd_path_is_a_place_in_its_slice),
    ("what_a_killed_create_left_is_deleted", what_a_killed_create_left_is_deleted),
    ("one_of_many_starts_counts", one_of_many_starts_counts),
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
    ensure!(bundle.fails(&["create", &bundle.id])?.contains("already exists"));
    bundle.succeeds(&["start", &bundle.id])?;
    ensure!(bundle.fails(&["delete", &bundle.id])?.contains("that is not stopped: running"));
    ensure!(bundle.state()?["status"] == "running");
    ensure!(bundle.fails(&["start", &bundle.id])?.contains("cannot start an already running container"));
    bundle.says("cli")?;
    bundle.succeeds(&["kill", &bundle.id, "KILL"])?;
    bundle.status_becomes("stopped")?;
    ensure!(bundle.fails(&["kill", &bundle.id])?.contains("container not running"));
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
    ensure!(bundle.fails(&["resume", &bundle.id])?.contains("container not paused"));
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

fn exec_runs_another_command() -> Result<()> {
    let bundle = Bundle::sh("sleep 1000")?;
    bundle.succeeds(&["run", "--detach", &bundle.id])?;
    let script = "echo $A; pwd; id -u; id -g; cat /proc/self/status";
    let flags = ["exec", "-e", "A=b", "--cwd=/etc", "-u", "7:8", "-c", "CAP_SYS_TIME", &bundle.id];
    let said = bundle.succeeds(&[&flags[..], &["sh", "-c", script]].concat())?;
    ensure!(said.starts_with("b\n/etc\n7\n8\n"), "{said}");
    // CAP_SYS_TIME is 25.
    let bounding = said.lines().find_map(|line| line.strip_prefix("CapBnd:\t")).context("CapBnd")?;
    ensure!(u64::from_str_radix(bounding, 16)? & (1 << 25) != 0, "{bounding}");
    let output = bundle.call(&["exec", &bundle.id, "sh", "-c", "exit 9"])?;
    ensure!(output.status.code() == Some(9), "{output:?}");
    let pid_file = bundle.path("exec.pid");
    let file = pid_file.to_str().context("path")?;
    bundle.succeeds(&["exec", "-d", "--pid-file", file, &bundle.id, "sleep", "1001"])?;
    let pid = fs::read_to_string(&pid_file)?;
    ensure!(fs::read_to_string(format!("/proc/{pid}/cmdline"))? == "sleep\x001001\0");
    let shown = bundle.succeeds(&["ps", &bundle.id])?;
    ensure!(shown.contains("sleep 1001") && shown.contains(&pid), "{shown}");
    let pids: Vec<i32> = serde_json::from_str(&bundle.succeeds(&["ps", "--format", "json", &bundle.id])?)?;
    ensure!(pids.len() == 2 && pids.contains(&pid.parse()?), "{pids:?}");
    bundle.succeeds(&["delete", "--force", &bundle.id])?;
    bundle.nothing_is_left()
}

fn exec_takes_a_whole_process() -> Result<()> {
    let bundle = Bundle::sh("sleep 1000")?;
    bundle.succeeds(&["run", "--detach", &bundle.id])?;
    let process = json!({
        "user": {"uid": 5, "gid": 6, "additionalGids": [9]},
        "args": ["sh", "-c", "id -u; id -G; echo $ONLY; cat /proc/self/status"],
        "env": ["PATH=/bin", "ONLY=this"],
        "cwd": "/",
        "noNewPrivileges": true,
    });
    let path = bundle.path("process.json");
    fs::write(&path, process.to_string())?;
    let said = bundle.succeeds(&["exec", "--process", path.to_str().context("path")?, &bundle.id])?;
    ensure!(said.starts_with("5\n6 9\nthis\n") && said.contains("NoNewPrivs:\t1"), "{said}");
    bundle.succeeds(&["delete", "-f", &bundle.id])?;
    bundle.nothing_is_left()
}

fn exec_says_why_it_failed() -> Result<()> {
    let bundle = Bundle::sh("sleep 1000")?;
    let fails = |args: &[&str]| -> Result<String> {
        let output = bundle.call(args)?;
        ensure!(output.status.code() == Some(255), "{output:?}");
        Ok(String::from_utf8(output.stderr)?)
    };
    ensure!(fails(&["exec", &bundle.id, "true"])?.contains("does not exist"));
    bundle.succeeds(&["run", "--detach", &bundle.id])?;
    let words = fails(&["exec", &bundle.id, "missing"])?;
    ensure!(words.contains("exec failed: exec: \"missing\": executable file not found in $PATH"), "{words}");
    ensure!(fails(&["exec", &bundle.id])?.contains("cannot be empty"));
    bundle.succeeds(&["pause", &bundle.id])?;
    ensure!(fails(&["exec", &bundle.id, "true"])?.contains("paused container"));
    bundle.succeeds(&["resume", &bundle.id])?;
    bundle.succeeds(&["kill", &bundle.id, "KILL"])?;
    bundle.status_becomes("stopped")?;
    ensure!(fails(&["exec", &bundle.id, "true"])?.contains("container not running"));
    bundle.succeeds(&["delete", &bundle.id])?;
    bundle.nothing_is_left()
}

fn a_foreground_terminal_is_the_callers() -> Result<()> {
    let mut bundle = Bundle::sh("test -t 0 && test -t 1 && test -t 2 && echo terminal; exit 6")?;
    bundle.spec["process"]["terminal"] = true.into();
    let output = bundle.call(&["run", &bundle.id])?;
    ensure!(output.status.code() == Some(6) && output.stdout == b"terminal\n", "{output:?}");
    bundle.nothing_is_left()
}

fn a_console_socket_gets_the_terminal() -> Result<()> {
    let mut bundle = Bundle::sh("echo said; sleep 1000")?;
    bundle.spec["process"]["terminal"] = true.into();
    let socket = bundle.path("console");
    let listener = UnixListener::bind(&socket)?;
    bundle.succeeds(&["create", "--console-socket", socket.to_str().context("path")?, &bundle.id])?;
    let mut near = receive(&listener)?;
    bundle.succeeds(&["start", &bundle.id])?;
    let mut said = [0; 6];
    near.read_exact(&mut said)?;
    ensure!(&said == b"said\r\n", "{said:?}");
    bundle.succeeds(&["delete", "--force", &bundle.id])?;
    bundle.nothing_is_left()
}

fn receive(listener: &UnixListener) -> Result<fs::File> {
    let (stream, _) = listener.accept()?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 64];
    recvmsg(&stream, &mut [IoSliceMut::new(&mut name)], &mut control, RecvFlags::empty())?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message {
            return Ok(fds.next().context("no descriptor")?.into());
        }
    }
    bail!("no descriptor came")
}

fn containers_are_listed() -> Result<()> {
    let mut bundle = Bundle::sh("sleep 1000")?;
    ensure!(bundle.fails(&["list", "--format", "json"])?.contains("no such file or directory"));
    fs::create_dir(bundle.path("root"))?;
    ensure!(bundle.succeeds(&["list", "--format", "json"])? == "[]\n");
    bundle.spec["annotations"] = json!({"org.opencontainers.image.title": "a"});
    bundle.succeeds(&["create", &bundle.id])?;
    let list: Value = serde_json::from_str(&bundle.succeeds(&["list", "-f", "json"])?)?;
    let one = &list[0];
    ensure!(one["id"] == bundle.id && one["status"] == "created" && one["owner"] == "root", "{list}");
    ensure!(one["annotations"]["org.opencontainers.image.title"] == "a", "{list}");
    ensure!(one["rootfs"] == bundle.path("bundle/rootfs").to_str().context("path")?, "{list}");
    ensure!(bundle.succeeds(&["list", "--quiet"])? == format!("{}\n", bundle.id));
    let table = bundle.succeeds(&["list"])?;
    ensure!(table.starts_with("ID ") && table.lines().count() == 2, "{table}");
    // A container that was never started is deleted without force, as by runc.
    bundle.succeeds(&["delete", &bundle.id])?;
    bundle.nothing_is_left()
}

fn resources_are_updated() -> Result<()> {
    let bundle = Bundle::sh("sleep 1000")?;
    bundle.succeeds(&["run", "--detach", &bundle.id])?;
    bundle.succeeds(&["update", "--pids-limit", "33", "--memory", "64m", &bundle.id])?;
    let stats = |what: &str| -> Result<Value> {
        let event: Value = serde_json::from_str(&bundle.succeeds(&["events", "--stats", &bundle.id])?)?;
        ensure!(event["type"] == "stats" && event["id"] == bundle.id, "{event}");
        Ok(event["data"][what].clone())
    };
    ensure!(stats("pids")?["limit"] == 33);
    ensure!(stats("memory")?["usage"]["limit"] == 64 << 20);
    let file = bundle.path("resources.json");
    fs::write(&file, r#"{"pids": {"limit": 44}}"#)?;
    bundle.succeeds(&["update", "--resources", file.to_str().context("path")?, &bundle.id])?;
    ensure!(stats("pids")?["limit"] == 44);
    fs::write(&file, r#"{"pids": {}}"#)?;
    bundle.succeeds(&["update", "--resources", file.to_str().context("path")?, &bundle.id])?;
    ensure!(stats("pids")?["limit"] == 44);
    bundle.succeeds(&["update", "--pids-limit", "0", &bundle.id])?;
    ensure!(stats("pids")?["limit"] == 1);
    ensure!(bundle.fails(&["update", "--memory", "much", &bundle.id])?.contains("invalid value for memory"));
    bundle.succeeds(&["delete", "--force", &bundle.id])?;
    bundle.nothing_is_left()
}

fn events_tell_what_is_used() -> Result<()> {
    let bundle = Bundle::sh("sleep 1000")?;
    bundle.succeeds(&["run", "--detach", &bundle.id])?;
    let mut command = bundle.command(&["events", "--interval=10ms", &bundle.id])?;
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("stdout")?).lines();
    for _ in 0..3 {
        let event: Value = serde_json::from_str(&lines.next().context("no event")??)?;
        ensure!(event["type"] == "stats" && event["data"]["pids"]["current"] == 1, "{event}");
    }
    // It ends with the container.
    bundle.succeeds(&["delete", "--force", &bundle.id])?;
    for line in lines {
        line?;
    }
    ensure!(child.wait()?.success());
    bundle.nothing_is_left()
}

fn descriptors_are_passed_on() -> Result<()> {
    let bundle = Bundle::sh("cat <&3")?;
    let text = bundle.path("text");
    fs::write(&text, "through")?;
    let mut command = bundle.command(&["run", "--preserve-fds", "1", &bundle.id])?;
    let shell = format!("exec \"$0\" \"$@\" 3<{}", text.display());
    let output = std::process::Command::new("/bin/sh")
        .args(["-c", &shell])
        .arg(command.get_program())
        .args(command.get_args())
        .current_dir(bundle.path("bundle"))
        .output()?;
    ensure!(output.status.success() && output.stdout == b"through", "{output:?}");
    let refused = command.stderr(Stdio::piped()).output()?;
    let words = String::from_utf8(refused.stderr)?;
    ensure!(!refused.status.success() && words.contains("preserved-fd 0 (of 1)"), "{words}");
    bundle.nothing_is_left()
}

/// A parent of cgroups, whom nobody else removes.
struct Slice(String);

impl Drop for Slice {
    fn drop(&mut self) {
        for entry in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let _ = fs::remove_dir(entry.path().join(&self.0));
        }
        let _ = fs::remove_dir(std::path::Path::new("/sys/fs/cgroup").join(&self.0));
    }
}

fn a_systemd_path_is_a_place_in_its_slice() -> Result<()> {
    // Dropped after the bundle, which removes what is in it.
    let slice = Slice(format!("rswarmtest{}.slice", std::process::id()));
    let mut bundle = Bundle::sh("sleep 1000")?;
    bundle.spec["linux"]["cgroupsPath"] = format!("{}:test:{}", slice.0, bundle.id).into();
    // Seen from the machine's cgroup namespace.
    bundle.spec["linux"]["namespaces"] =
        json!([{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}]);
    bundle.succeeds(&["--systemd-cgroup", "run", "--detach", &bundle.id])?;
    let pid = bundle.state()?["pid"].as_i64().context("pid")?;
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    bundle.succeeds(&["delete", "--force", &bundle.id])?;
    let wanted = format!(":/{}/test-{}.scope", slice.0, bundle.id);
    ensure!(groups.lines().all(|line| line.ends_with(&wanted)), "{groups}");
    bundle.nothing_is_left()
}

/// Its socket takes no more callers, so that create hangs when everything is made and nothing is told.
fn what_a_killed_create_left_is_deleted() -> Result<()> {
    let bundle = Bundle::sh("sleep 1000")?;
    let socket = bundle.path("pidfd");
    let full = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
    rustix::net::bind(&full, &SocketAddrUnix::new(&socket)?)?;
    rustix::net::listen(&full, 0)?;
    let _first = UnixStream::connect(&socket)?;
    let mut create =
        bundle.command(&["create", "--pidfd-socket", socket.to_str().context("path")?, &bundle.id])?;
    let mut child = create.stderr(Stdio::null()).spawn()?;
    let has_init = || {
        let printed = bundle.call(&["ps", "--format", "json", &bundle.id])?;
        Ok::<_, anyhow::Error>(printed.status.success() && printed.stdout != b"[]\n")
    };
    // Only then has create read the configuration, which every call of ours writes anew.
    let remembered = bundle.path("root").join(&bundle.id).join("state.json");
    while !remembered.exists() || !has_init()? {
        ensure!(child.try_wait()?.is_none(), "create ended");
    }
    let state = bundle.state()?;
    child.kill()?;
    child.wait()?;
    ensure!(state["status"] == "creating" && state["pid"] == 0, "{state}");
    ensure!(bundle.state()?["status"] == "stopped");
    bundle.succeeds(&["delete", "--force", &bundle.id])?;
    bundle.nothing_is_left()
}

fn one_of_many_starts_counts() -> Result<()> {
    let bundle = Bundle::sh("echo once >> /said; sleep 1000")?;
    bundle.succeeds(&["create", &bundle.id])?;
    let starts: Vec<_> = (0..8)
        .map(|_| Ok(bundle.command(&["start", &bundle.id])?.stderr(Stdio::null()).spawn()?))
        .collect::<Result<_>>()?;
    let mut succeeded = 0;
    for mut start in starts {
        succeeded += u32::from(start.wait()?.success());
    }
    ensure!(succeeded == 1, "{succeeded} of 8");
    bundle.says("once")?;
    let deletes: Vec<_> = (0..4)
        .map(|_| Ok(bundle.command(&["delete", "--force", &bundle.id])?.spawn()?))
        .collect::<Result<_>>()?;
    for mut delete in deletes {
        ensure!(delete.wait()?.success());
    }
    ensure!(fs::read_to_string(bundle.path("bundle/rootfs/said"))? == "once\n");
    bundle.nothing_is_left()
}

fn mistakes_are_named() -> Result<()> {
    let bundle = Bundle::sh("")?;
    let refused = bundle.fails(&["checkpoint", "--image-path", "/x", "id"])?;
    ensure!(refused.contains("checkpoint is not supported"), "{refused}");
    ensure!(bundle.fails(&["dance"])?.contains("command `dance` is not known"));
    ensure!(bundle.fails(&["--dance", "state", "x"])?.contains("not defined: `--dance`"));
    ensure!(bundle.fails(&["--log-format", "xml", "state", "x"])?.contains("invalid log-format: xml"));
    ensure!(bundle.fails(&["--log", "nowhere:/log", "list"])?.contains("open nowhere:/log: no such file"));
    ensure!(bundle.fails(&["state", "nobody"])?.contains("container does not exist: `nobody`"));
    ensure!(bundle.fails(&["kill", "nobody", "NONSENSE"])?.contains("unknown signal \"NONSENSE\""));
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
    ensure!(bundle.fails(&["spec", "--bundle", dir.to_str().context("path")?])?.contains("Remove it first"));
    let features: Value = serde_json::from_str(&bundle.succeeds(&["features"])?)?;
    ensure!(features["linux"]["cgroup"]["v2"] == true, "{features}");
    // The published shape of it.
    serde_json::from_value::<oci_spec::runtime::Features>(features)?;
    Ok(())
}
