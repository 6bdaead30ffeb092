//! A task's container seen on any manager, wherever it runs.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rswarm_tests::harness::{Lab, eventually};
use rswarm_tests::host::Host;
use rswarm_tests::terminal::Terminal;
use serde_json::Value;

use crate::support::{TaskContainer, cluster, containers_of, converged, deploy};

const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn containers_of_tasks_are_seen_from_every_manager() -> Result<()> {
    let mut lab = cluster(3, 2)?;
    deploy(&lab.hosts[0], "web", 3)?;
    converged(&lab.hosts[0], "web", 3, PATIENCE)?;
    let tasks = containers_of(&lab, "web")?;
    ensure!(tasks.len() == 3, "a task on each node");
    // One that leads and one that does not; of workers nobody is told anything.
    for from in 0..2 {
        for task in &tasks {
            found_by_its_slot(&lab.hosts[from], task)?;
        }
        for task in tasks.iter().filter(|task| task.host != from) {
            everything_is_seen(&lab.hosts[from], &lab.hosts[task.host], task)?;
        }
    }
    let elsewhere = tasks.iter().find(|task| task.host == 0).context("a task on the first host")?;
    is_not_there(&lab.hosts[2], &elsewhere.id)?;
    whoever_leaves_leaves_nothing(&lab, &tasks)?;
    what_a_task_is_stays_the_clusters(&lab, &tasks)?;
    a_node_that_does_not_answer_is_named(&mut lab, &tasks)?;
    lab.hosts[0].docker(&["service", "rm", "web"])?;
    lab.finish()
}

/// Wherever it runs, on the very node too.
fn found_by_its_slot(from: &Host, task: &TaskContainer) -> Result<()> {
    let name = from.docker(&["inspect", "--format", "{{.Name}}", &task.id])?;
    let (slot, _) = name.trim().trim_start_matches('/').rsplit_once('.').context("a task's name")?;
    let found = from.docker(&["inspect", "--format", "{{.Id}}", slot])?;
    ensure!(found.trim() == task.id, "{slot} is {found}");
    Ok(())
}

/// As its own node shows it, to the byte.
fn everything_is_seen(from: &Host, own: &Host, task: &TaskContainer) -> Result<()> {
    let path = |view: &str| format!("/v1.41/containers/{}/{view}", task.id);
    let shown = own.api("GET", &path("json"), "")?;
    ensure!(shown.0 == 200 && from.api("GET", &path("json"), "")? == shown, "{shown:?}");
    let found: Value = serde_json::from_str(&shown.1)?;
    let name = found["Name"].as_str().context("a name")?.trim_start_matches('/');
    for reference in [name, &task.id[..12]] {
        let id = from.docker(&["inspect", "--format", "{{.Id}} {{.State.Status}}", reference])?;
        ensure!(id.trim() == format!("{} running", task.id), "{id}");
    }
    ensure!(from.docker(&["top", name])? == own.docker(&["top", name])?);
    ensure!(from.docker(&["logs", name])? == own.docker(&["logs", name])?);
    ensure!(from.docker(&["diff", name])? == own.docker(&["diff", name])?);
    let stats = from.docker(&["stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}}", name])?;
    ensure!(stats.starts_with(name) && !stats.ends_with(" 0"), "{stats}");
    let copied = |host: &Host| host.docker(&["cp", &format!("{name}:/etc/hostname"), "-"]);
    ensure!(copied(from)? == copied(own)? && copied(from)?.contains("hostname"));
    let missing = from.api("GET", &format!("{}?path=/nowhere", path("archive")), "")?;
    ensure!(
        missing.0 == 404 && missing == own.api("GET", &format!("{}?path=/nowhere", path("archive")), "")?
    );
    Ok(())
}

fn is_not_there(host: &Host, reference: &str) -> Result<()> {
    let (status, body) = host.api("GET", &format!("/containers/{reference}/json"), "")?;
    ensure!(status == 404 && body.contains(&format!("No such container: {reference}")), "{status} {body}");
    Ok(())
}

/// A client that waits for a container that says nothing, and goes away.
fn whoever_leaves_leaves_nothing(lab: &Lab, tasks: &[TaskContainer]) -> Result<()> {
    let there = tasks.iter().find(|task| task.host == 2).context("a task on the worker")?;
    let hosts = [&lab.hosts[0], &lab.hosts[2]];
    let sockets = || hosts.map(|host| sockets(host).unwrap_or_default());
    let before = sockets();
    let mut follow = lab.hosts[0].docker_command(&["logs", "--follow", "--tail", "0", &there.id]);
    let mut client = follow.spawn()?;
    eventually(PATIENCE, "both nodes carry it", || {
        Ok(sockets().iter().zip(&before).all(|(now, before)| now > before))
    })?;
    client.kill()?;
    client.wait()?;
    eventually(PATIENCE, "neither node does any more", || {
        let now = sockets();
        ensure!(now.iter().zip(&before).all(|(now, before)| now <= before), "{before:?}, now {now:?}");
        Ok(true)
    })
}

