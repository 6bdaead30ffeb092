//! Volumes.

use clap::{Args, Subcommand};
use rswarm_api::types::{Volume, VolumeCreateBody, VolumeList, VolumesPruned};
use serde_json::json;

use super::{CommandError, Context, InspectArgs, ListArgs, words};
use crate::client::{Call, Filters};
use crate::render::table::{Listing, Row, row};
use crate::render::template::with_labels;

const LISTING: Listing = Listing {
    table: "{{.Driver}}\t{{.Name}}",
    headers: &[
        ("Driver", "DRIVER"),
        ("Name", "VOLUME NAME"),
        ("Scope", "SCOPE"),
        ("Mountpoint", "MOUNTPOINT"),
        ("Labels", "LABELS"),
        ("Links", "LINKS"),
        ("Size", "SIZE"),
        ("Availability", "AVAILABILITY"),
        ("Group", "GROUP"),
        ("Status", "STATUS"),
    ],
    quiet: "Name",
};

/// What comes after `volume`.
#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// List volumes
    #[command(visible_alias = "list")]
    Ls(ListArgs),
    /// Create a volume
    Create(CreateArgs),
    /// Print everything about volumes
    Inspect(InspectArgs),
    /// Remove volumes
    #[command(visible_alias = "remove")]
    Rm(RmArgs),
    /// Remove volumes that no container uses
    Prune(PruneArgs),
}

#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Driver
    #[arg(short, long, default_value = "local")]
    driver: String,
    /// Driver option, `KEY=VALUE`
    #[arg(short, long, value_name = "OPTION")]
    opt: Vec<String>,
    /// Set a label, `KEY=VALUE`
    #[arg(long)]
    label: Vec<String>,
    /// Name of the volume; one is made up without
    #[arg(value_name = "VOLUME")]
    name: Option<String>,
}

#[derive(Debug, Args)]
pub struct RmArgs {
    /// One that is not there is fine
    #[arg(short, long)]
    force: bool,
    /// Names
    #[arg(required = true, value_name = "VOLUME")]
    names: Vec<String>,
}

#[derive(Debug, Args)]
pub struct PruneArgs {
    /// Named ones too
    #[arg(short, long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Remove only what matches, `KEY=VALUE`
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
}

impl VolumeCommand {
    /// Does it.
    pub async fn run(self, context: &Context) -> Result<u8, CommandError> {
        match self {
            VolumeCommand::Ls(args) => list(context, args).await,
            VolumeCommand::Create(args) => create(context, args).await,
            VolumeCommand::Inspect(args) => {
                context.inspect(&args, |name| Call::get(inspect_path(name))).await
            }
            VolumeCommand::Rm(args) => {
                let force = args.force;
                let work = |name: String| async move {
                    context.client.done(Call::delete(inspect_path(&name)).flag("force", force)).await?;
                    Ok(vec![name])
                };
                context.each(&args.names, work).await
            }
            VolumeCommand::Prune(args) => prune(context, args).await,
        }
    }
}

/// Where a volume is inspected.
pub fn inspect_path(name: &str) -> String {
    format!("/volumes/{name}")
}

async fn list(context: &Context, args: ListArgs) -> Result<u8, CommandError> {
    let listed: VolumeList = context.client.json(Call::get("/volumes").filters(&args.filters()?)).await?;
    let mut volumes = listed.volumes;
    volumes.sort_by(|a, b| a.name.cmp(&b.name));
    let rows: Vec<Row> = volumes.iter().map(line).collect();
    context.list(&LISTING, &args, &rows)
}

fn line(volume: &Volume) -> Row {
    let labels = volume.labels.clone().unwrap_or_default();
    let unknown = || "N/A".to_owned();
    let fields = row([
        ("Driver", volume.driver.clone()),
        ("Name", volume.name.clone()),
        ("Scope", volume.scope.clone()),
        ("Mountpoint", volume.mountpoint.clone()),
        ("Labels", words::printed_labels(&labels)),
        ("Links", unknown()),
        ("Size", unknown()),
        ("Availability", unknown()),
        ("Group", unknown()),
        ("Status", unknown()),
    ]);
    with_labels(fields, json!(labels))
}

async fn create(context: &Context, args: CreateArgs) -> Result<u8, CommandError> {
    let body = VolumeCreateBody {
        name: args.name.unwrap_or_default(),
        driver: args.driver,
        driver_opts: Some(words::key_values(&args.opt)),
        labels: Some(words::key_values(&args.label)),
        cluster_volume_spec: None,
    };
    let created: Volume = context.client.json(Call::post("/volumes/create").body(&body)).await?;
    context.terminal.line(created.name)?;
    Ok(0)
}

async fn prune(context: &Context, args: PruneArgs) -> Result<u8, CommandError> {
    let mut filters = Filters::parse(&args.filter).map_err(CommandError::Usage)?;
    let which = if args.all { "all" } else { "anonymous" };
    if args.all {
        filters = filters.with("all", "true");
    }
    let question = format!(
        "WARNING! This will remove {which} local volumes not used by at least one container.\nAre you sure you want to continue? [y/N] "
    );
    if !args.force && !super::confirmed(context, &question)? {
        return Ok(0);
    }
    let pruned: VolumesPruned = context.client.json(Call::post("/volumes/prune").filters(&filters)).await?;
    if let Some(removed) = pruned.volumes_deleted.filter(|removed| !removed.is_empty()) {
        context.terminal.line(format!("Deleted Volumes:\n{}\n", removed.join("\n")))?;
    }
    context
        .terminal
        .line(format!("Total reclaimed space: {}", crate::units::progress_size(pruned.space_reclaimed)))?;
    Ok(0)
}
