//! Init, other runtimes, the keeper, and logs on a real disk.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rswarm_shim::client::{CallError, LaunchError};
use rswarm_shim::log::local;
use rswarm_shim::{LogFormat, RuntimeBinary, ShimState};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::cases::{Case, exec};
use crate::fixture::{Container, DEADLINE, eventually, read_frames};

/// Every test with its name.
pub const ALL: &[(&str, Case)] = &[
    ("init_reaps_and_passes_the_code_on", || Box::pin(init_reaps_and_passes_the_code_on())),
    ("init_forwards_signals", || Box::pin(init_forwards_signals())),
    ("init_gives_the_command_the_terminal", || Box::pin(init_gives_the_command_the_terminal())),
    ("runc_runs_containers", || Box::pin(another_runtime_runs_containers("runc"))),
    ("crun_runs_containers", || Box::pin(another_runtime_runs_containers("crun"))),
    ("a_container_that_changed_its_identity_dies_with_its_shim", || {
        Box::pin(a_container_that_changed_its_identity_dies_with_its_shim())
    }),
    ("a_keeper_is_replaced", || Box::pin(a_keeper_is_replaced())),
    ("a_local_log_is_complete", || Box::pin(a_local_log_is_complete())),
    ("a_container_does_not_wait_for_its_log", || Box::pin(a_container_does_not_wait_for_its_log())),
    ("hooks_run_after_start_and_after_the_end", || Box::pin(hooks_run_after_start_and_after_the_end())),
];

fn with_init(script: &str) -> Result<Container> {
    let mut container = Container::new(&["/sbin/docker-init", "--", "sh", "-c", script])?;
    let init = json!({"destination": "/sbin/docker-init", "type": "bind", "source": std::env::current_exe()?, "options": ["bind", "ro"]});
    container.spec["mounts"].as_array_mut().context("mounts")?.push(init);
    Ok(container)
}

async fn init_reaps_and_passes_the_code_on() -> Result<()> {
    let script = "(sleep 0.1 &); sleep 0.4; cat /proc/1/cmdline | tr '\\0' ' '; echo; \
                  for s in /proc/[0-9]*/stat; do cut -d' ' -f3 $s; done 2>/dev/null | grep -c Z; exit 5";
    let outcome = with_init(script)?.run().await?;
    ensure!(outcome.exit.code == 5, "{:?} {}", outcome.exit, outcome.stderr);
    ensure!(outcome.stdout.starts_with("/sbin/docker-init -- sh -c"), "{}", outcome.stdout);
    ensure!(outcome.stdout.ends_with("\n0\n"), "a zombie is left: {}", outcome.stdout);
    ensure!(with_init("kill -9 $$")?.run().await?.exit.code == 137);
    let mut missing = with_init("")?;
    missing.spec["process"]["args"] = json!(["/sbin/docker-init", "--", "/none/such"]);
    let outcome = missing.run().await?;
    ensure!(
        outcome.exit.code == 127 && outcome.stderr.contains("exec /none/such failed"),
        "{}",
        outcome.stderr
    );
    // Nothing of the container can change the program.
    let outcome =
        with_init("(echo x > /sbin/docker-init) 2>&1 | grep -c -i -E 'read-only|busy'")?.run().await?;
    ensure!(outcome.stdout == "1\n", "{}{}", outcome.stdout, outcome.stderr);
    Ok(())
}

async fn init_forwards_signals() -> Result<()> {
    for (signal, code) in [(15, 7), (34, 8), (1, 9)] {
        let container = with_init(
            "trap 'exit 7' TERM; trap 'exit 8' 34; trap 'exit 9' HUP; echo up; while :; do sleep 0.05; done",
        )?;
        let shim = container.create().await?;
        shim.start().await?;
        eventually("it is up", || container.log().is_ok_and(|log| !log.is_empty())).await?;
        shim.kill(signal, false).await?;
        let exit = timeout(DEADLINE, shim.wait()).await??;
        ensure!(exit.code == code, "signal {signal} gave {}", exit.code);
        container.finish(&shim).await?;
    }
    Ok(())
}

async fn init_gives_the_command_the_terminal() -> Result<()> {
    let mut container = with_init("read x; echo got $x; exit 3")?;
    (container.launch.tty, container.launch.open_stdin) = (true, true);
    container.spec["process"]["terminal"] = true.into();
    let shim = container.create().await?;
    let mut stream = shim.attach().await?;
    shim.start().await?;
    stream.write_all(b"word\n").await?;
    let mut output = String::new();
    timeout(DEADLINE, stream.read_to_string(&mut output)).await??;
    ensure!(output.contains("got word"), "{output:?}");
    ensure!(shim.wait().await?.code == 3);
    container.finish(&shim).await
}

