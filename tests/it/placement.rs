//! Where tasks go, as users say it and see it.

use std::time::Duration;

use anyhow::{Result, ensure};
use rswarm_tests::harness::{Lab, eventually};
use rswarm_tests::host::Host;

use crate::support::converged;

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
