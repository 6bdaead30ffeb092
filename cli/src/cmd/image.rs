//! Images: pull, import, load, save, list.

use std::io;
use std::path::PathBuf;

use bytes::Bytes;
use clap::{Args, Subcommand};
use futures_util::Stream;
use http_body_util::BodyExt;
use rswarm_api::types::{HistoryItem, ImageDeleted, ImageSummary, Progress};
use rswarm_base::clock::Timestamp;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWriteExt};

use super::container::list::local_time;
use super::{CommandError, Context, InspectArgs, ListArgs, ago, short_id};
use crate::client::{Call, ClientError, JsonLines};
use crate::credentials;
use crate::render::convergence::bar;
use crate::render::table::{Listing, Row, row};
use crate::render::template::with_labels;
use crate::terminal::Redrawn;
use crate::units::{ellipsis, human_size, progress_size};

const HEADERS: &[(&str, &str)] = &[
    ("Repository", "REPOSITORY"),
    ("Tag", "TAG"),
    ("Digest", "DIGEST"),
    ("ID", "IMAGE ID"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("Size", "SIZE"),
    ("Containers", "CONTAINERS"),
    ("SharedSize", "SHARED SIZE"),
    ("VirtualSize", "SIZE"),
    ("UniqueSize", "UNIQUE SIZE"),
];
const LISTING: Listing = Listing {
    table: "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}",
    headers: HEADERS,
    quiet: "ID",
};
const LISTING_WITH_DIGESTS: Listing = Listing {
    table: "{{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}",
    ..LISTING
};
const HISTORY: Listing = Listing {
    table: "{{.ID}}\t{{.CreatedSince}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}",
    headers: &[
        ("ID", "IMAGE"),
        ("CreatedSince", "CREATED"),
        ("CreatedAt", "CREATED AT"),
        ("CreatedBy", "CREATED BY"),
        ("Size", "SIZE"),
        ("Comment", "COMMENT"),
    ],
    quiet: "ID",
};
const NONE: &str = "<none>";

/// What can be done to images, by itself or after `image`.
#[derive(Debug, Subcommand)]
pub enum ImageAction {
    /// Download an image from a registry
    Pull(PullArgs),
    /// Upload an image to its registry
    Push(PushArgs),
    /// Make an image from a tar archive of its file system
    Import(ImportArgs),
    /// Read images from an archive that `save` made
    Load(LoadArgs),
    /// Write images to a tar archive
    Save(SaveArgs),
    /// Give an image another name
    Tag(TagArgs),
    /// Print an image's layers
    History(HistoryArgs),
}

/// What comes after `image`.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    #[command(flatten)]
    Action(ImageAction),
    /// List images
    #[command(visible_alias = "list")]
    Ls(ImagesArgs),
    /// Print everything about images
    Inspect(InspectArgs),
    /// Remove images
    #[command(visible_alias = "remove")]
    Rm(RmiArgs),
}

/// `pull`
#[derive(Debug, Args)]
pub struct PullArgs {
    /// Every tag of the repository
    #[arg(short, long)]
    all_tags: bool,
    /// Print the image's name only
    #[arg(short, long)]
    quiet: bool,
    /// Platform, as in `linux/arm64`
    #[arg(long)]
    platform: Option<String>,
    /// `NAME[:TAG|@DIGEST]`
    image: String,
}

/// `push`
#[derive(Debug, Args)]
pub struct PushArgs {
    /// Every tag of the repository
    #[arg(short, long)]
    all_tags: bool,
    /// Print the image's name only
    #[arg(short, long)]
    quiet: bool,
    /// `NAME[:TAG]`
    image: String,
}

/// `import`
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// Apply a Dockerfile instruction
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// Message of the history
    #[arg(short, long)]
    message: Option<String>,
    /// Platform, as in `linux/arm64`
    #[arg(long)]
    platform: Option<String>,
    /// Tar archive, or `-` for standard input
    file: PathBuf,
    /// Name of the image, `REPOSITORY[:TAG]`
    reference: Option<String>,
}

