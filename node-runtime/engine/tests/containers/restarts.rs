//! Daemons that are killed, at any moment, and come back.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt;
use nix::sys::signal::Signal;
use rswarm_base::Scope;
use rswarm_engine::config::{InjectedFile, RestartName, RestartPolicy};
use rswarm_engine::container::{HealthStatus, Status};
use rswarm_engine::engine::WaitCondition;
use rswarm_engine::exec::ExecConfig;
use rswarm_engine::logs::LogOptions;
use rswarm_engine::{Engine, RemoveOptions};
use rswarm_proto::model::container::Healthcheck;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::fixture::*;

pub const ALL: &[Test] = &[
    ("a_container_outlives_its_daemon", outlives),
    ("an_exit_that_no_daemon_saw_is_known", missed_exit),
    ("a_start_that_was_not_recorded_is_known", forgotten_start),
    ("a_shim_that_is_killed_takes_its_container_along", killed_shim),
    ("a_shim_that_stands_still_holds_up_its_own_container_only", silent_shim),
    ("policies_decide_what_starts_with_the_daemon", policies),
    ("what_a_crash_left_half_made_is_removed", half_made),
    ("a_paused_container_is_still_paused", paused),
    ("a_crash_in_the_middle_of_many_creates_loses_no_answer", crash_in_creates),
    ("a_closed_engine_lets_go_of_its_containers", closed),
];

pub const LIVES: &[Life] = &[
    ("counting", |_, engine| Box::pin(counting(engine))),
    ("a pair", |_, engine| Box::pin(start_a_pair(engine))),
    ("short runs", |_, engine| Box::pin(short_runs(engine))),
    ("forgotten starts", |host, engine| Box::pin(forgotten_starts(host, engine))),
    ("policies", |_, engine| Box::pin(all_policies(engine))),
    ("half made", |host, engine| Box::pin(leave_half_made(host, engine))),
    ("paused", |_, engine| Box::pin(pause_one(engine))),
    ("closed", |_, engine| Box::pin(close_gently(engine))),
    ("creates", |_, engine| Box::pin(create_until_killed(engine))),
];

async fn counting(engine: Engine) -> Result<Value> {
    let mut config =
        sh("trap 'echo bye; exit 3' TERM; n=0; while :; do echo $n; n=$((n+1)); sleep 0.05; done");
    config.spec.healthcheck = Some(Healthcheck {
        test: vec!["CMD".into(), "true".into()],
        interval: 50_000_000,
        ..Healthcheck::default()
    });
    start(&engine, "web", config).await?;
    wait_for_line(&engine, "web", "3").await?;
    let container = engine.inspect("web")?;
    Ok(json!([container.id, container.state.pid, container.state.started_at, container.created]))
}

fn outlives() -> Result<()> {
    let host = Host::new()?;
    let before = host.crash("counting")?;
    std::thread::sleep(Duration::from_millis(300));
    host.test(async |engine| {
        let after = engine.inspect("web")?;
        ensure!(after.state.status == Status::Running, "{:?}", after.state);
        ensure!(json!([after.id, after.state.pid, after.state.started_at, after.created]) == before);
        let mut follow = engine.logs("web", LogOptions { follow: true, ..LogOptions::default() }).await?;
        for n in 0..12 {
            let entry = follow.next().await.context("the log goes on")?;
            ensure!(entry.line == format!("{n}\n"), "no line is lost or doubled: {entry:?}");
        }
        let exec = ExecConfig { command: vec!["true".into()], ..ExecConfig::default() };
        let exec = engine.exec_create("web", exec).await?;
        engine.exec_start(&exec, None).await?;
        wait_until(&engine, "web", |container| {
            container.state.health.as_ref().is_some_and(|health| health.status == HealthStatus::Healthy)
        })
        .await?;
        engine.stop("web", None, None).await?;
        ensure!(engine.inspect("web")?.state.exit_code == 3);
        Ok(())
    })
}

async fn short_runs(engine: Engine) -> Result<Value> {
    start(&engine, "web", sh("sleep 0.4; echo done; exit 42")).await?;
    let mut config = sh("sleep 0.4");
    config.auto_remove = true;
    start(&engine, "temp", config).await?;
    Ok(json!([engine.inspect("web")?.state.pid, engine.inspect("temp")?.state.pid]))
}

fn missed_exit() -> Result<()> {
    let host = Host::new()?;
    let processes: Vec<i32> = serde_json::from_value(host.crash("short runs")?)?;
    processes.into_iter().try_for_each(await_end)?;
    host.test(async |engine| {
        let container = engine.inspect("web")?;
        ensure!(
            container.state.status == Status::Exited && container.state.exit_code == 42,
            "{:?}",
            container.state
        );
        ensure!(logs(&engine, "web").await? == "done\n");
        ensure!(engine.wait("web", WaitCondition::NotRunning).await?.await.exit_code == 42);
        expect_actions(&engine, &container.id, &["die"]).await?;
        ensure!(engine.inspect("temp").is_err(), "a temporary container that has ended goes");
        Ok(())
    })
}

