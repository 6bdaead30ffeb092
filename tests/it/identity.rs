//! Who may join, who may ask, and what a damaged log does.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rswarm_proto::tls::{self, Identity};
use rswarm_proto::wire::control_client::ControlClient;
use rswarm_proto::wire::{ListRequest, ObjectKind};
use rswarm_tests::harness::{Lab, eventually};
use rswarm_tests::host::Host;

fn join(host: &Host, token: &str, manager: &Host) -> Result<String> {
    host.docker(&["swarm", "join", "--token", token, &format!("{}:2377", manager.address)])
}

fn is_outside(host: &Host) -> Result<()> {
    let state = host.docker(&["info", "--format", "{{.Swarm.LocalNodeState}}"])?;
    ensure!(state.trim() == "inactive", "{} is {state:?}", host.name);
    ensure!(
        !host.dir.join("data/swarm").exists(),
        "{} keeps files of a cluster that it is not in",
        host.name
    );
    Ok(())
}

#[test]
fn wrong_tokens_are_refused_and_leave_no_half_joined_node() -> Result<()> {
    let lab = Lab::start(2)?;
    let (manager, joiner) = (&lab.hosts[0], &lab.hosts[1]);
    manager.rswarm(&["init", "--advertise-addr", &manager.address.to_string()])?;
    let token = manager.docker(&["swarm", "join-token", "-q", "worker"])?.trim().to_owned();

    let mut wrong_secret = token.clone();
    let last = if token.ends_with('0') { "1" } else { "0" };
    wrong_secret.replace_range(token.len() - 1.., last);
    let mut wrong_root = token.clone();
    wrong_root.replace_range(12..13, if &token[12..13] == "0" { "1" } else { "0" });
    for (token, word) in [
        (wrong_secret.as_str(), "token"),
        (&wrong_root, "digest"),
        ("SWMTKN-1-short", "token"),
        ("nonsense", "token"),
    ] {
        let error = join(joiner, token, manager).expect_err("a wrong token is refused").to_string();
        ensure!(error.to_lowercase().contains(word), "`{token}` gave {error:?}");
        is_outside(joiner)?;
    }
    manager.docker(&["swarm", "join-token", "--rotate", "-q", "worker"])?;
    let error = join(joiner, &token, manager).expect_err("a rotated token is refused").to_string();
    ensure!(error.contains("token"), "{error:?}");
    is_outside(joiner)?;
    let nodes = manager.docker(&["node", "ls", "-q"])?;
    ensure!(nodes.lines().count() == 1, "refused nodes are listed: {nodes}");

    let token = manager.docker(&["swarm", "join-token", "-q", "worker"])?;
    join(joiner, token.trim(), manager)?;
    let twice =
        joiner.refusal(&["swarm", "join", "--token", token.trim(), &format!("{}:2377", manager.address)])?;
    ensure!(twice.contains("already part of a swarm"), "{twice:?}");
    lab.finish()
}

#[test]
fn a_workers_certificate_opens_no_manager_call() -> Result<()> {
    let lab = Lab::start(2)?;
    lab.form_cluster(1)?;
    let identity =
        Identity::load(&lab.hosts[1].dir.join("data/swarm/certificates"))?.context("an identity")?;
    // The lab's network is only reachable from inside: enter the worker's namespace on a thread of its own.
    let (netns, address) = (format!("/run/netns/{}", lab.hosts[1].netns), lab.hosts[0].address);
    let refused = std::thread::spawn(move || -> Result<tonic::Status> {
        nix::sched::setns(std::fs::File::open(netns)?, nix::sched::CloneFlags::CLONE_NEWNET)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let channel = tls::connect(&format!("{address}:2377"), &identity).await?;
            let request = ListRequest { kind: ObjectKind::Node.into() };
            let answer = ControlClient::new(channel).list(request).await;
            answer.err().context("a worker listed the nodes")
        })
    });
    let status = refused.join().expect("the thread does not panic")?;
    ensure!(status.code() == tonic::Code::PermissionDenied, "{status:?}");
    lab.finish()
}

#[test]
fn a_flipped_byte_in_the_log_is_reported_with_file_and_offset() -> Result<()> {
    let mut lab = Lab::start(1)?;
    lab.form_cluster(1)?;
    lab.hosts[0].docker(&["network", "create", "--driver", "overlay", "app"])?;
    lab.hosts[0].stop()?;
    let log = last_segment(&lab.hosts[0].dir.join("data/swarm/raft"))?;
    let file = std::fs::File::options().read(true).write(true).open(&log)?;
    let middle = file.metadata()?.len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle)?;
    file.write_all_at(&[byte[0] ^ 0x40], middle)?;
    lab.hosts[0].start()?;
    let name = log.file_name().and_then(|name| name.to_str()).context("a name")?.to_owned();
    let daemon_log = lab.hosts[0].dir.join("daemon.log");
    eventually(Duration::from_secs(10), "the daemon names the file and the offset", || {
        let text = std::fs::read_to_string(&daemon_log)?;
        Ok(text.contains(&name) && text.contains("offset"))
    })?;
    ensure!(lab.hosts[0].docker(&["node", "ls"]).is_err(), "the node serves a state from a damaged log");
    // The engine is there all the same, and says what is wrong.
    let error = lab.hosts[0].docker(&["info", "--format", "{{.Swarm.LocalNodeState}} {{.Swarm.Error}}"])?;
    ensure!(error.starts_with("error ") && error.contains(&name), "{error}");
    lab.finish()
}

#[test]
fn a_node_that_left_can_found_and_join_again() -> Result<()> {
    let lab = Lab::start(2)?;
    lab.form_cluster(1)?;
    for host in lab.hosts.iter().rev() {
        host.docker(&["swarm", "leave", "--force"])?;
        is_outside(host)?;
    }
    lab.form_cluster(2)?;
    ensure!(lab.hosts[1].docker(&["node", "ls", "-q"])?.lines().count() == 2);
    lab.finish()
}

/// The newest segment of the raft log.
fn last_segment(dir: &std::path::Path) -> Result<PathBuf> {
    let names = std::fs::read_dir(dir)?.map(|entry| entry.map(|entry| entry.path()));
    let files: Vec<PathBuf> = names.collect::<Result<_, _>>()?;
    let is_log = |path: &PathBuf| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("log-"))
    };
    files.into_iter().filter(is_log).max().context("the raft directory has a log")
}
