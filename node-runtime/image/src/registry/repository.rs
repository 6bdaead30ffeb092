//! One repository on one endpoint: authorised requests, and answers with limits.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;

use super::challenge::{self, Challenge};
use super::{Endpoint, Registries};
use crate::auth::RegistryAuth;
use crate::digest::Digest;
use crate::manifest::ACCEPTED;
use crate::reference::Reference;
use crate::store::DOCUMENT_BYTES_MAX;

/// An error's or a token's JSON is small.
const ANSWER_BYTES_MAX: u64 = 256 << 10;
/// A repository of more pages of tags is a loop.
const TAG_PAGES_MAX: usize = 1000;
/// How long an insecure registry has to show whether it speaks TLS.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// What went wrong between us and a registry.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegistryError {
    #[error("certificates of registry `{host}` cannot be read")]
    Certificates {
        host: String,
        #[source]
        source: io::Error,
    },
    #[error("registry client cannot be made")]
    Client {
        #[source]
        source: reqwest::Error,
    },
    #[error("Get \"{url}\"")]
    Request {
        url: Url,
        #[source]
        source: reqwest::Error,
    },
    /// The registry said no, in its own words.
    #[error("{code}: {message}")]
    Refused { status: StatusCode, code: String, message: String },
    #[error("received unexpected HTTP status: {status} from `{url}`")]
    Status { status: StatusCode, url: Url },
    #[error("no basic auth credentials")]
    NoCredentials,
    #[error("registry asks for a token from `{0}`, which is not a safe place to send a password to")]
    Realm(String),
    #[error("answer from `{0}` is larger than it may be")]
    TooLarge(Url),
    #[error("answer from `{url}` cannot be understood")]
    Answer {
        url: Url,
        #[source]
        source: serde_json::Error,
    },
    #[error("content of `{expected}` does not match: the registry sent {found}")]
    Mismatch { expected: Digest, found: Digest },
    #[error("unexpected EOF after {got} of {wanted} bytes of {digest}")]
    Short { digest: Digest, got: u64, wanted: u64 },
    #[error("blob could not be read")]
    Blob(#[source] io::Error),
    #[error("`{0}` is no place to ask a registry")]
    Path(String),
}

impl RegistryError {
    /// Whether trying again can help.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            // Nobody there: the next place is asked instead.
            Self::Request { source, .. } => !source.is_connect() && !source.is_builder(),
            Self::Status { status, .. } | Self::Refused { status, .. } => {
                status.is_server_error()
                    || matches!(*status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
            }
            Self::Short { .. } => true,
            _ => false,
        }
    }

    /// The registry's answer, as a status.
    pub(crate) fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Status { status, .. } | Self::Refused { status, .. } => Some(*status),
            Self::NoCredentials => Some(StatusCode::UNAUTHORIZED),
            _ => None,
        }
    }
}

/// A manifest as the registry sent it.
pub(crate) struct RawManifest {
    pub(crate) bytes: Vec<u8>,
    pub(crate) content_type: String,
    pub(crate) digest: Digest,
}

/// One repository on one endpoint.
pub(crate) struct Repository {
    client: Client,
    base: Url,
    path: String,
    is_insecure: bool,
    auth: Option<RegistryAuth>,
    /// The `Authorization` that worked last.
    authorization: Mutex<Option<HeaderValue>>,
}

#[derive(Deserialize)]
struct ErrorBody {
    #[serde(default)]
    errors: Vec<ErrorEntry>,
}

#[derive(Deserialize)]
struct ErrorEntry {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

#[derive(Deserialize)]
struct TagsBody {
    #[serde(default)]
    tags: Option<Vec<String>>,
}

/// The address of the next page: `</v2/…?last=b>; rel="next"`.
fn next_page(link: &str) -> Option<String> {
    let (address, rest) = link.strip_prefix('<')?.split_once('>')?;
    rest.contains("next").then(|| address.to_owned())
}

#[derive(Deserialize)]
struct TokenBody {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
}

impl Repository {
    /// Finds out how the endpoint is to be spoken to. An insecure one may show any certificate, or speak
    /// plain HTTP where TLS was expected.
    pub(crate) async fn open(
        registries: &Registries,
        endpoint: &Endpoint,
        reference: &Reference,
        auth: Option<RegistryAuth>,
    ) -> Result<Repository, RegistryError> {
        let client = registries.client(endpoint)?;
        let auth = auth.filter(|_| !endpoint.is_mirror);
        let mut base = endpoint.url.clone();
        if endpoint.is_insecure && base.scheme() == "https" {
            let probe = join(&base, "v2/")?;
            if client.get(probe).timeout(PROBE_TIMEOUT).send().await.is_err() {
                let _ = base.set_scheme("http");
            }
        }
        let registry_token =
            auth.as_ref().map(|auth| auth.registrytoken.as_str()).filter(|token| !token.is_empty());
        let authorization = Mutex::new(registry_token.and_then(bearer));
        Ok(Repository {
            client,
            base,
            path: reference.path().to_owned(),
            is_insecure: endpoint.is_insecure,
            auth,
            authorization,
        })
    }

