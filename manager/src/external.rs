//! Certificates by an external authority, with CFSSL's protocol as swarmkit speaks it: the managers pass nodes'
//! requests on, with the names that the certificate is to have, and check the answer.
//!
//! The URLs of one root are tried in turn. Which of them are meant is in the cluster's spec: those that come with the
//! root's certificate, or with none while it is the cluster's own.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rswarm_base::{Chain, id};

use rswarm_proto::status::to_status;
use rswarm_proto::tls::{
    AUTHORITY_TIMEOUT, Identity, IssuedError, Subject, check_issued, dial_authority, issuer_info, new_key,
    signing_request,
};
use rswarm_proto::wire::{ClusterSpec, NodeRole, RootCa};
use serde::{Deserialize, Serialize};
use tonic::Status;

/// An answer is a certificate or an error message; nobody makes this of it by accident (swarmkit's value).
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Bytes of an answer that is none, for the error message.
const QUOTE_BYTES_MAX: usize = 200;
/// As for any URL of the scheme.
const HTTPS_PORT: u16 = 443;

/// The authorities that sign by the root that signs now.
pub(crate) fn urls<'s>(root: &RootCa, spec: &'s ClusterSpec) -> Vec<&'s str> {
    let (signer, _, _) = root.signer();
    let of_signer = |certificate: &str| match certificate.trim() {
        "" => root.rotation.is_none(),
        pem => issuer_info(pem).is_some() && issuer_info(pem) == issuer_info(signer),
    };
    let chosen = spec.external_cas.iter().filter(|external| of_signer(&external.ca_cert));
    chosen.map(|external| external.url.as_str()).collect()
}

/// Whether certificates could be had for the cluster as it is to be: one is asked for, of a node that there is not.
///
/// # Errors
/// When no authority answers as it should, or there is none and no key either.
pub(crate) async fn probe(root: &RootCa, spec: &ClusterSpec, identity: &Arc<Identity>) -> Result<(), Status> {
    let ((root_pem, key, _), urls) = (root.signer(), urls(root, spec));
    let which = if root.rotation.is_some() { "desired" } else { "current" };
    let wanted = format!(
        "there must be at least one valid, reachable external CA corresponding to the {which} CA certificate"
    );
    if urls.is_empty() {
        return if key.is_empty() { Err(Status::invalid_argument(wanted)) } else { Ok(()) };
    }
    let key_pem = new_key().map_err(|error| to_status(&error))?;
    let csr_pem = &signing_request(&key_pem).map_err(|error| to_status(&error))?;
    let Subject { cluster_id, .. } = identity.subject();
    let subject = &Subject { node_id: id::cluster_id(), role: NodeRole::Worker, cluster_id };
    let trusted_pem = &root.trust_bundle();
    let signing = Signing { identity, trusted_pem, root_pem, csr_pem, subject };
    let probed = signing.by(&urls).await;
    probed.map(drop).map_err(|status| Status::invalid_argument(format!("{wanted}: {}", status.message())))
}

/// One request as all authorities get it.
pub(crate) struct Signing<'a> {
    /// The manager that asks.
    pub identity: &'a Arc<Identity>,
    /// What an authority's own certificate is checked by.
    pub trusted_pem: &'a str,
    /// The root that is to sign.
    pub root_pem: &'a str,
    /// The node's request.
    pub csr_pem: &'a str,
    /// What the certificate is to say.
    pub subject: &'a Subject,
}

