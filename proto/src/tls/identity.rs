//! A node's key, certificate and trust, replaceable while its listeners and clients run.
//!
//! rustls asks the identity at every handshake, so a renewed certificate or a changed root counts from the
//! next connection on. Connections that are open stay open.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use rswarm_base::fsx;
use rswarm_base::{Classify, Kind, Timestamp};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption, WebPkiServerVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
};
use tokio::sync::watch;

use super::unlock::is_locked;
use super::{Subject, UnlockKey, provider};
use crate::wire::TlsInfo;

const KEY_FILE: &str = "swarm-node.key";
const CERTIFICATE_FILE: &str = "swarm-node.crt";
const ROOT_FILE: &str = "swarm-root-ca.crt";

/// How long after its end a certificate is good for its renewal: a node that was off for that long comes back
/// by itself. One that was removed meanwhile is refused by name.
const RENEWABLE: Duration = Duration::from_secs(90 * 24 * 3600);

/// What makes a node's identity, as PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The private key. A renewal keeps it.
    pub key_pem: String,
    /// The certificate, leaf first.
    pub chain_pem: String,
    /// All roots that are trusted.
    pub root_pem: String,
}

/// Shows no key.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("chain_pem", &self.chain_pem).finish_non_exhaustive()
    }
}

/// A node's identity: what it shows, and whom it trusts.
#[derive(Debug)]
pub struct Identity {
    current: watch::Sender<Arc<Current>>,
}

/// One state of an identity, parsed.
#[derive(Debug)]
struct Current {
    credentials: Credentials,
    subject: Subject,
    not_before: Timestamp,
    not_after: Timestamp,
    /// Which of the roots signed the certificate itself; `None` when it is none of them.
    signed_by: Option<usize>,
    roots: Vec<CertificateDer<'static>>,
    key: Arc<CertifiedKey>,
    clients: Arc<dyn ClientCertVerifier>,
    servers: Arc<WebPkiServerVerifier>,
}

impl Identity {
    /// An identity from its parts.
    ///
    /// # Errors
    /// Which part cannot be used, or that key and certificate do not belong together.
    pub fn new(credentials: Credentials) -> Result<Arc<Identity>, IdentityError> {
        let current = Arc::new(Current::parse(credentials)?);
        Ok(Arc::new(Identity { current: watch::Sender::new(current) }))
    }

    /// The identity in a directory; `None` when the node has no certificate there.
    ///
    /// # Errors
    /// Which file cannot be read or used, or that the key is [locked](IdentityError::Locked).
    pub fn load(dir: &Path) -> Result<Option<Arc<Identity>>, IdentityError> {
        Identity::open_dir(dir, None)
    }

    /// [`Identity::load`] of one whose key may be locked with this unlock key.
    ///
    /// # Errors
    /// As there, and [`IdentityError::WrongKey`].
    pub fn unlock(dir: &Path, key: &UnlockKey) -> Result<Option<Arc<Identity>>, IdentityError> {
        Identity::open_dir(dir, Some(key))
    }

    fn open_dir(dir: &Path, lock: Option<&UnlockKey>) -> Result<Option<Arc<Identity>>, IdentityError> {
        let read = |name: &str| {
            let path = dir.join(name);
            fs::read_to_string(&path).map_err(|source| IdentityError::Read { path, source })
        };
        // The certificate is written last: without it, the others are the rest of an unfinished join.
        if !dir.join(CERTIFICATE_FILE).exists() {
            return Ok(None);
        }
        let (key_file, root_pem) = (read(KEY_FILE)?, read(ROOT_FILE)?);
        let key_pem = match (is_locked(&key_file), lock) {
            (false, _) => key_file,
            (true, Some(lock)) => lock.unlock(&key_file).map_err(|_| IdentityError::WrongKey)?,
            (true, None) => return Err(IdentityError::Locked),
        };
        Identity::new(Credentials { key_pem, chain_pem: read(CERTIFICATE_FILE)?, root_pem }).map(Some)
    }

