//! Secrets and configs on real nodes, by docker's own client: from a file to a container's memory and nowhere else.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rswarm_tests::harness::{Lab, eventually, run};
use rswarm_tests::host::Host;

use crate::support::{converged, running_tasks};

const PATIENCE: Duration = Duration::from_secs(60);
/// What must never be found on a disk.
const HUSH: &str = "correct-horse-battery-staple";

#[test]
fn secrets_and_configs_reach_containers_and_no_disk() -> Result<()> {
    let mut lab = Lab::start(2)?;
    lab.form_cluster(1)?;
    lab.every_host(Host::import_busybox)?;
    let dir = tempfile::tempdir()?;
    let file = |name: &str, text: &str| -> Result<String> {
        let path = dir.path().join(name);
        fs::write(&path, text)?;
        Ok(path.to_str().context("a path")?.to_owned())
    };
    let first = &lab.hosts[0];
    let key = file("key", HUSH)?;
    let template = file("web.conf", "{{.Service.Name}} {{.Task.Slot}} {{env \"MODE\"}} {{secret \"key\"}}")?;
    ensure!(first.docker(&["secret", "create", "--label", "tier=a", "key", &key])?.trim().len() == 25);
    first.docker(&["config", "create", "--template-driver", "golang", "web", &template])?;
    let again = first.refusal(&["secret", "create", "key", &key])?;
    ensure!(again.contains("secret key already exists"), "{again}");
    let shown = first.docker(&["secret", "inspect", "key"])?;
    ensure!(shown.contains("\"tier\": \"a\"") && !shown.contains("Data"), "{shown}");
    ensure!(first.rswarm(&["config", "inspect", "--pretty", "web"])?.contains("{{.Service.Name}}"));

    first.docker(&[
        "service",
        "create",
        "--detach",
        "--name",
        "web",
        "--replicas",
        "2",
        "--env",
        "MODE=fast",
        "--env",
        "WHERE={{.Node.Hostname}}/{{.Task.Slot}}",
        "--hostname",
        "{{.Service.Name}}-{{.Task.Slot}}",
        "--secret",
        "source=key,target=key,uid=33,gid=34,mode=0400",
        "--config",
        "source=web,target=/etc/web.conf",
        "--constraint",
        "node.hostname==h2",
        "--restart-delay",
        "100ms",
        "busybox:latest",
        "sleep",
        "1000",
    ])?;
    converged(first, "web", 2, PATIENCE)?;
    seen_inside(&lab.hosts[1])?;
    nowhere_on_disk(&lab)?;

    let used = first.refusal(&["secret", "rm", "key"])?;
    ensure!(used.contains("secret 'key' is in use by the following service: web"), "{used}");
    let template = "{{.Node.Hostname}} {{.Service.Name}} {{.Task.Name}} {{config \"web\"}}";
    let template = file("sealed", template)?;
    templates_say_where_each_task_is(&lab, &template)?;

    // The node's daemon dies with all it had in memory; its containers keep theirs, and it keeps its tasks.
    lab.hosts[1].restart_hard()?;
    lab.hosts[1].ready()?;
    seen_inside(&lab.hosts[1])?;

    // Another version of the secret is rolled out by our own client.
    let first = &lab.hosts[0];
    let next = file("key2", "second")?;
    first.rswarm(&["secret", "create", "key2", &next])?;
    first.rswarm(&[
        "service",
        "update",
        "--secret-rm",
        "key",
        "--secret-add",
        "source=key2,target=key",
        "web",
    ])?;
    eventually(PATIENCE, "the new secret is everywhere", || {
        Ok(running_tasks(first, "web")?.len() == 2
            && containers(&lab.hosts[1])?.len() == 2
            && containers(&lab.hosts[1])?.iter().all(|id| {
                inside(&lab.hosts[1], id, &["cat", "/run/secrets/key"]).is_ok_and(|text| text == "second")
            }))
    })?;
    first.docker(&["secret", "rm", "key"])?;
    eventually(PATIENCE, "the node has forgotten the old one", || {
        Ok(fs::read_dir(lab.hosts[1].dir.join("data/swarm/worker/secrets"))?.count() == 1)
    })?;

    // A stack file brings its own, and takes them along.
    let stack = file(
        "stack.yml",
        "version: '3.8'\nservices:\n  app:\n    image: busybox:latest\n    command: sleep 1000\n    secrets: [token]\n    \
         configs: [{source: settings, target: /etc/settings}]\nsecrets:\n  token: {file: ./key}\nconfigs:\n  \
         settings: {file: ./web.conf}\n",
    )?;
    first.docker(&["stack", "deploy", "--detach=true", "-c", &stack, "demo"])?;
    converged(first, "demo_app", 1, PATIENCE)?;
    let listed = first.docker(&[
        "secret",
        "ls",
        "--filter",
        "label=com.docker.stack.namespace=demo",
        "--format",
        "{{.Name}}",
    ])?;
    ensure!(listed.trim() == "demo_token", "{listed}");
    first.docker(&["stack", "rm", "demo"])?;
    ensure!(first.docker(&["config", "ls", "-q", "--filter", "name=demo"])?.trim().is_empty());

    first.docker(&["service", "rm", "web"])?;
    eventually(PATIENCE, "all containers are gone", || {
        Ok(lab.hosts.iter().all(|host| host.docker(&["ps", "-aq"]).is_ok_and(|ids| ids.trim().is_empty())))
    })?;
    eventually(PATIENCE, "no secret is left on the node", || {
        Ok(fs::read_dir(lab.hosts[1].dir.join("data/swarm/worker/secrets"))?.count() == 0)
    })?;
    lab.finish()
}

