//! The raft service: messages and raft snapshots of other members, and nodes that want to become one.

use std::net::SocketAddr;
use std::time::Duration;

use protobuf::Message as _;
use rswarm_manager_core::peer::eraftpb::Message;
use rswarm_proto::tls::{MESSAGE_BYTES_MAX, Peer};
use rswarm_proto::wire::raft_client::RaftClient;
use rswarm_proto::wire::raft_server::{Raft, RaftServer};
use rswarm_proto::wire::{
    NodeRole, RaftJoinRequest, RaftJoinResponse, RaftMessage, RaftStatusRequest, RaftStatusResponse,
    RaftStreamEnd, SnapshotChunk,
};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::{Request, Response, Status, Streaming};

use crate::forward::{Forward, Repeat, propose_status};
use crate::guard::{Guard, set_caller};
use crate::leader::LeaderHandle;
use crate::raft::Command;
use crate::store::{ProposeError, StoreHandle};

/// The largest raft snapshot that is taken in: some millions of tasks.
const SNAPSHOT_BYTES_MAX: usize = 2 << 30;
/// What a new member's address may take to answer.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves other members.
pub(crate) struct GroupService {
    /// Who may call.
    pub guard: Guard,
    /// Where the leader is.
    pub forward: Forward,
    /// The state, and the raft task.
    pub store: StoreHandle,
    /// Who lets nodes in.
    pub leader: LeaderHandle,
    /// Our cluster.
    pub cluster_id: String,
}

impl GroupService {
    /// For the node's gRPC server.
    pub(crate) fn server(self) -> RaftServer<Self> {
        RaftServer::new(self).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    fn check_cluster(&self, cluster_id: &str) -> Result<(), Status> {
        if cluster_id == self.cluster_id {
            return Ok(());
        }
        Err(Status::permission_denied("a raft message of another cluster"))
    }

    async fn step(&self, message: Message) -> Result<(), Status> {
        let command = Command::Message(Box::new(message));
        self.store.commands.send(command).await.map_err(|_| propose_status(&ProposeError::Stopped))
    }
}

#[tonic::async_trait]
impl Raft for GroupService {
    async fn messages(
        &self,
        request: Request<Streaming<RaftMessage>>,
    ) -> Result<Response<RaftStreamEnd>, Status> {
        self.guard.manager(&request)?;
        let mut stream = request.into_inner();
        while let Some(message) = stream.message().await? {
            self.check_cluster(&message.cluster_id)?;
            self.step(decode(&message.message)?).await?;
        }
        Ok(Response::new(RaftStreamEnd {}))
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<SnapshotChunk>>,
    ) -> Result<Response<RaftStreamEnd>, Status> {
        self.guard.manager(&request)?;
        let mut stream = request.into_inner();
        let first =
            stream.message().await?.ok_or_else(|| Status::invalid_argument("an empty raft snapshot"))?;
        self.check_cluster(&first.cluster_id)?;
        let mut message = decode(&first.header)?;
        let mut data = first.data.to_vec();
        while let Some(chunk) = stream.message().await? {
            if data.len() + chunk.data.len() > SNAPSHOT_BYTES_MAX {
                return Err(Status::resource_exhausted("the raft snapshot is larger than 2 GiB"));
            }
            data.extend(chunk.data);
        }
        message.mut_snapshot().set_data(data.into());
        self.step(message).await?;
        Ok(Response::new(RaftStreamEnd {}))
    }

    async fn join(
        &self,
        mut request: Request<RaftJoinRequest>,
    ) -> Result<Response<RaftJoinResponse>, Status> {
        let caller = self.guard.manager(&request)?;
        let node_id = self.guard.on_behalf(&request, NodeRole::Manager)?;
        request.get_mut().addr = reachable_addr(&request.get_ref().addr, &caller)?;
        set_caller(&mut request, &node_id);
        let here = |request: RaftJoinRequest| {
            let node_id = node_id.clone();
            async move {
                check_dial(&request.addr).await?;
                self.leader.admit(node_id, request.addr, request.raft_id).await
            }
        };
        let there = |channel, onward| async move { RaftClient::new(channel).join(onward).await };
        self.forward.at_leader(request, Repeat::Safe, here, there).await
    }

    async fn status(
        &self,
        request: Request<RaftStatusRequest>,
    ) -> Result<Response<RaftStatusResponse>, Status> {
        self.guard.manager(&request)?;
        let status = self.store.status();
        Ok(Response::new(RaftStatusResponse {
            leader: status.role.leader.unwrap_or(0),
            term: status.role.term,
            applied: status.applied,
            leader_addr: status.leader.as_ref().map(|leader| leader.addr.clone()).unwrap_or_default(),
        }))
    }
}

fn decode(bytes: &[u8]) -> Result<Message, Status> {
    let mut message = Message::default();
    message.merge_from_bytes(bytes).map_err(|_| Status::internal("a raft message cannot be decoded"))?;
    Ok(message)
}

/// The address with which the node joins; where it says "any", the one it calls from.
fn reachable_addr(addr: &str, caller: &Peer) -> Result<String, Status> {
    match (addr.parse::<SocketAddr>(), caller.addr) {
        (Ok(said), Some(seen)) if said.ip().is_unspecified() => {
            Ok(SocketAddr::new(seen.ip(), said.port()).to_string())
        }
        (Ok(said), None) if said.ip().is_unspecified() => {
            Err(Status::invalid_argument(format!("`{addr}` is no address that other managers can reach")))
        }
        (Ok(_), _) => Ok(addr.to_owned()),
        (Err(_), _) if addr.rsplit_once(':').is_some_and(|(host, _)| !host.is_empty()) => Ok(addr.to_owned()),
        (Err(_), _) => Err(Status::invalid_argument(format!("`{addr}` is not HOST:PORT"))),
    }
}

/// A member that the others cannot reach would only cost them their quorum.
async fn check_dial(addr: &str) -> Result<(), Status> {
    let refused = |why: String| {
        Status::failed_precondition(format!("the leader cannot reach the joining manager at `{addr}`: {why}"))
    };
    match timeout(DIAL_TIMEOUT, TcpStream::connect(addr)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(refused(error.to_string())),
        Err(_) => Err(refused(format!("no answer within {} s", DIAL_TIMEOUT.as_secs()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unspecified_address_becomes_the_one_the_caller_is_seen_at() {
        let caller = Peer { addr: Some(([10, 0, 0, 9], 40_000).into()), ..Peer::default() };
        assert_eq!(reachable_addr("0.0.0.0:2377", &caller).expect("address"), "10.0.0.9:2377");
        assert_eq!(reachable_addr("10.1.1.1:2377", &caller).expect("address"), "10.1.1.1:2377");
        assert_eq!(reachable_addr("m2.example:2377", &caller).expect("address"), "m2.example:2377");
        assert!(reachable_addr("0.0.0.0:2377", &Peer::default()).is_err());
        assert!(reachable_addr("nonsense", &caller).is_err());
    }
}
