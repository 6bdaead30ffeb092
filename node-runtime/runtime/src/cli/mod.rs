//! `rswarm runtime`: the runtime with runc's command line, for anyone who drives OCI runtimes.
//!
//! A command or flag that is not here is an error, never ignored.

mod args;
mod commands;
mod store;

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rswarm_base::Timestamp;

use self::args::Parsed;
use self::store::Store;
use crate::failure::Failure;

/// Where containers are remembered, unless `--root` says otherwise.
const ROOT: &str = "/run/rswarm/runtime";

const GLOBAL: &[(&str, bool)] = &[
    ("--root", true),
    ("--log", true),
    ("--log-format", true),
    ("--debug", false),
    ("--version", false),
    ("--help", false),
];

const USAGE: &str = "\
usage: rswarm runtime [--root DIR] [--log FILE] [--log-format text|json] COMMAND

  create [--bundle DIR] [--pid-file FILE] [--console-socket SOCKET] ID
  start ID
  run [--bundle DIR] [--pid-file FILE] [--console-socket SOCKET] [--detach] ID
  state ID
  kill [--all] ID [SIGNAL]
  pause ID
  resume ID
  delete [--force] ID
  spec [--bundle DIR]
  features
";

/// The entry of `rswarm runtime`; called before any thread exists, with the arguments after `runtime`.
#[must_use]
pub fn main(args: Vec<OsString>) -> i32 {
    let mut log = None;
    match run(args, &mut log) {
        Ok(code) => code,
        Err(failure) => {
            let _ = writeln!(io::stderr(), "error: {failure}");
            if let Some(log) = log {
                log.write(&failure);
            }
            1
        }
    }
}

/// Where callers of runtimes look for what went wrong.
struct ErrorLog {
    path: PathBuf,
    json: bool,
}

impl ErrorLog {
    fn write(&self, failure: &Failure) {
        let now = Timestamp::now();
        let line = if self.json {
            serde_json::json!({"level": "error", "msg": failure.message, "time": now.to_string()}).to_string()
        } else {
            format!("time=\"{now}\" level=error msg={:?}", failure.message)
        };
        let file = OpenOptions::new().create(true).append(true).open(&self.path);
        let _ = file.and_then(|mut file| writeln!(file, "{line}"));
    }
}

fn run(args: Vec<OsString>, log: &mut Option<ErrorLog>) -> Result<i32, Failure> {
    let args = args::as_text(args)?;
    let global = Parsed::leading(&args, GLOBAL)?;
    if let Some(path) = global.value("--log") {
        *log =
            Some(ErrorLog { path: PathBuf::from(path), json: global.value("--log-format") == Some("json") });
    }
    if global.has("--version") {
        return say(&format!(
            "rswarm version {}\nspec: {}\n",
            env!("CARGO_PKG_VERSION"),
            oci_spec::runtime::VERSION
        ));
    }
    let [command, rest @ ..] = global.rest.as_slice() else {
        return say(USAGE);
    };
    if global.has("--help") || command == "help" {
        return say(USAGE);
    }
    let store = Store::at(Path::new(global.value("--root").unwrap_or(ROOT)));
    commands::run(command, rest, &store)
}

/// Prints to the caller.
fn say(text: &str) -> Result<i32, Failure> {
    io::stdout().write_all(text.as_bytes()).map_err(|error| Failure::os("write to stdout", error))?;
    Ok(0)
}
