//! What `--check` does on top: kills the leader's daemon and proves that nobody else minds.

use std::time::{Duration, Instant};

use rswarm_api::types::Task;

use super::cluster::{self, REPLICAS, SERVICE};
use super::plan::{Host, Plan};
use super::probe::{self, Instance};
use super::steps::{Steps, until};
use super::up::Daemons;
use super::{PlaygroundError, host};
use crate::client::{Call, Filters};

/// How long the other managers may take to accept a change.
const TAKEOVER: Duration = Duration::from_secs(15);
const RUNNING: Duration = Duration::from_secs(30);
const BACK: Duration = Duration::from_secs(60);
/// What a step may take on top of what it waits for.
const SLACK: Duration = Duration::from_secs(30);

/// Kills the leader's daemon, changes the service meanwhile, brings the daemon back; no container may notice.
pub async fn survive(plan: &Plan, daemons: &mut Daemons, steps: &Steps) -> Result<(), PlaygroundError> {
    let before = probe::instances(&plan.hosts.iter().collect::<Vec<_>>()).await?;
    let leader = cluster::leader(plan, plan.first()).await?;
    daemons.kill(leader)?;
    let killed = Instant::now();
    let Some(other) = plan.managers().find(|host| host.name != leader.name) else {
        return restart_alone(plan, daemons, steps, leader, &before).await;
    };
    steps.step("failover", TAKEOVER + SLACK, take_over(leader, other, killed)).await?;
    undisturbed(&before, "after the leader's daemon was killed")?;
    // Now, before the others take the host for lost and replace its tasks.
    steps.step("return", BACK + SLACK, come_back(plan, daemons, leader, other)).await?;
    steps.step("scale", RUNNING + SLACK, scaled(other)).await?;
    undisturbed(&before, "after the leader's daemon came back")?;
    let after = probe::instances(&plan.hosts.iter().collect::<Vec<_>>()).await?;
    same_containers(&before, &after)?;
    steps.say(&format!("  ok  {:<9} {} containers ran on, none restarted", "untouched", before.len()))?;
    reach(&after, steps).await
}

/// Without other managers nothing can be changed meanwhile, but nothing may stop either.
async fn restart_alone(
    plan: &Plan,
    daemons: &mut Daemons,
    steps: &Steps,
    leader: &Host,
    before: &[Instance],
) -> Result<(), PlaygroundError> {
    undisturbed(before, "after the only manager's daemon was killed")?;
    steps.step("return", BACK + SLACK, come_back(plan, daemons, leader, leader)).await?;
    let after = probe::instances(&plan.hosts.iter().collect::<Vec<_>>()).await?;
    same_containers(before, &after)?;
    undisturbed(before, "after the only manager's daemon came back")?;
    reach(&after, steps).await
}

async fn reach(instances: &[Instance], steps: &Steps) -> Result<(), PlaygroundError> {
    let reach = async {
        let fetches = probe::by_address(instances).await? + probe::by_name(instances).await?;
        Ok(((), format!("{} tasks still reach each other, {fetches} fetches", instances.len())))
    };
    steps.step("reach", Duration::from_secs(120), reach).await
}

async fn take_over(leader: &Host, other: &Host, killed: Instant) -> Result<((), String), PlaygroundError> {
    let step = format!("scaling the service through {} without its leader", other.name);
    until(&step, TAKEOVER, || async {
        cluster::scale(other, REPLICAS + 1).await.map_err(|error| rswarm_base::Chain(&error).to_string())
    })
    .await?;
    let seconds = killed.elapsed().as_secs_f64();
    Ok(((), format!("{} led and was killed; {} took a change {seconds:.1}s later", leader.name, other.name)))
}

async fn scaled(other: &Host) -> Result<((), String), PlaygroundError> {
    let client = host::client(other)?;
    let filters = Filters::default().with("service", SERVICE).with("desired-state", "running");
    until("waiting for the added task", RUNNING, || async {
        let tasks: Vec<Task> =
            client.json(Call::get("/tasks").filters(&filters)).await.map_err(|error| error.to_string())?;
        let running = tasks.iter().filter(|task| task.status.state == "running").count() as u64;
        if running == REPLICAS + 1 { Ok(()) } else { Err(format!("{running} of {} tasks run", REPLICAS + 1)) }
    })
    .await?;
    Ok(((), format!("service {SERVICE} has {} tasks", REPLICAS + 1)))
}

async fn come_back(
    plan: &Plan,
    daemons: &mut Daemons,
    leader: &Host,
    asked: &Host,
) -> Result<((), String), PlaygroundError> {
    daemons.start(leader).await?;
    cluster::all_ready(plan, asked, BACK).await?;
    Ok(((), format!("{}'s daemon is back, all nodes are ready", leader.name)))
}

fn undisturbed(before: &[Instance], when: &str) -> Result<(), PlaygroundError> {
    match probe::disturbed(before).first() {
        None => Ok(()),
        Some(gone) => Err(PlaygroundError::Wrong(format!(
            "container `{}` on {} ended {when}",
            gone.container, gone.host
        ))),
    }
}

/// Every container that there was is still there, with the same process.
fn same_containers(before: &[Instance], after: &[Instance]) -> Result<(), PlaygroundError> {
    match before.iter().find(|instance| !after.contains(instance)) {
        None => Ok(()),
        Some(lost) => Err(PlaygroundError::Wrong(format!(
            "container `{}` on {} is not what it was before its manager was killed",
            lost.container, lost.host
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::process::Process;
    use super::*;

    #[test]
    fn a_container_with_another_process_is_not_the_same() {
        let instance = |pid| Instance {
            host: "n1".into(),
            container: "c".into(),
            process: Process { pid, started: 1 },
            address: "10.0.1.2".into(),
            hostname: "c".into(),
        };
        assert!(same_containers(&[instance(1)], &[instance(1), instance(2)]).is_ok());
        assert!(same_containers(&[instance(1)], &[instance(2)]).is_err());
    }
}
