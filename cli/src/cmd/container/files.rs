//! `diff`, `export` and `commit`: a container's file system as a whole.

use std::path::PathBuf;

use clap::Args;
use rswarm_api::types::{FilesystemChange, IdBody};

use crate::client::Call;
use crate::cmd::image::{download, split_reference};
use crate::cmd::{CommandError, Context};

#[derive(Debug, Args)]
pub struct DiffArgs {
    /// Name or ID
    #[arg(value_name = "CONTAINER")]
    name: String,
}

#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Write to this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Name or ID
    #[arg(value_name = "CONTAINER")]
    name: String,
}

#[derive(Debug, Args)]
pub struct CommitArgs {
    /// Who made it, as in `Jane <jane@example.com>`
    #[arg(short, long)]
    author: Option<String>,
    /// Apply a Dockerfile instruction
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// Message of the history
    #[arg(short, long)]
    message: Option<String>,
    /// Suspend the container meanwhile
    #[arg(short, long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    pause: bool,
    /// Name or ID
    #[arg(value_name = "CONTAINER")]
    name: String,
    /// Name of the image, `REPOSITORY[:TAG]`
    reference: Option<String>,
}

impl DiffArgs {
    /// Prints the changes: `A`dded, `C`hanged, `D`eleted.
    pub async fn run(self, context: &Context) -> Result<u8, CommandError> {
        let call = Call::get(format!("/containers/{}/changes", self.name));
        let changes: Option<Vec<FilesystemChange>> = context.client.json(call).await?;
        for change in changes.unwrap_or_default() {
            let letter = match change.kind {
                0 => "C",
                1 => "A",
                _ => "D",
            };
            context.terminal.line(format!("{letter} {}", change.path))?;
        }
        Ok(0)
    }
}

impl ExportArgs {
    /// Writes the archive.
    pub async fn run(self, context: &Context) -> Result<u8, CommandError> {
        if self.output.is_none() && context.terminal.stdout {
            let problem = "an archive is not for a terminal; name a file with `--output` or redirect";
            return Err(CommandError::Usage(problem.into()));
        }
        download(context, Call::get(format!("/containers/{}/export", self.name)), self.output).await
    }
}

impl CommitArgs {
    /// Makes the image and prints its identifier.
    pub async fn run(self, context: &Context) -> Result<u8, CommandError> {
        let (repository, tag) = self.reference.as_deref().map_or(("", None), split_reference);
        let mut call = Call::post("/commit")
            .query("container", &self.name)
            .query("repo", repository)
            .maybe("tag", tag)
            .maybe("author", self.author)
            .maybe("comment", self.message)
            .query("pause", u8::from(self.pause));
        for change in &self.change {
            call = call.query("changes", change);
        }
        let image: IdBody = context.client.json(call).await?;
        context.terminal.line(image.id)?;
        Ok(0)
    }
}
