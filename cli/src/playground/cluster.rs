//! Makes one cluster of the hosts, and the demo service on it, through the API that everyone has.

use std::time::Duration;

use rswarm_api::types::{
    ContainerSpec, EndpointSpec, NetworkAttachmentConfig, NetworkCreateBody, Node, ReplicatedService,
    Service, ServiceCreated, ServiceSpec, SwarmInitBody, SwarmInspect, SwarmJoinBody, Task,
};
use rswarm_base::clock::Timestamp;

use super::plan::{Host, Plan, Role};
use super::steps::until;
use super::{PlaygroundError, demo, host};
use crate::client::{Call, ClientError, Filters, JsonLines};
use crate::render::convergence::{Convergence, Verdict};

/// The overlay network's name.
pub const NETWORK: &str = "app";
/// The demo service's name.
pub const SERVICE: &str = "web";
/// Its tasks.
pub const REPLICAS: u64 = 5;
/// Time between a stop and a kill of the demo's tasks; they end at once.
const STOP_GRACE_NS: i64 = 3_000_000_000;
/// Where nodes talk to each other.
const CLUSTER_PORT: u16 = 2377;

/// Names the host in what went wrong.
pub fn at(host: &Host) -> impl Fn(ClientError) -> PlaygroundError {
    let host = host.name.clone();
    move |source| PlaygroundError::Call { host: host.clone(), source }
}

/// The first host starts the cluster, the others join it.
pub async fn form(plan: &Plan) -> Result<(), PlaygroundError> {
    let first = plan.first();
    let client = host::client(first)?;
    let body = SwarmInitBody {
        listen_addr: format!("0.0.0.0:{CLUSTER_PORT}"),
        advertise_addr: format!("{}:{CLUSTER_PORT}", first.address),
        availability: "active".into(),
        ..SwarmInitBody::default()
    };
    client.json::<String>(Call::post("/swarm/init").body(&body)).await.map_err(at(first))?;
    let swarm: SwarmInspect = client.json(Call::get("/swarm")).await.map_err(at(first))?;
    for host in &plan.hosts[1..] {
        let token = match host.role {
            Role::Manager => &swarm.join_tokens.manager,
            Role::Worker => &swarm.join_tokens.worker,
        };
        join(host, token, first).await?;
    }
    Ok(())
}

async fn join(host: &Host, token: &str, first: &Host) -> Result<(), PlaygroundError> {
    let body = SwarmJoinBody {
        listen_addr: format!("0.0.0.0:{CLUSTER_PORT}"),
        advertise_addr: format!("{}:{CLUSTER_PORT}", host.address),
        data_path_addr: String::new(),
        remote_addrs: Some(vec![format!("{}:{CLUSTER_PORT}", first.address)]),
        join_token: token.to_owned(),
        availability: "active".into(),
    };
    host::client(host)?.done(Call::post("/swarm/join").body(&body)).await.map_err(at(host))
}

/// Waits until every node is ready, and every manager reachable.
pub async fn all_ready(plan: &Plan, asked: &Host, deadline: Duration) -> Result<(), PlaygroundError> {
    let client = host::client(asked)?;
    let look = || async {
        let nodes: Vec<Node> = client.json(Call::get("/nodes")).await.map_err(|error| error.to_string())?;
        let ready = nodes.iter().filter(|node| node.status.state == "ready").count();
        let reachable =
            |node: &&Node| node.manager_status.as_ref().is_some_and(|m| m.reachability == "reachable");
        let managers = nodes.iter().filter(reachable).count();
        let (wanted, wanted_managers) = (plan.hosts.len(), plan.managers().count());
        if ready == wanted && managers == wanted_managers {
            return Ok(());
        }
        Err(format!(
            "{ready} of {wanted} nodes are ready, {managers} of {wanted_managers} managers reachable"
        ))
    };
    until("waiting for the nodes", deadline, look).await
}

