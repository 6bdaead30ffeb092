//! `run`, `ps`, `logs` and the other things that are done to containers.

mod copy;
mod detach;
mod files;
pub mod list;
pub mod logs;
mod options;
mod run;
mod session;
mod stats;
mod update;

use clap::{Args, Subcommand};
use hyper::header;
use rswarm_api::types::{ContainerCreated, ExecCreateBody, ExecInspect, ExecStartBody, IdBody, WaitBody};

pub use list::PsArgs;
pub use options::published;
pub use run::{CreateArgs, RunArgs};

use self::detach::DetachKeys;
use super::{CommandError, Context, InspectArgs, words};
use crate::client::{Call, Filters};

/// What can be done to containers, by itself or after `container`.
#[derive(Debug, Subcommand)]
pub enum ContainerAction {
    /// Create and run a container
    #[command(disable_help_flag = true, override_usage = "rswarm run [OPTIONS] IMAGE [COMMAND] [ARG...]", after_help = run::EXAMPLES)]
    Run(Box<RunArgs>),
    /// Create a container
    #[command(disable_help_flag = true, override_usage = "rswarm create [OPTIONS] IMAGE [COMMAND] [ARG...]")]
    Create(Box<CreateArgs>),
    /// Run a command in a running container
    #[command(override_usage = "rswarm exec [OPTIONS] CONTAINER COMMAND [ARG...]")]
    Exec(ExecArgs),
    /// Start containers
    Start(StartArgs),
    /// Stop containers
    Stop(StopArgs),
    /// Stop containers and start them again
    Restart(StopArgs),
    /// Send a signal to containers
    Kill(KillArgs),
    /// Remove containers
    Rm(RmArgs),
    /// Suspend every process of containers
    Pause(Names),
    /// Let suspended containers go on
    Unpause(Names),
    /// Wait until containers end, and print their exit codes
    Wait(Names),
    /// Print what a container wrote
    Logs(logs::LogsArgs),
    /// Connect to a running container's streams
    Attach(AttachArgs),
    /// Rename a container
    Rename(RenameArgs),
    /// Print a container's published ports
    Port(PortArgs),
    /// Print a container's processes
    Top(TopArgs),
    /// Show what containers use, as it changes
    Stats(stats::StatsArgs),
    /// Copy files between a container and this machine
    Cp(copy::CpArgs),
    /// Print what a container changed in its file system
    Diff(files::DiffArgs),
    /// Write a container's file system to a tar archive
    Export(files::ExportArgs),
    /// Make an image of a container
    Commit(files::CommitArgs),
    /// Change containers' limits and restart policy
    Update(Box<update::UpdateArgs>),
}

/// What comes after `container`.
#[derive(Debug, Subcommand)]
pub enum ContainerCommand {
    #[command(flatten)]
    Action(ContainerAction),
    /// List containers
    #[command(visible_alias = "ps", alias = "list")]
    Ls(PsArgs),
    /// Print everything about containers
    Inspect(InspectArgs),
    /// Remove all stopped containers
    Prune(PruneArgs),
}

/// One or more containers.
#[derive(Debug, Args)]
pub struct Names {
    /// Names or IDs
    #[arg(required = true, value_name = "CONTAINER")]
    names: Vec<String>,
}

#[derive(Debug, Args)]
pub struct StartArgs {
    /// Follow its output, and pass signals on
    #[arg(short, long)]
    attach: bool,
    /// Pass standard input on
    #[arg(short, long)]
    interactive: bool,
    /// Keys that detach from a terminal
    #[arg(long, value_name = "KEYS", value_parser = DetachKeys::parse)]
    detach_keys: Option<DetachKeys>,
    /// Names or IDs
    #[arg(required = true, value_name = "CONTAINER")]
    names: Vec<String>,
}