/// `load`
#[derive(Debug, Args)]
pub struct LoadArgs {
    /// Read this archive instead of standard input
    #[arg(short, long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Do not show progress
    #[arg(short, long)]
    quiet: bool,
}

/// `save`
#[derive(Debug, Args)]
pub struct SaveArgs {
    /// Write to this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Images to write
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

/// `tag`
#[derive(Debug, Args)]
pub struct TagArgs {
    /// Image that there is
    source: String,
    /// Its other name, `NAME[:TAG]`
    target: String,
}

/// `history`
#[derive(Debug, Args)]
pub struct HistoryArgs {
    /// Print identifiers only
    #[arg(short, long)]
    quiet: bool,
    /// Print everything in full
    #[arg(long)]
    no_trunc: bool,
    /// Print with a Go template
    #[arg(long)]
    format: Option<String>,
    /// Name or ID
    image: String,
}

/// `images`
#[derive(Debug, Args)]
pub struct ImagesArgs {
    /// Include intermediate images
    #[arg(short, long)]
    all: bool,
    /// Print digests
    #[arg(long)]
    digests: bool,
    /// Print everything in full
    #[arg(long)]
    no_trunc: bool,
    #[command(flatten)]
    list: ListArgs,
    /// Only this `REPOSITORY[:TAG]`
    reference: Option<String>,
}

/// `rmi`
#[derive(Debug, Args)]
pub struct RmiArgs {
    /// Even if stopped containers use it
    #[arg(short, long)]
    force: bool,
    /// Keep untagged parents
    #[arg(long)]
    no_prune: bool,
    /// Names or IDs
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

impl ImageCommand {
    /// Does it.
    pub async fn run(self, context: &Context) -> Result<u8, CommandError> {
        match self {
            ImageCommand::Action(action) => action.run(context).await,
            ImageCommand::Ls(args) => args.run(context).await,
            ImageCommand::Inspect(args) => context.inspect(&args, |name| Call::get(inspect_path(name))).await,
            ImageCommand::Rm(args) => args.run(context).await,
        }
    }
}

impl ImageAction {
    /// Does it.
    pub async fn run(self, context: &Context) -> Result<u8, CommandError> {
        match self {
            ImageAction::Pull(args) => pull_command(context, args).await,
            ImageAction::Push(args) => push(context, args).await,
            ImageAction::Import(args) => import(context, args).await,
            ImageAction::Load(args) => load(context, args).await,
            ImageAction::Save(args) => save(context, args).await,
            ImageAction::Tag(TagArgs { source, target }) => {
                let (repository, tag) = split_reference(&target);
                let call =
                    Call::post(format!("/images/{source}/tag")).query("repo", repository).maybe("tag", tag);
                context.client.done(call).await?;
                Ok(0)
            }
            ImageAction::History(args) => history(context, args).await,
        }
    }
}

/// Where an image is inspected.
pub fn inspect_path(name: &str) -> String {
    format!("/images/{name}/json")
}

/// What to pull.
#[derive(Debug, Clone, Copy)]
pub struct PullTarget<'a> {
    /// The image's name.
    pub image: &'a str,
    /// Its platform, when not the daemon's own.
    pub platform: Option<&'a str>,
}

/// Where progress goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

async fn pull_command(context: &Context, args: PullArgs) -> Result<u8, CommandError> {
    if args.all_tags {
        if split_reference(&args.image).1.is_some() {
            return Err(CommandError::Usage("tag can't be used with --all-tags/-a".into()));
        }
        let call = Call::post("/images/create").query("fromImage", &args.image);
        let call = call.maybe("platform", args.platform.as_ref());
        let call = call.registry_auth(credentials::header_for(&args.image)?);
        show_progress(context, call, args.quiet, Channel::Stdout).await?;
    } else {
        if split_reference(&args.image).1.is_none() && !args.quiet {
            context.terminal.line("Using default tag: latest")?;
        }
        let target = PullTarget { image: &args.image, platform: args.platform.as_deref() };
        pull(context, target, args.quiet, Channel::Stdout).await?;
    }
    context.terminal.line(canonical(&args.image))?;
    Ok(0)
}

/// Downloads an image, with its progress shown on `channel` unless quiet.
pub async fn pull(
    context: &Context,
    target: PullTarget<'_>,
    quiet: bool,
    channel: Channel,
) -> Result<(), CommandError> {
    let (repository, tag) = split_reference(target.image);
    let call = Call::post("/images/create")
        .query("fromImage", repository)
        .query("tag", tag.unwrap_or("latest"))
        .maybe("platform", target.platform)
        .registry_auth(credentials::header_for(target.image)?);
    show_progress(context, call, quiet, channel).await
}

async fn push(context: &Context, args: PushArgs) -> Result<u8, CommandError> {
    let (repository, tag) = split_reference(&args.image);
    let tag = match (tag, args.all_tags) {
        (Some(_), true) => {
            return Err(CommandError::Usage("tag can't be used with --all-tags/-a".into()));
        }
        (tag, false) => {
            if tag.is_none() && !args.quiet {
                context.terminal.line("Using default tag: latest")?;
            }
            Some(tag.unwrap_or("latest"))
        }
        (None, true) => None,
    };
    let call = Call::post(format!("/images/{repository}/push")).maybe("tag", tag);
    let call = call.registry_auth(credentials::header_for(&args.image)?);
    show_progress(context, call, args.quiet, Channel::Stdout).await?;
    if args.quiet {
        context.terminal.line(canonical(&args.image))?;
    }
    Ok(0)
}

async fn import(context: &Context, args: ImportArgs) -> Result<u8, CommandError> {
    let (repository, tag) = args.reference.as_deref().map_or(("", None), split_reference);
    let mut call =
        Call::post("/images/create").query("fromSrc", "-").query("repo", repository).maybe("tag", tag);
    call = call.maybe("message", args.message.as_ref()).maybe("platform", args.platform.as_ref());
    for change in &args.change {
        call = call.query("changes", change);
    }
    let file = (args.file != std::path::Path::new("-")).then_some(args.file);
    show_progress(context, call.stream("application/x-tar", archive(file).await?), false, Channel::Stdout)
        .await?;
    Ok(0)
}

async fn load(context: &Context, args: LoadArgs) -> Result<u8, CommandError> {
    if args.input.is_none() && context.terminal.stdin {
        let problem = "requested load from stdin, but stdin is empty; name the archive with `--input`";
        return Err(CommandError::Usage(problem.into()));
    }
    let call = Call::post("/images/load").flag("quiet", args.quiet);
    let call = call.stream("application/x-tar", archive(args.input).await?);
    show_progress(context, call, false, Channel::Stdout).await?;
    Ok(0)
}

async fn save(context: &Context, args: SaveArgs) -> Result<u8, CommandError> {
    if args.output.is_none() && context.terminal.stdout {
        let problem = "an archive is not for a terminal; name a file with `--output` or redirect";
        return Err(CommandError::Usage(problem.into()));
    }
    let call = args.images.iter().fold(Call::get("/images/get"), |call, image| call.query("names", image));
    download(context, call, args.output).await
}

/// Writes a reply's body to a file, or to standard output.
pub async fn download(context: &Context, call: Call, output: Option<PathBuf>) -> Result<u8, CommandError> {
    let name = call.to_string();
    let mut body = context.client.send(call).await?.into_body();
    let path = output.unwrap_or_else(|| "/dev/stdout".into());
    let failed = |source| CommandError::Write { path: path.clone(), source };
    let mut file = tokio::fs::File::create(&path).await.map_err(failed)?;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|source| ClientError::Exchange { call: name.clone(), source })?;
        file.write_all(&frame.into_data().unwrap_or_default()).await.map_err(failed)?;
    }
    file.flush().await.map_err(failed)?;
    Ok(0)
}