impl Signing<'_> {
    /// The certificate by the first authority that gives one.
    ///
    /// # Errors
    /// What went wrong with each of them.
    pub async fn by(&self, urls: &[&str]) -> Result<String, Status> {
        let mut failures = Vec::new();
        for url in urls {
            match tokio::time::timeout(AUTHORITY_TIMEOUT, self.ask(url)).await {
                Ok(Ok(certificate)) => return Ok(certificate),
                Ok(Err(error)) => failures.push(format!("{url}: {}", Chain(&error))),
                Err(_) => failures.push(format!("{url}: no answer within {} s", seconds(AUTHORITY_TIMEOUT))),
            }
        }
        let failures = failures.join("; ");
        tracing::warn!(
            node.id = self.subject.node_id,
            failures,
            "no external authority signed a certificate"
        );
        Err(Status::unavailable(format!("no external CA signed the certificate: {failures}")))
    }

    async fn ask(&self, url: &str) -> Result<String, ExternalError> {
        let answer = self.post(url).await?;
        let answer: Answer = serde_json::from_slice(&answer).map_err(ExternalError::Parse)?;
        if !answer.success {
            let errors = answer.errors.into_iter().map(|error| error.message).collect::<Vec<_>>();
            return Err(ExternalError::Refused(errors.join(", ")));
        }
        let chain = answer.result.map(|result| result.certificate).unwrap_or_default();
        Ok(check_issued(&chain, self.csr_pem, self.root_pem, self.subject)?)
    }

    async fn post(&self, url: &str) -> Result<Bytes, ExternalError> {
        let uri: Uri = url.parse().map_err(|_| ExternalError::Url)?;
        let (host, authority) = (uri.host().ok_or(ExternalError::Url)?, uri.authority());
        let port = uri.port_u16().unwrap_or(HTTPS_PORT);
        let stream = dial_authority(host, port, self.identity, self.trusted_pem)
            .await
            .map_err(ExternalError::Connect)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(ExternalError::Http)?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let request = Request::post(path)
            .header(HOST, authority.map_or("", |authority| authority.as_str()))
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(self.body())))
            .map_err(|_| ExternalError::Url)?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(ExternalError::Http)?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|_| ExternalError::Body)?.to_bytes();
            match status {
                StatusCode::OK => Ok(body),
                status => Err(ExternalError::Status { status, body: quote(&body) }),
            }
        };
        // The connection lives as long as the exchange does, in the same task.
        tokio::pin!(connection);
        tokio::select! {
            biased;
            answer = exchange => answer,
            ended = &mut connection => Err(ended.map_or_else(ExternalError::Http, |()| ExternalError::Body)),
        }
    }

    fn body(&self) -> Vec<u8> {
        let unit = self.subject.unit();
        let names = [Name { organization: &self.subject.cluster_id, unit }];
        let asked = Asked {
            hosts: [&self.subject.node_id, unit],
            certificate_request: self.csr_pem,
            subject: Names { common_name: &self.subject.node_id, names },
        };
        serde_json::to_vec(&asked).expect("texts alone")
    }
}

/// `signer.SignRequest` of CFSSL, of which only the key of the request counts.
#[derive(Serialize)]
struct Asked<'a> {
    hosts: [&'a str; 2],
    certificate_request: &'a str,
    subject: Names<'a>,
}

#[derive(Serialize)]
struct Names<'a> {
    #[serde(rename = "CN")]
    common_name: &'a str,
    names: [Name<'a>; 1],
}

#[derive(Serialize)]
struct Name<'a> {
    #[serde(rename = "O")]
    organization: &'a str,
    #[serde(rename = "OU")]
    unit: &'a str,
}

/// `api.Response` of CFSSL.
#[derive(Deserialize)]
struct Answer {
    success: bool,
    result: Option<Issued>,
    #[serde(default)]
    errors: Vec<Message>,
}

#[derive(Deserialize)]
struct Issued {
    certificate: String,
}

#[derive(Deserialize)]
struct Message {
    message: String,
}

fn quote(body: &[u8]) -> String {
    String::from_utf8_lossy(&body[..body.len().min(QUOTE_BYTES_MAX)]).trim().to_owned()
}

fn seconds(time: Duration) -> u64 {
    time.as_secs()
}

/// Why one external authority gave no certificate.
#[derive(Debug, thiserror::Error)]
enum ExternalError {
    #[error("the URL is none of an authority")]
    Url,
    #[error("it cannot be reached")]
    Connect(#[source] std::io::Error),
    #[error("it does not speak HTTP")]
    Http(#[source] hyper::Error),
    #[error("the answer is cut off or too long")]
    Body,
    #[error("unexpected status code in CSR response: {} - {body}", status.as_u16())]
    Status { status: StatusCode, body: String },
    #[error("the answer is not CFSSL's")]
    Parse(#[source] serde_json::Error),
    #[error("it refused: {0}")]
    Refused(String),
    #[error(transparent)]
    Issued(#[from] IssuedError),
}

#[cfg(test)]
mod tests {
    use rswarm_base::Timestamp;
    use rswarm_proto::tls::Authority;
    use rswarm_proto::wire::{ExternalCa, RootRotation};

    use super::*;

    fn root() -> String {
        Authority::generate(Timestamp::wall()).expect("root").certificate_pem().to_owned()
    }

    #[test]
    fn each_root_has_its_own_authorities() {
        let (old, new) = (root(), root());
        let external = |url: &str, ca_cert: &str| ExternalCa {
            url: url.to_owned(),
            ca_cert: ca_cert.to_owned(),
            ..ExternalCa::default()
        };
        let spec = ClusterSpec {
            external_cas: vec![
                external("https://a", ""),
                external("https://b", &new),
                external("https://c", &format!("\n{old}\n")),
            ],
            ..ClusterSpec::default()
        };
        let mut root = RootCa { certificate_pem: old, ..RootCa::default() };
        assert_eq!(urls(&root, &spec), ["https://a", "https://c"]);
        root.rotation = Some(RootRotation { certificate_pem: new, ..RootRotation::default() });
        assert_eq!(urls(&root, &spec), ["https://b"], "the root to be signs");
    }
}
