//! A deployment as users follow it: the command that asked for it fails when it went back, and says why.

use std::time::Duration;

use anyhow::{Result, ensure};
use rswarm_tests::harness::{Lab, eventually};

use crate::support::converged;

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn an_update_that_was_rolled_back_fails_its_command_and_says_why() -> Result<()> {
    let lab = Lab::start(1)?;
    lab.form_cluster(1)?;
    let first = &lab.hosts[0];
    first.import_busybox()?;
    first.rswarm(&[
        "service",
        "create",
        "--quiet",
        "--name",
        "web",
        "--replicas",
        "2",
        "--restart-delay",
        "200ms",
        "--update-failure-action",
        "rollback",
        "--update-monitor",
        "2s",
        "--rollback-monitor",
        "1s",
        "busybox:latest",
        "sleep",
        "1000",
    ])?;
    converged(first, "web", 2, PATIENCE)?;
    let inspect = |template: &str| first.docker(&["service", "inspect", "--format", template, "web"]);
    ensure!(inspect("{{.UpdateStatus}}")?.trim() == "<nil>", "nothing was updated yet");

    let failed = first.rswarm(&["service", "update", "--quiet", "--args", "sh -c 'exit 3'", "web"]);
    let said = format!("{:#}", failed.expect_err("the update was rolled back"));
    ensure!(said.contains("service update rolled back") && said.contains("task web."), "{said}");
    ensure!(said.contains("non-zero exit (3)"), "{said}");
    ensure!(inspect("{{.UpdateStatus.State}}")?.trim() == "rollback_completed");
    ensure!(inspect("{{.Spec.TaskTemplate.ContainerSpec.Args}}")?.trim() == "[sleep 1000]");

    let pretty = first.rswarm(&["service", "inspect", "--pretty", "web"])?;
    ensure!(
        pretty.contains("Updated:\t2 of 2 (2 running)") && pretty.contains("non-zero exit (3)"),
        "{pretty}"
    );
    first.rswarm(&["service", "update", "--quiet", "--args", "sleep 2000", "web"])?;
    first.rswarm(&["service", "rollback", "--quiet", "web"])?;
    ensure!(
        inspect("{{.Spec.TaskTemplate.ContainerSpec.Args}}")?.trim() == "[sleep 1000]",
        "asked for by hand"
    );

    first.docker(&["service", "rm", "web"])?;
    eventually(PATIENCE, "all containers are gone", || Ok(first.docker(&["ps", "-aq"])?.trim().is_empty()))?;
    lab.finish()
}