    /// Writes the identity to a directory, which is made when missing. Each file is replaced atomically. With an unlock
    /// key, the node's own key can be read only by whoever has that.
    ///
    /// # Errors
    /// Which file cannot be written.
    pub fn save(&self, dir: &Path, lock: Option<&UnlockKey>) -> Result<(), IdentityError> {
        let current = self.current();
        let Credentials { key_pem, chain_pem, root_pem } = &current.credentials;
        let key_file = lock.map_or_else(|| key_pem.clone(), |lock| lock.lock(key_pem));
        fs::create_dir_all(dir).map_err(|source| IdentityError::Write { path: dir.to_owned(), source })?;
        for (name, text, mode) in
            [(KEY_FILE, &key_file, 0o600), (ROOT_FILE, root_pem, 0o644), (CERTIFICATE_FILE, chain_pem, 0o644)]
        {
            let path = dir.join(name);
            fsx::write_atomic_mode(&path, text.as_bytes(), mode)
                .map_err(|source| IdentityError::Write { path, source })?;
        }
        Ok(())
    }

    /// Puts new credentials in use: from the next handshake on, both ways.
    ///
    /// # Errors
    /// Which part cannot be used; then the old ones stay.
    pub fn replace(&self, credentials: Credentials) -> Result<(), IdentityError> {
        self.current.send_replace(Arc::new(Current::parse(credentials)?));
        Ok(())
    }

    /// Trusts these roots instead, keeping key and certificate. Nothing happens when they are the same.
    ///
    /// # Errors
    /// When there is no certificate in the text; then the old ones stay.
    pub fn set_roots(&self, root_pem: &str) -> Result<(), IdentityError> {
        let current = self.current();
        if current.credentials.root_pem == root_pem {
            return Ok(());
        }
        self.replace(Credentials { root_pem: root_pem.to_owned(), ..current.credentials.clone() })
    }

    /// Key, certificate and roots as they are now.
    #[must_use]
    pub fn credentials(&self) -> Credentials {
        self.current().credentials.clone()
    }

    /// Node, role and cluster as the certificate says now.
    #[must_use]
    pub fn subject(&self) -> Subject {
        self.current().subject.clone()
    }

    /// Who signed the certificate, and whom the node trusts.
    #[must_use]
    pub fn tls_info(&self) -> TlsInfo {
        let current = self.current();
        let (issuer_subject, issuer_public_key) =
            current.signed_by.and_then(|index| issuer_of(&current.roots[index])).unwrap_or_default();
        TlsInfo { trust_root: current.credentials.root_pem.clone(), issuer_subject, issuer_public_key }
    }

    /// Whether the certificate is signed by the last root of those that are trusted. While the cluster's root is being
    /// replaced, that is the new one, and a certificate by the old one is to be renewed.
    #[must_use]
    pub fn is_by_latest_root(&self) -> bool {
        let current = self.current();
        current.signed_by == current.roots.len().checked_sub(1)
    }

    /// From when to when the certificate counts.
    #[must_use]
    pub fn validity(&self) -> (Timestamp, Timestamp) {
        let current = self.current();
        (current.not_before, current.not_after)
    }

    /// Whether the certificate has ended.
    #[must_use]
    pub fn is_expired(&self) -> bool {
        self.validity().1 <= Timestamp::wall()
    }

    /// When to renew: at this fraction (0 to 1) of the stretch between 50 % and 80 % of the lifetime, so that
    /// nodes that joined together do not renew together.
    #[must_use]
    pub fn renew_at(&self, fraction: f64) -> Timestamp {
        let (begin, end) = self.validity();
        begin.after(end.since(begin).mul_f64(0.5 + 0.3 * fraction.clamp(0.0, 1.0)))
    }

