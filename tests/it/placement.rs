//! Where tasks go, as users say it and see it.

use std::time::Duration;

use anyhow::{Result, ensure};
use rswarm_tests::harness::{Lab, eventually};
use rswarm_tests::host::Host;

use crate::support::{converged, running_tasks};

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn generic_resources_are_given_out_by_name_and_by_count() -> Result<()> {
    let mut lab = Lab::start(2)?;
    let second = &mut lab.hosts[1];
    second.stop()?;
    second.flags = ["gpu=uuid1", "gpu=uuid2", "ssd=3"]
        .iter()
        .flat_map(|own| ["--node-generic-resource".to_owned(), (*own).to_owned()])
        .collect();
    second.start()?;
    second.ready()?;
    lab.form_cluster(1)?;
    let (first, second) = (&lab.hosts[0], &lab.hosts[1]);
    second.import_busybox()?;

    let format = "{{json .Description.Resources.GenericResources}}";
    let shown = first.docker(&["node", "inspect", "--format", format, "h2"])?;
    ensure!(
        shown.trim()
            == r#"[{"NamedResourceSpec":{"Kind":"gpu","Value":"uuid1"}},{"NamedResourceSpec":{"Kind":"gpu","Value":"uuid2"}},{"DiscreteResourceSpec":{"Kind":"ssd","Value":3}}]"#,
        "{shown}"
    );
    let (_, info) = second.api("GET", "/info", "")?;
    ensure!(info.contains(&format!("\"GenericResources\":{}", shown.trim())), "{info}");

    let create = ["service", "create", "--detach", "--name", "web", "--replicas", "2"];
    let wanted = ["--generic-resource", "gpu=1", "--generic-resource", "ssd=2"];
    first.docker(&[&create[..], &wanted[..], &["busybox:latest", "sleep", "1000"]].concat())?;
    converged(first, "web", 1, PATIENCE)?;
    eventually(PATIENCE, "the other one says why it waits", || {
        let shown = first.docker(&["service", "ps", "web", "--no-trunc", "--format", "{{.Error}}"])?;
        Ok(shown.contains("no suitable node (insufficient resources on 2 nodes)"))
    })?;
    let format = "{{json .Spec.TaskTemplate.Resources.Reservations.GenericResources}}";
    let shown = first.docker(&["service", "inspect", "--format", format, "web"])?;
    ensure!(shown.contains(r#"{"DiscreteResourceSpec":{"Kind":"gpu","Value":1}}"#), "{shown}");

    first.rswarm(&["service", "update", "--detach", "--generic-resource-rm", "ssd", "web"])?;
    converged(first, "web", 2, PATIENCE)?;
    eventually(PATIENCE, "each has a name of its own", || {
        let mut given = variables(second)?;
        given.sort();
        Ok(given == ["DOCKER_RESOURCE_GPU=uuid1", "DOCKER_RESOURCE_GPU=uuid2"])
    })?;
    let tasks =
        first.docker(&["service", "ps", "-q", "--no-trunc", "--filter", "desired-state=running", "web"])?;
    for task in tasks.split_whitespace() {
        let shown =
            first.docker(&["inspect", "--type", "task", "--format", "{{json .GenericResources}}", task])?;
        ensure!(shown.starts_with(r#"[{"NamedResourceSpec":{"Kind":"gpu","Value":"uuid"#), "{shown}");
    }
    first.docker(&["service", "rm", "web"])?;
    eventually(PATIENCE, "all containers are gone", || Ok(second.docker(&["ps", "-aq"])?.trim().is_empty()))?;
    lab.finish()
}

/// What the running containers of a host were told of their resources.
fn variables(host: &Host) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for id in host.docker(&["ps", "-q"])?.split_whitespace() {
        let environment = host.docker(&["exec", id, "env"])?;
        found.extend(
            environment.lines().filter(|line| line.starts_with("DOCKER_RESOURCE_")).map(str::to_owned),
        );
    }
    Ok(found)
}

#[test]
fn a_dry_run_says_what_comes_and_a_returning_node_gets_its_share() -> Result<()> {
    let lab = Lab::start(2)?;
    lab.form_cluster(1)?;
    let first = &lab.hosts[0];
    lab.every_host(Host::import_busybox)?;
    first.docker(&["node", "update", "--availability", "drain", "h2"])?;
    what_is_foretold_happens(first)?;
    a_returning_node_gets_its_share(first)?;
    first.docker(&["service", "rm", "web"])?;
    eventually(PATIENCE, "all containers are gone", || {
        Ok(lab.hosts.iter().all(|host| host.docker(&["ps", "-aq"]).is_ok_and(|ids| ids.trim().is_empty())))
    })?;
    lab.finish()
}

fn what_is_foretold_happens(first: &Host) -> Result<()> {
    let create = ["service", "create", "--detach", "--name", "web", "--replicas", "4"];
    let what = ["--label", "rswarm.rebalance.interval=1s", "busybox:latest", "sleep", "1000"];
    let foretold = first.rswarm(&[&create[..], &["--dry-run"], &what[..]].concat())?;
    ensure!(foretold.starts_with("Service web would be created.\nTasks: 4 new, 0 replaced"), "{foretold}");
    ensure!(foretold.matches(" h1 ").count() == 4, "{foretold}");
    ensure!(first.docker(&["service", "ls", "-q"])?.is_empty(), "nothing was made");
    first.docker(&[&create[..], &what[..]].concat())?;
    converged(first, "web", 4, PATIENCE)?;

    let update =
        ["service", "update", "--detach", "--env-add", "A=1", "--constraint-add", "node.hostname==h7", "web"];
    let foretold = first.rswarm(&[&update[..2], &["--dry-run"], &update[2..]].concat())?;
    ensure!(foretold.contains(r#"TaskTemplate.ContainerSpec.Env: (none) -> ["A=1"]"#), "{foretold}");
    // The first slot's successor finds no node, so no other one is touched.
    ensure!(foretold.contains("Tasks: 0 new, 1 replaced, 0 removed, 3 as they are"), "{foretold}");
    ensure!(foretold.contains("scheduling constraints not satisfied on 1 node"), "{foretold}");
    let tasks = first.docker(&["service", "ps", "-q", "web"])?;
    ensure!(tasks.lines().count() == 4, "nothing was replaced: {tasks}");
    let refused = first.rswarm(&["service", "update", "--dry-run", "--constraint-add", "nonsense", "web"]);
    ensure!(format!("{refused:?}").contains("constraint expected one operator"), "{refused:?}");
    Ok(())
}

fn a_returning_node_gets_its_share(first: &Host) -> Result<()> {
    first.docker(&["node", "update", "--availability", "active", "h2"])?;
    let ask = ["service", "update", "--detach", "--label-add", "rswarm.rebalance=true", "web"];
    let foretold = first.rswarm(&[&ask[..2], &["--dry-run"], &ask[2..]].concat())?;
    ensure!(foretold.contains("2 replaced") && foretold.matches(" h2 ").count() == 2, "{foretold}");
    ensure!(
        running_tasks(first, "web")?.iter().all(|(_, node)| node == "h1"),
        "nobody moves who did not ask"
    );
    first.docker(&ask)?;
    eventually(PATIENCE, "each host has two", || {
        let tasks = running_tasks(first, "web")?;
        let moved = tasks.iter().filter(|(_, node)| node == "h2").count();
        Ok(tasks.len() == 4 && moved == 2)
    })
}
