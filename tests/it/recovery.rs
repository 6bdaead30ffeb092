//! Clusters that lost their managers: the survivor goes on alone, or a backup does.

use std::time::Duration;

use anyhow::{Result, ensure};
use rswarm_tests::harness::{Lab, eventually, run};

use crate::support::{cluster, converged, deploy, running, running_everywhere};

/// Managers in the state that `node ls` shows.
fn managers(lab: &Lab, ask: usize, state: &str) -> Result<usize> {
    let nodes = lab.hosts[ask].docker(&["node", "ls", "--format", "{{.ManagerStatus}}"])?;
    Ok(nodes.lines().filter(|line| *line == state).count())
}

#[test]
fn the_quorum_is_guarded_and_the_last_manager_left_recovers_the_cluster() -> Result<()> {
    let mut lab = cluster(4, 3)?;
    deploy(&lab.hosts[0], "web", 4)?;
    converged(&lab.hosts[0], "web", 4, Duration::from_secs(20))?;
    let kept = [running(&lab.hosts[2])?, running(&lab.hosts[3])?];

    lab.hosts[0].kill()?;
    eventually(Duration::from_secs(20), "h1 is seen to be away", || {
        Ok(managers(&lab, 2, "Unreachable")? == 1)
    })?;
    // Each of the two that are left is needed.
    let lost = "can't remove member from the raft: this would result in a loss of quorum";
    let refused = lab.hosts[2].refusal(&["node", "demote", "h2"])?;
    ensure!(refused.contains(lost), "{refused}");
    let refused = lab.hosts[2].refusal(&["node", "rm", "--force", "h2"])?;
    ensure!(refused.contains("is a cluster manager and is a member of the raft cluster"), "{refused}");
    let refused = lab.hosts[2].refusal(&["swarm", "leave"])?;
    ensure!(refused.contains("leaves 1 managers out of 3. Without a Raft quorum"), "{refused}");
    // The one that is away is not.
    lab.hosts[2].docker(&["node", "demote", "h1"])?;
    eventually(
        Duration::from_secs(20),
        "the leader has written of h1 what it had to, and it is promoted",
        || lab.hosts[2].docker(&["node", "promote", "h1"]).map(|_| true),
    )?;

    lab.hosts[1].kill()?;
    eventually(Duration::from_secs(20), "h3 has no quorum any more", || {
        let refused = lab.hosts[2].refusal(&["service", "scale", "--detach", "web=5"])?;
        Ok(refused.contains("The swarm does not have a leader"))
    })?;
    let said = lab.hosts[2].rswarm(&["swarm", "recover"])?;
    ensure!(said.contains("is now its only manager"), "{said}");
    eventually(Duration::from_secs(20), "h3 leads alone", || {
        Ok(managers(&lab, 2, "Leader")? == 1 && managers(&lab, 2, "Reachable")? == 0)
    })?;
    converged(&lab.hosts[2], "web", 4, Duration::from_secs(30))?;
    for (index, before) in [2, 3].into_iter().zip(&kept) {
        let now = running(&lab.hosts[index])?;
        for (id, process) in before {
            ensure!(now.get(id) == Some(process), "{id} on {} changed: {now:?}", lab.hosts[index].name);
        }
    }
    lab.hosts[2].docker(&["service", "scale", "web=5"])?;
    // A manager that was lost must not come back with its log: it leaves, and joins.
    for index in [0, 1] {
        lab.hosts[index].start()?;
        lab.hosts[index].ready()?;
        lab.hosts[index].docker(&["swarm", "leave", "--force"])?;
    }
    let token = lab.hosts[2].docker(&["swarm", "join-token", "-q", "manager"])?;
    let address = format!("{}:2377", lab.hosts[2].address);
    lab.hosts[1].docker(&["swarm", "join", "--token", token.trim(), &address])?;
    eventually(Duration::from_secs(20), "h2 manages again", || Ok(managers(&lab, 2, "Reachable")? == 1))?;
    lab.finish()
}

