//! Every route, what all replies have in common, and the one table from error kinds to statuses.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use rswarm_base::{Kind, Scope};
use rswarm_engine::Engine;
use rswarm_proto::tls::MESSAGE_BYTES_MAX;
use rswarm_proto::wire::control_client::ControlClient;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tower::ServiceExt as _;

use crate::call::Stamp;
use crate::error::ApiError;
use crate::node::ClusterNode;
use crate::version;
use crate::{
    archive, call, containers, events, exec, images, networks, nodes, plugins, remote, secrets, services,
    swarm, system, tasks, usage, volumes,
};

/// The Docker release whose behaviour we follow; clients read it out of `Server` and `/version`.
pub(crate) const DOCKER_VERSION: &str = concat!("28.5.2+rswarm.", env!("CARGO_PKG_VERSION"));

/// What handlers work on.
#[derive(Clone)]
pub(crate) struct App {
    pub engine: Engine,
    pub cluster: Arc<dyn ClusterNode>,
    pub scope: Scope,
}

/// A client of the managers' control service.
pub(crate) type Control = ControlClient<InterceptedService<Channel, Stamp>>;

impl App {
    /// The managers' control service, or the 503 that says why there is none here.
    pub async fn control(&self) -> Result<Control, ApiError> {
        let client = ControlClient::with_interceptor(self.cluster.control().await?, Stamp::of_call());
        Ok(client.max_decoding_message_size(MESSAGE_BYTES_MAX))
    }
}

/// The HTTP status of a failure: Docker's mapping of its error classes, and of the managers' gRPC codes.
pub(crate) fn status(kind: Kind) -> StatusCode {
    match kind {
        Kind::InvalidArgument | Kind::FailedPrecondition => StatusCode::BAD_REQUEST,
        Kind::NotFound => StatusCode::NOT_FOUND,
        Kind::Conflict => StatusCode::CONFLICT,
        Kind::NotModified => StatusCode::NOT_MODIFIED,
        Kind::Unauthenticated => StatusCode::UNAUTHORIZED,
        Kind::PermissionDenied => StatusCode::FORBIDDEN,
        Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Kind::NotImplemented => StatusCode::NOT_IMPLEMENTED,
        Kind::DeadlineExceeded | Kind::ResourceExhausted | Kind::Internal => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
    }
}

fn routes(app: App) -> Router {
    Router::new()
        .merge(system::routes())
        .merge(events::routes())
        .merge(containers::routes())
        .merge(archive::routes())
        .merge(usage::routes())
        .merge(exec::routes())
        .merge(images::routes())
        .merge(networks::routes())
        .merge(volumes::routes())
        .merge(swarm::routes())
        .merge(nodes::routes())
        .merge(services::routes())
        .merge(tasks::routes())
        .merge(secrets::routes())
        .merge(plugins::routes())
        .fallback(page_not_found)
        // Docker has no 405.
        .method_not_allowed_fallback(page_not_found)
        .with_state(app)
}

/// The answer to a path that there is not.
pub(crate) async fn page_not_found() -> ApiError {
    ApiError::new(Kind::NotFound, "page not found")
}

/// What stands before the routes: the version in the path goes off, the common headers come on.
#[derive(Clone)]
pub(crate) struct Gate {
    app: App,
    routes: Router,
    /// The only container that is there, by its identifier, for who may see no other.
    only: Option<Arc<str>>,
}

impl Gate {
    pub fn new(app: App) -> Gate {
        Gate { routes: routes(app.clone()), app, only: None }
    }

    /// One behind which there is nothing but one container, and what may be asked of it from elsewhere.
    pub fn of_container(app: App, id: String) -> Gate {
        Gate { only: Some(id.into()), ..Gate::new(app) }
    }

    pub async fn call(&self, request: Request<Body>) -> Response {
        let mut response = if request.method() == Method::OPTIONS {
            StatusCode::OK.into_response()
        } else {
            match admit(request) {
                Ok(request) => {
                    let user = request.extensions().get().copied();
                    call::answer(user, self.route(request)).await
                }
                Err(Refusal::Json(error)) => error.into_response(),
                Err(Refusal::Text(error)) => error.into_text_response(),
            }
        };
        common_headers(response.headers_mut());
        response
    }

    async fn route(&self, request: Request<Body>) -> Response {
        let asked = remote::asked(&request);
        if let Some(only) = &self.only {
            if !asked.is_some_and(|asked| asked.is_about(&self.app, only)) {
                return page_not_found().await.into_response();
            }
        } else if let Some(asked) = asked
            && let Some(task) = remote::elsewhere(&self.app, &asked).await
        {
            let does = asked.does;
            let passed = remote::pass_on(&self.app, &task, does, request).await;
            return passed.unwrap_or_else(IntoResponse::into_response);
        }
        let routed = self.routes.clone().oneshot(request).await;
        routed.unwrap_or_else(|never| match never {})
    }
}

/// A request that no route sees.
enum Refusal {
    /// In the form of all errors.
    Json(ApiError),
    /// To a client so old that it expects text, and would show JSON as it is.
    Text(ApiError),
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Refusal {
        Refusal::Json(error)
    }
}

/// The request as the routes know it: without a version in its path.
fn admit(mut request: Request<Body>) -> Result<Request<Body>, Refusal> {
    let (asked, path) = version::split(request.uri().path());
    if path == "/_ping" {
        // How clients find out what we speak; never refused.
        *request.uri_mut() = Uri::from_static("/_ping");
        return Ok(request);
    }
    let version = version::check(asked).map_err(|error| match asked {
        Some(text) if version::expects_text(text) => Refusal::Text(error),
        _ => Refusal::Json(error),
    })?;
    let path_and_query = match request.uri().query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    *request.uri_mut() =
        path_and_query.parse().map_err(|error| ApiError::invalid(format!("invalid path: {error}")))?;
    request.extensions_mut().insert(version);
    Ok(request)
}

/// The headers of every reply, also of hijacked connections.
pub(crate) fn common_headers(headers: &mut HeaderMap) {
    let max = version::MAX.to_string();
    let text = |text: &str| HeaderValue::from_str(text).expect("plain ASCII");
    headers.insert(header::SERVER, text(&format!("Docker/{DOCKER_VERSION} (linux)")));
    headers.insert("Api-Version", text(&max));
    headers.insert("Ostype", HeaderValue::from_static("linux"));
    headers.insert("Docker-Experimental", HeaderValue::from_static("false"));
}

#[cfg(test)]
mod tests;
