//! `service ls` and `service inspect --pretty`.

use std::fmt::Write as _;
use std::time::Duration;

use rswarm_api::types::{PortConfig, Service, UpdateConfig};

use super::tasks::without_digest;
use crate::client::Call;
use crate::cmd::{CommandError, Context, ListArgs, short_id};
use crate::render::table::{Listing, Row, row};
use crate::render::template::with_labels;
use crate::units::{binary_size, go_duration};

const LISTING: Listing = Listing {
    table: "{{.ID}}\t{{.Name}}\t{{.Mode}}\t{{.Replicas}}\t{{.Image}}\t{{.Ports}}",
    headers: &[
        ("ID", "ID"),
        ("Name", "NAME"),
        ("Mode", "MODE"),
        ("Replicas", "REPLICAS"),
        ("Image", "IMAGE"),
        ("Ports", "PORTS"),
    ],
    quiet: "ID",
};

/// In place of a value: lines below belong to this one.
const SECTION: &str = "\0";

/// Lists services.
pub async fn list(context: &Context, args: ListArgs) -> Result<u8, CommandError> {
    let call = Call::get("/services").flag("status", true).filters(&args.filters()?);
    let mut services: Vec<Service> = context.client.json(call).await?;
    services.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
    let rows: Vec<Row> = services.iter().map(line).collect();
    context.list(&LISTING, &args, &rows)
}

fn line(service: &Service) -> Row {
    let image =
        service.spec.task_template.container_spec.as_ref().map(|spec| spec.image.clone()).unwrap_or_default();
    let fields = row([
        ("ID", short_id(&service.id, false)),
        ("Name", service.spec.name.clone()),
        ("Mode", mode(service).into()),
        ("Replicas", replicas(service)),
        ("Image", without_digest(&image).to_owned()),
        ("Ports", ingress_ports(&service.endpoint.ports)),
    ]);
    with_labels(fields, serde_json::json!(service.spec.labels))
}

fn mode(service: &Service) -> &'static str {
    let mode = &service.spec.mode;
    if mode.global.is_some() {
        "global"
    } else if mode.replicated_job.is_some() {
        "replicated job"
    } else if mode.global_job.is_some() {
        "global job"
    } else {
        "replicated"
    }
}

fn replicas(service: &Service) -> String {
    let status = service.service_status.clone().unwrap_or_default();
    let mut text = format!("{}/{}", status.running_tasks, status.desired_tasks);
    if mode(service).ends_with("job") {
        let total = service.spec.mode.replicated_job.as_ref().and_then(|job| job.total_completions);
        let total = total.unwrap_or(status.desired_tasks + status.completed_tasks);
        let _ = write!(text, " ({}/{total} completed)", status.completed_tasks);
    }
    let max = service.spec.task_template.placement.as_ref().map_or(0, |placement| placement.max_replicas);
    if max > 0 {
        let _ = write!(text, " (max {max} per node)");
    }
    text
}

/// Docker's short form of ports in the mesh: neighbours are ranges.
fn ingress_ports(ports: &[PortConfig]) -> String {
    let mut ports: Vec<&PortConfig> = ports.iter().filter(|port| port.publish_mode != "host").collect();
    ports.sort_by_key(|port| (port.protocol.clone(), port.published_port));
    let mut ranges: Vec<(u32, u32, u32, u32, &str)> = Vec::new();
    for port in ports {
        match ranges.last_mut() {
            Some((_, last, _, target, protocol))
                if *last + 1 == port.published_port
                    && *target + 1 == port.target_port
                    && *protocol == port.protocol =>
            {
                *last += 1;
                *target += 1;
            }
            _ => {
                let (published, target) = (port.published_port, port.target_port);
                ranges.push((published, published, target, target, &port.protocol));
            }
        }
    }
    let span =
        |first: u32, last: u32| if first == last { first.to_string() } else { format!("{first}-{last}") };
    let shown = ranges.into_iter().map(|(published, last, target, target_last, protocol)| {
        format!("*:{}->{}/{protocol}", span(published, last), span(target, target_last))
    });
    shown.collect::<Vec<_>>().join(", ")
}

