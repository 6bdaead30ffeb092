//! How a node enters a cluster: it founds one, joins one, goes on alone or from a backup, or is unlocked.

use std::sync::Arc;
use std::time::Duration;

use rswarm_api::{ClusterError, InitRequest, JoinRequest, RestoreRequest};
use rswarm_base::{Chain, Kind, Timestamp};
use rswarm_manager::{Backup, Boot, Lock, NewCluster, found};
use rswarm_proto::tls::{self, EnrollError, Enrollment, Identity, UnlockKey};
use rswarm_proto::token::JoinToken;
use rswarm_proto::wire::{NodeAvailability, NodeRole};

use super::NodeActor;
use crate::daemon::address::{Addresses, with_default_port};
use crate::daemon::membership::{Entering, Way};

/// How long `join` waits for the first session with a manager (moby: 20 s).
const JOIN_TIMEOUT: Duration = Duration::from_secs(20);

impl NodeActor {
    pub(super) async fn init(&mut self, request: InitRequest) -> Result<String, ClusterError> {
        if request.force_new_cluster {
            return self.force_new_cluster(&request).await;
        }
        if self.is_member() {
            return Err(ClusterError::already_in_cluster());
        }
        let advertise = self.advertise(&request.advertise_addr);
        let addresses = Addresses::decide(&request.listen_addr, advertise, &request.data_path_addr, None)?;
        let cluster = NewCluster {
            spec: request.spec,
            address_pools: request.default_addr_pool,
            subnet_size: request.subnet_size,
            data_path_port: request.data_path_port,
            hostname: self.config.hostname.clone(),
            availability: request.availability,
        };
        let (founding, identity) = found(cluster, Timestamp::wall()).map_err(ClusterError::from_error)?;
        let node_id = identity.subject().node_id;
        let lock = UnlockKey::from_bytes(&founding.cluster.unlock_key);
        let way = Way { boot: Boot::Bootstrap(Box::new(founding)), managers: Vec::new(), lock };
        self.enter_or_wipe(identity, addresses, way).await?;
        Ok(node_id)
    }

    /// The only survivor of a cluster without quorum goes on alone, workloads untouched.
    async fn force_new_cluster(&mut self, request: &InitRequest) -> Result<String, ClusterError> {
        match self.membership.take() {
            Some(membership) if membership.role() == NodeRole::Manager => {
                let (identity, addresses) = (membership.identity.clone(), membership.addresses.clone());
                let addresses = match request.advertise_addr.as_str() {
                    // It goes on where it is.
                    "" => addresses,
                    elsewhere => {
                        let data_path = &request.data_path_addr;
                        match Addresses::decide(&request.listen_addr, elsewhere, data_path, None) {
                            Ok(addresses) => addresses,
                            Err(error) => {
                                self.membership = Some(membership);
                                return Err(error);
                            }
                        }
                    }
                };
                let lock = membership.lock();
                membership.detach().await;
                let way = Way { boot: Boot::ForceNewCluster, managers: Vec::new(), lock };
                self.enter(identity.clone(), addresses, way).await?;
                Ok(identity.subject().node_id)
            }
            Some(membership) => {
                self.membership = Some(membership);
                Err(ClusterError::not_a_manager())
            }
            None if self.locked.is_some() => Err(ClusterError::locked()),
            None => Err(ClusterError::new(
                Kind::FailedPrecondition,
                "--force-new-cluster goes on from this node's state, and it has none",
            )
            .hint("start a new cluster with `rswarm init`")),
        }
    }

    /// The cluster of a backup goes on with this node as a new one, and its only manager.
    pub(super) async fn restore(&mut self, request: RestoreRequest) -> Result<String, ClusterError> {
        if self.is_member() {
            return Err(ClusterError::already_in_cluster());
        }
        let advertise = self.advertise(&request.advertise_addr);
        let addresses = Addresses::decide(&request.listen_addr, advertise, &request.data_path_addr, None)?;
        let key = match request.unlock_key.as_str() {
            "" => None,
            text => Some(UnlockKey::parse(text).map_err(ClusterError::from_error)?),
        };
        let backup = Backup::decode(&request.backup, key.as_ref()).map_err(ClusterError::from_error)?;
        let lock: Lock = backup.lock();
        let header = backup.header.clone();
        let hostname = self.config.hostname.clone();
        let (boot, identity) = backup
            .revive(hostname, NodeAvailability::Active, Timestamp::wall())
            .map_err(ClusterError::from_error)?;
        let node_id = identity.subject().node_id;
        self.enter_or_wipe(identity, addresses, Way { boot, managers: Vec::new(), lock }).await?;
        tracing::warn!(
            cluster.id = header.cluster,
            index = header.index,
            "the cluster goes on from a backup"
        );
        Ok(node_id)
    }

