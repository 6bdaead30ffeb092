//! Jobs by a schedule on a real daemon: run by hand, in time zones, and over a time at which no manager was there.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rswarm_base::Timestamp;
use rswarm_tests::harness::{Lab, eventually};
use rswarm_tests::host::Host;

const PATIENCE: Duration = Duration::from_secs(60);
const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
/// What is done before the daemon dies takes some of a minute, beside other work.
const ROOM: u64 = 20;
const ON: &str = "* * * * *";

#[test]
fn scheduled_jobs_keep_to_their_zones_and_to_their_word_on_what_was_missed() -> Result<()> {
    let mut lab = Lab::start(1)?;
    lab.form_cluster(1)?;
    lab.hosts[0].import_busybox()?;
    refusals(&lab.hosts[0])?;
    forced_runs_are_kept_as_long_as_the_label_says(&lab.hosts[0])?;

    eventually(PATIENCE, "there is room in the minute", || Ok(now()? % MINUTE < MINUTE - ROOM))?;
    // Not the minute that has just begun.
    let missed = (now()? + 1).next_multiple_of(MINUTE);
    let back = missed + MINUTE;
    let first = &lab.hosts[0];
    create(first, "made-up", ON, &[], "exit 0")?;
    create(first, "skipped", ON, &["missed=skip"], "exit 0")?;
    // What is less than a minute late was not missed, and the words are those of the zone.
    let there = fields(back, 5 * HOUR + 45 * MINUTE);
    create(first, "there", &there, &["timezone=Asia/Kathmandu", "missed=skip"], "exit 0")?;
    create(first, "here", &there, &[], "exit 0")?;
    create(first, "forbids", ON, &[], "sleep 1000")?;
    create(first, "replaces", ON, &["concurrency=replace"], "sleep 1000")?;
    for name in ["forbids", "replaces"] {
        force(first, name)?;
    }
    for name in ["forbids", "replaces"] {
        eventually(PATIENCE, "it runs", || Ok(live(first, name)?.len() == 1))?;
    }
    let replaced = live(first, "replaces")?;
    let kept = live(first, "forbids")?;
    lab.hosts[0].kill()?;
    ensure!(now()? < missed, "the time was not missed, this machine is too slow");

    eventually(2 * PATIENCE, "a time and a minute have passed", || Ok(now()? >= back))?;
    lab.hosts[0].start()?;
    lab.hosts[0].ready()?;
    let first = &lab.hosts[0];
    for (name, iterations) in [("made-up", 1), ("there", 1), ("replaces", 2)] {
        eventually(PATIENCE, &format!("{name} has run"), || Ok(iteration(first, name)? == iterations))?;
    }
    for name in ["made-up", "there"] {
        eventually(PATIENCE, &format!("{name} is done"), || {
            Ok(states(first, name)?.iter().all(|state| state == "Complete"))
        })?;
    }
    eventually(PATIENCE, "another task is in its place", || {
        let live = live(first, "replaces")?;
        Ok(live.len() == 1 && live != replaced)
    })?;
    ensure!(live(first, "forbids")? == kept, "the run that is not over goes on");
    // All of it was one decision, so these had their chance.
    for (name, iterations) in [("skipped", 0), ("here", 0), ("forbids", 1), ("made-up", 1)] {
        ensure!(iteration(first, name)? == iterations, "{name}: {}", iteration(first, name)?);
    }
    ensure!(now()? < back + MINUTE, "the next time has come, this machine is too slow");
    lab.finish()
}

