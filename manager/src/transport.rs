//! Raft messages between managers: one stream to each, kept open; raft snapshots in chunks on their own.
//!
//! Sending never waits. A message that finds its queue full, or its manager away, is lost, which raft expects
//! and is told. What arrives goes to the raft task.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use protobuf::Message as _;
use rswarm_base::{Chain, Scope};
use rswarm_manager_core::peer::eraftpb::{Message, MessageType};
use rswarm_proto::tls::{ConnectError, Identity, connect_node};
use rswarm_proto::wire::raft_client::RaftClient;
use rswarm_proto::wire::{RaftMessage, SnapshotChunk};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::raft::Command;

/// Messages waiting for one manager: some seconds of heartbeats, or one burst of appends.
const QUEUE_MAX: usize = 1024;
/// Messages handed to the stream and not yet on the wire.
const STREAM_MAX: usize = 64;
/// Bytes of a raft snapshot in one message.
const CHUNK_BYTES: usize = 1 << 20;
/// A raft snapshot that takes longer is given up and begun anew.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(300);
/// Wait before the first try to connect again, and the longest: a manager that comes back must hear of the
/// leader before it would start an election.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_millis(800);

/// Where a member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// Its node: whoever else answers at the address is refused.
    pub node_id: String,
    /// `HOST:PORT`.
    pub addr: String,
}

/// The sending side of all streams.
pub(crate) struct Transport {
    identity: Arc<Identity>,
    commands: mpsc::Sender<Command>,
    scope: Scope,
    own: u64,
    places: BTreeMap<u64, Place>,
    links: BTreeMap<u64, Link>,
}

/// The stream to one member.
struct Link {
    place: Place,
    queue: mpsc::Sender<Message>,
    scope: Scope,
}

/// Whoever is replaced or forgotten stops sending.
impl Drop for Link {
    fn drop(&mut self) {
        self.scope.cancel();
    }
}

impl Transport {
    /// For the member `own`; streams live in `scope`, and what befalls them is told to `commands`.
    pub(crate) fn new(
        own: u64,
        identity: Arc<Identity>,
        commands: mpsc::Sender<Command>,
        scope: Scope,
    ) -> Transport {
        Transport { identity, commands, scope, own, places: BTreeMap::new(), links: BTreeMap::new() }
    }

    /// Where a member is, as far as known.
    pub(crate) fn place(&self, raft_id: u64) -> Option<&Place> {
        self.places.get(&raft_id)
    }

    /// Tells where the members are now. Streams to other places end.
    pub(crate) fn readdress(&mut self, places: BTreeMap<u64, Place>) {
        self.links.retain(|raft_id, link| places.get(raft_id) == Some(&link.place));
        self.places = places;
    }

    /// Sends messages, or loses them.
    pub(crate) fn send(&mut self, messages: Vec<Message>) {
        for message in messages {
            let to = message.to;
            if message.get_msg_type() == MessageType::MsgSnapshot {
                self.send_snapshot(message);
            } else if let Some(link) = self.link(to)
                && link.queue.try_send(message).is_err()
            {
                tracing::debug!(to, "the queue to a manager is full");
                self.report(Command::Unreachable(to));
            }
        }
    }

    fn link(&mut self, to: u64) -> Option<&Link> {
        if to == self.own {
            return None;
        }
        let place = self.places.get(&to)?;
        Some(self.links.entry(to).or_insert_with(|| {
            let (queue, messages) = mpsc::channel(QUEUE_MAX);
            let scope = self.scope.child("raft stream");
            let sender = Sender {
                to,
                place: place.clone(),
                identity: self.identity.clone(),
                commands: self.commands.clone(),
            };
            let token = scope.token();
            scope.spawn(async move {
                token.run_until_cancelled(sender.run(messages)).await;
            });
            Link { place: place.clone(), queue, scope }
        }))
    }

    fn send_snapshot(&mut self, message: Message) {
        let to = message.to;
        let Some(place) = self.places.get(&to).cloned() else {
            // Raft waits for this report before it sends the member anything else: a full mailbox must not
            // lose it.
            let (commands, token) = (self.commands.clone(), self.scope.token());
            self.scope.spawn(async move {
                let report = commands.send(Command::SnapshotSent { to, delivered: false });
                // Without its actor there is nobody to tell.
                let _ = token.run_until_cancelled(report).await;
            });
            return;
        };
        let (identity, commands) = (self.identity.clone(), self.commands.clone());
        let token = self.scope.token();
        self.scope.spawn(async move {
            let sent = async {
                let sending =
                    tokio::time::timeout(SNAPSHOT_TIMEOUT, send_snapshot(&place, &identity, message));
                let sent =
                    sending.await.unwrap_or_else(|_| Err(Status::deadline_exceeded("took too long").into()));
                if let Err(error) = &sent {
                    tracing::warn!(to = place.addr, error = %Chain(error), "raft snapshot was not delivered");
                }
                // Without its actor there is nobody to tell.
                let _ = commands.send(Command::SnapshotSent { to, delivered: sent.is_ok() }).await;
            };
            token.run_until_cancelled(sent).await;
        });
    }

    /// Tells the raft task; when its mailbox is full it is busy with more urgent news.
    fn report(&self, command: Command) {
        let _ = self.commands.try_send(command);
    }
}

/// Why a message did not get through.
#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("{}", .0.message())]
    Refused(Box<Status>),
}