#[derive(Debug, Args)]
pub struct StopArgs {
    /// Seconds to wait before killing
    #[arg(short, long, visible_alias = "time", value_name = "SECONDS", allow_hyphen_values = true)]
    timeout: Option<i64>,
    /// Signal to send instead of the container's own
    #[arg(short, long)]
    signal: Option<String>,
    /// Names or IDs
    #[arg(required = true, value_name = "CONTAINER")]
    names: Vec<String>,
}

#[derive(Debug, Args)]
pub struct KillArgs {
    /// Signal to send
    #[arg(short, long, default_value = "KILL")]
    signal: String,
    /// Names or IDs
    #[arg(required = true, value_name = "CONTAINER")]
    names: Vec<String>,
}

#[derive(Debug, Args)]
pub struct RmArgs {
    /// Kill the container if it runs
    #[arg(short, long)]
    force: bool,
    /// Remove its anonymous volumes too
    #[arg(short, long)]
    volumes: bool,
    /// Remove the link, not the container
    #[arg(short, long)]
    link: bool,
    /// Names or IDs
    #[arg(required = true, value_name = "CONTAINER")]
    names: Vec<String>,
}

#[derive(Debug, Args)]
pub struct AttachArgs {
    /// Do not pass standard input on
    #[arg(long)]
    no_stdin: bool,
    /// Keys that detach from a terminal
    #[arg(long, value_name = "KEYS", value_parser = DetachKeys::parse)]
    detach_keys: Option<DetachKeys>,
    /// Pass signals on
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    sig_proxy: bool,
    /// Name or ID
    #[arg(value_name = "CONTAINER")]
    name: String,
}

#[derive(Debug, Args)]
pub struct RenameArgs {
    /// Name or ID
    #[arg(value_name = "CONTAINER")]
    name: String,
    /// Its new name
    new_name: String,
}

#[derive(Debug, Args)]
pub struct PortArgs {
    /// Name or ID
    #[arg(value_name = "CONTAINER")]
    name: String,
    /// Only this port of the container, `PORT[/PROTOCOL]`
    port: Option<String>,
}

#[derive(Debug, Args)]
pub struct TopArgs {
    /// Name or ID, then options of `ps`
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "CONTAINER [PS OPTIONS]"
    )]
    name_and_options: Vec<String>,
}

#[derive(Debug, Args)]
pub struct PruneArgs {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Remove only what matches, `KEY=VALUE`
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
}

#[derive(Debug, Args)]
pub struct ExecArgs {
    /// Do not wait for the command
    #[arg(short, long)]
    detach: bool,
    /// Pass standard input on
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// Set a variable, `KEY=VALUE`
    #[arg(short, long, value_name = "VARIABLE")]
    env: Vec<String>,
    /// Read variables from a file
    #[arg(long, value_name = "FILE")]
    env_file: Vec<std::path::PathBuf>,
    /// Run as this user, `USER[:GROUP]`
    #[arg(short, long)]
    user: Option<String>,
    /// Start in this directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Give the command every capability
    #[arg(long)]
    privileged: bool,
    /// Keys that detach from a terminal
    #[arg(long, value_name = "KEYS", value_parser = DetachKeys::parse)]
    detach_keys: Option<DetachKeys>,
    /// Name or ID, then a command and its arguments; flags end at the name
    #[arg(required = true, num_args = 2.., trailing_var_arg = true, value_name = "CONTAINER COMMAND")]
    name_and_command: Vec<String>,
}

impl ContainerCommand {
    /// Does it.
    pub async fn run(self, context: &Context) -> Result<u8, super::Failure> {
        match self {
            ContainerCommand::Action(action) => action.run(context).await,
            ContainerCommand::Ls(args) => Ok(args.run(context).await?),
            ContainerCommand::Inspect(args) => {
                Ok(context.inspect(&args, |name| Call::get(inspect_path(name))).await?)
            }
            ContainerCommand::Prune(args) => Ok(prune(context, args).await?),
        }
    }
}

