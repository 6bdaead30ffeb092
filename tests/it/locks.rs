//! Managers whose keys are locked on their disks, and clusters that get another root certificate.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rswarm_tests::harness::{Lab, eventually};
use rswarm_tests::host::Host;

use crate::support::{cluster, converged, deploy, running_everywhere};

fn key_file(host: &Host) -> Result<String> {
    Ok(std::fs::read_to_string(host.dir.join("data/swarm/certificates/swarm-node.key"))?)
}

fn is_locked_on_disk(host: &Host) -> Result<bool> {
    let text = key_file(host)?;
    ensure!(text.contains("LOCKED KEY") != text.contains("PRIVATE KEY"), "{text}");
    Ok(text.contains("LOCKED KEY"))
}

fn state(host: &Host) -> Result<String> {
    Ok(host.docker(&["info", "--format", "{{.Swarm.LocalNodeState}}"])?.trim().to_owned())
}

fn unlock(host: &Host, key: &str) -> Result<(u16, String)> {
    host.api("POST", "/swarm/unlock", &format!("{{\"UnlockKey\":\"{key}\"}}"))
}

#[test]
fn a_locked_manager_needs_the_key_after_a_restart_and_its_containers_do_not() -> Result<()> {
    let mut lab = cluster(3, 2)?;
    deploy(&lab.hosts[0], "web", 3)?;
    converged(&lab.hosts[0], "web", 3, Duration::from_secs(20))?;
    let before = running_everywhere(&lab)?;
    let none = lab.hosts[0].refusal(&["swarm", "unlock-key"])?;
    ensure!(none.contains("no unlock key is set"), "{none}");
    let (code, said) = unlock(&lab.hosts[0], "SWMKEY-1-x")?;
    ensure!(code == 409 && said.contains("swarm is not locked"), "{code} {said}");

    let said = lab.hosts[0].docker(&["swarm", "update", "--autolock=true"])?;
    ensure!(said.contains("Swarm updated.") && said.contains("SWMKEY-1-"), "{said}");
    let key = lab.hosts[1].docker(&["swarm", "unlock-key", "-q"])?.trim().to_owned();
    ensure!(said.contains(&key), "another key than was shown: {said}");
    for manager in 0..2 {
        eventually(Duration::from_secs(10), "the managers' keys are locked", || {
            is_locked_on_disk(&lab.hosts[manager])
        })?;
    }
    ensure!(!is_locked_on_disk(&lab.hosts[2])?, "a worker has nothing to lock");

    lab.hosts[1].restart_hard()?;
    ensure!(state(&lab.hosts[1])? == "locked");
    let locked = "Swarm is encrypted and needs to be unlocked before it can be used. Please use \"docker swarm \
                  unlock\" to unlock it.";
    for args in [&["node", "ls"][..], &["swarm", "unlock-key"], &["service", "ls"]] {
        let refused = lab.hosts[1].refusal(args)?;
        ensure!(refused.contains(locked), "{args:?}: {refused}");
    }
    let refused = lab.hosts[1].refusal(&["swarm", "leave"])?;
    ensure!(refused.contains("Swarm is encrypted and locked. Please unlock it first"), "{refused}");
    ensure!(running_everywhere(&lab)? == before, "containers of a locked manager changed");
    let (code, said) = unlock(&lab.hosts[1], "nonsense")?;
    ensure!(code == 400 && said.contains("invalid key string"), "{code} {said}");
    let (code, said) = unlock(&lab.hosts[1], "SWMKEY-1-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")?;
    ensure!(
        code == 401 && said.contains("swarm could not be unlocked: invalid key provided"),
        "{code} {said}"
    );
    let (code, said) = unlock(&lab.hosts[1], &key)?;
    ensure!(code == 200, "{code} {said}");
    eventually(Duration::from_secs(20), "h2 manages again", || {
        let nodes = lab.hosts[1].docker(&["node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}"])?;
        Ok(state(&lab.hosts[1])? == "active" && !nodes.contains("Unreachable"))
    })?;

    let locked_before = key_file(&lab.hosts[1])?;
    let other = lab.hosts[0].docker(&["swarm", "unlock-key", "--rotate", "-q"])?.trim().to_owned();
    ensure!(other != key && other.starts_with("SWMKEY-1-"), "{other}");
    eventually(Duration::from_secs(10), "h2 is locked with the new key", || {
        Ok(key_file(&lab.hosts[1])? != locked_before)
    })?;
    lab.hosts[1].restart_hard()?;
    ensure!(unlock(&lab.hosts[1], &key)?.0 == 401, "the old key still opens");
    ensure!(unlock(&lab.hosts[1], &other)?.0 == 200, "the new key does not open");
    eventually(Duration::from_secs(20), "h2 manages again", || Ok(state(&lab.hosts[1])? == "active"))?;
    ensure!(running_everywhere(&lab)? == before, "containers changed");

    lab.hosts[0].docker(&["swarm", "update", "--autolock=false"])?;
    for manager in 0..2 {
        eventually(Duration::from_secs(10), "the managers' keys are not locked any more", || {
            Ok(!is_locked_on_disk(&lab.hosts[manager])?)
        })?;
    }
    lab.hosts[1].restart_hard()?;
    eventually(Duration::from_secs(20), "h2 needs no key", || Ok(state(&lab.hosts[1])? == "active"))?;
    lab.finish()
}

