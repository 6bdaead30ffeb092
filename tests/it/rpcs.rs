//! Every RPC of the protocol, called by everybody there is: one table says who is let in. And what no caller may send.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use prost::Message as _;
use prost::bytes::{Buf, BufMut};
use rswarm_proto::tls::{self, Identity};
use rswarm_proto::token::JoinToken;
use rswarm_proto::wire::ca_client::CaClient;
use rswarm_proto::wire::{NodeRole, RaftMessage, RenewRequest, SnapshotChunk};
use rswarm_tests::harness::{Lab, run};
use rswarm_tests::host::Host;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

/// Who may make a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Access {
    /// Also who has no certificate yet.
    Anyone,
    /// Every node of the cluster.
    Node,
    /// Managers.
    Manager,
}

use Access::{Anyone, Manager, Node};

const TABLE: &[(&str, Access)] = &[
    ("Attachments/Attach", Node),
    ("Ca/Issue", Anyone),
    ("Ca/Renew", Node),
    ("Ca/Root", Anyone),
    ("Control/CreateConfig", Manager),
    ("Control/CreateNetwork", Manager),
    ("Control/CreateSecret", Manager),
    ("Control/CreateService", Manager),
    ("Control/ForecastService", Manager),
    ("Control/Get", Manager),
    ("Control/GetUnlockKey", Manager),
    ("Control/LeaveManager", Manager),
    ("Control/List", Manager),
    ("Control/RemoveConfig", Manager),
    ("Control/RemoveNetwork", Manager),
    ("Control/RemoveNode", Manager),
    ("Control/RemoveSecret", Manager),
    ("Control/RemoveService", Manager),
    ("Control/UpdateCluster", Manager),
    ("Control/UpdateConfig", Manager),
    ("Control/UpdateNode", Manager),
    ("Control/UpdateSecret", Manager),
    ("Control/UpdateService", Manager),
    ("Control/Usage", Manager),
    ("Dispatcher/Session", Node),
    ("Logs/Subscribe", Manager),
    ("Raft/Join", Manager),
    ("Raft/Messages", Manager),
    ("Raft/Snapshot", Manager),
    ("Raft/Status", Manager),
    ("Relay/Report", Manager),
    ("TaskContainers/Reach", Manager),
    ("TaskLogs/Read", Manager),
];

/// The calls that the `.proto` files name, as in the table.
fn described() -> Result<Vec<String>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto/rswarm/v1");
    let mut calls = Vec::new();
    for file in std::fs::read_dir(dir)? {
        let mut service = String::new();
        for line in std::fs::read_to_string(file?.path())?.lines() {
            let words: Vec<&str> = line.split([' ', '(', '{']).filter(|word| !word.is_empty()).collect();
            match words.as_slice() {
                ["service", name, ..] => service = (*name).to_owned(),
                ["rpc", name, ..] => calls.push(format!("{service}/{name}")),
                _ => {}
            }
        }
    }
    calls.sort();
    Ok(calls)
}

/// Messages as bytes; replies are not read.
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = ();
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        buffer.advance(buffer.remaining());
        Ok(Some(()))
    }
}

/// How a call with this message ends.
async fn call(channel: &Channel, name: &str, message: Vec<u8>) -> Code {
    let mut client = tonic::client::Grpc::new(channel.clone());
    if let Err(error) = client.ready().await {
        return Status::from_error(error.into()).code();
    }
    let path = format!("/rswarm.v1.{name}").parse().expect("a path");
    client.unary(Request::new(message), path, Raw).await.map_or_else(|status| status.code(), |_| Code::Ok)
}

/// A message that does no harm, but is none of another cluster.
fn message(name: &str, cluster_id: &str) -> Vec<u8> {
    let cluster_id = cluster_id.to_owned();
    match name {
        "Raft/Messages" => RaftMessage { cluster_id, ..RaftMessage::default() }.encode_to_vec(),
        "Raft/Snapshot" => SnapshotChunk { cluster_id, ..SnapshotChunk::default() }.encode_to_vec(),
        _ => Vec::new(),
    }
}

fn identity(host: &Host) -> Result<Arc<Identity>> {
    Identity::load(&host.dir.join("data/swarm/certificates"))?.context("an identity")
}

/// Runs something that needs the lab's network, on a thread of its own inside a host's namespace.
fn inside<T: Send>(host: &Host, work: impl Future<Output = Result<T>> + Send) -> Result<T> {
    let netns = format!("/run/netns/{}", host.netns);
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || -> Result<T> {
            nix::sched::setns(std::fs::File::open(netns)?, nix::sched::CloneFlags::CLONE_NEWNET)?;
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
        });
        thread.join().expect("the thread does not panic")
    })
}

/// How many calls the manager refused, by reason.
fn refused(host: &Host) -> Result<BTreeMap<String, u64>> {
    let text = run(host.command("curl").args(["-sS", "--fail", "http://127.0.0.1:9323/metrics"]))?;
    let counts = text.lines().filter_map(|line| {
        let (reason, count) = line.strip_prefix("rswarm_rpc_refused_total{reason=\"")?.split_once("\"} ")?;
        Some((reason.to_owned(), count.parse().ok()?))
    });
    Ok(counts.collect())
}

