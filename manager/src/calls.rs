//! What every gRPC call goes through: its caller's certificate is looked at before its message is read, and it is counted
//! by how it ended, refusals by their reason.
//!
//! Without the first, anybody who can connect could make a manager hold the largest message there may be. What a
//! certificate is good for is decided again, and finer, by whoever answers (`guard`).

use std::convert::Infallible;
use std::task::{Context, Poll};

use http_body_util::BodyExt as _;
use rswarm_base::metrics::{Counters, Exposition};
use rswarm_proto::status::code_name;
use rswarm_proto::tls::{Peer, require, require_expired_too};
use rswarm_proto::wire::NodeRole;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tonic::codegen::{BoxFuture, Service};
use tonic::service::Routes;
use tonic::{Code, Status};
use tower::layer::layer_fn;

/// What is counted of the calls to a node's gRPC port. Cloning gives another handle on the same counts.
#[derive(Debug, Clone)]
pub struct Calls {
    handled: Counters<3>,
    refused: Counters<1>,
}

impl Default for Calls {
    fn default() -> Calls {
        let labels = ["grpc_service", "grpc_method", "grpc_code"];
        Calls { handled: Counters::new(labels), refused: Counters::new(["reason"]) }
    }
}

impl Calls {
    /// The same services, with every call counted, and its caller looked at before its message.
    #[must_use]
    pub fn counting(&self, services: Routes) -> Routes {
        let calls = self.clone();
        let layer = layer_fn(move |inner| Counted { inner, calls: calls.clone() });
        Routes::from(services.into_axum_router().layer(layer))
    }

    /// Writes the counts; the names of the first are those of gRPC's usual interceptors, which dockerd has as well.
    pub fn write(&self, out: &mut Exposition) {
        self.handled.write(
            "grpc_server_handled_total",
            "Total number of RPCs completed on the server, regardless of success or failure.",
            out,
        );
        self.refused.write(
            "rswarm_rpc_refused_total",
            "RPCs that were refused: from whom they came, or because of what they were",
            out,
        );
    }

    fn note(&self, path: &str, status: &Status) {
        let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or((path, ""));
        // Names that nobody serves are the caller's own: they must not become labels.
        let (service, method) = match status.code() {
            Code::Unimplemented => ("unknown", "unknown"),
            _ => (service, method),
        };
        self.handled.one([service, method, code_name(status.code())]);
        if let Some(reason) = refusal(status) {
            tracing::debug!(path, reason, error = status.message(), "a call was refused");
            self.refused.one([reason]);
        }
    }
}

/// Whether a caller may make such a call at all.
fn admit(path: &str, caller: Option<&Peer>) -> Result<(), Status> {
    let mut call = tonic::Request::new(());
    call.extensions_mut().insert(caller.cloned().unwrap_or_default());
    let service = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    match (service, path) {
        (_, "/rswarm.v1.Ca/Root" | "/rswarm.v1.Ca/Issue") => Ok(()),
        (_, "/rswarm.v1.Ca/Renew") => require_expired_too(&call, NodeRole::Worker).map(drop),
        ("rswarm.v1.Dispatcher" | "rswarm.v1.Attachments", _) => require(&call, NodeRole::Worker).map(drop),
        // What is not known here is not for everybody.
        _ => require(&call, NodeRole::Manager).map(drop),
    }
}

/// Why a call was refused, when it was: words for who looks for attacks, not for users' mistakes.
fn refusal(status: &Status) -> Option<&'static str> {
    let message = status.message();
    match status.code() {
        Code::Unauthenticated => Some("unauthenticated"),
        Code::PermissionDenied => Some("denied"),
        Code::Unimplemented => Some("unknown"),
        // tonic refuses by length before it reads.
        Code::OutOfRange | Code::ResourceExhausted => Some("oversized"),
        Code::Internal if message.contains("decode") => Some("malformed"),
        // A change of a version that is not the latest any more, as when a call is made again.
        Code::FailedPrecondition if message.contains("update out of sequence") => Some("replayed"),
        _ => None,
    }
}

/// A service whose calls are counted.
#[derive(Clone)]
struct Counted<S> {
    inner: S,
    calls: Calls,
}

impl<S, Q, B> Service<Request<Q>> for Counted<S>
where
    S: Service<Request<Q>, Response = Response<B>, Error = Infallible>,
    S::Future: Send + 'static,
    B: tonic::codegen::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<tonic::codegen::StdError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Response<Body>, Infallible>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let (calls, path) = (self.calls.clone(), request.uri().path().to_owned());
        if let Err(status) = admit(&path, request.extensions().get()) {
            calls.note(&path, &status);
            return Box::pin(async move { Ok(status.into_http()) });
        }
        let answer = self.inner.call(request);
        Box::pin(async move {
            let response = answer.await?;
            // A call that failed at once ends with its head; any other with its trailers.
            if let Some(status) = ended(response.headers()) {
                calls.note(&path, &status);
                return Ok(response.map(Body::new));
            }
            Ok(response.map(|body| {
                Body::new(body.map_frame(move |frame| {
                    if let Some(status) = frame.trailers_ref().and_then(ended) {
                        calls.note(&path, &status);
                    }
                    frame
                }))
            }))
        })
    }
}

fn ended(headers: &HeaderMap) -> Option<Status> {
    Status::from_header_map(headers)
}
