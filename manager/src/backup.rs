//! The whole state of a cluster in one file, and a cluster that goes on from it.
//!
//! ```text
//!   rswarm-backup 1\n                                  what it is, and the version of the format
//!   {"cluster":"…","index":…,"taken_at":…,"sealed":…}\n whose state, and of when: JSON on one line
//!   …                                                  the state: a `StateSnapshot` (store.proto), or that sealed
//!   32 bytes                                           SHA-256 of everything before
//! ```
//!
//! The state holds the root's key, secrets and join tokens: who has the file has the cluster. While managers are locked,
//! it is sealed with the unlock key (`UnlockKey::seal`: a nonce of 24 bytes, XChaCha20-Poly1305).

use std::sync::Arc;

use prost::Message as _;
use rswarm_base::{Classify, Kind, Timestamp};
use rswarm_manager_core::{Author, Rejected, State, apply};
use rswarm_proto::tls::{
    Authority, AuthorityError, Credentials, Identity, IdentityError, Subject, UnlockKey, new_key,
    signing_request,
};
use rswarm_proto::wire::{
    Batch, Change, ManagerStatus, Node, NodeAvailability, NodeRole, Object, Transaction, change,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::config::{Boot, Revival};
use crate::found::{certificate_lifetime, new_node};
use crate::manager::Lock;
use crate::raft::{StateError, decode_state};

const MAGIC: &str = "rswarm-backup ";
/// The version that is written, and the only one that is read.
const VERSION: &str = "1";
const CHECKSUM: usize = 32;
/// How far the raft index of a revived cluster is beyond its backup's: agents must never be shown an older version of
/// anything than they had from the lost managers, which went on for a while after the backup was taken.
const INDEX_GAP: u64 = 1 << 32;

/// What a backup says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Whose state it is: the cluster's id.
    pub cluster: String,
    /// The raft index of the state.
    pub index: u64,
    /// When it was taken, in nanoseconds since the Unix epoch.
    pub taken_at: i64,
    /// Whether it takes the unlock key of then to read it.
    pub sealed: bool,
}

/// A backup that was read and found whole.
#[derive(Debug, Clone)]
pub struct Backup {
    /// What it says about itself.
    pub header: Header,
    state: State,
}

impl Backup {
    /// The state as the bytes of a backup file.
    pub(crate) fn encode(state: &State, now: Timestamp, key: Option<&UnlockKey>) -> Vec<u8> {
        let cluster = state.cluster().map(|cluster| cluster.id.clone()).unwrap_or_default();
        let header = Header { cluster, index: state.index(), taken_at: now.0, sealed: key.is_some() };
        let header = serde_json::to_string(&header).expect("a header always serialises");
        let mut bytes = format!("{MAGIC}{VERSION}\n{header}\n").into_bytes();
        let body = state.snapshot().encode_to_vec();
        bytes.extend(key.map_or(body.clone(), |key| key.seal(&body)));
        let checksum: [u8; CHECKSUM] = Sha256::digest(&bytes).into();
        bytes.extend(checksum);
        bytes
    }

    /// Reads a backup file.
    ///
    /// # Errors
    /// When it is no backup, of another version, cut short or changed, or sealed with another key.
    pub fn decode(bytes: &[u8], key: Option<&UnlockKey>) -> Result<Backup, BackupError> {
        let (first, _) = line(bytes).ok_or(BackupError::Foreign)?;
        let version = first.strip_prefix(MAGIC).ok_or(BackupError::Foreign)?;
        if version != VERSION {
            return Err(BackupError::Version(version.chars().take(16).collect()));
        }
        let (text, checksum) = bytes.split_last_chunk::<CHECKSUM>().ok_or(BackupError::Damaged)?;
        if <[u8; CHECKSUM]>::from(Sha256::digest(text)) != *checksum {
            return Err(BackupError::Damaged);
        }
        let (_, rest) = line(text).ok_or(BackupError::Damaged)?;
        let (header, body) = line(rest).ok_or(BackupError::Damaged)?;
        let header: Header = serde_json::from_str(header).map_err(|_| BackupError::Damaged)?;
        let state = match (header.sealed, key) {
            (false, _) => decode_state(body)?,
            (true, Some(key)) => decode_state(&key.open(body).map_err(|_| BackupError::WrongKey)?)?,
            (true, None) => return Err(BackupError::Sealed),
        };
        let of_one = state.cluster().is_some_and(|cluster| cluster.id == header.cluster);
        if !of_one || state.index() != header.index {
            return Err(BackupError::Damaged);
        }
        Ok(Backup { header, state })
    }

