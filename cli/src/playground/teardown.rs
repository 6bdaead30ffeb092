//! Ends a playground and removes everything that it made, whatever state it is in.

use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use rswarm_api::types::ContainerSummary;
use rswarm_base::fsx;

use super::cluster::{NETWORK, SERVICE};
use super::leftovers::Marks;
use super::plan::{Host, Plan, Role};
use super::record::Record;
use super::{PlaygroundError, host};
use crate::client::{Call, ClientError};
use crate::netns;
use crate::terminal::Terminal;

/// How long a daemon may take to answer something while it is being ended.
const POLITE: Duration = Duration::from_secs(20);
/// How long a daemon may take to end.
const END: Duration = Duration::from_secs(15);
/// How long killed processes may take to be gone.
const GONE: Duration = Duration::from_secs(10);
/// How long a keeper may take to clean up after itself.
const KEEPER: Duration = Duration::from_secs(120);

/// `playground down`
pub async fn down(dir: &Path, terminal: Terminal) -> Result<(), PlaygroundError> {
    let record = Record::load(dir)?.ok_or_else(|| PlaygroundError::NotRunning(dir.to_owned()))?;
    if record.keeper.is_alive() {
        terminal.line(format!(
            "The playground is kept up by process {}; it is told to end.",
            record.keeper.pid
        ))?;
        record.keeper.signal(Signal::SIGTERM);
        if record.keeper.gone_within(KEEPER).await && Record::load(dir)?.is_none() {
            return Ok(terminal.line("Everything is removed.")?);
        }
    }
    remove(&record, terminal).await
}

/// Removes everything that the record tells of, and makes sure.
pub async fn remove(record: &Record, terminal: Terminal) -> Result<(), PlaygroundError> {
    let plan = Plan::of_record(record);
    let marks = Marks::of(&plan, record);
    leave(&plan).await;
    end_daemons(record).await;
    end_processes(&marks).await;
    let failed = remove_objects(&plan, &marks);
    let left = marks.all();
    if !left.is_empty() || !failed.is_empty() {
        return Err(PlaygroundError::Leftovers(left.into_iter().chain(failed).collect()));
    }
    terminal
        .line("Everything is removed: no process, mount, namespace, cgroup, interface or file is left.")?;
    Ok(())
}

/// Asks nicely: the service goes, then the nodes. What does not answer is ended by other means.
async fn leave(plan: &Plan) {
    for host in plan.managers() {
        let removed = polite(host, Call::delete(format!("/services/{SERVICE}"))).await;
        if removed {
            polite(host, Call::delete(format!("/networks/{NETWORK}"))).await;
            break;
        }
    }
    let workers = plan.hosts.iter().filter(|host| host.role == Role::Worker);
    let managers: Vec<&Host> = plan.managers().collect();
    for host in workers.chain(managers.into_iter().rev()) {
        polite(host, Call::post("/swarm/leave").flag("force", true)).await;
        remove_containers(host).await;
    }
}

async fn remove_containers(host: &Host) {
    let Ok(client) = host::client(host) else { return };
    let list = client.json::<Vec<ContainerSummary>>(Call::get("/containers/json").flag("all", true));
    let Ok(Ok(containers)) = tokio::time::timeout(POLITE, list).await else { return };
    for container in containers {
        polite(
            host,
            Call::delete(format!("/containers/{}", container.id)).flag("force", true).flag("v", true),
        )
        .await;
    }
}

/// Whether the daemon did it, or there was nothing to do.
async fn polite(host: &Host, call: Call) -> bool {
    let Ok(client) = host::client(host) else { return false };
    match tokio::time::timeout(POLITE, client.done(call)).await {
        Ok(Ok(())) => true,
        Ok(Err(ClientError::Refused { status, .. })) => status == hyper::StatusCode::NOT_FOUND,
        Ok(Err(_)) | Err(_) => false,
    }
}

async fn end_daemons(record: &Record) {
    for process in record.daemons.values() {
        process.signal(Signal::SIGTERM);
    }
    for process in record.daemons.values() {
        if !process.gone_within(END).await {
            process.signal(Signal::SIGKILL);
            process.gone_within(GONE).await;
        }
    }
}

/// Shims and containers whose daemons could not end them.
async fn end_processes(marks: &Marks) {
    let left = marks.processes();
    for process in &left {
        process.signal(Signal::SIGKILL);
    }
    for process in left {
        process.gone_within(GONE).await;
    }
}

/// Everything that is not a process. Gives what could not be removed, and why.
fn remove_objects(plan: &Plan, marks: &Marks) -> Vec<String> {
    let mut failed = Vec::new();
    let mut keep = |result: Result<(), String>| failed.extend(result.err());
    for cgroup in marks.cgroups() {
        keep(std::fs::remove_dir(&cgroup).map_err(|error| format!("cgroup `{}`: {error}", cgroup.display())));
    }
    for path in std::iter::once(&plan.switch).chain(plan.hosts.iter().map(|host| &host.netns)) {
        keep(netns::remove(path).map_err(|error| rswarm_base::Chain(&error).to_string()));
    }
    for mount in marks.mounts().iter().rev() {
        let unmounted = nix::mount::umount2(mount, nix::mount::MntFlags::MNT_DETACH);
        keep(unmounted.map_err(|error| format!("mount `{}`: {error}", mount.display())));
    }
    if marks.mounts().is_empty() {
        // With a mount in the way, removing would reach into what is mounted.
        for dir in [&plan.data_dir, &plan.dir] {
            keep(fsx::remove_all(dir).map_err(|error| error.to_string()));
        }
    }
    failed
}
