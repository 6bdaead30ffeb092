//! The cluster's nodes.

use clap::{Args, Subcommand};
use rswarm_api::types::{InfoBody, Node, Task, TlsInfo};

use super::service::tasks;
use super::{CommandError, Context, ListArgs};
use crate::client::{Call, Filters};
use crate::render::json::indent;
use crate::render::table::{Listing, Row, row};
use crate::units::parse_duration;

const LISTING: Listing = Listing {
    table: "{{.ID}} {{if .Self}}*{{else}} {{ end }}\t{{.Hostname}}\t{{.Status}}\t{{.Availability}}\t{{.ManagerStatus}}\t{{.EngineVersion}}",
    headers: &[
        ("ID", "ID"),
        ("Self", ""),
        ("Hostname", "HOSTNAME"),
        ("Status", "STATUS"),
        ("Availability", "AVAILABILITY"),
        ("ManagerStatus", "MANAGER STATUS"),
        ("EngineVersion", "ENGINE VERSION"),
        ("TLSStatus", "TLS STATUS"),
    ],
    quiet: "ID",
};

/// The node label that says how long tasks may serve on.
const DRAIN_DEADLINE: &str = "rswarm.drain.deadline";
/// How often a drained node is looked at.
const POLL: std::time::Duration = std::time::Duration::from_millis(200);

/// What comes after `node`.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// List nodes
    #[command(visible_alias = "list")]
    Ls(ListArgs),
    /// Print everything about nodes
    Inspect(NodeInspectArgs),
    /// List the tasks on nodes
    Ps(PsArgs),
    /// Change a node
    Update(UpdateArgs),
    /// Make nodes managers
    Promote(Names),
    /// Make managers workers
    Demote(Names),
    /// Remove nodes from the cluster
    #[command(visible_alias = "remove")]
    Rm(RmArgs),
}

#[derive(Debug, Args)]
pub struct NodeInspectArgs {
    /// Print for people
    #[arg(long, conflicts_with = "format")]
    pretty: bool,
    #[command(flatten)]
    inspect: super::InspectArgs,
}

#[derive(Debug, Args)]
pub struct PsArgs {
    #[command(flatten)]
    tasks: tasks::TaskListArgs,
    /// Names or IDs; this node without
    #[arg(value_name = "NODE", default_value = "self")]
    nodes: Vec<String>,
}

#[derive(Debug, Args)]
pub struct UpdateArgs {
    /// What it does: active, pause, drain
    #[arg(long, value_parser = ["active", "pause", "drain"])]
    availability: Option<String>,
    /// How long tasks may serve on while their successors start on other nodes, from when it is drained
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    drain_deadline: Option<String>,
    /// Return when a drained node has no task left
    #[arg(long)]
    wait: bool,
    /// Its role: worker, manager
    #[arg(long, value_parser = ["worker", "manager"])]
    role: Option<String>,
    /// Add or change a label, `KEY=VALUE`
    #[arg(long, value_name = "LABEL")]
    label_add: Vec<String>,
    /// Remove a label
    #[arg(long, value_name = "KEY")]
    label_rm: Vec<String>,
    /// Name or ID
    node: String,
}

/// One or more nodes.
#[derive(Debug, Args)]
pub struct Names {
    /// Names or IDs
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
}

#[derive(Debug, Args)]
pub struct RmArgs {
    /// Even when it is up
    #[arg(short, long)]
    force: bool,
    /// Names or IDs
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
}

impl NodeCommand {
    /// Does it.
    pub async fn run(self, context: &Context) -> Result<u8, CommandError> {
        match self {
            NodeCommand::Ls(args) => list(context, args).await,
            NodeCommand::Inspect(args) => inspect(context, args).await,
            NodeCommand::Ps(args) => node_tasks(context, args).await,
            NodeCommand::Update(args) => update(context, args).await,
            NodeCommand::Promote(Names { nodes }) => set_role(context, &nodes, "manager").await,
            NodeCommand::Demote(Names { nodes }) => set_role(context, &nodes, "worker").await,
            NodeCommand::Rm(RmArgs { force, nodes }) => {
                let work = |name: String| async move {
                    context.client.done(Call::delete(inspect_path(&name)).flag("force", force)).await?;
                    Ok(vec![name])
                };
                context.each(&nodes, work).await
            }
        }
    }
}

