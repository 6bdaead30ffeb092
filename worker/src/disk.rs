//! What the node was told and what it last said, on disk: `tasks/ID.json`, `networks/ID.json` and
//! `managers.json` under the worker's directory. One small file per object, each written whole.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use rswarm_base::fsx;
use rswarm_proto::wire::{Task, TaskStatus};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::assignments::NetworkView;

/// A task as it is kept: what the managers want, and what this node observed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredTask {
    /// The assignment.
    pub task: Task,
    /// The latest status, which may not have reached a manager yet.
    pub status: TaskStatus,
}

/// The worker's directory.
#[derive(Debug, Clone)]
pub struct Disk {
    root: PathBuf,
}

impl Disk {
    /// Opens the directory, making it when there is none.
    ///
    /// # Errors
    /// When a directory cannot be made.
    pub fn open(root: &Path) -> io::Result<Disk> {
        for table in ["tasks", "networks"] {
            std::fs::create_dir_all(root.join(table))?;
        }
        Ok(Disk { root: root.to_owned() })
    }

    /// All kept tasks by id. A damaged file is set aside: the managers send again what it held.
    ///
    /// # Errors
    /// When a file cannot be read; its path is in the text.
    pub fn tasks(&self) -> io::Result<BTreeMap<String, StoredTask>> {
        self.load("tasks")
    }

    /// All kept networks by id. A damaged file is set aside: the managers send again what it held.
    ///
    /// # Errors
    /// When a file cannot be read; its path is in the text.
    pub fn networks(&self) -> io::Result<BTreeMap<String, NetworkView>> {
        self.load("networks")
    }

    /// Keeps a task.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn put_task(&self, task: &StoredTask) -> io::Result<()> {
        fsx::write_json(&self.path("tasks", &task.task.id), task)
    }

    /// Keeps a network.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn put_network(&self, view: &NetworkView) -> io::Result<()> {
        fsx::write_json(&self.path("networks", &view.network.id), view)
    }

    /// Forgets a task.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn remove_task(&self, id: &str) -> io::Result<()> {
        fsx::remove_all(&self.path("tasks", id))
    }

    /// Forgets a network.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn remove_network(&self, id: &str) -> io::Result<()> {
        fsx::remove_all(&self.path("networks", id))
    }

    /// Addresses of managers, as last heard.
    ///
    /// # Errors
    /// When the file cannot be read or parsed.
    pub fn managers(&self) -> io::Result<Vec<String>> {
        Ok(fsx::read_json(&self.root.join("managers.json"))?.unwrap_or_default())
    }

    /// Keeps the addresses of managers.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn put_managers(&self, addresses: &[String]) -> io::Result<()> {
        fsx::write_json(&self.root.join("managers.json"), &addresses)
    }

    fn path(&self, table: &str, id: &str) -> PathBuf {
        self.root.join(table).join(format!("{id}.json"))
    }

    fn load<T: DeserializeOwned>(&self, table: &str) -> io::Result<BTreeMap<String, T>> {
        let mut found = BTreeMap::new();
        for entry in std::fs::read_dir(self.root.join(table))? {
            let path = entry?.path();
            let id =
                path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".json"));
            let Some(id) = id.filter(|id| !id.starts_with('.')) else { continue };
            match fsx::read_json(&path) {
                Ok(Some(value)) => drop(found.insert(id.to_owned(), value)),
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::InvalidData => set_aside(&path, &error)?,
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }
}

/// Keeps a file that cannot be parsed for whoever wants to know why, under a name that is not read.
fn set_aside(path: &Path, error: &io::Error) -> io::Result<()> {
    tracing::error!(%error, "a damaged file is set aside; the managers send its content again");
    std::fs::rename(path, path.with_extension("damaged"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_file_is_set_aside_and_the_others_are_read() {
        let dir = tempfile::tempdir().expect("tempdir");
        let disk = Disk::open(dir.path()).expect("open");
        let task = |id: &str| StoredTask {
            task: Task { id: id.to_owned(), ..Task::default() },
            status: TaskStatus::default(),
        };
        for id in ["good", "bad"] {
            disk.put_task(&task(id)).expect("kept");
        }
        let bad = dir.path().join("tasks/bad.json");
        let half = std::fs::read(&bad).expect("read").len() / 2;
        std::fs::File::options().write(true).open(&bad).expect("open").set_len(half as u64).expect("cut");
        assert_eq!(disk.tasks().expect("read").into_keys().collect::<Vec<_>>(), ["good"]);
        assert!(!bad.exists() && bad.with_extension("damaged").exists());
        assert_eq!(disk.tasks().expect("read again").len(), 1);
    }
}
