//! A node that no manager can be reached from: what was assigned is on disk, and goes on.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use rswarm_base::{Scope, Timestamp};
use rswarm_proto::tls::{Authority, Credentials, Identity, Subject, new_key, signing_request};
use rswarm_proto::wire::{
    ContentSpec, FileReference, NodeDescription, NodeRole, Secret, Task, TaskLogsRequest, TaskSpec,
    TaskState, TaskStatus,
};
use rswarm_worker::assignments::NetworkView;
use rswarm_worker::disk::{Disk, StoredTask};
use rswarm_worker::executor::LogStream;
use rswarm_worker::{Agent, AgentConfig, Content, ExecError, Executor, Started, TaskExit};
use tokio::sync::watch;

/// Containers that only exist in memory, and a list of what was asked of them.
struct Fake {
    calls: Mutex<Vec<String>>,
    running: watch::Sender<BTreeSet<String>>,
}

impl Fake {
    fn new(running: &[&str]) -> Arc<Fake> {
        let running = running.iter().map(|id| (*id).to_owned()).collect();
        Arc::new(Fake { calls: Mutex::default(), running: watch::channel(running).0 })
    }

    fn note(&self, call: &str, task: &str) {
        self.calls.lock().expect("no test panics with the lock").push(format!("{call} {task}"));
    }

    fn calls(&self) -> Vec<String> {
        self.calls.lock().expect("no test panics with the lock").clone()
    }
}

#[async_trait]
impl Executor for Fake {
    async fn describe(&self) -> NodeDescription {
        NodeDescription::default()
    }
    async fn apply_network(&self, _: &NetworkView) -> Result<(), ExecError> {
        Ok(())
    }
    async fn remove_network(&self, _: &str) -> Result<(), ExecError> {
        Ok(())
    }
    async fn prepare(&self, task: &Task, content: &Content) -> Result<(), ExecError> {
        assert_eq!(content.missing(task), None);
        self.note("prepare", &task.id);
        Ok(())
    }
    async fn start(&self, task: &Task, content: &Content) -> Result<Started, ExecError> {
        assert_eq!(content.missing(task), None);
        self.note("start", &task.id);
        self.running.send_modify(|running| {
            running.insert(task.id.clone());
        });
        Ok(Started::default())
    }
    async fn wait(&self, task: &Task) -> Result<TaskExit, ExecError> {
        let mut running = self.running.subscribe();
        let ended = running.wait_for(|running| !running.contains(&task.id)).await;
        ended.map(|_| TaskExit { code: 7, oom_killed: false }).map_err(|_| ExecError("gone".into()))
    }
    async fn unused(&self, _: &Task) {}
    fn remembered(&self) -> Duration {
        Duration::ZERO
    }
    async fn stop(&self, task: &Task) -> Result<(), ExecError> {
        self.note("stop", &task.id);
        self.running.send_modify(|running| {
            running.remove(&task.id);
        });
        Ok(())
    }
    async fn remove(&self, task: &str) -> Result<(), ExecError> {
        self.note("remove", task);
        Ok(())
    }
    async fn held(&self) -> Vec<String> {
        self.running.borrow().iter().cloned().collect()
    }
    async fn held_networks(&self) -> Vec<String> {
        Vec::new()
    }
    async fn logs(&self, _: &TaskLogsRequest) -> Result<LogStream, ExecError> {
        Err(ExecError("no logs".into()))
    }
}

/// The node's, the same in all of a test.
fn identity() -> Arc<Identity> {
    static IDENTITY: std::sync::LazyLock<Arc<Identity>> = std::sync::LazyLock::new(new_identity);
    IDENTITY.clone()
}

fn new_identity() -> Arc<Identity> {
    let now = Timestamp::now();
    let authority = Authority::generate(now).expect("root");
    let subject = Subject { node_id: "n1".into(), role: NodeRole::Worker, cluster_id: "c1".into() };
    let key_pem = new_key().expect("key");
    let csr = signing_request(&key_pem).expect("request");
    let chain_pem = authority.issue(&csr, &subject, Duration::from_secs(3600), now).expect("certificate");
    let root_pem = authority.certificate_pem().to_owned();
    Identity::new(Credentials { key_pem, chain_pem, root_pem }).expect("identity")
}

