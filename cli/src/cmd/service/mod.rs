//! Services: make, change, scale, follow, list.

mod create;
mod forecast;
mod list;
mod options;
mod progress;
pub mod tasks;
mod update;

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use rswarm_api::types::{
    ConfigReferenceSpec, SecretReference, Service, ServiceCreated, ServiceSpec, ServiceUpdated, Task,
};

use super::container::logs::{LogOptions, print};
use super::secret::{self, Family, Reference};
use super::usage::{Of, UsageArgs};
use super::{CommandError, Context, InspectArgs, ListArgs, node};
use crate::client::{Call, Filters};
use crate::credentials;

/// What comes after `service`.
#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// Create a service
    #[command(override_usage = "rswarm service create [OPTIONS] IMAGE [COMMAND] [ARG...]", after_help = create::EXAMPLES)]
    Create(Box<create::CreateArgs>),
    /// List services
    #[command(visible_alias = "list")]
    Ls(ListArgs),
    /// List a service's tasks
    Ps(PsArgs),
    /// Print everything about services
    Inspect(ServiceInspectArgs),
    /// Change a service
    #[command(after_help = update::EXAMPLES)]
    Update(Box<update::UpdateArgs>),
    /// Change how many tasks services have
    Scale(ScaleArgs),
    /// Go back to the specification before the last change
    Rollback(RollbackArgs),
    /// Remove services
    #[command(visible_alias = "remove")]
    Rm(RmArgs),
    /// Print what a service's tasks wrote
    Logs(ServiceLogsArgs),
    /// Show what services' tasks use
    Stats(UsageArgs),
}

/// Whether and how a command follows what it started.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct WaitArgs {
    /// Do not wait for the service to converge
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    detach: Option<bool>,
    /// Do not show progress
    #[arg(short, long)]
    quiet: bool,
}

/// Whether a command only says what it would do.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct DryRunArgs {
    /// Show what would change, which tasks would be replaced and where new ones would go; change nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
pub struct PsArgs {
    #[command(flatten)]
    tasks: tasks::TaskListArgs,
    /// Names or IDs
    #[arg(required = true, value_name = "SERVICE")]
    services: Vec<String>,
}

#[derive(Debug, Args)]
pub struct ServiceInspectArgs {
    /// Print for people
    #[arg(long, conflicts_with = "format")]
    pretty: bool,
    #[command(flatten)]
    inspect: InspectArgs,
}

#[derive(Debug, Args)]
pub struct ScaleArgs {
    /// Do not wait for the services to converge
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    detach: Option<bool>,
    /// `SERVICE=TASKS`
    #[arg(required = true, value_name = "SERVICE=TASKS")]
    targets: Vec<String>,
}

#[derive(Debug, Args)]
pub struct RollbackArgs {
    #[command(flatten)]
    wait: WaitArgs,
    /// Name or ID
    service: String,
}

#[derive(Debug, Args)]
pub struct RmArgs {
    /// Names or IDs
    #[arg(required = true, value_name = "SERVICE")]
    services: Vec<String>,
}

#[derive(Debug, Args)]
pub struct ServiceLogsArgs {
    #[command(flatten)]
    options: LogOptions,
    /// Print IDs instead of names
    #[arg(long)]
    no_resolve: bool,
    /// Leave out the tasks' IDs
    #[arg(long)]
    no_task_ids: bool,
    /// Print everything in full
    #[arg(long)]
    no_trunc: bool,
    /// Print the text alone
    #[arg(long)]
    raw: bool,
    /// A service or a task, by name or ID
    #[arg(value_name = "SERVICE|TASK")]
    name: String,
}

impl ServiceCommand {
    /// Does it.
    pub async fn run(self, context: &Context) -> Result<u8, CommandError> {
        match self {
            ServiceCommand::Create(args) => create_command(context, *args).await,
            ServiceCommand::Ls(args) => list::list(context, args).await,
            ServiceCommand::Ps(args) => service_tasks(context, args).await,
            ServiceCommand::Inspect(args) => inspect_command(context, args).await,
            ServiceCommand::Update(args) => update_command(context, *args).await,
            ServiceCommand::Scale(args) => scale(context, args).await,
            ServiceCommand::Rollback(args) => rollback(context, args).await,
            ServiceCommand::Rm(RmArgs { services }) => {
                let work = |name: String| async move {
                    context.client.done(Call::delete(inspect_path(&name))).await?;
                    Ok(vec![name])
                };
                context.each(&services, work).await
            }
            ServiceCommand::Logs(args) => logs(context, args).await,
            ServiceCommand::Stats(args) => args.run(context, Of::Services).await,
        }
    }
}

