//! One container at a time.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::future::join_all;
use rswarm_base::{Classify, Kind};
use rswarm_engine::config::{InjectedFile, RestartName, RestartPolicy};
use rswarm_engine::container::{HealthStatus, Status};
use rswarm_engine::engine::WaitCondition;
use rswarm_engine::error::{CreateError, RemoveError};
use rswarm_engine::exec::ExecConfig;
use rswarm_engine::{ContainerConfig, RemoveOptions};
use rswarm_proto::model::container::{Healthcheck, Mount, ResourceLimits, Ulimit, mount};
use tokio::io::AsyncWriteExt;

use crate::fixture::*;

pub const ALL: &[Test] = &[
    ("a_container_runs_is_waited_for_and_logged", runs),
    ("the_images_command_and_environment_are_defaults", image_defaults),
    ("a_client_that_attached_before_the_start_misses_nothing", attach_first),
    ("standard_input_reaches_the_program", stdin),
    ("a_command_that_cannot_be_executed_leaves_nothing_but_its_reason", failed_start),
    ("a_stop_is_a_signal_then_patience_then_a_kill", stop),
    ("a_kill_is_only_a_kill_when_it_ends_the_container", kill),
    ("a_frozen_container_stands_still_and_can_be_stopped", pause),
    ("a_failing_container_is_restarted_as_often_as_asked", restart_policy),
    ("a_stop_ends_the_wait_for_the_next_start", stop_while_restarting),
    ("a_temporary_container_goes_with_its_volumes", auto_remove),
    ("names_are_unique_and_can_be_changed", names),
    ("a_bad_request_changes_nothing", bad_requests),
    ("a_running_container_is_removed_only_by_force", remove),
    ("volumes_are_filled_kept_and_counted", volumes),
    ("binds_and_memory_are_mounted_as_asked", mounts),
    ("limits_hold_and_can_be_changed", limits),
    ("a_container_is_below_the_cgroup_that_it_asked_for", cgroup_parent),
    ("a_further_process_has_its_own_exit_code", exec),
    ("secrets_are_there_read_only_even_in_a_read_only_container", secrets),
    ("health_follows_the_probes", health),
    ("many_at_once_do_not_disturb_each_other", many),
    ("two_stops_and_a_removal_at_once_all_get_an_answer", concurrent_ends),
];

fn cgroup_parent() -> Result<()> {
    Host::new()?.test(async |engine| {
        let parent = format!("/rswarm-{}/asked", engine.config().daemon_id);
        let asked = |parent: &str| ContainerConfig { cgroup_parent: parent.to_owned(), ..sh("sleep 1000") };
        let id = start(&engine, "web", asked(&parent)).await?;
        let cgroups = fs::read_to_string(format!("/proc/{}/cgroup", engine.inspect(&id)?.state.pid))?;
        ensure!(cgroups.lines().any(|line| line.ends_with(&format!(":{parent}/{id}"))), "{cgroups}");
        ensure!(engine.top(&id, "").await?.processes.len() == 1);
        engine.remove(&id, RemoveOptions { force: true, volumes: true }).await?;
        remove_cgroup(&parent)?;
        let refused = engine.create(None, asked("a/../../b")).await;
        let refused = refused.err().context("a path that leads out")?;
        ensure!(refused.kind() == Kind::InvalidArgument, "{refused}");
        Ok(())
    })
}

/// Fails when something is in it.
fn remove_cgroup(path: &str) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let points =
        mounts.lines().filter(|line| line.split(' ').nth(2).is_some_and(|kind| kind.starts_with("cgroup")));
    for point in points.filter_map(|line| line.split(' ').nth(1)) {
        let dir = format!("{point}{path}");
        if fs::exists(&dir)? {
            fs::remove_dir(&dir).with_context(|| dir.clone())?;
        }
    }
    Ok(())
}

