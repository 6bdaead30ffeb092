//! Jobs on real nodes, by docker's own client: each slot completes once, on change again, and by a schedule.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rswarm_tests::harness::{Lab, eventually};
use rswarm_tests::host::Host;

const PATIENCE: Duration = Duration::from_secs(60);
/// A schedule of every minute may just have had its turn.
const TWO_MINUTES: Duration = Duration::from_secs(150);

#[test]
fn jobs_run_to_completion_once_and_again_when_told_to() -> Result<()> {
    let lab = Lab::start(2)?;
    lab.form_cluster(1)?;
    lab.every_host(Host::import_busybox)?;
    let first = &lab.hosts[0];
    create(
        first,
        "job",
        &["--mode", "replicated-job", "--max-concurrent", "2", "--replicas", "5"],
        "exit 0",
    )?;
    create(first, "fails", &["--mode", "replicated-job", "--restart-max-attempts", "1"], "exit 3")?;
    create(first, "everywhere", &["--mode", "global-job"], "exit 0")?;
    create(
        first,
        "cron",
        &["--mode", "replicated-job", "--label", "rswarm.cron.schedule=* * * * *"],
        "echo tick",
    )?;
    ensure!(replicas(first, "cron")? == "0/1 (0/1 completed)", "a scheduled job waits for its time");

    shows(first, "job", "0/2 (5/5 completed)")?;
    shows(first, "everywhere", "0/0 (2/2 completed)")?;
    let before = tasks(first, "job")?;
    ensure!(before.len() == 5, "{before:?}");
    ensure!(iteration(first, "job")? == "0");
    let listed = first.docker(&["service", "ps", "job", "--format", "{{.Name}} {{.DesiredState}}"])?;
    let mut rows: Vec<&str> = listed.lines().collect();
    rows.sort_unstable();
    ensure!(
        rows == ["job.1", "job.2", "job.3", "job.4", "job.5"].map(|name| format!("{name} Complete")),
        "{listed}"
    );

    first.docker(&["service", "update", "--detach", "--force", "job"])?;
    ensure!(iteration(first, "job")? == "1");
    eventually(PATIENCE, "the job has run again", || {
        let after = tasks(first, "job")?;
        Ok(after.is_disjoint(&before) && replicas(first, "job")? == "0/2 (5/5 completed)")
    })?;

    eventually(PATIENCE, "the failing job has had its tries", || Ok(tasks(first, "fails")?.len() == 2))?;
    ensure!(replicas(first, "fails")?.ends_with("(0/1 completed)"));
    refusals(first)?;

    eventually(TWO_MINUTES, "the scheduled job has run", || {
        Ok(iteration(first, "cron")? != "0" && replicas(first, "cron")? == "0/1 (1/1 completed)")
    })?;
    let logs = first.docker(&["service", "logs", "--raw", "cron"])?;
    ensure!(logs.starts_with("tick"), "{logs}");

    first.docker(&["service", "rm", "job", "fails", "everywhere", "cron"])?;
    eventually(PATIENCE, "all containers are gone", || {
        Ok(lab.hosts.iter().all(|host| host.docker(&["ps", "-aq"]).is_ok_and(|ids| ids.trim().is_empty())))
    })?;
    lab.finish()
}

fn create(host: &Host, name: &str, flags: &[&str], script: &str) -> Result<()> {
    let command = ["service", "create", "--detach", "--name", name, "--restart-delay", "100ms"];
    let image = ["busybox:latest", "sh", "-c", script];
    host.docker(&[&command[..], flags, &image].concat()).map(drop)
}

fn replicas(host: &Host, name: &str) -> Result<String> {
    let listed = host.docker(&["service", "ls", "--format", "{{.Name}} {{.Replicas}}"])?;
    let line = listed.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(line.with_context(|| listed.clone())?.to_owned())
}

fn shows(host: &Host, name: &str, text: &str) -> Result<()> {
    eventually(PATIENCE, &format!("{name} shows {text}"), || Ok(replicas(host, name)? == text))?;
    let ours =
        host.rswarm(&["service", "ls", "--filter", &format!("name={name}"), "--format", "{{.Replicas}}"])?;
    ensure!(ours.trim() == text, "our client shows {ours}");
    Ok(())
}

fn tasks(host: &Host, name: &str) -> Result<BTreeSet<String>> {
    let ids = host.docker(&["service", "ps", "--no-trunc", "-q", name])?;
    Ok(ids.split_whitespace().map(str::to_owned).collect())
}

fn iteration(host: &Host, name: &str) -> Result<String> {
    let index =
        host.docker(&["service", "inspect", "--format", "{{.JobStatus.JobIteration.Index}}", name])?;
    Ok(index.trim().to_owned())
}

fn refusals(host: &Host) -> Result<()> {
    let job = ["service", "create", "--mode", "replicated-job"];
    let said = host.refusal(&[&job[..], &["--update-delay", "1s", "busybox:latest"]].concat())?;
    ensure!(said.contains("update and rollback configuration is not supported for jobs"), "{said}");
    let label = ["--label", "rswarm.cron.schedule=61 * * * *", "busybox:latest"];
    let said = host.refusal(&[&job[..], &label].concat())?;
    ensure!(said.contains("`61` is no minute"), "{said}");
    let body = r#"{"Name":"x","TaskTemplate":{"ContainerSpec":{"Image":"busybox"}},"Mode":{"GlobalJob":{}},"UpdateConfig":{"Parallelism":1}}"#;
    let (status, said) = host.api("POST", "/services/create", body)?;
    ensure!(status == 400 && said.contains("Jobs may not have an update config"), "{status} {said}");
    Ok(())
}
