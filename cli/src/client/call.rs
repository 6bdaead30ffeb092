//! One request, put together step by step.

use std::collections::BTreeMap;
use std::fmt;
use std::io;

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::Frame;
use hyper::header::{self, HeaderName};
use hyper::{Method, Request};
use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;

use super::Host;

/// What may not stand in a path as it is; `/` and `:` may, image names have them.
const PATH: &AsciiSet =
    &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'<').add(b'>').add(b'?').add(b'`').add(b'%');
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// A request to the daemon.
pub struct Call {
    method: Method,
    path: String,
    query: Vec<(String, String)>,
    headers: Vec<(HeaderName, String)>,
    body: Body,
}

impl Call {
    /// Asks for what is at `path`.
    pub fn get(path: impl AsRef<str>) -> Call {
        Call::new(Method::GET, path.as_ref())
    }

    /// Asks for a change.
    pub fn post(path: impl AsRef<str>) -> Call {
        Call::new(Method::POST, path.as_ref())
    }

    /// Asks for what there is at `path`, without it.
    pub fn head(path: impl AsRef<str>) -> Call {
        Call::new(Method::HEAD, path.as_ref())
    }

    /// Puts something there.
    pub fn put(path: impl AsRef<str>) -> Call {
        Call::new(Method::PUT, path.as_ref())
    }

    /// Asks for removal.
    pub fn delete(path: impl AsRef<str>) -> Call {
        Call::new(Method::DELETE, path.as_ref())
    }

    fn new(method: Method, path: &str) -> Call {
        let path = utf8_percent_encode(path, PATH).to_string();
        let body = Empty::new().map_err(|never| match never {}).boxed_unsync();
        Call { method, path, query: Vec::new(), headers: Vec::new(), body }
    }

    /// Adds `name=value` to the query.
    #[must_use]
    pub fn query(mut self, name: &str, value: impl ToString) -> Call {
        self.query.push((name.to_owned(), value.to_string()));
        self
    }

    /// Adds `name=1` when the flag is set.
    #[must_use]
    pub fn flag(self, name: &str, set: bool) -> Call {
        if set { self.query(name, 1) } else { self }
    }

    /// Adds `name=value` when there is a value.
    #[must_use]
    pub fn maybe(self, name: &str, value: Option<impl ToString>) -> Call {
        match value {
            Some(value) => self.query(name, value),
            None => self,
        }
    }

    /// Adds the filters, when there are any.
    #[must_use]
    pub fn filters(self, filters: &Filters) -> Call {
        if filters.is_empty() { self } else { self.query("filters", filters) }
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: impl ToString) -> Call {
        self.headers.push((name, value.to_string()));
        self
    }

    /// Lets the daemon use a registry as this person: a header from `credentials`.
    #[must_use]
    pub fn registry_auth(self, auth: Option<String>) -> Call {
        match auth {
            Some(auth) => self.header(HeaderName::from_static("x-registry-auth"), auth),
            None => self,
        }
    }

    /// Sends a value as JSON.
    #[must_use]
    pub fn body(self, value: &impl Serialize) -> Call {
        let json = serde_json::to_vec(value).expect("our own types always serialise");
        let mut call = self.header(header::CONTENT_TYPE, "application/json");
        call.body = Full::new(Bytes::from(json)).map_err(|never| match never {}).boxed_unsync();
        call
    }

    /// Sends a stream of bytes, as image archives are sent.
    #[must_use]
    pub fn stream(
        self,
        content_type: &str,
        bytes: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    ) -> Call {
        let mut call = self.header(header::CONTENT_TYPE, content_type);
        call.body = StreamBody::new(bytes.map_ok(Frame::data)).boxed_unsync();
        call
    }

    fn target(&self) -> String {
        let mut target = self.path.clone();
        for (n, (name, value)) in self.query.iter().enumerate() {
            target.push(if n == 0 { '?' } else { '&' });
            target.extend(utf8_percent_encode(name, QUERY));
            target.push('=');
            target.extend(utf8_percent_encode(value, QUERY));
        }
        target
    }

    pub(super) fn into_request(self, host: &Host) -> hyper::http::Result<Request<Body>> {
        let mut request = Request::builder()
            .method(&self.method)
            .uri(self.target())
            .header(header::HOST, host.authority())
            .header(header::USER_AGENT, concat!("rswarm/", env!("CARGO_PKG_VERSION")));
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        request.body(self.body)
    }
}

/// Method and path, for messages.
impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

/// `--filter key=value`, repeated: values of one key are alternatives.
#[derive(Debug, Clone, Default)]
pub struct Filters(BTreeMap<String, BTreeMap<String, bool>>);

impl Filters {
    /// Reads what was typed.
    ///
    /// # Errors
    /// When one lacks its `=`.
    pub fn parse(typed: &[String]) -> Result<Filters, String> {
        let mut filters = Filters::default();
        for filter in typed {
            let (key, value) = filter
                .split_once('=')
                .ok_or_else(|| format!("invalid filter `{filter}`: write it as `key=value`"))?;
            filters = filters.with(key.trim(), value.trim());
        }
        Ok(filters)
    }

    /// Adds one.
    #[must_use]
    pub fn with(mut self, key: &str, value: &str) -> Filters {
        self.0.entry(key.to_lowercase()).or_default().insert(value.to_owned(), true);
        self
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The JSON that goes into the query.
impl fmt::Display for Filters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(&self.0).map_err(|_| fmt::Error)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_encoded_and_keeps_image_names_readable() {
        let filters = Filters::parse(&["name=a b".into(), "name=c".into()]).expect("filters");
        let call = Call::get("/images/docker.io/library/web:1/json").flag("all", true).flag("x", false);
        assert_eq!(
            call.filters(&filters).target(),
            "/images/docker.io/library/web:1/json?all=1&filters=%7B%22name%22%3A%7B%22a%20b%22%3Atrue%2C%22c%22%3Atrue%7D%7D"
        );
        assert!(Filters::parse(&["name".into()]).is_err());
    }
}
