//! Tasks, as `service ps` and `node ps` list them.

use std::collections::BTreeMap;

use clap::Args;
use rswarm_api::types::{PortConfig, Service, Task};
use rswarm_base::clock::Timestamp;

use crate::client::{Call, Filters};
use crate::cmd::node::capitalised;
use crate::cmd::{CommandError, Context, ago, node, short_id};
use crate::render::table::{Listing, Row, row};
use crate::units::ellipsis;

/// An error longer than this is cut.
const ERROR_MAX: usize = 30;

const LISTING: Listing = Listing {
    table: "{{.ID}}\t{{.Name}}\t{{.Image}}\t{{.Node}}\t{{.DesiredState}}\t{{.CurrentState}}\t{{.Error}}\t{{.Ports}}",
    headers: &[
        ("ID", "ID"),
        ("Name", "NAME"),
        ("Image", "IMAGE"),
        ("Node", "NODE"),
        ("DesiredState", "DESIRED STATE"),
        ("CurrentState", "CURRENT STATE"),
        ("Error", "ERROR"),
        ("Ports", "PORTS"),
    ],
    quiet: "ID",
};

/// The flags of a list of tasks.
#[derive(Debug, Clone, Args)]
pub struct TaskListArgs {
    /// Print identifiers only
    #[arg(short, long)]
    quiet: bool,
    /// Keep what matches, `KEY=VALUE`
    #[arg(short, long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Print with a Go template, `table TEMPLATE` or `json`
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Print IDs instead of names
    #[arg(long)]
    no_resolve: bool,
    /// Print everything in full
    #[arg(long)]
    no_trunc: bool,
}

/// What tasks belong to and run on, by ID.
#[derive(Debug, Default)]
struct Resolved {
    services: BTreeMap<String, String>,
    nodes: BTreeMap<String, String>,
}

impl TaskListArgs {
    /// The filters for the query.
    ///
    /// # Errors
    /// When one is malformed.
    pub fn filters(&self) -> Result<Filters, CommandError> {
        Filters::parse(&self.filter).map_err(CommandError::Usage)
    }

    /// Prints tasks, those of a slot together and the newest first.
    pub async fn print(&self, context: &Context, tasks: Vec<Task>) -> Result<u8, CommandError> {
        let resolved = if self.no_resolve { Resolved::default() } else { resolve(context).await };
        let rows = self.rows(tasks, &resolved, Timestamp::now());
        context.terminal.print(&LISTING.render(self.format.as_deref(), self.quiet, &rows)?)?;
        Ok(0)
    }

    fn rows(&self, tasks: Vec<Task>, resolved: &Resolved, now: Timestamp) -> Vec<Row> {
        let mut named: Vec<(String, Task)> = tasks
            .into_iter()
            .map(|task| (short_name(&task, resolved.services.get(&task.service_id)), task))
            .collect();
        named.sort_by(|(a_name, a), (b_name, b)| {
            natural(a_name).cmp(&natural(b_name)).then_with(|| b.created_at.cmp(&a.created_at))
        });
        let mut before = String::new();
        let table = self.format.as_deref().is_none_or(|format| format.starts_with("table")) && !self.quiet;
        let mut rows = Vec::new();
        for (name, task) in named {
            let shown = if table && name == before { format!(r" \_ {name}") } else { name.clone() };
            rows.push(self.row(&task, shown, resolved, now));
            before = name;
        }
        rows
    }

