//! Clients attached to a container's streams: over a connection that becomes the stream, or a websocket on it.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::StreamExt as _;
use rswarm_base::Timestamp;
use rswarm_engine::container::Container;
use rswarm_engine::events::{Event, EventScope};
use tokio::io::AsyncWriteExt as _;

use crate::attach::{self, DetachKeys, End, Wiring};
use crate::connection::{Hijacker, Raw};
use crate::error::ApiError;
use crate::logs;
use crate::request::Query;
use crate::router::{self, App};
use crate::stream::{RAW, content_type};
use crate::version::ApiVersion;
use crate::watch::hung_up;
use crate::websocket::Handshake;

/// `POST /containers/{id}/attach`. A refusal is a line of text on the stream that was asked for.
// moby: postContainersAttach
pub(crate) async fn attach(
    app: State<App>,
    id: Path<String>,
    query: Query,
    version: ApiVersion,
    hijacker: Hijacker,
    drained: Bytes,
) -> Response {
    let attached = attach_streams(app, id, query, version, hijacker, drained).await;
    attached.unwrap_or_else(|error| {
        let headers = [(header::CONTENT_TYPE, RAW), (header::CONNECTION, "close")];
        (router::status(error.kind), headers, format!("{}\r\n", error.message)).into_response()
    })
}

async fn attach_streams(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Query,
    version: ApiVersion,
    hijacker: Hijacker,
    _drained: Bytes,
) -> Result<Response, ApiError> {
    let container = app.engine.inspect(&id)?;
    let wiring = wiring(&container, &query, attach::Framing::Kept, |name| query.flag(name))?;
    let door = Door::Plain(content_type(version, wiring.tty));
    attach_through(door, app, container, query, wiring, hijacker).await
}

/// `GET /containers/{id}/attach/ws`: the same over a websocket, whose messages are the streams' bytes without frames.
// moby: api/server/router/container, wsContainersAttach
pub(crate) async fn attach_websocket(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Query,
    version: ApiVersion,
    headers: HeaderMap,
    hijacker: Hijacker,
) -> Result<Response, ApiError> {
    let container = app.engine.inspect(&id)?;
    let wanted = |name: &str| !version.at_least(42) || query.flag(name);
    let wiring = wiring(&container, &query, attach::Framing::Removed, wanted)?;
    let door = Door::Websocket(Handshake::of(&headers, version)?);
    attach_through(door, app, container, query, wiring, hijacker).await
}

/// Which of the container's streams a client gets, and how.
fn wiring(
    container: &Container,
    query: &Query,
    framing: attach::Framing,
    wanted: impl Fn(&str) -> bool,
) -> Result<Wiring, ApiError> {
    let spec = &container.config.spec;
    Ok(Wiring {
        framing,
        tty: spec.tty,
        stdin: wanted("stdin") && spec.open_stdin,
        stdout: wanted("stdout"),
        stderr: wanted("stderr"),
        close_stdin: spec.stdin_once,
        detach_keys: DetachKeys::parse(query.text("detachKeys"))?,
    })
}

/// How a client's connection becomes a stream.
enum Door {
    /// As Docker's own clients do it; the content type says what follows.
    Plain(&'static str),
    Websocket(Handshake),
}

impl Door {
    async fn open(&self, mut raw: Raw) -> std::io::Result<Raw> {
        match self {
            Door::Plain(content_type) => {
                attach::accept(&mut raw, content_type).await?.await;
                Ok(raw)
            }
            Door::Websocket(handshake) => handshake.accept(raw).await,
        }
    }
}

async fn attach_through(
    door: Door,
    app: App,
    container: Arc<Container>,
    query: Query,
    wiring: Wiring,
    hijacker: Hijacker,
) -> Result<Response, ApiError> {
    let replay = if query.flag("logs") { Some(replay(&app, &container, &wiring).await?) } else { None };
    // Registered before the client is answered, so that it misses nothing of a container it starts next.
    let attachment = if query.flag("stream") { Some(app.engine.attach(&container.id).await?) } else { None };
    let then = move |raw: Raw| async move {
        let Ok(mut raw) = door.open(raw).await else { return };
        if let Some(mut lines) = replay {
            while let Some(line) = lines.next().await {
                if raw.socket.write_all(&line).await.is_err() {
                    return;
                }
            }
        }
        let ready = match attachment {
            Some(attachment) => tokio::select! {
                ready = attachment.ready() => ready,
                () = hung_up(raw.socket.watch()) => None,
            },
            None => None,
        };
        let Some(streams) = ready else {
            let _ = raw.socket.shutdown().await;
            return;
        };
        if attach::pump(raw, streams, &wiring).await == End::Detached {
            announce_detach(&app, &container);
        }
    };
    Ok(hijacker.take(then).await)
}

type Lines = std::pin::Pin<Box<dyn futures_util::Stream<Item = Bytes> + Send>>;

/// What was logged so far, framed as the streams will be.
async fn replay(app: &App, container: &Container, wiring: &Wiring) -> Result<Lines, ApiError> {
    let mut query = String::from("tail=all");
    for (name, wanted) in [("stdout", wiring.stdout), ("stderr", wiring.stderr)] {
        query.push_str(&format!("&{name}={}", u8::from(wanted)));
    }
    let wanted = logs::Wanted::parse(&Query::parse(&query))?;
    let entries = app.engine.logs(&container.id, wanted.options).await?;
    let without_frames = wiring.tty || wiring.framing == attach::Framing::Removed;
    Ok(Box::pin(entries.map(move |entry| wanted.entry(&entry, without_frames))))
}

fn announce_detach(app: &App, container: &Container) {
    let mut attributes = container.config.spec.labels.clone();
    attributes.insert("image".to_owned(), container.config.spec.image.clone());
    attributes.insert("name".to_owned(), container.name.clone());
    app.engine.publish(Event {
        kind: "container".to_owned(),
        action: "detach".to_owned(),
        id: container.id.clone(),
        attributes,
        at: Timestamp::now(),
        scope: EventScope::Local,
    });
}
