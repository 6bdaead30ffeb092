//! Figures for Prometheus at `/metrics`, where `--metrics-addr` says: the engine's, and a manager's while this node is one.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use rswarm_base::Scope;
use rswarm_base::metrics::{CONTENT_TYPE, Exposition};
use rswarm_engine::Engine;
use tokio::net::{TcpListener, TcpStream};

use super::DaemonError;
use super::node::Node;

/// How long to wait after an accept that failed, e.g. for want of descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Serves scrapes until the scope ends.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve(
    address: SocketAddr,
    engine: Engine,
    node: Arc<Node>,
    scope: &Scope,
) -> Result<(), DaemonError> {
    let listener = TcpListener::bind(address)
        .await
        .map_err(|error| DaemonError::Listen(format!("tcp://{address}"), error))?;
    let (token, connections) = (scope.token(), scope.clone());
    let source = Source { engine, node };
    scope.spawn(async move {
        let accept = async {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => connections.spawn(answer(stream, source.clone(), connections.clone())),
                    Err(error) => {
                        // Nobody waits for it: Prometheus asks again.
                        tracing::warn!(%error, "a scrape could not be accepted");
                        tokio::time::sleep(ACCEPT_RETRY).await;
                    }
                }
            }
        };
        token.run_until_cancelled(accept).await;
    });
    Ok(())
}

/// Whose figures they are.
#[derive(Clone)]
struct Source {
    engine: Engine,
    node: Arc<Node>,
}

impl Source {
    fn text(&self) -> String {
        let mut out = Exposition::default();
        self.engine.metrics(&mut out);
        let manager = self.node.manager();
        let is_manager = if manager.is_some() { 1.0 } else { 0.0 };
        out.gauge("swarm_node_manager", "Whether this node is a manager or not", is_manager);
        if let Some(manager) = manager {
            manager.metrics(&mut out);
        }
        self.node.calls().write(&mut out);
        out.into_text()
    }
}

async fn answer(stream: TcpStream, source: Source, scope: Scope) {
    let service = service_fn(move |request: Request<Incoming>| {
        let reply = reply(&request, &source);
        async move { Ok::<_, Infallible>(reply) }
    });
    let connection =
        http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        () = scope.cancelled() => {}
        served = connection => if let Err(error) = served {
            tracing::debug!(%error, "a scrape broke off");
        }
    }
}

fn reply(request: &Request<Incoming>, source: &Source) -> Response<Full<Bytes>> {
    let is_scrape =
        request.uri().path() == "/metrics" && matches!(*request.method(), Method::GET | Method::HEAD);
    let (status, kind, body) = if is_scrape {
        (StatusCode::OK, CONTENT_TYPE, source.text())
    } else {
        (StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "404 page not found\n".to_owned())
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}
