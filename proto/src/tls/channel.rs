//! Connections between nodes: TLS 1.3 over TCP under tonic, on both ends.
//!
//! tonic's own TLS is not used, because it can neither change its certificate while it runs nor tell a
//! handler who calls. With a transport of our own, `TCP_NODELAY` is ours to set: without it on both ends
//! every call waits out a delayed acknowledgement, some 40 ms.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rswarm_base::{Chain, Classify, Kind, Scope, Timestamp};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::body::Body;
use tonic::codegen::http::Request;
use tonic::service::Routes;
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint, Server};
use tower::ServiceExt;

use super::authority::digest_of_der;
use super::identity::validity;
use super::{Identity, Peer, Subject, provider};
use crate::token::RootDigest;

/// The largest message on any call. Clients and servers set it; tonic's own default is 4 MiB, which the
/// list of tasks of a large cluster exceeds.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// The name in every manager's certificate.
const MANAGER_NAME: &str = "swarm-manager";
/// TCP, TLS and HTTP/2 together: a manager that takes longer is as good as away.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// What a caller may take to prove who it is before it is dropped.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes in progress at once: some 10 ms of work each, so more would only time out together.
const HANDSHAKES_MAX: usize = 128;
/// Connections done with their handshake and not yet taken by the server.
const ACCEPTED_MAX: usize = 64;
/// A connection over which nothing came for this long is probed, and dropped after as long again.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// How long calls may go on once the server was told to stop.
const DRAIN: Duration = Duration::from_secs(1);
/// Room for one raft snapshot chunk in flight on each stream.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;

/// A channel to the manager at `HOST:PORT`. It connects now, and again by itself when the connection breaks.
///
/// # Errors
/// When it cannot be reached, is no manager, or belongs to another cluster.
pub async fn connect(addr: &str, identity: &Arc<Identity>) -> Result<Channel, ConnectError> {
    connect_node(addr, MANAGER_NAME, identity).await
}

/// A channel to one certain node. Whoever else answers at its address is refused.
///
/// # Errors
/// When it cannot be reached or is another node.
pub async fn connect_node(
    addr: &str,
    node_id: &str,
    identity: &Arc<Identity>,
) -> Result<Channel, ConnectError> {
    open(addr, node_id, identity.client_config()).await
}

/// A channel for a node that has no certificate yet, to a manager of the cluster with this root and no other.
///
/// # Errors
/// When it cannot be reached, is no manager, or its root has another digest.
pub async fn connect_pinned(addr: &str, digest: RootDigest) -> Result<Channel, ConnectError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring supports TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned(digest)))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    open(addr, MANAGER_NAME, Arc::new(config)).await
}

async fn open(addr: &str, name: &str, config: Arc<ClientConfig>) -> Result<Channel, ConnectError> {
    let server = ServerName::try_from(name.to_owned()).map_err(|_| ConnectError::Name(name.to_owned()))?;
    let target: Arc<str> = addr.into();
    let connector = tower::service_fn(move |_| {
        let (target, config, server) = (target.clone(), config.clone(), server.clone());
        async move { dial(&target, config, server).await.map(TokioIo::new) }
    });
    // The URI only names the service in HTTP/2 headers; where to connect is the connector's business.
    Endpoint::from_static("http://swarm-manager")
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .connect_with_connector(connector)
        .await
        .map_err(|source| ConnectError::Connect { addr: addr.to_owned(), source })
}

async fn dial(
    addr: &str,
    config: Arc<ClientConfig>,
    server: ServerName<'static>,
) -> io::Result<client::TlsStream<TcpStream>> {
    let connect = async {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        TlsConnector::from(config).connect(server, stream).await
    };
    match tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
        Ok(connected) => connected,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no answer within 5 s")),
    }
}

/// Why a node cannot be talked to.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// TCP or TLS failed; the source says which and why.
    #[error("cannot connect to `{addr}`")]
    Connect {
        /// Where to.
        addr: String,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
    /// A node id that no certificate can hold.
    #[error("`{0}` is not the id of a node")]
    Name(String),
}

impl Classify for ConnectError {
    fn kind(&self) -> Kind {
        match self {
            ConnectError::Connect { .. } => Kind::Unavailable,
            ConnectError::Name(_) => Kind::InvalidArgument,
        }
    }
}

/// Trusts the root with the pinned digest, which the server must show along with its certificate.
#[derive(Debug)]
struct Pinned(RootDigest);

