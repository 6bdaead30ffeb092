//! The command line as data: what there is to type, and where each word goes.

use clap::{Parser, Subcommand};

use crate::cmd::container::{ContainerAction, ContainerCommand, PsArgs};
use crate::cmd::image::{ImageAction, ImageCommand, ImagesArgs, RmiArgs};
use crate::cmd::network::NetworkCommand;
use crate::cmd::node::NodeCommand;
use crate::cmd::secret::{Family, SecretCommand};
use crate::cmd::service::ServiceCommand;
use crate::cmd::swarm::{self, SwarmCommand};
use crate::cmd::system::{self, SystemCommand};
use crate::cmd::volume::VolumeCommand;
use crate::cmd::{Context, Failure};
use crate::daemon::DaemonArgs;
use crate::playground::PlaygroundArgs;

/// The help of `rswarm` itself: clap cannot group commands.
const HELP: &str = "\
Run containers on one machine, or services on a cluster of them.

Usage: rswarm [-H ADDRESS] COMMAND

Try it:
  playground  Bring up a whole cluster on this machine

Containers:
  run         Create and run a container
  ps          List containers
  logs        Print what a container wrote
  exec        Run a command in a running container
  start, stop, restart, kill, pause, unpause, rm, create, attach, wait, rename, port,
  top, stats, update, cp, diff, export, commit

Images:
  pull        Download an image from a registry
  images      List images
  rmi         Remove images
  import, load, save, tag, history, push

Cluster:
  init        Start a cluster with this node as its first manager
  join        Join a cluster
  leave       Leave the cluster
  service     Services: create, ls, ps, update, scale, rollback, logs, inspect, rm
  node        Nodes: ls, ps, inspect, update, promote, demote, rm
  secret      Files for services that only their containers see: create, ls, inspect, rm
  config      Files for services: create, ls, inspect, rm
  swarm       The cluster itself: join tokens, settings, root certificate

Objects:
  container   Containers
  image       Images
  network     Networks
  volume      Volumes
  inspect     Print everything about any object

Machine:
  daemon      Run the daemon
  info        Print what the daemon is and has
  version     Print the versions of client and daemon
  events      Print what happens as it happens
  system      info and events
  completion  Print a completion script for a shell

Options:
  -H, --host ADDRESS  The daemon, unix:///PATH or tcp://HOST:PORT [env: RSWARM_HOST, DOCKER_HOST]
  -V, --version       Print the version
  -h, --help          Print help; `rswarm COMMAND --help` tells about a command

Examples:
  rswarm run -d --name web -p 8080:80 nginx
  rswarm init && rswarm service create --name web --replicas 3 -p 80:80 nginx
  rswarm playground
";

/// What was typed.
#[derive(Debug, Parser)]
#[command(name = "rswarm", version, override_help = HELP, disable_help_subcommand = true, subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    /// The daemon to talk to
    #[arg(short = 'H', long, value_name = "ADDRESS", env = "RSWARM_HOST")]
    pub host: Option<String>,
    #[command(subcommand)]
    pub command: Command,
}

/// Everything that can be asked for.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon
    Daemon(Box<DaemonArgs>),
    /// Bring up a whole cluster on this machine
    Playground(PlaygroundArgs),
    /// Print a completion script for a shell
    Completion(crate::completion::CompletionArgs),
    #[command(flatten)]
    Client(ClientCommand),
}

/// What is asked of a daemon.
#[derive(Debug, Subcommand)]
pub enum ClientCommand {
    #[command(flatten)]
    Container(ContainerAction),
    #[command(flatten)]
    Image(ImageAction),
    /// List containers
    Ps(PsArgs),
    /// List images
    Images(ImagesArgs),
    /// Remove images
    Rmi(RmiArgs),
    /// Print everything about any object
    Inspect(system::AnyInspectArgs),
    /// Containers
    #[command(name = "container", subcommand)]
    ContainerGroup(Box<ContainerCommand>),
    /// Images
    #[command(name = "image", subcommand)]
    ImageGroup(Box<ImageCommand>),
    /// Networks
    #[command(subcommand)]
    Network(NetworkCommand),
    /// Volumes
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// The cluster itself
    #[command(subcommand)]
    Swarm(SwarmCommand),
    /// The cluster's nodes
    #[command(subcommand)]
    Node(NodeCommand),
    /// Services
    #[command(subcommand)]
    Service(Box<ServiceCommand>),
    /// Secrets of the cluster
    #[command(subcommand)]
    Secret(SecretCommand),
    /// Configs of the cluster
    #[command(subcommand)]
    Config(SecretCommand),
    /// Start a cluster with this node as its first manager
    #[command(after_help = swarm::INIT_EXAMPLES)]
    Init(Box<swarm::InitArgs>),
    /// Join a cluster
    #[command(after_help = swarm::JOIN_EXAMPLES)]
    Join(swarm::JoinArgs),
    /// Leave the cluster
    Leave(swarm::LeaveArgs),
    /// Print the versions of client and daemon
    Version(system::FormatArgs),
    /// Print what the daemon is and has
    Info(system::FormatArgs),
    /// Print what happens as it happens
    Events(system::EventsArgs),
    /// The daemon and its machine
    #[command(subcommand)]
    System(SystemCommand),
}