/// A file's bytes, or standard input's.
pub async fn archive(
    path: Option<PathBuf>,
) -> Result<impl Stream<Item = io::Result<Bytes>> + Send, CommandError> {
    let reader: Box<dyn AsyncRead + Send + Unpin> = match path {
        None => Box::new(tokio::io::stdin()),
        Some(path) => match tokio::fs::File::open(&path).await {
            Ok(file) => Box::new(file),
            Err(source) => return Err(CommandError::Read { path, source }),
        },
    };
    Ok(tokio_util::io::ReaderStream::new(reader))
}

async fn history(context: &Context, args: HistoryArgs) -> Result<u8, CommandError> {
    let items: Vec<HistoryItem> =
        context.client.json(Call::get(format!("/images/{}/history", args.image))).await?;
    let now = Timestamp::now();
    let line = |item: &HistoryItem| {
        let created = Timestamp(item.created.saturating_mul(1_000_000_000));
        let by = item.created_by.replace('\t', " ");
        row([
            ("ID", if item.id == "<missing>" { item.id.clone() } else { short_id(&item.id, args.no_trunc) }),
            ("CreatedSince", if created.0 <= 0 { "N/A".into() } else { ago(created, now) }),
            ("CreatedAt", local_time(created)),
            ("CreatedBy", if args.no_trunc { by } else { ellipsis(&by, 45) }),
            ("Size", human_size(u64::try_from(item.size).unwrap_or(0))),
            ("Comment", item.comment.clone()),
        ])
    };
    let rows: Vec<Row> = items.iter().map(line).collect();
    context.terminal.print(&HISTORY.render(args.format.as_deref(), args.quiet, &rows)?)?;
    Ok(0)
}