impl From<Status> for SendError {
    fn from(status: Status) -> SendError {
        SendError::Refused(Box::new(status))
    }
}

async fn client(
    place: &Place,
    identity: &Arc<Identity>,
) -> Result<RaftClient<tonic::transport::Channel>, SendError> {
    Ok(RaftClient::new(connect_node(&place.addr, &place.node_id, identity).await?))
}

/// The task of one stream.
struct Sender {
    to: u64,
    place: Place,
    identity: Arc<Identity>,
    commands: mpsc::Sender<Command>,
}

impl Sender {
    async fn run(self, mut messages: mpsc::Receiver<Message>) {
        let mut backoff = BACKOFF_MIN;
        let mut is_lost = false;
        while let Some(first) = messages.recv().await {
            let result = self.stream(first, &mut messages, &mut backoff, &mut is_lost).await;
            let Err(error) = result else { return };
            if !is_lost {
                tracing::warn!(to = self.place.addr, error = %Chain(&error), "stream to a manager broke");
                is_lost = true;
            }
            // Without its actor there is nobody to tell.
            let _ = self.commands.send(Command::Unreachable(self.to)).await;
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
            // What waited meanwhile is stale; raft sends anew what still matters.
            while messages.try_recv().is_ok() {}
        }
    }

    /// Sends `first` and all that follow; ends without an error when nobody sends any more.
    async fn stream(
        &self,
        first: Message,
        messages: &mut mpsc::Receiver<Message>,
        backoff: &mut Duration,
        is_lost: &mut bool,
    ) -> Result<(), SendError> {
        let mut client = client(&self.place, &self.identity).await?;
        if std::mem::take(is_lost) {
            tracing::info!(to = self.place.addr, "stream to a manager is back");
        }
        *backoff = BACKOFF_MIN;
        let cluster_id = self.identity.subject().cluster_id;
        let wrap =
            |message: &Message| RaftMessage { message: encode(message), cluster_id: cluster_id.clone() };
        let (queue, stream) = mpsc::channel(STREAM_MAX);
        let call = client.messages(ReceiverStream::new(stream));
        tokio::pin!(call);
        let mut next = Some(first);
        loop {
            let send = async {
                match next.take() {
                    Some(message) => Some(message),
                    None => messages.recv().await,
                }
            };
            let message = tokio::select! {
                ended = &mut call => return Err(over(ended)),
                message = send => message,
            };
            let Some(message) = message else { return Ok(()) };
            let sent = tokio::select! {
                ended = &mut call => return Err(over(ended)),
                sent = queue.send(wrap(&message)) => sent,
            };
            if sent.is_err() {
                return Err(over(call.await));
            }
        }
    }
}

fn over<T>(ended: Result<T, Status>) -> SendError {
    match ended {
        Ok(_) => Status::unavailable("the other manager ended the stream").into(),
        Err(status) => status.into(),
    }
}

fn encode(message: &Message) -> Bytes {
    message.write_to_bytes().expect("a message in memory always encodes").into()
}

async fn send_snapshot(
    place: &Place,
    identity: &Arc<Identity>,
    mut message: Message,
) -> Result<(), SendError> {
    let mut client = client(place, identity).await?;
    let cluster_id = identity.subject().cluster_id;
    let data = Bytes::from(message.mut_snapshot().take_data().to_vec());
    let header = encode(&message);
    let head = SnapshotChunk { header, data: Bytes::new(), cluster_id };
    let pieces = (0..data.len()).step_by(CHUNK_BYTES).map(move |start| SnapshotChunk {
        data: data.slice(start..data.len().min(start + CHUNK_BYTES)),
        ..SnapshotChunk::default()
    });
    client.snapshot(tokio_stream::iter(std::iter::once(head).chain(pieces))).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rswarm_base::Timestamp;
    use rswarm_proto::tls::{Authority, Credentials, Subject, new_key, signing_request};
    use rswarm_proto::wire::NodeRole;

    fn identity() -> Arc<Identity> {
        let now = Timestamp::now();
        let authority = Authority::generate(now).expect("root");
        let subject =
            Subject { node_id: "m1".to_owned(), role: NodeRole::Manager, cluster_id: "c1".to_owned() };
        let key_pem = new_key().expect("key");
        let csr = signing_request(&key_pem).expect("request");
        let chain_pem = authority.issue(&csr, &subject, Duration::from_secs(3600), now).expect("issued");
        let root_pem = authority.certificate_pem().to_owned();
        Identity::new(Credentials { key_pem, chain_pem, root_pem }).expect("identity")
    }

    #[tokio::test]
    async fn a_raft_snapshot_for_nobody_is_reported_however_busy_the_raft_task_is() {
        let (commands, mut mailbox) = mpsc::channel(1);
        commands.try_send(Command::StepDown).expect("room for one");
        let scope = Scope::root("test");
        let mut transport = Transport::new(1, identity(), commands, scope.clone());
        let mut message = Message { to: 7, ..Message::default() };
        message.set_msg_type(MessageType::MsgSnapshot);
        transport.send(vec![message]);
        assert!(matches!(mailbox.recv().await, Some(Command::StepDown)));
        let report = tokio::time::timeout(Duration::from_secs(10), mailbox.recv()).await.expect("in time");
        assert!(matches!(report, Some(Command::SnapshotSent { to: 7, delivered: false })));
        scope.shutdown(Duration::from_secs(5)).await;
    }
}