    /// A manifest or an index, by tag or by digest; the latter is verified.
    pub(crate) async fn manifest(
        &self,
        tag: &str,
        digest: Option<&Digest>,
    ) -> Result<RawManifest, RegistryError> {
        let name = digest.map_or(tag, Digest::as_str);
        let url = join(&self.base, &format!("v2/{}/manifests/{name}", self.path))?;
        let response = self.get(&url, &ACCEPTED.join(", "), None).await?;
        let content_type = header_text(response.headers(), header::CONTENT_TYPE);
        let bytes = read_all(response, DOCUMENT_BYTES_MAX).await?;
        let found = Digest::of(&bytes);
        match digest {
            Some(expected) if *expected != found => {
                Err(RegistryError::Mismatch { expected: expected.clone(), found })
            }
            _ => Ok(RawManifest { bytes, content_type, digest: found }),
        }
    }

    /// All tags, over as many pages as there are.
    // spec: oci distribution-spec#listing-tags
    pub(crate) async fn tags(&self) -> Result<Vec<String>, RegistryError> {
        let mut tags = Vec::new();
        let mut url = join(&self.base, &format!("v2/{}/tags/list", self.path))?;
        for _ in 0..TAG_PAGES_MAX {
            let response = self.get(&url, "application/json", None).await?;
            let next = next_page(&header_text(response.headers(), header::LINK));
            let bytes = read_all(response, DOCUMENT_BYTES_MAX).await?;
            let page: TagsBody = serde_json::from_slice(&bytes)
                .map_err(|source| RegistryError::Answer { url: url.clone(), source })?;
            tags.extend(page.tags.unwrap_or_default());
            let Some(next) = next else { break };
            let further = url.join(&next).map_err(|_| RegistryError::Path(next.clone()))?;
            // Credentials go nowhere else.
            if further.origin() != url.origin() {
                return Err(RegistryError::Path(next));
            }
            url = further;
        }
        Ok(tags)
    }

    /// A small blob, verified.
    pub(crate) async fn small_blob(&self, digest: &Digest) -> Result<Vec<u8>, RegistryError> {
        let response = self.get(&self.blob_url(digest)?, "*/*", None).await?;
        let bytes = read_all(response, DOCUMENT_BYTES_MAX).await?;
        let found = Digest::of(&bytes);
        if found != *digest {
            return Err(RegistryError::Mismatch { expected: digest.clone(), found });
        }
        Ok(bytes)
    }

    /// The bytes of a blob from `offset` on; not verified.
    pub(crate) async fn blob(
        &self,
        digest: &Digest,
        offset: u64,
    ) -> Result<impl Stream<Item = Result<Bytes, RegistryError>> + Unpin + use<>, RegistryError> {
        let url = self.blob_url(digest)?;
        let response = self.get(&url, "*/*", (offset > 0).then_some(offset)).await?;
        // A registry without ranges sends everything again.
        let mut skip = if response.status() == StatusCode::PARTIAL_CONTENT { 0 } else { offset };
        let stream = response.bytes_stream().map(move |chunk| {
            let mut chunk = chunk.map_err(|source| RegistryError::Request {
                url: url.clone(),
                source: source.without_url(),
            })?;
            let skipped = skip.min(chunk.len() as u64);
            skip -= skipped;
            Ok(chunk.split_off(usize::try_from(skipped).unwrap_or(chunk.len())))
        });
        Ok(stream)
    }

    fn blob_url(&self, digest: &Digest) -> Result<Url, RegistryError> {
        join(&self.base, &format!("v2/{}/blobs/{digest}", self.path))
    }

