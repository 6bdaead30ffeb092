//! Raft snapshots on disk: one file each, whole or not there.

use std::fs;
use std::path::{Path, PathBuf};

use protobuf::Message as _;
use rswarm_base::fsx;
use rswarm_manager_core::peer::eraftpb::{Snapshot, SnapshotMetadata};

use super::frame::{Damage, Kind, Purpose, Reader, Sealer, Writer, file_header};
use super::{WalError, numbered, read_file};

const PREFIX: &str = "snapshot-";
/// Data is sealed in pieces of this size, so that damage is found near where it is.
const PIECE_BYTES: usize = 1 << 20;

/// Writes raft snapshots of one log.
#[derive(Clone)]
pub struct SnapshotFiles {
    dir: PathBuf,
    sealer: Sealer,
}

impl SnapshotFiles {
    pub(super) fn new(dir: PathBuf, sealer: Sealer) -> SnapshotFiles {
        SnapshotFiles { dir, sealer }
    }

    /// Writes a raft snapshot; durable afterwards. The log learns of it by [`super::Wal::compact`].
    ///
    /// # Errors
    /// When the disk fails; then there is no such snapshot.
    pub fn write(&self, metadata: &SnapshotMetadata, data: &[u8]) -> Result<(), WalError> {
        write(&self.dir, &self.sealer, metadata, data)
    }
}

pub(super) fn write(
    dir: &Path,
    sealer: &Sealer,
    metadata: &SnapshotMetadata,
    data: &[u8],
) -> Result<(), WalError> {
    let (index, term) = (metadata.get_index(), metadata.get_term());
    let mut bytes = file_header(Purpose::Snapshot, index);
    let mut writer = Writer::new(sealer, Purpose::Snapshot, index, bytes.len());
    let meta = metadata.write_to_bytes().expect("a message in memory always encodes");
    writer.push(Kind::SnapshotMeta, index, term, &meta);
    for piece in data.chunks(PIECE_BYTES) {
        writer.push(Kind::SnapshotData, index, term, piece);
    }
    writer.push(Kind::SnapshotEnd, index, term, &[]);
    bytes.extend(writer.bytes);
    let path = path(dir, index);
    fsx::write_atomic(&path, &bytes).map_err(|source| WalError::Write { path, source })
}

/// The latest raft snapshot; an error when it is damaged, however good an older one may be.
pub(super) fn load_latest(dir: &Path, sealer: &Sealer) -> Result<Option<Snapshot>, WalError> {
    let Some(index) = numbered(dir, PREFIX)?.pop() else { return Ok(None) };
    let path = path(dir, index);
    let bytes = read_file(&path)?;
    read(&bytes, sealer, index).map(Some).map_err(|damage| WalError::Damaged(damage.in_file(&path)))
}

fn read(bytes: &[u8], sealer: &Sealer, index: u64) -> Result<Snapshot, Damage> {
    let mut reader = Reader::new(bytes, Purpose::Snapshot, index)?;
    let mut snapshot = Snapshot::default();
    let mut data = Vec::new();
    loop {
        let at = reader.offset();
        let record =
            reader.next(sealer)?.ok_or(Damage::new(at, "the end of the raft snapshot is missing"))?;
        match record.kind {
            Kind::SnapshotMeta => snapshot.set_metadata(super::decode(&record)?),
            Kind::SnapshotData => data.extend(record.body),
            Kind::SnapshotEnd => break,
            Kind::Entry | Kind::HardState | Kind::Marker | Kind::DataKey | Kind::Member => {
                return Err(Damage::new(at, "a record that does not belong in a raft snapshot"));
            }
        }
    }
    if reader.offset() != bytes.len() {
        return Err(Damage::new(reader.offset(), "there is more after the end of the raft snapshot"));
    }
    snapshot.set_data(data.into());
    Ok(snapshot)
}

/// Removes raft snapshots before `index`.
pub(super) fn remove_older(dir: &Path, index: u64) -> Result<(), WalError> {
    for older in numbered(dir, PREFIX)?.into_iter().filter(|older| *older < index) {
        let path = path(dir, older);
        fs::remove_file(&path).map_err(|source| WalError::Write { path, source })?;
    }
    Ok(())
}

fn path(dir: &Path, index: u64) -> PathBuf {
    dir.join(format!("{PREFIX}{index:016}"))
}
