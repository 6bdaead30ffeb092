//! A deployment as users follow it: the command that asked for it fails when it went back, and says why.

use std::time::Duration;

use anyhow::{Result, ensure};
use rswarm_tests::harness::{Lab, eventually};
use rswarm_tests::host::Host;

use crate::support::{Running, converged, running};

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
        "--stop-grace-period",
        "1s",
        // A task runs before it fails: time to see that, before the next one is touched.
        "--update-delay",
        "3s",
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

    an_update_that_fails_pauses_when_told_to(first)?;

    first.docker(&["service", "rm", "web"])?;
    eventually(PATIENCE, "all containers are gone", || Ok(first.docker(&["ps", "-aq"])?.trim().is_empty()))?;
    lab.finish()
}

/// The command that waits for it fails with Docker's words, what was not reached serves on, and it goes back when asked.
fn an_update_that_fails_pauses_when_told_to(host: &Host) -> Result<()> {
    let inspect = |template: &str| host.docker(&["service", "inspect", "--format", template, "web"]);
    let waiting = ["service", "update", "--quiet", "--detach=false"];
    let (before, spec) = (running(host)?, inspect("{{json .Spec.TaskTemplate}}")?);
    host.docker(&[&waiting[..], &["--update-failure-action", "pause", "web"]].concat())?;
    let after = inspect("{{json .Spec.TaskTemplate}}")?;
    ensure!(running(host)? == before, "how to update changes no task: {spec} became {after}");

    let said = host.refusal(&[&waiting[..], &["--args", "sh -c 'exit 3'", "web"]].concat())?;
    paused(host, &said)?;
    let kept = serves_on(host, &before)?;
    host.docker(&["service", "rollback", "--quiet", "--detach=false", "web"])?;
    came_back(host, &kept)?;

    // An image starts, but its service is never well.
    let check = ["--health-cmd", "false", "--health-interval", "200ms", "--health-retries", "2", "web"];
    let before = running(host)?;
    let failed = host.rswarm(&[&["service", "update", "--quiet"][..], &check].concat());
    paused(host, &format!("{:#}", failed.expect_err("the update was paused")))?;
    let pretty = host.rswarm(&["service", "inspect", "--pretty", "web"])?;
    ensure!(pretty.contains("paused") && pretty.contains("unhealthy container"), "{pretty}");
    let kept = serves_on(host, &before)?;
    host.docker(&[&waiting[..], &["--rollback", "web"]].concat())?;
    ensure!(inspect("{{.Spec.TaskTemplate.ContainerSpec.Healthcheck}}")?.trim() == "<nil>");
    came_back(host, &kept)
}

/// What the command said is what the service says: dockerd's words.
fn paused(host: &Host, said: &str) -> Result<()> {
    let status = "{{.UpdateStatus.State}}: {{.UpdateStatus.Message}}";
    let status = host.docker(&["service", "inspect", "--format", status, "web"])?;
    let words = "paused: update paused due to failure or early termination of task ";
    ensure!(status.starts_with(words), "{status}");
    let message = status.trim().trim_start_matches("paused: ");
    ensure!(said.contains("service update paused") && said.contains(message), "{said}");
    Ok(())
}

/// The one of two containers that a paused update did not come to.
fn serves_on(host: &Host, before: &Running) -> Result<Running> {
    let mut kept = running(host)?;
    kept.retain(|id, process| before.get(id) == Some(process));
    ensure!(kept.len() == 1, "of {before:?}, {kept:?} runs");
    Ok(kept)
}

/// The service is as it was, and what had served on does so still.
fn came_back(host: &Host, kept: &Running) -> Result<()> {
    converged(host, "web", 2, PATIENCE)?;
    let status = "{{.UpdateStatus.State}} {{.Spec.TaskTemplate.ContainerSpec.Args}}";
    let status = host.docker(&["service", "inspect", "--format", status, "web"])?;
    ensure!(status.trim() == "rollback_completed [sleep 1000]", "{status}");
    let now = running(host)?;
    ensure!(kept.iter().all(|(id, process)| now.get(id) == Some(process)), "{kept:?} are not in {now:?}");
    Ok(())
}