fn runs() -> Result<()> {
    Host::new()?.test(async |engine| {
        let script = "echo out; echo err >&2; hostname; id -u; pwd; exit 7";
        let created = engine.create(Some("web"), sh(script)).await?;
        ensure!(engine.inspect("web")?.state.status == Status::Created);
        let ended = engine.wait("web", WaitCondition::NextExit).await?;
        engine.start("web").await?;
        let waited = ended.await;
        ensure!(waited.exit_code == 7 && waited.error.is_none(), "{waited:?}");
        let container = engine.inspect(&created.id[..12])?;
        ensure!(container.state.status == Status::Exited && container.state.exit_code == 7);
        ensure!(container.state.pid == 0 && container.state.finished_at > container.state.started_at);
        let text = logs(&engine, "web").await?;
        for line in ["out\n", "err:err\n", &format!("{}\n", &created.id[..12]), "0\n", "/\n"] {
            ensure!(text.contains(line), "no {line:?} in {text:?}");
        }
        expect_actions(&engine, &created.id, &["create", "start", "die"]).await?;
        let again = engine.wait("web", WaitCondition::NotRunning).await?.await;
        ensure!(again.exit_code == 7, "a wait on a stopped one returns at once");
        engine.start("web").await.context("second start")?;
        engine.wait("web", WaitCondition::NotRunning).await?.await;
        ensure!(logs(&engine, "web").await?.matches("out\n").count() == 2, "the log goes on");
        Ok(())
    })
}

fn image_defaults() -> Result<()> {
    Host::new()?.test(async |engine| {
        let mut config = sh("");
        config.spec.args.clear();
        let (code, text) = run_to_end(&engine, "default", config).await?;
        ensure!(code == 0 && text == "hello from the image\n", "{text}");
        let mut config = sh("echo $FROM $MORE $HOME; id; pwd");
        config.spec.env = vec!["MORE=user".into()];
        config.spec.user = "web".into();
        config.spec.workdir = "/srv/made/here".into();
        let (_, text) = run_to_end(&engine, "merged", config).await?;
        ensure!(text.contains("image user /home\n"), "{text}");
        ensure!(text.contains("uid=33(web) gid=34(web)") && text.contains("77(extra)"), "{text}");
        ensure!(text.ends_with("/srv/made/here\n"), "{text}");
        Ok(())
    })
}

fn attach_first() -> Result<()> {
    Host::new()?.test(async |engine| {
        engine.create(Some("fast"), sh("echo first; echo second >&2")).await?;
        let attachment = engine.attach("fast").await?;
        engine.start("fast").await?;
        let stream = attachment.ready().await.context("it was started")?;
        let text = read_frames(stream).await?;
        ensure!(text.contains("first\n") && text.contains("second\n"), "{text:?}");
        engine.create(Some("never"), sh("true")).await?;
        let attachment = engine.attach("never").await?;
        engine.remove("never", RemoveOptions::default()).await?;
        ensure!(attachment.ready().await.is_none(), "it was removed without a start");
        Ok(())
    })
}

fn stdin() -> Result<()> {
    Host::new()?.test(async |engine| {
        let mut config = sh("read line; echo got $line");
        config.spec.open_stdin = true;
        config.spec.stdin_once = true;
        engine.create(Some("cat"), config).await?;
        let attachment = engine.attach("cat").await?;
        engine.start("cat").await?;
        let mut stream = attachment.ready().await.context("it was started")?;
        stream.write_all(b"words\n").await?;
        stream.shutdown().await?;
        let text = read_frames(stream).await?;
        ensure!(text == "got words\n", "{text:?}");
        Ok(())
    })
}

