//! The demo image's program: says who answers, and fetches from others when asked to.
//!
//! It runs alone in an image made `FROM scratch`, so it brings its own resolver and HTTP, and it minds
//! what a first process must: SIGTERM ends it.

pub mod fetch;
mod resolve;
mod serve;

use std::io::Write;
use std::time::Duration;

use clap::Parser;
use nix::sys::signal::{SigSet, Signal};

/// How long one fetch may take in all its parts.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// Answer HTTP requests with this container's name, addresses and the request's headers, and datagrams with its name.
#[derive(Debug, Parser)]
#[command(name = "rswarm whoami", disable_version_flag = true)]
struct WhoamiArgs {
    /// Port to answer on
    #[arg(long, default_value_t = 80)]
    port: u16,
    /// Fetch this URL once, print its body and end
    #[arg(long, value_name = "URL", conflicts_with = "port")]
    fetch: Option<String>,
}

/// Runs until SIGTERM or SIGINT, or fetches once. Gives the process's exit code.
pub fn main(args: impl Iterator<Item = std::ffi::OsString>) -> u8 {
    let args = match WhoamiArgs::try_parse_from(args) {
        Ok(args) => args,
        Err(problem) => {
            let _ = problem.print();
            return u8::try_from(problem.exit_code()).unwrap_or(1);
        }
    };
    let result = match &args.fetch {
        Some(url) => fetch::get(url, FETCH_TIMEOUT)
            .map_err(|problem| problem.to_string())
            .and_then(|body| std::io::stdout().write_all(&body).map_err(|problem| problem.to_string())),
        None => serve_until_told(args.port),
    };
    match result {
        Ok(()) => 0,
        Err(problem) => {
            let _ = writeln!(std::io::stderr(), "error: {problem}");
            1
        }
    }
}

/// The first process of a container gets no default action for signals: it waits for them itself.
fn serve_until_told(port: u16) -> Result<(), String> {
    let mut ending = SigSet::empty();
    ending.add(Signal::SIGTERM);
    ending.add(Signal::SIGINT);
    ending.thread_block().map_err(|problem| format!("signals cannot be blocked: {problem}"))?;
    let server =
        serve::Server::start(port).map_err(|problem| format!("port {port} cannot be served: {problem}"))?;
    let _ = writeln!(std::io::stdout(), "answering on port {port}");
    ending.wait().map_err(|problem| format!("signals cannot be awaited: {problem}"))?;
    server.end();
    Ok(())
}