impl ImagesArgs {
    /// Lists images.
    pub async fn run(self, context: &Context) -> Result<u8, CommandError> {
        let mut filters = self.list.filters()?;
        if let Some(reference) = &self.reference {
            filters = filters.with("reference", reference);
        }
        let call =
            Call::get("/images/json").flag("all", self.all).flag("digests", self.digests).filters(&filters);
        let images: Vec<ImageSummary> = context.client.json(call).await?;
        let now = Timestamp::now();
        let rows: Vec<Row> = images.iter().flat_map(|image| lines(image, self.no_trunc, now)).collect();
        let listing = if self.digests { &LISTING_WITH_DIGESTS } else { &LISTING };
        context.list(listing, &self.list, &rows)
    }
}

/// One row per name; an image without a name has one of `<none>`s.
fn lines(image: &ImageSummary, whole: bool, now: Timestamp) -> Vec<Row> {
    let created = Timestamp(image.created.saturating_mul(1_000_000_000));
    let line = |repository: &str, tag: &str, digest: &str| {
        let bytes = u64::try_from(image.size).unwrap_or(0);
        let shared = |bytes: i64| u64::try_from(bytes).map_or_else(|_| "N/A".into(), human_size);
        let fields = row([
            ("Repository", repository.into()),
            ("Tag", tag.into()),
            ("Digest", digest.into()),
            ("ID", short_id(&image.id, whole)),
            ("CreatedSince", if created.0 <= 0 { "N/A".into() } else { ago(created, now) }),
            ("CreatedAt", local_time(created)),
            ("Size", human_size(bytes)),
            ("Containers", if image.containers < 0 { "N/A".into() } else { image.containers.to_string() }),
            ("SharedSize", shared(image.shared_size)),
            ("VirtualSize", progress_size(bytes)),
            ("UniqueSize", "N/A".into()),
        ]);
        with_labels(fields, json!(image.labels))
    };
    let digest_of = |repository: &str| {
        let digests = image.repo_digests.iter().filter_map(|digest| digest.split_once('@'));
        digests.filter(|(of, _)| *of == repository).map(|(_, digest)| digest.to_owned()).next()
    };
    let mut rows: Vec<Row> = Vec::new();
    for name in &image.repo_tags {
        let (repository, tag) = split_reference(name);
        let digest = digest_of(repository).unwrap_or_else(|| NONE.into());
        rows.push(line(repository, tag.unwrap_or(NONE), &digest));
    }
    if rows.is_empty() {
        match image.repo_digests.first().and_then(|digest| digest.split_once('@')) {
            Some((repository, digest)) => rows.push(line(repository, NONE, digest)),
            None => rows.push(line(NONE, NONE, NONE)),
        }
    }
    rows
}