fn failed_start() -> Result<()> {
    Host::new()?.test(async |engine| {
        for (program, code, words) in
            [("/missing", 127, "no such file or directory"), ("nothing", 127, "not found"), ("/etc", 126, "")]
        {
            let mut config = sh("");
            config.spec.args = vec![program.into()];
            let id = engine.create(None, config).await?.id;
            let error = engine.start(&id).await.expect_err("it cannot be executed");
            let text = rswarm_base::Chain(&error).to_string();
            ensure!(
                text.contains(words) && error.exit_code() == code,
                "{program}: {} {text}",
                error.exit_code()
            );
            let state = engine.inspect(&id)?.state.clone();
            ensure!(
                state.status == Status::Created && state.exit_code == code && state.error == text,
                "{state:?}"
            );
        }
        let mut config = sh("");
        config.spec.args = vec!["/missing".into()];
        config.auto_remove = true;
        let id = engine.create(Some("gone"), config).await?.id;
        let removed = engine.wait(&id, WaitCondition::Removed).await?;
        engine.start(&id).await.expect_err("it cannot be executed");
        removed.await;
        ensure!(engine.inspect("gone").is_err(), "a temporary container goes even so");
        Ok(())
    })
}

fn stop() -> Result<()> {
    Host::new()?.test(async |engine| {
        start(&engine, "polite", sh("trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.1; done"))
            .await?;
        wait_for_line(&engine, "polite", "ready").await?;
        let id = engine.inspect("polite")?.id.clone();
        engine.stop("polite", None, None).await?;
        ensure!(engine.inspect("polite")?.state.exit_code == 3);
        ensure!(
            actions(&engine, &id) == ["create", "start", "kill", "die", "stop"],
            "{:?}",
            actions(&engine, &id)
        );
        let again = engine.stop("polite", None, None).await.expect_err("stopped already");
        ensure!(again.kind() == Kind::NotModified);

        start(&engine, "deaf", sh("trap '' TERM; echo ready; while :; do sleep 0.1; done")).await?;
        wait_for_line(&engine, "deaf", "ready").await?;
        let begun = std::time::Instant::now();
        engine.stop("deaf", Some(Duration::from_millis(300)), None).await?;
        ensure!(begun.elapsed() >= Duration::from_millis(300));
        ensure!(engine.inspect("deaf")?.state.exit_code == 137);

        engine.restart("polite", None, None).await?;
        ensure!(engine.inspect("polite")?.state.status == Status::Running, "a restart starts a stopped one");
        let mut config = sh("trap 'exit 5' USR1; echo ready; while :; do sleep 0.1; done");
        config.spec.stop_signal = "SIGUSR1".into();
        start(&engine, "own", config).await?;
        wait_for_line(&engine, "own", "ready").await?;
        engine.stop("own", None, None).await?;
        ensure!(engine.inspect("own")?.state.exit_code == 5);
        Ok(())
    })
}

fn kill() -> Result<()> {
    Host::new()?.test(async |engine| {
        let mut config = sh("trap 'echo hup' HUP; echo ready; while :; do sleep 0.1; done");
        config.restart = RestartPolicy { name: RestartName::Always, max: 0 };
        start(&engine, "loop", config).await?;
        wait_for_line(&engine, "loop", "ready").await?;
        engine.kill("loop", "HUP").await?;
        wait_for_line(&engine, "loop", "hup").await?;
        ensure!(
            engine.kill("loop", "SIGNONSENSE").await.expect_err("no signal").kind() == Kind::InvalidArgument
        );
        engine.kill("loop", "").await?;
        let state = engine.inspect("loop")?.state.clone();
        ensure!(
            state.status == Status::Exited && state.exit_code == 137,
            "killed by hand, not restarted: {state:?}"
        );
        ensure!(engine.kill("loop", "").await.expect_err("not running").kind() == Kind::Conflict);
        Ok(())
    })
}