#[test]
fn a_cluster_is_locked_from_its_first_moment_and_its_backup_is_sealed() -> Result<()> {
    let mut lab = Lab::start(1)?;
    let address = lab.hosts[0].address.to_string();
    let said = lab.hosts[0].docker(&["swarm", "init", "--autolock", "--advertise-addr", &address])?;
    let key = said.split_whitespace().find(|word| word.starts_with("SWMKEY-1-")).context("a key")?.to_owned();
    ensure!(is_locked_on_disk(&lab.hosts[0])?, "the key was on disk unlocked");
    let file = lab.dir.join("backup").to_string_lossy().into_owned();
    lab.hosts[0].rswarm(&["swarm", "backup", &file])?;
    let token = lab.hosts[0].docker(&["swarm", "join-token", "-q", "manager"])?;
    let bytes = std::fs::read(&file)?;
    ensure!(!bytes.windows(token.trim().len()).any(|part| part == token.trim().as_bytes()), "it is readable");

    lab.hosts[0].restart_hard()?;
    ensure!(state(&lab.hosts[0])? == "locked");
    lab.hosts[0].docker(&["swarm", "leave", "--force"])?;
    ensure!(state(&lab.hosts[0])? == "inactive");
    ensure!(!lab.hosts[0].dir.join("data/swarm").exists(), "a locked manager left something behind");
    let refused = lab.hosts[0].rswarm(&["swarm", "restore", &file]).expect_err("no key");
    ensure!(refused.to_string().contains("the backup is sealed, and needs the unlock key"), "{refused}");
    let restore = |key: &str| {
        let script = format!(
            "echo '{key}' | {} -H {} swarm restore {file}",
            rswarm_tests::harness::binary().display(),
            lab.hosts[0].socket()
        );
        rswarm_tests::harness::run(std::process::Command::new("sh").args(["-c", &script]))
    };
    restore(&key)?;
    ensure!(is_locked_on_disk(&lab.hosts[0])?, "a restored manager is locked as the cluster says");
    ensure!(lab.hosts[0].docker(&["swarm", "unlock-key", "-q"])?.trim() == key);
    lab.finish()
}

fn rotation(host: &Host) -> Result<(bool, String)> {
    let (code, body) = host.api("GET", "/swarm", "")?;
    ensure!(code == 200, "{code} {body}");
    let swarm: serde_json::Value = serde_json::from_str(&body)?;
    let root = swarm["TLSInfo"]["TrustRoot"].as_str().context("a root")?.to_owned();
    Ok((swarm["RootRotationInProgress"] == true, root))
}

