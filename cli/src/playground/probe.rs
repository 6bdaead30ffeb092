//! Proves that tasks reach each other: every one fetches from others, by address and by name, from inside
//! its own network.

use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rswarm_api::types::{ContainerInspect, ContainerSummary};

use super::cluster::{NETWORK, SERVICE, at};
use super::plan::Host;
use super::process::Process;
use super::steps::until;
use super::{PlaygroundError, host};
use crate::client::{Call, Filters};
use crate::netns;
use crate::whoami::fetch;

/// One fetch, everything included.
const FETCH: Duration = Duration::from_secs(5);
/// How long new endpoints may take to be known everywhere.
const SETTLE: Duration = Duration::from_secs(15);
/// Tries by name before we say that only one task ever answers.
const TRIES: usize = 20;

/// One running task of the demo service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// The host that it runs on.
    pub host: String,
    /// Its container.
    pub container: String,
    /// Its first process.
    pub process: Process,
    /// Its address on the overlay network.
    pub address: String,
    /// What it calls itself.
    pub hostname: String,
}

/// The demo's running tasks on these hosts.
pub async fn instances(hosts: &[&Host]) -> Result<Vec<Instance>, PlaygroundError> {
    let mut found = Vec::new();
    for host in hosts {
        let client = host::client(host)?;
        let filters = Filters::default().with("label", &format!("com.docker.swarm.service.name={SERVICE}"));
        let listed: Vec<ContainerSummary> =
            client.json(Call::get("/containers/json").filters(&filters)).await.map_err(at(host))?;
        for container in listed {
            let container: ContainerInspect = client
                .json(Call::get(format!("/containers/{}/json", container.id)))
                .await
                .map_err(at(host))?;
            found.push(instance(host, container).await?);
        }
    }
    found.sort_by(|a, b| (&a.host, &a.container).cmp(&(&b.host, &b.container)));
    Ok(found)
}

async fn instance(host: &Host, container: ContainerInspect) -> Result<Instance, PlaygroundError> {
    let wrong =
        |what: &str| PlaygroundError::Wrong(format!("container `{}` on {} {what}", container.id, host.name));
    let process = i32::try_from(container.state.pid).ok().and_then(Process::of);
    let process = process.ok_or_else(|| wrong("has no process"))?;
    let endpoint = container.network_settings.networks.get(NETWORK);
    let address = endpoint.map(|endpoint| endpoint.ip_address.clone()).filter(|address| !address.is_empty());
    let address = address.ok_or_else(|| wrong(&format!("has no address on `{NETWORK}`")))?;
    let step = format!("asking container `{}` for its name", container.id);
    let hostname =
        until(&step, SETTLE, || fetch_inside(process, "http://127.0.0.1/hostname".to_owned())).await?;
    Ok(Instance { host: host.name.clone(), container: container.id.clone(), process, address, hostname })
}

/// Every task fetches from every task of another host, by address. Gives the number of fetches.
pub async fn by_address(instances: &[Instance]) -> Result<usize, PlaygroundError> {
    let mut fetches = 0;
    for from in instances {
        for to in instances.iter().filter(|to| to.host != from.host) {
            let step = format!("fetching from {} on {} by a task on {}", to.address, to.host, from.host);
            let answer =
                until(&step, SETTLE, || fetch_by(from, &format!("http://{}/hostname", to.address))).await?;
            if answer != to.hostname {
                let problem = format!("{step}: `{answer}` answered instead of `{}`", to.hostname);
                return Err(PlaygroundError::Wrong(problem));
            }
            fetches += 1;
        }
    }
    Ok(fetches)
}

/// Every task fetches from the service by name until a task of another host answered. Gives the number of
/// fetches.
pub async fn by_name(instances: &[Instance]) -> Result<usize, PlaygroundError> {
    let mut fetches = 0;
    for from in instances {
        for name in [SERVICE.to_owned(), format!("tasks.{SERVICE}")] {
            fetches += until_another_host(instances, from, &name).await?;
        }
    }
    Ok(fetches)
}

async fn until_another_host(
    instances: &[Instance],
    from: &Instance,
    name: &str,
) -> Result<usize, PlaygroundError> {
    let step = format!("fetching from `{name}` by a task on {}", from.host);
    let is_alone = instances.iter().all(|instance| instance.host == from.host);
    let url = format!("http://{name}/hostname");
    for fetches in 1..=TRIES {
        let answer = until(&step, SETTLE, || fetch_by(from, &url)).await?;
        match instances.iter().find(|instance| instance.hostname == answer) {
            None => {
                return Err(PlaygroundError::Wrong(format!("{step}: `{answer}` answered, which is no task")));
            }
            Some(answering) if is_alone || answering.host != from.host => return Ok(fetches),
            Some(_) => {}
        }
    }
    Err(PlaygroundError::Wrong(format!("{step}: no task of another host answered in {TRIES} tries")))
}

/// The instances that do not run as they did.
pub fn disturbed(before: &[Instance]) -> Vec<&Instance> {
    before.iter().filter(|instance| !instance.process.is_alive()).collect()
}

/// Has a task fetch a URL, and gives what it got.
fn fetch_by(from: &Instance, url: &str) -> impl Future<Output = Result<String, String>> + use<> {
    let encoded = utf8_percent_encode(url, NON_ALPHANUMERIC);
    fetch_inside(from.process, format!("http://127.0.0.1/fetch?url={encoded}"))
}

/// Fetches from within the network of a process.
async fn fetch_inside(process: Process, url: String) -> Result<String, String> {
    let namespace = PathBuf::from(format!("/proc/{}/ns/net", process.pid));
    let fetched = tokio::task::spawn_blocking(move || netns::inside(&namespace, || fetch::get(&url, FETCH)));
    let body = match fetched.await {
        Ok(Ok(Ok(body))) => body,
        Ok(Ok(Err(error))) => return Err(error.to_string()),
        Ok(Err(error)) => return Err(rswarm_base::Chain(&error).to_string()),
        Err(error) => return Err(error.to_string()),
    };
    Ok(String::from_utf8_lossy(&body).trim().to_owned())
}
