//! Images: pull, import, load, save, views, tags, removal, and what registries say.

use axum::Json;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt as _, TryStreamExt as _};
use rswarm_base::{Chain, Classify, Kind, Timestamp};
use rswarm_image::{
    Image, ImageStore, ImageUser, ImportOptions, Platform, Progress, ProgressEvent, Reference, RegistryAuth,
    RemoveOptions, Removed, chain_ids,
};
use tokio::sync::mpsc;
use tokio_util::io::{ReaderStream, StreamReader};

use crate::error::ApiError;
use crate::filters::Filters;
use crate::request::Query;
use crate::router::{App, page_not_found};
use crate::stream::{json_line, streaming};
use crate::translate::image;
use crate::types;
use crate::version::ApiVersion;

const FILTERS: [&str; 7] = ["before", "dangling", "label", "label!", "reference", "since", "until"];
/// Buffer between the store that writes an archive and the client that reads it.
const SAVE_BUFFER: usize = 256 << 10;

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/images/json", get(list))
        .route("/images/create", post(create))
        .route("/images/load", post(load))
        .route("/images/get", get(save_many))
        .route("/images/prune", post(prune))
        .route("/images/search", get(|| unsupported("searching Docker Hub")))
        .route("/images/{*name}", any(named))
        .route("/distribution/{*name}", get(distribution))
        .route("/build", post(|| unsupported("building an image")))
        // There is no builder and so no cache: `system prune` asks for it all the same.
        .route("/build/prune", post(async || Json(types::BuildCachePruned::default())))
        .route("/build/cancel", post(|| unsupported("cancelling a build")))
        .route("/session", post(|| unsupported("a build session")))
        .route("/grpc", post(|| unsupported("a build session")))
}

async fn unsupported(what: &'static str) -> ApiError {
    ApiError::unsupported(what)
}

/// Names hold slashes: what is asked of one is its last part.
async fn named(State(app): State<App>, version: ApiVersion, query: Query, request: Request) -> Response {
    let path = request.uri().path().strip_prefix("/images/").unwrap_or_default();
    let path = percent_encoding::percent_decode_str(path).decode_utf8_lossy().into_owned();
    let method = match *request.method() {
        Method::HEAD => Method::GET,
        ref method => method.clone(),
    };
    let (name, action) = match path.rsplit_once('/') {
        Some((name, action)) if method != Method::DELETE => (name, action),
        _ => (path.as_str(), ""),
    };
    let answer = match (method.as_str(), action) {
        ("DELETE", _) => remove(&app, name, &query).await.map(IntoResponse::into_response),
        ("GET", "json") => inspect(&app, name, &query, version).map(IntoResponse::into_response),
        ("GET", "history") => app
            .engine
            .images()
            .get(name)
            .map(|found| Json(image::history(&found)).into_response())
            .map_err(Into::into),
        ("GET", "get") => save(&app, vec![name.to_owned()]),
        ("POST", "tag") => tag(&app, name, &query).await.map(IntoResponse::into_response),
        ("POST", "push") => push(&app, name, &query, registry_auth(request.headers())),
        ("GET", "attestations") => Err(ApiError::unsupported("reading attestations")),
        _ => Err(page_not_found().await),
    };
    answer.unwrap_or_else(IntoResponse::into_response)
}

// ---- views ----------------------------------------------------------------------------------------------

async fn list(
    State(app): State<App>,
    query: Query,
    version: ApiVersion,
) -> Result<Json<Vec<types::ImageSummary>>, ApiError> {
    let filters = query.filters(&FILTERS)?;
    let images = app.engine.images();
    let at = |key: &str| filters.get(key).last().map(|name| images.get(name)).transpose();
    let (before, since) = (at("before")?, at("since")?);
    let until = filters.until(Timestamp::now())?;
    let dangling = filters.flag("dangling")?;
    let containers = app.engine.list();
    let rows = images
        .list()
        .into_iter()
        .filter(|image| dangling.is_none_or(|wanted| image.tags.is_empty() == wanted))
        .filter(|image| before.as_ref().is_none_or(|other| image.created < other.created))
        .filter(|image| since.as_ref().is_none_or(|other| image.created > other.created))
        .filter(|image| until.is_none_or(|until| image.created < until))
        .filter(|image| filters.labels("label", &image.config.labels))
        .filter(|image| filters.without_labels("label!", &image.config.labels))
        .filter_map(|image| only_named(image, &filters))
        .map(|found| {
            let users = containers.iter().filter(|container| container.image_id == found.id.as_str()).count();
            image::summary(&found, users, version)
        })
        .collect();
    Ok(Json(rows))
}