/// A service for people.
pub fn pretty(service: &Service) -> String {
    let spec = &service.spec;
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let told = match value.as_str() {
            "" => Ok(()),
            SECTION => writeln!(text, "{name}:"),
            value => writeln!(text, "{name}:{}{value}", "\t".repeat(if name.len() < 7 { 2 } else { 1 })),
        };
        told.expect("a string takes any text");
    };
    line("ID", service.id.clone());
    line("Name", spec.name.clone());
    line("Service Mode", crate::cmd::node::capitalised(mode(service)));
    if let Some(count) = spec.mode.replicated.as_ref().and_then(|replicated| replicated.replicas) {
        line(" Replicas", count.to_string());
    }
    if let Some(status) = &service.update_status {
        line("UpdateStatus", SECTION.to_owned());
        line(" State", status.state.clone());
        line(" Started", status.started_at.clone().unwrap_or_default());
        line(" Completed", status.completed_at.clone().unwrap_or_default());
        line(" Message", status.message.clone());
    }
    if let Some(deployment) = &service.deployment {
        line("Deployment", SECTION.to_owned());
        let (updated, total) = (deployment.updated, deployment.total);
        line(" Updated", format!("{updated} of {total} ({} running)", deployment.running));
        line(" Failed", if deployment.failed > 0 { deployment.failed.to_string() } else { String::new() });
        line(" Cause", deployment.cause.clone());
    }
    let placement = spec.task_template.placement.clone().unwrap_or_default();
    line("Placement", placement.constraints.join(", "));
    for (name, config) in [("UpdateConfig", &spec.update_config), ("RollbackConfig", &spec.rollback_config)] {
        if let Some(config) = config {
            line(name, SECTION.to_owned());
            update_lines(config, &mut line);
        }
    }
    if let Some(container) = &spec.task_template.container_spec {
        line("ContainerSpec", SECTION.to_owned());
        line(" Image", container.image.clone());
        line(" Args", container.args.join(" "));
        line(" Env", container.env.join(" "));
        line(" Dir", container.dir.clone());
        line(" User", container.user.clone());
    }
    let resources = spec.task_template.resources.clone().unwrap_or_default();
    if let Some(limits) = resources.limits {
        line("Limits", SECTION.to_owned());
        line(
            " CPU",
            if limits.nano_cpus > 0 { (limits.nano_cpus as f64 / 1e9).to_string() } else { String::new() },
        );
        let memory = u64::try_from(limits.memory_bytes).unwrap_or(0);
        line(" Memory", if memory > 0 { binary_size(memory) } else { String::new() });
    }
    let networks = spec.task_template.networks.iter().chain(&spec.networks);
    line("Networks", networks.map(|network| network.target.clone()).collect::<Vec<_>>().join(" "));
    line("Endpoint Mode", service.endpoint.spec.mode.clone());
    line("Ports", ingress_ports(&service.endpoint.ports));
    text
}

fn update_lines(config: &UpdateConfig, line: &mut impl FnMut(&str, String)) {
    let duration =
        |ns: i64| u64::try_from(ns).ok().filter(|ns| *ns > 0).map(Duration::from_nanos).map(go_duration);
    line(" Parallelism", config.parallelism.to_string());
    line(" Delay", duration(config.delay).unwrap_or_default());
    line(" On failure", config.failure_action.clone());
    line(" Monitoring Period", duration(config.monitor).unwrap_or_default());
    line(" Max failure ratio", config.max_failure_ratio.to_string());
    line(" Order", config.order.clone());
}

#[cfg(test)]
mod tests {
    use rswarm_api::types::{ContainerSpec, Empty, ReplicatedService, ServiceStatus};

    use super::*;

    fn port(published_port: u32, target_port: u32) -> PortConfig {
        let (protocol, publish_mode) = ("tcp".into(), "ingress".into());
        PortConfig { protocol, publish_mode, published_port, target_port, ..PortConfig::default() }
    }

    #[test]
    fn services_are_listed_as_docker_lists_them() {
        let mut web = Service { id: "l2oxdcg7v8olq0wd6xkmmlhl0".into(), ..Service::default() };
        web.spec.name = "web".into();
        web.spec.mode.replicated = Some(ReplicatedService { replicas: Some(5) });
        web.spec.task_template.container_spec =
            Some(ContainerSpec { image: "nginx:1@sha256:ab".into(), ..ContainerSpec::default() });
        web.service_status = Some(ServiceStatus { running_tasks: 4, desired_tasks: 5, completed_tasks: 0 });
        web.endpoint.ports = vec![port(80, 80), port(81, 81), port(8443, 443)];
        let mut agent = web.clone();
        agent.spec.name = "agent".into();
        agent.spec.mode = rswarm_api::types::ServiceMode { global: Some(Empty {}), ..Default::default() };
        agent.endpoint.ports = vec![];
        assert_eq!(
            LISTING.render(None, false, &[line(&agent), line(&web)]).expect("renders"),
            "ID             NAME      MODE         REPLICAS   IMAGE     PORTS\n\
             l2oxdcg7v8ol   agent     global       4/5        nginx:1   \n\
             l2oxdcg7v8ol   web       replicated   4/5        nginx:1   *:80-81->80-81/tcp, *:8443->443/tcp\n"
        );
    }
}