/// Where the program is; without it the test is skipped, but not in CI.
fn program(name: &str) -> Result<Option<RuntimeBinary>> {
    let places = ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"];
    let found = places.iter().map(|dir| Path::new(dir).join(name)).find(|path| path.exists());
    if found.is_none() {
        ensure!(!std::env::var("CI").is_ok_and(|value| value == "true"), "{name} is missing");
        println!("    skipped: no {name}");
    }
    Ok(found.map(|path| RuntimeBinary { path, args: Vec::new() }))
}

async fn another_runtime_runs_containers(name: &str) -> Result<()> {
    let Some(binary) = program(name)? else { return Ok(()) };
    let with = |args: &[&str]| -> Result<Container> {
        let mut container = Container::new(args)?;
        container.launch.runtime = Some(binary.clone());
        // Debian's crun refuses machines with both hierarchies: its shim does not see the second.
        container.launch.detach_mounts.push("/sys/fs/cgroup/unified".into());
        Ok(container)
    };
    let script = "id -u; id -g; hostname; echo $HOME; echo oops >&2; exit 6";
    let probe = with(&["true"])?;
    match probe.create().await {
        Ok(shim) => probe.finish(&shim).await?,
        Err(error) if format!("{error:#}").contains("hybrid mode not supported") => {
            println!("    skipped: {name} does not know hybrid cgroups");
            return Ok(());
        }
        Err(error) => return Err(error),
    }
    let mut container = with(&["sh", "-c", script])?;
    container.launch.user = Some("web".to_owned());
    let outcome = container.run().await?;
    ensure!(
        outcome.exit.code == 6 && outcome.stdout == "33\n34\nbox\n/home\n",
        "{:?} {}",
        outcome.exit,
        outcome.stdout
    );
    ensure!(outcome.stderr == "oops\n" && container.log()?.len() == 5);

    let missing = with(&["nothing-here"])?;
    let error = missing.create().await.err().context("it was created")?;
    let error: &LaunchError = error.downcast_ref().context("another error")?;
    ensure!(error.exit_code() == 127 && error.to_string().contains("nothing-here"), "{error}");
    missing.nothing_is_left().await?;

    let container = with(&["sleep", "1000"])?;
    let shim = container.create().await?;
    shim.start().await?;
    let request = exec(&["sh", "-c", "cat /proc/1/cmdline | tr '\\0' ' '; exit 4"]);
    let (_, mut stream) = shim.exec(request.clone()).await?;
    ensure!(read_frames(&mut stream).await?.0.starts_with("sleep 1000"));
    ensure!(timeout(DEADLINE, shim.exec_wait(&request.id)).await??.code == 4);
    let error = shim.exec(exec(&["nothing-here"])).await.err().context("it ran")?;
    ensure!(matches!(&error, CallError::Runtime(failure) if failure.exit_code() == 127), "{error}");
    let mut request =
        exec(&["sh", "-c", "while [ \"$(stty size)\" != '20 70' ]; do sleep 0.01; done; stty size; tty"]);
    (request.tty, request.console_size) = (true, Some((70, 20)));
    let (_, mut stream) = shim.exec(request).await?;
    let mut output = String::new();
    timeout(DEADLINE, stream.read_to_string(&mut output)).await??;
    ensure!(output.contains("20 70") && output.contains("/dev/pts/"), "{output:?}");
    shim.pause().await?;
    ensure!(matches!(shim.state().await?, ShimState::Running { paused: true, .. }));
    shim.resume().await?;
    shim.kill(9, false).await?;
    ensure!(timeout(DEADLINE, shim.wait()).await??.code == 137);
    container.finish(&shim).await?;

    let container = with(&["sh", "-c", "trap 'exit 7' TERM; echo up; while :; do sleep 0.05; done"])?;
    let shim = container.create().await?;
    shim.start().await?;
    eventually("it is up", || container.log().is_ok_and(|log| !log.is_empty())).await?;
    shim.kill(15, false).await?;
    ensure!(timeout(DEADLINE, shim.wait()).await??.code == 7, "the signal was not heard");
    container.finish(&shim).await?;

    let mut container = with(&["sh", "-c", "tty; exit 3"])?;
    (container.launch.tty, container.launch.console_size) = (true, Some((90, 30)));
    let shim = container.create().await?;
    let mut stream = shim.attach().await?;
    shim.start().await?;
    let mut output = String::new();
    timeout(DEADLINE, stream.read_to_string(&mut output)).await??;
    ensure!(output.contains("/dev/"), "{output:?}");
    ensure!(shim.wait().await?.code == 3);
    container.finish(&shim).await
}