/// The image with those of its names that the filter asks for; `None` when there is none.
fn only_named(mut image: Image, filters: &Filters) -> Option<Image> {
    if !filters.has("reference") {
        return Some(image);
    }
    let is_wanted = |name: &String| filters.any("reference", |pattern| name_matches(name, pattern));
    image.tags.retain(is_wanted);
    image.digests.retain(is_wanted);
    (!image.tags.is_empty() || !image.digests.is_empty()).then_some(image)
}

/// A glob over the familiar name, with or without the tag.
fn name_matches(name: &str, pattern: &str) -> bool {
    glob(pattern, name)
        || name.rsplit_once([':', '@']).is_some_and(|(repository, _)| glob(pattern, repository))
}

/// `*` and `?` stay within one part of a name, as in Go's `path.Match`.
fn glob(pattern: &str, text: &str) -> bool {
    let mut expression = String::from("^");
    for c in pattern.chars() {
        match c {
            '*' => expression.push_str("[^/]*"),
            '?' => expression.push_str("[^/]"),
            c => expression.push_str(&regex::escape(c.encode_utf8(&mut [0; 4]))),
        }
    }
    expression.push('$');
    regex::Regex::new(&expression).is_ok_and(|expression| expression.is_match(text))
}

fn inspect(
    app: &App,
    name: &str,
    query: &Query,
    version: ApiVersion,
) -> Result<Json<serde_json::Value>, ApiError> {
    let platform = query.has("platform") && version.at_least(49);
    if platform {
        return Err(ApiError::unsupported("inspecting one platform of an image (platform)"));
    }
    let found = app.engine.images().get(name)?;
    let mut shown = serde_json::to_value(image::inspect(&found)).expect("our own types are always JSON");
    if version.at_least(50) {
        drop_container_fields(&mut shown);
    }
    if !version.at_least(44) {
        shown["VirtualSize"] = shown["Size"].clone();
    }
    Ok(Json(shown))
}

/// What only containers have went from images with 1.50.
fn drop_container_fields(image: &mut serde_json::Value) {
    const FIELDS: [&str; 10] = [
        "Hostname",
        "Domainname",
        "AttachStdin",
        "AttachStdout",
        "AttachStderr",
        "Tty",
        "OpenStdin",
        "StdinOnce",
        "Image",
        "NetworkDisabled",
    ];
    if let Some(config) = image["Config"].as_object_mut() {
        for field in FIELDS {
            config.remove(field);
        }
    }
}

async fn distribution(
    State(app): State<App>,
    Path(path): Path<String>,
    headers: HeaderMap,
) -> Result<Json<types::DistributionInspect>, ApiError> {
    let Some(name) = path.strip_suffix("/json") else { return Err(page_not_found().await) };
    let reference = Reference::parse(name)?.with_default_tag();
    let found = app.engine.images().distribution(&reference, registry_auth(&headers)).await?;
    Ok(Json(image::distribution(&found)))
}

// ---- names ----------------------------------------------------------------------------------------------

async fn tag(app: &App, name: &str, query: &Query) -> Result<StatusCode, ApiError> {
    let target = Reference::parse(query.text("repo"))?;
    let target = match query.text("tag") {
        "" => target.with_default_tag(),
        tag => target.with_tag(tag)?,
    };
    app.engine.images().tag(name, &target).await?;
    Ok(StatusCode::CREATED)
}

