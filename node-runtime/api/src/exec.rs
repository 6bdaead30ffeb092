//! Exec: further processes in a running container.

use axum::Json;
use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use rswarm_base::Chain;
use rswarm_engine::exec::{Exec, ExecConfig};
use tokio::io::AsyncWriteExt as _;

use crate::attach::{self, DetachKeys, End, Framing, Wiring};
use crate::connection::{Hijacker, Raw};
use crate::containers::terminal_size;
use crate::error::ApiError;
use crate::request::{JsonBody, Query};
use crate::router::App;
use crate::stream::{Output, content_type, frame};
use crate::translate::create::console_size;
use crate::types;
use crate::version::ApiVersion;

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/containers/{id}/exec", post(create))
        .route("/exec/{id}/start", post(start))
        .route("/exec/{id}/json", get(inspect))
        .route("/exec/{id}/resize", post(resize))
}

async fn create(
    State(app): State<App>,
    Path(id): Path<String>,
    JsonBody(body): JsonBody<types::ExecCreateBody>,
) -> Result<(StatusCode, Json<types::IdBody>), ApiError> {
    if body.cmd.words().is_empty() {
        return Err(ApiError::invalid("No exec command specified"));
    }
    DetachKeys::parse(&body.detach_keys)?;
    let config = ExecConfig {
        command: body.cmd.words().to_vec(),
        env: body.env,
        workdir: body.working_dir,
        user: body.user,
        privileged: body.privileged,
        tty: body.tty,
        attach_stdin: body.attach_stdin,
        attach_stdout: body.attach_stdout,
        attach_stderr: body.attach_stderr,
        console_size: console_size(body.console_size.unwrap_or_default())?,
        detach_keys: body.detach_keys,
    };
    let id = app.engine.exec_create(&id, config).await?;
    Ok((StatusCode::CREATED, Json(types::IdBody { id })))
}

async fn start(
    State(app): State<App>,
    Path(id): Path<String>,
    version: ApiVersion,
    hijacker: Hijacker,
    JsonBody(body): JsonBody<types::ExecStartBody>,
) -> Result<Response, ApiError> {
    let size = console_size(body.console_size.unwrap_or_default())?;
    let config = app.engine.exec_inspect(&id)?.config;
    if body.detach {
        let mut streams = app.engine.exec_start(&id, size).await?;
        // The process must not stand still for want of a reader.
        app.scope.spawn(async move {
            let _ = tokio::io::copy(&mut streams, &mut tokio::io::sink()).await;
        });
        return Ok(StatusCode::OK.into_response());
    }
    let wiring = Wiring {
        tty: config.tty,
        // moby: whether there are frames is the start's word, whatever the process has.
        framing: match (config.tty, body.tty) {
            (true, false) => Framing::Added,
            (false, true) => Framing::Removed,
            (true, true) | (false, false) => Framing::Kept,
        },
        stdin: config.attach_stdin,
        stdout: config.attach_stdout,
        stderr: config.attach_stderr,
        close_stdin: true,
        detach_keys: DetachKeys::parse(&config.detach_keys)?,
    };
    let content_type = content_type(version, body.tty);
    let then = move |mut raw: Raw| async move {
        let Ok(accepted) = attach::accept(&mut raw, content_type).await else { return };
        let (started, ()) = tokio::join!(app.engine.exec_start(&id, size), accepted);
        match started {
            Ok(streams) => {
                if attach::pump(raw, streams, &wiring).await == End::Detached {
                    app.engine.exec_detached(&id);
                }
            }
            Err(error) => {
                let text = Chain(&error).to_string();
                say(&mut raw, body.tty, &text).await;
            }
        }
    };
    Ok(hijacker.take(then).await)
}

/// As moby: the connection is the client's by now, so that a start's failure is a line of output.
async fn say(raw: &mut Raw, tty: bool, text: &str) {
    let line = format!("{text}\r\n");
    let bytes = if tty { Bytes::from(line) } else { frame(Output::Stdout, line.as_bytes()) };
    // A client that is gone needs no explanation.
    let _ = raw.socket.write_all(&bytes).await;
    let _ = raw.socket.shutdown().await;
}

async fn inspect(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<types::ExecInspect>, ApiError> {
    Ok(Json(exec(&app.engine.exec_inspect(&id)?)))
}

fn exec(exec: &Exec) -> types::ExecInspect {
    let mut words = exec.config.command.iter().cloned();
    types::ExecInspect {
        id: exec.id.clone(),
        running: exec.running,
        exit_code: exec.exit_code.map(i64::from),
        process_config: types::ExecProcess {
            tty: exec.config.tty,
            entrypoint: words.next().unwrap_or_default(),
            arguments: words.collect(),
            privileged: exec.config.privileged.then_some(true),
            user: exec.config.user.clone(),
        },
        open_stdin: exec.config.attach_stdin,
        open_stderr: exec.config.attach_stderr,
        open_stdout: exec.config.attach_stdout,
        can_remove: exec.exit_code.is_some(),
        container_id: exec.container_id.clone(),
        detach_keys: exec.config.detach_keys.clone(),
        pid: exec.pid.into(),
    }
}

async fn resize(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Query,
) -> Result<StatusCode, ApiError> {
    let (width, height) = terminal_size(&query)?;
    app.engine.exec_resize(&id, width, height).await?;
    Ok(StatusCode::OK)
}
