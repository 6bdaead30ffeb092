//! A whole cluster on this machine: a network namespace per host, a real daemon in each, a demo service.
//!
//! Nothing touches the machine's own network. What exists is written down before it is made, so that `down`
//! can clean up after a playground that was killed. Start at [`run`], then `up`.

mod cluster;
mod demo;
mod failover;
mod host;
mod leftovers;
mod plan;
mod probe;
mod process;
mod record;
mod steps;
mod teardown;
mod underlay;
mod up;

use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::{Args, Subcommand};
use rswarm_base::error::{Classify, Kind};

use crate::client::ClientError;
use crate::cmd::CommandError;
use crate::netns::NetnsError;
use crate::terminal::Terminal;

use plan::Plan;

/// `playground`
#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true, after_help = EXAMPLES)]
pub struct PlaygroundArgs {
    #[command(subcommand)]
    command: Option<PlaygroundCommand>,
    #[command(flatten)]
    up: UpArgs,
}

const EXAMPLES: &str = "\
Examples:
  rswarm playground                     3 managers, 2 workers, a demo service; Ctrl-C ends it all
  rswarm playground --check             bring it up, prove that it works, kill the leader, clean up
  rswarm playground down                clean up after one that was killed";

/// What comes after `playground`.
#[derive(Debug, Clone, Subcommand)]
enum PlaygroundCommand {
    /// Bring it up, and keep it until Ctrl-C
    Up(UpArgs),
    /// Print its hosts and whether they run
    Status(PlaceArgs),
    /// End it and remove everything that it made
    Down(PlaceArgs),
}

/// Where a playground keeps its files.
#[derive(Debug, Clone, Args)]
pub struct PlaceArgs {
    /// Directory of sockets, logs and namespaces
    #[arg(long, value_name = "DIR", default_value = plan::DEFAULT_DIR)]
    dir: PathBuf,
}

/// How large it is and what it does.
#[derive(Debug, Clone, Args)]
pub struct UpArgs {
    /// Hosts that manage the cluster
    #[arg(long, value_name = "COUNT", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=9))]
    managers: u8,
    /// Hosts that only run tasks
    #[arg(long, value_name = "COUNT", default_value_t = 2, value_parser = clap::value_parser!(u8).range(0..=40))]
    workers: u8,
    /// Prove that everything works, kill the leader's daemon, clean up, and end
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    place: PlaceArgs,
}

