//! A published service over three hosts: every one of them answers, the task sees who asks, and no request is lost
//! while tasks come and go.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rswarm_tests::harness::{Lab, eventually, run};
use rswarm_tests::host::Host;

use crate::support::{cluster, containers_of, converged, deploy, fetch_inside, hammer, running_tasks};

const PATIENCE: Duration = Duration::from_secs(60);
/// Requests that a client must have made for its word to count.
const REQUESTS_MIN: usize = 20;

#[test]
fn what_is_published_answers_on_every_host_and_loses_no_request() -> Result<()> {
    let lab = cluster(3, 1)?;
    let first = &lab.hosts[0];
    deploy(first, "client", 1)?;
    let create = ["service", "create", "--detach", "--name", "web", "--replicas", "2", "--network", "app"];
    first.docker(&[&create[..], &["-p", "8080:80", "demo:latest"]].concat())?;
    let create = ["service", "create", "--detach", "--name", "direct", "--endpoint-mode", "dnsrr"];
    first.docker(&[&create[..], &["--replicas", "2", "--network", "app", "demo:latest"]].concat())?;
    converged(first, "web", 2, PATIENCE)?;
    converged(first, "direct", 2, PATIENCE)?;
    converged(first, "client", 1, PATIENCE)?;

    shown_as_docker_shows_it(first)?;
    every_host_answers(&lab)?;
    names_lead_to_the_virtual_address(&lab)?;
    nothing_is_wrong_and_what_is_open_is_told(&lab)?;
    no_request_is_lost(&lab)?;
    ports_change_without_the_tasks(&lab)?;

    first.docker(&["service", "rm", "web", "direct", "client"])?;
    eventually(PATIENCE, "all containers are gone", || {
        Ok(lab.hosts.iter().all(|host| host.docker(&["ps", "-aq"]).is_ok_and(|ids| ids.trim().is_empty())))
    })?;
    first.docker(&["network", "rm", "app"])?;
    lab.finish()
}

fn shown_as_docker_shows_it(first: &Host) -> Result<()> {
    let listed = first.docker(&["service", "ls", "--filter", "name=web", "--format", "{{.Ports}}"])?;
    ensure!(listed.trim() == "*:8080->80/tcp", "`service ls` shows {listed:?}");
    let network =
        first.docker(&["network", "inspect", "ingress", "--format", "{{.ID}} {{.Ingress}} {{.Scope}}"])?;
    let (id, rest) = network.trim().split_once(' ').context("a network")?;
    ensure!(rest == "true swarm", "{network:?}");
    let format = "{{range .Endpoint.VirtualIPs}}{{.NetworkID}} {{end}}";
    let vips = first.docker(&["service", "inspect", "web", "--format", format])?;
    ensure!(
        vips.split_whitespace().count() == 2 && vips.starts_with(id),
        "virtual addresses are on {vips:?}"
    );
    let format = "{{len .Peers}} {{(index .Services \"web\").VIP}} {{len (index .Services \"web\").Tasks}}";
    let known = first.docker(&["network", "inspect", "--verbose", "ingress", "--format", format])?;
    let vip = first.docker(&[
        "service",
        "inspect",
        "web",
        "--format",
        "{{(index .Endpoint.VirtualIPs 0).Addr}}",
    ])?;
    let vip = vip.trim().trim_end_matches("/24");
    ensure!(known.trim() == format!("3 {vip} 2"), "`network inspect --verbose` shows {known:?}");
    let refused =
        first.refusal(&["service", "create", "--detach", "--name", "api", "-p", "8080:80", "demo:latest"])?;
    ensure!(refused.contains("port '8080' is already in use by service 'web' ("), "{refused}");
    Ok(())
}

/// Asks `server` on a port of the mesh, from `client`.
fn ask(client: &Host, server: &Host, port: u16) -> Result<String> {
    let url = format!("http://{}:{port}/", server.address);
    run(client.command("curl").args(["-sS", "--fail", "--max-time", "20", &url]))
}

fn every_host_answers(lab: &Lab) -> Result<()> {
    for server in &lab.hosts {
        for client in &lab.hosts {
            eventually(PATIENCE, &format!("{} answers {}", server.name, client.name), || {
                ask(client, server, 8080).map(|_| true)
            })?;
            // Both tasks, one after the other.
            for _ in 0..6 {
                let page = ask(client, server, 8080)?;
                let kept = page.contains(&format!("RemoteAddr: {}:", client.address));
                ensure!(kept || client.name == server.name, "{} asked {}: {page}", client.name, server.name);
            }
        }
        let own = run(server.command("curl").args([
            "-sS",
            "--fail",
            "--max-time",
            "20",
            "http://127.0.0.1:8080/",
        ]))?;
        ensure!(own.contains("Hostname"), "{} asked itself: {own}", server.name);
    }
    Ok(())
}