impl Pinned {
    fn verifier(&self, shown: &[CertificateDer<'_>]) -> Result<Arc<WebPkiServerVerifier>, rustls::Error> {
        let root = shown.iter().find(|certificate| digest_of_der(certificate) == self.0);
        let root = root.ok_or_else(|| {
            rustls::Error::General(
                "remote CA does not match fingerprint: the join token is of another cluster, or its root digest \
                 is mistyped"
                    .to_owned(),
            )
        })?;
        let mut roots = RootCertStore::empty();
        roots.add(root.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verifier(chain)?.verify_server_cert(leaf, chain, name, ocsp, now).map_err(|error| match error {
            rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            ) => rustls::Error::General("it is a worker; only a manager can let a node join".to_owned()),
            other => other,
        })
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 is the only version in use".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Serves gRPC to nodes until the scope ends: calls in progress get a second, then their connections are cut.
/// What is served can change at any time (a worker that becomes a manager), also on open connections.
///
/// # Errors
/// When the server itself fails; a broken connection is not that.
pub async fn serve(
    listener: TcpListener,
    identity: Arc<Identity>,
    services: watch::Receiver<Routes>,
    scope: &Scope,
) -> Result<(), tonic::transport::Error> {
    let connections = scope.child("connections");
    let cut = CancellationToken::new();
    let incoming = accept(listener, identity, &connections, cut.clone());
    let service = tower::service_fn(move |request: Request<Body>| {
        let routes = services.borrow().clone();
        async move { Ok::<_, Infallible>(routes.oneshot(request).await.unwrap_or_else(|never| match never {})) }
    });
    let serving = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .serve_with_incoming_shutdown(service, incoming, scope.token().cancelled_owned());
    let drained = async {
        scope.cancelled().await;
        tokio::time::sleep(DRAIN).await;
        cut.cancel();
        std::future::pending::<Infallible>().await
    };
    tokio::select! {
        served = serving => served,
        never = drained => match never {},
    }
}

/// Connections of nodes, their handshakes done: concurrently, a bounded number at once, each with a deadline.
/// The stream ends with the scope.
pub fn incoming(
    listener: TcpListener,
    identity: Arc<Identity>,
    scope: &Scope,
) -> impl Stream<Item = io::Result<TlsConn>> + Send + 'static {
    accept(listener, identity, scope, CancellationToken::new())
}

fn accept(
    listener: TcpListener,
    identity: Arc<Identity>,
    scope: &Scope,
    cut: CancellationToken,
) -> ReceiverStream<io::Result<TlsConn>> {
    let (ready, accepted) = mpsc::channel(ACCEPTED_MAX);
    let acceptor = Acceptor {
        tls: TlsAcceptor::from(identity.server_config()),
        permits: Arc::new(Semaphore::new(HANDSHAKES_MAX)),
        ready,
        cut,
        scope: scope.clone(),
    };
    scope.spawn(acceptor.run(listener));
    ReceiverStream::new(accepted)
}

/// Takes connections and shakes hands.
struct Acceptor {
    tls: TlsAcceptor,
    permits: Arc<Semaphore>,
    ready: mpsc::Sender<io::Result<TlsConn>>,
    cut: CancellationToken,
    scope: Scope,
}

impl Acceptor {
    async fn run(self, listener: TcpListener) {
        loop {
            let permit = self.permits.clone().acquire_owned().await.expect("the semaphore is never closed");
            let accepted = tokio::select! {
                () = self.scope.cancelled() => return,
                () = self.ready.closed() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    let handshake = handshake(self.tls.clone(), stream, self.ready.clone(), self.cut.clone());
                    let token = self.scope.token();
                    self.scope.spawn(async move {
                        let _permit = permit;
                        token.run_until_cancelled(handshake).await;
                    });
                }
                Err(error) => {
                    // Out of file descriptors, or a caller that gave up: neither is cured by trying at once.
                    tracing::warn!(error = %Chain(&error), "a connection was not accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }
}

async fn handshake(
    tls: TlsAcceptor,
    stream: TcpStream,
    ready: mpsc::Sender<io::Result<TlsConn>>,
    cut: CancellationToken,
) {
    let from = stream.peer_addr().ok();
    let shake = async {
        stream.set_nodelay(true)?;
        tls.accept(stream).await
    };
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, shake).await {
        Ok(Ok(stream)) => {
            let cut = Box::pin(cut.cancelled_owned());
            // The server is gone when nobody takes the connection; then it just ends.
            let _ = ready.send(Ok(TlsConn { stream, cut })).await;
        }
        Ok(Err(error)) => tracing::debug!(?from, error = %Chain(&error), "handshake failed"),
        Err(_) => tracing::debug!(?from, "handshake took too long"),
    }
}

/// A node's connection, its caller known. Once the server cuts it, every read and write fails.
pub struct TlsConn {
    stream: server::TlsStream<TcpStream>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl TlsConn {
    fn poll_cut(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.cut.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the node stops")),
            Poll::Pending => Ok(()),
        }
    }
}

impl Connected for TlsConn {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        let (tcp, tls) = self.stream.get_ref();
        let addr = tcp.peer_addr().ok();
        let leaf = tls.peer_certificates().and_then(|chain| chain.first());
        match leaf.and_then(|leaf| Some((Subject::of(leaf)?, validity(leaf)?))) {
            Some((Subject { node_id, role, cluster_id }, (_, end))) => {
                let expired = end <= Timestamp::wall();
                Peer { node_id, role: Some(role), cluster_id, addr, expired }
            }
            None => Peer { addr, ..Peer::default() },
        }
    }
}

impl AsyncRead for TlsConn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_cut(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for TlsConn {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_cut(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
