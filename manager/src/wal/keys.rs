//! The key that seals the log, itself sealed with a key derived from the node's own.
//!
//! The data key never changes while the log lives. Nor does the node's: a renewed certificate keeps its key.
//! This file is written last when a log is made, so where it is, the log is whole.

use std::fs;
use std::path::{Path, PathBuf};

use rswarm_base::fsx;
use rswarm_base::id::random_bytes;
use sha2::{Digest, Sha256};

use super::frame::{Damage, Kind, Purpose, Reader, Sealer, Writer, file_header};
use super::{WalError, read_file};

const FILE: &str = "keys";
const CONTEXT: &[u8] = b"rswarm raft log, key encryption key, version 1\0";

/// The key that opens the data key.
pub struct WrappingKey {
    sealer: Sealer,
    /// Which key it is, without telling what it is.
    id: u64,
}

impl WrappingKey {
    /// From something only this node knows: its private key as PEM.
    #[must_use]
    pub fn derive(secret: &str) -> WrappingKey {
        let derive = |purpose: &[u8]| -> [u8; 32] {
            let mut hash = Sha256::new();
            hash.update(CONTEXT);
            hash.update(purpose);
            hash.update(secret.as_bytes());
            hash.finalize().into()
        };
        let id = derive(b"id\0");
        let id = u64::from_le_bytes(id[..8].try_into().expect("8 of 32 bytes"));
        WrappingKey { sealer: Sealer::new(&derive(b"key\0")), id }
    }
}

/// A new data key, not stored yet.
pub(super) struct DataKey([u8; 32]);

impl DataKey {
    pub(super) fn generate() -> DataKey {
        DataKey(random_bytes())
    }

    /// Opens the data key of a log.
    pub(super) fn open(dir: &Path, wrapping: &WrappingKey) -> Result<DataKey, WalError> {
        unwrap(&path(dir), wrapping).map(DataKey)
    }

    pub(super) fn sealer(&self) -> Sealer {
        Sealer::new(&self.0)
    }

    /// Stores the key, sealed: from now on, whoever has the wrapping key can open the log.
    pub(super) fn store(&self, dir: &Path, wrapping: &WrappingKey) -> Result<(), WalError> {
        let mut bytes = file_header(Purpose::Keys, 0);
        let mut writer = Writer::new(&wrapping.sealer, Purpose::Keys, 0, bytes.len());
        writer.push(Kind::DataKey, wrapping.id, 0, &self.0);
        bytes.extend(writer.bytes);
        let path = path(dir);
        fsx::write_atomic(&path, &bytes).map_err(|source| WalError::Write { path, source })
    }
}

fn path(dir: &Path) -> PathBuf {
    dir.join(FILE)
}

fn unwrap(path: &Path, wrapping: &WrappingKey) -> Result<[u8; 32], WalError> {
    let bytes = read_file(path)?;
    let damaged = |damage: Damage| WalError::Damaged(damage.in_file(path));
    let mut reader = Reader::new(&bytes, Purpose::Keys, 0).map_err(damaged)?;
    match reader.peek().map_err(damaged)? {
        Some((_, id)) if id != wrapping.id => return Err(WalError::Locked { path: path.to_owned() }),
        _ => {}
    }
    let record = reader.next(&wrapping.sealer).map_err(damaged)?;
    record
        .and_then(|record| record.body.try_into().ok())
        .ok_or_else(|| damaged(Damage::new(reader.offset(), "there is no data key")))
}

/// Whether a log was ever begun in this directory.
pub(super) fn exists(dir: &Path) -> bool {
    fs::exists(path(dir)).unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_nodes_own_key_opens_the_data_key() {
        let dir = tempfile::tempdir().expect("tempdir");
        let key = DataKey::generate();
        key.store(dir.path(), &WrappingKey::derive("mine")).expect("stored");
        let opened = DataKey::open(dir.path(), &WrappingKey::derive("mine")).expect("opened");
        assert_eq!(opened.0, key.0);
        let error = DataKey::open(dir.path(), &WrappingKey::derive("other")).err().expect("locked");
        assert!(matches!(error, WalError::Locked { .. }));
    }
}