/// Where a node is inspected.
pub fn inspect_path(name: &str) -> String {
    format!("/nodes/{name}")
}

async fn list(context: &Context, args: ListArgs) -> Result<u8, CommandError> {
    let mut nodes: Vec<Node> = context.client.json(Call::get("/nodes").filters(&args.filters()?)).await?;
    nodes.sort_by(|a, b| a.description.hostname.cmp(&b.description.hostname).then(a.id.cmp(&b.id)));
    let info: InfoBody = context.client.json(Call::get("/info")).await?;
    let wanted = info.swarm.cluster.map(|cluster| cluster.tls_info).unwrap_or_default();
    let rows: Vec<Row> = nodes.iter().map(|node| line(node, &info.swarm.node_id, &wanted)).collect();
    context.list(&LISTING, &args, &rows)
}

/// Docker's words for whether a node's certificate is as it shall be.
fn tls_status(node: &TlsInfo, wanted: &TlsInfo) -> &'static str {
    if node.trust_root.is_empty() || node.cert_issuer_public_key.is_empty() {
        "Unknown"
    } else if node == wanted {
        "Ready"
    } else {
        "Needs Rotation"
    }
}

fn line(node: &Node, own_id: &str, wanted: &TlsInfo) -> Row {
    let manager = match &node.manager_status {
        Some(status) if status.leader => "Leader".to_owned(),
        Some(status) => capitalised(&status.reachability),
        None => String::new(),
    };
    let mut fields = row([
        ("ID", node.id.clone()),
        ("Hostname", node.description.hostname.clone()),
        ("Status", capitalised(&node.status.state)),
        ("Availability", capitalised(&node.spec.availability)),
        ("ManagerStatus", manager),
        ("EngineVersion", node.description.engine.engine_version.clone()),
        ("TLSStatus", tls_status(&node.description.tls_info, wanted).into()),
    ]);
    fields.insert("Self".into(), (node.id == own_id).into());
    fields
}

