//! The certificate authority: lets nodes in by token, renews their certificates with the role they have now.
//!
//! Only the leader signs, so that a token that was rotated a moment ago is refused everywhere.

use std::sync::Arc;

use rswarm_base::audit::Audit;
use rswarm_base::id::cluster_id;
use rswarm_base::{IdGen, Timestamp};
use rswarm_manager_core::{Author, State};
use rswarm_proto::status::to_status;
use rswarm_proto::tls::{Authority, Credentials, Identity, Subject, signing_request};
use rswarm_proto::token::JoinToken;
use rswarm_proto::wire::ca_client::CaClient;
use rswarm_proto::wire::ca_server::{Ca, CaServer};
use rswarm_proto::wire::{
    Change, Cluster, IssueRequest, IssueResponse, NodeRole, RenewRequest, RootCa, RootRequest, RootResponse,
    Transaction, change,
};
use tonic::{Request, Response, Status};

use crate::external::{self, Signing};
use crate::forward::{Forward, Repeat, not_leader, propose_status};
use crate::found::{certificate_lifetime, new_node};
use crate::guard::{Guard, set_caller};
use crate::record;
use crate::store::StoreHandle;

/// Serves certificates.
pub(crate) struct CaService {
    /// Who may call.
    pub guard: Guard,
    /// Who this manager is, to an external authority.
    pub identity: Arc<Identity>,
    /// Where the leader is.
    pub forward: Forward,
    /// The state.
    pub store: StoreHandle,
    /// Where it is written down who was let in.
    pub audit: Audit,
}

impl CaService {
    /// For the node's gRPC server.
    pub(crate) fn server(self) -> CaServer<Self> {
        CaServer::new(self)
    }

    async fn issue_at_leader(
        &self,
        request: Request<IssueRequest>,
    ) -> Result<Response<IssueResponse>, Status> {
        // Mistyped tokens are told so without troubling the leader.
        JoinToken::parse(&request.get_ref().token).map_err(|error| to_status(&error))?;
        let here = |request| async { self.issue_here(request).await };
        let there = |channel, onward| async move { CaClient::new(channel).issue(onward).await };
        self.forward.at_leader(request, Repeat::Unsafe, here, there).await
    }

    async fn issue_here(&self, request: IssueRequest) -> Result<IssueResponse, Status> {
        let (state, cluster, root) = self.authority().await?;
        let role = admitted_role(&root, &request.token)?;
        let subject = Subject { node_id: cluster_id(), role, cluster_id: cluster.id.clone() };
        // Signed before the node is stored: a request that is none must leave no node behind.
        let response = self.signed(&cluster, &root, &subject, &request.csr_pem).await?;
        let node = new_node(subject.node_id, role, request.availability(), request.hostname.clone());
        let change =
            Change { action: change::Action::Create.into(), object: Some(node.into()), ..Change::default() };
        let transaction = Transaction {
            id: IdGen::from_system().number(),
            author: Author::Ca.name().to_owned(),
            changes: vec![change],
        };
        drop(state);
        self.store.propose(transaction).await.map_err(|error| propose_status(&error))?;
        tracing::info!(node.id = response.node_id, ?role, hostname = request.hostname, "a node joined");
        Ok(response)
    }

    async fn renew_here(&self, node_id: &str, request: RenewRequest) -> Result<IssueResponse, Status> {
        let (state, cluster, root) = self.authority().await?;
        let node = state.node(node_id).ok_or_else(|| {
            Status::permission_denied(format!("node {node_id} is not part of this cluster any more"))
        })?;
        let subject =
            Subject { node_id: node_id.to_owned(), role: node.role(), cluster_id: cluster.id.clone() };
        drop(state);
        self.signed(&cluster, &root, &subject, &request.csr_pem).await
    }

    /// The certificate by an external authority when there is one for the root, else by the root's key.
    async fn signed(
        &self,
        cluster: &Cluster,
        root: &RootCa,
        subject: &Subject,
        csr_pem: &str,
    ) -> Result<IssueResponse, Status> {
        let spec = cluster.spec.clone().unwrap_or_default();
        let urls = external::urls(root, &spec);
        if urls.is_empty() {
            return sign(cluster, root, subject, csr_pem);
        }
        let (root_pem, _, between) = root.signer();
        let trusted_pem = &root.trust_bundle();
        let signing = Signing { identity: &self.identity, trusted_pem, root_pem, csr_pem, subject };
        Ok(response(root, subject, signing.by(&urls).await? + between))
    }

