//! The Docker HTTP API from the caller's side: one connection per call, over a unix socket or TCP.

mod call;
mod host;
mod stream;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use rswarm_api::types::ErrorBody;
use rswarm_base::Scope;
use rswarm_base::error::{Classify, Kind};
use serde::de::DeserializeOwned;

pub use call::{Call, Filters};
pub use host::Host;
pub use stream::{Demux, JsonLines, Output};

/// An error body longer than this is cut off.
const ERROR_BYTES_MAX: usize = 64 << 10;

/// Both directions of a connection that stopped being HTTP: attach and exec.
pub type Hijacked = TokioIo<hyper::upgrade::Upgraded>;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The daemon's address makes no sense.
    #[error("`{0}` is not the address of a daemon")]
    Host(String),
    /// Nobody answers.
    #[error("the daemon at `{host}` cannot be reached")]
    Connect {
        /// Its address.
        host: Host,
        /// Why.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the daemon broke off `{call}`")]
    Exchange {
        /// Method and path.
        call: String,
        /// Why.
        source: hyper::Error,
    },
    /// The request could not be put into words.
    #[error("`{call}` cannot be sent")]
    Request {
        /// Method and path.
        call: String,
        /// Why.
        source: hyper::http::Error,
    },
    /// The reply is not what the API promises.
    #[error("the daemon's reply to `{call}` cannot be read")]
    Decode {
        /// Method and path.
        call: String,
        /// Where and why.
        source: serde_json::Error,
    },
    /// The daemon said no.
    #[error("{message}")]
    Refused {
        /// HTTP's word for it.
        status: StatusCode,
        /// The daemon's words.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
}

impl ClientError {
    /// Whether the daemon said that there is no such thing.
    pub fn is_not_found(&self) -> bool {
        matches!(self, ClientError::Refused { status: StatusCode::NOT_FOUND, .. })
    }
}

impl Classify for ClientError {
    fn kind(&self) -> Kind {
        match self {
            ClientError::Host(_) | ClientError::Request { .. } => Kind::InvalidArgument,
            ClientError::Connect { .. } | ClientError::Exchange { .. } => Kind::Unavailable,
            ClientError::Decode { .. } => Kind::Internal,
            ClientError::Refused { status, .. } => match *status {
                StatusCode::NOT_FOUND => Kind::NotFound,
                StatusCode::CONFLICT => Kind::Conflict,
                StatusCode::NOT_MODIFIED => Kind::NotModified,
                StatusCode::BAD_REQUEST => Kind::InvalidArgument,
                StatusCode::FORBIDDEN => Kind::PermissionDenied,
                StatusCode::UNAUTHORIZED => Kind::Unauthenticated,
                StatusCode::SERVICE_UNAVAILABLE => Kind::Unavailable,
                StatusCode::NOT_IMPLEMENTED => Kind::NotImplemented,
                _ => Kind::Internal,
            },
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            ClientError::Host(_) => {
                Some("write it as `unix:///run/rswarm/rswarm.sock` or `tcp://HOST:PORT`".into())
            }
            ClientError::Connect { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("run the command as root, or join the group that owns the socket".into())
            }
            ClientError::Connect { .. } => Some(
                "start a daemon with `rswarm daemon`, or name another one with `-H` or RSWARM_HOST".into(),
            ),
            ClientError::Refused { hint, .. } => hint.clone(),
            ClientError::Exchange { .. } | ClientError::Request { .. } | ClientError::Decode { .. } => None,
        }
    }
}

/// One daemon, as its clients see it. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Client {
    host: Host,
    connections: Scope,
    /// Whether any reply came from a manager's own state, for want of a leader.
    is_stale: Arc<AtomicBool>,
}

impl Client {
    /// A client of the daemon at `host`; nothing is sent yet.
    ///
    /// # Errors
    /// When the text is not an address.
    pub fn new(host: &str) -> Result<Client, ClientError> {
        Ok(Client { host: host.parse()?, connections: Scope::root("client"), is_stale: Arc::default() })
    }