    /// Whether the registry lets us in.
    pub(crate) async fn ping(&self) -> Result<(), RegistryError> {
        let url = join(&self.base, "v2/")?;
        self.get(&url, "*/*", None).await.map(drop)
    }

    /// Whether the repository has a blob.
    pub(crate) async fn has_blob(&self, digest: &Digest) -> Result<bool, RegistryError> {
        let url = self.blob_url(digest)?;
        match self.authorized(&url, || Ok(self.client.head(url.clone()))).await {
            Ok(_) => Ok(true),
            Err(error) if error.status() == Some(StatusCode::NOT_FOUND) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Sends a blob in one piece. `body` gives its bytes from the beginning, each time that it is asked.
    // spec: oci distribution-spec#post-then-put
    pub(crate) async fn put_blob(
        &self,
        digest: &Digest,
        size: u64,
        body: impl Fn() -> io::Result<reqwest::Body>,
    ) -> Result<(), RegistryError> {
        let url = join(&self.base, &format!("v2/{}/blobs/uploads/", self.path))?;
        let begin = || Ok(self.client.post(url.clone()).header(header::CONTENT_LENGTH, 0));
        let begun = self.authorized(&url, begin).await?;
        let location = header_text(begun.headers(), header::LOCATION);
        let mut target = url.join(&location).map_err(|_| RegistryError::Path(location.clone()))?;
        // An upload may go to a store elsewhere, but never from TLS to plain text.
        if location.is_empty() || url.scheme() == "https" && target.scheme() != "https" {
            return Err(RegistryError::Path(location));
        }
        target.query_pairs_mut().append_pair("digest", digest.as_str());
        let is_ours = target.origin() == url.origin();
        let put = || {
            let body = body().map_err(RegistryError::Blob)?;
            let request = self.client.put(target.clone()).header(header::CONTENT_LENGTH, size);
            Ok(request.header(header::CONTENT_TYPE, "application/octet-stream").body(body))
        };
        if is_ours {
            return self.authorized(&target, put).await.map(drop);
        }
        checked(send(put()?, &target).await?).await.map(drop)
    }

    /// Stores a manifest under a tag.
    pub(crate) async fn put_manifest(
        &self,
        tag: &str,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<(), RegistryError> {
        let url = join(&self.base, &format!("v2/{}/manifests/{tag}", self.path))?;
        let put = || {
            let request = self.client.put(url.clone()).header(header::CONTENT_TYPE, media_type);
            Ok(request.body(bytes.to_vec()))
        };
        self.authorized(&url, put).await.map(drop)
    }

    async fn get(&self, url: &Url, accept: &str, offset: Option<u64>) -> Result<Response, RegistryError> {
        let request = || {
            let request = self.client.get(url.clone()).header(header::ACCEPT, accept);
            Ok(match offset {
                Some(offset) => request.header(header::RANGE, format!("bytes={offset}-")),
                None => request,
            })
        };
        self.authorized(url, request).await
    }

    /// A request that proves itself as soon as it is asked to.
    async fn authorized(
        &self,
        url: &Url,
        request: impl Fn() -> Result<RequestBuilder, RegistryError>,
    ) -> Result<Response, RegistryError> {
        let response = self.send(url, request()?).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return checked(response).await;
        }
        let authorization = self.authorize(response.headers()).await?;
        *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(authorization);
        checked(self.send(url, request()?).await?).await
    }

    async fn send(&self, url: &Url, mut request: RequestBuilder) -> Result<Response, RegistryError> {
        let authorization = self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(authorization) = authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        send(request, url).await
    }

    async fn authorize(&self, headers: &HeaderMap) -> Result<HeaderValue, RegistryError> {
        let challenges: Vec<Challenge> = headers
            .get_all(header::WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(challenge::parse)
            .collect();
        let bearer_first = challenges.iter().find(|challenge| matches!(challenge, Challenge::Bearer { .. }));
        match bearer_first.or(challenges.first()) {
            Some(Challenge::Bearer { realm, service, scope, .. }) => self.token(realm, service, scope).await,
            Some(Challenge::Basic) => {
                let pair = self.auth.as_ref().and_then(RegistryAuth::basic);
                pair.and_then(|(user, password)| basic(user, password)).ok_or(RegistryError::NoCredentials)
            }
            None => Err(RegistryError::NoCredentials),
        }
    }

    // spec: distribution docs/spec/auth/token.md, docs/spec/auth/oauth.md
    async fn token(&self, realm: &str, service: &str, scope: &str) -> Result<HeaderValue, RegistryError> {
        let mut url = Url::parse(realm).map_err(|_| RegistryError::Realm(realm.to_owned()))?;
        let is_safe = url.scheme() == "https" || self.is_insecure;
        if self.auth.is_some() && !is_safe {
            return Err(RegistryError::Realm(realm.to_owned()));
        }
        let default_scope = format!("repository:{}:pull", self.path);
        let scope = if scope.is_empty() { default_scope.as_str() } else { scope };
        let identity =
            self.auth.as_ref().map(|auth| auth.identitytoken.as_str()).filter(|token| !token.is_empty());
        let request = if let Some(token) = identity {
            let form = form_body(&[
                ("grant_type", "refresh_token"),
                ("refresh_token", token),
                ("client_id", "rswarm"),
                ("service", service),
                ("scope", scope),
            ]);
            let kind = "application/x-www-form-urlencoded";
            self.client.post(url.clone()).header(header::CONTENT_TYPE, kind).body(form)
        } else {
            url.query_pairs_mut().append_pair("service", service).append_pair("scope", scope);
            match self.auth.as_ref().and_then(RegistryAuth::basic) {
                Some((user, password)) => {
                    url.query_pairs_mut().append_pair("account", user);
                    self.client.get(url.clone()).basic_auth(user, Some(password))
                }
                None => self.client.get(url.clone()),
            }
        };
        let response = checked(send(request, &url).await?).await?;
        let bytes = read_all(response, ANSWER_BYTES_MAX).await?;
        let body: TokenBody = serde_json::from_slice(&bytes)
            .map_err(|source| RegistryError::Answer { url: url.clone(), source })?;
        let token = if body.token.is_empty() { body.access_token } else { body.token };
        bearer(&token).filter(|_| !token.is_empty()).ok_or(RegistryError::NoCredentials)
    }
}

async fn send(request: RequestBuilder, url: &Url) -> Result<Response, RegistryError> {
    let named =
        |source: reqwest::Error| RegistryError::Request { url: url.clone(), source: source.without_url() };
    request.send().await.map_err(named)
}

/// The answer if it is a good one; else what the registry says is wrong.
async fn checked(response: Response) -> Result<Response, RegistryError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let url = response.url().clone();
    let bytes = read_all(response, ANSWER_BYTES_MAX).await.unwrap_or_default();
    let entry =
        serde_json::from_slice::<ErrorBody>(&bytes).ok().and_then(|body| body.errors.into_iter().next());
    Err(match entry {
        Some(entry) => {
            let code = entry.code.to_ascii_lowercase().replace('_', " ");
            let code = if code.is_empty() { "unknown".to_owned() } else { code };
            RegistryError::Refused { status, code, message: entry.message }
        }
        None => RegistryError::Status { status, url },
    })
}

async fn read_all(response: Response, bytes_max: u64) -> Result<Vec<u8>, RegistryError> {
    let url = response.url().clone();
    let mut bytes = Vec::new();
    let mut stream = response.bytes_stream();
    while let Some(chunk) = stream.next().await {
        let named = |source: reqwest::Error| RegistryError::Request {
            url: url.clone(),
            source: source.without_url(),
        };
        let chunk = chunk.map_err(named)?;
        if bytes.len() as u64 + chunk.len() as u64 > bytes_max {
            return Err(RegistryError::TooLarge(url));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

fn join(base: &Url, path: &str) -> Result<Url, RegistryError> {
    let text = format!("{}/{path}", base.as_str().trim_end_matches('/'));
    Url::parse(&text).map_err(|_| RegistryError::Path(text))
}

fn header_text(headers: &HeaderMap, name: header::HeaderName) -> String {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn bearer(token: &str) -> Option<HeaderValue> {
    secret(&format!("Bearer {token}"))
}

fn basic(user: &str, password: &str) -> Option<HeaderValue> {
    use base64::Engine as _;
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    secret(&format!("Basic {pair}"))
}

/// `application/x-www-form-urlencoded`, which a URL's query is too.
fn form_body(pairs: &[(&str, &str)]) -> String {
    let mut url = Url::parse("form:/").expect("a constant URL");
    url.query_pairs_mut().extend_pairs(pairs);
    url.query().unwrap_or_default().to_owned()
}
