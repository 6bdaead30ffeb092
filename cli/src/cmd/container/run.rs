//! `run` and `create`: docker's sequence of create, attach, wait, start; the container's exit code is ours.

use clap::Args;
use http_body_util::BodyExt;
use hyper::Response;
use hyper::body::Incoming;
use rswarm_api::types::{ContainerInspect, WaitBody};

use super::detach::DetachKeys;
use super::options::ContainerOptions;
use super::session::{self, End};
use crate::client::{Call, ClientError};
use crate::cmd::{CommandError, Context, Failure};

/// The daemon refused before anything ran.
const REFUSED: u8 = 125;
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

pub const EXAMPLES: &str = "\
Examples:
  rswarm run --rm alpine echo hello             run a command and remove its container
  rswarm run -it --rm alpine sh                 a shell
  rswarm run -d --name web -p 8080:80 nginx     a server in the background";

/// `run`
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Run in the background and print the container's ID
    #[arg(short, long)]
    detach: bool,
    /// Keys that detach from a terminal
    #[arg(long, value_name = "KEYS", value_parser = DetachKeys::parse)]
    detach_keys: Option<DetachKeys>,
    /// Pass signals on
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    sig_proxy: bool,
    #[command(flatten)]
    options: ContainerOptions,
}

/// `create`
#[derive(Debug, Args)]
pub struct CreateArgs {
    #[command(flatten)]
    options: ContainerOptions,
}

/// Creates a container and prints its ID.
pub async fn create(context: &Context, args: CreateArgs) -> Result<u8, Failure> {
    let id = super::create(context, &args.options, true).await.map_err(|error| Failure { error, code: 1 })?;
    context.terminal.line(id).map_err(CommandError::from)?;
    Ok(0)
}

/// Creates a container, runs it, and follows it unless told not to.
pub async fn run(context: &Context, args: RunArgs) -> Result<u8, Failure> {
    let refused = |error: CommandError| Failure { error, code: REFUSED };
    if args.options.tty && args.options.interactive && !args.detach && !context.terminal.stdin {
        return Err(refused(CommandError::Usage("the input device is not a TTY".into())));
    }
    let id = super::create(context, &args.options, !args.detach).await.map_err(refused)?;
    if args.detach {
        start(context, &id).await?;
        context.terminal.line(&id).map_err(CommandError::from)?;
        return Ok(0);
    }
    let options = &args.options;
    let streams = ["stdin", "stdout", "stderr"].map(|stream| options.follows(stream));
    let [stdin, stdout, stderr] = streams;
    let call =
        session::attach_call(&id, stdin, stdout, stderr).maybe("detachKeys", args.detach_keys.as_ref());
    let stream = context.client.hijack(call).await.map_err(|error| refused(error.into()))?;
    let condition = if options.rm { "removed" } else { "next-exit" };
    let exit = wait_for_exit(context, &id, condition).await.map_err(refused)?;
    start(context, &id).await?;
    let target = session::Target::Container(id);
    let (tty, detach_keys) = (options.tty, args.detach_keys);
    let follow = session::Options { tty, stdin, target, signals: args.sig_proxy, detach_keys };
    match session::follow(context, stream, follow).await.map_err(refused)? {
        End::Detached => Ok(0),
        End::Closed => exit_code(exit).await.map_err(refused),
    }
}

/// `start --attach`: as `run`, for a container that exists.
pub async fn start_attached(
    context: &Context,
    name: &str,
    interactive: bool,
    detach_keys: Option<DetachKeys>,
) -> Result<u8, Failure> {
    let found: ContainerInspect = context.client.json(Call::get(super::inspect_path(name))).await?;
    let stdin = interactive && found.config.open_stdin;
    let stream = context
        .client
        .hijack(session::attach_call(&found.id, stdin, true, true).maybe("detachKeys", detach_keys.as_ref()))
        .await?;
    let condition = if found.host_config.auto_remove { "removed" } else { "next-exit" };
    let exit = wait_for_exit(context, &found.id, condition).await?;
    context.client.done(Call::post(format!("/containers/{}/start", found.id))).await?;
    let target = session::Target::Container(found.id);
    let tty = found.config.tty;
    let options = session::Options { tty, stdin, target, signals: true, detach_keys };
    match session::follow(context, stream, options).await? {
        End::Detached => Ok(0),
        End::Closed => Ok(exit_code(exit).await?),
    }
}

/// Registers for the container's end. The headers of the reply say that we are registered.
pub async fn wait_for_exit(
    context: &Context,
    id: &str,
    condition: &str,
) -> Result<Response<Incoming>, CommandError> {
    let call = Call::post(format!("/containers/{id}/wait")).query("condition", condition);
    Ok(context.client.send(call).await?)
}

/// Reads the exit code that [`wait_for_exit`] promised.
pub async fn exit_code(reply: Response<Incoming>) -> Result<u8, CommandError> {
    let name = || "POST /containers/wait".to_owned();
    let body = reply.into_body().collect().await;
    let body = body.map_err(|source| ClientError::Exchange { call: name(), source })?.to_bytes();
    let ended: WaitBody =
        serde_json::from_slice(&body).map_err(|source| ClientError::Decode { call: name(), source })?;
    if let Some(error) = ended.error.filter(|error| !error.message.is_empty()) {
        return Err(CommandError::Reported(error.message));
    }
    Ok(u8::try_from(ended.status_code & 0xff).unwrap_or(REFUSED))
}

async fn start(context: &Context, id: &str) -> Result<(), Failure> {
    let started = context.client.done(Call::post(format!("/containers/{id}/start"))).await;
    started.map_err(|error| not_started(error, REFUSED))
}

/// A command that did not start has a shell's exit code, anything else `otherwise`.
pub fn not_started(error: ClientError, otherwise: u8) -> Failure {
    let code = start_failure_code(&error.to_string()).unwrap_or(otherwise);
    Failure { error: error.into(), code }
}

/// What a shell would have said, told from the daemon's words.
fn start_failure_code(message: &str) -> Option<u8> {
    let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
    if says(&["executable file not found", "no such file or directory", "system cannot find"]) {
        Some(NOT_FOUND)
    } else if says(&["permission denied", "is a directory"]) {
        Some(NOT_EXECUTABLE)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_start_has_the_shell_s_exit_codes() {
        for (message, code) in [
            ("exec: \"nope\": executable file not found in $PATH", Some(127)),
            ("exec: \"/nope\": stat /nope: no such file or directory", Some(127)),
            ("exec: \"/etc\": is a directory: permission denied", Some(126)),
            ("driver failed programming external connectivity", None),
        ] {
            assert_eq!(start_failure_code(message), code, "{message}");
        }
    }
}