    /// Whether something that the daemon said so far may be old: its cluster has no leader.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.is_stale.load(Ordering::Relaxed)
    }

    /// Sends a call and reads its JSON reply.
    ///
    /// # Errors
    /// When the daemon cannot be reached, refuses, or replies with something else.
    pub async fn json<T: DeserializeOwned>(&self, call: Call) -> Result<T, ClientError> {
        let name = call.to_string();
        let text = self.text(call).await?;
        serde_json::from_str(&text).map_err(|source| ClientError::Decode { call: name, source })
    }

    /// Sends a call and reads its reply as text.
    ///
    /// # Errors
    /// When the daemon cannot be reached or refuses.
    pub async fn text(&self, call: Call) -> Result<String, ClientError> {
        let name = call.to_string();
        let reply = self.send(call).await?;
        let body = reply.into_body().collect().await;
        let body = body.map_err(|source| ClientError::Exchange { call: name, source })?;
        Ok(String::from_utf8_lossy(&body.to_bytes()).into_owned())
    }

    /// Sends a call whose reply's body does not matter.
    ///
    /// # Errors
    /// When the daemon cannot be reached or refuses.
    pub async fn done(&self, call: Call) -> Result<(), ClientError> {
        self.text(call).await.map(drop)
    }

    /// Sends a call and hands over the reply with its body unread; a refusal is already an error.
    ///
    /// # Errors
    /// When the daemon cannot be reached or refuses.
    pub async fn send(&self, call: Call) -> Result<Response<Incoming>, ClientError> {
        let name = call.to_string();
        let reply = self.exchange(call, &name).await?;
        if reply.headers().contains_key(rswarm_api::STALE) {
            self.is_stale.store(true, Ordering::Relaxed);
        }
        match reply.status() {
            status if status.is_success() => Ok(reply),
            StatusCode::NOT_MODIFIED | StatusCode::SWITCHING_PROTOCOLS => Ok(reply),
            _ => Err(refusal(reply).await),
        }
    }

    /// Sends a call that turns the connection into a raw stream.
    ///
    /// # Errors
    /// When the daemon cannot be reached, refuses, or stays with HTTP.
    pub async fn hijack(&self, call: Call) -> Result<Hijacked, ClientError> {
        let name = call.to_string();
        let call = call.header(header::CONNECTION, "Upgrade").header(header::UPGRADE, "tcp");
        let reply = self.send(call).await?;
        let upgraded = hyper::upgrade::on(reply).await;
        upgraded.map(TokioIo::new).map_err(|source| ClientError::Exchange { call: name, source })
    }

    async fn exchange(&self, call: Call, name: &str) -> Result<Response<Incoming>, ClientError> {
        let broken = |source| ClientError::Exchange { call: name.to_owned(), source };
        let request = call.into_request(&self.host);
        let request = request.map_err(|source| ClientError::Request { call: name.to_owned(), source })?;
        let stream = self.host.connect().await;
        let stream = stream.map_err(|source| ClientError::Connect { host: self.host.clone(), source })?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        self.connections.spawn(async move {
            // What breaks a connection also breaks the call that uses it, and is reported there.
            let _ = connection.with_upgrades().await;
        });
        sender.send_request(request).await.map_err(broken)
    }
}

/// The daemon's own words for a status that is not success.
async fn refusal(reply: Response<Incoming>) -> ClientError {
    let status = reply.status();
    let body = http_body_util::Limited::new(reply.into_body(), ERROR_BYTES_MAX).collect().await;
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    let error: ErrorBody = serde_json::from_slice(&body).unwrap_or_else(|_| ErrorBody {
        message: String::from_utf8_lossy(&body).trim().to_owned(),
        hint: None,
    });
    let message =
        if error.message.is_empty() { format!("the daemon answered {status}") } else { error.message };
    ClientError::Refused { status, message, hint: error.hint }
}
