//! Files in and out of containers: `archive`, `export`, `changes`, and `commit`.

use axum::Json;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, head, post};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rswarm_engine::filesystem::{PathStat, PutOptions};
use rswarm_engine::{Archive, CommitRequest};
use rswarm_image::{Change, ChangeKind, ImageConfig, Reference};
use tokio_stream::wrappers::ReceiverStream;

use crate::error::ApiError;
use crate::images::reader;
use crate::request::{JsonBody, Query};
use crate::router::App;
use crate::types;

/// Where `HEAD` and `GET` say what there is at a path.
const STAT_HEADER: &str = "X-Docker-Container-Path-Stat";

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/containers/{id}/archive", head(stat).get(read).put(write))
        .route("/containers/{id}/export", get(export))
        .route("/containers/{id}/changes", get(changes))
        .route("/commit", post(commit))
}

fn path(query: &Query) -> Result<&str, ApiError> {
    match query.text("path") {
        "" => Err(ApiError::invalid("bad parameter: path cannot be empty")),
        path => Ok(path),
    }
}

async fn stat(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Query,
) -> Result<(HeaderMap, StatusCode), ApiError> {
    let stat = app.engine.stat_path(&id, path(&query)?).await?;
    Ok((stat_header(&stat), StatusCode::OK))
}

async fn read(State(app): State<App>, Path(id): Path<String>, query: Query) -> Result<Response, ApiError> {
    let (stat, archive) = app.engine.get_archive(&id, path(&query)?).await?;
    let mut response = body(archive, "application/x-tar");
    response.headers_mut().extend(stat_header(&stat));
    Ok(response)
}

async fn write(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Query,
    request: Request,
) -> Result<StatusCode, ApiError> {
    let options =
        PutOptions { keeps_kinds: query.flag("noOverwriteDirNonDir"), chown: query.flag("copyUIDGID") };
    app.engine.put_archive(&id, path(&query)?, options, reader(request.into_body())).await?;
    Ok(StatusCode::OK)
}

async fn export(State(app): State<App>, Path(id): Path<String>) -> Result<Response, ApiError> {
    Ok(body(app.engine.export(&id).await?, "application/octet-stream"))
}

async fn changes(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<Option<Vec<types::FilesystemChange>>>, ApiError> {
    let changes = app.engine.changes(&id).await?;
    // moby: a nil slice
    Ok(Json((!changes.is_empty()).then(|| changes.iter().map(change).collect())))
}

async fn commit(
    State(app): State<App>,
    query: Query,
    JsonBody(config): JsonBody<Option<ImageConfig>>,
) -> Result<(StatusCode, Json<types::IdBody>), ApiError> {
    let reference = match (query.text("repo"), query.text("tag")) {
        ("", _) => None,
        (repository, tag) => Some(named(repository, tag)?),
    };
    let request = CommitRequest {
        reference,
        config,
        changes: query.all("changes").map(str::to_owned).collect(),
        author: query.text("author").to_owned(),
        comment: query.text("comment").to_owned(),
        // moby: clients that say nothing want the pause.
        pause: !query.has("pause") || query.flag("pause"),
    };
    let image = app.engine.commit(query.text("container"), request).await?;
    Ok((StatusCode::CREATED, Json(types::IdBody { id: image.id.to_string() })))
}

fn named(repository: &str, tag: &str) -> Result<Reference, ApiError> {
    let reference = Reference::parse(repository)?;
    if reference.digest().is_some() {
        return Err(ApiError::invalid("cannot import digest reference"));
    }
    Ok(if tag.is_empty() { reference.with_default_tag() } else { reference.with_tag(tag)? })
}

fn body(archive: Archive, content_type: &'static str) -> Response {
    let mut response = Body::from_stream(ReceiverStream::new(archive)).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn stat_header(stat: &PathStat) -> HeaderMap {
    let shown = types::PathStat {
        name: stat.name.clone(),
        size: stat.size,
        mode: go_mode(stat.mode),
        mtime: stat.modified.to_string(),
        link_target: stat.link_target.clone(),
    };
    let json = serde_json::to_vec(&shown).expect("our own types are always JSON");
    let value = HeaderValue::from_str(&BASE64_STANDARD.encode(json)).expect("base64 is plain ASCII");
    HeaderMap::from_iter([(STAT_HEADER.parse().expect("a header's name"), value)])
}

/// `st_mode` as Go's `os.FileMode`.
fn go_mode(mode: u32) -> u32 {
    const DIR: u32 = 1 << 31;
    const SYMLINK: u32 = 1 << 27;
    const DEVICE: u32 = 1 << 26;
    const NAMED_PIPE: u32 = 1 << 25;
    const SOCKET: u32 = 1 << 24;
    const SETUID: u32 = 1 << 23;
    const SETGID: u32 = 1 << 22;
    const CHAR_DEVICE: u32 = 1 << 21;
    const STICKY: u32 = 1 << 20;
    let kind = match mode & 0o170_000 {
        0o040_000 => DIR,
        0o120_000 => SYMLINK,
        0o060_000 => DEVICE,
        0o020_000 => DEVICE | CHAR_DEVICE,
        0o010_000 => NAMED_PIPE,
        0o140_000 => SOCKET,
        _ => 0,
    };
    let bits = [(0o4000, SETUID), (0o2000, SETGID), (0o1000, STICKY)];
    let special: u32 = bits.iter().filter(|(bit, _)| mode & bit != 0).map(|(_, go)| go).sum();
    kind | special | (mode & 0o777)
}

fn change(change: &Change) -> types::FilesystemChange {
    types::FilesystemChange {
        path: change.path.to_string_lossy().into_owned(),
        kind: match change.kind {
            ChangeKind::Modified => 0,
            ChangeKind::Added => 1,
            ChangeKind::Deleted => 2,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_gos() {
        let table = [
            (0o100_644, 0o644),
            (0o040_755, (1 << 31) | 0o755),
            (0o041_777, (1 << 31) | (1 << 20) | 0o777),
            (0o120_777, (1 << 27) | 0o777),
            (0o104_755, (1 << 23) | 0o755),
            (0o020_666, (1 << 26) | (1 << 21) | 0o666),
        ];
        for (mode, go) in table {
            assert_eq!(go_mode(mode), go, "{mode:o}");
        }
    }

    #[test]
    fn a_paths_state_travels_in_a_header() {
        let stat = PathStat {
            name: "passwd".to_owned(),
            size: 7,
            mode: 0o100_644,
            modified: rswarm_base::Timestamp::parse("2026-01-02T03:04:05.5Z").expect("time"),
            link_target: String::new(),
        };
        let header = stat_header(&stat);
        let json = BASE64_STANDARD.decode(header[STAT_HEADER].as_bytes()).expect("base64");
        let expected =
            r#"{"name":"passwd","size":7,"mode":420,"mtime":"2026-01-02T03:04:05.5Z","linkTarget":""}"#;
        assert_eq!(String::from_utf8(json).expect("JSON"), expected);
    }
}