fn pause() -> Result<()> {
    Host::new()?.test(async |engine| {
        let script = "trap 'exit 4' TERM; echo ready; while :; do sleep 0.05; done";
        start(&engine, "still", sh(script)).await?;
        wait_for_line(&engine, "still", "ready").await?;
        engine.pause("still").await?;
        ensure!(engine.inspect("still")?.state.status == Status::Paused);
        ensure!(engine.pause("still").await.expect_err("paused").to_string().contains("already paused"));
        ensure!(engine.attach("still").await.expect_err("paused").kind() == Kind::Conflict);
        engine.unpause("still").await?;
        ensure!(engine.unpause("still").await.expect_err("runs").to_string().contains("is not paused"));
        engine.pause("still").await?;
        engine.stop("still", None, None).await?;
        ensure!(engine.inspect("still")?.state.exit_code == 4, "thawed to hear the signal");
        start(&engine, "frozen", sh("sleep 100")).await?;
        engine.pause("frozen").await?;
        engine.kill("frozen", "KILL").await?;
        ensure!(engine.inspect("frozen")?.state.exit_code == 137);
        Ok(())
    })
}

fn restart_policy() -> Result<()> {
    Host::new()?.test(async |engine| {
        let mut config = sh("echo again; exit 9");
        config.restart = RestartPolicy { name: RestartName::OnFailure, max: 2 };
        start(&engine, "flaky", config).await?;
        wait_until(&engine, "flaky", |container| {
            container.exits == 3 && container.state.status == Status::Exited
        })
        .await?;
        let container = engine.inspect("flaky")?;
        ensure!(container.restart_count == 2 && container.state.exit_code == 9, "{container:?}");
        ensure!(logs(&engine, "flaky").await? == "again\nagain\nagain\n");
        Ok(())
    })
}

fn stop_while_restarting() -> Result<()> {
    Host::new()?.test(async |engine| {
        let mut config = sh("exit 1");
        config.restart = RestartPolicy { name: RestartName::Always, max: 0 };
        start(&engine, "loop", config).await?;
        wait_until(&engine, "loop", |container| container.restart_count >= 4).await?;
        wait_for(&engine, "loop", Status::Restarting).await?;
        engine.stop("loop", None, None).await?;
        let count = engine.inspect("loop")?.restart_count;
        ensure!(engine.inspect("loop")?.state.status == Status::Exited);
        tokio::time::sleep(Duration::from_millis(1500)).await;
        ensure!(engine.inspect("loop")?.restart_count == count, "it stays stopped");
        Ok(())
    })
}

fn auto_remove() -> Result<()> {
    Host::new()?.test(async |engine| {
        let mut config = sh("exit 6");
        config.auto_remove = true;
        config.spec.mounts = vec![volume("", "/anonymous"), volume("named", "/named")];
        let id = engine.create(Some("temp"), config).await?.id;
        ensure!(engine.list_volumes().len() == 2);
        let removed = engine.wait(&id, WaitCondition::Removed).await?;
        engine.start(&id).await?;
        let waited = removed.await;
        ensure!(waited.exit_code == 6 && waited.error.is_none(), "{waited:?}");
        ensure!(engine.inspect("temp").is_err());
        let left: Vec<String> = engine.list_volumes().iter().map(|volume| volume.name.clone()).collect();
        ensure!(left == ["named"], "{left:?}");
        expect_actions(&engine, &id, &["create", "start", "die", "destroy"]).await?;
        Ok(())
    })
}

fn names() -> Result<()> {
    Host::new()?.test(async |engine| {
        let first = engine.create(Some("/web"), sh("true")).await?.id;
        let error = engine.create(Some("web"), sh("true")).await.expect_err("taken");
        ensure!(error.kind() == Kind::Conflict && error.to_string().contains(&first), "{error}");
        engine.rename("web", "api").await?;
        let second = engine.create(Some("web"), sh("true")).await?.id;
        ensure!(engine.inspect("api")?.id == first && engine.inspect("web")?.id == second);
        ensure!(engine.rename("api", "web").await.expect_err("taken").kind() == Kind::Conflict);
        ensure!(engine.rename("api", "_").await.expect_err("bad").kind() == Kind::InvalidArgument);
        let made_up = engine.create(None, sh("true")).await?.id;
        ensure!(engine.inspect(&made_up)?.name.contains('_'));
        engine.remove("api", RemoveOptions::default()).await?;
        engine.create(Some("api"), sh("true")).await.context("the name is free again")?;
        Ok(())
    })
}

