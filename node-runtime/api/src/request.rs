//! What handlers take from a request: the query, a JSON body, the API version, the connection itself.

use std::convert::Infallible;
use std::str::FromStr;

use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use bytes::Bytes;
use percent_encoding::percent_decode_str;
use serde::Deserialize as _;
use serde::de::DeserializeOwned;

use crate::error::ApiError;
use crate::filters::Filters;
use crate::json_syntax;
use crate::types;
use crate::version::{self, ApiVersion};

/// Largest JSON body that is read. Specs with embedded seccomp profiles stay far below.
const BODY_MAX: usize = 16 << 20;

/// The query's parameters, in order; a name may come more than once.
#[derive(Debug, Clone, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(text: &str) -> Query {
        let decode =
            |part: &str| percent_decode_str(&part.replace('+', " ")).decode_utf8_lossy().into_owned();
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        Query(
            pairs
                .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
                .map(|(name, value)| (decode(name), decode(value)))
                .collect(),
        )
    }

    /// The first value; empty when there is none.
    pub fn text(&self, name: &str) -> &str {
        self.0.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(key, _)| key == name)
    }

    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Docker's rule: empty, `0`, `no`, `false` and `none` are false, everything else is true.
    pub fn flag(&self, name: &str) -> bool {
        !matches!(self.text(name).trim().to_ascii_lowercase().as_str(), "" | "0" | "no" | "false" | "none")
    }

    /// A number; `None` when absent or empty.
    pub fn number<T: FromStr>(&self, name: &str) -> Result<Option<T>, ApiError> {
        match self.text(name) {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| {
                ApiError::invalid(format!("invalid value for '{name}': \"{text}\" is not a number"))
            }),
        }
    }

    pub fn filters(&self, known: &[&str]) -> Result<Filters, ApiError> {
        Filters::parse(self.text("filters"), known)
    }
}

impl<S: Sync> FromRequestParts<S> for Query {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Query, Infallible> {
        Ok(Query::parse(parts.uri.query().unwrap_or_default()))
    }
}

impl<S: Sync> FromRequestParts<S> for ApiVersion {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<ApiVersion, Infallible> {
        Ok(parts.extensions.get().copied().unwrap_or(version::MAX))
    }
}

/// A JSON body by Docker's rules; an empty one is the type's default.
pub(crate) struct JsonBody<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Default> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<JsonBody<T>, ApiError> {
        let (parts, body) = request.into_parts();
        let bytes = axum::body::to_bytes(body, BODY_MAX)
            .await
            .map_err(|error| ApiError::invalid(format!("request body could not be read: {error}")))?;
        read_json(&parts.headers, &bytes).map(|value| JsonBody(value.unwrap_or_default()))
    }
}

/// `None` for an empty body.
fn read_json<T: DeserializeOwned>(headers: &HeaderMap, bytes: &Bytes) -> Result<Option<T>, ApiError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    check_content_type(headers)?;
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let invalid = |complaint| ApiError::invalid(format!("invalid JSON: {complaint}"));
    let value = serde_json::Value::deserialize(&mut reader).map_err(|error| {
        let complaint = json_syntax::complaint(bytes).unwrap_or_else(|| error.to_string());
        invalid(complaint)
    })?;
    reader.end().map_err(|_| ApiError::invalid("unexpected content after JSON"))?;
    types::from_value(value).map(Some).map_err(|error| invalid(error.to_string()))
}

fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let content_type =
        headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    if media_type.is_empty() {
        return Err(ApiError::invalid(format!(
            "malformed Content-Type header ({content_type}): mime: no media type"
        )));
    }
    if !media_type.eq_ignore_ascii_case("application/json") {
        return Err(ApiError::invalid(format!(
            "unsupported Content-Type header ({content_type}): must be 'application/json'"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ExecStartBody;

    fn read(content_type: &str, body: &'static str) -> Result<Option<ExecStartBody>, String> {
        let mut headers = HeaderMap::new();
        if !content_type.is_empty() {
            headers.insert(header::CONTENT_TYPE, content_type.parse().expect("header"));
        }
        read_json(&headers, &Bytes::from_static(body.as_bytes())).map_err(|error| error.message)
    }

    #[test]
    fn flags_follow_dockers_rule() {
        for (query, expected) in
            [("a=1", true), ("a=True", true), ("a", false), ("a=", false), ("a=0", false)]
        {
            assert_eq!(Query::parse(query).flag("a"), expected, "{query}");
        }
        for value in ["no", "false", "none", "NONE"] {
            assert!(!Query::parse(&format!("a={value}")).flag("a"), "{value}");
        }
    }

    #[test]
    fn a_query_is_decoded_and_may_repeat() {
        let query = Query::parse("names=a%2Fb&names=c+d&t=-1");
        assert_eq!(query.all("names").collect::<Vec<_>>(), ["a/b", "c d"]);
        assert_eq!(query.number::<i64>("t"), Ok(Some(-1)));
        assert_eq!(query.number::<i64>("u"), Ok(None));
        assert!(Query::parse("t=x").number::<i64>("t").is_err());
    }

    #[test]
    fn json_bodies_follow_dockers_rules() {
        let json = "application/json; charset=utf-8";
        assert_eq!(read("", ""), Ok(None));
        assert!(
            read(json, r#"{"detach":true,"Unknown":1}"#).is_ok_and(|body| body.is_some_and(|b| b.detach))
        );
        assert!(read(json, r#"{"Detach":null}"#).is_ok_and(|body| body == Some(ExecStartBody::default())));
        assert_eq!(read(json, "{} x"), Err("unexpected content after JSON".to_owned()));
        assert_eq!(read(json, "{"), Err("invalid JSON: unexpected EOF".to_owned()));
        assert_eq!(
            read(json, "[1}"),
            Err("invalid JSON: invalid character '}' after array element".to_owned())
        );
        assert!(
            read("text/plain", "{}").is_err_and(|text| text.starts_with("unsupported Content-Type header"))
        );
        assert!(read("", "{}").is_err_and(|text| text.starts_with("malformed Content-Type header")));
    }
}