/// The records as they are before the starts, and the processes after.
async fn forgotten_starts(host: &Host, engine: Engine) -> Result<Value> {
    let mut temporary = sh("sleep 0.4");
    temporary.auto_remove = true;
    let mut records = BTreeMap::new();
    for (name, config) in [("web", sh("sleep 100")), ("temp", temporary)] {
        let id = engine.create(Some(name), config).await?.id;
        let path = host.data_root().join("containers").join(&id).join("container.json");
        records.insert(path.clone(), fs::read_to_string(path)?);
        engine.start(name).await?;
    }
    Ok(json!([records, engine.inspect("web")?.state.pid, engine.inspect("temp")?.state.pid]))
}

fn forgotten_start() -> Result<()> {
    let host = Host::new()?;
    let (records, web, temp): (BTreeMap<PathBuf, String>, i32, i32) =
        serde_json::from_value(host.crash("forgotten starts")?)?;
    // As if the daemon had been killed before they reached the disk.
    records.iter().try_for_each(|(path, record)| fs::write(path, record))?;
    await_end(temp)?;
    host.test(async |engine| {
        let state = engine.inspect("web")?.state.clone();
        ensure!(state.status == Status::Running && state.pid == web, "{state:?}");
        ensure!(engine.inspect("temp").is_err(), "a temporary container that has ended goes");
        Ok(())
    })
}

fn killed_shim() -> Result<()> {
    Host::new()?.test(async |engine| {
        start(&engine, "web", sh("sleep 100")).await?;
        let pid = engine.inspect("web")?.state.pid;
        let ended = engine.wait("web", WaitCondition::NextExit).await?;
        kill_process(parent(pid)?)?;
        ensure!(ended.await.exit_code == 137, "killed with its shim");
        expect_gone(pid).await.context("the container does not outlive its shim")?;
        let why = engine.inspect("web")?.state.error.clone();
        ensure!(why.contains("shim was killed"), "{why}");
        engine.start("web").await.context("it can be started again")?;
        Ok(())
    })
}

async fn start_a_pair(engine: Engine) -> Result<Value> {
    for name in ["web", "db"] {
        start(&engine, name, sh("trap 'exit 3' TERM; while :; do sleep 0.05; done")).await?;
    }
    Ok(json!(parent(engine.inspect("web")?.state.pid)?))
}

fn silent_shim() -> Result<()> {
    let host = Host::new()?;
    let shim: i32 = serde_json::from_value(host.crash("a pair")?)?;
    let signal = |signal| nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), signal);
    signal(Signal::SIGSTOP)?;
    let tested = host.test(async |engine| {
        ensure!(engine.inspect("web")?.state.status == Status::Running, "as its record says");
        engine.stop("db", None, None).await?;
        ensure!(engine.inspect("db")?.state.exit_code == 3, "the other one is within reach");
        let (stopped, resumed) =
            tokio::join!(engine.stop("web", None, None), async { signal(Signal::SIGCONT) });
        resumed?;
        stopped?;
        ensure!(engine.inspect("web")?.state.exit_code == 3, "{:?}", engine.inspect("web")?.state);
        Ok(())
    });
    // Its container would outlive a test that failed. Gone is fine.
    let _ = signal(Signal::SIGCONT);
    tested
}

async fn all_policies(engine: Engine) -> Result<Value> {
    for (name, restart, stop) in [
        ("always", RestartName::Always, true),
        ("unless", RestartName::UnlessStopped, false),
        ("stopped", RestartName::UnlessStopped, true),
        ("never", RestartName::No, false),
    ] {
        let mut config = sh("sleep 100");
        config.restart = RestartPolicy { name: restart, max: 0 };
        start(&engine, name, config).await?;
        if stop {
            engine.stop(name, Some(Duration::ZERO), None).await?;
        }
    }
    let mut config = sh("sleep 100");
    config.restart = RestartPolicy { name: RestartName::Always, max: 0 };
    engine.create(Some("unstarted"), config.clone()).await?;
    config.network_mode = "container:unless".into();
    start(&engine, "joined", config).await?;
    engine.stop("joined", Some(Duration::ZERO), None).await?;
    Ok(json!([parent(engine.inspect("unless")?.state.pid)?, parent(engine.inspect("never")?.state.pid)?]))
}

fn policies() -> Result<()> {
    let host = Host::new()?;
    let shims: Vec<i32> = serde_json::from_value(host.crash("policies")?)?;
    // As when the machine is switched off: shims and containers are gone, and nobody recorded it.
    for shim in shims {
        kill_process(shim)?;
        await_end(shim)?;
    }
    host.test(async |engine| {
        wait_for(&engine, "always", Status::Running).await?;
        wait_for(&engine, "unless", Status::Running).await?;
        wait_for(&engine, "joined", Status::Running)
            .await
            .context("after the one whose network it shares")?;
        for (name, status) in
            [("stopped", Status::Exited), ("never", Status::Exited), ("unstarted", Status::Created)]
        {
            ensure!(
                engine.inspect(name)?.state.status == status,
                "{name}: {:?}",
                engine.inspect(name)?.state
            );
        }
        ensure!(engine.inspect("never")?.state.exit_code == 137, "killed with its shim while no daemon ran");
        Ok(())
    })
}