fn bad_requests() -> Result<()> {
    Host::new()?.test(async |engine| {
        let with = |change: fn(&mut ContainerConfig)| {
            let mut config = sh("true");
            change(&mut config);
            config
        };
        let cases: [(&str, Kind, ContainerConfig); 8] = [
            ("No such image: gone:latest", Kind::NotFound, with(|c| c.spec.image = "gone".into())),
            (
                "no command specified",
                Kind::InvalidArgument,
                with(|c| c.spec.entrypoint = vec![String::new()]),
            ),
            ("Minimum memory limit", Kind::InvalidArgument, with(|c| c.resources.memory = 4096)),
            (
                "bind source path does not exist",
                Kind::InvalidArgument,
                with(|c| {
                    c.spec.mounts =
                        vec![Mount { source: "/no/such".into(), target: "/x".into(), ..Mount::default() }];
                }),
            ),
            (
                "Duplicate mount point",
                Kind::InvalidArgument,
                with(|c| {
                    c.spec.mounts = vec![volume("a1", "/x"), volume("b1", "/x/")];
                }),
            ),
            (
                "invalid CapAdd: unknown capability: \"CAP_FLY\"",
                Kind::InvalidArgument,
                with(|c| c.spec.cap_add = vec!["FLY".into()]),
            ),
            (
                "hard limit",
                Kind::InvalidArgument,
                with(|c| {
                    c.spec.ulimits = vec![Ulimit { name: "nofile".into(), soft: 1 << 40, hard: 1 << 40 }];
                }),
            ),
            (
                "AutoRemove",
                Kind::InvalidArgument,
                with(|c| {
                    (c.auto_remove, c.restart.name) = (true, RestartName::Always);
                }),
            ),
        ];
        for (words, kind, mut config) in cases {
            if words == "no command specified" {
                config.spec.args.clear();
            }
            let error = engine.create(Some("bad"), config).await.expect_err(words);
            ensure!(
                error.kind() == kind && rswarm_base::Chain(&error).to_string().contains(words),
                "{error:?}"
            );
        }
        // A network is looked for at the start, as Docker does: it may be the cluster's.
        let nowhere = with(|c| c.network_mode = "nowhere".into());
        let id = engine.create(Some("bad"), nowhere).await.context("created")?.id;
        let error = engine.start(&id).await.expect_err("no network");
        ensure!(rswarm_base::Chain(&error).to_string().contains("network nowhere not found"), "{error:?}");
        engine.remove(&id, RemoveOptions { force: true, volumes: true }).await.context("removed")?;
        let error = engine.create(Some("b/d"), sh("true")).await.expect_err("name");
        ensure!(matches!(error, CreateError::Name(_)));
        ensure!(engine.list().is_empty() && engine.list_volumes().is_empty(), "nothing is left of them");
        engine.create(Some("bad"), sh("true")).await.context("nor of the name")?;
        Ok(())
    })
}

fn remove() -> Result<()> {
    Host::new()?.test(async |engine| {
        let id = start(&engine, "web", sh("sleep 100")).await?;
        let pid = engine.inspect("web")?.state.pid;
        let error = engine.remove("web", RemoveOptions::default()).await.expect_err("it runs");
        ensure!(matches!(error, RemoveError::Running { .. }), "{error}");
        engine.remove("web", RemoveOptions { force: true, volumes: false }).await?;
        expect_gone(pid).await?;
        ensure!(engine.inspect(&id).expect_err("gone").to_string() == format!("No such container: {id}"));
        let in_use = engine.create(Some("user"), sh("true")).await?.id;
        let options = rswarm_image::RemoveOptions::default();
        let error = engine.remove_image(IMAGE, options).await.expect_err("in use");
        ensure!(error.to_string().contains("must force"), "{error}");
        engine.remove(&in_use, RemoveOptions::default()).await?;
        Ok(())
    })
}