/// Unix sockets that a host's daemon holds: other connections come and go by themselves.
fn sockets(host: &Host) -> Result<usize> {
    let pid = host.pid().context("a daemon")?;
    let unix = std::fs::read_to_string(format!("/proc/{pid}/net/unix"))?;
    let unix: std::collections::BTreeSet<&str> =
        unix.lines().filter_map(|line| line.split_whitespace().nth(6)).collect();
    let held = std::fs::read_dir(format!("/proc/{pid}/fd"))?.filter_map(|entry| {
        let target = std::fs::read_link(entry.ok()?.path()).ok()?;
        let inode = target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned();
        unix.contains(inode.as_str()).then_some(())
    });
    Ok(held.count())
}

/// Whether a container runs is the cluster's business; what is no task's is nobody else's.
fn what_a_task_is_stays_the_clusters(lab: &Lab, tasks: &[TaskContainer]) -> Result<()> {
    let there = tasks.iter().find(|task| task.host == 2).context("a task on the worker")?;
    for (method, view) in [("POST", "/stop"), ("POST", "/kill"), ("DELETE", "")] {
        let (status, body) = lab.hosts[0].api(method, &format!("/containers/{}{view}", there.id), "")?;
        ensure!(status == 404 && body.contains("No such container"), "{method} {view}: {status} {body}");
    }
    let own = lab.hosts[2].docker(&["create", "--name", "own", "demo:latest"])?;
    is_not_there(&lab.hosts[0], own.trim())?;
    is_not_there(&lab.hosts[0], "own")?;
    lab.hosts[2].docker(&["rm", "own"]).map(drop)
}

fn a_node_that_does_not_answer_is_named(lab: &mut Lab, tasks: &[TaskContainer]) -> Result<()> {
    let there = tasks.iter().find(|task| task.host == 2).context("a task on the worker")?;
    lab.hosts[2].kill()?;
    let (status, body) = lab.hosts[0].api("GET", &format!("/containers/{}/json", there.id), "")?;
    ensure!(status == 503 && body.contains("is on node h3, which does not answer"), "{status} {body}");
    lab.hosts[2].start()?;
    lab.hosts[2].ready()
}