fn forced_runs_are_kept_as_long_as_the_label_says(host: &Host) -> Result<()> {
    create(host, "yearly", "@yearly", &["history=1"], "exit 0")?;
    ensure!(iteration(host, "yearly")? == 0 && states(host, "yearly")?.is_empty(), "it waits for its time");
    let mut seen = Vec::new();
    for run in 1..=3 {
        force(host, "yearly")?;
        ensure!(iteration(host, "yearly")? == run);
        eventually(PATIENCE, "this run and the one before are there, and complete", || {
            let tasks = tasks(host, "yearly")?;
            let whole = states(host, "yearly")?.iter().all(|state| state == "Complete");
            let news = tasks.iter().any(|task| !seen.contains(task));
            if news && whole && tasks.len() as u64 == run.min(2) {
                seen.extend(tasks);
                return Ok(true);
            }
            Ok(false)
        })?;
    }
    host.docker(&["service", "rm", "yearly"]).map(drop)
}

fn refusals(host: &Host) -> Result<()> {
    for (labels, said) in [
        (&["schedule=@daily", "timezone=Mars/Olympus"][..], "there is no time zone `Mars/Olympus`"),
        (&["schedule=0 0 31 2 *"], "`0 0 31 2 *` never comes"),
        (&["schedule=@daily", "missed=all"], "`all` is not run-once or skip"),
        (&["history=1"], "label rswarm.cron.schedule is missing"),
    ] {
        let labels = labels.iter().map(|label| format!("--label=rswarm.cron.{label}")).collect::<Vec<_>>();
        let mut args = vec!["service", "create", "--mode", "replicated-job"];
        args.extend(labels.iter().map(String::as_str));
        let answer = host.refusal(&[&args[..], &["busybox:latest"]].concat())?;
        ensure!(answer.contains(said), "{answer}");
    }
    ensure!(host.docker(&["service", "ls", "-q"])?.trim().is_empty(), "what was refused is there");
    Ok(())
}

fn create(host: &Host, name: &str, schedule: &str, labels: &[&str], script: &str) -> Result<()> {
    let schedule = format!("schedule={schedule}");
    let labels = [&[schedule.as_str()][..], labels].concat();
    let labels = labels.iter().map(|label| format!("--label=rswarm.cron.{label}")).collect::<Vec<_>>();
    let mut args = vec!["service", "create", "--detach", "--name", name, "--mode", "replicated-job"];
    args.extend(labels.iter().map(String::as_str));
    args.extend(["--stop-grace-period", "1s", "busybox:latest", "sh", "-c", script]);
    host.docker(&args).map(drop)
}

fn force(host: &Host, name: &str) -> Result<()> {
    host.docker(&["service", "update", "--detach", "--force", name]).map(drop)
}

fn iteration(host: &Host, name: &str) -> Result<u64> {
    let index =
        host.docker(&["service", "inspect", "--format", "{{.JobStatus.JobIteration.Index}}", name])?;
    index.trim().parse().with_context(|| index.clone())
}

fn tasks(host: &Host, name: &str) -> Result<Vec<String>> {
    let ids = host.docker(&["service", "ps", "--no-trunc", "-q", name])?;
    Ok(ids.split_whitespace().map(str::to_owned).collect())
}

/// Containers of a job's tasks that run.
fn live(host: &Host, name: &str) -> Result<Vec<String>> {
    let filter = format!("label=com.docker.swarm.service.name={name}");
    let ids = host.docker(&["ps", "-q", "--no-trunc", "--filter", &filter])?;
    Ok(ids.split_whitespace().map(str::to_owned).collect())
}

/// The first word of what each task is said to be.
fn states(host: &Host, name: &str) -> Result<Vec<String>> {
    let listed = host.docker(&["service", "ps", name, "--format", "{{.CurrentState}}"])?;
    Ok(listed.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
}

/// Seconds since 1970, which begin and end minutes everywhere.
fn now() -> Result<u64> {
    Ok(Timestamp::wall().as_secs().try_into()?)
}

/// The fields of a schedule for a time, on clocks that are ahead of UTC.
fn fields(time: u64, ahead: u64) -> String {
    let of_day = (time + ahead) % (24 * HOUR);
    format!("{} {} * * *", of_day % HOUR / MINUTE, of_day / HOUR)
}
