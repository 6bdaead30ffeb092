//! What can be seen of a cluster from outside: figures for Prometheus, and the record of control calls.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rswarm_tests::harness::{Lab, eventually, run};
use rswarm_tests::host::Host;
use serde_json::Value;

use crate::support::converged;

const PATIENCE: Duration = Duration::from_secs(30);

/// A scrape, read as Prometheus reads it: every sample by its name and labels.
struct Scrape(BTreeMap<String, f64>);

impl Scrape {
    fn of(host: &Host) -> Result<Scrape> {
        let text = run(host.command("curl").args(["-sS", "--fail", "http://127.0.0.1:9323/metrics"]))?;
        let mut samples = BTreeMap::new();
        let mut family = String::new();
        for line in text.lines() {
            if let Some(comment) = line.strip_prefix("# ") {
                let mut words = comment.split(' ');
                let (what, name) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
                ensure!(["HELP", "TYPE"].contains(&what), "{line}");
                family = name.to_owned();
                continue;
            }
            let (sample, value) = line.rsplit_once(' ').with_context(|| format!("no sample: {line}"))?;
            ensure!(sample.starts_with(&family), "{line} is not of the family {family}");
            let before = samples.insert(sample.to_owned(), value.parse()?);
            ensure!(before.is_none(), "{sample} is there twice");
        }
        Ok(Scrape(samples))
    }

    fn value(&self, sample: &str) -> Result<f64> {
        self.0.get(sample).copied().with_context(|| format!("no sample `{sample}`"))
    }
}

/// A cluster of one manager and one worker, with figures on their loopbacks.
fn observed() -> Result<Lab> {
    let mut lab = Lab::start(2)?;
    for host in &mut lab.hosts {
        host.flags = ["--metrics-addr", "127.0.0.1:9323"].map(str::to_owned).to_vec();
        host.stop()?;
        host.start()?;
        host.ready()?;
        host.import_demo()?;
    }
    lab.form_cluster(1)?;
    Ok(lab)
}

