//! Whom to trust: public roots, the system's own, a registry's own certificates (`certs.d`), or nobody in
//! particular for the registries that are listed as insecure.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

/// Where distributions keep the roots that the machine's owner trusts.
const SYSTEM_ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// One `--insecure-registry`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Insecure {
    /// `name` (any port) or `name:port`.
    Host(String),
    /// All addresses of a network.
    Network(IpAddr, u8),
}

impl Insecure {
    pub(super) fn parse(text: &str) -> Option<Insecure> {
        if let Some((address, bits)) = text.split_once('/') {
            let address: IpAddr = address.parse().ok()?;
            let bits: u8 = bits.parse().ok()?;
            let bits_max = if address.is_ipv4() { 32 } else { 128 };
            return (bits <= bits_max).then_some(Insecure::Network(address, bits));
        }
        let is_host =
            !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b".:-_[]".contains(&b));
        is_host.then(|| Insecure::Host(text.to_ascii_lowercase()))
    }

    pub(super) fn matches(&self, url: &reqwest::Url) -> bool {
        let host = url.host_str().unwrap_or_default();
        match self {
            Self::Host(wanted) => *wanted == host || *wanted == host_of(url),
            Self::Network(network, bits) => host
                .trim_matches(['[', ']'])
                .parse::<IpAddr>()
                .is_ok_and(|address| masked(address, *bits) == masked(*network, *bits)),
        }
    }
}

fn masked(address: IpAddr, bits: u8) -> (bool, u128) {
    let mask = |width: u32| if bits == 0 { 0 } else { u128::MAX << (width - u32::from(bits)) };
    match address {
        IpAddr::V4(v4) => (true, u128::from(v4.to_bits()) & mask(32)),
        IpAddr::V6(v6) => (false, v6.to_bits() & mask(128)),
    }
}

/// `host` or `host:port`, as it is written in names and in `certs.d`.
pub(super) fn host_of(url: &reqwest::Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// The TLS side of a client for one registry. `certs` may not exist.
pub(super) fn tls(certs: &Path, is_insecure: bool) -> io::Result<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    let builder = if is_insecure {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Anyone(provider)))
    } else {
        builder.with_root_certificates(roots(certs)?)
    };
    let mut config = match client_identity(certs)? {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(io::Error::other)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn roots(certs: &Path) -> io::Result<RootCertStore> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    if let Some(bundle) = SYSTEM_ROOTS.iter().map(Path::new).find(|path| path.exists()) {
        let certificates = CertificateDer::pem_file_iter(bundle).map_err(io::Error::other)?;
        roots.add_parsable_certificates(certificates.flatten());
    }
    for path in files(certs, "crt")? {
        for certificate in pem(&path)? {
            roots.add(certificate).map_err(|error| named(&path, &error))?;
        }
    }
    Ok(roots)
}

type ClientIdentity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// `<name>.cert` with `<name>.key`: how we prove ourselves to a registry that asks.
fn client_identity(certs: &Path) -> io::Result<Option<ClientIdentity>> {
    let Some(path) = files(certs, "cert")?.into_iter().next() else { return Ok(None) };
    let key_path = path.with_extension("key");
    let key = PrivateKeyDer::from_pem_file(&key_path).map_err(|error| named(&key_path, &error))?;
    Ok(Some((pem(&path)?, key)))
}

fn pem(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let certificates = CertificateDer::pem_file_iter(path).map_err(|error| named(path, &error))?;
    certificates.collect::<Result<_, _>>().map_err(|error| named(path, &error))
}

fn files(dir: &Path, extension: &str) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(named(dir, &error)),
    };
    let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>()?;
    let mut paths: Vec<_> =
        paths.into_iter().filter(|path| path.extension().is_some_and(|found| found == extension)).collect();
    paths.sort();
    Ok(paths)
}

fn named(path: &Path, error: &dyn std::fmt::Display) -> io::Error {
    io::Error::other(format!("{}: {error}", path.display()))
}

/// Accepts any certificate: what `--insecure-registry` asks for.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
