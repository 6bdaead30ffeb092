//! One client connection: hyper's HTTP/1 state machine driven by hand, so that a handler can take the socket
//! away from it, as Go's `Hijack` does, with or without an `Upgrade` header.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{Request, header};
use axum::response::Response;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use rswarm_base::Scope;
use rswarm_base::audit::User;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{mpsc, oneshot};

use crate::router::Gate;
use crate::watch::{Watch, hung_up};

/// What Go's server reads of a body that nobody wanted, before it gives the connection up.
const DRAIN_MAX: usize = 256 << 10;
/// How long that may take.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long requests may go on when the daemon stops.
const FINISH_TIMEOUT: Duration = Duration::from_secs(2);

/// A client's socket of any kind.
pub(crate) trait Socket: AsyncRead + AsyncWrite + Send + Unpin + 'static {
    /// To see when the other side is gone; `None` where that cannot be seen.
    fn watch(&self) -> Option<Watch>;

    /// Who is at the other side; `None` where that cannot be seen.
    fn user(&self) -> Option<User>;
}

impl Socket for Box<dyn Socket> {
    fn watch(&self) -> Option<Watch> {
        (**self).watch()
    }

    fn user(&self) -> Option<User> {
        (**self).user()
    }
}

#[cfg(test)]
impl Socket for tokio::io::DuplexStream {
    fn watch(&self) -> Option<Watch> {
        None
    }

    fn user(&self) -> Option<User> {
        Some(User::Local { uid: 1000, gid: 1000, pid: 42 })
    }
}

/// A connection that was taken over.
pub(crate) struct Raw {
    /// What the client sent behind the request, already read.
    pub early: Bytes,
    /// The socket.
    pub socket: Box<dyn Socket>,
    /// Whether the client asked for an upgrade, which is then answered by 101.
    pub upgrade: bool,
}

/// The right to take the connection over; goes with each request.
#[derive(Clone)]
pub(crate) struct Hijacker {
    ask: mpsc::Sender<oneshot::Sender<(Bytes, Box<dyn Socket>)>>,
    upgrade: bool,
    scope: Scope,
}

impl Hijacker {
    /// Hands the connection to `then`, in a task of its own. Never returns: hyper drops the caller with its
    /// own state when it lets go of the socket. The request's body must have been read.
    pub async fn take<F, T>(self, then: F) -> Response
    where
        F: FnOnce(Raw) -> T + Send + 'static,
        T: Future<Output = ()> + Send + 'static,
    {
        let scope = self.scope.clone();
        let stop = scope.token();
        scope.spawn(async move {
            let (give, taken) = oneshot::channel();
            if self.ask.send(give).await.is_err() {
                return;
            }
            let Ok((early, socket)) = taken.await else { return };
            let _ = stop.run_until_cancelled(then(Raw { early, socket, upgrade: self.upgrade })).await;
        });
        std::future::pending().await
    }
}

impl<S: Sync> FromRequestParts<S> for Hijacker {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Hijacker, Infallible> {
        let mut hijacker: Hijacker =
            parts.extensions.get().cloned().expect("every connection puts a hijacker into its requests");
        hijacker.upgrade = parts.headers.contains_key(header::UPGRADE);
        Ok(hijacker)
    }
}

/// Serves one connection to its end.
pub(crate) async fn serve<T: Socket>(socket: T, gate: Gate, scope: Scope) {
    let (ask, mut asked) = mpsc::channel(1);
    let hijacker = Hijacker { ask, upgrade: false, scope: scope.clone() };
    let (drains, user) = (scope.clone(), socket.user());
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(|body| Body::new(Drain { body: Some(body), scope: drains.clone() }));
        request.extensions_mut().insert(hijacker.clone());
        if let Some(user) = user {
            request.extensions_mut().insert(user);
        }
        let gate = gate.clone();
        Box::pin(async move { Ok::<_, Infallible>(gate.call(request).await) })
    });
    let watch = socket.watch();
    let mut connection = http1::Builder::new()
        .half_close(true)
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(socket), service);
    let outcome = tokio::select! {
        ended = poll_fn(|cx| connection.poll_without_shutdown(cx)) => Outcome::Ended(ended),
        Some(give) = asked.recv() => Outcome::Hijacked(give),
        // hyper takes the end of a client's requests for no more than that: one that left altogether, and waits for
        // nothing any more, would hold its connection until the daemon has something to say.
        () = hung_up(watch) => Outcome::Left,
        () = scope.cancelled() => Outcome::Stopped,
    };
    match outcome {
        Outcome::Ended(Ok(())) => {
            let _ = connection.into_parts().io.into_inner().shutdown().await;
        }
        Outcome::Ended(Err(error)) => tracing::debug!(%error, "a client connection broke"),
        Outcome::Left => {}
        Outcome::Hijacked(give) => {
            let parts = connection.into_parts();
            let _ = give.send((parts.read_buf, Box::new(parts.io.into_inner())));
        }
        Outcome::Stopped => {
            Pin::new(&mut connection).graceful_shutdown();
            let _ = tokio::time::timeout(FINISH_TIMEOUT, connection).await;
        }
    }
}

enum Outcome {
    Ended(hyper::Result<()>),
    Hijacked(oneshot::Sender<(Bytes, Box<dyn Socket>)>),
    Left,
    Stopped,
}

/// A body that is read to its end, within limits, when it is dropped unread. Without it hyper closes a
/// connection whose handler answers before it reads, and Docker's client then reports `broken pipe` instead of
/// the answer.
struct Drain {
    body: Option<Incoming>,
    scope: Scope,
}

impl hyper::body::Body for Drain {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.body.as_mut().map_or(Poll::Ready(None), |body| Pin::new(body).poll_frame(cx))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(hyper::body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(hyper::body::Body::size_hint).unwrap_or_default()
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        let Some(mut body) = self.body.take() else { return };
        if hyper::body::Body::is_end_stream(&body) {
            return;
        }
        self.scope.spawn(async move {
            let drain = async {
                let mut left = DRAIN_MAX;
                while let Some(Ok(frame)) = body.frame().await {
                    let Some(rest) = left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) else { break };
                    left = rest;
                }
            };
            let _ = tokio::time::timeout(DRAIN_TIMEOUT, drain).await;
        });
    }
}
