//! The daemon itself: version, info, events; and `inspect`, which takes any kind of object.

use std::fmt::Write as _;

use clap::{Args, Subcommand};
use rswarm_api::types::{EventMessage, InfoBody, SwarmInfo, VersionBody};
use rswarm_base::clock::Timestamp;

use super::{CommandError, Context, container, image, network, node, secret, service, volume};
use crate::client::{Call, Filters, JsonLines};
use crate::render::template;
use crate::units::{binary_size, go_duration};

/// What comes after `system`.
#[derive(Debug, Subcommand)]
pub enum SystemCommand {
    /// Print what the daemon is and has
    Info(FormatArgs),
    /// Print what happens as it happens
    Events(EventsArgs),
}

#[derive(Debug, Args)]
pub struct FormatArgs {
    /// Print with a Go template, or `json`
    #[arg(short, long)]
    format: Option<String>,
}

/// `events`
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Only what matches, `KEY=VALUE`
    #[arg(short, long)]
    filter: Vec<String>,
    /// Start at this time
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// End at this time
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Print with a Go template, or `json`
    #[arg(long)]
    format: Option<String>,
}

/// `inspect`
#[derive(Debug, Args)]
pub struct AnyInspectArgs {
    /// Print with a Go template
    #[arg(short, long)]
    format: Option<String>,
    /// Only this kind of object
    #[arg(long = "type", value_name = "TYPE", value_parser = KINDS.map(|(kind, _)| kind))]
    kind: Option<String>,
    /// Print sizes of containers
    #[arg(short, long)]
    size: bool,
    /// Names or IDs
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

/// In place of a value: lines below belong to this one.
const SECTION: &str = "\0";

type InspectPath = fn(&str) -> String;

/// The kinds of objects in the order in which a name is looked up.
const KINDS: [(&str, InspectPath); 9] = [
    ("container", container::inspect_path),
    ("image", image::inspect_path),
    ("network", network::inspect_path),
    ("volume", volume::inspect_path),
    ("node", node::inspect_path),
    ("service", service::inspect_path),
    ("task", |name| format!("/tasks/{name}")),
    ("secret", secret::secret_path),
    ("config", secret::config_path),
];

impl SystemCommand {
    /// Does it.
    pub async fn run(self, context: &Context) -> Result<u8, CommandError> {
        match self {
            SystemCommand::Info(args) => info(context, args).await,
            SystemCommand::Events(args) => events(context, args).await,
        }
    }
}

/// Prints objects of any kind, found by name.
pub async fn inspect(context: &Context, args: AnyInspectArgs) -> Result<u8, CommandError> {
    let mut found = Vec::new();
    let mut code = 0;
    for name in &args.names {
        match find(context, &args, name).await {
            Ok(json) => found.push(json),
            Err(error) => {
                code = 1;
                context.complain(&error);
            }
        }
    }
    context.print_inspected(args.format.as_deref(), &found)?;
    Ok(code)
}

/// The first kind that knows the name. Nodes and the like are only asked for where there is a cluster.
async fn find(context: &Context, args: &AnyInspectArgs, name: &str) -> Result<String, CommandError> {
    let wanted = KINDS.iter().filter(|(kind, _)| args.kind.as_deref().is_none_or(|wanted| wanted == *kind));
    for (kind, path) in wanted {
        let call = Call::get(path(name)).flag("size", args.size && *kind == "container");
        let call = call.flag("insertDefaults", *kind == "service");
        match context.client.text(call).await {
            Ok(json) => return Ok(json),
            Err(error) if args.kind.is_some() || !is_elsewhere(&error) => return Err(error.into()),
            Err(_) => {}
        }
    }
    Err(CommandError::Reported(format!("No such object: {name}")))
}

fn is_elsewhere(error: &crate::client::ClientError) -> bool {
    use crate::client::ClientError;
    let refused = |status: hyper::StatusCode| {
        status.is_client_error() || status == hyper::StatusCode::SERVICE_UNAVAILABLE
    };
    matches!(error, ClientError::Refused { status, .. } if refused(*status))
}

/// Prints the versions of client and daemon.
pub async fn version(context: &Context, args: FormatArgs) -> Result<u8, CommandError> {
    let server: Result<String, _> = context.client.text(Call::get("/version")).await;
    let client = serde_json::json!({
        "Version": env!("CARGO_PKG_VERSION"),
        "Os": std::env::consts::OS,
        "Arch": go_arch(std::env::consts::ARCH),
    });
    if let Some(format) = &args.format {
        let server: serde_json::Value = serde_json::from_str(&server?).unwrap_or_default();
        let both = serde_json::json!({ "Client": client, "Server": server });
        let text = if format == "json" { both.to_string() } else { template::execute(format, &both)? };
        context.terminal.line(text)?;
        return Ok(0);
    }
    context.terminal.print(&format!(
        "Client:\n Version:           {}\n OS/Arch:           {}/{}\n",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::OS,
        go_arch(std::env::consts::ARCH)
    ))?;
    let server: VersionBody = serde_json::from_str(&server?).unwrap_or_default();
    context.terminal.print(&server_version(&server))?;
    Ok(0)
}

/// The architecture in Go's words, which Docker uses.
fn go_arch(arch: &str) -> &str {
    match arch {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn server_version(server: &VersionBody) -> String {
    let mut text = format!("\nServer: {}\n", server.platform.name);
    let engine = [
        ("Version:", server.version.clone()),
        ("API version:", format!("{} (minimum version {})", server.api_version, server.min_api_version)),
        ("Git commit:", server.git_commit.clone()),
        ("Built:", server.build_time.clone()),
        ("OS/Arch:", format!("{}/{}", server.os, server.arch)),
        ("Kernel:", server.kernel_version.clone()),
    ];
    text.push_str(" Engine:\n");
    for (name, value) in engine.iter().filter(|(_, value)| !value.is_empty()) {
        let _ = writeln!(text, "  {name:<17} {value}");
    }
    for component in server.components.iter().filter(|component| component.name != "Engine") {
        let _ = writeln!(text, " {}:\n  {:<17} {}", component.name, "Version:", component.version);
    }
    text
}

/// Prints what the daemon is and has.
pub async fn info(context: &Context, args: FormatArgs) -> Result<u8, CommandError> {
    let json = context.client.text(Call::get("/info")).await?;
    let decode = |source| crate::client::ClientError::Decode { call: "GET /info".into(), source };
    if let Some(format) = &args.format {
        let object: serde_json::Value = serde_json::from_str(&json).map_err(decode)?;
        let text = if format == "json" { json } else { template::execute(format, &object)? };
        context.terminal.line(text)?;
        return Ok(0);
    }
    let info: InfoBody = serde_json::from_str(&json).map_err(decode)?;
    context.terminal.print(&described(&info))?;
    for warning in info.warnings.iter().flatten() {
        context.terminal.complain(warning);
    }
    Ok(0)
}

fn described(info: &InfoBody) -> String {
    let mut text = format!("Client:\n Version:    {}\n\nServer:\n", env!("CARGO_PKG_VERSION"));
    let mut line = |name: &str, value: &str| {
        let told = match value {
            "" => Ok(()),
            SECTION => writeln!(text, " {name}:"),
            value => writeln!(text, " {name}: {value}"),
        };
        told.expect("a string takes any text");
    };
    line("Containers", &info.containers.to_string());
    line(" Running", &info.containers_running.to_string());
    line(" Paused", &info.containers_paused.to_string());
    line(" Stopped", &info.containers_stopped.to_string());
    line("Images", &info.images.to_string());
    line("Server Version", &info.server_version);
    line("Storage Driver", &info.driver);
    for [name, value] in &info.driver_status {
        line(&format!(" {name}"), value);
    }
    line("Logging Driver", &info.logging_driver);
    line("Cgroup Driver", &info.cgroup_driver);
    line("Cgroup Version", &info.cgroup_version);
    line("Runtimes", &info.runtimes.keys().cloned().collect::<Vec<_>>().join(" "));
    line("Default Runtime", &info.default_runtime);
    swarm_lines(&info.swarm, &mut line);
    line("Kernel Version", &info.kernel_version);
    line("Operating System", &info.operating_system);
    line("OSType", &info.os_type);
    line("Architecture", &info.architecture);
    line("CPUs", &info.ncpu.to_string());
    line("Total Memory", &binary_size(u64::try_from(info.mem_total).unwrap_or(0)));
    line("Name", &info.name);
    line("ID", &info.id);
    line("Docker Root Dir", &info.docker_root_dir);
    line("Labels", &info.labels.join(" "));
    line("Live Restore Enabled", &info.live_restore_enabled.to_string());
    text
}

fn swarm_lines(swarm: &SwarmInfo, line: &mut impl FnMut(&str, &str)) {
    line("Swarm", &swarm.local_node_state);
    if matches!(swarm.local_node_state.as_str(), "inactive" | "locked" | "") {
        return;
    }
    line(" NodeID", &swarm.node_id);
    line(" Error", &swarm.error);
    line(" Is Manager", &swarm.control_available.to_string());
    if let Some(cluster) = swarm.cluster.as_ref().filter(|_| swarm.control_available) {
        line(" ClusterID", &cluster.id);
        line(" Managers", &swarm.managers.to_string());
        line(" Nodes", &swarm.nodes.to_string());
        line(" Default Address Pool", &cluster.default_addr_pool.as_deref().unwrap_or_default().join(" "));
        line(" SubnetSize", &cluster.subnet_size.to_string());
        line(" Data Path Port", &cluster.data_path_port.to_string());
        let history = cluster.spec.orchestration.task_history_retention_limit.unwrap_or(5);
        line(" Orchestration", SECTION);
        line("  Task History Retention Limit", &history.to_string());
        let heartbeat = u64::try_from(cluster.spec.dispatcher.heartbeat_period).unwrap_or(0);
        line(" Dispatcher", SECTION);
        line("  Heartbeat Period", &go_duration(std::time::Duration::from_nanos(heartbeat)));
        line(" Root Rotation In Progress", &cluster.root_rotation_in_progress.to_string());
    }
    line(" Node Address", &swarm.node_addr);
    line(" Manager Addresses", if swarm.remote_managers.is_some() { SECTION } else { "" });
    for manager in swarm.remote_managers.iter().flatten() {
        line(&format!("  {}", manager.node_id), &manager.addr);
    }
}

/// Prints events until they end or the person has seen enough.
pub async fn events(context: &Context, args: EventsArgs) -> Result<u8, CommandError> {
    let moment = |text: &Option<String>| {
        text.as_deref().map(|text| container::logs::moment(text, Timestamp::now())).transpose()
    };
    let filters = Filters::parse(&args.filter).map_err(CommandError::Usage)?;
    let call = Call::get("/events").filters(&filters);
    let call = call.maybe("since", moment(&args.since)?).maybe("until", moment(&args.until)?);
    let name = call.to_string();
    let mut lines = JsonLines::new(name, context.client.send(call).await?.into_body());
    while let Some(event) = lines.next::<serde_json::Value>().await? {
        let text = match args.format.as_deref() {
            None => event_line(&serde_json::from_value(event).unwrap_or_default()),
            Some("json") => event.to_string(),
            Some(format) => template::execute(format, &event)?,
        };
        context.terminal.line(text)?;
    }
    Ok(0)
}

fn event_line(event: &EventMessage) -> String {
    let time = if event.time_nano != 0 { event.time_nano } else { event.time.saturating_mul(1_000_000_000) };
    let mut text = format!("{} {} {}", Timestamp(time).rfc3339_nano(), event.kind, event.action);
    if !event.actor.id.is_empty() {
        let _ = write!(text, " {}", event.actor.id);
    }
    let attributes: Vec<String> = event.actor.attributes.iter().map(|(k, v)| format!("{k}={v}")).collect();
    if !attributes.is_empty() {
        let _ = write!(text, " ({})", attributes.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line() {
        let mut event =
            EventMessage { kind: "container".into(), action: "start".into(), ..EventMessage::default() };
        event.time_nano = 1_700_000_000_000_000_007;
        event.actor.id = "abc".into();
        event.actor.attributes = [("image", "web"), ("name", "w")].map(|(k, v)| (k.into(), v.into())).into();
        assert_eq!(
            event_line(&event),
            "2023-11-14T22:13:20.000000007Z container start abc (image=web, name=w)"
        );
    }

    #[test]
    fn a_node_outside_a_cluster_says_so_in_one_line() {
        let mut info = InfoBody::default();
        info.swarm.local_node_state = "inactive".into();
        let text = described(&info);
        assert!(text.contains("\n Swarm: inactive\n"), "{text}");
        assert!(!text.contains("NodeID"), "{text}");
    }
}
