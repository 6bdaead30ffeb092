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
    Router::new()
        .route("/plugins", get(list))
        .route("/plugins/{name}/json", get(inspect))
        .route("/plugins/{*rest}", any(unsupported))
}

async fn list(query: Query) -> Result<Json<Vec<types::Empty>>, ApiError> {
    query.filters(&["capability", "enable"])?;
    Ok(Json(Vec::new()))
}

async fn inspect(Path(name): Path<String>) -> ApiError {
    ApiError::new(Kind::NotFound, format!("plugin \"{name}\" not found"))
}

async fn unsupported() -> ApiError {
    ApiError::unsupported("installing plugins")
}