/// `ready` as `Ready`.
pub fn capitalised(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

async fn inspect(context: &Context, args: NodeInspectArgs) -> Result<u8, CommandError> {
    if !args.pretty {
        return context.inspect(&args.inspect, |name| Call::get(inspect_path(name))).await;
    }
    for name in &args.inspect.names {
        let node: Node = context.client.json(Call::get(inspect_path(name))).await?;
        context.terminal.print(&pretty(&node))?;
    }
    Ok(0)
}

fn pretty(node: &Node) -> String {
    let mut text = format!(
        "ID:\t\t\t{}\nHostname:\t\t{}\nJoined at:\t\t{}\nStatus:\n State:\t\t\t{}\n Availability:\t\t{}\n Address:\t\t{}\n",
        node.id,
        node.description.hostname,
        node.created_at,
        capitalised(&node.status.state),
        capitalised(&node.spec.availability),
        node.status.addr
    );
    if let Some(status) = &node.manager_status {
        let leader = if status.leader { "Yes" } else { "No" };
        text.push_str(&format!(
            "Manager Status:\n Address:\t\t{}\n Raft Status:\t\t{}\n Leader:\t\t{leader}\n",
            status.addr,
            capitalised(&status.reachability)
        ));
    }
    let resources = &node.description.resources;
    text.push_str(&format!(
        "Resources:\n CPUs:\t\t\t{}\n Memory:\t\t{}\nEngine Version:\t\t{}\n",
        resources.nano_cpus / 1_000_000_000,
        crate::units::binary_size(u64::try_from(resources.memory_bytes).unwrap_or(0)),
        node.description.engine.engine_version
    ));
    if let Some(labels) = node.spec.labels.as_ref().filter(|labels| !labels.is_empty()) {
        let labels = serde_json::json!(labels).to_string();
        text.push_str(&format!("Labels: {}\n", indent(&labels)));
    }
    text
}

async fn node_tasks(context: &Context, args: PsArgs) -> Result<u8, CommandError> {
    let mut found: Vec<Task> = Vec::new();
    for name in &args.nodes {
        let node: Node = context.client.json(Call::get(inspect_path(name))).await?;
        let filters = args.tasks.filters()?.with("node", &node.id);
        found.extend(context.client.json::<Vec<Task>>(Call::get("/tasks").filters(&filters)).await?);
    }
    args.tasks.print(context, found).await
}

async fn update(context: &Context, args: UpdateArgs) -> Result<u8, CommandError> {
    let mut node: Node = context.client.json(Call::get(inspect_path(&args.node))).await?;
    node.spec.availability = args.availability.unwrap_or(node.spec.availability);
    node.spec.role = args.role.unwrap_or(node.spec.role);
    let labels = node.spec.labels.get_or_insert_default();
    labels.extend(super::words::key_values(&args.label_add));
    for key in &args.label_rm {
        if labels.remove(key).is_none() {
            return Err(CommandError::Usage(format!("node `{}` has no label `{key}`", args.node)));
        }
    }
    if let Some(deadline) = args.drain_deadline {
        labels.insert(DRAIN_DEADLINE.to_owned(), deadline);
    }
    send_update(context, &node).await?;
    if args.wait && node.spec.availability == "drain" {
        until_empty(context, &node.id).await?;
    }
    context.terminal.line(&args.node)?;
    Ok(0)
}

/// A duration, as it was typed.
fn duration(text: &str) -> Result<String, String> {
    parse_duration(text).map(|_| text.to_owned())
}

/// Asks until no task of services is left on the node. There is no event for it; docker's own clients poll so too.
async fn until_empty(context: &Context, id: &str) -> Result<(), CommandError> {
    let filters = Filters::default().with("node", id);
    loop {
        let tasks: Vec<Task> = context.client.json(Call::get("/tasks").filters(&filters)).await?;
        let ended = ["complete", "shutdown", "failed", "rejected", "orphaned", "remove"];
        if tasks.iter().all(|task| ended.contains(&task.status.state.as_str())) {
            return Ok(());
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn set_role(context: &Context, names: &[String], role: &str) -> Result<u8, CommandError> {
    let work = |name: String| async move {
        let mut node: Node = context.client.json(Call::get(inspect_path(&name))).await?;
        if node.spec.role == role {
            return Ok(vec![format!("Node {name} is already a {role}.")]);
        }
        node.spec.role = role.to_owned();
        send_update(context, &node).await?;
        let done = if role == "manager" {
            format!("Node {name} promoted to a manager in the swarm.")
        } else {
            format!("Manager {name} demoted in the swarm.")
        };
        Ok(vec![done])
    };
    context.each(names, work).await
}

async fn send_update(context: &Context, node: &Node) -> Result<(), CommandError> {
    let call = Call::post(format!("/nodes/{}/update", node.id)).query("version", node.version.index);
    Ok(context.client.done(call.body(&node.spec)).await?)
}

/// The cluster's nodes; none when this node cannot say.
pub async fn all(context: &Context) -> Vec<Node> {
    context.client.json(Call::get("/nodes").filters(&Filters::default())).await.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use rswarm_api::types::ManagerStatus;

    use super::*;

    #[test]
    fn the_list_marks_this_node_and_the_leader() {
        let node = |id: &str, hostname: &str| {
            let mut node = Node { id: id.into(), ..Node::default() };
            node.description.hostname = hostname.into();
            node.status.state = "ready".into();
            node.spec.availability = "active".into();
            node.description.engine.engine_version = "0.1.0".into();
            node
        };
        let mut first = node("1bcef6utixb0l0ca7gxuivsj0", "n1");
        first.manager_status = Some(ManagerStatus { leader: true, ..ManagerStatus::default() });
        let second = node("38ciaotwjuritcdtn9npbnkuz", "n2");
        let wanted = TlsInfo::default();
        let rows = [line(&first, &first.id, &wanted), line(&second, &first.id, &wanted)];
        assert_eq!(
            LISTING.render(None, false, &rows).expect("renders"),
            "ID                            HOSTNAME   STATUS    AVAILABILITY   MANAGER STATUS   ENGINE VERSION\n\
             1bcef6utixb0l0ca7gxuivsj0 *   n1         Ready     Active         Leader           0.1.0\n\
             38ciaotwjuritcdtn9npbnkuz     n2         Ready     Active                          0.1.0\n"
        );
    }
}