async fn remove(app: &App, name: &str, query: &Query) -> Result<Json<Vec<types::ImageDeleted>>, ApiError> {
    if query.has("platforms") {
        return Err(ApiError::unsupported("removing one platform of an image (platforms)"));
    }
    let options = RemoveOptions { force: query.flag("force"), no_prune: query.flag("noprune") };
    let removed = app.engine.images().remove(name, options, &users(app)).await?;
    Ok(Json(image::removed(removed)))
}

fn users(app: &App) -> Vec<ImageUser> {
    let user = |container: &std::sync::Arc<rswarm_engine::Container>| ImageUser {
        image_id: container.image_id.clone(),
        container_id: container.id.clone(),
        is_running: container.state.status.is_running(),
    };
    app.engine.list().iter().map(user).collect()
}

async fn prune(State(app): State<App>, query: Query) -> Result<Json<types::ImagesPruned>, ApiError> {
    let filters = query.filters(&["dangling", "until", "label", "label!"])?;
    let only_dangling = filters.flag("dangling")?.unwrap_or(true);
    let until = filters.until(Timestamp::now())?;
    let users = users(&app);
    let mut pruned = types::ImagesPruned::default();
    let deleted = pruned.images_deleted.get_or_insert_default();
    for found in app.engine.images().list() {
        let labels = &found.config.labels;
        let chosen = (found.tags.is_empty() || !only_dangling)
            && until.is_none_or(|until| found.created <= until)
            && filters.labels("label", labels)
            && filters.without_labels("label!", labels)
            && !users.iter().any(|user| user.image_id == found.id.as_str());
        if !chosen {
            continue;
        }
        let options = RemoveOptions { force: true, no_prune: false };
        // One that another image stands on, or that is used meanwhile, stays.
        if let Ok(removed) = app.engine.images().remove(found.id.as_str(), options, &users).await {
            pruned.space_reclaimed += reclaimed(&found, &removed);
            deleted.extend(image::removed(removed));
        }
    }
    Ok(Json(pruned))
}

/// Bytes of the layers that went with an image.
fn reclaimed(image: &Image, removed: &[Removed]) -> u64 {
    let gone =
        |id: &str| removed.iter().any(|line| matches!(line, Removed::Deleted(deleted) if deleted == id));
    let layers = chain_ids(&image.layers).into_iter().zip(&image.layer_sizes);
    layers.filter(|(id, _)| gone(id.as_str())).map(|(_, size)| size).sum()
}

// ---- in -------------------------------------------------------------------------------------------------

fn registry_auth(headers: &HeaderMap) -> Option<RegistryAuth> {
    RegistryAuth::from_header(headers.get("X-Registry-Auth")?.to_str().ok()?)
}

async fn create(State(app): State<App>, query: Query, request: Request) -> Result<Response, ApiError> {
    let platform = match query.text("platform") {
        "" => None,
        text => Some(text.parse::<Platform>()?),
    };
    match (query.text("fromImage"), query.text("fromSrc")) {
        ("", "") => Err(ApiError::invalid("invalid reference format")),
        ("", "-") => import(&app, &query, platform, request.into_body()).await,
        ("", _) => Err(ApiError::unsupported("importing from a URL (fromSrc)")
            .hint("fetch it and import it with fromSrc=-")),
        (name, _) => pull(&app, name, query.text("tag"), platform, registry_auth(request.headers())).await,
    }
}

async fn pull(
    app: &App,
    name: &str,
    tag: &str,
    platform: Option<Platform>,
    auth: Option<RegistryAuth>,
) -> Result<Response, ApiError> {
    let reference = pulled_reference(name, tag)?;
    let images = app.engine.images().clone();
    let (progress, events) = Progress::channel();
    let work = async move {
        let references = if reference.tag().is_some() || reference.digest().is_some() {
            vec![reference]
        } else {
            let tags = images.tags(&reference, auth.clone()).await?;
            // A tag that cannot be one is left out.
            tags.iter().filter_map(|tag| reference.clone().with_tag(tag).ok()).collect()
        };
        for reference in references {
            let (auth, progress) = (auth.clone(), progress.clone());
            match &platform {
                Some(platform) => images.pull_platform(&reference, platform, auth, progress).await?,
                None => images.pull(&reference, auth, progress).await?,
            };
        }
        Ok::<(), rswarm_image::PullError>(())
    };
    progress_stream(app, events, work, |()| Vec::new()).await
}