impl ContainerAction {
    /// Does it.
    pub async fn run(self, context: &Context) -> Result<u8, super::Failure> {
        match self {
            ContainerAction::Run(args) => return run::run(context, *args).await,
            ContainerAction::Create(args) => return run::create(context, *args).await,
            ContainerAction::Exec(args) => return exec(context, args).await,
            ContainerAction::Start(args) => return start(context, args).await,
            ContainerAction::Stop(args) => stop(context, args, "stop").await,
            ContainerAction::Restart(args) => stop(context, args, "restart").await,
            ContainerAction::Kill(args) => {
                let call =
                    |name: &str| Call::post(format!("/containers/{name}/kill")).query("signal", &args.signal);
                change(context, &args.names, call).await
            }
            ContainerAction::Rm(args) => remove(context, args).await,
            ContainerAction::Pause(Names { names }) => {
                change(context, &names, |name| Call::post(format!("/containers/{name}/pause"))).await
            }
            ContainerAction::Unpause(Names { names }) => {
                change(context, &names, |name| Call::post(format!("/containers/{name}/unpause"))).await
            }
            ContainerAction::Wait(Names { names }) => wait(context, &names).await,
            ContainerAction::Logs(args) => logs::container(context, args).await,
            ContainerAction::Attach(args) => attach(context, args).await,
            ContainerAction::Rename(RenameArgs { name, new_name }) => {
                let call = Call::post(format!("/containers/{name}/rename")).query("name", new_name);
                context.client.done(call).await.map(|()| 0).map_err(CommandError::from)
            }
            ContainerAction::Port(args) => port(context, args).await,
            ContainerAction::Top(args) => top(context, args).await,
            ContainerAction::Stats(args) => args.run(context).await,
            ContainerAction::Cp(args) => args.run(context).await,
            ContainerAction::Diff(args) => args.run(context).await,
            ContainerAction::Export(args) => args.run(context).await,
            ContainerAction::Commit(args) => args.run(context).await,
            ContainerAction::Update(args) => args.run(context).await,
        }
        .map_err(super::Failure::from)
    }
}

/// Where a container is inspected.
pub fn inspect_path(name: &str) -> String {
    format!("/containers/{name}/json")
}

/// Sends one call per name and prints the names for which it was fine.
async fn change(
    context: &Context,
    names: &[String],
    call: impl Fn(&str) -> Call,
) -> Result<u8, CommandError> {
    let work = |name: String| {
        let sent = context.client.done(call(&name));
        async move {
            sent.await?;
            Ok(vec![name])
        }
    };
    context.each(names, work).await
}

async fn start(context: &Context, args: StartArgs) -> Result<u8, super::Failure> {
    if args.attach || args.interactive {
        let [name] = &args.names[..] else {
            let problem = "only one container can be attached to at a time";
            return Err(CommandError::Usage(problem.into()).into());
        };
        return run::start_attached(context, name, args.interactive, args.detach_keys).await;
    }
    Ok(change(context, &args.names, |name| Call::post(format!("/containers/{name}/start"))).await?)
}

async fn stop(context: &Context, args: StopArgs, action: &str) -> Result<u8, CommandError> {
    let call = |name: &str| {
        Call::post(format!("/containers/{name}/{action}"))
            .maybe("t", args.timeout)
            .maybe("signal", args.signal.as_ref())
    };
    change(context, &args.names, call).await
}

async fn remove(context: &Context, args: RmArgs) -> Result<u8, CommandError> {
    let work = |name: String| {
        let call = Call::delete(format!("/containers/{name}"))
            .flag("force", args.force)
            .flag("v", args.volumes)
            .flag("link", args.link);
        async move {
            match context.client.done(call).await {
                Ok(()) => Ok(vec![name]),
                Err(error) if args.force && error.is_not_found() => Ok(vec![name]),
                Err(error) => Err(error.into()),
            }
        }
    };
    context.each(&args.names, work).await
}