impl RmiArgs {
    /// Removes images.
    pub async fn run(self, context: &Context) -> Result<u8, CommandError> {
        let work = |name: String| {
            let call = Call::delete(format!("/images/{name}"));
            let call = call.flag("force", self.force).flag("noprune", self.no_prune);
            async move {
                let removed: Vec<ImageDeleted> = context.client.json(call).await?;
                let told = |removed: ImageDeleted| match removed.deleted.as_str() {
                    "" => format!("Untagged: {}", removed.untagged),
                    id => format!("Deleted: {id}"),
                };
                Ok(removed.into_iter().map(told).collect())
            }
        };
        context.each(&self.images, work).await
    }
}

/// Sends a call and shows what it reports on the way; a failure within the stream is the command's.
async fn show_progress(
    context: &Context,
    call: Call,
    quiet: bool,
    channel: Channel,
) -> Result<(), CommandError> {
    let name = call.to_string();
    let reply = context.client.send(call).await?;
    let mut lines = JsonLines::new(name, reply.into_body());
    let mut view = ProgressView::new(context.terminal.stdout && channel == Channel::Stdout);
    let columns = usize::from(context.terminal.size().map_or(80, |(columns, _)| columns));
    while let Some(progress) = lines.next::<Progress>().await? {
        if let Some(error) = progress.error_detail.as_ref().filter(|error| !error.message.is_empty()) {
            return Err(CommandError::Reported(error.message.clone()));
        }
        if !progress.error.is_empty() {
            return Err(CommandError::Reported(progress.error));
        }
        let text = view.show(&progress, columns);
        match channel {
            _ if quiet || text.is_empty() => {}
            Channel::Stdout => context.terminal.print(&text)?,
            Channel::Stderr => context.terminal.complain(text.trim_end()),
        }
    }
    Ok(())
}

/// Layers of a pull, each on its line.
struct ProgressView {
    in_place: bool,
    layers: Vec<(String, String)>,
    redrawn: Redrawn,
}

impl ProgressView {
    fn new(in_place: bool) -> ProgressView {
        ProgressView { in_place, layers: Vec::new(), redrawn: Redrawn::default() }
    }

    /// What to print for one report.
    fn show(&mut self, progress: &Progress, columns: usize) -> String {
        if !progress.stream.is_empty() {
            return progress.stream.clone();
        }
        let detail =
            progress.progress_detail.as_ref().filter(|detail| detail.total > 0 || detail.current > 0);
        if progress.id.is_empty() || !self.in_place {
            let skipped = progress.status.is_empty() || detail.is_some();
            let id = if progress.id.is_empty() { String::new() } else { format!("{}: ", progress.id) };
            let text = if skipped { String::new() } else { format!("{id}{}\n", progress.status) };
            if !text.is_empty() && self.in_place {
                self.redrawn = Redrawn::default();
                self.layers.clear();
            }
            return text;
        }
        let mut status = progress.status.clone();
        if let Some(detail) = detail {
            let bytes = |value: i64| progress_size(u64::try_from(value).unwrap_or(0));
            let place = |value: i64| usize::try_from(value).unwrap_or(0);
            status.push_str(&match detail.total {
                0 => format!(" {:>8}", bytes(detail.current)),
                total => format!(
                    " {}  {:>8}/{}",
                    bar(place(detail.current), place(total)),
                    bytes(detail.current),
                    bytes(total)
                ),
            });
        }
        match self.layers.iter_mut().find(|(id, _)| *id == progress.id) {
            Some((_, shown)) => *shown = status,
            None => self.layers.push((progress.id.clone(), status)),
        }
        let lines: Vec<String> = self.layers.iter().map(|(id, status)| format!("{id}: {status}")).collect();
        self.redrawn.draw(columns, lines.iter())
    }
}

