//! What users ask: answered by the leader, passed on to it by every other manager.
//!
//! The bodies are `rswarm_manager_core::control`; here they get the latest state, are proposed, and are decided
//! anew when somebody else wrote the same object in between.

use std::sync::Arc;
use std::time::Duration;

use rswarm_base::audit::Audit;
use rswarm_base::{Clock, IdGen, SystemClock};
use rswarm_manager_core::content::versions;
use rswarm_manager_core::control::{self, ControlError, Decision, Fresh};
use rswarm_manager_core::forecast::forecast;
use rswarm_manager_core::update::deployment;
use rswarm_manager_core::{AnyObject, Rejected, State};
use rswarm_proto::model::object::Stored;
use rswarm_proto::status::to_status;
use rswarm_proto::tls::{Identity, MESSAGE_BYTES_MAX, UnlockKey};
use rswarm_proto::token::{JoinToken, RootDigest};
use rswarm_proto::wire::control_client::ControlClient;
use rswarm_proto::wire::control_server::{Control, ControlServer};
use rswarm_proto::wire::{
    Cluster, Config, CreateConfigRequest, CreateNetworkRequest, CreateSecretRequest, CreateServiceRequest,
    Forecast, ForecastServiceRequest, GetRequest, LeaveManagerRequest, ListRequest, ListResponse, Network,
    Node, Object, ObjectKind, RemoveRequest, RemoveResponse, Secret, Service, UnlockKeyRequest,
    UnlockKeyResponse, UpdateClusterRequest, UpdateConfigRequest, UpdateNodeRequest, UpdateSecretRequest,
    UpdateServiceRequest, UsageRequest, UsageResponse, forecast_service_request::Request as Asked, object,
};
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::blocking::blocking;
use crate::external;
use crate::forward::{Forward, Repeat, not_leader, propose_status, was_forwarded};
use crate::guard::Guard;
use crate::heartbeats::Heartbeats;
use crate::record;
use crate::replica::Replica;
use crate::rotation::next_root;
use crate::store::{NO_LEADER, ProposeError, StoreHandle};
use crate::usage;

/// How often a decision is made anew because its object was written in between.
const CONFLICTS_MAX: usize = 8;
/// A read that takes longer has no quorum behind it.
const READ_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a manager that leaves waits until it is out of the raft group.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves control calls.
pub(crate) struct ControlService {
    /// Who may call.
    pub guard: Guard,
    /// Where the leader is.
    pub forward: Forward,
    /// What is done here when that is this manager.
    pub desk: Desk,
    /// Who answers reads when that is nobody.
    pub replica: Replica,
    /// Where calls are written down.
    pub audit: Audit,
}

impl ControlService {
    /// For the node's gRPC server.
    pub(crate) fn server(self) -> ControlServer<Self> {
        ControlServer::new(self)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }
}

