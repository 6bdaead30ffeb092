//! A certificate authority outside of the cluster: how managers reach it, and what they take from it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;

use super::identity::{certificates, has_signed, issuer_of, validity, verifiers};
use super::{Identity, Subject};

/// Opens a connection to an external authority: it is to have a certificate by one of `root_pem` for its name, and is
/// shown this manager's own, by which it knows that it may sign.
///
/// # Errors
/// When it cannot be reached, or is not trusted.
pub async fn dial_authority(
    host: &str,
    port: u16,
    identity: &Arc<Identity>,
    root_pem: &str,
) -> io::Result<TlsStream<TcpStream>> {
    let config = identity.authority_config(root_pem).map_err(io::Error::other)?;
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(bare.to_owned()).map_err(io::Error::other)?;
    let stream = TcpStream::connect((bare, port)).await?;
    TlsConnector::from(config).connect(name, stream).await
}

/// Checks what an external authority answered: a certificate over the key of the request that says nothing but
/// `subject`, signed by the one root itself, good now, for both sides of a connection. Returns it alone, without what
/// may have come after it.
///
/// # Errors
/// What is wrong with it.
pub fn check_issued(
    chain_pem: &str,
    csr_pem: &str,
    root_pem: &str,
    subject: &Subject,
) -> Result<String, IssuedError> {
    let chain = certificates("certificate", chain_pem).map_err(|_| IssuedError::NoCertificate)?;
    let roots = certificates("root certificate", root_pem).map_err(|_| IssuedError::Root)?;
    let (leaf, root) = (&chain[0], &roots[0]);
    if issuer_of(leaf).map(|(_, key)| key) != requested_key(csr_pem) {
        return Err(IssuedError::OtherKey);
    }
    if Subject::of(leaf).as_ref() != Some(subject) {
        return Err(IssuedError::OtherSubject);
    }
    let (begin, end) = validity(leaf).ok_or(IssuedError::NoCertificate)?;
    if !has_signed(root, leaf, begin, end) {
        return Err(IssuedError::OtherRoot);
    }
    let (_, servers) = verifiers(std::slice::from_ref(root)).map_err(|_| IssuedError::Root)?;
    for name in [subject.node_id.as_str(), subject.unit()] {
        let name = ServerName::try_from(name).map_err(|_| IssuedError::OtherSubject)?;
        servers.verify_server_cert(leaf, &[], &name, &[], UnixTime::now()).map_err(IssuedError::Unusable)?;
    }
    Ok(pem_of(leaf))
}

fn requested_key(csr_pem: &str) -> Option<Vec<u8>> {
    let der = CertificateSigningRequestDer::from_pem_slice(csr_pem.as_bytes()).ok()?;
    let (_, request) = X509CertificationRequest::from_der(&der).ok()?;
    Some(request.certification_request_info.subject_pki.raw.to_vec())
}

/// spec: RFC 7468 section 2
fn pem_of(certificate: &CertificateDer<'_>) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(certificate);
    let lines = text.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line).into_owned());
    let body: Vec<String> = lines.collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", body.join("\n"))
}

/// Why a certificate of an external authority is not taken.
#[derive(Debug, thiserror::Error)]
pub enum IssuedError {
    /// There is none in the answer.
    #[error("the answer holds no certificate")]
    NoCertificate,
    /// The cluster's own root cannot be read.
    #[error("the root certificate is not usable")]
    Root,
    /// It certifies another key than that of the request.
    #[error("the certificate is over another key than the request's")]
    OtherKey,
    /// It names another node, role or cluster.
    #[error("the certificate does not say the node, role and cluster that were asked for")]
    OtherSubject,
    /// The root did not sign it, or it does not say that it is for clients.
    #[error("the certificate is not one for nodes by the cluster's root")]
    OtherRoot,
    /// No node could be reached that shows it.
    #[error("the certificate cannot be used by a node")]
    Unusable(#[source] rustls::Error),
}

/// What an external authority may take for an answer (swarmkit's value).
pub const AUTHORITY_TIMEOUT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::{Authority, CERTIFICATE_LIFETIME, new_key, signing_request};
    use crate::wire::NodeRole;
    use rswarm_base::Timestamp;

    fn subject(node: &str) -> Subject {
        Subject { node_id: node.to_owned(), role: NodeRole::Worker, cluster_id: "c1".to_owned() }
    }

    #[test]
    fn only_what_was_asked_for_is_taken() {
        let (authority, other) = (root(), root());
        let csr = signing_request(&new_key().expect("key")).expect("csr");
        let foreign = signing_request(&new_key().expect("key")).expect("csr");
        let issue = |by: &Authority, csr: &str, node: &str, now: Timestamp| {
            by.issue(csr, &subject(node), CERTIFICATE_LIFETIME, now).expect("issued")
        };
        let check = |chain: &str| check_issued(chain, &csr, authority.certificate_pem(), &subject("n1"));
        let now = Timestamp::wall();
        let good = issue(&authority, &csr, "n1", now);
        let taken = check(&format!("{good}{}", other.certificate_pem())).expect("good");
        assert_eq!(certificates("", &taken).expect("pem"), certificates("", &good).expect("pem"));
        assert!(matches!(check("hello"), Err(IssuedError::NoCertificate)));
        assert!(matches!(check(&issue(&authority, &foreign, "n1", now)), Err(IssuedError::OtherKey)));
        assert!(matches!(check(&issue(&authority, &csr, "n2", now)), Err(IssuedError::OtherSubject)));
        assert!(matches!(check(&issue(&other, &csr, "n1", now)), Err(IssuedError::OtherRoot)));
        let long_ago = Timestamp(now.0 - 200 * 24 * 3600 * 1_000_000_000);
        assert!(matches!(check(&issue(&authority, &csr, "n1", long_ago)), Err(IssuedError::Unusable(_))));
    }

    fn root() -> Authority {
        Authority::generate(Timestamp::wall()).expect("root")
    }
}