fn stored(id: &str, observed: TaskState, desired: TaskState) -> StoredTask {
    let mut task = Task { id: id.into(), ..Task::default() };
    task.set_desired_state(desired);
    StoredTask { task, status: TaskStatus { state: observed.into(), ..TaskStatus::default() } }
}

async fn start(dir: &std::path::Path, fake: &Arc<Fake>, scope: &Scope) {
    let config = AgentConfig {
        identity: identity(),
        // Nobody listens on the discard port.
        managers: vec!["127.0.0.1:9".into()],
        dir: dir.to_owned(),
        listen_addr: "127.0.0.1:2377".into(),
        data_path_addr: String::new(),
    };
    Agent::start(config, fake.clone(), scope.child("agent")).await.expect("the agent starts");
}

/// Waits until the task's file says `state`.
async fn until(disk: &Disk, id: &str, state: TaskState) {
    let reached = async {
        while disk.tasks().expect("tasks").get(id).map(|task| task.status.state()) != Some(state) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), reached).await.expect("the task gets there");
}

#[tokio::test]
async fn a_restarted_node_goes_on_with_every_task_where_it_was() {
    let dir = tempfile::tempdir().expect("tempdir");
    let disk = Disk::open(dir.path()).expect("disk");
    for task in [
        stored("fresh", TaskState::Assigned, TaskState::Running),
        stored("running", TaskState::Running, TaskState::Running),
        stored("unwanted", TaskState::Running, TaskState::Shutdown),
        stored("over", TaskState::Failed, TaskState::Running),
    ] {
        disk.put_task(&task).expect("write");
    }
    let fake = Fake::new(&["running", "unwanted"]);
    let scope = Scope::root("test");
    start(dir.path(), &fake, &scope).await;
    until(&disk, "fresh", TaskState::Running).await;
    until(&disk, "unwanted", TaskState::Shutdown).await;
    let mut calls = fake.calls();
    calls.sort();
    assert_eq!(calls, ["prepare fresh", "start fresh", "stop unwanted"]);
    scope.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_prepared_task_gets_its_secret_after_a_restart_without_managers() {
    let dir = tempfile::tempdir().expect("tempdir");
    let disk = Disk::open(dir.path()).expect("disk");
    let mut task = stored("prepared", TaskState::Ready, TaskState::Running);
    let reference = FileReference { id: "s1".into(), name: "key".into(), ..FileReference::default() };
    task.task.spec = Some(TaskSpec { secrets: vec![reference], ..TaskSpec::default() });
    disk.put_task(&task).expect("write");
    let spec = ContentSpec { data: b"hush".to_vec(), ..ContentSpec::default() };
    disk.put_content(&identity(), &Secret { id: "s1".into(), spec: Some(spec), ..Secret::default() })
        .expect("write");
    let fake = Fake::new(&[]);
    let scope = Scope::root("test");
    start(dir.path(), &fake, &scope).await;
    until(&disk, "prepared", TaskState::Running).await;
    assert_eq!(fake.calls(), ["start prepared"]);
    scope.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn an_exit_is_on_disk_and_a_stopping_daemon_stops_no_task() {
    let dir = tempfile::tempdir().expect("tempdir");
    let disk = Disk::open(dir.path()).expect("disk");
    for id in ["dies", "stays"] {
        disk.put_task(&stored(id, TaskState::Running, TaskState::Running)).expect("write");
    }
    let fake = Fake::new(&["dies", "stays"]);
    let scope = Scope::root("test");
    start(dir.path(), &fake, &scope).await;
    fake.running.send_modify(|running| {
        running.remove("dies");
    });
    until(&disk, "dies", TaskState::Failed).await;
    let status = disk.tasks().expect("tasks")["dies"].status.clone();
    assert_eq!(status.err, "task: non-zero exit (7)");
    scope.shutdown(Duration::from_secs(5)).await;
    assert_eq!(fake.held().await, ["stays"]);
    assert!(fake.calls().is_empty(), "{:?}", fake.calls());
}