    /// The cluster's root, as the leader knows it.
    async fn authority(&self) -> Result<(Arc<State>, Arc<Cluster>, RootCa), Status> {
        if !self.store.status().is_leading() {
            return Err(not_leader());
        }
        let state = self.store.state();
        let cluster = state.cluster().cloned().ok_or_else(not_leader)?;
        let root =
            cluster.root_ca.clone().ok_or_else(|| Status::internal("the cluster has no root certificate"))?;
        Ok((state, cluster, root))
    }
}

#[tonic::async_trait]
impl Ca for CaService {
    async fn root(&self, _: Request<RootRequest>) -> Result<Response<RootResponse>, Status> {
        let state = self.store.state();
        let root = state.cluster().and_then(|cluster| cluster.root_ca.as_ref()).ok_or_else(not_leader)?;
        Ok(Response::new(RootResponse { certificate_pem: root.trust_bundle() }))
    }

    async fn issue(&self, request: Request<IssueRequest>) -> Result<Response<IssueResponse>, Status> {
        let entry = record::begin(&self.audit, "issue_certificate", &request);
        let answer = self.issue_at_leader(request).await;
        record::end(&self.audit, entry, &answer);
        answer
    }

    async fn renew(&self, mut request: Request<RenewRequest>) -> Result<Response<IssueResponse>, Status> {
        let node_id = self.guard.renewing(&request)?;
        set_caller(&mut request, &node_id);
        let here = |request| async { self.renew_here(&node_id, request).await };
        let there = |channel, onward| async move { CaClient::new(channel).renew(onward).await };
        self.forward.at_leader(request, Repeat::Safe, here, there).await
    }
}

/// Signs a manager's own certificate anew by the root in its own state. When all managers were off until their
/// certificates had expired there is nobody else who could.
pub(crate) fn renew_own(state: &State, identity: &Identity) -> Result<Credentials, Status> {
    let missing = || Status::failed_precondition("this manager holds no state to renew its certificate by");
    let cluster = state.cluster().ok_or_else(missing)?;
    let root = cluster.root_ca.as_ref().ok_or_else(missing)?;
    let Subject { node_id, .. } = identity.subject();
    let node = state.node(&node_id).filter(|node| node.role() == NodeRole::Manager).ok_or_else(|| {
        Status::permission_denied(format!("node {node_id} is not a manager of this cluster any more"))
    })?;
    let subject = Subject { node_id, role: node.role(), cluster_id: cluster.id.clone() };
    let key_pem = identity.credentials().key_pem;
    let csr = signing_request(&key_pem).map_err(|error| to_status(&error))?;
    let issued = sign(cluster, root, &subject, &csr)?;
    Ok(Credentials { key_pem, chain_pem: issued.certificate_pem, root_pem: issued.root_pem })
}

/// The role that a token gives.
fn admitted_role(root: &RootCa, token: &str) -> Result<NodeRole, Status> {
    let shown = JoinToken::parse(token).map_err(|error| to_status(&error))?;
    let stored = |token: &str| {
        JoinToken::parse(token).map_err(|_| Status::internal("the cluster's own join token cannot be read"))
    };
    let (worker, manager) = (stored(&root.worker_token)?, stored(&root.manager_token)?);
    // Both are compared, whatever the first says, so that the time tells nothing.
    match (shown.matches(&worker), shown.matches(&manager)) {
        (true, _) => Ok(NodeRole::Worker),
        (_, true) => Ok(NodeRole::Manager),
        (false, false) if shown.root_digest != worker.root_digest => {
            Err(refusal("it is of another cluster, or its root digest is mistyped"))
        }
        (false, false) => Err(refusal("its secret is mistyped, or the token was rotated since")),
    }
}