async fn a_container_that_changed_its_identity_dies_with_its_shim() -> Result<()> {
    // A change of identity clears the parent death signal.
    let container = Container::new(&["su", "web", "-c", "exec sleep 1000"])?;
    let shim = container.create().await?;
    let pid = shim.start().await?.pid;
    let uid = || fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    eventually("its identity is changed", || uid().contains("Uid:\t33")).await?;
    kill(Pid::from_raw(container.processes()[0]), Signal::SIGKILL)?;
    eventually("the container is gone", || !Path::new(&format!("/proc/{pid}")).exists()).await?;
    rswarm_shim::client::clear_remains(&container.launch).await?;
    container.nothing_is_left().await
}

async fn a_keeper_is_replaced() -> Result<()> {
    let container = Container::new(&["sleep", "1000"])?;
    let shim = container.create().await?;
    shim.start().await?;
    let processes = container.processes();
    ensure!(processes.len() == 2, "{processes:?}");
    kill(Pid::from_raw(processes[1]), Signal::SIGKILL)?;
    eventually("there is another", || {
        let now = container.processes();
        now.len() == 2 && !now.contains(&processes[1])
    })
    .await?;
    shim.kill(9, false).await?;
    ensure!(timeout(DEADLINE, shim.wait()).await??.code == 137);
    container.finish(&shim).await
}

fn local_log(container: &Container) -> Result<(String, u64)> {
    let bytes = fs::read(container.path("log"))?;
    let (mut rest, mut text, mut dropped) = (bytes.as_slice(), String::new(), 0);
    loop {
        match local::decode(rest) {
            local::Found::Record(record) => {
                text.push_str(std::str::from_utf8(record.text)?);
                text.push_str(if record.partial { "" } else { "\n" });
                dropped += u64::from(record.dropped);
                rest = &rest[record.length..];
            }
            local::Found::Garbage(length) if length > 0 => rest = &rest[length..],
            local::Found::Garbage(_) | local::Found::Begun => return Ok((text, dropped)),
        }
    }
}

async fn a_local_log_is_complete() -> Result<()> {
    let mut container = Container::sh("seq 1 20000; printf end")?;
    container.launch.log.as_mut().context("log")?.format = LogFormat::Local;
    ensure!(container.run().await?.exit.code == 0);
    let wanted: String = (1..=20000).map(|number| format!("{number}\n")).collect();
    ensure!(local_log(&container)? == (format!("{wanted}end"), 0));
    Ok(())
}

async fn a_container_does_not_wait_for_its_log() -> Result<()> {
    let mut container = Container::sh("seq 1 200000")?;
    let log = container.launch.log.as_mut().context("log")?;
    (log.format, log.buffer) = (LogFormat::Local, Some(64 << 10));
    ensure!(container.run().await?.exit.code == 0);
    let (text, dropped) = local_log(&container)?;
    // What is lost is lost by lines, and told; only losses at the very end are told to nobody.
    ensure!(text.lines().count() as u64 + dropped <= 200_000 && text.starts_with("1\n2\n3\n"));
    ensure!(text.lines().all(|line| line.parse::<u32>().is_ok()), "a line is torn");
    Ok(())
}

async fn hooks_run_after_start_and_after_the_end() -> Result<()> {
    let mut container = Container::sh("sleep 0.2")?;
    let hook = |name: &str| {
        let script = format!("cat > {}", container.path(name).display());
        json!([{"path": "/bin/busybox", "args": ["sh", "-c", script]}])
    };
    container.spec["hooks"] = json!({"poststart": hook("started"), "poststop": hook("stopped")});
    ensure!(container.run().await?.exit.code == 0);
    for (name, status) in [("started", "running"), ("stopped", "stopped")] {
        let state: serde_json::Value = serde_json::from_slice(&fs::read(container.path(name))?)?;
        ensure!(state["status"] == status && state["id"] == container.launch.id.as_str(), "{state}");
    }
    Ok(())
}