async fn wait(context: &Context, names: &[String]) -> Result<u8, CommandError> {
    let work = |name: String| async move {
        let body: WaitBody = context.client.json(Call::post(format!("/containers/{name}/wait"))).await?;
        Ok(vec![body.status_code.to_string()])
    };
    context.each(names, work).await
}

async fn attach(context: &Context, args: AttachArgs) -> Result<u8, CommandError> {
    let found: rswarm_api::types::ContainerInspect =
        context.client.json(Call::get(inspect_path(&args.name))).await?;
    if !found.state.running {
        return Err(CommandError::Usage("You cannot attach to a stopped container, start it first".into()));
    }
    let tty = found.config.tty;
    let stdin = found.config.open_stdin && !args.no_stdin;
    let exit = run::wait_for_exit(context, &found.id, "not-running").await?;
    let call =
        session::attach_call(&found.id, stdin, true, true).maybe("detachKeys", args.detach_keys.as_ref());
    let stream = context.client.hijack(call).await?;
    let target = session::Target::Container(found.id.clone());
    let options =
        session::Options { tty, stdin, target, signals: args.sig_proxy, detach_keys: args.detach_keys };
    match session::follow(context, stream, options).await? {
        session::End::Detached => Ok(0),
        session::End::Closed => run::exit_code(exit).await,
    }
}

async fn exec(context: &Context, args: ExecArgs) -> Result<u8, super::Failure> {
    let mut command = args.name_and_command;
    let name = command.remove(0);
    let env = words::variables(words::with_files(&args.env_file, &args.env)?, words::environment);
    let body = ExecCreateBody {
        user: args.user.unwrap_or_default(),
        privileged: args.privileged,
        tty: args.tty,
        console_size: args.tty.then(|| context.terminal.size()).flatten().map(|(w, h)| [h.into(), w.into()]),
        attach_stdin: args.interactive && !args.detach,
        attach_stdout: !args.detach,
        attach_stderr: !args.detach,
        detach_keys: args.detach_keys.as_ref().map(ToString::to_string).unwrap_or_default(),
        env,
        working_dir: args.workdir.unwrap_or_default(),
        cmd: command.into(),
    };
    let create = Call::post(format!("/containers/{name}/exec")).body(&body);
    let IdBody { id } = context.client.json(create).await?;
    let start = ExecStartBody { detach: args.detach, tty: args.tty, console_size: body.console_size };
    let start = Call::post(format!("/exec/{id}/start")).body(&start);
    if args.detach {
        context.client.done(start).await.map_err(|error| run::not_started(error, 1))?;
        return Ok(0);
    }
    let stream = context.client.hijack(start).await.map_err(|error| run::not_started(error, 1))?;
    let target = session::Target::Exec(id.clone());
    let (tty, stdin, detach_keys) = (args.tty, args.interactive, args.detach_keys);
    let options = session::Options { tty, stdin, target, signals: false, detach_keys };
    if session::follow(context, stream, options).await? == session::End::Detached {
        return Ok(0);
    }
    let ended: ExecInspect = context.client.json(Call::get(format!("/exec/{id}/json"))).await?;
    Ok(u8::try_from(ended.exit_code.unwrap_or(0) & 0xff).unwrap_or(1))
}

async fn port(context: &Context, args: PortArgs) -> Result<u8, CommandError> {
    let found: rswarm_api::types::ContainerInspect =
        context.client.json(Call::get(inspect_path(&args.name))).await?;
    let ports = found.network_settings.ports;
    let wanted = args.port.map(|port| if port.contains('/') { port } else { format!("{port}/tcp") });
    let shown = |host: &rswarm_api::types::PortBinding| match host.host_ip.contains(':') {
        true => format!("[{}]:{}", host.host_ip, host.host_port),
        false => format!("{}:{}", host.host_ip, host.host_port),
    };
    if let Some(wanted) = wanted {
        let Some(Some(bindings)) = ports.get(&wanted) else {
            return Err(CommandError::Usage(format!(
                "no public port '{wanted}' published for {}",
                args.name
            )));
        };
        bindings.iter().try_for_each(|binding| context.terminal.line(shown(binding)))?;
        return Ok(0);
    }
    for (port, bindings) in &ports {
        let bindings = bindings.iter().flatten();
        bindings
            .map(|binding| format!("{port} -> {}", shown(binding)))
            .try_for_each(|line| context.terminal.line(line))?;
    }
    Ok(0)
}