#[test]
fn a_new_version_of_a_secret_is_rolled_out_and_back() -> Result<()> {
    let lab = Lab::start(1)?;
    lab.form_cluster(1)?;
    let host = &lab.hosts[0];
    host.import_busybox()?;
    let dir = tempfile::tempdir()?;
    let file = |name: &str, text: &str| -> Result<String> {
        let path = dir.path().join(name);
        fs::write(&path, text)?;
        Ok(path.to_str().context("a path")?.to_owned())
    };
    let (first, second) = (file("first", "first")?, file("second", "second")?);
    let one = host.docker(&["secret", "create", "key", &first])?.trim().to_owned();
    host.docker(&["config", "create", "--label", "rswarm.versions=true", "conf", &first])?;
    let service = |name: &str, secret: &str| {
        host.docker(&[
            "service",
            "create",
            "--quiet",
            "--name",
            name,
            "--replicas",
            "2",
            "--secret",
            secret,
            "--config",
            "source=conf,target=/conf",
            "--update-monitor",
            "1s",
            "--stop-grace-period",
            "1s",
            "busybox:latest",
            "sleep",
            "1000",
        ])
    };
    service("web", "key")?;
    // Docker's client pins a version by its name.
    service("pinned", "source=key@1,target=key")?;
    let before = containers(host)?;

    // The command waits until all is rolled out: every task is another one, with the new content.
    let told = host.rswarm(&["secret", "update", "key", &second])?;
    let two = told.lines().next().context("an id")?.to_owned();
    ensure!(two.len() == 25 && two != one && told.contains("\nweb\n"), "{told}");
    all_read(host, "web", "/run/secrets/key", "second")?;
    all_read(host, "pinned", "/run/secrets/key", "first")?;
    ensure!(containers(host)?.iter().all(|id| !before.contains(id)), "a task keeps what it began with");
    let shown: serde_json::Value = serde_json::from_str(&host.docker(&["secret", "inspect", "key"])?)?;
    ensure!(shown[0]["ID"] == two.as_str(), "{shown}");
    let listed = host.docker(&["secret", "ls", "-q"])?;
    ensure!(listed.trim() == two, "one name, one row: {listed}");
    let (_, raw) = host.api("GET", "/secrets/key", "")?;
    let raw: serde_json::Value = serde_json::from_str(&raw)?;
    ensure!(raw["Versions"][0]["Services"] == serde_json::json!(["pinned"]), "{raw}");
    ensure!(raw["Versions"][1]["Services"] == serde_json::json!(["web"]), "{raw}");
    let used = host.refusal(&["secret", "rm", "key"])?;
    ensure!(used.contains("in use by the following services: pinned, web"), "{used}");

    host.docker(&["service", "rollback", "--quiet", "web"])?;
    all_read(host, "web", "/run/secrets/key", "first")?;
    // The same content again brings everybody up to date.
    host.rswarm(&["secret", "update", "--quiet", "key", &second])?;
    all_read(host, "web", "/run/secrets/key", "second")?;

    // A stack file is deployed again with another file: docker's own client updates what the label lets it.
    let stack = |text: &str| {
        file("settings", text)?;
        file(
            "stack.yml",
            "version: '3.8'\nservices:\n  app:\n    image: busybox:latest\n    command: sleep 1000\n    \
             stop_grace_period: 1s\n    configs: [{source: settings, target: /etc/settings}]\nconfigs:\n  \
             settings: {file: ./settings, labels: {rswarm.versions: 'true'}}\n",
        )
    };
    host.docker(&["stack", "deploy", "--detach=false", "--quiet", "-c", &stack("one")?, "demo"])?;
    all_read(host, "demo_app", "/etc/settings", "one")?;
    host.docker(&["stack", "deploy", "--detach=false", "--quiet", "-c", &stack("two")?, "demo"])?;
    eventually(PATIENCE, "the stack has the new file", || {
        Ok(all_read(host, "demo_app", "/etc/settings", "two").is_ok())
    })?;

    host.docker(&["service", "rm", "pinned", "web"])?;
    host.docker(&["stack", "rm", "demo"])?;
    eventually(PATIENCE, "old versions are gone with their users", || {
        let (_, raw) = host.api("GET", "/secrets/key", "")?;
        let raw: serde_json::Value = serde_json::from_str(&raw)?;
        Ok(raw["Versions"].as_array().is_some_and(|versions| versions.len() == 1))
    })?;
    host.docker(&["secret", "rm", "key"])?;
    lab.finish()
}

