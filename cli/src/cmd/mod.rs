//! What a person can ask for: one file per kind of object, docker's names and flags.

pub mod container;
pub mod image;
pub mod mount;
pub mod network;
pub mod node;
pub mod secret;
pub mod service;
pub mod swarm;
pub mod system;
pub mod usage;
pub mod volume;
pub mod words;

use std::io;
use std::path::PathBuf;

use clap::Args;
use futures_util::StreamExt;
use rswarm_base::error::{Classify, Kind};

use crate::client::{Call, Client, ClientError, Filters};
use crate::render::table::{Listing, Row};
use crate::render::template::TemplateProblem;
use crate::terminal::Terminal;

/// Objects of one command that are worked on at a time.
const PARALLEL: usize = 50;

/// What every command works with.
#[derive(Debug, Clone)]
pub struct Context {
    /// The daemon.
    pub client: Client,
    /// The person.
    pub terminal: Terminal,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// A call to the daemon failed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The `--format` is wrong.
    #[error(transparent)]
    Template(#[from] TemplateProblem),
    /// A flag or argument is wrong.
    #[error("{0}")]
    Usage(String),
    /// The daemon reported a failure within a stream.
    #[error("{0}")]
    Reported(String),
    /// A file of the caller's cannot be read.
    #[error("`{path}` cannot be read")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of the caller's cannot be written.
    #[error("`{path}` cannot be written")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Standard input or output failed.
    #[error("the terminal cannot be used")]
    Terminal(#[from] io::Error),
}

impl Classify for CommandError {
    fn kind(&self) -> Kind {
        match self {
            CommandError::Client(error) => error.kind(),
            CommandError::Template(_) | CommandError::Usage(_) => Kind::InvalidArgument,
            CommandError::Reported(_)
            | CommandError::Read { .. }
            | CommandError::Write { .. }
            | CommandError::Terminal(_) => Kind::Internal,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            CommandError::Client(error) => error.hint(),
            CommandError::Template(_) => {
                Some("print `--format json` to see the fields that there are".into())
            }
            CommandError::Usage(_)
            | CommandError::Reported(_)
            | CommandError::Read { .. }
            | CommandError::Write { .. }
            | CommandError::Terminal(_) => None,
        }
    }
}

/// The flags of every list.
#[derive(Debug, Clone, Args)]
pub struct ListArgs {
    /// Print identifiers only
    #[arg(short, long)]
    pub quiet: bool,
    /// Keep what matches, `KEY=VALUE`
    #[arg(short, long, value_name = "FILTER")]
    pub filter: Vec<String>,
    /// Print with a Go template, `table TEMPLATE` or `json`
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
}

impl ListArgs {
    /// The filters for the query.
    ///
    /// # Errors
    /// When one is malformed.
    pub fn filters(&self) -> Result<Filters, CommandError> {
        Filters::parse(&self.filter).map_err(CommandError::Usage)
    }
}

/// The flags of every `inspect`.
#[derive(Debug, Clone, Args)]
pub struct InspectArgs {
    /// Print with a Go template
    #[arg(short, long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// What to inspect
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
}

impl Context {
    /// Prints a list.
    ///
    /// # Errors
    /// When the format is wrong or the output cannot be written.
    pub fn list(&self, listing: &Listing, args: &ListArgs, rows: &[Row]) -> Result<u8, CommandError> {
        self.terminal.print(&listing.render(args.format.as_deref(), args.quiet, rows)?)?;
        Ok(0)
    }

    /// Prints what the daemon knows of each name; 1 when some are not there.
    ///
    /// # Errors
    /// When the format is wrong or the output cannot be written.
    pub async fn inspect(&self, args: &InspectArgs, call: impl Fn(&str) -> Call) -> Result<u8, CommandError> {
        let mut found = Vec::new();
        let mut code = 0;
        for name in &args.names {
            match self.client.text(call(name)).await {
                Ok(json) => found.push(json),
                Err(error) => {
                    code = 1;
                    self.complain(&error.into());
                }
            }
        }
        self.print_inspected(args.format.as_deref(), &found)?;
        Ok(code)
    }

    /// Prints JSON objects as one list, or each by a template.
    ///
    /// # Errors
    /// When the format is wrong or the output cannot be written.
    pub fn print_inspected(&self, format: Option<&str>, found: &[String]) -> Result<(), CommandError> {
        let Some(format) = format.filter(|format| *format != "json") else {
            let list = format!("[{}]", found.iter().map(|json| json.trim()).collect::<Vec<_>>().join(","));
            let text = if format.is_some() { list } else { crate::render::json::indent(&list) };
            return Ok(self.terminal.line(text)?);
        };
        for json in found {
            let object = serde_json::from_str(json).map_err(|source| {
                CommandError::Client(ClientError::Decode { call: "inspect".into(), source })
            })?;
            self.terminal.line(crate::render::template::execute(format, &object)?)?;
        }
        Ok(())
    }

    /// Does something to each name, many at a time, and prints those that it is done for. 1 when some failed.
    ///
    /// # Errors
    /// When the output cannot be written.
    pub async fn each<F>(&self, names: &[String], work: impl Fn(String) -> F) -> Result<u8, CommandError>
    where
        F: Future<Output = Result<Vec<String>, CommandError>>,
    {
        let work = &work;
        let mut done = futures_util::stream::iter(names.iter().cloned()).map(work).buffered(PARALLEL);
        let mut code = 0;
        while let Some(result) = done.next().await {
            match result {
                Ok(lines) => lines.iter().try_for_each(|line| self.terminal.line(line))?,
                Err(error) => {
                    code = 1;
                    self.complain(&error);
                }
            }
        }
        Ok(code)
    }

    /// Tells of a failure that does not end the command.
    pub fn complain(&self, error: &CommandError) {
        self.terminal.complain(crate::render::error::describe(error).trim_end());
    }
}

/// The first twelve characters, unless the whole is asked for.
pub fn short_id(id: &str, whole: bool) -> String {
    let plain = id.strip_prefix("sha256:").filter(|_| !whole).unwrap_or(id);
    if whole { plain.to_owned() } else { plain.chars().take(12).collect() }
}

/// `3 minutes ago` for an RFC 3339 time.
pub fn ago(time: rswarm_base::clock::Timestamp, now: rswarm_base::clock::Timestamp) -> String {
    format!("{} ago", crate::units::human_duration(now.since(time)))
}

/// A failure with the exit code that it ends the process with.
#[derive(Debug)]
pub struct Failure {
    /// What failed.
    pub error: CommandError,
    /// The process's exit code.
    pub code: u8,
}

impl<E: Into<CommandError>> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure { error: error.into(), code: 1 }
    }
}

/// Asks on the terminal; anything but a yes is a no.
///
/// # Errors
/// When the terminal cannot be used.
pub fn confirmed(context: &Context, question: &str) -> Result<bool, CommandError> {
    context.terminal.print(question)?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
