//! `GET /containers/{id}/stats`: what a container uses, once or every second.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use rswarm_base::Classify as _;
use rswarm_base::Kind;
use rswarm_engine::Container;
use rswarm_engine::stats::Sample;

use crate::error::ApiError;
use crate::request::Query;
use crate::router::App;
use crate::stream::{json_line, streaming};
use crate::translate::stats::stats;

/// Between two samples, as dockerd takes them.
const INTERVAL: Duration = Duration::from_secs(1);

pub(crate) async fn container(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Query,
) -> Result<Response, ApiError> {
    let is_stream = !query.has("stream") || query.flag("stream");
    let one_shot = query.flag("one-shot");
    if is_stream && one_shot {
        return Err(ApiError::invalid("cannot have stream=true and one-shot=true"));
    }
    let container = app.engine.inspect(&id)?;
    let stop = app.scope.token();
    let series = Series { memory: app.engine.info().memory, app, container, before: None };
    if is_stream {
        let messages = stream::unfold((series, false), |(mut series, waits)| async move {
            if waits {
                tokio::time::sleep(INTERVAL).await;
            }
            // Ends with the container.
            let message = series.next().await?;
            Some((message, (series, true)))
        });
        let chunks = stream::iter([Bytes::new()]).chain(messages);
        return Ok(streaming("application/json", stop, chunks));
    }
    let message = series.once(one_shot).await?;
    Ok(streaming("application/json", stop, stream::iter([message])))
}

/// A container's samples, each with the one before it.
struct Series {
    app: App,
    container: Arc<Container>,
    memory: u64,
    before: Option<Sample>,
}

impl Series {
    /// One answer; of two samples unless `one_shot`, so that there are rates in it.
    async fn once(mut self, one_shot: bool) -> Result<Bytes, ApiError> {
        if !one_shot && self.container.state.status.is_live() {
            self.before = self.sample().await?;
            if self.before.is_some() {
                tokio::time::sleep(INTERVAL).await;
            }
        }
        self.next()
            .await
            .ok_or_else(|| ApiError::new(Kind::NotFound, format!("No such container: {}", self.container.id)))
    }

    /// The next message; `None` when the container was removed.
    async fn next(&mut self) -> Option<Bytes> {
        self.container = self.app.engine.inspect(&self.container.id).ok()?;
        let sample = self.sample().await.ok()?;
        let message = stats(&self.container, sample.as_ref(), self.before.as_ref(), self.memory);
        self.before = sample;
        Some(json_line(&message))
    }

    /// `None` while it does not run.
    async fn sample(&self) -> Result<Option<Sample>, ApiError> {
        match self.app.engine.stats(&self.container.id).await {
            Ok(sample) => Ok(Some(sample)),
            Err(error) if error.kind() == Kind::Conflict => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}