pub use progress::follow;

/// Where a service is inspected.
pub fn inspect_path(name: &str) -> String {
    format!("/services/{name}")
}

async fn create_command(context: &Context, args: create::CreateArgs) -> Result<u8, CommandError> {
    let (wait, dry_run) = (args.wait, args.dry.dry_run);
    let with_auth = args.settings.with_registry_auth;
    let (secrets, configs) = (args.secret.clone(), args.config.clone());
    let mut spec = args.spec()?;
    give_content(context, &mut spec, &secrets, &configs).await?;
    let path = if dry_run { "/services/create/forecast" } else { "/services/create" };
    let call = authorised(Call::post(path).body(&spec), with_auth, &spec)?;
    if dry_run {
        return forecast::show(context, call, None).await;
    }
    let created: ServiceCreated = context.client.json(call).await?;
    warn(context, created.warnings);
    context.terminal.line(&created.id)?;
    follow(context, &created.id, wait).await
}

async fn update_command(context: &Context, args: update::UpdateArgs) -> Result<u8, CommandError> {
    let service = inspect(context, &args.service).await?;
    let dry_run = args.dry.dry_run;
    let before = dry_run.then(|| service.spec.clone());
    let verb = if dry_run { "forecast" } else { "update" };
    let call =
        Call::post(format!("{}/{verb}", inspect_path(&service.id))).query("version", service.version.index);
    let (wait, name, with_auth) = (args.wait, args.service.clone(), args.settings.with_registry_auth);
    let call = if args.rollback {
        call.query("rollback", "previous").body(&service.spec)
    } else {
        let (secrets, configs) = (args.secret_add.clone(), args.config_add.clone());
        let mut spec = service.spec;
        take_content(&mut spec, &args.secret_rm, &args.config_rm);
        let mut spec = args.spec(spec)?;
        give_content(context, &mut spec, &secrets, &configs).await?;
        authorised(call.body(&spec), with_auth, &spec)?
    };
    if dry_run {
        return forecast::show(context, call, before.as_ref()).await;
    }
    send_update(context, call).await?;
    context.terminal.line(name)?;
    follow(context, &service.id, wait).await
}

/// Puts secrets and configs into the spec, each in place of one of the same name.
async fn give_content(
    context: &Context,
    spec: &mut ServiceSpec,
    secrets: &[Reference],
    configs: &[Reference],
) -> Result<(), CommandError> {
    take_content(spec, &sources(secrets), &sources(configs));
    let container = spec.task_template.container_spec.get_or_insert_default();
    for (Reference { source, file }, id) in secret::resolve(context, Family::Secret, secrets).await? {
        container.secrets.push(SecretReference { file: Some(file), secret_id: id, secret_name: source });
    }
    for (Reference { source, file }, id) in secret::resolve(context, Family::Config, configs).await? {
        let reference =
            ConfigReferenceSpec { file: Some(file), runtime: None, config_id: id, config_name: source };
        container.configs.push(reference);
    }
    Ok(())
}

fn sources(references: &[Reference]) -> Vec<String> {
    references.iter().map(|reference| reference.source.clone()).collect()
}

fn take_content(spec: &mut ServiceSpec, secrets: &[String], configs: &[String]) {
    if let Some(container) = &mut spec.task_template.container_spec {
        container.secrets.retain(|reference| !secrets.contains(&reference.secret_name));
        container.configs.retain(|reference| !configs.contains(&reference.config_name));
    }
}

/// Sends this person's credentials along, for the nodes to pull with.
fn authorised(call: Call, wanted: bool, spec: &ServiceSpec) -> Result<Call, CommandError> {
    match &spec.task_template.container_spec {
        Some(container) if wanted => Ok(call.registry_auth(credentials::header_for(&container.image)?)),
        Some(_) | None => Ok(call),
    }
}

