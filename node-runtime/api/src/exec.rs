//! Exec: further processes in a running container.

use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use rswarm_engine::exec::{Exec, ExecConfig};

use crate::attach::{self, DetachKeys, Wiring};
use crate::connection::{Hijacker, Raw};
use crate::containers::terminal_size;
use crate::error::ApiError;
use crate::request::{JsonBody, Query};
use crate::router::App;
use crate::stream::content_type;
use crate::translate::create::console_size;
use crate::types;
use crate::version::ApiVersion;

/// How long an exec may outlive its output before the client is told of the end without an exit code.
const EXIT_PATIENCE: Duration = Duration::from_secs(1);
/// How often it is looked at meanwhile; the exit code is known a moment after the output's end.
const EXIT_POLL: Duration = Duration::from_millis(2);

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
    if DetachKeys::parse(&body.detach_keys)? != DetachKeys::default() {
        return Err(ApiError::unsupported("other detach keys than ctrl-p,ctrl-q for exec (DetachKeys)"));
    }
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
    // Errors of the start are answers; once the connection is taken over there is none to give.
    let mut streams = app.engine.exec_start(&id, size).await?;
    if body.detach {
        // The process must not stand still for want of a reader.
        app.scope.spawn(async move {
            let _ = tokio::io::copy(&mut streams, &mut tokio::io::sink()).await;
        });
        return Ok(StatusCode::OK.into_response());
    }
    let wiring = Wiring {
        tty: config.tty,
        stdin: config.attach_stdin,
        stdout: config.attach_stdout,
        stderr: config.attach_stderr,
        close_stdin: true,
        detach_keys: DetachKeys::default(),
    };
    let content_type = content_type(version, config.tty);
    let then = move |mut raw: Raw| async move {
        if attach::accept(&mut raw, content_type).await.is_ok() {
            attach::pump(raw, streams, &wiring, exit_known(&app, &id)).await;
        }
    };
    Ok(hijacker.take(then).await)
}

/// Resolves when the exit code of an exec whose output ended can be asked for. One that closed its output and
/// goes on is not waited for long.
async fn exit_known(app: &App, id: &str) {
    let deadline = tokio::time::Instant::now() + EXIT_PATIENCE;
    while app.engine.exec_inspect(id).is_ok_and(|exec| exec.running) && tokio::time::Instant::now() < deadline
    {
        tokio::time::sleep(EXIT_POLL).await;
    }
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
        detach_keys: String::new(),
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