#[test]
fn people_work_in_containers_of_other_nodes() -> Result<()> {
    let mut lab = Lab::start(2)?;
    let audit = lab.dir.join("audit");
    lab.hosts[0].stop()?;
    lab.hosts[0].flags.extend(["--audit-log".to_owned(), audit.display().to_string()]);
    lab.hosts[0].start()?;
    lab.hosts[0].ready()?;
    lab.form_cluster(1)?;
    lab.hosts[1].import_busybox()?;
    let [manager, worker] = &lab.hosts[..] else { unreachable!("two hosts") };
    let say = "while sleep 0.1; do echo tick; done";
    let there = ["--constraint", "node.hostname==h2", "busybox:latest"];
    manager.docker(
        &[&["service", "create", "-d", "--name", "web", "--tty"], &there[..], &["sh", "-c", say]].concat(),
    )?;
    converged(manager, "web", 1, PATIENCE)?;
    let name = worker.docker(&["ps", "--filter", "name=web", "--format", "{{.Names}}"])?.trim().to_owned();

    a_shell_on_a_terminal(manager, &name)?;
    streams_of_an_exec(manager, worker, &name)?;
    attached_to_its_output(manager)?;
    files_go_in_and_out(manager, &lab.dir, &name)?;
    execs_of_others_are_not_there(manager, worker)?;
    let written = std::fs::read_to_string(&audit)?;
    ensure!(written.contains(r#""call":"reach_container""#) && written.contains(&name), "{written}");
    ensure!(written.contains("/exec\"") && written.contains(r#""uid":0"#), "{written}");
    manager.docker(&["service", "rm", "web"])?;
    lab.finish()
}

/// By the name of its slot, as people say it.
fn a_shell_on_a_terminal(manager: &Host, name: &str) -> Result<()> {
    let mut shell =
        Terminal::open(&mut manager.docker_command(&["exec", "-it", "-e", "WHO=me", "web.1", "sh"]))?;
    shell.see("# ")?;
    shell.press("echo $WHO; stty size\r")?;
    shell.see("me\r\n")?;
    shell.see("24 80\r\n")?;
    shell.resize(100, 30)?;
    // The size travels by a call of its own; the task has a terminal too, the first.
    eventually(Duration::from_secs(10), "the container knows the new size", || {
        Ok(manager.docker(&["exec", name, "sh", "-c", "stty size </dev/pts/1"])?.trim() == "30 100")
    })?;
    shell.press("stty size; exit 7\r")?;
    shell.see("30 100\r\n")?;
    ensure!(shell.end()?.code() == Some(7));

    let mut left =
        Terminal::open(&mut manager.docker_command(&["exec", "-it", "--detach-keys", "ctrl-x", name, "sh"]))?;
    left.see("# ")?;
    left.press("\x18")?;
    left.see("read escape sequence")?;
    left.end().map(drop)
}

/// Out and err apart, the exit code, the end of the input, and many bytes both ways.
fn streams_of_an_exec(manager: &Host, worker: &Host, name: &str) -> Result<()> {
    let said =
        manager.docker_command(&["exec", name, "sh", "-c", "echo out; echo err >&2; exit 5"]).output()?;
    ensure!(
        (&said.stdout[..], &said.stderr[..]) == (b"out\n", b"err\n") && said.status.code() == Some(5),
        "{said:?}"
    );
    let missing = |host: &Host| host.docker_command(&["exec", name, "magic"]).output();
    let (away, own) = (missing(manager)?, missing(worker)?);
    ensure!(away.status.code() == Some(127) && away == own, "{away:?}, there {own:?}");

    const BYTES: usize = 16 << 20;
    let sent: Vec<u8> = (0..BYTES).map(|at| (at % 251) as u8).collect();
    let mut cat = manager.docker_command(&["exec", "-i", name, "cat"]);
    let mut cat = cat.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut input = cat.stdin.take().context("its input")?;
    let writer = std::thread::spawn({
        let sent = sent.clone();
        move || input.write_all(&sent)
    });
    let back = cat.wait_with_output()?;
    writer.join().expect("no panic")?;
    ensure!(back.status.success() && back.stdout == sent, "{} bytes came back", back.stdout.len());

    manager.docker(&["exec", "-d", name, "touch", "/tmp/done"])?;
    eventually(PATIENCE, "what nobody waits for is done", || {
        Ok(manager.docker_command(&["exec", name, "ls", "/tmp/done"]).output()?.status.success())
    })
}

fn attached_to_its_output(manager: &Host) -> Result<()> {
    let mut attach = manager.docker_command(&["attach", "--no-stdin", "--sig-proxy=false", "web.1"]);
    let mut attach = attach.stdout(Stdio::piped()).spawn()?;
    let output = BufReader::new(attach.stdout.take().context("its output")?);
    let ticks = output.lines().take(3).collect::<std::io::Result<Vec<_>>>();
    attach.kill()?;
    attach.wait()?;
    ensure!(ticks?.iter().all(|line| line.trim() == "tick"));
    Ok(())
}

fn files_go_in_and_out(manager: &Host, dir: &Path, name: &str) -> Result<()> {
    let (sent, back) = (dir.join("sent"), dir.join("back"));
    std::fs::write(&sent, "by way of a manager")?;
    manager.docker(&["cp", &sent.display().to_string(), &format!("{name}:/tmp/")])?;
    manager.docker(&["cp", "web.1:/tmp/sent", &back.display().to_string()])?;
    ensure!(std::fs::read_to_string(back)? == "by way of a manager");
    Ok(())
}

/// Of a container that is no task's, not even its own node's manager is told.
fn execs_of_others_are_not_there(manager: &Host, worker: &Host) -> Result<()> {
    worker.docker(&["run", "-d", "--init", "--name", "own", "busybox", "sleep", "1000"])?;
    let (status, made) = worker.api("POST", "/v1.41/containers/own/exec", r#"{"Cmd":["true"]}"#)?;
    ensure!(status == 201, "{made}");
    let made: Value = serde_json::from_str(&made)?;
    let path = format!("/v1.41/exec/{}/json", made["Id"].as_str().context("an id")?);
    ensure!(worker.api("GET", &path, "")?.0 == 200);
    let (status, body) = manager.api("GET", &path, "")?;
    ensure!(status == 404 && body.contains("No such exec instance"), "{status} {body}");
    worker.docker(&["rm", "-f", "own"]).map(drop)
}