    /// What the managers of this cluster are locked with.
    #[must_use]
    pub fn lock(&self) -> Lock {
        self.state.cluster().and_then(|cluster| UnlockKey::from_bytes(&cluster.unlock_key))
    }

    /// A cluster that goes on from this state with one manager, which is a new node of it. Nothing is stored yet: save
    /// the identity, then start a manager with what this returns. The managers that there were are no raft members any
    /// more; one that returns joins anew. They must not go on as the cluster that they were: two of the same name would
    /// command the same workers.
    ///
    /// # Errors
    /// When the state lacks what a manager's certificate needs, or no key can be made.
    pub fn revive(
        self,
        hostname: String,
        availability: NodeAvailability,
        now: Timestamp,
    ) -> Result<(Boot, Arc<Identity>), BackupError> {
        let cluster = self.state.cluster().ok_or(BackupError::Damaged)?.clone();
        let root = cluster.root_ca.as_ref().ok_or(BackupError::Damaged)?;
        let (certificate, key, between) = root.signer();
        let key = std::str::from_utf8(key).map_err(|_| BackupError::Damaged)?;
        let authority = Authority::from_pem(certificate, key)?;
        let node_id = rswarm_base::id::cluster_id();
        let subject =
            Subject { node_id: node_id.clone(), role: NodeRole::Manager, cluster_id: cluster.id.clone() };
        let lifetime = certificate_lifetime(cluster.spec.as_ref().unwrap_or(&Default::default()));
        let key_pem = new_key()?;
        let chain_pem = authority.issue(&signing_request(&key_pem)?, &subject, lifetime, now)? + between;
        let root_pem = root.trust_bundle();
        let identity = Identity::new(Credentials { key_pem, chain_pem, root_pem })?;
        let node = new_node(node_id, NodeRole::Manager, availability, hostname);
        Ok((Boot::Restore(Box::new(Revival { state: self.state, node })), identity))
    }
}

/// The first line of the bytes without its end, and what follows it.
fn line(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    Some((std::str::from_utf8(&bytes[..end]).ok()?, &bytes[end + 1..]))
}

/// The state that a revived cluster begins with, and its raft index.
pub(crate) fn revived_state(
    revival: Revival,
    raft_id: u64,
    addr: &str,
    now: Timestamp,
) -> Result<(u64, State), Rejected> {
    let Revival { state, mut node } = revival;
    node.manager_status = Some(ManagerStatus { raft_id, addr: addr.to_owned(), ..ManagerStatus::default() });
    let change = |action: change::Action, object: Object| Change {
        action: action.into(),
        object: Some(object),
        ..Change::default()
    };
    let former = state.nodes().filter(|node| node.manager_status.is_some());
    let retire = |node: &Arc<Node>| {
        change(change::Action::Update, Node { manager_status: None, ..Node::clone(node) }.into())
    };
    let transaction = |id: u64, author: Author, changes: Vec<Change>| Transaction {
        id,
        author: author.name().to_owned(),
        changes,
    };
    let transactions = vec![
        transaction(1, Author::Bootstrap, vec![change(change::Action::Create, node.into())]),
        transaction(2, Author::Membership, former.map(retire).collect()),
    ];
    let index = state.index() + INDEX_GAP;
    let applied = apply(&state, index, Batch { transactions, now: now.0 });
    for (_, result) in applied.results {
        result?;
    }
    Ok((index, applied.state))
}

