//! `rswarm runtime`: the runtime with runc's command line, for anyone who drives OCI runtimes.
//!
//! A command or flag that is not here is an error, never ignored. The few that are accepted and have nothing
//! to do say so in their help. One file per group of commands; [`store`] is what they share.

mod args;
mod console;
mod create;
mod delete;
mod events;
mod exec;
mod features;
mod foreground;
mod freeze;
mod kill;
mod list;
mod log;
mod own_program;
mod ps;
mod spec;
mod start;
mod store;
mod update;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use self::args::{Flag, Order, Parsed};
use self::log::Log;
use self::store::Store;
use crate::failure::{Context, Failure};

/// Where containers are remembered, unless `--root` says otherwise.
const ROOT: &str = "/run/rswarm/runtime";

const GLOBAL: &[Flag] = &[
    Flag::value(
        "root",
        "DIR",
        "where containers are remembered, best on a tmpfs (default /run/rswarm/runtime)",
    ),
    Flag::value("log", "FILE", "where failures are written besides standard error"),
    Flag::value("log-format", "FORMAT", "text or json (default text)"),
    Flag::switch("debug", "log more"),
    Flag::switch(
        "systemd-cgroup",
        "cgroupsPath has the form SLICE:PREFIX:NAME; it is made without asking systemd",
    ),
    Flag::value("rootless", "WHEN", "true, false or auto; only root can make containers: `true` is refused"),
    Flag::switch("version", "print the version").or("v"),
    Flag::switch("help", "print this").or("h"),
];

/// A command, as data.
struct Command {
    name: &'static str,
    args: &'static str,
    about: &'static str,
    flags: &'static [Flag],
    order: Order,
    run: fn(&Call<'_>) -> Result<i32, Failure>,
}

const COMMANDS: &[&Command] = &[
    &create::CREATE,
    &start::START,
    &create::RUN,
    &exec::EXEC,
    &list::STATE,
    &list::LIST,
    &ps::PS,
    &kill::KILL,
    &freeze::PAUSE,
    &freeze::RESUME,
    &update::UPDATE,
    &events::EVENTS,
    &delete::DELETE,
    &spec::SPEC,
    &features::FEATURES,
];

/// What runc can do and this runtime cannot: refused whatever their flags are.
const REFUSED: &[&str] = &["checkpoint", "restore"];

/// A command that was called.
struct Call<'a> {
    args: Parsed,
    store: &'a Store,
    /// Whether it is where the caller has said, and not where it always is.
    root_is_given: bool,
    /// Whether `cgroupsPath` has systemd's form.
    systemd_cgroup: bool,
}

/// The entry of `rswarm runtime`; called before any thread exists, with the arguments after `runtime`.
#[must_use]
pub fn main(args: Vec<OsString>) -> i32 {
    let mut log = Log { path: None, json: false, debug: false };
    match run(args, &mut log) {
        Ok(code) => code,
        Err(Exit { code, failure }) => {
            log.failed(&failure);
            code
        }
    }
}

/// A failure, and what the process ends with.
struct Exit {
    code: i32,
    failure: Failure,
}

impl From<Failure> for Exit {
    fn from(failure: Failure) -> Exit {
        Exit { code: 1, failure }
    }
}

