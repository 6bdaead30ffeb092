//! Plugins: there are none, and none can be installed.

use axum::Json;
use axum::Router;
use axum::extract::Path;
use axum::routing::{any, get};
use rswarm_base::Kind;

use crate::error::ApiError;
use crate::request::Query;
use crate::router::App;
use crate::types;

pub(crate) fn routes() -> Router<App> {
    Router::new().route("/plugins", get(list)).route("/plugins/{*rest}", any(named))
}

async fn list(query: Query) -> Result<Json<Vec<types::Empty>>, ApiError> {
    query.filters(&["capability", "enable"])?;
    Ok(Json(Vec::new()))
}

/// Names hold slashes: what is asked of one is its last part.
async fn named(Path(rest): Path<String>) -> ApiError {
    match rest.strip_suffix("/json") {
        Some(name) => ApiError::new(Kind::NotFound, format!("plugin \"{name}\" not found")),
        None => ApiError::unsupported("installing plugins"),
    }
}