#[test]
fn a_backup_brings_a_cluster_back_whose_managers_lost_everything() -> Result<()> {
    let mut lab = cluster(3, 1)?;
    deploy(&lab.hosts[0], "web", 3)?;
    converged(&lab.hosts[0], "web", 3, Duration::from_secs(20))?;
    let secret = lab.dir.join("secret");
    std::fs::write(&secret, "open sesame")?;
    lab.hosts[0].docker(&["secret", "create", "word", &secret.to_string_lossy()])?;
    let file = lab.dir.join("backup");
    let path = file.to_string_lossy().into_owned();
    lab.hosts[0].rswarm(&["swarm", "backup", &path])?;
    let mode = run(std::process::Command::new("stat").args(["-c", "%a", &path]))?;
    ensure!(mode.trim() == "600", "everybody may read the backup: {mode}");
    let cluster_id = lab.hosts[0].docker(&["info", "--format", "{{.Swarm.Cluster.ID}}"])?;
    let refused = lab.hosts[0].rswarm(&["swarm", "restore", &path]).expect_err("it is in a cluster");
    ensure!(refused.to_string().contains("already part of a swarm"), "{refused}");
    let refused = lab.hosts[1].rswarm(&["swarm", "backup", &path]).expect_err("a worker has no state");
    ensure!(refused.to_string().contains("This node is not a swarm manager"), "{refused}");
    // What the lost manager wrote after the backup is lost with it.
    lab.hosts[0].docker(&["service", "update", "--detach", "--label-add", "late=1", "web"])?;
    let workers = [running(&lab.hosts[1])?, running(&lab.hosts[2])?];

    // The only manager loses its disk; its containers go with it.
    lab.hosts[0].retire()?;
    std::fs::remove_dir_all(lab.hosts[0].dir.join("data/swarm")).or_else(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })?;
    lab.hosts[0].start()?;
    lab.hosts[0].ready()?;

    let bytes = std::fs::read(&file)?;
    for (name, bytes, why) in [
        ("changed", [&bytes[..100], &[bytes[100] ^ 1], &bytes[101..]].concat(), "the backup is damaged"),
        ("cut", bytes[..bytes.len() / 2].to_vec(), "the backup is damaged"),
        ("newer", [b"rswarm-backup 9", &bytes[15..]].concat(), "format version `9`"),
        ("foreign", b"hello".to_vec(), "not a backup"),
    ] {
        let wrong = lab.dir.join(name);
        std::fs::write(&wrong, bytes)?;
        let refused = lab.hosts[0].rswarm(&["swarm", "restore", &wrong.to_string_lossy()]);
        let refused = refused.expect_err(name).to_string();
        ensure!(refused.contains(why), "{name}: {refused}");
        ensure!(!lab.hosts[0].dir.join("data/swarm").exists(), "{name}: something was left");
    }

    let address = lab.hosts[0].address.to_string();
    lab.hosts[0].rswarm(&["swarm", "restore", "--advertise-addr", &address, &path])?;
    ensure!(lab.hosts[0].docker(&["info", "--format", "{{.Swarm.Cluster.ID}}"])? == cluster_id);
    eventually(Duration::from_secs(30), "both workers are back", || {
        let nodes = lab.hosts[0].docker(&["node", "ls", "--format", "{{.Hostname}} {{.Status}}"])?;
        Ok(nodes.contains("h2 Ready") && nodes.contains("h3 Ready") && nodes.contains("h1 Ready"))
    })?;
    converged(&lab.hosts[0], "web", 3, Duration::from_secs(30))?;
    let now = running_everywhere(&lab)?;
    for (id, process) in workers.iter().flatten() {
        ensure!(now.get(id) == Some(process), "container {id} of a worker changed");
    }
    ensure!(lab.hosts[0].docker(&["secret", "ls", "--format", "{{.Name}}"])?.trim() == "word");
    let label = lab.hosts[0].docker(&["service", "inspect", "--format", "{{.Spec.Labels}}", "web"])?;
    ensure!(!label.contains("late"), "{label}");
    // It is a cluster as any other: it takes writes, and a manager.
    lab.hosts[0].docker(&["service", "scale", "web=4"])?;
    lab.hosts[0].docker(&["node", "promote", "h2"])?;
    eventually(Duration::from_secs(20), "h2 manages", || Ok(managers(&lab, 1, "Reachable")? == 1))?;
    lab.finish()
}