    fn row(&self, task: &Task, name: String, resolved: &Resolved, now: Timestamp) -> Row {
        let image = task.spec.container_spec.as_ref().map(|spec| spec.image.clone()).unwrap_or_default();
        let since = Timestamp::parse(&task.status.timestamp).unwrap_or(now);
        let error = match task.status.err.as_str() {
            "" => String::new(),
            err if self.no_trunc => format!("\"{err}\""),
            err => format!("\"{}\"", ellipsis(&err.replace('\n', " "), ERROR_MAX)),
        };
        row([
            ("ID", short_id(&task.id, self.no_trunc || self.quiet)),
            ("Name", name),
            ("Image", if self.no_trunc { image } else { without_digest(&image).to_owned() }),
            ("Node", resolved.nodes.get(&task.node_id).unwrap_or(&task.node_id).clone()),
            ("DesiredState", capitalised(&task.desired_state)),
            (
                "CurrentState",
                format!("{} {}", capitalised(&task.status.state), ago(since, now).to_lowercase()),
            ),
            ("Error", error),
            ("Ports", host_ports(&task.status.port_status.ports)),
        ])
    }
}

async fn resolve(context: &Context) -> Resolved {
    let services: Vec<Service> = context.client.json(Call::get("/services")).await.unwrap_or_default();
    let nodes = node::all(context).await;
    Resolved {
        services: services.into_iter().map(|service| (service.id, service.spec.name)).collect(),
        nodes: nodes.into_iter().map(|node| (node.id, node.description.hostname)).collect(),
    }
}

/// `web.1`, or `web.<node>` for a global service's task.
pub fn short_name(task: &Task, service: Option<&String>) -> String {
    let service = service.unwrap_or(&task.service_id);
    if task.slot != 0 { format!("{service}.{}", task.slot) } else { format!("{service}.{}", task.node_id) }
}

/// Sorts `web.10` after `web.9`.
fn natural(name: &str) -> (String, u64, String) {
    match name.rsplit_once('.') {
        Some((service, slot)) => (service.to_owned(), slot.parse().unwrap_or(0), slot.to_owned()),
        None => (name.to_owned(), 0, String::new()),
    }
}

/// An image's name without what pins it.
pub fn without_digest(image: &str) -> &str {
    image.split_once('@').map_or(image, |(name, _)| name)
}

fn host_ports(ports: &[PortConfig]) -> String {
    let port =
        |port: &PortConfig| format!("*:{}->{}/{}", port.published_port, port.target_port, port.protocol);
    ports.iter().filter(|port| port.publish_mode == "host").map(port).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use rswarm_api::types::ContainerSpec;

    use super::*;

    fn task(id: &str, slot: u64, state: &str, created: i64) -> Task {
        let mut task =
            Task { id: id.into(), slot, service_id: "s".into(), node_id: "n".into(), ..Task::default() };
        task.spec.container_spec =
            Some(ContainerSpec { image: "web:1@sha256:ab".into(), ..ContainerSpec::default() });
        task.desired_state = if state == "running" { "running" } else { "shutdown" }.into();
        task.status.state = state.into();
        task.created_at = Timestamp(created * 1_000_000_000).to_string();
        task.status.timestamp.clone_from(&task.created_at);
        task
    }

    #[test]
    fn a_slot_s_history_is_indented_below_its_newest_task() {
        let args =
            TaskListArgs { quiet: false, filter: vec![], format: None, no_resolve: false, no_trunc: false };
        let resolved = Resolved {
            services: [("s".into(), "web".into())].into(),
            nodes: [("n".into(), "n1".into())].into(),
        };
        let mut failed = task("old", 2, "failed", 1_000);
        failed.status.err = "task: non-zero exit (1): and more".into();
        let tasks = vec![failed, task("ten", 10, "running", 1_060), task("new", 2, "running", 1_060)];
        let rows = args.rows(tasks, &resolved, Timestamp(1_120 * 1_000_000_000));
        assert_eq!(
            LISTING.render(None, false, &rows).expect("renders"),
            concat!(
                "ID        NAME        IMAGE     NODE      DESIRED STATE   CURRENT STATE                ERROR                              PORTS\n",
                "new       web.2       web:1     n1        Running         Running about a minute ago                                      \n",
                "old        \\_ web.2   web:1     n1        Shutdown        Failed 2 minutes ago         \"task: non-zero exit (1): and …\"   \n",
                "ten       web.10      web:1     n1        Running         Running about a minute ago                                      \n",
            )
        );
    }
}