fn push(app: &App, name: &str, query: &Query, auth: Option<RegistryAuth>) -> Result<Response, ApiError> {
    if query.has("platform") {
        return Err(ApiError::unsupported("pushing one platform of an image (platform)"));
    }
    let reference = Reference::parse(name)?;
    if reference.digest().is_some() {
        return Err(ApiError::invalid("cannot push a digest reference"));
    }
    let reference = match query.text("tag") {
        "" => reference,
        tag => reference.with_tag(tag)?,
    };
    let images = app.engine.images().clone();
    let (progress, events) = Progress::channel();
    let work = Box::pin(async move { images.push(&reference, auth, progress).await });
    let lines = rest(events, work, |()| Vec::new());
    Ok(streaming("application/json", app.scope.token(), lines))
}

/// The tag parameter is a tag or a digest; a digest in the name goes before it.
fn pulled_reference(name: &str, tag: &str) -> Result<Reference, ApiError> {
    let reference = Reference::parse(name)?;
    if reference.digest().is_some() {
        return Ok(reference);
    }
    if tag.is_empty() {
        // Without a tag, all of them are meant.
        return Ok(reference);
    }
    if tag.contains(':') {
        return Ok(Reference::parse(&format!("{name}@{tag}"))?);
    }
    Ok(reference.with_tag(tag)?)
}

async fn import(
    app: &App,
    query: &Query,
    platform: Option<Platform>,
    body: Body,
) -> Result<Response, ApiError> {
    let reference = match (query.text("repo"), query.text("tag")) {
        ("", _) => None,
        (repository, "") => Some(Reference::parse(repository)?.with_default_tag()),
        (repository, tag) => Some(Reference::parse(repository)?.with_tag(tag)?),
    };
    let options = ImportOptions {
        reference,
        message: query.text("message").to_owned(),
        changes: query.all("changes").map(str::to_owned).collect(),
        platform,
    };
    let images = app.engine.images().clone();
    let work = async move { images.import(reader(body), options).await };
    let (_, events) = Progress::channel();
    progress_stream(app, events, work, |image| {
        vec![types::Progress { status: image.id.to_string(), ..types::Progress::default() }]
    })
    .await
}

/// A request's body as a byte stream.
pub(crate) fn reader(body: Body) -> impl tokio::io::AsyncRead + Send + Unpin + 'static {
    StreamReader::new(Box::pin(body.into_data_stream().map_err(std::io::Error::other)))
}

async fn load(State(app): State<App>, query: Query, request: Request) -> Result<Response, ApiError> {
    if query.has("platform") {
        return Err(ApiError::unsupported("loading one platform of an archive (platform)"));
    }
    let images: ImageStore = app.engine.images().clone();
    let quiet = !query.has("quiet") || query.flag("quiet");
    let (progress, events) = if quiet {
        let (_, events) = Progress::channel();
        (Progress::silent(), events)
    } else {
        Progress::channel()
    };
    let body = reader(request.into_body());
    let work = Box::pin(async move { images.load(body, progress).await });
    let mut lines = Box::pin(rest(events, work, |loaded| loaded.iter().flat_map(image::loaded).collect()));
    // moby: a failure is a line of the stream, and the head goes out with the first line. There are clients that
    // do not read the body: without progress, the head tells them that the images are there.
    let first = lines.next().await;
    Ok(streaming("application/json", app.scope.token(), stream::iter(first).chain(lines)))
}