#[test]
fn every_call_lets_in_whom_the_table_says_and_counts_whom_it_refuses() -> Result<()> {
    let names: Vec<&str> = TABLE.iter().map(|(name, _)| *name).collect();
    ensure!(described()? == names, "the table is not that of the protocol: {:?}", described()?);

    // A manager, a worker, and the manager of another cluster.
    let mut lab = Lab::start(3)?;
    lab.hosts[0].flags = ["--metrics-addr", "127.0.0.1:9323"].map(str::to_owned).to_vec();
    lab.hosts[0].stop()?;
    lab.hosts[0].start()?;
    lab.hosts[0].ready()?;
    let [first, second, third] = &lab.hosts[..] else { bail!("three hosts") };
    for founder in [first, third] {
        founder.rswarm(&["init", "--advertise-addr", &founder.address.to_string()])?;
    }
    let token = first.rswarm(&["swarm", "join-token", "-q", "worker"])?;
    let address = format!("{}:2377", first.address);
    second.rswarm(&["join", "--token", token.trim(), &address])?;
    let (manager, worker) = (identity(first)?, identity(second)?);
    let foreigner = identity(third)?;
    // It trusts our managers, so that it is they who refuse.
    foreigner.set_roots(&manager.credentials().root_pem)?;
    let (digest, cluster_id) = (JoinToken::parse(token.trim())?.root_digest, manager.subject().cluster_id);

    inside(second, async {
        let anonymous = tls::connect_pinned(&address, digest).await?;
        let callers = [
            (None, anonymous),
            (Some(NodeRole::Worker), tls::connect(&address, &worker).await?),
            (Some(NodeRole::Manager), tls::connect(&address, &manager).await?),
        ];
        for (role, channel) in &callers {
            for (name, access) in TABLE {
                let code = call(channel, name, message(name, &cluster_id)).await;
                let wanted = match (role, access) {
                    (_, Anyone) | (Some(_), Node) | (Some(NodeRole::Manager), Manager) => None,
                    (None, Node | Manager) => Some(Code::Unauthenticated),
                    (Some(NodeRole::Worker), Manager) => Some(Code::PermissionDenied),
                };
                let is_refused = [Code::Unauthenticated, Code::PermissionDenied].contains(&code);
                ensure!(
                    wanted.map_or(!is_refused, |wanted| code == wanted),
                    "{name} by {role:?}: {code:?}, wanted {wanted:?}"
                );
            }
        }
        // A certificate of another cluster gets no further than the handshake.
        if let Ok(channel) = tls::connect(&address, &foreigner).await {
            for (name, _) in TABLE {
                let code = call(&channel, name, Vec::new()).await;
                // As the client tells of a connection that breaks.
                let broken = [Code::Unavailable, Code::Unknown, Code::Cancelled];
                ensure!(broken.contains(&code), "{name} by a foreigner: {code:?}");
            }
        }
        // A worker that passes for another node is taken for itself.
        let channel = tls::connect(&address, &worker).await?;
        let csr_pem = tls::signing_request(&worker.credentials().key_pem)?;
        let mut renewal = Request::new(RenewRequest { csr_pem });
        renewal.metadata_mut().insert("rswarm-caller", manager.subject().node_id.parse()?);
        let issued = CaClient::new(channel).renew(renewal).await?.into_inner();
        ensure!(
            issued.node_id == worker.subject().node_id && issued.role() == NodeRole::Worker,
            "{issued:?}"
        );
        Ok(())
    })?;

    let before = refused(first)?;
    inside(second, async {
        let anonymous = tls::connect_pinned(&address, digest).await?;
        let channel = tls::connect(&address, &manager).await?;
        // Larger than any message of this service may be.
        ensure!(call(&channel, "Ca/Issue", vec![0; 5 << 20]).await == Code::OutOfRange);
        // Refused for who sends it, before it is read.
        ensure!(call(&anonymous, "Control/Get", vec![0; 5 << 20]).await == Code::Unauthenticated);
        ensure!(call(&channel, "Control/Get", vec![0xff; 8]).await == Code::Internal);
        ensure!(call(&channel, "Raft/Messages", vec![0xff; 8]).await == Code::Internal);
        ensure!(call(&channel, "Control/Nonsense", Vec::new()).await == Code::Unimplemented);
        Ok(())
    })?;
    let after = refused(first)?;
    for (reason, wanted) in [("oversized", 1), ("unauthenticated", 1), ("malformed", 2), ("unknown", 1)] {
        let more = after.get(reason).copied().unwrap_or(0) - before.get(reason).copied().unwrap_or(0);
        ensure!(more == wanted, "{reason}: {before:?}, then {after:?}");
    }
    let of_table = |wanted| TABLE.iter().filter(|(_, access)| *access >= wanted).count() as u64;
    ensure!(before.get("unauthenticated") == Some(&of_table(Node)), "{before:?}");
    ensure!(before.get("denied") == Some(&of_table(Manager)), "{before:?}");
    lab.finish()
}