fn refusal(what: &str) -> Status {
    let message = format!("invalid join token: {what}. A valid join token is necessary to join this cluster");
    let mut status = Status::invalid_argument(message);
    let hint = "copy the current token from `rswarm swarm join-token worker` (or `manager`) on a manager";
    status.metadata_mut().insert("hint", tonic::metadata::MetadataValue::from_static(hint));
    status
}

fn sign(cluster: &Cluster, root: &RootCa, subject: &Subject, csr_pem: &str) -> Result<IssueResponse, Status> {
    let (certificate, key, between) = root.signer();
    if key.is_empty() {
        return Err(keyless());
    }
    let key = std::str::from_utf8(key).map_err(|_| Status::internal("the root key is not text"))?;
    let authority = Authority::from_pem(certificate, key).map_err(|error| to_status(&error))?;
    let lifetime = certificate_lifetime(cluster.spec.as_ref().unwrap_or(&Default::default()));
    let issued = authority.issue(csr_pem, subject, lifetime, Timestamp::wall());
    Ok(response(root, subject, issued.map_err(|error| to_status(&error))? + between))
}

fn response(root: &RootCa, subject: &Subject, certificate_pem: String) -> IssueResponse {
    IssueResponse {
        node_id: subject.node_id.clone(),
        cluster_id: subject.cluster_id.clone(),
        role: subject.role.into(),
        certificate_pem,
        root_pem: root.trust_bundle(),
    }
}

/// The managers hold no key, and are told of nobody who does.
fn keyless() -> Status {
    let mut status = Status::failed_precondition(
        "no external CA URLs: the key of the cluster's root is with an external CA, and there is none for this root",
    );
    let hint = "name one with `rswarm swarm update --external-ca protocol=cfssl,url=https://...`";
    status.metadata_mut().insert("hint", tonic::metadata::MetadataValue::from_static(hint));
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::found::{NewCluster, found};
    use rswarm_manager_core::apply;
    use rswarm_proto::wire::{Batch, Object};

    fn root() -> RootCa {
        let (founding, _) = found(NewCluster::default(), Timestamp::now()).expect("cluster");
        founding.cluster.root_ca.expect("root")
    }

    #[test]
    fn a_manager_whose_certificate_has_expired_renews_it_by_its_own_state() {
        let long_ago = Timestamp(Timestamp::wall().0 - 100 * 24 * 3600 * 1_000_000_000);
        let (founding, identity) = found(NewCluster::default(), long_ago).expect("cluster");
        assert!(identity.is_expired());
        let batch = |objects: Vec<Object>| {
            let create = |object| Change {
                action: change::Action::Create.into(),
                object: Some(object),
                ..Change::default()
            };
            let author = Author::Bootstrap.name().to_owned();
            let changes = objects.into_iter().map(create).collect();
            let batch = Batch { transactions: vec![Transaction { id: 1, author, changes }], now: 1 };
            apply(&State::default(), 1, batch).state
        };
        let known = batch(vec![founding.cluster.clone().into(), founding.node.into()]);
        identity.replace(renew_own(&known, &identity).expect("renewed")).expect("usable");
        assert!(!identity.is_expired());
        let unknown = batch(vec![founding.cluster.into()]);
        assert_eq!(
            renew_own(&unknown, &identity).expect_err("refused").code(),
            tonic::Code::PermissionDenied
        );
    }

    #[test]
    fn the_token_decides_the_role() {
        let root = root();
        assert_eq!(admitted_role(&root, &root.worker_token).expect("worker"), NodeRole::Worker);
        assert_eq!(admitted_role(&root, &root.manager_token).expect("manager"), NodeRole::Manager);
    }

    #[test]
    fn a_refusal_says_what_is_wrong_with_the_token() {
        let (root_ca, other) = (root(), root());
        let refused = |token: &str| admitted_role(&root_ca, token).expect_err("refused").message().to_owned();
        assert!(refused(&other.worker_token).contains("another cluster"));
        let digest = JoinToken::parse(&root_ca.worker_token).expect("valid").root_digest;
        assert!(refused(&JoinToken::generate(digest).to_string()).contains("rotated"));
        assert!(refused("SWMTKN-1-abc").contains("root digest has 3 characters instead of 50"));
    }
}