/// What the work says while it goes on, then what came of it. A failure before the first word is a status;
/// later it is a line of the stream, as clients expect it.
async fn progress_stream<T, E, F>(
    app: &App,
    mut events: mpsc::Receiver<ProgressEvent>,
    work: F,
    last: fn(T) -> Vec<types::Progress>,
) -> Result<Response, ApiError>
where
    T: Send + 'static,
    E: Classify + Send + 'static,
    F: Future<Output = Result<T, E>> + Send + 'static,
{
    let mut work = Box::pin(work);
    let first = tokio::select! {
        biased;
        Some(event) = events.recv() => Step::Event(event),
        done = &mut work => Step::Done(done),
    };
    let lines: std::pin::Pin<Box<dyn Stream<Item = Bytes> + Send>> = match first {
        Step::Done(Err(error)) => return Err(error.into()),
        Step::Done(Ok(value)) => Box::pin(stream::iter(last(value))).map(|line| json_line(&line)).boxed(),
        Step::Event(event) => {
            let head = stream::iter([json_line(&image::progress(&event))]);
            Box::pin(head.chain(rest(events, work, last)))
        }
    };
    Ok(streaming("application/json", app.scope.token(), lines))
}

enum Step<T, E> {
    Event(ProgressEvent),
    Done(Result<T, E>),
}

fn rest<T, E, F>(
    events: mpsc::Receiver<ProgressEvent>,
    work: std::pin::Pin<Box<F>>,
    last: fn(T) -> Vec<types::Progress>,
) -> impl Stream<Item = Bytes> + Send
where
    T: Send + 'static,
    E: Classify + Send + 'static,
    F: Future<Output = Result<T, E>> + Send + 'static,
{
    let done = stream::once(async move {
        match work.await {
            Ok(value) => last(value),
            Err(error) => vec![failure(&error)],
        }
    });
    // Events end when the work drops its sender, so that the last line comes after them.
    let events =
        tokio_stream::wrappers::ReceiverStream::new(events).map(|event| vec![image::progress(&event)]);
    let merged = stream::select(events, done);
    merged.flat_map(|lines| stream::iter(lines.into_iter().map(|line| json_line(&line))))
}

fn failure(error: &impl Classify) -> types::Progress {
    let message = Chain(error).to_string();
    types::Progress {
        error_detail: Some(types::ErrorDetail { code: 0, message: message.clone() }),
        error: message,
        ..types::Progress::default()
    }
}

// ---- out ------------------------------------------------------------------------------------------------

async fn save_many(State(app): State<App>, query: Query) -> Result<Response, ApiError> {
    if query.has("platform") {
        return Err(ApiError::unsupported("saving one platform of an image (platform)"));
    }
    save(&app, query.all("names").map(str::to_owned).collect())
}

fn save(app: &App, names: Vec<String>) -> Result<Response, ApiError> {
    if names.is_empty() {
        return Err(ApiError::invalid("no image names given"));
    }
    for name in &names {
        // A name that there is not is a status; the archive is a stream, which has none.
        if let Err(error) = app.engine.images().get(name) {
            return Err(error.into());
        }
    }
    let images = app.engine.images().clone();
    let (reader, writer) = tokio::io::duplex(SAVE_BUFFER);
    app.scope.spawn(async move {
        if let Err(error) = images.save(&names, writer).await {
            // A reader that went away is not worth a word.
            if error.kind() != Kind::Internal {
                tracing::warn!(error = %Chain(&error), "an archive could not be written whole");
            }
        }
    });
    let mut response = Body::from_stream(ReaderStream::new(reader)).into_response();
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/x-tar"));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_stay_within_a_part() {
        assert!(glob("web*", "web:1") && glob("*/web", "acme/web") && glob("we?", "web"));
        assert!(!glob("*", "acme/web") && !glob("web", "webs") && !glob("w.b", "web"));
    }

    #[test]
    fn a_pulled_name_takes_its_tag_or_digest_from_the_parameter() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let check = |name: &str, tag: &str| pulled_reference(name, tag).map(|found| found.familiar()).ok();
        assert_eq!(check("web", "1").as_deref(), Some("web:1"));
        assert_eq!(check("acme/web:2", "").as_deref(), Some("acme/web:2"));
        assert_eq!(check("web", &digest), Some(format!("web@{digest}")));
        assert_eq!(check(&format!("web@{digest}"), "latest"), Some(format!("web@{digest}")));
        assert_eq!(check("web", "").as_deref(), Some("web"), "all tags");
        assert_eq!(pulled_reference("WEB", "1").expect_err("upper case").kind, Kind::InvalidArgument);
    }
}