/// Fetches a URL as the task of `client` does.
fn from_client(lab: &Lab, url: &str) -> Result<String> {
    let task = containers_of(lab, "client")?.into_iter().next().context("the client runs")?;
    fetch_inside(&lab.hosts[task.host], &task.id, url)
}

fn names_lead_to_the_virtual_address(lab: &Lab) -> Result<()> {
    let format = "{{(index .Endpoint.VirtualIPs 1).Addr}}";
    let vip = lab.hosts[0].docker(&["service", "inspect", "web", "--format", format])?;
    let vip = vip.trim().split('/').next().unwrap_or_default().to_owned();
    for url in [format!("http://{vip}/"), "http://web/".to_owned()] {
        let page = from_client(lab, &url)?;
        ensure!(page.contains("Hostname"), "{url} gave {page:?}");
    }
    let page = from_client(lab, "http://tasks.web/")?;
    ensure!(page.contains("Hostname"), "tasks.web gave {page:?}");
    Ok(())
}

fn nothing_is_wrong_and_what_is_open_is_told(lab: &Lab) -> Result<()> {
    for host in &lab.hosts {
        eventually(PATIENCE, &format!("nothing is wrong on {}", host.name), || {
            let checked = host.rswarm(&["network", "check"])?;
            ensure!(checked.contains("ingress") && checked.contains("app"), "{checked}");
            Ok(true)
        })?;
        let audit = host.rswarm(&["network", "audit"])?;
        let open = audit.lines().find(|line| line.contains("8080")).with_context(|| audit.clone())?;
        ensure!(open.contains("anywhere"), "{audit}");
    }
    Ok(())
}

fn no_request_is_lost(lab: &Lab) -> Result<()> {
    let task = containers_of(lab, "client")?.into_iter().next().context("the client runs")?;
    let client = &lab.hosts[task.host];
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mesh = scope.spawn(|| hammer(&end, || ask(&lab.hosts[2], &lab.hosts[1], 8080)));
        let vip = scope.spawn(|| hammer(&end, || fetch_inside(client, &task.id, "http://web/")));
        let direct = scope.spawn(|| hammer(&end, || fetch_inside(client, &task.id, "http://direct/")));
        let changed = tasks_come_and_go(&lab.hosts[0], "direct").and(tasks_come_and_go(&lab.hosts[0], "web"));
        end.store(true, Ordering::Relaxed);
        for (way, hammered) in [("mesh", mesh), ("virtual address", vip), ("names of tasks", direct)] {
            let (failures, count) = hammered.join().expect("the client does not panic");
            println!("{count} requests through the {way}, {} failed", failures.len());
            ensure!(failures.is_empty(), "through the {way}: {failures:#?}");
            ensure!(count >= REQUESTS_MIN, "{count} requests through the {way} say nothing");
        }
        changed
    })
}

fn tasks_come_and_go(first: &Host, service: &str) -> Result<()> {
    for replicas in [4, 2] {
        first.docker(&["service", "scale", "--detach", &format!("{service}={replicas}")])?;
        converged(first, service, replicas, PATIENCE)?;
    }
    let before = running_ids(first, service)?;
    first.docker(&["service", "update", "--detach", "--force", "--update-monitor", "1s", service])?;
    eventually(PATIENCE * 2, "every task is replaced", || {
        let state = first.docker(&["service", "inspect", service, "--format", "{{.UpdateStatus.State}}"])?;
        Ok(state.trim() == "completed")
    })?;
    converged(first, service, 2, PATIENCE)?;
    let after = running_ids(first, service)?;
    ensure!(after.iter().all(|id| !before.contains(id)), "{before:?}, then {after:?}");
    Ok(())
}

fn running_ids(first: &Host, service: &str) -> Result<Vec<String>> {
    let args = ["service", "ps", service, "-q", "--no-trunc", "--filter", "desired-state=running"];
    Ok(first.docker(&args)?.lines().map(str::to_owned).collect())
}

fn ports_change_without_the_tasks(lab: &Lab) -> Result<()> {
    let first = &lab.hosts[0];
    let before = running_ids(first, "web")?;
    let changes = ["--publish-rm", "80", "--publish-add", "published=8081,target=80"];
    first.docker(&[&["service", "update", "--detach"], &changes[..], &["web"]].concat())?;
    for server in &lab.hosts {
        eventually(PATIENCE, &format!("{} answers on the new port", server.name), || {
            ask(first, server, 8081).map(|_| true)
        })?;
        eventually(PATIENCE, &format!("{} refuses the old port", server.name), || {
            let url = format!("http://{}:8080/", server.address);
            // 7: the connection was refused.
            let status = first.command("curl").args(["-sS", "--max-time", "20", &url]).output()?.status;
            Ok(status.code() == Some(7))
        })?;
    }
    ensure!(
        running_tasks(first, "web")?.len() == 2 && running_ids(first, "web")? == before,
        "the tasks were replaced"
    );
    Ok(())
}