/// Puts the demo image on a host.
pub async fn import_image(host: &Host) -> Result<(), PlaygroundError> {
    let archive = demo::archive();
    let archive =
        archive.map_err(|source| PlaygroundError::File { path: "/proc/self/exe".into(), source })?;
    let (name, tag) = crate::cmd::image::split_reference(demo::IMAGE);
    let mut call = Call::post("/images/create").query("fromSrc", "-").query("repo", name).maybe("tag", tag);
    for change in demo::CHANGES {
        call = call.query("changes", change);
    }
    let call = call.stream("application/x-tar", archive);
    let told = call.to_string();
    let reply = host::client(host)?.send(call).await.map_err(at(host))?;
    let mut lines = JsonLines::new(told, reply.into_body());
    while let Some(line) = lines.next::<rswarm_api::types::Progress>().await.map_err(at(host))? {
        if let Some(error) = line.error_detail {
            return Err(PlaygroundError::Wrong(format!(
                "{}: the image is refused: {}",
                host.name, error.message
            )));
        }
    }
    Ok(())
}

/// Creates the network and the service. Gives the service's ID.
pub async fn deploy(host: &Host) -> Result<String, PlaygroundError> {
    let client = host::client(host)?;
    let network = NetworkCreateBody {
        name: NETWORK.into(),
        driver: "overlay".into(),
        attachable: true,
        ..Default::default()
    };
    client.done(Call::post("/networks/create").body(&network)).await.map_err(at(host))?;
    let created: ServiceCreated =
        client.json(Call::post("/services/create").body(&service_spec())).await.map_err(at(host))?;
    Ok(created.id)
}

fn service_spec() -> ServiceSpec {
    let mut spec = ServiceSpec { name: SERVICE.into(), ..ServiceSpec::default() };
    spec.mode.replicated = Some(ReplicatedService { replicas: Some(REPLICAS) });
    spec.endpoint_spec = Some(EndpointSpec { mode: "vip".into(), ..EndpointSpec::default() });
    spec.task_template.networks =
        vec![NetworkAttachmentConfig { target: NETWORK.into(), ..Default::default() }];
    spec.task_template.container_spec = Some(ContainerSpec {
        image: demo::IMAGE.into(),
        stop_grace_period: Some(STOP_GRACE_NS),
        ..ContainerSpec::default()
    });
    spec
}

/// Waits until the service is as asked and stable, as `service create` does.
pub async fn converged(asked: &Host, id: &str, deadline: Duration) -> Result<(), PlaygroundError> {
    let client = host::client(asked)?;
    let mut view = Convergence::default();
    let filters = Filters::default().with("service", id).with("_up-to-date", "true");
    let mut last = String::new();
    let started = std::time::Instant::now();
    while started.elapsed() < deadline {
        let service: Service = client.json(Call::get(format!("/services/{id}"))).await.map_err(at(asked))?;
        let tasks: Vec<Task> = client.json(Call::get("/tasks").filters(&filters)).await.map_err(at(asked))?;
        let nodes: Vec<Node> = client.json(Call::get("/nodes")).await.map_err(at(asked))?;
        let frame = view.observe(&service, &tasks, &nodes, Timestamp::now());
        match frame.verdict {
            Verdict::Converged => return Ok(()),
            Verdict::Failed(problem) => return Err(PlaygroundError::Wrong(problem)),
            Verdict::Waiting => last = frame.lines().cloned().collect::<Vec<_>>().join("; "),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Err(PlaygroundError::Deadline { step: format!("waiting for the service `{SERVICE}`"), deadline, last })
}

/// Changes how many tasks the service has.
pub async fn scale(asked: &Host, count: u64) -> Result<(), ClientError> {
    let client = match host::client(asked) {
        Ok(client) => client,
        Err(_) => return Err(ClientError::Host(asked.socket.display().to_string())),
    };
    let mut service: Service = client.json(Call::get(format!("/services/{SERVICE}"))).await?;
    service.spec.mode.replicated = Some(ReplicatedService { replicas: Some(count) });
    let call = Call::post(format!("/services/{}/update", service.id)).query("version", service.version.index);
    client.done(call.body(&service.spec)).await
}

/// The host whose daemon leads, as `asked` sees it.
pub async fn leader<'a>(plan: &'a Plan, asked: &Host) -> Result<&'a Host, PlaygroundError> {
    let nodes: Vec<Node> = host::client(asked)?.json(Call::get("/nodes")).await.map_err(at(asked))?;
    let leader = nodes.iter().find(|node| node.manager_status.as_ref().is_some_and(|status| status.leader));
    let name = leader.map(|node| node.description.hostname.as_str()).unwrap_or_default();
    plan.hosts
        .iter()
        .find(|host| host.name == name)
        .ok_or_else(|| PlaygroundError::Wrong(format!("no host is the leader's; the list says `{name}`")))
}