/// Why a file is no backup to go on from.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// Something else altogether.
    #[error("the file is not a backup of a cluster")]
    Foreign,
    /// Written by a version that this one does not know.
    #[error("the backup has format version `{0}`, and only {VERSION} can be read")]
    Version(String),
    /// Its checksum does not fit, or its parts do not fit together.
    #[error("the backup is damaged: it was cut short or changed since it was written")]
    Damaged,
    /// It was taken while managers were locked.
    #[error("the backup is sealed, and needs the unlock key that the managers had when it was taken")]
    Sealed,
    /// Not the key that it was sealed with.
    #[error("the backup could not be opened: invalid key provided")]
    WrongKey,
    /// Whole, and yet no state.
    #[error(transparent)]
    State(#[from] StateError),
    /// The root in it cannot sign.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// What it signed is of no use.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl Classify for BackupError {
    fn kind(&self) -> Kind {
        match self {
            BackupError::Foreign
            | BackupError::Version(_)
            | BackupError::Damaged
            | BackupError::State(_)
            | BackupError::Authority(_) => Kind::InvalidArgument,
            BackupError::Sealed | BackupError::WrongKey => Kind::Unauthenticated,
            BackupError::Identity(error) => error.kind(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            BackupError::Version(_) => Some("restore it with the version of rswarm that wrote it".to_owned()),
            BackupError::Foreign
            | BackupError::Damaged
            | BackupError::Sealed
            | BackupError::WrongKey
            | BackupError::State(_)
            | BackupError::Authority(_)
            | BackupError::Identity(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::found::{NewCluster, found};

    /// The state of a new cluster whose first node manages it.
    fn state() -> State {
        let (founding, _) = found(NewCluster::default(), Timestamp::now()).expect("founded");
        let create = |object: Object| Change {
            action: change::Action::Create.into(),
            object: Some(object),
            ..Change::default()
        };
        let mut node = founding.node;
        node.manager_status = Some(ManagerStatus { raft_id: 7, ..ManagerStatus::default() });
        let changes = vec![create(founding.cluster.into()), create(node.into())];
        let transaction = Transaction { id: 1, author: Author::Bootstrap.name().to_owned(), changes };
        apply(&State::default(), 41, Batch { transactions: vec![transaction], now: 1 }).state
    }

    #[test]
    fn a_backup_is_the_state_and_goes_on_with_one_manager() {
        let state = state();
        let backup = Backup::decode(&Backup::encode(&state, Timestamp(5), None), None).expect("whole");
        assert_eq!(backup.state.snapshot(), state.snapshot());
        assert_eq!((backup.header.index, backup.header.taken_at), (41, 5));

        let (boot, identity) =
            backup.revive("m9".to_owned(), NodeAvailability::Active, Timestamp::now()).expect("revived");
        let Boot::Restore(revival) = boot else { panic!("{boot:?}") };
        let (index, revived) = revived_state(*revival, 9, "10.0.0.9:2377", Timestamp(6)).expect("applied");
        assert!(index > 41 + 1_000_000, "what the lost managers wrote after the backup is older");
        assert_eq!(revived.index(), index);
        let managers: Vec<String> = revived
            .nodes()
            .filter(|node| node.manager_status.is_some())
            .map(|node| node.id.clone())
            .collect();
        assert_eq!(managers, [identity.subject().node_id]);
        assert_eq!(revived.nodes().count(), 2, "the nodes that there were are still listed");
    }

    #[test]
    fn a_sealed_backup_opens_with_its_key_alone_and_shows_nothing() {
        let (state, key) = (state(), UnlockKey::generate());
        let token = state.cluster().and_then(|cluster| cluster.root_ca.clone()).expect("root").worker_token;
        let shows = |bytes: &[u8]| bytes.windows(token.len()).any(|window| window == token.as_bytes());
        let sealed = Backup::encode(&state, Timestamp(5), Some(&key));
        assert!(shows(&Backup::encode(&state, Timestamp(5), None)) && !shows(&sealed));
        assert_eq!(Backup::decode(&sealed, Some(&key)).expect("opened").state.snapshot(), state.snapshot());
        assert!(matches!(Backup::decode(&sealed, None), Err(BackupError::Sealed)));
        let other = UnlockKey::generate();
        assert!(matches!(Backup::decode(&sealed, Some(&other)), Err(BackupError::WrongKey)));
    }

    #[test]
    fn a_changed_or_shortened_backup_is_refused_wherever_it_was_touched() {
        let bytes = Backup::encode(&state(), Timestamp(5), None);
        for at in [MAGIC.len() + 3, bytes.len() / 2, bytes.len() - 1] {
            let mut changed = bytes.clone();
            changed[at] ^= 0x20;
            assert!(matches!(Backup::decode(&changed, None), Err(BackupError::Damaged)), "byte {at}");
        }
        for length in [MAGIC.len() + 2, bytes.len() / 3, bytes.len() - 1] {
            assert!(
                matches!(Backup::decode(&bytes[..length], None), Err(BackupError::Damaged)),
                "{length} bytes"
            );
        }
    }

    #[test]
    fn another_version_and_another_file_are_named_as_such() {
        let error = Backup::decode(b"rswarm-backup 2\n{}\n", None).expect_err("refused");
        assert!(matches!(&error, BackupError::Version(version) if version == "2"), "{error}");
        assert!(matches!(Backup::decode(b"PK\x03\x04", None), Err(BackupError::Foreign)));
        assert!(matches!(Backup::decode(b"", None), Err(BackupError::Foreign)));
    }
}