/// One task on each of the nodes: its volume, its environment, its name and its secret are its own.
fn templates_say_where_each_task_is(lab: &Lab, template: &str) -> Result<()> {
    let first = &lab.hosts[0];
    first.docker(&["secret", "create", "--template-driver", "golang", "sealed", template])?;
    let plain = first.docker(&["config", "create", "plain", template])?;
    ensure!(!plain.trim().is_empty());
    let hostname = "{{.Service.Name}}-{{.Task.Slot}}-{{.Node.Hostname}}";
    let place = ["--replicas", "2", "--replicas-max-per-node", "1", "--hostname", hostname];
    let inside_of = ["--env", "NODE={{.Node.ID}}", "--secret", "sealed", "--config", "plain"];
    let named = ["--config", "source=plain,target=web"];
    let volume = ["--mount", "type=volume,source=data-{{.Node.Hostname}}-{{.Task.Slot}},target=/data"];
    let create = ["service", "create", "--detach", "--name", "each"];
    let image = ["busybox:latest", "sleep", "1000"];
    first.docker(&[&create[..], &place, &inside_of, &named, &volume, &image].concat())?;
    converged(first, "each", 2, PATIENCE)?;
    for host in &lab.hosts {
        let filter = "label=com.docker.swarm.service.name=each";
        let found = host.docker(&["ps", "--filter", filter, "--format", "{{.ID}} {{.Names}}"])?;
        let (id, task) = found.trim().split_once(' ').with_context(|| format!("one task, not {found:?}"))?;
        let slot = task.split('.').nth(1).context("each.SLOT.ID")?;
        let called = inside(host, id, &["hostname"])?;
        ensure!(called == format!("each-{slot}-{}", host.name), "{called}");
        let volume = format!("data-{}-{slot}", host.name);
        let mounted = "{{range .Mounts}}{{.Name}} {{.Destination}}{{end}}";
        let mounted = host.docker(&["inspect", "--format", mounted, id])?;
        ensure!(mounted.trim() == format!("{volume} /data"), "{mounted}");
        ensure!(host.docker(&["volume", "ls", "-q"])?.trim() == volume, "another's volume is here too");
        let node = host.docker(&["info", "--format", "{{.Swarm.NodeID}}"])?;
        ensure!(inside(host, id, &["sh", "-c", "echo $NODE"])? == node.trim());
        let raw = fs::read_to_string(template)?;
        // What has no template driver stays as it is.
        ensure!(inside(host, id, &["cat", "/plain"])? == raw);
        let sealed = inside(host, id, &["cat", "/run/secrets/sealed"])?;
        ensure!(sealed == format!("{} each {task} {raw}", host.name), "{sealed}");
    }
    let unknown = ["--hostname", "{{.Nobody}}", "busybox:latest"];
    let refused = first.refusal(&[&create[..4], &["never"], &unknown].concat())?;
    ensure!(refused.contains("Nobody"), "{refused}");
    first.docker(&["service", "rm", "each"])?;
    eventually(PATIENCE, "its containers are gone", || {
        let filter = ["ps", "-aq", "--filter", "label=com.docker.swarm.service.name=each"];
        Ok(lab.hosts.iter().all(|host| host.docker(&filter).is_ok_and(|ids| ids.trim().is_empty())))
    })?;
    first.docker(&["secret", "rm", "sealed"])?;
    first.docker(&["config", "rm", "plain"])?;
    lab.hosts.iter().try_for_each(|host| {
        let volume = host.docker(&["volume", "ls", "-q"])?;
        host.docker(&["volume", "rm", volume.trim()]).map(drop)
    })
}

