//! One machine: images, containers, logs, and a daemon that dies and comes back.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rswarm_tests::harness::{Lab, eventually, run};

use crate::support::running;

fn one_host() -> Result<Lab> {
    let lab = Lab::start(1)?;
    lab.hosts[0].import_busybox()?;
    Ok(lab)
}

#[test]
fn containers_live_and_die_as_on_dockerd() -> Result<()> {
    let lab = one_host()?;
    let host = &lab.hosts[0];
    let id =
        host.docker(&["run", "-d", "--name", "c1", "busybox", "sh", "-c", "echo out; echo err >&2; exit 3"])?;
    ensure!(id.trim().len() == 64, "run -d printed {id:?}");
    ensure!(host.docker(&["wait", "c1"])?.trim() == "3", "wait gives the exit code");
    let logs = host.docker(&["logs", "c1"])?;
    ensure!(logs == "out\n", "stdout of the log is {logs:?}");
    let status = host.docker(&["ps", "-a", "--format", "{{.Names}} {{.Status}}"])?;
    ensure!(status.starts_with("c1 Exited (3)"), "{status:?}");

    host.docker(&[
        "run",
        "-d",
        "--name",
        "c2",
        "--hostname",
        "box",
        "--memory",
        "64m",
        "--pids-limit",
        "50",
        "busybox",
        "sleep",
        "1000",
    ])?;
    ensure!(host.docker(&["ps", "--format", "{{.Names}}"])?.trim() == "c2");
    host.docker(&["stop", "-t", "1", "c2"])?;
    ensure!(host.docker(&["inspect", "--format", "{{.State.ExitCode}}", "c2"])?.trim() == "137");
    host.docker(&["start", "c2"])?;
    host.docker(&["kill", "c2"])?;
    host.docker(&["rm", "-f", "c1", "c2"])?;
    ensure!(host.docker(&["ps", "-aq"])?.trim().is_empty());
    lab.finish()
}

#[test]
fn networks_none_host_and_bridge() -> Result<()> {
    let lab = Lab::start(2)?;
    let host = &lab.hosts[0];
    host.import_busybox()?;
    let none = host.docker(&["run", "--rm", "--network", "none", "busybox", "ls", "/sys/class/net"])?;
    ensure!(none.trim() == "lo", "network none has {none:?}");
    let shared =
        host.docker(&["run", "--rm", "--network", "host", "busybox", "ip", "-4", "addr", "show", "eth0"])?;
    ensure!(shared.contains(&host.address.to_string()), "network host shows {shared:?}");
    let other = lab.hosts[1].address.to_string();
    host.docker(&["run", "--rm", "busybox", "ping", "-c", "1", "-W", "3", &other])?;
    host.import_demo()?;
    host.docker(&["run", "-d", "--name", "web", "-p", "8080:80", "demo"])?;
    let url = format!("http://{}:8080/", host.address);
    eventually(Duration::from_secs(10), "the published port answers", || {
        let page = run(lab.hosts[1].command("curl").args(["-sS", "--max-time", "2", &url]))?;
        Ok(page.to_lowercase().contains("hostname"))
    })?;
    let taken = host.refusal(&["run", "-d", "-p", "8080:80", "busybox", "sleep", "9"])?;
    ensure!(taken.contains("port is already allocated"), "{taken:?}");
    host.docker(&["run", "-d", "--name", "next", "-p", "8080-8082:80", "demo"])?;
    ensure!(
        host.docker(&["port", "next"])?.trim() == "80/tcp -> 0.0.0.0:8081",
        "the first free one of the range"
    );
    lab.finish()
}

#[test]
fn a_killed_daemon_finds_its_containers_running_and_their_logs_whole() -> Result<()> {
    let mut lab = one_host()?;
    let script = "i=0; while [ $i -lt 400 ]; do echo line $i; i=$((i+1)); usleep 10000; done; sleep 1000";
    lab.hosts[0].docker(&["run", "-d", "--name", "talker", "busybox", "sh", "-c", script])?;
    lab.hosts[0].docker(&["run", "-d", "--name", "short", "busybox", "sleep", "2"])?;
    let before = running(&lab.hosts[0])?;
    lab.hosts[0].kill()?;
    // The short one ends while no daemon runs.
    let short = before.values().map(|(pid, _)| pid.clone()).collect::<Vec<_>>();
    eventually(Duration::from_secs(10), "one of the two has ended", || {
        Ok(short.iter().any(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists()))
    })?;
    lab.hosts[0].start()?;
    lab.hosts[0].ready()?;
    let host = &lab.hosts[0];
    let after = running(host)?;
    ensure!(
        after.len() == 1 && after.iter().all(|(id, process)| before.get(id) == Some(process)),
        "{before:?} became {after:?}"
    );
    let short = host.docker(&["inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", "short"])?;
    ensure!(short.trim() == "exited 0", "{short:?}");
    eventually(Duration::from_secs(20), "the talker has said everything", || {
        Ok(host.docker(&["logs", "--tail", "1", "talker"])?.trim() == "line 399")
    })?;
    let wanted: String = (0..400).map(|line| format!("line {line}\n")).collect();
    ensure!(host.docker(&["logs", "talker"])? == wanted, "the log has a gap");
    lab.finish()
}

#[test]
fn images_are_loaded_and_pulled() -> Result<()> {
    let lab = one_host()?;
    let host = &lab.hosts[0];
    let registry = Registry::start(host)?;
    let dir = tempfile::tempdir()?;
    let archive = dir.path().join("busybox.tar").to_string_lossy().into_owned();
    host.docker(&["save", "-o", &archive, "busybox:latest"])?;
    let target = format!("docker://127.0.0.1:{}/team/box:v1", registry.port);
    run(host.command("skopeo").args([
        "copy",
        "--quiet",
        "--insecure-policy",
        "--dest-tls-verify=false",
        &format!("docker-archive:{archive}"),
        &target,
    ]))?;

    host.docker(&["rmi", "busybox:latest"])?;
    let loaded = host.docker(&["load", "-i", &archive])?;
    ensure!(loaded.contains("Loaded image: busybox:latest"), "{loaded:?}");
    let name = format!("127.0.0.1:{}/team/box:v1", registry.port);
    let pulled = host.docker(&["pull", &name])?;
    ensure!(pulled.contains("Digest: sha256:"), "{pulled:?}");
    ensure!(host.docker(&["run", "--rm", &name, "echo", "from the registry"])?.trim() == "from the registry");
    let missing = host.refusal(&["pull", &format!("127.0.0.1:{}/team/nothing:v1", registry.port)])?;
    ensure!(missing.contains("not found") || missing.contains("does not exist"), "{missing:?}");
    drop(registry);
    lab.finish()
}

/// Debian's registry in the host's network namespace.
struct Registry {
    process: std::process::Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Registry {
    fn start(host: &rswarm_tests::host::Host) -> Result<Registry> {
        let (dir, port) = (tempfile::tempdir()?, 5000);
        let config = dir.path().join("config.yml");
        let root = dir.path().display();
        std::fs::write(
            &config,
            format!(
                "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {root}\nhttp:\n  addr: 127.0.0.1:{port}\n"
            ),
        )?;
        let process = host
            .command("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("docker-registry is installed by tests/run")?;
        let registry = Registry { process, port, _dir: dir };
        eventually(Duration::from_secs(10), "the registry answers", || {
            run(host.command("curl").args(["-sSf", &format!("http://127.0.0.1:{port}/v2/")])).map(|_| true)
        })?;
        Ok(registry)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