#[test]
fn the_root_is_replaced_under_load_and_a_node_that_was_off_comes_back() -> Result<()> {
    let mut lab = cluster(5, 3)?;
    deploy(&lab.hosts[0], "web", 5)?;
    converged(&lab.hosts[0], "web", 5, Duration::from_secs(20))?;
    let (_, old) = rotation(&lab.hosts[0])?;
    let old_token = lab.hosts[0].docker(&["swarm", "join-token", "-q", "worker"])?;
    lab.hosts[4].kill()?;

    lab.hosts[0].docker(&["swarm", "ca", "--rotate", "--detach"])?;
    lab.hosts[1].docker(&["service", "update", "--detach", "--force", "web"])?;
    let renewed = |lab: &Lab| -> Result<usize> {
        let (_, body) = lab.hosts[0].api("GET", "/swarm", "")?;
        let swarm: serde_json::Value = serde_json::from_str(&body)?;
        let (_, body) = lab.hosts[0].api("GET", "/nodes", "")?;
        let nodes: Vec<serde_json::Value> = serde_json::from_str(&body)?;
        let wanted = &swarm["TLSInfo"]["CertIssuerPublicKey"];
        ensure!(wanted.is_string(), "{swarm}");
        Ok(nodes
            .iter()
            .filter(|node| node["Description"]["TLSInfo"]["CertIssuerPublicKey"] == *wanted)
            .count())
    };
    eventually(Duration::from_secs(40), "four nodes have certificates by the new root", || {
        Ok(renewed(&lab)? == 4)
    })?;
    ensure!(rotation(&lab.hosts[0])? == (true, old.clone()), "it waits for the node that is off");

    lab.hosts[4].start()?;
    lab.hosts[4].ready()?;
    eventually(Duration::from_secs(40), "the new root is alone", || {
        let (rotating, root) = rotation(&lab.hosts[0])?;
        Ok(!rotating && root != old)
    })?;
    eventually(Duration::from_secs(20), "all nodes are as docker's client wants them", || {
        let nodes = lab.hosts[2].docker(&["node", "ls", "--format", "{{.Status}} {{.TLSStatus}}"])?;
        Ok(nodes.lines().filter(|line| *line == "Ready Ready").count() == 5)
    })?;
    converged(&lab.hosts[0], "web", 5, Duration::from_secs(60))?;

    // Docker's client waits to the end, too, and prints the root.
    let (_, second) = rotation(&lab.hosts[0])?;
    let said = lab.hosts[1].docker(&["swarm", "ca", "--rotate"])?;
    let (rotating, third) = rotation(&lab.hosts[1])?;
    ensure!(!rotating && third != second && said.contains(third.trim()), "{said}");
    let said = lab.hosts[0].rswarm(&["swarm", "ca", "--rotate"])?;
    ensure!(said.contains("rotated TLS certificates: 5/5 nodes"), "{said}");

    // Everybody starts anew with what is on disk, and a node that left joins with the new token alone.
    for index in 0..5 {
        lab.hosts[index].restart_hard()?;
    }
    eventually(Duration::from_secs(40), "five nodes are ready", || {
        let nodes = lab.hosts[0].docker(&["node", "ls", "--format", "{{.Status}}"])?;
        Ok(nodes.lines().filter(|line| *line == "Ready").count() == 5)
    })?;
    lab.hosts[4].docker(&["swarm", "leave"])?;
    let manager = format!("{}:2377", lab.hosts[0].address);
    let refused = lab.hosts[4].refusal(&["swarm", "join", "--token", old_token.trim(), &manager])?;
    ensure!(refused.contains("digest"), "{refused}");
    let token = lab.hosts[0].docker(&["swarm", "join-token", "-q", "worker"])?;
    lab.hosts[4].docker(&["swarm", "join", "--token", token.trim(), &manager])?;
    lab.finish()
}