/// What every container of a service finds in a file.
fn all_read(host: &Host, service: &str, path: &str, text: &str) -> Result<()> {
    let label = format!("label=com.docker.swarm.service.name={service}");
    let ids = host.docker(&["ps", "-q", "--filter", &label])?;
    ensure!(!ids.trim().is_empty(), "no container of {service}");
    for id in ids.split_whitespace() {
        let found = inside(host, id, &["cat", path])?;
        ensure!(found == text, "{service} reads {found}, not {text}");
    }
    Ok(())
}

fn containers(host: &Host) -> Result<Vec<String>> {
    let ids = host.docker(&["ps", "-q", "--filter", "label=com.docker.swarm.service.name=web"])?;
    Ok(ids.split_whitespace().map(str::to_owned).collect())
}

fn inside(host: &Host, id: &str, command: &[&str]) -> Result<String> {
    Ok(host.docker(&[&["exec", id], command].concat())?.trim().to_owned())
}

/// Files as they should be, in memory, and placeholders filled in.
fn seen_inside(host: &Host) -> Result<()> {
    let ids = containers(host)?;
    ensure!(ids.len() == 2, "{ids:?}");
    let mut slots = Vec::new();
    for id in &ids {
        let environment = inside(host, id, &["sh", "-c", "echo $WHERE"])?;
        let slot = environment.strip_prefix("h2/").with_context(|| environment.clone())?;
        ensure!(inside(host, id, &["hostname"])? == format!("web-{slot}"));
        ensure!(inside(host, id, &["cat", "/etc/web.conf"])? == format!("web {slot} fast {HUSH}"));
        ensure!(inside(host, id, &["cat", "/run/secrets/key"])? == HUSH);
        let stat = inside(host, id, &["stat", "-c", "%a %u %g", "/run/secrets/key", "/etc/web.conf"])?;
        ensure!(stat == "400 33 34\n444 0 0", "{stat}");
        let mounts = inside(host, id, &["cat", "/proc/mounts"])?;
        for path in ["/run/secrets/key", "/etc/web.conf"] {
            let line = mounts.lines().find(|line| line.split(' ').nth(1) == Some(path)).context(path)?;
            ensure!(line.starts_with("tmpfs ") && line.contains(" ro,"), "{line}");
        }
        slots.push(slot.to_owned());
    }
    slots.sort();
    ensure!(slots == ["1", "2"], "{slots:?}");
    Ok(())
}

/// Neither the managers' log nor the node's files hold the secret as it is.
fn nowhere_on_disk(lab: &Lab) -> Result<()> {
    for host in &lab.hosts {
        let mut command = std::process::Command::new("grep");
        let found = run(command.args(["-rlF", HUSH]).arg(&host.dir));
        ensure!(found.is_err(), "the secret is on the disk of {}: {}", host.name, found?);
    }
    let sealed: &Path = &lab.hosts[1].dir.join("data/swarm/worker/secrets");
    ensure!(fs::read_dir(sealed)?.count() == 1, "the node that needs it keeps it sealed");
    ensure!(
        fs::read_dir(lab.hosts[0].dir.join("data/swarm/worker/secrets"))?.count() == 0,
        "others get nothing"
    );
    Ok(())
}