fn volume(source: &str, target: &str) -> Mount {
    Mount {
        r#type: mount::Type::Volume.into(),
        source: source.into(),
        target: target.into(),
        ..Mount::default()
    }
}

fn volumes() -> Result<()> {
    Host::new()?.test(async |engine| {
        let mut config = sh("cat /v/seed; stat -c '%u:%g %a' /v; echo more > /v/more");
        config.spec.mounts = vec![volume("data", "/v")];
        let (_, text) = run_to_end(&engine, "plain", config).await?;
        ensure!(text.contains("err:cat: can't open"), "nothing of the image is at /v: {text}");
        let mut config = sh("cat /srv/data/seed /srv/data/more; stat -c '%u:%g %a' /srv/data");
        config.spec.mounts = vec![volume("data", "/srv/data")];
        let (_, text) = run_to_end(&engine, "kept", config).await?;
        ensure!(
            text.contains("more\n") && !text.contains("from the image"),
            "it was not empty any more: {text}"
        );
        let mut config = sh("cat /srv/data/seed; stat -c '%u:%g %a' /srv/data");
        config.spec.mounts = vec![volume("fresh", "/srv/data")];
        let (_, text) = run_to_end(&engine, "filled", config).await?;
        ensure!(text == "from the image\n33:34 750\n", "{text}");
        let error = engine.remove_volume("fresh", false).await.expect_err("in use");
        ensure!(error.kind() == Kind::Conflict, "{error}");
        let mut config = sh("touch /srv/data/x || echo refused");
        config.volumes_from = vec!["filled:ro".into()];
        let (_, text) = run_to_end(&engine, "from", config).await?;
        ensure!(text.contains("refused"), "{text}");
        engine.remove("filled", RemoveOptions { force: false, volumes: true }).await?;
        ensure!(engine.inspect_volume("fresh").is_ok(), "a named volume stays");
        ensure!(
            engine
                .remove_volume("none", false)
                .await
                .expect_err("none")
                .to_string()
                .contains("no such volume")
        );
        engine.remove_volume("none", true).await?;
        let dir = tempfile::tempdir()?;
        fs::write(dir.path().join("file"), "on the host\n")?;
        let options = [("type", "none"), ("o", "bind"), ("device", &*dir.path().to_string_lossy())];
        let bound = rswarm_engine::volume::VolumeCreate {
            name: "bound".into(),
            options: options.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            ..Default::default()
        };
        engine.create_volume(bound).await?;
        let mut config = sh("cat /b/file");
        config.spec.mounts = vec![volume("bound", "/b")];
        let (_, text) = run_to_end(&engine, "bound", config).await?;
        ensure!(text == "on the host\n", "{text}");
        Ok(())
    })
}

