//! How a node gets its certificate: the first by join token, every later one by the certificate it has.

use std::time::Duration;

use rswarm_base::{Classify, Kind};
use tonic::Status;
use tonic::transport::Channel;

use super::{AuthorityError, ConnectError, Credentials, Identity, connect_pinned, new_key, signing_request};
use crate::status;
use crate::token::JoinToken;
use crate::wire::ca_client::CaClient;
use crate::wire::{IssueRequest, IssueResponse, NodeAvailability, RenewRequest};

/// Docker's limit on a whole join.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// What a node says about itself when it joins.
#[derive(Debug, Clone)]
pub struct Enrollment {
    /// Its host name, shown until its agent says more.
    pub hostname: String,
    /// Whether it takes tasks at once.
    pub availability: NodeAvailability,
}

/// Asks the manager at `addr` for a node's first certificate, over a new key. The token decides the role.
///
/// # Errors
/// When the manager cannot be reached, is of another cluster than the token, or refuses the token.
pub async fn join(addr: &str, token: &JoinToken, node: Enrollment) -> Result<Credentials, EnrollError> {
    let channel = connect_pinned(addr, token.root_digest).await?;
    let key_pem = new_key()?;
    let request = IssueRequest {
        csr_pem: signing_request(&key_pem)?,
        token: token.to_string(),
        availability: node.availability.into(),
        hostname: node.hostname,
    };
    let issued = bounded(CaClient::new(channel).issue(request)).await?;
    Ok(credentials(key_pem, issued))
}

/// Asks for a new certificate over the key that the node has, with the role the cluster has for it now.
///
/// # Errors
/// When the manager refuses, or does not answer in time.
pub async fn renew(channel: Channel, identity: &Identity) -> Result<Credentials, EnrollError> {
    let key_pem = identity.credentials().key_pem;
    let request = RenewRequest { csr_pem: signing_request(&key_pem)? };
    let issued = bounded(CaClient::new(channel).renew(request)).await?;
    Ok(credentials(key_pem, issued))
}

async fn bounded(
    call: impl Future<Output = Result<tonic::Response<IssueResponse>, Status>>,
) -> Result<IssueResponse, EnrollError> {
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(Ok(issued)) => Ok(issued.into_inner()),
        Ok(Err(status)) => Err(EnrollError::Refused(Box::new(status))),
        Err(_) => Err(EnrollError::Timeout),
    }
}

fn credentials(key_pem: String, issued: IssueResponse) -> Credentials {
    Credentials { key_pem, chain_pem: issued.certificate_pem, root_pem: issued.root_pem }
}

/// Why a node has no (new) certificate.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// The manager cannot be reached or is not of the token's cluster.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The manager said no; its words.
    #[error("{}", .0.message())]
    Refused(Box<Status>),
    /// The manager did not answer.
    #[error("no certificate within {} s", CALL_TIMEOUT.as_secs())]
    Timeout,
    /// The node's own key is not usable.
    #[error(transparent)]
    Key(#[from] AuthorityError),
}

impl Classify for EnrollError {
    fn kind(&self) -> Kind {
        match self {
            EnrollError::Connect(error) => error.kind(),
            EnrollError::Refused(status) => status::kind(status.code()),
            EnrollError::Timeout => Kind::DeadlineExceeded,
            EnrollError::Key(error) => error.kind(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            EnrollError::Refused(status) => {
                status.metadata().get("hint").and_then(|hint| hint.to_str().ok()).map(str::to_owned)
            }
            EnrollError::Connect(_) | EnrollError::Timeout | EnrollError::Key(_) => None,
        }
    }
}