async fn rollback(context: &Context, args: RollbackArgs) -> Result<u8, CommandError> {
    let service = inspect(context, &args.service).await?;
    let call =
        Call::post(format!("{}/update", inspect_path(&service.id))).query("version", service.version.index);
    send_update(context, call.query("rollback", "previous").body(&service.spec)).await?;
    context.terminal.line(&args.service)?;
    follow(context, &service.id, args.wait).await
}

async fn scale(context: &Context, args: ScaleArgs) -> Result<u8, CommandError> {
    let mut targets = Vec::new();
    for text in &args.targets {
        let target = text.split_once('=').and_then(|(name, count)| Some((name, count.parse::<u64>().ok()?)));
        let wrong = || CommandError::Usage(format!("invalid scale `{text}`: write it as `SERVICE=TASKS`"));
        targets.push(target.ok_or_else(wrong)?);
    }
    let mut scaled = Vec::new();
    let mut code = 0;
    for (name, count) in targets {
        match scale_one(context, name, count).await {
            Ok(id) => scaled.push((name, id)),
            Err(error) => {
                code = 1;
                context.complain(&error);
            }
        }
    }
    for (name, id) in scaled {
        let wait = WaitArgs { detach: args.detach, quiet: false };
        if let Err(error) = follow(context, &id, wait).await {
            code = 1;
            context.terminal.complain(format!("service {name}:"));
            context.complain(&error);
        }
    }
    Ok(code)
}

async fn scale_one(context: &Context, name: &str, count: u64) -> Result<String, CommandError> {
    let mut service = inspect(context, name).await?;
    let mode = &mut service.spec.mode;
    match (&mut mode.replicated, &mut mode.replicated_job) {
        (Some(replicated), _) => replicated.replicas = Some(count),
        (None, Some(job)) => job.total_completions = Some(count),
        (None, None) => {
            let problem = format!("{name}: scale can only be used with replicated or replicated-job mode");
            return Err(CommandError::Usage(problem));
        }
    }
    let call =
        Call::post(format!("{}/update", inspect_path(&service.id))).query("version", service.version.index);
    send_update(context, call.body(&service.spec)).await?;
    context.terminal.line(format!("{name} scaled to {count}"))?;
    Ok(service.id)
}

async fn send_update(context: &Context, call: Call) -> Result<(), CommandError> {
    let updated: ServiceUpdated = context.client.json(call).await?;
    warn(context, updated.warnings);
    Ok(())
}

fn warn(context: &Context, warnings: Option<Vec<String>>) {
    for warning in warnings.iter().flatten() {
        context.terminal.complain(warning);
    }
}

/// One service as it is now.
pub async fn inspect(context: &Context, name: &str) -> Result<Service, CommandError> {
    Ok(context.client.json(Call::get(inspect_path(name))).await?)
}

async fn inspect_command(context: &Context, args: ServiceInspectArgs) -> Result<u8, CommandError> {
    if !args.pretty {
        let call = |name: &str| Call::get(inspect_path(name)).query("insertDefaults", true);
        return context.inspect(&args.inspect, call).await;
    }
    for name in &args.inspect.names {
        context.terminal.print(&list::pretty(&inspect(context, name).await?))?;
    }
    Ok(0)
}

async fn service_tasks(context: &Context, args: PsArgs) -> Result<u8, CommandError> {
    let mut found: Vec<Task> = Vec::new();
    let mut code = 0;
    for name in &args.services {
        let service = match inspect(context, name).await {
            Ok(service) => service,
            Err(error) => {
                code = 1;
                context.complain(&error);
                continue;
            }
        };
        let filters = args.tasks.filters()?.with("service", &service.id);
        found.extend(context.client.json::<Vec<Task>>(Call::get("/tasks").filters(&filters)).await?);
    }
    if found.is_empty() && code != 0 {
        return Ok(code);
    }
    args.tasks.print(context, found).await?;
    Ok(code)
}

async fn logs(context: &Context, args: ServiceLogsArgs) -> Result<u8, CommandError> {
    let (path, tty) = match inspect(context, &args.name).await {
        Ok(service) => {
            let tty = service.spec.task_template.container_spec.is_some_and(|spec| spec.tty);
            (format!("/services/{}/logs", service.id), tty)
        }
        Err(CommandError::Client(error)) if error.is_not_found() => {
            let task: Task = context.client.json(Call::get(format!("/tasks/{}", args.name))).await?;
            (format!("/tasks/{}/logs", task.id), task.spec.container_spec.is_some_and(|spec| spec.tty))
        }
        Err(error) => return Err(error),
    };
    let mut options = args.options.clone();
    options.details = true;
    let names = if args.raw { Names::default() } else { Names::load(context, &args).await };
    let show_details = args.options.details;
    let call = options.apply(Call::get(path))?;
    print(context, call, tty, |line| names.decorate(&line, &args, show_details)).await
}