/// `name:5000/image:tag` is cut at the tag, never at the port; a digest counts as the tag.
pub fn split_reference(reference: &str) -> (&str, Option<&str>) {
    if let Some((name, digest)) = reference.split_once('@') {
        return (name, Some(digest));
    }
    match reference.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (reference, None),
    }
}

/// The name with everything that is usually left out.
fn canonical(image: &str) -> String {
    let (name, tag) = split_reference(image);
    let has_registry = |first: &str| first.contains('.') || first.contains(':') || first == "localhost";
    let full = match name.split_once('/') {
        Some((first, _)) if has_registry(first) => name.to_owned(),
        Some(_) => format!("docker.io/{name}"),
        None => format!("docker.io/library/{name}"),
    };
    match tag {
        Some(digest) if digest.contains(':') => format!("{full}@{digest}"),
        tag => format!("{full}:{}", tag.unwrap_or("latest")),
    }
}

#[cfg(test)]
mod tests {
    use rswarm_api::types::ProgressDetail;

    use super::*;

    #[test]
    fn references_are_cut_at_the_tag() {
        assert_eq!(split_reference("web"), ("web", None));
        assert_eq!(split_reference("r:5000/web"), ("r:5000/web", None));
        assert_eq!(split_reference("r:5000/web:1"), ("r:5000/web", Some("1")));
        assert_eq!(split_reference("web@sha256:ab"), ("web", Some("sha256:ab")));
        assert_eq!(canonical("web"), "docker.io/library/web:latest");
        assert_eq!(canonical("me/web:2"), "docker.io/me/web:2");
        assert_eq!(canonical("r.io/web@sha256:ab"), "r.io/web@sha256:ab");
    }

    #[test]
    fn each_name_of_an_image_is_a_row() {
        let image = ImageSummary {
            id: "sha256:0123456789abcdef0123".into(),
            created: 1_000,
            repo_tags: vec!["web:1".into(), "r:5000/web:2".into()],
            size: 7_797_760,
            ..ImageSummary::default()
        };
        let rows = lines(&image, false, Timestamp(4_600 * 1_000_000_000));
        assert_eq!(
            LISTING.render(None, false, &rows).expect("renders"),
            "REPOSITORY   TAG       IMAGE ID       CREATED             SIZE\n\
             web          1         0123456789ab   About an hour ago   7.8MB\n\
             r:5000/web   2         0123456789ab   About an hour ago   7.8MB\n"
        );
        let rows = lines(&ImageSummary { repo_tags: vec![], ..image }, false, Timestamp::ZERO);
        assert_eq!(
            LISTING.render(Some("{{.Repository}}:{{.Tag}}"), false, &rows).expect("renders"),
            "<none>:<none>\n"
        );
    }

    #[test]
    fn progress_without_a_terminal_is_milestones_only() {
        let report = |status: &str, current| Progress {
            id: "abc".into(),
            status: status.into(),
            progress_detail: Some(ProgressDetail { current, total: 10 }).filter(|_| current > 0),
            ..Progress::default()
        };
        let mut view = ProgressView::new(false);
        assert_eq!(view.show(&report("Downloading", 5), 80), "");
        assert_eq!(view.show(&report("Pull complete", 0), 80), "abc: Pull complete\n");
        let mut view = ProgressView::new(true);
        assert!(
            view.show(&report("Downloading", 5), 200)
                .contains("abc: Downloading [=========================>")
        );
    }
}