async fn top(context: &Context, args: TopArgs) -> Result<u8, CommandError> {
    let (name, options) = args.name_and_options.split_first().expect("at least one word is required");
    let options = (!options.is_empty()).then(|| options.join(" "));
    let call = Call::get(format!("/containers/{name}/top")).maybe("ps_args", options);
    let body: rswarm_api::types::TopBody = context.client.json(call).await?;
    let lines: Vec<String> =
        std::iter::once(&body.titles).chain(&body.processes).map(|row| row.join("\t")).collect();
    context.terminal.print(&crate::render::table::align(&lines))?;
    Ok(0)
}

async fn prune(context: &Context, args: PruneArgs) -> Result<u8, CommandError> {
    let filters = Filters::parse(&args.filter).map_err(CommandError::Usage)?;
    let question =
        "WARNING! This will remove all stopped containers.\nAre you sure you want to continue? [y/N] ";
    if !args.force && !super::confirmed(context, question)? {
        return Ok(0);
    }
    let pruned: rswarm_api::types::ContainersPruned =
        context.client.json(Call::post("/containers/prune").filters(&filters)).await?;
    if let Some(removed) = pruned.containers_deleted.filter(|removed| !removed.is_empty()) {
        context.terminal.line(format!("Deleted Containers:\n{}\n", removed.join("\n")))?;
    }
    context
        .terminal
        .line(format!("Total reclaimed space: {}", crate::units::progress_size(pruned.space_reclaimed)))?;
    Ok(0)
}

/// Creates a container, after pulling its image when that is asked for or needed.
async fn create(
    context: &Context,
    options: &options::ContainerOptions,
    attached: bool,
) -> Result<String, CommandError> {
    if options.pull == "always" {
        pull(context, options).await?;
    }
    let mut body = options.body(attached)?;
    if let (true, Some((width, height)), Some(host)) =
        (options.tty, context.terminal.size(), &mut body.host_config)
    {
        host.console_size = [height.into(), width.into()];
    }
    let call = || {
        Call::post("/containers/create")
            .maybe("name", options.name.as_ref())
            .maybe("platform", options.platform.as_ref())
            .body(&body)
    };
    let created: Result<ContainerCreated, _> = context.client.json(call()).await;
    let created = match created {
        Err(error)
            if options.pull == "missing"
                && error.is_not_found()
                && error.to_string().contains("No such image") =>
        {
            context.terminal.complain(format!("Unable to find image '{}' locally", options.image()));
            pull(context, options).await?;
            context.client.json(call()).await?
        }
        other => other?,
    };
    for warning in &created.warnings {
        context.terminal.complain(format!("WARNING: {warning}"));
    }
    if let Some(path) = &options.cidfile {
        write_id(path, &created.id)?;
    }
    Ok(created.id)
}

async fn pull(context: &Context, options: &options::ContainerOptions) -> Result<(), CommandError> {
    let target = super::image::PullTarget { image: options.image(), platform: options.platform.as_deref() };
    super::image::pull(context, target, options.quiet, super::image::Channel::Stderr).await
}

fn write_id(path: &std::path::Path, id: &str) -> Result<(), CommandError> {
    let write = || {
        use std::io::Write;
        std::fs::File::create_new(path)?.write_all(id.as_bytes())
    };
    write().map_err(|source| CommandError::Write { path: path.to_owned(), source })
}

/// Docker's content type for a raw connection, asked for by name.
fn raw_stream(call: Call) -> Call {
    call.header(header::ACCEPT, "application/vnd.docker.raw-stream")
}