impl ClientCommand {
    /// Does it; gives the process's exit code.
    pub async fn run(self, context: &Context) -> Result<u8, Failure> {
        let code = match self {
            ClientCommand::Container(action) => return action.run(context).await,
            ClientCommand::ContainerGroup(command) => return command.run(context).await,
            ClientCommand::Image(action) => action.run(context).await,
            ClientCommand::Ps(args) => args.run(context).await,
            ClientCommand::Images(args) => args.run(context).await,
            ClientCommand::Rmi(args) => args.run(context).await,
            ClientCommand::Inspect(args) => system::inspect(context, args).await,
            ClientCommand::ImageGroup(command) => command.run(context).await,
            ClientCommand::Network(command) => command.run(context).await,
            ClientCommand::Volume(command) => command.run(context).await,
            ClientCommand::Swarm(command) => command.run(context).await,
            ClientCommand::Node(command) => command.run(context).await,
            ClientCommand::Service(command) => command.run(context).await,
            ClientCommand::Secret(command) => command.run(context, Family::Secret).await,
            ClientCommand::Config(command) => command.run(context, Family::Config).await,
            ClientCommand::Init(args) => swarm::init(context, *args).await,
            ClientCommand::Join(args) => swarm::join(context, args).await,
            ClientCommand::Leave(args) => swarm::leave(context, args).await,
            ClientCommand::Version(args) => system::version(context, args).await,
            ClientCommand::Info(args) => system::info(context, args).await,
            ClientCommand::Events(args) => system::events(context, args).await,
            ClientCommand::System(command) => command.run(context).await,
        };
        Ok(code?)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_help_names_every_command_and_every_command_has_a_help() {
        for command in Cli::command().get_subcommands().filter(|command| !command.is_hide_set()) {
            let name = command.get_name();
            let named = HELP.split(|c: char| !c.is_alphanumeric()).any(|word| word == name);
            assert!(named, "`{name}` is not in the help");
            assert!(command.get_about().is_some(), "`{name}` has no description");
        }
    }

    #[test]
    fn docker_s_words_are_understood() {
        for line in [
            "ps -aq --no-trunc -f name=web --format {{.Names}}",
            "container ls --all",
            "run -d --name web -p 80:80 -v /a:/b -e A=1 -h host --rm alpine sh -c true",
            "run -it --rm alpine",
            "exec -it web sh -l",
            "logs -f -n 10 -t web",
            "stop -t 3 web",
            "rm -fv a b",
            "top web -o pid,cmd",
            "top web aux",
            "stats --no-stream --format json web",
            "update -m 64m --memory-swap=-1 web",
            "images -q",
            "image inspect web",
            "network create -d overlay --attachable app",
            "volume create data",
            "swarm init --advertise-addr 10.0.0.1",
            "swarm join --token t 10.0.0.1:2377",
            "swarm join-token -q worker",
            "swarm leave --force",
            "node update --availability drain n1",
            "service create --name web --replicas 3 -p 80:80 nginx",
            "service create -d -q nginx",
            "service update --image nginx:2 --update-delay 1s web",
            "service scale web=5 api=2",
            "service logs -f web",
            "service ps --no-trunc web",
            "secret create --label a=b key -",
            "secret create --template-driver golang key ./file",
            "secret update --label-add a=b --label-rm c -d key ./file",
            "config update web -",
            "secret ls -f name=key -q",
            "config inspect --pretty web",
            "config rm a b",
            "service create --secret source=key,target=/k,mode=0400 --config web nginx",
            "service update --secret-add key2 --secret-rm key --config-add c2 --config-rm c web",
            "-H tcp://h:1 version -f {{.Server.Version}}",
            "init",
            "leave -f",
            "playground",
            "playground up --managers 1 --workers 0",
            "playground --check",
            "playground status",
            "daemon -H unix:///x.sock --data-root /a",
        ] {
            let words = std::iter::once("rswarm").chain(line.split(' '));
            if let Err(problem) = Cli::try_parse_from(words) {
                panic!("{line}: {problem}");
            }
        }
    }
}
