//! What a certificate says about its holder, and what a caller may do.

use std::net::SocketAddr;

use rustls::pki_types::CertificateDer;
use tonic::{Request, Status};
use x509_parser::x509::X509Name;

use crate::wire::NodeRole;

/// A node as its certificate names it: CN, OU and O.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Which node.
    pub node_id: String,
    /// What it may do.
    pub role: NodeRole,
    /// Of which cluster.
    pub cluster_id: String,
}

impl Subject {
    /// Reads a certificate; `None` when it is not one of a node.
    #[must_use]
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Subject> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
        let name = parsed.subject();
        let role = match unit(name)? {
            "swarm-manager" => NodeRole::Manager,
            "swarm-worker" => NodeRole::Worker,
            _ => return None,
        };
        let node_id = name.iter_common_name().next()?.as_str().ok()?.to_owned();
        let cluster_id = name.iter_organization().next()?.as_str().ok()?.to_owned();
        Some(Subject { node_id, role, cluster_id })
    }

    /// The role as the certificate's organizational unit, which is also a DNS name in it.
    pub fn unit(&self) -> &'static str {
        match self.role {
            NodeRole::Manager => "swarm-manager",
            NodeRole::Worker => "swarm-worker",
        }
    }
}

fn unit<'a>(name: &'a X509Name<'_>) -> Option<&'a str> {
    name.iter_organizational_unit().next()?.as_str().ok()
}

/// Who is at the other end of a connection. The default is anonymous: a node that has not joined yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peer {
    /// The node, or empty.
    pub node_id: String,
    /// Its role by certificate; `None` for an anonymous caller.
    pub role: Option<NodeRole>,
    /// Its cluster, or empty.
    pub cluster_id: String,
    /// Where the connection comes from.
    pub addr: Option<SocketAddr>,
    /// Its certificate has expired: it may renew it, and nothing else.
    pub expired: bool,
}

/// The caller of a request; anonymous when it showed no certificate.
pub fn peer<T>(request: &Request<T>) -> Peer {
    request.extensions().get::<Peer>().cloned().unwrap_or_default()
}

/// The caller, when its certificate gives it at least this role: a manager may do what a worker may.
///
/// # Errors
/// `UNAUTHENTICATED` for an anonymous caller and one whose certificate has expired, `PERMISSION_DENIED` for a
/// worker where a manager is needed.
pub fn require<T>(request: &Request<T>, role: NodeRole) -> Result<Peer, Status> {
    let peer = require_expired_too(request, role)?;
    if peer.expired {
        return Err(Status::unauthenticated(format!(
            "the certificate of node {} has expired: it has to be renewed first",
            peer.node_id
        )));
    }
    Ok(peer)
}

/// The same for the one call that an expired certificate is still good for: to renew it.
///
/// # Errors
/// As [`require`], but for expiry.
pub fn require_expired_too<T>(request: &Request<T>, role: NodeRole) -> Result<Peer, Status> {
    let peer = peer(request);
    match (peer.role, role) {
        (None, _) => Err(Status::unauthenticated("this call needs the certificate of a node of the cluster")),
        (Some(NodeRole::Worker), NodeRole::Manager) => Err(Status::permission_denied(format!(
            "node {} is a worker, this call needs the certificate of a manager",
            peer.node_id
        ))),
        (Some(NodeRole::Worker | NodeRole::Manager), _) => Ok(peer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    fn call(role: Option<NodeRole>) -> Request<()> {
        let mut request = Request::new(());
        request.extensions_mut().insert(Peer { role, ..Peer::default() });
        request
    }

    #[test]
    fn a_role_gives_its_own_rights_and_those_below() {
        use NodeRole::{Manager, Worker};
        let refused = |role, wanted| require(&call(role), wanted).expect_err("refused").code();
        assert_eq!(refused(None, Worker), Code::Unauthenticated);
        assert_eq!(refused(None, Manager), Code::Unauthenticated);
        assert_eq!(refused(Some(Worker), Manager), Code::PermissionDenied);
        for (role, wanted) in [(Worker, Worker), (Manager, Worker), (Manager, Manager)] {
            require(&call(Some(role)), wanted).expect("allowed");
        }
        assert_eq!(require(&Request::new(()), Worker).expect_err("no peer").code(), Code::Unauthenticated);
    }

    #[test]
    fn an_expired_certificate_is_good_for_its_renewal_only() {
        let mut request = call(Some(NodeRole::Manager));
        let expired = Peer { expired: true, ..peer(&request) };
        request.extensions_mut().insert(expired);
        let refused = require(&request, NodeRole::Worker).expect_err("refused");
        assert_eq!(refused.code(), Code::Unauthenticated);
        assert!(refused.message().contains("expired"), "{refused}");
        require_expired_too(&request, NodeRole::Worker).expect("to renew it");
    }
}