    pub(super) async fn join(&mut self, request: JoinRequest) -> Result<(), ClusterError> {
        if self.is_member() {
            return Err(ClusterError::already_in_cluster());
        }
        let token = JoinToken::parse(&request.token).map_err(ClusterError::from_error)?;
        let managers: Vec<String> = request
            .remote_addrs
            .iter()
            .filter(|addr| !addr.is_empty())
            .map(|addr| with_default_port(addr))
            .collect();
        let Some(first) = managers.first() else {
            return Err(ClusterError::new(
                Kind::InvalidArgument,
                "at least 1 RemoteAddr is required to join",
            ));
        };
        let addresses = Addresses::decide(
            &request.listen_addr,
            self.advertise(&request.advertise_addr),
            &request.data_path_addr,
            Some(first),
        )?;
        let enrollment =
            Enrollment { hostname: self.config.hostname.clone(), availability: request.availability };
        let (identity, manager) = enroll(&managers, &token, enrollment).await?;
        // The manager that took us is the one to begin with; the others may not exist.
        let boot = Boot::Join { via: vec![manager.clone()] };
        self.enter_or_wipe(identity, addresses, Way { boot, managers: vec![manager], lock: None }).await?;
        self.first_session().await
    }

    /// A node that cannot take its place must not look like a member after the next start.
    pub(super) async fn enter_or_wipe(
        &mut self,
        identity: Arc<Identity>,
        addresses: Addresses,
        way: Way,
    ) -> Result<(), ClusterError> {
        let paths = self.config.paths.clone();
        let unwritable = |error: std::io::Error| {
            ClusterError::new(Kind::Internal, "the cluster's files could not be written").because(error)
        };
        let entering = match way.managers.as_slice() {
            [] => Entering::Founding,
            managers => Entering::Joining(managers.to_vec()),
        };
        paths.begin(&entering).map_err(unwritable)?;
        let entered = match self.enter(identity, addresses, way).await {
            Ok(()) => paths.settle().map_err(unwritable),
            refused => refused,
        };
        if entered.is_err() {
            if let Some(membership) = self.membership.take() {
                membership.leave().await;
            }
            if let Err(error) = paths.wipe() {
                tracing::error!(%error, "the files of a cluster that was not entered could not be removed");
            }
        }
        entered
    }

    async fn first_session(&mut self) -> Result<(), ClusterError> {
        let Some(membership) = &self.membership else { return Ok(()) };
        let mut agent = membership.agent.membership.clone();
        let joined = agent.wait_for(|agent| agent.update.is_some() || agent.removed.is_some());
        match tokio::time::timeout(JOIN_TIMEOUT, joined).await {
            Ok(_) => Ok(()),
            Err(_) => Err(ClusterError::new(
                Kind::Unavailable,
                "Timeout was reached before node joined. The attempt to join the swarm will continue in the \
                 background. Use the \"docker info\" command to see the current swarm status of your node.",
            )),
        }
    }

    /// A locked manager gets its key, and goes on.
    pub(super) async fn unlock(&mut self, key: &str) -> Result<(), ClusterError> {
        let Some(addresses) = self.locked.clone() else {
            return Err(match &self.membership {
                Some(membership) if membership.manager.is_some() => ClusterError::not_locked(),
                Some(_) => ClusterError::not_a_manager(),
                None => ClusterError::not_in_cluster(),
            });
        };
        let key = UnlockKey::parse(key).map_err(ClusterError::from_error)?;
        let certificates = self.config.paths.certificates();
        let identity = Identity::unlock(&certificates, &key).map_err(ClusterError::from_error)?;
        let identity = identity.ok_or_else(ClusterError::not_part_of_cluster)?;
        let way = Way { boot: Boot::Restart, managers: Vec::new(), lock: Some(key) };
        self.enter(identity, addresses, way).await?;
        self.locked = None;
        tracing::info!("this manager is unlocked");
        Ok(())
    }
}

/// Asks the managers in turn for a certificate. A refusal is final; only an unreachable manager is passed over.
async fn enroll(
    managers: &[String],
    token: &JoinToken,
    enrollment: Enrollment,
) -> Result<(Arc<Identity>, String), ClusterError> {
    let mut last = None;
    for manager in managers {
        match tls::join(manager, token, enrollment.clone()).await {
            Ok(credentials) => {
                let identity = Identity::new(credentials).map_err(ClusterError::from_error)?;
                return Ok((identity, manager.clone()));
            }
            Err(error @ EnrollError::Refused(_)) => return Err(ClusterError::from_error(error)),
            Err(error) => {
                tracing::warn!(manager, error = %Chain(&error), "the manager gave no certificate");
                last = Some(error);
            }
        }
    }
    let error = last.map(ClusterError::from_error);
    Err(error.unwrap_or_else(|| ClusterError::new(Kind::InvalidArgument, "no manager was named")))
}
