//! What a playground has made, on disk before it is made: `down` starts from here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rswarm_base::fsx;
use serde::{Deserialize, Serialize};

use super::PlaygroundError;
use super::process::Process;

/// A playground's state file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Where it is.
    pub dir: PathBuf,
    /// Hosts that manage.
    pub managers: u8,
    /// Hosts that do not.
    pub workers: u8,
    /// The process that keeps it up.
    pub keeper: Process,
    /// Each host's daemon.
    pub daemons: BTreeMap<String, Process>,
    /// Inodes of the network namespaces that were made.
    pub namespaces: Vec<u64>,
}

impl Record {
    fn path(dir: &Path) -> PathBuf {
        dir.join("playground.json")
    }

    /// Reads the record in a directory; `None` when there is no playground.
    pub fn load(dir: &Path) -> Result<Option<Record>, PlaygroundError> {
        let path = Record::path(dir);
        fsx::read_json(&path).map_err(|source| PlaygroundError::File { path, source })
    }

    /// Writes the record.
    pub fn save(&self) -> Result<(), PlaygroundError> {
        let path = Record::path(&self.dir);
        fsx::write_json(&path, self).map_err(|source| PlaygroundError::File { path, source })
    }
}
