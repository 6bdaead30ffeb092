//! What is remembered of a container between two commands: a directory with its state and its start FIFO.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rswarm_base::{Timestamp, fsx};
use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroup;
use crate::failure::{Context, Failure};

/// The name of the FIFO that holds init until start.
pub(super) const FIFO: &str = "exec.fifo";

/// Where all containers are remembered.
pub(super) struct Store {
    root: PathBuf,
}

/// One container.
pub(super) struct Entry {
    pub dir: PathBuf,
    pub record: Record,
}

/// What is written down.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    pub id: String,
    pub pid: i32,
    /// The process's start in clock ticks: tells it from a later one with its number.
    pub start_ticks: u64,
    pub bundle: PathBuf,
    pub cgroup: PathBuf,
    pub created: Timestamp,
    pub version: String,
    #[serde(default)]
    pub annotations: std::collections::BTreeMap<String, String>,
}

/// The states of the specification, and the usual one beside them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    Created,
    Running,
    Paused,
    Stopped,
}

impl Store {
    pub(super) fn at(root: &Path) -> Store {
        Store { root: root.to_owned() }
    }

    /// Makes a container's directory, which must not be there.
    pub(super) fn reserve(&self, id: &str) -> Result<PathBuf, Failure> {
        let dir = self.dir(id)?;
        fs::create_dir_all(&self.root).with_context(|| format!("create `{}`", self.root.display()))?;
        match fs::create_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(Failure::invalid(format!("container `{id}` exists already")))
            }
            made => made.with_context(|| format!("create `{}`", dir.display())).map(|()| dir),
        }
    }

    /// Finds a container.
    pub(super) fn find(&self, id: &str) -> Result<Entry, Failure> {
        let dir = self.dir(id)?;
        let record =
            fsx::read_json(&dir.join("state.json")).map_err(|error| Failure::other(error.to_string()))?;
        let record = record.ok_or_else(|| Failure::invalid(format!("container `{id}` does not exist")))?;
        Ok(Entry { dir, record })
    }

    fn dir(&self, id: &str) -> Result<PathBuf, Failure> {
        let good = |letter: char| letter.is_ascii_alphanumeric() || "_+-.".contains(letter);
        if id.is_empty() || id == "." || id == ".." || !id.chars().all(good) {
            return Err(Failure::invalid(format!(
                "`{id}` is no container id: letters, digits and _ + - . only"
            )));
        }
        Ok(self.root.join(id))
    }
}

impl Entry {
    /// Where the container is in its life.
    pub(super) fn status(&self) -> Result<Status, Failure> {
        if start_ticks(self.record.pid) != Some(self.record.start_ticks) {
            return Ok(Status::Stopped);
        }
        if self.dir.join(FIFO).exists() {
            return Ok(Status::Created);
        }
        Ok(if self.cgroup()?.is_frozen() { Status::Paused } else { Status::Running })
    }

    pub(super) fn cgroup(&self) -> Result<Cgroup, Failure> {
        Cgroup::at(&self.record.cgroup)
    }
}

/// When a living process started; a zombie lives no more.
// proc_pid_stat(5): the fields after the name, which may contain anything, are separated by spaces.
pub(super) fn start_ticks(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_cannot_leave_the_root() {
        let store = Store::at(Path::new("/none"));
        for id in ["", ".", "..", "a/b", "../x"] {
            assert!(store.find(id).is_err_and(|failure| failure.message.contains("no container id")), "{id}");
        }
        assert!(store.find("c-1").is_err_and(|failure| failure.message == "container `c-1` does not exist"));
    }

    #[test]
    fn a_living_process_has_a_start() {
        assert!(start_ticks(std::process::id().cast_signed()).is_some_and(|ticks| ticks > 0));
        assert_eq!(start_ticks(i32::MAX), None);
    }
}