/// Why a playground failed.
#[derive(Debug, thiserror::Error)]
pub enum PlaygroundError {
    /// Namespaces need root, and so did getting it.
    #[error("the playground needs root, and `sudo` cannot be started")]
    NotRoot(#[source] io::Error),
    /// There is one already.
    #[error("a playground runs already in `{0}`")]
    Running(PathBuf),
    /// There is none.
    #[error("no playground runs in `{0}`")]
    NotRunning(PathBuf),
    /// A file or directory.
    #[error("`{path}` cannot be used")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A namespace.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// A link between hosts.
    #[error("the network between the hosts cannot be made: {what}")]
    Link {
        /// Which part.
        what: String,
        /// Why.
        source: rtnetlink::Error,
    },
    /// A daemon.
    #[error("the daemon of `{host}` cannot be started")]
    Spawn {
        /// Whose.
        host: String,
        /// Why.
        source: io::Error,
    },
    /// A daemon ended by itself.
    #[error("the daemon of `{host}` ended: {status}")]
    Ended {
        /// Whose.
        host: String,
        /// How.
        status: String,
        /// Where it said why.
        log: PathBuf,
    },
    /// A call to a daemon.
    #[error("`{host}` refused: {source}")]
    Call {
        /// Whose.
        host: String,
        /// What it said.
        source: ClientError,
    },
    /// A step took longer than it may.
    #[error("{step} took longer than {}s: {last}", deadline.as_secs())]
    Deadline {
        /// What was to be done.
        step: String,
        /// How long it may take.
        deadline: Duration,
        /// What was seen last.
        last: String,
    },
    /// Something is not as it must be.
    #[error("{0}")]
    Wrong(String),
    /// Things are left after the end.
    #[error("{} left behind: {}", if .0.len() == 1 { "1 thing is".to_owned() } else { format!("{} things are", .0.len()) }, .0.join("; "))]
    Leftovers(Vec<String>),
    /// The person asked to end before it was up.
    #[error("interrupted")]
    Interrupted,
    /// The terminal.
    #[error(transparent)]
    Command(#[from] CommandError),
}

impl From<io::Error> for PlaygroundError {
    /// Only writes to the terminal fail without a path.
    fn from(error: io::Error) -> PlaygroundError {
        CommandError::from(error).into()
    }
}

impl Classify for PlaygroundError {
    fn kind(&self) -> Kind {
        match self {
            PlaygroundError::NotRoot(_) => Kind::PermissionDenied,
            PlaygroundError::Running(_) => Kind::Conflict,
            PlaygroundError::NotRunning(_) => Kind::NotFound,
            PlaygroundError::Call { source, .. } => source.kind(),
            PlaygroundError::Deadline { .. } => Kind::DeadlineExceeded,
            PlaygroundError::Netns(error) => error.kind(),
            PlaygroundError::Command(error) => error.kind(),
            PlaygroundError::File { .. }
            | PlaygroundError::Link { .. }
            | PlaygroundError::Spawn { .. }
            | PlaygroundError::Ended { .. }
            | PlaygroundError::Wrong(_)
            | PlaygroundError::Leftovers(_)
            | PlaygroundError::Interrupted => Kind::Internal,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            PlaygroundError::NotRoot(_) => Some("run the command as root".into()),
            PlaygroundError::Running(dir) if dir == Path::new(plan::DEFAULT_DIR) => {
                Some("end it with `rswarm playground down`".into())
            }
            PlaygroundError::Running(dir) => {
                Some(format!("end it with `rswarm playground down --dir {}`", dir.display()))
            }
            PlaygroundError::NotRunning(_) => Some("bring one up with `rswarm playground`".into()),
            PlaygroundError::Ended { log, .. } => Some(format!("read `{}`", log.display())),
            PlaygroundError::Call { source, .. } => source.hint(),
            PlaygroundError::Leftovers(_) => Some("run `rswarm playground down` again".into()),
            PlaygroundError::File { .. }
            | PlaygroundError::Netns(_)
            | PlaygroundError::Link { .. }
            | PlaygroundError::Spawn { .. }
            | PlaygroundError::Deadline { .. }
            | PlaygroundError::Wrong(_)
            | PlaygroundError::Interrupted
            | PlaygroundError::Command(_) => None,
        }
    }
}

/// Does what was asked for.
pub async fn run(args: PlaygroundArgs, terminal: Terminal) -> ExitCode {
    let done = match become_root() {
        Err(error) => Err(error),
        Ok(()) => match args.command {
            None => up::up(args.up, terminal).await,
            Some(PlaygroundCommand::Up(args)) => up::up(args, terminal).await,
            Some(PlaygroundCommand::Status(place)) => status(&place, terminal).await,
            Some(PlaygroundCommand::Down(place)) => teardown::down(&place.dir, terminal).await,
        },
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            terminal.complain(crate::render::error::describe(&error).trim_end());
            ExitCode::FAILURE
        }
    }
}

/// Replaces this process by the same one under `sudo`, unless it is root's already.
fn become_root() -> Result<(), PlaygroundError> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let exe = std::env::current_exe().map_err(PlaygroundError::NotRoot)?;
    let failed = Command::new("sudo").arg("--").arg(exe).args(std::env::args_os().skip(1)).exec();
    Err(PlaygroundError::NotRoot(failed))
}

async fn status(place: &PlaceArgs, terminal: Terminal) -> Result<(), PlaygroundError> {
    let record =
        record::Record::load(&place.dir)?.ok_or_else(|| PlaygroundError::NotRunning(place.dir.clone()))?;
    let plan = Plan::of_record(&record);
    let mut lines = vec!["NAME\tROLE\tADDRESS\tDAEMON\tCLUSTER\tSOCKET".to_owned()];
    for host in &plan.hosts {
        let daemon = match record.daemons.get(&host.name) {
            Some(process) if process.is_alive() => format!("up (pid {})", process.pid),
            Some(_) | None => "down".to_owned(),
        };
        let cluster = host::cluster_state(host).await;
        lines.push(format!(
            "{}\t{}\t{}\t{daemon}\t{cluster}\t{}",
            host.name,
            host.role.name(),
            host.address,
            host.socket.display()
        ));
    }
    terminal.print(&crate::render::table::align(&lines))?;
    Ok(())
}