    /// Resolves the receiver's `changed` whenever key, certificate or roots were replaced.
    pub fn changes(&self) -> watch::Receiver<impl Send + Sync + 'static> {
        self.current.subscribe()
    }

    /// A server side of TLS that shows this identity and lets nodes of the cluster and joiners in.
    #[must_use]
    pub fn server_config(self: &Arc<Self>) -> Arc<ServerConfig> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("ring supports TLS 1.3")
            .with_client_cert_verifier(Arc::new(Handshake(self.clone())))
            .with_cert_resolver(Arc::new(Handshake(self.clone())));
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }

    /// A client side of TLS that shows this identity and accepts only servers of the cluster.
    #[must_use]
    pub fn client_config(self: &Arc<Self>) -> Arc<ClientConfig> {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("ring supports TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Handshake(self.clone())))
            .with_client_cert_resolver(Arc::new(Handshake(self.clone())));
        config.alpn_protocols = vec![b"h2".to_vec()];
        // A resumed session would keep showing the certificate of the one that it resumes.
        config.resumption = Resumption::disabled();
        Arc::new(config)
    }

    /// A client side of TLS that shows this identity to an authority outside of the cluster, which these roots vouch
    /// for.
    ///
    /// # Errors
    /// When the roots cannot be used.
    pub(super) fn authority_config(
        self: &Arc<Self>,
        root_pem: &str,
    ) -> Result<Arc<ClientConfig>, IdentityError> {
        let (_, servers) = verifiers(&certificates("root certificate", root_pem)?)?;
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("ring supports the defaults")
            .with_webpki_verifier(servers)
            .with_client_cert_resolver(Arc::new(Handshake(self.clone())));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }

    fn current(&self) -> Arc<Current> {
        self.current.borrow().clone()
    }
}

impl Current {
    fn parse(credentials: Credentials) -> Result<Current, IdentityError> {
        let mut chain = certificates("node certificate", &credentials.chain_pem)?;
        let roots = certificates("root certificate", &credentials.root_pem)?;
        let key =
            PrivateKeyDer::from_pem_slice(credentials.key_pem.as_bytes()).map_err(IdentityError::Key)?;
        let leaf = chain.first().expect("checked not to be empty");
        let subject = Subject::of(leaf).ok_or(IdentityError::Subject)?;
        let (not_before, not_after) = validity(leaf).ok_or(IdentityError::Subject)?;
        let (clients, servers) = verifiers(&roots)?;
        let signed_by = roots.iter().position(|root| has_signed(root, leaf, not_before, not_after));
        // The roots ride along so that a joiner can check the one that its token pins.
        chain.extend(roots.iter().cloned());
        let key = CertifiedKey::from_der(chain, key, &provider()).map_err(IdentityError::Pair)?;
        Ok(Current {
            credentials,
            subject,
            not_before,
            not_after,
            signed_by,
            roots,
            key: Arc::new(key),
            clients,
            servers,
        })
    }
}

pub(super) type Verifiers = (Arc<dyn ClientCertVerifier>, Arc<WebPkiServerVerifier>);

pub(super) fn verifiers(roots: &[CertificateDer<'static>]) -> Result<Verifiers, IdentityError> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.clone()).map_err(IdentityError::Root)?;
    }
    let store = Arc::new(store);
    // Joiners have no certificate yet; `require` keeps them out of all other calls.
    let clients = WebPkiClientVerifier::builder_with_provider(store.clone(), provider())
        .allow_unauthenticated()
        .build()
        .map_err(IdentityError::Verifier)?;
    let servers = WebPkiServerVerifier::builder_with_provider(store, provider())
        .build()
        .map_err(IdentityError::Verifier)?;
    Ok((clients, servers))
}

/// Whether this root itself signed the certificate, with nothing in between.
pub(super) fn has_signed(
    root: &CertificateDer<'static>,
    leaf: &CertificateDer<'_>,
    begin: Timestamp,
    end: Timestamp,
) -> bool {
    let Ok((clients, _)) = verifiers(std::slice::from_ref(root)) else { return false };
    // Any moment at which both count: that they have ended is another question.
    let middle = begin.after(end.since(begin) / 2).as_secs();
    let middle = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(middle).unwrap_or(0)));
    clients.verify_client_cert(leaf, &[], middle).is_ok()
}

/// Name and public key of the first certificate in a text, both as DER; `None` when there is none.
#[must_use]
pub fn issuer_info(certificate_pem: &str) -> Option<(Vec<u8>, Vec<u8>)> {
    issuer_of(&CertificateDer::from_pem_slice(certificate_pem.as_bytes()).ok()?)
}