fn client(channel: Channel) -> ControlClient<Channel> {
    ControlClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// One call: by name, as the leader's desk and as the leader's client answer it, and written down.
macro_rules! call {
    ($service:ident, $request:ident, $repeat:ident, $method:ident) => {{
        let entry = record::begin(&$service.audit, stringify!($method), &$request);
        let answer = async { answered!($service, $request, $repeat, $method) }.await;
        record::end(&$service.audit, entry, &answer);
        answer
    }};
}

/// One call, answered.
macro_rules! answered {
    ($service:ident, $request:ident, $repeat:ident, $method:ident) => {{
        $service.guard.manager(&$request)?;
        let here = |message| $service.desk.$method(message);
        let there = |channel, onward| async move { client(channel).$method(onward).await };
        $service.forward.at_leader($request, Repeat::$repeat, here, there).await
    }};
}

/// A read, which this manager answers by its own state while nobody leads.
macro_rules! read {
    ($service:ident, $request:ident, $method:ident, $here:ident) => {{
        $service.guard.manager(&$request)?;
        let was_forwarded = was_forwarded(&$request);
        let at_leader = async { answered!($service, $request, Safe, $method) };
        if was_forwarded { at_leader.await } else { $service.replica.read(at_leader, $here).await }
    }};
}

#[tonic::async_trait]
impl Control for ControlService {
    async fn get(&self, request: Request<GetRequest>) -> Result<Response<Object>, Status> {
        let message = request.get_ref().clone();
        let here = || self.desk.get_of(&self.desk.store.state(), &message);
        read!(self, request, get, here)
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let message = *request.get_ref();
        let here = || self.desk.list_of(&self.desk.store.state(), message);
        read!(self, request, list, here)
    }

    async fn usage(&self, request: Request<UsageRequest>) -> Result<Response<UsageResponse>, Status> {
        answered!(self, request, Safe, usage)
    }

    async fn create_service(
        &self,
        request: Request<CreateServiceRequest>,
    ) -> Result<Response<Service>, Status> {
        call!(self, request, Unsafe, create_service)
    }

    async fn update_service(
        &self,
        request: Request<UpdateServiceRequest>,
    ) -> Result<Response<Service>, Status> {
        call!(self, request, Unsafe, update_service)
    }

    async fn forecast_service(
        &self,
        request: Request<ForecastServiceRequest>,
    ) -> Result<Response<Forecast>, Status> {
        answered!(self, request, Safe, forecast_service)
    }

    async fn remove_service(
        &self,
        request: Request<RemoveRequest>,
    ) -> Result<Response<RemoveResponse>, Status> {
        call!(self, request, Unsafe, remove_service)
    }

    async fn create_network(
        &self,
        request: Request<CreateNetworkRequest>,
    ) -> Result<Response<Network>, Status> {
        call!(self, request, Unsafe, create_network)
    }

    async fn remove_network(
        &self,
        request: Request<RemoveRequest>,
    ) -> Result<Response<RemoveResponse>, Status> {
        call!(self, request, Unsafe, remove_network)
    }

    async fn create_secret(&self, request: Request<CreateSecretRequest>) -> Result<Response<Secret>, Status> {
        call!(self, request, Unsafe, create_secret)
    }

    async fn update_secret(&self, request: Request<UpdateSecretRequest>) -> Result<Response<Secret>, Status> {
        call!(self, request, Unsafe, update_secret)
    }

    async fn remove_secret(
        &self,
        request: Request<RemoveRequest>,
    ) -> Result<Response<RemoveResponse>, Status> {
        call!(self, request, Unsafe, remove_secret)
    }

    async fn create_config(&self, request: Request<CreateConfigRequest>) -> Result<Response<Config>, Status> {
        call!(self, request, Unsafe, create_config)
    }

    async fn update_config(&self, request: Request<UpdateConfigRequest>) -> Result<Response<Config>, Status> {
        call!(self, request, Unsafe, update_config)
    }

    async fn remove_config(
        &self,
        request: Request<RemoveRequest>,
    ) -> Result<Response<RemoveResponse>, Status> {
        call!(self, request, Unsafe, remove_config)
    }

    async fn update_node(&self, request: Request<UpdateNodeRequest>) -> Result<Response<Node>, Status> {
        call!(self, request, Unsafe, update_node)
    }

    async fn remove_node(&self, request: Request<RemoveRequest>) -> Result<Response<RemoveResponse>, Status> {
        call!(self, request, Unsafe, remove_node)
    }

    async fn update_cluster(
        &self,
        request: Request<UpdateClusterRequest>,
    ) -> Result<Response<Cluster>, Status> {
        call!(self, request, Unsafe, update_cluster)
    }

    async fn get_unlock_key(
        &self,
        request: Request<UnlockKeyRequest>,
    ) -> Result<Response<UnlockKeyResponse>, Status> {
        call!(self, request, Safe, get_unlock_key)
    }

    async fn leave_manager(
        &self,
        request: Request<LeaveManagerRequest>,
    ) -> Result<Response<RemoveResponse>, Status> {
        call!(self, request, Safe, leave_manager)
    }
}

/// The leader's desk: each call as the leader carries it out.
#[derive(Clone)]
pub(crate) struct Desk {
    /// The state.
    pub store: StoreHandle,
    /// What nodes have acknowledged.
    pub heartbeats: Heartbeats,
    /// Who this manager is, to an external authority.
    pub identity: Arc<Identity>,
}

impl Desk {
    async fn get(&self, request: GetRequest) -> Result<Object, Status> {
        self.get_of(&*self.latest().await?, &request)
    }

    fn get_of(&self, state: &State, request: &GetRequest) -> Result<Object, Status> {
        let kind = kind(request.kind)?;
        let found = control::get(state, kind, &request.reference).map_err(|error| to_status(&error))?;
        Ok(self.shown(&found))
    }

    async fn list(&self, request: ListRequest) -> Result<ListResponse, Status> {
        self.list_of(&*self.latest().await?, request)
    }

    fn list_of(&self, state: &State, request: ListRequest) -> Result<ListResponse, Status> {
        let objects = control::list(state, kind(request.kind)?);
        Ok(ListResponse { objects: objects.iter().map(|object| self.shown(object)).collect() })
    }

    async fn usage(&self, _: UsageRequest) -> Result<UsageResponse, Status> {
        usage::gather(&*self.latest().await?, &self.heartbeats).await
    }

    async fn create_service(&self, request: CreateServiceRequest) -> Result<Service, Status> {
        self.decide(|state, ids| control::create_service(state, &request, SystemClock.now(), ids)).await
    }

    async fn update_service(&self, request: UpdateServiceRequest) -> Result<Service, Status> {
        self.decide(|state, ids| control::update_service(state, &request, SystemClock.now(), ids)).await
    }

    async fn forecast_service(&self, request: ForecastServiceRequest) -> Result<Forecast, Status> {
        let state = self.latest().await?;
        let job = move || {
            let (now, ids) = (SystemClock.now(), IdGen::from_system());
            let decide = |state: &State, ids: &mut IdGen| match &request.request {
                Some(Asked::Create(request)) => control::create_service(state, request, now, ids),
                Some(Asked::Update(request)) => control::update_service(state, request, now, ids),
                None => Err(ControlError::Incomplete("a service spec must be provided")),
            };
            forecast(&state, decide, now, ids)
        };
        let mut foretold = blocking(job).await.map_err(|error| to_status(&error))?;
        if let Some(service) = foretold.service.take() {
            let shown = control::shown(&AnyObject::Service(Arc::new(service)));
            foretold.service = Service::try_from(shown).ok();
        }
        Ok(foretold)
    }

    async fn remove_service(&self, request: RemoveRequest) -> Result<RemoveResponse, Status> {
        self.carry_out(|state, ids| control::remove_service(state, &request, ids)).await?;
        Ok(RemoveResponse {})
    }

    async fn create_network(&self, request: CreateNetworkRequest) -> Result<Network, Status> {
        self.decide(|state, ids| control::create_network(state, &request, ids)).await
    }

    async fn remove_network(&self, request: RemoveRequest) -> Result<RemoveResponse, Status> {
        self.carry_out(|state, ids| control::remove_network(state, &request, ids)).await?;
        Ok(RemoveResponse {})
    }

    async fn create_secret(&self, request: CreateSecretRequest) -> Result<Secret, Status> {
        self.decide(|state, ids| control::create_secret(state, &request, ids)).await
    }

    async fn update_secret(&self, request: UpdateSecretRequest) -> Result<Secret, Status> {
        self.decide(|state, ids| control::update_secret(state, &request, ids)).await
    }

    async fn remove_secret(&self, request: RemoveRequest) -> Result<RemoveResponse, Status> {
        self.carry_out(|state, ids| control::remove_secret(state, &request, ids)).await?;
        Ok(RemoveResponse {})
    }

    async fn create_config(&self, request: CreateConfigRequest) -> Result<Config, Status> {
        self.decide(|state, ids| control::create_config(state, &request, ids)).await
    }

    async fn update_config(&self, request: UpdateConfigRequest) -> Result<Config, Status> {
        self.decide(|state, ids| control::update_config(state, &request, ids)).await
    }

    async fn remove_config(&self, request: RemoveRequest) -> Result<RemoveResponse, Status> {
        self.carry_out(|state, ids| control::remove_config(state, &request, ids)).await?;
        Ok(RemoveResponse {})
    }

    async fn update_node(&self, request: UpdateNodeRequest) -> Result<Node, Status> {
        let members = |store: &StoreHandle| store.status().members.clone();
        self.decide(|state, ids| control::update_node(state, &request, &members(&self.store), ids)).await
    }

    async fn remove_node(&self, request: RemoveRequest) -> Result<RemoveResponse, Status> {
        self.carry_out(|state, ids| control::remove_node(state, &request, ids)).await?;
        Ok(RemoveResponse {})
    }

    async fn update_cluster(&self, request: UpdateClusterRequest) -> Result<Cluster, Status> {
        // Said here, because the decision has no word for it; the decision is made on the state of then.
        let stored = self.store.state().cluster().map(|cluster| Cluster::clone(cluster)).unwrap_or_default();
        let current = stored.root_ca.unwrap_or_default();
        let root = next_root(&current, &request, SystemClock.now()).map_err(|error| to_status(&error))?;
        let before = stored.spec.unwrap_or_default();
        let after = request.spec.as_ref().unwrap_or(&before);
        if root.is_some() || after.external_cas != before.external_cas {
            external::probe(root.as_ref().unwrap_or(&current), after, &self.identity).await?;
        }
        if let Some(rotation) = root.as_ref().and_then(|root| root.rotation.as_ref()) {
            tracing::info!(root = rotation.certificate_pem, "the root certificate is being replaced");
        }
        self.decide(|state, ids| {
            let fresh = |wanted: bool| wanted.then(|| new_token(state)).flatten();
            let fresh = Fresh {
                worker: fresh(request.rotate_worker_token),
                manager: fresh(request.rotate_manager_token),
                unlock_key: UnlockKey::generate().to_bytes(),
                root: root.clone(),
            };
            control::update_cluster(state, &request, fresh, ids)
        })
        .await
    }

    async fn get_unlock_key(&self, _: UnlockKeyRequest) -> Result<UnlockKeyResponse, Status> {
        let state = self.latest().await?;
        Ok(UnlockKeyResponse {
            key: state.cluster().map(|cluster| cluster.unlock_key.clone()).unwrap_or_default(),
        })
    }

    async fn leave_manager(&self, request: LeaveManagerRequest) -> Result<RemoveResponse, Status> {
        let members = |store: &StoreHandle| store.status().members.clone();
        let node_id = self
            .carry_out(|state, ids| control::leave_manager(state, &request, &members(&self.store), ids))
            .await?;
        match timeout(LEAVE_TIMEOUT, self.left(&node_id)).await {
            Ok(()) => Ok(RemoveResponse {}),
            Err(_) => Err(Status::deadline_exceeded(format!(
                "node {node_id} is to be a worker, but it is still a raft member after {} s",
                LEAVE_TIMEOUT.as_secs()
            ))),
        }
    }

    /// Resolves when the node is out of the raft group. When that is this manager, the last thing that it
    /// hears may be that.
    async fn left(&self, node_id: &str) {
        let (mut state, mut status) = (self.store.state.clone(), self.store.status.clone());
        let is_out = |state: &State| state.node(node_id).is_none_or(|node| node.manager_status.is_none());
        loop {
            if is_out(&state.borrow_and_update()) || status.borrow_and_update().role.removed {
                return;
            }
            tokio::select! {
                changed = state.changed() => if changed.is_err() { return },
                changed = status.changed() => if changed.is_err() { return },
            }
        }
    }

    /// The state with everything that was acknowledged before.
    async fn latest(&self) -> Result<Arc<State>, Status> {
        if !self.store.status().is_leading() {
            return Err(not_leader());
        }
        match timeout(READ_TIMEOUT, self.store.read()).await {
            Ok(read) => read.map_err(|error| propose_status(&error)),
            Err(_) => Err(Status::unavailable(NO_LEADER)),
        }
    }

    /// [`Desk::carry_out`], answered with the object that it was about.
    async fn decide<T: Stored + TryFrom<Object>>(
        &self,
        decision: impl Fn(&State, &mut IdGen) -> Decision,
    ) -> Result<T, Status> {
        let id = self.carry_out(decision).await?;
        let found = self.store.state().get(T::KIND, &id);
        let gone = || Status::not_found(format!("{} {id} was removed in the meantime", noun(T::KIND)));
        let object = found.map(|object| self.shown(&object)).ok_or_else(gone)?;
        T::try_from(object).map_err(|_| Status::internal("an object is stored under the wrong kind"))
    }

    /// Proposes what is decided on the state of now; again when that has changed before it was applied.
    pub(crate) async fn carry_out(
        &self,
        decision: impl Fn(&State, &mut IdGen) -> Decision,
    ) -> Result<String, Status> {
        let mut ids = IdGen::from_system();
        for _ in 0..CONFLICTS_MAX {
            if !self.store.status().is_leading() {
                return Err(not_leader());
            }
            let decided: Result<_, ControlError> = decision(&self.store.state(), &mut ids);
            let (transaction, id) = decided.map_err(|error| to_status(&error))?;
            if transaction.changes.is_empty() {
                return Ok(id);
            }
            match self.store.propose(transaction).await {
                Ok(_) => return Ok(id),
                Err(ProposeError::Rejected(Rejected::Version { .. })) => {}
                Err(error) => return Err(propose_status(&error)),
            }
        }
        Err(Status::unavailable("the object is written too often by others; try again"))
    }

    /// An object as users see it, with what only the raft group knows about managers.
    fn shown(&self, object: &AnyObject) -> Object {
        let mut shown = control::shown(object);
        if let Some(object::Object::Node(node)) = &mut shown.object
            && let Some(manager) = &mut node.manager_status
        {
            let group = self.store.status();
            manager.leader = group.role.leader == Some(manager.raft_id);
            manager.reachable =
                group.members.iter().any(|member| member.id == manager.raft_id && member.active);
        }
        if let Some(object::Object::Service(service)) = &mut shown.object {
            service.deployment = Some(deployment(&self.store.state(), service));
        }
        if let Some(object::Object::Secret(secret)) = &mut shown.object {
            secret.versions = versions(&self.store.state(), &**secret);
        }
        if let Some(object::Object::Config(config)) = &mut shown.object {
            config.versions = versions(&self.store.state(), &**config);
        }
        if let Some(object::Object::Node(node)) = &mut shown.object {
            node.tables = self.heartbeats.tables_of(&node.id);
        }
        shown
    }
}

fn noun(kind: ObjectKind) -> &'static str {
    rswarm_manager_core::apply::noun(kind)
}

fn kind(kind: i32) -> Result<ObjectKind, Status> {
    ObjectKind::try_from(kind).map_err(|_| Status::invalid_argument(format!("unknown kind of object {kind}")))
}

/// A join token with a fresh secret for the cluster's root.
fn new_token(state: &State) -> Option<String> {
    let root = state.cluster()?.root_ca.as_ref()?;
    let digest: RootDigest = JoinToken::parse(&root.worker_token).ok()?.root_digest;
    Some(JoinToken::generate(digest).to_string())
}