fn mounts() -> Result<()> {
    Host::new()?.test(async |engine| {
        let dir = tempfile::tempdir()?;
        fs::write(dir.path().join("file"), "on the host\n")?;
        let made = dir.path().join("made/here");
        let mut config = sh(
            "cat /in/file; touch /in/x 2>/dev/null || echo refused; touch /made/y && mount | grep -c '^tmpfs on /mem '; \
             touch /etc/x 2>/dev/null || echo sealed; df -m /dev/shm | tail -1 | awk '{print $2}'",
        );
        config.spec.read_only = true;
        config.spec.shm_size = 8 << 20;
        config.spec.mounts = vec![
            Mount {
                source: dir.path().display().to_string(),
                target: "/in".into(),
                read_only: true,
                ..Mount::default()
            },
            Mount {
                source: made.display().to_string(),
                target: "/made".into(),
                create_source: true,
                ..Mount::default()
            },
            Mount { r#type: mount::Type::Tmpfs.into(), target: "/mem".into(), ..Mount::default() },
        ];
        let (_, text) = run_to_end(&engine, "mounts", config).await?;
        ensure!(text.contains("on the host\n") && text.contains("refused\n"), "{text}");
        ensure!(text.contains("sealed\n") && text.contains("\n1\n"), "{text}");
        ensure!(text.trim_end().ends_with('8'), "{text}");
        ensure!(made.join("y").exists());
        Ok(())
    })
}

fn limits() -> Result<()> {
    Host::new()?.test(async |engine| {
        let mut config = sh("echo ready; read never");
        config.resources.memory = 64 << 20;
        config.resources.pids = 20;
        config.spec.open_stdin = true;
        config.spec.ulimits = vec![Ulimit { name: "nofile".into(), soft: 100, hard: 200 }];
        start(&engine, "small", config).await?;
        let script = "ulimit -n; i=0; while [ $i -lt 40 ]; do sleep 5 & i=$((i+1)); done 2>&1 | tail -1";
        let text = exec_text(&engine, "small", script).await?;
        ensure!(text.contains("100\n") && text.to_lowercase().contains("fork"), "{text}");
        let update = rswarm_engine::ContainerUpdate {
            resources: ResourceLimits {
                memory: 32 << 20,
                memory_swap: 32 << 20,
                ..ResourceLimits::default()
            },
            restart: Some(RestartPolicy { name: RestartName::UnlessStopped, max: 0 }),
        };
        engine.update("small", update).await?;
        let container = engine.inspect("small")?;
        ensure!(container.config.resources.memory == 32 << 20 && container.config.resources.pids == 20);
        ensure!(container.config.restart.name == RestartName::UnlessStopped);
        engine.stop("small", Some(Duration::ZERO), None).await?;

        let mut config = sh("x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done");
        config.resources.memory = 16 << 20;
        config.resources.memory_swap = 16 << 20;
        let (code, _) = run_to_end(&engine, "greedy", config).await?;
        let container = engine.inspect("greedy")?;
        ensure!(code == 137 && container.state.oom_killed, "{:?}", container.state);
        expect_actions(&engine, &container.id, &["create", "start", "oom", "die"]).await?;
        Ok(())
    })
}

async fn exec_text(engine: &rswarm_engine::Engine, reference: &str, script: &str) -> Result<String> {
    let command = ["sh", "-c", script].map(str::to_owned).to_vec();
    let config = ExecConfig { command, attach_stdout: true, attach_stderr: true, ..ExecConfig::default() };
    let id = engine.exec_create(reference, config).await?;
    read_frames(engine.exec_start(&id, None).await?).await
}

fn exec() -> Result<()> {
    Host::new()?.test(async |engine| {
        let mut config = sh("sleep 100");
        config.spec.env = vec!["OWN=1".into()];
        start(&engine, "web", config).await?;
        let exec = ExecConfig {
            command: ["sh", "-c", "echo $OWN $MORE; id -un; pwd; exit 12"].map(str::to_owned).to_vec(),
            env: vec!["MORE=2".into()],
            user: "web".into(),
            workdir: "/tmp".into(),
            attach_stdout: true,
            ..ExecConfig::default()
        };
        let id = engine.exec_create("web", exec.clone()).await?;
        ensure!(engine.exec_inspect(&id)?.exit_code.is_none());
        let text = read_frames(engine.exec_start(&id, None).await?).await?;
        ensure!(text == "1 2\nweb\n/tmp\n", "{text:?}");
        let done = engine.exec_inspect(&id)?;
        ensure!(done.exit_code == Some(12) && !done.running && done.pid > 0, "{done:?}");
        ensure!(engine.exec_start(&id, None).await.expect_err("once").kind() == Kind::Conflict);
        let empty = ExecConfig::default();
        ensure!(engine.exec_create("web", empty).await.expect_err("empty").kind() == Kind::InvalidArgument);
        engine.stop("web", Some(Duration::ZERO), None).await?;
        ensure!(engine.exec_create("web", exec).await.expect_err("stopped").kind() == Kind::Conflict);
        Ok(())
    })
}

fn secrets() -> Result<()> {
    Host::new()?.test(async |engine| {
        let mut config = sh("cat /run/secrets/key /app/config.ini; stat -c '%a %u:%g' /run/secrets/key; \
                             (echo x > /run/secrets/key) 2>/dev/null || echo sealed; ls -A /dev | grep -c rswarm");
        config.spec.read_only = true;
        config.files = vec![
            InjectedFile {
                target: "/run/secrets/key".into(),
                uid: 33,
                gid: 34,
                mode: 0o440,
                data: b"hush\n".to_vec(),
            },
            InjectedFile {
                target: "/app/config.ini".into(),
                uid: 0,
                gid: 0,
                mode: 0o444,
                data: b"a=1\n".to_vec(),
            },
        ];
        let (_, text) = run_to_end(&engine, "secret", config).await?;
        ensure!(text == "hush\na=1\n440 33:34\nsealed\n0\n", "{text:?}");
        Ok(())
    })
}

fn health() -> Result<()> {
    Host::new()?.test(async |engine| {
        let mut config = sh("touch /tmp/well; sleep 100");
        config.spec.healthcheck = Some(Healthcheck {
            test: vec!["CMD-SHELL".into(), "echo probed; test -e /tmp/well".into()],
            interval: 50_000_000,
            timeout: 5_000_000_000,
            retries: 2,
            ..Healthcheck::default()
        });
        start(&engine, "well", config).await?;
        let is = |wanted: HealthStatus| {
            move |container: &rswarm_engine::Container| {
                container.state.health.as_ref().is_some_and(|health| health.status == wanted)
            }
        };
        wait_until(&engine, "well", is(HealthStatus::Healthy)).await?;
        exec_text(&engine, "well", "rm /tmp/well").await?;
        wait_until(&engine, "well", is(HealthStatus::Unhealthy)).await?;
        let container = engine.inspect("well")?;
        let health = container.state.health.as_ref().context("health")?;
        ensure!(
            health.failing_streak >= 2 && health.log.iter().all(|probe| probe.output == "probed\n"),
            "{health:?}"
        );
        let seen = actions(&engine, &container.id);
        for wanted in ["health_status: healthy", "health_status: unhealthy"] {
            ensure!(seen.iter().any(|action| action == wanted), "{seen:?}");
        }
        Ok(())
    })
}

fn many() -> Result<()> {
    Host::new()?.test(async |engine| {
        let runs = (0..12).map(|n| {
            let engine = engine.clone();
            async move {
                let name = format!("c{n}");
                run_to_end(&engine, &name, sh(&format!("echo {n}; exit {n}"))).await
            }
        });
        for (n, result) in join_all(runs).await.into_iter().enumerate() {
            ensure!(result? == (i32::try_from(n)?, format!("{n}\n")));
        }
        Ok(())
    })
}

fn concurrent_ends() -> Result<()> {
    Host::new()?.test(async |engine| {
        start(&engine, "web", sh("trap '' TERM; while :; do sleep 0.1; done")).await?;
        let options = RemoveOptions { force: true, volumes: false };
        let long = Some(Duration::from_secs(30));
        let (first, second, removed, again) = tokio::join!(
            engine.stop("web", long, None),
            engine.stop("web", long, None),
            engine.remove("web", options),
            engine.remove("web", options),
        );
        first?;
        second?;
        removed?;
        let again = again.expect_err("one of two removals");
        ensure!(matches!(again, RemoveError::InProgress(_) | RemoveError::Lookup(_)), "{again}");
        ensure!(engine.list().is_empty());
        Ok(())
    })
}