fn run(args: Vec<OsString>, log: &mut Log) -> Result<i32, Exit> {
    let args = args::as_text(args)?;
    let global = Parsed::parse(&args, GLOBAL, Order::Leading)?;
    set_log(log, &global)?;
    if global.has("version") {
        return Ok(version()?);
    }
    let [name, rest @ ..] = global.rest.as_slice() else { return Ok(say(&usage())?) };
    if global.has("help") || name == "help" {
        return Ok(say(&usage())?);
    }
    if REFUSED.contains(&name.as_str()) {
        let why = "this runtime does not work with CRIU, which dumps processes and brings them back";
        return Err(Failure::invalid(format!("{name} is not supported: {why}")).into());
    }
    let command = COMMANDS.iter().find(|command| command.name == name).ok_or_else(|| {
        Failure::invalid(format!("command `{name}` is not known; see `rswarm runtime --help`"))
    })?;
    if matches!(rest.first().map(String::as_str), Some("--help" | "-help" | "-h")) {
        return Ok(say(&explain(command))?);
    }
    log.open()?;
    log.listen();
    let call = Call {
        args: Parsed::parse(rest, command.flags, command.order)?,
        store: &Store::at(&root(&global)?),
        root_is_given: global.value("root").is_some(),
        systemd_cgroup: global.has("systemd-cgroup"),
    };
    // Callers tell a failure to execute from the executed command's own code by it, as with runc.
    let code = if command.name == "exec" { exec::FAILED } else { 1 };
    (command.run)(&call).map_err(|failure| Exit { code, failure })
}

fn set_log(log: &mut Log, global: &Parsed) -> Result<(), Failure> {
    log.path = global.value("log").filter(|path| !path.is_empty()).map(PathBuf::from);
    log.debug = global.has("debug");
    log.json = match global.value("log-format") {
        None | Some("" | "text") => false,
        Some("json") => true,
        Some(other) => return Err(Failure::invalid(format!("invalid log-format: {other}"))),
    };
    match global.value("rootless") {
        None | Some("" | "auto") => Ok(()),
        Some(text) if !args::truth("rootless", text)? => Ok(()),
        Some(_) => Err(Failure::invalid("--rootless: only root can make containers with this runtime")),
    }
}

/// Absolute, since a command may change its directory.
fn root(global: &Parsed) -> Result<PathBuf, Failure> {
    let root = std::path::absolute(global.value("root").unwrap_or(ROOT)).context("--root")?;
    match root.parent() {
        Some(_) => Ok(root),
        None => Err(Failure::invalid("Option --root argument should not be set to /")),
    }
}

fn version() -> Result<i32, Failure> {
    say(&format!("rswarm version {}\nspec: {}\n", env!("CARGO_PKG_VERSION"), features::SPEC_VERSION))
}

fn usage() -> String {
    let mut text = "usage: rswarm runtime [FLAGS] COMMAND\n\n".to_owned() + &args::explain(GLOBAL) + "\n";
    for command in COMMANDS {
        let form = format!("{} {}", command.name, command.args);
        text += &format!("  {form:32} {}\n", command.about);
    }
    text + "\n`rswarm runtime COMMAND --help` tells a command's flags.\n"
}

fn explain(command: &Command) -> String {
    let flags = if command.flags.is_empty() { "" } else { "[FLAGS] " };
    let Command { name, args, about, .. } = command;
    format!("usage: rswarm runtime {name} {flags}{args}\n\n{about}\n\n{}", args::explain(command.flags))
}

/// Prints to the caller.
fn say(text: &str) -> Result<i32, Failure> {
    io::stdout().write_all(text.as_bytes()).context("write to stdout")?;
    Ok(0)
}

/// Replaces a file whole. Not synced to disk: what is written here means nothing after the machine went down.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    std::fs::write(&temporary, bytes)?;
    std::fs::rename(&temporary, path).inspect_err(|_| drop(std::fs::remove_file(&temporary)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_explains_itself() {
        let usage = usage();
        for command in COMMANDS {
            assert!(usage.contains(&format!("\n  {} ", command.name)), "{}", command.name);
            assert!(explain(command).contains(command.about));
        }
    }

    #[test]
    fn the_root_of_everything_is_no_place_for_containers() {
        let root_is = |text: &str| {
            root(&Parsed::parse(&[format!("--root={text}")], GLOBAL, Order::Leading).expect("parsed"))
        };
        assert!(root_is("/").is_err());
        assert_eq!(root_is("/run/x/"), Ok(PathBuf::from("/run/x/")));
    }
}