async fn leave_half_made(host: &Host, engine: Engine) -> Result<Value> {
    let id = engine.create(Some("web"), sh("true")).await?.id;
    // As a crash between the layers and the record, and one in the middle of a removal.
    engine.images().prepare("half", &engine.inspect(&id)?.image_id).await?;
    fs::create_dir(host.data_root().join("containers/half"))?;
    fs::write(host.data_root().join("containers/half/hosts"), "")?;
    fs::create_dir_all(host.data_root().join("volumes/half/_data"))?;
    let mut config = sh("true");
    config.files =
        vec![InjectedFile { target: "/x".into(), uid: 0, gid: 0, mode: 0o400, data: b"hush".to_vec() }];
    engine.create(Some("secret"), config).await?;
    // A shim whose record was erased.
    start(&engine, "strays", sh("sleep 100")).await?;
    // A new name is on disk when it is told, and what came before it: a start need not be.
    engine.rename("strays", "stray").await?;
    fs::remove_dir_all(&engine.inspect("stray")?.dir)?;
    Ok(json!(engine.inspect("stray")?.state.pid))
}

fn half_made() -> Result<()> {
    let host = Host::new()?;
    let stray: i32 = serde_json::from_value(host.crash("half made")?)?;
    host.test(async |engine| {
        let names: Vec<String> = engine.list().iter().map(|container| container.name.clone()).collect();
        ensure!(names == ["secret", "web"], "{names:?}");
        expect_gone(stray).await?;
        ensure!(engine.images().snapshot_keys().len() == 2, "{:?}", engine.images().snapshot_keys());
        ensure!(!host.data_root().join("containers/half").exists());
        ensure!(engine.list_volumes().is_empty() && !host.data_root().join("volumes/half").exists());
        let error = engine.start("secret").await.expect_err("its files are gone");
        ensure!(error.to_string().contains("held in memory"), "{error}");
        let (code, _) = run_to_end(&engine, "works", sh("exit 0")).await?;
        ensure!(code == 0);
        Ok(())
    })
}

async fn pause_one(engine: Engine) -> Result<Value> {
    start(&engine, "still", sh("sleep 100")).await?;
    engine.pause("still").await?;
    Ok(Value::Null)
}

fn paused() -> Result<()> {
    let host = Host::new()?;
    host.crash("paused")?;
    host.test(async |engine| {
        ensure!(engine.inspect("still")?.state.status == Status::Paused);
        engine.unpause("still").await?;
        ensure!(engine.inspect("still")?.state.status == Status::Running);
        Ok(())
    })
}

/// Answers are collected while more creates and starts are under way; the daemon dies among them.
async fn create_until_killed(engine: Engine) -> Result<Value> {
    let scope = Scope::root("creates");
    let (answers, mut answered) = mpsc::unbounded_channel();
    for n in 0..16 {
        let (engine, answers) = (engine.clone(), answers.clone());
        scope.spawn(async move {
            if let Ok(created) = engine.create(Some(&format!("c{n}")), sh("sleep 100")).await {
                let _ = answers.send((created.id.clone(), false));
                if engine.start(&created.id).await.is_ok() {
                    let _ = answers.send((created.id, true));
                }
            }
        });
    }
    let mut acknowledged = Vec::new();
    while acknowledged.iter().filter(|(_, started)| *started).count() < 4 {
        acknowledged.push(answered.recv().await.context("creates go on")?);
    }
    Ok(json!(acknowledged))
}

fn crash_in_creates() -> Result<()> {
    let host = Host::new()?;
    let acknowledged: Vec<(String, bool)> = serde_json::from_value(host.crash("creates")?)?;
    host.test(async |engine| {
        for (id, started) in acknowledged {
            let container = engine.inspect(&id).context("an acknowledged create is lost")?;
            ensure!(!started || container.state.status == Status::Running, "{:?}", container.state);
        }
        Ok(())
    })
}

async fn close_gently(engine: Engine) -> Result<Value> {
    start(&engine, "web", sh("sleep 100")).await?;
    let pid = engine.inspect("web")?.state.pid;
    engine.close().await;
    ensure!(engine.stop("web", None, None).await.is_err(), "nobody serves it any more");
    Ok(json!(pid))
}

fn closed() -> Result<()> {
    let host = Host::new()?;
    let pid = host.crash("closed")?;
    host.test(async |engine| {
        ensure!(json!(engine.inspect("web")?.state.pid) == pid);
        engine.remove("web", RemoveOptions { force: true, volumes: false }).await?;
        Ok(())
    })
}
