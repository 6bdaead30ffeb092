//! A request that failed: what the client gets to read, and of which kind it is.

use axum::Json;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use rswarm_base::{Chain, Classify, Kind};
use rswarm_proto::status::NO_LEADER;

use crate::router;
use crate::types::ErrorBody;

/// The error of every handler. Any classified error becomes one, with its whole chain as the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub kind: Kind,
    pub message: String,
    pub hint: Option<String>,
}

impl ApiError {
    pub fn new(kind: Kind, message: impl Into<String>) -> ApiError {
        ApiError { kind, message: message.into(), hint: None }
    }

    /// The request itself is wrong.
    pub fn invalid(message: impl Into<String>) -> ApiError {
        ApiError::new(Kind::InvalidArgument, message)
    }

    /// Known to Docker, not supported here.
    pub fn unsupported(what: impl std::fmt::Display) -> ApiError {
        ApiError::new(Kind::NotImplemented, format!("{what} is not supported"))
    }

    pub fn hint(mut self, hint: impl Into<String>) -> ApiError {
        self.hint = Some(hint.into());
        self
    }

    /// A manager's answer: its text and hint, under the kind that its code stands for.
    pub fn from_status(status: &tonic::Status) -> ApiError {
        let kind = match status.message() {
            // Docker's clients know it as a 500.
            NO_LEADER => Kind::Internal,
            _ => rswarm_proto::status::kind(status.code()),
        };
        ApiError {
            kind,
            message: status.message().to_owned(),
            hint: status.metadata().get("hint").and_then(|hint| hint.to_str().ok()).map(str::to_owned),
        }
    }
}

impl ApiError {
    /// As Go's `http.Error` writes it.
    pub fn into_text_response(self) -> Response {
        let headers = [
            (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        ];
        (router::status(self.kind), headers, format!("{}\n", self.message)).into_response()
    }
}

impl<E: Classify> From<E> for ApiError {
    fn from(error: E) -> ApiError {
        ApiError { kind: error.kind(), message: Chain(&error).to_string(), hint: error.hint() }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = router::status(self.kind);
        if self.kind == Kind::NotModified {
            return status.into_response();
        }
        if self.kind == Kind::Internal {
            tracing::error!(error = self.message, "request failed");
        }
        let body = ErrorBody { message: self.message, hint: self.hint };
        (status, Json(body)).into_response()
    }
}