#[test]
fn every_manager_tells_what_happens_in_the_cluster() -> Result<()> {
    let lab = Lab::start(3)?;
    lab.form_cluster(2)?;
    let first = &lab.hosts[0];
    first.import_demo()?;
    let told = |host: &Host| -> Result<BTreeSet<String>> {
        let format = "{{.Type}} {{.Action}} {{json .Actor.Attributes}}";
        let span = ["--since", "1h", "--until", "0s", "--filter", "scope=swarm", "--format", format];
        let shown = host.docker(&[&["events"][..], &span].concat())?;
        Ok(shown.lines().map(str::to_owned).collect())
    };
    let create = ["service", "create", "--detach", "--name", "web", "--network", "news", "demo:latest"];
    let steps: [(&[&str], &str); 5] = [
        (&["network", "create", "--driver", "overlay", "news"], r#"network create {"name":"news"}"#),
        (&create, r#"service create {"name":"web"}"#),
        (
            &["service", "scale", "--detach", "web=2"],
            r#"service update {"name":"web","replicas.new":"2","replicas.old":"1"}"#,
        ),
        (
            &["node", "update", "--availability", "drain", "h3"],
            r#"node update {"availability.new":"drain","availability.old":"active","name":"h3"}"#,
        ),
        (&["service", "rm", "web"], r#"service remove {"name":"web"}"#),
    ];
    for (command, wanted) in steps {
        first.docker(command)?;
        // One after the other: of what changed twice between two looks, a manager tells the sum.
        for host in &lab.hosts[..2] {
            eventually(PATIENCE, &format!("{} tells: {wanted}", host.name), || {
                let told = told(host)?;
                ensure!(told.contains(wanted), "{told:#?}");
                Ok(true)
            })?;
        }
    }
    ensure!(told(&lab.hosts[2])?.is_empty(), "a worker does not know");
    lab.finish()
}

#[test]
fn managers_tell_who_leads_and_who_is_not_reached() -> Result<()> {
    let mut lab = Lab::start(3)?;
    lab.form_cluster(3)?;
    let old = lab.leader(0)?;
    lab.hosts[old].kill()?;
    let others: Vec<&Host> = lab.hosts.iter().filter(|host| host.is_running()).collect();
    let told = |host: &Host, wanted: &str| -> Result<bool> {
        let format = "{{.Type}} {{.Action}} {{json .Actor.Attributes}}";
        let span = ["--since", "1h", "--until", "0s", "--filter", "scope=swarm", "--format", format];
        Ok(host.docker(&[&["events"][..], &span].concat())?.lines().any(|line| line == wanted))
    };
    let old_name = format!("h{}", old + 1);
    let lost = format!(r#"node update {{"leader.new":"false","leader.old":"true","name":"{old_name}"}}"#);
    for host in &others {
        let what = format!("{} tells: {lost}", host.name);
        eventually(PATIENCE, &what, || told(host, &lost))?;
    }
    let won = |host: &Host| {
        format!(r#"node update {{"leader.new":"true","leader.old":"false","name":"{}"}}"#, host.name)
    };
    let is_told = || Ok(told(others[0], &won(others[0]))? || told(others[0], &won(others[1]))?);
    eventually(PATIENCE, "who leads now is told", is_told)?;
    // The new leader alone knows whom it hears of.
    let gone = format!(
        r#"node update {{"name":"{old_name}","reachability.new":"unreachable","reachability.old":"reachable"}}"#
    );
    let is_told = || Ok(told(others[0], &gone)? || told(others[1], &gone)?);
    eventually(PATIENCE, "who is not reached is told", is_told)?;
    lab.hosts[old].start()?;
    lab.hosts[old].ready()?;
    lab.finish()
}

#[test]
fn figures_tell_what_engine_and_managers_do() -> Result<()> {
    let lab = observed()?;
    let (manager, worker) = (&lab.hosts[0], &lab.hosts[1]);
    manager.docker(&["service", "create", "--detach", "--name", "web", "--replicas", "3", "demo:latest"])?;
    converged(manager, "web", 3, PATIENCE)?;
    // A call that is made again.
    let (_, found) = manager.api("GET", "/services/web", "")?;
    let mut found: Value = serde_json::from_str(&found)?;
    found["Spec"]["Labels"]["new"] = "yes".into();
    let target = format!("/services/web/update?version={}", found["Version"]["Index"]);
    let spec = found["Spec"].to_string();
    ensure!(manager.api("POST", &target, &spec)?.0 == 200);
    ensure!(manager.api("POST", &target, &spec)?.0 == 400, "the same call twice");
    // Asks the nodes of its tasks, this one too.
    manager.docker(&["service", "logs", "web"])?;

    eventually(PATIENCE, "the manager's figures are those of the cluster", || {
        let scrape = Scrape::of(manager)?;
        for (sample, wanted) in [
            ("swarm_node_manager", 1.0),
            ("swarm_manager_leader", 1.0),
            ("rswarm_raft_has_leader", 1.0),
            ("rswarm_raft_voters", 1.0),
            ("swarm_manager_services_total", 1.0),
            ("swarm_manager_nodes{state=\"ready\"}", 2.0),
            ("swarm_manager_tasks_total{state=\"running\"}", 3.0),
            ("rswarm_scheduler_pending_tasks", 0.0),
            ("rswarm_dispatcher_sessions", 2.0),
            ("rswarm_rpc_refused_total{reason=\"replayed\"}", 1.0),
        ] {
            let value = scrape.value(sample)?;
            ensure!(value == wanted, "{sample} is {value}, not {wanted}");
        }
        for sample in [
            "swarm_dispatcher_scheduling_delay_seconds_count",
            "rswarm_raft_term",
            "rswarm_raft_applied_index",
            "rswarm_raft_proposals_total{outcome=\"applied\"}",
            "swarm_raft_transaction_latency_seconds_count",
            "etcd_disk_wal_fsync_duration_seconds_sum",
            "rswarm_store_apply_seconds_count",
            "rswarm_scheduler_pass_seconds_count",
            "rswarm_dispatcher_heartbeats_total",
            "grpc_server_handled_total{grpc_service=\"rswarm.v1.Control\",grpc_method=\"CreateService\",grpc_code=\"OK\"}",
            "grpc_server_handled_total{grpc_service=\"rswarm.v1.TaskLogs\",grpc_method=\"Read\",grpc_code=\"OK\"}",
        ] {
            ensure!(scrape.value(sample)? > 0.0, "{sample} is zero");
        }
        let of = |host| -> Result<f64> {
            Scrape::of(host)?.value("engine_daemon_container_states_containers{state=\"running\"}")
        };
        ensure!(of(manager)? + of(worker)? == 3.0, "the containers that run are not all told");
        Ok(true)
    })?;
    let served = "grpc_server_handled_total{grpc_service=\"rswarm.v1.TaskLogs\",grpc_method=\"Read\",grpc_code=\"OK\"}";
    eventually(PATIENCE, "the worker counts what it was asked", || {
        Ok(Scrape::of(worker)?.value(served)? > 0.0)
    })?;
    let scrape = Scrape::of(worker)?;
    ensure!(scrape.value("swarm_node_manager")? == 0.0 && !scrape.0.contains_key("swarm_manager_leader"));
    let started = scrape.value("engine_daemon_container_actions_seconds_count{action=\"start\"}")?;
    ensure!(started >= 1.0, "{started}");
    let elsewhere = ["-s", "-o", "/dev/null", "-w", "%{http_code}", "http://127.0.0.1:9323/"];
    ensure!(run(worker.command("curl").args(elsewhere))? == "404");
    manager.docker(&["service", "rm", "web"])?;
    lab.finish()
}

#[test]
fn control_calls_are_written_down_with_who_asked_and_no_secret() -> Result<()> {
    let mut lab = Lab::start(2)?;
    for host in &mut lab.hosts {
        host.flags = vec!["--audit-log".to_owned(), host.dir.join("audit.log").display().to_string()];
        host.stop()?;
        host.start()?;
        host.ready()?;
    }
    lab.form_cluster(2)?;
    let [leader, follower] = &lab.hosts[..] else { anyhow::bail!("two hosts") };
    let secret = r#"{"Name":"key","Data":"aHVzaGh1c2g="}"#;
    ensure!(follower.api("POST", "/secrets/create", secret)?.0 == 201);
    ensure!(follower.api("POST", "/secrets/create", secret)?.0 == 409, "the name is taken");
    follower.docker(&["swarm", "join-token", "--rotate", "-q", "worker"])?;
    follower.docker(&["secret", "rm", "key"])?;

    // The follower knows the user; the leader has it from the follower.
    let own = follower.docker(&["info", "--format", "{{.Swarm.NodeID}}"])?;
    for host in [leader, follower] {
        let text = std::fs::read_to_string(host.dir.join("audit.log"))?;
        let lines: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let calls = |call: &str, outcome: &str| -> Vec<&Value> {
            lines.iter().filter(|line| line["call"] == call && line["outcome"] == outcome).collect()
        };
        let created = calls("create_secret", "ok");
        ensure!(created.len() == 1 && created[0]["name"] == "key", "{}: {text}", host.name);
        ensure!(created[0]["user"]["uid"] == 0 && created[0]["user"]["pid"].as_i64() > Some(1), "{text}");
        ensure!(created[0]["via"]["node"] == own.trim() && created[0]["via"]["role"] == "manager", "{text}");
        ensure!(calls("create_secret", "AlreadyExists").len() == 1, "{text}");
        ensure!(calls("remove_secret", "ok")[0]["id"] == created[0]["id"], "{text}");
        let rotated = calls("update_cluster", "ok");
        ensure!(rotated.iter().any(|line| line["detail"][0] == "rotate_worker_token"), "{text}");
        // Neither as it is nor as it travels; nor what lets nodes in.
        for hidden in ["hushhush", "aHVzaGh1c2g", "SWMTKN"] {
            ensure!(!text.contains(hidden), "{hidden} is in the audit log of {}", host.name);
        }
        let mode = std::fs::metadata(host.dir.join("audit.log"))?.permissions();
        ensure!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777 == 0o600, "{mode:?}");
    }
    let text = std::fs::read_to_string(leader.dir.join("audit.log"))?;
    ensure!(text.contains(r#""call":"init""#) && text.contains(r#""call":"issue_certificate""#), "{text}");
    ensure!(std::fs::read_to_string(follower.dir.join("audit.log"))?.contains(r#""call":"join""#));
    lab.finish()
}

#[test]
fn services_and_nodes_tell_what_their_tasks_use_while_somebody_asks() -> Result<()> {
    let lab = Lab::start(3)?;
    // The one that is asked leads; the agents may talk to the other.
    lab.form_cluster(2)?;
    lab.every_host(Host::import_busybox)?;
    let first = &lab.hosts[0];
    let create = ["service", "create", "--detach", "--mode", "global", "--name"];
    // One keeps a processor busy as far as it may, one holds memory.
    let busy = ["busy", "--limit-cpu", "0.2", "busybox:latest", "sh", "-c", "while :; do :; done"];
    first.docker(&[&create[..], &busy].concat())?;
    let holds = "x=$(head -c 8000000 /dev/zero | tr '\\0' a); while :; do sleep 1; done";
    first.docker(&[&create[..], &["full", "busybox:latest", "sh", "-c", holds]].concat())?;
    converged(first, "busy", 3, PATIENCE)?;
    converged(first, "full", 3, PATIENCE)?;
    let usage = |host: &Host| -> Result<Value> {
        let (status, body) = host.api("GET", "/swarm/usage", "")?;
        ensure!(status == 200, "{status} {body}");
        Ok(serde_json::from_str(&body)?)
    };
    for host in &lab.hosts[..2] {
        eventually(PATIENCE, "all tasks are told of", || {
            let found = usage(host)?;
            let services = found["Services"].as_array().context("services")?;
            ensure!(services.len() == 2, "{found}");
            let (busy, full) = (&services[0], &services[1]);
            for service in services {
                ensure!(service["Running"] == 3 && service["Reporting"] == 3, "{found}");
            }
            // Three times a fifth of a processor, measured on a machine that others use too.
            let rate = busy["CPURate"].as_u64().context("a rate")?;
            ensure!((50_000_000..1_200_000_000).contains(&rate), "{found}");
            ensure!(full["Memory"].as_u64() > Some(3 * 8_000_000), "{found}");
            ensure!(full["PIDs"].as_u64() >= Some(3), "{found}");
            let nodes = found["Nodes"].as_array().context("nodes")?;
            ensure!(nodes.len() == 3 && nodes.iter().all(|node| node["Reporting"] == 2), "{found}");
            Ok(true)
        })?;
    }
    let table = first.rswarm(&["service", "stats", "--no-stream"])?;
    let busy = table.lines().find(|line| line.contains("busy")).context("a line")?;
    ensure!(table.starts_with("ID ") && busy.contains('%') && !busy.contains(" 0.00%"), "{table}");
    let nodes =
        first.rswarm(&["node", "stats", "--no-stream", "--format", "{{.Hostname}} {{.Tasks}}", "h3"])?;
    ensure!(nodes == "h3 2\n", "{nodes}");
    first.docker(&["service", "rm", "busy", "full"])?;
    lab.finish()
}
