//! One binary in many roles: the command line, the node daemon, and the small programs that live inside and
//! beside containers. Those come first, before any thread exists.
#![forbid(unsafe_code)]

mod args;
mod client;
mod cmd;
mod completion;
mod credentials;
mod daemon;
mod netns;
mod playground;
mod render;
mod terminal;
mod units;
mod whoami;

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use clap::error::ErrorKind;

use args::{Cli, Command};
use client::Client;
use cmd::{CommandError, Context, Failure};
use daemon::DaemonArgs;
use terminal::Terminal;

/// What precedes the end of a command that read from a manager without a leader.
const STALE: &str = "warning: the swarm has no leader: this is what the manager knew last";
const DEFAULT_HOST: &str = "unix:///run/rswarm/rswarm.sock";
/// What a wrong command line ends with; docker's `run` and `exec` have their own code.
const USAGE: u8 = 1;
const RUN_USAGE: u8 = 125;

/// Links of these names are the runtime. podman and others know by `runc` what a runtime can do.
const RUNTIME_NAMES: &[&str] = &["rswarm-runtime", "runc"];

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    match role(&args) {
        Role::Tunnel => exit_code(rswarm_network::tunnel::process::main(args[2..].to_vec())),
        Role::Shim => exit_code(rswarm_shim::serve::main(args[2..].to_vec())),
        Role::Runtime => exit_code(rswarm_runtime::cli::main(args[2..].to_vec())),
        Role::Init => exit_code(rswarm_shim::init::main(&args[1..])),
        Role::NamedRuntime => exit_code(rswarm_runtime::cli::main(args[1..].to_vec())),
        Role::Whoami => ExitCode::from(whoami::main(args.into_iter().skip(1))),
        Role::EnterNetns => failed(&netns::exec(args.into_iter().skip(2))),
        Role::Dockerd => match Dockerd::try_parse_from(&args) {
            Ok(dockerd) => run_daemon(dockerd.args),
            Err(problem) => usage(&problem, USAGE),
        },
        Role::CommandLine => command_line(&args),
    }
}

/// What this process is, told from its name and first argument.
#[derive(Debug, PartialEq, Eq)]
enum Role {
    Tunnel,
    Shim,
    Runtime,
    Init,
    /// The runtime under a name of its own, for callers that give a runtime no first word.
    NamedRuntime,
    Whoami,
    EnterNetns,
    Dockerd,
    CommandLine,
}

fn role(args: &[OsString]) -> Role {
    let name = args.first().map(Path::new).and_then(Path::file_name);
    match args.get(1).and_then(|word| word.to_str()) {
        _ if name == Some(OsStr::new("dockerd")) => Role::Dockerd,
        _ if name == Some(OsStr::new(rswarm_shim::init::NAME)) => Role::Init,
        _ if RUNTIME_NAMES.iter().any(|own| name == Some(OsStr::new(own))) => Role::NamedRuntime,
        Some("tunnel") => Role::Tunnel,
        Some("shim") => Role::Shim,
        Some("runtime") => Role::Runtime,
        Some("whoami") => Role::Whoami,
        Some("enter-netns") => Role::EnterNetns,
        _ => Role::CommandLine,
    }
}

/// The daemon under the name that programs start their own dockerd by.
#[derive(Debug, Parser)]
#[command(name = "dockerd", version)]
struct Dockerd {
    #[command(flatten)]
    args: DaemonArgs,
}

fn command_line(args: &[OsString]) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(problem) => {
            let runs = args.iter().any(|word| word == "run" || word == "exec");
            return usage(&problem, if runs { RUN_USAGE } else { USAGE });
        }
    };
    match cli.command {
        Command::Daemon(args) => run_daemon(*args),
        Command::Playground(args) => blocking(playground::run(args, Terminal::of_process())),
        Command::Completion(args) => args.print(Terminal::of_process()),
        Command::Client(command) => {
            let docker_host = || std::env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty());
            let host = cli.host.or_else(docker_host).unwrap_or_else(|| DEFAULT_HOST.to_owned());
            blocking(async move {
                let context = match Client::new(&host) {
                    Ok(client) => Context { client, terminal: Terminal::of_process() },
                    Err(error) => return failed(&error),
                };
                let done = command.run(&context).await;
                if context.client.is_stale() {
                    context.terminal.complain(STALE);
                }
                match done {
                    Ok(code) => ExitCode::from(code),
                    Err(failure) => command_failed(&failure),
                }
            })
        }
    }
}

fn run_daemon(args: DaemonArgs) -> ExitCode {
    if args.validate {
        return match daemon::validate(args) {
            Ok(()) => {
                let _ = io::stderr().write_all(b"configuration OK\n");
                ExitCode::SUCCESS
            }
            Err(error) => tell(&render::error::describe_plain(&error)),
        };
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&CommandError::from(error)),
    };
    match runtime.block_on(daemon::run(args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => tell(&render::error::describe_plain(&error)),
    }
}

/// Runs a client on this thread. A read of standard input that never ends does not hold the process.
fn blocking(work: impl Future<Output = ExitCode>) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&CommandError::from(error)),
    };
    let code = runtime.block_on(work);
    runtime.shutdown_timeout(Duration::ZERO);
    code
}

/// Help goes to standard output, a wrong line to standard error.
fn usage(problem: &clap::Error, code: u8) -> ExitCode {
    let _ = problem.print();
    match problem.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
        _ => ExitCode::from(code),
    }
}

fn command_failed(failure: &Failure) -> ExitCode {
    if let CommandError::Terminal(error) = &failure.error
        && error.kind() == io::ErrorKind::BrokenPipe
    {
        // Whoever read our output has had enough.
        return ExitCode::from(failure.code);
    }
    tell(&render::error::describe(&failure.error));
    ExitCode::from(failure.code)
}

fn failed(error: &(impl rswarm_base::Classify + 'static)) -> ExitCode {
    tell(&render::error::describe(error))
}

fn tell(text: &str) -> ExitCode {
    let _ = io::stderr().write_all(text.as_bytes());
    ExitCode::FAILURE
}

fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_is_told_from_the_name_or_the_first_word() {
        let role = |line: &str| role(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        assert_eq!(role("/usr/bin/rswarm shim --state-dir /x"), Role::Shim);
        assert_eq!(role("rswarm runtime create"), Role::Runtime);
        assert_eq!(role("/sbin/docker-init -- shim"), Role::Init);
        assert_eq!(role("/rswarm whoami"), Role::Whoami);
        assert_eq!(role("/tmp/dockerd --debug"), Role::Dockerd);
        assert_eq!(role("/usr/bin/rswarm-runtime --root /x create shim"), Role::NamedRuntime);
        assert_eq!(role("runc shim"), Role::NamedRuntime);
        assert_eq!(role("rswarm daemon"), Role::CommandLine);
        assert_eq!(role("rswarm ps shim"), Role::CommandLine);
    }
}