/// What log lines are labelled with.
#[derive(Default)]
struct Names {
    tasks: BTreeMap<String, String>,
    nodes: BTreeMap<String, String>,
}

impl Names {
    async fn load(context: &Context, args: &ServiceLogsArgs) -> Names {
        if args.no_resolve {
            return Names::default();
        }
        let nodes = node::all(context).await.into_iter().map(|node| (node.id, node.description.hostname));
        let services: Vec<Service> = context.client.json(Call::get("/services")).await.unwrap_or_default();
        let services: BTreeMap<String, String> = services.into_iter().map(|s| (s.id, s.spec.name)).collect();
        let tasks: Vec<Task> =
            context.client.json(Call::get("/tasks").filters(&Filters::default())).await.unwrap_or_default();
        let name = |task: Task| (task.id.clone(), tasks::short_name(&task, services.get(&task.service_id)));
        Names { nodes: nodes.collect(), tasks: tasks.into_iter().map(name).collect() }
    }

    /// `web.1.abc@n1    | text`: the details that come before each line name its task and node.
    fn decorate(&self, line: &str, args: &ServiceLogsArgs, show_details: bool) -> String {
        let (stamp, rest) = match args.options.timestamps {
            true => line.split_once(' ').map_or(("", line), |(stamp, rest)| (stamp, rest)),
            false => ("", line),
        };
        let Some((details, text)) =
            rest.split_once(' ').filter(|(details, _)| details.contains("com.docker.swarm."))
        else {
            return line.to_owned();
        };
        let stamp = if stamp.is_empty() { String::new() } else { format!("{stamp} ") };
        if args.raw {
            return format!("{stamp}{text}");
        }
        let pairs: Vec<(&str, &str)> = details.split(',').filter_map(|pair| pair.split_once('=')).collect();
        let value = |key: &str| pairs.iter().find(|(name, _)| *name == key).map_or("", |(_, value)| value);
        let (task, node) = (value("com.docker.swarm.task.id"), value("com.docker.swarm.node.id"));
        let whole = args.no_trunc;
        let mut name = match self.tasks.get(task) {
            Some(name) if args.no_task_ids => name.clone(),
            Some(name) => format!("{name}.{}", super::short_id(task, whole)),
            None => super::short_id(task, whole),
        };
        name = format!("{name}@{}", self.nodes.get(node).map_or(node, String::as_str));
        let others = pairs.iter().filter(|(key, _)| !key.starts_with("com.docker.swarm."));
        let others: Vec<String> = others.map(|(key, value)| format!("{key}={value}")).collect();
        let extra =
            if show_details && !others.is_empty() { format!("{} ", others.join(",")) } else { String::new() };
        format!("{stamp}{name}    | {extra}{text}")
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Harness {
        #[command(flatten)]
        args: ServiceLogsArgs,
    }

    #[test]
    fn a_log_line_is_labelled_with_its_task_and_node() {
        let line = "com.docker.swarm.node.id=nid,com.docker.swarm.service.id=sid,com.docker.swarm.task.id=0123456789abcdef hello world\n";
        let names = Names {
            tasks: [("0123456789abcdef".to_owned(), "web.1".to_owned())].into(),
            nodes: [("nid".to_owned(), "n1".to_owned())].into(),
        };
        let told = |flags: &str, line: &str| {
            let args = Harness::try_parse_from(flags.split(' ')).expect(flags).args;
            names.decorate(line, &args, args.options.details)
        };
        assert_eq!(told("logs web", line), "web.1.0123456789ab@n1    | hello world\n");
        assert_eq!(told("logs --no-task-ids web", line), "web.1@n1    | hello world\n");
        assert_eq!(told("logs --raw web", line), "hello world\n");
        assert_eq!(told("logs web", "plain text\n"), "plain text\n");
        assert_eq!(
            told("logs -t web", &format!("2026 {line}")),
            "2026 web.1.0123456789ab@n1    | hello world\n"
        );
    }
}