pub(super) fn issuer_of(certificate: &CertificateDer<'_>) -> Option<(Vec<u8>, Vec<u8>)> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some((parsed.subject().as_raw().to_vec(), parsed.public_key().raw.to_vec()))
}

pub(super) fn certificates(
    what: &'static str,
    pem: &str,
) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match parsed {
        Ok(found) if found.is_empty() => Err(IdentityError::Empty(what)),
        Ok(found) => Ok(found),
        Err(source) => Err(IdentityError::Pem { what, source }),
    }
}

/// The last moment of a certificate that has expired, while it can still be renewed.
fn renewable_at(certificate: &CertificateDer<'_>, now: UnixTime) -> Option<UnixTime> {
    let (_, end) = validity(certificate)?;
    let end = Duration::from_secs(u64::try_from(end.as_secs()).ok()?);
    let since = Duration::from_secs(now.as_secs()).checked_sub(end)?;
    (since <= RENEWABLE).then(|| UnixTime::since_unix_epoch(end))
}

fn is_expiry(error: &rustls::Error) -> bool {
    use rustls::CertificateError::{Expired, ExpiredContext};
    matches!(error, rustls::Error::InvalidCertificate(Expired | ExpiredContext { .. }))
}

/// From when to when a certificate counts.
pub(super) fn validity(certificate: &CertificateDer<'_>) -> Option<(Timestamp, Timestamp)> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let at = |time: x509_parser::time::ASN1Time| {
        Timestamp::ZERO.after(Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or(0)))
    };
    Some((at(parsed.validity().not_before), at(parsed.validity().not_after)))
}

/// The identity in rustls's hands: every question goes to what is current.
#[derive(Debug)]
struct Handshake(Arc<Identity>);

impl ResolvesServerCert for Handshake {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.current().key.clone())
    }
}

impl ResolvesClientCert for Handshake {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.current().key.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Handshake {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    /// No hints: they would have to outlive a change of roots.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let clients = self.0.current().clients.clone();
        let verified = clients.verify_client_cert(leaf, chain, now);
        match (&verified, renewable_at(leaf, now)) {
            // `require` keeps such a node from all calls but the renewal.
            (Err(error), Some(end)) if is_expiry(error) => clients.verify_client_cert(leaf, chain, end),
            _ => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.current().clients.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.current().clients.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.current().clients.supported_verify_schemes()
    }
}

impl ServerCertVerifier for Handshake {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.0.current().servers.verify_server_cert(leaf, chain, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.current().servers.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.current().servers.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.current().servers.supported_verify_schemes()
    }
}

/// Why credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file is missing or not readable.
    #[error("`{}` could not be read", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file could not be written.
    #[error("`{}` could not be written", path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The node's key is locked.
    #[error("the node's key is locked, and needs the unlock key")]
    Locked,
    /// It is locked with another key.
    #[error("swarm could not be unlocked: invalid key provided")]
    WrongKey,
    /// A certificate is not PEM.
    #[error("{what} is not PEM")]
    Pem {
        /// Which one.
        what: &'static str,
        /// Why.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// A text holds no certificate.
    #[error("{0} is empty")]
    Empty(&'static str),
    /// The key is not PEM.
    #[error("node key is not PEM")]
    Key(#[source] rustls::pki_types::pem::Error),
    /// The certificate is not one of a node.
    #[error("node certificate names no node, role and cluster")]
    Subject,
    /// The key is not the certificate's.
    #[error("node key and certificate do not belong together")]
    Pair(#[source] rustls::Error),
    /// A root certificate is not usable.
    #[error("root certificate is not usable")]
    Root(#[source] rustls::Error),
    /// The roots cannot verify anything.
    #[error("root certificates are not usable")]
    Verifier(#[source] rustls::server::VerifierBuilderError),
}

impl Classify for IdentityError {
    fn kind(&self) -> Kind {
        match self {
            IdentityError::Locked => Kind::Unavailable,
            IdentityError::WrongKey => Kind::Unauthenticated,
            _ => Kind::Internal,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            IdentityError::Write { .. } | IdentityError::Locked | IdentityError::WrongKey => None,
            _ => Some("leave the cluster with `rswarm swarm leave --force` and join it again".to_owned()),
        }
    }
}
