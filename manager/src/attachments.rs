//! Containers of nodes' own that come onto networks of the cluster: answered by the leader, passed on to it by
//! every other manager.

use std::time::Duration;

use rswarm_base::{Classify, Kind};
use rswarm_manager_core::control;
use rswarm_proto::status::to_status;
use rswarm_proto::tls::MESSAGE_BYTES_MAX;
use rswarm_proto::wire::attachments_client::AttachmentsClient;
use rswarm_proto::wire::attachments_server::{Attachments, AttachmentsServer};
use rswarm_proto::wire::{AttachReply, AttachRequest, NodeRole};
use tokio::time::{Instant, timeout_at};
use tonic::{Request, Response, Status};

use crate::control::Desk;
use crate::forward::{Forward, Repeat, not_leader};
use crate::guard::{Guard, set_caller};

/// How long an attachment may wait for an address. One that was asked for may be that of a container which has
/// just ended, and whose node says so in a moment.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(3);

/// Serves attachments.
pub(crate) struct AttachmentsService {
    /// Who may call.
    pub guard: Guard,
    /// Where the leader is.
    pub forward: Forward,
    /// What is done here when that is this manager.
    pub desk: Desk,
}

/// Why a container got no place.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NoAddress(String);

impl Classify for NoAddress {
    fn kind(&self) -> Kind {
        Kind::FailedPrecondition
    }

    fn hint(&self) -> Option<String> {
        None
    }
}

impl AttachmentsService {
    /// For the node's gRPC server.
    pub(crate) fn server(self) -> AttachmentsServer<Self> {
        AttachmentsServer::new(self).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    async fn attach_here(&self, node_id: &str, request: AttachRequest) -> Result<AttachReply, Status> {
        let task_id =
            self.desk.carry_out(|state, ids| control::attach(state, node_id, &request, ids)).await?;
        match self.admitted(&task_id).await {
            Ok(()) => {
                let state = self.desk.store.state();
                let task = state.task(&task_id).ok_or_else(|| Status::not_found("it was withdrawn"))?;
                let network = task.networks.first().map(|attachment| attachment.network_id.clone());
                Ok(AttachReply { network_id: network.unwrap_or_default() })
            }
            Err(reason) => {
                self.desk.carry_out(|state, ids| control::withdraw(state, &task_id, ids)).await?;
                Err(to_status(&NoAddress(reason)))
            }
        }
    }

    /// Resolves once the task has its address and its node is told.
    async fn admitted(&self, task_id: &str) -> Result<(), String> {
        let deadline = Instant::now() + ADDRESS_TIMEOUT;
        let mut states = self.desk.store.state.clone();
        loop {
            let admission = control::admission(&states.borrow_and_update(), task_id);
            if admission == Ok(true) {
                return Ok(());
            }
            let waiting = || "no address was found in time".to_owned();
            match timeout_at(deadline, states.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err("the manager is stopping".to_owned()),
                Err(_) => return Err(admission.err().unwrap_or_else(waiting)),
            }
        }
    }
}

#[tonic::async_trait]
impl Attachments for AttachmentsService {
    async fn attach(&self, mut request: Request<AttachRequest>) -> Result<Response<AttachReply>, Status> {
        let node_id = self.guard.on_behalf(&request, NodeRole::Worker)?;
        set_caller(&mut request, &node_id);
        let here = |request| async {
            if !self.desk.store.status().is_leading() {
                return Err(not_leader());
            }
            self.attach_here(&node_id, request).await
        };
        let there = |channel, onward| async move { AttachmentsClient::new(channel).attach(onward).await };
        self.forward.at_leader(request, Repeat::Safe, here, there).await
    }
}
